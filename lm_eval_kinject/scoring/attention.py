"""Exact attention over one pack of a token trie: the function that stock modelling code calls in place of SDPA.

For: any transformers model that hands its attention to a registered function (``_supports_attention_backend``). Its
own code computes queries, keys and values from explicit position ids; only who-sees-whom is ours. Not for: deciding
which models qualify (`support`), or which tokens are forwarded (`plan`).

The one idea: with tokens in preorder, key k is visible to query q when ``k <= q < end[k]`` (k is an ancestor of q, or
q itself) and, in a layer with a window of W tokens, ``position[q] - position[k] < W``. Positions are those of the
request, never the packed order. A context ``a b`` with the options ``c d`` and ``e f``, window 3 at the right:

              a b c d e f                a b c d e f
    0 a       ■ ⬚ ⬚ ⬚ ⬚ ⬚      0 a       ■ ⬚ ⬚ ⬚ ⬚ ⬚
    1 b       ■ ■ ⬚ ⬚ ⬚ ⬚      1 b       ■ ■ ⬚ ⬚ ⬚ ⬚
    2 c       ■ ■ ■ ⬚ ⬚ ⬚      2 c       ■ ■ ■ ⬚ ⬚ ⬚
    3 d       ■ ■ ■ ■ ⬚ ⬚      3 d       ⬚ ■ ■ ■ ⬚ ⬚
    2 e       ■ ■ ⬚ ⬚ ■ ⬚      2 e       ■ ■ ⬚ ⬚ ■ ⬚
    3 f       ■ ■ ⬚ ⬚ ■ ■      3 f       ⬚ ■ ⬚ ⬚ ■ ■

A dense mask would cost the square of the pack. So queries go in tiles of consecutive tokens, and a tile meets only
the stretches of keys that some query of it can see; most of the mask is never made.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from lm_eval_kinject.scoring.plan import IntArray, Pack, Trie

ATTENTION_NAME = "kinject_shared_prefix"
"""Our name in transformers' attention registry. No mask function has it, so models build no mask of their own."""

PACK_ARGUMENT = "kinject_pack"
"""The keyword under which a `PackAttention` travels through the model's forward to each attention layer."""

_HARMLESS = frozenset(
    {"dropout", "scaling", "sliding_window", "is_causal", "position_ids", "position_embeddings", "use_cache"}
    | {"cache_position", "return_dict", "output_attentions", "output_hidden_states", "output_router_logits"}
)
_TILE_ON_CPU = 64
_TILE_ON_ACCELERATOR = 1024
_MERGE_GAP = 32  # stretches of keys closer than this are read as one: copying costs more than masking

KeyValues = dict[int, tuple[torch.Tensor, torch.Tensor]]
"""By attention module: keys ``[1, kv_heads, path, head_dim]`` and values along the current path."""


class UnsupportedAttentionError(RuntimeError):
    """A layer asked for something that this attention doesn't compute exactly; its text says what."""


@dataclass(frozen=True)
class Tile:
    """Queries ``start`` to ``stop`` and the stretches of keys that they meet, as indices into ``path + pack``."""

    start: int
    stop: int
    stretches: tuple[tuple[int, int], ...]


def cut_tiles(positions: IntArray, ends: IntArray, past: int, window: int | None, size: int) -> list[Tile]:
    """Cuts the queries of a pack into tiles.

    A tile ends when it is full, or where the trie branches off so far up that the next token has little in common
    with the tile's keys.

    Args:
        positions: ``[past + n]`` positions of path and pack.
        ends: ``[past + n]`` subtree ends, as indices into the same list.
        past: length of the path; queries are the rest.
        window: how many positions a query sees, its own included; None for all.
        size: most queries in a tile.
    """
    total = len(positions)
    left_behind = positions[past : total - 1] + 1 - positions[past + 1 :]
    borders = [*(past + 1 + np.flatnonzero(left_behind >= max(1, size // 2))).tolist(), total]
    tiles, start = [], past
    for border in borders:
        while start < border:
            stop = min(start + size, border)
            seen = ends[:stop] > start
            if window is not None:
                seen &= positions[:stop] > positions[start:stop].min() - window
            tiles.append(Tile(start, stop, _stretches(seen)))
            start = stop
    return tiles


def _stretches(seen: Any) -> tuple[tuple[int, int], ...]:
    """Intervals that cover the True entries of `seen`, small gaps included."""
    index = np.flatnonzero(seen)
    breaks = np.flatnonzero(np.diff(index) > _MERGE_GAP)
    firsts, lasts = index[np.r_[0, breaks + 1]], index[np.r_[breaks, len(index) - 1]]
    return tuple((int(a), int(b) + 1) for a, b in zip(firsts, lasts, strict=True))


class PackAttention:
    """What the attention layers need to know during the forward of one pack, and what they leave for the next.

    Args:
        trie: the trie.
        pack: the pack being forwarded.
        past: keys and values along ``pack.path``, as the forward before left them in `kept`.
        last_layer: the last attention layer, if known: there, queries near no scored row are left out.

    Attributes:
        n_queries: tokens in the pack.
        scored_rows: which of them have their logits read, ascending.
        finished: whether the last layer is done.
        kept: keys and values along ``pack.next_path``, filled layer by layer. `past` stays as it is, so a forward
            that ran out of memory can be repeated with a smaller pack.
    """

    def __init__(
        self,
        trie: Trie,
        pack: Pack,
        past: Mapping[int, tuple[torch.Tensor, torch.Tensor]],
        last_layer: int | None = None,
    ) -> None:
        members = pack.members
        first, last = np.searchsorted(trie.scored_rows, [pack.start, pack.stop])
        self.n_queries = pack.n_tokens
        self.scored_rows: list[int] = (trie.scored_rows[first:last] - pack.start).tolist()
        self.finished = False
        self._last_layer = last_layer
        self._past_length = len(pack.path)
        self._positions = trie.positions[members]
        self._ends = trie.ends[members] - pack.start + self._past_length
        self._keep = pack.keep
        self._past = past
        self._tiles: dict[tuple[int | None, torch.device, torch.dtype], list[tuple[Tile, torch.Tensor]]] = {}
        self.kept: KeyValues = {}
        self.layers_seen: set[int] = set()

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scaling: float | None,
        window: int | None,
    ) -> torch.Tensor:
        """Attention of one layer.

        Args:
            layer: identifies the layer across forwards.
            query: ``[1, heads, n, head_dim]``, rotated.
            key: ``[1, kv_heads, n, head_dim]``, rotated; of this pack alone.
            value: ``[1, kv_heads, n, value_dim]``; of this pack alone.
            scaling: factor on the scores; None for ``head_dim ** -0.5``.
            window: this layer's window in positions, or None.

        Returns:
            ``[1, n, heads, value_dim]``.
        """
        if layer in self.layers_seen:
            raise UnsupportedAttentionError("one attention layer is used twice in a forward")
        if self.finished:
            raise UnsupportedAttentionError("attention goes on after its last layer")
        self.layers_seen.add(layer)
        if self._past_length:
            past_key, past_value = self._past[layer]
            key, value = torch.cat([past_key, key], dim=2), torch.cat([past_value, value], dim=2)
        if len(self._keep):
            keep = torch.as_tensor(self._keep, device=key.device)
            self.kept[layer] = key.index_select(2, keep), value.index_select(2, keep)

        self.finished = layer == self._last_layer
        out = query.new_zeros(1, query.shape[2], query.shape[1], value.shape[3])
        for tile, mask in self._tiles_for(window, query):
            start, stop = tile.start - self._past_length, tile.stop - self._past_length
            if self.finished and bisect_left(self.scored_rows, start) == bisect_left(self.scored_rows, stop):
                continue
            attended = _sdpa(
                query[:, :, start:stop], _take(key, tile.stretches), _take(value, tile.stretches), mask, scaling
            )
            out[:, start:stop] = attended.transpose(1, 2)
        return out

    def _tiles_for(self, window: int | None, query: torch.Tensor) -> list[tuple[Tile, torch.Tensor]]:
        """Tiles with their masks ``[queries, keys]`` (0 visible, -inf not), made once a pack, window and device."""
        if window is not None and window > self._positions.max():
            window = None  # wider than anything here: share the tiles of the full layers
        found = self._tiles.get((window, query.device, query.dtype))
        if found is None:
            size = _TILE_ON_CPU if query.device.type == "cpu" else _TILE_ON_ACCELERATOR
            tiles = cut_tiles(self._positions, self._ends, self._past_length, window, size)
            positions = torch.as_tensor(self._positions, device=query.device)
            ends = torch.as_tensor(self._ends, device=query.device)
            found = [(tile, _mask(tile, positions, ends, window, query.dtype)) for tile in tiles]
            self._tiles[window, query.device, query.dtype] = found
        return found


def _mask(
    tile: Tile, positions: torch.Tensor, ends: torch.Tensor, window: int | None, dtype: torch.dtype
) -> torch.Tensor:
    """The mask drawn at the top of this file, for the keys of one tile: ``[queries, keys]``, 0 or -inf."""
    device = positions.device
    q = torch.arange(tile.start, tile.stop, device=device)[:, None]
    k = torch.cat([torch.arange(a, b, device=device) for a, b in tile.stretches])[None, :]
    visible = (k <= q) & (q < ends[k])
    if window is not None:
        visible &= positions[q] - positions[k] < window
    return torch.zeros(visible.shape, dtype=dtype, device=device).masked_fill_(~visible, float("-inf"))


def _take(states: torch.Tensor, stretches: tuple[tuple[int, int], ...]) -> torch.Tensor:
    """The given stretches of ``[1, heads, keys, dim]``, one after the other; a view if there is only one."""
    parts = [states[:, :, a:b] for a, b in stretches]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)


def _sdpa(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor, scaling: float | None
) -> torch.Tensor:
    """Masked attention with grouped heads, ``[1, heads, n, dim]``.

    Each key head serves its group of query heads as a batch entry of its own, repeated by a stride of 0. The CPU
    kernel reads that without a copy; elsewhere the repetition is written out, because kernels differ in what they
    take.
    """
    kv_heads = key.shape[1]
    groups = query.shape[1] // kv_heads
    if groups == 1:
        return torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scaling)
    grouped = query[0].unflatten(0, (kv_heads, groups))
    key, value = (states[0].unsqueeze(1).expand(-1, groups, -1, -1) for states in (key, value))
    if query.device.type != "cpu":
        key, value = key.contiguous(), value.contiguous()
    out = torch.nn.functional.scaled_dot_product_attention(grouped, key, value, attn_mask=mask, scale=scaling)
    return out.flatten(0, 1).unsqueeze(0)


def shared_prefix_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """The registered attention function; see transformers' ``AttentionInterface`` for the calling convention.

    Raises:
        UnsupportedAttentionError: the layer passes a mask or an argument (soft cap, sinks, position bias, …) that
            this attention doesn't know, or the model's forward didn't hand the pack through.
    """
    pack = kwargs.pop(PACK_ARGUMENT, None)
    if not isinstance(pack, PackAttention):
        raise UnsupportedAttentionError(f"{type(module).__name__} doesn't receive the forward's keyword arguments")
    unknown = sorted(
        name for name, given in kwargs.items() if name not in _HARMLESS and given is not None and given is not False
    )
    if unknown or attention_mask is not None:
        what = ", ".join(unknown) or "a mask of its own"
        raise UnsupportedAttentionError(f"{type(module).__name__} asks its attention for {what}")
    if kwargs.get("is_causal", getattr(module, "is_causal", True)) is False:
        raise UnsupportedAttentionError(f"{type(module).__name__} isn't causal")
    attended = pack.attend(id(module), query, key, value, kwargs.get("scaling"), kwargs.get("sliding_window"))
    return attended, None
