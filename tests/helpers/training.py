"""Tiny corpora and recipes for the trainer's tests, and runs in processes of their own that may be killed.

The one idea: a process that has imported torch and transformers once forks for each run (`multiprocessing`'s fork
server), so a run costs what it computes and not seconds of imports. What a run does is named by strings and plain
values, because it must reach the other process.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import socket
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from helpers.local_tasks import PEOPLE, TOWNS

_PHRASES = (
    "The bridge at {town} was opened by {who} on a grey morning, and {n} people came to see it.",
    "{n} people came when {who} opened the bridge at {town}.",
    "On a grey morning, before {n} people, {who} opened a bridge. It stands at {town}.",
    "At {town} there is a new bridge; it was {who} who opened it, and {n} were there.",
    "Opened by {who}, the bridge at {town} drew {n} people that morning.",
)


def text(chunk: int, number: int) -> str:
    """Wording ``number`` of a chunk; of different lengths, so that blocks cut them anywhere."""
    town, who = TOWNS[chunk % len(TOWNS)], PEOPLE[(3 * chunk) % len(PEOPLE)]
    return _PHRASES[number].format(town=f"{town} {chunk}", who=who, n=100 + 7 * chunk)


def write_corpus(folder: Path, *, chunks: int = 12, paraphrases: int = 2, validation: int = 6) -> str:
    """Source chunks, a background chunk, paraphrases, and one further wording of some chunks for validation."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [{"id": f"c{i}", "text": text(i, 0), "role": "source"} for i in range(chunks)]
    rows.append({"id": "b0", "text": "Nobody is asked about this chunk.", "role": "background"})
    pq.write_table(pa.Table.from_pylist(rows), folder / "chunks.parquet")
    told = [
        {"chunk": f"c{i}", "number": n, "text": text(i, n)} for i in range(chunks) for n in range(1, 1 + paraphrases)
    ]
    pq.write_table(pa.Table.from_pylist(told), folder / "paraphrases.parquet")
    if validation:
        held = [{"chunk": f"c{i}", "number": 4, "text": text(i, 4)} for i in range(validation)]
        pq.write_table(pa.Table.from_pylist(held), folder / "validation.parquet")
    return str(folder)


def write_recipe(file: Path, model: str, corpus: str, **changes: Any) -> Path:
    """A recipe for a run of about a second."""
    recipe = {
        "model": model,
        "corpus": corpus,
        "variant": "ft-reg",
        "method": "full",
        "block_size": 16,
        "epochs": 2,
        "global_batch": 4,
        "micro_batch": 2,
        "learning_rate": 1e-3,
        "forgetting": False,
        **changes,
    }
    file.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    return file


def read_lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


# Runs in other processes ----------------------------------------------------------------------------------------------


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start(
    recipe: Path, out: Path, *, resume: bool = False, kill: str = "", rank: int = 0, world: int = 1, port: int = 0
):
    """Starts a run in a process of its own; returns the process.

    ``kill`` names the place where it kills itself with SIGKILL (see `_set_trap`).
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["kinject_trainer.command", "peft", "torch.distributed"])
    environment = {"OMP_NUM_THREADS": "1"}
    if world > 1:
        environment |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
        environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    process = context.Process(target=_run, args=(str(recipe), str(out), resume, kill, environment))
    process.start()
    return process


def run(recipe: Path, out: Path, *, patience: float = 120, **how: Any) -> int:
    """Runs to the end, or to the kill, for so many seconds at most; returns the exit code (negative: the signal)."""
    process = start(recipe, out, **how)
    process.join(timeout=patience)
    assert process.exitcode is not None, "the run hangs"
    return process.exitcode


def _run(recipe: str, out: str, resume: bool, kill: str, environment: dict[str, str]) -> None:
    os.environ.update(environment)
    import torch
    from kinject_trainer.command import train
    from kinject_trainer.sequence import is_sequence, train_sequence

    torch.set_num_threads(1)
    if kill:
        _set_trap(kill)
    if is_sequence(recipe):
        train_sequence(recipe, out=Path(out), resume=resume)
    else:
        train(recipe, out=Path(out), resume=resume)


def _die(*_: Any, **__: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _set_trap(kill: str) -> None:
    """Arms one death: ``update N``, ``half a checkpoint``, ``before the seal``, ``between old and new``, …"""
    import torch
    from kinject_trainer import command, train, trainer
    from kinject_trainer.sequence import run as sequence

    if kill.startswith("update"):
        wanted = int(kill.split()[1])
        original = trainer.Conductor.on_step_end

        def on_step_end(self, args, state, control, **kwargs):
            return _die() if state.global_step == wanted else original(self, args, state, control, **kwargs)

        trainer.Conductor.on_step_end = on_step_end
    elif kill == "half a checkpoint":

        def save(value, file, *_, **__):
            Path(file).write_bytes(b"PK\x03\x04 the beginning of a")
            _die()

        torch.save = save
    elif kill == "before the seal":
        trainer.seal = _die
    elif kill == "between old and new":
        trainer.discard_older = _die
    elif kill == "half a result":
        train.publish_folder = _die
    elif kill == "before the record":
        command.write_json = _die
    elif kill.startswith("before the answers of "):
        _before_answers(kill.removeprefix("before the answers of "))
    elif kill == "before the sequence's record":
        sequence.markdown = _die
    else:
        raise ValueError(kill)


def _before_answers(month: str) -> None:
    from kinject_trainer.sequence import run as sequence

    original = sequence._put

    def put(file, value):
        return _die() if file.stem == month else original(file, value)

    sequence._put = put
