"""Dry runs: what can be counted is exact, what can't is labelled."""

from __future__ import annotations

import shutil
from fnmatch import fnmatch
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers.tiny_models import make_tiny, make_tokenizer
from helpers.training import text, write_corpus, write_recipe
from huggingface_hub.errors import RevisionNotFoundError
from kinject_trainer import estimate
from kinject_trainer.base import skeleton
from kinject_trainer.command import train
from kinject_trainer.data import encoder
from kinject_trainer.recipe import Recipe
from transformers import T5Config

from lm_eval_kinject.errors import ArgumentError, ModelError
from lm_eval_kinject.hub.fetch import Snapshot


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dry")
    return folder, make_tiny("llama", folder), write_corpus(folder / "corpus")


def dry(place, **changes):
    folder, model, corpus = place
    made = train(write_recipe(folder / "r.yaml", model, corpus, **changes), out=folder / "out", dry_run=True)
    assert not (folder / "out").exists()
    return made.estimate


def test_counts_are_exact(place):
    encode = encoder(make_tokenizer())
    tokens = sum(len(encode(text(i, 0))) for i in range(12))
    found = dry(place)
    assert (found.documents, found.epoch_tokens, found.tokens) == (12, tokens, 2 * tokens)
    assert found.blocks == -(-2 * tokens // 16)
    assert found.parameters == found.trainable
    assert not found.tokens_estimated
    wider = sum(len(encode(text(i, n))) for i in range(12) for n in range(3))
    assert dry(place, variant="ft-par", paraphrases=2).tokens == 2 * wider
    equal = dry(place, equal_updates_to_paraphrases=2)
    assert (equal.epoch_tokens, equal.tokens) == (tokens, 2 * wider)


def test_adapter_parameters(place):
    found = dry(place, method="lora", rank=2, targets=["q_proj", "v_proj"])
    # q: 32 → 32, v: 32 → 16 (two key-value heads of 8), in two layers; r(d + k) each
    assert found.trainable == 2 * (2 * (32 + 32) + 2 * (32 + 16))
    assert "not on this disk" not in "\n".join(found.lines())


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("mistral-7b", 7_241_732_096), ("llama-2-7b", 6_738_415_616), ("orca-2-7b", 6_738_440_192)],
)
def test_the_papers_recipes(name, parameters):
    """Parameter counts are those that the models' cards give; the tokenizers aren't here, and that is said."""
    found = train(f"paper/{name}", dry_run=True).estimate
    assert (found.parameters, found.trials, found.documents) == (parameters, 5, 5005)
    assert (found.micro, found.accumulation) == (8, 2)  # × 4 GPUs = 64
    said = "\n".join(found.lines())
    assert found.tokens_estimated
    assert "the tokenizer is not on this disk" in said
    assert "4 A100" in said


def test_memory_says_how_it_is_shared():
    found = train("paper/mistral-7b", dry_run=True).estimate
    alone = train("paper/mistral-7b", dry_run=True, overrides=["processes=1"]).estimate
    assert alone.gigabytes_from == "one process holds all"
    assert f"sharded over 4 processes, as fsdp.yaml does; where each holds all, {alone.gigabytes:.1f} GB" in (
        found.gigabytes_from
    )
    assert alone.gigabytes - found.gigabytes == pytest.approx(16 * found.parameters * 3 / 4 / 1e9)
    assert found.gigabytes_from in "\n".join(found.lines())
    adapter = ["method=lora", "processes=4"]
    assert train("reader-ft-par-lora", dry_run=True, overrides=adapter).estimate.gigabytes_from == (
        "each process holds all weights"
    )


def test_time_counts_every_gpu_and_one_processor_once(place, monkeypatch):
    asked = []
    monkeypatch.setattr(estimate, "_measured_flops", lambda device, dtype: asked.append((device, dtype)) or 1e9)
    one, two = dry(place), dry(place, processes=2)
    assert two.seconds == one.seconds
    assert "shared by 2 processes" in two.seconds_from
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
    assert dry(place, processes=2).seconds == one.seconds / 2
    large = train("paper/mistral-7b", dry_run=True).estimate
    assert large.seconds_from == "4 GPUs like a GPU at 40% of its matrix products in bf16"
    assert asked == [("cpu", torch.float32)] * 2 + [("cuda", torch.float32), ("cuda", torch.bfloat16)]


def test_a_tokenizer_that_lacks_a_mark_is_told_of(place, tmp_path):
    other = tmp_path / "no-bos"
    shutil.copytree(place[1], other)
    tokenizer = make_tokenizer()
    tokenizer.bos_token = None
    tokenizer.save_pretrained(other)
    said = "\n".join(dry((tmp_path, str(other), place[2])).lines())
    assert "note         the tokenizer has no BOS token: EOS alone marks where a chunk ends" in said
    assert not any("BOS" in note for note in dry(place).notes)


def test_weights_at_the_hub_are_not_fetched(place, monkeypatch):
    asked = []

    def fetch(repo_id, *, patterns=None, **_):
        asked.append(patterns)
        return Snapshot(Path(place[1]), repo_id, "c" * 40)

    monkeypatch.setattr(estimate, "fetch_snapshot", fetch)
    assert not dry((place[0], "owner/name", place[2])).tokens_estimated
    names = ("config.json", "tokenizer.json", "tokenizer.model", "model.safetensors", "pytorch_model.bin")
    assert [n for n in names if any(fnmatch(n, p) for p in asked[0])] == list(names[:3])


def test_a_known_model_of_a_wrong_revision(place, monkeypatch):
    """The shape that is known stands in for a model out of reach, not for one that isn't there."""

    def fetch(*_, **__):
        response = SimpleNamespace(headers={}, request=None)
        raise ModelError("no revision 'v9'") from RevisionNotFoundError("", response=response)

    monkeypatch.setattr(estimate, "fetch_snapshot", fetch)
    with pytest.raises(ModelError, match="no revision 'v9'"):
        dry((place[0], "microsoft/Orca-2-7b", place[2]), model_revision="v9")


def test_what_peft_and_transformers_refuse(place):
    with pytest.raises(ArgumentError, match="PEFT refuses the adapter"):
        dry(place, method="lora", peft={"layers_to_transform": [0]})  # with all-linear
    with pytest.raises(ModelError, match="is no causal language model"):
        skeleton(T5Config(), Recipe(model="t5", corpus="c", variant="ft-reg", method="full"))


def test_unknown_model_that_is_not_here(place):
    folder, _, corpus = place
    file = write_recipe(folder / "u.yaml", "nobody/nothing", corpus)
    with pytest.raises(ModelError, match=r"nobody/nothing can't be reached"):
        train(file, dry_run=True)
