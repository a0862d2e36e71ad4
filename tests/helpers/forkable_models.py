"""Small random models whose prefixes are shared by forking their own cache: recurrent, hybrid and old code.

For tests that ask whether that way agrees with lm_eval's. Not for anything about quality.

The one idea: weights are large, so that log-probabilities are far from uniform, and state-space parameters are drawn so
that a state is still felt hundreds of tokens later; windows, convolutions and scan chunks are shorter than the prompts.
"""

from __future__ import annotations

from typing import Any

import torch
from lm_eval.models.huggingface import HFLM
from transformers import AutoConfig, AutoModelForCausalLM

from helpers.tiny_models import make_tokenizer

_IDS: dict[str, Any] = {"vocab_size": 512, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 3}
_SIZE = _IDS | {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 4, "max_position_embeddings": 512}
_MODERN = _SIZE | {"intermediate_size": 64, "num_key_value_heads": 2, "head_dim": 8}
_GPT = _IDS | {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 512}
_SSM = {"mamba_d_state": 8, "mamba_n_heads": 8, "mamba_d_head": 8, "mamba_n_groups": 2, "mamba_chunk_size": 16}
_DELTA = {"linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
_ZAMBA = ["mamba", "mamba", "hybrid"] * 2


def _mixed(kind: str, attention: str = "full_attention") -> dict[str, Any]:
    return {"layer_types": [kind, attention] * 2}


SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    # old code
    "bloom": ("bloom", _IDS | {"hidden_size": 32, "n_head": 4, "n_layer": 3}),
    "falcon": ("falcon", _SIZE),
    "falcon-alibi": ("falcon", _SIZE | {"alibi": True}),
    "falcon-40b": ("falcon", _SIZE | {"new_decoder_architecture": True, "num_kv_heads": 2}),
    "mpt": ("mpt", {"vocab_size": 512, "d_model": 32, "n_heads": 4, "n_layers": 3, "max_seq_len": 512}),
    "gptj": ("gptj", _GPT | {"rotary_dim": 4}),
    "codegen": ("codegen", _GPT | {"rotary_dim": 4}),
    "stablelm": ("stablelm", _MODERN),
    "gpt_neo": (
        "gpt_neo",
        _IDS
        | {"hidden_size": 32, "num_layers": 4, "num_heads": 4, "max_position_embeddings": 512, "window_size": 24}
        | {"attention_types": [[["global", "local"], 2]]},
    ),
    "xglm": ("xglm", _IDS | {"d_model": 32, "ffn_dim": 64, "num_layers": 3, "attention_heads": 4}),
    "biogpt": ("biogpt", _MODERN),
    "gpt_neox_japanese": ("gpt_neox_japanese", _MODERN),
    "roformer": ("roformer", _MODERN | {"is_decoder": True, "embedding_size": 32}),
    "rembert": ("rembert", _MODERN | {"is_decoder": True, "input_embedding_size": 32, "output_embedding_size": 32}),
    # states alone
    "rwkv": ("rwkv", _MODERN | {"attention_hidden_size": 32}),
    "mamba": ("mamba", _MODERN | {"state_size": 8, "time_step_rank": 4}),
    "falcon_mamba": ("falcon_mamba", _MODERN | {"state_size": 8, "time_step_rank": 4}),
    "mamba2": ("mamba2", _MODERN | {"state_size": 8, "num_heads": 8, "head_dim": 8, "n_groups": 2, "chunk_size": 16}),
    # hybrids
    "qwen3_next": (
        "qwen3_next",
        _MODERN | _mixed("linear_attention") | _DELTA | _EXPERTS | {"shared_expert_intermediate_size": 32},
    ),
    "qwen3_5": ("qwen3_5_text", _MODERN | _mixed("linear_attention") | _DELTA),
    "olmo_hybrid": ("olmo_hybrid", _MODERN | _mixed("linear_attention") | _DELTA | {"linear_num_value_heads": 2}),
    "granitemoehybrid": (
        "granitemoehybrid",
        _MODERN
        | _SSM
        | _mixed("mamba", "attention")
        | {"num_local_experts": 4, "num_experts_per_tok": 2, "shared_intermediate_size": 32},
    ),
    "falcon_h1": ("falcon_h1", _MODERN | _SSM | {"mamba_d_ssm": 64}),
    "bamba": ("bamba", _MODERN | _SSM | {"attn_layer_indices": [1, 3]}),
    "lfm2": ("lfm2", _MODERN | _mixed("conv")),
    "lfm2_moe": ("lfm2_moe", _MODERN | _mixed("conv") | _EXPERTS | {"num_dense_layers": 1}),
    "jamba": (
        "jamba",
        _MODERN
        | {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1}
        | {"num_experts": 2, "mamba_d_state": 8, "mamba_dt_rank": 4},
    ),
    "zamba": (
        "zamba",
        _MODERN
        | {"num_hidden_layers": 6, "layers_block_type": _ZAMBA, "attention_hidden_size": 64, "attention_head_dim": 16}
        | {"mamba_d_state": 8, "mamba_dt_rank": 4, "n_mamba_heads": 2},
    ),
    "zamba2": (
        "zamba2",
        _MODERN
        | {"num_hidden_layers": 6, "layers_block_type": _ZAMBA, "attention_hidden_size": 64, "attention_head_dim": 16}
        | {"mamba_d_state": 8, "mamba_ngroups": 2, "n_mamba_heads": 8, "mamba_headdim": 8, "chunk_size": 16}
        | {"num_mem_blocks": 1, "use_mem_rope": True, "adapter_rank": 4},
    ),
    "nemotron_h": (
        "nemotron_h",
        _MODERN
        | {"hybrid_override_pattern": "M*M-", "mamba_num_heads": 8, "mamba_head_dim": 8, "ssm_state_size": 8}
        | {"n_groups": 2, "chunk_size": 16},
    ),
    "minimax": ("minimax", _MODERN | _mixed("linear_attention") | {"num_local_experts": 2, "block_size": 16}),
    # windows and chunks of 24 tokens
    "mistral": ("mistral", _MODERN | {"sliding_window": 24}),
    "gemma3": ("gemma3_text", _MODERN | {"sliding_window": 24, "sliding_window_pattern": 2}),
    "gemma2": ("gemma2", _MODERN | {"sliding_window": 24}),
    "gpt_oss": ("gpt_oss", _MODERN | {"sliding_window": 24, "num_local_experts": 2, "num_experts_per_tok": 1}),
    "llama4": ("llama4_text", _MODERN | {"attention_chunk_size": 24, "num_local_experts": 2}),
}
"""By name: transformers' model type, and what to ask of its configuration."""

WINDOWED = ("mistral", "gemma3", "gemma2", "gpt_oss", "llama4")
"""Those that tree attention serves, or may come to serve."""


def make_forkable(name: str, dtype: torch.dtype = torch.float32, **changes: Any) -> HFLM:
    """A random model of one of `SHAPES` in lm_eval's ``hf``.

    Args:
        name: one of `SHAPES`.
        dtype: of weights and activations; the weights are drawn in float32 first.
        **changes: to its configuration.
    """
    arch, shape = SHAPES[name]
    return _loaded(arch, shape | changes, dtype)


def make_random(arch: str, **changes: Any) -> HFLM:
    """A model of any architecture, drawn in the same way."""
    return _loaded(arch, _MODERN | changes, torch.float32)


def _loaded(arch: str, shape: dict[str, Any], dtype: torch.dtype) -> HFLM:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(arch, **shape), dtype=torch.float32).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for path, weight in model.named_parameters():
            _draw(path, weight, generator)
    return HFLM(pretrained=model.to(dtype), tokenizer=make_tokenizer("llama"), batch_size=4, max_length=512)


def _draw(path: str, weight: torch.Tensor, generator: torch.Generator) -> None:
    name = path.rpartition(".")[2]
    if name == "A_log":  # decay by 1 to 40 % at a time step of 1
        weight.copy_(torch.empty_like(weight).uniform_(0.01, 0.5, generator=generator).log())
    elif name == "dt_bias" or path.endswith("dt_proj.bias"):  # time steps of 0.05 to 0.7
        weight.uniform_(-3, 0, generator=generator)
    elif name == "time_decay":
        weight.uniform_(-5, -1, generator=generator)
    elif "conv" in path and weight.dim() == 3:
        weight.normal_(0, 0.5, generator=generator)
    elif weight.dim() > 1:
        weight.normal_(0, 0.2, generator=generator)
    elif "bias" in name:
        weight.normal_(0, 0.1, generator=generator)
