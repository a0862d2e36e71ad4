"""A slot with an open stage: what names no other stage goes to it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pytest

from lm_eval_kinject import stages


@pytest.fixture
def colours(monkeypatch):
    monkeypatch.setattr(stages, "SLOTS", {})
    stages.slot("colour", "which colour it has", default="none")

    @stages.register
    @dataclass(frozen=True)
    class Plain(stages.Stage):
        """Has none."""

        slot: ClassVar[str] = "colour"
        name: ClassVar[str] = "none"

    @stages.register
    @dataclass(frozen=True)
    class Mixed(stages.Stage):
        """Mixed from a recipe."""

        slot: ClassVar[str] = "colour"
        name: ClassVar[str] = "by-recipe"
        open: ClassVar[stages.Open] = stages.Open("recipe", "RECIPE", "numbers with dots", lambda word: "." in word)

        recipe: str = ""
        strength: int = stages.argument("how strong it is", stages.whole(1, "drops"), 2)

    return Mixed


def assembled(**given):
    return stages.assemble(("colour",), given)


def test_it_takes_what_names_no_other(colours):
    made, problems = assembled(colour="1.5", strength=4)
    assert (made["colour"], problems) == (colours("1.5", 4), [])
    assert (made["colour"].asked, made["colour"].name) == ("1.5", "by-recipe")
    made, problems = assembled(colour=None)
    assert (made["colour"].asked, problems) == ("none", [])
    assert assembled()[0]["colour"].name == "none"


@pytest.mark.parametrize(
    ("word", "guess"),
    [("nne", " (did you mean none?)"), ("by-recipe", ""), ("recipe", "")],
)
def test_what_is_neither_is_a_misspelt_name(colours, word, guess):
    _, problems = assembled(colour=word)
    assert problems == [f"colour={word} is unknown{guess}; pass colour=none, or numbers with dots"]


def test_an_argument_of_another_stage_is_of_no_use(colours):
    _, problems = assembled(strength=3)
    assert problems == ["strength= has no meaning for colour=none; remove it, or pass colour=RECIPE"]


def test_other_stages_are_told_the_value(colours, monkeypatch):
    told = []
    monkeypatch.setattr(colours, "problems", classmethod(lambda cls, given: told.append(dict(given)) or ["no"]))
    assert assembled(colour="2.0", strength=1) == ({}, ["no"])
    assert told == [{"colour": "2.0", "recipe": "2.0", "strength": 1}]


def test_the_docs_show_it(colours):
    choice, strength = stages.reference(("colour",))
    assert choice.about == "which colour it has. `none`: has none; `RECIPE`, numbers with dots: mixed from a recipe"
    assert strength.about == "how strong it is (`colour=RECIPE`)"


def test_a_slot_has_one(colours):
    with pytest.raises(ValueError, match="Second: Mixed takes what names no stage of colour already"):

        @stages.register
        @dataclass(frozen=True)
        class Second(stages.Stage):
            """Another."""

            slot: ClassVar[str] = "colour"
            name: ClassVar[str] = "second"
            open: ClassVar[stages.Open] = stages.Open("recipe", "X", "x", bool)
            recipe: str = ""
