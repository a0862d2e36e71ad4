"""The threshold of ``route=self-route``, fitted on a validation run.

What it is for: `read_questions` reads a run with ``route_both=true``, in which every question was scored with both
contexts, and `fit` finds the threshold with the highest accuracy on it. What it does not do: fit on what is reported:
results of a task's test split are refused, unless the caller says that these questions are for validation.

The one idea: a threshold only matters by which questions are beyond it, so those halfway between two neighbouring
numbers are all there are; each is a pair of accuracy and tokens, beside which stands what a lot of the same rate
would give in expectation.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lm_eval_kinject.context.route import BELOW
from lm_eval_kinject.errors import ArgumentError
from lm_eval_kinject.provenance import read_json
from lm_eval_kinject.study.load import read_samples, result_file

__all__ = ["Point", "Scored", "fit", "points", "read_questions"]

_WHERE = "the validation run"
_RANGE = {"margin": (0.0, math.inf), "entropy": (0.0, 1.0)}
"""What a criterion's number can be; a threshold lies strictly inside."""


@dataclass(frozen=True, slots=True)
class Scored:
    """One question: the criterion's number, and of both contexts the score and the tokens of the prompt.

    Without a number (``value`` None) it is always routed.
    """

    value: float | None
    short: float
    long: float
    short_tokens: int
    long_tokens: int


@dataclass(frozen=True, slots=True)
class Point:
    """What a threshold gives.

    Attributes:
        threshold: as ``route_threshold=`` takes it.
        answerable: share of questions answered from the short context.
        tokens: share of the tokens that the long context takes for all questions.
        accuracy: mean score.
        by_lot: mean score in expectation where as many questions are routed by lot.
    """

    threshold: float
    answerable: float
    tokens: float
    accuracy: float
    by_lot: float


def read_questions(results: Path, *, validation: bool = False) -> tuple[str, list[Scored]]:
    """The criterion and the questions of a run with ``route_both=true``.

    Args:
        results: the results JSON, or its folder; the samples are beside it.
        validation: the questions are for validation, whatever their task calls its split.

    Raises:
        ArgumentError: it is no such run, or its questions are those of a test split; all that is wrong.
    """
    file = result_file(results) if results.is_dir() else results
    if not file.is_file():
        raise ArgumentError(f"{file}: no such file; pass a results_….json of lm_eval", _WHERE)
    found = read_json(file)
    told = found.get("config", {}).get("kinject", {}).get("pipeline", {}).get("route", {})
    problems = []
    if told.get("name") != "self-route" or not told.get("route_both"):
        problems.append("it has no question with both contexts; score it with route=self-route,route_both=true")
    tests = [task for task, config in found.get("configs", {}).items() if config.get("test_split")]
    if tests and not validation:
        problems.append(
            f"its questions are the test split of {', '.join(tests)}, and a threshold fitted on them would be judged "
            "by what it was fitted on; score a task whose test_split is null and whose validation_split has other "
            "questions, or pass --validation if nothing is reported on these"
        )
    if problems:
        raise ArgumentError(problems, _WHERE)
    notes = [_note(task, row) for task, rows in read_samples(file).items() for row in rows]
    return str(told["route_by"]), notes


def _note(task: str, row: dict[str, Any]) -> Scored:
    first = next(iter(row["arguments"].values())) if isinstance(row["arguments"], dict) else None
    note = ((first or {}).get("arg_2") or {}).get("kinject", {}).get("route", {})
    scores = note.get("scores", {})
    if scores.get("short") is None or scores.get("long") is None:
        raise ArgumentError(
            f"{task}, document {row['doc_id']}: its metric gives no score of a single question, so no threshold can be "
            "fitted; use a task with acc or exact_match",
            _WHERE,
        )
    return Scored(note["value"], scores["short"], scores["long"], note["short_tokens"], note["long_tokens"])


def points(by: str, questions: Sequence[Scored]) -> list[Point]:
    """Every threshold that makes a difference, ascending.

    Args:
        by: the criterion.
        questions: at least one.
    """
    return [_point(by, threshold, questions) for threshold in _thresholds(by, questions)]


def _thresholds(by: str, questions: Sequence[Scored]) -> list[float]:
    values = sorted({one.value for one in questions if one.value is not None})
    if not values:
        return []
    least, most = _RANGE.get(by, (-math.inf, math.inf))
    lowest = values[0] - 1 if math.isinf(least) else (least + values[0]) / 2
    highest = values[-1] + 1 if math.isinf(most) else (values[-1] + most) / 2
    inner = [_between(one, other) for one, other in itertools.pairwise(values)]
    return [value for value in (lowest, *inner, highest) if least < value < most]


def _between(one: float, other: float) -> float:
    """Halfway, with as few digits as tell it from both."""
    middle = (one + other) / 2
    short = float(f"{middle:.4g}")
    return short if one < short < other else middle


def _point(by: str, threshold: float, questions: Sequence[Scored]) -> Point:
    away = [one.value is None or (one.value < threshold if by in BELOW else one.value > threshold) for one in questions]
    count, rate = len(questions), sum(away) / len(questions)
    spent = sum(q.short_tokens + (q.long_tokens if routed else 0) for q, routed in zip(questions, away, strict=True))
    short, long = (sum(getattr(one, of) for one in questions) / count for of in ("short", "long"))
    return Point(
        threshold,
        1 - rate,
        spent / sum(one.long_tokens for one in questions),
        sum(q.long if routed else q.short for q, routed in zip(questions, away, strict=True)) / count,
        (1 - rate) * short + rate * long,
    )


def fit(by: str, questions: Sequence[Scored], most_tokens: float | None = None) -> tuple[Point, list[Point]]:
    """The threshold with the highest accuracy, of equal ones the one with the fewest tokens; and all there are.

    Args:
        by: the criterion.
        questions: of a validation run.
        most_tokens: the largest share of tokens that it may take; None: any.

    Raises:
        ArgumentError: there is none.
    """
    found = points(by, questions)
    allowed = [one for one in found if most_tokens is None or one.tokens <= most_tokens]
    if not allowed:
        least = min((one.tokens for one in found), default=None)
        why = (
            "no question has a number" if least is None else f"the short context alone takes {least:.0%} of the tokens"
        )
        raise ArgumentError(f"there is no threshold to choose from: {why}; raise --most-tokens", _WHERE)
    return min(allowed, key=lambda one: (-round(one.accuracy, 12), one.tokens)), found
