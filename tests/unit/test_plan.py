"""The token trie: values worked out by hand, and agreement with a plain walk over the token lists."""

from __future__ import annotations

import random

import numpy as np
import pytest

from lm_eval_kinject.scoring.plan import Pack, Trie, build_trie, common_prefix, cut_pack

A, B, C, D, E, F, X, Y, Z, U = range(10, 20)


def random_requests(seed: int, n: int = 40) -> tuple[list[list[int]], list[list[int]]]:
    """Inputs that share prefixes of all lengths, with repeats and prefixes of each other; and their scored tails."""
    rng = random.Random(seed)
    inputs: list[list[int]] = [[1]]
    while len(inputs) < n:
        stem = rng.choice(inputs)
        inputs.append(stem[: rng.randint(1, len(stem))] + [rng.randrange(4) for _ in range(rng.randrange(6))])
    return inputs, [[rng.randrange(9) for _ in range(rng.randint(1, len(ids)))] for ids in inputs]


def ancestors(trie: Trie, token: int) -> list[int]:
    """Of a token, itself included, root first; by walking back to the nearest lower position each time."""
    chain = [token]
    for other in range(token - 1, -1, -1):
        if trie.positions[other] == trie.positions[chain[-1]] - 1:
            chain.append(other)
    return chain[::-1]


def packs_of(trie: Trie, max_tokens: int, max_rows: int) -> list[Pack]:
    packs: list[Pack] = []
    path = np.empty(0, np.int64)
    while not packs or packs[-1].stop < len(trie):
        packs.append(cut_pack(trie, packs[-1].stop if packs else 0, path, max_tokens, max_rows))
        path = packs[-1].next_path
    return packs


def test_the_drawing() -> None:
    inputs = [[A, B, C, D], [A, B, C, E, F], [A, B, X, Y, Z, U], [A, B]]
    trie = build_trie(inputs, [[7], [7], [8, 9], [7]])
    assert trie.tokens.tolist() == [A, B, C, D, E, F, X, Y, Z, U]
    assert trie.positions.tolist() == [0, 1, 2, 3, 3, 4, 2, 3, 4, 5]
    assert trie.ends.tolist() == [10, 10, 6, 4, 6, 6, 10, 10, 10, 10]
    assert trie.offsets.tolist() == [0, 1, 2, 4, 5]
    assert trie.rows.tolist() == [3, 5, 8, 9, 1]
    assert trie.targets.tolist() == [7, 7, 8, 9, 7]
    assert trie.scored_rows.tolist() == [1, 3, 5, 8, 9]
    assert sorted(trie.separate_lengths.tolist()) == [2, 4, 5, 6]


def test_one_input_can_be_read_off_more_than_once() -> None:
    trie = build_trie([[A, B], [A, B], [A, B]], [[5], [6], [B, 6]])
    assert len(trie) == 2
    assert trie.rows.tolist() == [1, 1, 0, 1]
    assert trie.targets.tolist() == [5, 6, B, 6]
    assert trie.separate_lengths.tolist() == [2]
    assert trie.n_requests == 3


def test_nothing_in_nothing_out() -> None:
    trie = build_trie([], [])
    assert len(trie) == 0
    assert trie.n_requests == 0


def test_ids_beyond_one_byte_keep_their_order_and_value() -> None:
    trie = build_trie([[1, 70_000], [1, 256], [1, 255]], [[1], [1], [1]])
    assert trie.tokens.tolist() == [1, 255, 256, 70_000]
    assert trie.rows.tolist() == [3, 2, 1]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("first", [None, 7, 23])
def test_every_request_is_a_path_and_every_prefix_is_there_once(seed: int, first: int | None) -> None:
    inputs, scored = random_requests(seed)
    trie = build_trie(inputs, scored, first=first)
    prefixes = {tuple(ids[: n + 1]) for ids in inputs for n in range(len(ids))}
    assert sorted(prefixes) == sorted(tuple(trie.tokens[ancestors(trie, t)].tolist()) for t in range(len(trie)))
    for request, (ids, option) in enumerate(zip(inputs, scored, strict=True)):
        own = slice(trie.offsets[request], trie.offsets[request + 1])
        assert trie.targets[own].tolist() == option
        leaf = int(trie.rows[own][-1])
        chain = ancestors(trie, leaf)
        assert trie.tokens[chain].tolist() == ids
        assert trie.rows[own].tolist() == chain[len(ids) - len(option) :]
        if request == first:
            assert chain == list(range(len(ids)))


@pytest.mark.parametrize("seed", range(3))
def test_an_ancestor_is_an_interval(seed: int) -> None:
    trie = build_trie(*random_requests(seed), first=3)
    for q in range(len(trie)):
        assert [k for k in range(q + 1) if q < trie.ends[k]] == ancestors(trie, q)


@pytest.mark.parametrize(("max_tokens", "max_rows"), [(10**6, 10**6), (7, 10**6), (10**6, 3), (5, 2), (1, 1)])
def test_packs_cover_the_trie_once_and_know_their_path(max_tokens: int, max_rows: int) -> None:
    trie = build_trie(*random_requests(11))
    packs = packs_of(trie, max_tokens, max_rows)
    assert [t for pack in packs for t in range(pack.start, pack.stop)] == list(range(len(trie)))
    assert sum(pack.n_tokens for pack in packs) == len(trie)
    for pack in packs:
        assert pack.path.tolist() == ancestors(trie, pack.start)[:-1]
        assert pack.n_tokens <= max_tokens
        rows = [row for row in trie.scored_rows if pack.start <= row < pack.stop]
        assert len(rows) <= max_rows
        assert trie.positions[pack.path].tolist() == list(range(len(pack.path)))
    assert packs[-1].next_path.size == 0


def test_a_smaller_budget_can_take_over_anywhere() -> None:
    trie = build_trie(*random_requests(2))
    first = cut_pack(trie, 0, np.empty(0, np.int64), 13, 100)
    again = cut_pack(trie, first.stop, first.next_path, 6, 100)
    assert again.path.tolist() == ancestors(trie, 13)[:-1]
    assert again.n_tokens == 6


def test_common_prefix() -> None:
    lengths = [
        common_prefix(np.array(a), np.array(b))
        for a, b in [([1, 2, 3], [1, 2, 4]), ([1, 2], [1, 2, 3]), ([5], [6]), ([1, 2], [1, 2])]
    ]
    assert lengths == [2, 2, 0, 2]
