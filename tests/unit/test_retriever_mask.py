"""BERT's masking: 15 % of each text's tokens, of these 80 % masked, 10 % random, 10 % as they are."""

from __future__ import annotations

import pytest
import torch
from helpers.tiny_encoders import make_bert
from kinject_trainer.retriever.mask import ExactMasking, choose
from transformers import AutoTokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return AutoTokenizer.from_pretrained(make_bert(tmp_path_factory.mktemp("bert")))


def test_so_many_of_each_text_are_chosen():
    # .15 · 7 = 1.05, · 20 = 3, · 1 = .15 (at least one), · 0 = none, · 100 = 15
    counts = [7, 20, 1, 0, 100]
    ordinary = torch.arange(100)[None, :] < torch.tensor(counts)[:, None]
    for seed in range(20):
        chosen = choose(ordinary, 0.15, torch.Generator().manual_seed(seed))
        assert chosen.sum(dim=1).tolist() == [1, 3, 1, 0, 15]
        assert not (chosen & ~ordinary).any()


def test_every_token_is_chosen_equally_often():
    ordinary = torch.ones(20_000, 10, dtype=torch.bool)
    ordinary[:, [0, 9]] = False  # 8 are left: round(1.2) = 1 of them
    share = choose(ordinary, 0.15, torch.Generator().manual_seed(1)).float().mean(dim=0)
    assert share[[0, 9]].tolist() == [0, 0]
    # 1/8 of 20,000: four standard deviations are .0094
    assert (share[1:9] - 0.125).abs().max() < 0.0094


def test_a_collated_batch_by_hand(tokenizer, monkeypatch):
    # [CLS] a b c d e f g h i j [SEP] [PAD]…: 10 ordinary tokens at .3 are 3; the other text has 4: 1 is chosen.
    rows = [tokenizer(text, return_special_tokens_mask=True) for text in ("a b c d e f g h i j", "a b c d")]
    first, second = rows[0]["input_ids"], rows[1]["input_ids"]
    order = torch.full((2, 12), 0.9)
    order[0, [2, 5, 7]] = torch.tensor([0.1, 0.2, 0.3])
    order[1, 4] = 0.1
    order[1, 8] = 0.0  # padding, which is never chosen
    fate = torch.full((2, 12), 0.5)
    fate[0, [2, 5, 7]] = torch.tensor([0.79, 0.85, 0.95])  # masked, random, as it is
    draws = iter([order, fate])
    monkeypatch.setattr(torch, "rand", lambda *_, **__: next(draws))
    monkeypatch.setattr(torch, "randint", lambda high, shape, **__: torch.full(tuple(shape), high - 1))
    batch = ExactMasking(tokenizer, mlm_probability=0.3)(rows)
    last = max(set(range(len(tokenizer))) - set(tokenizer.all_special_ids))
    expected = list(first)
    expected[2], expected[5] = tokenizer.mask_token_id, last
    assert batch["input_ids"][0].tolist() == expected
    assert batch["input_ids"][1].tolist()[:6] == [*second[:4], tokenizer.mask_token_id, second[5]]
    labels = torch.full((2, 12), -100)
    labels[0, [2, 5, 7]] = torch.tensor([first[2], first[5], first[7]])
    labels[1, 4] = second[4]
    assert batch["labels"].tolist() == labels.tolist()


def test_what_becomes_of_the_chosen(tokenizer):
    text = tokenizer("a b c d e f g h i j k l m n o p q r s t", return_special_tokens_mask=True)
    collate = ExactMasking(tokenizer, seed=3)
    batch = collate([dict(text) for _ in range(8000)])
    chosen = batch["labels"] != -100
    assert chosen.sum() == 3 * 8000  # 20 · .15 each
    stands, was = batch["input_ids"][chosen], batch["labels"][chosen]
    masked, kept = (stands == tokenizer.mask_token_id).float().mean(), (stands == was).float().mean()
    words = len(tokenizer) - len(set(tokenizer.all_special_ids))
    # Of 24,000 shares, four standard deviations are .0103 at .8 and .0078 at .1; a random one can be itself.
    assert abs(masked - 0.8) < 0.0103
    assert abs(kept - (0.1 + 0.1 / words)) < 0.0078
    assert not set(stands.tolist()) & (set(tokenizer.all_special_ids) - {tokenizer.mask_token_id})
    original = torch.tensor(text["input_ids"]).expand_as(chosen)
    assert torch.equal(batch["input_ids"][~chosen], original[~chosen])
    again = ExactMasking(tokenizer, seed=3)([dict(text) for _ in range(8000)])
    assert torch.equal(again["input_ids"], batch["input_ids"])
