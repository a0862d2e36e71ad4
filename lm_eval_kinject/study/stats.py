"""Intervals and paired tests for accuracies: what it takes to say that one variant beats another.

Variants answer the same questions, so differences are tested in pairs (McNemar, paired bootstrap); two overlapping
intervals of single accuracies say little. Figures are shares in 0..1; answers are 0 or 1, one a question.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate with its two-sided confidence interval (``level`` in 0..1)."""

    estimate: float
    low: float
    high: float
    level: float = 0.95

    def percent(self) -> str:
        """As ``48.1 % (44.9 to 51.4)``."""
        return f"{100 * self.estimate:.1f} % ({100 * self.low:.1f} to {100 * self.high:.1f})"


def accuracy(answers: Sequence[float], level: float = 0.95) -> Interval:
    """Accuracy with its Wilson score interval.

    Raises:
        ValueError: there are no answers.
    """
    right, asked = round(sum(answers)), len(answers)
    if asked == 0:
        raise ValueError("no answers to take an accuracy of")
    bounds = stats.binomtest(right, asked).proportion_ci(level, method="wilson")
    return Interval(right / asked, float(bounds.low), float(bounds.high), level)


def mcnemar(first: Sequence[float], second: Sequence[float]) -> float:
    """Two-sided exact p-value of McNemar's test: do two variants get different questions right equally often?

    Only questions that exactly one of them gets right count; 1.0 where there are none.

    Raises:
        ValueError: the two did not answer the same number of questions.
    """
    _check_paired(first, second)
    only_first = sum(a > b for a, b in zip(first, second, strict=True))
    only_second = sum(a < b for a, b in zip(first, second, strict=True))
    if only_first + only_second == 0:
        return 1.0
    return float(stats.binomtest(only_first, only_first + only_second).pvalue)


def paired_difference(
    first: Sequence[float], second: Sequence[float], *, resamples: int = 10_000, seed: int = 0, level: float = 0.95
) -> Interval:
    """Mean of ``second - first`` with its percentile bootstrap interval over questions.

    Raises:
        ValueError: the two did not answer the same number of questions, or none.
    """
    _check_paired(first, second)
    if not first:
        raise ValueError("no answers to compare")
    differences = np.asarray(second, dtype=float) - np.asarray(first, dtype=float)
    rng = np.random.default_rng(seed)
    # Resampling the counts of -1, 0 and 1 is the same as resampling questions, and needs no matrix of indices.
    values, counts = np.unique(differences, return_counts=True)
    drawn = rng.multinomial(len(differences), counts / counts.sum(), size=resamples)
    means = drawn @ values / len(differences)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(differences.mean()), float(low), float(high), level)


def _check_paired(first: Sequence[float], second: Sequence[float]) -> None:
    if len(first) != len(second):
        raise ValueError(f"paired answers must be equally many; these are {len(first)} and {len(second)}")
