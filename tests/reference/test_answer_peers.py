"""Exact match and F1 against lm_eval's own port of the SQuAD scorer for InfiniteBench, written by others."""

from __future__ import annotations

import random

import pytest
from lm_eval.tasks.infinitebench import utils as peer

from lm_eval_kinject.answers import f1, normalise

WORDS = "The the a An clay Clay tablet, tablets writing-desk U.S. 691.4 $5 million 'quoted' crowns of".split()


def texts(seed, count):
    rng = random.Random(seed)
    return [" ".join(rng.choices(WORDS, k=rng.randint(1, 6))) for _ in range(count)]


def test_normal_forms_are_the_same():
    compared = [text for text in texts(0, 500) if peer._normalize_en(text)]
    assert len(compared) > 400
    assert [normalise(text) for text in compared] == [peer._normalize_en(text).strip() for text in compared]


def test_f1_is_the_same():
    pairs = [
        pair
        for pair in zip(texts(1, 500), texts(2, 500), strict=True)
        if all(peer._normalize_en(text).strip() for text in pair)
    ]
    assert len(pairs) > 400
    found = [f1(*pair) for pair in pairs]
    assert found == pytest.approx([peer._token_f1(*pair) for pair in pairs])
    assert {0.0, 1.0} < set(found)
    assert len(set(found)) > 8
