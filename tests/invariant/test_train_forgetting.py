"""Forgetting is measured by what it says: a token mean over whatever division, and options compared as lm_eval does."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from helpers.tiny_models import make_tiny
from kinject_trainer.base import Base, load_model
from kinject_trainer.evaluate import mean_token_loss
from kinject_trainer.forgetting import Gauge, Question, make_gauge, recall
from kinject_trainer.recipe import Recipe

from lm_eval_kinject.errors import CorpusError


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return Base("m", Path(make_tiny("llama", tmp_path_factory.mktemp("forgetting"))), "")


@pytest.fixture(scope="module")
def model(base):
    return load_model(base, Recipe(model="m", corpus="c", variant="ft-reg")).eval()


def score(model, prompt, option):
    """Log-likelihood of an option behind a prompt, one row at a time."""
    ids = torch.tensor([[*prompt, *option]])
    with torch.no_grad():
        scores = model(ids).logits[0].log_softmax(-1)
    return sum(float(scores[len(prompt) + i - 1, token]) for i, token in enumerate(option))


@pytest.mark.parametrize("micro", [1, 2, 5])
def test_mean_over_tokens_whatever_the_batches(model, micro):
    """Three blocks of 6 and one of 3: 17 predicted tokens, each of which weighs the same."""
    blocks = [[1, 5, 9, 13, 17, 21], [1, 6, 10, 14, 18, 22], [30, 31, 32, 33, 34, 35], [40, 41, 42]]
    expected = -sum(score(model, block[:1], block[1:]) for block in blocks) / 17
    assert mean_token_loss(model, blocks, micro, Accelerator(cpu=True)) == pytest.approx(expected, abs=1e-5)


def test_recall_compares_sums_of_log_likelihoods(model):
    torch.manual_seed(1)
    questions, right = [], 0
    for n in range(30):
        prompt = tuple(torch.randint(5, 500, (4 + n % 3,)).tolist())
        options = tuple(tuple(torch.randint(5, 500, (1 + (n + i) % 3,)).tolist()) for i in range(4))
        questions.append(Question(prompt, options, n % 4))
        scores = [score(model, prompt, option) for option in options]
        right += max(range(4), key=scores.__getitem__) == n % 4
    assert recall(model, questions, "cpu", batch=7) == right / 30
    assert 0 < right < 30


class Flat(torch.nn.Module):
    """Holds every token for equally likely."""

    def forward(self, input_ids, use_cache):
        return SimpleNamespace(logits=torch.zeros(*input_ids.shape, 50))


def test_a_tie_is_no_recall():
    assert recall(Flat(), [Question((1, 2), ((3,), (4,), (5,), (6,)), 0)], "cpu") == 0.0


def test_measuring_leaves_the_random_numbers_and_the_mode_alone(model):
    gauge = Gauge("text", [[1, 5, 9, 13]], [Question((1, 2), ((3,), (4,)), 0)], 2)
    model.train()
    before = torch.random.get_rng_state()
    gauge.measure(model, Accelerator(cpu=True))
    assert model.training
    assert torch.equal(before, torch.random.get_rng_state())
    model.eval()


def test_general_text(tmp_path, base):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base.folder)
    recipe = Recipe(model="m", corpus="c", variant="ft-reg", block_size=32)
    gauge = make_gauge(recipe, tokenizer, 4)
    assert gauge.text == "reference pages of Python"
    assert len(gauge.blocks) == 64
    assert {len(block) for block in gauge.blocks} == {32}
    assert not gauge.questions
    assert make_gauge(recipe.model_copy(update={"forgetting": False}), tokenizer, 4) is None
    with pytest.raises(CorpusError, match="no readable UTF-8 text"):
        make_gauge(recipe.model_copy(update={"general_text": str(tmp_path / "none.txt")}), tokenizer, 4)


def test_the_readers_gauge(base):
    """News it has never read, and questions on the world it knows; the tokenizer at hand is another."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base.folder)
    gauge = make_gauge(Recipe(model="reader", corpus="current_events", variant="ft-reg"), tokenizer, 4)
    assert len(gauge.blocks) == 64
    assert len(gauge.questions) == 240
    assert all(len(q.options) == len(set(q.options)) == 4 for q in gauge.questions)
    assert all(q.prompt[0] == tokenizer.bos_token_id for q in gauge.questions)
    counts = [sum(q.answer == place for q in gauge.questions) for place in range(4)]
    assert min(counts) > 30
    assert gauge.questions == make_gauge(Recipe(model="reader", corpus="c", variant="ft-reg"), tokenizer, 4).questions
