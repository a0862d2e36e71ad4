"""Near-duplicates by MinHash: against the exact Jaccard similarity of runs of three words."""

from __future__ import annotations

import random
import sys

import pytest

from lm_eval_kinject.corpus.duplicates import NearDuplicates
from lm_eval_kinject.errors import CorpusError


def runs(words: list[str]) -> set[tuple[str, ...]]:
    return {tuple(words[i : i + 3]) for i in range(len(words) - 2)}


def test_they_are_those_that_exact_jaccard_finds() -> None:
    rng = random.Random(5)
    likeness = []
    for _ in range(100):
        words = [f"w{rng.randrange(5000)}" for _ in range(300)]
        other = list(words)
        for place in rng.sample(range(300), rng.choice((0, 1, 2, 60, 150))):
            other[place] = "changed"
        one, two = runs(words), runs(other)
        jaccard = len(one & two) / len(one | two)
        kept = NearDuplicates(0.8).keep([" ".join(words), " ".join(other).upper()])
        assert kept[0]
        if abs(jaccard - 0.8) > 0.12:  # three standard errors of 128 hash values
            assert kept[1] == (jaccard < 0.8), jaccard
            likeness.append(jaccard > 0.8)
    assert len(likeness) > 90
    assert 30 < sum(likeness) < 80


def test_a_dropped_text_is_compared_with_no_more_and_calls_go_on() -> None:
    finder = NearDuplicates()
    a, b = " ".join(f"a{i}" for i in range(50)), " ".join(f"b{i}" for i in range(50))
    assert finder.keep([a, b, a]) == [True, True, False]
    assert finder.keep(["", "two words", "two words", "", b]) == [True, True, False, False, False]


def test_without_the_library_it_is_named(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "rensa", None)
    with pytest.raises(CorpusError, match=r"pip install 'lm-eval-kinject\[corpus\]'"):
        NearDuplicates()
