"""Engines: what runs the jobs of a study, here or elsewhere.

What it is for: the protocol that an engine keeps, and `Workers`, which runs several jobs at a time on this machine.
What it does not do: score; a worker is the command `kinject study run --only NAME` in a process of its own.

The one idea: a job is the name of a load of weights. Whoever has the study, its folder and that name can do it.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from lm_eval_kinject.provenance import read_json
from lm_eval_kinject.study.grid import Study

__all__ = ["Engine", "Failure", "Outcome", "Say", "Workers"]

Say = Callable[[str], None]


@dataclass(frozen=True)
class Failure:
    """What went wrong with a cell, or with all cells of a job (``cell`` is None then)."""

    weights: str
    cell: str | None
    problem: str


@dataclass
class Outcome:
    """What `run_study` did: cells scored now, cells that were there before, and what failed."""

    scored: int = 0
    there: int = 0
    failures: list[Failure] = field(default_factory=list)
    seconds: float = 0.0

    def add(self, other: Outcome) -> None:
        """Takes in what another process did."""
        self.scored += other.scored
        self.there += other.there
        self.failures += other.failures


class Engine(Protocol):
    """Runs the jobs of a study; each needs the study, its folder and the name of the weights, and nothing else."""

    def run(self, study: Study, out: Path, jobs: Sequence[str], say: Say) -> Iterator[Outcome]:
        """Runs all jobs, in any order, and yields what each did."""


@dataclass
class Workers:
    """Several jobs at a time on this machine, each in a process of its own; with GPUs, one GPU each in turn.

    Attributes:
        count: how many at a time.
        command: what runs a study (for tests).
    """

    count: int
    command: Sequence[str] = (sys.executable, "-m", "lm_eval_kinject.cli", "study", "run")

    def run(self, study: Study, out: Path, jobs: Sequence[str], say: Say) -> Iterator[Outcome]:
        """See `Engine`."""
        import torch

        gpus = torch.cuda.device_count()
        waiting = list(jobs)
        running: dict[int, tuple[str, subprocess.Popen[bytes], Path]] = {}
        logs = out / "logs"
        logs.mkdir(exist_ok=True)
        try:
            while waiting or running:
                while waiting and (slot := next((s for s in range(self.count) if s not in running), None)) is not None:
                    name = waiting.pop(0)
                    running[slot] = (name, *self._start(out, name, slot, gpus, logs))
                    say(f"{name}: begun, its log is {logs / _flat(name)}.log")
                time.sleep(0.2)
                for slot, (name, process, said) in list(running.items()):
                    if process.poll() is not None:
                        del running[slot]
                        yield self._ended(name, process.returncode, said)
        finally:
            for _, process, _ in running.values():
                process.terminate()
            for _, process, _ in running.values():
                process.wait()

    def _start(self, out: Path, name: str, slot: int, gpus: int, logs: Path) -> tuple[subprocess.Popen[bytes], Path]:
        environment = dict(os.environ)
        if gpus:
            environment["CUDA_VISIBLE_DEVICES"] = str(slot % gpus)
        said = logs / f"{_flat(name)}.json"
        said.unlink(missing_ok=True)
        arguments = [str(out / "study.yaml"), "--out", str(out), "--only", name, "--outcome", str(said), "--no-report"]
        with (logs / f"{_flat(name)}.log").open("ab") as handle:
            return (
                subprocess.Popen([*self.command, *arguments], env=environment, stdout=handle, stderr=handle),
                said,
            )

    def _ended(self, name: str, code: int, said: Path) -> Outcome:
        if said.is_file():
            found = read_json(said)
            failures = [Failure(**failure) for failure in found["failures"]]
            return Outcome(found["scored"], found["there"], failures)
        return Outcome(failures=[Failure(name, None, f"its process ended with exit code {code}; see its log")])


def _flat(name: str) -> str:
    return name.replace("/", "_")
