"""Dated news from the command line to lm_eval: its questions by month."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from lm_eval.tasks import TaskManager

import lm_eval_kinject.models.rag_hf  # noqa: F401
from lm_eval_kinject import cli
from lm_eval_kinject.corpus import load_corpus
from lm_eval_kinject.errors import ArgumentError

TASK = "newswire_7_2026_01_to_2026_03_cloze"


def kinject(*words: str) -> int:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(sys, "argv", ["kinject", *words])
        with pytest.raises(SystemExit) as stop:
            cli.main()
    return int(stop.value.code or 0)


@pytest.fixture(scope="module")
def news(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("months") / "news"
    said = ["--seed", "7", "--months", "3", "--from", "2026-01", "--events", "600", "-o", str(folder)]
    assert kinject("corpus", "newswire", *said) == 0
    return folder


def task_of(news: Path, window: dict[str, str]):
    manager = TaskManager(include_defaults=False, include_path=str(news), metadata=window)
    return manager.load([TASK])["tasks"][TASK]


def test_the_corpus_is_dated(news: Path) -> None:
    corpus = load_corpus(news / "corpus")
    assert len(corpus) == 600
    assert {chunk.date[:7] for chunk in corpus.chunks if chunk.date} == {"2026-01", "2026-02", "2026-03"}
    assert all(chunk.date for chunk in corpus.chunks)
    card = (news / "corpus" / "README.md").read_text()
    assert (
        "news of 600 events, made by `kinject corpus newswire --seed 7 --events 600 --months 3 --from 2026-01`" in card
    )


def test_a_window_of_its_questions_is_asked(news: Path) -> None:
    everything = task_of(news, {})
    assert len(everything.eval_docs) == 3 * 200
    some = task_of(news, {"from": "2026-02", "to": "2026-02-14"})
    days = [doc["date"] for doc in some.eval_docs]
    assert days == [day for day in (doc["date"] for doc in everything.eval_docs) if "2026-02" <= day <= "2026-02-14"]
    assert days
    assert {doc["date"][:7] for doc in some.fewshot_docs()} == {"2026-02"}
    with pytest.raises(ArgumentError, match="no questions of 2027-01-01 to"):
        task_of(news, {"from": "2027"})


def test_months_and_their_first_belong_together(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert kinject("corpus", "newswire", "--months", "3", "--edition", "2", "-o", str(tmp_path / "x")) == 1
    said = capsys.readouterr().err
    assert "--months and --from belong together" in said
    assert "--edition 2 has no months" in said
    assert not (tmp_path / "x").exists()
