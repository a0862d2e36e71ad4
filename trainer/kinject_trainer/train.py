"""One training: transformers' Trainer over our blocks, from a base model to finished weights.

What it is for: `run_training` trains at one learning rate, keeps log and checkpoints, and leaves a result folder and
an outcome. What it does not do: it chooses no learning rate (`tune.py`) and writes no card (`card.py`).

The one idea: the whole run is one pass over one stream of blocks (`data.py`), so to transformers it is a single epoch.
Where it stands is a number of updates, and what comes next is a function of that number: resuming needs no replay of
data. Trainer is changed in three places: which batches a process gets, what stops it, and how validation is counted.
"""

from __future__ import annotations

import dataclasses
import errno
import functools
import math
import shutil
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase, PrinterCallback, Trainer, TrainerCallback, TrainingArguments, set_seed
from transformers.utils import logging as transformers_logging

from kinject_trainer.base import Base, load_model, with_adapter
from kinject_trainer.checkpoints import discard_older, discard_unfinished, newest, seal
from kinject_trainer.data import Blocks, Passes, Plan, Stream, collate
from kinject_trainer.errors import TrainingError
from kinject_trainer.evaluate import mean_token_loss, next_token_loss
from kinject_trainer.forgetting import Gauge
from kinject_trainer.log import Log
from kinject_trainer.recipe import Recipe
from lm_eval_kinject.errors import ArgumentError, KinjectError
from lm_eval_kinject.provenance import publish_folder, read_json, write_json

__all__ = ["Materials", "Outcome", "run_training"]

Say = Callable[[str], None]
_ARGUMENT_NAMES = {f.name for f in dataclasses.fields(TrainingArguments)}


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
    """

    recipe: Recipe
    base: Base
    tokenizer: PreTrainedTokenizerBase
    stream: Stream
    validation: list[list[int]]
    gauge: Gauge | None
    identity: Mapping[str, Any]

    def plan(self, processes: int) -> Plan:
        """Who trains on what."""
        micro, accumulation = self.recipe.accumulation(processes)
        stream = self.stream
        return Plan(stream.full_blocks, stream.tail > 0, self.recipe.global_batch, micro, accumulation, processes)


@dataclass(frozen=True)
class Outcome:
    """What came of one training; `None` where it wasn't measured.

    Attributes:
        learning_rate: the peak.
        updates: optimizer steps made.
        tokens: trained on, each occurrence counted.
        train_loss: of the last update, nats a token.
        validation_loss: at the end.
        validation_loss_before: of the base.
        before: forgetting figures of the base.
        after: forgetting figures at the end.
        seconds: of this process since it started or resumed.
        trainable_parameters: how many.
        folder: of the weights.
    """

    learning_rate: float
    updates: int
    tokens: int
    train_loss: float | None
    validation_loss: float | None
    validation_loss_before: float | None
    before: Mapping[str, float | None] | None
    after: Mapping[str, float | None] | None
    seconds: float
    trainable_parameters: int
    folder: Path

    def plain(self) -> dict[str, Any]:
        """As JSON can hold it, without the folder."""
        return {k: v for k, v in dataclasses.asdict(self).items() if k != "folder"}


# The Trainer ----------------------------------------------------------------------------------------------------------


class BlockTrainer(Trainer):
    """transformers' Trainer with our batches and schedule, a stop at what isn't a number, exact validation losses."""

    control: Any
    lr_scheduler: Any

    def __init__(self, materials: Materials, plan: Plan, **kwargs: Any) -> None:
        self.recipe = materials.recipe
        self.plan = plan
        self.validation = materials.validation
        super().__init__(
            train_dataset=Blocks(materials.stream),
            data_collator=collate,
            compute_loss_func=next_token_loss,
            processing_class=materials.tokenizer,
            **kwargs,
        )
        self.remove_callback(PrinterCallback)  # libraries don't print
        self.watch = Watch()
        self.add_callback(self.watch)

    def get_train_dataloader(self) -> DataLoader[Any]:
        """This process's share of the plan; accelerate would repeat blocks to even out the last batch."""
        passes = Passes(self.plan, self.args.process_index)
        return DataLoader(
            self.train_dataset,
            batch_sampler=passes,
            collate_fn=collate,
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
        return loss

    def evaluate(self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval") -> Any:
        """The validation loss over all tokens."""
        loss = mean_token_loss(self.model, self.validation, self.plan.micro, self.accelerator)
        metrics = {f"{metric_key_prefix}_loss": loss}
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


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
    """A loss or gradient that isn't finite, at an update counted from 1."""

    def __init__(self, update: int, what: str) -> None:
        self.update, self.what = update, what
        super().__init__(f"{what} is not a number at update {update}")


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
        loss_is_lost, gradient_is_lost = _anywhere([not self.loss_is_number, not gradient_is_number], args.device)
        if loss_is_lost or gradient_is_lost:
            raise NotANumber(state.global_step + 1, "the loss" if loss_is_lost else "a gradient")


class Conductor(TrainerCallback):
    """Says when to validate and to save, keeps the log and the progress bar, and seals checkpoints."""

    def __init__(self, materials: Materials, plan: Plan, place: Path, log: Log | None, run: Mapping[str, Any]) -> None:
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

    def tokens_after(self, updates: int) -> int:
        """Tokens trained on after so many updates."""
        return min(self.plan.blocks_after(updates) * self.stream.block_size, self.stream.total)

    def epoch_after(self, updates: int) -> float:
        """Epochs after so many updates, with what is after the point."""
        return self.tokens_after(updates) / self.stream.epoch_tokens

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Starts the clock and the bar."""
        done = self.tokens_after(state.global_step)
        self._since = (done, time.monotonic())
        if self.log is not None:
            self.bar = tqdm(total=self.stream.total, initial=done, unit="token", unit_scale=True, desc="train")

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        """Decides what follows this update."""
        step = state.global_step
        last = step >= state.max_steps
        control.should_log = True
        control.should_evaluate = self.validates and (last or self._is_due(self.recipe.validate_every, step))
        control.should_save = not last and self._is_due(self.recipe.checkpoint_every, step)
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
        _wait()
        if state.is_world_process_zero:
            seal(self.place / f"checkpoint-{state.global_step}", self.run)
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


def on_cpu() -> bool:
    """Whether there is no accelerator; accelerate must be told, or processes on a CPU don't find each other."""
    if hasattr(torch, "accelerator"):
        return not torch.accelerator.is_available()
    return not torch.cuda.is_available()


def _are_several() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def _wait() -> None:
    if _are_several():
        torch.distributed.barrier()


def _anywhere(found: list[bool], device: Any) -> list[bool]:
    """Whether each holds on some process."""
    if not _are_several():
        return found
    flags = torch.tensor(found, dtype=torch.float32, device=device)
    torch.distributed.all_reduce(flags, op=torch.distributed.ReduceOp.MAX)
    return [bool(flag) for flag in flags.tolist()]


# Running it -----------------------------------------------------------------------------------------------------------


def run_training(materials: Materials, rate: float, place: Path, log_file: Path, say: Say) -> Outcome:
    """Trains at one learning rate; goes on where an earlier process stopped, if it left a finished checkpoint.

    Args:
        materials: what to train on what.
        rate: peak learning rate.
        place: folder for checkpoints and the finished weights (``result``).
        log_file: where the log goes.
        say: told what a user should know.

    Raises:
        TrainingError: a checkpoint of another run, a loss that is no number, a full disk, too little memory; with the
            last good checkpoint, which is kept.
    """
    place.mkdir(parents=True, exist_ok=True)
    run = {**materials.identity, "learning rate": rate}
    finished = _finished(place, run)
    if finished is not None:
        return finished
    try:
        with _quietly():
            return _train(materials, rate, place, log_file, run, say)
    except KinjectError:
        raise
    except Exception as problem:
        explained = _explained(problem, place, run)
        if explained is None:
            raise
        raise explained from problem


def _train(materials: Materials, rate: float, place: Path, log_file: Path, run: Mapping[str, Any], say: Say) -> Outcome:
    began = time.monotonic()
    set_seed(materials.recipe.seed)
    try:
        world = _arguments(materials.recipe, rate, place).world_size
    except (ValueError, TypeError) as problem:
        raise ArgumentError(
            f"transformers refuses the arguments under trainer: {problem}", materials.recipe.where
        ) from problem
    plan = materials.plan(world)
    arguments = _arguments(materials.recipe, rate, place, plan)
    checkpoint = newest(place, run)
    log = None
    if arguments.process_index == 0:
        discard_unfinished(place)
        log = Log(log_file, 0 if checkpoint is None else checkpoint.updates)
    _wait()
    model = load_model(materials.base, materials.recipe)
    model = with_adapter(model, materials.recipe)
    conductor = Conductor(materials, plan, place, log, run)
    trainer = BlockTrainer(materials, plan, model=model, args=arguments, callbacks=[conductor])
    start = _Start(materials, trainer, conductor, place)
    trainer.add_callback(start)
    if checkpoint is not None:
        say(f"going on from update {checkpoint.updates} of {plan.updates}")
    try:
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint.folder))
    finally:
        conductor.close()
    outcome = Outcome(
        learning_rate=rate,
        updates=trainer.state.global_step,
        tokens=conductor.tokens_after(trainer.state.global_step),
        train_loss=conductor.last_loss,
        validation_loss=conductor.validation_loss,
        validation_loss_before=start.before.get("validation_loss"),
        before=start.before.get("figures"),
        after=start.measure(),
        seconds=round(time.monotonic() - began, 2),
        trainable_parameters=sum(p.numel() for p in model.parameters() if p.requires_grad),
        folder=place / "result",
    )
    _save_result(trainer, materials, outcome, run)
    return outcome


@contextmanager
def _quietly() -> Iterator[None]:
    """Without transformers' bars for reading and writing files, which would tear up ours, and its talk to itself."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            # transformers 5.23 asks its own model by the old name; to be dropped when it no longer does.
            warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
            yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()


class _Start(TrainerCallback):
    """Measures the base, in the very form in which it is trained, before the first update; once per run."""

    def __init__(self, materials: Materials, trainer: BlockTrainer, conductor: Conductor, place: Path) -> None:
        self.materials, self.trainer, self.conductor = materials, trainer, conductor
        self.file = place / "before.json"
        self.before: dict[str, Any] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Measures, or reads what was measured before the run was interrupted."""
        if state.global_step:
            self.before = read_json(self.file)
            return
        self.before["figures"] = self.measure()
        if self.materials.validation:
            self.trainer.evaluate()
            self.before["validation_loss"] = self.conductor.validation_loss
        if state.is_world_process_zero:
            write_json(self.file, self.before)

    def measure(self) -> dict[str, float | None] | None:
        """Forgetting figures of the model as it is now; None where they aren't asked for."""
        gauge = self.materials.gauge
        return None if gauge is None else gauge.measure(self.trainer.model, self.trainer.accelerator).plain()


def _arguments(recipe: Recipe, rate: float, place: Path, plan: Plan | None = None) -> TrainingArguments:
    """Trainer's arguments; without a plan, only good for asking how many processes there are."""
    checkpointing = "activation_checkpointing" if "activation_checkpointing" in _ARGUMENT_NAMES else None
    arguments = TrainingArguments(
        output_dir=str(place),
        num_train_epochs=1,
        per_device_train_batch_size=1 if plan is None else plan.micro,
        gradient_accumulation_steps=1 if plan is None else plan.accumulation,
        learning_rate=rate,
        weight_decay=recipe.weight_decay,
        adam_beta1=recipe.betas[0],
        adam_beta2=recipe.betas[1],
        max_grad_norm=recipe.max_grad_norm,
        bf16=recipe.precision == "bf16",
        seed=recipe.seed,
        use_cpu=on_cpu(),
        save_strategy="no",
        eval_strategy="no",
        logging_strategy="no",
        logging_nan_inf_filter=False,
        remove_unused_columns=False,
        disable_tqdm=True,
        **{checkpointing or "gradient_checkpointing": recipe.gradient_checkpointing},
        **{"report_to": [], "ddp_find_unused_parameters": False, **recipe.trainer},
    )
    if arguments.n_gpu > 1:
        # One process sees several GPUs: without a launcher Trainer would split batches over them by itself.
        arguments._n_gpu = 1
    return arguments


def _save_result(trainer: BlockTrainer, materials: Materials, outcome: Outcome, run: Mapping[str, Any]) -> None:
    """Writes the weights as plain PEFT or transformers folder, then the outcome, which declares them finished."""
    if materials.recipe.save_precision == "bf16":
        trainer.model.to(torch.bfloat16)
    trainer.model.config.use_cache = True  # off while training; whoever generates with the result wants it
    place = outcome.folder.parent
    if trainer.args.process_index == 0:
        with publish_folder(outcome.folder) as building:
            trainer.save_model(str(building))
            (building / "training_args.bin").unlink(missing_ok=True)  # pickled: nobody should have to trust it
        write_json(place / "outcome.json", {"run": dict(run), "outcome": outcome.plain()})
        for checkpoint in place.glob("checkpoint-*"):
            shutil.rmtree(checkpoint, ignore_errors=True)
    else:
        trainer.save_model(str(outcome.folder))  # writes nothing here; a sharded model is gathered from all processes
    _wait()


def _finished(place: Path, run: Mapping[str, Any]) -> Outcome | None:
    """The outcome of a training that ended in an earlier process, if it was the same."""
    try:
        found = read_json(place / "outcome.json")
    except OSError:
        return None
    return Outcome(**found["outcome"], folder=place / "result") if found["run"] == run else None


# What went wrong ------------------------------------------------------------------------------------------------------

_FULL = ("no space left", "disk quota", "pytorchstreamwriter failed", "inline_container")


def _explained(problem: Exception, place: Path, run: Mapping[str, Any]) -> TrainingError | None:
    """What a user can do about it; None where that isn't known, and the error itself must be seen."""
    checkpoint = newest(place, run)
    kept = (
        "There is no checkpoint yet."
        if checkpoint is None
        else f"The last good checkpoint, of update {checkpoint.updates}, is kept: {checkpoint.folder}."
    )
    if isinstance(problem, NotANumber):
        return TrainingError(
            f"The training stopped: {problem.what} is not a number at update {problem.update}. {kept} Lower the "
            f"learning rate (now {run['learning rate']:g}), lengthen warm_up, or set precision: fp32."
        )
    full = isinstance(problem, OSError) and problem.errno in (errno.ENOSPC, errno.EDQUOT)
    if full or any(sign in str(problem).lower() for sign in _FULL):
        discard_unfinished(place)
        return TrainingError(f"The disk is full. {kept} Free space there, then go on with --resume.")
    if isinstance(problem, torch.OutOfMemoryError) or "can't allocate memory" in str(problem):
        return TrainingError(
            f"Not enough memory for the training. {kept} Lower micro_batch (it changes no result but for rounding), "
            f"set gradient_checkpointing: true, or take an adapter, then go on with --resume."
        )
    return None
