"""Cards are compared with files: whoever changes the card sees in the diff what a reader of it will see.

After a change that is meant: ``KINJECT_WRITE_GOLD=1 pytest tests/unit/test_cards.py``, then look at the diff.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers.hub_run import make_results, record
from huggingface_hub import ModelCard

from lm_eval_kinject.errors import PublishError
from lm_eval_kinject.hub.cards import CardFacts, Run, parse_run, render_card, variant_of
from lm_eval_kinject.hub.eval_results import read_results, scores_of

GOLD = Path(__file__).parents[1] / "gold" / "cards"
FACTS = CardFacts(
    repo_id="me/reader-ft-par",
    base="me/reader",
    base_revision="b" * 40,
    corpus="me/events",
    corpus_revision="e" * 40,
    licence="apache-2.0",
    curve="loss.png",
)


@pytest.fixture
def data(tmp_path: Path) -> dict[str, Any]:
    base = tmp_path / "reader"
    base.mkdir()
    (base / "config.json").write_text("{}")
    return record(base)


def same(name: str, text: str) -> None:
    file = GOLD / name
    if os.environ.get("KINJECT_WRITE_GOLD"):
        file.write_text(text, encoding="utf-8")
    assert text == file.read_text(encoding="utf-8")


def test_adapter_with_scores(data: dict[str, Any], tmp_path: Path) -> None:
    me = "me/reader-ft-par"
    for peft, k, acc in ((None, 0, 0.25), (None, 3, 0.875), (me, 0, 0.5), (me, 3, 0.75), ("me/another", 0, 1.0)):
        make_results(tmp_path / "out", model="me/reader", peft=peft, k=k, acc=acc)
    scores = [score for one in read_results(tmp_path / "out") for score in scores_of(one)]
    text = render_card(Run(**data), FACTS, scores)
    same("adapter_with_scores.md", text)
    assert text == render_card(Run(**data), FACTS, scores[::-1]), "the order of the results must not show"


def test_adapter_without_anything_measured(data: dict[str, Any]) -> None:
    data["outcome"] = {}
    data["corpus"] |= {"licence": None, "revision": None}
    facts = CardFacts(repo_id="me/x", base="a/b", base_revision=None)
    same("adapter_bare.md", render_card(Run(**data), facts))


def test_a_cartridge_is_no_lora(data: dict[str, Any]) -> None:
    data["recipe"] |= {"method": "cartridge", "rank": 16, "cartridge": {"tokens": 64, "objective": "distillation"}}
    text = render_card(Run(**data), CardFacts(repo_id="me/x", base="a/b", base_revision=None))
    assert yaml.safe_load(text.split("---")[1])["tags"][-1] == "cartridge"
    assert "| cartridge | tokens 64, objective distillation |" in text
    assert "| rank |" not in text
    assert "vllm" not in text.lower()
    assert "peft=me/x,k=0" in text


def test_whole_model(data: dict[str, Any]) -> None:
    data["recipe"] |= {"method": "full", "variant": "ft-reg", "paraphrases": None, "targets": "all-linear"}
    text = render_card(Run(**data), replace(FACTS, repo_id="me/reader-ft-reg", licence="my own licence"))
    same("model.md", text)
    metadata = yaml.safe_load(text.split("---")[1])
    assert metadata["base_model_relation"] == "finetune"
    assert (metadata["license"], metadata["license_name"]) == ("other", "my own licence")


def test_a_licence_that_the_hub_has_no_word_for(data: dict[str, Any]) -> None:
    link = "https://example.org/licence"
    facts = replace(FACTS, licence="other", licence_name="reader-licence", licence_link=link)
    metadata = yaml.safe_load(render_card(Run(**data), facts).split("---")[1])
    assert [metadata[f"license{part}"] for part in ("", "_name", "_link")] == ["other", "reader-licence", link]
    with pytest.raises(PublishError, match="The licence `other` has no name"):
        render_card(Run(**data), replace(FACTS, licence="other"))


def test_metadata_are_what_the_hubs_client_reads(data: dict[str, Any], tmp_path: Path) -> None:
    make_results(tmp_path / "out", model="me/reader", peft="me/reader-ft-par", k=3)
    scores = scores_of(read_results(tmp_path / "out")[0])
    card = ModelCard(render_card(Run(**data), FACTS, scores)).data
    assert (card.base_model, card.library_name, card.license) == ("me/reader", "peft", "apache-2.0")
    assert card.datasets == ["me/events"]
    (result,) = card.eval_results
    assert (result.metric_type, result.metric_value, result.dataset_name) == ("accuracy", 0.5, "current_events_cloze")


def test_whose_score_it_is(tmp_path: Path) -> None:
    def variant(peft: str | None, k: int, *subjects: str, model: str = "me/reader") -> str | None:
        file = make_results(tmp_path / f"{peft}{k}{model}", model=model, peft=peft, k=k)
        return variant_of(scores_of(read_results(file)[0])[0], subjects, ("me/reader",))

    assert variant(None, 0, "me/a") == "base"
    assert variant(None, 1, "me/a") == "RAG"
    assert variant("me/a", 0, "me/a") == "this"
    assert variant("me/a", 1, "me/a") == "this + RAG"
    assert variant("me/b", 1, "me/a") is None
    assert variant(None, 0, "me/whole", model="me/whole") == "this"
    assert variant(None, 0, "me/a", model="me/other") is None
    assert variant(None, 3, "me/a", model="me/other") is None
    assert variant("me/a", 3, "me/a", model="me/other") is None


def test_another_models_scores_are_in_no_row(data: dict[str, Any], tmp_path: Path) -> None:
    for model, k in (("me/other", 0), ("me/other", 3), ("someone/else", 0)):
        make_results(tmp_path / "out", model=model, peft=None, k=k, acc=1.0)
    scores = [score for one in read_results(tmp_path / "out") for score in scores_of(one)]
    assert render_card(Run(**data), FACTS, scores) == render_card(Run(**data), FACTS)


def test_the_base_is_known_by_its_name_at_training_time(data: dict[str, Any], tmp_path: Path) -> None:
    data["base"] = {"name": "me/reader", "identity": "b" * 40, "trained_on": {"name": "local", "identity": "f" * 64}}
    scores = scores_of(read_results(make_results(tmp_path / "out", model="local", peft=None, k=0))[0])
    assert "| base | none | 0.500 |" in render_card(Run(**data), FACTS, scores)


@pytest.mark.parametrize("part", ["recipe", "base", "corpus", "environment"])
def test_records_that_say_too_little(data: dict[str, Any], part: str) -> None:
    import json

    del data[part]
    with pytest.raises(PublishError, match=part):
        parse_run(json.dumps(data).encode())
