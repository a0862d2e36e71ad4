"""From a corpus to an export, with reviewers on the way; and the same, killed once at each of its seams.

`benchmarks/questions_killed.py` kills it more often.
"""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
from helpers.question_story import SEAMS, killed_story, opinion

from lm_eval_kinject.questions.folder import QuestionSet
from lm_eval_kinject.questions.reviews import agreements, tally


def test_the_story_killed_at_each_seam(tmp_path: Path) -> None:
    told = killed_story(tmp_path, SEAMS, chunks=8)
    assert told["kills"] == 6
    assert told["requests"] >= 8 * 2 + 16 * 4 + 8  # written and ranked, asked four times each, paraphrased

    there = QuestionSet.open(tmp_path / "killed" / "set")
    rows = there.questions()
    assert tally(there) == {"ann": {"accept": 8, "edit": 4, "reject": 4}, "bob": {"accept": 13, "reject": 3}}
    (pair,) = agreements(there)
    assert (pair.same, len(pair.said)) == (8, 16)
    kept = [
        (row, [opinion(name, place, row) for name in ("ann", "bob")])
        for place, row in enumerate(rows)
        if place % 4 != 1 and place % 5 != 4
    ]
    wanted = {row["id"]: both[0].get("edit", row)["question"] for row, both in kept}
    out = tmp_path / "killed" / "out"
    tables = [pq.read_table(file).to_pylist() for file in sorted((out / "data").glob("*.parquet"))]
    assert {row["id"]: row["question"] for table in tables for row in table} == wanted
    assert sum(question.startswith("Name the word") for question in wanted.values()) == 3
    card = (out / "README.md").read_text().splitlines()
    assert (
        "- reviewed by 2 people: 21 acceptances, 4 edits, 7 rejections; exported: only what a reviewer accepted or "
        "edited, and none rejected" in card
    )
    assert any(line.startswith("- the two decided alike on 8 of the 16 questions that both saw") for line in card)
    assert "- left out afterwards: rejected by a reviewer 6; rewritten by people: 3" in card
    assert "- No person has looked at these questions." not in card
    assert "ann" not in {word.strip(":,.") for line in card for word in line.split()}
    lines = (there.folder / "reviews.jsonl").read_text().splitlines()
    assert len({(row["id"], row["reviewer"]) for row in map(json.loads, lines)}) == len(lines) == 32
