"""The file of a sequence: a recipe in which the place of the corpus is taken by a list of months.

What it is for: `load_sequence` reads it and reports every problem at once, those of the recipe among them;
`MonthSequence.recipe` is the recipe of one month. What it does not do: it opens no corpus and no questions.

The one idea: a month's training is an ordinary run. So its recipe is made by laying the month's own keys over those
that all months share, and is checked as any other is.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Mapping
from collections.abc import Sequence as Listed
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from kinject_trainer.recipe import Recipe, check_recipe, read_recipe
from lm_eval_kinject.errors import ArgumentError

__all__ = ["Merge", "Mode", "Month", "MonthSequence", "is_sequence", "load_sequence"]

Mode = Literal["continued", "adapter-a-month", "retrained"]

_NAME = re.compile(r"[A-Za-z0-9][\w.-]*")
_DATED = re.compile(r"\d{4}-\d{2}(-\d{2})?")
_OF_A_MONTH = ("corpus", "corpus_revision", "paraphrases_file", "validation_file")
"""Keys of a recipe that each month has for itself."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Month(_Strict):
    """One month: what is trained on, and what is asked about it."""

    month: Annotated[str, BeforeValidator(str)] = Field(description="its name, such as 2026-01; names folders")
    corpus: str = Field(description="what `kinject corpus` takes")
    corpus_revision: str | None = Field(default=None, description="as in a recipe")
    paraphrases_file: str | None = Field(default=None, description="default: `paraphrases.parquet` beside the corpus")
    validation_file: str | None = Field(default=None, description="default: `validation.parquet` beside the corpus")
    questions: str | None = Field(
        default=None, description="a question set's folder, a folder with a test split, or a Parquet or JSON Lines file"
    )

    def keys(self) -> dict[str, Any]:
        """What it lays over the recipe."""
        return {key: getattr(self, key) for key in _OF_A_MONTH if getattr(self, key) is not None}


class Merge(_Strict):
    """How the months' adapters become one, by PEFT's ``add_weighted_adapter``; or none is made (``routed``).

    ``stacked`` is PEFT's ``cat``, the exact sum of what the adapters add, with the ranks summed up. ``weighted`` is its
    ``linear``, ``ties`` and ``dare_ties`` are its own: these combine the matrices A by themselves and B by themselves,
    which is not the sum of their products.
    """

    kind: Literal["stacked", "weighted", "ties", "dare_ties", "routed"] = "stacked"
    weight: float | None = Field(
        default=None, gt=0, le=100, description="of each adapter; default 1, for `weighted` 1/months"
    )
    density: float | None = Field(default=None, gt=0, le=1, description="share that TIES and DARE keep; default 0.5")

    @property
    def prunes(self) -> bool:
        """Whether a density has a meaning."""
        return self.kind in ("ties", "dare_ties")


def _kind(value: Any) -> Any:
    """A merge without constants can be named by its kind alone."""
    return {"kind": value} if isinstance(value, str) else value


class _File(_Strict):
    mode: Mode = Field(description="continued, adapter-a-month or retrained")
    merge: Annotated[Merge | None, BeforeValidator(_kind)] = Field(
        default=None, description="of adapter-a-month: stacked, weighted, ties, dare_ties or routed"
    )
    sequence: tuple[Month, ...] = Field(description="the months, the earliest first")


@dataclass(frozen=True)
class MonthSequence:
    """A checked sequence.

    Attributes:
        name: the file's.
        mode: `continued`: one model goes on from month to month; `adapter-a-month`: each month an adapter on the same
            base; `retrained`: each month the base anew, on all months so far.
        merge: how adapters are put together; None in the other modes.
        months: in their order.
        shared: the recipe's values, less the months'.
    """

    name: str
    mode: Mode
    merge: Merge | None
    months: tuple[Month, ...]
    shared: Mapping[str, Any]

    @property
    def merges(self) -> bool:
        """Whether one adapter is made of several."""
        return self.merge is not None and self.merge.kind != "routed"

    @property
    def combines(self) -> bool:
        """Whether months' corpora are put together: to be trained on, or to say what a merged adapter knows."""
        return self.mode == "retrained" or self.merges

    def named(self, number: int) -> str:
        """A month's run, as cards and folders have it."""
        return f"{self.name}-{self.months[number].month}"

    def recipe(self, number: int, *, model: str | None = None, corpus: str | None = None) -> Recipe:
        """The recipe of a month.

        Args:
            number: of the month, from 0.
            model: in the base's place: the month before, as a folder.
            corpus: in the place of the month's own: all months so far, as a folder.

        Raises:
            ArgumentError: it has problems, which `load_sequence` has told before.
        """
        recipe, problems = check_recipe(self._values(number, model, corpus))
        if recipe is None:
            raise ArgumentError(problems, f"the sequence {self.name}")
        return recipe

    def _values(self, number: int, model: str | None, corpus: str | None) -> dict[str, Any]:
        own = self.months[number].keys() if corpus is None else {"corpus": corpus}
        values = {**self.shared, **own, "name": self.named(number)}
        if model is not None:
            values = {key: value for key, value in values.items() if key != "model_revision"} | {"model": model}
            if self.shared["model"] == "reader" and "general_text" not in values:
                # What is measured without a file depends on the base's name, which is another one now.
                values["forgetting"] = False
        return values


def is_sequence(path: str | os.PathLike[str]) -> bool:
    """Whether a recipe's file lists months; one that can't be read doesn't, and `load_recipe` says why it can't."""
    try:
        return "sequence" in read_recipe(path)[1]
    except ArgumentError:
        return False


def load_sequence(path: str | os.PathLike[str], overrides: Listed[str] = ()) -> MonthSequence:
    """Reads and checks a sequence.

    Args:
        path: a YAML file; see `is_sequence`.
        overrides: as of `load_recipe`.

    Raises:
        ArgumentError: with all problems, each with what to do.
    """
    file, raw, problems = read_recipe(path, overrides)
    shared = {key: value for key, value in raw.items() if key not in _File.model_fields}
    problems += [f"{key}: each month of the sequence has its own; put it there" for key in _OF_A_MONTH if key in shared]
    shared = {key: value for key, value in shared.items() if key not in _OF_A_MONTH}
    said: _File | None = None
    try:
        said = _File.model_validate({key: raw[key] for key in _File.model_fields if key in raw})
    except ValidationError as invalid:
        problems += [_readable(error) for error in invalid.errors()]
    months = (said.sequence if said else ()) or (Month(month="?", corpus="?"),)
    # Months differ in where their texts are, and nothing else: one that is checked stands for all.
    recipe, more = check_recipe({"name": file.stem, **shared, **months[0].keys()})
    problems += more
    if said is not None:
        problems += _wrong_names(said.sequence) + _combinations(said, raw if recipe is None else recipe.plain())
    if problems or said is None:
        raise ArgumentError(problems, f"the sequence {file.name}")
    name = str(shared.pop("name", file.stem))
    merge = (said.merge or Merge()) if said.mode == "adapter-a-month" else None
    return MonthSequence(name, said.mode, merge, said.sequence, shared)


def _readable(error: Any) -> str:
    place = ".".join(str(part) for part in error["loc"])
    part = Month if error["loc"][0] == "sequence" else Merge if error["loc"][0] == "merge" else _File
    if error["type"] == "missing":
        return f"{place}: missing; give {part.model_fields[str(error['loc'][-1])].description}"
    if error["type"] == "extra_forbidden":
        near = difflib.get_close_matches(str(error["loc"][-1]), part.model_fields, n=1, cutoff=0.6)
        return f"{place}: no such key; {f'did you mean {near[0]}?' if near else 'remove it'}"
    return f"{place}: {error['input']!r}: {error['msg'][0].lower()}{error['msg'][1:]}"


def _wrong_names(months: Listed[Month]) -> list[str]:
    names = [month.month for month in months]
    if not names:
        return ["sequence: lists no month; give one or more, such as {month: 2026-01, corpus: …}"]
    problems = [
        f"month {name!r}: takes letters, digits and . _ - (it names folders); rename it"
        for name in names
        if not _NAME.fullmatch(name)
    ]
    problems += ["month base: is what the start is called; rename it"] if "base" in names else []
    problems += [f"month {name}: stands twice; give each another name" for name in set(names) if names.count(name) > 1]
    if all(_DATED.fullmatch(name) for name in names) and names != sorted(names):
        problems.append("the months are not in the order of their dates: put the earliest first")
    return problems


def _combinations(said: _File, recipe: Mapping[str, Any]) -> list[str]:
    """What doesn't go together; ``recipe`` as it stands where it is broken, else with its defaults."""
    problems = []
    method, variant = recipe.get("method", "lora"), recipe.get("variant")
    if said.mode == "continued" and method != "full":
        problems.append(
            f"mode continued with method {method}: it goes on with the weights themselves; take method: full, or mode: "
            f"adapter-a-month"
        )
    if said.mode == "adapter-a-month" and method in ("full", "cartridge"):
        problems.append(f"mode adapter-a-month with method {method}: take method: lora, or another mode")
    if variant == "ft-robust":
        problems.append("variant ft-robust: a sequence trains on months' texts; say ft-reg or ft-par")
    problems += _merge_problems(said, str(method))
    merged = said.mode == "adapter-a-month" and (said.merge or Merge()).kind != "routed"
    if recipe.get("stream") and (said.mode == "retrained" or merged):
        problems.append("stream: the months are put together, which reads them whole; remove it")
    return problems


def _merge_problems(said: _File, method: str) -> list[str]:
    if said.mode != "adapter-a-month":
        return [] if said.merge is None else [f"merge: has no meaning with mode {said.mode}; remove it"]
    merge = said.merge or Merge()
    problems = []
    if merge.kind != "routed" and method in ("rslora", "dora", "qlora", "loftq"):
        problems.append(
            f"merge {merge.kind} with method {method}: PEFT puts plain LoRA adapters together; take method: lora, or "
            f"merge: routed"
        )
    if merge.density is not None and not merge.prunes:
        problems.append(f"merge.density: has a meaning with ties and dare_ties alone, not {merge.kind}; remove it")
    if merge.weight is not None and merge.kind == "routed":
        problems.append("merge.weight: nothing is weighted where questions are routed; remove it")
    return problems
