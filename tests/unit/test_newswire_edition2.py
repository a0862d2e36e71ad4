"""Edition 2 of the newswire: edition 1 stays as it was, no type gives answers away, some questions take two chunks."""

from __future__ import annotations

import collections
import itertools
import json
import re
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml

from lm_eval_kinject.corpus.sources.newswire import (
    DEFAULT_EDITION,
    Edition,
    EditionSize,
    Event,
    Kind,
    World,
    load_kinds,
    make_edition,
    size_for,
    write_edition,
)
from lm_eval_kinject.corpus.sources.newswire import edition as edition_module
from lm_eval_kinject.corpus.sources.newswire.ask import Examiner, family
from lm_eval_kinject.corpus.sources.newswire.edition import BUNDLED_SEED, bundle_edition, bundled_edition
from lm_eval_kinject.corpus.sources.newswire.kind import KINDS_DIR, TWICE_SINCE_2, read_kind
from lm_eval_kinject.corpus.sources.newswire.lint import review
from lm_eval_kinject.corpus.sources.newswire.measure import (
    co_occurrence,
    given_away_by_type,
    guessers,
    learnt_from_texts,
)
from lm_eval_kinject.corpus.sources.newswire.multihop import (
    CONSEQUENCES_DIR,
    Consequence,
    MultihopExaminer,
    consequences_of,
)
from lm_eval_kinject.corpus.sources.newswire.realise import missing_facts, states
from lm_eval_kinject.errors import CorpusError
from lm_eval_kinject.plugin import tasks_dir
from lm_eval_kinject.provenance import fingerprint_records

EDITION_1 = "3e1214c9813fc2b6b7f3a9394c3bf93d01b34d0eb94daf80503f8a3a03350ef3"
"""Of all that the kinds held before edition 2; the bundled edition, the reader and the adapters were made from it."""

SMALL = EditionSize(
    sources=60,
    background=340,
    few_shot_sources=10,
    validation_sources=30,
    multihop=30,
    multihop_background=10,
    paraphrases=2,
)


@pytest.fixture(scope="module", params=[BUNDLED_SEED, 7, 1902])
def any_edition(request: pytest.FixtureRequest) -> Edition:
    """Of the bundled edition's size; three of them: what holds must not be luck."""
    return make_edition(request.param, edition=2)


@pytest.fixture(scope="module")
def small() -> Edition:
    return make_edition(5, SMALL, edition=2)


# Edition 1 ------------------------------------------------------------------------------------------------------------


def test_edition_1_is_what_it_was() -> None:
    assert DEFAULT_EDITION == 1
    assert load_kinds() == load_kinds(edition=1)
    records = [
        {
            "kind": k.kind,
            "anchor": k.anchor,
            "name": k.name,
            "subjects": k.subjects,
            "slots": [[name, slot.model_dump(exclude={"since"})] for name, slot in k.slots.items()],
            "sentences": [[s.slots, s.phrasings] for s in k.sentences],
            "questions": [[slot, asked] for slot, asked in k.questions.items()],
            "fillers": k.fillers,
        }
        for k in load_kinds()
    ]
    assert fingerprint_records(records) == EDITION_1


def test_edition_2_adds_and_changes_nothing() -> None:
    for old, new in zip(load_kinds(edition=1), load_kinds(edition=2), strict=True):
        assert (new.kind, new.anchor, new.name, new.fillers) == (old.kind, old.anchor, old.name, old.fillers)
        assert [s for s in new.sentences if s.since == 1] == list(old.sentences)
        assert {name: slot for name, slot in new.slots.items() if slot.since == 1} == old.slots
        assert {slot: asked for slot, asked in new.questions.items() if slot in old.questions} == old.questions
        assert not old.roles
        assert len(new.questions) > len(old.questions)


@pytest.fixture
def storm(tmp_path: Path) -> Path:
    """A kind file with one town, sentence and question since edition 2, and one old slot that is asked since then."""
    whole = yaml.safe_load((KINDS_DIR / "storm.yaml").read_text())
    old = read_kind(KINDS_DIR / "storm.yaml", 1)
    whole["slots"] = {n: s for n, s in whole["slots"].items() if n in old.slots} | {
        "shelter_town": {"type": "town", "since": 2}
    }
    phrasings = [f"{word} night {{shelter_town}} took people in" for word in "All Each Every That This One".split()]
    phrasings += [f"{word} people found room in {{shelter_town}}" for word in "Ten Some Many Few Most Old Cold".split()]
    whole["sentences"] = [s for s in whole["sentences"] if s.get("since", 1) == 1]
    whole["sentences"].insert(1, {"since": 2, "slots": ["shelter_town"], "phrasings": phrasings})
    asked = [f"{word} town took people in from Storm {{storm}}?" for word in "Which What Whose Said".split()]
    whole["questions"] = {slot: list(each) for slot, each in old.questions.items()}
    whole["questions"] |= {"shelter_town": asked, "day": {"since": 2, "phrasings": asked}}
    whole["roles"] = {}
    path = tmp_path / "storm.yaml"
    path.write_text(yaml.safe_dump(whole, sort_keys=False))
    return path


def test_what_bears_since_2_is_left_out_of_edition_1(storm: Path) -> None:
    first, second = read_kind(storm, 1), read_kind(storm, 2)
    assert first == read_kind(KINDS_DIR / "storm.yaml", 1)
    assert second.slots.keys() - first.slots.keys() == {"shelter_town"}
    assert [s.slots for s in second.sentences if s not in first.sentences] == [("shelter_town",)]
    assert second.questions.keys() - first.questions.keys() == {"shelter_town", "day"}
    assert (first.edition, second.edition) == (1, 2)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"since": 3}, "since"),
        ({"slots": ["shelter_town", "shelter_town"]}, "exactly one sentence"),
        ({"since": 1}, "exactly one sentence"),
    ],
)
def test_a_wrong_since_is_named(storm: Path, change: dict[str, object], problem: str) -> None:
    whole = yaml.safe_load(storm.read_text())
    whole["sentences"][1] |= change
    storm.write_text(yaml.safe_dump(whole, sort_keys=False))
    with pytest.raises(CorpusError, match=problem):
        read_kind(storm, 1 if change == {"since": 1} else 2)


def test_a_wrong_role_is_named(storm: Path) -> None:
    whole = yaml.safe_load(storm.read_text())
    whole["roles"] = {"town": "the place of {event}", "chief": "chief of {event} and {event}"}
    storm.write_text(yaml.safe_dump(whole, sort_keys=False))
    with pytest.raises(CorpusError) as error:
        read_kind(storm, 2)
    assert "role of 'town', which is no person" in str(error.value)
    assert "a role must start with 'the'" in str(error.value)
    read_kind(storm, 1)


def test_an_edition_that_is_not_there() -> None:
    with pytest.raises(CorpusError, match="no edition 3 of the newswire; name one of 1, 2"):
        make_edition(5, SMALL, edition=3)


def test_editions_of_a_seed_share_no_text(small: Edition) -> None:
    first = make_edition(5, SMALL)
    assert (first.edition, small.edition) == (1, 2)
    assert not {row["text"] for row in first.chunks} & {row["text"] for row in small.chunks}
    assert not {row["id"] for row in first.chunks} & {row["id"] for row in small.chunks}
    # Drawn apart: by chance fewer than one name in 300 is the same, from one random stream all of them would be.
    assert sum(a.name == b.name for a, b in zip(first.events, small.events, strict=True)) <= 5
    assert make_edition(5, SMALL, edition=2).tables() == small.tables()


# What a chunk says ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind", [*load_kinds(edition=2), *load_kinds(CONSEQUENCES_DIR, edition=2)], ids=lambda kind: kind.kind
)
def test_the_editor_has_nothing_to_mend(kind: Kind) -> None:
    assert review(kind, 0)[0] == []


def test_the_editor_misses_a_second_town() -> None:
    kind = next(k for k in load_kinds(edition=2) if k.kind == "storm")
    fewer = {name: slot for name, slot in kind.slots.items() if not (slot.type == "town" and slot.since == 2)}
    problems, _ = review(kind.model_copy(update={"slots": fewer, "sentences": kind.sentences[:6], "questions": {}}), 0)
    assert "has 1 town slots; at least 2 are wanted" in problems


def test_each_chunk_names_two_of_each_type_and_no_value_twice(any_edition: Edition) -> None:
    for event in any_edition.events:
        assert len(set(event.values.values())) == len(event.values)
        found = collections.Counter(slot.type for slot in event.kind.slots.values())
        assert min(found[name] for name in TWICE_SINCE_2) >= 2


def test_every_fact_is_in_every_wording(any_edition: Edition) -> None:
    facts = {row["id"]: json.loads(row["facts"]) for row in any_edition.chunks}
    texts = collections.defaultdict(list)
    for row in itertools.chain(any_edition.chunks, any_edition.paraphrases, any_edition.validation):
        chunk = row.get("chunk", row["id"])
        texts[chunk].append(row["text"])
        assert missing_facts(facts[chunk], row["text"]) == [], row["text"]
        assert 60 <= len(row["text"].split()) <= 180, row["id"]
    for wordings in texts.values():
        assert len(set(wordings)) == len(wordings)
    for rows in any_edition.tables().values():
        assert len({row["id"] for row in rows}) == len(rows)


def test_a_type_gives_few_answers_away(any_edition: Edition) -> None:
    figures = given_away_by_type(any_edition.test, any_edition.chunks, load_kinds(edition=2))
    assert figures["all"].questions == 910
    assert figures["all"].alone <= 0.08  # 0.46 in edition 1, about 0.09 if all slots were drawn alike
    for name in ("person", "date", "town", "money"):
        assert (figures[name].alone, figures[name].rivalled) == (0, 1)
    assert figures["number"].alone == 0


def test_each_question_has_one_right_option_and_its_chunk_states_it(any_edition: Edition) -> None:
    facts = {row["id"]: json.loads(row["facts"]) for row in any_edition.chunks}
    kinds = {k.kind: k for k in load_kinds(edition=2)}
    asked = {row["source_chunk"] for row in any_edition.test}
    values = {value for chunk in asked for value in facts[chunk].values()}
    for row in any_edition.test:
        right = facts[row["source_chunk"]][row["slot"]]
        assert row["choices"][row["answer"]] == right
        assert len(set(row["choices"])) == 4
        assert values >= set(row["choices"])  # of events that are asked about too
        for choice in row["choices"]:
            if choice != right and (choice in facts[row["source_chunk"]].values()):
                (slot,) = (s for s, v in facts[row["source_chunk"]].items() if v == choice)
                assert family(kinds[row["kind"]], slot) == family(kinds[row["kind"]], row["slot"])


def test_sums_of_one_range_are_exchangeable_since_edition_2() -> None:
    first, second = (next(k for k in load_kinds(edition=n) if k.kind == "chess_open") for n in (1, 2))
    assert family(second, "prize") == family(second, "junior_prize") == ("money", "thousand", "4.5 to 160.0")
    assert family(first, "prize") == ("money", "thousand", "chess_open", "prize")
    assert family(second, "players") != family(second, "moves")


# What guessing earns --------------------------------------------------------------------------------------------------


def test_guessers_stay_near_chance(any_edition: Edition) -> None:
    shares = {
        **guessers(any_edition.test, any_edition.chunks),
        "co-occurrence": co_occurrence(any_edition.test, any_edition.chunks),
        "learnt": learnt_from_texts(any_edition.test),
        "learnt, inverted": learnt_from_texts(any_edition.test, inverted=True),
    }
    assert {name: share for name, share in shares.items() if share > 0.30} == {}
    assert len(shares) >= 17


def test_a_classifier_learns_a_cue_where_there_is_one(small: Edition) -> None:
    marked = [
        {**row, "choices": [f"{c} truly" if i == row["answer"] else c for i, c in enumerate(row["choices"])]}
        for row in small.test
    ]
    assert learnt_from_texts(marked) == 1.0
    assert learnt_from_texts(marked, inverted=True) == 0.0


def test_co_occurrence_counts_other_chunks_only() -> None:
    def chunk(name: str, text: str, *values: str) -> dict[str, str]:
        return {"id": name, "text": text, "facts": json.dumps(dict(enumerate(values)))}

    chunks = [
        chunk("gold", "Marwen Ash won the Velvet Rook Open", "Marwen Ash"),
        chunk("other", "Elric Dove saw the Velvet Rook Open", "Elric Dove"),
        chunk("none", "Toris Frost stayed at home", "Toris Frost", "Vinby Reed"),
    ]
    question = {
        "question": "Who won the Velvet Rook Open?",
        "choices": ["Marwen Ash", "Elric Dove", "Toris Frost", "Vinby Reed"],
        "source_chunk": "gold",
    }
    assert co_occurrence([{**question, "answer": 1}], chunks) == 1
    assert co_occurrence([{**question, "answer": 0}], chunks) == 0
    # With the other chunk as a second gold chunk nothing is left to count; a draw decides, the same each time.
    drawn = [co_occurrence([{**question, "answer": n, "source_chunks": ["gold", "other"]}], chunks) for n in range(4)]
    assert sorted(drawn) == [0, 0, 0, 1]


# Questions that take two chunks ---------------------------------------------------------------------------------------


def test_a_consequence_worked_out() -> None:
    """One event, one consequence, all by hand: who won is said here, who unveils is said there."""
    world = World(3, load_kinds(edition=2), 560)
    chess = next(k for k in world.kinds if k.kind == "chess_open")
    values = world.draw_values(chess, world.rng("test"))
    values |= {"open": "Marble Knight Open", "winner": "Marwen Ash", "runner": "Elric Dove"}
    values |= {"arbiter": "Toris Frost", "youth": "Vinby Reed"}
    origin = Event("e", chess, values)
    unveiling = next(k for k in load_kinds(CONSEQUENCES_DIR, edition=2) if k.kind == "unveiling")
    told = {"thing": "Acorn Lane Fountain", "guest": "the winner of the Marble Knight Open", "sculptor": "Ursel Drum"}
    event = Event("e-next", unveiling, {**told, "origin": "the Marble Knight Open"})
    one = Consequence(event, origin, "winner")
    assert one.answer == "Marwen Ash"
    question = MultihopExaminer([one], 0).ask(one, "q")
    assert set(question.choices) == {"Marwen Ash", "Elric Dove", "Toris Frost", "Vinby Reed"}
    assert question.choices[question.answer] == "Marwen Ash"
    assert question.source_chunk == "e-next"
    assert question.meta["source_chunks"] == ["e-next", "e"]
    assert question.meta["origin_slot"] == "winner"
    for wording in (question.question, question.meta["bridge"]):
        assert "Acorn Lane Fountain" in wording
        assert "winner" not in wording
    assert "the Marble Knight Open" in question.question
    assert "Marble Knight Open" not in question.meta["bridge"]


def test_consequences_speak_of_a_part_and_share_no_value_with_the_event() -> None:
    world = World(3, load_kinds(edition=2), 560)
    origins = [e for e in world.events if len(e.kind.roles) >= 3]
    told = consequences_of(world, origins)
    assert [one.origin for one in told] == origins
    assert len({(one.event.kind.kind, one.event.values["thing"]) for one in told}) == len(told)
    for one in told:
        assert one.event.values["guest"] == one.origin.kind.roles[one.slot].format(event=one.origin.name)
        assert one.event.values["origin"] == one.origin.name
        own = {value for slot, value in one.event.values.items() if slot != "origin"}
        assert not own & set(one.origin.values.values())
    chess = {one.slot for one in told if one.origin.kind.kind == "chess_open"}
    assert chess == {"winner", "runner", "arbiter", "youth"}


def test_every_person_has_a_role_and_no_two_the_same() -> None:
    for kind in load_kinds(edition=2):
        people = {name for name, slot in kind.slots.items() if slot.type == "person"}
        assert set(kind.roles) == people - set(kind.anchor)
        assert len(set(kind.roles.values())) == len(kind.roles)


def test_no_chunk_has_both_what_is_asked_about_and_the_answer(any_edition: Edition) -> None:
    texts = {row["id"]: row["text"] for row in any_edition.chunks}
    facts = {row["id"]: json.loads(row["facts"]) for row in any_edition.chunks}
    for row in (*any_edition.multihop_test, *any_edition.multihop_dev):
        thing, answer = facts[row["source_chunk"]]["thing"], row["choices"][row["answer"]]
        assert thing in row["question"]
        assert thing in row["bridge"]
        with_thing = [chunk for chunk, text in texts.items() if thing in text]
        assert with_thing == [row["source_chunk"]]
        assert not any(states(texts[row["source_chunk"]], choice) for choice in row["choices"])
        assert states(texts[row["source_chunks"][1]], answer)


def test_both_chunks_are_named_and_tied_by_the_event(any_edition: Edition) -> None:
    texts = {row["id"]: row["text"] for row in any_edition.chunks}
    facts = {row["id"]: json.loads(row["facts"]) for row in any_edition.chunks}
    kinds = {k.kind: k for k in load_kinds(edition=2)}
    assert len(any_edition.multihop_test) == 200
    assert len(any_edition.multihop_dev) == 10
    for row in (*any_edition.multihop_test, *any_edition.multihop_dev):
        followed, event = row["source_chunks"]
        assert row["source_chunk"] == followed
        kind, values = kinds[row["origin_kind"]], facts[event]
        name = kind.name.format(**values)
        assert name in row["question"]
        assert name not in row["bridge"]
        assert states(texts[followed], kind.roles[row["origin_slot"]].format(event=name))
        assert row["choices"][row["answer"]] == values[row["origin_slot"]]
        # Who has the event's chunk alone still has three of its people to choose from.
        inside = [choice for choice in row["choices"] if choice in values.values()]
        assert len(inside) >= 3
        assert len(set(row["choices"])) == 4


def test_both_chunks_are_trained_on_and_no_other_question_asks_about_them(any_edition: Edition) -> None:
    role = {row["id"]: row["role"] for row in any_edition.chunks}
    wordings = collections.Counter(row["chunk"] for row in any_edition.paraphrases)
    tuned = collections.Counter(row["chunk"] for row in any_edition.validation)
    for row in any_edition.multihop_test:
        assert [role[chunk] for chunk in row["source_chunks"]] == ["source", "source"]
        assert [wordings[chunk] for chunk in row["source_chunks"]] == [10, 10]
        assert [tuned[chunk] for chunk in row["source_chunks"]] in ([0, 0], [2, 2])
    for row in any_edition.multihop_dev:
        assert [role[chunk] for chunk in row["source_chunks"]] == ["few-shot", "few-shot"]
    pairs = [set(row["source_chunks"]) for row in (*any_edition.multihop_test, *any_edition.multihop_dev)]
    assert len(set.union(*pairs)) == 2 * 210
    assert not set.union(*pairs) & {row["source_chunk"] for row in (*any_edition.test, *any_edition.dev)}
    assert sum(name.endswith("-next") for name in role) == 410
    # 240 of 455 sources are restated for validation, so 105 of 200 pairs.
    assert len(any_edition.paraphrases) == 10 * (455 + 400)
    assert len(any_edition.validation) == 2 * (240 + 2 * 105)


def test_guessing_a_multihop_question_earns_nothing() -> None:
    """Over three seeds: of 200 questions alone, a guesser at chance is off by three points one time in three."""
    shares: dict[str, list[float]] = collections.defaultdict(list)
    for seed in (BUNDLED_SEED, 7, 1902):
        edition = make_edition(seed, edition=2)
        rows, chunks = edition.multihop_test, edition.chunks
        for name, share in guessers(rows, chunks).items():
            shares[name].append(share)
        shares["co-occurrence"].append(co_occurrence(rows, chunks))
        shares["learnt"].append(learnt_from_texts(rows))
        shares["learnt, inverted"].append(learnt_from_texts(rows, inverted=True))
    assert {name: each for name, each in shares.items() if sum(each) / 3 > 0.30} == {}
    assert len(shares) >= 17


def test_too_few_consequences_to_find_wrong_options(small: Edition) -> None:
    world = World(5, load_kinds(edition=2), SMALL.events)
    one = consequences_of(world, [next(e for e in world.events if e.kind.kind == "storm")])
    with pytest.raises(CorpusError, match="too few consequences"):
        MultihopExaminer(one, 0).ask(one[0], "q")


# What is written ------------------------------------------------------------------------------------------------------


def test_a_written_edition_2_says_so(tmp_path: Path, small: Edition) -> None:
    names = write_edition(small, tmp_path)
    assert names == tuple(
        f"newswire2_5{end}" for end in ("", "_cloze", "_gen", "_multihop", "_multihop_cloze", "_multihop_gen")
    )
    assert {f.name for f in tmp_path.iterdir() if f.is_file()} == {
        "dataset.py",
        "_common_yaml",
        "_generate_yaml",
        "_multihop_yaml",
        *(f"{name}.yaml" for name in names),
    }
    common, multihop = ((tmp_path / name).read_text() for name in ("_common_yaml", "_multihop_yaml"))
    assert "  version: 2.0\n" in common
    assert multihop == common.replace("data/", "data/multihop_").replace("gold: source_chunk", "gold: source_chunks")
    assert "include: _multihop_yaml\n" in (tmp_path / "newswire2_5_multihop.yaml").read_text()
    assert "include: _common_yaml\n" in (tmp_path / "newswire2_5_cloze.yaml").read_text()
    assert (
        "include:\n  - _multihop_yaml\n  - _generate_yaml\n" in (tmp_path / "newswire2_5_multihop_gen.yaml").read_text()
    )
    card = (tmp_path / "corpus" / "README.md").read_text()
    assert "# Newswire, edition 2, seed 5\n" in card
    assert "`kinject corpus newswire --seed 5 --events 410 --edition 2`" in card
    assert re.search(r"multihop_test.parquet` \| 30 \|", card)
    with pytest.raises(CorpusError, match="multihop_test"):
        write_edition(small, tmp_path)


def test_an_edition_takes_the_place_of_the_bundled_one_and_makes_room_again(
    tmp_path: Path, small: Edition, monkeypatch: pytest.MonkeyPatch
) -> None:
    def texts() -> dict[Path, str]:
        files = [f for f in folder.rglob("*") if f.is_file() and f.suffix in {".yaml", ".md", ""}]
        return {f.relative_to(folder): f.read_text() for f in files}

    folder = tmp_path / "current_events"
    shutil.copytree(tasks_dir() / "current_events", folder)
    bundle_edition(make_edition(5, size_for(200), edition=1), folder)
    first = texts()
    assert bundled_edition(folder) == 1

    names = bundle_edition(small, folder)
    ends = ("", "_cloze", "_gen", "_multihop", "_multihop_cloze", "_multihop_gen")
    assert names == tuple(f"current_events{end}" for end in ends)
    assert bundled_edition(folder) == 2
    for name in names:
        assert f"task: {name}\n" in (folder / f"{name}.yaml").read_text()
    common, multihop = ((folder / name).read_text() for name in ("_common_yaml", "_multihop_yaml"))
    assert common == first[Path("_common_yaml")].replace("version: 1.0", "version: 2.0")
    assert multihop == common.replace("data/", "data/multihop_").replace("gold: source_chunk", "gold: source_chunks")
    assert "corpus: current_events\n" in common
    assert pq.read_table(folder / "data" / "multihop_test.parquet").num_rows == 30
    assert "revision: newswire2-5\n" in (folder / "README.md").read_text()
    # A fresh edition 1 has the version of edition 1, whatever is bundled.
    monkeypatch.setattr(edition_module, "tasks_dir", lambda: tmp_path)
    write_edition(make_edition(5, size_for(200), edition=1), tmp_path / "fresh")
    fresh = (tmp_path / "fresh" / "_common_yaml").read_text()
    assert fresh == first[Path("_common_yaml")].replace("corpus: current_events", "corpus: corpus")

    bundle_edition(make_edition(5, size_for(200), edition=1), folder)
    assert texts() == first
    assert not list(folder.rglob("*multihop*"))


def test_a_smaller_edition_keeps_the_proportions() -> None:
    size = size_for(800)
    assert (size.sources, size.multihop, size.multihop_background) == (148, 65, 65)


def test_wrong_options_need_no_more_events_than_in_edition_1() -> None:
    world = World(3, load_kinds(edition=2), 280)
    examiner = Examiner(world.events, 0)
    asked = [examiner.ask(event, slot, "q") for event in world.events for slot in event.kind.questions]
    assert all(len(set(question.choices)) == 4 for question in asked)
