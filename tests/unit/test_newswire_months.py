"""Dated months of the newswire: as many events each, none twice, and a language that drifts away month by month."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from statistics import mean

import pytest

from lm_eval_kinject.corpus.sources.newswire import Edition, make_months
from lm_eval_kinject.corpus.sources.newswire.measure import co_occurrence, guessers, new_words
from lm_eval_kinject.corpus.sources.newswire.months import _window, month_names
from lm_eval_kinject.corpus.sources.newswire.names import companies
from lm_eval_kinject.corpus.sources.newswire.realise import missing_facts
from lm_eval_kinject.errors import ArgumentError, CorpusError
from lm_eval_kinject.provenance import fingerprint_records

MONTHS = 8


@pytest.fixture(scope="module")
def news() -> Edition:
    return make_months(7, "2025-11", MONTHS, 200 * MONTHS)


def by_month(rows, of: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = defaultdict(list)
    for row in rows:
        found[row["date"][:7]].append(row[of])
    return found


def test_months_follow_each_other_over_the_year() -> None:
    assert month_names("2025-11", 4) == ["2025-11", "2025-12", "2026-01", "2026-02"]


def test_a_window_moves_on_and_comes_round() -> None:
    windows = ["".join(_window("abcdefghijkl", 4, index, "s")) for index in range(25)]
    ring = "".join(windows[place] for place in (0, 8, 16))  # 12 letters in 24 months: one every second month
    assert sorted(ring) == list("abcdefghijkl")
    assert windows == [(ring + ring)[(index % 24) // 2 :][:4] for index in range(25)]
    assert _window("ab", 4, 30, "s") in [("a", "b"), ("b", "a")]


def test_all_months_have_as_much(news: Edition) -> None:
    assert news.months == tuple(month_names("2025-11", MONTHS))
    for rows, each in ((news.chunks, 200), (news.test, 200), (news.dev, 20), (news.paraphrases, 300)):
        assert {month: len(ids) for month, ids in by_month(rows, "id").items()} == dict.fromkeys(news.months, each)
    roles = Counter((row["date"][:7], row["role"]) for row in news.chunks)
    assert set(roles.values()) == {100, 10, 90}


def test_no_event_happens_twice(news: Edition) -> None:
    ids = by_month(news.chunks, "id")
    assert all(identifier.startswith(f"nw7-{month}-") for month, each in ids.items() for identifier in each)
    assert len({identifier for each in ids.values() for identifier in each}) == 200 * MONTHS
    assert len({event.anchor for event in news.events}) == 200 * MONTHS


def test_a_row_has_the_day_that_its_text_names(news: Edition) -> None:
    texts = {row["id"]: row for row in news.chunks}
    for event in news.events:
        row = texts[event.id]
        assert missing_facts(event.values, row["text"]) == []
        year, month, day = map(int, row["date"].split("-"))
        name = "January February March April May June July August September October November December".split()[
            month - 1
        ]
        assert f"{day} {name}" in event.values.values()
        assert year == (2025 if month > 10 else 2026)
    assert all(row["date"] == texts[row["source_chunk"]]["date"] for row in news.test)
    assert all(row["date"] == texts[row["chunk"]]["date"] for row in news.paraphrases)


def test_wordings_of_a_chunk_differ(news: Edition) -> None:
    told = defaultdict(set)
    for row in (*news.paraphrases, *news.validation):
        told[row["chunk"]].add(row["text"])
    originals = {row["id"]: row["text"] for row in news.chunks}
    for chunk, texts in told.items():
        assert len(texts | {originals[chunk]}) == 1 + len(texts)


def test_language_drifts_away_month_by_month(news: Edition) -> None:
    texts = by_month(news.chunks, "text")
    share = [
        mean(new_words(texts[a], texts[b]) for a, b in zip(news.months, news.months[gap:], strict=False))
        for gap in range(1, MONTHS)
    ]
    assert share == sorted(share)
    assert share[-1] > 2 * share[0] > 0.1
    # What was trained on the first half lies further back every month.
    known = [text for month in news.months[:4] for text in texts[month]]
    later = [new_words(known, texts[month]) for month in news.months[4:]]
    assert later == sorted(later)


def test_guessers_stay_near_chance(news: Edition) -> None:
    """Also those who count options in the chunks that are asked about, as who trains on these alone does."""
    for rule, share in guessers(news.test, news.chunks).items():
        assert share <= 0.30, rule
    assert co_occurrence(news.test, news.chunks) <= 0.30


def test_names_leave_and_do_not_come_back(news: Edition) -> None:
    people: dict[str, set[str]] = defaultdict(set)
    for event in news.events:
        people[event.id[4:11]] |= {v for s, v in event.values.items() if event.kind.slots[s].type == "person"}
    first, second, fifth = (people[news.months[at]] for at in (0, 1, 4))
    assert first & second
    assert not first & fifth  # a quarter goes each month
    kinds = {month: {row["kind"] for row in news.chunks if row["date"][:7] == month} for month in news.months}
    assert {len(each) for each in kinds.values()} == {10}
    assert len(kinds[news.months[0]] & kinds[news.months[-1]]) == 2  # 8 of 28 have gone by in 7 months


def test_more_months_only_add(news: Edition) -> None:
    fewer = make_months(7, "2025-11", 2, 400)
    assert [row for row in news.chunks if row["date"] < "2026"] == fewer.chunks
    assert [row for row in news.test if row["date"] < "2026"] == fewer.test


def test_the_same_bytes_everywhere() -> None:
    made = make_months(3, "2026-01", 2, 400)
    assert (
        fingerprint_records([*made.chunks, *made.paraphrases, *made.validation, *made.test, *made.dev])[:16]
        == "fe21d0f4d805cf8c"
    )


def test_new_words() -> None:
    assert new_words(["The cat sat.", "A dog"], ["the dog ran", "A cow"]) == 2 / 5
    with pytest.raises(ValueError, match="no words"):
        new_words(["a"], [""])


def test_all_that_is_wrong_is_said_at_once() -> None:
    with pytest.raises(ArgumentError) as caught:
        make_months(1, "2026-13", 25)
    assert len(caught.value.problems) == 2
    assert "write 2026-01" in caught.value.problems[0]
    assert "give 1 to 24" in caught.value.problems[1]
    with pytest.raises(ArgumentError, match="so give 1200"):
        make_months(1, "2026-01", 6, 600)
    with pytest.raises(ArgumentError, match="so give 1206"):
        make_months(1, "2026-01", 6, 1207)


def test_more_names_than_there_are() -> None:
    assert len(set(companies(random.Random(0), 300, "public"))) == 300
    with pytest.raises(CorpusError, match="no 400 different names of one sort; ask for fewer events or months"):
        companies(random.Random(0), 400, "public")  # 30 by 24, and half of them are of the other realm
