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

With chunks of C positions instead of a window, the positions of k and q must lie in the same chunk. Either way a query
sees its ancestors from some position on.

A dense mask would cost the square of the pack. So queries go in tiles of consecutive tokens, and a tile meets only
the stretches of keys that some query of it can see; most of the mask is never made.

The pack reaches the layers through a context variable, not through the model's keyword arguments, which some models
lose on the way. Scores that are capped or share their softmax with a sink are written out, tile by tile, as the models
do it themselves; all others take torch's SDPA.
"""

from __future__ import annotations

import contextlib
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from lm_eval_kinject.scoring.plan import IntArray, Pack, Trie

ATTENTION_NAME = "kinject_shared_prefix"
"""Our name in transformers' attention registry. No mask function has it, so models build no mask of their own."""

_HARMLESS = frozenset(
    {"dropout", "scaling", "sliding_window", "is_causal", "position_ids", "position_embeddings", "use_cache"}
    | {"cache_position", "return_dict", "output_attentions", "output_hidden_states", "output_router_logits"}
)
_TILE_ON_CPU = 64
_TILE_ON_ACCELERATOR = 1024
_WRITTEN_OUT_TILE = 256  # at most, where scores are held for all heads at once
_MERGE_GAP = 32  # stretches of keys closer than this are read as one: copying costs more than masking

Growth = Callable[[torch.Tensor], torch.Tensor]
"""A factor for each of a list of positions."""

KeyValues = dict[int, tuple[torch.Tensor, torch.Tensor]]
"""By attention module: keys ``[1, kv_heads, path, head_dim]`` and values along the current path."""


class UnsupportedAttentionError(RuntimeError):
    """A layer asked for something that this attention doesn't compute exactly; its text says what."""


@dataclass(frozen=True)
class Chunk:
    """A layer whose tokens see back to the start of their own chunk of `size` positions."""

    size: int


Reach = int | Chunk | None
"""How far back a layer's tokens see: a window in positions, their own included; their chunk; everything (None)."""


@dataclass(frozen=True)
class Scores:
    """How a layer turns products of queries and keys into weights, where that isn't scaling and softmax alone.

    Attributes:
        cap: scores are squeezed into ±cap by ``cap * tanh(score / cap)``, before the mask (Gemma-2); None for not.
        sinks: ``[heads]`` one logit a head that takes part in the softmax and is then dropped (gpt-oss); None for none.
    """

    cap: float | None = None
    sinks: torch.Tensor | None = None

    @property
    def plain(self) -> bool:
        """Whether there is neither."""
        return self.cap is None and self.sinks is None


_PLAIN = Scores()
_pack: ContextVar[PackAttention | None] = ContextVar("kinject_pack", default=None)


@dataclass(frozen=True)
class Tile:
    """Queries ``start`` to ``stop`` and the stretches of keys that they meet, as indices into ``path + pack``."""

    start: int
    stop: int
    stretches: tuple[tuple[int, int], ...]


def cut_tiles(positions: IntArray, ends: IntArray, past: int, reach: Reach, size: int) -> list[Tile]:
    """Cuts the queries of a pack into tiles.

    A tile ends when it is full, or where the trie branches off so far up that the next token has little in common
    with the tile's keys.

    Args:
        positions: ``[past + n]`` positions of path and pack.
        ends: ``[past + n]`` subtree ends, as indices into the same list.
        past: length of the path; queries are the rest.
        reach: how far back a query sees.
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
            if reach is not None:
                seen &= positions[:stop] >= _since(positions[start:stop], reach).min()
            tiles.append(Tile(start, stop, _stretches(seen)))
            start = stop
    return tiles


def _since(positions: Any, reach: int | Chunk) -> Any:
    """The earliest position that tokens at `positions` (an array or a tensor) see."""
    return positions // reach.size * reach.size if isinstance(reach, Chunk) else positions - reach + 1


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
        self._tiles: dict[tuple[Reach, int, torch.device, torch.dtype], list[tuple[Tile, torch.Tensor]]] = {}
        self.kept: KeyValues = {}
        self.layers_seen: set[int] = set()

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scaling: float | None,
        reach: Reach,
        scores: Scores = _PLAIN,
    ) -> torch.Tensor:
        """Attention of one layer.

        Args:
            layer: identifies the layer across forwards.
            query: ``[1, heads, n, head_dim]``, rotated.
            key: ``[1, kv_heads, n, head_dim]``, rotated; of this pack alone.
            value: ``[1, kv_heads, n, value_dim]``; of this pack alone.
            scaling: factor on the scores; None for ``head_dim ** -0.5``.
            reach: how far back this layer sees.
            scores: its cap and its sinks, if it has any.

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
        for tile, mask in self._tiles_for(reach, query, scores.plain):
            start, stop = tile.start - self._past_length, tile.stop - self._past_length
            if self.finished and bisect_left(self.scored_rows, start) == bisect_left(self.scored_rows, stop):
                continue
            states = query[:, :, start:stop], _take(key, tile.stretches), _take(value, tile.stretches)
            attended = _sdpa(*states, mask, scaling) if scores.plain else _written_out(*states, mask, scaling, scores)
            out[:, start:stop] = attended.transpose(1, 2)
        return out

    def at_own_positions(self, query: torch.Tensor, growth: Growth) -> torch.Tensor:
        """Queries that the model scaled by their place in the pack, scaled by their position instead.

        Args:
            query: ``[1, heads, n, head_dim]``, each token's already multiplied by ``growth`` of its place in the pack.
            growth: gives the factor for each of a list of positions; never 0.
        """
        positions = torch.as_tensor(self._positions[self._past_length :], device=query.device)
        places = torch.arange(self.n_queries, device=query.device)
        ratio = growth(positions) / growth(places)
        return (query * ratio[:, None]).to(query.dtype)

    def _tiles_for(self, reach: Reach, query: torch.Tensor, plain: bool) -> list[tuple[Tile, torch.Tensor]]:
        """Tiles with masks ``[queries, keys]`` (0 visible, -inf not), made once a pack, reach, size and device."""
        if reach is not None and (reach.size if isinstance(reach, Chunk) else reach) > self._positions.max():
            reach = None  # wider than anything here: share the tiles of the full layers
        size = _TILE_ON_CPU if query.device.type == "cpu" else _TILE_ON_ACCELERATOR
        size = size if plain else min(size, _WRITTEN_OUT_TILE)
        found = self._tiles.get((reach, size, query.device, query.dtype))
        if found is None:
            tiles = cut_tiles(self._positions, self._ends, self._past_length, reach, size)
            positions = torch.as_tensor(self._positions, device=query.device)
            ends = torch.as_tensor(self._ends, device=query.device)
            found = [(tile, _mask(tile, positions, ends, reach, query.dtype)) for tile in tiles]
            self._tiles[reach, size, query.device, query.dtype] = found
        return found


@contextlib.contextmanager
def handed_to_layers(pack: PackAttention) -> Iterator[None]:
    """While entered, layers that call `shared_prefix_attention` in this thread find `pack` there."""
    token = _pack.set(pack)
    try:
        yield
    finally:
        _pack.reset(token)


def _mask(tile: Tile, positions: torch.Tensor, ends: torch.Tensor, reach: Reach, dtype: torch.dtype) -> torch.Tensor:
    """The mask drawn at the top of this file, for the keys of one tile: ``[queries, keys]``, 0 or -inf."""
    device = positions.device
    q = torch.arange(tile.start, tile.stop, device=device)[:, None]
    k = torch.cat([torch.arange(a, b, device=device) for a, b in tile.stretches])[None, :]
    visible = (k <= q) & (q < ends[k])
    if reach is not None:
        visible &= positions[k] >= _since(positions, reach)[q]
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


def _written_out(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor,
    scaling: float | None,
    scores: Scores,
) -> torch.Tensor:
    """Masked attention with grouped heads, a cap and sinks, ``[1, heads, n, dim]``; as the models' eager code has it.

    Products in the states' precision, softmax in float32.
    """
    kv_heads, n = key.shape[1], query.shape[2]
    grouped = query.unflatten(1, (kv_heads, -1)).flatten(2, 3)  # a key head's query heads, one below the other
    logits = grouped @ key.transpose(2, 3) * (query.shape[3] ** -0.5 if scaling is None else scaling)
    if scores.cap is not None:
        logits = logits.div_(scores.cap).tanh_().mul_(scores.cap)
    logits = logits.unflatten(2, (-1, n)).add_(mask)
    if scores.sinks is not None:
        sinks = scores.sinks.to(logits).view(1, kv_heads, -1, 1, 1).expand(*logits.shape[:-1], 1)
        logits = torch.cat([logits, sinks], dim=-1)
    weights = logits.softmax(dim=-1, dtype=torch.float32).to(value.dtype)[..., : key.shape[2]]
    return (weights.flatten(2, 3) @ value).unflatten(2, (-1, n)).flatten(1, 2)


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
        UnsupportedAttentionError: the layer passes a mask or an argument (position bias, chosen keys, …) that this
            attention doesn't know, or no pack is being forwarded.
    """
    pack = _pack.get()
    if pack is None:
        raise UnsupportedAttentionError(f"{type(module).__name__} attends outside a pack's forward")
    scores = Scores(kwargs.pop("softcap", None), kwargs.pop("s_aux", None))
    unknown = sorted(
        name for name, given in kwargs.items() if name not in _HARMLESS and given is not None and given is not False
    )
    if unknown or attention_mask is not None:
        what = ", ".join(unknown) or "a mask of its own"
        raise UnsupportedAttentionError(f"{type(module).__name__} asks its attention for {what}")
    if kwargs.get("is_causal", getattr(module, "is_causal", True)) is False:
        raise UnsupportedAttentionError(f"{type(module).__name__} isn't causal")
    growth = _temperature_by_place(module)
    if growth is not None:
        query = pack.at_own_positions(query, growth)
    reach = _reach(module, kwargs)
    return pack.attend(id(module), query, key, value, kwargs.get("scaling"), reach, scores), None


def _reach(module: torch.nn.Module, said: Mapping[str, Any]) -> Reach:
    """How far back a layer sees: what its call says, else what its configuration says of its kind.

    Models whose masks alone know leave the window out of the call (Qwen2-MoE); chunks are in none (Llama-4).
    """
    if "sliding_window" in said:
        window: int | None = said["sliding_window"]
        return window
    config: Any = getattr(module, "config", None)
    kinds, index = getattr(config, "layer_types", None), getattr(module, "layer_idx", None)
    kind = kinds[index] if kinds and isinstance(index, int) else "full_attention"
    if kind == "chunked_attention":
        return Chunk(int(config.attention_chunk_size))
    return int(config.sliding_window) if kind == "sliding_attention" else None


def _temperature_by_place(module: Any) -> Growth | None:
    """The factor on the queries of a Llama-4 layer without rotary positions, which takes it from their place.

    Its code counts the tokens of the forward, ``floor((place + 1) / floor_scale)``, and never looks at position ids.
    """
    if not getattr(module, "attn_temperature_tuning", False) or getattr(module, "use_rope", True):
        return None
    floor, scale = float(module.floor_scale), float(module.attn_scale)
    return lambda places: torch.log1p(torch.floor((places.float() + 1.0) / floor)) * scale + 1.0
