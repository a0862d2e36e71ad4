"""People's decisions: what is kept and refused, what survives crashes and company, and how far reviewers agree."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
from pathlib import Path
from typing import Any

import pytest

from lm_eval_kinject import cli
from lm_eval_kinject.errors import ArgumentError, CorpusError
from lm_eval_kinject.questions.export import Settings, export_set
from lm_eval_kinject.questions.folder import QuestionSet, fingerprint_question
from lm_eval_kinject.questions.reviews import agreements, check_reviewer, decide, decisions, tally
from lm_eval_kinject.questions.verify import settled

CHOICES = ["Abe Ash", "Bea Birk", "Cal Cole", "Dot Dunn"]
TOWNS = "Arden Brill Corby Dover Eston Filey Goole Hythe".split()


@pytest.fixture
def there(tmp_path: Path) -> QuestionSet:
    """Eight questions q0 to q7, a chunk each; Cal Cole is always right."""
    file = tmp_path / "news.jsonl"
    chunks = [{"id": f"c{n}", "text": f"Cal Cole opened the bridge at {town}."} for n, town in enumerate(TOWNS)]
    file.write_text("".join(json.dumps(row) + "\n" for row in chunks))
    there = QuestionSet.begin(tmp_path / "set", str(file))
    rows = [
        {
            "id": f"q{n}",
            "question": f"Who opened the bridge at {town}?",
            "choices": CHOICES,
            "answer": 2,
            "source_chunk": f"c{n}",
            "evidence": "",
        }
        for n, town in enumerate(TOWNS)
    ]
    there.write("questions.jsonl", rows)
    return there


def lines(there: QuestionSet) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (there.folder / "reviews.jsonl").read_text().splitlines()]


def edit(question: str, answer: int = 2, choices: list[str] = CHOICES, **more: str) -> dict[str, Any]:
    return {"question": question, "choices": choices, "answer": answer, **more}


def test_a_decision_is_a_line_and_the_last_one_counts(there: QuestionSet) -> None:
    of = fingerprint_question(there.questions()[0])
    decide(there, " ann ", "q0", "accept")
    decide(there, "ann", "q0", "accept", of=of)  # a key that was pressed twice
    decide(there, "ann", "q0", "reject", reason="too\n dull ")
    decide(there, "bob", "q0", "edit", edit=edit(" Who  opened Arden's bridge? "))
    decide(there, "ann", "q0", "accept")
    head = {"id": "q0", "of": of}
    assert lines(there) == [
        {**head, "reviewer": "ann", "action": "accept", "reason": ""},
        {**head, "reviewer": "ann", "action": "reject", "reason": "too dull"},
        {**head, "reviewer": "bob", "action": "edit", "reason": "", **edit("Who opened Arden's bridge?")},
        {**head, "reviewer": "ann", "action": "accept", "reason": ""},
    ]
    assert [(one["reviewer"], one["action"]) for one in decisions(there)["q0"]] == [("bob", "edit"), ("ann", "accept")]
    assert tally(there) == {"ann": {"accept": 1}, "bob": {"edit": 1}}


@pytest.mark.parametrize(
    ("made", "problem"),
    [
        (edit("Who opened the bridge at Arden?"), "nothing was changed"),
        (edit("Who opened Arden's bridge?", answer=1), "answer not in the text"),
        (edit("Which bridge does the passage speak of?"), "speaks of the passage"),
        (edit("Did Cal Cole open it?"), "answer in the question"),
        (edit("Who opened the bridge at Brill?"), "near-duplicate of q1"),
        (edit("Who?", choices=CHOICES[:3]), "not four options"),
        (edit("Who?", choices=[*CHOICES[:3], " "]), "an option is empty"),
        (edit("Who?", answer=4), "no right option"),
        (edit("Who?", answer=True), "no right option"),
        (edit("Who?", answer="2"), "no right option"),  # type: ignore[arg-type]
        ({}, "no question"),
        (None, "no question"),
    ],
)
def test_an_edit_has_to_pass_the_checks_of_a_written_question(
    there: QuestionSet, made: dict[str, Any] | None, problem: str
) -> None:
    with pytest.raises(ArgumentError, match=problem):
        decide(there, "ann", "q0", "edit", edit=made)
    assert not (there.folder / "reviews.jsonl").exists()


def test_an_edit_may_quote_other_evidence_and_give_way_to_what_was_rejected(there: QuestionSet) -> None:
    turned = edit("Who opened the bridge at Arden?", 0, ["bridge Cole", *CHOICES[:3]])
    with pytest.raises(ArgumentError, match="answer not in the text"):
        decide(there, "ann", "q0", "edit", edit=turned)
    decide(there, "ann", "q0", "edit", edit={**turned, "evidence": "Cal Cole opened the bridge"})
    decide(there, "ann", "q1", "reject", reason="dull")
    decide(there, "ann", "q2", "edit", edit=edit("Who opened the bridge at Brill?"))  # q1 isn't there any more
    found = {row["id"]: row for row in settled(there).rows}
    assert found["q0"]["evidence"] == "Cal Cole opened the bridge"
    assert found["q2"]["question"] == "Who opened the bridge at Brill?"
    assert "q1" not in found


def test_what_is_wrong_with_a_decision_is_said_at_once(there: QuestionSet) -> None:
    with pytest.raises(ArgumentError) as caught:
        decide(there, "ann", "q0", "reject", of="other words")
    assert len(caught.value.problems) == 2
    assert "written anew since you saw it" in caught.value.problems[0]
    assert "needs a reason" in caught.value.problems[1]
    with pytest.raises(ArgumentError, match="no question 'q9' any more"):
        decide(there, "ann", "q9", "accept")
    with pytest.raises(ArgumentError, match="action 'like': take one of accept, edit, reject"):
        decide(there, "ann", "q0", "like")
    for name in ("", " \t", "a\nb", "x" * 81):
        with pytest.raises(ArgumentError, match="give a name"):
            check_reviewer(name)


@pytest.mark.parametrize("cut", [1, 40, -2])
def test_a_line_that_a_crash_cut_off_is_gone_and_nothing_else(there: QuestionSet, cut: int) -> None:
    decide(there, "ann", "q0", "accept")
    file = there.folder / "reviews.jsonl"
    first = file.read_bytes()
    file.write_bytes(first + first.replace(b"q0", b"q1")[:cut])
    assert set(decisions(there)) == {"q0"}
    decide(there, "bob", "q2", "accept")
    assert [(row["id"], row["reviewer"]) for row in lines(there)] == [("q0", "ann"), ("q2", "bob")]
    assert file.read_bytes().startswith(first)


def test_a_whole_line_without_an_end_counts_and_is_ended(there: QuestionSet) -> None:
    decide(there, "ann", "q0", "accept")
    file = there.folder / "reviews.jsonl"
    file.write_bytes(file.read_bytes().rstrip(b"\n"))
    assert set(decisions(there)) == {"q0"}
    decide(there, "bob", "q1", "accept")
    assert [row["id"] for row in lines(there)] == ["q0", "q1"]


def test_a_damaged_line_in_the_middle_is_named(there: QuestionSet) -> None:
    decide(there, "ann", "q0", "accept")
    file = there.folder / "reviews.jsonl"
    file.write_bytes(b"{half\n" + file.read_bytes())
    with pytest.raises(CorpusError, match="line 1, is no JSON object"):
        decisions(there)


def _decide_all(folder: str, name: str) -> None:
    there = QuestionSet.open(Path(folder))
    for round_ in ("first", "second"):
        for row in there.questions():
            decide(there, name, row["id"], "reject", reason=f"{round_} {'x' * 3000}")


def test_two_at_once_lose_nothing_to_each_other(there: QuestionSet) -> None:
    context = multiprocessing.get_context("forkserver")
    people = [context.Process(target=_decide_all, args=(str(there.folder), name)) for name in ("ann", "bob")]
    for one in people:
        one.start()
    for one in people:
        one.join(60)
    assert [one.exitcode for one in people] == [0, 0]
    told = [(row["reviewer"], row["id"], row["reason"].split()[0]) for row in lines(there)]
    for name in ("ann", "bob"):
        mine = [one[1:] for one in told if one[0] == name]
        assert mine == [(f"q{n}", round_) for round_ in ("first", "second") for n in range(8)]


# Agreement ------------------------------------------------------------------------------------------------------------


def review(there: QuestionSet, name: str, actions: str) -> None:
    """a, e, r or - for each of the questions."""
    for row, one in zip(there.questions(), actions, strict=True):
        if one == "e":
            decide(there, name, row["id"], "edit", edit=edit(f"Which person opened {row['question'][15:]}"))
        elif one != "-":
            decide(there, name, row["id"], "accept" if one == "a" else "reject", reason="dull")


def test_agreement_by_hand(there: QuestionSet, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    """Six questions that both saw, four alike: p_o = 4/6, p_e = (3*3 + 1*1 + 2*2)/36 = 14/36, kappa = 10/22.

    Kept or rejected: five alike; p_e = (4*4 + 2*2)/36 = 20/36, kappa = (30 - 20)/16.
    """
    review(there, "bob", "aaaerr-a")
    review(there, "ann", "aaearra-")
    (pair,) = agreements(there)
    assert (pair.first, pair.second) == ("ann", "bob")
    assert pair.said == (
        ("accept", "accept"), ("accept", "accept"), ("edit", "accept"), ("accept", "edit"), ("reject", "reject"),
        ("reject", "reject"),
    )  # fmt: skip
    assert (pair.same, pair.apart) == (4, ("q2", "q3"))
    assert pair.kappa() == pytest.approx(10 / 22)
    assert pair.kappa(stands=True) == 1.0
    assert pair.share().estimate == pytest.approx(4 / 6)
    monkeypatch.setattr("sys.argv", ["kinject", "questions", "agreement", str(there.folder)])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 0
    told = capsys.readouterr().out
    assert "ann: 7 decided: accept 4, edit 1, reject 2" in told
    assert "ann edit, bob accept: 1" in told
    assert "0.455" in told


def test_agreement_that_says_nothing_and_decisions_on_other_words(there: QuestionSet) -> None:
    review(there, "ann", "aa------")
    review(there, "bob", "aa------")
    (pair,) = agreements(there)
    assert math.isnan(pair.kappa())
    rows = there.questions()
    there.write("questions.jsonl", [{**rows[0], "question": "Who opened Arden's new bridge?"}, *rows[1:]])
    assert [len(one.said) for one in agreements(there)] == [1]
    assert tally(there) == {"ann": {"accept": 1}, "bob": {"accept": 1}}


def test_agreement_needs_two(there: QuestionSet, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    review(there, "ann", "aaaaaaaa")
    monkeypatch.setattr("sys.argv", ["kinject", "questions", "agreement", str(there.folder)])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 1
    assert "no question that two people decided on (1 reviewed it)" in capsys.readouterr().err


# What stands ----------------------------------------------------------------------------------------------------------


def test_three_ways_to_count_decisions(there: QuestionSet) -> None:
    """q0: two accept; q1: one of two rejects; q2: one of three; q3: one of one; q4: edited; q6: flagged, nobody's."""
    review(there, "ann", "aaare---")
    review(there, "bob", "ara-----")
    review(there, "cat", "--r-----")
    flagged = there.questions()[6]
    there.write("verdicts.jsonl", [{"id": "q6", "of": fingerprint_question(flagged), "flags": ["known"]}])
    found = {name: settled(there, name) for name in ("all", "accepted", "majority")}  # type: ignore[arg-type]
    assert {name: [row["id"] for row in one.rows] for name, one in found.items()} == {
        "all": ["q0", "q4", "q5", "q7"],
        "accepted": ["q0", "q4"],
        "majority": ["q0", "q2", "q4"],
    }
    assert found["all"].dropped == {"rejected by a reviewer": 3, "known": 1}
    assert found["accepted"].dropped == {"rejected by a reviewer": 3, "not reviewed": 3}
    assert found["majority"].dropped == {"rejected by reviewers": 1, "no majority of reviewers": 1, "not reviewed": 3}
    assert [(one.approved, one.edited, one.unverified) for one in found.values()] == [(2, 1, 2), (2, 1, 0), (3, 1, 0)]


def test_ways_to_count_that_there_are_not() -> None:
    with pytest.raises(ArgumentError, match="reviewed 'some': take one of all, accepted, majority"):
        Settings("x", reviewed="some")  # type: ignore[arg-type]


def test_a_set_of_which_reviewers_leave_nothing(there: QuestionSet, tmp_path: Path) -> None:
    decide(there, "ann", "q0", "reject", reason="dull")
    with pytest.raises(
        CorpusError, match=r"not reviewed 7, rejected by a reviewer 1.*reviews.jsonl, or take --reviewed"
    ):
        export_set(there, tmp_path / "out", Settings("x"))


def test_edits_that_other_programs_wrote_are_checked(there: QuestionSet) -> None:
    rows = there.questions()
    made = [
        (0, edit("Who opened Arden's bridge?", 0)),
        (1, edit("Who opened the bridge at Corby?")),  # q2 asks so
        (3, edit("Who was it that opened Dover's bridge?")),
        (4, edit("Who was it that opened Dover's bridge?")),
    ]
    heads = [{"id": row["id"], "of": fingerprint_question(row), "reviewer": "x"} for row in rows]
    told = [{**heads[n], "action": "edit", **one} for n, one in made]
    told.append({**heads[2], "action": "accept"})
    (there.folder / "reviews.jsonl").write_text("".join(json.dumps(one) + "\n" for one in told))
    found = settled(there, "accepted")
    assert [row["id"] for row in found.rows] == ["q2", "q3"]
    assert found.dropped == {
        "edited, but answer not in the text": 1,
        "edited, but near-duplicate": 2,  # q1 asks what q2 asks, and q4 what q3 asks by now
        "not reviewed": 3,
    }
    assert (found.edited, found.approved) == (1, 2)


def test_nothing_that_isnt_the_reviews_is_written(there: QuestionSet) -> None:
    before = {path.name: path.read_bytes() for path in there.folder.iterdir()}
    decide(there, "ann", "q0", "accept")
    after = {path.name: path.read_bytes() for path in there.folder.iterdir() if not path.name.startswith(".")}
    assert {name: data for name, data in after.items() if name != "reviews.jsonl"} == before
    assert os.stat(there.folder / "reviews.jsonl").st_size > 0
