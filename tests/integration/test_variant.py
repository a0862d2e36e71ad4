"""A new variant is one class: registered here, it is asked for, refused, documented and named in the results."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import pytest
from helpers.local_tasks import TOWNS, chunk_text, copy_current_events, evaluate, prompts, task_manager, write_corpus
from helpers.tiny_models import make_tiny

from lm_eval_kinject import stages
from lm_eval_kinject.context.order import Order
from lm_eval_kinject.errors import ArgumentError
from lm_eval_kinject.models.arguments import argument_table, split
from lm_eval_kinject.records import Hit


@pytest.fixture
def variant():
    @stages.register
    @dataclass(frozen=True)
    class Alphabetical(Order):
        """By title, with a note before them."""

        name: ClassVar[str] = "alphabetical"

        note: str = stages.argument("said before the chunks", stages.text, "From A to Z:")

        def arrange(self, hits: Sequence[Hit]) -> Sequence[Hit]:
            return sorted(hits, key=lambda hit: hit.chunk.title)

        @property
        def preface(self) -> str:
            return f"{self.note}\n\n"

    yield Alphabetical
    del stages.SLOTS["order"].stages["alphabetical"]


def test_it_is_documented_and_checked(variant):
    table = argument_table()
    assert "`alphabetical`: by title, with a note before them" in table
    assert "| `note` | said before the chunks (`order=alphabetical`) | `From A to Z:` |" in table
    assert split({"order": "alphabetical", "note": "N"}, ()).rag.pipeline.order.note == "N"
    with pytest.raises(ArgumentError) as caught:
        split({"order": "alphabetcal", "note": ""}, ())
    assert "order=alphabetcal is unknown (did you mean alphabetical?)" in str(caught.value)
    with pytest.raises(ArgumentError, match="note= has no meaning for order=sides; remove it, or pass order=alph"):
        split({"order": "sides", "note": "N"}, ())


def test_it_is_in_the_prompt_and_in_the_results(variant, tmp_path, monkeypatch):
    monkeypatch.setenv("KINJECT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets")
    copy_current_events(tmp_path / "ours")
    write_corpus(tmp_path / "corpus")
    arguments = {
        "pretrained": make_tiny("llama", tmp_path / "models", max_length=2048),
        "corpus": str(tmp_path / "corpus"),
        "retriever": "bm25",
        "k": 3,
        "order": "alphabetical",
    }
    found = evaluate("rag-hf", arguments, ["current_events_cloze"], task_manager(tmp_path / "ours"), limit=3)
    moved = 0
    for sample, prompt in zip(
        found["samples"]["current_events_cloze"], prompts(found, "current_events_cloze"), strict=True
    ):
        ranked = [int(hit["id"][1:]) for hit in sample["arguments"][0][2]["kinject"]["hits"]]
        by_title = sorted(ranked, key=lambda i: TOWNS[i])
        moved += by_title != ranked
        text = "".join(f"News from {TOWNS[i]}\n{chunk_text(i)}\n\n" for i in by_title)
        assert prompt.startswith(f"From A to Z:\n\n{text}Question: ")
    assert moved
    said = found["config"]["kinject"]
    assert said["prompt"]["order"] == "alphabetical"
    assert said["pipeline"]["order"] == {"name": "alphabetical", "note": "From A to Z:"}


def test_what_cannot_be_registered(variant):
    with pytest.raises(ValueError, match="is taken by Alphabetical"):

        @stages.register
        @dataclass(frozen=True)
        class Other(Order):
            """Another."""

            name: ClassVar[str] = "alphabetical"

    with pytest.raises(ValueError, match="another slot has the arguments k, query"):

        @stages.register
        @dataclass(frozen=True)
        class Greedy(Order):
            """Takes what others have."""

            name: ClassVar[str] = "greedy"
            k: int = stages.argument("of something else", stages.whole(0, "things"), 1)
            query: str = stages.argument("of something else", stages.text, "x")

    with pytest.raises(ValueError, match="no docstring"):

        @stages.register
        @dataclass(frozen=True)
        class Mute(Order):
            name: ClassVar[str] = "mute"

    with pytest.raises(ValueError, match="there is no slot 'colour'"):

        @stages.register
        @dataclass(frozen=True)
        class Lost(stages.Stage):
            """Nowhere to stand."""

            slot: ClassVar[str] = "colour"
            name: ClassVar[str] = "red"
