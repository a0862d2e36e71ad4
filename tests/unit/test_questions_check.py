"""The check: each planted fault is found by its row; a fair benchmark has none, the bundled edition among these."""

from __future__ import annotations

import random
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lm_eval_kinject import cli
from lm_eval_kinject.corpus.sources.newswire.measure import co_occurrence, guessers
from lm_eval_kinject.errors import CorpusError
from lm_eval_kinject.questions.check import Finding, _overlaps, check_folder, check_tables
from lm_eval_kinject.stats import wilson

Tables = dict[str, list[dict[str, Any]]]


def word(rng: random.Random) -> str:
    return "".join(rng.choice("bdfgklmnprst") + rng.choice("aeiou") for _ in range(3))


@pytest.fixture
def fair() -> Tables:
    """Sixty questions on as many chunks and documents, and four examples; twelve winners in all."""
    rng = random.Random(5)
    winners = [word(rng) for _ in range(12)]
    chunks, rows = [], []
    for n in range(64):
        options = rng.sample([one for one in winners if one != winners[n % 12]], 3)
        options.insert(n // 12 % 4, winners[n % 12])
        names = [word(rng).capitalize() for _ in range(12)]
        text = (
            f"In {names[0]} the {names[1]} of {names[2]} was won by {winners[n % 12]} before {' and '.join(names[3:])}."
        )
        chunks.append({"id": f"c{n}", "text": text, "document_id": f"d{n}"})
        asked = f"Who won the {names[1]} of {names[2]} in {names[0]}?"
        row = {"id": f"q{n}", "question": asked, "choices": options, "answer": n // 12 % 4, "source_chunk": f"c{n}"}
        rows.append(row)
    held_out = [{"chunk": f"c{n}", "number": 2, "text": f"Second wording {n}: {word(rng)}."} for n in range(60)]
    paraphrases = [{"chunk": f"c{n}", "number": 1, "text": f"First wording {n}: {word(rng)}."} for n in range(60)]
    return {
        "test": rows[:60],
        "dev": rows[60:],
        "chunks": chunks,
        "corpus/paraphrases": paraphrases,
        "corpus/validation": held_out,
    }


def faults(tables: Tables) -> dict[str, Finding]:
    return {found.what: found for found in check_tables(tables) if found.fault}


def overlaps(tables: Tables) -> dict[str, Finding]:
    return {found.what: found for found in _overlaps(tables) if found.fault}


def test_a_fair_benchmark_has_no_fault(fair: Tables) -> None:
    assert faults(fair) == {}
    found = {one.what: one for one in check_tables(fair)}
    always = found["guessing always A"]
    assert (always.count, always.of, always.chance) == (24, 60, 0.25)  # two of five dozens: within 99.7 %
    assert (always.share.low, always.share.high) == pytest.approx(wilson(0.4, 60))  # a chunk a question
    assert found["the right option stands in its chunk"].count == 60
    # Who, won, and three names: the names are near, so three of four content words are.
    assert found["… near the question's words"].count == 60
    assert found["… near the question's words in another chunk"].count == 0
    assert found["a wrong option stands in its chunk"].count == 0


def test_a_right_option_that_is_longest_is_found(fair: Tables) -> None:
    for row in fair["test"]:
        row["choices"][row["answer"]] += " of old"
    found = faults(fair)
    assert found["guessing the longest option"].count == 60
    assert "guessing what a classifier learnt from option texts" in found


def test_one_place_for_all_answers_is_found(fair: Tables) -> None:
    for row in fair["test"]:
        right = row["choices"].pop(row["answer"])
        row["choices"].insert(2, right)
        row["answer"] = 2
    assert faults(fair)["guessing always C"].count == 60


@pytest.mark.parametrize(
    ("plant", "row"),
    [
        (lambda t: t["test"][1].update(question=t["test"][0]["question"]), "asks what another test question asks"),
        (
            lambda t: t["test"][1].update(question=t["dev"][0]["question"]),
            "asks what a few-shot or validation question asks",
        ),
        (
            lambda t: t["chunks"][60].update(document_id="d7"),
            "shares its document with few-shot examples or validation",
        ),
        (
            lambda t: t["chunks"].append({"id": "x", "text": "Again: " + t["chunks"][9]["text"], "document_id": "x"}),
            "its chunk is repeated by another chunk",
        ),
        (
            lambda t: t["corpus/paraphrases"].append(
                {"chunk": "c3", "number": 9, "text": f"Question: {t['test'][3]['question']} Answer: x."}
            ),
            "is asked in a chunk or a training text word by word",
        ),
        (
            lambda t: t["corpus/paraphrases"][0].update(text=t["corpus/validation"][5]["text"].upper()),
            "held-out paraphrases that are training texts",
        ),
    ],
)
def test_each_planted_overlap_is_found_and_nothing_else(fair: Tables, plant: Any, row: str) -> None:
    plant(fair)
    found = overlaps(fair)
    assert list(found) == [row]
    assert found[row].count == 1


def test_a_relative_clause_is_no_question(fair: Tables) -> None:
    asked = fair["test"][3]["question"].rstrip("?")
    fair["corpus/paraphrases"].append({"chunk": "c3", "number": 9, "text": f"It was somebody {asked}, they say."})
    assert overlaps(fair) == {}


def test_the_bundled_edition_is_as_the_log_says() -> None:
    """Figures by the code behind docs/log.md, "The newswire gives nothing away to guessers"."""
    found = {one.what: one for one in check_folder("current_events")}
    assert [one.what for one in found.values() if one.fault] == []
    data = Path(__file__).parents[2] / "tasks" / "current_events"
    rows = pq.read_table(data / "data/test.parquet").to_pylist()
    chunks = pq.read_table(data / "corpus/chunks.parquet").to_pylist()
    for name, share in guessers(rows, chunks).items():
        assert found[f"guessing {name}"].share.estimate == pytest.approx(share, abs=1e-12)
    other = found["guessing the one met most with the question's names in other chunks"]
    assert other.share.estimate == pytest.approx(co_occurrence(rows, chunks), abs=1e-12)


def test_the_command_prints_a_table_and_fails_on_a_fault(
    fair: Tables, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fair["test"][1]["question"] = fair["test"][0]["question"]
    for name, rows in fair.items():
        file = tmp_path / f"{name if '/' in name else 'corpus/chunks' if name == 'chunks' else 'data/' + name}.parquet"
        file.parent.mkdir(exist_ok=True)
        pq.write_table(pa.Table.from_pylist(rows), file)
    monkeypatch.setattr(sys, "argv", ["kinject", "questions", "check", str(tmp_path)])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 1
    out = capsys.readouterr().out
    assert "1 of 60" in out
    assert out.rstrip().endswith("1 fault")


def test_a_folder_without_questions(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="no questions to check"):
        check_folder(str(tmp_path))
