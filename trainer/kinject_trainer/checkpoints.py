"""Checkpoints that are whole or don't count.

What it is for: a run killed at any moment, the writing of a checkpoint included, goes on from the last checkpoint that
was finished. What it does not do: it writes no weights; transformers does.

The one idea: when all files of a checkpoint are on the disk, a manifest with their names and sizes and the name of the
run is written last, atomically. A folder without a manifest, or whose files differ from it, doesn't exist for us. Older
checkpoints go only after the manifest of the new one stands.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kinject_trainer.errors import TrainingError
from lm_eval_kinject.provenance import read_json, write_json

__all__ = [
    "Checkpoint",
    "claim",
    "complete",
    "discard_older",
    "discard_unfinished",
    "earlier_record",
    "newest",
    "refuse_another",
    "refuse_foreign",
    "seal",
]

_MANIFEST = "kinject_checkpoint.json"
_CLAIM = "run.json"
_NAME = re.compile(r"checkpoint-(\d+)")


@dataclass(frozen=True)
class Checkpoint:
    """A finished checkpoint: its folder, the updates made, what its run was and how long it took (see `seal`)."""

    folder: Path
    updates: int
    run: Mapping[str, Any]
    seconds: float = 0.0


def seal(folder: Path, run: Mapping[str, Any], seconds: float = 0.0) -> None:
    """Declares the checkpoint in ``folder`` finished.

    Args:
        folder: named ``checkpoint-N``, N the updates made.
        run: plain values that say whose it is; `newest` compares them.
        seconds: that the run has taken up to here.
    """
    files = sorted(f for f in folder.rglob("*") if f.is_file())
    for file in files:
        with file.open("rb") as handle:
            os.fsync(handle.fileno())
    sizes = {f.relative_to(folder).as_posix(): f.stat().st_size for f in files}
    write_json(folder / _MANIFEST, {"files": sizes, "run": dict(run), "seconds": round(seconds, 2)})


def complete(folder: Path) -> list[Checkpoint]:
    """The finished checkpoints in a run's folder, oldest first."""
    found = []
    for inner in folder.glob("checkpoint-*"):
        match = _NAME.fullmatch(inner.name)
        manifest = _manifest(inner) if match else None
        if match and manifest is not None:
            found.append(Checkpoint(inner, int(match.group(1)), manifest["run"], manifest.get("seconds", 0.0)))
    return sorted(found, key=lambda c: c.updates)


def _manifest(folder: Path) -> Mapping[str, Any] | None:
    try:
        manifest = read_json(folder / _MANIFEST)
        whole = all((folder / name).stat().st_size == size for name, size in manifest["files"].items())
    except (OSError, ValueError, KeyError):
        return None
    return manifest if whole else None


def claim(work: Path, run: Mapping[str, Any]) -> None:
    """Writes down whose the folder of unfinished work is, for `refuse_another`."""
    write_json(work / _CLAIM, dict(run))


def earlier_record(file: Path, *, begun: bool, resume: bool, words: tuple[str, str]) -> dict[str, Any] | None:
    """The record of what is finished in the result's folder already, or None.

    Args:
        file: the record, in the result's folder.
        begun: whether there is something to go on with.
        resume: whether going on was asked for.
        words: what errors call what is finished, and what isn't.

    Raises:
        TrainingError: something is there, and ``resume`` wasn't asked for.
    """
    finished, unfinished = words
    instead = "choose another folder with --out, or remove it"
    if file.is_file():
        if not resume:
            raise TrainingError(f"{file.parent} holds a finished {finished}: {instead}.")
        return dict(read_json(file))
    if begun and not resume:
        raise TrainingError(f"{file.parent} holds an unfinished {unfinished}: go on with --resume, {instead}.")
    return None


def refuse_foreign(folder: Path, ours: Collection[str]) -> None:
    """Raises a TrainingError where the result's folder holds something that no run of ours has put there."""
    foreign = sorted(file.name for file in folder.iterdir() if file.name not in ours) if folder.is_dir() else []
    if foreign:
        raise TrainingError(f"{folder} is not empty (it holds {foreign[0]}): choose another folder with --out.")


def refuse_another(work: Path, run: Mapping[str, Any]) -> None:
    """Looks whether unfinished work, checkpoints or not, is of the run that is to go on.

    Raises:
        TrainingError: it is of another one; says in what they differ.
    """
    if not (work / _CLAIM).is_file():  # lost; a checkpoint says it as well, and the claim must not be renewed over it
        for place in work.iterdir() if work.is_dir() else ():
            for checkpoint in complete(place):
                _refuse_differing(checkpoint, {key: checkpoint.run.get(key) for key in run}, run)
        return
    differing = _differing(read_json(work / _CLAIM), run)
    if differing:
        raise TrainingError(
            f"The unfinished run in {work} is another one: its {', '.join(differing)} differ. Resume with what it was "
            f"started with, or train into another folder with --out; nothing was changed."
        )


def _differing(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    return sorted(key for key in {*one, *other} if one.get(key) != other.get(key))


def _refuse_differing(checkpoint: Checkpoint, its: Mapping[str, Any], ours: Mapping[str, Any]) -> None:
    differing = _differing(its, ours)
    if differing:
        raise TrainingError(
            f"The checkpoint {checkpoint.folder} is of another run: its {', '.join(differing)} differ. Resume with "
            f"what it was started with, or train into another folder with --out; nothing was changed."
        )


def newest(folder: Path, run: Mapping[str, Any]) -> Checkpoint | None:
    """The checkpoint to go on from; None where there is none.

    Raises:
        TrainingError: it is of another run: another recipe, corpus, model or tokenizer; says which.
    """
    found = complete(folder)
    if not found:
        return None
    last = found[-1]
    _refuse_differing(last, last.run, run)
    return last


def discard_older(folder: Path, kept: int) -> None:
    """Deletes all but the newest ``kept`` finished checkpoints, and unfinished ones older than the newest."""
    found = complete(folder)
    if not found:
        return
    stay = {c.folder for c in found[-kept:]}
    for inner in folder.glob("checkpoint-*"):
        match = _NAME.fullmatch(inner.name)
        if match and inner not in stay and int(match.group(1)) < found[-1].updates:
            (inner / _MANIFEST).unlink(missing_ok=True)  # first, so that half a folder never looks whole
            shutil.rmtree(inner, ignore_errors=True)


def discard_unfinished(folder: Path) -> None:
    """Deletes checkpoint folders that were never finished."""
    whole = {c.folder for c in complete(folder)}
    for inner in folder.glob("checkpoint-*"):
        if inner not in whole:
            shutil.rmtree(inner, ignore_errors=True)
