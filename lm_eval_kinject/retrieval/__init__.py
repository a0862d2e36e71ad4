"""Retrieval: dense (any encoder), BM25 and the controls, behind one protocol; indexes on disk, stores, filters."""

from __future__ import annotations

from lm_eval_kinject.retrieval.index import (
    DenseIndex,
    build_index,
    cache_dir,
    cached_indexes,
    index_info,
    index_settings,
    open_index,
    verify_index,
)
from lm_eval_kinject.retrieval.make import (
    CONTROLS,
    RETRIEVERS,
    encoder_of,
    make_index,
    make_retriever,
    make_store,
    retriever_problems,
    trainable,
    trainable_problems,
)
from lm_eval_kinject.retrieval.protocol import Hits, Retriever

__all__ = [
    "CONTROLS",
    "RETRIEVERS",
    "DenseIndex",
    "Hits",
    "Retriever",
    "build_index",
    "cache_dir",
    "cached_indexes",
    "encoder_of",
    "index_info",
    "index_settings",
    "make_index",
    "make_retriever",
    "make_store",
    "open_index",
    "retriever_problems",
    "trainable",
    "trainable_problems",
    "verify_index",
]
