"""Search by vectors: embeds the questions, and finds the chunks with the highest inner product, exactly.

What it is for: any encoder of ``encoders.py`` over an index of ``index.py``. What it does not do: approximate search.

The one idea: FAISS proposes, float64 decides. FAISS's float32 sums differ in their last bits with the batch and with a
chunk's row, which would order equal chunks by accident. So it fetches a margin beyond k, the candidates' inner
products are computed again one by one, and ties break by chunk id; where the k-th score reaches the margin's end
the margin grows.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from lm_eval_kinject.corpus.corpus import Corpus
from lm_eval_kinject.provenance import fingerprint
from lm_eval_kinject.records import Chunk, Query
from lm_eval_kinject.retrieval.encoders import Encoder, Vectors
from lm_eval_kinject.retrieval.index import DenseIndex
from lm_eval_kinject.retrieval.protocol import Hits, check_k, hits_of, id_ranks, top_rows

__all__ = ["DenseRetriever"]

Doubles: TypeAlias = npt.NDArray[np.float64]

_MARGIN = 32
_FLOAT32_SLACK = 1e-5  # of the product of two vectors' lengths: more than a float32 sum can be off


class DenseRetriever:
    """Exact inner-product search over a corpus.

    Args:
        name: as given by the user.
        corpus: what is searched; its rows are the index's.
        encoder: embeds the questions.
        index: the corpus's vectors, made by the same encoder.
    """

    def __init__(self, name: str, corpus: Corpus, encoder: Encoder, index: DenseIndex) -> None:
        self.name = name
        self.corpus = corpus
        self.encoder = encoder
        self.index = index
        self._ranks = id_ranks(corpus)
        self._known: dict[str, Vectors] = {}
        self._longest = float(np.sqrt(np.max(np.einsum("ij,ij->i", index.vectors, index.vectors))))

    @property
    def fingerprint(self) -> str:
        """See :class:`~lm_eval_kinject.retrieval.protocol.Retriever`."""
        return fingerprint({"kind": "dense", "index": self.index.settings})

    def provenance(self) -> dict[str, Any]:
        """See :class:`~lm_eval_kinject.retrieval.protocol.Retriever`."""
        return {
            "name": _without_folders(self.name),
            "kind": "dense",
            "corpus": self.corpus.fingerprint,
            "encoder": dict(self.encoder.settings),
            "device": self.encoder.device,
            "index": {"key": self.index.key, "passages_cut": self.index.passages_cut},
            "queries_cut": self.encoder.queries_cut,
            "fingerprint": self.fingerprint,
        }

    def search(self, queries: Sequence[Query], k: int) -> list[Hits]:
        """See :class:`~lm_eval_kinject.retrieval.protocol.Retriever`.

        Each text is embedded once in a retriever's life, together with all other new ones of the call.
        """
        check_k(k, self.corpus)
        if k == 0 or not queries:
            return [() for _ in queries]
        texts = sorted({query.text for query in queries})
        self._embed(texts)
        found = dict(zip(texts, self._nearest(np.stack([self._known[text] for text in texts]), k), strict=True))
        return [found[query.text] for query in queries]

    def unit_vectors(self, query: Query, chunks: Sequence[Chunk]) -> tuple[Doubles, Doubles]:
        """The vectors of a query and of chunks of the corpus, shapes (dimension,) and (chunks, dimension).

        Each has length 1, so that products are cosines; where the encoder's similarity is the cosine they are the
        very vectors that are searched.
        """
        self._embed([query.text])
        asked = self._known[query.text].astype(np.float64)
        found = self.index.vectors[[self.corpus.rows[chunk.id] for chunk in chunks]].astype(np.float64)
        if self.encoder.settings.get("similarity") == "cosine":
            return asked, found
        return _unit(asked), _unit(found)

    def _embed(self, texts: Sequence[str]) -> None:
        new = [text for text in texts if text not in self._known]
        if new:
            self._known.update(zip(new, self.encoder.encode_queries(new), strict=True))

    def _nearest(self, questions: Vectors, k: int) -> list[Hits]:
        """Hits of each question vector; shape (questions, dimension)."""
        logging.getLogger("faiss.loader").setLevel(logging.WARNING)  # says at INFO which instruction sets it looked for
        import faiss

        size = len(self.corpus)
        results: list[Hits | None] = [None] * len(questions)
        slack = 2 * _FLOAT32_SLACK * self._longest * np.linalg.norm(questions, axis=1)
        open_rows = list(range(len(questions)))
        fetched = min(size, k + _MARGIN)
        while open_rows:
            asked = np.ascontiguousarray(questions[open_rows])
            scores, rows = faiss.knn(asked, self.index.vectors, fetched, metric=faiss.METRIC_INNER_PRODUCT)
            unresolved = []
            for at, question in enumerate(open_rows):
                if fetched < size and scores[at, -1] >= scores[at, k - 1] - slack[question]:
                    unresolved.append(question)  # a chunk not fetched may tie with the k-th
                else:
                    results[question] = self._exact(questions[question], rows[at], k)
            open_rows = unresolved
            fetched = min(size, fetched * 4)
        return [hits for hits in results if hits is not None]

    def _exact(self, question: Vectors, rows: Any, k: int) -> Hits:
        # The sum runs along each row alone, so equal vectors get equal scores wherever they stand.
        products = self.index.vectors[rows].astype(np.float64) * question.astype(np.float64)
        scores = products.sum(axis=1)
        best = top_rows(scores, self._ranks[rows], k)
        return hits_of(self.corpus, rows[best], scores[best])


def _unit(vectors: Doubles) -> Doubles:
    """Vectors divided by their lengths; a vector of zeros stays one."""
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    unit: Doubles = vectors / np.where(lengths > 0, lengths, 1)
    return unit


def _without_folders(name: str) -> str:
    """A retriever's name fit to publish: of a path the last part only (``bge:/home/me/copy`` is ``bge:copy``)."""
    alias, colon, model = name.rpartition(":")
    return f"{alias}{colon}{Path(model).expanduser().resolve().name}" if Path(model).expanduser().is_dir() else name
