"""What the retriever is asked, worked out by hand for documents of many shapes."""

from __future__ import annotations

import pytest

from lm_eval_kinject.context.query import QUESTION_FIELDS, QueryRule, without_choices
from lm_eval_kinject.errors import ArgumentError, ContextError

QUESTION = QueryRule("question")
CHOICES = QueryRule("question+choices")


def ask(rule, doc, **more):
    return rule.text(doc, where="task, document 7", **more)


def test_a_declared_field_comes_first():
    assert ask(QUESTION, {"question": "a", "ask": " b "}, declared="ask") == "b"


def test_a_declared_template():
    assert ask(QUESTION, {"x": "a", "y": "b"}, declared="{{ x }} {{ y }}") == "a b"


@pytest.mark.parametrize("name", QUESTION_FIELDS)
def test_usual_fields(name):
    assert ask(QUESTION, {"id": "1", name: "Who?", "answer": "He", "text": "Who? He"}, rendered="other") == "Who?"


def test_a_field_of_another_type_is_passed_over():
    assert ask(QUESTION, {"question": {"stem": "no"}, "query": "Who?"}) == "Who?"


def test_else_the_rendered_question_without_its_options():
    rendered = "Question: Which planet is red?\nA. Mars\nB. Venus\nAnswer:"
    assert ask(QUESTION, {"stem": 1}, rendered=rendered, choices=["A", "B"]) == "Which planet is red?"


@pytest.mark.parametrize(
    ("rendered", "choices", "left"),
    [
        ("Q: Who?\n(a) He\n(b) She\nA:", [], "Who?"),
        ("Who?\n1) He\n2) She\n\nThe correct answer is:", [], "Who?"),
        (
            "Read this.\nIt is long.\n\nQuestion: Who?\nHe\nShe\nAnswer:",
            ["He", "She"],
            "Read this.\nIt is long.\n\nQuestion: Who?",
        ),
        ("A dog runs.", [], "A dog runs."),
        ("A. He\nB. She\nAnswer:", [], ""),
    ],
)
def test_without_choices(rendered, choices, left):
    assert without_choices(rendered, choices) == left


def test_nothing_to_ask_is_refused():
    with pytest.raises(ContextError, match=r"task, document 7.*no question found.*passage.*query=FILE"):
        ask(QUESTION, {"passage": 3}, rendered="A. He\nAnswer:")
    with pytest.raises(ContextError, match="no question found"):
        ask(QUESTION, {})


def test_a_declared_field_that_is_missing_is_refused():
    with pytest.raises(ContextError, match=r"'ask', which the document doesn't have.*question.*kinject\.query"):
        ask(QUESTION, {"question": "a"}, declared="ask")


@pytest.mark.parametrize(
    ("doc", "choices"),
    [
        ({"question": "Who?", "choices": ["He ", "She"]}, ["A", "B"]),
        ({"question": "Who?", "choices": {"text": ["He", "She"], "label": ["A", "B"]}}, None),
        ({"question": "Who?", "options": ["He", "She"]}, ["A", "B"]),
        ({"question": "Who?"}, ["He", "She"]),
    ],
)
def test_question_and_choices(doc, choices):
    assert ask(CHOICES, doc, choices=choices) == "Who?\nHe\nShe"


def test_bare_letters_are_no_choices():
    with pytest.raises(ContextError, match="options' texts were not found"):
        ask(CHOICES, {"question": "Who?"}, choices=["A", "B"])


def test_a_template_sees_the_document():
    rule = QueryRule.parse("{{ subject }}: {{ question }}")
    assert ask(rule, {"subject": "art", "question": "Who?"}) == "art: Who?"


def test_a_template_is_sandboxed_and_strict():
    with pytest.raises(ContextError, match=r"failed.*'missing' is undefined.*question"):
        ask(QueryRule.parse("{{ missing }}"), {"question": "a"})
    with pytest.raises(ContextError, match="failed"):
        ask(QueryRule.parse("{{ question.__class__.__mro__[1].__subclasses__() }}"), {"question": "a"})


def test_text_of_the_document_is_not_a_template():
    assert ask(QueryRule.parse("{{ question }}"), {"question": "{{ 1 + 1 }}"}) == "{{ 1 + 1 }}"


def test_an_empty_query_is_refused():
    with pytest.raises(ContextError, match="the query is empty"):
        ask(QueryRule.parse("{{ question }}"), {"question": "  "})


def test_parse(tmp_path):
    assert QueryRule.parse("question") == QUESTION
    assert QueryRule.parse("question+choices") == CHOICES
    file = tmp_path / "q.j2"
    file.write_text("{{ question }}")
    assert QueryRule.parse(str(file)) == QueryRule("template", "{{ question }}")
    with pytest.raises(ArgumentError, match="no such file"):
        QueryRule.parse("questions")
    with pytest.raises(ArgumentError, match="line 2"):
        QueryRule.parse("a\n{% if %}")
