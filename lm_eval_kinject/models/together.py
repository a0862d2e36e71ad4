"""Several evaluations of one loaded model, scored in one pass.

What it is for: a study scores a model at K = 0 to 5, with several retrievers. Each of these cells is one evaluation by
lm_eval, with results of its own; but their prompts share almost everything, and so they are scored as one trie. What
it does not do: evaluate (each job does), or decide what is worth scoring together.

The one idea: *lm_eval's evaluator is left as it is, and stops where it scores.* Each job runs in a thread of its own,
one at a time, until its model is asked for log-likelihoods; there it leaves its requests and waits. When all jobs wait
(or are done), the requests of all are scored at once, and each job goes on with its own answers::

    job 1   build requests ─ write prompts ─┐               ┌─ metrics ─ samples ─ results
    job 2                                   └─ build … ─┐   │                                └─ metrics …
    scorer                                              └─ one trie of all

Never two run at the same time, so nothing here needs a lock; the random generators that lm_eval seeds are kept apart.
"""

from __future__ import annotations

import random
import sys
import threading
import time
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import numpy as np

from lm_eval_kinject.scoring.scorer import Answer, Request, SharedPrefixScorer

__all__ = ["Encodings", "Job", "OnePass", "Share"]

T = TypeVar("T")


@dataclass
class Encodings:
    """Token ids of prompts, kept from one pass to the next of models with the same tokenizer.

    ``most`` bounds the tokens held (4 bytes each); over it, everything is forgotten and collected anew.
    """

    most: int = 200_000_000
    held: int = 0
    pairs: dict[tuple[str, str], tuple[array[int], array[int]]] = field(default_factory=dict)
    contexts: dict[str, array[int]] = field(default_factory=dict)

    def get(
        self, encode: Callable[[str, str], tuple[list[int], list[int]]], context: str, continuation: str
    ) -> tuple[list[int], list[int]]:
        """What `encode` makes of a pair, asked once; the options of a question share their context's ids."""
        found = self.pairs.get((context, continuation))
        if found is None:
            first, second = (array("i", ids) for ids in encode(context, continuation))
            kept = self.contexts.get(context)
            if kept == first:
                first = kept
            else:
                self.contexts.setdefault(context, first)
                self.held += len(first)
            self.held += len(second)
            if self.held > self.most:
                self.pairs.clear()
                self.contexts.clear()
                self.held = 0
            found = self.pairs[context, continuation] = first, second
        return found[0].tolist(), found[1].tolist()


@dataclass(frozen=True)
class Share:
    """One evaluation's part of a pass.

    Attributes:
        evaluations: how many were scored together.
        requests: how many of them are its own.
        distinct_tokens: tokens of its own requests' trie: what it would forward alone.
        seconds: its part of the scoring, in proportion to these.
    """

    evaluations: int
    requests: int
    distinct_tokens: int
    seconds: float

    def and_then(self, other: Share) -> Share:
        """Its part of two passes, one after the other; together with as many as in the fuller one."""
        return Share(
            max(self.evaluations, other.evaluations),
            self.requests + other.requests,
            self.distinct_tokens + other.distinct_tokens,
            self.seconds + other.seconds,
        )


@dataclass
class Job(Generic[T]):
    """One evaluation: `run` starts it; afterwards there is a `result` or an `error`.

    Attributes:
        run: evaluates, with a model that was made for this pass.
        result: what `run` returned.
        error: what it raised.
    """

    run: Callable[[], T]
    result: T | None = None
    error: BaseException | None = None


class _Waiting:
    """A job's thread, and what it is waiting for."""

    def __init__(self, job: Job[Any], name: str) -> None:
        self.job = job
        self.requests: list[Request] | None = None
        self.answers: list[Answer] | None = None
        self.share = Share(0, 0, 0, 0.0)
        self.go = threading.Event()
        self.stopped = threading.Event()
        self.thread = threading.Thread(target=self._work, name=name, daemon=True)

    def _work(self) -> None:
        self.go.wait()
        try:
            self.job.result = self.job.run()
        except BaseException as error:  # handed to whoever runs the pass, KeyboardInterrupt included
            self.job.error = error
        finally:
            self.requests = None
            self.stopped.set()

    def step(self) -> None:
        """Lets the job run until it waits or is done; everything else stands still meanwhile."""
        self.stopped.clear()
        self.go.set()
        if not self.thread.is_alive():
            self.thread.start()
        while not self.stopped.wait(0.5):  # in pieces, so that Ctrl-C gets through
            pass

    def wait(self, requests: list[Request]) -> list[Answer]:
        """Called from the job: leaves requests and returns with their answers."""
        states = _random_states()
        self._leave(requests)
        _set_random_states(states)
        if self.answers is None:
            raise _PassEndedError("the pass was given up before this evaluation had its answers")
        return self.answers

    def _leave(self, requests: list[Request]) -> None:
        self.requests, self.answers = requests, None
        self.go.clear()
        self.stopped.set()
        self.go.wait()


class _PassEndedError(RuntimeError):
    """The scorer failed, so waiting jobs can't go on."""


class OnePass:
    """Runs jobs whose models score together.

    Args:
        scorer: of the loaded model.
        encodings: token ids to start from, and to leave for the next pass.

    A model takes part by ``_pass``: see `RagMixin`.
    """

    def __init__(self, scorer: SharedPrefixScorer, encodings: Encodings | None = None) -> None:
        self._scorer = scorer
        self._encodings = encodings if encodings is not None else Encodings()
        self._threads: dict[int, _Waiting] = {}

    def run(self, jobs: Sequence[Job[Any]]) -> None:
        """Runs all jobs to their end; one that fails leaves the others alone.

        Raises:
            Exception: scoring itself failed; the jobs that were waiting then have that as their error, too.
        """
        waiting = [_Waiting(job, f"evaluation {number}") for number, job in enumerate(jobs, start=1)]
        for one in waiting:
            self._threads[id(one.thread)] = one
        try:
            for one in waiting:
                one.step()
            while open_ones := [one for one in waiting if one.requests is not None]:
                self._score(open_ones)
                for one in open_ones:
                    one.step()
        except BaseException as error:
            for one in waiting:
                if one.requests is not None:
                    one.answers = None
                    one.step()
                    one.job.error = error
            raise
        finally:
            self._threads.clear()

    def _score(self, waiting: Sequence[_Waiting]) -> None:
        """Scores the requests of all, equal ones once, and gives each its answers and its share."""
        places: dict[tuple[bytes, bytes], int] = {}
        unique: list[Request] = []
        wanted: list[list[int]] = []
        alone = []
        for one in waiting:
            mine = []
            for request in one.requests or ():
                key = array("i", request[1]).tobytes(), array("i", request[2]).tobytes()
                place = places.setdefault(key, len(unique))
                if place == len(unique):
                    unique.append(request)
                mine.append(place)
            wanted.append(mine)
            alone.append(self._scorer.distinct_tokens(one.requests or ()))
        began = time.perf_counter()
        answers = self._scorer.loglikelihood(unique, disable_tqdm=not sys.stderr.isatty())
        seconds = time.perf_counter() - began
        for one, mine, tokens in zip(waiting, wanted, alone, strict=True):
            one.answers = [answers[place] for place in mine]
            one.share = Share(len(waiting), len(mine), tokens, seconds * tokens / max(1, sum(alone)))

    def answers(self, requests: Sequence[Request]) -> tuple[list[Answer], Share]:
        """Called by a job's model: the answers when all jobs have asked, and what they cost."""
        mine = self._threads.get(id(threading.current_thread()))
        if mine is None:
            raise RuntimeError("a model of a pass was asked outside of its job")
        return mine.wait(list(requests)), mine.share

    def encoded(self, encode: Any, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Called by a job's model: see `Encodings`."""
        return self._encodings.get(encode, context, continuation)


def _random_states() -> Any:
    import torch

    return random.getstate(), np.random.get_state(), torch.get_rng_state()


def _set_random_states(states: Any) -> None:
    import torch

    random.setstate(states[0])
    np.random.set_state(states[1])
    torch.set_rng_state(states[2])
