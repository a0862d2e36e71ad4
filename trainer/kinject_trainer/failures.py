"""What went wrong in a training, told so that a user can do something about it."""

from __future__ import annotations

import errno
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from kinject_trainer.checkpoints import discard_unfinished, newest
from kinject_trainer.errors import TrainingError
from kinject_trainer.trainer import NotANumber

__all__ = ["explained", "told_of_a_full_disk"]

_FULL = (  # how torch and safetensors, whose errors have no errno, say it
    "no space left",
    "disk quota",
    "pytorchstreamwriter failed",
    "inline_container",
)


def explained(problem: Exception, place: Path, run: Mapping[str, Any]) -> TrainingError | None:
    """What a user can do about it; None where that isn't known, and the error itself must be seen."""
    checkpoint = newest(place, run)
    kept = (
        "There is no checkpoint yet."
        if checkpoint is None
        else f"The last good checkpoint, of update {checkpoint.updates}, is kept: {checkpoint.folder}."
    )
    if isinstance(problem, NotANumber) and problem.update == 0:
        return TrainingError(
            f"The base model predicts no numbers: {problem.what} is not a number before the first update. Its weights "
            f"are damaged or too large for the precision: fetch them again, or set precision: fp32."
        )
    if isinstance(problem, NotANumber):
        return TrainingError(
            f"The training stopped: {problem.what} is not a number at update {problem.update}. {kept} Lower the "
            f"learning rate (now {run['learning rate']:g}), lengthen warm_up, or set precision: fp32."
        )
    if _is_full_disk(problem) or any(sign in str(problem).lower() for sign in _FULL):
        discard_unfinished(place)
        return TrainingError(f"The disk is full. {kept} Free space there, then go on with --resume.")
    if isinstance(problem, torch.OutOfMemoryError) or "can't allocate memory" in str(problem):
        return TrainingError(
            f"Not enough memory for the training. {kept} Lower micro_batch (it changes no result but for rounding), "
            f"set gradient_checkpointing: true, or take an adapter, then go on with --resume."
        )
    return None


@contextmanager
def told_of_a_full_disk(folder: Path) -> Iterator[None]:
    """What `explained` does for checkpoints, for all else that is written."""
    try:
        yield
    except OSError as problem:
        if not _is_full_disk(problem):
            raise
        raise TrainingError(
            f"The disk of {folder} is full. What was trained before is kept: free space there, then go on with "
            f"--resume."
        ) from problem


def _is_full_disk(problem: Exception) -> bool:
    return isinstance(problem, OSError) and problem.errno in (errno.ENOSPC, errno.EDQUOT)
