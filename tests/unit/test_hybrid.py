"""Reciprocal rank fusion, worked by hand on lists that are given, not searched."""

from __future__ import annotations

import pytest
from helpers.tiny_encoders import corpus_of, make_bert, tiny_corpus

from lm_eval_kinject.records import Hit, Query
from lm_eval_kinject.retrieval import make_index, make_retriever
from lm_eval_kinject.retrieval.dense import DenseRetriever
from lm_eval_kinject.retrieval.hybrid import Hybrid


class Fixed:
    """Returns one list, as (number of the chunk, score), cut at k; notes the depths it was asked for."""

    def __init__(self, corpus, pairs):
        self.corpus, self.pairs, self.depths = corpus, pairs, []
        self.fingerprint = str(pairs)

    def search(self, queries, k):
        self.depths.append(k)
        hits = [Hit(self.corpus.chunks[n], score, rank) for rank, (n, score) in enumerate(self.pairs[:k], start=1)]
        return [tuple(hits) for _ in queries]


def fused(size, dense, sparse, k):
    corpus = corpus_of([f"text {n}" for n in range(size)])
    hybrid = Hybrid("hybrid", Fixed(corpus, dense), Fixed(corpus, sparse))
    (hits,) = hybrid.search([Query("q")], k)
    assert [hit.rank for hit in hits] == list(range(1, k + 1))
    return [(int(hit.chunk.id[1:]), hit.score) for hit in hits], hybrid


def test_ranks_are_fused():
    found, _ = fused(4, [(0, 0.9), (1, 0.8), (2, 0.7), (3, 0.6)], [(2, 5.0), (0, 4.0), (3, 3.0), (1, 0.0)], 4)
    assert found == [
        (0, pytest.approx(1 / 61 + 1 / 62, abs=1e-15)),
        (2, pytest.approx(1 / 63 + 1 / 61, abs=1e-15)),
        (3, pytest.approx(1 / 64 + 1 / 63, abs=1e-15)),
        (1, 1 / 62),  # BM25 didn't find it: its score there is 0
    ]


def test_mirrored_ranks_tie_and_stand_in_the_order_of_ids():
    found, _ = fused(3, [(2, 0.9), (1, 0.8), (0, 0.7)], [(0, 3.0), (1, 2.0), (2, 1.0)], 3)
    assert [n for n, _ in found] == [0, 2, 1]  # 1/61 + 1/63 twice, and more than 2/62
    assert found[0][1] == found[1][1] == pytest.approx(1 / 61 + 1 / 63, abs=1e-15)
    assert found[2][1] == 2 / 62


def test_chunks_of_one_score_share_its_best_rank():
    """Dense ranks 1, 2, 2, 4; BM25 finds nothing."""
    found, _ = fused(4, [(3, 0.9), (0, 0.5), (2, 0.5), (1, 0.4)], [(n, 0.0) for n in range(4)], 4)
    assert found == [(3, 1 / 61), (0, 1 / 62), (2, 1 / 62), (1, 1 / 64)]


def test_sums_that_are_equal_as_fractions_are_equal_as_floats():
    """Ranks 3 and 80, 24 and 30: 1/63 + 1/140 = 1/84 + 1/90 = 29/1260, but not where each part is rounded first."""
    assert 1 / 63 + 1 / 140 != 1 / 84 + 1 / 90
    dense = [(n, 1.0 - n / 1000) for n in range(100)]
    order = [n for n in range(100) if n not in (2, 23)]
    order.insert(29, 23)
    order.insert(79, 2)
    found, _ = fused(100, dense, [(n, 100.0 - rank) for rank, n in enumerate(order)], 100)
    scores = dict(found)
    assert scores[2] == scores[23] == 29 / 1260
    ids = [n for n, _ in found]
    assert ids.index(2) < ids.index(23)


@pytest.mark.parametrize(("size", "k", "depth"), [(40, 3, 40), (300, 3, 100), (300, 100, 100), (300, 250, 250)])
def test_depth_of_the_lists(size, k, depth):
    pairs = [(n, 1.0 - n / 1000) for n in range(size)]
    _, hybrid = fused(size, pairs, pairs, k)
    assert hybrid.dense.depths == hybrid.sparse.depths == [depth]


def test_a_smaller_k_is_a_beginning_up_to_the_depth():
    dense = [(n, 1.0 - n / 1000) for n in range(300)]
    sparse = [((n * 7) % 300, 300.0 - n) for n in range(300)]
    longest, _ = fused(300, dense, sparse, 100)
    for k in (1, 10, 99):
        assert fused(300, dense, sparse, k)[0] == longest[:k]


def test_names_fingerprints_and_provenance(tmp_path):
    corpus, bert = tiny_corpus(), make_bert(tmp_path / "bert")
    made = {
        n: make_retriever(n, corpus, cache=tmp_path, device="cpu") for n in (f"hybrid:bge:{bert}", f"hybrid:e5:{bert}")
    }
    one, other = made.values()
    assert isinstance(one, Hybrid)
    assert isinstance(one.dense, DenseRetriever)
    assert one.fingerprint != other.fingerprint
    said = one.provenance()
    assert (said["name"], said["constant"], said["depth"], said["fusion"]) == (
        "hybrid:bge:bert", 60, 100, "reciprocal rank",
    )  # fmt: skip
    assert [part["name"] for part in said["parts"]] == ["bge:bert", "bm25"]
    assert [part["fingerprint"] for part in said["parts"]] == [one.dense.fingerprint, one.sparse.fingerprint]
    built = make_index(f"hybrid:bge:{bert}", corpus, path=tmp_path / "index", device="cpu")
    again = make_retriever(f"hybrid:bge:{bert}", corpus, index=built.path, cache=tmp_path / "none", device="cpu")
    assert again.fingerprint == one.fingerprint
    assert not (tmp_path / "none").exists()
