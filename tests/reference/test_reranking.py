"""Fusion, reranking and MMR against straightforward implementations that share no line with them.

Reciprocal ranks: fractions and dictionaries over two whole lists. The cross-encoder: the bare transformer, a pair at a
time, unpadded. MMR: the formula, with Python's lists and sums.
"""

from __future__ import annotations

import math
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from helpers.tiny_encoders import make_bert, make_cross_encoder, tiny_corpus

from lm_eval_kinject.records import Query
from lm_eval_kinject.retrieval import Retriever, make_retriever
from lm_eval_kinject.retrieval.hybrid import Hybrid
from lm_eval_kinject.retrieval.rerank import MMR, ByModel

CORPUS = tiny_corpus()
QUERIES = [
    Query("Which airline cancelled its flights?"),
    Query("The council of Dunmarrow opened a new library on 3 March."),
    Query("Who won the chess championship? " * 20),
    Query("zzz qqq"),
]


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bert(tmp_path_factory.mktemp("bert"))


@pytest.fixture(scope="module")
def retriever(bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Retriever:
    cache = tmp_path_factory.mktemp("cache")
    return make_retriever(f"hybrid:bge:{bert}", CORPUS, cache=cache, device="cpu")


def test_reciprocal_ranks(retriever: Retriever) -> None:
    assert isinstance(retriever, Hybrid)
    found = retriever.search(QUERIES, len(CORPUS))
    for n, query in enumerate(QUERIES):
        sums: dict[str, Fraction] = {}
        for part in (retriever.dense, retriever.sparse):
            scores = {hit.chunk.id: hit.score for hit in part.search(QUERIES, len(CORPUS))[n]}
            for chunk, score in scores.items():
                if score > 0 or part is retriever.dense:
                    better = sum(other > score for other in scores.values())
                    sums[chunk] = sums.get(chunk, Fraction(0)) + Fraction(1, 61 + better)
        expected = sorted(sums, key=lambda chunk: (-sums[chunk], chunk))
        assert [hit.chunk.id for hit in found[n]] == expected, query.text
        assert [hit.score for hit in found[n]] == [float(sums[chunk]) for chunk in expected]


def test_cross_encoder(retriever: Retriever, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    folder = make_cross_encoder(tmp_path / "cross")
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    found = retriever.search(QUERIES, 25)
    ranked = ByModel(model=str(folder)).load("cpu").rank(retriever, QUERIES, found)
    moved = 0
    for query, before, after in zip(QUERIES, found, ranked, strict=True):
        scores = {}
        for hit in before:
            tokens = tokenizer(query.text, hit.chunk.text, truncation=True, max_length=256, return_tensors="pt")
            with torch.inference_mode():
                scores[hit.chunk.id] = float(model(**tokens).logits[0, 0])
        assert sorted(h.chunk.id for h in after) == sorted(scores)
        assert [h.score for h in after] == pytest.approx(sorted(scores.values(), reverse=True), abs=1e-5)
        for hit in after:
            assert hit.score == pytest.approx(scores[hit.chunk.id], abs=1e-5)
        moved += [h.chunk.id for h in after] != [h.chunk.id for h in before]
    assert moved == len(QUERIES)


@pytest.mark.parametrize("weight", [0.0, 0.3, 0.5, 0.9])
@pytest.mark.parametrize("kind", ["bge", "contriever"])  # cosine; dot product, whose vectors have any length
def test_maximal_marginal_relevance(kind: str, weight: float, bert: Path, tmp_path: Path) -> None:
    dense = make_retriever(f"{kind}:{bert}", CORPUS, cache=tmp_path, device="cpu")
    found = dense.search(QUERIES, 20)
    ranked = MMR(mmr_lambda=weight).load("cpu").rank(dense, QUERIES, found)
    for query, before, after in zip(QUERIES, found, ranked, strict=True):
        asked = dense.encoder.encode_queries([query.text])[0].tolist()
        texts = {h.chunk.id: v.tolist() for h, v in zip(before, _vectors(dense, before), strict=True)}
        chosen: list[str] = []
        while len(chosen) < len(before):
            gains = {}
            for hit in before:
                if hit.chunk.id not in chosen:
                    like = max((_cosine(texts[hit.chunk.id], texts[other]) for other in chosen), default=0.0)
                    gains[hit.chunk.id] = weight * _cosine(asked, texts[hit.chunk.id]) - (1 - weight) * like
            best = max(gains.values())
            mine = after[len(chosen)]
            assert gains[mine.chunk.id] == pytest.approx(best, abs=1e-6)  # two may be closer than rounding
            assert mine.score == pytest.approx(best, abs=1e-6)
            chosen.append(mine.chunk.id)


def _vectors(dense: Retriever, hits: tuple) -> np.ndarray:
    return dense.encoder.encode_passages([hit.chunk for hit in hits])[0]


def _cosine(one: list[float], other: list[float]) -> float:
    product = math.fsum(a * b for a, b in zip(one, other, strict=True))
    return product / math.sqrt(math.fsum(a * a for a in one) * math.fsum(b * b for b in other))
