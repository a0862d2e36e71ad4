"""What a store is asked for: to propose, for a question's vector, some of the vectors that may be the nearest.

What it is for: the protocol between `stores.py`, which decides by exact products what is found, and those that hold
vectors (`faiss_stores.py`, `qdrant_store.py`). What it does not do: it holds none itself.

The one idea: a store holds each *distinct* vector once. An approximate search that finds one of two equal texts and
misses the other would order ties by accident; so proposals are of distinct vectors, and all chunks that share one come
with it (`Distinct`)::

    chunks, by row       a  b  a  c  b  a            (equal letters: equal vectors)
    ids in the store     0  1  0  2  1  0            in the order of first rows
    rows                 0  2  5 | 1  4 | 3          by id, within one by the order of chunk ids
    starts               0         3      5  6
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from lm_eval_kinject.corpus.corpus import Corpus
from lm_eval_kinject.errors import IndexStoreError
from lm_eval_kinject.retrieval.encoders import Vectors
from lm_eval_kinject.retrieval.exact import Rows, read_rows, take_rows
from lm_eval_kinject.retrieval.filters import Filter, Mask
from lm_eval_kinject.retrieval.index import Progress
from lm_eval_kinject.stages import Check

__all__ = ["Distinct", "Kind", "Material", "Passing", "Proposer", "Settings", "StoreGone", "largest_divisor"]

Settings: TypeAlias = dict[str, Any]
_PIECE = 1 << 14  # vectors handed over at a time


@dataclass(frozen=True, eq=False)
class Distinct:
    """Which rows share a vector.

    Attributes:
        rows: shape (rows,): all of them, by id in the store, within one by the order of chunk ids.
        starts: shape (distinct + 1,): where each id's begin.
    """

    rows: npt.NDArray[np.integer[Any]]
    starts: npt.NDArray[np.integer[Any]]

    @classmethod
    def of(cls, vectors: Vectors, ranks: Rows) -> Distinct:
        """By 64 bits of a hash of each vector; two that fell together by accident would be proposed together."""
        digests = np.empty(len(vectors), np.uint64)
        for start in range(0, len(vectors), _PIECE):
            piece = read_rows(vectors, start, start + _PIECE)
            for at, row in enumerate(piece, start):
                digests[at] = int.from_bytes(hashlib.blake2b(row.tobytes(), digest_size=8).digest(), "little")
        _, first, group = np.unique(digests, return_index=True, return_inverse=True)
        by_first = np.argsort(first)
        number = np.empty(len(first), np.int64)
        number[by_first] = np.arange(len(first))
        ids = number[group]
        small = np.int32 if len(vectors) < np.iinfo(np.int32).max else np.int64
        starts = np.concatenate([[0], np.cumsum(np.bincount(ids))])
        return cls(np.lexsort((ranks, ids)).astype(small), starts.astype(small))

    def __len__(self) -> int:
        return len(self.starts) - 1

    @cached_property
    def any_row(self) -> Rows:
        """A row of each id, shape (distinct,): the lowest, so that they rise."""
        return np.minimum.reduceat(self.rows, self.starts[:-1]).astype(np.int64)

    def passing(self, mask: Mask) -> Mask:
        """Which ids have a row that passes, shape (distinct,)."""
        found: Mask = np.logical_or.reduceat(mask[self.rows], self.starts[:-1])
        return found

    def rows_of(self, ids: Rows, most: int, mask: Mask | None) -> Rows:
        """Rows of some ids, of each the first ``most`` that pass: more of equal vectors are never needed."""
        parts = []
        for id_ in ids:
            rows = self.rows[self.starts[id_] : self.starts[id_ + 1]]
            parts.append((rows if mask is None else rows[mask[rows]])[:most])
        return np.concatenate(parts).astype(np.int64) if parts else np.empty(0, np.int64)


@dataclass(frozen=True, eq=False)
class Material:
    """What a store is built of: the vectors of a corpus, one a chunk, and which of them are distinct."""

    vectors: Vectors
    distinct: Distinct
    corpus: Corpus

    @property
    def dimension(self) -> int:
        """Of the vectors."""
        return int(self.vectors.shape[1])

    def sample(self, most: int, seed: int) -> Vectors:
        """Distinct vectors to learn from, ``most`` or all, in their order; drawn by ``seed``."""
        rows = self.distinct.any_row
        if len(rows) > most:
            rows = np.sort(np.random.default_rng(seed).choice(rows, most, replace=False))
        return np.ascontiguousarray(take_rows(self.vectors, rows))

    def pieces(self) -> Iterator[tuple[int, Vectors]]:
        """All distinct vectors by id, some at a time, with the first one's id."""
        rows = self.distinct.any_row
        for start in range(0, len(rows), _PIECE):
            some = rows[start : start + _PIECE]
            whole = int(some[-1] - some[0]) + 1 == len(some)
            piece = read_rows(self.vectors, int(some[0]), int(some[-1]) + 1) if whole else take_rows(self.vectors, some)
            yield start, np.ascontiguousarray(piece)


@dataclass(frozen=True, eq=False)
class Passing:
    """A filter, and the ids of a store that have a chunk which passes it, shape (distinct,)."""

    filter: Filter
    ids: Mask

    @property
    def share(self) -> float:
        """The share of ids that pass."""
        return float(self.ids.mean())


class Proposer(Protocol):
    """A store that is open."""

    def propose(self, questions: Vectors, count: int, search: Settings, passing: Passing | None) -> Rows:
        """Ids that may be the nearest of each question, shape (questions, count); -1 where it has no more.

        Neither the order nor the company of the questions changes what is proposed.

        Args:
            questions: shape (questions, dimension).
            count: 1 to the ids that pass.
            search: how to search, as of `Kind.settings`.
            passing: ids that don't pass shouldn't be proposed; if one is, the chunk is left out all the same.
        """

    def close(self) -> None:
        """Gives back files and connections."""


class StoreGone(IndexStoreError):
    """What a folder stands for is no longer where it was put; it can be built again."""


class Kind(Protocol):
    """A sort of store."""

    @property
    def name(self) -> str:
        """Behind ``store=``."""

    @property
    def parameters(self) -> Mapping[str, Check]:
        """What it takes, by name, each with what it may be."""

    @property
    def shareable(self) -> bool:
        """Whether a folder that came from somebody else may be opened."""

    def problems(self, given: Settings) -> list[str]:
        """What is wrong with its parameters together, or lacks in the installation; loads nothing."""

    def settings(self, given: Settings, chunks: int, dimension: int) -> tuple[Settings, Settings]:
        """What decides the store, and how it is searched, plain and path-free, with all defaults filled in.

        Args:
            given: parameters that were given, checked one by one.
            chunks: of the corpus.
            dimension: of the vectors.

        Raises:
            ArgumentError: they don't fit the corpus or the encoder.
        """

    def build(
        self, material: Material, settings: Settings, given: Settings, folder: Path | None, progress: Progress | None
    ) -> Proposer:
        """Makes the store, in ``folder`` (there, empty) or in memory, in bounded memory beside it."""

    def open(self, folder: Path, settings: Settings, given: Settings, distinct: int) -> Proposer:
        """Opens what `build` made, of so many distinct vectors.

        Raises:
            StoreGone: it isn't there any more.
            IndexStoreError: it can't be opened now.
        """


def largest_divisor(number: int, most: int) -> int:
    """The largest divisor of ``number`` up to ``most``."""
    return max(divisor for divisor in range(1, max(most, 1) + 1) if number % divisor == 0)
