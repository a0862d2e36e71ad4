"""Whether the rows of a leaderboard are better than one that somebody picked.

What it is for: `against` compares rows with a row, in pairs where both have samples of the same questions, else by
their totals, and says which. What it doesn't do: the statistics (`stats`), and pairing by itself (`study.lines`).

The one idea: whatever can't be compared says why in words, so that an empty place in a table is never a "no".
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from lm_eval_kinject.errors import KinjectError
from lm_eval_kinject.pages.board import Answers, Row
from lm_eval_kinject.stats import Interval, fisher, holm, unpaired_difference
from lm_eval_kinject.study.lines import Line, Setting, compare

__all__ = ["Versus", "against", "versus"]

Reader = Callable[[Row], Answers]
"""Gives a row's answers; raises a `KinjectError` where it has none."""


@dataclass(frozen=True, slots=True)
class Versus:
    """A row compared with the picked one.

    Args:
        gain: its accuracy less that of the picked row, with a 95 % interval.
        p: two-sided; McNemar's exact test over chunks in pairs, Fisher's exact test without.
        paired: whether the two were compared question by question.
        asked: questions compared.
        p_holm: adjusted for the rows that it was compared beside; None before that.
    """

    gain: Interval
    p: float
    paired: bool
    asked: int
    p_holm: float | None = None

    @property
    def noise(self) -> bool:
        """Whether the difference may be chance: by Holm's p-value, or because its interval has 0 in it."""
        return (self.p if self.p_holm is None else self.p_holm) >= 0.05 or self.gain.low <= 0 <= self.gain.high


def against(rows: Sequence[Row], picked: Row, read: Reader) -> dict[str, Versus | str]:
    """Every row but the picked one by its id: how it differs, or why that can't be said; Holm's p over them all."""
    found = {row.id: versus(row, picked, read) for row in rows if row.id != picked.id}
    compared = {row_id: one for row_id, one in found.items() if isinstance(one, Versus)}
    adjusted = holm([one.p for one in compared.values()])
    return found | {i: replace(one, p_holm=p) for (i, one), p in zip(compared.items(), adjusted, strict=True)}


def versus(row: Row, picked: Row, read: Reader) -> Versus | str:
    """A row less the picked one, or why the two can't be compared."""
    if (row.task, row.version, row.metric) != (picked.task, picked.version, picked.metric):
        return "another task, version or metric"
    if row.sampled and picked.sampled:
        try:
            return _paired(row, picked, read(row), read(picked))
        except KinjectError as error:
            return str(error)
    if (row.n, row.of) != (picked.n, picked.of):
        return "over other questions, and without samples of both"
    return _unpaired(row, picked)


def _paired(row: Row, picked: Row, mine: Answers, theirs: Answers) -> Versus | str:
    common = mine.questions.keys() & theirs.questions.keys()
    if any(mine.questions[doc] != theirs.questions[doc] for doc in common):
        return "its samples are of other questions"
    setting = Setting(row.model, row.task, row.shots)
    first, second = (
        Line(one.name, setting, one.retriever, str(one.k), "", answers.answered)
        for one, answers in ((picked, theirs), (row, mine))
    )
    found = compare(first, second)
    if found is None:
        return "no question could be scored in both"
    return Versus(found.gain, found.p_clustered, True, len(found.pairs.first))


def _unpaired(row: Row, picked: Row) -> Versus | str:
    rights = [one.value * one.n for one in (picked, row)]
    if any(abs(right - round(right)) > 1e-6 for right in rights):
        return "without samples, and its accuracy is no count of right answers"
    gain = unpaired_difference((picked.value, picked.n), (row.value, row.n))
    return Versus(gain, fisher((round(rights[0]), picked.n), (round(rights[1]), row.n)), False, row.n)
