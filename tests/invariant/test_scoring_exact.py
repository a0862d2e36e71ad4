"""Shared-prefix scoring returns what lm_eval's own path returns, model by model and trap by trap."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from helpers import architectures
from helpers.architectures import REACH, SHARED
from helpers.tiny_models import SLIDING_WINDOW, make_tiny, make_tokenizer
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from transformers import AutoConfig, AutoModelForCausalLM

from lm_eval_kinject.scoring import Budget, SharedPrefixScorer, attention
from lm_eval_kinject.scoring import scorer as scorer_module
from lm_eval_kinject.scoring.attention import Chunk, Scores
from lm_eval_kinject.scoring.forward import TreeForward, starting_budget

ARCHITECTURES = ["llama", "mistral", "qwen3", "gemma3", "phi", "gpt2", "gpt_neox"]
VOCABULARY = 500
TOLERANCE = 1e-4

Request = tuple[tuple[str, str], list[int], list[int]]
Answer = tuple[float, bool]


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


def load(models: Path, arch: str, **kwargs: Any) -> HFLM:
    return HFLM(pretrained=make_tiny(arch, models), device="cpu", batch_size=4, **kwargs)


def from_config(arch: str, **changes: Any) -> HFLM:
    """A random model of any transformers architecture, small unless `changes` say otherwise."""
    size: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "head_dim": 8}
    size |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512, "vocab_size": 512}
    config = AutoConfig.for_model(arch, **(size | {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 3} | changes))
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    for weight in model.parameters():
        if weight.dim() > 1:
            torch.nn.init.normal_(weight, std=0.25)
    return HFLM(pretrained=model, tokenizer=make_tokenizer("llama"), batch_size=4, max_length=512)


def make_requests(seed: int = 0, contexts: int = 6, longest: int = 3 * SLIDING_WINDOW) -> list[Request]:
    """Contexts that share a header or each other, and options that share, repeat and contain each other."""
    rng = random.Random(seed)

    def words(n: int) -> list[int]:
        return [rng.randrange(8, VOCABULARY) for _ in range(n)]

    header, requests = words(SLIDING_WINDOW), []
    stem: list[int] = []
    for number in range(contexts):
        stem = (
            ([1, *header] if number % 2 else [1]) + words(rng.randint(10, longest))
            if number % 3
            else [*stem, *words(9)]
        )
        option = words(5)
        options = [option[:2], option, [*option, 9], [option[0], 77], words(1), words(1), words(12)]
        requests += [((f"context {number}", str(ids)), list(stem or [1]), ids) for ids in options]
    requests += [(("", "alone"), [1], words(3)), requests[0], requests[-1]]
    rng.shuffle(requests)
    return requests


def harness(lm: HFLM, requests: list[Request]) -> list[Answer]:
    return HFLM._loglikelihood_tokens(lm, requests, disable_tqdm=True)


def shared(lm: HFLM, requests: list[Request], **kwargs: Any) -> list[Answer]:
    """Answers of the shared path, and proof that it was taken."""
    scorer = SharedPrefixScorer(lm, always=True, **kwargs)
    answers = scorer.loglikelihood(requests, disable_tqdm=True)
    assert scorer.stats.path == "shared", scorer.stats.reason
    assert scorer.stats.forwarded_tokens == scorer.stats.distinct_tokens
    return answers


def assert_same(ours: list[Answer], theirs: list[Answer], tolerance: float = TOLERANCE) -> None:
    assert len(ours) == len(theirs)
    for (log_prob, greedy), (expected, expected_greedy) in zip(ours, theirs, strict=True):
        assert log_prob == pytest.approx(expected, abs=tolerance)
        assert greedy is expected_greedy


def with_greedy_options(lm: HFLM, requests: list[Request]) -> list[Request]:
    """The requests and, for some contexts, the model's own greedy continuation, so that both flags occur."""
    found = list(requests)
    for text, context, _ in requests[::5]:
        ids = torch.tensor([context[-lm.max_length + 4 :]])
        with torch.no_grad():
            for _ in range(3):
                ids = torch.cat([ids, lm.model(ids).logits[:, -1:].argmax(-1)], dim=1)
        found.append(((text[0], "greedy"), context, ids[0, -3:].tolist()))
    return found


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("budget", [None, Budget(97, 9), Budget(1, 1)], ids=["default", "small", "least"])
def test_same_answers(models: Path, arch: str, budget: Budget | None) -> None:
    lm = load(models, arch)
    requests = with_greedy_options(lm, make_requests())
    theirs = harness(lm, requests)
    assert {greedy for _, greedy in theirs} == {True, False}
    assert_same(shared(lm, requests, budget=budget), theirs)


@pytest.mark.parametrize(
    ("arch", "changes"),
    [
        ("mistral", {"sliding_window": None}),
        ("mistral", {"sliding_window": 1}),
        ("mistral", {"sliding_window": 24, "num_key_value_heads": 4}),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 24, "max_window_layers": 1}),
        ("qwen3", {"use_sliding_window": True, "sliding_window": 24, "max_window_layers": 1}),
        ("gemma3_text", {"sliding_window": 24, "sliding_window_pattern": 2}),
        ("mixtral", {"sliding_window": 24, "num_local_experts": 4}),
        ("olmo3", {"sliding_window": 24}),
        ("cohere2", {"sliding_window": 24}),
        ("opt", {"ffn_dim": 64, "word_embed_proj_dim": 32}),
        ("llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}}),
        (
            "llama",
            {
                "rope_parameters": {
                    "rope_type": "yarn",
                    "rope_theta": 1e4,
                    "factor": 4.0,
                    "original_max_position_embeddings": 64,
                }
            },
        ),
    ],
    ids=lambda given: given if isinstance(given, str) else "-".join(given),
)
def test_same_answers_further_models(arch: str, changes: dict[str, Any]) -> None:
    lm = from_config(arch, **changes)
    requests = make_requests(1)
    assert_same(shared(lm, requests, budget=Budget(150, 50)), harness(lm, requests))


@pytest.mark.parametrize("arch", ["llama", "gpt2", "gemma3"])
@pytest.mark.parametrize("add_bos", [True, False])
def test_same_answers_from_text(models: Path, arch: str, add_bos: bool) -> None:
    lm = load(models, arch, add_bos_token=add_bos)
    pairs = [
        (context, f" {option}") for context in ("", "Question: who?\nAnswer:") for option in ("the mayor", "Paris")
    ]
    pairs += [("Question: who?", " The mayor of the town"), ("", "<s> Paris"), pairs[0]]
    instances = [Instance("loglikelihood", {}, pair, index) for index, pair in enumerate(pairs)]
    theirs = lm.loglikelihood(instances, disable_tqdm=True)
    lm._loglikelihood_tokens = SharedPrefixScorer(lm, always=True).loglikelihood
    assert_same(lm.loglikelihood(instances, disable_tqdm=True), theirs)


@pytest.mark.parametrize("arch", ["llama", "mistral", "gpt2"])
def test_same_answers_beyond_the_models_length(models: Path, arch: str) -> None:
    lm = load(models, arch, max_length=64)
    requests = make_requests(2)
    option = [5] * 64  # as long as the model's window: not one token of context is left
    requests.append((("long", "long"), [7, 8, 9], option))
    assert max(len(context) for _, context, _ in requests) > 64
    assert_same(shared(lm, requests, budget=Budget(40, 20)), harness(lm, requests))


@pytest.mark.parametrize(
    ("arch", "dora"), [("llama", False), ("llama", True), ("gemma3", False), ("gpt_neox", False), ("gpt2", False)]
)
def test_same_answers_with_an_adapter(models: Path, tmp_path: Path, arch: str, dora: bool) -> None:
    path = make_tiny(arch, models)
    torch.manual_seed(1)
    targets = {"target_modules": "all-linear", "fan_in_fan_out": arch == "gpt2"}
    config = peft.LoraConfig(r=4, use_dora=dora, init_lora_weights=False, task_type="CAUSAL_LM", **targets)
    peft.get_peft_model(AutoModelForCausalLM.from_pretrained(path), config).save_pretrained(tmp_path)
    lm = HFLM(pretrained=path, peft=str(tmp_path), device="cpu", batch_size=4)
    requests = make_requests(3)
    theirs = harness(lm, requests)
    assert_same(shared(lm, requests, budget=Budget(120, 50)), theirs)
    bare = harness(load(models, arch), requests)
    assert max(abs(a[0] - b[0]) for a, b in zip(theirs, bare, strict=True)) > 0.1


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_bf16_is_no_further_from_fp32_than_lm_eval(models: Path, arch: str) -> None:
    requests = make_requests(4, contexts=12)
    truth = [log_prob for log_prob, _ in harness(load(models, arch), requests)]
    lm = load(models, arch, dtype="bfloat16")

    def error(answers: list[Answer]) -> float:
        return sum(abs(log_prob - true) for (log_prob, _), true in zip(answers, truth, strict=True)) / len(truth)

    assert error(shared(lm, requests)) <= error(harness(lm, requests))


def test_mixed_precision_is_honoured(models: Path) -> None:
    lm = load(models, "llama", mixed_precision_dtype="bfloat16", softmax_dtype="float32")
    requests = make_requests(5)
    full, mixed, ours = harness(load(models, "llama"), requests), harness(lm, requests), shared(lm, requests)

    def distance(a: list[Answer], b: list[Answer]) -> float:
        return max(abs(x[0] - y[0]) for x, y in zip(a, b, strict=True))

    assert distance(full, ours) > 1e-2
    assert distance(mixed, ours) < 0.1 + 0.05 * 12


def test_answers_do_not_depend_on_company_or_order(models: Path) -> None:
    lm = load(models, "gemma3")
    requests = make_requests(6)
    together = shared(lm, requests)
    assert_same([shared(lm, [request])[0] for request in requests[:10]], together[:10])
    assert_same(shared(lm, requests[::-1])[::-1], together)


def test_memory_running_out_halves_the_budget_and_changes_nothing(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = load(models, "mistral")
    requests = make_requests(7)
    theirs = harness(lm, requests)
    real, sizes = TreeForward._forward, []

    def scarce(self: TreeForward, trie: Any, pack: Any, *rest: Any) -> Any:
        result = real(self, trie, pack, *rest)  # late, so that the layers have already left keys and values
        sizes.append(pack.n_tokens)
        if pack.n_tokens > 50:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 MiB")
        return result

    monkeypatch.setattr(TreeForward, "_forward", scarce)
    budget = Budget(300, 100)
    scorer = SharedPrefixScorer(lm, always=True, budget=budget)
    assert_same(scorer.loglikelihood(requests, disable_tqdm=True), theirs)
    assert sizes[:4] == [300, 150, 75, 37]
    assert max(sizes[3:]) == 37
    assert budget == Budget(37, 12)


@pytest.mark.parametrize(
    "error",
    [RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), MemoryError(), ValueError("no")],
)
def test_memory_that_never_suffices_and_other_errors_are_raised(
    models: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*_: Any) -> Any:
        raise error

    monkeypatch.setattr(TreeForward, "_forward", fail)
    scorer = SharedPrefixScorer(load(models, "llama"), always=True, budget=Budget(8, 8))
    with pytest.raises(type(error)):
        scorer.loglikelihood(make_requests(), disable_tqdm=True)


def test_the_model_is_left_as_it_was(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lm = load(models, "gemma3")
    requests, before = make_requests(8), lm.model.config._attn_implementation
    theirs = harness(lm, requests)
    shared(lm, requests)
    assert lm.model.config._attn_implementation == before
    monkeypatch.setattr("lm_eval_kinject.scoring.forward.read_logits", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        SharedPrefixScorer(lm, always=True).loglikelihood(requests, disable_tqdm=True)
    assert lm.model.config._attn_implementation == before
    assert harness(lm, requests) == theirs


def test_layers_spread_over_devices_with_hooks(models: Path) -> None:
    # One layer's weights live on the meta device between calls: what parallelize=True does when memory is short.
    from accelerate import cpu_offload

    lm = load(models, "llama")
    requests = make_requests(9)
    theirs = harness(lm, requests)
    cpu_offload(lm.model.model.layers[1], execution_device=torch.device("cpu"))
    assert next(lm.model.model.layers[1].parameters()).device.type == "meta"
    assert_same(shared(lm, requests), theirs)


def test_the_cache_hook_hears_every_request_once_it_is_sure(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lm = load(models, "llama")
    requests = [*make_requests(10), (None, [1, 5], [6])]
    heard: list[tuple[str, tuple[str, str], Answer]] = []
    monkeypatch.setattr(lm.cache_hook, "add_partial", lambda *given: heard.append(given))
    answers = shared(lm, requests)  # type: ignore[arg-type]
    expected = [("loglikelihood", request[0], answer) for request, answer in zip(requests, answers, strict=True)]
    assert sorted(heard, key=str) == sorted((entry for entry in expected if entry[1] is not None), key=str)


@pytest.mark.parametrize("arch", ["mistral", "gemma3"])
def test_a_window_in_packed_order_would_be_caught(models: Path, arch: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # What these tests would say if the window were counted in packed order instead of positions.
    lm = load(models, arch)
    requests = make_requests(11)
    theirs = harness(lm, requests)

    def packed(tile: Any, positions: torch.Tensor, *rest: Any) -> torch.Tensor:
        return real(tile, torch.arange(len(positions)), *rest)

    real: Callable[..., torch.Tensor]

    real = attention._mask
    monkeypatch.setattr(attention, "_mask", packed)
    ours = shared(lm, requests, self_check=False)
    assert max(abs(a[0] - b[0]) for a, b in zip(ours, theirs, strict=True)) > 0.05


@pytest.mark.parametrize("budget", [Budget(1024, 1024), Budget(30, 1024)])
def test_the_last_block_works_on_scored_rows_alone(models: Path, budget: Budget) -> None:
    lm = load(models, "llama")
    requests = make_requests(13)
    rows: list[list[int]] = [[], []]
    for layer, seen in zip(lm.model.model.layers, rows, strict=True):
        layer.mlp.down_proj.forward = partial(count_rows, layer.mlp.down_proj.forward, seen)
    scorer = SharedPrefixScorer(lm, always=True, budget=budget, self_check=False)
    assert_same(scorer.loglikelihood(requests, disable_tqdm=True), harness(load(models, "llama"), requests))
    inputs = [((context + option)[:-1], len(option)) for _, context, option in requests]
    scored = {tuple(ids[: n + 1]) for ids, length in inputs for n in range(len(ids) - length, len(ids))}
    assert sum(rows[0]) == scorer.stats.distinct_tokens
    assert len(scored) <= sum(rows[1]) <= len(scored) + len(rows[1])  # a forward that scores nothing runs one row
    assert sum(rows[1]) < sum(rows[0]) / 3


def count_rows(forward: Callable[[torch.Tensor], torch.Tensor], seen: list[int], states: torch.Tensor) -> torch.Tensor:
    seen.append(states.shape[1])
    return forward(states)


def test_progress_and_counts(models: Path) -> None:
    lm = load(models, "llama")
    requests = make_requests(12)
    scorer = SharedPrefixScorer(lm, always=True)
    scorer.loglikelihood(requests, disable_tqdm=True)
    inputs = [(context + option)[:-1] for _, context, option in requests]
    assert scorer.stats.requests == len(requests)
    assert scorer.stats.distinct_tokens == len({tuple(ids[: n + 1]) for ids in inputs for n in range(len(ids))})
    assert scorer.stats.checked == 1
    assert scorer.stats.largest_difference < TOLERANCE
    assert scorer_module.truncated_input([1, 2, 3], [4, 5], 3) == [2, 3, 4]


@pytest.mark.parametrize("name", SHARED)
def test_same_answers_in_every_architecture(name: str) -> None:
    """Random models of all architectures that are shared (`helpers.architectures`), against lm_eval's own path.

    Experts: where two routers' scores differ by rounding alone, either path may take either expert, and answers differ
    by nats. With these weights, the closest call among 300 tokens is 3e-5 apart, more than float32 rounds.
    """
    lm = architectures.load(name)
    assert starting_budget(lm.model).tokens == 1024  # whatever the configuration calls its sizes
    requests = with_greedy_options(lm, make_requests(1))
    theirs = harness(lm, requests)
    assert {greedy for _, greedy in theirs} == {True, False}
    assert_same(shared(lm, requests, budget=Budget(150, 50)), theirs)


NEW_KINDS = ["gpt_oss", "granite_swa", "gemma2", "llama4_text", "nemotron"]


@pytest.mark.parametrize("name", NEW_KINDS)
@pytest.mark.parametrize("budget", [None, Budget(97, 9), Budget(1, 1)], ids=["default", "small", "least"])
def test_same_answers_with_sinks_caps_chunks_and_lost_keywords(name: str, budget: Budget | None) -> None:
    lm = architectures.load(name)
    requests = make_requests(14)
    assert_same(shared(lm, requests, budget=budget), harness(lm, requests))


@pytest.mark.parametrize("name", NEW_KINDS)
def test_bf16_is_no_further_from_fp32_with_sinks_caps_and_chunks(name: str) -> None:
    requests = make_requests(4, contexts=12)
    truth = [log_prob for log_prob, _ in harness(architectures.load(name), requests)]
    lm = architectures.load(name, dtype=torch.bfloat16)

    def error(answers: list[Answer]) -> float:
        return sum(abs(log_prob - true) for (log_prob, _), true in zip(answers, truth, strict=True)) / len(truth)

    assert error(shared(lm, requests)) <= error(harness(lm, requests))


def _other_scores(change: Callable[[Scores], Scores]) -> dict[str, Any]:
    real = attention._written_out
    return {"_written_out": lambda *given: real(*given[:-1], change(given[-1]))}


def _other_reach(change: Callable[[Any], Any]) -> dict[str, Any]:
    real = attention._reach
    return {"_reach": lambda module, said: change(real(module, said))}


def _packed_order() -> dict[str, Any]:
    real = attention._mask
    return {"_mask": lambda tile, positions, *rest: real(tile, torch.arange(len(positions)), *rest)}


def _branches_seen() -> dict[str, Any]:
    real = attention._mask
    return {"_mask": lambda tile, places, ends, *rest: real(tile, places, torch.full_like(ends, len(ends)), *rest)}


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("gpt_oss", lambda: _other_scores(lambda scores: replace(scores, sinks=None))),
        ("gpt_oss", lambda: _other_scores(lambda scores: replace(scores, sinks=scores.sinks.flip(0)))),
        ("gpt_oss", lambda: _other_reach(lambda reach: reach and reach + 1)),
        ("gemma2", lambda: _other_scores(lambda scores: replace(scores, cap=None))),
        ("gemma2", lambda: _other_scores(lambda scores: replace(scores, cap=2 * scores.cap))),
        ("gemma2", _packed_order),
        ("llama4_text", lambda: _other_reach(lambda reach: None)),
        ("llama4_text", lambda: _other_reach(lambda reach: reach and Chunk(REACH + 1))),
        ("llama4_text", lambda: _other_reach(lambda reach: reach and REACH)),
        ("llama4_text", _packed_order),
        ("llama4_text", lambda: {"_temperature_by_place": lambda _: None}),
        ("qwen2_moe with windows", lambda: _other_reach(lambda reach: None)),
        ("nemotron", _branches_seen),
        ("stablelm", _branches_seen),
    ],
)
def test_what_is_wrong_would_be_caught(
    name: str, wrong: Callable[[], dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = architectures.load(name)
    requests = make_requests(15)
    theirs = harness(lm, requests)
    for function, replacement in wrong().items():
        monkeypatch.setattr(attention, function, replacement)
    ours = shared(lm, requests, self_check=False)
    assert max(abs(a[0] - b[0]) for a, b in zip(ours, theirs, strict=True)) > 0.1
    scorer = SharedPrefixScorer(lm, always=True)
    assert scorer.loglikelihood(requests, disable_tqdm=True) == theirs  # lm_eval's own, since the self-check saw it
    assert "nats apart" in scorer.stats.reason
