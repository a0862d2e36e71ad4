"""Forking a model's own cache returns what lm_eval's own path returns, architecture by architecture."""

from __future__ import annotations

import random

import pytest
from helpers.forkable_models import SHAPES, make_forkable
from lm_eval.models.huggingface import HFLM

from lm_eval_kinject.scoring import Budget, SharedPrefixScorer, fork

TOLERANCE = 1e-4

Request = tuple[tuple[str, str], list[int], list[int]]
Answer = tuple[float, bool]


def make_requests(seed: int = 0, contexts: int = 5, longest: int = 120) -> list[Request]:
    """Contexts that share a header or each other, and options that share, repeat and contain each other."""
    rng = random.Random(seed)

    def words(n: int) -> list[int]:
        return [rng.randrange(8, 500) for _ in range(n)]

    header, requests, context = words(50), [], [1]
    for number in range(contexts):
        if number % 3:
            context = [*context, *words(40)]
        else:
            context = [1, *(header if number % 2 else []), *words(rng.randint(10, longest))]
        option = words(5)
        options = [option[:2], option, [*option, 9], [option[0], 77], words(1), words(12)]
        requests += [((f"context {number}", str(ids)), list(context), ids) for ids in options]
    requests += [(("", "alone"), [1], words(3)), requests[0], requests[-1]]
    rng.shuffle(requests)
    return requests


def harness(lm: HFLM, requests: list[Request]) -> list[Answer]:
    return HFLM._loglikelihood_tokens(lm, requests, disable_tqdm=True)


def forked(lm: HFLM, requests: list[Request], **kwargs: object) -> tuple[SharedPrefixScorer, list[Answer]]:
    """Answers by forking, and proof that this way was taken."""
    scorer = SharedPrefixScorer(lm, always=True, **kwargs)
    answers = scorer.loglikelihood(requests, disable_tqdm=True)
    assert scorer.stats.path == "forked", scorer.stats.reason
    return scorer, answers


def largest_difference(ours: list[Answer], theirs: list[Answer]) -> float:
    assert [greedy for _, greedy in ours] == [greedy for _, greedy in theirs]
    return max(abs(a - b) for (a, _), (b, _) in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("name", SHAPES)
def test_same_answers(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    lm = make_forkable(name)
    requests = make_requests()
    theirs = harness(lm, requests)
    for price, budget in ((None, None), (0, Budget(61, 9)), (8, None), (0, Budget(1, 1))):
        # Where a forward costs nothing, nothing is computed twice; else short branches are, and steps are avoided.
        if price is not None:
            monkeypatch.setattr(fork, "forward_overhead", lambda _, price=price: price)
        scorer, ours = forked(lm, requests, budget=budget)
        difference = largest_difference(ours, theirs)
        stats = scorer.stats
        print(f"{name}, {price}, {budget}: {difference:.1e}; {stats.forwarded_tokens} of {stats.distinct_tokens}")
        assert difference <= TOLERANCE
        assert stats.largest_difference <= TOLERANCE
        if price == 0:
            assert stats.forwarded_tokens <= stats.distinct_tokens * 1.25
