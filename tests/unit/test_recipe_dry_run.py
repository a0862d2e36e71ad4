"""Dry runs: what can be counted is exact, what can't is labelled."""

from __future__ import annotations

import pytest
from helpers.tiny_models import make_tiny, make_tokenizer
from helpers.training import text, write_corpus, write_recipe
from kinject_trainer.command import train
from kinject_trainer.data import encoder

from lm_eval_kinject.errors import ModelError


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


def test_unknown_model_that_is_not_here(place):
    folder, _, corpus = place
    file = write_recipe(folder / "u.yaml", "nobody/nothing", corpus)
    with pytest.raises(ModelError, match=r"nobody/nothing can't be reached"):
        train(file, dry_run=True)
