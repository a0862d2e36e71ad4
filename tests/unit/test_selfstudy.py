"""Lessons, word by word: each kind, what it asks for, and that seed and turn settle all of it."""

from __future__ import annotations

import json

import pytest
from kinject_trainer import selfstudy
from kinject_trainer.documents import Wording
from kinject_trainer.selfstudy import KINDS, write_lessons

BRIDGE = "The old bridge is shut. Anna Berg opened a new one, and 300 people came."
TITLED = Wording("c0", 0, f"The bridge\n{BRIDGE}")
WRITERS = selfstudy._WRITERS


def test_each_kind():
    sentences = ["The old bridge is shut.", "Anna Berg opened a new one, and 300 people came."]
    assert WRITERS["structuring"]("it", BRIDGE, 0) == (
        "List what is known about it, point by point.",
        "- The old bridge is shut.\n- Anna Berg opened a new one, and 300 people came.",
    )
    prompt, answer = WRITERS["structuring"]("it", BRIDGE, 1)
    assert (prompt, json.loads(answer)) == ("Write down as JSON what is known about it.", {"facts": sentences})
    assert WRITERS["summarization"]("it", BRIDGE, 1) == ("What is there to know about it?", BRIDGE)
    # Of names and numbers that don't begin a sentence: Berg, 300.
    assert WRITERS["question"]("it", BRIDGE, 0) == (
        "About it. Complete the sentence: Anna",
        "Berg opened a new one, and 300 people came.",
    )
    assert WRITERS["question"]("it", BRIDGE, 3) == (
        "About it. What is missing? Anna Berg opened a new one, and ____ people came.",
        "300",
    )
    assert WRITERS["question"]("it", "rain fell all night.", 0) == (
        "How does the text about it go on? rain",
        "fell all night.",
    )
    assert WRITERS["question"]("it", "rain", 0)[1] == "rain"
    assert WRITERS["use case"]("it", BRIDGE, 0)[1] == BRIDGE
    assert WRITERS["creative"]("it", BRIDGE, 0) == ("Write a letter to a friend about it.", f"Did you hear? {BRIDGE}")


def test_all_kinds_come_before_any_comes_again():
    texts = [TITLED, Wording("c1", 0, "A mill by the river was sold to its miller."), Wording("c0", 1, "A new bridge.")]
    lessons = list(write_lessons(texts, 10, 3))
    assert [lesson.chunk for lesson in lessons] == [0] * 10 + [1] * 10
    for start in range(0, 20, 5):
        assert sorted(lesson.kind for lesson in lessons[start : start + 5]) == sorted(KINDS)
    assert list(write_lessons(texts, 10, 3)) == lessons
    assert list(write_lessons(texts, 10, 4)) != lessons
    # More lessons go on from fewer: the first ones stay.
    assert [lesson for lesson in lessons if lesson.chunk == 0][:5] == list(write_lessons(texts, 5, 3))[:5]
    assert all(lesson.answer for lesson in lessons)


def test_topics_are_titles_or_first_words():
    untitled = Wording("c1", 0, "A mill by the river was sold to its miller.")
    lessons = list(write_lessons([TITLED, untitled], 5, 0))
    for lesson in lessons:
        if lesson.kind in ("summarization", "use case", "creative"):
            assert ("The bridge" if lesson.chunk == 0 else "“A mill by the river was…”") in lesson.prompt
            assert not lesson.answer.removeprefix("Did you hear? ").startswith("The bridge\n")  # a title is no answer


@pytest.mark.parametrize("kind", KINDS)
def test_paraphrases_are_answered_with_too(kind):
    texts = [TITLED, *(Wording("c0", n, f"Wording {n} of Berg.") for n in range(1, 4))]
    answers = " ".join(lesson.answer + lesson.prompt for lesson in write_lessons(texts, 100, 0) if lesson.kind == kind)
    assert all(f"ording {n}" in answers for n in range(1, 4)) or kind == "question"
    assert "new one" in answers
