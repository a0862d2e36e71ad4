"""Marginalised fusion: the formulas of Lewis et al. 2020 on numbers worked by hand, and what must hold of any."""

from __future__ import annotations

import math

import numpy as np
import pytest

from lm_eval_kinject.context.combine import Concat, RagSequence, RagToken, log_prior
from lm_eval_kinject.errors import ArgumentError
from lm_eval_kinject.models.arguments import split
from lm_eval_kinject.records import Chunk, Hit


def hits(k):
    return [Hit(Chunk(id=f"c{rank}", text=f"t{rank}"), 1 / rank, rank) for rank in range(1, k + 1)]


def drawn(documents, tokens, seed=0):
    generator = np.random.default_rng(seed)
    return -generator.exponential(2.0, (documents, tokens)), list(generator.normal(size=documents))


def test_two_documents_two_tokens_by_hand():
    # priors .75 and .25 (scores ln 3 and 0); the first says .5 and .2, the second .1 and .4
    log_probs, scores = np.log([[0.5, 0.2], [0.1, 0.4]]), [math.log(3), 0.0]
    assert np.exp(log_prior(scores, 1.0)) == pytest.approx([0.75, 0.25])
    assert RagSequence().combine(log_probs, scores) == pytest.approx(math.log(0.75 * 0.1 + 0.25 * 0.04))
    assert RagToken().combine(log_probs, scores) == pytest.approx(
        math.log((0.75 * 0.5 + 0.25 * 0.1) * (0.75 * 0.2 + 0.25 * 0.4))
    )


def test_temperature():
    assert np.exp(log_prior([1.0, 0.0], 1 / math.log(4))) == pytest.approx([0.8, 0.2])
    assert np.exp(log_prior([0.7, 0.69], 0.001))[0] == pytest.approx(1.0, abs=1e-4)
    assert np.exp(log_prior([0.7, 0.69], 1000.0)) == pytest.approx([0.5, 0.5], abs=1e-5)


@pytest.mark.parametrize("fusion", [RagSequence(), RagToken(temperature=0.3)])
def test_one_document_is_plain(fusion):
    log_probs, _ = drawn(1, 4)
    assert fusion.combine(log_probs, [5.0]) == pytest.approx(log_probs.sum(), abs=1e-12)


def test_one_token_is_the_same_in_both():
    log_probs, scores = drawn(5, 1)
    assert RagSequence(0.5).combine(log_probs, scores) == pytest.approx(RagToken(0.5).combine(log_probs, scores))


@pytest.mark.parametrize("fusion", [RagSequence(), RagToken()])
def test_the_order_of_documents_does_not_matter(fusion):
    log_probs, scores = drawn(4, 3)
    order = [2, 0, 3, 1]
    moved = fusion.combine(log_probs[order], [scores[i] for i in order])
    assert moved == pytest.approx(fusion.combine(log_probs, scores), abs=1e-12)


def test_a_sequence_lies_between_its_documents():
    for seed in range(20):
        log_probs, scores = drawn(4, 3, seed)
        sums = log_probs.sum(axis=1)
        assert sums.min() <= RagSequence().combine(log_probs, scores) <= sums.max()


def test_a_marginal_step_sums_to_one():
    generator = np.random.default_rng(3)
    each = generator.dirichlet(np.ones(7), size=4)  # four documents' distributions over seven tokens
    scores = list(generator.normal(size=4))
    total = sum(math.exp(RagToken().combine(np.log(each[:, [token]]), scores)) for token in range(7))
    assert total == pytest.approx(1.0)


def test_sequence_is_token_with_weights_that_follow_the_answer():
    # SPEC: RAG-Sequence = sum over t of LSE(log w(k,t) + l(k,t)), w(k,t) in proportion to exp(prior + sum before t)
    log_probs, scores = drawn(3, 4, 7)
    prior = log_prior(scores, 1.0)
    total = 0.0
    for t in range(4):
        weight = prior + log_probs[:, :t].sum(axis=1)
        weight -= np.logaddexp.reduce(weight)
        total += np.logaddexp.reduce(weight + log_probs[:, t])
    assert RagSequence().combine(log_probs, scores) == pytest.approx(total, abs=1e-12)


def test_groups():
    assert Concat().groups(hits(3)) == [hits(3)]
    assert RagToken().groups(hits(2)) == [[hits(2)[0]], [hits(2)[1]]]
    assert RagSequence().groups([]) == [[]]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"temperature": 0.1}, "temperature= has no meaning for fusion=concat; remove it, or pass fusion=rag-sequence"),
        ({"fusion": "rag-token", "temperature": 0}, "temperature=0 must be a number above 0"),
        ({"fusion": "rag-token", "temperature": -1.0}, "must be a number above 0"),
        ({"fusion": "rag-token", "temperature": "warm"}, "must be a number above 0"),
        ({"fusion": "rag-sequence", "order": "sides"}, "order=sides has no meaning for fusion=rag-sequence"),
        ({"fusion": "rag-tokn"}, "did you mean rag-token"),
    ],
)
def test_what_is_refused(given, said):
    with pytest.raises(ArgumentError) as caught:
        split(given, ())
    assert len(caught.value.problems) == 1
    assert said in caught.value.problems[0]
