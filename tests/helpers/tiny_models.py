"""Random-weight models of many architectures, a few hundred kilobytes each, made in seconds and offline.

For tests that ask whether two code paths agree, not whether a model is any good: the weights are random but
reproducible (one seed), and large enough that log-probabilities are far from uniform. Every folder holds a model and
its tokenizer and loads with ``AutoModel…from_pretrained`` and with lm_eval's ``hf`` like a downloaded one.

The one idea: one small byte-level BPE tokenizer, trained in-process on a paragraph, serves all architectures; what
differs between real families (a BOS token in front or none, the chat template's shape) is set by architecture.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, PreTrainedTokenizerFast

ARCHITECTURES = ("llama", "mistral", "qwen3", "gemma3", "phi", "gpt2", "gpt_neox", "t5")
"""What `make_tiny` knows. ``mistral`` slides a window of 48 tokens in every layer; ``gemma3`` in every second one."""

SLIDING_WINDOW = 48

torch.set_num_threads(1)  # such small matrices only lose by sharing them out, all the more on a busy machine

_WITH_BOS = {"llama", "mistral", "gemma3"}

_SPECIAL = ["<unk>", "<s>", "</s>", "<pad>", "<|im_start|>", "<|im_end|>", "<start_of_turn>", "<end_of_turn>"]

_TEXT = (
    "Question: Who opened the new bridge over the river in March? Answer: The mayor of the town opened the bridge. "
    "The following are multiple choice questions (with answers) about anatomy. A. B. C. D. Which of these is true? "
    "On 3 March 2024 the council of the northern province chose a new speaker after a long vote, the paper said. "
    "What is the capital of France, and how many people live there? Paris is the capital; about two million do. "
    "0 1 2 3 4 5 6 7 8 9 10 11 12 user assistant system context chunk passage document title date event names"
)

_CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] | trim }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_GEMMA = (
    "{{ bos_token }}{% for m in messages %}<start_of_turn>{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n"
    "{{ m['content'] | trim }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)


def make_tokenizer(arch: str = "llama") -> PreTrainedTokenizerFast:
    """A byte-level BPE of about 500 entries; BOS in front, special tokens and chat template as `arch` has them."""
    raw = Tokenizer(models.BPE(unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=512,
        special_tokens=_SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    raw.train_from_iterator([_TEXT], trainer)
    if arch in _WITH_BOS:
        raw.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    elif arch == "t5":
        raw.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 2)])
    return PreTrainedTokenizerFast(
        tokenizer_object=raw,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        additional_special_tokens=_SPECIAL[4:],
        chat_template=_GEMMA if arch == "gemma3" else _CHATML,
        clean_up_tokenization_spaces=False,
        model_max_length=100_000,
    )


def _config(arch: str, vocab: int, max_length: int) -> Any:
    common = {"vocab_size": vocab, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 3}
    modern = common | {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": max_length,
    }
    grouped = modern | {"num_key_value_heads": 2, "head_dim": 8}
    if arch == "llama":
        return AutoConfig.for_model("llama", **grouped)
    if arch == "mistral":
        return AutoConfig.for_model("mistral", **grouped, sliding_window=SLIDING_WINDOW)
    if arch == "qwen3":
        return AutoConfig.for_model("qwen3", **grouped)
    if arch == "gemma3":
        layers = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": SLIDING_WINDOW}
        return AutoConfig.for_model("gemma3_text", **grouped, **layers, query_pre_attn_scalar=8)
    if arch == "phi":
        return AutoConfig.for_model("phi", **modern)
    if arch == "gpt_neox":
        return AutoConfig.for_model("gpt_neox", **modern)
    if arch == "gpt2":
        size = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": max_length}
        return AutoConfig.for_model("gpt2", **common, **size)
    if arch == "t5":
        size = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4, "n_positions": max_length}
        return AutoConfig.for_model("t5", **common, **size, decoder_start_token_id=3)
    raise ValueError(f"unknown architecture {arch!r}; one of {', '.join(ARCHITECTURES)}")


def make_tiny(arch: str, dir: str | Path, *, seed: int = 0, max_length: int = 2048) -> str:
    """Writes a random model of architecture `arch` with its tokenizer under `dir` and returns the folder's path.

    Args:
        arch: one of `ARCHITECTURES`.
        dir: parent folder; the model goes to ``dir/arch-seed-max_length`` and is reused if it is there already.
        seed: of the weights.
        max_length: the model's window in tokens.

    Raises:
        ValueError: `arch` is not known.
    """
    folder = Path(dir) / f"{arch}-{seed}-{max_length}"
    if (folder / "model.safetensors").exists():
        return str(folder)
    tokenizer = make_tokenizer(arch)
    config = _config(arch, len(tokenizer), max_length)
    auto = AutoModelForSeq2SeqLM if arch == "t5" else AutoModelForCausalLM
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = auto.from_config(config, dtype=torch.float32)
        for weight in model.parameters():
            if weight.dim() > 1:
                # the usual 0.02 gives nearly uniform predictions; T5 divides its logits by sqrt(d_model) besides
                torch.nn.init.normal_(weight, std=0.8 if arch == "t5" else 0.25)
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)
    return str(folder)
