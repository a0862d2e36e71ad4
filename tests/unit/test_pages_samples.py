"""The data behind the page of samples: options, flips, chunks in prompts, filters."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from helpers.pages_story import EVIL, TASK, bits, sample, submission

from lm_eval_kinject.errors import ArgumentError
from lm_eval_kinject.pages.samples import Piece, Told, filters_for, kept, pieces, read_pairs, results_of, told_of
from lm_eval_kinject.pages.sheets import question_list, sheet
from lm_eval_kinject.pages.show import headline
from lm_eval_kinject.records import Chunk

CHUNKS = {"c0": Chunk("c0", "The gold chunk."), "c1": Chunk("c1", EVIL)}


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    return [
        submission(tmp_path, "base", k=1, right=bits("1100")),
        submission(tmp_path, "base", k=2, right=bits("1010")),
    ]


def test_two_results_question_by_question(files: list[Path]) -> None:
    pairs = read_pairs(files)
    assert [(pair.task, pair.doc_id, pair.question) for pair in pairs][:2] == [
        (TASK, 0, "Question 0?"),
        (TASK, 1, "Question 1?"),
    ]
    assert [pair.flip for pair in pairs] == ["", "lost", "gained", ""]
    first, second = pairs[0].samples
    assert (first.right, first.said, first.target, first.gold_missed, second.gold_missed) == (
        True,
        "right",
        "right",
        True,
        False,
    )
    # Two nats apart: e⁰ / (e⁰ + e⁻²).
    assert first.options[0].share == pytest.approx(1 / (1 + math.exp(-2)))
    assert [(one.chosen, one.target, one.score) for one in first.options] == [(True, True, -1.0), (False, False, -3.0)]
    assert [(hit.id, hit.rank, hit.score, hit.gold) for hit in second.hits] == [
        ("c1", 1, 8.0, False),
        ("c0", 2, 7.0, True),
    ]


def test_filters(files: list[Path]) -> None:
    pairs = read_pairs(files)
    found = {name: [pair.doc_id for pair in kept(pairs, name)] for name in filters_for(2)}
    assert found == {
        "all": [0, 1, 2, 3],
        "flips": [1, 2],
        "gained": [2],
        "lost": [1],
        "wrong": [1, 2, 3],
        "gold": [0, 1, 2, 3],
        "unscored": [],
    }
    assert [pair.doc_id for pair in kept(pairs, "all", TASK, " question 3")] == [3]
    assert kept(pairs, "all", "another") == []
    assert set(filters_for(2)) - set(filters_for(1)) == {"flips", "gained", "lost"}


def test_the_headline_counts_flips(files: list[Path]) -> None:
    said = headline(read_pairs(files), [told_of(file) for file in files])
    assert "50.0 %" in said
    # One question each way, of chunks 0 (lost) and 1 (gained): p is 1.
    assert "0.0 points" in said
    assert "p = 1 (" in said
    assert "1 right in the second only, 1 in the first only" in said


def test_what_could_not_be_scored_is_neither_right_nor_wrong(files: list[Path]) -> None:
    rows = [sample(doc, 1, True) for doc in range(4)]
    rows[2]["resps"][0] = [["nan", "False"]]
    next(files[0].parent.glob("samples_*")).write_text("".join(json.dumps(row) + "\n" for row in rows))
    pairs = read_pairs(files[:1])
    assert [pair.samples[0].right for pair in pairs] == [True, True, None, True]
    assert [pair.doc_id for pair in kept(pairs, "unscored")] == [2]
    options = pairs[2].samples[0].options
    assert [one.chosen for one in options] == [False, False]
    assert "not a number" in sheet(pairs[2], [Told("a", CHUNKS)])


def test_chunks_in_a_prompt(files: list[Path]) -> None:
    one = read_pairs(files)[0].samples[1]
    assert pieces(one, CHUNKS) == [
        Piece(EVIL, "c1"),
        Piece("\n\n"),
        Piece("The gold chunk.", "c0"),
        Piece("\n\nQuestion 0?\nAnswer:"),
    ]
    assert pieces(one, {}) == [Piece(one.prompt)]


def test_messages_are_shown_below_each_other(files: list[Path]) -> None:
    messages = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "The gold chunk.\n\nWho?"}]
    rows = [sample(doc, 1, True) for doc in range(4)]
    for row in rows:
        for arguments in row["arguments"].values():
            arguments["arg_0"] = [json.dumps(messages)]
            arguments["arg_2"]["kinject"] |= {"used": ["c0"]}
    next(files[0].parent.glob("samples_*")).write_text("".join(json.dumps(row) + "\n" for row in rows))
    one = read_pairs(files[:1])[0].samples[0]
    assert pieces(one, CHUNKS) == [
        Piece("system: Be short.\n\nuser: "),
        Piece("The gold chunk.", "c0"),
        Piece("\n\nWho?"),
    ]


def cut(files: list[Path], **changes: object) -> None:
    rows = [sample(doc, 1, True) for doc in range(4)]
    for row in rows:
        for arguments in row["arguments"].values():
            arguments["arg_0"] = "Title\nA chunk that goes\n\nQuestion?"
            arguments["arg_2"]["kinject"] |= {"used": ["c0"], **changes}
    next(files[0].parent.glob("samples_*")).write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.parametrize(("truncated", "marked"), [("c0", ["Title\nA chunk that goes"]), (None, [])])
def test_a_chunk_whose_tail_was_cut(files: list[Path], truncated: str | None, marked: list[str]) -> None:
    cut(files, truncated=truncated)
    chunk = Chunk("c0", "A chunk that goes on and on.", title="Title")
    one = read_pairs(files[:1])[0].samples[0]
    assert [piece.text for piece in pieces(one, {"c0": chunk}) if piece.chunk] == marked
    assert "".join(piece.text for piece in pieces(one, {"c0": chunk})) == one.prompt


def test_nothing_of_a_sample_is_html(files: list[Path]) -> None:
    pairs = read_pairs(files)
    page = sheet(pairs[0], [Told(EVIL, CHUNKS), Told("b", CHUNKS)]) + question_list(pairs, 0)
    assert "<script" not in page
    assert "<img" not in page
    assert '<mark class="chunk gold"><span class="label">c0, gold</span>The gold chunk.</mark>' in page
    assert page.count('aria-current="true"') == 1


def test_a_corpus_that_is_not_here_is_said(files: list[Path]) -> None:
    told = told_of(files[0])
    assert told.name == "me/base, minilm, K=1"
    # The bundled corpus of this name isn't the one with the fingerprint that the result makes up.
    assert "is not the one that was scored with" in told.lacking
    assert "1 of 1 chunks can’t be marked" in sheet(read_pairs(files)[0], [told, told])


def test_what_is_wrong_is_one_message(files: list[Path], tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="no such file or folder"):
        results_of(tmp_path / "nothing.json")
    samples = next(files[1].parent.glob("samples_*"))
    samples.write_text(samples.read_text().replace("Question 1?", "Something else?"))
    with pytest.raises(ArgumentError, match="document 1 is another question in the second result"):
        read_pairs(files)
    samples.write_text('{"doc_id": 0}\n')
    with pytest.raises(ArgumentError, match="aren't as lm_eval writes them"):
        read_pairs(files)
