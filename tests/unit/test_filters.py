"""Filters by date and source: what they mean, and that every retriever keeps to them."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers.tiny_encoders import HashEncoder, corpus_of, tiny_corpus

from lm_eval_kinject.corpus import Corpus, make_corpus
from lm_eval_kinject.corpus.sources.files import Source
from lm_eval_kinject.errors import ArgumentError
from lm_eval_kinject.records import Chunk, Query
from lm_eval_kinject.retrieval import build_index, exact, make_retriever, retriever_problems
from lm_eval_kinject.retrieval.dense import DenseRetriever
from lm_eval_kinject.retrieval.filters import parse_filter, source_of
from lm_eval_kinject.retrieval.hybrid import Hybrid
from lm_eval_kinject.retrieval.library import AsFound, Library, NoProbe, Search
from lm_eval_kinject.retrieval.probe import RandomOnes
from lm_eval_kinject.retrieval.sparse import BM25

DATES = [
    "2026-11-25",
    "2026-11",
    "2026",
    "2026-11-14T23:59:00+00:00",
    "2026-11-15 08:00",
    None,
    "yesterday",
    "2025-1-2",
]
DAY, MONTH, YEAR, BEFORE, ON, NONE, WORD, SHORT = range(8)


def dated(dates: list[str | None]) -> Corpus:
    items = tuple(Chunk(f"c{i:03}", f"text {i}", date=day) for i, day in enumerate(dates))
    return make_corpus("dated", Source(items, "made by a test"))


def mixed(size: int = 60) -> Corpus:
    """Chunks of which two thirds are from before 2026-06, by two sources in turn; every seventh has no date."""
    chunks = [
        replace(
            chunk,
            date=None if i % 7 == 6 else f"2026-{1 + i % 9:02}-{1 + i % 28:02}",
            meta={"source": "Alpha" if i % 2 else "Beta"},
        )
        for i, chunk in enumerate(tiny_corpus(size).chunks)
    ]
    return make_corpus("mixed", Source(tuple(chunks), "made by a test"))


CORPUS = mixed()
CHOSEN = "date<2026-06;source=alpha"
PASS = [
    c.id for i, c in enumerate(CORPUS.chunks) if i % 7 != 6 and 1 + i % 9 < 6 and i % 2
]  # by the rule that made them
QUERIES = [Query("library"), Query("Which airline cancelled its flights?"), Query("storm")]


@pytest.mark.parametrize(
    ("condition", "passes"),
    [
        ("date<2026-11-15", {BEFORE, SHORT}),
        ("date<=2026-11-15", {BEFORE, ON, SHORT}),
        ("date<2026-11", {SHORT}),
        ("date<=2026-11", {DAY, MONTH, BEFORE, ON, SHORT}),
        ("date>2026-11-15", {DAY}),
        ("date>=2026-11-15", {DAY, ON}),
        ("date>=2026-11", {DAY, MONTH, BEFORE, ON}),
        ("date > 2025", {DAY, MONTH, YEAR, BEFORE, ON}),
        ("date=2026-11", {DAY, MONTH, BEFORE, ON}),
        ("date=2026", {DAY, MONTH, YEAR, BEFORE, ON}),
        ("date=2026-11-25", {DAY}),
        ("date>=2026-11-14;date<2026-11-20", {BEFORE, ON}),
    ],
)
def test_dates_are_ranges_and_a_condition_must_hold(condition: str, passes: set[int]) -> None:
    allowed = parse_filter(condition).of(dated(DATES))
    assert set(allowed.rows.tolist()) == passes
    assert allowed.undated == 2


@pytest.mark.parametrize(
    ("chunk", "source"),
    [
        (Chunk("c", "t", meta={"source": " BBC ", "url": "https://x.org/a"}), "BBC"),
        (Chunk("c", "t", meta={"url": "https://www.bbc.co.uk:443/news?x=1"}), "bbc.co.uk"),
        (Chunk("c", "t", meta={"url": "http://[broken"}, document_id="d"), "d"),
        (Chunk("c", "t", meta={"source": 3}, document_id="a/handbook.pdf"), "a/handbook.pdf"),
        (Chunk("c", "t"), "c"),
    ],
)
def test_where_a_chunk_comes_from(chunk: Chunk, source: str) -> None:
    assert source_of(chunk) == source


def test_sources_are_named_in_any_case() -> None:
    items = tuple(Chunk(f"c{i}", "t", meta={"source": name}) for i, name in enumerate(["BBC", "Reuters", "AP"]))
    corpus = make_corpus("sources", Source(items, "made by a test"))
    for condition, rows in (("source=bbc|AP", [0, 2]), ("source!=bbc | ap", [1]), ("source=AP;source!=BBC", [2])):
        allowed = parse_filter(condition).of(corpus)
        assert allowed.rows.tolist() == rows
        assert "without_date" not in allowed.provenance()


def test_all_that_is_wrong_with_a_filter() -> None:
    text = "date<2026-13;date!=2026;source<x;source=a||b;;author=me"
    with pytest.raises(ArgumentError) as caught:
        parse_filter(text)
    said = "\n".join(caught.value.problems)
    for part in (
        "date<2026-13 names no date: write 2026, 2026-11 or 2026-11-25",
        "date!=2026: dates are compared by <, <=, >, >= and =",
        "source<x: sources are compared by = and !=",
        "source=a||b names no source",
        "an empty condition is no condition; write filter=date<2026-11",
        "author=me is no condition",
    ):
        assert part in said
    assert len(caught.value.problems) == 6
    assert len(retriever_problems("bm25", store="hnsw", filter=text)) == 7  # store= has no meaning for bm25


def test_a_filter_survives_lm_evals_commas() -> None:
    from lm_eval.utils import simple_parse_args_string

    given = simple_parse_args_string("store=hnsw;M=32,filter=date<=2026-11;source!=x|y,k=2")
    assert given == {"store": "hnsw;M=32", "filter": "date<=2026-11;source!=x|y", "k": 2}


def test_nothing_left_says_what_there_is() -> None:
    with pytest.raises(ArgumentError) as caught:
        make_retriever("bm25", CORPUS, filter="date>2027;source=gamma")
    message = str(caught.value)
    assert "filter=date>2027;source=gamma leaves no chunk of mixed: its dates go from 2026-01-01 to 2026-09-" in message
    assert "8 of 60 chunks are without one" in message
    assert "its largest sources are Beta, Alpha" in message
    with pytest.raises(ArgumentError, match="it has no dates, 12 of 12 chunks are without one"):
        make_retriever("random", tiny_corpus(12), filter="date<2027")


def test_chunks_without_a_date_are_said_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        retriever = make_retriever("bm25", CORPUS, filter=CHOSEN)
    assert f"filter={CHOSEN}: 8 of 60 chunks of mixed have no date and are left out" in caplog.text
    assert retriever.provenance()["filter"] == {
        "conditions": CHOSEN, "chunks": len(PASS), "of": 60, "without_date": 8,
    }  # fmt: skip


def dense(cache: Path, corpus: Corpus = CORPUS, condition: str | None = None) -> DenseRetriever:
    encoder = HashEncoder()
    allowed = None if condition is None else parse_filter(condition).of(corpus)
    return DenseRetriever("hash", corpus, encoder, build_index(corpus, encoder, cache=cache), allowed=allowed)


def without_others(retriever, queries, k):
    """The whole list without what doesn't pass, with new ranks: what filtering before ranking must give."""
    lists = retriever.search(queries, len(CORPUS))
    return [
        [(h.chunk.id, h.score) for h in hits if h.chunk.id in PASS][:k]
        for hits in lists
    ]  # fmt: skip


def pairs(lists):
    return [[(hit.chunk.id, hit.score) for hit in hits] for hits in lists]


def test_exact_search_filters_before_it_ranks(tmp_path: Path) -> None:
    for k in (1, 5, len(PASS)):
        found = dense(tmp_path, condition=CHOSEN).search(QUERIES, k)
        assert pairs(found) == without_others(dense(tmp_path), QUERIES, k)
        assert [hit.rank for hit in found[0]] == list(range(1, k + 1))


def test_bm25_filters_before_it_ranks() -> None:
    for k in (1, 5, len(PASS)):
        found = make_retriever("bm25", CORPUS, filter=CHOSEN).search(QUERIES, k)
        assert pairs(found) == without_others(make_retriever("bm25", CORPUS), QUERIES, k)


def test_hybrid_fuses_the_filtered_lists(tmp_path: Path) -> None:
    allowed = parse_filter(CHOSEN).of(CORPUS)
    part, words = dense(tmp_path, condition=CHOSEN), BM25(CORPUS, allowed=allowed)
    hybrid = Hybrid("hybrid", part, words, allowed)
    (hits,) = hybrid.search(QUERIES[:1], len(PASS))
    assert {hit.chunk.id for hit in hits} == set(PASS)
    with pytest.raises(ArgumentError, match="leaves only"):
        hybrid.search(QUERIES, len(PASS) + 1)


def test_controls_draw_from_what_passes() -> None:
    few = make_retriever("random", CORPUS, filter=CHOSEN, seed=7)
    assert {hit.chunk.id for hits in few.search(QUERIES, len(PASS)) for hit in hits} == set(PASS)
    alone = make_corpus("alone", Source(tuple(CORPUS.by_id[name] for name in PASS), "only those that pass"))
    drawn, same = few.search(QUERIES, 4), make_retriever("random", alone, seed=7).search(QUERIES, 4)
    assert pairs(drawn) == pairs(same)
    (hits,) = make_retriever("full", CORPUS, filter=CHOSEN).search(QUERIES[:1], 1)
    assert [hit.chunk.id for hit in hits] == PASS


@pytest.mark.parametrize("name", ["oracle", "none"])
def test_a_filter_is_refused_where_nothing_is_searched(name: str) -> None:
    (problem,) = retriever_problems(name, filter="date<2026")
    assert f"filter= has no meaning for retriever={name}" in problem


@pytest.mark.parametrize("name", ["bm25", "random"])
def test_k_larger_than_what_is_left(name: str) -> None:
    retriever = make_retriever(name, CORPUS, filter=CHOSEN)
    with pytest.raises(ArgumentError, match=rf"leaves only {len(PASS)} of the 60 chunks of mixed: give k={len(PASS)}"):
        retriever.search(QUERIES, len(PASS) + 1)


def test_a_filter_is_in_the_fingerprint_in_any_order() -> None:
    made = [
        make_retriever("bm25", CORPUS, filter=f)
        for f in (None, CHOSEN, "source=alpha;date<2026-06", "date<2026-05;source=alpha")
    ]
    prints = [retriever.fingerprint for retriever in made]
    assert prints[1] == prints[2]
    assert len(set(prints)) == 3


def test_a_library_looks_no_further_than_the_filter_lets_it() -> None:
    condition = "date=2026-01;source=alpha"
    count = len(parse_filter(condition).of(CORPUS))
    assert count == 2  # rows 9 and 45; 27 has no date
    search = Search(retriever="bm25", k=1, filter=condition)
    library = Library(search, AsFound(), NoProbe(), "cpu", "here")
    library.shelf.corpora["mixed"] = CORPUS
    query = Query("library", CORPUS.chunks[9].id)
    found = library.find("mixed", [query])[query]
    assert len(found.hits) == count  # recall@5 would look at five
    wider = Library(replace(search, k=count + 1), AsFound(), NoProbe(), "cpu", "here", shelf=library.shelf)
    with pytest.raises(ArgumentError, match=f"k={count + 1}, but filter="):
        wider.find("mixed", [query])


def test_wrong_chunks_of_a_random_probe_pass_the_filter() -> None:
    search = Search(retriever="bm25", k=4, filter=CHOSEN)
    query = Query("library", CORPUS.chunks[0].id)  # the right one doesn't pass, and stands there all the same
    (made,) = RandomOnes(2).prompt(CORPUS, [query], [()], search)
    assert made[1].chunk.id == query.gold
    assert {hit.chunk.id for hit in made if hit.rank != 2} <= set(PASS)


def test_vectors_read_in_pieces_are_searched_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [f"text {i % 90}" for i in range(150)]
    corpus = corpus_of(texts)
    asked = [Query("text 3"), Query("text 89"), Query("else")]
    whole = dense(tmp_path, corpus).search(asked, 20)
    for module_name, value in (("_AT_ONCE", 0), ("_PIECE", 7), ("_MAPPED", 5)):
        monkeypatch.setattr(exact, module_name, value)
    retriever = dense(tmp_path, corpus)
    assert isinstance(retriever.index.vectors, np.memmap)
    assert retriever.search(asked, 20) == whole
