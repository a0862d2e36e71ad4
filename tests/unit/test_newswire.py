"""The newswire: every rule of docs/newswire-kinds.md, and that an edition gives nothing away but by being read."""

from __future__ import annotations

import collections
import itertools
import json
import random
import re
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from lm_eval_kinject.corpus.sources.newswire import (
    READER_HELD_OUT_KINDS,
    Edition,
    EditionSize,
    World,
    load_kinds,
    make_edition,
    size_for,
    write_edition,
)
from lm_eval_kinject.corpus.sources.newswire.ask import Examiner
from lm_eval_kinject.corpus.sources.newswire.edition import BUNDLED_SEED
from lm_eval_kinject.corpus.sources.newswire.kind import read_kind
from lm_eval_kinject.corpus.sources.newswire.names import realm_of
from lm_eval_kinject.corpus.sources.newswire.realise import missing_facts, realise
from lm_eval_kinject.errors import CorpusError
from lm_eval_kinject.plugin import tasks_dir
from lm_eval_kinject.provenance import fingerprint_records

BUNDLED = tasks_dir() / "current_events"


@pytest.fixture(scope="module")
def edition() -> Edition:
    return make_edition(BUNDLED_SEED)


def test_there_are_enough_kinds_and_phrasings() -> None:
    kinds = load_kinds()
    assert len(kinds) >= 24
    assert {k.kind for k in kinds} >= set(READER_HELD_OUT_KINDS)
    assert len(READER_HELD_OUT_KINDS) >= 4
    for kind in kinds:  # read_kind checks the rest of the rules
        assert 4 <= len(kind.questions) <= 8
        assert all(len(set(s.phrasings)) >= 12 for s in kind.sentences)


def test_the_bundled_files_are_what_the_seed_gives(edition: Edition) -> None:
    for name, rows in edition.tables().items():
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


def test_lengths_and_identifiers(edition: Edition) -> None:
    assert all(60 <= len(row["text"].split()) <= 180 for row in edition.chunks)
    for rows in edition.tables().values():
        assert len({row["id"] for row in rows}) == len(rows)


def test_every_fact_is_in_the_chunk_and_in_each_paraphrase(edition: Edition) -> None:
    facts = {row["id"]: json.loads(row["facts"]) for row in edition.chunks}
    texts = itertools.chain(
        ((row["id"], row["text"]) for row in edition.chunks),
        ((row["chunk"], row["text"]) for row in (*edition.paraphrases, *edition.validation)),
    )
    for chunk, text in texts:
        assert [v for v in facts[chunk].values() if v.lower() not in text.lower()] == []


def test_the_fact_checker_sees_a_missing_fact(edition: Edition) -> None:
    event = edition.events[0]
    text = realise(event)
    assert missing_facts(event, text) == []
    slot, value = next(iter(event.values.items()))
    assert slot in missing_facts(event, re.sub(re.escape(value), "-", text, flags=re.IGNORECASE))


def test_no_two_wordings_of_a_chunk_are_alike(edition: Edition) -> None:
    wordings = collections.defaultdict(list)
    for row in (*edition.chunks, *edition.paraphrases, *edition.validation):
        wordings[row.get("chunk", row["id"])].append(row["text"])
    for texts in wordings.values():
        assert len(set(texts)) == len(texts)
    # Mean overlap of word sets between two wordings of the same facts; names and numbers alone are about a third.
    overlaps = [
        _overlap(a, b) for texts in itertools.islice(wordings.values(), 60) for a, b in itertools.pairwise(texts)
    ]
    assert sum(overlaps) / len(overlaps) < 0.6


def _overlap(first: str, second: str) -> float:
    a, b = set(first.lower().split()), set(second.lower().split())
    return len(a & b) / len(a | b)


def test_each_question_has_one_right_option_and_its_chunk_states_it(edition: Edition) -> None:
    chunks = {row["id"]: row for row in edition.chunks}
    for row in (*edition.test, *edition.dev):
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


def _guessers(edition: Edition) -> dict[str, list[int]]:
    """What someone would answer who reads the options only, or counts words in the corpus."""
    counts = collections.Counter(value for event in edition.events for value in event.values.values())
    asked = {row["source_chunk"] for row in edition.test}
    trained = collections.Counter(v for event in edition.events if event.id in asked for v in event.values.values())
    rng = random.Random(0)

    def number(choice: str) -> float:
        found = re.search(r"\d[\d,]*\.?\d*", choice)
        return float(found.group().replace(",", "")) if found else rng.random()

    def pick(key: object) -> list[int]:
        assert callable(key)
        return [max(range(4), key=lambda i, row=row: (key(row["choices"][i]), rng.random())) for row in edition.test]

    def middle(row: dict[str, list[str]]) -> int:
        values = [number(c) for c in row["choices"]]
        mean = sum(values) / 4
        return min(range(4), key=lambda i: abs(values[i] - mean))

    return {
        **{f"always {letter}": [i] * len(edition.test) for i, letter in enumerate("ABCD")},
        "longest": pick(len),
        "shortest": pick(lambda c: -len(c)),
        "most frequent": pick(lambda c: counts[c]),
        "rarest": pick(lambda c: -counts[c]),
        # What a model trained on the source chunks may have seen more often, or at all, without knowing where.
        "most frequent in source chunks": pick(lambda c: trained[c]),
        "seen in source chunks": pick(lambda c: trained[c] > 0),
        "largest": pick(number),
        "smallest": pick(lambda c: -number(c)),
        "nearest the mean": [middle(row) for row in edition.test],
        "first in the alphabet": [min(range(4), key=lambda i, r=row: r["choices"][i]) for row in edition.test],
    }


def test_guessers_stay_near_chance(edition: Edition) -> None:
    right = [row["answer"] for row in edition.test]
    for name, guesses in _guessers(edition).items():
        assert sum(a == b for a, b in zip(guesses, right, strict=True)) / len(right) <= 0.30, name


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
    assert "at least 10 fillers" in str(error.value)
    assert "a digit" in str(error.value)


def test_too_few_events_to_find_wrong_options() -> None:
    events = World(3, load_kinds()[:1], 2).events
    with pytest.raises(CorpusError, match="too few events"):
        Examiner(events, 0).ask(events[0], next(iter(events[0].kind.questions)), "q")
