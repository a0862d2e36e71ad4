"""Corpora of Wikipedia: what is asked for and how, what becomes of wikitext, stops, pinned revisions, dumps."""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers.mediawiki import Article, Wiki, serve

from lm_eval_kinject.cli import main
from lm_eval_kinject.corpus import load_corpus
from lm_eval_kinject.corpus.sources.wikipedia import (
    Api,
    Selection,
    bundled_selections,
    chosen_selection,
    make_wikipedia,
    read_revisions,
    read_selection,
)
from lm_eval_kinject.corpus.sources.wikipedia.spec import month_of
from lm_eval_kinject.corpus.sources.wikipedia.wikitext import sections
from lm_eval_kinject.errors import ArgumentError, CorpusError
from lm_eval_kinject.plugin import tasks_dir

# Wikitext -------------------------------------------------------------------------------------------------------------

STORM = """{{Short description|A storm}}
{{Infobox weather event
| name = Storm Ida | winds = {{convert|100|mph}} | image = [[File:Ida.jpg|thumb]]
}}
[[File:Track.png|thumb|left|The ''track'' of [[Ida]], see {{cite web|url=http://x.org}}]]
'''Storm Ida''' ({{IPAc-en|aɪ}}; born {{circa|2020}}) was a [[Tropical cyclone|storm]] that hit
[[New Orleans]] with winds of {{convert|100|mph|km/h}}.<ref>{{cite news |url=https://news.org/a}}</ref> It was
called {{lang|fr|la ''grande''}} in France&nbsp;and cost $5&ndash;6 billion,<ref name="x" /> see
[https://a.org the report] and https://b.org/c.

== History ==
=== Landfall ===
* It came ashore on {{nowrap|29 August}}.
* People left <!-- how many? -->the town.

{| class="wikitable"
! Year !! Deaths
|-
| 2021 || 107
|}
1 2 3 4 5 6 7

== See also ==
* [[Storm Eve]]
=== Others ===
* [[Storm Adam]]

== Aftermath ==
The name was retired.<math>x^2</math>

== References ==
{{reflist}}
[[Category:Storms]]
[[de:Sturm Ida]]
{{Navbox storms}}
"""


def test_wikitext_becomes_clean_sections() -> None:
    lead = (
        "Storm Ida (born c. 2020) was a storm that hit\nNew Orleans with winds of 100 mph. It was\ncalled la grande "
        "in France and cost $5–6 billion, see\nthe report and."
    )
    assert sections(STORM) == [
        ("", lead),
        ("Landfall", "It came ashore on 29 August.\nPeople left the town."),
        ("Aftermath", "The name was retired."),
    ]


@pytest.mark.parametrize(
    "text", ["{| open\n| 1 || 2\nText of it goes on.", "[[File:x.jpg|thumb|''a", "{{Infobox|a=[[b]]"]
)
def test_markup_that_is_never_closed_leaves_no_rubbish(text: str) -> None:
    left = " ".join(prose for _, prose in sections(f"The lead stands here.\n\n{text}"))
    assert left.startswith("The lead stands here.")
    for mark in ("{|", "||", "]]", "{{", "''"):
        assert mark not in left


def test_half_a_surrogate_pair_is_no_character() -> None:
    ((_, prose),) = sections("It said &#xD800; and more.")
    assert prose.encode("utf-8").startswith(b"It said ")
    assert prose.endswith(" and more.")


# Selections -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "month"),
    [
        ("Category:August 2023 events in the United States", "2023-08"),
        ("2023 November in sports", "2023-11"),
        ("Category:2023 events in the United States by month", None),
        ("March of the Penguins", None),
    ],
)
def test_months_of_categories(name: str, month: str | None) -> None:
    assert month_of(name) == month


def test_every_subject_of_kinject_mmlu_has_its_selection() -> None:
    files = sorted(tasks_dir().glob("kinject_mmlu/kinject_mmlu_*.yaml"))
    named = {
        yaml.safe_load(f.read_text(encoding="utf-8"))["metadata"]["kinject"]["corpus"]
        for f in files
        if "include" in f.read_text()
    }
    assert named == {
        "wikipedia:anatomy", "wikipedia:astronomy", "wikipedia:college_biology", "wikipedia:college_chemistry",
        "wikipedia:prehistory",
    }  # fmt: skip
    assert {name.partition(":")[2] for name in named} | {"current_events"} == set(bundled_selections())
    for name in bundled_selections():
        assert read_selection(name)[1].title


def test_all_that_is_wrong_with_a_selection_is_said_at_once() -> None:
    with pytest.raises(ArgumentError) as caught:
        chosen_selection("x", ("Events",), {"since": "2023-13", "depth": 99})
    assert [p.partition(":")[0] for p in caught.value.problems] == ["depth", "since"]
    with pytest.raises(CorpusError, match="Did you mean anatomy"):
        read_selection("anatomie")


# Asking ---------------------------------------------------------------------------------------------------------------


def wiki() -> Wiki:
    prose = "{} is told of here in a sentence that has more than fifteen words, so that nothing of it is dropped."

    def article(pageid: int, title: str, **more: Any) -> Article:
        return Article(pageid, title, [(pageid * 10, f"{{{{Infobox}}}}\n{prose.format(title)}")], **more)

    return Wiki(
        [
            article(1, "Ida"), article(2, "Adam"), article(3, "Eve"), article(4, "Storm", disambiguation=True),
            article(5, "Fire"), article(6, "Old"), article(7, "Hidden", hidden=True), article(8, "Loose"),
            article(9, "Ida (storm)", redirect="Ida"), article(10, "Deep"),
        ],
        categories={
            "Events by month": ["Category:August 2023 events", "Category:July 2023 events", "Loose", "Category:Lists"],
            "August 2023 events": ["Ida", "Adam", "Storm", "Hidden", "Talk:Ida", "Category:Fires of that month"],
            "Fires of that month": ["Fire", "Ida", "Category:August 2023 events", "Category:Deeper"],
            "Deeper": ["Deep"],
            "July 2023 events": ["Old"],
            "Lists": [],
        },
        links={"Outline of storms": ["Ida (storm)", "Eve", "Gone", "Bad["]},
    )  # fmt: skip


WINDOW = Selection(title="August", categories=("category: Events by month",), depth=2, since="2023-08", until="2023-08")
SUBJECT = Selection(title="Storms", pages=("Adam",), hubs=("Outline of storms", "No such hub"))


def made(place: Path, selection: Selection, address: str, waits: list[float] | None = None, **more: Any) -> Any:
    waits = [] if waits is None else waits
    api = Api("me@example.org", address=address, pause=0.25, sleep=waits.append)
    return make_wikipedia("w", selection, place, api, **more)


def test_a_window_of_months(tmp_path: Path) -> None:
    with serve(wiki()) as address:
        built = made(tmp_path / "out", WINDOW, address)
    corpus = load_corpus(tmp_path / "out")
    assert [(c.title, c.date) for c in corpus.chunks] == [("Ida", "2023-08"), ("Adam", "2023-08"), ("Fire", "2023-08")]
    assert built.counts == {
        "documents": 3, "cut": 0, "pages": 3, "sections": 3, "without_text": 0, "missing": 0, "disambiguations": 1,
        "hidden": 1,
    }  # fmt: skip
    chunk = corpus.by_id["1-0"]
    assert chunk.text == (
        "Ida is told of here in a sentence that has more than fifteen words, so that nothing of it is dropped."
    )
    assert chunk.meta == {
        "attribution": "Wikipedia contributors, “Ida”",
        "licence": "CC BY-SA 4.0",
        "revision": 10,
        "url": "https://wiki.example/wiki/Ida?oldid=10",
    }
    assert corpus.licence == "CC BY-SA 4.0"
    assert corpus.source == "Wikipedia, August"


def test_a_subjects_hubs_redirects_and_missing_pages(tmp_path: Path) -> None:
    with serve(wiki()) as address:
        built = made(tmp_path / "out", SUBJECT, address)
    assert [(c.id, c.date) for c in load_corpus(tmp_path / "out").chunks] == [
        ("1-0", None),
        ("2-0", None),
        ("3-0", None),
    ]
    assert built.counts["missing"] == 3  # a hub, Gone, and Bad[, which is no title


def test_trouble_is_waited_for_and_changes_nothing(tmp_path: Path) -> None:
    calm, rough = wiki(), wiki()
    lag = {"error": {"code": "maxlag", "info": "Waiting for a copy: 7 seconds lagged.", "lag": 7}}
    rough.faults = {
        0: (503, {"Retry-After": "7"}, "later"),
        2: (200, {"Retry-After": "5"}, lag),
        4: (429, {"Retry-After": "30"}, "too many"),
        5: (502, {}, "<html>"),
        7: (200, {}, "no JSON"),
        9: (200, {}, {"error": {"code": "ratelimited", "info": "slow down"}}),
    }
    waits: list[float] = []
    with serve(calm) as address:
        expected = made(tmp_path / "calm", WINDOW, address)
    with serve(rough) as address:
        built = made(tmp_path / "rough", WINDOW, address, waits)
    assert built.fingerprint == expected.fingerprint
    assert len(rough.asked) == len(calm.asked) + 6
    assert [wait for wait in waits if wait != 0.25] == [7, 5, 30, 2, 1, 5]  # the second in a row without a word: 2
    assert waits.count(0.25) == len(rough.asked) - 1
    (agent,) = rough.agents
    assert agent.startswith("lm-eval-kinject/")
    assert "(me@example.org)" in agent


def test_what_can_t_be_waited_for_is_said(tmp_path: Path) -> None:
    broken, busy, refusing = wiki(), wiki(), wiki()
    broken.faults = dict.fromkeys(range(20), (500, {}, "x"))
    busy.faults = {0: (429, {"Retry-After": "3600"}, "x")}
    refusing.faults = {0: (200, {}, {"error": {"code": "badvalue", "info": "Unrecognized value"}})}
    waits: list[float] = []
    with serve(broken) as address, pytest.raises(CorpusError, match=r"can't be reached \(HTTP 500, 8 times\)"):
        made(tmp_path / "a", WINDOW, address, waits)
    assert [wait for wait in waits if wait != 0.25] == [1, 2, 4, 8, 16, 32, 64, 128]
    with serve(busy) as address, pytest.raises(CorpusError, match=r"asks to wait 3600 s|wait for 3600 s"):
        made(tmp_path / "b", WINDOW, address)
    with serve(refusing) as address, pytest.raises(CorpusError, match="refuses the question: Unrecognized value"):
        made(tmp_path / "c", WINDOW, address)
    with pytest.raises(CorpusError, match="say whom to write to"):
        Api("me")


def test_a_stop_at_any_request_goes_on_without_asking_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = wiki()
    with serve(whole) as address:
        expected = made(tmp_path / "whole", WINDOW, address)
    total = len(whole.asked)
    assert total == 11  # 8 answers of categories, 3 of texts
    ask = Api._once
    for stop in range(0, total, 2):
        stopped = wiki()
        left = [stop]

        def once(self: Api, params: Any, left: list[int] = left) -> Any:
            if left[0] == 0:
                left[0] = -1
                raise KeyboardInterrupt
            left[0] -= 1
            return ask(self, params)

        with serve(stopped) as address:
            monkeypatch.setattr(Api, "_once", once)
            with pytest.raises(KeyboardInterrupt):
                made(tmp_path / f"out{stop}", WINDOW, address)
            monkeypatch.setattr(Api, "_once", ask)
            built = made(tmp_path / f"out{stop}", WINDOW, address)
        assert built.fingerprint == expected.fingerprint
        assert built.counts == expected.counts
        assert len(stopped.asked) <= total + 2  # the parts of one category, or of one batch, at most
        assert not (tmp_path / f"out{stop}.pages").exists()


def test_half_a_line_of_a_killed_run_is_fetched_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lm_eval_kinject.corpus.sources.wikipedia import make

    served = wiki()
    with serve(served) as address:
        monkeypatch.setattr(make, "build_corpus", lambda *args, **kwargs: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            made(tmp_path / "out", WINDOW, address)
        monkeypatch.undo()
        batches = tmp_path / "out.pages" / "batches.jsonl"
        batches.write_bytes(batches.read_bytes()[:-40])
        asked = len(served.asked)
        built = made(tmp_path / "out", WINDOW, address)
        assert built.chunks == 3
        assert {name for one in served.asked[asked:] for name in one} >= {"pageids"}
        assert not any("list" in one for one in served.asked[asked:])


def test_pinned_revisions_make_the_same_corpus_later(tmp_path: Path) -> None:
    then = wiki()
    with serve(then) as address:
        first = made(tmp_path / "then", WINDOW, address)
        assert made(tmp_path / "then", WINDOW, address).already
        with pytest.raises(CorpusError, match="holds"):
            made(tmp_path / "then", SUBJECT, address)
    now = copy.deepcopy(wiki())
    for article in now.articles:
        article.revisions.append((article.pageid * 10 + 1, "Everything is told in quite another way now. " * 5))
    now.categories["August 2023 events"].append("Eve")
    with serve(now) as address:
        today = made(tmp_path / "today", WINDOW, address)
        pinned = made(tmp_path / "again", WINDOW, address, revisions=read_revisions(tmp_path / "then"))
    assert today.fingerprint != first.fingerprint == pinned.fingerprint
    with serve(Wiki(now.articles[1:])) as address:  # the first article has been deleted since
        fewer = made(tmp_path / "fewer", WINDOW, address, revisions=read_revisions(tmp_path / "then"))
    assert (fewer.counts["missing"], fewer.chunks) == (1, 2)


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def kinject(*argv: str) -> tuple[str, str]:
        monkeypatch.setattr(sys, "argv", ["kinject", "corpus", "wikipedia", *argv])
        with pytest.raises(SystemExit):
            main()
        return capsys.readouterr()

    monkeypatch.setenv("KINJECT_CACHE", str(tmp_path))
    monkeypatch.delenv("KINJECT_CONTACT", raising=False)
    assert kinject()[0].split() == bundled_selections()
    assert "--contact" in kinject("anatomy")[1]
    assert "leave out --revisions" in kinject("anatomy", "--dump", "d.xml", "--revisions", "x")[1]
    window = ("august", "--category", "Events by month", "--depth", "2", "--from", "2023-08", "--to", "2023-08")
    with serve(wiki()) as address:
        out, _ = kinject(*window, "--contact", "me@example.org", "--site", address)
    assert "3 chunks" in out
    assert "3 pages" in out
    assert "corpus=wikipedia:august" in out
    assert [c.title for c in load_corpus("wikipedia:august").chunks] == ["Ida", "Adam", "Fire"]
    out, _ = kinject("all", "--dump", str(wiki().write_dump(tmp_path / "d.xml")), "--out", str(tmp_path / "all"))
    assert "8 chunks" in out


@pytest.mark.parametrize("name", ["pages-articles.xml", "pages-articles.xml.bz2"])
@pytest.mark.parametrize("selection", [WINDOW, SUBJECT])
def test_a_dump_gives_the_articles_that_the_api_does(tmp_path: Path, selection: Selection, name: str) -> None:
    served = wiki()
    served.articles = [article for article in served.articles if not article.hidden]
    with serve(served) as address:
        made(tmp_path / "api", selection, address)
    built = make_wikipedia("w", selection, tmp_path / "dump", served.write_dump(tmp_path / name))
    assert load_corpus(tmp_path / "dump").chunks == load_corpus(tmp_path / "api").chunks
    assert built.counts["redirects"] == 1
    assert built.counts["missing"] == (2 if selection is SUBJECT else 0)  # no source can link to what is no title


def test_all_of_a_dump_and_a_damaged_one(tmp_path: Path) -> None:
    path = wiki().write_dump(tmp_path / "d.xml")
    built = make_wikipedia("w", None, tmp_path / "all", path)
    assert (built.chunks, built.counts["redirects"], built.counts["disambiguations"]) == (8, 1, 1)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CorpusError, match=r"The dump d\.xml is damaged.*behind \d+ pages: fetch it again"):
        make_wikipedia("w", None, tmp_path / "torn", path)


def test_a_built_selection_is_found_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KINJECT_CACHE", str(tmp_path))
    with pytest.raises(CorpusError, match="run `kinject corpus wikipedia storms --contact"):
        load_corpus("wikipedia:storms")
    with serve(wiki()) as address:
        built = made(tmp_path / "corpora" / "wikipedia-storms", SUBJECT, address)
    corpus = load_corpus("wikipedia:storms")
    assert (corpus.name, corpus.fingerprint) == ("wikipedia-storms", built.fingerprint)
    assert corpus.revision is not None
