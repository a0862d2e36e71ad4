"""A reviewer's desk without a browser: where keys lead, what is told of a question, what is marked in its passage."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from helpers.review_story import PEOPLE, reviewable

from lm_eval_kinject.errors import ArgumentError, CorpusError
from lm_eval_kinject.pages.desk import FILTERS, KEYS, REASONS, Desk, passage_html
from lm_eval_kinject.questions.folder import QuestionSet, fingerprint_question
from lm_eval_kinject.questions.reviews import decide


@pytest.fixture
def there(tmp_path: Path) -> QuestionSet:
    return reviewable(tmp_path)


class Seen:
    """A page, as somebody at it sees and answers it."""

    def __init__(self, desk: Desk) -> None:
        self.desk = desk
        self.html = desk.act({"do": "go", "at": "", "of": "", "show": ""})

    def __call__(self, do: str, **more: Any) -> str:
        self.html = self.desk.act({"do": do, "at": self.at, "of": self.data("of"), "show": self.show, **more})
        return f"{self.at} {self.show}"

    def data(self, name: str) -> str:
        found = re.search(rf'class="kj desk"[^>]* data-{name}="([^"]*)"', self.html)
        assert found
        return found[1]

    @property
    def at(self) -> str:
        return self.data("at")

    @property
    def show(self) -> str:
        return self.data("show")

    @property
    def said(self) -> str:
        found = re.search(r'<div class="said" role="status">(.*?)</div><div class="columns">', self.html, re.DOTALL)
        assert found
        return re.sub(r"<[^>]+>", " ", found[1]).strip()


def counts(html: str) -> dict[str, int]:
    found = re.findall(r'data-to="(\w+)"[^>]*>[^<]*<small>(\d+)', html)
    return {name: int(count) for name, count in found}


def test_keys_lead_through_the_set(there: QuestionSet) -> None:
    seen = Seen(Desk(there, "ann"))
    assert counts(seen.html) == {"all": 8, "unreviewed": 8, "flagged": 2, "disagreed": 0, "rejected": 0}
    assert seen("back") == "q0 all"
    assert seen.said == "This is the first one."
    assert [seen("accept"), seen.said] == ["q1 all", "Accepted."]
    assert [seen("reject", reason="dull"), seen.said] == ["q2 all", "Rejected."]
    assert seen("filter", way=1) == "q2 unreviewed"
    assert seen("back") == "q2 unreviewed"  # q0 and q1 are decided
    assert seen("next") == "q3 unreviewed"
    assert seen("accept") == "q4 unreviewed"
    assert seen("filter", way=1) == "q4 flagged"
    assert seen("back") == "q1 flagged"
    assert seen("filter", way=1) == "q1 disagreed"
    assert seen.said == "No question is under “Disagreements”."
    assert seen("filter", to="rejected") == "q1 rejected"
    assert seen("unreviewed") == "q2 rejected"
    assert seen("filter", way=1) == "q2 all"
    assert seen("accept") == "q3 all"
    assert seen("unreviewed") == "q4 all"
    assert [seen("accept") for _ in "456"] == ["q5 all", "q6 all", "q7 all"]
    assert seen("unreviewed") == "q7 all"
    assert seen.said == "This is the last unreviewed question."
    assert seen("accept") == "q7 all"
    assert seen.said == "Accepted. This was the last one."
    seen("unreviewed")
    assert seen.said == "You have decided on all questions."


def test_a_decision_is_on_the_words_that_were_seen(there: QuestionSet) -> None:
    seen = Seen(Desk(there, "ann"))
    rows = there.questions()
    there.write("questions.jsonl", [{**rows[0], "question": "Who opened a bridge of Arden?"}, *rows[1:]])
    assert seen("accept") == "q0 all"
    assert "written anew since you saw it" in seen.said
    assert "Who opened a bridge of Arden?" in seen.html
    assert seen("accept") == "q1 all"
    there.write("questions.jsonl", rows[4:])
    assert seen("accept") == "q4 all"
    assert "no question" in seen.said


def test_a_refused_edit_stays_in_the_form(there: QuestionSet) -> None:
    seen = Seen(Desk(there, "ann"))
    assert '<form class="panel edit" hidden' in seen.html
    edit = {"question": 'Which "article"?', "choices": ["<b>", *PEOPLE[1:]], "answer": 1, "evidence": "none"}
    assert seen("edit", edit=edit) == "q0 all"
    assert "speaks of the passage" in seen.said
    assert "answer not in the text" in seen.said
    assert '<form class="panel edit"  aria' in seen.html
    assert "Which &quot;article&quot;?</textarea>" in seen.html
    assert 'value="&lt;b&gt;"' in seen.html
    assert seen("edit", edit={"question": "Who?", "choices": "none", "answer": {}}) == "q0 all"  # no form sends this
    assert "not four options" in seen.said


def test_accepting_what_one_has_edited_leaves_the_edit(there: QuestionSet) -> None:
    seen = Seen(Desk(there, "ann"))
    row = there.questions()[0]
    new = {"question": "Which person opened Arden's bridge?", "choices": row["choices"], "answer": row["answer"]}
    assert [seen("edit", edit=new), seen.said] == ["q1 all", "Edit kept."]
    assert seen("back") == "q0 all"
    assert '<h2 tabindex="-1" class="asked">Which person opened Arden&#x27;s bridge?</h2>' in seen.html
    assert [seen("accept"), seen.said] == ["q1 all", "Your edit stands."]
    assert [one["action"] for one in there.read("reviews.jsonl")] == ["edit"]
    seen("back")
    assert [seen("accept", original=True), seen.said] == ["q1 all", "Accepted."]
    assert [one["action"] for one in there.read("reviews.jsonl")] == ["edit", "accept"]
    seen("back")
    assert "As it was written" not in seen.html


def test_a_file_that_was_damaged_meanwhile_is_named(there: QuestionSet) -> None:
    seen = Seen(Desk(there, "ann"))
    seen("accept")
    (there.folder / "reviews.jsonl").write_text("{}\n")
    html = seen.desk.act({"do": "accept", "at": "q1", "of": seen.data("of"), "show": "all"})
    assert "line 1: needs the strings `id` and `of`; mend or remove it." in html


def test_others_are_told_of_when_one_has_decided(there: QuestionSet) -> None:
    decide(there, "bob", "q0", "reject", reason="BOB'S REASON")
    decide(there, "cat", "q1", "accept")
    seen = Seen(Desk(there, "ann"))
    assert "1 other decision, told when you have made yours" in seen.html
    assert "BOB" not in seen.html
    assert counts(seen.html)["disagreed"] == 0
    seen("accept")
    seen("accept")
    assert counts(seen.html)["disagreed"] == 1
    assert seen("filter", to="disagreed") == "q0 disagreed"
    assert "bob: <b>reject</b>: BOB&#x27;S REASON" in seen.html


def test_what_verify_and_check_found(there: QuestionSet) -> None:
    desk = Desk(there, "ann")
    seen = Seen(desk)
    assert "The set is being looked at for cues" in seen.html
    double = {**there.questions()[0], "id": "q0b"}
    there.write("questions.jsonl", [*there.questions(), double])
    desk.look()
    seen("go")
    assert "<p>No flag.</p>" in seen.html
    assert "None of the set’s faults is in this question." in seen.html
    assert "<li>the right option stands in its chunk</li>" in seen.html
    seen("next")
    assert '<li class="bad">known<small>: answered right without the passage' in seen.html
    assert "<dt>without it</dt><dd>A, A, A</dd>" in seen.html
    seen.html = desk.act({"do": "go", "at": "q0b", "of": "", "show": "all"})
    assert '<li class="bad">asks what another test question asks</li>' in seen.html
    assert "No model was asked this question as it stands." in seen.html


def test_what_cannot_be_shown_is_said_before_a_page_is(there: QuestionSet) -> None:
    with pytest.raises(ArgumentError, match="give a name"):
        Desk(there, " ")
    (there.folder / "reviews.jsonl").write_text('{"id": 1}\n')
    with pytest.raises(CorpusError, match="line 1: needs the strings"):
        Desk(there, "ann")


def test_messages_that_no_page_sends(there: QuestionSet) -> None:
    desk = Desk(there, "ann")
    for told in ({}, {"do": 3, "at": None}, {"do": "accept"}, {"do": "filter", "to": "x", "show": "y", "turn": "z"}):
        assert 'class="kj desk"' in desk.act(told)
    assert not (there.folder / "reviews.jsonl").exists()
    assert [len(FILTERS), len(REASONS), len(KEYS)] == [5, 6, 8]


@pytest.mark.parametrize(
    ("answer", "evidence", "shown", "noted"),
    [
        ("abe ASH", "", "A <mark>Abe &lt;Ash</mark> paid 1,200.", False),
        ("1,200", "paid 1,200", 'A Abe &lt;Ash <span class="evidence">paid </span><mark>1,200</mark>.', False),
        ("Ash Abe", "Abe <Ash paid", None, True),
        ("Bea", "", "A Abe &lt;Ash paid 1,200.", True),
        ("sh", "", "A Abe &lt;Ash paid 1,200.", True),  # whole words only
    ],
)
def test_the_answer_is_marked(answer: str, evidence: str, shown: str | None, noted: bool) -> None:
    html, note = passage_html("A Abe <Ash paid 1,200.", answer, evidence)
    if shown is None:
        assert re.findall("<mark>(.*?)</mark>", html) == ["Abe", "Ash"]
        assert "quoted evidence" in note
    else:
        assert html == shown
    assert bool(note) is noted


def test_a_page_says_the_fingerprint_of_what_it_shows(there: QuestionSet) -> None:
    seen = Seen(Desk(there, "ann"))
    assert seen.data("of") == fingerprint_question(there.questions()[0])
