"""The recipe of a retriever: which encoder, on what, by masked words or pairs, and what it is measured on.

What it is for: `load_retriever` reads it and reports every problem at once. What it does not do: it opens no model, no
corpus and no questions.

The one idea: a recipe of this kind is known by its key ``retriever``, which takes what ``retriever=`` takes.

Defaults: BERT's masking (arXiv 1810.04805); DPR's loss and rate (arXiv 2004.04906), with one hard negative each.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from kinject_trainer.recipe import last_name, read_recipe, without_tokens
from lm_eval_kinject.errors import ArgumentError
from lm_eval_kinject.provenance import fingerprint

__all__ = [
    "HELD_OUT",
    "TRAINING",
    "Contrastive",
    "Measured",
    "Mlm",
    "RetrieverRecipe",
    "check_retriever",
    "is_retriever",
    "load_retriever",
]

TRAINING = "newswire-training"
"""A corpus that is no file, with questions about it: news of kinds of event that nothing is measured on."""

HELD_OUT = "newswire-held-out"
"""Chunks and test questions of the kinds that `TRAINING` leaves out."""

_PLACES = ("retriever", "corpus", "questions")
_WITHOUT_EFFECT = {"name", "measure", "revision", "corpus_revision", *_PLACES}
"""Keys that change no weight, or whose content has a fingerprint of its own."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Mlm(_Strict):
    """Masked words: of the ordinary tokens of each chunk a share is chosen, and the model says what they were."""

    epochs: float = Field(default=1.0, gt=0, le=1000, description="passes over the chunks")
    head_epochs: float = Field(default=1.0, ge=0, le=1000, description="before: of a new head alone, encoder frozen")
    head_learning_rate: float = Field(default=1e-3, gt=0, le=10, description="of the new head alone, at its highest")
    probability: float = Field(default=0.15, gt=0, lt=1, description="share of a chunk's tokens that are chosen")
    batch: int = Field(default=32, ge=1, le=100_000, description="chunks an update")
    learning_rate: float = Field(default=5e-5, gt=0, le=10, description="at its highest")
    chunks: int | None = Field(default=None, ge=1, description="at most so many, drawn by the seed; default: all")


class Contrastive(_Strict):
    """Pairs: a question's own chunk against all others of the batch, and hard negatives that BM25 finds."""

    epochs: float = Field(default=1.0, gt=0, le=1000, description="passes over the pairs")
    batch: int = Field(default=32, ge=2, le=100_000, description="pairs an update")
    learning_rate: float = Field(default=2e-5, gt=0, le=10, description="at its highest")
    scale: float | None = Field(
        default=None, gt=0, le=1000, description="on similarities, 1/temperature; default: 20 for cosines, 1 for dots"
    )
    hard_negatives: int = Field(default=1, ge=0, le=16, description="of each question")
    pairs: int | None = Field(default=None, ge=2, description="at most so many, drawn by the seed; default: all")


class Measured(_Strict):
    """What recall is measured on, before and after: questions that name their chunk, none of them trained on."""

    corpus: str = Field(description="what `kinject corpus show` takes")
    questions: str = Field(description="a folder with a test split, or a Parquet or JSON Lines file")


def _none(value: Any) -> Any:
    """``none`` switches a part off; nothing behind the colon means its defaults."""
    return None if value == "none" else {} if value is None else value


class RetrieverRecipe(_Strict):
    """Everything about the training of one encoder."""

    name: str = Field(default="", description="of the run; default: the file's")
    retriever: str = Field(description="the encoder: `minilm`, a model's folder or Hub id, or NAME:PATH")
    revision: str | None = Field(default=None, description="Hub commit, tag or branch of the encoder")
    corpus: str = Field(description=f"`{TRAINING}`, or what `kinject corpus show` takes")
    corpus_revision: str | None = Field(default=None, description="Hub revision, edition, or start of the fingerprint")
    questions: str | None = Field(
        default=None, description="a bundled question set or a folder (its dev split), or a Parquet or JSON Lines file"
    )
    mlm: Annotated[Mlm | None, BeforeValidator(_none)] = Field(default=None, description="masked words, before pairs")
    contrastive: Annotated[Contrastive | None, BeforeValidator(_none)] = Field(
        default=Contrastive(), description="pairs of question and chunk; or none"
    )
    measure: Measured | Literal["newswire-held-out"] | None = Field(
        default=None, description=f"{HELD_OUT}, or {{corpus: …, questions: …}}"
    )
    warm_up: float = Field(default=0.1, ge=0, lt=1, description="share of the updates; then the rate falls to 0")
    max_grad_norm: float = Field(default=1.0, ge=0, description="gradient clipping; 0 is none")
    weight_decay: float = Field(default=0.0, ge=0, le=10, description="decoupled, of AdamW")
    precision: Literal["fp32", "bf16"] = Field(default="fp32", description="bf16: autocast; weights stay fp32")
    seed: int = Field(default=0, ge=0, lt=2**32, description="of order, masks, dropout and what is drawn")

    def plain(self) -> dict[str, Any]:
        """As JSON can hold it, defaults included."""
        return self.model_dump(mode="json")

    def public(self) -> dict[str, Any]:
        """As `plain`, fit to publish: of a path on this disk only the last name is left."""
        made = self.plain()
        for key in _PLACES:
            made[key] = None if made[key] is None else last_name(made[key])
        if isinstance(made["measure"], dict):
            made["measure"] = {key: last_name(place) for key, place in made["measure"].items()}
        return made

    def again(self) -> dict[str, Any]:
        """The `public` values as a file that `load_retriever` takes."""
        made = {key: value for key, value in self.public().items() if value is not None}
        return made if self.contrastive is not None else {**made, "contrastive": "none"}

    def effective(self) -> dict[str, Any]:
        """The keys that say how the weights come about, not from what."""
        return {key: value for key, value in self.plain().items() if key not in _WITHOUT_EFFECT}

    def fingerprint(self) -> str:
        """Of all keys but its name."""
        return fingerprint({key: value for key, value in self.public().items() if key != "name"})


def is_retriever(path: str | os.PathLike[str]) -> bool:
    """Whether a recipe's file is of a retriever; one that can't be read isn't, and `load_recipe` says why it can't."""
    try:
        return "retriever" in read_recipe(path)[1]
    except ArgumentError:
        return False


def load_retriever(path: str | os.PathLike[str], overrides: Sequence[str] = ()) -> RetrieverRecipe:
    """Reads and checks a retriever's recipe; arguments as of `load_recipe`.

    Raises:
        ArgumentError: with all problems, each with what to do.
    """
    file, raw, problems = read_recipe(path, overrides)
    recipe, more = check_retriever({"name": file.stem, **raw})
    if problems or more or recipe is None:
        raise ArgumentError([*problems, *more], f"the recipe {Path(file).name}")
    return recipe


def check_retriever(raw: Mapping[str, Any]) -> tuple[RetrieverRecipe | None, list[str]]:
    """A recipe's values as a recipe, or else all that is wrong with them, each with what to do."""
    clean, problems = without_tokens(dict(raw))
    try:
        recipe = RetrieverRecipe.model_validate(clean)
    except ValidationError as invalid:
        errors = invalid.errors()
        if any(error["loc"][:2] == ("measure", "Measured") and len(error["loc"]) > 2 for error in errors):
            errors = [error for error in errors if error["loc"][0] != "measure" or error["loc"][1] == "Measured"]
        problems += dict.fromkeys(_readable(error) for error in errors)
        broken = {str(error["loc"][0]) for error in errors}
        rest = {key: value for key, value in clean.items() if key not in broken}
        # Looked at all the same: a broken value must not hide what doesn't go together.
        recipe = RetrieverRecipe.model_validate({"retriever": "minilm", "corpus": TRAINING, **rest})
        if "questions" in broken or "corpus" in broken:
            return None, problems + _retriever_problems(recipe)
    problems += _combinations(recipe) + _retriever_problems(recipe)
    return (None if problems else recipe), problems


_WANTED = {
    "measure": f"{HELD_OUT}, or {{corpus: …, questions: …}}",
    "mlm": "none, or what is to differ from its defaults, such as {epochs: 1}",
    "contrastive": "none, or what is to differ from its defaults, such as {epochs: 1, batch: 32}",
}
_PARTS: dict[str, type[BaseModel]] = {"mlm": Mlm, "contrastive": Contrastive, "measure": Measured}


def _readable(error: Any) -> str:
    key, inner = str(error["loc"][0]), [str(part) for part in error["loc"][1:]]
    if key == "measure":  # a word or a part of several keys: errors name which of the two they speak of
        inner = inner[1:]
    part = _PARTS.get(key, RetrieverRecipe) if inner else RetrieverRecipe
    place, last = ".".join([key, *inner]), (inner or [key])[-1]
    if key in _WANTED and not inner:
        return f"{place}: must be {_WANTED[key]}"
    if error["type"] == "missing":
        return f"{place}: missing; give {part.model_fields[last].description}"
    if error["type"] == "extra_forbidden":
        near = difflib.get_close_matches(last, part.model_fields, n=1, cutoff=0.6)
        return f"{place}: no such key; {f'did you mean {near[0]}?' if near else 'remove it'}"
    return f"{place}: {error['input']!r}: {error['msg'][0].lower()}{error['msg'][1:]}"


def _retriever_problems(recipe: RetrieverRecipe) -> list[str]:
    from lm_eval_kinject.retrieval import trainable_problems  # here, as it takes seconds to import

    return trainable_problems(recipe.retriever, recipe.revision)


def _combinations(recipe: RetrieverRecipe) -> list[str]:
    problems = []
    if recipe.mlm is None and recipe.contrastive is None:
        problems.append("contrastive: none without mlm: nothing is trained; remove it, or add mlm")
    if recipe.corpus == TRAINING:
        if recipe.questions is not None:
            problems.append(f"questions with corpus {TRAINING}: it has its own; remove them, or name another corpus")
        if recipe.corpus_revision is not None:
            problems.append(f"corpus_revision with corpus {TRAINING}: it has none; remove it")
    elif recipe.contrastive is not None and recipe.questions is None:
        problems.append("questions: missing, and pairs are made of them; give a file or folder, or contrastive: none")
    if recipe.contrastive is None and recipe.questions is not None:
        problems.append("questions with contrastive: none: they aren't trained on; remove them")
    return problems
