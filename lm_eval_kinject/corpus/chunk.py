"""Cuts documents into passages of bounded length at sentence ends.

What it is for: raw documents (articles, pages, files) become chunks that a retriever returns whole. What it does not
do: it changes no character; each chunk is a slice of its document, less the space around it.

The one idea: a document of W words and a limit of S makes about n = ceil(W / S) chunks of nearly W / n words, not
n - 1 full ones and a stump: each cut falls at the sentence end nearest to that length, and n is counted anew after it.

    W = 400, S = 180:   |---- 133 ----|---- 133 ----|---- 134 ----|     and not     |-- 180 --|-- 180 --|40|
"""

from __future__ import annotations

import math
import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from functools import partial

from lm_eval_kinject.errors import ArgumentError
from lm_eval_kinject.records import Chunk, Document

__all__ = ["CHUNK_WORDS", "chunk_document", "chunk_documents", "count_words"]

CHUNK_WORDS = 180
"""Default limit. 180 English words are about 240 WordPiece tokens: they fit the 256 that MiniLM reads."""

_CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af"
_WORD = re.compile(rf"[{_CJK}]|[^\s{_CJK}]+")
# A sentence ends after . ! ? … (and what closes it: quotes, brackets) before space, after a CJK full stop, or at an
# empty line. A false end (after "Mr.") costs nothing: it is only a place where a cut may fall.
_END = re.compile(r"[.!?…]+[\"'”’)\]]*(?=\s)|[。！？]|\n\s*\n")


def count_words(text: str) -> int:
    """Number of words: runs of non-space characters; each Chinese, Japanese or Korean character counts as one."""
    return sum(1 for _ in _WORD.finditer(text))


def chunk_documents(documents: Iterable[Document], *, words: int = CHUNK_WORDS, overlap: int = 0) -> Iterator[Chunk]:
    """Chunks of several documents, in order; see :func:`chunk_document`."""
    for document in documents:
        yield from chunk_document(document, words=words, overlap=overlap)


def chunk_document(document: Document, *, words: int = CHUNK_WORDS, overlap: int = 0) -> list[Chunk]:
    """Cuts one document.

    Args:
        document: its text may be of any length.
        words: the most words in a chunk, before overlap.
        overlap: how many words of the chunk before are repeated at a chunk's start.

    Returns:
        One chunk with the document's own id where it fits as it is; otherwise chunks ``ID#0``, ``ID#1``, …, each with
        the document's title, date and meta, its id as ``document_id`` and the count as ``position``.

    Raises:
        ArgumentError: ``words`` < 1, or ``overlap`` negative or not below ``words``.
    """
    if words < 1 or not 0 <= overlap < words:
        raise ArgumentError(
            f"words={words} and overlap={overlap} can't be used: take words >= 1 and 0 <= overlap < words.", "chunking"
        )
    tokens = [match.span() for match in _WORD.finditer(document.text)]
    if len(tokens) <= words:
        return [_chunk(document, document.id, document.text, 0)]
    chunks = []
    for position, (first, last) in enumerate(_spans(document.text, tokens, words)):
        start = tokens[max(0, first - overlap)][0]
        chunks.append(
            _chunk(document, f"{document.id}#{position}", document.text[start : tokens[last - 1][1]], position)
        )
    return chunks


def _chunk(document: Document, chunk_id: str, text: str, position: int) -> Chunk:
    return Chunk(
        id=chunk_id,
        text=text,
        title=document.title,
        document_id=document.id,
        position=position,
        date=document.date,
        meta=document.meta,
    )


def _spans(text: str, tokens: list[tuple[int, int]], words: int) -> Iterator[tuple[int, int]]:
    """Half-open word ranges that cover all words, each at most ``words`` long, cut at sentence ends if near."""
    total = len(tokens)
    ends = _sentence_ends(text, tokens)
    first = 0
    while total - first > words:
        left = total - first
        wanted = left / math.ceil(left / words)
        # The sentence end nearest to the wanted length, but no stump: at least half of it. Else between two words.
        good = ends[bisect_left(ends, first + wanted / 2) : bisect_right(ends, first + words)]
        last = min(good, key=partial(_distance, first + wanted)) if good else first + math.ceil(wanted)
        yield first, last
        first = last
    yield first, total


def _distance(wanted: float, end: int) -> tuple[float, int]:
    return abs(end - wanted), end


def _sentence_ends(text: str, tokens: list[tuple[int, int]]) -> list[int]:
    """Word counts at which a sentence has just ended, ascending (without the text's own end)."""
    ends: list[int] = []
    word = 0
    for match in _END.finditer(text):
        while word < len(tokens) and tokens[word][1] <= match.end():
            word += 1
        if word and (not ends or ends[-1] != word):
            ends.append(word)
    return ends
