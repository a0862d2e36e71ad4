"""The k vectors with the highest inner products, exactly, ties by chunk id; and rows of a file larger than memory.

What it is for: the search of ``store=flat``, and the judge of every other store, whose proposals are decided here.
What it does not do: it knows no texts.

The one idea: FAISS proposes, float64 decides. FAISS's float32 sums differ in their last bits with the batch and with a
chunk's row, which would order equal chunks by accident. So it fetches a margin beyond k, the candidates' inner
products are computed again one by one, and ties break by chunk id; where the k-th score reaches the margin's end
the margin grows.

A mapped page that was touched stays in a process's resident memory. So what is larger than `_AT_ONCE` is read in
pieces, and single rows of it through a map of their own, which is given back at once.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from functools import cached_property
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from lm_eval_kinject.retrieval.encoders import Vectors
from lm_eval_kinject.retrieval.protocol import top_rows

__all__ = ["Doubles", "Exact", "Found", "Nearest", "Rows", "decide", "load_faiss", "read_rows", "take_rows"]

Doubles: TypeAlias = npt.NDArray[np.float64]
Rows: TypeAlias = npt.NDArray[np.int64]
Found: TypeAlias = tuple[Rows, Doubles]
"""Rows, best first, and their scores."""

_MARGIN = 32
_FLOAT32_SLACK = 1e-5  # of the product of two vectors' lengths: more than a float32 sum can be off
_AT_ONCE = 4 << 30  # bytes of vectors that FAISS is given as they are
_PIECE = 1 << 16  # rows read at a time where there are more
_MAPPED = 1 << 12  # single rows taken through one map: each may bring 64 KiB around it into memory


class Nearest(Protocol):
    """Finds the rows of the highest inner products."""

    def nearest(self, questions: Vectors, k: int) -> list[Found]:
        """The best ``k`` rows of each question, ties by chunk id; neither order nor company of questions counts.

        Args:
            questions: shape (questions, dimension).
            k: 1 to the number of rows that may be found.
        """


def load_faiss() -> Any:
    """FAISS, without its lines about the instruction sets that it looked for."""
    logging.getLogger("faiss.loader").setLevel(logging.WARNING)
    import faiss

    return faiss


def read_rows(vectors: Vectors, start: int, stop: int) -> Vectors:
    """Rows ``start`` to ``stop``; of a mapped file they are read, so that no page of it stays in memory."""
    stop = min(stop, len(vectors))
    if not isinstance(vectors, np.memmap) or vectors.nbytes <= _AT_ONCE or vectors.filename is None:
        return np.ascontiguousarray(vectors[start:stop])
    width = vectors.shape[1]
    place = vectors.offset + start * width * vectors.itemsize
    found = np.fromfile(vectors.filename, vectors.dtype, (stop - start) * width, offset=place)
    return np.asarray(found, dtype=np.float32).reshape(stop - start, width)


def take_rows(vectors: Vectors, rows: Rows) -> Vectors:
    """A copy of some rows; those of a large mapped file through maps that are given back."""
    if not isinstance(vectors, np.memmap) or vectors.nbytes <= _AT_ONCE or vectors.filename is None:
        return np.asarray(vectors[rows])
    taken: Vectors = np.empty((len(rows), vectors.shape[1]), np.float32)
    for start in range(0, len(rows), _MAPPED):
        mapped = np.memmap(vectors.filename, vectors.dtype, "r", vectors.offset, vectors.shape)
        taken[start : start + _MAPPED] = mapped[rows[start : start + _MAPPED]]
    return taken


def decide(vectors: Vectors, ranks: Rows, question: Vectors, rows: Rows, k: int) -> Found:
    """The best ``k`` of some rows by their exact products; ``ranks`` (of all rows) break ties."""
    # The sum runs along each row alone, so equal vectors get equal scores wherever they stand.
    products = take_rows(vectors, rows).astype(np.float64) * question.astype(np.float64)
    scores = products.sum(axis=1)
    best = top_rows(scores, ranks[rows], k)
    return rows[best], scores[best]


class Exact:
    """Exact search.

    Args:
        vectors: shape (rows, dimension); never copied whole.
        ranks: shape (rows,), what ties are broken by, lowest first.
        allowed: the rows that may be found, rising; None: all.
    """

    def __init__(self, vectors: Vectors, ranks: Rows, allowed: Rows | None = None) -> None:
        self._vectors = vectors
        self._ranks = ranks
        self._allowed = allowed

    def __len__(self) -> int:
        return len(self._vectors) if self._allowed is None else len(self._allowed)

    def nearest(self, questions: Vectors, k: int) -> list[Found]:
        """See `Nearest`."""
        size = len(self)
        results: list[Found | None] = [None] * len(questions)
        slack = 2 * _FLOAT32_SLACK * self._longest * np.linalg.norm(questions, axis=1)
        open_rows = list(range(len(questions)))
        fetched = min(size, k + _MARGIN)
        while open_rows:
            asked = np.ascontiguousarray(questions[open_rows])
            scores, rows = self._proposed(asked, fetched)
            unresolved = []
            for at, question in enumerate(open_rows):
                if fetched < size and scores[at, -1] >= scores[at, k - 1] - slack[question]:
                    unresolved.append(question)  # a chunk not fetched may tie with the k-th
                else:
                    results[question] = decide(self._vectors, self._ranks, questions[question], rows[at], k)
            open_rows = unresolved
            fetched = min(size, fetched * 4)
        return [found for found in results if found is not None]

    @cached_property
    def _longest(self) -> float:
        """The length of the longest vector."""
        starts = range(0, len(self._vectors), _PIECE)
        pieces = (read_rows(self._vectors, start, start + _PIECE) for start in starts)
        return float(np.sqrt(max(np.max(np.einsum("ij,ij->i", piece, piece)) for piece in pieces)))

    def _proposed(self, questions: Vectors, count: int) -> tuple[Any, Any]:
        """FAISS's best ``count`` rows of each question and their scores, best first."""
        faiss = load_faiss()
        if self._allowed is None and self._vectors.nbytes <= _AT_ONCE:
            return faiss.knn(questions, self._vectors, count, metric=faiss.METRIC_INNER_PRODUCT)
        scores = np.empty((len(questions), 0), np.float32)
        rows = np.empty((len(questions), 0), np.int64)
        for numbers, piece in self._pieces():
            more, at = faiss.knn(questions, piece, min(count, len(piece)), metric=faiss.METRIC_INNER_PRODUCT)
            scores, rows = np.concatenate([scores, more], 1), np.concatenate([rows, numbers[at]], 1)
            best = np.argsort(-scores, axis=1, kind="stable")[:, :count]
            scores, rows = np.take_along_axis(scores, best, 1), np.take_along_axis(rows, best, 1)
        return scores, rows

    def _pieces(self) -> Iterator[tuple[Rows, Vectors]]:
        """All rows that may be found, some at a time: their numbers and their vectors."""
        for start in range(0, len(self), _PIECE):
            if self._allowed is None:
                piece = read_rows(self._vectors, start, start + _PIECE)
                yield np.arange(start, start + len(piece)), piece
            else:
                numbers = self._allowed[start : start + _PIECE]
                yield numbers, np.ascontiguousarray(take_rows(self._vectors, numbers))
