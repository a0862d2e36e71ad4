"""Documents that a person asks: read once, each a collection of its own, searched together as far as they are chosen.

What it is for: `read_papers` reads files and folders into `Paper`s and says what it can't read, `Searching` finds
passages in some of them. What it does not do: it asks no model (talk.py) and shows nothing (turns.py).

The one idea: a paper has its own chunks and its own vectors and knows of no other. What is searched for one question is
the papers chosen for it, side by side, made for that question; so nothing of an earlier upload, or of somebody else's,
can be in it, and no paper is embedded twice.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from lm_eval_kinject.corpus.corpus import Corpus, make_corpus
from lm_eval_kinject.corpus.sources.documents import DOCUMENT_READERS
from lm_eval_kinject.corpus.sources.files import Files, Source
from lm_eval_kinject.corpus.sources.left_out import Reading
from lm_eval_kinject.errors import CorpusError
from lm_eval_kinject.provenance import fingerprint
from lm_eval_kinject.records import Chunk, Document, Hit, Query
from lm_eval_kinject.retrieval import DenseIndex, build_index, encoder_of, index_settings
from lm_eval_kinject.retrieval.dense import DenseRetriever
from lm_eval_kinject.retrieval.encoders import Encoder, Vectors
from lm_eval_kinject.retrieval.hybrid import Hybrid
from lm_eval_kinject.retrieval.protocol import Retriever
from lm_eval_kinject.retrieval.sparse import BM25

__all__ = ["KINDS", "Limits", "Paper", "Place", "Searching", "Tell", "files_in", "label_of", "place_of", "read_papers"]

KINDS = (*DOCUMENT_READERS, ".md", ".markdown", ".txt")
"""Endings of files that can be asked: documents, and no tables."""

Tell = Callable[[str, float], None]
"""Called with what is being done, and how much of it is done, 0 to 1."""

_AROUND = 1500  # characters shown before and behind a passage of a text without pages
_LOOK = 0.3  # seconds between two looks at a reading

# PDFium may be used by one thread at a time, whoever's file it is.
_READER = ThreadPoolExecutor(max_workers=1, thread_name_prefix="reading")


@dataclass(frozen=True, slots=True)
class Limits:
    """What one person may bring along.

    Attributes:
        files: how many at most.
        megabytes: of one file.
        characters: of text in all of them.
    """

    files: int = 100
    megabytes: int = 50
    characters: int = 20_000_000


@dataclass(eq=False)
class Paper:
    """One file.

    Attributes:
        name: as it is shown; unique among those that are asked together, and the start of its chunks' ids.
        documents: its texts; of an e-book one a chapter.
        corpus: its chunks.
        ocr: pages whose text tesseract has read.
        notes: what of it could not be read.
        cache: where its indexes are kept; None: the usual place.
    """

    name: str
    documents: dict[str, Document]
    corpus: Corpus
    ocr: int = 0
    notes: tuple[str, ...] = ()
    cache: Path | None = None
    _indexes: dict[str, DenseIndex] = field(default_factory=dict, repr=False)

    @property
    def pages(self) -> int:
        """How many pages it has; 0 where it has none that are numbered."""
        return sum(len(document.pages) for document in self.documents.values())

    @property
    def characters(self) -> int:
        """Length of its text."""
        return sum(len(document.text) for document in self.documents.values())

    def index(self, encoder: Encoder, tell: Tell) -> DenseIndex:
        """Its vectors, made when they are first asked for."""
        key = fingerprint(encoder.settings)
        if key not in self._indexes:

            def progress(done: int, of: int) -> None:
                tell(f"Indexing {self.name}: {done:,} of {of:,} passages", done / max(of, 1))

            tell(f"Indexing {self.name}: {len(self.corpus):,} passages", 0.0)
            self._indexes[key] = build_index(self.corpus, encoder, cache=self.cache, progress=progress)
        return self._indexes[key]


# Reading --------------------------------------------------------------------------------------------------------------


def files_in(place: Path) -> list[Path]:
    """The documents of a folder, or the file itself; nothing hidden, and nothing that a link leads out to.

    Raises:
        CorpusError: there is no document.
    """
    if place.is_file():
        return [place]
    root = place.resolve()
    within = (file for file in sorted(place.rglob("*")) if file.suffix.lower() in KINDS and file.is_file())
    found = [
        file
        for file in within
        if not any(part.startswith(".") for part in file.relative_to(place).parts)
        and file.resolve().is_relative_to(root)
    ]
    if not found:
        raise CorpusError(f"The folder {place} has no document: put files ending in {', '.join(KINDS)} there.")
    return found


def read_papers(
    files: Iterable[tuple[Path, str]],
    *,
    limits: Limits,
    beside: Sequence[Paper] = (),
    cache: Path | None = None,
    tell: Tell = lambda said, share: None,
) -> tuple[list[Paper], list[str]]:
    """Reads files, each for itself: what is wrong with one costs no other.

    Args:
        files: each with its name for people; of two of one name the second gets a number.
        limits: how much may be there, with those beside.
        beside: papers that are there already.
        cache: where their indexes are to be kept; None: the usual place.
        tell: hears what is being done.

    Returns:
        The papers, and a message for each file that isn't among them.
    """
    papers: list[Paper] = []
    problems: list[str] = []
    files = list(files)
    for number, (path, name) in enumerate(files):
        there = [*beside, *papers]
        tell(f"Reading {name}", number / len(files))

        def say(said: str, share: float = number / len(files)) -> None:
            tell(said, share)

        try:
            paper = _read(path, name, there, limits, cache, say)
        except CorpusError as problem:
            problems.append(str(problem).replace("The corpus file ", "").replace("The corpus ", ""))
            continue
        if isinstance(paper, str):
            problems.append(paper)
        else:
            papers.append(paper)
    return papers, problems


def _read(
    path: Path, name: str, there: Sequence[Paper], limits: Limits, cache: Path | None, say: Callable[[str], None]
) -> Paper | str:
    """One file as a paper, or why it isn't taken."""
    if path.suffix.lower() not in KINDS:
        return f"{name} is none of the kinds that can be asked: take files ending in {', '.join(KINDS)}."
    if len(there) >= limits.files:
        return f"{name} would be more than {limits.files} documents: remove some first."
    size = path.stat().st_size
    if size > limits.megabytes << 20:
        return f"{name} has {size >> 20:,} MB, and {limits.megabytes} MB are the most: divide it."
    reading = Reading(name, silent=True)
    documents = _texts(path, reading, say)
    if sum(len(one.text) for one in documents) + sum(paper.characters for paper in there) > limits.characters:
        return f"{name} would be more than {limits.characters:,} characters of text in all: remove others first."
    texts = [one.text for one in documents]
    if any(texts == [one.text for one in paper.documents.values()] for paper in there):
        return f"{name} is there already."
    unique = _unique(name, {paper.name for paper in there})
    named = [replace(one, id=unique + one.id.removeprefix(path.name)) for one in documents]
    corpus = make_corpus(unique, Source(named, f"file {unique}"))
    notes = tuple(one.reason.replace("The corpus file ", "") for one in reading.left_out)
    return Paper(unique, {one.id: one for one in named}, corpus, reading.pages_by_ocr, notes, cache)


def _texts(path: Path, reading: Reading, say: Callable[[str], None]) -> list[Document]:
    """A file's documents; says how many pages tesseract has read by then, which takes seconds each."""
    found = _READER.submit(lambda: [one for one in Files([path], path.parent, reading) if isinstance(one, Document)])
    said = 0
    while wait([found], timeout=_LOOK).not_done:
        if reading.pages_by_ocr > said:
            said = reading.pages_by_ocr
            say(f"Reading {path.name}: {said} scanned page{'s' * (said > 1)} by OCR")
    return found.result()


def _unique(name: str, taken: set[str]) -> str:
    stem, suffix = os.path.splitext(name)
    number, found = 1, name
    while found in taken:
        number += 1
        found = f"{stem} ({number}){suffix}"
    return found


# Where a passage stands -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Place:
    """A passage in its surroundings.

    Attributes:
        label: file, chapter and page.
        before, passage, behind: what stands on its pages; of a text without pages, the text around it.
        starts, ends: whether nothing was cut off there.
    """

    label: str
    before: str
    passage: str
    behind: str
    starts: bool = True
    ends: bool = True


def label_of(chunk: Chunk) -> str:
    """File (and an e-book's chapter) and pages, for people."""
    pages = chunk.meta.get("pages")
    if not pages:
        return chunk.document_id
    first, last = pages
    return f"{chunk.document_id}, page {first}" if first == last else f"{chunk.document_id}, pages {first} to {last}"


def place_of(papers: Iterable[Paper], chunk: Chunk) -> Place:
    """A chunk among what stands around it in its document."""
    document = next(paper.documents[chunk.document_id] for paper in papers if chunk.document_id in paper.documents)
    start, end = chunk.meta.get("chars") or (0, len(document.text))
    first, last = max(0, start - _AROUND), min(len(document.text), end + _AROUND)
    if pages := chunk.meta.get("pages"):
        first = max(first, document.pages[pages[0] - 1] if pages[0] > 1 else 0)
        last = min(last, document.pages[pages[1]] if pages[1] < len(document.pages) else len(document.text))
        first, last = min(first, start), max(last, end)
    starts = first in (0, *document.pages)
    ends = last in (len(document.text), *document.pages)
    text = document.text
    return Place(label_of(chunk), text[first:start], text[start:end], text[end:last], starts, ends)


# Searching ------------------------------------------------------------------------------------------------------------


class _OneAtATime:
    """An encoder that several people's questions and documents share: one batch after the other."""

    def __init__(self, encoder: Encoder) -> None:
        self._encoder, self._lock = encoder, threading.Lock()
        self.settings, self.device = encoder.settings, encoder.device

    @property
    def queries_cut(self) -> int:
        return self._encoder.queries_cut

    @queries_cut.setter
    def queries_cut(self, count: int) -> None:
        self._encoder.queries_cut = count

    def encode_queries(self, texts: Sequence[str]) -> Vectors:
        with self._lock:
            return self._encoder.encode_queries(texts)

    def encode_passages(self, chunks: Sequence[Chunk]) -> tuple[Vectors, int]:
        with self._lock:
            return self._encoder.encode_passages(chunks)

    def reads(self, chunk: Chunk) -> str:
        return self._encoder.reads(chunk)


class Searching:
    """Finds passages with any retriever that needs no gold; loads each encoder once, for everybody."""

    def __init__(self) -> None:
        self._encoders: dict[str, Encoder | None] = {}
        self._lock = threading.Lock()

    def prepare(self, papers: Iterable[Paper], retriever: str, tell: Tell) -> Encoder | None:
        """Embeds what isn't embedded yet.

        Raises:
            KinjectError: the retriever is unknown, or its model can't be had.
        """
        with self._lock:
            if retriever not in self._encoders:
                if retriever != "bm25":
                    tell(f"Loading {retriever}", 0.0)
                found = encoder_of(retriever)
                self._encoders[retriever] = None if found is None else _OneAtATime(found)
            encoder = self._encoders[retriever]
        if encoder is not None:
            for paper in papers:
                paper.index(encoder, tell)
        return encoder

    def search(self, papers: Sequence[Paper], question: str, retriever: str, k: int, tell: Tell) -> tuple[Hit, ...]:
        """The best passages of these papers, best first, ``k`` or as many as there are.

        Of bm25 those without a word of the question are left out.
        """
        encoder = self.prepare(papers, retriever, tell)
        made = _retriever(papers, retriever, encoder, tell)
        hits = made.search([Query(question)], min(k, len(made.corpus)))[0]
        return tuple(hit for hit in hits if retriever != "bm25" or hit.score > 0)


def _retriever(papers: Sequence[Paper], name: str, encoder: Encoder | None, tell: Tell) -> Retriever:
    """A retriever over the papers side by side."""
    corpus = _together([paper.corpus for paper in papers])
    if encoder is None:
        return BM25(corpus)
    indexes = [paper.index(encoder, tell) for paper in papers]
    settings: dict[str, Any] = index_settings(corpus, encoder)
    index = DenseIndex(
        np.concatenate([one.vectors for one in indexes]),
        settings,
        fingerprint(settings),
        sum(one.passages_cut for one in indexes),
    )
    dense = DenseRetriever(name.removeprefix("hybrid:"), corpus, encoder, index)
    return Hybrid(name, dense, BM25(corpus)) if name.partition(":")[0] == "hybrid" else dense


def _together(corpora: Sequence[Corpus]) -> Corpus:
    if len(corpora) == 1:
        return corpora[0]
    chunks = tuple(chunk for corpus in corpora for chunk in corpus.chunks)
    return replace(corpora[0], name="papers", chunks=chunks, fingerprint=fingerprint([c.fingerprint for c in corpora]))
