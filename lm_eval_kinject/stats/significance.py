"""P-values: whether two variants differ, and what is left of that when many pairs were tried.

What it is for: `mcnemar` for a pair of variants, `fisher` where only their totals are known, `t_test` for a slope or
another figure a question, `holm` for a table of p-values. What it doesn't do: sizes of differences (`intervals`).

The one idea: if two variants are alike, then in each cluster of questions it is a coin's toss which of them is ahead.
With one question a cluster that is McNemar's exact test; with several it is the same test with tosses of different
weight, and its distribution can be written down too, so nothing here is simulated.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy import special, stats

from lm_eval_kinject.stats.answers import groups
from lm_eval_kinject.stats.intervals import clustered_mean, paired_differences


def mcnemar(
    first: Sequence[float], second: Sequence[float], clusters: Sequence[str] | None = None, *, mid_p: bool = False
) -> float:
    """Two-sided exact p-value of McNemar's test: do two variants get different questions right equally often?

    Only questions that one of them answers better count; 1.0 where there are none. The default is the exact p-value,
    which is never too small, with clusters too: there, the signs of whole clusters are flipped (a randomisation test;
    Fisher 1935). A cluster in which each variant is ahead once says nothing, as it should.

    Args:
        first, second: answers in the same order of questions.
        clusters: the source chunk of each question (`groups`); None: questions are independent.
        mid_p: count what is as extreme as the data half (Fagerland, Lydersen and Laake 2013). Less cautious: its level
            is right on average, and can be a little exceeded.

    Raises:
        ValueError: the two did not answer the same number of questions, or none, or one couldn't be scored.
    """
    signs = np.sign(paired_differences(first, second))
    lead = np.abs(np.bincount(groups(clusters, len(signs)), weights=signs)).astype(int)
    ahead = abs(int(signs.sum()))
    law = _sum_of_tosses(lead[lead > 0])
    middle = len(law) // 2
    if middle == 0:
        return 1.0
    tail = float(law[middle + ahead :].sum())
    both = 1.0 if ahead == 0 else 2 * tail
    if mid_p:
        as_extreme = float(law[middle + ahead])
        both -= as_extreme if ahead else as_extreme / 2
    return min(1.0, both)


def fisher(first: tuple[int, int], second: tuple[int, int]) -> float:
    """Two-sided p-value of Fisher's exact test: could two accuracies be of one and the same chance?

    For variants whose answers aren't known one by one; with pairs `mcnemar` finds smaller differences.

    Args:
        first, second: how many were right, and how many asked.

    Raises:
        ValueError: more were right than asked, or fewer than none.
    """
    if any(not 0 <= right <= asked for right, asked in (first, second)):
        raise ValueError(f"right answers must be between 0 and those asked; these are {first} and {second}")
    table = [[right, asked - right] for right, asked in (first, second)]
    return min(1.0, float(stats.fisher_exact(table).pvalue))


def t_test(values: Sequence[float], clusters: Sequence[str] | None = None) -> float:
    """Two-sided p-value that a mean of figures is 0, from Student's t of its clustered error (see `intervals`).

    Raises:
        ValueError: there are no values, or one couldn't be scored.
    """
    found = clustered_mean(values, clusters)
    if found.clusters < 2:
        return 1.0
    if found.error == 0:
        return 1.0 if found.mean == 0 else 0.0
    return float(2 * special.stdtr(found.clusters - 1, -abs(found.mean) / found.error))


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values adjusted for being many (Holm 1979), in the order given; at most 1.

    Rejecting what is adjusted to at most .05 keeps the chance of even one wrong rejection in the table at 5 %, however
    the tests depend on each other.

    Raises:
        ValueError: one is outside 0..1 or NaN.
    """
    found = np.asarray(p_values, dtype=float)
    if not ((found >= 0) & (found <= 1)).all():
        raise ValueError("p-values must be in 0..1; leave out the comparisons that have none")
    order = np.argsort(found, kind="stable")
    stepped = np.maximum.accumulate(found[order] * np.arange(len(found), 0, -1))
    adjusted = np.empty(len(found))
    adjusted[order] = np.minimum(1.0, stepped)
    return [float(p) for p in adjusted]


def _sum_of_tosses(weights: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """The law of a sum of fair ±1 tosses with whole weights, from −Σ to Σ; shape (2·Σ + 1,).

    Tosses of the same weight w are w times a binomial, shown for w = 2 and two tosses::

        −4 −3 −2 −1  0  1  2  3  4
         ¼  0  0  0  ½  0  0  0  ¼
    """
    law = np.ones(1)
    for weight, count in zip(*np.unique(weights, return_counts=True), strict=True):
        one = np.zeros(2 * weight * count + 1)
        one[:: 2 * weight] = stats.binom.pmf(np.arange(count + 1), count, 0.5)
        law = np.convolve(law, one)
    return law
