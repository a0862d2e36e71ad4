"""Retrievers that don't search: the controls that tell what retrieval is worth.

``oracle`` gives the chunks that a question was written from, ``random`` chunks that have nothing to do with it,
``full`` the whole corpus (long context), ``none`` nothing. What this file does not do: look at a query's meaning.

The one idea: a control is as repeatable as a real retriever. ``random`` draws from a generator seeded by the query's
own text, so a list depends on nothing else of the run, and its first k hits are the same for every larger k.
Scores say nothing here; they are 1 / rank, so that hits have an order.
"""

from __future__ import annotations

import difflib
import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lm_eval_kinject.corpus.corpus import Corpus
from lm_eval_kinject.errors import RetrievalError
from lm_eval_kinject.provenance import fingerprint
from lm_eval_kinject.records import Chunk, Hit, Query, gold_ids
from lm_eval_kinject.retrieval.filters import Allowed
from lm_eval_kinject.retrieval.protocol import Hits, check_k, hits_of, id_ranks

__all__ = ["Full", "NoRetrieval", "Oracle", "Random", "chunks_as_hits", "gold_chunks"]


class _Control:
    """Name, corpus and provenance of a control; what it finds is the subclass's."""

    name: str

    def __init__(self, corpus: Corpus, allowed: Allowed | None = None) -> None:
        self.corpus = corpus
        self.allowed = allowed

    @property
    def fingerprint(self) -> str:
        """See :class:`~lm_eval_kinject.retrieval.protocol.Retriever`."""
        return fingerprint(self._settings())

    def _settings(self) -> dict[str, Any]:
        filtered = {} if self.allowed is None else {"filter": self.allowed.provenance()}
        return {"name": self.name, "kind": "control", "corpus": self.corpus.fingerprint, **filtered}

    def provenance(self) -> dict[str, Any]:
        """See :class:`~lm_eval_kinject.retrieval.protocol.Retriever`."""
        return {**self._settings(), "fingerprint": self.fingerprint}


def gold_chunks(corpus: Corpus, queries: Sequence[Query], asked: str) -> list[list[Chunk]]:
    """The right chunk of each query, or its right chunks in the order in which it names them.

    Args:
        corpus: which holds them.
        queries: which name them.
        asked: the argument that needs them, for messages: ``retriever=oracle``.

    Raises:
        RetrievalError: listing how many queries name none, or one that the corpus lacks.
    """
    without = [query for query in queries if not gold_ids(query.gold)]
    if without:
        raise RetrievalError(
            f"{asked} needs each question's source chunk, but {len(without)} of {len(queries)} questions name none "
            f"(the first: {without[0].text[:80]!r}). Use a task whose documents have `source_chunk`, or leave it out."
        )
    unknown = sorted({chunk for query in queries for chunk in gold_ids(query.gold)} - corpus.by_id.keys())
    if unknown:
        near = difflib.get_close_matches(unknown[0], list(corpus.by_id), n=1)
        raise RetrievalError(
            f"{asked}: {len(unknown)} source chunks are not in the corpus {corpus.name}, first {unknown[0]!r}"
            f"{f' (near: {near[0]!r})' if near else ''}. Pass the corpus that the questions were written from."
        )
    return [[corpus.by_id[chunk] for chunk in gold_ids(query.gold)] for query in queries]


def chunks_as_hits(chunks: Sequence[Chunk]) -> Hits:
    """Hits of chunks that weren't searched for: the score is 1 / rank."""
    return tuple(Hit(chunk, 1 / rank, rank) for rank, chunk in enumerate(chunks, start=1))


class Oracle(_Control):
    """The gold chunk, alone at rank 1, for any k >= 1: the best that retrieval could do.

    Of a question that takes several chunks the first k, in the order in which the question names them.
    """

    name = "oracle"

    def search(self, queries: Sequence[Query], k: int) -> list[Hits]:
        """See :class:`~lm_eval_kinject.retrieval.protocol.Retriever`; every query must name a gold chunk of the corpus.

        Raises:
            RetrievalError: listing how many queries name none, or one that the corpus lacks.
        """
        check_k(k, self.corpus)
        if k == 0:
            return [() for _ in queries]
        gold = gold_chunks(self.corpus, queries, "retriever=oracle")
        return [chunks_as_hits(chunks[:k]) for chunks in gold]


@dataclass
class _Draw:
    """Distinct rows in random order: a Fisher-Yates shuffle that moves only the places it has come to."""

    generator: random.Random
    size: int

    def rows(self, k: int) -> list[int]:
        moved: dict[int, int] = {}
        drawn = []
        for place in range(k):
            # random() is the one method whose stream Python promises to keep between versions.
            other = place + int(self.generator.random() * (self.size - place))
            drawn.append(moved.get(other, other))
            moved[other] = moved.get(place, place)
        return drawn


class Random(_Control):
    """``k`` distinct chunks, drawn uniformly; a draw depends on ``seed``, the query's text and the ids alone.

    With a filter, of those that pass.
    """

    name = "random"

    def __init__(self, corpus: Corpus, seed: int, allowed: Allowed | None = None) -> None:
        super().__init__(corpus, allowed)
        self.seed = seed
        passes = None if allowed is None else allowed.mask
        self._by_id = [int(row) for row in id_ranks(corpus).argsort() if passes is None or passes[row]]

    def _settings(self) -> dict[str, Any]:
        return {**super()._settings(), "seed": self.seed}

    def search(self, queries: Sequence[Query], k: int) -> list[Hits]:
        """See :class:`~lm_eval_kinject.retrieval.protocol.Retriever`."""
        check_k(k, self.corpus, self.allowed)
        scores = [1 / rank for rank in range(1, k + 1)]
        return [hits_of(self.corpus, [self._by_id[i] for i in self._draw(query).rows(k)], scores) for query in queries]

    def _draw(self, query: Query) -> _Draw:
        text = f"{self.seed}\0{query.text}".encode("utf-8", errors="surrogatepass")
        seed = int.from_bytes(hashlib.sha256(text).digest(), "big")
        return _Draw(random.Random(seed), len(self._by_id))


class Full(_Control):
    """All chunks in corpus order, whatever k >= 1 is; the token budget of the prompt decides how many are read."""

    name = "full"

    def search(self, queries: Sequence[Query], k: int) -> list[Hits]:
        """See :class:`~lm_eval_kinject.retrieval.protocol.Retriever`."""
        check_k(min(k, 0), self.corpus)
        rows: Sequence[int] = range(len(self.corpus)) if self.allowed is None else [int(r) for r in self.allowed.rows]
        size = len(rows) if k else 0
        hits = hits_of(self.corpus, rows[:size], [1 / rank for rank in range(1, size + 1)])
        return [hits for _ in queries]


class NoRetrieval(_Control):
    """Nothing, whatever k is."""

    name = "none"

    def search(self, queries: Sequence[Query], k: int) -> list[Hits]:
        """See :class:`~lm_eval_kinject.retrieval.protocol.Retriever`."""
        check_k(min(k, 0), self.corpus)
        return [() for _ in queries]
