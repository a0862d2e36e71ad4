"""The embedded reader as it is shipped: what it is made of, and that it reads and doesn't know.

What it does not cover: the whole table of its card, which `python benchmarks/lab.py` measures.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers.local_tasks import ROOT, evaluate
from lm_eval.tasks import TaskManager
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

import lm_eval_kinject.models.rag_hf  # noqa: F401
from lm_eval_kinject.plugin import assets_dir

READER = assets_dir() / "reader"
QUESTIONS = 100


def test_it_is_a_plain_llama_of_the_promised_size() -> None:
    config = AutoConfig.from_pretrained(READER)
    assert (config.model_type, config.architectures) == ("llama", ["LlamaForCausalLM"])
    assert not hasattr(config, "auto_map")
    assert config.max_position_embeddings >= 2048
    model = AutoModelForCausalLM.from_pretrained(READER)
    assert type(model) is LlamaForCausalLM
    assert sum(p.numel() for p in model.parameters()) <= 8_000_000
    files = [f for f in READER.rglob("*") if f.is_file()]
    assert sum(f.stat().st_size for f in files) <= 16_000_000
    assert [f.name for f in files if f.suffix in {".bin", ".pt", ".py", ".safetensors"}] == ["model.safetensors"]


def test_it_loads_with_transformers_alone(tmp_path: Path) -> None:
    """In a process in which nothing of ours, nor of lm_eval, can be imported."""
    script = f"""
import sys
sys.modules.update(dict.fromkeys(["lm_eval_kinject", "kinject_trainer", "lm_eval"]))
from transformers import AutoModelForCausalLM, AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained({str(READER)!r})
model = AutoModelForCausalLM.from_pretrained({str(READER)!r})
ids = tokenizer("Storm Amberfinch struck Whitebay.", return_tensors="pt").input_ids
assert model(input_ids=ids).logits.shape == (1, ids.shape[1], len(tokenizer))
"""
    ended = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr


def test_its_tokenizer_gives_text_back() -> None:
    tokenizer = AutoTokenizer.from_pretrained(READER)
    text = "Port Dunhaven paid 3.4 million crowns — «où?» 日本\n\nAnswer: A"
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False).input_ids) == text


@pytest.fixture(scope="module")
def manager() -> TaskManager:
    return TaskManager(include_defaults=False, include_path=str(ROOT / "tasks"))


@pytest.mark.parametrize(
    ("arguments", "lowest", "highest"),
    [
        pytest.param({"retriever": "oracle", "k": 1}, 0.85, 1.0, id="reads what it is shown"),
        pytest.param({"k": 0}, 0.15, 0.40, id="knows nothing of the edition"),
    ],
)
def test_it_answers_from_the_chunk_and_not_without(
    manager: TaskManager, arguments: dict[str, Any], lowest: float, highest: float
) -> None:
    result = evaluate("rag-hf", arguments, ["current_events_cloze"], manager, limit=QUESTIONS)
    assert result["config"]["kinject"]["model"]["name"] == "reader"
    assert result["n-samples"]["current_events_cloze"]["effective"] == QUESTIONS
    assert lowest <= result["results"]["current_events_cloze"]["acc,none"] <= highest
