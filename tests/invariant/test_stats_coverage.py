"""What "95 %" promises, by simulation: intervals cover, tests keep their level, on independent and clustered questions.

Each simulated study draws chunks with an ability of their own, so that questions about one chunk are alike; the
clustered methods must hold there, and those for independent questions must be seen to fail, or the simulation shows
nothing.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
from scipy import stats

from lm_eval_kinject.stats import (
    Interval,
    accuracy,
    clustered_accuracy,
    clustered_difference,
    mcnemar,
    paired_difference,
    wilson,
)

STUDIES = 3000  # the standard error of a coverage of 95 % is .4 points
CHUNKS, EACH = 60, 4
CLUSTERS = [str(place // EACH) for place in range(CHUNKS * EACH)]


def draws(share: float, likeness: float, seed: int) -> npt.NDArray[np.float64]:
    """Answers of all studies, shape (studies, questions): beta-binomial with this correlation within a chunk."""
    rng = np.random.default_rng(seed)
    if likeness == 0:
        return (rng.random((STUDIES, CHUNKS * EACH)) < share).astype(float)
    strength = 1 / likeness - 1
    ability = rng.beta(share * strength, (1 - share) * strength, (STUDIES, CHUNKS))
    return (rng.random((STUDIES, CHUNKS * EACH)) < ability.repeat(EACH, axis=1)).astype(float)


def coverage(make: Callable[[int], Interval], truth: float) -> float:
    found = [make(study) for study in range(STUDIES)]
    return float(np.mean([i.low <= truth <= i.high for i in found]))


@pytest.mark.parametrize("asked", [100, 135, 324, 910])
def test_wilson_exactly(asked: int) -> None:
    # No simulation: the chance of each count of right answers is known. At a single accuracy the coverage saws between
    # .93 and .97 (answers are whole); its mean is what can be promised.
    bounds = np.array([wilson(right / asked, asked) for right in range(asked + 1)])
    shares = np.linspace(0.05, 0.95, 181)
    inside = (bounds[:, :1] <= shares) & (shares <= bounds[:, 1:])
    covered = (stats.binom.pmf(np.arange(asked + 1)[:, None], asked, shares) * inside).sum(axis=0)
    assert 0.948 <= covered.mean() <= 0.952
    assert covered.min() > 0.925
    if asked == 910:
        assert covered.min() >= 0.945
        assert covered.max() <= 0.955


@pytest.mark.parametrize("share", [0.3, 0.85])
def test_single_accuracies(share: float) -> None:
    alone, alike = draws(share, 0, 1), draws(share, 0.4, 2)
    assert 0.94 <= coverage(lambda s: clustered_accuracy(alike[s], CLUSTERS), share) <= 0.96
    assert 0.94 <= coverage(lambda s: clustered_accuracy(alone[s], CLUSTERS), share) <= 0.97
    # 1 + (4 − 1)·.4 = 2.2 times the variance: about 81 %
    assert coverage(lambda s: accuracy(alike[s]), share) < 0.85


def test_paired_differences() -> None:
    first, second = draws(0.5, 0.4, 3), draws(0.6, 0.4, 4)
    alone_first, alone_second = draws(0.5, 0, 5), draws(0.6, 0, 6)
    assert 0.94 <= coverage(lambda s: clustered_difference(alone_first[s], alone_second[s]), 0.1) <= 0.96
    assert 0.94 <= coverage(lambda s: clustered_difference(first[s], second[s], CLUSTERS), 0.1) <= 0.96
    assert coverage(lambda s: clustered_difference(first[s], second[s]), 0.1) < 0.85


def test_bootstrap() -> None:
    first, second = draws(0.5, 0.4, 7), draws(0.6, 0.4, 8)

    def over(clusters: list[str] | None) -> Callable[[int], Interval]:
        return lambda s: paired_difference(first[s], second[s], clusters=clusters, resamples=500, seed=s)

    # Percentile intervals of 60 clusters lack √(59/60) and Student's t: about half a point.
    assert 0.94 <= coverage(over(CLUSTERS), 0.1) <= 0.96
    assert coverage(over(None), 0.1) < 0.85


def test_level_of_mcnemar() -> None:
    first, second = draws(0.5, 0.4, 9), draws(0.5, 0.4, 10)
    clustered = np.mean([mcnemar(first[s], second[s], CLUSTERS) <= 0.05 for s in range(STUDIES)])
    plain = np.mean([mcnemar(first[s], second[s]) <= 0.05 for s in range(STUDIES)])
    assert 0.03 <= clustered <= 0.055
    assert plain > 0.12
