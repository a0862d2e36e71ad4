"""Open answers and citations, worked by hand."""

from __future__ import annotations

import pytest

from lm_eval_kinject.answers import (
    citation_scores,
    citations,
    exact_match,
    f1,
    in_text,
    normalise,
    process_results,
    short_answer,
    target,
)


@pytest.mark.parametrize(
    ("text", "short"),
    [
        (" East Dunmarrow\n", "East Dunmarrow"),
        ("\n\n \nEast Dunmarrow\n\nIt says so.", "East Dunmarrow"),
        ("Answer: East Dunmarrow", "East Dunmarrow"),
        ("\n\nThe final answer: East Dunmarrow [2].", "East Dunmarrow ."),
        ("Answer:\nEast Dunmarrow", "East Dunmarrow"),
        ("[1]\nEast Dunmarrow", "East Dunmarrow"),
        ("**Answer:** East Dunmarrow", "East Dunmarrow"),
        ("It is the answer: no", "It is the answer: no"),
        ("The answering machine: on", "The answering machine: on"),
        ("[Note] on [2042]", "[Note] on [2042]"),
        ("", ""),
        (" \n ", ""),
    ],
)
def test_the_short_answer(text, short):
    assert short_answer(text) == short


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("The  Clay Tablet.", "clay tablet"),
        ("An apple, a day", "apple day"),
        ("$691.4 million", "6914 million"),
        ("theatre", "theatre"),
        ("Anna-Lee", "annalee"),
        ("A", "a"),
        ("+", "+"),
        ("The A", "the a"),
        ("", ""),
    ],
)
def test_normal_form(text, normal):
    assert normalise(text) == normal


@pytest.mark.parametrize(
    ("answer", "gold", "exact", "score"),
    [
        ("the clay tablet.", "A clay tablet", 1.0, 1.0),
        ("a clay writing tablet", "clay tablet", 0.0, 0.8),  # precision 2/3, recall 1
        ("red red barn", "red barn", 0.0, 0.8),  # the second "red" isn't shared
        ("barn", "mill", 0.0, 0.0),
        ("", "A", 0.0, 0.0),
        ("a", "A", 1.0, 1.0),
        ("", "mill", 0.0, 0.0),
    ],
)
def test_exact_match_and_f1(answer, gold, exact, score):
    assert exact_match(answer, gold) == exact
    assert f1(answer, gold) == pytest.approx(score)


@pytest.mark.parametrize(
    ("text", "gold", "found"),
    [
        ("I think it was Ann Ash, the mayor.", "Ann Ash", 1.0),
        ("It is annual.", "Ann", 0.0),
        ("East\n\nDunmarrow", "East Dunmarrow", 1.0),
        ("East [2] Dunmarrow", "East Dunmarrow", 1.0),
        ("", "A", 0.0),
    ],
)
def test_in_text(text, gold, found):
    assert in_text(text, gold) == found


ROWS = [
    ({"choices": ["mill", "barn"], "answer": 1}, "barn"),
    ({"answer": "barn"}, "barn"),
    ({"answers": ["barn", "shed"]}, "barn"),
    ({"answers": "barn", "answer": 0, "choices": ["mill"]}, "barn"),
]


@pytest.mark.parametrize(("row", "right"), ROWS)
def test_rows_of_every_shape(row, right):
    assert target(row) == right
    assert process_results(row, ["\n\nThe barn [1].\n\nNot the mill."]) == {
        "exact_match": 1.0,
        "f1": 1.0,
        "answer_in_text": 1.0,
    }


def test_the_best_of_several_right_answers_counts():
    row = {"answers": ["old red barn", "shed"]}
    assert process_results(row, ["red shed\nold barn"]) == {
        "exact_match": 0.0,
        "f1": pytest.approx(2 / 3),  # of "shed": 2 * 1 / (2 + 1); of "old red barn": 2 * 1 / (2 + 3)
        "answer_in_text": 1.0,
    }
    assert process_results(row, [""]) == {"exact_match": 0.0, "f1": 0.0, "answer_in_text": 0.0}


@pytest.mark.parametrize(
    "row", [{}, {"answers": []}, {"answers": ["barn", " "]}, {"answer": 2, "choices": ["a", "b"]}, {"answer": True}]
)
def test_a_row_without_an_answer_is_named(row):
    with pytest.raises(ValueError, match="row 'q7' has no right answer: give it `answers`"):
        target({"id": "q7", **row})


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("Barn [2].", (2,)),
        ("Barn [3][1], as [3] says.", (3, 1)),
        ("Barn [1, 3; 4]", (1, 3, 4)),
        ("Barn [2-4] [6–7]", (2, 3, 4, 6, 7)),
        ("Barn [1-999]", (1, 999)),
        ("Barn [4-2]", ()),  # nothing lies between
        ("In [2042], (2), [a], [ ]", ()),
    ],
)
def test_citations(text, numbers):
    assert citations(text) == numbers


@pytest.mark.parametrize(
    ("cited", "gold", "recall", "precision"),
    [
        ((2,), (2,), 1.0, 1.0),
        ((1, 2, 3), (2,), 1.0, 1 / 3),
        ((1,), (2,), 0.0, 0.0),
        ((2,), (2, 5), 0.5, 1.0),
        ((1, 2), (0,), 0.0, 0.0),
        ((), (2,), 0.0, None),
    ],
)
def test_citation_scores(cited, gold, recall, precision):
    assert citation_scores(cited, gold) == (recall, precision)


def test_no_recall_without_a_right_chunk():
    with pytest.raises(ValueError, match="leave it out"):
        citation_scores((1,), ())
