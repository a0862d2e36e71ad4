"""From a name to a retriever: arguments, prebuilt indexes, controls, BM25's tokens."""

from __future__ import annotations

import collections
from pathlib import Path

import pytest
from helpers.tiny_encoders import corpus_of, make_bert, tiny_corpus

from lm_eval_kinject.corpus import make_corpus
from lm_eval_kinject.corpus.sources.files import Source
from lm_eval_kinject.errors import ArgumentError, IndexStoreError, RetrievalError
from lm_eval_kinject.records import Query
from lm_eval_kinject.retrieval import make_retriever, retriever_problems
from lm_eval_kinject.retrieval.dense import DenseRetriever
from lm_eval_kinject.retrieval.sparse import tokenise

CORPUS = tiny_corpus()


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bert(tmp_path_factory.mktemp("bert"))


# Arguments ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ({"name": "minlm"}, ["retriever=minlm is unknown. Did you mean minilm"]),
        ({"name": "BM25"}, ["Did you mean bm25"]),
        ({"name": "./no-such-model"}, ["is unknown", "sentence-transformers model by its Hub id"]),
        ({"name": "hybrd"}, ["Did you mean hybrid"]),
        ({"name": "hybrid:bm25"}, ["retriever=hybrid:bm25: hybrid joins bm25 with a retriever that embeds"]),
        ({"name": "hybrid:minlm"}, ["minlm is none. Did you mean hybrid:minilm?"]),
        ({"name": "hybrid", "index": "/no/such/folder"}, ["index=/no/such/folder: there is no such folder"]),
        ({"name": "hybrid", "revision": "abc"}, ["whose weights are on this machine"]),
        ({"name": "minilm", "dtype": "float16"}, ["retriever_dtype=float16 is unknown: use float32 or bfloat16"]),
        ({"name": "minilm", "backend": "onnx"}, ["retriever_backend=onnx is unknown: use torch or openvino"]),
        ({"name": "bm25", "backend": "openvino"}, ["retriever_backend=openvino has no meaning for retriever=bm25"]),
        ({"name": "a/b", "backend": "openvino"}, ["for retriever=a/b: it runs the models whose rules are known"]),
        (
            {"name": "static", "dtype": "bfloat16", "backend": "openvino"},
            ["retriever_dtype=bfloat16 and retriever_backend=openvino has no meaning for retriever=static"],
        ),
        ({"name": "bm25", "dtype": "bfloat16"}, ["bfloat16 has no meaning for retriever=bm25"]),
        ({"name": "oracle", "index": "/tmp"}, ["index= has no meaning for retriever=oracle"]),
        ({"name": "random", "revision": "abc"}, ["a revision has no meaning for retriever=random"]),
        ({"name": "minilm", "revision": "abc"}, ["whose weights are on this machine"]),
        ({"name": "minilm", "index": "/no/such/folder"}, ["index=/no/such/folder: there is no such folder"]),
    ],
)
def test_arguments_that_cannot_be_used(arguments: dict[str, str], parts: list[str]) -> None:
    name = arguments.pop("name")
    problems = retriever_problems(name, **arguments)
    assert len(problems) == 1
    with pytest.raises(ArgumentError) as caught:
        make_retriever(name, CORPUS, **arguments)
    for part in parts:
        assert part in problems[0]
        assert part in str(caught.value)


def test_packages_that_are_not_there_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert retriever_problems("minilm", backend="openvino") == [
        "retriever_backend=openvino needs openvino, not installed here: run `pip install 'lm-eval-kinject[openvino]'`."
    ]
    (problem,) = retriever_problems("hybrid:static")
    assert problem.startswith("retriever=hybrid:static needs model2vec, skeletoken, not installed here: run `pip")
    assert "'lm-eval-kinject[static]'" in problem


def test_all_problems_at_once() -> None:
    problems = retriever_problems("bm25", dtype="bfloat16", index="/no/such", revision="x")
    assert len(problems) == 4


@pytest.mark.parametrize(
    "name",
    [
        "minilm",
        "static",
        "bge",
        "dpr",
        "bm25",
        "none",
        "BAAI/bge-large-en-v1.5",
        "some/model",
        "hybrid",
        "hybrid:bge",
        "hybrid:a/b",
    ],
)
def test_names_that_can_be_used(name: str) -> None:
    assert retriever_problems(name) == []


# Prebuilt indexes -----------------------------------------------------------------------------------------------------


def test_a_prebuilt_index_is_used_or_refused(tmp_path: Path, bert: Path) -> None:
    built = make_retriever(f"bge:{bert}", CORPUS, cache=tmp_path / "a", device="cpu")
    assert isinstance(built, DenseRetriever)
    assert built.index.path is not None
    again = make_retriever(f"bge:{bert}", CORPUS, index=built.index.path, cache=tmp_path / "b", device="cpu")
    assert isinstance(again, DenseRetriever)
    assert again.index.path == built.index.path
    assert not (tmp_path / "b").exists()
    with pytest.raises(IndexStoreError, match=r"encoder\.pooling: the index has 'cls', this run needs 'mean'"):
        make_retriever(f"e5:{bert}", CORPUS, index=built.index.path, device="cpu")
    with pytest.raises(IndexStoreError, match="corpus: the index has"):
        make_retriever(f"bge:{bert}", corpus_of(["other"]), index=built.index.path, device="cpu")
    with pytest.raises(IndexStoreError, match=r"encoder\.dtype"):
        make_retriever(f"bge:{bert}", CORPUS, index=built.index.path, dtype="bfloat16", device="cpu")
    (built.index.path / "ids.json").write_text("[]", encoding="utf-8")
    with pytest.raises(IndexStoreError, match=r"is damaged: ids\.json has 2 bytes"):
        make_retriever(f"bge:{bert}", CORPUS, index=built.index.path, device="cpu")


def test_other_weights_under_the_same_name_are_another_index(tmp_path: Path, bert: Path) -> None:
    one = make_retriever(f"bge:{bert}", CORPUS, cache=tmp_path, device="cpu")
    other = make_retriever(f"bge:{make_bert(tmp_path / bert.name, seed=9)}", CORPUS, cache=tmp_path, device="cpu")
    assert one.fingerprint != other.fingerprint
    assert one.search([Query("library")], 3) != other.search([Query("library")], 3)


def test_a_query_is_embedded_once_in_a_retrievers_life(tmp_path: Path, bert: Path) -> None:
    retriever = make_retriever(f"bge:{bert}", CORPUS, cache=tmp_path, device="cpu")
    assert isinstance(retriever, DenseRetriever)
    asked: list[str] = []
    encode = retriever.encoder.encode_queries
    retriever.encoder.encode_queries = lambda texts: (asked.extend(texts), encode(texts))[1]
    retriever.search([Query("b"), Query("a", "c001"), Query("b")], 3)
    retriever.search([Query("a"), Query("c")], 5)
    assert asked == ["a", "b", "c"]


def test_many_equal_chunks_are_ordered_by_id(tmp_path: Path, bert: Path) -> None:
    chunks = corpus_of(["another one", "a third", *["the same"] * 150]).chunks  # more than is fetched beyond k at first
    corpus = make_corpus("turned", Source(chunks[::-1], "the lowest ids in the last rows"))
    retriever = make_retriever(f"bge:{bert}", corpus, cache=tmp_path, device="cpu")
    (hits,) = retriever.search([Query("the same")], 40)
    same = [h.chunk.id for h in hits if h.chunk.text == "the same"]
    assert same == [f"c{i:03}" for i in range(2, 2 + len(same))]
    assert len(same) >= 38


# Controls -------------------------------------------------------------------------------------------------------------


def test_oracle_gives_the_first_k_of_several_gold_chunks_in_their_order() -> None:
    oracle = make_retriever("oracle", CORPUS)
    queries = [Query("two", ("c003", "c001")), Query("one", "c002"), Query("alone", ("c000",))]
    for k, expected in (
        (1, ["c003", "c002", "c000"]),
        (2, ["c003 c001", "c002", "c000"]),
        (5, ["c003 c001", "c002", "c000"]),
    ):
        found = oracle.search(queries, k)
        assert [" ".join(hit.chunk.id for hit in hits) for hits in found] == expected
        assert [[(hit.rank, hit.score) for hit in hits] for hits in found][1] == [(1, 1.0)]
    assert [(hit.rank, hit.score) for hit in oracle.search(queries, 2)[0]] == [(1, 1.0), (2, 0.5)]
    with pytest.raises(RetrievalError, match=r"1 source chunks are not in the corpus.*'c0009'"):
        oracle.search([Query("two", ("c001", "c0009"))], 2)


def test_oracle_says_what_it_lacks() -> None:
    oracle = make_retriever("oracle", CORPUS)
    with pytest.raises(RetrievalError, match=r"1 of 2 questions name none \(the first: 'why'\)"):
        oracle.search([Query("who", "c001"), Query("why")], 1)
    with pytest.raises(RetrievalError, match=r"1 source chunks are not in the corpus tiny, first 'c0001' \(near: 'c"):
        oracle.search([Query("who", "c0001")], 1)


def test_random_is_seeded_by_text_alone_and_uniform() -> None:
    one, two = make_retriever("random", CORPUS, seed=1), make_retriever("random", CORPUS, seed=2)
    queries = [Query(f"q{i}") for i in range(2000)]
    assert one.search(queries[:9], 3) == one.search([Query(q.text, "c001") for q in queries[:9]], 3)
    assert one.search(queries[:9], 3) != two.search(queries[:9], 3)
    drawn = collections.Counter(h.chunk.id for hits in one.search(queries, 4) for h in hits)
    # 8,000 draws over 40 chunks: 200 each, standard deviation sqrt(2000 * .1 * .9) = 13.4; 5 of them is 67.
    assert len(drawn) == 40
    assert all(abs(count - 200) < 67 for count in drawn.values())


def test_random_draws_are_what_they_were() -> None:
    hits = make_retriever("random", CORPUS, seed=1234).search([Query("Who opened the library?")], 5)[0]
    assert [h.chunk.id for h in hits] == ["c019", "c015", "c004", "c024", "c010"]


def test_random_does_not_depend_on_the_order_of_the_corpus() -> None:
    turned = make_corpus("turned", Source(CORPUS.chunks[::-1], "reversed"))
    queries = [Query("a"), Query("b")]
    found = [make_retriever("random", corpus).search(queries, 4) for corpus in (CORPUS, turned)]
    assert [[h.chunk.id for h in hits] for hits in found[0]] == [[h.chunk.id for h in hits] for hits in found[1]]


# BM25 -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("Don't panic, U.S. 3.5%!", ["don", "t", "panic", "u", "s", "3", "5"]),
        ("ＦＵＬＬ width ﬁne", ["full", "width", "fine"]),
        ("Straße ÉTÉ_1", ["straße", "été_1"]),
        ("東京 is big", ["東", "京", "is", "big"]),
        ("…!?", []),
    ],
)
def test_tokenise(text: str, tokens: list[str]) -> None:
    assert tokenise(text) == tokens


def test_a_corpus_without_words_scores_zero_everywhere() -> None:
    (hits,) = make_retriever("bm25", corpus_of(["!!", "??"])).search([Query("word")], 2)
    assert [(h.chunk.id, h.score) for h in hits] == [("c000", 0.0), ("c001", 0.0)]
