"""Verifying: flags worked out by hand from scripted answers; and which questions stand in the end."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers.writer_server import WriterServer

from lm_eval_kinject.errors import ArgumentError, CorpusError
from lm_eval_kinject.questions.asking import Endpoint
from lm_eval_kinject.questions.folder import QuestionSet, fingerprint_question
from lm_eval_kinject.questions.ledger import Asker
from lm_eval_kinject.questions.verify import expected_requests, settled, verify_questions

CHOICES = ["Abe Ash", "Bea Birk", "Cal Cole", "Dot Dunn"]


@pytest.fixture
def there(tmp_path: Path) -> QuestionSet:
    """Six questions q0 to q5 on one chunk; the right option is at place n % 4."""
    file = tmp_path / "news.jsonl"
    file.write_text(json.dumps({"id": "c0", "title": "News", "text": "Cal Cole opened the bridge."}))
    there = QuestionSet.begin(tmp_path / "set", str(file))
    rows = [
        {"id": f"q{n}", "question": f"Number {n}?", "choices": CHOICES, "answer": n % 4, "source_chunk": "c0"}
        for n in range(6)
    ]
    there.write("questions.jsonl", rows)
    return there


def judged(there: QuestionSet, script: Callable[[str, str, int], str], **more: Any) -> dict[str, Any]:
    with WriterServer(script=script) as server, there.locked() as ledger:
        verify_questions(there, Asker(Endpoint(server.url, first_wait=0.001), ledger), lambda _: None, **more)
        seen = [message["content"] for body in server.seen for message in body["messages"][1:]]
    assert all("News\nCal Cole opened" in text for text in seen if text.startswith("Passage:"))
    return {row["id"]: row for row in there.read("verdicts.jsonl")}


def letter_of(user: str, option: str) -> str:
    return next(line[0] for line in user.splitlines() if line[1:] == f". {option}")


def test_flags(there: QuestionSet) -> None:
    """With the passage each question gets another kind of answer; without, q0 is known and the rest is guessed as A."""

    def script(system: str, user: str, seed: int) -> str:
        number = int(user.partition("Number ")[2][0])
        right = letter_of(user, CHOICES[number % 4])
        if system.startswith("You are asked"):
            return json.dumps({"right": [right if number == 0 else "A"]})
        kinds = {0: [right], 1: [right.lower() + ")"], 2: [], 3: [right, "A"], 4: ["B"]}
        return json.dumps({"right": kinds[number]}) if number in kinds else "I cannot say."

    found = judged(there, script)
    assert {name: row["flags"] for name, row in found.items()} == {
        "q0": ["known"],
        "q1": [],
        "q2": ["unanswerable"],
        "q3": ["several right"],
        "q4": ["wrong by the passage"],
        "q5": ["not verified"],
    }
    assert found["q0"]["without_passage"] == [0, 0, 0]
    # A is the option at the place by which the options were turned.
    assert found["q1"]["without_passage"] == [0, 1, 2]
    assert found["q3"]["with_passage"] == [0, 3]
    assert found["q5"]["with_passage"] is None
    done = json.loads((there.folder / "set.json").read_text())["stages"]["verify"]
    assert (done["sound"], done["spent"]["paid"]) == (1, 6 * 4 + 1)  # one reply couldn't be read, and was asked again


def test_who_always_says_one_letter_knows_nothing(there: QuestionSet) -> None:
    def script(system: str, user: str, seed: int) -> str:
        number = int(user.partition("Number ")[2][0])
        with_passage = system.startswith("You are shown")
        return json.dumps({"right": [letter_of(user, CHOICES[number % 4]) if with_passage else "A"]})

    found = judged(there, script, tries=4)
    assert all(row["flags"] == [] and row["without_passage"] == [0, 1, 2, 3] for row in found.values())
    with pytest.raises(ArgumentError, match="take 1 to 4"):
        judged(there, script, tries=5)


def test_the_estimate(there: QuestionSet) -> None:
    assert len(expected_requests(there, there.questions(), 3, 1)) == 24


def decision(row: dict[str, Any], action: str, reviewer: str = "ann", **more: Any) -> dict[str, Any]:
    return {"id": row["id"], "of": fingerprint_question(row), "reviewer": reviewer, "action": action, **more}


def test_what_stands_after_verdicts_and_people(there: QuestionSet) -> None:
    rows = there.questions()
    verdicts = [{"id": row["id"], "of": fingerprint_question(row), "flags": ["known"]} for row in rows[:3]]
    verdicts.append({"id": "q3", "of": "other words", "flags": ["known"]})
    there.write("verdicts.jsonl", verdicts)
    new = {"question": "Who opened the bridge?", "choices": CHOICES[::-1], "answer": 1}
    reviews = [
        decision(rows[1], "reject"),
        decision(rows[1], "accept"),  # ann has thought better of it
        decision(rows[2], "edit", **new),
        decision(rows[4], "accept"),
        decision(rows[4], "reject", reviewer="bob", reason="dull"),
        {**decision(rows[5], "reject"), "of": "other words"},
    ]
    (there.folder / "reviews.jsonl").write_text("".join(json.dumps(one) + "\n" for one in reviews))
    found = settled(there)
    assert [row["id"] for row in found.rows] == ["q1", "q2", "q3", "q5"]
    assert {key: found.rows[1][key] for key in new} == new
    assert found.rows[1]["source_chunk"] == "c0"
    assert found.dropped == {"known": 1, "rejected by a reviewer": 1}
    assert (found.unverified, found.edited) == (2, 1)


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ({"id": "q0"}, "needs the strings"),
        ({"id": "q0", "of": "x", "action": "like"}, "neither accept, edit nor reject"),
        ({"id": "q0", "of": "x", "action": "edit", "question": "?", "choices": ["a"], "answer": 0}, "four `choices`"),
    ],
)
def test_decisions_that_cannot_be_read(there: QuestionSet, line: dict[str, Any], problem: str) -> None:
    (there.folder / "reviews.jsonl").write_text(json.dumps(line) + "\n")
    with pytest.raises(CorpusError, match=f"line 1: .*{problem}"):
        settled(there)
