"""The loss at the output layer is the loss of the logits, with the gradients of the logits, for every architecture."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from helpers.tiny_models import make_tiny
from kinject_trainer import head as module
from kinject_trainer.head import LossHead
from transformers import AutoModelForCausalLM

ARCHITECTURES = ("llama", "mistral", "qwen3", "gemma3", "phi", "gpt2", "gpt_neox")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("head")


def load(arch, folder):
    return AutoModelForCausalLM.from_pretrained(make_tiny(arch, folder), dtype=torch.float32).train(False)


def rows():
    torch.manual_seed(2)
    ids = torch.randint(5, 500, (3, 21))
    labels = ids.clone()
    labels[0, :4] = labels[2] = -100  # some tokens, and a whole row, carry no loss
    return ids, labels


def by_hand(model, ids, labels):
    """Sum over the places with a label, one by one."""
    scores = model(ids).logits.log_softmax(-1)
    places = [(r, t) for r in range(3) for t in range(1, 21) if labels[r, t] != -100]
    return -sum(scores[r, t - 1, labels[r, t]] for r, t in places)


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("slices", [1, 7, 63])
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_loss_and_gradients(arch, folder, slices, monkeypatch):
    """In one slice, in uneven ones and token by token; scaled, as a share of an update is."""
    model = load(arch, folder)
    vocabulary = model.config.get_text_config().vocab_size
    monkeypatch.setattr(module, "_SLICE", vocabulary * -(-63 // slices))
    ids, labels = rows()
    expected = by_hand(model, ids, labels)
    theirs = gradients(model, expected / 17)
    head = LossHead(model)
    assert head.applies
    loss = head.loss(model, ids, labels)
    assert float(loss) == pytest.approx(float(expected), rel=1e-5)
    ours = gradients(model, loss / 17)
    assert set(ours) == set(theirs)
    for name, gradient in theirs.items():
        torch.testing.assert_close(ours[name], gradient, rtol=1e-3, atol=1e-4 * float(gradient.abs().max() + 1e-6))
    assert model(ids).logits.shape == (3, 21, vocabulary)  # without labels it is the model that it was


def test_frozen_output_layer_gets_no_gradient(folder):
    model = load("llama", folder)
    model.get_output_embeddings().weight.requires_grad_(False)
    ids, labels = rows()
    theirs = gradients(model, by_hand(model, ids, labels))
    ours = gradients(model, LossHead(model).loss(model, ids, labels))
    assert set(ours) == set(theirs)
    assert "lm_head.weight" not in ours


def test_no_label_is_a_differentiable_zero(folder):
    model = load("llama", folder)
    ids, _ = rows()
    loss = LossHead(model).loss(model, ids, torch.full_like(ids, -100))
    assert float(loss) == 0.0
    assert all(float(g.abs().max()) == 0.0 for g in gradients(model, loss).values())


def test_bf16_autocast_rounds_as_the_logits_do(folder):
    model = load("llama", folder)
    ids, labels = rows()
    head = LossHead(model)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours = head.loss(model, ids, labels)
        theirs = module.summed_token_loss(model(ids).logits, labels)
    assert float(ours) == pytest.approx(float(theirs), rel=1e-5)
    assert all(g.dtype == torch.float32 for g in gradients(model, ours).values())


def test_models_that_change_their_logits_are_left_alone(folder):
    model = load("gemma3", folder)
    model.config.final_logit_softcapping = 3.0
    head = LossHead(model)
    assert not head.applies
    ids, labels = rows()
    assert float(head.loss(model, ids, labels)) == pytest.approx(float(by_hand(model, ids, labels)), rel=1e-5)


def test_a_change_that_no_setting_names_is_found_out(folder):
    model = load("llama", folder)
    original = model.forward
    model.forward = lambda *args, **kwargs: SimpleNamespace(logits=original(*args, **kwargs).logits * 0.5)
    head = LossHead(model)
    ids, labels = rows()
    head.check(model, ids[:1], Accelerator(cpu=True))
    assert not head.applies
    assert float(head.loss(model, ids, labels)) == pytest.approx(float(by_hand(model, ids, labels)), rel=1e-5)
