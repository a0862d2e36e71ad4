"""Confidence intervals of accuracies and of paired differences, for independent questions and for clustered ones.

What it is for: the numbers behind a ±. What it doesn't do: p-values (`significance`). Figures are shares in 0..1.

The one idea: questions about one chunk rise and fall together, so what counts as a draw is the chunk. The variance of a
mean of n questions is then Σ_c (Σ_{i in c} (s_i − s̄))² / n², the sum going over clusters (Miller, "Adding Error Bars
to Evals", arXiv 2411.00640, on clustered standard errors); we multiply it by G/(G − 1) for G clusters and take
Student's t with G − 1 degrees of freedom, as regression packages do (CR1), so that with one question a cluster it is
the ordinary s²/n.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import special

from lm_eval_kinject.stats.answers import groups, numbers


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

    def points(self) -> str:
        """As ``+1.2 points (-0.8 to +3.2)``, for a difference of two shares."""
        return f"{signed(self.estimate)} points ({signed(self.low)} to {signed(self.high)})"


def signed(difference: float) -> str:
    """A difference of shares in points: ``+1.2``, ``-0.8``; what rounds to nothing is ``0.0``, without a sign."""
    shown = f"{100 * difference:+.1f}"
    return "0.0" if shown in ("+0.0", "-0.0") else shown


@dataclass(frozen=True, slots=True)
class ClusteredMean:
    """A mean with its clustered standard error (see this file's head) and the number of clusters behind it."""

    mean: float
    error: float
    clusters: int


def wilson(share: float, asked: float, level: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a share (Wilson 1927, without continuity correction).

    Args:
        share: what was right, in 0..1. For partly right answers their mean may be given: the variance of values in 0..1
            is at most that of zeros and ones with the same mean, so the interval is then too wide, if anything.
        asked: how many answers, above 0; a fraction where it is an effective number.

    Returns:
        Lower and upper bound, in 0..1.

    Raises:
        ValueError: nothing was asked, or the share is outside 0..1.
    """
    if not asked > 0:
        raise ValueError("no answers to take an accuracy of")
    if not 0 <= share <= 1:
        raise ValueError(f"a share must be in 0..1, not {share}")
    z = float(special.ndtri((1 + level) / 2))
    widening = 1 + z * z / asked
    centre = (share + z * z / (2 * asked)) / widening
    half = z * math.sqrt(share * (1 - share) / asked + z * z / (4 * asked * asked)) / widening
    # At shares of 0 and 1 the bound is exact; rounding would leave a trace of 1e-17.
    return (0.0 if share == 0 else max(0.0, centre - half)), (1.0 if share == 1 else min(1.0, centre + half))


def accuracy(answers: Sequence[float], level: float = 0.95) -> Interval:
    """Accuracy with its Wilson score interval, for questions that are independent of each other.

    Raises:
        ValueError: there are no answers, or one couldn't be scored.
    """
    values = numbers(answers)
    if not len(values):
        raise ValueError("no answers to take an accuracy of")
    share = float(values.mean())
    return Interval(share, *wilson(share, len(values), level), level)


def clustered_mean(values: Sequence[float], clusters: Sequence[str] | None = None) -> ClusteredMean:
    """Mean and clustered standard error; the error is NaN with a single cluster, from which none can be had.

    Args:
        values: answers, or differences of them.
        clusters: the source chunk of each question (`groups`).

    Raises:
        ValueError: there are no values, or one couldn't be scored.
    """
    found = numbers(values)
    if not len(found):
        raise ValueError("no answers to take an accuracy of")
    sums, _ = _by_cluster(found - found.mean(), clusters)
    count = len(sums)
    error = math.sqrt(count / (count - 1) * float(sums @ sums)) / len(found) if count > 1 else math.nan
    return ClusteredMean(float(found.mean()), error, count)


def clustered_accuracy(
    answers: Sequence[float], clusters: Sequence[str] | None = None, level: float = 0.95
) -> Interval:
    """Accuracy with a Wilson interval at the number of independent questions that the clustered ones are worth.

    The effective number is n / deff · (t_{n−1} / t_{G−1})², where deff is the clustered variance over the ordinary one
    and the t are quantiles for n questions and G clusters (Korn and Graubard 1998; with Wilson's interval: Kott and Liu
    2009), and at most n. Unlike mean ± t·error it stays within 0..1, and it has a width where all answers are alike: a
    cluster then counts as one question, the worst case. With one question a cluster it is `accuracy`.

    Raises:
        ValueError: there are no answers, or one couldn't be scored.
    """
    found = clustered_mean(answers, clusters)
    asked = len(answers)
    worth = float(asked)
    if found.clusters < asked:
        plain = clustered_mean(answers).error
        if found.clusters < 2 or plain == 0:
            worth = float(found.clusters)
        elif found.error > 0:
            worth = min(worth, asked * (plain / found.error * _t(level, asked) / _t(level, found.clusters)) ** 2)
    return Interval(found.mean, *wilson(min(1.0, max(0.0, found.mean)), worth, level), level)


def clustered_difference(
    first: Sequence[float], second: Sequence[float], clusters: Sequence[str] | None = None, level: float = 0.95
) -> Interval:
    """Mean of ``second - first`` with its clustered interval, mean ± t·error (Miller 2024, on paired differences).

    With very few questions that differ it is too narrow, and without any it has no width; `mcnemar` is exact there too.

    Raises:
        ValueError: the two did not answer the same number of questions, or none, or one couldn't be scored.
    """
    differences = paired_differences(first, second)
    found = clustered_mean(differences.tolist(), clusters)
    if found.clusters < 2:
        return Interval(found.mean, -1.0, 1.0, level)  # one cluster tells nothing of how clusters differ
    half = _t(level, found.clusters) * found.error
    return Interval(found.mean, found.mean - half, found.mean + half, level)


def paired_difference(
    first: Sequence[float],
    second: Sequence[float],
    *,
    clusters: Sequence[str] | None = None,
    resamples: int = 10_000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """Mean of ``second - first`` with its percentile bootstrap interval over questions, or over clusters of them.

    Whole clusters are drawn (Davison and Hinkley 1997, section 3.8); as they differ in size, a draw's mean is its sum
    over its number of questions.

    Raises:
        ValueError: the two did not answer the same number of questions, or none, or one couldn't be scored.
    """
    differences = paired_differences(first, second)
    sums, sizes = _by_cluster(differences, clusters)
    rng = np.random.default_rng(seed)
    # Clusters with the same sum and size are alike, so drawing how many there are of each kind is the same as drawing
    # clusters, and needs no matrix of indices.
    kinds, counts = np.unique(np.stack([sums, sizes], axis=1), axis=0, return_counts=True)
    drawn = rng.multinomial(len(sums), counts / counts.sum(), size=resamples)
    means = (drawn @ kinds[:, 0]) / (drawn @ kinds[:, 1])
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(differences.mean()), float(low), float(high), level)


def unpaired_difference(first: tuple[float, float], second: tuple[float, float], level: float = 0.95) -> Interval:
    """Difference ``second - first`` of two accuracies whose answers aren't known one by one.

    Newcombe's interval from the two of Wilson (1998, method 10). It is wider than a paired one where the two answered
    the same questions, and knows nothing of chunks.

    Args:
        first, second: accuracy in 0..1, and how many were asked.

    Raises:
        ValueError: nothing was asked, or a share is outside 0..1.
    """
    (p, m), (q, n) = first, second
    (p_low, p_high), (q_low, q_high) = wilson(p, m, level), wilson(q, n, level)
    below, above = math.hypot(q - q_low, p_high - p), math.hypot(q_high - q, p - p_low)
    return Interval(q - p, q - p - below, q - p + above, level)


def paired_differences(first: Sequence[float], second: Sequence[float]) -> npt.NDArray[np.float64]:
    """``second - first``, question by question, shape (questions,).

    Raises:
        ValueError: the two did not answer the same number of questions, or none, or one couldn't be scored.
    """
    if len(first) != len(second):
        raise ValueError(f"paired answers must be equally many; these are {len(first)} and {len(second)}")
    if not len(first):
        raise ValueError("no answers to compare")
    return numbers(second) - numbers(first)


def _by_cluster(
    values: npt.NDArray[np.float64], clusters: Sequence[str] | None
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Sum and size of each cluster, two arrays of shape (clusters,)."""
    numbered = groups(clusters, len(values))
    sums = np.bincount(numbered, weights=values).astype(np.float64)
    return sums, np.bincount(numbered).astype(np.float64)


def _t(level: float, draws: int) -> float:
    return float(special.stdtrit(draws - 1, (1 + level) / 2))
