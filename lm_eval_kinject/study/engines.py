"""Engines: what runs the jobs of a study, here or elsewhere.

What it is for: the protocol that an engine keeps, `Workers`, which runs several jobs at a time on this machine, and
`RayTasks`, which hands them to a Ray cluster. What it does not do: score; either way a job is what the command
`kinject study run --only NAME` does in a process of its own.

The one idea: a job is the name of a load of weights. Whoever has the study, its folder and that name can do it.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from lm_eval_kinject.errors import ArgumentError
from lm_eval_kinject.log import log
from lm_eval_kinject.provenance import read_json
from lm_eval_kinject.retrieval.encoders import first_line
from lm_eval_kinject.study.cells import is_done, jobs_of
from lm_eval_kinject.study.grid import Study, read_study

__all__ = ["Engine", "Failure", "Outcome", "RayTasks", "Say", "Workers"]

Say = Callable[[str], None]
_STARTS = 3  # of a local Ray cluster: it gives each of its processes 15 to 30 s, too few on a machine at full load


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
                    say(f"{name}: begun, its log is {_log(out, name)}")
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
        with _log(out, name).open("ab") as handle:
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


@dataclass
class RayTasks:
    """Several jobs at a time as tasks of a Ray cluster; where it has GPUs, one GPU each.

    Its nodes need this environment's packages, and see the study's folder and all that the study names under the paths
    that these have here. A job runs in a worker of Ray's itself and not in a process below it: a worker that is killed
    takes all its work with it, so that nobody writes beside whoever goes on with the job. It has as many threads as
    this process has, since how a sum is split decides its last bits.

    Attributes:
        count: how many at a time.
        address: ``local``: a cluster on this machine for as long as the jobs run; else that of a running one
            (``HOST:PORT`` as `ray start` says it, or ``auto``). A cluster that this process is connected to already is
            taken whatever this says.
        retries: how often a job whose worker or node died is begun again.

    Raises:
        ArgumentError: Ray isn't installed.
    """

    count: int
    address: str = "local"
    retries: int = 3

    def __post_init__(self) -> None:
        if importlib.util.find_spec("ray") is None:
            raise ArgumentError(
                "--ray needs the package ray, not installed here: run `pip install 'lm-eval-kinject[ray]'`, or leave "
                "it out: --jobs alone runs several jobs at a time on this machine",
                "the study",
            )

    def run(self, study: Study, out: Path, jobs: Sequence[str], say: Say) -> Iterator[Outcome]:
        """See `Engine`.

        Raises:
            ArgumentError: there is no cluster at the address.
        """
        (out / "logs").mkdir(exist_ok=True)
        cells = jobs_of(study)
        there = {name: sum(is_done(out, cell) for cell in cells[name]) for name in jobs}
        yield Outcome(there=sum(there[name] for name in jobs if there[name] == len(cells[name])))
        waiting = [name for name in jobs if there[name] < len(cells[name])]
        if not waiting:
            return
        import torch

        running: dict[Any, str] = {}
        with self.cluster() as ray:
            threads = torch.get_num_threads()
            task = self._task(ray, threads)
            try:
                while waiting or running:
                    while waiting and len(running) < self.count:
                        name = waiting.pop(0)
                        running[task.remote(name, out, Path.cwd(), threads)] = name
                        say(f"{name}: handed to Ray, its log is {_log(out, name)}")
                    (ended,), _ = ray.wait(list(running))
                    name = running.pop(ended)
                    yield self._ended(ray, ended, name, there[name], out)
            finally:
                for one in running:
                    ray.cancel(one, force=True)

    @contextlib.contextmanager
    def cluster(self) -> Iterator[Any]:
        """Within, this process is connected to the cluster, for one study or several; yields the module ``ray``.

        Raises:
            ArgumentError: there is no cluster at the address.
        """
        import ray

        if ray.is_initialized():
            yield ray
            return
        try:
            self._connect(ray)
        except Exception as problem:  # Ray's own for a start that failed is a plain one
            ray.shutdown()
            if self.address == "local":
                advice = "see /tmp/ray/session_latest/logs, or leave out --ray: --jobs alone needs no cluster"
            else:
                advice = "begin one with `ray start --head` and give the address that it says, or --ray local; one "
                advice += "that has a token (`ray start` makes one) wants RAY_AUTH_MODE=token here, too"
            raise ArgumentError(
                f"--ray {self.address}: no Ray cluster ({first_line(problem)}); {advice}", "the study"
            ) from problem
        try:
            yield ray
        finally:
            ray.shutdown()

    def _connect(self, ray: Any) -> None:
        quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
        if self.address != "local":
            if self.address != "auto":
                host, _, port = self.address.removeprefix("ray://").rpartition(":")
                socket.create_connection((host, int(port)), timeout=30).close()  # Ray itself tries for minutes
            ray.init(self.address, **quiet)
            return
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is reported to Ray's makers
        # The smallest store of objects, as outcomes are small. Tasks that were killed for memory Ray begins again for
        # ever, unless told.
        small = {"num_cpus": self.count, "include_dashboard": False, "object_store_memory": 80 << 20}
        how = {**small, "_system_config": {"task_oom_retries": self.retries}, **quiet}
        for _ in range(_STARTS - 1):
            try:
                ray.init("local", **how)
                return
            except Exception:  # plain ones, of several kinds; the last try's is told
                log.debug("Ray's processes didn't start in time", exc_info=True)
                ray.shutdown()
        ray.init("local", **how)

    def _task(self, ray: Any, threads: int) -> Any:
        return ray.remote(_job).options(
            num_cpus=1,
            num_gpus=int(ray.cluster_resources().get("GPU", 0) > 0),
            max_retries=self.retries,
            scheduling_strategy="SPREAD",
            runtime_env={"env_vars": {"OMP_NUM_THREADS": str(threads)}},  # Ray would make it 1
        )

    def _ended(self, ray: Any, task: Any, name: str, there: int, out: Path) -> Outcome:
        try:
            found: Outcome = ray.get(task)
        except ray.exceptions.RayTaskError as error:
            problem = f"{type(error.cause).__name__}: {error.cause}"
        except ray.exceptions.RayError as error:
            tried = f"{self.retries + 1} times" if self.retries else "once"
            problem = f"its worker died, tried {tried} ({first_line(error)}); its log is {_log(out, name)}"
        else:
            # What workers that were killed had scored was there already for the last one.
            return Outcome(found.scored + found.there - there, there, found.failures)
        return Outcome(there=there, failures=[Failure(name, None, problem)])


def _job(name: str, out: Path, place: Path, threads: int) -> Outcome:
    """A job in a worker of Ray's, in the folder from where the study was begun; its lines go into its log."""
    import torch

    from lm_eval_kinject.study.run import run_study

    node = socket.gethostname()
    if not (place / out / "study.yaml").is_file():
        problem = f"the node {node} doesn't see {place / out}: all nodes must, at this path (a shared disk)"
        return Outcome(failures=[Failure(name, None, problem)])
    os.chdir(place)
    torch.set_num_threads(threads)
    with _log(out, name).open("a", buffering=1, encoding="utf-8") as lines:
        lines.write(f"begun on {node}, process {os.getpid()}\n")
        with contextlib.redirect_stdout(lines), contextlib.redirect_stderr(lines):
            return run_study(read_study(out / "study.yaml"), out, only=[name], say=partial(print, file=lines))


def _log(out: Path, name: str) -> Path:
    return out / "logs" / f"{_flat(name)}.log"


def _flat(name: str) -> str:
    return name.replace("/", "_")
