"""A run equals a training loop written from the formulas alone: AdamW, warm-up and decay, mean loss over the update."""

from __future__ import annotations

import math

import pytest
import torch
from helpers.tiny_models import make_tiny, make_tokenizer
from helpers.training import read_lines, text, write_corpus, write_recipe
from kinject_trainer.command import train
from kinject_trainer.data import epoch_order
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

BLOCK, BATCH, EPOCHS, RATE, DECAY, WARM_UP = 16, 4, 2, 2e-3, 0.1, 0.2


def stream_of_tokens():
    """Written anew: documents between their marks, in the order of each epoch, cut every 16 tokens."""
    tokenizer = make_tokenizer()
    wordings = [(i, 0) for i in range(12)] + [(i, n) for i in range(12) for n in (1, 2)]
    ids = [[1, *tokenizer.encode(text(i, n), add_special_tokens=False), 2] for i, n in wordings]
    chunks = torch.tensor([i for i, _ in wordings]).numpy()
    flat = [t for epoch in range(EPOCHS) for d in epoch_order(chunks, 0, epoch) for t in ids[d]]
    return [flat[i : i + BLOCK] for i in range(0, len(flat), BLOCK)]


def loop(model):
    *blocks, tail = stream_of_tokens()
    assert len(tail) < BLOCK
    # The shorter block at the end has an update of its own, however a batch is divided into passes.
    updates = [*(blocks[i : i + BATCH] for i in range(0, len(blocks), BATCH)), [tail]]
    optimizer = torch.optim.AdamW(_groups(model), lr=RATE, betas=(0.9, 0.999), eps=1e-8)
    warm_up = round(WARM_UP * len(updates))
    losses = []
    for step, rows in enumerate(updates):
        share = (step + 1) / (warm_up + 1) if step < warm_up else 1 - (step - warm_up) / (len(updates) - warm_up)
        for group in optimizer.param_groups:
            group["lr"] = RATE * share
        total, count = torch.tensor(0.0), 0
        for row in rows:
            scores = model(torch.tensor([row])).logits[0].log_softmax(-1)
            total = total - sum(scores[i, row[i + 1]] for i in range(len(row) - 1))
            count += len(row) - 1
        optimizer.zero_grad()
        (total / count).backward()
        norm = math.sqrt(sum(float(p.grad.pow(2).sum()) for p in model.parameters()))
        for p in model.parameters():
            p.grad.mul_(min(1.0, 1.0 / (norm + 1e-6)))
        optimizer.step()
        losses.append(float(total.detach()) / count)
    return losses


def _groups(model):
    """transformers' rule: norms and biases don't decay."""
    decayed = [p for n, p in model.named_parameters() if "norm" not in n]
    return [
        {"params": decayed, "weight_decay": DECAY},
        {"params": [p for n, p in model.named_parameters() if "norm" in n], "weight_decay": 0.0},
    ]


def test_losses_and_weights(tmp_path):
    folder = make_tiny("llama", tmp_path)
    recipe = write_recipe(
        tmp_path / "r.yaml",
        folder,
        write_corpus(tmp_path / "corpus"),
        variant="ft-par",
        paraphrases=2,
        learning_rate=RATE,
        weight_decay=DECAY,
        warm_up=WARM_UP,
    )
    train(recipe, out=tmp_path / "run")
    logged = [e["loss"] for e in read_lines(tmp_path / "run" / "log.jsonl") if "loss" in e]
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    assert logged == pytest.approx(loop(model), abs=2e-5)
    assert logged[-1] < logged[0] - 0.5  # it learns
    found = load_file(tmp_path / "run" / "model.safetensors")
    expected = dict(model.named_parameters())
    assert max(float((found[k] - expected[k]).abs().max()) for k in expected if k in found) < 1e-4
