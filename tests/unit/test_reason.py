"""Trajectories of self-reasoning: what is read as one, what is malformed and why, and what counts as a quotation."""

from __future__ import annotations

import json
import random

import pytest

from lm_eval_kinject.context.reason import Evidence, MalformedError, SelfReasoning, Steps, as_text, parse, quotes

WRITTEN = (
    '{"relevant": true, "relevant reason": "It names her.", "evidence": [{"cite content": "Bea Birk opened it.", '
    '"reason to cite": "who"}], "analysis": "So it was she.", "answer": " Bea Birk\\n"}'
)
READ = Steps(True, "It names her.", (Evidence("Bea Birk opened it.", "who"),), "So it was she.", "Bea Birk")
ODD = ['"', "\\", "\n", "{", "}", "[", ",", "```", "\x00", "\u2028", "é", "😀", " ", "x"]


def changed(**fields):
    return json.dumps({**json.loads(WRITTEN), **fields})


@pytest.mark.parametrize("text", [WRITTEN, f"\n {WRITTEN}\n", f"```json\n{WRITTEN}\n```", f"```\n{WRITTEN}\n```\n"])
def test_what_is_one_is_read(text):
    assert parse(text) == READ


def test_nothing_relevant_needs_no_evidence():
    assert parse(changed(relevant=False, evidence=[])) == Steps(
        False, "It names her.", (), "So it was she.", "Bea Birk"
    )


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "not one JSON object"),
        ("Bea Birk", "not one JSON object"),
        (WRITTEN[:-1], "not one JSON object"),
        (f"{WRITTEN} I hope that helps.", "not one JSON object"),
        (f"Here it is: {WRITTEN}", "not one JSON object"),
        (WRITTEN + WRITTEN, "not one JSON object"),
        ("[" * 100_000, "not one JSON object"),
        (WRITTEN.replace("she", "\\ud800"), "not one JSON object"),
        (f"[{WRITTEN}]", "the object has other fields"),
        ('{"answer": "Bea Birk"}', "the object has other fields"),
        (changed(note="x"), "the object has other fields"),
        (json.dumps(dict(reversed(json.loads(WRITTEN).items()))), "the object has other fields"),
        (WRITTEN.replace('"answer"', '"answer": "Abe Ash", "answer"'), "a field twice"),
        (changed(relevant="true"), "the object has values of another kind"),
        (changed(relevant=1), "the object has values of another kind"),
        (changed(answer=None), "the object has values of another kind"),
        (changed(answer=["Bea Birk"]), "the object has values of another kind"),
        (changed(evidence=["Bea Birk opened it."]), "evidence has other fields"),
        (changed(evidence=[{"cite content": 1, "reason to cite": ""}]), "evidence has values of another kind"),
        (changed(evidence=[]), "evidence contradicts relevance"),
        (changed(relevant=False), "evidence contradicts relevance"),
        (changed(evidence=[{"cite content": " … ", "reason to cite": "who"}]), "empty citation"),
        (changed(answer=" . "), "empty answer"),
    ],
)
def test_what_is_none_says_why(text, why):
    with pytest.raises(MalformedError) as caught:
        parse(text)
    assert str(caught.value) == why


def test_reading_undoes_writing():
    draw = random.Random(7)

    def text(beginning=""):
        return beginning + "".join(draw.choices(ODD, k=draw.randrange(6)))

    for _ in range(300):
        evidence = tuple(Evidence(text("a"), text()) for _ in range(draw.randrange(4)))
        steps = Steps(bool(evidence), text(), evidence, text(), text("a").strip())
        assert parse(as_text(steps)) == steps


def test_what_ends_too_early_is_malformed():
    for end in range(len(WRITTEN)):
        with pytest.raises(MalformedError):
            parse(WRITTEN[:end])


@pytest.mark.parametrize(
    ("citation", "there"),
    [
        ("Bea Birk opened it.", True),
        ("bea BIRK\nopened", True),
        ("Bea Birk", False),  # two words stand nearly anywhere
        ("Bea Birk closed it.", False),
        ("ea Birk opened", False),  # whole words alone
        ("Bea opened it", False),  # in a row
        ("", False),
    ],
)
def test_a_quotation_stands_there_word_for_word(citation, there):
    assert quotes(citation, "In May, Bea Birk opened it; all came.") is there


def test_the_generation_has_room_and_no_stop_strings():
    asked = {"until": ["\n"], "max_gen_toks": 8, "max_new_tokens": 9, "do_sample": False}
    made = SelfReasoning(reasoning_tokens=300).generation(asked)
    assert made == {"until": [], "max_gen_toks": 300, "do_sample": False}
    assert asked["until"] == ["\n"]
