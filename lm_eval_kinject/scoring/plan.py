"""The token trie of all requests, laid out so that one comparison answers "is this token an ancestor of that one?".

For: turning many (context, option) token lists into the shortest list of tokens that has to be forwarded, and cutting
that list into packs that fit a budget. Not for: anything with tensors, models or masks (`attention`, `forward`).

The one idea: number the trie's tokens in preorder. Then a subtree is an interval, and so "k is an ancestor of q, or q
itself" is ``k <= q < end[k]``. Few-shot headers, nested chunk lists and options need no words of their own: all are
prefixes. Four requests over the context ``a b`` make ten tokens out of seventeen:

    a b c d      token     a  b  c  d  e  f  x  y  z  u
    a b c e f    number    0  1  2  3  4  5  6  7  8  9
    a b x y z u  position  0  1  2  3  3  4  2  3  4  5
    a b          end      10 10  6  4  6  6 10 10 10 10

A pack is a slice of the numbers. What it needs from before is its first token's ancestors, and those alone: the path.
So keys and values are held along one path, each token is forwarded once whatever the budget, and a pack that did not
fit in memory is simply cut again, shorter, at the same place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Trie:
    """All distinct prefixes of the requests, in preorder, and what has to be read off at which of them.

    Attributes:
        tokens: ``[n]`` token ids.
        positions: ``[n]`` depth of each token, which is its position in every request that passes through it.
        ends: ``[n]`` one past the last token of each token's subtree.
        rows: ``[s]`` the token after which an option token is scored; request by request, in order.
        targets: ``[s]`` the option token scored there.
        offsets: ``[requests + 1]`` request ``r`` owns ``rows[offsets[r]:offsets[r + 1]]``.
        separate_lengths: the lengths of the distinct inputs, which is what scoring them one by one would forward.
    """

    tokens: IntArray
    positions: IntArray
    ends: IntArray
    rows: IntArray
    targets: IntArray
    offsets: IntArray
    separate_lengths: IntArray

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def n_requests(self) -> int:
        """How many requests went in, repeats included."""
        return len(self.offsets) - 1

    @cached_property
    def scored_rows(self) -> IntArray:
        """The distinct tokens at which logits are needed, ascending."""
        return np.unique(self.rows)


@dataclass(frozen=True, eq=False)
class Pack:
    """One forward: tokens ``start`` to ``stop`` of the trie, on top of the keys and values of `path`.

    Attributes:
        start: first token's number.
        stop: one past the last token's number.
        path: numbers of the ancestors of token `start`; the i-th has position i.
        keep: which of ``path + pack`` (indices into the two, one after the other) are ancestors of token `stop`.
    """

    start: int
    stop: int
    path: IntArray
    keep: IntArray

    @property
    def n_tokens(self) -> int:
        """Tokens forwarded by this pack."""
        return self.stop - self.start

    @property
    def members(self) -> IntArray:
        """Numbers of the tokens whose keys this pack may see: ``path + pack``."""
        return np.concatenate([self.path, np.arange(self.start, self.stop)])

    @property
    def next_path(self) -> IntArray:
        """The path on which the pack after this one builds."""
        return self.members[self.keep]


def build_trie(inputs: Sequence[Sequence[int]], scored: Sequence[Sequence[int]], first: int | None = None) -> Trie:
    """Builds the trie of `inputs`, and notes where the `scored` tokens are read off.

    Args:
        inputs: token ids of each request as the model sees them: context and option without the last option token,
            already truncated. At least as long as the option.
        scored: token ids of each request's option, never empty; token j is predicted at input position
            ``len(inputs[r]) - len(scored[r]) + j``.
        first: a request whose tokens shall have the lowest numbers; without it, branches are in order of token id.

    Returns:
        The trie; its requests are in the order given.
    """
    arrays = [np.asarray(ids, dtype=np.int64) for ids in inputs]
    # Big-endian bytes sort like the token lists they spell, and compare at the speed of memcmp.
    keys = [array.astype(">u4").tobytes() for array in arrays]
    # Whatever leaves the path of `first` later is numbered earlier, which keeps every subtree in one piece.
    leaves = [0 if first is None else -common_prefix(array, arrays[first]) for array in arrays]
    order = sorted(range(len(keys)), key=lambda request: (leaves[request], keys[request]))

    total = sum(map(len, arrays))
    tokens, positions = np.empty(total, np.int64), np.empty(total, np.int64)
    ends = np.empty(total, np.int64)
    path = np.empty(max(map(len, arrays), default=0), np.int64)  # number of the open token at each position
    rows: list[IntArray] = [path] * len(arrays)
    separate: list[int] = []
    size = depth = 0
    previous = -1
    for request in order:
        ids = arrays[request]
        shared = common_prefix(arrays[previous], ids) if previous >= 0 else 0
        ends[path[shared:depth]] = size  # these branches are closed
        fresh = len(ids) - shared
        path[shared : len(ids)] = tokens_at = np.arange(size, size + fresh)
        tokens[tokens_at], positions[tokens_at] = ids[shared:], np.arange(shared, len(ids))
        size, depth = size + fresh, len(ids)
        rows[request] = path[depth - len(scored[request]) : depth].copy()
        if previous < 0 or keys[request] != keys[previous]:
            separate.append(depth)
        previous = request
    ends[path[:depth]] = size

    counts = np.asarray([0, *(len(ids) for ids in scored)], np.int64)
    return Trie(
        tokens=tokens[:size],
        positions=positions[:size],
        ends=ends[:size],
        rows=np.concatenate(rows) if rows else np.empty(0, np.int64),
        targets=np.asarray([token for ids in scored for token in ids], np.int64),
        offsets=np.cumsum(counts),
        separate_lengths=np.asarray(separate, np.int64),
    )


def common_prefix(a: IntArray, b: IntArray) -> int:
    """Length of the longest common prefix of two token lists."""
    n = min(len(a), len(b))
    differs = a[:n] != b[:n]
    return int(differs.argmax()) if differs.any() else n


def cut_pack(trie: Trie, start: int, path: IntArray, max_tokens: int, max_rows: int) -> Pack:
    """The next pack from token `start` on: as much as both budgets allow, and at least one token.

    Args:
        trie: the trie.
        start: first token not yet forwarded.
        path: numbers of its ancestors.
        max_tokens: most tokens in the pack.
        max_rows: most tokens in the pack at which logits are needed (a row of logits is as wide as the vocabulary).
    """
    stop = min(start + max(1, max_tokens), len(trie))
    scored = trie.scored_rows
    first = int(np.searchsorted(scored, start))
    beyond = first + max(1, max_rows)
    if beyond < len(scored):
        stop = min(stop, int(scored[beyond]))
    members = np.concatenate([path, np.arange(start, stop)])
    return Pack(start, stop, path, np.flatnonzero(trie.ends[members] > stop))
