"""Forking a model's own cache returns what lm_eval's own path returns, architecture by architecture."""

from __future__ import annotations

import logging
import random
from functools import partial
from typing import Any

import numpy as np
import peft
import pytest
import torch
from helpers.forkable_models import SHAPES, WINDOWED, make_forkable, make_random
from lm_eval.models.huggingface import HFLM

from lm_eval_kinject.scoring import Budget, SharedPrefixScorer, fork, scorer
from lm_eval_kinject.scoring.fork import ForkForward
from lm_eval_kinject.scoring.support import reason_no_fork

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


def forked(lm: HFLM, requests: list[Request], **kwargs: Any) -> tuple[SharedPrefixScorer, list[Answer]]:
    """Answers by forking, and proof that this way was taken."""
    used = SharedPrefixScorer(lm, always=True, **kwargs)
    answers = used.loglikelihood(requests, disable_tqdm=True)
    assert used.stats.path == "forked", used.stats.reason
    return used, answers


def largest_difference(ours: list[Answer], theirs: list[Answer]) -> float:
    assert [greedy for _, greedy in ours] == [greedy for _, greedy in theirs]
    return max(abs(a - b) for (a, _), (b, _) in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("name", [name for name in SHAPES if name not in WINDOWED])
def test_same_answers(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    lm = make_forkable(name)
    if name in ("stablelm", "biogpt"):  # old code, too, but a tree can be made of them
        monkeypatch.setattr(scorer, "reason_unsupported", lambda _: "this test says so")
    requests = make_requests()
    theirs = harness(lm, requests)
    for price, budget in ((None, None), (0, Budget(61, 9)), (8, None), (0, Budget(1, 1))):
        # Where a forward costs nothing, nothing is computed twice; else short branches are, and steps are avoided.
        if price is not None:
            monkeypatch.setattr(fork, "forward_overhead", lambda _, price=price: price)
        used, ours = forked(lm, requests, budget=budget)
        difference, stats = largest_difference(ours, theirs), used.stats
        print(f"{name}, {price}, {budget}: {difference:.1e}; {stats.forwarded_tokens} of {stats.distinct_tokens}")
        assert difference <= TOLERANCE
        assert stats.largest_difference <= TOLERANCE
        if price == 0:
            assert stats.forwarded_tokens <= stats.distinct_tokens * 1.25


@pytest.mark.parametrize("name", ["bloom", "qwen3_5", "mamba2", "lfm2", "falcon_h1"])
def test_what_is_left_is_rounding(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In float64 all that is left comes from where transformers itself computes in float32: in scans and norms."""
    monkeypatch.setattr(fork, "forward_overhead", lambda _: 0)
    lm = make_forkable(name, dtype=torch.float64)
    requests = make_requests(1)
    assert largest_difference(forked(lm, requests)[1], harness(lm, requests)) <= 2e-5


@pytest.mark.parametrize("name", WINDOWED)
@pytest.mark.parametrize("budget", [None, Budget(37, 9)])
def test_windows_that_drop_keys(name: str, budget: Budget | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The caches of windows and of chunks, 24 tokens wide; these models are forked only if told so."""
    lm = make_forkable(name)
    monkeypatch.setattr(scorer, "reason_unsupported", lambda _: "this test says so")
    monkeypatch.setattr(fork, "forward_overhead", lambda _: 0)
    requests = make_requests(2)
    assert largest_difference(forked(lm, requests, budget=budget)[1], harness(lm, requests)) <= TOLERANCE


@pytest.mark.parametrize("name", ["bloom", "qwen3_next", "lfm2", "mamba"])
def test_requests_beyond_the_models_length(name: str) -> None:
    lm = make_forkable(name)
    lm._max_length = 64
    requests = make_requests(3)
    assert max(len(context) for _, context, _ in requests) > 64
    assert largest_difference(forked(lm, requests)[1], harness(lm, requests)) <= TOLERANCE


@pytest.mark.parametrize("name", ["bloom", "granitemoehybrid", "mamba"])
def test_with_an_adapter(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fork, "forward_overhead", lambda _: 0)
    lm = make_forkable(name)
    requests = make_requests(4)
    bare = harness(lm, requests)
    torch.manual_seed(1)
    targets = ["in_proj", "x_proj"] if name == "mamba" else "all-linear"
    config = peft.LoraConfig(r=4, init_lora_weights=False, task_type="CAUSAL_LM", target_modules=targets)
    lm._model = peft.get_peft_model(lm._model, config).eval()
    theirs = harness(lm, requests)
    assert largest_difference(forked(lm, requests)[1], theirs) <= TOLERANCE
    assert max(abs(a - b) for (a, _), (b, _) in zip(theirs, bare, strict=True)) > 0.1


@pytest.mark.parametrize("name", ["bloom", "qwen3_5", "lfm2", "mamba"])
def test_bf16_is_about_as_close_to_fp32_as_lm_eval(name: str) -> None:
    requests = make_requests(5, contexts=8)
    truth = harness(make_forkable(name), requests)
    lm = make_forkable(name, dtype=torch.bfloat16)

    def error(answers: list[Answer]) -> float:
        return sum(abs(a - b) for (a, _), (b, _) in zip(answers, truth, strict=True)) / len(truth)

    assert error(forked(lm, requests)[1]) <= 1.1 * error(harness(lm, requests))


@pytest.mark.parametrize("name", ["bloom", "lfm2", "mamba"])
def test_memory_running_out_halves_the_budget_and_changes_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    lm = make_forkable(name)
    requests = make_requests(6)
    theirs = harness(lm, requests)
    real, failures = ForkForward._forward, []

    def scarce(self: ForkForward, tokens: Any, depth: int, *rest: Any) -> Any:
        result = real(self, tokens, depth, *rest)  # late, so that the cache has already gone on
        if len(failures) < 3 and depth:
            failures.append(tokens.shape)
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 MiB")
        return result

    used = SharedPrefixScorer(lm, always=True, budget=Budget(64, 64))
    monkeypatch.setattr(ForkForward, "_forward", scarce)
    monkeypatch.setattr(ForkForward, "_answer", lambda self: (name != "mamba", True))
    used._forward._prices = fork.Prices(forward=0, step=0)
    assert largest_difference(used.loglikelihood(requests, disable_tqdm=True), theirs) <= TOLERANCE
    assert len(failures) == 3
    assert used._forward.budget == Budget(8, 8)


def test_memory_that_never_suffices_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    used = SharedPrefixScorer(make_forkable("lfm2"), always=True, budget=Budget(8, 8))
    monkeypatch.setattr(ForkForward, "_forward", fail)
    with pytest.raises(torch.OutOfMemoryError):
        used.loglikelihood(make_requests(), disable_tqdm=True)


@pytest.mark.parametrize("name", ["bloom", "lfm2", "mamba", "qwen3_5", "minimax"])
def test_a_copy_shares_nothing(name: str) -> None:
    lm = make_forkable(name)
    used = SharedPrefixScorer(lm)
    run = partial(used._forward._forward, keep=True)
    _, cache = run(np.arange(8, 30)[None], 0, None, np.empty(0, np.int64))
    before = [tensor.clone() for tensor in tensors(cache)]
    copies = fork._copied(cache, 3)
    assert {tensor.shape[0] for tensor in tensors(copies) if tensor.dim()} == {3}
    run(np.array([[5], [6], [7]]), 22, copies, np.array([0]))
    after = tensors(cache)
    assert len(before) == len(after) > 0
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def tensors(cache: Any) -> list[torch.Tensor]:
    found: list[torch.Tensor] = []
    fork._mapped(cache, lambda tensor: found.append(tensor) or tensor)
    return found


def test_how_each_kind_of_model_goes_on() -> None:
    """Several tokens at once; one by one, as Mamba, which forgets its state otherwise; never one in several rows."""
    found = {}
    for name in ("bloom", "mamba", "mamba2", "lfm2", "qwen3_next", "granitemoehybrid", "minimax", "rwkv"):
        forward = SharedPrefixScorer(make_forkable(name))._forward
        forward._ask()
        found[name] = forward._prices.at_once, forward._prices.one_by_one
    assert found == {
        "bloom": (True, True),
        "mamba": (False, True),
        "mamba2": (True, True),
        "lfm2": (True, True),
        "qwen3_next": (True, True),
        "granitemoehybrid": (True, True),
        "minimax": (False, True),
        "rwkv": (True, False),
    }


# What would be wrong, and is caught -----------------------------------------------------------------------------------


def expect_refusal(lm: HFLM, said: str, caplog: pytest.LogCaptureFixture, **kwargs: Any) -> None:
    """Two calls give lm_eval's own answers, bit by bit, and the log says once why."""
    contexts = [[1, *(8 + (n * 37 + 11 * place) % 450 for place in range(101))] for n in range(6)]
    requests = [(("c", "o"), context, [10 + o, 11]) for context in contexts for o in range(4)]
    theirs = harness(lm, requests)
    heard: list[Any] = []
    lm.cache_hook.add_partial = lambda *given: heard.append(given)
    used = SharedPrefixScorer(lm, **kwargs)
    with caplog.at_level(logging.INFO, logger="lm_eval.kinject"):
        for _ in range(2):
            assert used.loglikelihood(requests, disable_tqdm=True) == theirs
            assert used.stats.path == "harness"
            assert said in used.stats.reason
    assert sum(said in record.message for record in caplog.records) == 1
    assert len(heard) == 2 * len(requests)  # lm_eval's own answers, and none of ours


@pytest.mark.parametrize("name", ["bloom", "mamba", "lfm2", "qwen3_next", "granitemoehybrid"])
def test_the_self_check_catches_a_cache_that_is_not_forked(
    name: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Options go on from one and the same cache, so that the second sees the first: only the self-check can tell."""
    monkeypatch.setattr(ForkForward, "_answer", lambda self: (name != "mamba", True))
    monkeypatch.setattr(fork, "_copied", lambda cache, rows: cache)
    monkeypatch.setattr(ForkForward, "_fitting", lambda *_: 1)
    expect_refusal(make_forkable(name), "nats apart on a request of 103 tokens", caplog, always=True)


@pytest.mark.parametrize("name", ["bloom", "mamba", "lfm2", "qwen3_next", "granitemoehybrid"])
def test_the_self_check_catches_a_stale_state(
    name: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Every branch goes on from the first cache that was ever copied: right in shape, of another prefix."""
    monkeypatch.setattr(ForkForward, "_answer", lambda self: (name != "mamba", True))
    lm, kept = make_forkable(name), []
    real = fork._copied

    def stale(cache: Any, rows: int) -> Any:
        kept.append(real(cache, 1))
        return real(kept[0], rows)

    monkeypatch.setattr(fork, "_copied", stale)
    expect_refusal(lm, "nats apart on a request of 103 tokens", caplog, always=True)


def test_the_model_is_asked_before_it_is_used(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """One that forgets what it has read, however it is fed, is refused without a run that fails."""
    real = ForkForward._forward

    def forgetful(self: ForkForward, tokens: Any, depth: int, cache: Any, *rest: Any) -> Any:
        return real(self, tokens, 0, None, *rest) if cache is not None else real(self, tokens, depth, cache, *rest)

    monkeypatch.setattr(ForkForward, "_forward", forgetful)
    expect_refusal(make_forkable("lfm2"), "it doesn't go on from its cache as if it had read the prefix", caplog)


@pytest.mark.parametrize(
    ("arch", "changes", "said"),
    [
        ("recurrent_gemma", {"lru_width": 32, "attention_window_size": 24}, "it hands out no cache"),
        ("cpmant", {"dim_head": 8, "dim_ff": 64}, "it doesn't take its cache back: The size of tensor a"),
        ("openai-gpt", {"n_embd": 32, "n_layer": 2, "n_head": 4}, "doesn't let its attention be replaced"),
        ("mamba2", {"num_heads": 8, "n_groups": 2, "time_step_limit": (0.1, 1.0)}, "carries a recurrent state"),
    ],
)
def test_models_that_stay_with_lm_eval(
    arch: str, changes: dict[str, Any], said: str, caplog: pytest.LogCaptureFixture
) -> None:
    expect_refusal(make_random(arch, **changes), said, caplog)


def test_why_no_fork() -> None:
    assert "takes no cache" in str(reason_no_fork(make_random("openai-gpt", n_embd=32, n_layer=2, n_head=4)))
    limited = make_random("mamba2", num_heads=8, n_groups=2, time_step_limit=(0.1, 1.0))
    assert "time steps are limited" in str(reason_no_fork(limited))
    rope = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
    assert "dynamic rotary" in str(reason_no_fork(make_random("llama", rope_parameters=rope)))
    assert reason_no_fork(make_forkable("lfm2")) is None


def test_a_run_too_small_is_not_even_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = make_forkable("lfm2")
    letters = [(("c", "o"), [1, *range(20, 400)], [option]) for option in (10, 11, 12, 13)]
    monkeypatch.setattr(ForkForward, "_answer", lambda self: pytest.fail("was asked"))
    used = SharedPrefixScorer(lm)
    assert used.loglikelihood(letters, disable_tqdm=True) == harness(lm, letters)
    assert used.stats.reason == "sharing would not pay"


def test_a_run_large_enough_is_forked() -> None:
    lm = make_forkable("lfm2")
    requests = [(("c", "o"), [1, 20 + n, *range(30, 330)], [10 + o, 11]) for n in range(20) for o in range(4)]
    used = SharedPrefixScorer(lm)
    assert largest_difference(used.loglikelihood(requests, disable_tqdm=True), harness(lm, requests)) <= TOLERANCE
    assert (used.stats.path, used.stats.checked) == ("forked", 1)
    assert used.stats.forwarded_tokens <= 1.05 * used.stats.distinct_tokens
