"""Stand-ins for vllm and sglang over a tiny model: names, signatures and shapes of answer that lm_eval's classes use.

`installed` puts them where the packages would be. What they show: that our types ask lm_eval's classes, and through
them an engine of this interface, for the right things and read the answers right. What they can't show: anything about
the engines' own kernels, memory or scheduling. Like the engines they know their arguments, and refuse others.
"""

from __future__ import annotations

import importlib.machinery
import importlib.metadata
import sys
import types
from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


class Core:
    """A model and what both engines do with it; ``seen`` are the prompts in the order in which they came."""

    def __init__(self, folder, window):
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.window = window or self.model.config.max_position_embeddings
        self.seen, self.lora = [], {}

    def of(self, adapter):
        if adapter is None:
            return self.model
        if adapter not in self.lora:
            from peft import PeftModel

            base = AutoModelForCausalLM.from_pretrained(self.model.config._name_or_path, dtype=torch.float32)
            self.lora[adapter] = PeftModel.from_pretrained(base, adapter).eval()
        return self.lora[adapter]

    @torch.no_grad()
    def logs(self, ids, adapter=None):
        """Log-probabilities (tokens, vocabulary) of what follows each token."""
        return torch.log_softmax(self.of(adapter)(torch.tensor([ids])).logits[0].float(), -1)

    def write(self, ids, most, stop, skip_special, adapter=None):
        if len(ids) + most > self.window:
            raise ValueError(f"{len(ids)} tokens and {most} to come are longer than the maximum model length")
        new = []
        while len(new) < most and (not new or new[-1] != self.tokenizer.eos_token_id):
            new.append(int(self.logs([*ids, *new], adapter)[-1].argmax()))
        text = self.tokenizer.decode(new, skip_special_tokens=skip_special)
        for one in stop or ():
            text = text.split(one)[0] if one else text
        return text


# vLLM -----------------------------------------------------------------------------------------------------------------


@dataclass
class SamplingParams:
    temperature: float = 1.0
    prompt_logprobs: int | None = None
    max_tokens: int | None = 16
    detokenize: bool = True
    stop: list[str] = field(default_factory=list)
    skip_special_tokens: bool = True
    spaces_between_special_tokens: bool = True


@dataclass
class Logprob:
    logprob: float
    rank: int | None = None
    decoded_token: str | None = None


@dataclass
class LoRARequest:
    lora_name: str
    lora_int_id: int
    lora_path: str


class LLM:
    """``vllm.LLM``: keyword arguments of the engine, ``generate``, and the window at ``llm_engine.model_config``."""

    made: list[LLM] = []

    def __init__(
        self, model, *, tokenizer=None, tokenizer_mode="auto", trust_remote_code=False, tensor_parallel_size=1,
        dtype="auto", quantization=None, revision=None, tokenizer_revision=None, seed=0, gpu_memory_utilization=0.9,
        max_model_len=None, max_num_seqs=None, enable_lora=False, max_lora_rank=16, enable_prefix_caching=None,
    ):  # fmt: skip
        self.core = Core(model, max_model_len)
        self.arguments = {"enable_prefix_caching": enable_prefix_caching, "enable_lora": enable_lora}
        model_config = types.SimpleNamespace(max_model_len=self.core.window)
        self.llm_engine = types.SimpleNamespace(model_config=model_config)
        LLM.made.append(self)

    def generate(self, prompts, sampling_params=None, *, use_tqdm=True, lora_request=None, priority=None):
        params = sampling_params if isinstance(sampling_params, list) else [sampling_params] * len(prompts)
        if len(params) != len(prompts):
            raise ValueError("The lengths of prompts and params must be the same.")
        return [
            self.one(prompt["prompt_token_ids"], p, lora_request) for prompt, p in zip(prompts, params, strict=True)
        ]

    def one(self, ids, params, lora):
        self.core.seen.append(ids)
        adapter = lora and lora.lora_path
        text = self.core.write(ids, params.max_tokens, params.stop, params.skip_special_tokens, adapter)
        rows = None
        if params.prompt_logprobs is not None:
            logs = self.core.logs(ids, adapter)
            best = [int(row.argmax()) for row in logs]
            rows = [
                {one: Logprob(float(logs[at, one])) for one in (token, best[at])} for at, token in enumerate(ids[1:])
            ]
            rows = [None, *rows]
        return types.SimpleNamespace(prompt_logprobs=rows, outputs=[types.SimpleNamespace(text=text)])


def get_tokenizer(name, *, tokenizer_mode="auto", trust_remote_code=False, revision=None, **more):
    return AutoTokenizer.from_pretrained(name, revision=revision or "main", **more)


def resolve_chat_template(tokenizer, chat_template, tools, *, model_config):
    return chat_template or tokenizer.chat_template


# SGLang ---------------------------------------------------------------------------------------------------------------


class Engine:
    """``sglang.Engine``: ``generate`` of token ids, and the tokenizer at ``tokenizer_manager``."""

    made: list[Engine] = []

    def __init__(
        self, *, model_path, tokenizer_path=None, tokenizer_mode="auto", load_format="auto", trust_remote_code=False,
        dtype="auto", kv_cache_dtype="auto", device="cuda", mem_fraction_static=None, tp_size=1, dp_size=1,
        chunked_prefill_size=-1,
    ):  # fmt: skip
        self.core = Core(model_path, None)
        self.arguments = {"trust_remote_code": trust_remote_code}
        self.tokenizer_manager = types.SimpleNamespace(tokenizer=self.core.tokenizer, context_len=self.core.window)
        Engine.made.append(self)

    def generate(
        self, prompt=None, sampling_params=None, input_ids=None, return_logprob=False, logprob_start_len=None,
        top_logprobs_num=None,
    ) -> list[Mapping[str, Any]]:  # fmt: skip
        assert len(input_ids) == len(sampling_params)
        pairs = zip(input_ids, sampling_params, strict=True)
        return [self.one(ids, params, return_logprob, logprob_start_len, top_logprobs_num) for ids, params in pairs]

    def one(self, ids, params, return_logprob, start, top):
        self.core.seen.append(ids)
        skip = params.get("skip_special_tokens", True)
        answer = {"text": self.core.write(ids, params["max_new_tokens"], params.get("stop"), skip), "meta_info": {}}
        if return_logprob:
            assert start == 0
            logs = self.core.logs(ids)
            own = [(float(logs[at, token]), token, None) for at, token in enumerate(ids[1:])]
            best = [[(float(v), int(i), None) for v, i in zip(*row.topk(top), strict=True)] for row in logs[:-1]]
            answer["meta_info"] = {
                "input_token_logprobs": [(None, ids[0], None), *own],
                "input_top_logprobs": [None, *best],
            }
        return answer


# Where the packages would be ------------------------------------------------------------------------------------------


def _module(name, **names):
    made = types.ModuleType(name)
    made.__spec__ = importlib.machinery.ModuleSpec(name, None)
    vars(made).update(names)
    return made


MODULES = {
    "vllm": _module("vllm", LLM=LLM, SamplingParams=SamplingParams, TokensPrompt=dict, __path__=[]),
    "vllm.lora": _module("vllm.lora", __path__=[]),
    "vllm.lora.request": _module("vllm.lora.request", LoRARequest=LoRARequest),
    "vllm.renderers": _module("vllm.renderers", __path__=[]),
    "vllm.renderers.hf": _module("vllm.renderers.hf", resolve_chat_template=resolve_chat_template),
    "vllm.tokenizers": _module("vllm.tokenizers", get_tokenizer=get_tokenizer),
    "sglang": _module("sglang", Engine=Engine),
}


@contextmanager
def installed():
    """While it lasts, vllm 0.33.0 and sglang can be imported."""
    before = {name: sys.modules.get(name) for name in MODULES}
    version = importlib.metadata.version
    sys.modules.update(MODULES)
    importlib.metadata.version = lambda name: "0.33.0" if name == "vllm" else version(name)
    try:
        yield
    finally:
        importlib.metadata.version = version
        for name, module in before.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module
