"""The reader's training: what it may see, that a step is a function of seed and number, and how it starts."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest
import torch
from kinject_trainer.reader import pretrain
from kinject_trainer.reader.mixture import Mixture, Row, training_kinds
from kinject_trainer.reader.pretrain import make_tokenizer, new_model, train
from transformers import PreTrainedTokenizerBase

from lm_eval_kinject.corpus.sources.newswire.kind import HELD_OUT_PHRASINGS, READER_HELD_OUT_KINDS, load_kinds


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerBase:
    return make_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def test_held_out_kinds_and_phrasings_are_kept_from_it() -> None:
    seen = {kind.kind: kind for kind in training_kinds()}
    assert len(READER_HELD_OUT_KINDS) >= 4
    assert set(seen) == {k.kind for k in load_kinds()} - set(READER_HELD_OUT_KINDS)
    for whole in load_kinds():
        if whole.kind not in seen:
            continue
        held = whole.held_out_only()
        for ours, theirs in zip(seen[whole.kind].sentences, held.sentences, strict=True):
            assert len(theirs.phrasings) == HELD_OUT_PHRASINGS
            assert not set(ours.phrasings) & set(theirs.phrasings)
        for slot, wordings in held.questions.items():
            assert not set(wordings) & set(seen[whole.kind].questions[slot])


def test_a_step_is_a_function_of_seed_and_number(tokenizer: PreTrainedTokenizerBase) -> None:
    def rows(seed: int, step: int, *, after: int | None = None) -> list[list[Row]]:
        mixture = Mixture(tokenizer, seed)
        if after is not None:
            mixture.step(after, 0.5, 2048)
        return mixture.step(step, 0.5, 2048)

    assert rows(0, 7) == rows(0, 7, after=6)
    assert rows(0, 7) != rows(1, 7)
    assert rows(0, 7) != rows(0, 8)


def test_answers_stand_where_their_spans_say(tokenizer: PreTrainedTokenizerBase) -> None:
    for batch in Mixture(tokenizer, 0).step(3, 0.6, 2048):
        for row in batch:
            assert len(row.ids) == len(row.weights)
            assert row.ids[0] == tokenizer.bos_token_id
            for start, end in row.spans:
                assert tokenizer.decode(row.ids[:start]).endswith("Answer:")
                assert min(row.weights[start:end]) > 1


def test_an_untrained_reader_copies_what_repeats(tokenizer: PreTrainedTokenizerBase) -> None:
    model = new_model(tokenizer, 0)
    once = torch.randint(3, len(tokenizer), (8, 100), generator=torch.Generator().manual_seed(0))
    ids = torch.cat([once, once], 1)
    with torch.no_grad():
        logits = model(input_ids=ids).logits
    nll = torch.nn.functional.cross_entropy(logits[:, :-1].transpose(1, 2), ids[:, 1:], reduction="none")
    assert nll[:, 100:].mean() < nll[:, :99].mean() - 0.5


def test_a_resumed_training_ends_in_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretrain, "probe", lambda model, mixture: {})  # the slow part, and it changes nothing

    def run(folder: str, steps: tuple[int, ...]) -> dict[str, torch.Tensor]:
        for stop in steps:
            train(
                argparse.Namespace(
                    out=tmp_path / folder, steps=4, stop=stop, tokens=100, seed=0, probe_every=9, save_every=1
                )
            )
        return torch.load(tmp_path / folder / "checkpoint.pt", weights_only=True)["model"]

    whole, resumed = run("whole", (4,)), run("resumed", (2, 4))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
