"""Corpora: from files, folders, bundled names, RealTimeQA or the Hub to checked, fingerprinted chunks."""

from __future__ import annotations

from lm_eval_kinject.corpus.chunk import CHUNK_WORDS, Chunker, Chunking, chunk_document, chunk_documents
from lm_eval_kinject.corpus.corpus import Corpus, bundled_corpora, load_corpus, make_corpus

__all__ = [
    "CHUNK_WORDS",
    "Chunker",
    "Chunking",
    "Corpus",
    "bundled_corpora",
    "chunk_document",
    "chunk_documents",
    "load_corpus",
    "make_corpus",
]
