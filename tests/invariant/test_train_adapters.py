"""Adapters do what their papers say: LoRA starts as nothing, scales by alpha/r, rsLoRA by alpha/√r, and merges."""

from __future__ import annotations

import math

import pytest
import torch
from helpers.tiny_models import make_tiny
from kinject_trainer.base import Base, load_model, with_adapter
from kinject_trainer.recipe import Recipe

from lm_eval_kinject.corpus import load_corpus
from lm_eval_kinject.errors import ModelError
from lm_eval_kinject.plugin import adapters_dir, assets_dir

IDS = torch.arange(5, 45)[None]


def recipe_of(**keys):
    return Recipe(model="m", corpus="c", variant="ft-reg", learning_rate=1e-3, **keys)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    from pathlib import Path

    return Base("m", Path(make_tiny("llama", tmp_path_factory.mktemp("adapters"))), "")


def adapted(base, **keys):
    torch.manual_seed(0)
    recipe = recipe_of(**keys)
    return with_adapter(load_model(base, recipe), recipe).eval()


def shaken(model):
    """As after training: B is no longer zero."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.1)
    return model


def layers(model):
    return [m for m in model.modules() if hasattr(m, "lora_A") and hasattr(m, "scaling")]


@pytest.mark.parametrize(("method", "expected"), [("lora", 24 / 9), ("rslora", 24 / math.sqrt(9))])
def test_scaling(base, method, expected):
    model = shaken(adapted(base, method=method, rank=9, alpha=24))
    assert len(layers(model)) == 14  # seven linear modules in each of two layers
    for layer in layers(model):
        x = torch.randn(3, layer.in_features)
        a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        by_hand = x @ layer.get_base_layer().weight.T + expected * (x @ a.T @ b.T)
        torch.testing.assert_close(layer(x), by_hand, rtol=1e-5, atol=1e-5)


def test_rank_one_is_the_same_in_both(base):
    plain, stabilised = (layers(adapted(base, method=m, rank=1, alpha=3))[0].scaling for m in ("lora", "rslora"))
    assert plain == stabilised == {"default": 3.0}


@pytest.mark.parametrize("method", ["lora", "rslora"])
def test_zero_at_the_start(base, method):
    with torch.no_grad():
        before = load_model(base, recipe_of()).eval()(IDS).logits
        assert torch.equal(adapted(base, method=method, rank=4)(IDS).logits, before)


@pytest.mark.parametrize("method", ["lora", "rslora"])
def test_merged_equals_unmerged(base, method):
    """In fp64, where nothing but a mistake can show; in fp32 rounding alone takes this random model to 1e-5."""
    model = shaken(adapted(base, method=method, rank=4, alpha=2)).double()
    with torch.no_grad():
        apart = model(IDS).logits
        merged = model.merge_and_unload()(IDS).logits
        plain = load_model(base, recipe_of()).eval()(IDS).logits.double()
    assert float((apart.log_softmax(-1) - merged.log_softmax(-1)).abs().max()) < 1e-10
    assert float((apart - plain).abs().max()) > 0.1  # it isn't nothing that was merged


@pytest.mark.parametrize("name", ["reader-ft-par-lora", "reader-ft-reg-lora"])
def test_a_bundled_adapter_merged_equals_unmerged(name):
    """On the corpus's text, as it is used: in fp32, and in fp64 to tell rounding from mistakes.

    In fp32 the log-probabilities of the whole vocabulary differ by up to 1.7e-4 and on average by 1e-5. That is
    rounding through the layers: unmerged, they are up to 1.1e-4 away from the same adapter in fp64.
    """
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    reader = assets_dir() / "reader"
    tokenizer = AutoTokenizer.from_pretrained(reader)
    rows = [tokenizer.encode(c.text, add_special_tokens=False) for c in load_corpus("current_events").chunks[:40]]
    ids = torch.tensor([row[:96] for row in rows if len(row) >= 96][:16])
    found = {}
    with torch.no_grad():
        for width in (torch.float32, torch.float64):
            model = AutoModelForCausalLM.from_pretrained(reader, dtype=torch.float32).eval().to(width)
            found["plain", width] = model(ids).logits.log_softmax(-1)
            model = PeftModel.from_pretrained(model, adapters_dir() / name, autocast_adapter_dtype=False).to(width)
            found["apart", width] = model(ids).logits.log_softmax(-1)
            found["merged", width] = model.merge_and_unload()(ids).logits.log_softmax(-1)

    def differences(one, other):
        return (found[one] - found[other]).abs()

    single, double = torch.float32, torch.float64
    assert float(differences(("apart", double), ("merged", double)).max()) < 1e-10
    assert float(differences(("apart", single), ("merged", single)).max()) < 5e-4
    assert float(differences(("apart", single), ("merged", single)).mean()) < 2e-5
    assert float(differences(("merged", single), ("apart", double)).max()) < 5e-4
    assert float(differences(("apart", double), ("plain", double)).max()) > 1  # it isn't nothing that was merged


def test_only_the_adapter_is_trained(base):
    model = adapted(base, method="lora", rank=2, targets=("q_proj",))
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    assert all("lora_" in name for name in trained)
    assert sum(p.numel() for p in trained.values()) == 2 * 2 * (32 + 32)  # two layers, r(d + k)


def test_ten_by_ten_of_rank_two_has_forty_parameters():
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(
        torch.nn.Sequential(torch.nn.Linear(10, 10, bias=False)), LoraConfig(r=2, target_modules=["0"])
    )
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == 40
    assert sum(p.numel() for p in model.parameters()) == 140


def test_targets_that_the_base_lacks(base):
    with pytest.raises(ModelError, match=r"named c_attn, wo\. It has: down_proj, gate_proj, k_proj, lm_head, o_proj"):
        adapted(base, method="lora", targets=("q_proj", "c_attn", "wo"))
