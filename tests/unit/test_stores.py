"""Stores: parameters, what is proposed and decided, measured recall, folders; each against exact search."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.tiny_encoders import HashEncoder, corpus_of

from lm_eval_kinject.corpus import Corpus
from lm_eval_kinject.errors import ArgumentError, IndexStoreError
from lm_eval_kinject.provenance import fingerprint
from lm_eval_kinject.records import Query
from lm_eval_kinject.retrieval import (
    build_index,
    cached_indexes,
    index_info,
    make_store,
    open_index,
    retriever_problems,
    stores,
    verify_index,
)
from lm_eval_kinject.retrieval.dense import DenseRetriever
from lm_eval_kinject.retrieval.exact import Exact
from lm_eval_kinject.retrieval.faiss_stores import FAISS_KINDS
from lm_eval_kinject.retrieval.filters import parse_filter
from lm_eval_kinject.retrieval.proposers import Distinct
from lm_eval_kinject.retrieval.stores import KINDS, StoreSpec, measured_recall, parse_store

NAMES = [kind.name for kind in FAISS_KINDS]
QUERIES = [Query(f"question {i}") for i in range(20)]
ENCODER = HashEncoder(dimension=16)
CORPUS = corpus_of([f"text {i % 350}" for i in range(400)])  # 50 texts stand there twice


def made(cache: Path, store: str = "flat", *, corpus: Corpus = CORPUS, condition: str | None = None) -> DenseRetriever:
    index = build_index(corpus, ENCODER, cache=cache)
    allowed = None if condition is None else parse_filter(condition).of(corpus)
    held = make_store(store, index, corpus, cache=cache)
    return DenseRetriever("hash", corpus, ENCODER, index, store=held, allowed=allowed)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("stores")


# Parameters -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("hnws", ["store=hnws is unknown. Did you mean hnsw?"]),
        ("faiss", ["is unknown", "Use one of flat, hnsw, ivf-pq, sq8"]),
        ("flat;M=3", ["M=3 is no parameter of flat; it takes none"]),
        ("hnsw;nlist=3;ef=0", ["nlist=3 is no parameter of hnsw; it takes M, ef", "ef=0 must be a whole number"]),
        ("hnsw;M=wide;", ["M=wide must be a whole number of links, 2 or more", "an empty part is no parameter"]),
    ],
)
def test_stores_that_cannot_be_used(text: str, parts: list[str]) -> None:
    problems = retriever_problems("minilm", store=text)
    assert len(problems) == max(1, len(parts) - ("faiss" in text))
    for part in parts:
        assert part in "\n".join(problems)


def test_parameters_are_read_in_any_order() -> None:
    assert parse_store("hnsw; ef=64 ;M=8") == StoreSpec("hnsw", (("M", 8), ("ef", 64)))
    assert parse_store("flat").flat


@pytest.mark.parametrize("name", ["bm25", "random", "oracle"])
def test_retrievers_without_vectors_have_no_store(name: str) -> None:
    (problem,) = retriever_problems(name, store="hnsw")
    assert f"store= has no meaning for retriever={name}, which has no vectors" in problem


@pytest.mark.parametrize(
    ("name", "given", "chunks", "dimension", "build", "search"),
    [
        ("hnsw", {}, 100_000, 384, {"M": 16, "ef_construction": 100}, {"ef": 128}),
        ("hnsw", {"M": 32}, 100_001, 384, {"M": 32, "ef_construction": 100}, {"ef": 256}),
        ("hnsw", {"ef": 9}, 1_000_001, 384, {"M": 24, "ef_construction": 100}, {"ef": 9}),
        ("ivf-pq", {}, 10_000, 384, {"nlist": 200, "m": 48}, {"nprobe": 28}),  # 2 * 100; 2 * 14.14
        ("ivf-pq", {}, 3, 8, {"nlist": 3, "m": 1}, {"nprobe": 3}),
        ("ivf-pq", {"nlist": 7}, 10_000, 100, {"nlist": 7, "m": 10}, {"nprobe": 7}),  # 100 / 8 = 12, and 10 divides
        ("sq8", {}, 10, 7, {}, {}),
    ],
)
def test_defaults_follow_from_the_size(name, given, chunks, dimension, build, search) -> None:
    assert KINDS[name].settings(given, chunks, dimension) == ({**build, "seed": 1234}, search)


def test_parameters_that_do_not_fit_the_corpus(cache: Path) -> None:
    with pytest.raises(ArgumentError) as caught:
        made(cache, "ivf-pq;nlist=401;nprobe=402;m=5")
    assert [problem.split(":")[0] for problem in caught.value.problems] == [
        "nlist=401 is more than the 400 chunks of the corpus",
        "nprobe=402 is more than the 401 lists that there are",
        "m=5 doesn't divide the 16 numbers of a vector",
    ]


# Searching ------------------------------------------------------------------------------------------------------------


def test_distinct_vectors_and_their_rows() -> None:
    vectors = np.array([[1.0], [2.0], [1.0], [3.0], [2.0], [1.0]], np.float32)
    distinct = Distinct.of(vectors, np.array([5, 1, 2, 3, 0, 4]))
    assert distinct.rows.tolist() == [2, 5, 0, 4, 1, 3]  # by id, within one by rank
    assert distinct.starts.tolist() == [0, 3, 5, 6]
    assert distinct.any_row.tolist() == [0, 1, 3]
    mask = np.array([True, False, False, False, True, True])
    assert distinct.passing(mask).tolist() == [True, True, False]
    assert distinct.rows_of(np.array([2, 0]), 2, None).tolist() == [3, 2, 5]
    assert distinct.rows_of(np.array([0, 2, 1]), 1, mask).tolist() == [5, 4]


@pytest.mark.parametrize("name", NAMES)
def test_found_chunks_have_the_scores_and_the_order_of_exact_search(name: str, cache: Path) -> None:
    right = made(cache).search(QUERIES, 400)
    for exact_hits, hits in zip(right, made(cache, name).search(QUERIES, 20), strict=True):
        score = {hit.chunk.id: hit.score for hit in exact_hits}
        assert [hit.score for hit in hits] == [score[hit.chunk.id] for hit in hits]
        kept = {hit.chunk.id for hit in hits}
        assert [hit.chunk.id for hit in hits] == [hit.chunk.id for hit in exact_hits if hit.chunk.id in kept]


@pytest.mark.parametrize("name", ["hnsw", "sq8", "ivf-pq;nlist=4;nprobe=4;m=16"])
def test_a_wide_search_is_the_exact_one(name: str, cache: Path) -> None:
    assert made(cache, name).search(QUERIES, 5) == made(cache).search(QUERIES, 5)


@pytest.mark.parametrize("name", NAMES)
def test_equal_texts_come_together_in_the_order_of_ids(name: str, tmp_path: Path) -> None:
    corpus = corpus_of([*(f"other {i}" for i in range(150)), *["the same"] * 300])
    (hits,) = made(tmp_path, name, corpus=corpus).search([Query("the same")], 200)
    same = [hit.chunk.id for hit in hits if hit.chunk.text == "the same"]
    assert same == [f"c{i:03}" for i in range(150, 150 + len(same))]
    assert len(same) >= 190  # its own vector is the nearest but for a few longer ones


@pytest.mark.parametrize("name", ["hnsw", "sq8", "ivf-pq;nlist=4;nprobe=4;m=16"])
def test_a_filter_is_kept_to_by_the_store_itself(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    items = [f"text {i}" for i in range(300)]
    corpus = corpus_of(items)
    for i, chunk in enumerate(corpus.chunks):
        object.__setattr__(chunk, "meta", {"source": "odd" if i % 2 else "even"})
    few = made(tmp_path, name, corpus=corpus, condition="source=odd")
    assert few.provenance()["store"]["searched"].startswith("exactly")
    assert few.provenance()["store"]["recall"] is None
    monkeypatch.setattr(stores, "_FEW", 0)
    monkeypatch.setattr(stores, "_LITTLE", 0)
    filtered = made(tmp_path, name, corpus=corpus, condition="source=odd")
    said = filtered.provenance()
    assert said["store"]["recall"]["sample"] == 150
    assert said["store"]["recall"]["recall@5"] == 1.0  # 128 of 150 are proposed
    assert filtered.search(QUERIES, 5) == few.search(QUERIES, 5)
    assert said["filter"]["chunks"] == 150


class Silent:
    """Proposes one id and no more."""

    def propose(self, questions: Any, count: int, search: Any, passing: Any) -> Any:
        found = np.full((len(questions), count), -1)
        found[:, 0] = 7
        return found

    def close(self) -> None:
        """Nothing is open."""


def test_where_too_little_is_proposed_the_question_is_searched_exactly(cache: Path) -> None:
    retriever = made(cache, "sq8")
    assert retriever.store is not None
    object.__setattr__(retriever.store, "proposer", Silent())
    assert [hits[0].chunk.id for hits in retriever.search(QUERIES, 1)] == ["c007"] * 20
    assert retriever.search(QUERIES, 3) == made(cache).search(QUERIES, 3)
    assert retriever.provenance()["store"]["searched_exactly"] == 20


# Recall ---------------------------------------------------------------------------------------------------------------


class Forgetful:
    """Exact, but for the best other: it is never found."""

    def __init__(self, exact: Exact) -> None:
        self.exact = exact

    def nearest(self, questions: Any, k: int) -> Any:
        lists = self.exact.nearest(questions, k + 1)
        return [(np.delete(rows, 1), np.delete(scores, 1)) for rows, scores in lists]


def test_recall_is_of_the_nearest_others() -> None:
    angles = np.linspace(0, 3, 1500)
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)  # a row's own is its nearest
    exact = Exact(vectors, np.arange(1500))
    assert measured_recall(exact, exact, vectors) == {"sample": 1000, "seed": 1234, "recall@1": 1.0, "recall@5": 1.0}
    missing = measured_recall(Forgetful(exact), exact, vectors)
    assert (missing["recall@1"], missing["recall@5"]) == (0.0, 0.8)
    rows = np.array([3, 500, 1499])
    few = Exact(vectors, np.arange(1500), rows)
    assert measured_recall(few, few, vectors, rows) == {"sample": 3, "seed": 1234, "recall@1": 1.0, "recall@5": 1.0}
    assert measured_recall(few, few, vectors, rows[:1]) == {"sample": 0, "seed": 1234}


def test_recall_is_in_manifest_and_results_and_measured_anew_for_another_search(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = made(tmp_path, "ivf-pq;nlist=40;m=1")
    assert first.store is not None
    assert first.store.path is not None
    manifest = index_info(first.store.path)
    said = first.provenance()["store"]
    assert manifest["search"] == {"nprobe": 13}  # 2 * sqrt(40) = 12.6
    assert said["recall"] == manifest["recall"]
    assert (said["nlist"], said["m"], said["nprobe"], manifest["distinct"]) == (40, 1, 13, 350)
    stamp = (first.store.path / "store.faiss").stat().st_mtime_ns
    with caplog.at_level(logging.WARNING):
        narrow = made(tmp_path, "ivf-pq;nlist=40;m=1;nprobe=1")
    assert narrow.store is not None
    assert narrow.store.path == first.store.path
    assert (first.store.path / "store.faiss").stat().st_mtime_ns == stamp
    recall = narrow.store.recall["recall@5"]
    assert recall < 0.9
    assert recall < said["recall"]["recall@5"]
    assert f"store=ivf-pq finds {100 * recall:.1f} % of the five nearest: raise nprobe= or m=" in caplog.text


# Folders --------------------------------------------------------------------------------------------------------------


def test_fingerprints_name_store_and_search_and_leave_flat_as_it_was(cache: Path) -> None:
    flat = made(cache)
    assert flat.fingerprint == fingerprint({"kind": "dense", "index": flat.index.settings})
    assert "store" not in flat.provenance()
    prints = {made(cache, store).fingerprint for store in ("hnsw", "hnsw;ef=200", "hnsw;M=8", "sq8", "ivf-pq")}
    assert len(prints | {flat.fingerprint}) == 6
    assert made(cache, "hnsw;ef=128").fingerprint == made(cache, "hnsw").fingerprint
    assert json.loads(json.dumps(made(cache, "hnsw").provenance()))["store"]["M"] == 16


@pytest.mark.parametrize("name", NAMES)
def test_a_store_is_the_same_when_built_again(name: str, tmp_path: Path) -> None:
    first = made(tmp_path, name).store
    assert first is not None
    assert first.path is not None
    files = index_info(first.path)["files"]
    shutil.rmtree(first.path)
    first.path.with_name(first.path.name + ".building").mkdir()  # a killed build's
    (first.path.with_name(first.path.name + ".building") / "rows.npy").write_text("half")
    again = made(tmp_path, name).store
    assert again is not None
    assert again.path == first.path
    assert index_info(first.path)["files"] == files
    assert cached_indexes(tmp_path) == sorted([first.path, first.index.path])


@pytest.mark.parametrize("name", NAMES)
def test_a_damaged_store_is_named_and_built_anew(name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = made(tmp_path, name).store.path
    before = index_info(path)["files"]
    data = bytearray((path / "store.faiss").read_bytes())
    data[-9] ^= 1
    (path / "store.faiss").write_bytes(data)
    assert verify_index(path) == ["the checksum of store.faiss doesn't match"]
    with caplog.at_level(logging.WARNING):
        made(tmp_path, name)
    assert f"The store {path} is damaged: the checksum of store.faiss doesn't match. It is built anew." in caplog.text
    assert verify_index(path) == []
    assert index_info(path)["files"] == before
    (path / "starts.npy").unlink()
    assert verify_index(path) == ["starts.npy is missing"]


def test_a_store_in_the_indexs_own_folder_goes_with_it(tmp_path: Path) -> None:
    index = build_index(CORPUS, ENCODER, path=tmp_path / "mine")
    held = make_store("hnsw", index, CORPUS, cache=tmp_path / "cache", within=True)
    assert held is not None
    assert held.path is not None
    assert held.path.parent == tmp_path / "mine" / "stores"
    assert verify_index(tmp_path / "mine") == []
    moved = open_index(shutil.copytree(tmp_path / "mine", tmp_path / "theirs"))
    again = make_store("hnsw", moved, CORPUS, cache=tmp_path / "cache")
    assert again is not None
    assert again.path == tmp_path / "theirs" / "stores" / held.path.name
    assert not (tmp_path / "cache").exists()
    (again.path / "store.faiss").write_text("broken")
    (problem,) = verify_index(tmp_path / "theirs")
    assert problem.startswith(f"stores/{again.path.name}: store.faiss has 6 bytes instead of ")
    open_index(tmp_path / "theirs")  # the index itself is whole
    elsewhere = make_store("hnsw", moved, CORPUS, cache=tmp_path / "cache")
    assert elsewhere is not None
    assert elsewhere.path is not None
    assert elsewhere.path.parent == tmp_path / "cache" / "indexes"
    with pytest.raises(IndexStoreError, match="is a store of an index, not the index"):
        open_index(held.path)


def test_a_cache_below_a_file_is_an_error(tmp_path: Path) -> None:
    index = build_index(CORPUS, ENCODER, cache=tmp_path)
    (tmp_path / "file").write_text("no folder", encoding="utf-8")
    with pytest.raises(IndexStoreError, match=r"can't be written.*Set KINJECT_CACHE to another folder"):
        make_store("hnsw", index, CORPUS, cache=tmp_path / "file")


def test_a_read_only_cache_means_a_store_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    index = build_index(CORPUS, ENCODER, cache=tmp_path)

    def refuse(*_: object, **__: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(stores, "one_builder", refuse)
    with caplog.at_level(logging.WARNING):
        held = make_store("hnsw", index, CORPUS, cache=tmp_path)
    assert held is not None
    assert held.path is None
    assert "can't be written (Read-only file system): it is made in memory" in caplog.text
    monkeypatch.undo()
    found = DenseRetriever("hash", CORPUS, ENCODER, index, store=held).search(QUERIES, 9)
    assert found == made(tmp_path, "hnsw").search(QUERIES, 9)
