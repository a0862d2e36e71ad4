"""Orders of chunks: the permutations of Jin et al. 2024, worked by hand."""

from __future__ import annotations

import pytest

from lm_eval_kinject.context.compose import Composer
from lm_eval_kinject.context.order import Relevance, Reverse, Sides
from lm_eval_kinject.records import Chunk, Hit


def hits(k):
    return [Hit(Chunk(id=f"c{rank}", text=f"t{rank}"), 1 / rank, rank) for rank in range(1, k + 1)]


@pytest.mark.parametrize(
    ("k", "ranks"),
    [
        (0, []),
        (1, [1]),
        (2, [1, 2]),
        (3, [1, 3, 2]),
        (4, [1, 3, 4, 2]),
        (5, [1, 3, 5, 4, 2]),
        (6, [1, 3, 5, 6, 4, 2]),
        (7, [1, 3, 5, 7, 6, 4, 2]),
    ],
)
def test_sides(k, ranks):
    assert [hit.rank for hit in Sides().arrange(hits(k))] == ranks


@pytest.mark.parametrize("k", range(12))
def test_every_order_is_a_permutation_and_sides_is_the_formula(k):
    for order in (Relevance(), Reverse(), Sides()):
        assert sorted(hit.rank for hit in order.arrange(hits(k))) == list(range(1, k + 1))
    place = {hit.rank: at for at, hit in enumerate(Sides().arrange(hits(k)), start=1)}
    assert all(place[i] == ((i + 1) / 2 if i % 2 else (k + 1) - i / 2) for i in range(1, k + 1))
    assert [hit.rank for hit in Reverse().arrange(hits(k))] == list(range(k, 0, -1))


def test_the_budget_drops_the_lowest_rank_whatever_the_order():
    template = "{% for c in chunks %}{{ c.text }} {% endfor %}"
    for order, text, used in ((Reverse(), "t3 t2 t1 ", "c3 c2 c1"), (Sides(), "t1 t3 t2 ", "c1 c3 c2")):
        composer = Composer(lambda written: len(written.split()), (), template, order)
        made = composer.compose(hits(5), 3, where="")
        assert (made.text, " ".join(made.used), made.dropped) == (text, used, ("c5", "c4"))
