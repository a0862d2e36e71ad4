"""The hosts of vLLM and SGLang in this process: lm_eval's classes, asked what retrieval needs to know.

What it is for: `ServingHost` is what both share: arguments checked before gigabytes are loaded, tokens counted, prompts
handed over in an order in which shared beginnings meet, and a log-probability for each token or an error. `VLLMHost`
and `SGLangHost` stand between `RagMixin` and lm_eval's class. What it does not do: retrieval; and it makes no engine
share what it doesn't: both read a prompt whole, whatever their caches hold, where its own log-probabilities are asked
for (vLLM: ``SamplingParams.skip_reading_prefix_cache``; SGLang: ``logprob_start_len=0``).

The one idea: engines keep the keys and values of what was read last, so prompts are handed over in the order of their
tokens, which lm_eval's order by length tears apart::

    by length   [doc B, question 1]  [doc A, question 2]  [doc B, question 3]
    by tokens   [doc A, question 2]  [doc B, question 1]  [doc B, question 3]     doc B is there when it comes again
"""

from __future__ import annotations

import importlib.util
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lm_eval_kinject.context.compose import markers_of
from lm_eval_kinject.errors import KinjectError, ModelError
from lm_eval_kinject.models.arguments import RagArguments
from lm_eval_kinject.models.engine import Engine, missing_packages
from lm_eval_kinject.models.results import loading, model_identity

__all__ = ["SGLANG", "VLLM", "SGLangHost", "ServingHost", "VLLMHost"]

_VLLM_TAKES = frozenset(
    {
        "attention_backend", "block_size", "calculate_kv_scales", "compilation_config", "config_format",
        "cpu_offload_gb", "disable_cascade_attn", "disable_custom_all_reduce", "disable_log_stats",
        "disable_sliding_window", "distributed_executor_backend", "download_dir", "enable_chunked_prefill",
        "enable_expert_parallel", "enable_prefix_caching", "enforce_eager", "generation_config",
        "gpu_memory_utilization", "hf_config_path", "hf_overrides", "kv_cache_dtype", "kv_cache_memory_bytes",
        "limit_mm_per_prompt", "load_format", "max_num_batched_tokens", "max_num_seqs", "model_impl",
        "pipeline_parallel_size", "prefix_caching_hash_algo", "scheduling_policy", "speculative_config",
    }
)  # fmt: skip
"""Names that vLLM's ``EngineArgs`` has, beyond those of lm_eval's class."""

_SGLANG_TAKES = frozenset(
    {
        "attention_backend", "cuda_graph_max_bs", "disable_cuda_graph", "disable_radix_cache", "download_dir",
        "enable_torch_compile", "ep_size", "log_level", "max_prefill_tokens", "max_running_requests",
        "max_total_tokens", "pp_size", "quantization", "random_seed", "revision", "sampling_backend",
        "schedule_conservativeness", "schedule_policy",
    }
)  # fmt: skip
"""Names that SGLang's ``ServerArgs`` has, beyond those of lm_eval's class."""

_MECHANICS = frozenset(
    {
        "chunked_prefill_size", "cpu_offload_gb", "cuda_graph_max_bs", "data_parallel_size", "disable_cuda_graph",
        "disable_custom_all_reduce", "disable_log_stats", "disable_radix_cache", "distributed_executor_backend",
        "download_dir", "dp_size", "enable_prefix_caching", "enforce_eager", "gpu_memory_utilization", "log_level",
        "lora_local_path", "max_lora_rank", "max_num_batched_tokens", "max_num_seqs", "max_running_requests",
        "max_total_tokens", "mem_fraction_static", "pipeline_parallel_size", "pp_size", "prefix_caching_hash_algo",
        "tensor_parallel_size", "tokenizer_path",
    }
)  # fmt: skip
"""Arguments that say where and how fast, or are named elsewhere, and aren't named in results."""


# What is known before loading -----------------------------------------------------------------------------------------


def _unnamed(own: Mapping[str, Any]) -> list[str]:
    given = isinstance(own.get("pretrained"), str)
    return [] if given else ["pretrained= is missing: the model, a Hub id or a folder; pass it"]


def _both(own: Mapping[str, Any], one: str, other: str) -> list[str]:
    both = own.get(one) is not None and own.get(other) is not None
    return [f"{one}= and {other}= are the same window; remove one of the two"] if both else []


def _vllm_problems(own: Mapping[str, Any], ours: Mapping[str, Any]) -> list[str]:
    found = missing_packages("rag-vllm", ("vllm",), "pip install 'lm-eval-kinject[vllm]'")
    found += _unnamed(own) + _both(own, "max_length", "max_model_len")
    if own.get("enable_thinking") and not own.get("think_end_token"):
        found.append("enable_thinking= needs think_end_token=, what ends the thoughts (such as </think>); pass it")
    if int(own.get("data_parallel_size") or 1) > 1 and importlib.util.find_spec("ray") is None:
        found.append("data_parallel_size= needs the package ray; install with `pip install ray`, or remove it")
    return found + _lora_problems(own.get("lora_local_path"), int(own.get("max_lora_rank") or 16))


def _lora_problems(path: Any, most: int) -> list[str]:
    """What is wrong with a LoRA folder, which vLLM would say after the model is loaded."""
    if path is None:
        return []
    file = Path(str(path)).expanduser() / "adapter_config.json"
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
        kind, rank = config["peft_type"], int(config["r"])
    except (OSError, ValueError, KeyError, TypeError):
        return [f"lora_local_path={path} is no folder with a LoRA adapter (adapter_config.json); correct it"]
    if kind != "LORA":
        return [f"lora_local_path={path} holds an adapter of kind {kind}, and vLLM loads LoRA alone; use rag-hf"]
    if rank > most:
        return [f"the adapter of lora_local_path= has rank {rank}; pass max_lora_rank={rank}, or what vLLM has above"]
    return []


def _vllm_limits(ours: Mapping[str, Any]) -> list[str]:
    if ours.get("adapter"):
        return [
            "adapter= is for rag-hf; pass lora_local_path=, a folder with a LoRA adapter, and pretrained=, its base"
        ]
    return []


def _sglang_problems(own: Mapping[str, Any], ours: Mapping[str, Any]) -> list[str]:
    found = missing_packages("rag-sglang", ("sglang",), "pip install 'lm-eval-kinject[sglang]'")
    found += _unnamed(own) + _both(own, "context_length", "max_model_len")
    if "cuda" not in str(own.get("device") or "cuda"):
        found.append(f"device={own['device']}: lm_eval's class runs SGLang on CUDA alone; remove it")
    return found


def _sglang_limits(ours: Mapping[str, Any]) -> list[str]:
    if ours.get("adapter"):
        return ["adapter= is for rag-hf, and lm_eval's class for SGLang takes no adapters; use rag-hf or rag-vllm"]
    return []


VLLM = Engine(
    type="rag-vllm",
    problems=_vllm_problems,
    limits=_vllm_limits,
    passes_on={*_VLLM_TAKES, "device"},  # lm_eval's command gives a device, which its class drops with a warning
    hands_to="vllm.LLM",
)

SGLANG = Engine(
    type="rag-sglang",
    problems=_sglang_problems,
    limits=_sglang_limits,
    passes_on=_SGLANG_TAKES,
    hands_to="sglang.Engine",
)


# Hosts ----------------------------------------------------------------------------------------------------------------


class ServingHost:
    """What both engines share; see `lm_eval_kinject.models.host.Host`."""

    gives_log_probs = True

    engine: Engine

    # what lm_eval's classes have after their __init__
    max_length: int
    max_gen_toks: int
    tokenizer: Any
    tok_encode: Any

    # Loading --------------------------------------------------------------------------------------------------------

    def load(self, rag: RagArguments, arguments: dict[str, Any], usual: Mapping[str, Any]) -> None:
        """Starts the engine with the model."""
        own = self._filled(arguments)
        with self._explained(own):
            super().__init__(**own)
        self._identity = self._parts(own)
        said = {name: value for name, value in arguments.items() if name not in _MECHANICS}
        if found := loading(said, usual):
            self._identity["loading"] = found

    def _filled(self, own: dict[str, Any]) -> dict[str, Any]:
        """The arguments with our own defaults."""
        return own

    def _parts(self, own: Mapping[str, Any]) -> dict[str, Any]:
        """What is loaded, by name."""
        commit = getattr(getattr(self, "_config", None), "_commit_hash", None)
        return {"model": model_identity(own["pretrained"], commit=commit, revision=own.get("revision"))}

    @contextmanager
    def _explained(self, own: Mapping[str, Any]) -> Iterator[None]:
        """Says in one message why an engine didn't start; its own log, which says more, stands above."""
        try:
            yield
        except KinjectError:
            raise
        except (OSError, RuntimeError, ValueError) as error:
            said = " ".join(str(error).split())[:300]
            raise ModelError(
                f"{self.engine.type} can't start with pretrained={own['pretrained']}: {said}. Check that it is a Hub "
                "id or a folder with config.json and weights, of an architecture that the engine has. Where memory is "
                "short, lower the window (max_model_len=) or the engine's share of the GPU (gpu_memory_utilization=, "
                "mem_fraction_static=)."
            ) from error

    # Answers --------------------------------------------------------------------------------------------------------

    def _model_generate(
        self, requests: Sequence[list[int]], generate: bool = False, sampling_params: Any = None, **more: Any
    ) -> list[Any]:
        """As lm_eval's, with the prompts in the order of their tokens."""
        order = sorted(range(len(requests)), key=requests.__getitem__)
        each = [sampling_params[place] for place in order] if isinstance(sampling_params, list) else sampling_params
        found = super()._model_generate(  # type: ignore[misc]
            requests=[requests[place] for place in order], generate=generate, sampling_params=each, **more
        )
        placed = dict(zip(order, found, strict=True))
        return [placed[place] for place in range(len(requests))]

    def _parse_logprobs(self, tokens: list[int], outputs: Any, ctxlen: int) -> tuple[float, bool]:
        """As lm_eval's, of an answer that has a number for each token.

        Raises:
            ModelError: it hasn't.
        """
        rows = _numbers(outputs)
        asked = list(zip(rows, tokens, strict=False))[ctxlen:]
        if len(rows) != len(tokens) or not all(math.isfinite(row.get(token, math.nan)) for row, token in asked):
            raise ModelError(
                f"{self.engine.type} gave {len(rows)} log-probabilities for a prompt of {len(tokens)} tokens, or none "
                "for one of its own: it can't be scored so. Leave out arguments that change what the engine returns, "
                "or score the model with rag-hf."
            )
        found: tuple[float, bool] = super()._parse_logprobs(tokens=tokens, outputs=outputs, ctxlen=ctxlen)  # type: ignore[misc]
        return found

    # What retrieval asks --------------------------------------------------------------------------------------------

    def markers(self) -> tuple[str, ...]:
        """The tokenizer's control tokens."""
        return markers_of(self.tokenizer)

    def bos(self) -> str:
        """The tokenizer's BOS."""
        return str(getattr(self.tokenizer, "bos_token", None) or "")

    def count(self, text: str, *, bare: bool) -> int:
        """Tokens of a text; with ``bare``, without BOS and EOS."""
        return len(self.tokenizer(text, add_special_tokens=False).input_ids if bare else self.tok_encode(text))

    def room(self, request_type: str, arguments: Sequence[Any]) -> int:
        """Tokens of the window that a request leaves free; what is scored needs one token more, which is generated."""
        free = self.max_length - self.count(arguments[0], bare=False)
        if request_type == "generate_until":
            from lm_eval.models.utils import normalize_gen_kwargs

            return free - int(normalize_gen_kwargs(arguments[1], self.max_gen_toks)["max_gen_toks"])
        return free - 1 - self.count(arguments[1], bare=True)

    def render(self, messages: list[dict[str, str]], generation_prompt: bool) -> str:
        """The prompt that the tokenizer's chat template makes of messages."""
        return super().apply_chat_template(messages, add_generation_prompt=generation_prompt)  # type: ignore[misc]

    def identity(self) -> dict[str, Any]:
        """Weights, what was put on them, and how they were read where that isn't as usual."""
        return dict(self._identity)

    def encoder_device(self) -> str:
        """The CPU: the engine takes the GPU's memory as its own."""
        return "cpu"

    def prefix_scorer(self) -> None:
        """None: the engine shares prefixes, where it does."""

    def gather(self, value: Any) -> list[Any] | None:
        """There is one process that asks."""
        return [value]


class VLLMHost(ServingHost):
    """Mixed in before lm_eval's ``VLLM``."""

    def _filled(self, own: dict[str, Any]) -> dict[str, Any]:
        return {"enable_prefix_caching": True, **own}

    def _parts(self, own: Mapping[str, Any]) -> dict[str, Any]:
        found = super()._parts(own)
        if own.get("tokenizer"):
            revision = own.get("tokenizer_revision")
            found["tokenizer"] = model_identity(own["tokenizer"], commit=None, revision=revision)
        if own.get("lora_local_path"):
            found["peft"] = model_identity(str(own["lora_local_path"]), commit=None, revision=None)
        return found


class SGLangHost(ServingHost):
    """Mixed in before lm_eval's ``SGLangLM``."""

    def _filled(self, own: dict[str, Any]) -> dict[str, Any]:
        return {"trust_remote_code": False, **own}  # lm_eval's class would run a repository's code unasked

    def _parts(self, own: Mapping[str, Any]) -> dict[str, Any]:
        found = super()._parts(own)
        if own.get("tokenizer_path"):
            found["tokenizer"] = model_identity(own["tokenizer_path"], commit=None, revision=None)
        return found

    def generate_until(self, requests: Any, **more: Any) -> list[str]:
        """As lm_eval's, for each kind of generation apart: it cuts all answers of a batch by the last one's stops."""
        groups: dict[str, list[int]] = {}
        for place, request in enumerate(requests):
            groups.setdefault(json.dumps(request.args[1], sort_keys=True, default=str), []).append(place)
        found: dict[int, str] = {}
        for places in groups.values():
            texts = super().generate_until([requests[place] for place in places], **more)  # type: ignore[misc]
            found.update(zip(places, texts, strict=True))
        return [found[place] for place in range(len(requests))]


def _numbers(outputs: Any) -> list[dict[int, float]]:
    """What an engine says of each token of a prompt: id -> log-probability, empty where it says nothing."""
    if isinstance(outputs, Mapping):  # SGLang: (number, id, text), the first number None
        rows = outputs["meta_info"]["input_token_logprobs"]
        return [{} if number is None else {token: number} for number, token, *_ in rows]
    rows = outputs.prompt_logprobs or ()  # vLLM: id -> number or object, the first None
    return [{token: getattr(one, "logprob", one) for token, one in (row or {}).items()} for row in rows]
