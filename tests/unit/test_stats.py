"""Intervals and paired tests against values worked out by hand."""

from __future__ import annotations

import pytest

from lm_eval_kinject.study.stats import accuracy, mcnemar, paired_difference


def test_wilson_interval_by_hand() -> None:
    # 5 of 10: centre (p + z²/2n)/(1 + z²/n) = 0.5, half-width z·sqrt(p(1-p)/n + z²/4n²)/(1 + z²/n) = 0.26340
    found = accuracy([1] * 5 + [0] * 5)
    assert found.estimate == 0.5
    assert (found.low, found.high) == (pytest.approx(0.23659, abs=1e-5), pytest.approx(0.76341, abs=1e-5))


def test_no_answers() -> None:
    with pytest.raises(ValueError, match="no answers"):
        accuracy([])


def test_mcnemar_counts_only_the_questions_that_differ() -> None:
    # 1 against 5: two-sided exact p = 2·(C(6,0) + C(6,1))/2⁶ = 14/64
    first = [1, 0, 0, 0, 0, 0] + [1] * 20
    second = [0, 1, 1, 1, 1, 1] + [1] * 20
    assert mcnemar(first, second) == pytest.approx(14 / 64)
    assert mcnemar(first, first) == 1.0


def test_paired_difference() -> None:
    first, second = [0.0] * 100, [1.0] * 30 + [0.0] * 70
    found = paired_difference(first, second)
    assert found.estimate == pytest.approx(0.30)
    assert found.low == pytest.approx(0.21, abs=0.015)
    assert found.high == pytest.approx(0.39, abs=0.015)
    assert paired_difference(first, second) == found


def test_unpaired_answers_are_refused() -> None:
    with pytest.raises(ValueError, match="equally many"):
        mcnemar([1], [1, 0])
