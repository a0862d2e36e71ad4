"""Random models of every architecture that the shared-prefix scorer is tried on, built in memory from configurations.

For tests that compare two ways of computing the same thing. Not for models on disk (`tiny_models`).

The one idea: one dictionary of small sizes in all the names that configurations use; an architecture takes those it
knows. Weights are large (standard deviation .2), so that a wrong mask shows as tenths of nats, and sinks and router
biases are drawn too. Windows and chunks are 24 positions: shorter than the prompts of the tests.
"""

from __future__ import annotations

from typing import Any

import torch
from lm_eval.models.huggingface import HFLM
from transformers import AutoConfig, AutoModelForCausalLM

from helpers.tiny_models import make_tokenizer

REACH = 24

_SIZES: dict[str, Any] = (
    {"vocab_size": 512, "max_position_embeddings": 512, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 3}
    | {"hidden_size": 32, "intermediate_size": 64, "intermediate_size_mlp": 64, "num_hidden_layers": 4}
    | {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "query_pre_attn_scalar": 8}
    | {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 512, "n_inner": 64, "dff": 64}  # GPT-2 and its time
    | {"ffn_dim": 64, "word_embed_proj_dim": 32}
    | {"num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4, "moe_num_experts": 4, "num_experts_per_tok": 2}
    | {"moe_topk": 2, "moe_k": 2, "n_group": 2, "topk_group": 1, "moe_intermediate_size": 32}
    | {"shared_expert_intermediate_size": 32, "expert_ffn_hidden_size": 32, "ffn_hidden_size": 64}
    | {"num_shared_experts": 1, "n_shared_experts": 1, "first_k_dense_replace": 1, "num_dense_layers": 1}
    | {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8}
    | {"sliding_window": REACH, "attention_chunk_size": REACH, "floor_scale": 16, "attn_scale": 0.5}
    | {"attn_logit_softcapping": 2.0}
)
_PER_LAYER = {"hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 512}
_BY_TURNS = {"layer_types": ["sliding_attention", "full_attention"] * 2}
_ALL_HEADS = {"num_key_value_heads": 4}  # latent attention has no groups
_GEMMA4 = _PER_LAYER | _BY_TURNS | {"global_head_dim": 16, "num_global_key_value_heads": None}
_GEMMA3N = _PER_LAYER | _BY_TURNS | {"laurel_rank": 8, "activation_sparsity_pattern": [0.5, 0.0, 0.0, 0.0]}
_YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 16}
_DBRX_ATTENTION = {"kv_n_heads": 2, "clip_qkv": 8, "rope_theta": 1e4}
_DBRX_EXPERTS = {"ffn_hidden_size": 64, "moe_num_experts": 4, "moe_top_k": 2}

SHARED: dict[str, tuple[str, dict[str, Any]]] = {
    arch: (arch, {})
    for arch in (
        # Attention sinks.
        *("gpt_oss", "granite_swa", "granitemoe_swa", "mimo_v2_flash", "flint"),
        # Capped scores.
        *("gemma2", "vaultgemma"),
        # Chunks, and temperatures by position.
        "llama4_text",
        # Forwards that lose their keyword arguments, or don't name them.
        *("nemotron", "stablelm", "biogpt"),
        # Full attention.
        *("apertus", "arcee", "aria_text", "bitnet", "cohere", "ctrl", "ernie4_5", "gemma", "glm", "glm4", "gpt2"),
        *("gpt_bigcode", "gpt_neox", "granite", "helium", "hunyuan_v1_dense", "hyperclovax", "jais2", "llama"),
        *("ministral3", "nanochat", "olmo", "olmo2", "opt", "persimmon", "phi", "phi3", "qwen2", "qwen3", "seed_oss"),
        *("smollm3", "moshi"),
        # Windows.
        *("afmoe", "beam", "cohere2", "cwm", "exaone4", "gemma3_text", "ministral", "mistral", "modernbert-decoder"),
        *("olmo3", "starcoder2"),
        # Experts.
        *("cohere2_moe", "dots1", "ernie4_5_moe", "exaone_moe", "flex_olmo", "glm4_moe", "granitemoe", "jetmoe"),
        *("granitemoeshared", "hunyuan_v1_moe", "hy_v3", "kolibri1", "laguna", "mellum", "minimax_m2", "mixtral"),
        *("olmoe", "qwen2_moe", "qwen3_moe", "solar_open"),
    )
} | {
    "qwen2 with windows": ("qwen2", {"use_sliding_window": True, "max_window_layers": 1}),
    "qwen2_moe with windows": ("qwen2_moe", {"use_sliding_window": True, "max_window_layers": 4}),
    "ministral3 with temperatures": (
        "ministral3",
        {"rope_parameters": _YARN | {"llama_4_scaling_beta": 0.5, "mscale": 1.0, "mscale_all_dim": 1.0}},
    ),
    # Latent attention.
    **{
        arch: (arch, _ALL_HEADS)
        for arch in ("axk1", "deepseek_v2", "deepseek_v3", "glm4_moe_lite", "longcat_flash", "youtu")
    },
    "minicpm3": ("minicpm3", _ALL_HEADS | {"dim_model_base": 32}),  # else its logits are eight times as large
    # Inputs to each layer, heads of several sizes, layers that use the keys and values of others.
    "gemma3n": ("gemma3n_text", _GEMMA3N | {"num_kv_shared_layers": 0}),
    "gemma3n sharing": ("gemma3n_text", _GEMMA3N | {"num_kv_shared_layers": 2}),
    "gemma4": ("gemma4_text", _GEMMA4 | {"attention_k_eq_v": True}),
    "gemma4 sharing": ("gemma4_text", _GEMMA4 | {"num_kv_shared_layers": 2}),
    "gemma4 experts": ("gemma4_text", _GEMMA4 | {"enable_moe_block": True, "top_k_experts": 2}),
    "gemma4_unified": ("gemma4_unified_text", _GEMMA4 | {"use_bidirectional_attention": "vision"}),
    "dbrx": (
        "dbrx",
        {"d_model": 32, "n_heads": 4, "n_layers": 3, "max_seq_len": 512, "attn_config": _DBRX_ATTENTION}
        | {"ffn_config": _DBRX_EXPERTS},
    ),
}
"""By name: architecture and changes of configurations that the scorer shares prefixes for."""


def make_model(arch: str, changes: dict[str, Any], *, dtype: torch.dtype = torch.float32) -> Any:
    """A random model, the same each time, of a transformers architecture with small sizes and `changes`."""
    # Configurations refuse some sizes that others need, so only those that they know are given.
    known = AutoConfig.for_model(arch).to_dict().keys()
    given = {name: value for name, value in _SIZES.items() if name in known} | changes
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(arch, **given), dtype=torch.float32).eval()
        router_biases = [(n, b) for n, b in model.named_buffers() if n.endswith("e_score_correction_bias")]
        for name, weight in [*model.named_parameters(), *router_biases]:
            if name.endswith("sinks"):
                torch.nn.init.normal_(weight, std=2.0)
            elif weight.dim() > 1 or name.endswith("bias"):
                torch.nn.init.normal_(weight, std=0.2)
    return model.to(dtype)


def load(name: str, *, dtype: torch.dtype = torch.float32) -> HFLM:
    """The model `name` of `SHARED` in lm_eval's ``hf``."""
    model = make_model(*SHARED[name], dtype=dtype)
    return HFLM(pretrained=model, tokenizer=make_tokenizer("llama"), batch_size=4, max_length=512)
