"""Search by vectors: embeds the questions, and finds the chunks with the highest inner product.

What it is for: any encoder of ``encoders.py`` over an index of ``index.py``, by the index itself (``exact.py``) or by a
store of it (``stores.py``), over all chunks or those that pass a filter. What it does not do: decide how vectors are
searched; it turns texts into questions and rows into hits.

The one idea: each text is embedded once, and the vectors of the index alone give scores.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lm_eval_kinject.corpus.corpus import Corpus
from lm_eval_kinject.provenance import fingerprint
from lm_eval_kinject.records import Chunk, Query
from lm_eval_kinject.retrieval.encoders import Encoder, Vectors
from lm_eval_kinject.retrieval.exact import Doubles, Exact, Nearest
from lm_eval_kinject.retrieval.filters import Allowed
from lm_eval_kinject.retrieval.index import DenseIndex
from lm_eval_kinject.retrieval.protocol import Hits, check_k, hits_of, id_ranks
from lm_eval_kinject.retrieval.stores import Approximate, Store

__all__ = ["DenseRetriever"]


class DenseRetriever:
    """Inner-product search over a corpus.

    Args:
        name: as given by the user.
        corpus: what is searched; its rows are the index's.
        encoder: embeds the questions.
        index: the corpus's vectors, made by the same encoder.
        store: what is searched for candidates; None: the index itself.
        allowed: the chunks that may be found; None: all.
    """

    def __init__(
        self,
        name: str,
        corpus: Corpus,
        encoder: Encoder,
        index: DenseIndex,
        *,
        store: Store | None = None,
        allowed: Allowed | None = None,
    ) -> None:
        self.name = name
        self.corpus = corpus
        self.encoder = encoder
        self.index = index
        self.store = store
        self.allowed = allowed
        ranks = id_ranks(corpus)
        self._finder: Nearest = Exact(index.vectors, ranks, None if allowed is None else allowed.rows)
        self._searched: dict[str, Any] = {}
        if store is not None:
            self._finder, self._searched = store.finder(ranks, allowed)
        self._known: dict[str, Vectors] = {}
        self._rows: dict[str, int] | None = None

    @property
    def fingerprint(self) -> str:
        """See :class:`~lm_eval_kinject.retrieval.protocol.Retriever`."""
        decides: dict[str, Any] = {"kind": "dense", "index": self.index.settings}
        if self.store is not None:
            decides["store"] = self.store.provenance()
        if self.allowed is not None:
            decides["filter"] = str(self.allowed.filter)
        return fingerprint(decides)

    def provenance(self) -> dict[str, Any]:
        """See :class:`~lm_eval_kinject.retrieval.protocol.Retriever`."""
        more: dict[str, Any] = {}
        if self.store is not None:
            more["store"] = dict(self._searched)
            if isinstance(self._finder, Approximate):
                more["store"]["searched_exactly"] = self._finder.searched_exactly
        if self.allowed is not None:
            more["filter"] = self.allowed.provenance()
        return {
            "name": _without_folders(self.name),
            "kind": "dense",
            "corpus": self.corpus.fingerprint,
            "encoder": dict(self.encoder.settings),
            "device": self.encoder.device,
            "index": {"key": self.index.key, "passages_cut": self.index.passages_cut},
            "queries_cut": self.encoder.queries_cut,
            **more,
            "fingerprint": self.fingerprint,
        }

    def search(self, queries: Sequence[Query], k: int) -> list[Hits]:
        """See :class:`~lm_eval_kinject.retrieval.protocol.Retriever`.

        Each text is embedded once in a retriever's life, together with all other new ones of the call.
        """
        check_k(k, self.corpus, self.allowed)
        if k == 0 or not queries:
            return [() for _ in queries]
        texts = sorted({query.text for query in queries})
        self._embed(texts)
        nearest = self._finder.nearest(np.stack([self._known[text] for text in texts]), k)
        found = {text: hits_of(self.corpus, *best) for text, best in zip(texts, nearest, strict=True)}
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


def _unit(vectors: Doubles) -> Doubles:
    """Vectors divided by their lengths; a vector of zeros stays one."""
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    unit: Doubles = vectors / np.where(lengths > 0, lengths, 1)
    return unit


def _without_folders(name: str) -> str:
    """A retriever's name fit to publish: of a path the last part only (``bge:/home/me/copy`` is ``bge:copy``)."""
    alias, colon, model = name.rpartition(":")
    return f"{alias}{colon}{Path(model).expanduser().resolve().name}" if Path(model).expanduser().is_dir() else name
