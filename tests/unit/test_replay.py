"""Replay: how many older documents each epoch holds, which, where they stand; and that nothing changes without it."""

from __future__ import annotations

import itertools
import json
from collections import Counter

import numpy as np
import pytest
import yaml
from helpers.tiny_models import make_tiny
from helpers.training import text, write_corpus, write_recipe
from kinject_trainer.card import write_card
from kinject_trainer.command import train
from kinject_trainer.data import Replayed, Store, Stream, epoch_order
from kinject_trainer.documents import open_corpus
from kinject_trainer.recipe import Recipe, Replay, load_recipe, to_run_again

from lm_eval_kinject.errors import ArgumentError, CorpusError
from lm_eval_kinject.hub.cards import Run, _settings

BEFORE = "f12ffb197c4b2cd683661435a7f728f5b5793f384e2caa59d96bb06d3cc4f78c"
"""The fingerprint of `LEAST` in the release before replay."""

PINNED = [5, 6, 2, 4, 0, 3, 1, 7]
"""Eight documents in the order of their hashes under the names 0, 0, 2, by SplitMix64 in whole numbers of Python."""

OLD = 1000
"""Tokens of the older documents count on from here, so that each token says which document it is of."""


def store_of(lengths, first=0):
    starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    tokens = np.arange(first, first + starts[-1], dtype=np.uint32)
    return Store(tokens, starts, np.arange(len(lengths), dtype=np.int64))


def stream_of(own, old, ratio, decay=1.0, *, epochs=3.0, seed=5, block_size=8):
    stream = Stream(store_of(own), seed, block_size, 0, Replayed(store_of(old, OLD), ratio, decay))
    stream.total = stream.tokens_of(epochs)
    return stream


def documents_of(stream, own, old):
    """The documents of the run as (is old, number), from its blocks' tokens alone; each must stand there whole."""
    flat = list(itertools.chain(*(stream.block(n).tolist() for n in range(len(stream)))))
    borders = [0, *np.cumsum(own).tolist()], [OLD, *(OLD + np.cumsum(old)).tolist()]
    found, place = [], 0
    while place < len(flat):
        is_old = flat[place] >= OLD
        number = borders[is_old].index(flat[place])
        length = (old if is_old else own)[number]
        assert flat[place : place + length] == list(range(flat[place], flat[place] + length))
        found.append((is_old, number))
        place += length
    return found


OWN, PAST = [5, 1, 17, 3, 30, 2, 11, 8, 1, 9], [4, 7, 2, 12, 1, 6, 3, 5, 9, 10, 2, 8, 6, 4, 3, 7, 1, 5, 2, 11]


@pytest.mark.parametrize(
    ("ratio", "decay", "counts"),
    [
        (1, 1, [10, 10, 10, 10]),
        (0.5, 1, [5, 5, 5, 5]),
        (1, 0.7, [10, 7, 4, 3]),  # ⌊10⌋, ⌊7⌋, ⌊4.9⌋, ⌊3.43⌋
        (2, 0.7, [20, 14, 9, 6]),  # ⌊20⌋, ⌊14⌋, ⌊9.8⌋, ⌊6.86⌋
        (0.25, 0.5, [2, 1, 0, 0]),
        (4, 0.7, [40, 28, 19, 13]),  # more than there are: they come twice
    ],
)
def test_each_epoch_holds_so_many_and_the_epochs_own_as_ever(ratio, decay, counts):
    stream = stream_of(OWN, PAST, ratio, decay, epochs=4)
    found = documents_of(stream, OWN, PAST)
    place, seen = 0, set()
    for epoch, count in enumerate(counts):
        part, place = found[place : place + 10 + count], place + 10 + count
        assert [n for is_old, n in part if not is_old] == epoch_order(np.arange(10), 5, epoch).tolist()
        old = [n for is_old, n in part if is_old]
        assert len(old) == count
        often = Counter(old)
        assert set(often.values()) <= {count // 20, -(-count // 20)}  # none twice before all have come once
        size = sum(PAST[n] for n in old) + sum(OWN)
        assert stream.start_of(epoch + 1) - stream.start_of(epoch) == size
        seen |= set(old)
    assert place == len(found)
    assert len(seen) > min(counts[0], 19)  # drawn anew: more than one epoch's


def test_a_decimal_is_what_is_written():
    """As floats, .29 · 100 is 28.999…, and .7² · 100 is 48.999…"""
    replay = Replayed(store_of([1]), 0.29)
    assert [replay.count(e, 100) for e in (0, 3)] == [29, 29]
    assert [Replayed(store_of([1]), 1, 0.7).count(e, 100) for e in range(4)] == [100, 70, 49, 34]


def test_which_are_drawn_is_a_function_of_seed_and_epoch_for_all_time():
    replay = Replayed(store_of([1] * 8), 1)
    assert replay.drawn(0, 0, 8).tolist() == PINNED
    assert replay.drawn(0, 0, 3).tolist() == PINNED[:3]
    assert len({tuple(replay.drawn(seed, epoch, 8)) for seed in range(3) for epoch in range(3)}) == 9


def test_every_document_is_as_likely():
    replay = Replayed(store_of([1] * 20), 1)
    found = Counter(n for seed in range(10) for epoch in range(100) for n in replay.drawn(seed, epoch, 5).tolist())
    assert sorted(found) == list(range(20))
    assert all(185 <= found[n] <= 315 for n in found)  # 250 each, within 4.7 standard deviations


@pytest.mark.parametrize("ratio", [0.2, 0.5, 1, 1.3, 2])
def test_they_stand_evenly_among_the_epochs_own(ratio):
    """In any beginning of an epoch their share is that of the whole, to a document."""
    stream = stream_of([3] * 50, [3] * 120, ratio, epochs=2)
    count = int(50 * ratio)
    found = [n >= OLD for n in itertools.chain(*(stream.block(b).tolist() for b in range(len(stream))))][::3]
    for epoch in range(2):
        part = found[epoch * (50 + count) : (epoch + 1) * (50 + count)]
        for length in range(len(part) + 1):
            assert abs(sum(part[:length]) - length * count / (50 + count)) <= 1


def test_interleaved_by_hand():
    """Four own stand at 1/8, 3/8, 5/8, 7/8 and two older at 1/4, 3/4."""
    found = documents_of(stream_of([1] * 4, [1] * 9, 0.5, epochs=1, block_size=3), [1] * 4, [1] * 9)
    assert [is_old for is_old, _ in found] == [False, True, False, False, True, False]


def test_a_block_is_a_function_of_its_number():
    """A stream that is opened anew, as a resumed run does, at any block, in any order."""
    whole = [stream_of(OWN, PAST, 1, 0.7).block(n).tolist() for n in range(len(stream_of(OWN, PAST, 1, 0.7)))]
    for number in range(len(whole)):
        assert stream_of(OWN, PAST, 1, 0.7).block(number).tolist() == whole[number]
    stream = stream_of(OWN, PAST, 1, 0.7)
    assert [stream.block(n).tolist() for n in reversed(range(len(whole)))] == whole[::-1]


@pytest.mark.parametrize("epochs", [0.4, 1, 2.5, 3])
def test_without_a_share_the_stream_is_todays(epochs):
    plain = Stream(store_of(OWN), 5, 8, round(epochs * sum(OWN)))
    none = stream_of(OWN, PAST, 0, epochs=epochs)
    assert none.total == plain.total
    assert [none.block(n).tolist() for n in range(len(none))] == [plain.block(n).tolist() for n in range(len(plain))]
    assert none.replayed_tokens() == plain.replayed_tokens() == 0
    for tokens in range(0, plain.total + 1, 7):
        assert none.epochs_of(tokens) == pytest.approx(plain.epochs_of(tokens), abs=1e-12)
        assert none.an_epoch_before(tokens) == max(0, plain.an_epoch_before(tokens))


def test_epochs_are_counted_by_their_own_lengths():
    """Ten own tokens an epoch; of the older, of 4 tokens each, two in the first epoch, one in the second, none then."""
    stream = stream_of([4, 6], [4] * 9, 1, 0.5, epochs=2.5)
    assert [stream.start_of(e) for e in range(4)] == [0, 18, 32, 42]
    assert (stream.total, stream.replayed_tokens()) == (37, 12)
    assert [stream.epochs_of(t) for t in (0, 9, 18, 25, 32, 37)] == [0, 0.5, 1, 1.5, 2, 2.5]
    assert [stream.tokens_of(e) for e in (0, 0.5, 1, 1.5, 2, 2.5)] == [0, 9, 18, 25, 32, 37]
    assert [stream.an_epoch_before(t) for t in (9, 18, 32, 37)] == [0, 0, 18, 25]
    flat = list(itertools.chain(*(stream.block(n).tolist() for n in range(len(stream)))))
    assert (len(flat), sum(token >= OLD for token in flat)) == (37, 12)


def test_a_run_that_ends_amid_what_is_replayed():
    stream = stream_of([4], [10], 1, epochs=1)  # own 4 first, then the 10
    stream.total = 9
    assert stream.replayed_tokens() == 5


# The recipe -----------------------------------------------------------------------------------------------------------

LEAST = {"model": "reader", "corpus": "current_events", "variant": "ft-par"}


def test_a_recipe_that_replays_nothing_has_the_name_it_had():
    """The name is that of a release without replay; so runs and adapters of that time are still found."""
    recipe = Recipe(**LEAST)
    assert recipe.fingerprint() == BEFORE
    assert "replay" not in recipe.effective()
    nothing = Recipe(**LEAST, replay={"corpus": "newswire-older", "ratio": 0})
    assert (nothing.fingerprint(), nothing.effective(), nothing.replays) == (BEFORE, recipe.effective(), None)
    names = {
        Recipe(**LEAST, replay={"corpus": "newswire-older", **more}).fingerprint()
        for more in ({}, {"ratio": 2}, {"decay": 0.7})
    }
    assert len(names | {BEFORE}) == 4


def test_of_a_replay_corpus_only_the_last_name_is_published(tmp_path):
    folder = tmp_path / "past"
    folder.mkdir()
    recipe = Recipe(**LEAST, replay={"corpus": str(folder), "decay": 0.7})
    assert recipe.public()["replay"] == {"corpus": "past", "ratio": 1.0, "decay": 0.7}
    assert recipe.effective()["replay"] == {"ratio": 1.0, "decay": 0.7}  # its corpus has a fingerprint
    file = tmp_path / "again.yaml"
    file.write_text(yaml.safe_dump(to_run_again(recipe.public())))
    assert load_recipe(file).replay == Replay(corpus="past", decay=0.7)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"replay": {"ratio": 1}},
            "replay.corpus: missing; give `newswire-older` (what the reader recalls), `newswire-older-questions` (what",
        ),
        ({"replay": {"corpus": "x", "raito": 1}}, "replay.raito: no such key; did you mean ratio?"),
        ({"replay": {"corpus": "x", "ratio": -1}}, "replay.ratio: -1: input should be greater than or equal to 0"),
        ({"replay": {"corpus": "x", "decay": 1.5}}, "replay.decay: 1.5: input should be less than or equal to 1"),
        ({"replay": {"corpus": "x", "decay": 0}}, "replay.decay: 0: input should be greater than 0"),
        ({"replay": "newswire-older"}, "replay: must be what to replay and how much of it ({corpus: …, ratio: 1"),
        (
            {"replay": {"corpus": "x"}, "equal_updates_to_paraphrases": 20},
            "replay with equal_updates_to_paraphrases: both settle how long the run is; give epochs instead",
        ),
    ],
)
def test_a_replay_that_cannot_be(tmp_path, changes, said):
    file = tmp_path / "r.yaml"
    file.write_text(yaml.safe_dump({**LEAST, **changes}))
    with pytest.raises(ArgumentError) as caught:
        load_recipe(file)
    (problem,) = caught.value.problems
    assert problem.startswith(said)


# The texts ------------------------------------------------------------------------------------------------------------


def past(folder):
    """Seven older texts, one of them with a title."""
    folder.mkdir()
    rows = [{"id": f"o{i}", "text": f"In the year {1900 + i} the mill at the river was sold."} for i in range(7)]
    rows[0]["title"] = "Mill"
    (folder / "chunks.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder)


def recipe_of(corpus, replay, **keys):
    return Recipe(model="reader", corpus=corpus, variant="ft-reg", learning_rate=1e-3, replay=replay, **keys)


def test_what_is_replayed_is_all_of_its_corpus(tmp_path):
    corpus = write_corpus(tmp_path / "c", chunks=2)
    older = open_corpus(recipe_of(corpus, {"corpus": past(tmp_path / "past")})).older
    assert [w.chunk for w in older.wordings] == [f"o{i}" for i in range(7)]
    assert older.wordings[0].text == "Mill\nIn the year 1900 the mill at the river was sold."
    assert (older.provenance["name"], older.provenance["chunks"]) == ("past", 7)
    assert open_corpus(recipe_of(corpus, {"corpus": str(tmp_path / "nowhere"), "ratio": 0})).older is None
    with pytest.raises(CorpusError, match="There is no corpus"):
        open_corpus(recipe_of(corpus, {"corpus": str(tmp_path / "nowhere")}))


def test_a_validation_text_is_not_replayed(tmp_path):
    corpus = write_corpus(tmp_path / "c", chunks=2, validation=2)
    (tmp_path / "past.jsonl").write_text(json.dumps({"id": "a", "text": text(1, 4)}) + "\n")
    texts = open_corpus(recipe_of(corpus, {"corpus": str(tmp_path / "past.jsonl")}))
    with pytest.raises(CorpusError, match=r"1 validation texts \(such as one of chunk c1\) .* from what is replayed"):
        texts.validation()


def test_older_news_is_of_the_world_that_the_reader_recalls(tmp_path):
    from kinject_trainer.reader.mixture import RECALL_EVENTS, RECALL_SEED, training_kinds

    from lm_eval_kinject.corpus.sources.newswire.realise import realise
    from lm_eval_kinject.corpus.sources.newswire.world import World

    older = open_corpus(recipe_of(write_corpus(tmp_path / "c", chunks=2), {"corpus": "newswire-older"})).older
    assert len(older.wordings) == 6000
    assert len({w.text for w in older.wordings}) > 5990
    event = World(RECALL_SEED, training_kinds(), RECALL_EVENTS, "reader").events[17]
    assert older.wordings[617][:3] == (event.id, 1, realise(event, 1, stream="reader"))
    assert older.provenance["name"] == "newswire-older"
    again = open_corpus(recipe_of(str(tmp_path / "c"), {"corpus": "newswire-older"})).older
    assert again.provenance == older.provenance


def test_older_questions_stand_behind_the_chunks_that_answer_them(tmp_path, monkeypatch):
    monkeypatch.setattr("kinject_trainer.reader.mixture._REPLAYED_ROWS", 36)
    spec = {"corpus": "newswire-older-questions"}
    older = open_corpus(recipe_of(write_corpus(tmp_path / "c", chunks=2), spec)).older
    assert (older.provenance["name"], len(older.wordings)) == ("newswire-older-questions", 36)
    for number in range(36):
        parts = older.wordings[number].text.split("\n\n")
        letters = number % 9 > 5
        asked = [part for part in parts if "\nAnswer: " in part]
        chunks = [part for part in parts if "\n" not in part and not part.startswith("The following are")]
        assert len(chunks) == 1 + number % 3
        assert 0 < len(asked) <= 8
        for part in asked:
            question, _, answer = part.rpartition("\nAnswer: ")
            if letters:
                answer = next(line[3:] for line in question.splitlines() if line.startswith(f"{answer}. "))
            assert any(answer.lower() in chunk.lower() for chunk in chunks), part
    again = open_corpus(recipe_of(str(tmp_path / "c"), spec)).older
    assert again.provenance == older.provenance


# A run ----------------------------------------------------------------------------------------------------------------


def test_dry_run_record_and_card_name_it(tmp_path):
    """Twelve documents an epoch; nine are replayed in the first, four in the second, of seven that there are."""
    model, corpus, old = make_tiny("llama", tmp_path), write_corpus(tmp_path / "c"), past(tmp_path / "past")
    recipe = write_recipe(tmp_path / "r.yaml", model, corpus, replay={"corpus": old, "ratio": 0.75, "decay": 0.5})
    (tmp_path / "general.txt").write_text("Rain fell on the hills, and the river rose by the width of a hand. " * 4)
    recipe.write_text(recipe.read_text() + f"general_text: {tmp_path / 'general.txt'}\n")
    recipe.write_text(recipe.read_text().replace("forgetting: false", "forgetting: true"))
    dry = train(recipe, dry_run=True).estimate
    assert (dry.documents, dry.replay, dry.replayed_documents) == (12, "past", 9)
    assert dry.tokens == 2 * dry.epoch_tokens + dry.replayed_tokens
    said = "\n".join(dry.lines())
    assert f"replay       9 documents of past in the first epoch, {dry.replayed_tokens:,} of the tokens in all" in said
    assert "note         replay: the first epoch takes 9 documents of 7, so some come more than once in it" in said
    told: list[str] = []
    record = train(recipe, out=tmp_path / "run", say=told.append).record
    assert "replay: the first epoch takes 9 documents of 7, so some come more than once in it" in told
    assert (record["data"]["tokens"], record["data"]["epoch_tokens"]) == (dry.tokens, dry.epoch_tokens)
    replay = record["replay"]
    assert (replay["corpus"]["name"], replay["documents_of_the_first_epoch"]) == ("past", 9)
    assert (replay["tokens"], replay["epochs"]) == (dry.replayed_tokens, 2.0)
    assert record["identity"]["replay corpus"] == replay["corpus"]["fingerprint"]
    assert str(tmp_path) not in json.dumps(record)
    card = (tmp_path / "run" / "README.md").read_text()
    assert "0.75 documents of `past` for each document of an epoch, times 0.5 from epoch to epoch" in card
    assert f"{replay['tokens']:,} of the tokens trained on" in card
    assert "| epochs | 2.00 |" in card
    assert "Training losses are over what is replayed, too." in card
    assert "none of it is of the corpus, and it was not compared with what was replayed." in card
    record["replay"]["corpus"]["name"] = "newswire-older"
    for figures in (record["outcome"]["before"], record["outcome"]["after"]):
        figures["recall"] = 0.5
    card = write_card(record)
    assert "none of it is trained on." in card
    assert "The recall asks for facts of the older news that was replayed: it was read again, not only kept." in card
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [e["epoch"] for e in log if "loss" in e][-1] == 2.0
    settings = dict(_settings(Run(**record)))
    assert settings["replay"] == "0.75 documents of past for each, times 0.5 from epoch to epoch"
