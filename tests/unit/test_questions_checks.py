"""What a machine sees of a question: each check by a case that it must find and one that it must let pass."""

from __future__ import annotations

from typing import Any

import pytest

from lm_eval_kinject.questions.checks import (
    Doubles,
    facts_of,
    is_in,
    lost_or_new,
    problems_of,
    repeated,
    same_question,
    similarity,
    words_of,
)

PASSAGE = (
    "The Marble Bridge at Arden was opened by Abe Ash on 3 May 2042. It cost 1,250,000 crowns, and twelve ships passed "
    "below it on the first day."
)


def candidate(question: str = "Who opened the Marble Bridge at Arden?", right: str = "Abe Ash", **more: Any) -> Any:
    options = [{"text": right, "right": True}]
    options += [{"text": text, "right": False} for text in ("Bea Birk", "Cal Cole", "Dot Dunn")]
    return {"question": question, "options": options, "evidence": PASSAGE.partition(". ")[0] + ".", **more}


def options(*texts: str, right: tuple[int, ...] = (0,)) -> list[dict[str, Any]]:
    return [{"text": text, "right": n in right} for n, text in enumerate(texts)]


@pytest.mark.parametrize(
    ("given", "problems"),
    [
        (candidate(), []),
        ({}, ["no question"]),
        (candidate(question=" "), ["no question"]),
        (candidate(options=options("Abe Ash", "Bea Birk", "Cal Cole")), ["not four options"]),
        (candidate(options=options("Abe Ash", "Bea Birk", "", "Dot Dunn")), ["an option is empty"]),
        (candidate(options=options("Abe Ash", "Bea Birk", "bea birk.", "Dot Dunn")), ["an option twice"]),
        (candidate(options=options("Abe Ash", "B B", "C C", "D D", right=())), ["no right option"]),
        (candidate(options=options("Abe Ash", "B B", "C C", "D D", right=(0, 2))), ["several right options"]),
        (candidate(right="Eli East"), ["answer not in the text"]),
        (candidate(question="According to the passage, who opened it?"), ["speaks of the passage"]),
        (candidate(question="Who, by this text's account, opened it?"), []),  # a wording that no rule knows
        (candidate(question="Who is named in the text as the opener?"), ["speaks of the passage"]),
        (candidate(question="What did Abe Ash open?"), ["answer in the question"]),
        (candidate(right="on 3 May 2042. It cost 1,250,000 crowns"), ["length gives the answer away"]),
        (
            candidate(options=options("Abe Ash", "Bea Birk", "Cal Cole", "None of the above")),
            ["all or none of the options as an option"],
        ),
        # Not in these words in a row, but all of them in the sentence that is quoted.
        (candidate(question="Who opened what?", right="Abe Ash, Arden"), []),
        (candidate(right="Abe Ash, Arden", evidence="Abe Ash of Arden did it."), ["answer not in the text"]),
    ],
)
def test_problems_of_a_candidate(given: Any, problems: list[str]) -> None:
    assert problems_of(given, PASSAGE) == problems


def test_words_stand_in_a_text_whatever_their_dress() -> None:
    assert words_of("The “Storm’s” 1,250 ships, 3.50!") == ["the", "storm", "1250", "ships", "3.50"]
    assert is_in("the abe ash", PASSAGE)  # an article before it is no part of an answer
    assert is_in("1250000 crowns", PASSAGE)
    assert not is_in("be Ash", PASSAGE)
    assert not is_in("", PASSAGE)
    assert is_in("東京", "首都は東京です。")


@pytest.mark.parametrize(
    ("one", "other", "answers", "same"),
    [
        ("Who won the Marble Open?", "Who won the Marble Open?", ("A", "B"), True),
        ("Who won the Marble Open?", "Who won the Ledger Open?", ("A", "A"), False),
        ("Who won the Marble Open?", "Who was the winner of the Marble Open?", ("Abe Ash", "abe ash"), True),  # 2 of 4
        ("Who won the Marble Open?", "Who was the winner of the Marble Open?", ("Abe Ash", "Bea"), False),
        ("In 2041, who won?", "In 2042, who won?", ("A", "A"), False),
    ],
)
def test_two_questions_are_one(one: str, other: str, answers: tuple[str, str], same: bool) -> None:
    assert same_question(one, other, answers) is same
    doubles = Doubles()
    doubles.add("q", one, answers[0])
    assert doubles.find(other, answers[1]) == ("q" if same else None)


def test_similarity_counts_content_words() -> None:
    assert similarity("Who won the race in Arden?", "In Arden, who won?") == 2 / 3
    assert similarity("the", "of") == 1.0


def test_facts() -> None:
    found = facts_of("On 2042-05-03 the Marble Bridge cost 1,250.50 crowns; twenty-two ships of Abe's came in Sept.")
    assert found.numbers == {"3", "2042", "1250.5", "22"}
    assert found.dates == {"may", "september"}
    assert found.names == {"marble", "bridge", "abe"}
    assert facts_of("Three may come. May Day is one day.").numbers == {"3"}
    assert facts_of("1. First\n2. Second").numbers == frozenset()


@pytest.mark.parametrize(
    ("wording", "problems"),
    [
        ("Abe Ash opened the Marble Bridge at Arden on May 3, 2042; it cost 1250000 crowns. 12 ships passed it.", []),
        ("Abe Ash opened the Marble Bridge at Arden on May 3, 2042; twelve ships passed.", ["a number is lost"]),
        (PASSAGE.replace("May", "June"), ["a date is lost", "a date is new"]),
        (PASSAGE.replace("Abe Ash", "Bea Birk"), ["a name is lost", "a name is new"]),
        (PASSAGE.replace("twelve", "thirteen"), ["a number is lost", "a number is new"]),
    ],
)
def test_facts_that_a_wording_loses_or_invents(wording: str, problems: list[str]) -> None:
    assert lost_or_new(PASSAGE, wording) == problems


def test_a_part_may_lose_facts_but_not_invent_any() -> None:
    assert lost_or_new(PASSAGE, "Abe Ash was there.", whole=False) == []
    assert lost_or_new(PASSAGE, "In 1999 Abe Ash was there.", whole=False) == ["a number is new"]


def test_a_wording_said_before() -> None:
    assert repeated("a b c d", ["x y", "a b c d"], 0.9)
    assert not repeated("a b c d", ["a b c e"], 0.5)  # 2 of 4 pairs of words
    assert repeated("a b c d", ["a b c e"], 0.49)
