"""What can't be exact, can't be proved exact or wouldn't pay takes lm_eval's own path, and the log says so."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from helpers.tiny_models import make_tiny, make_tokenizer
from lm_eval.models.huggingface import HFLM
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from lm_eval_kinject.scoring import SharedPrefixScorer, attention, forward, reason_unsupported

SMALL: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
SMALL |= {"num_key_value_heads": 2, "head_dim": 8, "vocab_size": 512, "max_position_embeddings": 512}
SMALL |= {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 3}

Request = tuple[tuple[str, str], list[int], list[int]]


def wrap(model: Any, **kwargs: Any) -> HFLM:
    return HFLM(pretrained=model, tokenizer=make_tokenizer("llama"), batch_size=2, max_length=400, **kwargs)


def from_config(arch: str, **changes: Any) -> HFLM:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(arch, **(SMALL | changes)), dtype=torch.float32)
    for weight in model.parameters():
        if weight.dim() > 1:
            torch.nn.init.normal_(weight, std=0.25)
    return wrap(model.eval())


def requests_of(n: int, length: int) -> list[Request]:
    """Questions with four options of two tokens each; contexts differ from the second token on."""
    contexts = [[1, 20 + number, *range(30, 28 + length)] for number in range(n)]
    return [(("c", "o"), context, [10 + o, 11]) for context in contexts for o in range(4)]


def check_fallback(lm: HFLM, reason: str, caplog: pytest.LogCaptureFixture, level: int = logging.WARNING) -> None:
    """Two calls: both give lm_eval's own answers, bit by bit; the log speaks once."""
    requests = requests_of(6, 100)
    theirs = HFLM._loglikelihood_tokens(lm, requests, disable_tqdm=True)
    scorer = SharedPrefixScorer(lm)
    with caplog.at_level(logging.INFO, logger="lm_eval.kinject"):
        for _ in range(2):
            assert scorer.loglikelihood(requests, disable_tqdm=True) == theirs
            assert scorer.stats.path == "harness"
            assert reason in scorer.stats.reason
    said = [record for record in caplog.records if reason in record.message]
    assert len(said) == 1
    assert said[0].levelno == level


@pytest.mark.parametrize(
    ("arch", "changes", "reason"),
    [
        # both ways are closed: a tree by the state, forking by what transformers leaves out of single steps
        (
            "mamba2",
            {"num_heads": 4, "head_dim": 16, "n_groups": 2, "state_size": 8, "time_step_limit": (0.0, 1.0)},
            "recurrent state",
        ),
        ("llama", {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}}, "dynamic rotary"),
        (
            "phi3",
            {
                "original_max_position_embeddings": 64,
                "rope_parameters": {
                    "rope_type": "longrope",
                    "rope_theta": 1e4,
                    "short_factor": [1.0] * 4,
                    "long_factor": [2.0] * 4,
                    "original_max_position_embeddings": 64,
                },
            },
            "longrope rotary",
        ),
        ("openai-gpt", {"n_embd": 32, "n_layer": 2, "n_head": 4}, "doesn't let its attention be replaced"),
    ],
    ids=lambda given: given if isinstance(given, str) else "",
)
def test_architectures(arch: str, changes: dict[str, Any], reason: str, caplog: pytest.LogCaptureFixture) -> None:
    check_fallback(from_config(arch, **changes), reason, caplog)


@pytest.mark.parametrize(
    ("arch", "changes", "reason"),
    [
        ("mamba", {"state_size": 8}, "recurrent state"),
        ("bloom", {"n_head": 4}, "doesn't let its attention be replaced"),
    ],
    ids=["mamba", "bloom"],
)
def test_no_tree_but_a_fork(arch: str, changes: dict[str, Any], reason: str) -> None:
    lm = from_config(arch, **changes)
    assert reason in str(reason_unsupported(lm))
    scorer = SharedPrefixScorer(lm)
    assert (scorer.stats.path, scorer.stats.reason) == ("harness", "")  # nothing scored yet, and nothing against it
    scorer.loglikelihood(requests_of(20, 300), disable_tqdm=True)
    assert scorer.stats.path == "forked"


def test_encoder_decoder(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    lm = HFLM(pretrained=make_tiny("t5", tmp_path), device="cpu", batch_size=2)
    check_fallback(lm, "encoder-decoder", caplog)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (peft.PromptTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"), "PROMPT_TUNING"),
        (peft.PrefixTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"), "PREFIX_TUNING"),
        (peft.AdaptionPromptConfig(adapter_len=3, adapter_layers=1, task_type="CAUSAL_LM"), "ADAPTION_PROMPT"),
        (peft.LoraConfig(task_type="CAUSAL_LM", alora_invocation_tokens=[10, 11]), "activated LoRA"),
    ],
    ids=["prompt", "prefix", "llama-adapter", "alora"],
)
def test_adapters_that_reach_across_tokens(config: peft.PeftConfig, reason: str) -> None:
    lm = from_config("llama")
    lm._model = peft.get_peft_model(lm._model, config)
    found = reason_unsupported(lm)
    assert found is not None
    assert reason in found


def test_code_from_elsewhere() -> None:
    class Own(LlamaForCausalLM):  # type: ignore[misc]
        pass

    assert "isn't part of transformers" in str(reason_unsupported(wrap(Own(LlamaConfig(**SMALL)))))


def test_a_forward_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    class Steered(HFLM):  # type: ignore[misc]
        def _model_call(self, inps: torch.Tensor, **_: Any) -> torch.Tensor:
            return super()._model_call(inps) + 1

    lm = Steered(pretrained=LlamaForCausalLM(LlamaConfig(**SMALL)), tokenizer=make_tokenizer("llama"))
    assert "Steered has a forward of its own" in str(reason_unsupported(lm))


def test_a_layer_that_asks_for_more(caplog: pytest.LogCaptureFixture) -> None:
    check_fallback(from_config("doge"), "asks its attention for a mask of its own", caplog, logging.ERROR)


@pytest.mark.parametrize("arch", ["mistral", "gemma3_text"])
def test_the_self_check_catches_a_wrong_window(
    arch: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    real_mask, real_tiles = attention._mask, attention.cut_tiles  # as if there were no window
    monkeypatch.setattr(attention, "_mask", lambda t, p, e, _, dtype: real_mask(t, p, e, None, dtype))
    monkeypatch.setattr(attention, "cut_tiles", lambda p, e, past, _, size: real_tiles(p, e, past, None, size))
    lm = from_config(arch, sliding_window=24)
    heard: list[Any] = []
    monkeypatch.setattr(lm.cache_hook, "add_partial", lambda *given: heard.append(given))
    check_fallback(lm, "nats apart on a request of 101 tokens", caplog, logging.ERROR)
    assert len(heard) == 3 * 24  # lm_eval's own answers of three runs, and none of ours


def test_the_self_check_comes_back_for_longer_requests() -> None:
    scorer = SharedPrefixScorer(from_config("mistral", sliding_window=24), always=True)
    checked = []
    for length in (40, 40, 20, 55, 70):
        scorer.loglikelihood(requests_of(3, length), disable_tqdm=True)
        checked.append(scorer.stats.checked)
    assert checked == [1, 0, 0, 0, 1]


@pytest.mark.parametrize(
    ("arch", "changes"),
    [("mistral", {"sliding_window": 60}), ("llama4_text", {"attention_chunk_size": 60, "num_local_experts": 2})],
)
def test_the_self_check_comes_back_for_the_first_request_beyond_the_window(arch: str, changes: dict[str, Any]) -> None:
    scorer = SharedPrefixScorer(from_config(arch, **changes), always=True)
    checked = []
    for length in (50, 58, 61, 65):
        scorer.loglikelihood(requests_of(3, length), disable_tqdm=True)
        checked.append(scorer.stats.checked)
    assert checked == [1, 0, 1, 0]


def test_a_large_run_compares_a_sibling_too() -> None:
    scorer = SharedPrefixScorer(from_config("llama"), always=True)
    scorer.loglikelihood(requests_of(60, 10), disable_tqdm=True)
    assert scorer.stats.checked == 2


def test_the_one_request_compared_has_a_branch_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A mask that lets a token see all before it is right for the first path, and must be caught all the same."""
    own = attention._mask
    monkeypatch.setattr(
        attention,
        "_mask",
        lambda tile, places, ends, window, dtype: own(tile, places, torch.full_like(ends, len(ends)), window, dtype),
    )
    lm = from_config("llama")
    requests = requests_of(6, 100)
    scorer = SharedPrefixScorer(lm, always=True)
    assert scorer.loglikelihood(requests, disable_tqdm=True) == HFLM._loglikelihood_tokens(lm, requests)
    assert "aren't exact" in scorer.stats.reason


def test_runs_too_small_to_pay_take_lm_evals_path() -> None:
    lm = from_config("llama")
    one_letter = [(("c", "o"), [1, *range(20, 400)], [option]) for option in (10, 11, 12, 13)]
    scorer = SharedPrefixScorer(lm)
    assert scorer.loglikelihood(one_letter) == HFLM._loglikelihood_tokens(lm, one_letter)
    assert scorer.stats.reason == "sharing would not pay"
    scorer.loglikelihood(requests_of(20, 300), disable_tqdm=True)
    assert scorer.stats.path == "shared"


def test_a_forward_is_smaller_where_less_memory_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    model = from_config("llama").model
    budgets = []
    for free in (None, 2**40, 2**20, 0):
        monkeypatch.setattr(forward, "free_memory", lambda _, free=free: free)
        budgets.append(forward.starting_budget(model))
    assert budgets[0] == budgets[1]
    assert budgets[0].tokens == 1024 > budgets[2].tokens > budgets[3].tokens == 64
    assert budgets[0].rows > budgets[2].rows >= budgets[3].rows == 16


@pytest.mark.parametrize(
    ("sizes", "short", "long", "rows"),
    [
        # A token's activations: 4 bytes times 16 of the model's width and 4 of the MLP's.
        ({"hidden_size": 192, "intermediate_size": 512, "vocab_size": 32_000}, 2048, 2048, 262),  # 20,480 B: 40 MiB
        ({"hidden_size": 768, "intermediate_size": 2048, "vocab_size": 32_000}, 512, 1800, 262),  # four times that
        ({"hidden_size": 4096, "intermediate_size": 14336, "vocab_size": 128_256}, 512, 1800, 130),  # 64 MiB
    ],
)
def test_a_forward_on_a_cpu_is_no_larger_than_speed_asks_for(
    sizes: dict[str, int], short: int, long: int, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forward, "free_memory", lambda _: 2**40)
    model = from_config("llama").model
    for name, size in sizes.items():
        setattr(model.config, name, size)
    cpu, tokens = torch.device("cpu"), forward.tokens_for_short_prompts
    assert forward.starting_budget(model) == forward.Budget(1024, rows)
    assert [tokens(model.config, cpu, longest) for longest in (60, 900)] == [short, long]
    assert tokens(model.config, torch.device("cuda"), 60) is None


def test_short_prompts_go_in_smaller_packs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forward, "_SHORT_ON_CPU", (100, 0))
    lm, sizes = from_config("llama"), []
    real = forward.TreeForward._forward

    def watched(self: Any, trie: Any, pack: Any, *rest: Any) -> Any:
        sizes.append(pack.n_tokens)
        return real(self, trie, pack, *rest)

    monkeypatch.setattr(forward.TreeForward, "_forward", watched)
    for length, most in ((20, 100), (200, 402)):  # 20 and 200 of context and the first of two option tokens
        sizes.clear()
        SharedPrefixScorer(lm, always=True, self_check=False).loglikelihood(requests_of(30, length), disable_tqdm=True)
        assert max(sizes) == most


def test_what_lm_eval_refuses_is_refused_by_lm_eval() -> None:
    scorer = SharedPrefixScorer(from_config("llama"))
    assert scorer.loglikelihood([]) == []
    for context, option in (([1], []), ([], [1]), ([1], [5] * 401)):
        with pytest.raises(AssertionError):
            scorer.loglikelihood([(("a", "b"), context, option)], disable_tqdm=True)


@pytest.mark.parametrize("other", [True, False])
def test_all_processes_take_lm_evals_path_together_or_none(other: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    # With batch_size=auto lm_eval finds a size together with all processes, which would hang if one alone asked.
    lm = from_config("llama")
    lm.batch_size_per_gpu, lm._world_size = "auto", 2
    sizes: list[int] = []
    monkeypatch.setattr(lm, "_detect_batch_size", lambda *_: sizes.append(4) or 4)
    monkeypatch.setattr(lm, "all_gather", lambda mine: torch.cat([mine, torch.tensor([int(other)])]))
    scorer = SharedPrefixScorer(lm)
    assert len(scorer.loglikelihood(requests_of(1, 5), disable_tqdm=True)) == 4
    assert (scorer.stats.path, sizes) == ("harness", [4])  # at lm_eval's own batch size
    scorer.loglikelihood(requests_of(20, 300), disable_tqdm=True)
    assert scorer.stats.path == ("shared" if other else "harness")
    assert len(sizes) == (1 if other else 2)


def test_a_process_whose_check_fails_never_waits_for_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = from_config("llama")
    lm.batch_size_per_gpu, lm._world_size = "auto", 2
    monkeypatch.setattr(lm, "all_gather", lambda mine: torch.cat([mine, torch.ones_like(mine)]))
    monkeypatch.setattr(lm, "_detect_batch_size", lambda *_: pytest.fail("waits for the others"))
    scorer = SharedPrefixScorer(lm)
    monkeypatch.setattr(scorer, "_tolerance", lambda _: -1.0)
    assert len(scorer.loglikelihood(requests_of(20, 300), disable_tqdm=True)) == 80
    assert "aren't exact" in scorer.stats.reason
