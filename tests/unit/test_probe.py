"""The probe: the right chunk at its place among wrong ones."""

from __future__ import annotations

import collections

import pytest
from helpers.tiny_encoders import tiny_corpus

from lm_eval_kinject.errors import RetrievalError
from lm_eval_kinject.records import Query
from lm_eval_kinject.retrieval import make_retriever
from lm_eval_kinject.retrieval.library import Search
from lm_eval_kinject.retrieval.probe import Hard, RandomOnes

CORPUS = tiny_corpus()
QUERIES = [Query("Velda Ashgrove won the regional chess championship", "c009"), Query("A rare heron", "c011")]


def prompt(probe, k, queries=QUERIES, retriever="bm25", seed=7):
    found = make_retriever(retriever, CORPUS).search(queries, k)
    made = probe.prompt(CORPUS, queries, found, Search(retriever=retriever, k=k, retriever_seed=seed))
    for hits in made:
        assert [hit.rank for hit in hits] == list(range(1, k + 1))
        assert [hit.score for hit in hits] == [1 / rank for rank in range(1, k + 1)]
        assert len({hit.chunk.id for hit in hits}) == k
    return [[hit.chunk.id for hit in hits] for hits in made], [[hit.chunk.id for hit in hits] for hits in found]


@pytest.mark.parametrize("place", [1, 2, 4])
def test_hard_ones_are_the_best_that_were_found(place):
    made, found = prompt(Hard(place), 4)
    assert "c009" in found[0]  # found or not found, the right chunk stands there once
    assert "c011" not in found[1]
    for query, ids, hits in zip(QUERIES, made, found, strict=True):
        assert ids.index(query.gold) == place - 1
        assert [i for i in ids if i != query.gold] == [i for i in hits if i != query.gold][:3]


def test_random_ones_are_drawn_as_the_control_draws():
    made, _ = prompt(RandomOnes(2), 4)
    drawn = make_retriever("random", CORPUS, seed=7).search(QUERIES, 4)
    for query, ids, hits in zip(QUERIES, made, drawn, strict=True):
        assert ids[1] == query.gold
        wrong = [hit.chunk.id for hit in hits if hit.chunk.id != query.gold]
        assert [ids[0], *ids[2:]] == wrong[:3]
    assert prompt(RandomOnes(2), 4, seed=8)[0] != made
    assert prompt(RandomOnes(2), 4, retriever="random")[0] == made  # whatever was found


def test_the_company_of_a_question_changes_nothing():
    for probe in (Hard(1), RandomOnes(1)):
        together, _ = prompt(probe, 5)
        assert [prompt(probe, 5, [query])[0][0] for query in QUERIES] == together


def test_one_chunk_is_the_right_one_and_all_chunks_are_all():
    for probe in (Hard(1), RandomOnes(1)):
        assert prompt(probe, 1)[0] == [["c009"], ["c011"]]
        made, _ = prompt(probe, len(CORPUS))
        assert [len(set(ids)) for ids in made] == [len(CORPUS)] * 2


def test_random_wrong_ones_are_uniform():
    queries = [Query(f"q{i}", "c005") for i in range(2000)]
    made, _ = prompt(RandomOnes(1), 4, queries, retriever="random")
    drawn = collections.Counter(i for ids in made for i in ids[1:])
    # 6,000 draws over the 39 others: 154 each, standard deviation 12; 5 of them is 60.
    assert len(drawn) == 39
    assert all(abs(count - 6000 / 39) < 60 for count in drawn.values())


def test_questions_without_a_right_chunk_are_refused():
    with pytest.raises(RetrievalError, match=r"probe=hard needs each question's source chunk, but 1 of 2 questions"):
        prompt(Hard(1), 3, [QUERIES[0], Query("why")])
    with pytest.raises(RetrievalError, match=r"probe=random: 1 source chunks are not in the corpus tiny, first 'c999'"):
        prompt(RandomOnes(1), 3, [Query("why", "c999")])
