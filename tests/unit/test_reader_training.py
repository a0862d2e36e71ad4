"""The reader's training: what it may see, that a step is a function of seed and number, and how it starts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from kinject_trainer.reader import pretrain
from kinject_trainer.reader.mixture import Batch, Mixture, Phase, edition_of, phases, training_kinds
from kinject_trainer.reader.pretrain import make_tokenizer, new_model, train
from kinject_trainer.reader.probe import probe_worlds
from kinject_trainer.reader.seen import seen
from transformers import PreTrainedTokenizerBase

from lm_eval_kinject.corpus.sources.newswire.edition import BUNDLED_SEED, EditionSize, bundled_edition
from lm_eval_kinject.corpus.sources.newswire.kind import (
    EDITIONS,
    HELD_OUT_PHRASINGS,
    READER_HELD_OUT_KINDS,
    load_kinds,
)
from lm_eval_kinject.corpus.sources.newswire.multihop import can_follow, consequences_of
from lm_eval_kinject.corpus.sources.newswire.world import Event, World
from lm_eval_kinject.plugin import assets_dir
from lm_eval_kinject.provenance import fingerprint_records

RETRAIN = (
    "The embedded reader was trained on another one: what is measured as its recall, or as reading of what it never "
    "saw, would no longer be that. Take the change to kinds, names or world back; or retrain the reader (its card says "
    "how), train both adapters in adapters/ again on it, measure anew, and put the new value here."
)
PINS = json.loads((Path(__file__).parents[1] / "gold" / "lab.json").read_text())
"""What the bundled edition and reader were when they were made; `make lab` writes it."""


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


@pytest.mark.parametrize("number", EDITIONS)
def test_no_name_of_its_worlds_is_in_the_bundled_edition(number: int, tokenizer: PreTrainedTokenizerBase) -> None:
    """People, towns, companies, what else is composed, and events; fixed lists, dates and numbers are shared."""
    mixture = Mixture(tokenizer, edition=number)
    of_tokenizer = World(1904, training_kinds(number), 3600, "reader")
    worlds = [mixture.recall_world, *mixture.reading_worlds, *probe_worlds(number).values(), of_tokenizer]
    reader = {name for world in worlds for name in _names(world.events)}
    public = World(BUNDLED_SEED, load_kinds(edition=number), EditionSize().events)
    edition = _names(public.events)
    if number > 1:
        reader |= _names([one.event for told in mixture.consequences for one in told])
        edition |= _names([one.event for one in consequences_of(public, list(filter(can_follow, public.events))[:410])])
    assert len(edition) > 5000
    assert len(reader) > 40_000
    assert not edition & reader


def _names(events: Sequence[Event]) -> set[str]:
    """Every event's name and all composed names in it."""
    types = {"person", "town", "company", "compose"}
    values = {e.values[slot] for e in events for slot, spec in e.kind.slots.items() if spec.type in types}
    return values | {e.name for e in events}


def test_the_reader_and_its_edition_are_the_ones_that_were_recorded() -> None:
    assert PINS["edition"] == bundled_edition()
    assert PINS["reader"]["edition"] == edition_of(assets_dir() / "reader")


def test_the_recall_world_is_the_one_that_the_reader_was_trained_on(tokenizer: PreTrainedTokenizerBase) -> None:
    pinned = PINS["reader"]
    world = Mixture(tokenizer, edition=pinned["edition"]).recall_world
    events = [{"id": e.id, "kind": e.kind.kind, "values": dict(e.values)} for e in world.events]
    assert fingerprint_records(events) == pinned["recall_world"], RETRAIN
    questions = [{"kind": k.kind, "questions": k.questions} for k in world.kinds]
    assert fingerprint_records(questions) == pinned["recall_questions"], RETRAIN


def test_held_out_phrasings_are_the_ones_that_the_reader_never_saw() -> None:
    pinned = PINS["reader"]
    found = {}
    for kind in load_kinds(edition=pinned["edition"]):
        if kind.kind not in READER_HELD_OUT_KINDS:
            held = kind.held_out_only()
            records = [*([s.slots, s.phrasings] for s in held.sentences), *held.questions.items()]
            found[kind.kind] = fingerprint_records(records)[:12]
    assert found == pinned["held_out"], RETRAIN


def test_what_is_recorded_is_what_is_compared() -> None:
    assert seen(PINS["reader"]["edition"]) == PINS["reader"], RETRAIN
    assert not set(seen(2)["held_out"].values()) & set(seen(1)["held_out"].values())


@pytest.mark.parametrize(
    ("phase", "edition"), [*((phase, 1) for phase in get_args(Phase)), ("reading", 2), ("mixed", 2)]
)
def test_a_step_is_a_function_of_seed_and_number(
    phase: Phase, edition: int, tokenizer: PreTrainedTokenizerBase
) -> None:
    def batches(seed: int, step: int, *, after: int | None = None) -> list[Batch]:
        mixture = Mixture(tokenizer, seed, edition=edition)
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
        said = f"--out {tmp_path / folder} --reading-steps 3 --recall-steps 3 --tokens 100 --save-minutes 0"
        arguments = pretrain.parser().parse_args(said.split())
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
    for phase in phases(1):
        whole, resumed = (
            torch.load(tmp_path / folder / f"{phase}.pt", weights_only=True)["model"] for folder in ("whole", "resumed")
        )
        assert all(torch.equal(whole[name], resumed[name]) for name in whole)
