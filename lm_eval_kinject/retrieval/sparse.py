"""BM25 over a corpus, computed by bm25s.

What it is for: retrieval by shared words, with no model and nothing on disk: 2,500 chunks are indexed in about 0.4 s,
so there is no cache that could go stale. What it does not do: synonyms, spelling.

The one idea is the formula, with Lucene's idf, which is never negative:

    score(q, d) = sum over tokens t of q:  idf(t) * tf(t, d) * (k1 + 1) / (tf(t, d) + k1 * (1 - b + b * |d| / avg))
    idf(t) = ln(1 + (N - df(t) + 0.5) / (df(t) + 0.5))

A token that stands twice in the query counts twice. k1 = 0.9 and b = 0.4 are Pyserini's defaults. bm25s leaves out
the factor k1 + 1, as newer Lucene does; it is multiplied in here, and changes no order.
"""

from __future__ import annotations

import logging
import re
import unicodedata
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from lm_eval_kinject.corpus.corpus import Corpus
from lm_eval_kinject.provenance import fingerprint
from lm_eval_kinject.records import Query
from lm_eval_kinject.retrieval.filters import Allowed
from lm_eval_kinject.retrieval.protocol import Floats, Hits, check_k, hits_of, id_ranks, top_rows

__all__ = ["BM25", "tokenise"]

K1 = 0.9
B = 0.4
_CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af"
_TOKEN = re.compile(rf"[{_CJK}]|[^\W{_CJK}]+")


def tokenise(text: str) -> list[str]:
    """Tokens of a text: Unicode NFKC, lower case, runs of letters, digits and underscores.

    Each Chinese, Japanese or Korean character is a token of its own. There is no stemming and no stop-word list, so
    that every language is treated alike; idf makes frequent words light.
    """
    return _TOKEN.findall(unicodedata.normalize("NFKC", text).lower())


class BM25:
    """BM25 over chunk texts (titles aren't indexed).

    Args:
        corpus: what is searched.
        k1: how slowly repeated words saturate, >= 0.
        b: how much long chunks are held back, 0 to 1.
        allowed: the chunks that may be found; None: all. idf and lengths are those of the whole corpus.
    """

    name = "bm25"

    def __init__(self, corpus: Corpus, *, k1: float = K1, b: float = B, allowed: Allowed | None = None) -> None:
        import bm25s

        logging.getLogger("bm25s").setLevel(logging.WARNING)  # it sets itself to DEBUG, which any root handler shows
        self.corpus = corpus
        self.k1 = k1
        self.b = b
        self.allowed = allowed
        self._ranks = id_ranks(corpus)
        documents = [tokenise(chunk.text) for chunk in corpus.chunks]
        self._index: Any = None
        if any(documents):
            self._index = bm25s.BM25(k1=k1, b=b, method="lucene", dtype="float64")
            self._index.index(documents, show_progress=False)

    def _settings(self) -> dict[str, Any]:
        filtered = {} if self.allowed is None else {"filter": self.allowed.provenance()}
        return {
            **filtered,
            "name": self.name,
            "kind": "sparse",
            "corpus": self.corpus.fingerprint,
            "k1": self.k1,
            "b": self.b,
            "idf": "lucene",
            "tokens": "nfkc-lower-word-cjk",
        }

    @property
    def fingerprint(self) -> str:
        """See :class:`~lm_eval_kinject.retrieval.protocol.Retriever`."""
        return fingerprint(self._settings())

    def provenance(self) -> dict[str, Any]:
        """See :class:`~lm_eval_kinject.retrieval.protocol.Retriever`."""
        return {**self._settings(), "fingerprint": self.fingerprint}

    def search(self, queries: Sequence[Query], k: int) -> list[Hits]:
        """See :class:`~lm_eval_kinject.retrieval.protocol.Retriever`; chunks that share no word score 0."""
        check_k(k, self.corpus, self.allowed)
        if k == 0:
            return [() for _ in queries]
        found: dict[str, Hits] = {}
        for query in queries:
            if query.text not in found:
                scores = self._scores(query.text)
                rows = self._best(scores, k)
                found[query.text] = hits_of(self.corpus, rows, scores[rows])
        return [found[query.text] for query in queries]

    def _best(self, scores: Floats, k: int) -> npt.NDArray[np.int64]:
        if self.allowed is None:
            return top_rows(scores, self._ranks, k)
        rows = self.allowed.rows
        return rows[top_rows(scores[rows], self._ranks[rows], k)]

    def _scores(self, text: str) -> Floats:
        """Scores of all chunks, shape (chunks,)."""
        known = [] if self._index is None else [t for t in tokenise(text) if t in self._index.vocab_dict]
        if not known:
            return np.zeros(len(self.corpus))
        scores: Floats = self._index.get_scores(known) * (self.k1 + 1)
        return scores
