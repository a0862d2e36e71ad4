"""Shared prefixes through a model's own cache: forward a prefix once, fork its cache where requests branch off.

For: `scorer`, with models that tree attention can't serve: recurrent and hybrid ones, whose state no mask can take
apart, and old code with an attention of its own. Not for: the trie (`plan`), or which models qualify (`support`).

The one idea: what a model keeps in order to go on after a prefix depends on that prefix alone, so a copy of it serves
every branch. The trie is walked depth first. A chain of tokens is one forward; where the trie branches, branches with
little in common become the rows of one batch, each on a copy of the cache, padded at the right, where nothing that is
read can see it; the others are chains of their own. The requests ``a b c d``, ``a b c e f`` and ``a b x…``:

    chain  a b              chain  a b x …
    rows   c d ·            on a copy of a b's cache, and so on from there
           c e f            c twice, which is cheaper than a forward for c alone

A cache is copied by walking through it, whatever its class: tensors grow a row for each branch, all else is kept. How
a model goes on from a cache can't be read off its code: some take several tokens at once, some forget their state
unless fed one at a time (Mamba in transformers 5), some hand no cache out. So it is asked, with a few random tokens.
"""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers import PreTrainedConfig

from lm_eval_kinject.scoring.forward import (
    Budget,
    PackScores,
    forward_overhead,
    free_memory,
    is_out_of_memory,
    read_logits,
)
from lm_eval_kinject.scoring.plan import IntArray, Trie

CACHE_ARGUMENTS = ("past_key_values", "cache_params", "state")
"""What models of transformers call the cache, as an argument of their forward and in its output."""

_PROBE_PREFIX, _PROBE_BRANCH = 24, 4  # random tokens that a model is asked with
_COPIES_ON_CPU = 2**28  # bytes of cache copies in one batch; on a GPU an eighth of what is free


class UnsupportedCacheError(RuntimeError):
    """The model doesn't go on from its cache as if it had read the prefix; the text says what it does instead."""


@dataclass(frozen=True)
class Prices:
    """What it costs to go on from a cache, in tokens' worth of time, beside the tokens themselves.

    Attributes:
        forward: starting a forward of several tokens: caches are copied, and joined to new keys layer by layer.
        step: a forward of one token, of which there is one for each token of the longest row.
        row: a row that takes several tokens at once: scans fill it up to a whole chunk.
        at_once: the model takes several tokens at once.
        one_by_one: it takes one token in each of several rows.
    """

    forward: int
    step: int
    row: int = 0
    at_once: bool = True
    one_by_one: bool = True

    def onward(self, tokens: int, rows: int, width: int) -> tuple[float, bool]:
        """The price of a batch that goes on from a cache, and whether that is for doing it one by one."""
        at_once = tokens + self.forward + self.row * rows if self.at_once else math.inf
        one_by_one = tokens + self.step * width if self.one_by_one else math.inf
        return min(at_once, one_by_one), one_by_one < at_once


@dataclass(eq=False)
class Branch:
    """A chain of the trie, tokens ``start`` to ``stop`` with one child each, and how what follows it is forwarded.

    Attributes:
        start: first token's number.
        stop: one past the last token's number.
        depth: tokens before `start`.
        parent: the chain before this one; None at the root, which holds no token.
        together: what follows and goes as rows of one batch: the numbers on each path from here to a leaf.
        apart: what follows as chains of their own, in the order in which they run.
        afresh: the chain is forwarded with all that comes before it, because going on from a cache costs more.
        one_by_one: the chain is forwarded token by token.
        rows_afresh: as `afresh`, for the batch.
        rows_one_by_one: as `one_by_one`, for the batch.
        leaves: paths from `start` to a leaf.
        tokens: tokens on all these paths, shared ones as often as they are passed.
        width: the longest of them.
        price: of the chain and all that follows, in tokens' worth of time.
    """

    start: int
    stop: int
    depth: int
    parent: Branch | None
    children: list[Branch] = field(default_factory=list)
    together: list[IntArray] = field(default_factory=list)
    apart: list[Branch] = field(default_factory=list)
    afresh: bool = False
    one_by_one: bool = False
    rows_afresh: bool = False
    rows_one_by_one: bool = False
    leaves: int = 0
    tokens: int = 0
    width: int = 0
    price: float = 0.0

    @property
    def end(self) -> int:
        """Tokens before whatever follows."""
        return self.depth + self.stop - self.start

    def path(self) -> IntArray:
        """Numbers of all tokens up to the chain's last."""
        own = np.arange(self.start, self.stop)
        return own if self.parent is None else np.concatenate([self.parent.path(), own])


def plan_forks(trie: Trie, prices: Prices) -> Branch:
    """Decides which branches of a trie go together, and what that costs.

    Args:
        trie: the trie.
        prices: what the model can do, and what it costs.

    Returns:
        The root, which holds no token itself.
    """
    root = Branch(0, 0, 0, None)
    branches, open_ends = [root], [(root, len(trie))]
    follows = trie.ends[:-1] != trie.ends[1:]  # the next token isn't the only child
    follows |= trie.ends[:-1] <= np.arange(1, len(trie))
    last_of_chain = np.append(np.flatnonzero(follows), len(trie) - 1)
    start = 0
    for last in last_of_chain.tolist() if len(trie) else ():
        while open_ends[-1][1] <= start:
            open_ends.pop()
        parent = open_ends[-1][0]
        branch = Branch(start, last + 1, parent.end, parent)
        parent.children.append(branch)
        branches.append(branch)
        open_ends.append((branch, int(trie.ends[last])))
        start = last + 1
    for branch in reversed(branches):
        _decide(branch, prices)
    return root


def _decide(branch: Branch, prices: Prices) -> None:
    """Fills in a branch whose children are decided."""
    own, children = branch.stop - branch.start, branch.children
    branch.leaves = sum(child.leaves for child in children) or 1
    branch.tokens = own * branch.leaves + sum(child.tokens for child in children)
    branch.width = own + max((child.width for child in children), default=0)

    def onward(rows: Sequence[Branch]) -> tuple[float, bool]:
        if not branch.end:
            return math.inf, False  # nothing to go on from
        tokens, leaves = sum(row.tokens for row in rows), sum(row.leaves for row in rows)
        return prices.onward(tokens, leaves, max(row.width for row in rows))

    def afresh(rows: Sequence[Branch]) -> float:
        return sum(row.tokens + row.leaves * branch.end for row in rows) + prices.forward

    together = [child for child in children if min(onward([child])[0], afresh([child])) <= child.price + prices.forward]
    apart = [child for child in children if child not in together]
    # The first holds the request that is compared with lm_eval's path. It comes second, so that what another branch
    # leaves behind would show. The largest comes last: it needs no copy.
    rest = sorted(apart[1:], key=lambda child: child.price)
    branch.apart = rest[:1] + apart[:1] + rest[1:]
    branch.together = [path for child in together for path in _paths(child)]
    branch.children = []
    branch.price = sum(child.price for child in apart)
    if together:
        again, (price, branch.rows_one_by_one) = afresh(together), onward(together)
        branch.rows_afresh = again < price
        branch.price += min(again, price)
    if own:
        again, (price, branch.one_by_one) = prices.forward + branch.end, (math.inf, False)
        if branch.depth:
            price, branch.one_by_one = prices.onward(own, 1, own)
        branch.afresh = again < price
        branch.price += min(again, price)


def _paths(branch: Branch) -> list[IntArray]:
    """Numbers along each path from a branch's first token to a leaf."""
    own = np.arange(branch.start, branch.stop)
    below = [*branch.together, *(path for child in branch.apart for path in _paths(child))]
    return [np.concatenate([own, path]) for path in below] or [own]


class ForkForward:
    """Scores tries with one model through its own cache; the counterpart of `forward.TreeForward`.

    Args:
        model: a causal language model that `support.reason_no_fork` has nothing against, or the PEFT model around it.
        base: the model itself, whose forward says what it takes.
        device: where the model takes its input.
        autocast_dtype: lm_eval's ``mixed_precision_dtype``.
        budget: limits of one forward; halved in place, for good, when memory runs out.
        tolerance: |Δ log p| of a token that rounding explains, in nats.
    """

    def __init__(
        self,
        model: Any,
        base: Any,
        device: torch.device,
        autocast_dtype: torch.dtype | None,
        budget: Budget,
        tolerance: float,
    ) -> None:
        self._model = model
        self._device = device
        self._autocast_dtype = autocast_dtype
        self.budget = budget
        self.forwarded_tokens = 0
        parameters = inspect.signature(base.forward).parameters
        self._cache_argument = next(name for name in CACHE_ARGUMENTS if name in parameters)
        self._takes_positions = "position_ids" in parameters
        self._takes_rows = "logits_to_keep" in parameters
        self._vocabulary = int(base.config.get_text_config().vocab_size)
        self._tolerance = tolerance
        overhead, chunk = forward_overhead(device), _scan_chunk(base.config.get_text_config())
        self._prices = Prices(forward=2 * overhead, step=2 * overhead // 3, row=chunk // 4)  # at best
        self._asked = False
        free = free_memory(device) or _COPIES_ON_CPU * 8
        self._room = free // 8 if device.type == "cuda" else min(free // 8, _COPIES_ON_CPU)

    def costs_at_most(self, trie: Trie, limit: float) -> bool:
        """Whether forwarding a trie takes at most `limit` tokens' worth of time, asking the model included.

        Raises:
            UnsupportedCacheError: asked, the model turns out not to go on from its cache.
        """
        if not self._asked:
            asking = 7 * self._prices.forward + 4 * (_PROBE_PREFIX + _PROBE_BRANCH)
            if plan_forks(trie, self._prices).price + asking > limit:
                return False  # not even if it is one of the better kind
            self._ask()
        return plan_forks(trie, self._prices).price <= limit

    def score(self, trie: Trie) -> Iterator[PackScores]:
        """Forwards the trie, each token about once.

        Raises:
            UnsupportedCacheError: the model doesn't go on from its cache.
        """
        if not self._asked:
            self._ask()
        readings = _Readings(trie)
        waiting: list[tuple[Branch, Any, bool]] = [(plan_forks(trie, self._prices), None, False)]
        while waiting:
            branch, cache, needed_later = waiting.pop()
            if branch.parent is not None:
                scores, cache = self._chain(readings, branch, cache, needed_later)
                yield readings.done(scores)
            for scores in self._rows(readings, branch, cache):
                yield readings.done(scores)
            for place, child in enumerate(reversed(branch.apart)):  # the first to go on the pile is the last to run
                waiting.append((child, None if child.afresh else cache, place > 0))

    def _chain(self, readings: _Readings, branch: Branch, cache: Any, needed_later: bool) -> tuple[PackScores, Any]:
        """Forwards one chain, on top of what is cached; returns its scores and the cache behind it."""
        own = np.arange(branch.start, branch.stop)
        leaf = not (branch.together or branch.apart)
        while True:
            if cache is None:  # at the root, where that costs less, and where memory ran out half-way
                work = partial(self._run, readings, [branch.path()], branch.start, 0, None, leaf, False)
            else:
                given = partial(_copied, cache, 1) if needed_later else partial(_itself, cache)
                work = partial(self._run, readings, [own], branch.start, branch.depth, given, leaf, branch.one_by_one)
            result = self._unless_out_of_memory(work)
            if result is not None:
                return result
            if not needed_later:
                cache = None  # some of its layers may have gone on already

    def _rows(self, readings: _Readings, branch: Branch, cache: Any) -> Iterator[PackScores]:
        """Forwards the paths that go together behind a chain, as many at once as the budget allows."""
        rows = sorted(branch.together, key=len, reverse=True)
        afresh = branch.rows_afresh or cache is None
        before = branch.path() if afresh else np.empty(0, np.int64)
        size = 0 if afresh or not rows else _size(cache)
        first = 0
        while first < len(rows):
            n = self._fitting([len(row) + len(before) for row in rows[first:]], size)
            part = [np.concatenate([before, row]) for row in rows[first : first + n]]
            given = None if afresh else partial(_copied, cache, n)
            depth = 0 if afresh else branch.end
            work = partial(self._run, readings, part, branch.stop, depth, given, True, branch.rows_one_by_one)
            result = self._unless_out_of_memory(work)
            if result is None:
                continue
            first += n
            yield result[0]

    def _fitting(self, lengths: Sequence[int], size: int) -> int:
        """How many rows, longest first, make one batch: what memory allows and padding doesn't spoil."""
        most = min(
            len(lengths), max(1, self.budget.tokens // lengths[0]), max(1, self._room // size if size else 10**9)
        )
        return next((n for n in range(1, most) if lengths[0] - lengths[n] > self._prices.forward), most)

    def _run(
        self,
        readings: _Readings,
        rows: Sequence[IntArray],
        first_read: int,
        depth: int,
        given: Callable[[], Any] | None,
        leaf: bool,
        one_by_one: bool,
    ) -> tuple[PackScores, Any]:
        """Forwards the rows of one batch, in as few forwards as model and budget allow.

        Args:
            readings: what is read off.
            rows: numbers of the tokens of each row, longest first.
            first_read: logits are read from this token on.
            depth: tokens before the rows.
            given: makes the cache of these tokens, one row for each; None where there are none.
            leaf: nothing follows, so that the cache isn't kept.
            one_by_one: go on from a cache one token at a time.

        Returns:
            The scores, and the cache behind the rows.
        """
        width = max(len(rows[0]), self._least(len(rows)))
        numbers = np.stack([np.pad(row, (0, width - len(row)), mode="edge") for row in rows])
        reads = readings.of(numbers, first_read)
        cache = given() if given is not None else None
        parts, start = [], 0
        while start < width:
            stop = self._piece(reads, start, len(rows), cache is not None, one_by_one)
            keep = not leaf or stop < width or cache is not None
            piece = reads[:, start:stop]
            columns = np.flatnonzero(piece.any(axis=0))
            tokens = readings.trie.tokens[numbers[:, start:stop]]
            logits, cache = self._forward(tokens, depth + start, cache, columns, keep)
            row, column = np.nonzero(piece[:, columns])
            at = torch.as_tensor(row, device=logits.device), torch.as_tensor(column, device=logits.device)
            parts.append(readings.read(logits[at], numbers[:, start:stop][:, columns][row, column]))
            start = stop
        return _joined(parts), None if leaf else cache

    def _least(self, rows: int) -> int:
        """Fewest tokens of a forward."""
        return 1 if rows == 1 or self._prices.one_by_one else 2

    def _piece(self, reads: npt.NDArray[np.bool_], start: int, rows: int, cached: bool, one_by_one: bool) -> int:
        """Where a forward from column `start` on ends."""
        width, least = reads.shape[1], self._least(rows)
        if cached and one_by_one:
            return start + 1
        if not self._prices.at_once:
            return width  # what came after would have to go one by one
        tokens = self.budget.tokens if self._takes_rows else min(self.budget.tokens, self.budget.rows)
        stop = min(width, start + max(least, tokens // rows))
        scored = start + np.flatnonzero(reads[:, start:stop].any(axis=0))
        beyond = max(1, self.budget.rows // rows)
        if beyond < len(scored):
            stop = max(start + least, int(scored[beyond]))
        return width if width - stop < least else stop

    def _forward(
        self, tokens: IntArray, depth: int, cache: Any, columns: IntArray, keep: bool
    ) -> tuple[torch.Tensor, Any]:
        """Logits ``[rows, columns, vocabulary]`` of ``tokens [rows, n]`` at some columns, and the cache behind them."""
        rows, n = tokens.shape
        more: dict[str, Any] = {} if cache is None else {self._cache_argument: cache}
        if self._takes_positions:  # some models count from 0 in every forward unless told
            more["position_ids"] = torch.arange(depth, depth + n, device=self._device).expand(rows, -1)
        if self._takes_rows:
            more["logits_to_keep"] = columns.tolist() or [n - 1]
        with (
            torch.no_grad(),
            torch.autocast(self._device.type, dtype=self._autocast_dtype, enabled=self._autocast_dtype is not None),
        ):
            output = self._model(input_ids=torch.as_tensor(tokens, device=self._device), use_cache=keep, **more)
        self.forwarded_tokens += tokens.size
        logits = output.logits if self._takes_rows else output.logits[:, columns.tolist()]
        after = output.get(self._cache_argument) if keep else None
        if keep and after is None:
            raise UnsupportedCacheError("it hands out no cache")
        return logits, after

    def plain(self, tokens: Sequence[int], option: Sequence[int]) -> tuple[float, bool]:
        """Scores one request without any cache; see `forward.TreeForward.plain`."""
        before = self.forwarded_tokens
        places = np.arange(len(option))
        logits, _ = self._forward(np.asarray([tokens], np.int64), 0, None, len(tokens) - len(option) + places, False)
        self.forwarded_tokens = before
        log_probs, greedy = read_logits(logits[0], places, np.asarray(option, np.int64))
        return float(log_probs.sum()), bool(greedy.all())

    def _ask(self) -> None:
        """Finds out how the model goes on from its cache.

        Raises:
            UnsupportedCacheError: not as if it had read what comes before.
        """
        before = self.forwarded_tokens
        try:
            at_once, one_by_one = self._answer()
        except (RuntimeError, ValueError, TypeError, LookupError, AttributeError) as error:
            if isinstance(error, UnsupportedCacheError) or is_out_of_memory(error):
                raise
            raise UnsupportedCacheError(f"it doesn't take its cache back: {' '.join(str(error).split())}") from error
        finally:
            self.forwarded_tokens = before
        self._prices = replace(self._prices, at_once=at_once, one_by_one=one_by_one)
        self._asked = True

    def _answer(self) -> tuple[bool, bool]:
        """Whether the model goes on with several tokens at once, and with one in each of several rows."""
        drawn = np.random.default_rng(0).integers(self._vocabulary, size=_PROBE_PREFIX + 2 * _PROBE_BRANCH)
        prefix, branches = drawn[None, :_PROBE_PREFIX], drawn[_PROBE_PREFIX:].reshape(2, _PROBE_BRANCH)
        places = np.arange(_PROBE_BRANCH)
        whole = np.concatenate([prefix.repeat(2, axis=0), branches], axis=1)
        expected = self._forward(whole, 0, None, _PROBE_PREFIX + places, False)[0].float().log_softmax(-1)
        cache = self._forward(prefix, 0, None, np.empty(0, np.int64), True)[1]

        def agree(copies: Any, rows: slice, columns: slice) -> tuple[bool, Any]:
            tokens = branches[rows, columns]
            depth = _PROBE_PREFIX + columns.start
            logits, copies = self._forward(tokens, depth, copies, np.arange(tokens.shape[1]), True)
            true = expected[rows, columns]
            apart = (true.exp() * (logits.float().log_softmax(-1) - true).abs()).sum(-1).max().item()
            return bool(apart <= self._tolerance), copies

        at_once, _ = agree(_copied(cache, 2), slice(0, 2), slice(0, _PROBE_BRANCH))
        alone, copies = agree(_copied(cache, 1), slice(0, 1), slice(0, 1))
        alone_again, _ = agree(copies, slice(0, 1), slice(1, 2))
        in_rows, copies = agree(_copied(cache, 2), slice(0, 2), slice(0, 1))
        in_rows_again, _ = agree(copies, slice(0, 2), slice(1, 2))
        in_rows = in_rows and in_rows_again
        if not (alone and alone_again) or not (at_once or in_rows):
            raise UnsupportedCacheError("it doesn't go on from its cache as if it had read the prefix")
        return at_once, in_rows

    def _unless_out_of_memory(self, work: Callable[[], tuple[PackScores, Any]]) -> tuple[PackScores, Any] | None:
        """The result of `work`, or None after halving the budget because memory ran out."""
        try:
            return work()
        except Exception as error:
            if not is_out_of_memory(error) or not self.budget.halve():
                raise
            self._room //= 2
        # Outside the handler: the error's traceback holds the tensors of the failed forward.
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return None


def _scan_chunk(config: Any) -> int:
    """Tokens of a chunk, of a model that scans sequences in chunks; 0 for others."""
    sizes = [getattr(config, name, None) for name in ("mamba_chunk_size", "chunk_size")]
    return next((int(size) for size in sizes if size), 0)


class _Readings:
    """Which logits of a trie are read, each once, and what they say."""

    def __init__(self, trie: Trie) -> None:
        self.trie = trie
        self._scored = np.zeros(len(trie), np.bool_)
        self._scored[trie.rows] = True
        self._pairs = np.argsort(trie.rows, kind="stable")
        self._rows = trie.rows[self._pairs]

    def of(self, numbers: IntArray, first: int) -> npt.NDArray[np.bool_]:
        """Which of ``numbers [rows, n]`` are read: scored from `first` on, not yet done, and where they stand first."""
        found, places = np.unique(numbers, return_index=True)
        reads = np.zeros(numbers.size, np.bool_)
        reads[places] = self._scored[found] & (found >= first)
        return reads.reshape(numbers.shape)

    def read(self, logits: torch.Tensor, numbers: IntArray) -> PackScores:
        """Scores from ``logits [n, vocabulary]`` behind the tokens ``numbers [n]``."""
        first, last = np.searchsorted(self._rows, numbers), np.searchsorted(self._rows, numbers, side="right")
        pairs = np.concatenate([self._pairs[a:b] for a, b in zip(first, last, strict=True)] or [self._pairs[:0]])
        rows = np.repeat(np.arange(len(numbers)), last - first)
        return PackScores(pairs, *read_logits(logits, rows, self.trie.targets[pairs]))

    def done(self, scores: PackScores) -> PackScores:
        """Notes that these needn't be read again, on whatever other path they may be."""
        self._scored[self.trie.rows[scores.pairs]] = False
        return scores


def _joined(parts: Sequence[PackScores]) -> PackScores:
    return PackScores(
        np.concatenate([part.pairs for part in parts]),
        np.concatenate([part.log_probs for part in parts]),
        np.concatenate([part.greedy for part in parts]),
    )


def _copied(cache: Any, rows: int) -> Any:
    """A copy of a cache of one row, with `rows` of them; nothing done to it reaches the original."""

    def grown(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.repeat_interleave(rows, dim=0) if tensor.dim() and len(tensor) == 1 else tensor.clone()

    return _mapped(cache, grown)


def _itself(cache: Any) -> Any:
    return cache


def _size(cache: Any) -> int:
    """Bytes of a cache's tensors."""
    sizes: list[int] = []

    def note(tensor: torch.Tensor) -> torch.Tensor:
        sizes.append(math.prod(tensor.shape) * tensor.element_size())
        return tensor

    _mapped(cache, note)
    return sum(sizes)


def _mapped(value: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """A cache with all its tensors changed: those in lists, tuples, dictionaries and objects of transformers."""
    if isinstance(value, torch.Tensor):
        return change(value)
    if isinstance(value, (list, tuple)):
        return type(value)([_mapped(entry, change) for entry in value])
    if isinstance(value, dict):
        twin = copy.copy(value)
        for key, entry in value.items():
            twin[key] = _mapped(entry, change)
        return twin
    if type(value).__module__.startswith("transformers.") and not isinstance(value, (PreTrainedConfig, type)):
        twin = copy.copy(value)
        for key, entry in vars(value).items():
            setattr(twin, key, _mapped(entry, change))
        return twin
    return value
