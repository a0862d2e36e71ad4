"""Answers before anything is computed from them: which could be scored, which belong together.

What it is for: every function of this room takes answers that are all numbers; here is where those that aren't are
counted and left out, for one variant or for a pair. What it doesn't do: it never puts a number in their place.

The one idea: a question drops out of a comparison if *either* variant couldn't be scored on it, so that what is left is
still in pairs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class Tally:
    """How many questions were asked, how many of them could be scored, and how many ended in a tie of options."""

    asked: int
    scored: int
    ties: int

    @property
    def unscored(self) -> int:
        """Questions that couldn't be scored; they are in no accuracy."""
        return self.asked - self.scored


@dataclass(frozen=True, slots=True)
class Paired:
    """Answers of two variants to the questions that both could be scored on, in one order; ``dropped`` is the rest."""

    first: tuple[float, ...]
    second: tuple[float, ...]
    clusters: tuple[str, ...]
    dropped: int


def missing(answer: float | None) -> bool:
    """Whether an answer couldn't be scored: None or NaN."""
    return answer is None or math.isnan(answer)


def tally(answers: Sequence[float | None], tied: Sequence[bool] | None = None) -> Tally:
    """Counts of answers.

    Args:
        answers: one a question; None and NaN couldn't be scored.
        tied: whether the best options of a question had equal scores; None for no ties.

    Raises:
        ValueError: ``tied`` is of another length.
    """
    if tied is not None and len(tied) != len(answers):
        raise ValueError(f"there are {len(answers)} answers but {len(tied)} marks of ties; give one an answer")
    return Tally(len(answers), sum(not missing(a) for a in answers), sum(tied or ()))


def scored(
    answers: Sequence[float | None], clusters: Sequence[str] | None = None
) -> tuple[tuple[float, ...], tuple[str, ...]]:
    """The answers that could be scored, and their clusters (all ``""`` where none are given).

    Raises:
        ValueError: ``clusters`` is of another length.
    """
    names = _names(clusters, len(answers))
    kept = [(a, c) for a, c in zip(answers, names, strict=True) if a is not None and not math.isnan(a)]
    return tuple(a for a, _ in kept), tuple(c for _, c in kept)


def paired(
    first: Sequence[float | None], second: Sequence[float | None], clusters: Sequence[str] | None = None
) -> Paired:
    """Answers of two variants without the questions that either couldn't be scored on.

    Args:
        first, second: answers in the same order of questions.
        clusters: the source chunk of each question; see `groups`.

    Raises:
        ValueError: the lengths differ.
    """
    if len(first) != len(second):
        raise ValueError(f"paired answers must be equally many; these are {len(first)} and {len(second)}")
    names = _names(clusters, len(first))
    kept = [
        (a, b, c)
        for a, b, c in zip(first, second, names, strict=True)
        if a is not None and b is not None and not math.isnan(a) and not math.isnan(b)
    ]
    return Paired(
        tuple(a for a, _, _ in kept),
        tuple(b for _, b, _ in kept),
        tuple(c for _, _, c in kept),
        len(first) - len(kept),
    )


def groups(clusters: Sequence[str] | None, questions: int) -> npt.NDArray[np.int64]:
    """The number of each question's cluster, from 0 in the order of appearance.

    Args:
        clusters: a name each, usually of the chunk that the question was made from. Questions named ``""`` come from no
            known chunk and are each their own cluster. None: all are.
        questions: how many there are.

    Returns:
        Shape (questions,); the largest number plus one is the number of clusters.

    Raises:
        ValueError: ``clusters`` is of another length.
    """
    found: dict[str | int, int] = {}
    names = _names(clusters, questions)
    return np.array([found.setdefault(name or place, len(found)) for place, name in enumerate(names)], dtype=int)


def numbers(answers: Sequence[float]) -> npt.NDArray[np.float64]:
    """Answers as an array; refuses what couldn't be scored.

    Raises:
        ValueError: an answer is None or NaN.
    """
    lost = sum(missing(a) for a in answers)
    if lost:
        raise ValueError(
            f"{lost} of {len(answers)} answers couldn't be scored; leave them out by name, with `scored` or `paired`"
        )
    return np.asarray(answers, dtype=float)


def _names(clusters: Sequence[str] | None, questions: int) -> Sequence[str]:
    if clusters is None:
        return [""] * questions
    if len(clusters) != questions:
        raise ValueError(f"there are {questions} answers but {len(clusters)} clusters; give one an answer")
    return clusters
