"""Masks and tiles of tree attention: the drawings by hand, and every tiling against the full mask."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from lm_eval_kinject.scoring.attention import (
    Chunk,
    PackAttention,
    Reach,
    Scores,
    UnsupportedAttentionError,
    cut_tiles,
    handed_to_layers,
    shared_prefix_attention,
)
from lm_eval_kinject.scoring.forward import read_logits
from lm_eval_kinject.scoring.plan import Trie, build_trie, cut_pack

EMPTY = np.empty(0, np.int64)


def visible(attention: PackAttention, n: int, reach: Reach) -> list[str]:
    """Who sees whom, one line a query, by feeding values that name their key."""
    query, key = torch.zeros(1, 1, n, 4), torch.zeros(1, 1, n, 4)
    value = torch.eye(n).expand(1, 1, n, n)
    weights = attention.attend(0, query, key, value, None, reach)[0, :, 0]
    return ["".join("■" if weight > 0 else "⬚" for weight in row) for row in weights]


def drawn_trie() -> Trie:
    return build_trie([[10, 11, 12, 13], [10, 11, 14, 15]], [[1], [1]])


def test_the_drawings() -> None:
    trie = drawn_trie()
    whole = cut_pack(trie, 0, EMPTY, 99, 99)
    assert visible(PackAttention(trie, whole, {}), 6, None) == [
        "■⬚⬚⬚⬚⬚",
        "■■⬚⬚⬚⬚",
        "■■■⬚⬚⬚",
        "■■■■⬚⬚",
        "■■⬚⬚■⬚",
        "■■⬚⬚■■",
    ]
    assert visible(PackAttention(trie, whole, {}), 6, 3) == [
        "■⬚⬚⬚⬚⬚",
        "■■⬚⬚⬚⬚",
        "■■■⬚⬚⬚",
        "⬚■■■⬚⬚",
        "■■⬚⬚■⬚",
        "⬚■⬚⬚■■",
    ]
    assert visible(PackAttention(trie, whole, {}), 6, Chunk(2)) == [
        "■⬚⬚⬚⬚⬚",
        "■■⬚⬚⬚⬚",
        "⬚⬚■⬚⬚⬚",
        "⬚⬚■■⬚⬚",
        "⬚⬚⬚⬚■⬚",
        "⬚⬚⬚⬚■■",
    ]


@pytest.mark.parametrize("size", [1, 2, 5, 64])
@pytest.mark.parametrize("reach", [None, 1, 4, Chunk(1), Chunk(5)])
def test_tiles_hold_every_visible_key(size: int, reach: Reach) -> None:
    rng = np.random.default_rng(0)
    inputs = [[1, *rng.integers(0, 3, rng.integers(1, 12)).tolist()] for _ in range(30)]
    trie = build_trie(inputs, [[0]] * 30)
    numbers = np.arange(len(trie))
    for past in (0, 5):
        tiles = cut_tiles(trie.positions, trie.ends, past, reach, size)
        assert [q for tile in tiles for q in range(tile.start, tile.stop)] == list(range(past, len(trie)))
        for tile in tiles:
            assert tile.stop - tile.start <= size
            met = {k for a, b in tile.stretches for k in range(a, b)}
            for q in range(tile.start, tile.stop):
                seen = (numbers <= q) & (q < trie.ends)
                if isinstance(reach, Chunk):
                    seen &= trie.positions // reach.size == trie.positions[q] // reach.size
                elif reach is not None:
                    seen &= trie.positions[q] - trie.positions < reach
                assert set(np.flatnonzero(seen).tolist()) <= met


def test_a_tile_skips_what_only_others_see() -> None:
    # Two long branches: the second one's tile must not read the first one's keys.
    trie = build_trie([[1, *range(100, 300)], [1, *range(300, 500)]], [[0], [0]])
    tiles = cut_tiles(trie.positions, trie.ends, 0, None, 64)
    last = tiles[-1]
    assert last.stretches == ((0, 1), (201, 401))
    assert sum(b - a for a, b in cut_tiles(trie.positions, trie.ends, 0, 10, 64)[-1].stretches) <= 64 + 10


@pytest.mark.parametrize("heads", [(4, 4), (4, 2), (6, 1)])
def test_grouped_heads_agree_with_the_textbook(heads: tuple[int, int]) -> None:
    trie = drawn_trie()
    pack = cut_pack(trie, 0, EMPTY, 99, 99)
    torch.manual_seed(0)
    query, key = torch.randn(1, heads[0], 6, 8), torch.randn(1, heads[1], 6, 8)
    value = torch.randn(1, heads[1], 6, 5)
    ours = PackAttention(trie, pack, {}).attend(0, query, key, value, 0.3, None)[0]
    numbers = torch.arange(6)
    mask = (numbers[None] <= numbers[:, None]) & (numbers[:, None] < torch.as_tensor(trie.ends)[None])
    for head in range(heads[0]):
        group = head * heads[1] // heads[0]
        scores = (query[0, head] @ key[0, group].T * 0.3).masked_fill(~mask, float("-inf"))
        torch.testing.assert_close(ours[:, head], scores.softmax(-1) @ value[0, group])


def test_a_layer_that_runs_twice_is_refused() -> None:
    trie = drawn_trie()
    attention = PackAttention(trie, cut_pack(trie, 0, EMPTY, 99, 99), {})
    states = torch.zeros(1, 1, 6, 4)
    attention.attend(1, states, states, states, None, None)
    with pytest.raises(UnsupportedAttentionError, match="twice"):
        attention.attend(1, states, states, states, None, None)


@pytest.mark.parametrize(
    ("name", "value"), [("position_bias", torch.zeros(4)), ("indices", torch.zeros(4)), ("is_causal", False)]
)
def test_what_is_not_known_is_refused(name: str, value: object) -> None:
    trie = drawn_trie()
    attention = PackAttention(trie, cut_pack(trie, 0, EMPTY, 99, 99), {})
    states = torch.zeros(1, 1, 6, 4)
    layer = torch.nn.Identity()
    with handed_to_layers(attention):
        with pytest.raises(UnsupportedAttentionError, match="causal" if name == "is_causal" else name):
            shared_prefix_attention(layer, states, states, states, None, **{name: value})
        with pytest.raises(UnsupportedAttentionError, match="mask"):
            shared_prefix_attention(layer, states, states, states, states)
        shared_prefix_attention(layer, states, states, states, None)
    with pytest.raises(UnsupportedAttentionError, match="outside a pack's forward"):
        shared_prefix_attention(layer, states, states, states, None)


@pytest.mark.parametrize("heads", [(4, 4), (4, 2), (6, 1)])
@pytest.mark.parametrize("cap", [None, 0.7])
@pytest.mark.parametrize("with_sinks", [True, False])
def test_caps_and_sinks_agree_with_the_textbook(heads: tuple[int, int], cap: float | None, with_sinks: bool) -> None:
    trie = drawn_trie()
    pack = cut_pack(trie, 0, EMPTY, 99, 99)
    torch.manual_seed(0)
    query, key = torch.randn(1, heads[0], 6, 8), torch.randn(1, heads[1], 6, 8)
    value = torch.randn(1, heads[1], 6, 5)
    sinks = torch.randn(heads[0]) if with_sinks else None
    scores = Scores(cap, sinks)
    assert scores.plain is (cap is None and not with_sinks)
    ours = PackAttention(trie, pack, {}).attend(0, query, key, value, 0.9, None, scores)[0]
    for head in range(heads[0]):
        group = head * heads[1] // heads[0]
        for q in range(6):
            ancestors = [k for k in range(6) if k <= q < trie.ends[k]]
            scaled = [float(query[0, head, q] @ key[0, group, k]) * 0.9 for k in ancestors]
            weights = [math.exp(cap * math.tanh(score / cap) if cap else score) for score in scaled]
            total = sum(weights) + (math.exp(float(sinks[head])) if sinks is not None else 0)
            expected = sum(
                (w / total * value[0, group, k] for w, k in zip(weights, ancestors, strict=True)), torch.zeros(5)
            )
            torch.testing.assert_close(ours[q, head], expected)


def test_a_temperature_by_place_is_turned_into_one_by_position() -> None:
    # The drawn trie's places 0 to 5 stand at positions 0 1 2 3 2 3; place 4 was scaled by 14 and belongs at 12.
    trie = drawn_trie()
    attention = PackAttention(trie, cut_pack(trie, 0, EMPTY, 99, 99), {})
    query = (10.0 + torch.arange(6))[None, None, :, None].expand(1, 2, 6, 3)
    scaled = attention.at_own_positions(query, lambda places: 10.0 + places)
    expected = torch.tensor([10.0, 11.0, 12.0, 13.0, 12.0, 13.0])
    torch.testing.assert_close(scaled, expected[None, None, :, None].expand(1, 2, 6, 3))


def test_reading_logits_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    logits = torch.randn(7, 11)
    rows, targets = np.array([6, 0, 0, 3]), np.array([2, 5, 5, 10])
    targets[3] = int(logits[3].argmax())
    expected = torch.log_softmax(logits, -1)[rows, targets].double().numpy()
    for at_once in (1, 25, 10**6):
        monkeypatch.setattr("lm_eval_kinject.scoring.forward._LOGITS_AT_ONCE", {"cpu": at_once})
        log_probs, greedy = read_logits(logits, rows, targets)
        np.testing.assert_allclose(log_probs, expected, atol=1e-6)
        assert greedy.tolist() == [bool(logits[r].argmax() == t) for r, t in zip(rows, targets, strict=True)]
        assert greedy[3]


def test_no_rows_no_answers() -> None:
    log_probs, greedy = read_logits(torch.empty(0, 5), EMPTY, EMPTY)
    assert len(log_probs) == len(greedy) == 0
