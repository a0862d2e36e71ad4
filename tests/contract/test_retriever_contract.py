"""What every retriever promises, checked on all of them alike: see retrieval/protocol.py."""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass
from pathlib import Path

import pytest
from helpers.tiny_encoders import corpus_of, make_bert, make_pair, make_sentence_transformer, tiny_corpus

from lm_eval_kinject.corpus import Corpus
from lm_eval_kinject.errors import ArgumentError
from lm_eval_kinject.records import Query
from lm_eval_kinject.retrieval import Hits, Retriever, make_retriever

STORES = ("hnsw", "ivf-pq", "sq8", "qdrant")
NAMES = (
    *("minilm", "bge", "bge-large-en", "e5", "mxbai", "contriever", "dragon", "dpr", "sentence-transformers"),
    *("static", "bm25", "hybrid", "hybrid of bge", "oracle", "random", "full", "none"),
    *(f"bge in {store}" for store in STORES),
)
ANY_K = {"full", "none"}
CORPUS = tiny_corpus()
QUERIES = [
    Query("Which airline cancelled its flights?", "c005"),
    Query("library", "c000"),
    Query("", "c001"),
    Query("Was läuft in Holmwick? 河流", "c007"),
    Query("Who won the chess championship? " * 40, "c002"),
    Query("The council of Dunmarrow opened a new library on 3 March.", "c039"),
    Query("zzz qqq", "c010"),
]


@dataclass(frozen=True)
class Case:
    kind: str
    name: str  # what stands after retriever=
    cache: Path

    def make(self, corpus: Corpus = CORPUS) -> Retriever:
        store = self.kind.partition(" in ")[2] or "flat"
        return make_retriever(self.name, corpus, cache=self.cache, device="cpu", store=store)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("encoders")
    bert = make_bert(root / "bert")
    pairs = {"dragon": make_pair(root / "dragon", dpr=False), "dpr": make_pair(root / "dpr", dpr=True)}
    known = {kind: f"{kind}:{pairs.get(kind, bert)}" for kind in NAMES[1:8]}
    known["static"] = f"static:{bert}"
    known["hybrid of bge"] = f"hybrid:{known['bge']}"
    known |= {f"bge in {store}": known["bge"] for store in STORES}
    return {**known, "sentence-transformers": str(make_sentence_transformer(root / "st"))}


@pytest.fixture(scope="module", params=NAMES)
def case(request: pytest.FixtureRequest, folders: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Case:
    cache = tmp_path_factory.getbasetemp() / "contract-cache"
    return Case(request.param, folders.get(request.param, request.param), cache)


@pytest.fixture(scope="module")
def retriever(case: Case) -> Retriever:
    return case.make()


def expected(case: Case, k: int) -> int:
    if k == 0:
        return 0
    return {"oracle": 1, "full": len(CORPUS), "none": 0}.get(case.kind, k)


def ids(hits: Hits) -> list[str]:
    return [hit.chunk.id for hit in hits]


def assert_same(one: Hits, other: Hits) -> None:
    assert ids(one) == ids(other)
    assert [h.score for h in one] == pytest.approx([h.score for h in other], abs=1e-5, rel=1e-6)


def test_is_a_retriever(case: Case, retriever: Retriever) -> None:
    assert isinstance(retriever, Retriever)
    assert retriever.name == case.name
    assert retriever.corpus is CORPUS


@pytest.mark.parametrize("k", [0, 1, 3, 40])
def test_number_ranks_and_order_of_hits(case: Case, retriever: Retriever, k: int) -> None:
    found = retriever.search(QUERIES, k)
    assert len(found) == len(QUERIES)
    for hits in found:
        assert [h.rank for h in hits] == list(range(1, expected(case, k) + 1))
        assert len(set(ids(hits))) == len(hits)
        assert all(h.chunk is CORPUS.by_id[h.chunk.id] for h in hits)
        for better, worse in itertools.pairwise(hits):
            assert (-better.score, better.chunk.id) < (-worse.score, worse.chunk.id)


def test_equal_texts_tie_and_stand_in_the_order_of_ids(case: Case, retriever: Retriever) -> None:
    if case.kind in {"oracle", "none", "random", "full", "dpr"}:  # the controls don't score; DPR reads titles too
        return
    hits = retriever.search(QUERIES[:1], 40)[0]
    first, last = (ids(hits).index(name) for name in ("c002", "c039"))
    assert first < last
    assert {h.score for h in hits[first : last + 1]} == {hits[first].score}
    for k in range(1, 40):  # also where the tie lies across the cut
        assert "c002" in (found := ids(retriever.search(QUERIES[:1], k)[0])) or "c039" not in found


def test_smaller_k_is_a_prefix(case: Case, retriever: Retriever) -> None:
    for few, many in zip(retriever.search(QUERIES, 2), retriever.search(QUERIES, 9), strict=True):
        assert ids(few) == ids(many)[: len(few)] or case.kind == "full"


def test_two_of_a_kind_agree(case: Case, retriever: Retriever) -> None:
    other = case.make()
    assert other.fingerprint == retriever.fingerprint
    assert other.search(QUERIES, 5) == retriever.search(QUERIES, 5)


def test_order_and_company_of_queries_change_nothing(case: Case, retriever: Retriever) -> None:
    together = retriever.search(QUERIES, 4)
    backwards = case.make().search(QUERIES[::-1], 4)[::-1]
    alone = [case.make().search([query], 4)[0] for query in QUERIES[:2]]
    for one, other in zip(together, backwards, strict=True):
        assert_same(one, other)
    for one, other in zip(together, alone, strict=False):
        assert_same(one, other)


def test_repeated_queries_get_the_same_hits(retriever: Retriever) -> None:
    first, _, again = retriever.search([QUERIES[0], QUERIES[1], QUERIES[0]], 3)
    assert first == again


def test_no_queries(retriever: Retriever) -> None:
    assert retriever.search([], 3) == []


def test_k_out_of_range(case: Case, retriever: Retriever) -> None:
    with pytest.raises(ArgumentError, match="k=-1 is negative"):
        retriever.search(QUERIES, -1)
    if case.kind in ANY_K:
        assert len(retriever.search(QUERIES[:1], 41)[0]) == expected(case, 41)
    else:
        with pytest.raises(ArgumentError, match=r"k=41 is larger than the corpus tiny, which has 40 chunks"):
            retriever.search(QUERIES, 41)


def test_provenance_is_plain_and_names_retriever_and_corpus(retriever: Retriever) -> None:
    found = retriever.provenance()
    assert json.loads(json.dumps(found)) == found
    assert found["fingerprint"] == retriever.fingerprint
    assert found["corpus"] == CORPUS.fingerprint
    assert "/pytest" not in json.dumps(found)


def test_fingerprint_names_the_corpus(case: Case, retriever: Retriever) -> None:
    other = corpus_of([chunk.text for chunk in CORPUS.chunks[:12]])
    assert case.make(other).fingerprint != retriever.fingerprint
