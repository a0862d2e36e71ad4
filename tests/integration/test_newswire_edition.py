"""A fresh edition from the command line to a score: what `kinject corpus newswire` prints is what runs."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import pytest
from helpers.local_tasks import ROOT, evaluate, prompts
from lm_eval.tasks import TaskManager

import lm_eval_kinject.models.rag_hf  # noqa: F401
from lm_eval_kinject import cli
from lm_eval_kinject.corpus import load_corpus


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    """The options of the printed lm_eval command, after a small edition was written into ``fresh news``."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KINJECT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(
        sys, "argv", ["kinject", "corpus", "newswire", "--seed", "7", "--events", "300", "--out", "fresh news"]
    )
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert not stop.value.code
    name, *words = shlex.split(capsys.readouterr().out.splitlines()[-1])
    assert name == "lm_eval"
    return {option.removeprefix("--"): value for option, value in zip(words[::2], words[1::2], strict=True)}


def test_the_printed_command_scores_the_fresh_edition(command: dict[str, str]) -> None:
    assert command == {
        "model": "rag-hf",
        "model_args": "retriever=minilm,k=3",
        "include_path": "fresh news",
        "tasks": "newswire_7_cloze",
    }
    arguments = {"retriever": "bm25", "k": 3}
    tasks = ["newswire_7", "newswire_7_cloze", "current_events_cloze"]
    paths = [str(ROOT / "tasks"), command["include_path"]]
    manager = TaskManager(include_defaults=False, include_path=paths)
    result = evaluate(command["model"], arguments, tasks, manager, limit=12, num_fewshot=1)

    corpus = load_corpus("fresh news/corpus")
    assert len(corpus) == 300
    for task in tasks[:2]:
        figures = result["config"]["kinject"]["tasks"][task]
        assert figures["corpus"] == corpus.fingerprint
        assert figures["recall@3"] >= 0.75
        assert result["n-samples"][task]["original"] == 2 * round(455 * 300 / 2465)
        for sample, prompt in zip(result["samples"][task], prompts(result, task), strict=True):
            assert sample["doc"]["source_chunk"] in corpus.by_id
            assert prompt.count("Answer:") == 2
    assert result["results"]["newswire_7_cloze"]["acc,none"] > 0.5  # read, not guessed: 12 questions, the reader
    # The bundled task beside it, in the same process, keeps its own rows.
    assert result["n-samples"]["current_events_cloze"]["original"] == 910


def test_its_tasks_are_the_bundled_ones_but_for_names(command: dict[str, str]) -> None:
    bundled, ours = ROOT / "tasks" / "current_events", Path(command["include_path"])
    changed = {
        "_common_yaml": ("_common_yaml", {"    corpus: current_events": "    corpus: corpus"}),
        "dataset.py": ("dataset.py", {}),
        "current_events.yaml": ("newswire_7.yaml", {"task: current_events": "task: newswire_7"}),
        "current_events_cloze.yaml": (
            "newswire_7_cloze.yaml",
            {"task: current_events_cloze": "task: newswire_7_cloze"},
        ),
        "_generate_yaml": ("_generate_yaml", {}),
        "current_events_gen.yaml": ("newswire_7_gen.yaml", {"task: current_events_gen": "task: newswire_7_gen"}),
    }
    assert {f.name for f in ours.iterdir() if f.is_file()} == {name for name, _ in changed.values()}
    for theirs, (name, lines) in changed.items():
        expected = [lines.get(line, line) for line in (bundled / theirs).read_text().splitlines()]
        # The version is the edition's: 1, whichever is bundled.
        expected = ["  version: 1.0" if line.startswith("  version: ") else line for line in expected]
        assert (ours / name).read_text().splitlines() == expected
        assert set(lines) <= set((bundled / theirs).read_text().splitlines())


def test_edition_2_asks_questions_that_take_two_chunks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KINJECT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(
        sys,
        "argv",
        ["kinject", "corpus", "newswire", "--edition", "2", "--seed", "7", "--events", "300", "--out", "news"],
    )
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert not stop.value.code
    said = capsys.readouterr().out.splitlines()
    assert said[1] == "and 24 questions that take two chunks"
    assert said[-1].endswith("--include_path news --tasks newswire2_7_cloze,newswire2_7_multihop_cloze")

    tasks = ["newswire2_7", "newswire2_7_cloze", "newswire2_7_multihop", "newswire2_7_multihop_cloze"]
    tasks.append("newswire2_7_multihop_gen")
    manager = TaskManager(include_defaults=False, include_path="news")
    result = evaluate("rag-hf", {"retriever": "bm25", "k": 3}, tasks, manager, limit=6, num_fewshot=1)
    corpus = load_corpus("news/corpus")
    assert len(corpus) == 300 + 24 + 10 + 24
    for task in tasks:
        assert result["config"]["kinject"]["tasks"][task]["corpus"] == corpus.fingerprint
        assert result["versions"][task] == 2.0
        assert result["n-samples"][task]["original"] == (24 if "multihop" in task else 110)
    for sample in result["samples"]["newswire2_7_multihop_cloze"]:
        followed, event = sample["doc"]["source_chunks"]
        assert sample["doc"]["source_chunk"] == followed
        assert followed == f"{event}-next"
        assert {followed, event} <= set(corpus.by_id)
        assert sample["arguments"][0][2]["kinject"]["gold"] == [followed, event]


def test_an_edition_that_is_not_there_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["kinject", "corpus", "newswire", "--edition", "3", "--out", str(tmp_path / "no")])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code
    assert "there is no edition 3 of the newswire; name one of 1, 2" in capsys.readouterr().err
    assert not (tmp_path / "no").exists()
