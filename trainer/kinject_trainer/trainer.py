"""transformers' Trainer over our blocks, and the callbacks that go with it.

What it is for: batches, schedule, validation, log and checkpoints of one training. What it does not do: run it
(`train.py`).

The one idea: the whole run is one pass over one stream of blocks (`data.py`), so to transformers it is a single epoch.
Where it stands is a number of updates, and what comes next is a function of that number: resuming needs no replay of
data. Trainer is changed in five places: which batches a process gets, what stops it, how validation is counted, what a
regulariser adds, and what a lesson's loss is.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase, PrinterCallback, Trainer, TrainerCallback

from kinject_trainer.base import Base
from kinject_trainer.cartridge import divergence, untrained
from kinject_trainer.checkpoints import discard_older, seal
from kinject_trainer.data import Answers, Blocks, Passes, Plan, Stream, collate
from kinject_trainer.evaluate import mean_token_loss, next_token_loss
from kinject_trainer.forgetting import Gauge
from kinject_trainer.keep import RecAdam, make_pull, trained
from kinject_trainer.log import Log
from kinject_trainer.processes import anywhere, wait
from kinject_trainer.recipe import Recadam, Recipe
from kinject_trainer.robust import Exercises
from kinject_trainer.selfstudy import Lessons, Study, collate_lessons
from lm_eval_kinject.errors import ArgumentError

__all__ = ["BlockTrainer", "Conductor", "Materials", "NotANumber", "rate_share", "refuse_what_is_no_number"]


@dataclass(frozen=True)
class Materials:
    """All that a run needs besides its learning rate; made once for all trials of a search.

    Attributes:
        recipe: as checked.
        base: the model's files.
        tokenizer: of the base.
        stream: the training blocks.
        validation: blocks of held-out wordings; empty where there are none.
        gauge: what forgetting is measured on; None: it isn't.
        identity: plain values that name recipe, model, tokenizer and corpus; a checkpoint carries them.
        fisher_rows: token ids of the texts that EWC's Fisher information is measured on; empty without EWC.
        opening: the corpus's first token ids, which a cartridge starts as; empty with every other method.
        study: the lessons, of which the stream's blocks are one each; None where there are none.
        exercises: the questions, likewise.
    """

    recipe: Recipe
    base: Base
    tokenizer: PreTrainedTokenizerBase
    stream: Stream
    validation: list[list[int]]
    gauge: Gauge | None
    identity: Mapping[str, Any]
    fisher_rows: Sequence[Sequence[int]] = ()
    opening: Sequence[int] = ()
    study: Study | None = None
    exercises: Exercises | None = None

    def plan(self, processes: int) -> Plan:
        """Who trains on what."""
        micro, accumulation = self.recipe.accumulation(processes)
        stream = self.stream
        return Plan.of(stream.total, stream.block_size, self.recipe.global_batch, micro, accumulation, processes)


class BlockTrainer(Trainer):
    """transformers' Trainer with our batches and schedule, a stop at what isn't a number, exact validation losses."""

    control: Any
    lr_scheduler: Any
    optimizer: Any

    def __init__(self, materials: Materials, plan: Plan, **kwargs: Any) -> None:
        self.recipe = materials.recipe
        self.plan = plan
        self.validation = materials.validation
        super().__init__(
            train_dataset=_dataset(materials),
            data_collator=collate if materials.study is None else collate_lessons,
            compute_loss_func=next_token_loss,
            processing_class=materials.tokenizer,
            **kwargs,
        )
        self._hold(materials)
        self.remove_callback(PrinterCallback)  # libraries don't print
        self.watch = Watch()
        self.add_callback(self.watch)

    def _hold(self, materials: Materials) -> None:
        """Remembers the start, while the model is still the base: before a checkpoint is loaded."""
        regulariser, self.start = self.recipe.regulariser, list[torch.Tensor]()
        if regulariser is not None and (self.is_fsdp_enabled or self.is_deepspeed_enabled):
            raise ArgumentError(
                f"regulariser {regulariser.kind} needs whole weights in each process, and these are sharded: launch "
                f"without FSDP and DeepSpeed, or remove the regulariser",
                self.recipe.where,
            )
        self.pull = make_pull(regulariser, self.model, materials.fisher_rows, self.recipe.seed)
        if isinstance(regulariser, Recadam):
            self.start = [weight.detach().clone() for weight in trained(self.model)]

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """AdamW, or what the recipe passes through; RecAdam where it asks for that."""
        asked = self.recipe.regulariser
        if not isinstance(asked, Recadam):
            made: torch.optim.Optimizer = super().create_optimizer(model)
            return made
        if self.optimizer is None:
            constants = {"gamma": asked.gamma, "k": asked.k, "t0": asked.t0, "eps": asked.eps}
            rate, betas = self.args.learning_rate, self.recipe.betas
            self.optimizer = RecAdam(trained(self.model), self.start, lr=rate, betas=betas, **constants)
        return self.optimizer

    def get_train_dataloader(self) -> DataLoader[Any]:
        """This process's share of the plan; accelerate would repeat blocks to even out the last batch."""
        passes = Passes(self.plan, self.args.process_index)
        return DataLoader(
            self.train_dataset,
            batch_sampler=passes,
            collate_fn=self.data_collator,
            num_workers=self.args.dataloader_num_workers,
            pin_memory=self.args.dataloader_pin_memory and torch.cuda.is_available(),
        )

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """The recipe's schedule. transformers' warm-up starts at a rate of 0: of 30 updates one would be lost."""
        if self.lr_scheduler is None:
            share = functools.partial(rate_share, self.recipe, updates=num_training_steps)
            self.lr_scheduler = LambdaLR(self.optimizer if optimizer is None else optimizer, share)
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        """One forward and backward pass; a loss that is no number ends the run before it reaches the weights."""
        loss: torch.Tensor = super().training_step(model, inputs, num_items_in_batch)
        self.watch.loss_is_number &= math.isfinite(float(loss))
        if self.pull is not None and self.accelerator.sync_gradients:  # the update's last pass; clipping comes after it
            self.pull.add_gradients()
        return loss

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The next tokens' loss; of lessons, the distance from what the base says that has the chunk before them."""
        if "taught" in inputs:
            rows, shift = inputs.pop("taught"), inputs.pop("shift")
            answers = _heard(untrained(self.accelerator.unwrap_model(model)), rows, self.accelerator)
            self.compute_loss_func = lambda outputs, labels, num_items_in_batch: divergence(
                outputs.logits, answers, labels, shift, num_items_in_batch
            )
        return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)

    def evaluate(self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval") -> Any:
        """The validation loss over all tokens; before the first update, the base's."""
        model = self.model if self.state.global_step else untrained(self.model)
        loss = mean_token_loss(model, self.validation, self.plan.micro, self.accelerator)
        refuse_what_is_no_number({"the validation loss": loss}, self.state.global_step)
        metrics = {f"{metric_key_prefix}_loss": loss}
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


def _dataset(materials: Materials) -> Blocks:
    if materials.study is not None:
        return Lessons(materials.stream, materials.study)
    if materials.exercises is not None:
        return Answers(materials.stream, materials.exercises.answers)
    return Blocks(materials.stream)


@torch.no_grad()
def _heard(base: Any, rows: torch.Tensor, accelerator: Any) -> torch.Tensor:
    """What the base says, without dropout, [rows, length, vocabulary]; it stays in the mode that it is in."""
    was_training = base.training
    base.eval()
    with accelerator.autocast():
        logits: torch.Tensor = base(input_ids=rows, use_cache=False).logits
    base.train(was_training)
    return logits


def rate_share(recipe: Recipe, update: int, *, updates: int) -> float:
    """Share of the peak learning rate at an update, counted from 0.

    It rises in equal steps to 1 and then stays, or falls to reach 0 just after the last update. With 10 updates, two
    of them warm-up, and a linear schedule: 1/3, 2/3, 1, 7/8, 6/8, … 1/8.
    """
    warm_up = round(recipe.warm_up * updates)
    if update < warm_up:
        return (update + 1) / (warm_up + 1)
    done = (update - warm_up) / max(updates - warm_up, 1)
    if recipe.schedule == "linear":
        return max(0.0, 1 - done)
    return 0.5 * (1 + math.cos(math.pi * min(done, 1.0))) if recipe.schedule == "cosine" else 1.0


class NotANumber(Exception):
    """A loss, gradient, weight or figure that isn't finite, at an update counted from 1; 0: of the base."""

    def __init__(self, update: int, what: str) -> None:
        self.update, self.what = update, what
        super().__init__(f"{what} is not a number at update {update}")


def refuse_what_is_no_number(figures: Mapping[str, float | None], update: int) -> None:
    """Stops where a figure, the same on every process, isn't finite.

    Raises:
        NotANumber: names the first such figure.
    """
    for name, value in figures.items():
        if value is not None and not math.isfinite(value):
            raise NotANumber(update, name)


def refuse_broken_weights(model: Any, device: torch.device, update: int) -> None:
    """Stops where an update has left a trained weight that isn't finite; the next loss would show it, too late.

    Raises:
        NotANumber: on every process, if one of them has such a weight.
    """
    whole = [torch.isfinite(_local(p.detach())).all() for p in model.parameters() if p.requires_grad]
    if anywhere([bool(whole) and not bool(torch.stack(whole).all())], device)[0]:
        raise NotANumber(update, "a weight")


class Watch(TrainerCallback):
    """Stops the run before what is no number reaches the weights, at the same update on every process.

    One process can see what the others don't. If it raised alone, they would wait for it in their next exchange; so it
    remembers, and all raise together once they have told each other.
    """

    def __init__(self) -> None:
        self.loss_is_number = True

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Gradients can be no numbers while the loss still is one, so both are looked at."""
        sums = [_local(p.grad).sum().float() for p in model.parameters() if p.grad is not None]
        gradient_is_number = not sums or math.isfinite(float(torch.stack(sums).sum()))
        loss_is_lost, gradient_is_lost = anywhere([not self.loss_is_number, not gradient_is_number], args.device)
        if loss_is_lost:
            # The first loss is the base's own: nothing has been trained yet.
            raise NotANumber(state.global_step + 1 if state.global_step else 0, "the loss")
        if gradient_is_lost:
            raise NotANumber(state.global_step + 1, "a gradient")


class Conductor(TrainerCallback):
    """Says when to validate and to save, keeps the log and the progress bar, and seals checkpoints."""

    def __init__(
        self, materials: Materials, plan: Plan, place: Path, log: Log | None, run: Mapping[str, Any], began: float
    ) -> None:
        self.recipe = materials.recipe
        self.stream = materials.stream
        self.validates = bool(materials.validation) and self.recipe.validate_every != "never"
        self.plan = plan
        self.place = place
        self.log = log
        self.run = run
        self.bar: Any = None
        self.last_loss: float | None = None
        self.validation_loss: float | None = None
        self._since = (0, 0.0)
        self._began = began

    @property
    def seconds(self) -> float:
        """What the run has taken since ``began``, on the clock of `time.monotonic`."""
        return time.monotonic() - self._began

    def tokens_after(self, updates: int) -> int:
        """Tokens trained on after so many updates."""
        return min(self.plan.blocks_after(updates) * self.stream.block_size, self.stream.total)

    def epoch_after(self, updates: int) -> float:
        """Epochs after so many updates, with what is after the point."""
        return self.stream.epochs_of(self.tokens_after(updates))

    def last_epoch_loss(self, history: Sequence[Mapping[str, Any]]) -> float | None:
        """Mean training loss over the predicted tokens of the last epoch, nats a token; None where none was logged.

        A loss is known for an update as a whole: one that lies across the border counts by its share behind it.

        Args:
            history: transformers' log of the run (``state.log_history``), which its checkpoints carry.
        """
        losses = {int(entry["step"]): float(entry["loss"]) for entry in history if "loss" in entry}
        end = self.tokens_after(self.plan.updates)
        border = self.stream.an_epoch_before(end)
        total, weights = 0.0, 0.0
        for update, loss in losses.items():
            first, last = self.tokens_after(update - 1), self.tokens_after(update)
            # The first token of a block is predicted from nothing, and has no part in the update's mean.
            predicted = (last - first) - (self.plan.blocks_after(update) - self.plan.blocks_after(update - 1))
            weight = predicted * max(0, last - max(first, border)) / (last - first)
            total, weights = total + weight * loss, weights + weight
        return total / weights if weights else None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Starts the clock and the bar."""
        done = self.tokens_after(state.global_step)
        self._since = (done, time.monotonic())
        if self.log is not None:
            self.bar = tqdm(total=self.stream.total, initial=done, unit="token", unit_scale=True, desc="train")

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> Any:
        """Decides what follows this update."""
        step = state.global_step
        last = step >= state.max_steps
        control.should_log = True
        control.should_evaluate = self.validates and (last or self._is_due(self.recipe.validate_every, step))
        control.should_save = not last and self._is_due(self.recipe.checkpoint_every, step)
        if last or control.should_save:  # neither a result nor a checkpoint is made of what is no number
            refuse_broken_weights(model, args.device, step)
        if self.bar is not None:
            self.bar.update(self.tokens_after(step) - self.bar.n)
        return control

    def _is_due(self, cadence: int | str, step: int) -> bool:
        if cadence == "never":
            return False
        if isinstance(cadence, int):
            return step % cadence == 0
        return math.floor(self.epoch_after(step)) > math.floor(self.epoch_after(step - 1))

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Writes a line for each training and validation loss."""
        step = state.global_step
        entry: dict[str, Any] = {"update": step, "epoch": round(self.epoch_after(step), 6)}
        if "loss" in logs:
            tokens, now = self.tokens_after(step), time.monotonic()
            speed = (tokens - self._since[0]) / max(now - self._since[1], 1e-9)
            self._since = (tokens, now)
            self.last_loss = float(logs["loss"])
            entry |= {"tokens": tokens, "loss": self.last_loss, "learning_rate": logs["learning_rate"]}
            entry |= {"gradient_norm": logs.get("grad_norm"), "tokens_per_second": round(speed, 1)}
        elif "eval_loss" in logs:
            self.validation_loss = float(logs["eval_loss"])
            entry |= {"validation_loss": self.validation_loss}
            self._since = (self._since[0], time.monotonic())
        else:
            return
        if self.log is not None:
            self.log.write(entry)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Seals the checkpoint once every process has written its part; then older ones may go."""
        wait()
        if state.is_world_process_zero:
            seal(self.place / f"checkpoint-{state.global_step}", self.run, self.seconds)
            discard_older(self.place, self.recipe.checkpoints_kept)
        self._since = (self._since[0], time.monotonic())

    def close(self) -> None:
        """Ends the progress bar."""
        if self.bar is not None:
            self.bar.close()


def _local(tensor: Any) -> torch.Tensor:
    """The part of a sharded tensor that is here."""
    found: torch.Tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return found
