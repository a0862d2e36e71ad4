"""A finished run and its base, as the trainer would leave them, made in milliseconds and without torch.

Shapes fit together (a Llama of two layers with hidden size 8); the numbers mean nothing.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from lm_eval_kinject.hub.content import fingerprint_model
from lm_eval_kinject.provenance import fingerprint

HIDDEN = 8
PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010806000000"
    "1f15c4890000000a49444154789c6360000002000100ffff030000060005570bfa0000000049454e44ae426082"
)


def make_base(folder: Path, seed: int = 0) -> Path:
    """A base model: configuration, tokenizer and weights."""
    folder.mkdir(parents=True)
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": HIDDEN, "vocab_size": 16}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text(json.dumps({"model": {"vocab": {"/usr/bin": 0, "a": 1}}}))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n# A base\n")
    random = np.random.default_rng(seed)
    weights = {"model.embed_tokens.weight": random.random((16, HIDDEN), dtype=np.float32)}
    for layer in range(2):
        for name in ("q_proj", "v_proj"):
            key = f"model.layers.{layer}.self_attn.{name}.weight"
            weights[key] = random.random((HIDDEN, HIDDEN), dtype=np.float32)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def make_run(folder: Path, base: Path, *, seed: int = 1, rank: int = 2, width: int = HIDDEN, size: int = 0) -> Path:
    """A LoRA run on a base. ``width`` other than `HIDDEN` fits no base; ``size`` adds a tensor of so many floats."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(seed)
    weights: dict[str, Any] = {}
    for layer in range(2):
        for name in ("q_proj", "v_proj"):
            key = f"base_model.model.model.layers.{layer}.self_attn.{name}"
            weights[f"{key}.lora_A.weight"] = random.random((rank, width), dtype=np.float32)
            weights[f"{key}.lora_B.weight"] = random.random((width, rank), dtype=np.float32)
    if size:
        weights["padding"] = random.random((size,), dtype=np.float32)
    save_file(weights, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": rank, "lora_alpha": 4, "revision": None,
        "target_modules": ["q_proj", "v_proj"], "base_model_name_or_path": base.name,
    }  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(config))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((base / name).read_bytes())
    (folder / "kinject.json").write_text(json.dumps(record(base, rank)))
    (folder / "log.jsonl").write_text('{"update": 1, "loss": 2.5}\n')
    (folder / "loss.png").write_bytes(PNG)
    (folder / "trainer_state.json").write_text("{}")
    return folder


def record(base: Path, rank: int = 2) -> dict[str, Any]:
    """What kinject.json says."""
    recipe = {
        "name": "reader-ft-par", "model": "reader", "model_revision": None, "corpus": "current_events",
        "corpus_revision": None, "variant": "ft-par", "paraphrases": 10, "method": "lora", "rank": rank, "alpha": 4.0,
        "dropout": 0.0, "targets": ["q_proj", "v_proj"], "block_size": 256, "epochs": 5.0, "global_batch": 16,
        "learning_rate": 0.001, "warm_up": 0.05, "schedule": "linear", "weight_decay": 0.01, "precision": "fp32",
        "seed": 0, "paraphrases_file": None, "validation_file": None, "general_text": None,
    }  # fmt: skip
    return {
        "recipe": recipe,
        "recipe_fingerprint": fingerprint(recipe),
        "base": {"name": base.name, "identity": fingerprint_model(base)},
        "files": {"picture": "loss.png", "log": "log.jsonl"},
        "corpus": {
            "name": "current_events",
            "fingerprint": "40c3b8c9" * 8,
            "chunks": 455,
            "source": "bundled corpus of current_events",
            "revision": "newswire-2042",
            "licence": "apache-2.0",
        },
        "outcome": {
            "learning_rate": 0.001,
            "updates": 101,
            "tokens": 412345,
            "train_loss": 1.2345678,
            "validation_loss": 1.4,
            "validation_loss_before": 3.2,
            "before": {"perplexity": 12.5, "recall": 0.9},
            "after": {"perplexity": 13.75, "recall": None},
            "trainable_parameters": 256,
        },
        "environment": {"python": "3.11.7", "packages": {"torch": "2.13.0", "peft": "0.21.0"}},
    }


def make_results(
    folder: Path,
    *,
    model: str,
    peft: str | None,
    k: int,
    acc: float = 0.5,
    retriever: str = "minilm",
    identity: str | None = None,
    later: int = 0,
) -> Path:
    """What ``lm_eval --output_path --log_samples`` leaves, for 8 questions of one task; returns the results file.

    ``model`` and ``peft`` are Hub ids (then they have a commit) or local names; ``identity`` is the commit or
    fingerprint of what was scored, ``later`` the minutes by which this run came later.
    """
    kinject: dict[str, Any] = {"k": k, "model": _identity(model), "environment": {"packages": {"torch": "2.13.0"}}}
    if peft:
        kinject["peft"] = _identity(peft)
    if identity:
        subject = kinject["peft" if peft else "model"]
        subject["commit" if "commit" in subject else "fingerprint"] = identity
    if k:
        kinject |= {
            "retriever": retriever,
            "retrievers": [{"name": retriever, "fingerprint": "ab" * 32}],
            "corpora": [
                {
                    "name": "current_events", "fingerprint": "40c3b8c9" * 8, "chunks": 455,
                    "source": "bundled corpus of current_events",
                }
            ],
            "prompt": {
                "query": "question", "placement": "question", "order": "relevance", "fusion": "concat",
                "context_template": "{{ x }}", "context_tokens": None, "max_length": 512,
            },
            "seeds": {"retriever": 1234},
        }  # fmt: skip
    task, name = "current_events_cloze", (peft or model).replace("/", "__")
    arguments = {"pretrained": model, **({"peft": peft} if peft else {}), "k": k}
    data = {
        "results": {task: {"name": task, "alias": task, "acc,none": acc, "acc_stderr,none": 0.1889822365046136}},
        "group_subtasks": {},
        "configs": {
            task: {
                "task": task,
                "dataset_path": "parquet",
                "test_split": "test",
                "metadata": {**arguments, "config_source": "/home/me/kinject/tasks/current_events_cloze.yaml"},
            }
        },
        "versions": {task: 1.0},
        "n-shot": {task: 0},
        "n-samples": {task: {"original": 8, "effective": 8}},
        "config": {"model": "rag-hf", "model_args": arguments, "kinject": kinject},
        "date": 1795232827.8 + 60 * later,
        "lm_eval_version": "0.4.13",
        "chat_template_sha": None,
        "system_instruction_sha": None,
        "model_name": peft or model,
        "model_name_sanitized": name,
        "pretty_env_info": "PyTorch 2.13, no paths",
    }
    moment = f"2026-11-21T03-{47 + later}-{15 + k}.685500"
    target = folder / name
    target.mkdir(parents=True, exist_ok=True)
    file = target / f"results_{moment}.json"
    file.write_text(json.dumps(data, indent=2))
    rows = [{"doc_id": i, "doc": {"id": f"q{i}"}, "target": "1", "acc": float(i < 8 * acc)} for i in range(8)]
    (target / f"samples_{task}_{moment}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def _identity(name: str) -> dict[str, Any]:
    if "/" in name and not name.startswith("/"):
        return {"name": name, "revision": None, "commit": "c" * 40}
    return {"name": Path(name).name, "fingerprint": "f" * 64, "method": "files whole"}
