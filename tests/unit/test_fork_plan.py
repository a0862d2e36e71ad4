"""How a trie is divided into chains and batches, worked out by hand."""

from __future__ import annotations

import math

from lm_eval_kinject.scoring.fork import Branch, Prices, plan_forks
from lm_eval_kinject.scoring.plan import build_trie

# a…b c d          number     0 … 41  42  43  44  45  46  47  48  49
# a…b c e f        token      a …  b   c   d   e   f   x   y   z   u
# a…b x y z u      a…b is 42 tokens long
PREFIX = [*range(100, 142)]
REQUESTS = [[*PREFIX, *rest] for rest in ([3, 4], [3, 5, 6], [7, 8, 9, 10])]


def outline(branch: Branch) -> tuple[range, list[list[int]], list[object]]:
    """The chain, the rows behind it, and the chains behind it."""
    rows = [path.tolist() for path in branch.together]
    return range(branch.start, branch.stop), rows, [outline(child) for child in branch.apart]


def plan(prices: Prices, requests: list[list[int]] = REQUESTS) -> Branch:
    root = plan_forks(build_trie(requests, [[0]] * len(requests)), prices)
    assert (root.start, root.stop) == (0, 0)
    return root


def test_where_forwards_cost_nothing_no_token_is_computed_twice() -> None:
    # c is a chain of its own, d and e f go together behind it; x y z u is one row behind b.
    (found,) = plan(Prices(forward=0, step=1000)).apart
    assert outline(found) == (range(42), [[46, 47, 48, 49]], [(range(42, 43), [[43], [44, 45]], [])])
    assert found.price == 42 + 4 + 1 + (1 + 2)


def test_where_a_forward_costs_more_than_a_token_short_branches_go_together() -> None:
    # Apart, c costs its forward (10 + 1) and that of d and e f (10 + 3); as two rows c d and c e f 5 tokens.
    (found,) = plan(Prices(forward=10, step=1000)).apart
    assert outline(found) == (range(42), [[42, 43], [42, 44, 45], [46, 47, 48, 49]], [])
    assert found.price == (10 + 42) + (10 + 2 + 3 + 4)
    assert (found.rows_afresh, found.rows_one_by_one) == (False, False)


def test_a_row_that_fills_up_a_chunk_goes_one_by_one() -> None:
    # At once: 9 tokens + a forward of 10 + 3 rows of 20 each. One by one: 9 tokens + 4 steps of 5.
    (found,) = plan(Prices(forward=10, step=5, row=20)).apart
    assert (found.rows_afresh, found.rows_one_by_one) == (False, True)
    assert found.price == (10 + 42) + (9 + 4 * 5)


def test_where_going_on_costs_too_much_everything_starts_afresh() -> None:
    # Four steps of 50 cost more than a…b three times, which is one forward of 44 + 45 + 46 tokens.
    root = plan(Prices(forward=10, step=50, at_once=False))
    assert (root.apart, root.rows_afresh, root.price) == ([], True, 10 + 44 + 45 + 46)
    assert [len(path) for path in root.together] == [44, 45, 46]


def test_a_long_chain_starts_afresh_too() -> None:
    # Two questions of 30 tokens behind a common first one, four options each: 29 steps cost more than 30 tokens again.
    requests = [[1, *range(q, q + 29), option] for q in (100, 200) for option in (10, 11, 12, 13)]
    (found,) = plan(Prices(forward=10, step=5, at_once=False), requests).apart
    assert outline(found)[0] == range(1)
    assert [(child.afresh, child.stop - child.start) for child in found.apart] == [(True, 29)] * 2
    assert [len(child.together) for child in found.apart] == [4, 4]
    assert all(child.price == (10 + 30) + (4 + 5) for child in found.apart)  # options one by one: one step


def test_the_lowest_number_runs_second_and_the_dearest_last() -> None:
    requests = [[1, *range(q, q + n), option] for q, n in ((100, 90), (200, 60), (300, 80)) for option in (10, 11)]
    (found,) = plan(Prices(forward=0, step=1000), requests).apart
    assert [child.width - 1 for child in found.apart] == [60, 90, 80]


def test_what_one_row_alone_costs() -> None:
    assert Prices(forward=10, step=3, row=2).onward(tokens=7, rows=2, width=4) == (7 + 4 * 3, True)
    assert Prices(forward=7, step=3, row=2).onward(tokens=7, rows=2, width=4) == (7 + 7 + 4, False)
    assert Prices(forward=10, step=3, one_by_one=False).onward(7, 1, 1) == (17, False)
    assert Prices(forward=10, step=3, at_once=False).onward(7, 1, 100) == (307, True)
    assert Prices(forward=10, step=3, at_once=False, one_by_one=False).onward(7, 1, 1)[0] == math.inf
