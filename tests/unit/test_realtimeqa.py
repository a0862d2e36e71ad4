"""RealTimeQA: layouts, rows set aside, and builds that end in the same bytes however often they were stopped."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from lm_eval_kinject.corpus import Chunking, load_corpus
from lm_eval_kinject.corpus.days import Window
from lm_eval_kinject.corpus.marks import AnswerMarks
from lm_eval_kinject.corpus.sources import realtimeqa_build
from lm_eval_kinject.corpus.sources.realtimeqa import SetAside, Week, find_weeks, read_articles, read_questions
from lm_eval_kinject.corpus.sources.realtimeqa_build import build_live
from lm_eval_kinject.corpus.sources.realtimeqa_fetch import fetch_weeks
from lm_eval_kinject.errors import ArgumentError, CorpusError
from lm_eval_kinject.provenance import fingerprint_folder
from lm_eval_kinject.records import Question

WHOLE = Window()


def lines(path: Path, *rows: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows), encoding="utf-8")
    return path


def asked(number: int, **more: Any) -> dict[str, Any]:
    row = {
        "question_id": f"q{number}",
        "question_date": "2031/01/09",
        "question_sentence": f"Which ferry sank near harbour number{number}?",
        "choices": ["Alder", f"Birch{number}", "Cedar", "Dogwood"],
        "answer": ["1"],
        "evidence": "It was <a href='x'>the Birch</a>.",
        "new_field": {"x": 1},
    }
    return {**row, **more}


def article(number: int) -> dict[str, Any]:
    own = " ".join(f"word{number}x{i}" for i in range(40))
    text = (
        f"The ferry Birch{number} sank near harbour number{number} today. {own}.\n\nSign up for our newsletter today."
    )
    return {"url": f"https://n/{number}", "title": f"T{number}", "text": text, "publish_date": "2031/1/9"}


@pytest.fixture
def upstream(tmp_path: Path) -> Path:
    """Three weeks in two years, the first of which covers two, and files that aren't read."""
    root = tmp_path / "clone"
    names = ("2030/20301220-20301227", "2031/20310103", "2031/20310110")
    for week, name in enumerate(names):
        numbers = range(week * 3, week * 3 + 3)
        lines(root / "past" / f"{name}_qa.jsonl", *(asked(n) for n in numbers))
        found = ({"question_id": f"q{n}", "search_result": [article(n), article(0)]} for n in numbers)
        lines(root / "past" / f"{name}_gcs.jsonl", *found)
    lines(root / "past/2031/20310110_qa_nota.jsonl", asked(7))
    lines(root / "past/2031/20310110_dpr.jsonl", {"search_result": [article(99)]})
    return root


def test_weeks_of_all_layouts_in_order(upstream: Path) -> None:
    weeks = find_weeks(upstream)
    assert [(w.name, w.day) for w in weeks] == [
        ("20301220-20301227", "2030-12-27"),
        ("20310103", "2031-01-03"),
        ("20310110", "2031-01-10"),
    ]
    assert [len(w.files) for w in weeks] == [2, 2, 2]
    assert [w.name for w in find_weeks(upstream, Window.of("2030-12-25", "2031-01-03"))] == [w.name for w in weeks[:2]]
    with pytest.raises(CorpusError, match=r"no week in 2032-01-01 to 2032-12-31; its weeks end on 2030-12-27 to 2031"):
        find_weeks(upstream, Window.of("2032", "2032"))


def test_windows() -> None:
    assert Window.of("2024-02", "2024-2") == Window("2024-02-01", "2024-02-29")
    assert Window.of(None, "2023") == Window("", "2023-12-31")
    assert "2023-12-31" in Window.of(None, "2023")
    assert "2024-01-01" not in Window.of(None, "2023")
    with pytest.raises(ArgumentError) as caught:
        Window.of("2023-13", "2023-02-30")
    assert len(caught.value.problems) == 2
    with pytest.raises(ArgumentError, match="swap them"):
        Window.of("2024", "2023")


def test_what_cant_be_used_is_named_by_file_and_line(tmp_path: Path) -> None:
    good = [asked(0), asked(1, answer=2), asked(2, answer="3", question_id=None), asked(3, choices=[1, 2, 3, 4])]
    bad = [
        "{broken",
        "[1]",
        asked(4, choices=["a", "b", "c"]),
        asked(5, choices=["a", "a", "b", "c"]),
        asked(6, answer=[]),
        asked(7, answer=["0", "1"]),
        asked(8, answer=["9"]),
        asked(9, question_sentence=None),
    ]
    file = lines(tmp_path / "2031" / "20310110_qa.jsonl", *good, *bad)
    file.write_bytes(file.read_bytes() + b'\xff{"a": 1}\n')
    aside = SetAside()
    read = list(read_questions(Week("20310110", "2031-01-10", (file,)), aside))
    assert [(q.id, q.answer) for q in read] == [("q0", 1), ("q1", 2), ("20310110_2", 3), ("q3", 1)]
    assert read[3].choices == ("1", "2", "3", "4")
    assert read[0].meta["evidence"] == "It was the Birch."
    assert aside.counts == {"questions_malformed": 4, "questions_options": 2, "questions_answers": 3}
    assert [row.partition(": ")[0] for row in aside.rows] == [f"2031/20310110_qa.jsonl line {n}" for n in range(5, 14)]
    assert aside.rows[2].endswith("3 options; four different ones are asked for")
    assert aside.rows[4].endswith("0 answers; one is asked for")


def test_articles_read_before_are_duplicates(upstream: Path) -> None:
    week = find_weeks(upstream)[1]
    aside = SetAside()
    first = list(read_articles(week, aside))
    assert [d.title for d in first] == ["T3", "T0", "T4", "T5"]
    assert aside.counts == {"questions": 3, "articles": 6, "duplicates": 2}
    assert list(read_articles(week, SetAside(), {d.id for d in first})) == []


def test_a_build(upstream: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    built = build_live(upstream, out, WHOLE)
    assert built.counts["furniture_register"] == 9
    assert {k: built.counts[k] for k in ("weeks", "articles_kept", "chunks", "questions", "questions_marked")} == {
        "weeks": 3, "articles_kept": 9, "chunks": 9, "questions": 9, "questions_marked": 9,
    }  # fmt: skip
    corpus = load_corpus(out / "corpus")
    rows = pq.read_table(out / "data" / "test.parquet").to_pylist()
    for number, row in enumerate(rows):
        chunk = corpus.by_id[row["source_chunk"]]
        assert chunk.text.startswith(f"The ferry Birch{number} sank")
        assert "newsletter" not in chunk.text
        assert (chunk.title, chunk.date, chunk.meta["url"]) == (f"T{number}", "2031-01-09", f"https://n/{number}")
        assert row["answer_chunks"] == [row["source_chunk"]]
    assert build_live(upstream, out, WHOLE).already
    with pytest.raises(CorpusError, match="made from other files"):
        build_live(upstream, out, WHOLE, chunking=Chunking(20))


def test_a_build_stopped_anywhere_goes_on_to_the_same_bytes(
    upstream: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build_live(upstream, tmp_path / "whole", WHOLE)
    writes = 0
    stop_at = 0
    for name in ("atomic_write", "write_json"):
        write = getattr(realtimeqa_build, name)

        def stopping(*args: Any, write: Any = write, **kwargs: Any) -> Any:
            nonlocal writes
            writes += 1
            if writes == stop_at:
                raise KeyboardInterrupt
            return write(*args, **kwargs)

        monkeypatch.setattr(realtimeqa_build, name, stopping)
    stopped = 0
    out = tmp_path / "stopped"
    for stop_at in range(1, 40):  # noqa: B007
        writes = 0
        try:
            build_live(upstream, out, WHOLE)
        except KeyboardInterrupt:
            stopped += 1
        else:
            break
    # Each attempt gets one write further, or two where a finished week isn't written again.
    assert stopped > 4
    assert fingerprint_folder(out) == fingerprint_folder(tmp_path / "whole")
    assert not (tmp_path / ".stopped.building").exists()


def test_marks_ask_for_the_questions_words_near_the_answer() -> None:
    def question(sentence: str, answer: str) -> Question:
        return Question("q", sentence, ("x", answer), 1)

    questions = [question("Which minister resigned over the Danish budget?", "the Ann Lee"), question("Is it?", "Yes")]
    marks = AnswerMarks(questions)
    far = "word " * 60
    marks.look("far", f"The minister's resignation over a budget. {far} Ann Lee.")
    marks.look("part", "Ann Leeds, minister, resigned over a Danish budget.")
    marks.look("good", "Ann Lee announced her resignation as minister. Yes.")
    marks.look("best", "The Danish budget: minister Ann Lee resigns.")
    assert marks.marks() == [("best", "good"), ()]


def test_the_task_reads_what_metadata_names(upstream: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from helpers.local_tasks import ROOT
    from lm_eval.tasks import TaskManager

    monkeypatch.setenv("KINJECT_CACHE", str(tmp_path / "cache"))
    names = ["current_events_live", "current_events_live_cloze"]

    def loaded(**said: Any) -> Iterator[Any]:
        manager = TaskManager(include_defaults=False, include_path=str(ROOT / "tasks"), metadata=said)
        return iter(manager.load(names)["tasks"].values())

    for task in loaded(source=str(upstream), **{"from": "2031", "to": "2031-01-05"}):
        assert [doc["id"] for doc in task.eval_docs] == ["q3", "q4", "q5"]
        corpus = load_corpus(task.config.metadata["kinject"]["corpus"])
        assert {doc["source_chunk"] for doc in task.eval_docs} <= set(corpus.by_id)
    folder = build_live(upstream, tmp_path / "out", WHOLE).folder
    assert [len(task.eval_docs) for task in loaded(folder=str(folder))] == [9, 9]
    for wrong in ({}, {"folder": str(tmp_path)}, {"folder": str(folder), "source": "x"}):
        with pytest.raises(ArgumentError, match="kinject corpus realtimeqa"):
            next(loaded(**wrong))


def test_weeks_of_a_pinned_commit_are_fetched(upstream: Path, tmp_path: Path) -> None:
    def git(*step: str) -> str:
        named = ["-c", "user.name=n", "-c", "user.email=e@x"]
        return subprocess.run(["git", *named, *step], cwd=upstream, check=True, capture_output=True, text=True).stdout

    lines(upstream / "scripts" / "big.jsonl", {"x": 1})
    for step in (("init", "-q"), ("add", "."), ("commit", "-q", "-m", "m")):
        git(*step)
    commit = git("rev-parse", "HEAD").strip()
    address = f"{upstream.as_uri()}@{commit}"
    folder = fetch_weeks(address, Window.of("2031", "2031"), tmp_path / "fetched")
    found = sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())
    assert found == [f"past/2031/{week}_{kind}.jsonl" for week in ("20310103", "20310110") for kind in ("gcs", "qa")]
    for file in found:
        assert (folder / file).read_bytes() == (upstream / file).read_bytes()
    git("rm", "-rq", "past")
    assert fetch_weeks(address, Window.of("2031", "2031"), tmp_path / "fetched") == folder  # nothing is fetched again
    assert [p.name for p in (tmp_path / "fetched").iterdir()] == [folder.name]
    with pytest.raises(CorpusError, match="with all 40 digits"):
        fetch_weeks(upstream.as_uri() + "@main", WHOLE, tmp_path / "fetched")
    with pytest.raises(CorpusError, match="can't be fetched"):
        fetch_weeks(f"{(tmp_path / 'none').as_uri()}@{commit}", WHOLE, tmp_path / "fetched")
    assert [p.name for p in (tmp_path / "fetched").iterdir()] == [folder.name]
