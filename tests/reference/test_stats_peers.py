"""The statistics room against scipy and statsmodels, which do the same by other code, on random tables."""

from __future__ import annotations

import numpy as np
import pytest
import statsmodels.api as sm
from scipy import stats
from sklearn.metrics import cohen_kappa_score
from statsmodels.stats.contingency_tables import mcnemar as peer_mcnemar
from statsmodels.stats.inter_rater import cohens_kappa
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import NormalIndPower
from statsmodels.stats.proportion import (
    confint_proportions_2indep,
    proportion_confint,
    samplesize_proportions_2indep_onetail,
)

from lm_eval_kinject.stats import (
    accuracy,
    clustered_difference,
    clustered_mean,
    cohen_kappa,
    detectable_paired,
    detectable_unpaired,
    fisher,
    holm,
    mcnemar,
    t_test,
    unpaired_difference,
    wilson,
)

TIGHT = {"rel": 1e-10, "abs": 1e-10}
SEEDS = range(20)


@pytest.mark.parametrize("seed", SEEDS)
def test_wilson(seed: int) -> None:
    rng = np.random.default_rng(seed)
    asked = int(rng.integers(1, 1000))
    right = int(rng.integers(0, asked + 1))
    level = float(rng.choice([0.9, 0.95, 0.99]))
    found = accuracy([1.0] * right + [0.0] * (asked - right), level)
    peer = stats.binomtest(right, asked).proportion_ci(level, method="wilson")
    assert (found.low, found.high) == pytest.approx((peer.low, peer.high), **TIGHT)
    assert wilson(right / asked, asked, level) == pytest.approx(
        proportion_confint(right, asked, alpha=1 - level, method="wilson"), **TIGHT
    )


@pytest.mark.parametrize("seed", SEEDS)
def test_mcnemar(seed: int) -> None:
    rng = np.random.default_rng(seed)
    asked = int(rng.integers(2, 400))
    first, second = (rng.random((2, asked)) < rng.uniform(0.2, 0.8, (2, 1))).astype(float)
    table = [[sum((first == a) & (second == b)) for b in (1, 0)] for a in (1, 0)]
    assert mcnemar(first.tolist(), second.tolist()) == pytest.approx(peer_mcnemar(table, exact=True).pvalue, **TIGHT)


@pytest.mark.parametrize("seed", SEEDS)
def test_mcnemar_with_clusters_against_every_flip_of_signs(seed: int) -> None:
    rng = np.random.default_rng(seed)
    count = int(rng.integers(1, 12))
    clusters = rng.integers(0, count, 4 * count)
    first, second = (rng.random((2, len(clusters))) < 0.5).astype(float)
    leads = np.array([(second - first)[clusters == c].sum() for c in range(count)])
    flips = np.array(np.meshgrid(*[[-1, 1]] * count)).reshape(count, -1)
    sums = np.abs(leads @ flips)
    expected = float((sums >= abs(leads.sum()) - 1e-9).mean())
    assert mcnemar(first.tolist(), second.tolist(), [str(c) for c in clusters]) == pytest.approx(expected, **TIGHT)


@pytest.mark.parametrize("seed", SEEDS)
def test_clustered_errors_are_those_of_a_regression(seed: int) -> None:
    rng = np.random.default_rng(seed)
    asked = int(rng.integers(10, 300))
    clusters = rng.integers(0, max(2, asked // 3), asked)
    first, second = (rng.random((2, asked)) < 0.5).astype(float)
    names = [f"c{c}" for c in clusters]
    ones = np.ones(asked)
    fit = sm.OLS(second, ones).fit(cov_type="cluster", cov_kwds={"groups": clusters}, use_t=True)
    found = clustered_mean(second.tolist(), names)
    assert (found.mean, found.error) == pytest.approx((fit.params[0], fit.bse[0]), **TIGHT)
    assert t_test(second.tolist(), names) == pytest.approx(fit.pvalues[0], **TIGHT)
    fit = sm.OLS(second - first, ones).fit(cov_type="cluster", cov_kwds={"groups": clusters}, use_t=True)
    gain = clustered_difference(first.tolist(), second.tolist(), names)
    assert (gain.low, gain.high) == pytest.approx(tuple(fit.conf_int()[0]), **TIGHT)
    # alone: the ordinary paired t interval
    peer = stats.ttest_rel(second, first).confidence_interval(0.95)
    alone = clustered_difference(first.tolist(), second.tolist())
    assert (alone.low, alone.high) == pytest.approx((peer.low, peer.high), **TIGHT)


@pytest.mark.parametrize("seed", SEEDS)
def test_holm(seed: int) -> None:
    rng = np.random.default_rng(seed)
    p_values = np.round(rng.random(int(rng.integers(1, 40))) ** 3, 3)  # rounded: with ties
    assert holm(p_values.tolist()) == pytest.approx(list(multipletests(p_values, method="holm")[1]), **TIGHT)


@pytest.mark.parametrize("seed", SEEDS)
def test_detectable_differences(seed: int) -> None:
    rng = np.random.default_rng(seed)
    base, asked = float(rng.uniform(0.05, 0.6)), int(rng.integers(100, 2000))
    effect = detectable_unpaired(asked, base)
    assert effect is not None
    assert samplesize_proportions_2indep_onetail(effect, base, 0.8) == pytest.approx(asked, **TIGHT)
    # In pairs: the deviations of statsmodels' one-sample z test are √ψ without the effect and √(ψ − d²) with it.
    discordance = float(rng.uniform(0.1, 0.6))
    paired_effect = detectable_paired(asked, discordance)
    assert paired_effect is not None
    spread = float(np.sqrt(discordance - paired_effect**2))
    threshold = stats.norm.ppf(0.975) * np.sqrt(discordance)
    power = stats.norm.sf((threshold - paired_effect * np.sqrt(asked)) / spread)
    assert power == pytest.approx(0.8, **TIGHT)
    assert NormalIndPower(ddof=0).power(paired_effect / spread, asked, 0.05, ratio=0, alternative="larger") > 0.8


@pytest.mark.parametrize("seed", SEEDS)
def test_unpaired(seed: int) -> None:
    rng = np.random.default_rng(seed)
    m, n = (int(asked) for asked in rng.integers(2, 60, 2))
    a, b = int(rng.integers(0, m + 1)), int(rng.integers(0, n + 1))
    found = unpaired_difference((a / m, m), (b / n, n))
    peer = confint_proportions_2indep(b, n, a, m, method="newcomb", compare="diff")
    assert (found.low, found.high) == pytest.approx(peer, **TIGHT)
    # Fisher's test again by the sum of the hypergeometric law over all tables that are no likelier than this one.
    law = stats.hypergeom(m + n, a + b, m).pmf(range(m + 1))
    assert fisher((a, m), (b, n)) == pytest.approx(float(law[law <= law[a] * (1 + 1e-7)].sum()), rel=1e-9)


def test_the_lady_tasting_tea() -> None:
    # Fisher 1935: 3 of 4 against 1 of 4; of 70 tables, 1 + 16 on each side are as extreme: 34 / 70.
    assert fisher((3, 4), (1, 4)) == pytest.approx(34 / 70)
    with pytest.raises(ValueError, match="between 0 and those asked"):
        fisher((5, 4), (1, 4))


@pytest.mark.parametrize("seed", range(20))
def test_cohen_kappa(seed: int) -> None:
    rng = np.random.default_rng(seed)
    labels, n = ["accept", "edit", "reject"][: 2 + seed % 2], int(rng.integers(5, 60))
    first = rng.choice(labels, n)
    second = np.where(rng.random(n) < 0.6, first, rng.choice(labels, n))
    counts = np.array([[np.sum((first == a) & (second == b)) for b in labels] for a in labels])
    found = cohen_kappa(list(first), list(second))
    assert found == pytest.approx(cohens_kappa(counts).kappa, abs=1e-12)
    assert found == pytest.approx(cohen_kappa_score(first, second), abs=1e-12)


def test_cohen_kappa_by_hand() -> None:
    # Cohen's own kind of table: 20 and 15 on the diagonal, 5 and 10 off it: p_o .7, p_e .5.
    first = ["y"] * 25 + ["n"] * 25
    second = ["y"] * 20 + ["n"] * 5 + ["y"] * 10 + ["n"] * 15
    assert cohen_kappa(first, second) == pytest.approx(0.4)
    assert cohen_kappa(["y", "n"], ["n", "y"]) == -1.0
    assert np.isnan(cohen_kappa(["y", "y"], ["y", "y"]))
    assert cohen_kappa(["y", "y"], ["n", "n"]) == 0.0
    with pytest.raises(ValueError, match="equally many"):
        cohen_kappa([], [])
