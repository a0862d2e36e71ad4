"""Perplexity against a control by hand: the increase, its interval, and two results that must be of the same texts."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import bootstrap

from lm_eval_kinject import cli
from lm_eval_kinject.errors import ArgumentError
from lm_eval_kinject.stats import perplexity, relative_increase
from lm_eval_kinject.study.months import compare, rows, table

CONTROL, OTHER, WORDS = [-4.0, -6.0], [-5.0, -9.0], [2.0, 3.0]  # nats


def test_perplexity_by_hand() -> None:
    assert perplexity(CONTROL, WORDS) == pytest.approx(math.e**2)  # 10 nats, 5 words
    assert perplexity([0.0], [4]) == 1.0
    for scores, words in (([], []), ([-1.0], [0]), ([-1.0], [1, 2])):
        with pytest.raises(ValueError, match="texts"):
            perplexity(scores, words)
    with pytest.raises(ValueError, match="1 of 2 answers couldn't be scored"):
        perplexity([-1.0, math.nan], [1, 1])


def test_increase_by_hand() -> None:
    found = relative_increase(CONTROL, OTHER, WORDS)
    assert found.estimate == pytest.approx(math.exp(14 / 5) / math.exp(10 / 5) - 1)
    # Draws of two documents are both of the first (a quarter), one of each (half), both of the second (a quarter).
    assert (found.low, found.high) == (pytest.approx(math.e**0.5 - 1), pytest.approx(math.e - 1))
    narrow = relative_increase(CONTROL, OTHER, WORDS, level=0.4)  # from the 30th to the 70th percentile
    assert narrow.low == narrow.high == pytest.approx(found.estimate)


def test_the_papers_figures() -> None:
    # Mind the Gap: WMT, CustomNews and arXiv; its perplexities have two digits, its percentages are of more.
    for control, other, increase in ((21.11, 22.45, 6.3), (18.38, 21.33, 16.0), (21.38, 23.07, 7.9)):
        found = relative_increase([-100 * math.log(control)], [-100 * math.log(other)], [100])
        assert 100 * found.estimate == pytest.approx(increase, abs=0.06)


def test_what_is_alike_has_no_increase_and_no_width() -> None:
    same = relative_increase(CONTROL, CONTROL, WORDS)
    assert (same.estimate, same.low, same.high) == (0, 0, 0)
    with pytest.raises(ValueError, match="these are 2 and 1"):
        relative_increase(CONTROL, [-1.0], WORDS)


def test_interval_is_scipys() -> None:
    rng = np.random.default_rng(1)
    words = rng.integers(60, 140, 80).astype(float)
    control = -3.0 * words + rng.normal(0, 20, 80)
    other = control - 0.1 * words + rng.normal(0, 8, 80)
    ours = relative_increase(control.tolist(), other.tolist(), words.tolist())
    theirs = bootstrap(
        (control, other, words),
        lambda c, o, w, axis: np.exp(-o.sum(axis) / w.sum(axis)) / np.exp(-c.sum(axis) / w.sum(axis)) - 1,
        paired=True,
        method="percentile",
        n_resamples=10_000,
        rng=2,
    ).confidence_interval
    width = ours.high - ours.low
    assert ours.low == pytest.approx(theirs.low, abs=0.05 * width)
    assert ours.high == pytest.approx(theirs.high, abs=0.05 * width)


def results(folder: Path, scores: dict[str, float], *, text: str = "x", **doc: str) -> Path:
    """What lm_eval writes for texts of ten words, by day."""
    folder.mkdir()
    (folder / "results_now.json").write_text(json.dumps({"configs": {"kinject_perplexity": {}}}))
    lines = [
        {
            "doc_id": number,
            "doc": {"id": f"t{number}", "date": day, **doc},
            "doc_hash": f"{text}{number}",
            "word_perplexity": [score, 10],
            "byte_perplexity": [score, 50],
        }
        for number, (day, score) in enumerate(scores.items())
    ]
    (folder / "samples_kinject_perplexity_now.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


DAYS = ("2026-02-01", "2026-01-30", "2026-02-28")


def test_the_command_prints_the_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    control = results(tmp_path / "control", dict.fromkeys(DAYS, -10.0))
    other = results(tmp_path / "other", dict.fromkeys(DAYS, -11.0))
    monkeypatch.setattr(sys, "argv", ["kinject", "study", "months", str(other), str(control)])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert not stop.value.code
    assert capsys.readouterr().out.splitlines() == [
        "month     texts   control     other  increase (95 %)",
        "2026-01       1      2.72      3.00  10.5 % (10.5 to 10.5)",
        "2026-02       2      2.72      3.00  10.5 % (10.5 to 10.5)",
        "all           3      2.72      3.00  10.5 % (10.5 to 10.5)",
    ]


def test_months_of_two_results(tmp_path: Path) -> None:
    control = results(tmp_path / "control", dict(zip(DAYS, (-10.0, -10.0, -20.0), strict=True)))
    other = results(tmp_path / "other", dict(zip(DAYS, (-12.0, -11.0, -22.0), strict=True)))
    found = compare(other, control / "results_now.json")
    assert [(one.name, one.documents) for one in found] == [("2026-01", 1), ("2026-02", 2), ("all", 3)]
    assert [one.control for one in found] == pytest.approx([math.e, math.e**1.5, math.exp(4 / 3)])
    assert [one.increase.estimate for one in found] == pytest.approx(
        [math.exp(1 / 10) - 1, math.exp(4 / 20) - 1, math.exp(5 / 30) - 1]
    )
    assert table(found)[2] == "2026-02       2      4.48      5.47  22.1 % (22.1 to 22.1)"
    assert rows(found)[0] | {"low": 0, "high": 0} == {
        "month": "2026-01",
        "documents": 1,
        "control": found[0].control,
        "other": found[0].other,
        "increase": found[0].increase.estimate,
        "low": 0,
        "high": 0,
    }


def test_results_of_other_texts_are_refused(tmp_path: Path) -> None:
    scores = dict.fromkeys(DAYS, -10.0)
    control = results(tmp_path / "control", scores)
    fewer = results(tmp_path / "fewer", {DAYS[0]: -10.0})
    with pytest.raises(ArgumentError, match=r"2 texts are in one .*\(kinject_perplexity/t1, kinject_perplexity/t2\)"):
        compare(fewer, control)
    with pytest.raises(ArgumentError, match="3 texts are in one of the two only, or not the same"):
        compare(results(tmp_path / "edited", scores, text="y"), control)
    undated = results(tmp_path / "undated", scores, date="")
    with pytest.raises(ArgumentError) as caught:
        compare(undated, tmp_path / "nowhere.json")
    assert len(caught.value.problems) == 2
    assert "3 texts without a month" in caught.value.problems[0]
    assert "no such file" in caught.value.problems[1]
