"""One training, from a base model to finished weights.

What it is for: `run_training` trains at one learning rate, keeps log and checkpoints, and leaves a result folder and
an outcome. What it does not do: it chooses no learning rate (`tune.py`) and writes no card (`card.py`).
"""

from __future__ import annotations

import dataclasses
import shutil
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainingArguments, set_seed
from transformers.utils import logging as transformers_logging

from kinject_trainer.base import load_model, with_adapter
from kinject_trainer.cartridge import fill, untrained
from kinject_trainer.checkpoints import discard_unfinished, newest
from kinject_trainer.data import Plan
from kinject_trainer.failures import explained
from kinject_trainer.log import Log
from kinject_trainer.processes import on_cpu, wait
from kinject_trainer.recipe import Recipe
from kinject_trainer.trainer import BlockTrainer, Conductor, Materials, refuse_what_is_no_number
from lm_eval_kinject.errors import ArgumentError, KinjectError
from lm_eval_kinject.provenance import publish_folder, read_json, write_json

__all__ = ["Outcome", "assemble", "quietly", "run_training", "set_up"]

Say = Callable[[str], None]
_ARGUMENT_NAMES = {f.name for f in dataclasses.fields(TrainingArguments)}


@dataclass(frozen=True)
class Outcome:
    """What came of one training; `None` where it wasn't measured.

    Attributes:
        learning_rate: the peak.
        updates: optimizer steps made.
        tokens: trained on, each occurrence counted.
        train_loss: of the last update, nats a token; that can be a single short block.
        train_loss_last_epoch: mean over the last epoch's predicted tokens.
        validation_loss: at the end.
        validation_loss_before: of the base.
        before: forgetting figures of the base.
        after: forgetting figures at the end.
        seconds: that it took, with those of earlier processes up to the checkpoints that were gone on from.
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
    train_loss_last_epoch: float | None = None  # a training that ended under an earlier release has none

    def plain(self) -> dict[str, Any]:
        """As JSON can hold it, without the folder."""
        return {k: v for k, v in dataclasses.asdict(self).items() if k != "folder"}


def run_training(materials: Materials, rate: float, place: Path, log_file: Path, say: Say) -> Outcome:
    """Trains at one learning rate; goes on where an earlier process stopped, if it left a finished checkpoint.

    Args:
        materials: what to train on what.
        rate: peak learning rate.
        place: folder for checkpoints and the finished weights (``result``).
        log_file: where the log goes.
        say: told what a user should know.

    Raises:
        TrainingError: a checkpoint of another run, a loss, weight or figure that is no number, a full disk, too little
            memory; with the last good checkpoint, which is kept.
    """
    place.mkdir(parents=True, exist_ok=True)
    run = {**materials.identity, "learning rate": rate}
    finished = _finished(place, run)
    if finished is not None:
        return finished
    try:
        with quietly():
            return _train(materials, rate, place, log_file, run, say)
    except KinjectError:
        raise
    except Exception as problem:
        told = explained(problem, place, run)
        if told is None:
            raise
        raise told from problem


def _train(materials: Materials, rate: float, place: Path, log_file: Path, run: Mapping[str, Any], say: Say) -> Outcome:
    began = time.monotonic()
    plan, arguments = set_up(materials, rate, place)
    checkpoint = newest(place, run)
    if checkpoint is not None:
        began -= checkpoint.seconds
    log = None
    if arguments.process_index == 0:
        discard_unfinished(place)
        log = Log(log_file, 0 if checkpoint is None else checkpoint.updates)
    wait()
    trainer, conductor, start = assemble(materials, plan, arguments, log, run, began)
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
        train_loss_last_epoch=conductor.last_epoch_loss(trainer.state.log_history),
        validation_loss=conductor.validation_loss,
        validation_loss_before=start.before.get("validation_loss"),
        before=start.before.get("figures"),
        after=start.measure(trainer.model),
        seconds=round(conductor.seconds, 2),
        trainable_parameters=sum(p.numel() for p in trainer.model.parameters() if p.requires_grad),
        folder=place / "result",
    )
    _save_result(trainer, materials, outcome, run)
    return outcome


def set_up(materials: Materials, rate: float, place: Path) -> tuple[Plan, TrainingArguments]:
    """Seeds the random numbers, and works out who trains on what and what transformers is told.

    Raises:
        ArgumentError: transformers refuses what the recipe passes through to it.
    """
    set_seed(materials.recipe.seed)
    try:
        world = _arguments(materials.recipe, rate, place).world_size
    except (ValueError, TypeError) as problem:
        raise ArgumentError(
            f"transformers refuses the arguments under trainer: {problem}", materials.recipe.where
        ) from problem
    plan = materials.plan(world)
    return plan, _arguments(materials.recipe, rate, place, plan)


def assemble(
    materials: Materials,
    plan: Plan,
    arguments: TrainingArguments,
    log: Log | None,
    run: Mapping[str, Any],
    began: float,
) -> tuple[BlockTrainer, Conductor, _Start]:
    """A trainer that is ready to train the base, with all that keeps its log, checkpoints and figures.

    Args:
        materials: what to train on what.
        plan: from `set_up`, as are the arguments.
        arguments: their ``output_dir`` is where checkpoints go.
        log: of the process that keeps one.
        run: plain values that say whose a checkpoint is.
        began: when, on the clock of `time.monotonic`.
    """
    place = Path(arguments.output_dir)
    model = with_adapter(load_model(materials.base, materials.recipe), materials.recipe)
    conductor = Conductor(materials, plan, place, log, run, began)
    trainer = BlockTrainer(materials, plan, model=model, args=arguments, callbacks=[conductor])
    if materials.opening:
        fill(trainer.model, materials.opening)  # now that the model is on its device
    start = _Start(materials, trainer, conductor, place)
    trainer.add_callback(start)
    return trainer, conductor, start


@contextmanager
def quietly() -> Iterator[None]:
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
    """Measures the base, in the very form in which it is trained, before the first update; once per run.

    A cartridge is no form of the base but a prompt: it is left out.
    """

    def __init__(self, materials: Materials, trainer: BlockTrainer, conductor: Conductor, place: Path) -> None:
        self.materials, self.trainer, self.conductor = materials, trainer, conductor
        self.file = place / "before.json"
        self.before: dict[str, Any] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Measures, or reads what was measured before the run was interrupted."""
        if state.global_step:
            self.before = read_json(self.file)
            return
        self.before["figures"] = self.measure(untrained(self.trainer.model))
        if self.materials.validation:
            self.trainer.evaluate()
            self.before["validation_loss"] = self.conductor.validation_loss
        if state.is_world_process_zero:
            write_json(self.file, self.before)

    def measure(self, model: Any) -> dict[str, float | None] | None:
        """Forgetting figures of the model as it is now; None where they aren't asked for."""
        gauge = self.materials.gauge
        if gauge is None:
            return None
        figures = gauge.measure(model, self.trainer.accelerator).plain()
        named = {"the perplexity of general text": figures["perplexity"], "the recall": figures["recall"]}
        refuse_what_is_no_number(named, self.trainer.state.global_step)
        return figures


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
    wait()


def _finished(place: Path, run: Mapping[str, Any]) -> Outcome | None:
    """The outcome of a training that ended in an earlier process, if it was the same."""
    try:
        found = read_json(place / "outcome.json")
    except OSError:
        return None
    return Outcome(**found["outcome"], folder=place / "result") if found["run"] == run else None
