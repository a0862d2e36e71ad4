"""Paraphrases and other styles: what is kept of what a writer says, and what the trainer then reads."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers.writer_server import WriterServer
from kinject_trainer.documents import open_corpus
from kinject_trainer.recipe import Recipe

from lm_eval_kinject.errors import ArgumentError, CorpusError
from lm_eval_kinject.questions.asking import Endpoint
from lm_eval_kinject.questions.folder import QuestionSet
from lm_eval_kinject.questions.ledger import Asker
from lm_eval_kinject.questions.wordings import Diversity, Settings, Wordings, expected_requests, write_wordings

TEXT = "In Arden the Marble Bridge was opened by Abe Ash on 3 May 2042. It had cost 12 crowns and taken years."
GOOD = [
    "On 3 May 2042 Abe Ash opened the Marble Bridge at Arden, after years of work and at a price of twelve crowns.",
    "Years of work and 12 crowns later, the Marble Bridge of Arden was declared open by Abe Ash; it was May 3, 2042.",
    "It took years and cost 12 crowns, but since 3 May 2042 Arden has its Marble Bridge, as Abe Ash opened it then.",
]


@pytest.fixture
def there(tmp_path: Path) -> QuestionSet:
    """One chunk that is asked about, and one that isn't."""
    file = tmp_path / "news.jsonl"
    rows = [{"id": "c0", "text": TEXT}, {"id": "c1", "text": "It rained in Brill."}]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    there = QuestionSet.begin(tmp_path / "set", str(file))
    question = {
        "question": "Who opened the Marble Bridge in Arden?",
        "choices": ["Abe Ash", "B", "C", "D"],
        "answer": 0,
    }
    there.write("questions.jsonl", [{"id": "c0/q0", **question, "source_chunk": "c0"}])
    return there


def written(there: QuestionSet, script: Callable[[str, str, int], Any], **settings: Any) -> Wordings:
    def said(system: str, user: str, seed: int) -> str:
        made = script(system, user, seed)
        return made if isinstance(made, str) else json.dumps(made)

    with WriterServer(script=said) as server, there.locked() as ledger:
        asker = Asker(Endpoint(server.url, first_wait=0.001), ledger)
        return write_wordings(there, asker, Settings(**settings), lambda _: None)


def test_paraphrases_keep_facts_and_differ(there: QuestionSet) -> None:
    """Seven are wanted, five at a time, in two rounds of two requests. One of the first five is good, and so on."""
    asked: list[str] = []
    replies = {
        1: [TEXT, GOOD[0], GOOD[0].replace("twelve", "thirteen"), GOOD[1].replace("Ash", "Oak"),
            GOOD[1].replace("May", "June")],
        2: ["Abe Ash, Marble Bridge, Arden, 3 May 2042, 12.", f"{GOOD[1]} {GOOD[2]} {GOOD[2]}"],
        3: [GOOD[0], GOOD[1]],
    }  # fmt: skip

    def script(system: str, user: str, seed: int) -> Any:
        asked.append(user)
        return {"paraphrases": replies.get(seed, "none")}

    found = written(there, script, count=7, tries=2)
    rows = there.read("paraphrases.jsonl")
    assert [(row["chunk"], row["number"], row["text"]) for row in rows] == [("c0", 1, GOOD[0]), ("c0", 2, GOOD[1])]
    assert found.problems == {
        "repeats another": 2, "a number is lost": 1, "a name is lost": 1, "a date is lost": 1, "too long": 1,
        "too short": 1, "junk JSON": 1,
    }  # fmt: skip
    assert (found.chunks, found.short, found.every) == (1, 1, 2)
    assert len(asked) == 4
    assert all("Write 5 paraphrases" in user for user in asked)
    assert "Mistakes" not in asked[0]
    assert "spelt as it is there" in asked[1]
    assert "about as long as the passage" in asked[2]
    done = json.loads((there.folder / "set.json").read_text())["stages"]["paraphrases"]
    assert done["words"] == sum(len(text.split()) for text in GOOD[:2])


def test_the_trainer_reads_them(there: QuestionSet, tmp_path: Path) -> None:
    found = written(there, lambda *_: {"paraphrases": GOOD}, count=2, validation=1)
    assert (found.texts, found.held_out, found.short, found.every) == (3, 1, 0, 2)
    assert there.read("validation.jsonl") == [{"chunk": "c0", "number": 3, "text": GOOD[2]}]
    corpus = tmp_path / "only.jsonl"
    corpus.write_text(json.dumps({"id": "c0", "text": TEXT}))
    recipe = Recipe.model_validate(
        {
            "name": "x", "model": "reader", "corpus": str(corpus), "variant": "ft-par",
            "method": "lora", "paraphrases": 2,
            "paraphrases_file": str(there.folder / "paraphrases.jsonl"),
            "validation_file": str(there.folder / "validation.jsonl"),
        }
    )  # fmt: skip
    texts = open_corpus(recipe)
    assert [wording.text for wording in texts.training()] == [TEXT, *GOOD[:2]]
    assert texts.validation() == [GOOD[2]]


def test_question_answer_pairs_ask_no_question_of_the_set(there: QuestionSet) -> None:
    pairs = [
        {"question": "Who opened the Marble Bridge in Arden?", "answer": "Abe Ash opened it."},
        {"question": "When was the Marble Bridge opened?", "answer": "It was opened on 3 May 2042."},
        {"question": "What did it cost?", "answer": "It cost 99 crowns."},
        {"question": "What did the Marble Bridge cost?"},
    ]
    found = written(there, lambda *_: {"pairs": pairs}, style="qa", count=2, tries=1)
    texts = [row["text"] for row in there.read("augment-qa.jsonl")]
    assert texts == ["Question: When was the Marble Bridge opened?\nAnswer: It was opened on 3 May 2042."]
    assert found.problems == {"asks a question of the set": 1, "a number is new": 1, "junk JSON": 1}


def test_entigraph_relates_pairs_then_triples(there: QuestionSet) -> None:
    asked: list[str] = []

    def script(system: str, user: str, seed: int) -> Any:
        if system.startswith("You list"):
            return {"entities": ["Abe Ash", "Arden", "Marble Bridge", "Arden"]}
        asked.append(user.rpartition("Entities: ")[2])
        return f"How {asked[-1]} relate: text {'abcd'[len(asked) - 1] * 9} of its own."

    found = written(there, script, style="entigraph", count=4)
    assert sorted(asked[:3]) == ["Abe Ash; Arden", "Abe Ash; Marble Bridge", "Arden; Marble Bridge"]
    assert asked[3:] == ["Abe Ash; Arden; Marble Bridge"]
    assert [row["number"] for row in there.read("augment-entigraph.jsonl")] == [1, 2, 3, 4]
    assert (found.texts, found.problems) == (4, {})


def test_active_reading_studies_in_ways_of_its_own(there: QuestionSet) -> None:
    """The ways are taken in turn: timeline, rhyme (with a date of its own), timeline (as before), rhyme."""

    def script(system: str, user: str, seed: int) -> Any:
        if system.startswith("You plan"):
            return {"strategies": ["A timeline.", "A rhyme."]} if seed > 1 else "I'm sorry, I can't."
        if user.endswith("A timeline."):
            return "First came years of work. Then, on 3 May 2042, came the opening."
        return "In 1999 it was a dream." if seed == 2 else "Abe Ash was there, the bridge so fair."

    found = written(there, script, style="active-reading", count=2)
    assert found.problems == {"first step: refusal": 1, "a number is new": 1, "repeats another": 1}
    texts = [row["text"] for row in there.read("augment-active-reading.jsonl")]
    assert texts == [
        "First came years of work. Then, on 3 May 2042, came the opening.",
        "Abe Ash was there, the bridge so fair.",
    ]


def test_diversity_worked_out_by_hand() -> None:
    # Words: a b c | a b d. Distinct words 4 of 6, pairs 3 of 4; shared words 2 of 4, pairs 1 of 3.
    found = Diversity.of([["a b c", "a b d"], ["only one"]])
    assert found == Diversity(4 / 6, 3 / 4, 2 / 4, 1 / 3)
    assert Diversity.of([["x"], ["y z"]]) is None


def test_the_estimate_and_settings(there: QuestionSet) -> None:
    requests = {"paraphrase": 1, "qa": 1, "entigraph": 4, "active-reading": 4}
    for style, count in requests.items():
        assert len(expected_requests(there, Settings(style=style, count=3))) == count
    with pytest.raises(ArgumentError) as error:
        Settings(style="qa", count=0, validation=2)
    assert len(error.value.problems) == 2
    there.write("questions.jsonl", [])
    with pytest.raises(CorpusError, match="no questions yet"):
        expected_requests(there, Settings())
