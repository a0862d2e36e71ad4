"""Runs a study: trains what is missing, scores what is missing, and leaves each cell as `lm_eval` would have.

What it is for: `run_study` works through the cells of a study in one folder, and goes on there after it was stopped.
What it does not do: read a study file (`grid`), or say what the results mean (`report`).

The one idea: *one load of weights is one job, one kind of prompt in it one pass.* Jobs need nothing from each other, so
that an `Engine` may run them anywhere; within a job the cells of a task and number of examples are scored together
(`models.together`), and each is written whole or not at all::

    OUT/study.yaml                                      what is run here
    OUT/runs/MODEL/VARIANT-seed0/                       a training, as `kinject train` leaves it
    OUT/cells/MODEL/VARIANT/TASK/0-shot/minilm,k3/      results_….json and samples_….jsonl of lm_eval, and cell.json

A pass that was stopped before all its cells were written is scored again as a whole: what is scored together decides
the last bits of a result, and they shall not depend on when somebody pressed Ctrl-C.
"""

from __future__ import annotations

import contextlib
import logging
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from lm_eval_kinject.errors import ArgumentError, KinjectError
from lm_eval_kinject.log import duration, log
from lm_eval_kinject.models.together import Encodings, Job, OnePass
from lm_eval_kinject.study.cells import (
    claim,
    is_done,
    jobs_of,
    method_of,
    passes_of,
    run_folder,
    training_overrides,
    weight_arguments,
    write_cell,
)
from lm_eval_kinject.study.engines import Engine, Failure, Outcome, Say
from lm_eval_kinject.study.grid import Cell, Study, Variant

__all__ = ["InTurn", "Scoring", "evaluate", "quietly", "run_study", "task_manager"]


def run_study(
    study: Study,
    out: Path,
    *,
    only: Sequence[str] = (),
    engine: Engine | None = None,
    say: Say = lambda text: None,
) -> Outcome:
    """Runs what is missing of a study.

    Args:
        study: the study.
        out: its folder; one that holds another study is refused.
        only: names of weights (``MODEL/VARIANT``); default: all.
        engine: what runs the jobs; default: this process, one after the other.
        say: told what a person should know, in one line each.

    Raises:
        ArgumentError: ``out`` holds something else, a task is unknown, or ``only`` names nothing.
    """
    began = time.monotonic()
    jobs = jobs_of(study)
    wrong = sorted(set(only) - jobs.keys())
    if wrong:
        raise ArgumentError(
            f"--only {', '.join(wrong)}: there are no such weights; there are {', '.join(jobs)}", "the study"
        )
    claim(study, out)
    chosen = [name for name in jobs if not only or name in only]
    outcome = Outcome()
    for done in (engine or InTurn()).run(study, out, chosen, say):
        outcome.add(done)
    outcome.seconds = time.monotonic() - began
    return outcome


class InTurn:
    """One job after the other in this process; weights that differ by an adapter alone are loaded once."""

    def run(self, study: Study, out: Path, jobs: Sequence[str], say: Say) -> Iterator[Outcome]:
        """See `Engine`."""
        scoring = Scoring(study, out, say)
        cells = jobs_of(study)
        work = {name: [c for c in cells[name] if not is_done(out, c)] for name in jobs}
        scoring.expect([cell for name in jobs for cell in work[name]])
        for name in _adapters_behind_their_base(study, {name: cells[name][0] for name in jobs}):
            outcome = Outcome(there=len(cells[name]) - len(work[name]))
            if work[name]:
                scoring.job(name, cells[name], outcome)
            yield outcome


def _adapters_behind_their_base(study: Study, first: Mapping[str, Cell]) -> list[str]:
    """Names of jobs so that those on one loaded base stand together, the base itself first."""

    def place(name: str) -> tuple[int, int]:
        cell = first[name]
        kind = study.variants[cell.variant]
        put_on = kind.adapter or kind.peft or (kind.recipe and method_of(kind) != "full")
        return list(study.models).index(cell.model), 0 if kind == Variant() else 1 if put_on else 2

    return sorted(first, key=place)  # stable: otherwise as the study has them


class Scoring:
    """The work of one process: what it has loaded, and how far it is.

    Args:
        study: the study.
        out: its folder.
        say: told how it goes.
        into: where cells are written, if not in the study's folder.
    """

    def __init__(self, study: Study, out: Path, say: Say, into: Path | None = None) -> None:
        self._study, self._out, self._say = study, out, say
        self._into = into or out
        self._lm: Any = None
        self._loaded: dict[str, Any] = {}  # arguments of the loaded base
        self._encodings = Encodings()
        self._manager: Any = None
        self._began = time.monotonic()
        self._expected = self._done = 0.0

    # How far --------------------------------------------------------------------------------------------------------

    def expect(self, cells: Sequence[Cell]) -> None:
        """Notes what is to be done, for the time left."""
        self._expected = sum(map(_weight, cells))
        self._began = time.monotonic()

    def _left(self) -> str:
        if not self._done:
            return ""
        seconds = (time.monotonic() - self._began) / self._done * max(0.0, self._expected - self._done)
        return f"; about {duration(seconds)} left" if seconds >= 1 else ""

    # A job ----------------------------------------------------------------------------------------------------------

    def job(self, name: str, cells: Sequence[Cell], outcome: Outcome) -> None:
        """Trains, loads and scores the cells of one name of weights; what fails is noted and the rest goes on."""
        for left in (self._out / "cells" / name).rglob(".*.part"):  # by a killed run
            shutil.rmtree(left, ignore_errors=True)
        try:
            self._train(cells[0])
            self.load(cells[0])
        except KinjectError as error:
            self._failed(outcome, Failure(name, None, str(error)))
            return
        for prompts, together in passes_of(cells).items():
            missing = [cell for cell in together if not is_done(self._out, cell)]
            if not missing:
                continue
            began = time.monotonic()
            try:
                done = self.score(together, missing, outcome)
            except KeyboardInterrupt:
                raise
            except Exception as error:
                log.debug("a pass failed", exc_info=True)
                for cell in missing:
                    if not any(failure.cell == cell.name for failure in outcome.failures):
                        self._failed(outcome, Failure(name, cell.name, _problem(error)))
                continue
            finally:
                self._done += sum(map(_weight, missing))
            outcome.scored += done
            took = time.monotonic() - began
            self._say(f"{name}, {prompts}: {done} cells in {duration(took)}{self._left()}")

    def _failed(self, outcome: Outcome, failure: Failure) -> None:
        outcome.failures.append(failure)
        self._say(f"{failure.cell or failure.weights} FAILED: {failure.problem}")

    def _train(self, cell: Cell) -> None:
        variant = self._study.variants[cell.variant]
        folder = run_folder(self._out, cell)
        if variant.recipe is None or (folder / "kinject.json").is_file():
            return
        from kinject_trainer.command import train

        began = time.monotonic()
        train(
            variant.recipe,
            out=folder,
            resume=True,
            overrides=training_overrides(self._study, cell),
            say=lambda text: self._say(f"{cell.weights}: {text}"),
        )
        took = time.monotonic() - began
        self._began += took  # the time left is judged by scoring
        self._say(f"{cell.weights}: trained in {duration(took)}")

    def load(self, cell: Cell) -> None:
        """Loads the weights of a cell, or puts its adapter on a base that is loaded already."""
        wanted = weight_arguments(self._study, cell, self._out)
        base = {name: value for name, value in wanted.items() if name not in ("peft", "adapter")}
        put_on = {name: value for name, value in wanted.items() if name in ("peft", "adapter")}
        if self._lm is not None and base == self._loaded:
            try:
                self._lm.exchange(**put_on)
                return
            except ArgumentError:
                log.debug("the base is loaded anew", exc_info=True)
        self._lm = None  # before the next one is loaded: two may not fit
        from lm_eval_kinject.models.rag_hf import RagHFLM

        with quietly():
            self._lm = RagHFLM(**base, batch_size=self._study.batch_size, k=0)
            if put_on:
                self._lm.exchange(**put_on)
        self._loaded = base

    # A pass ---------------------------------------------------------------------------------------------------------

    def score(self, together: Sequence[Cell], missing: Sequence[Cell], outcome: Outcome) -> int:
        """Scores cells together and writes those that are missing; returns how many."""
        manager = self._tasks()
        one_pass = OnePass(self._lm._shared_scorer(), self._encodings)
        jobs = [self._job(cell, one_pass, manager) for cell in together]
        with quietly():
            one_pass.run(jobs)
        done = 0
        for cell, job in zip(together, jobs, strict=True):
            if isinstance(job.error, KeyboardInterrupt):
                raise job.error
            if job.error is not None:
                self._failed(outcome, Failure(cell.weights, cell.name, _problem(job.error)))
            elif cell in missing:
                write_cell(self._study, self._out, cell, job.result, [c.name for c in together], into=self._into)
                done += 1
        return done

    def _job(self, cell: Cell, one_pass: OnePass, manager: Any) -> Job[Any]:
        def run() -> Any:
            lm = self._lm.variant(**dict(cell.arguments))
            lm._pass = one_pass
            return evaluate(self._study, cell, lm, manager)

        return Job(run)

    def _tasks(self) -> Any:
        """lm_eval's tasks, indexed once a study: ours alone where that is enough, which is quick."""
        if self._manager is None:
            self._manager = task_manager(self._study)
        return self._manager


def task_manager(study: Study, metadata: Mapping[str, Any] | None = None, *, where: str = "the study") -> Any:
    """lm_eval's index of tasks, with its own tasks only where the study needs them.

    Args:
        study: its tasks, and where its own are.
        metadata: as ``--metadata``.
        where: what errors name.

    Raises:
        ArgumentError: a task is unknown.
    """
    from lm_eval_kinject.plugin import register, tasks_dir

    register()
    from lm_eval.tasks import TaskManager

    paths = [str(tasks_dir()), *([study.include_path] if study.include_path else [])]
    given = None if metadata is None else dict(metadata)
    manager = TaskManager(include_path=paths, include_defaults=False, metadata=given)
    if all(manager.match_tasks([task]) for task in study.tasks):
        return manager
    manager = TaskManager(include_path=paths, metadata=given)
    unknown = [task for task in study.tasks if not manager.match_tasks([task])]
    if unknown:
        raise ArgumentError(
            [f"tasks: {task} is unknown; `lm_eval ls tasks` lists them (yours need include_path)" for task in unknown],
            where,
        )
    return manager


def evaluate(study: Study, cell: Cell, lm: Any, manager: Any) -> Any:
    """One evaluation by lm_eval, as its command makes it."""
    from lm_eval import simple_evaluate

    return simple_evaluate(
        model=lm,
        tasks=[cell.task],
        num_fewshot=cell.shots,
        batch_size=study.batch_size,
        limit=study.limit,
        apply_chat_template=study.apply_chat_template,
        log_samples=True,
        task_manager=manager,
    )


def _weight(cell: Cell) -> float:
    """How long a cell takes beside others, roughly: chunks cost, and so do examples."""
    return 1.0 + dict(cell.arguments)["k"] + 0.2 * cell.shots


def _problem(error: BaseException) -> str:
    return str(error) if isinstance(error, KinjectError) else f"{type(error).__name__}: {error}"


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Keeps lm_eval's many lines and bars of each cell off the terminal; errors come through."""
    from lm_eval.api import task as lm_eval_task

    loud = [logging.getLogger(name) for name in ("lm_eval", "datasets")]
    levels = [logger.level for logger in loud]
    bar = lm_eval_task.tqdm
    for logger in loud:
        logger.setLevel(logging.ERROR)
    lm_eval_task.tqdm = partial(bar, disable=True)  # until lm_eval lets a caller say so
    try:
        yield
    finally:
        lm_eval_task.tqdm = bar
        for logger, level in zip(loud, levels, strict=True):
            logger.setLevel(level)
