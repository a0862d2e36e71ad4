"""A large corpus is the same corpus: mapped chunks beside held ones, in all that is asked of them."""

from __future__ import annotations

import errno
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers.tiny_encoders import HashEncoder

from lm_eval_kinject.corpus import Corpus, load_corpus, make_corpus, mapped
from lm_eval_kinject.corpus.build import build_corpus
from lm_eval_kinject.corpus.mapped import MappedChunks
from lm_eval_kinject.corpus.sources.files import Source
from lm_eval_kinject.errors import CorpusError
from lm_eval_kinject.provenance import fingerprint_records
from lm_eval_kinject.records import Chunk, Document, Query
from lm_eval_kinject.retrieval import build_index, make_retriever
from lm_eval_kinject.retrieval.protocol import id_ranks

# Two batches of four and one of three; ids out of order, a document of three chunks that stand the wrong way round.
CHUNKS = (
    Chunk("b", "Eine “Brücke” über den Fluß.", "T", "d1", 2, "2025-01-02", {"url": "u", "pages": [1, 2], "x": None}),
    Chunk("a", "a library", "", "d1", 1),
    Chunk("é", "𝄞 music", "Musik", "d1", 0, meta={"n": 1.5, "deep": {"b": True}}),
    *(Chunk(f"c{i}", f"text number {i % 5}", document_id=f"c{i}") for i in range(8)),
)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """All corpora are large: they go to disk at four chunks. The cache."""
    monkeypatch.setattr(mapped, "LIMIT", 0)
    monkeypatch.setattr(mapped, "_ROWS", 4)
    monkeypatch.setenv("KINJECT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def held() -> Corpus:
    return Corpus("c", CHUNKS, fingerprint_records(CHUNKS), "here", chunking={"method": "as given"})


def test_a_mapped_corpus_is_the_same_as_a_held_one(small: Path) -> None:
    corpus = make_corpus("c", Source(CHUNKS, "here"))
    assert isinstance(corpus.chunks, MappedChunks)
    assert corpus.fingerprint == held().fingerprint
    assert len(corpus) == 11
    assert tuple(corpus.chunks) == CHUNKS
    assert tuple(corpus.chunks) == CHUNKS  # a second time, too
    assert [corpus.chunks[row] for row in range(11)] == list(CHUNKS)
    assert corpus.chunks[-11] == CHUNKS[0]
    assert corpus.chunks[1:9:3] == CHUNKS[1:9:3]
    assert corpus.chunks[::-1] == CHUNKS[::-1] == tuple(reversed(corpus.chunks))
    assert corpus.chunks == CHUNKS == corpus.chunks
    assert corpus.chunks != CHUNKS[::-1]
    assert corpus.chunks != CHUNKS[:-1]
    assert CHUNKS[4] in corpus.chunks
    assert corpus.chunks.index(CHUNKS[9]) == 9
    for row in (11, -12):
        with pytest.raises(IndexError):
            corpus.chunks[row]
    assert list(small.iterdir()) == []  # the file has no name


def test_what_is_looked_up_by_name_is_the_same(small: Path) -> None:
    corpus = make_corpus("c", Source(CHUNKS, "here"))
    assert corpus.ids == held().ids == [chunk.id for chunk in CHUNKS]
    assert corpus.rows["é"] == 2
    assert corpus.by_id == held().by_id == {chunk.id: chunk for chunk in CHUNKS}
    assert corpus.by_document == held().by_document
    assert corpus.by_document["d1"] == (CHUNKS[2], CHUNKS[1], CHUNKS[0])
    assert corpus.by_document["c3"] == (CHUNKS[6],)
    assert "nobody" not in corpus.by_id
    # a, b, c0 … c7, é
    assert list(id_ranks(corpus)) == [1, 0, 10, *range(2, 10)]


def test_the_same_is_found_in_it(small: Path) -> None:
    corpus, queries = make_corpus("c", Source(CHUNKS, "here")), [Query("text number 3"), Query("library", "a")]
    for name in ("bm25", "oracle", "random", "full"):
        assert [
            [(hit.chunk, hit.score) for hit in hits]
            for hits in make_retriever(name, corpus).search(queries[1:], 3)
        ] == [
            [(hit.chunk, hit.score) for hit in hits]
            for hits in make_retriever(name, held()).search(queries[1:], 3)
        ]  # fmt: skip
    one, other = (build_index(c, HashEncoder(), path=small / n) for c, n in ((corpus, "one"), (held(), "other")))
    assert one.key == other.key
    assert (small / "one" / "embeddings.npy").read_bytes() == (small / "other" / "embeddings.npy").read_bytes()


def test_documents_are_cut_and_built_corpora_opened_as_before(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = " ".join(f"Sentence number {i} stands here." for i in range(60))
    source = Source((Document("d", text), Document("e", "Short.")), "documents")
    corpus = make_corpus("c", source, words=20)
    assert isinstance(corpus.chunks, MappedChunks)
    assert " ".join(chunk.text for chunk in corpus.chunks) == f"{text} Short."
    assert corpus.counts == {"documents": 2, "cut": 1}
    built = build_corpus("c", Source(CHUNKS, "here"), tmp_path / "built")
    opened = load_corpus(tmp_path / "built")
    assert isinstance(opened.chunks, MappedChunks)
    monkeypatch.setattr(mapped, "LIMIT", 1 << 60)
    in_memory = load_corpus(tmp_path / "built")
    assert isinstance(in_memory.chunks, tuple)
    assert opened.chunks == in_memory.chunks
    assert opened.fingerprint == in_memory.fingerprint == built.fingerprint


def test_small_corpora_stay_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KINJECT_CACHE", str(tmp_path / "cache"))
    assert make_corpus("c", Source(CHUNKS, "here")).chunks == CHUNKS
    assert not (tmp_path / "cache").exists()
    # A batch and a bit may be held: two batches go to disk, and the rest of 552 when all have come.
    monkeypatch.setattr(mapped, "LIMIT", 1024 * (mapped._OVERHEAD + 100))
    chunks = [Chunk(f"c{i}", "x" * 100) for i in range(2600)]
    corpus = make_corpus("c", Source(chunks, "here"))
    assert isinstance(corpus.chunks, MappedChunks)
    assert [chunk.id for chunk in corpus.chunks] == [f"c{i}" for i in range(2600)]


@pytest.mark.parametrize(
    ("chunks", "message"),
    [
        ([*CHUNKS, Chunk("c6", "again")], "The corpus c has duplicate ids: 'c6'"),
        ([*CHUNKS, Chunk("e", " \n")], "The corpus c has chunks with empty texts: 'e'"),
    ],
)
def test_what_is_wrong_is_found_there_too(small: Path, chunks: list[Chunk], message: str) -> None:
    with pytest.raises(CorpusError, match=message):
        make_corpus("c", Source(chunks, "here"))


def test_a_full_disk_is_named(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        def __init__(self, file: Any) -> None:
            self.schema = mapped._Writer(file).schema

        def write_batch(self, batch: Any) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

    started = mapped._started
    monkeypatch.setattr(mapped, "_started", lambda: ((file := started()[0]), Full(file)))
    with pytest.raises(CorpusError, match=r"The corpus c is too large .*: No space left on device\. .*KINJECT_CACHE"):
        make_corpus("c", Source(CHUNKS, "here"))


def test_a_cache_that_cannot_be_written_is_no_obstacle(
    small: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    small.write_text("a file where the folder should be", encoding="utf-8")
    with caplog.at_level(logging.WARNING):
        assert make_corpus("c", Source(CHUNKS, "here")).chunks == CHUNKS
    assert "can't be written" in caplog.text


def test_chunks_pass_as_they_come(small: Path) -> None:
    """What a file of any length gives is never all in memory at once."""
    given: list[str] = []

    def items() -> Iterator[Chunk]:
        for chunk in CHUNKS:
            given.append(chunk.id)
            yield chunk

    keeper = mapped.Keeper("c")
    for number, chunk in enumerate(keeper.keeping(items()), start=1):
        assert chunk.id == given[-1]
        assert len(keeper._held) == number % 4
    assert len(given) == 11
