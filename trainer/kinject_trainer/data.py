"""Blocks: from documents to rows of exactly ``block_size`` tokens, none padded, no token lost or repeated.

What it is for: `build_store` tokenizes documents into a file; `Stream` reads blocks from it in the order of a seed;
`Plan` says which process trains on which block at which update. What it does not do: it trains nothing and moves
nothing to a device.

The one idea: a run is *one* stream of tokens, epoch after epoch, cut every ``block_size`` tokens. What is left over at
an epoch's end is carried into the next epoch's first block, and what is left over at the end of the run (fewer than
``block_size`` tokens) makes one shorter block, trained as it is. With 10 tokens an epoch, 3 epochs and blocks of 8:

    epoch      |0 0 0 0 0 0 0 0 0 0|1 1 1 1 1 1 1 1 1 1|2 2 2 2 2 2 2 2 2 2|
    block      [0 . . . . . . .][1 . . . . . . .][2 . . . . . . .][3 . . . . .]

Block n is a function of (store, seed, n): nothing is drawn while training, so a resumed run just goes on at its block.

An epoch holds every wording of every chunk once. It runs through the chunks as many times as there are wordings, each
time in another order and with another wording of each: two wordings of a chunk are always about a whole pass apart.

With replay, some documents of an older corpus stand evenly among those of each epoch, drawn anew for each; the epoch's
own documents keep their order. Epochs then differ in length, and where each begins is worked out, not multiplied.
"""

from __future__ import annotations

import bisect
import math
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase

from kinject_trainer.documents import Wording
from lm_eval_kinject.errors import CorpusError
from lm_eval_kinject.provenance import fingerprint, publish_folder, read_json, write_json

__all__ = [
    "IDLE",
    "Answers",
    "Blocks",
    "Demarcation",
    "Plan",
    "Replayed",
    "Store",
    "Stream",
    "build_store",
    "collate",
    "cut",
]

Ints = npt.NDArray[np.int64]
IDLE = -1
"""Stands in a plan where a process has no block: it takes part in the update with a row that carries no loss."""

_NO_LOSS = -100  # what cross-entropy ignores


# Tokens ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Demarcation:
    """How a document's ends are marked.

    Attributes:
        before: token ids in front of each document.
        after: token ids behind it.
        note: what a user should know where a tokenizer lacks BOS or EOS; empty otherwise.
    """

    before: tuple[int, ...]
    after: tuple[int, ...]
    note: str = ""

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> Demarcation:
        """BOS and EOS where the tokenizer has them.

        GPT-2's kind has one token for both, which then stands between documents once and not twice. With one of the
        two missing the other marks the border alone; with both missing, an empty line does.
        """
        bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
        if bos is not None and bos == eos:
            return cls((), (eos,), "the tokenizer has one token for BOS and EOS: it stands once between chunks")
        if bos is not None and eos is not None:
            return cls((bos,), (eos,))
        if eos is not None:
            return cls((), (eos,), "the tokenizer has no BOS token: EOS alone marks where a chunk ends")
        if bos is not None:
            return cls((bos,), (), "the tokenizer has no EOS token: BOS alone marks where a chunk starts")
        line = tuple(tokenizer.encode("\n\n", add_special_tokens=False))
        return cls((), line, "the tokenizer has neither BOS nor EOS: an empty line stands between chunks")


def encoder(tokenizer: PreTrainedTokenizerBase) -> Callable[[str], list[int]]:
    """Text → demarcated token ids. A ``</s>`` that stands in the text stays text and ends nothing."""
    marks = Demarcation.of(tokenizer)
    before, after = list(marks.before), list(marks.after)

    def encode(text: str) -> list[int]:
        ids = tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True, verbose=False)
        return [*before, *ids, *after]

    return encode


@dataclass(frozen=True)
class Store:
    """Tokenized documents on disk, mapped into memory: what is held is what is read.

    Attributes:
        tokens: all documents one after the other.
        starts: where each begins, and the end of the last; length is documents + 1.
        chunks: number of the chunk that each is a wording of, from 0.
    """

    tokens: npt.NDArray[np.uint32]
    starts: Ints
    chunks: Ints

    @property
    def lengths(self) -> Ints:
        """Tokens of each document."""
        return np.diff(self.starts)

    @classmethod
    def of_lengths(cls, lengths: Sequence[int]) -> Store:
        """Documents of which only the lengths are known: good for counting, not for reading."""
        starts = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int64)
        return cls(np.empty(0, dtype=np.uint32), starts, np.arange(len(lengths), dtype=np.int64))

    def __len__(self) -> int:
        return len(self.chunks)

    @property
    def wordings(self) -> int:
        """The largest number of wordings that a chunk has."""
        return int(np.bincount(self.chunks).max())


def build_store(folder: Path, documents: Iterable[Wording], encode: Callable[[str], list[int]], key: Any) -> Store:
    """Tokenizes documents into ``folder``, or opens what is there if it was made from the same ``key``.

    Args:
        folder: appears whole or not at all.
        documents: read once, one at a time.
        encode: text → demarcated token ids.
        key: plain value naming all that the tokens depend on (corpus, wordings, tokenizer).

    Raises:
        CorpusError: there are no tokens at all.
    """
    name = fingerprint(key)
    if _is_made(folder, name):
        return _open(folder)
    with publish_folder(folder) as building:
        starts, chunks = [0], []
        ids: dict[str, int] = {}
        with (building / "tokens.bin").open("wb") as out:
            for wording in documents:
                tokens = encode(wording.text)
                # Not tofile, whose error for a write that was cut short doesn't say (by errno) that the disk is full.
                out.write(np.asarray(tokens, dtype="<u4").tobytes())
                starts.append(starts[-1] + len(tokens))
                chunks.append(ids.setdefault(wording.chunk, len(ids)))
        if starts[-1] == 0:
            raise CorpusError("The corpus is empty: it gives no tokens. Name one that has text.")
        np.save(building / "starts.npy", np.asarray(starts, dtype=np.int64))
        np.save(building / "chunks.npy", np.asarray(chunks, dtype=np.int64))
        write_json(building / "manifest.json", {"key": name, "tokens": starts[-1], "documents": len(chunks)})
    return _open(folder)


def _is_made(folder: Path, name: str) -> bool:
    try:
        manifest = read_json(folder / "manifest.json")
        size = (folder / "tokens.bin").stat().st_size
    except (OSError, ValueError):
        return False
    return bool(manifest.get("key") == name and size == 4 * manifest["tokens"])


def _open(folder: Path) -> Store:
    tokens = np.memmap(folder / "tokens.bin", dtype="<u4", mode="r")
    return Store(tokens, np.load(folder / "starts.npy", mmap_mode="r"), np.load(folder / "chunks.npy", mmap_mode="r"))


def remove_store(folder: Path) -> None:
    """Deletes a store."""
    shutil.rmtree(folder, ignore_errors=True)


# Order ----------------------------------------------------------------------------------------------------------------


def _hash(numbers: Ints, *names: int) -> npt.NDArray[np.uint64]:
    """A 64-bit hash of each number and the names: SplitMix64's finalizer, chained.

    Our own and not numpy's generators, whose streams may change between releases: an order must not.
    """
    with np.errstate(over="ignore"):
        state = numbers.astype(np.uint64)
        for name in (0, *names):
            state = state + np.uint64(((name + 1) * 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF)
            state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            state = state ^ (state >> np.uint64(31))
    return state


def shuffled(count: int, *names: int) -> Ints:
    """The numbers below ``count`` in the order that some names give, [count]."""
    return np.argsort(_hash(np.arange(count, dtype=np.int64), *names), kind="stable")


def drawn(below: int, *names: int) -> int:
    """A number below ``below`` that some names give."""
    return int(_hash(np.zeros(1, dtype=np.int64), *names)[0] % np.uint64(below))


def epoch_order(chunks: Ints, seed: int, epoch: int) -> Ints:
    """The order of the documents in one epoch: passes over the chunks, each with another wording.

    Args:
        chunks: number of each document's chunk.
        seed: of the order.
        epoch: from 0.

    Returns:
        Indices of all documents, each once. Of a chunk with w wordings, passes 0 to w-1 hold one each.
    """
    documents = np.arange(len(chunks), dtype=np.int64)
    draw = _hash(documents, seed, epoch, 0)
    by_chunk = np.lexsort((draw, chunks))  # each chunk's wordings together, in random order
    sorted_chunks = chunks[by_chunk]
    first = np.searchsorted(sorted_chunks, sorted_chunks, side="left")
    passes = np.empty(len(chunks), dtype=np.int64)
    passes[by_chunk] = documents - first
    return np.lexsort((_hash(documents, seed, epoch, 1), passes))


@dataclass(frozen=True)
class Replayed:
    """Documents of an older corpus that are mixed into each epoch, a subset drawn anew for each.

    Attributes:
        store: the older documents.
        ratio: of them in the first epoch, for each document that is trained on.
        decay: factor on the ratio from one epoch to the next; 1: none.
    """

    store: Store
    ratio: float
    decay: float = 1.0

    def count(self, epoch: int, documents: int) -> int:
        """⌊ratio · decay^epoch · documents⌋, of the decimals as they are written: .29 of 100 documents are 29."""
        return math.floor(Fraction(str(self.ratio)) * Fraction(str(self.decay)) ** epoch * documents)

    def drawn(self, seed: int, epoch: int, wanted: int) -> Ints:
        """The documents of one epoch, in random order.

        Where more are wanted than there are, all of them come again, each time in another order: no document comes
        twice before every other has come once.

        Args:
            seed: of the order.
            epoch: from 0.
            wanted: how many.

        Returns:
            Indices into the store, [wanted].
        """
        numbers = np.arange(len(self.store), dtype=np.int64)
        turns, rest = divmod(wanted, len(numbers))
        # 0 and 1 name the draws of `epoch_order`.
        orders = [shuffled(len(numbers), seed, epoch, 2 + turn) for turn in range(turns + (rest > 0))]
        return np.concatenate([*orders, numbers[:0]])[:wanted]


def _interleaved(own: Ints, replayed: Ints) -> Ints:
    """Two sequences as one, each evenly spread over it and in its own order.

    Document i of n stands at (i + ½)/n of the way. The places are compared as whole numbers, so that they are exact.
    """
    places = [(2 * np.arange(len(a), dtype=np.int64) + 1) * len(b) for a, b in ((own, replayed), (replayed, own))]
    return np.concatenate([own, replayed])[np.argsort(np.concatenate(places), kind="stable")]


@dataclass
class Stream:
    """A run's tokens, epoch after epoch, as blocks.

    Attributes:
        store: the documents.
        seed: of the order.
        block_size: tokens of every block but the run's last.
        total: tokens of the whole run.
        replay: older documents among them; None: there are none.
    """

    store: Store
    seed: int
    block_size: int
    total: int
    replay: Replayed | None = None
    _epochs: dict[int, tuple[Ints, Ints]] = field(default_factory=dict, repr=False)
    _starts: list[int] = field(default_factory=lambda: [0], repr=False)  # tokens before each epoch, as far as asked for

    @property
    def epoch_tokens(self) -> int:
        """Tokens of one epoch of the store's documents, without what is replayed."""
        return int(self.store.starts[-1])

    def start_of(self, epoch: int) -> int:
        """Tokens before an epoch."""
        if self.replay is None:
            return epoch * self.epoch_tokens
        while len(self._starts) <= epoch:
            replayed = self._replayed(len(self._starts) - 1)
            self._starts.append(self._starts[-1] + self.epoch_tokens + int(self.replay.store.lengths[replayed].sum()))
        return self._starts[epoch]

    def tokens_of(self, epochs: float) -> int:
        """Tokens of so many epochs from the start, with what is replayed in them."""
        if self.replay is None:
            return round(epochs * self.epoch_tokens)
        whole = math.floor(epochs)
        return self.start_of(whole) + round((epochs - whole) * (self.start_of(whole + 1) - self.start_of(whole)))

    def epochs_of(self, tokens: int) -> float:
        """Epochs that so many tokens from the start are, with what is after the point."""
        if self.replay is None:
            return tokens / self.epoch_tokens
        epoch, offset = self._place(tokens)
        return epoch + offset / (self.start_of(epoch + 1) - self.start_of(epoch))

    def an_epoch_before(self, tokens: int) -> int:
        """Where the last epoch before a place begins, in tokens from the start; below 0 or 0: it begins the run."""
        if self.replay is None:
            return tokens - self.epoch_tokens
        return self.tokens_of(max(0.0, self.epochs_of(tokens) - 1))

    def replayed_tokens(self) -> int:
        """How many of the run's tokens are replayed."""
        if self.replay is None:
            return 0
        found, epoch = 0, 0
        while self.start_of(epoch) < self.total:
            order, ends = self._epoch(epoch)
            lengths = np.diff(ends, prepend=0)
            inside = np.clip(self.total - self.start_of(epoch) - (ends - lengths), 0, lengths)
            found += int(inside[order >= len(self.store)].sum())
            epoch += 1
        return found

    def _place(self, tokens: int) -> tuple[int, int]:
        """(epoch, tokens of it that come before) of a place in the run."""
        if self.replay is None:
            return divmod(tokens, self.epoch_tokens)
        while self._starts[-1] <= tokens:
            self.start_of(len(self._starts))
        epoch = bisect.bisect_right(self._starts, tokens) - 1
        return epoch, tokens - self._starts[epoch]

    def _replayed(self, epoch: int) -> Ints:
        if self.replay is None:
            return np.empty(0, dtype=np.int64)
        return self.replay.drawn(self.seed, epoch, self.replay.count(epoch, len(self.store)))

    @property
    def full_blocks(self) -> int:
        """Blocks of ``block_size`` tokens."""
        return self.total // self.block_size

    @property
    def tail(self) -> int:
        """Tokens of the shorter block at the end; 0: there is none."""
        return self.total % self.block_size

    def __len__(self) -> int:
        return self.full_blocks + (self.tail > 0)

    def document_of(self, number: int) -> int:
        """The document that block ``number`` begins in; those replayed are numbered on from the store's."""
        epoch, offset = self._place(number * self.block_size)
        order, ends = self._epoch(epoch)
        return int(order[np.searchsorted(ends, offset, side="right")])

    def block(self, number: int) -> npt.NDArray[np.int64]:
        """The tokens of block ``number``, counted from 0 over the run."""
        start = number * self.block_size
        return self._read(start, min(start + self.block_size, self.total))

    def _read(self, start: int, end: int) -> npt.NDArray[np.int64]:
        parts = []
        while start < end:
            epoch, offset = self._place(start)
            order, ends = self._epoch(epoch)
            place = int(np.searchsorted(ends, offset, side="right"))
            document = int(order[place])
            left = int(ends[place]) - offset  # tokens of this document that are still to come
            store = self.store
            if self.replay is not None and document >= len(store):
                store, document = self.replay.store, document - len(store)
            here = int(store.starts[document + 1]) - left
            count = min(left, end - start)
            parts.append(store.tokens[here : here + count])
            start += count
        return np.concatenate(parts).astype(np.int64)

    def _epoch(self, epoch: int) -> tuple[Ints, Ints]:
        """The epoch's documents in order, and where each ends, in tokens from the epoch's start.

        Those that are replayed are numbered on from the store's.
        """
        if epoch not in self._epochs:
            order, lengths = epoch_order(np.asarray(self.store.chunks), self.seed, epoch), self.store.lengths
            if self.replay is not None:
                order = _interleaved(order, self._replayed(epoch) + len(lengths))
                lengths = np.concatenate([lengths, self.replay.store.lengths])
            kept = {e: v for e, v in self._epochs.items() if e == epoch - 1}  # a block may lie across the border
            self._epochs = {**kept, epoch: (order, np.cumsum(lengths[order]))}
        return self._epochs[epoch]


def cut(documents: Iterable[list[int]], block_size: int) -> list[list[int]]:
    """Blocks of a plain sequence of documents, once through: for validation, where nothing is shuffled."""
    flat = [token for document in documents for token in document]
    return [flat[i : i + block_size] for i in range(0, len(flat), block_size)]


# Who trains on what ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Plan:
    """Which blocks each process passes through the model together, at each update.

    An update takes ``global_batch`` blocks in the stream's order. Each process makes ``accumulation`` forward passes
    for it, of ``micro`` blocks each. The last update has what is left, shared as evenly as may be; the shorter block at
    the run's end can't lie in one tensor with others, so it has an update of its own: whether a pass would be free for
    it depends on how a batch is divided, and the number of updates must not. A process without a block has `IDLE`.
    """

    full_blocks: int
    has_tail: bool
    global_batch: int
    micro: int
    accumulation: int
    world: int = 1

    @classmethod
    def of(cls, tokens: int, block_size: int, global_batch: int, micro: int, accumulation: int, world: int) -> Plan:
        """The plan of a run of so many tokens. A single token left over predicts nothing and makes no update."""
        full, tail = divmod(tokens, block_size)
        return cls(full, tail > 1, global_batch, micro, accumulation, world)

    @property
    def updates(self) -> int:
        """Optimizer steps of the run."""
        return len(self._tail_steps()) + max(0, self._whole_updates)

    @property
    def _whole_updates(self) -> int:
        """Updates before the last ones, all with ``global_batch`` blocks."""
        return max(0, -(-self.full_blocks // self.global_batch) - 1)

    def _tail_steps(self) -> list[list[list[list[int]]]]:
        """The last one or two updates: [update][forward pass][process] → blocks."""
        first = self._whole_updates * self.global_batch
        shares: list[list[int]] = [[] for _ in range(self.world)]
        for number in range(first, self.full_blocks):
            shares[(number - first) % self.world].append(number)
        passes = -(-max(map(len, shares)) // self.micro)
        cells = [[s[p * self.micro : (p + 1) * self.micro] or [IDLE] for s in shares] for p in range(passes)]
        steps = [cells] if cells else []
        if self.has_tail:
            # transformers takes each ``accumulation`` passes for an update, all but the last ones.
            cells.extend([[IDLE]] * self.world for _ in range(self.accumulation - passes if cells else 0))
            steps.append([[[self.full_blocks]] + [[IDLE]] * (self.world - 1)])
        return steps

    def passes(self, rank: int) -> Iterator[list[int]]:
        """The forward passes of one process over the whole run, each a list of block numbers."""
        for update in range(self._whole_updates):
            for turn in range(self.accumulation):
                start = update * self.global_batch + (turn * self.world + rank) * self.micro
                yield list(range(start, start + self.micro))
        for step in self._tail_steps():
            for cell in step:
                yield cell[rank]

    def __len__(self) -> int:
        """Forward passes of each process."""
        return self._whole_updates * self.accumulation + sum(map(len, self._tail_steps()))

    def blocks_after(self, updates: int) -> int:
        """Blocks trained on after so many updates."""
        return min(updates * self.global_batch, self.full_blocks) + (self.has_tail and updates >= self.updates)


class Blocks(Dataset[torch.Tensor]):
    """A stream as a dataset: item n is block n, `IDLE` a row of two tokens without loss."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream

    def __len__(self) -> int:
        return len(self.stream)

    def __getitem__(self, number: int) -> dict[str, torch.Tensor]:
        if number == IDLE:
            return {"input_ids": torch.zeros(2, dtype=torch.long), "labels": torch.full((2,), _NO_LOSS)}
        ids = torch.from_numpy(self.stream.block(number))
        return {"input_ids": ids, "labels": _labels(ids)}


class Answers(Blocks):
    """A stream of rows of one block each as a data set, with labels on their answers alone.

    Args:
        stream: of rows.
        answers: where in its row each begins and ends, [rows of the store, 2]; none begins at 0. With more columns it
            has ends in several stages, each as long a part of the run as the others: [rows of the store, 1 + stages].
    """

    def __init__(self, stream: Stream, answers: Ints) -> None:
        super().__init__(stream)
        self.answers = answers
        self.stages = answers.shape[1] - 1

    def __getitem__(self, number: int) -> dict[str, torch.Tensor]:
        row = super().__getitem__(number)
        if number == IDLE:
            return row
        start, *ends = self.answers[self.stream.document_of(number)]
        end = ends[number * self.stages // len(self.stream)]
        labels = torch.full_like(row["input_ids"], _NO_LOSS)
        labels[start:end] = row["input_ids"][start:end]
        return {**row, "labels": labels}


def _labels(ids: torch.Tensor) -> torch.Tensor:
    """The ids themselves, but for the first: nothing stands before it to predict it from."""
    labels = ids.clone()
    labels[..., 0] = _NO_LOSS
    return labels


def collate(rows: Sequence[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Rows of one length → ids and labels, each [rows, length]; there is no mask, for there is no padding."""
    return {name: torch.stack([row[name] for row in rows]) for name in ("input_ids", "labels")}


class Passes:
    """A batch sampler: one process's share of a plan."""

    def __init__(self, plan: Plan, rank: int) -> None:
        self.plan, self.rank = plan, rank

    def __iter__(self) -> Iterator[list[int]]:
        return self.plan.passes(self.rank)

    def __len__(self) -> int:
        return len(self.plan)
