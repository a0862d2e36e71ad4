"""Hybrid search: the ranks of a dense retriever and of BM25 over one corpus, fused.

What it is for: ``retriever=hybrid``, which finds what is meant and what is written. What it does not do: search (its
two parts do), or weigh scores, which have no common scale.

The one idea is reciprocal rank fusion (Cormack, Clarke and Büttcher, SIGIR 2009), which looks at ranks alone:

    score(d) = sum over the lists that hold d:  1 / (60 + rank of d in it)

Three things the formula leaves open. *Depth*: `DEPTH` hits of each list count, or k if that is more, so all lists with
k up to `DEPTH` are beginnings of one. *Ties*: chunks of one score share the best of their ranks, so that equal texts
stay equal, and stand in the order of ids. *Not found*: a chunk without a word of the query (BM25's score 0) is in no
list of BM25's.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from lm_eval_kinject.corpus.corpus import Corpus
from lm_eval_kinject.provenance import fingerprint
from lm_eval_kinject.records import Hit, Query
from lm_eval_kinject.retrieval.dense import DenseRetriever
from lm_eval_kinject.retrieval.filters import Allowed
from lm_eval_kinject.retrieval.protocol import Hits, check_k, hits_of, id_ranks
from lm_eval_kinject.retrieval.sparse import BM25

__all__ = ["DEPTH", "Hybrid"]

DEPTH = 100
"""Hits of each list that count at least, as far as the corpus has as many."""

_K = 60  # the constant of the paper, chosen there in a pilot and never tuned since


class Hybrid:
    """Reciprocal rank fusion of a dense retriever and BM25.

    Args:
        name: as given by the user (``hybrid``, ``hybrid:bge``).
        dense: searches by vectors; its corpus is what is searched.
        sparse: searches by words, over the same corpus.
        allowed: the chunks that may be found, of both; None: all.
    """

    def __init__(self, name: str, dense: DenseRetriever, sparse: BM25, allowed: Allowed | None = None) -> None:
        self.name = name
        self.allowed = allowed
        self.corpus: Corpus = dense.corpus
        self.dense = dense
        self.sparse = sparse
        self._order = id_ranks(self.corpus)

    @property
    def fingerprint(self) -> str:
        """See :class:`~lm_eval_kinject.retrieval.protocol.Retriever`."""
        return fingerprint({**_fusion(), "dense": self.dense.fingerprint, "sparse": self.sparse.fingerprint})

    def provenance(self) -> dict[str, Any]:
        """See :class:`~lm_eval_kinject.retrieval.protocol.Retriever`; ``parts`` has what the two say of themselves."""
        dense = self.dense.provenance()
        return {
            "name": "hybrid" if self.name == "hybrid" else f"hybrid:{dense['name']}",
            **_fusion(),
            "corpus": self.corpus.fingerprint,
            "parts": [dense, self.sparse.provenance()],
            "fingerprint": self.fingerprint,
        }

    def search(self, queries: Sequence[Query], k: int) -> list[Hits]:
        """See :class:`~lm_eval_kinject.retrieval.protocol.Retriever`; scores are fused ones, 2 / 61 at most."""
        check_k(k, self.corpus, self.allowed)
        if k == 0:
            return [() for _ in queries]
        depth = min(len(self.corpus) if self.allowed is None else len(self.allowed), max(k, DEPTH))
        lists = zip(self.dense.search(queries, depth), self.sparse.search(queries, depth), strict=True)
        return [self._fused(_ranks(dense), _ranks(h for h in sparse if h.score > 0), k) for dense, sparse in lists]

    def _fused(self, dense: dict[str, int], sparse: dict[str, int], k: int) -> Hits:
        scores = {id_: _score(dense.get(id_), sparse.get(id_)) for id_ in dense.keys() | sparse.keys()}
        rows = self.corpus.rows
        best = sorted(scores, key=lambda id_: (-scores[id_], self._order[rows[id_]]))[:k]
        return hits_of(self.corpus, [rows[id_] for id_ in best], [scores[id_] for id_ in best])


def _fusion() -> dict[str, Any]:
    return {"kind": "hybrid", "fusion": "reciprocal rank", "constant": _K, "depth": DEPTH, "ties": "share a rank"}


def _ranks(hits: Iterable[Hit]) -> dict[str, int]:
    """Ranks by chunk id; of equal scores all have the first's rank."""
    ranks: dict[str, int] = {}
    last, shared = None, 0
    for hit in hits:
        if hit.score != last:
            last, shared = hit.score, hit.rank
        ranks[hit.chunk.id] = shared
    return ranks


def _score(dense: int | None, sparse: int | None) -> float:
    """The fused score, rounded once, so that sums which are equal as fractions are equal as floats, too."""
    if dense is None or sparse is None:
        return 1 / (_K + (dense or sparse or 0))
    return (2 * _K + dense + sparse) / ((_K + dense) * (_K + sparse))
