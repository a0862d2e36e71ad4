"""The reader's training: what it may see, that a step is a function of seed and number, and how it starts."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from kinject_trainer.reader import pretrain
from kinject_trainer.reader.mixture import Batch, Mixture, Phase, training_kinds
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


@pytest.mark.parametrize("phase", get_args(Phase))
def test_a_step_is_a_function_of_seed_and_number(phase: Phase, tokenizer: PreTrainedTokenizerBase) -> None:
    def batches(seed: int, step: int, *, after: int | None = None) -> list[Batch]:
        mixture = Mixture(tokenizer, seed)
        if after is not None:
            mixture.step(phase, after, 0.5, 2048)
        return mixture.step(phase, step, 0.5, 2048)

    assert batches(0, 7) == batches(0, 7, after=6)
    assert batches(0, 7) != batches(1, 7)
    assert batches(0, 7) != batches(0, 8)


def test_answers_stand_where_their_spans_say(tokenizer: PreTrainedTokenizerBase) -> None:
    mixture = Mixture(tokenizer, 0)
    for batch in mixture.step("reading", 3, 0.6, 2048) + mixture.step("recall", 3, 0.6, 2048):
        for row in batch.rows:
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

    def run(folder: str, *, killed_at: int | None = None) -> None:
        arguments = argparse.Namespace(
            out=tmp_path / folder,
            start=None,
            reading_steps=3,
            recall_steps=3,
            tokens=100,
            seed=0,
            probe_every=9,
            save_every=1,
        )
        clip, calls = torch.nn.utils.clip_grad_norm_, 0

        def killing_clip(*args: Any, **kwargs: Any) -> torch.Tensor:
            nonlocal calls
            calls += 1
            if calls == killed_at:
                raise KeyboardInterrupt
            return clip(*args, **kwargs)

        with monkeypatch.context() as patch:
            patch.setattr(torch.nn.utils, "clip_grad_norm_", killing_clip)
            train(arguments)

    run("whole")
    for killed_at in (2, 3, 3):  # in the reading phase; at its last step; in the recall phase
        with pytest.raises(KeyboardInterrupt):
            run("resumed", killed_at=killed_at)
    run("resumed")
    for phase in get_args(Phase):
        whole, resumed = (
            torch.load(tmp_path / folder / f"{phase}.pt", weights_only=True)["model"] for folder in ("whole", "resumed")
        )
        assert all(torch.equal(whole[name], resumed[name]) for name in whole)
