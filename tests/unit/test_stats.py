"""Intervals, tests and choices against values worked out by hand."""

from __future__ import annotations

import math

import pytest

from lm_eval_kinject.stats import (
    Interval,
    accuracy,
    best_k,
    clustered_accuracy,
    clustered_difference,
    clustered_mean,
    cross_fitted,
    detectable_paired,
    detectable_unpaired,
    groups,
    holm,
    mcnemar,
    paired,
    paired_difference,
    scored,
    t_test,
    tally,
    wilson,
)


def test_wilson_interval_by_hand() -> None:
    # 5 of 10: centre (p + z²/2n)/(1 + z²/n) = 0.5, half-width z·sqrt(p(1-p)/n + z²/4n²)/(1 + z²/n) = 0.26340
    found = accuracy([1] * 5 + [0] * 5)
    assert found.estimate == 0.5
    assert (found.low, found.high) == (pytest.approx(0.23659, abs=1e-5), pytest.approx(0.76341, abs=1e-5))


def test_wilson_at_the_ends() -> None:
    # 0 of 10: the upper bound is (z²/n)/(1 + z²/n) with z = 1.959964, so 0.38415/1.38415
    low, high = wilson(0.0, 10)
    assert low == 0.0
    assert high == pytest.approx(0.38415 / 1.38415, abs=1e-5)
    assert wilson(1.0, 10) == (pytest.approx(1 - high, abs=1e-12), 1.0)


def test_how_intervals_are_written() -> None:
    assert Interval(0.481, 0.449, 0.514).percent() == "48.1 % (44.9 to 51.4)"
    assert Interval(-0.012, -0.031, 0.007).points() == "-1.2 points (-3.1 to +0.7)"
    assert Interval(-0.0004, -0.031, 0.0004).points() == "0.0 points (-3.1 to 0.0)"


def test_no_answers() -> None:
    with pytest.raises(ValueError, match="no answers"):
        accuracy([])
    with pytest.raises(ValueError, match="no answers"):
        clustered_mean([])
    with pytest.raises(ValueError, match="no answers"):
        paired_difference([], [])


@pytest.mark.parametrize("lost", [None, math.nan])
def test_what_could_not_be_scored_is_never_a_zero(lost: float | None) -> None:
    answers = [1.0, lost, 0.0, 1.0]
    for function in (accuracy, clustered_accuracy, clustered_mean, t_test):
        with pytest.raises(ValueError, match="1 of 4 answers"):
            function(answers)  # type: ignore[arg-type,operator]
    for compare in (mcnemar, paired_difference, clustered_difference):
        with pytest.raises(ValueError, match="1 of 4 answers"):
            compare(answers, [1.0] * 4)  # type: ignore[arg-type,operator]
    assert scored(answers, ["a", "b", "b", ""]) == ((1.0, 0.0, 1.0), ("a", "b", ""))
    counts = tally(answers, [False, True, True, False])
    assert (counts.asked, counts.scored, counts.unscored, counts.ties) == (4, 3, 1, 2)
    both = paired(answers, [0.0, 1.0, lost, 1.0], ["a", "b", "b", "c"])
    assert (both.first, both.second, both.clusters, both.dropped) == ((1.0, 1.0), (0.0, 1.0), ("a", "c"), 2)


def test_questions_without_a_chunk_are_clusters_of_their_own() -> None:
    assert groups(["x", "", "y", "x", ""], 5).tolist() == [0, 1, 2, 0, 3]
    assert groups(None, 3).tolist() == [0, 1, 2]
    with pytest.raises(ValueError, match="3 answers but 2 clusters"):
        groups(["x", "y"], 3)


def test_mcnemar_counts_only_the_questions_that_differ() -> None:
    # 1 against 5: two-sided exact p = 2·(C(6,0) + C(6,1))/2⁶ = 14/64
    first = [1, 0, 0, 0, 0, 0] + [1] * 20
    second = [0, 1, 1, 1, 1, 1] + [1] * 20
    assert mcnemar(first, second) == pytest.approx(14 / 64)
    assert mcnemar(first, first) == 1.0
    # mid-p: the 6/64 of exactly 1 against 5 count half, on both sides
    assert mcnemar(first, second, mid_p=True) == pytest.approx(8 / 64)
    # 1 against 1: half of P(1 of 2) = ½ is taken off
    assert mcnemar([1, 0], [0, 1], mid_p=True) == pytest.approx(0.75)


def test_mcnemar_flips_whole_clusters() -> None:
    # Chunks lead by +2, +2, +1 and 0: of the eight sums ±2±2±1 only ±5 are as far out as 5, so p = 2/8. As seven
    # questions, 6 against 1: p = 2·(1 + 7)/2⁷.
    second = [1, 1, 1, 1, 1, 1, 0]
    first = [1 - answer for answer in second]
    clusters = ["a", "a", "b", "b", "c", "d", "d"]
    assert mcnemar(first, second, clusters) == pytest.approx(2 / 8)
    assert mcnemar(first, second) == pytest.approx(16 / 128)
    # +2 and -1: sums ±3, ±1; as far out as 1 are all
    assert mcnemar([0, 0, 1], [1, 1, 0], ["a", "a", "b"]) == 1.0
    # each variant ahead once in the only chunk: nothing to tell
    assert mcnemar([1, 0], [0, 1], ["a", "a"]) == 1.0


def test_paired_difference() -> None:
    first, second = [0.0] * 100, [1.0] * 30 + [0.0] * 70
    found = paired_difference(first, second)
    assert found.estimate == pytest.approx(0.30)
    assert found.low == pytest.approx(0.21, abs=0.015)
    assert found.high == pytest.approx(0.39, abs=0.015)
    assert paired_difference(first, second) == found


def test_bootstrap_draws_clusters() -> None:
    # Of two chunks, one all better and one all alike: a draw has none, one or two of the better with ¼, ½, ¼.
    clusters = ["a"] * 3 + ["b"] * 3
    found = paired_difference([0] * 6, [1, 1, 1, 0, 0, 0], clusters=clusters)
    assert (found.low, found.estimate, found.high) == (0.0, 0.5, 1.0)
    # As six questions, none better is one draw in 64 (1.6 %) and at most one better are seven: 2.5 % lie at one.
    alone = paired_difference([0] * 6, [1, 1, 1, 0, 0, 0])
    assert alone.low == pytest.approx(1 / 6)


def test_unpaired_answers_are_refused() -> None:
    with pytest.raises(ValueError, match="equally many"):
        mcnemar([1], [1, 0])
    with pytest.raises(ValueError, match="equally many"):
        paired([1], [1, 0])


def test_clustered_error_by_hand() -> None:
    # Answers 1 1 | 1 0 | 0 0, mean ½: cluster sums of deviations 1, 0, -1; 3/2 · (1 + 0 + 1)/6² = 1/12
    found = clustered_mean([1, 1, 1, 0, 0, 0], ["a", "a", "b", "b", "c", "c"])
    assert (found.mean, found.clusters) == (0.5, 3)
    assert found.error == pytest.approx(math.sqrt(1 / 12))
    # One question a cluster: s²/n with s² = 6·¼/5
    assert clustered_mean([1, 1, 1, 0, 0, 0]).error == pytest.approx(math.sqrt(6 * 0.25 / 5 / 6))
    assert math.isnan(clustered_mean([1, 0], ["a", "a"]).error)


def test_clustered_difference_by_hand() -> None:
    # Differences 1 1 | 0 0 | 0 0: mean 1/3; sums of deviations 4/3, -2/3, -2/3; 3/2·(24/9)/36 = 1/9; t of 2 degrees of
    # freedom at 97.5 % is 4.302653
    found = clustered_difference([0] * 6, [1, 1, 0, 0, 0, 0], ["a", "a", "b", "b", "c", "c"])
    assert found.estimate == pytest.approx(1 / 3)
    assert found.high == pytest.approx(1 / 3 + 4.302653 / 3, abs=1e-6)
    assert found.low == pytest.approx(1 / 3 - 4.302653 / 3, abs=1e-6)
    assert clustered_difference([0, 0], [1, 0], ["a", "a"]) == Interval(0.5, -1.0, 1.0)


def test_clustered_accuracy() -> None:
    answers = [1, 1, 1, 0, 0, 0] * 10
    assert clustered_accuracy(answers) == accuracy(answers)
    # Twice the same answer from each of 60 chunks is worth 60 questions, but for the quantile of t: the clustered
    # variance is twice that of 120 alone times (60/59)/(120/119), and t is 1.980100 for 119 and 2.000995 for 59 degrees
    # of freedom.
    doubled = [answer for answer in answers for _ in range(2)]
    chunks = [str(place // 2) for place in range(120)]
    worth = 120 / (2 * (60 / 59) / (120 / 119)) * (1.980100 / 2.000995) ** 2
    found = clustered_accuracy(doubled, chunks)
    assert (found.low, found.high) == pytest.approx(wilson(0.5, worth), abs=1e-6)
    # All right: nothing is known of how chunks differ, so each counts as one question.
    assert clustered_accuracy([1.0] * 20, [str(place // 2) for place in range(20)]).low == wilson(1.0, 10)[0]
    # One of two right in each chunk looks like no variance at all; it isn't believed beyond independence.
    assert clustered_accuracy([1, 0] * 20, [str(place // 2) for place in range(40)]) == accuracy([1, 0] * 20)


def test_t_test() -> None:
    # Mean ½, error √(1/12) of three clusters: t = √3; for 2 degrees of freedom p = 1 − t/√(2 + t²)
    found = t_test([1, 1, 1, 0, 0, 0], ["a", "a", "b", "b", "c", "c"])
    assert found == pytest.approx(1 - math.sqrt(3) / math.sqrt(5))
    assert (t_test([0.0, 0.0]), t_test([1.0, 1.0]), t_test([1.0, 0.0], ["a", "a"])) == (1.0, 0.0, 1.0)


def test_holm_by_hand() -> None:
    # In order .01·4, .02·3, .03·2, .5·1; the third may not be below the second, and none above 1
    assert holm([0.03, 0.01, 0.5, 0.02]) == pytest.approx([0.06, 0.04, 0.5, 0.06])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([]) == []
    with pytest.raises(ValueError, match="p-values"):
        holm([0.5, math.nan])


def test_detectable_differences() -> None:
    # 910 pairs of which a fifth differ: Connor's formula at the answer gives 910 back.
    effect = detectable_paired(910, 0.2)
    assert effect is not None
    needed = (1.959964 * math.sqrt(0.2) + 0.841621 * math.sqrt(0.2 - effect**2)) ** 2 / effect**2
    assert needed == pytest.approx(910, rel=1e-5)
    # Without the shrinkage of √(ψ − d²): (1.96 + .84)·√(.2/910) = .0415
    assert effect == pytest.approx(0.0415, abs=5e-5)
    # Five pairs that all go one way have p = 1/16: nothing to be seen.
    assert detectable_paired(5, 0.2) is None
    assert detectable_paired(910, 0.0) is None
    # About z·√(2·p̄q̄/n)
    lone = detectable_unpaired(910, 0.5)
    assert lone is not None
    assert lone == pytest.approx(2.801585 * math.sqrt(0.5 / 910), rel=5e-3)
    assert detectable_unpaired(10, 0.9) is None
    with pytest.raises(ValueError, match="no questions"):
        detectable_paired(0, 0.2)


def test_best_k_takes_the_smaller_of_equals() -> None:
    assert best_k({5: 0.7, 3: 0.7, 1: 0.6}) == 3
    assert best_k({1: 0.1 + 0.2, 2: 0.3}) == 1
    with pytest.raises(ValueError, match="mean of answers"):
        best_k({1: math.nan})


def test_cross_fitting_judges_each_half_by_the_other_halfs_choice() -> None:
    clusters = [str(place // 2) for place in range(8)]
    base = cross_fitted({1: [0.0] * 8}, clusters)
    late = base.in_second
    assert sum(late) == 4
    assert all(late[place] == late[place + 1] for place in range(0, 8, 2))  # whole chunks
    # K=1 is right in the second half only, K=2 in the first only: each half's own best is the other's worst.
    answers = {1: [float(half) for half in late], 2: [float(not half) for half in late]}
    found = cross_fitted(answers, clusters)
    assert found.chosen == (1, 2)
    assert found.answers == (0.0,) * 8
    assert cross_fitted(answers, clusters) == found
    assert {cross_fitted(answers, clusters, seed=seed).in_second for seed in range(20)} != {late}


def test_cross_fitting_passes_on_what_could_not_be_scored() -> None:
    found = cross_fitted({1: [None, 1.0, 1.0, 1.0], 2: [0.0, 0.0, 0.0, 0.0]}, ["a", "a", "b", "b"])
    assert found.chosen == (1, 1)
    assert found.answers == (None, 1.0, 1.0, 1.0)
    with pytest.raises(ValueError, match="two chunks"):
        cross_fitted({1: [1.0, 1.0]}, ["a", "a"])
    with pytest.raises(ValueError, match="same questions"):
        cross_fitted({1: [1.0, 1.0], 2: [1.0]})
