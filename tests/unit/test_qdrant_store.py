"""``store=qdrant``: a folder, and a server that is asked over HTTP; filters in Qdrant's words against our own."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers.qdrant_server import QdrantServer, serve
from helpers.tiny_encoders import HashEncoder, corpus_of

from lm_eval_kinject.corpus import Corpus, make_corpus
from lm_eval_kinject.corpus.sources.files import Source
from lm_eval_kinject.errors import IndexStoreError
from lm_eval_kinject.records import Query
from lm_eval_kinject.retrieval import build_index, make_store, retriever_problems, stores, verify_index
from lm_eval_kinject.retrieval.dense import DenseRetriever
from lm_eval_kinject.retrieval.filters import parse_filter
from lm_eval_kinject.retrieval.proposers import Passing
from lm_eval_kinject.retrieval.stores import Store

ENCODER = HashEncoder(dimension=8)
QUERIES = [Query(f"question {i}") for i in range(9)]
CONDITIONS = (
    *("date<2026-03", "date<=2026-03", "date>2026-03-10", "date>=2026-03", "date=2026-02"),
    *("source=alpha|Beta", "source!=ALPHA", "date<2026-04;source!=beta"),
)


def corpus(size: int = 160, twins: int = 40) -> Corpus:
    """Texts of which some stand there twice, with other dates and sources; some dates are months, some lack."""
    chunks = [
        replace(
            chunk,
            date=(None, f"2026-{1 + i % 5:02}", f"2026-{1 + i % 5:02}-{1 + i % 28:02}")[min(i % 4, 2)],
            meta={"source": ("Alpha", "Beta", "Gamma")[i % 3]},
        )
        for i, chunk in enumerate(corpus_of([f"text {i % (size - twins)}" for i in range(size)]).chunks)
    ]
    return make_corpus("dated", Source(tuple(chunks), "made by a test"))


CORPUS = corpus()


def made(cache: Path, store: str = "flat", condition: str | None = None) -> DenseRetriever:
    index = build_index(CORPUS, ENCODER, cache=cache)
    allowed = None if condition is None else parse_filter(condition).of(CORPUS)
    held = make_store(store, index, CORPUS, cache=cache)
    return DenseRetriever("hash", CORPUS, ENCODER, index, store=held, allowed=allowed)


def held(retriever: DenseRetriever) -> Store:
    assert retriever.store is not None
    return retriever.store


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("stores")


@pytest.fixture
def server() -> Iterator[QdrantServer]:
    with serve() as running:
        yield running


def test_a_folder_is_searched_like_the_index_and_stays_whole(tmp_path: Path) -> None:
    first = made(tmp_path, "qdrant")
    assert first.search(QUERIES, 20) == made(tmp_path).search(QUERIES, 20)
    said = first.provenance()["store"]
    assert (said["name"], said["recall"]["recall@5"], said["searched_exactly"]) == ("qdrant", 1.0, 0)
    assert "server" not in said
    path = held(first).path
    assert path is not None
    held(first).proposer.close()
    again = made(tmp_path, "qdrant")
    assert again.search(QUERIES, 20) == made(tmp_path).search(QUERIES, 20)
    assert verify_index(path) == []
    held(again).proposer.close()
    (storage,) = path.rglob("storage.sqlite")
    storage.write_bytes(storage.read_bytes()[:-1])
    assert verify_index(path)[0].startswith("points/collection/kinject/storage.sqlite has ")
    assert made(tmp_path, "qdrant").search(QUERIES, 5) == made(tmp_path).search(QUERIES, 5)
    assert verify_index(path) == []


def test_a_folder_of_somebody_elses_is_never_opened(tmp_path: Path) -> None:
    index = build_index(CORPUS, ENCODER, path=tmp_path / "mine")
    store = make_store("qdrant", index, CORPUS, cache=tmp_path / "cache", within=True)
    assert store is not None
    assert store.path is not None
    assert store.path.parent == tmp_path / "cache" / "indexes"  # its pickles don't go with the index
    assert not (tmp_path / "mine" / "stores").exists()


@pytest.mark.parametrize("condition", CONDITIONS)
def test_a_filter_means_there_what_it_means_here(condition: str, cache: Path, monkeypatch) -> None:
    monkeypatch.setattr(stores, "_FEW", 0)
    monkeypatch.setattr(stores, "_LITTLE", 0)
    retriever = made(cache, "qdrant", condition)
    store, allowed = held(retriever), retriever.allowed
    assert allowed is not None
    passing = Passing(allowed.filter, store.distinct.passing(allowed.mask))
    (ids,) = store.proposer.propose(ENCODER.encode_queries(["x"]), len(store.distinct), store.search, passing)
    proposed = set(ids[ids >= 0].tolist())
    right = set(np.flatnonzero(passing.ids).tolist())
    single = {i for i in range(len(store.distinct)) if store.distinct.starts[i + 1] - store.distinct.starts[i] == 1}
    assert proposed & single == right & single
    assert proposed >= right
    k = min(9, len(allowed))
    assert retriever.search(QUERIES, k) == made(cache, condition=condition).search(QUERIES, k)
    assert retriever.provenance()["store"]["recall"]["recall@5"] == 1.0


def test_a_server_is_filled_once_and_searched(
    server: QdrantServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    server.key = "secret"
    monkeypatch.setenv("QDRANT_API_KEY", "secret")
    store = f"qdrant;url={server.url};ef=64"
    first = made(tmp_path, store)
    assert first.search(QUERIES, 20) == made(tmp_path).search(QUERIES, 20)
    said = first.provenance()["store"]
    assert (said["M"], said["ef"], said["ef_construction"]) == (16, 64, 100)
    assert server.url not in str(first.provenance())
    uploads = [path for method, path, _ in server.asked if method == "PUT" and path.endswith("/points")]
    assert len(uploads) == 1  # 120 points
    again = made(tmp_path, store)
    assert again.search(QUERIES, 5) == first.search(QUERIES, 5)
    assert sum(method == "PUT" and path.endswith("/points") for method, path, _ in server.asked) == 1
    (name,) = [one.name for one in server.points.get_collections().collections]
    assert held(again).path is not None
    server.points.delete(name, points_selector=[3])
    with caplog.at_level(logging.WARNING):
        assert made(tmp_path, store).search(QUERIES, 5) == first.search(QUERIES, 5)
    assert f"The collection {name} has 119 of 120 points." in caplog.text
    assert server.points.count(name).count == 120


def test_a_half_filled_collection_is_filled_anew(
    server: QdrantServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from qdrant_client import models

    store = f"qdrant;url={server.url}"
    right = made(tmp_path, store).search(QUERIES, 5)
    (alias,) = server.points.get_aliases().aliases
    delete = models.DeleteAlias(alias_name=alias.alias_name)
    server.points.update_collection_aliases([models.DeleteAliasOperation(delete_alias=delete)])
    with caplog.at_level(logging.WARNING):
        assert made(tmp_path, store).search(QUERIES, 5) == right
    assert "has 120 of 120 points and no alias" in caplog.text
    assert [one.alias_name for one in server.points.get_aliases().aliases] == [alias.alias_name]


def test_a_server_that_refuses_or_is_not_there(server: QdrantServer, tmp_path: Path) -> None:
    server.key = "secret"
    with pytest.raises(IndexStoreError, match=rf"The Qdrant server {server.url} doesn't answer as it should .*API_KEY"):
        made(tmp_path, f"qdrant;url={server.url}")
    with pytest.raises(IndexStoreError, match="doesn't answer as it should"):
        made(tmp_path, "qdrant;url=http://127.0.0.1:9")
    assert len(list(tmp_path.glob("indexes/*/manifest.json"))) == 1  # the index's; nothing looks like a store


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("qdrant;url=localhost:6333", "is no address of a server: write url=http://localhost:6333"),
        ("qdrant;url=http://me:key@host", "must hold no secret"),
        ("qdrant;url=http://host?api_key=1", "must hold no secret"),
        ("qdrant;ef=9;M=8", "M= and ef= have a meaning for a server alone"),
    ],
)
def test_what_cannot_be_a_server(text: str, part: str) -> None:
    (problem,) = retriever_problems("minilm", store=text)
    assert part in problem
    assert "me:key" not in problem


def test_without_the_extra_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "qdrant_client" else find(name))
    (problem,) = retriever_problems("minilm", store="qdrant")
    assert problem.endswith("pip install 'lm-eval-kinject[qdrant]'")
