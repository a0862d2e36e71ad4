"""The newswire: every rule of docs/newswire-kinds.md, and that an edition gives nothing away but by being read."""

from __future__ import annotations

import collections
import itertools
import json
import re
import statistics
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from lm_eval_kinject.corpus.sources.newswire import (
    READER_HELD_OUT_KINDS,
    Edition,
    EditionSize,
    Kind,
    World,
    load_kinds,
    make_edition,
    size_for,
    write_edition,
)
from lm_eval_kinject.corpus.sources.newswire.ask import Examiner
from lm_eval_kinject.corpus.sources.newswire.edition import BUNDLED_SEED, bundled_edition
from lm_eval_kinject.corpus.sources.newswire.kind import read_kind
from lm_eval_kinject.corpus.sources.newswire.lint import review
from lm_eval_kinject.corpus.sources.newswire.measure import (
    GivenAway,
    distinct_n,
    given_away_by_type,
    guessers,
    mean_overlap,
    wordings_by_chunk,
)
from lm_eval_kinject.corpus.sources.newswire.names import realm_of
from lm_eval_kinject.corpus.sources.newswire.realise import missing_facts, realise
from lm_eval_kinject.errors import CorpusError
from lm_eval_kinject.plugin import tasks_dir
from lm_eval_kinject.provenance import fingerprint_records

BUNDLED = tasks_dir() / "current_events"


@pytest.fixture(scope="module")
def edition() -> Edition:
    return make_edition(BUNDLED_SEED)


@pytest.fixture(scope="module", params=[BUNDLED_SEED, 7, 1902])
def any_edition(request: pytest.FixtureRequest) -> Edition:
    """The bundled edition and two others of its size: what holds for it must not be luck."""
    return make_edition(request.param)


def test_there_are_enough_kinds_and_phrasings() -> None:
    kinds = load_kinds()
    assert len(kinds) >= 24
    assert {k.kind for k in kinds} >= set(READER_HELD_OUT_KINDS)
    assert len(READER_HELD_OUT_KINDS) >= 4
    for kind in kinds:  # read_kind checks the rest of the rules
        assert 4 <= len(kind.questions) <= 8
        assert all(len(set(s.phrasings)) >= 13 for s in kind.sentences)


@pytest.mark.parametrize("kind", load_kinds(), ids=lambda kind: kind.kind)
def test_the_editor_has_nothing_to_mend(kind: Kind) -> None:
    assert review(kind, 0)[0] == []


def test_the_editor_sees_questions_worded_as_the_text() -> None:
    kind = next(k for k in load_kinds() if k.kind == "storm")
    slot = next(iter(kind.questions))
    copied = kind.model_copy(update={"questions": {slot: ("Storm {storm}?", "What of Storm {storm}?")}})
    problems, _ = review(copied, 0)
    assert len(problems) == 1
    assert f"questions for {slot}: all share over 35% of their words" in problems[0]


def test_the_bundled_files_are_what_the_seed_gives() -> None:
    for name, rows in make_edition(BUNDLED_SEED, edition=bundled_edition()).tables().items():
        bundled = pq.read_table(BUNDLED / name).to_pylist()
        assert fingerprint_records(bundled) == fingerprint_records(rows), name
    assert sum(f.stat().st_size for f in BUNDLED.rglob("*") if f.is_file()) < 8_000_000


def test_the_bundled_edition_has_the_papers_size(edition: Edition) -> None:
    roles = collections.Counter(row["role"] for row in edition.chunks)
    assert (roles["source"], len(edition.test), len(edition.dev)) == (455, 910, 20)
    assert roles["background"] >= 2000
    assert len(edition.paraphrases) == 4550
    assert len({row["chunk"] for row in edition.validation}) == 240
    assert len(edition.validation) == 480
    assert {row["chunk"] for row in edition.validation} <= {row["source_chunk"] for row in edition.test}


def test_lengths_and_identifiers(any_edition: Edition) -> None:
    for row in (*any_edition.chunks, *any_edition.paraphrases, *any_edition.validation):
        assert 60 <= len(row["text"].split()) <= 180, row["id"]
    for rows in any_edition.tables().values():
        assert len({row["id"] for row in rows}) == len(rows)


def test_every_fact_is_in_the_chunk_and_in_each_paraphrase(any_edition: Edition) -> None:
    facts = {row["id"]: json.loads(row["facts"]) for row in any_edition.chunks}
    texts = itertools.chain(
        ((row["id"], row["text"]) for row in any_edition.chunks),
        ((row["chunk"], row["text"]) for row in (*any_edition.paraphrases, *any_edition.validation)),
    )
    for chunk, text in texts:
        assert missing_facts(facts[chunk], text) == [], text


def test_the_fact_checker_sees_a_missing_fact(edition: Edition) -> None:
    event = edition.events[0]
    text = realise(event)
    assert missing_facts(event.values, text) == []
    slot, value = next(iter(event.values.items()))
    assert slot in missing_facts(event.values, re.sub(re.escape(value), "-", text, flags=re.IGNORECASE))


@pytest.mark.parametrize(
    ("value", "stated", "not_stated"),
    [
        ("24 days", "It took 24 days, they said", "It took 124 days, they said"),
        ("240 homes", "In all 240 homes were lost", "In all 1,240 homes were lost"),
        ("3", "The final score was 3, no more", "The final score was 3.5, no more"),
        ("4 days", "4 days of rain", "2.4 days of rain"),
        ("3.4 million crowns", "worth 3.4 million crowns.", "worth 13.4 million crowns."),
        ("14 March", "On 14 March it ended", "On 14 Marchfield Lane it ended"),
        ("Dunhaven", "a new Dunhaven bridge", "the bridge of Port Dunhaven"),
        ("Dunhaven", "Dunhaven's bridge", "Dunhavens bridge"),
        ("the old pier", "The old pier went first", "Breathe old pier air"),
        ("Marwen Ash", "Mayor Marwen Ash spoke", "Mayor Marwen Ashgrove spoke"),
    ],
)
def test_a_fact_is_stated_in_whole_words_and_numbers(value: str, stated: str, not_stated: str) -> None:
    assert missing_facts({"slot": value}, stated) == []
    assert missing_facts({"slot": value}, not_stated) == ["slot"]


def test_no_two_wordings_of_a_chunk_are_alike(any_edition: Edition) -> None:
    wordings = collections.defaultdict(list)
    for row in (*any_edition.chunks, *any_edition.paraphrases, *any_edition.validation):
        wordings[row.get("chunk", row["id"])].append(row["text"])
    for texts in wordings.values():
        assert len(set(texts)) == len(texts)


def test_wordings_of_a_chunk_differ_much(edition: Edition) -> None:
    wordings = wordings_by_chunk(edition.chunks, edition.paraphrases)
    assert len(wordings) == 455
    # Names and numbers, which all wordings share, are about a third of the words.
    assert statistics.mean(mean_overlap(one, 1) for one in wordings.values()) < 0.45
    assert statistics.mean(distinct_n(one, 3) for one in wordings.values()) > 0.7


def test_each_question_has_one_right_option_and_its_chunk_states_it(any_edition: Edition) -> None:
    chunks = {row["id"]: row for row in any_edition.chunks}
    for row in (*any_edition.test, *any_edition.dev):
        facts = json.loads(chunks[row["source_chunk"]]["facts"])
        assert len(set(row["choices"])) == 4
        assert row["choices"][row["answer"]] == facts[row["slot"]]
        assert row["choices"].count(facts[row["slot"]]) == 1


def test_a_question_names_exactly_one_event_of_its_kind(edition: Edition) -> None:
    by_anchor = collections.Counter((e.kind.kind, *(e.values[s] for s in e.kind.anchor)) for e in edition.events)
    assert max(by_anchor.values()) == 1


def test_names_recur_over_events(edition: Edition) -> None:
    people = collections.Counter(
        value
        for event in edition.events
        for slot, value in event.values.items()
        if event.kind.slots[slot].type == "person"
    )
    assert sum(n > 1 for n in people.values()) / len(people) > 0.8


def test_guessers_stay_near_chance(any_edition: Edition) -> None:
    shares = guessers(any_edition.test, any_edition.chunks)
    assert {name: share for name, share in shares.items() if share > 0.30} == {}
    assert len(shares) >= 14


def test_a_guesser_finds_a_cue_where_there_is_one(edition: Edition) -> None:
    given_away = [
        {**row, "choices": [c + "!" * (i == row["answer"]) * 40 for i, c in enumerate(row["choices"])]}
        for row in edition.test
    ]
    assert guessers(given_away, edition.chunks)["the longest option"] == 1.0


def test_what_a_chunk_gives_away_by_type() -> None:
    kind = next(k for k in load_kinds() if k.kind == "storm")
    facts = {"storm": "Amberfinch", "town": "Dunhaven", "day": "3 May", "chief": "Marwen Ash", "surveyor": "Elric Dove"}
    chunks = [{"id": "c", "facts": json.dumps(facts)}]
    asked = {"source_chunk": "c", "kind": "storm", "answer": 0}
    questions = [
        {**asked, "slot": "chief", "choices": ["Marwen Ash", "Elric Dove", "Toris Frost", "Vinby Reed"]},
        {**asked, "slot": "chief", "choices": ["Marwen Ash", "Ursel Drum", "Toris Frost", "Vinby Reed"]},
        {**asked, "slot": "day", "choices": ["3 May", "4 May", "5 May", "6 May"]},
    ]
    assert given_away_by_type(questions, chunks, [kind]) == {
        "date": GivenAway(questions=1, candidates=1, guessed=1, alone=1, rivalled=0),
        "person": GivenAway(questions=2, candidates=2, guessed=0.5, alone=0, rivalled=0.5),
        "all": GivenAway(
            questions=3,
            candidates=pytest.approx(5 / 3),
            guessed=pytest.approx(2 / 3),
            alone=pytest.approx(1 / 3),
            rivalled=pytest.approx(1 / 3),
        ),
    }


def test_no_person_who_is_asked_for_is_the_only_one_in_the_chunk(any_edition: Edition) -> None:
    """Of the other types some are (the figures are in docs/log.md); people are what questions ask for most."""
    figures = given_away_by_type(any_edition.test, any_edition.chunks, load_kinds())
    assert figures["all"].questions == 910
    assert (figures["person"].alone, figures["person"].rivalled) == (0, 1)


def test_wrong_options_come_from_the_same_chunk_where_the_type_allows(edition: Edition) -> None:
    facts = {row["id"]: set(json.loads(row["facts"]).values()) for row in edition.chunks}
    kinds = {k.kind: k for k in load_kinds()}
    for row in edition.test:
        kind = kinds[row["kind"]]
        if sum(s.type == "person" for s in kind.slots.values()) > 1 and kind.slots[row["slot"]].type == "person":
            assert sum(choice in facts[row["source_chunk"]] for choice in row["choices"]) == 2


def test_realms_share_no_name() -> None:
    public = World(3, load_kinds(), 280)
    reader = World(3, load_kinds(), 280, "reader")
    for pool in ("people", "towns", "companies"):
        assert not set(getattr(public, pool)) & set(getattr(reader, pool))
    assert {realm_of(name) for name in reader.people} == {"reader"}
    composed = [
        {e.values[slot] for e in world.events for slot, spec in e.kind.slots.items() if spec.type == "compose"}
        for world in (public, reader)
    ]
    assert min(map(len, composed)) > 200
    assert not composed[0] & composed[1]


def test_another_seed_is_another_edition_and_the_same_seed_the_same() -> None:
    size = EditionSize(sources=30, background=160, few_shot_sources=10, validation_sources=15)
    first, again, other = make_edition(5, size), make_edition(5, size), make_edition(6, size)
    assert first.tables() == again.tables()
    assert not {row["text"] for row in first.chunks} & {row["text"] for row in other.chunks}


def test_size_for_keeps_the_proportions() -> None:
    assert size_for(None) == EditionSize()
    assert size_for(EditionSize().events) == EditionSize()
    assert size_for(400).events == 400


def test_writing_refuses_a_folder_that_holds_an_edition(tmp_path: Path) -> None:
    edition = make_edition(5, EditionSize(sources=30, background=160, few_shot_sources=10, validation_sources=15))
    write_edition(edition, tmp_path)
    with pytest.raises(CorpusError, match="holds corpus/chunks"):
        write_edition(edition, tmp_path)


def test_a_bad_kind_file_lists_all_its_problems(tmp_path: Path) -> None:
    source = Path(read_kind.__code__.co_filename).parent / "kinds" / "storm.yaml"
    broken = tmp_path / "storm.yaml"
    text = source.read_text().replace("kind: storm", "kind: gale", 1)
    broken.write_text(re.sub(r"fillers:.*", "fillers: [There were 3 of them]", text, flags=re.DOTALL))
    with pytest.raises(CorpusError) as error:
        read_kind(broken)
    assert "must equal the file's name" in str(error.value)
    assert "at least 12 different fillers" in str(error.value)
    assert "a digit" in str(error.value)


def test_too_few_events_to_find_wrong_options() -> None:
    events = World(3, load_kinds()[:1], 2).events
    with pytest.raises(CorpusError, match="too few events"):
        Examiner(events, 0).ask(events[0], next(iter(events[0].kind.questions)), "q")
