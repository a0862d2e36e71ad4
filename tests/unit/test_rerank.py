"""Rerankers: ties, company, depth, what they say of themselves, and what is refused."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from helpers.tiny_encoders import HashEncoder, corpus_of, make_bert, make_cross_encoder, make_sentence_transformer
from helpers.tiny_models import make_tiny

from lm_eval_kinject.corpus import make_corpus
from lm_eval_kinject.corpus.sources.files import Source
from lm_eval_kinject.errors import RetrievalError
from lm_eval_kinject.records import Hit, Query
from lm_eval_kinject.retrieval import build_index, make_retriever
from lm_eval_kinject.retrieval.dense import DenseRetriever
from lm_eval_kinject.retrieval.library import AsFound, Library, NoProbe, Search, Shelf
from lm_eval_kinject.retrieval.probe import Hard
from lm_eval_kinject.retrieval.rerank import MMR, ByModel, CrossEncoder

CORPUS = corpus_of(
    [f"Town {n} has {n * 37 % 50} houses and {'many ' * (n % 9)}trees." for n in range(48)] + ["same"] * 3
)
QUERIES = [Query("How many houses has town 3?"), Query("trees"), Query("the same town, many trees")]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_cross_encoder(tmp_path_factory.mktemp("rerankers") / "tiny-cross")


@pytest.fixture(scope="module")
def bm25():
    return make_retriever("bm25", CORPUS)


def ids(hits) -> list[str]:
    return [hit.chunk.id for hit in hits]


# A cross-encoder ------------------------------------------------------------------------------------------------------


def test_ranks_scores_and_ties(model, bm25):
    found = bm25.search(QUERIES, len(CORPUS))
    ranked = CrossEncoder(str(model), "cpu").rank(bm25, QUERIES, found)
    for before, after in zip(found, ranked, strict=True):
        assert sorted(ids(before)) == sorted(ids(after))
        assert [hit.rank for hit in after] == list(range(1, len(CORPUS) + 1))
        assert all(a.score >= b.score for a, b in itertools.pairwise(after))
        same = [hit for hit in after if hit.chunk.text == "same"]
        assert ids(same) == ["c048", "c049", "c050"]  # as they came
        assert len({hit.score for hit in same}) == 1
        assert [hit.rank for hit in same] == list(range(same[0].rank, same[0].rank + 3))
    turned = [tuple(Hit(h.chunk, h.score, r) for r, h in enumerate(hits[::-1], start=1)) for hits in found]
    for hits in CrossEncoder(str(model), "cpu").rank(bm25, QUERIES, turned):
        assert [i for i in ids(hits) if i >= "c048"] == ["c050", "c049", "c048"]


def test_bits_depend_on_a_question_and_its_hits_alone(model, bm25):
    found = bm25.search(QUERIES, 40)
    together = CrossEncoder(str(model), "cpu").rank(bm25, QUERIES, found)
    assert CrossEncoder(str(model), "cpu").rank(bm25, QUERIES[::-1], found[::-1])[::-1] == together
    for query, hits, ranked in zip(QUERIES, found, together, strict=True):
        assert CrossEncoder(str(model), "cpu").rank(bm25, [query], [hits]) == [ranked]
    seen_more = CrossEncoder(str(model), "cpu")
    seen_more.rank(bm25, QUERIES, bm25.search(QUERIES, 51))
    assert seen_more.rank(bm25, QUERIES, found) == together


def test_a_list_is_scored_once(model, bm25, monkeypatch):
    ranker = CrossEncoder(str(model), "cpu")
    scored = []
    predict = ranker._model.predict
    monkeypatch.setattr(
        ranker._model, "predict", lambda pairs, **more: (scored.append(pairs), predict(pairs, **more))[1]
    )
    found = bm25.search(QUERIES[:2], 10)
    first = ranker.rank(bm25, QUERIES[:2], found)
    assert ranker.rank(bm25, QUERIES[1::-1], found[::-1]) == first[::-1]
    assert [{question for question, _ in pairs} for pairs in scored] == [{QUERIES[0].text}, {QUERIES[1].text}]
    assert [len(pairs) for pairs in scored] == [10, 10]
    assert ranker.rank(bm25, QUERIES[:1], [()]) == [()]


def test_as_sentence_transformers_saves_it(model, bm25, tmp_path):
    """With a sigmoid at its end, which isn't taken: ranks are those of the raw score."""
    import sentence_transformers

    one = sentence_transformers.CrossEncoder(str(model), device="cpu")
    one.save_pretrained(str(tmp_path / "saved"))
    found = bm25.search(QUERIES, 10)
    ranked = CrossEncoder(str(tmp_path / "saved"), "cpu").rank(bm25, QUERIES, found)
    assert ranked == CrossEncoder(str(model), "cpu").rank(bm25, QUERIES, found)
    (first, *_), (query, *_) = ranked, QUERIES
    usual = float(one.predict([(query.text, first[0].chunk.text)])[0])
    assert usual == pytest.approx(1 / (1 + np.exp(-first[0].score)), abs=1e-6)


def test_what_it_says_of_itself(model, bm25, caplog):
    ranker = ByModel(model=str(model)).load("cpu")
    said = ranker.provenance()
    assert said["model"]["folder"] == "tiny-cross"
    assert len(said["model"]["sha256"]) == 64
    assert (said["max_tokens"], said["pairs_cut"]) == (256, 0)
    assert json.loads(json.dumps(said)) == said
    assert str(model.parent) not in json.dumps([said, ByModel(model=str(model)).provenance()])
    long = Query("long question " * 60)
    with caplog.at_level("WARNING"):
        ranker.rank(bm25, [long], bm25.search([long], 2))
    assert ranker.provenance()["pairs_cut"] == 2
    assert "rerank=tiny-cross reads 256 tokens of question and chunk: 2 pairs are longer" in caplog.text


def test_what_is_refused(tmp_path):
    cases = {
        make_bert(tmp_path / "bert"): "rerank=bert is no cross-encoder but BertModel, so its score would mean nothing",
        make_sentence_transformer(tmp_path / "st"): "rerank=st is no cross-encoder but BertModel",
        make_cross_encoder(tmp_path / "classes", labels=3): r"rerank=classes gives 3 scores a pair \(a classifier\)",
        make_tiny("llama", tmp_path / "lm"): "is no cross-encoder but LlamaForCausalLM",
        tmp_path / "nothing": "rerank=nothing: its config.json can't be read",
    }
    (tmp_path / "nothing").mkdir()
    for folder, said in cases.items():
        with pytest.raises(RetrievalError, match=said):
            CrossEncoder(str(folder), "cpu")
    broken = make_cross_encoder(tmp_path / "broken")
    (broken / "model.safetensors").write_bytes(b"")
    with pytest.raises(RetrievalError, match="rerank=broken can't be loaded by sentence-transformers"):
        CrossEncoder(str(broken), "cpu")
    with pytest.raises(RetrievalError, match=r"The model me/none can't be reached .*rerank= the folder"):
        CrossEncoder("me/none@abc", "cpu")


# Maximal marginal relevance -------------------------------------------------------------------------------------------


class Drawn(HashEncoder):
    """Vectors in the plane, at angles that a text names in degrees; ``length`` makes them that long."""

    def __init__(self, length: float = 1.0) -> None:
        super().__init__(f"drawn-{length}", 2)
        self.settings["similarity"] = "cosine" if length == 1 else "dot"
        self.length = length

    def encode_queries(self, texts):
        angles = np.deg2rad([float(text) for text in texts])
        return (self.length * np.stack([np.cos(angles), np.sin(angles)], axis=1)).astype(np.float32)


@pytest.mark.parametrize("length", [1.0, 3.0])
def test_mmr_by_hand(length, tmp_path):
    """Chunks at 10, 20 and -60 degrees from the question. Half and half: 10 degrees first (.492); then of the others

    20 degrees: .5 cos 20 - .5 cos 10 = -.0226; -60 degrees: .5 cos 60 - .5 cos 70 = .0790.
    """
    corpus = corpus_of(["20", "-60", "10"])
    encoder = Drawn(length)
    dense = DenseRetriever("drawn", corpus, encoder, build_index(corpus, encoder, cache=tmp_path))
    queries = [Query("0")]
    found = dense.search(queries, 3)
    assert ids(found[0]) == ["c002", "c000", "c001"]
    (ranked,) = MMR(mmr_lambda=0.5).rank(dense, queries, found)
    assert ids(ranked) == ["c002", "c001", "c000"]
    assert [hit.score for hit in ranked] == pytest.approx([0.49240, 0.07899, -0.02256], abs=1e-5)
    assert [hit.rank for hit in ranked] == [1, 2, 3]
    assert ids(MMR(mmr_lambda=1.0).rank(dense, queries, found)[0]) == ids(found[0])
    assert ids(MMR(mmr_lambda=0.0).rank(dense, queries, found)[0]) == ["c002", "c001", "c000"]


def test_mmr_with_lambda_1_is_the_retriever_and_equal_chunks_stay_in_order(tmp_path):
    corpus = make_corpus(
        "angles", Source(corpus_of([str(n * 7 % 90) for n in range(60)] + ["33"] * 4).chunks, "a test")
    )
    encoder = Drawn()
    dense = DenseRetriever("drawn", corpus, encoder, build_index(corpus, encoder, cache=tmp_path))
    queries = [Query("31"), Query("80"), Query("-5")]
    found = dense.search(queries, 30)
    assert [ids(hits) for hits in MMR(mmr_lambda=1.0).rank(dense, queries, found)] == [ids(hits) for hits in found]
    for query, hits, ranked in zip(queries, found, MMR().rank(dense, queries, found), strict=True):
        assert MMR().rank(dense, [query], [hits]) == [ranked]
        place = {id_: n for n, id_ in enumerate(ids(hits))}
        same = [place[id_] for id_ in ids(ranked) if id_ >= "c060"]
        assert same == sorted(same)


def test_mmr_needs_vectors(bm25):
    with pytest.raises(RetrievalError, match="rerank=mmr compares vectors, and bm25 has none"):
        MMR().rank(bm25, QUERIES, bm25.search(QUERIES, 3))


# In a run -------------------------------------------------------------------------------------------------------------


def library(bm25, reranker, probe=None, k=3, shelf=None):
    search = Search(retriever="bm25", k=k)
    made = Library(search, reranker, probe or NoProbe(), "cpu", "here", shelf=shelf or Shelf())
    made.shelf.corpora["tiny"] = CORPUS
    return made


def test_found_reranked_and_probed(model, bm25):
    query = Query(QUERIES[0].text, "c020")
    shelf = Shelf()
    plain = library(bm25, AsFound(), shelf=shelf).find("tiny", [query])[query]
    assert plain.hits == plain.retrieved == bm25.search([query], 5)[0]
    assert plain.prompt == plain.hits[:3]
    ten = library(bm25, ByModel(model=str(model), rerank_from=10), shelf=shelf)
    assert "model" not in ten.reranking()
    found = ten.find("tiny", [query, QUERIES[1], query])
    assert set(found) == {query, QUERIES[1]}
    for asked in found:
        retrieved = bm25.search([asked], 10)[0]
        assert found[asked].retrieved == retrieved
        assert [found[asked].hits] == CrossEncoder(str(model), "cpu").rank(bm25, [asked], [retrieved])
        assert found[asked].prompt == found[asked].hits[:3]
    assert ten.reranking()["rerank_from"] == 10
    assert ten.reranking()["model"]["folder"] == "tiny-cross"
    few = library(bm25, ByModel(model=str(model), rerank_from=3), Hard(2), shelf=shelf)  # fewer than recall@5 looks at
    one = few.find("tiny", [query])[query]
    assert ids(one.hits[3:]) == ids(one.retrieved[3:5])
    assert [hit.rank for hit in one.hits] == [1, 2, 3, 4, 5]
    assert sorted(ids(one.hits[:3])) == sorted(ids(one.retrieved[:3]))
    wrong = [i for i in ids(one.hits) if i != "c020"]
    assert ids(one.prompt) == [wrong[0], "c020", wrong[1]]
    assert len(shelf.rankers) == 1  # one model for both depths
    assert len(shelf.retrievers) == 1
    assert {"retrieval", "reranking"} <= few.seconds.keys()
