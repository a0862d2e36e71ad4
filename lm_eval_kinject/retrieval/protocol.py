"""What a retriever is, and the few rules that all of them share: k, ranks and ties.

What it is for: the models ask any retriever in the same two words, ``search(queries, k)``. What it does not do:
it holds no retriever.

The one idea: a hit list is a total order. Scores fall or stay equal with rank, equal scores stand in the order of
their chunk ids, and neither the other queries of a batch nor their order changes a list.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np
import numpy.typing as npt

from lm_eval_kinject.corpus.corpus import Corpus
from lm_eval_kinject.errors import ArgumentError
from lm_eval_kinject.records import Hit, Query
from lm_eval_kinject.retrieval.filters import Allowed

__all__ = ["Floats", "Hits", "Retriever", "check_k", "hits_of", "id_ranks", "top_rows"]

Hits: TypeAlias = tuple[Hit, ...]
Floats: TypeAlias = npt.NDArray[np.floating[Any]]


@runtime_checkable
class Retriever(Protocol):
    """Finds chunks of one corpus.

    Attributes:
        name: as given by the user (``minilm``, ``bm25``, ``oracle``, a model id).
        corpus: what is searched.
    """

    name: str
    corpus: Corpus

    @property
    def fingerprint(self) -> str:
        """SHA-256 of all that decides the hits, corpus included; device and versions don't count."""

    def provenance(self) -> dict[str, Any]:
        """What a result says of its retriever: plain, path-free, with the fingerprint under ``fingerprint``."""

    def search(self, queries: Sequence[Query], k: int) -> list[Hits]:
        """The best ``k`` chunks of each query, best first; one tuple a query, in the order of the queries.

        Every query gets exactly ``k`` hits with ranks 1 to ``k``, but for three controls: ``oracle`` gives the gold
        chunk alone, ``full`` the whole corpus, ``none`` nothing. ``k=0`` gives empty tuples.

        Raises:
            ArgumentError: ``k`` negative, or larger than the corpus (not for ``full`` and ``none``, which ignore it).
            RetrievalError: the retriever can't answer (``oracle`` without a gold chunk).
        """


def check_k(k: int, corpus: Corpus, allowed: Allowed | None = None) -> None:
    """Refuses a ``k`` that is negative, or larger than the corpus or what a filter leaves of it."""
    if k < 0:
        raise ArgumentError(f"k={k} is negative: give k=0 for no retrieval, or a positive number.", "retrieval")
    if k > len(corpus):
        raise ArgumentError(
            f"k={k} is larger than the corpus {corpus.name}, which has {len(corpus)} chunks: "
            f"give k={len(corpus)} or less, or retriever=full for all of it.",
            "retrieval",
        )
    if allowed is not None and k > len(allowed):
        raise ArgumentError(
            f"k={k}, but filter={allowed.filter} leaves only {len(allowed)} of the {len(corpus)} chunks of "
            f"{corpus.name}: give k={len(allowed)} or less, or a wider filter.",
            "retrieval",
        )


def id_ranks(corpus: Corpus) -> npt.NDArray[np.int64]:
    """Each chunk's place, from 0, in the order of ids: what ties are broken by. Shape (chunks,)."""
    order = sorted(range(len(corpus)), key=corpus.ids.__getitem__)
    ranks = np.empty(len(corpus), dtype=np.int64)
    ranks[order] = np.arange(len(corpus))
    return ranks


def top_rows(scores: Floats, ranks: npt.NDArray[np.int64], k: int) -> npt.NDArray[np.int64]:
    """Rows of the ``k`` highest scores, ties by ``ranks``; all rows that tie with the k-th are weighed before the cut.

    Args:
        scores: shape (rows,).
        ranks: shape (rows,), the tie-breaker, lowest first.
        k: 1 to rows.
    """
    if k < len(scores):
        bound = np.partition(scores, len(scores) - k)[len(scores) - k]
        candidates = np.flatnonzero(scores >= bound)
    else:
        candidates = np.arange(len(scores))
    order = np.lexsort((ranks[candidates], -scores[candidates]))
    return candidates[order[:k]]


def hits_of(corpus: Corpus, rows: Sequence[int] | npt.NDArray[np.int64], scores: Sequence[float] | Floats) -> Hits:
    """Hits from corpus rows, best first, and their scores."""
    return tuple(
        Hit(corpus.chunks[int(row)], float(score), rank)
        for rank, (row, score) in enumerate(zip(rows, scores, strict=True), start=1)
    )
