"""A retriever's recipe: told from others, and everything that is wrong with one told at once."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from kinject_trainer.recipe import recipes_dir
from kinject_trainer.retriever import is_retriever
from kinject_trainer.retriever.plan import TRAINING, Contrastive, Mlm, check_retriever, load_retriever

from lm_eval_kinject.errors import ArgumentError

LEAST = {"retriever": "minilm", "corpus": TRAINING}


def problems(**values: object) -> list[str]:
    recipe, found = check_retriever({**LEAST, **values})
    assert (recipe is None) == bool(found)
    return found


def test_a_retriever_is_known_by_its_key(tmp_path: Path):
    ours, other = tmp_path / "ours.yaml", tmp_path / "other.yaml"
    ours.write_text(yaml.safe_dump(LEAST))
    other.write_text("model: reader\ncorpus: c\nvariant: ft-robust\nquestions: {source: s, retriever: minilm}\n")
    assert (is_retriever(ours), is_retriever(other), is_retriever(tmp_path / "nowhere.yaml")) == (True, False, False)


def test_the_bundled_recipe_is_good_and_says_what_can_be_run_again(tmp_path: Path):
    recipe = load_retriever("minilm-newswire", ["mlm.epochs=2", "contrastive.pairs=64"])
    assert (recipe.name, recipe.measure) == ("minilm-newswire", "newswire-held-out")
    assert recipe.mlm == Mlm(epochs=2)
    assert recipe.contrastive == Contrastive(pairs=64, batch=16, learning_rate=5e-5)
    again = tmp_path / "again.yaml"
    again.write_text(yaml.safe_dump(recipe.again()))
    assert load_retriever(again) == recipe
    off = tmp_path / "off.yaml"
    off.write_text("retriever: minilm\ncorpus: newswire-training\nmlm:\ncontrastive: none\n")
    words = load_retriever(off)
    assert (words.mlm, words.contrastive) == (Mlm(), None)
    again.write_text(yaml.safe_dump(words.again()))
    assert load_retriever(again) == words
    assert is_retriever(recipes_dir() / "minilm-newswire.yaml")


def test_every_problem_is_told_at_once():
    found = problems(
        retriever="minilmm",
        epochs=3,
        mlm={"epochs": 0, "probabilty": 0.2},
        contrastive={"batch": 1},
        measure="newswire",
        questions="q.jsonl",
        seed=-1,
    )
    said = "\n".join(found)
    assert len(found) == 8
    for part in (
        "epochs: no such key; remove it",
        "mlm.epochs: 0: input should be greater than 0",
        "mlm.probabilty: no such key; did you mean probability?",
        "contrastive.batch: 1: input should be greater than or equal to 2",
        "measure: must be newswire-held-out, or {corpus: …, questions: …}",
        "seed: -1: input should be greater than or equal to 0",
        f"questions with corpus {TRAINING}: it has its own",
        "retriever=minilmm is unknown. Did you mean minilm?",
    ):
        assert part in said


def test_parts_of_what_is_measured_are_named():
    assert problems(measure={"corpus": "c"}) == [
        "measure.questions: missing; give a folder with a test split, or a Parquet or JSON Lines file"
    ]
    assert problems(measure={"corpus": "c", "questions": "q", "question": "q"}) == [
        "measure.question: no such key; did you mean questions?"
    ]


@pytest.mark.parametrize(
    ("values", "part"),
    [
        ({"contrastive": "none"}, "nothing is trained"),
        ({"corpus": "current_events"}, "questions: missing, and pairs are made of them"),
        ({"corpus": "c", "questions": "q", "contrastive": "none", "mlm": None}, "they aren't trained on; remove them"),
        ({"retriever": "bm25"}, "retriever=bm25 has no encoder to be trained"),
        ({"retriever": "static"}, "retriever=static has no encoder to be trained"),
        ({"retriever": "dpr"}, "retriever=dpr is a pair of models"),
        ({"revision": "abc"}, "a revision has no meaning for retriever=minilm"),
        ({"corpus_revision": "1"}, "corpus_revision with corpus"),
        ({"retriever": "hf_" + "a" * 30}, "looks like a Hub token"),
    ],
)
def test_what_can_not_be(values: dict[str, object], part: str):
    assert part in "\n".join(problems(**values))


def test_a_file_with_problems_is_named(tmp_path: Path):
    file = tmp_path / "mine.yaml"
    file.write_text("retriever: minilm\n")
    with pytest.raises(ArgumentError, match=r"mine\.yaml"):
        load_retriever(file)


def test_paths_are_not_published(tmp_path: Path):
    recipe, _ = check_retriever(
        {
            "retriever": str(tmp_path),
            "corpus": str(tmp_path),
            "questions": str(tmp_path),
            "measure": {"corpus": str(tmp_path), "questions": str(tmp_path)},
        }
    )
    assert recipe is not None
    assert str(tmp_path.parent) not in yaml.safe_dump(recipe.public())
