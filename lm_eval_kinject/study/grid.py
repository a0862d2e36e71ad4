"""A study as data: which models, variants, retrievers, K, shots and tasks, and the cells that this makes.

What it is for: `read_study` reads a YAML file (or a bundled one by its name), says everything that is wrong with it at
once, and `Study.cells` lists the grid. What it does not do: it trains, indexes, loads and scores nothing (`run`).

The one idea: a cell is one `lm_eval` command. Whatever the grid looks like, each cell has a name, the arguments of
``rag-hf`` and the options of ``lm_eval`` that score it, and nothing else decides its result.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from lm_eval_kinject.errors import ArgumentError
from lm_eval_kinject.models.arguments import ALL_SLOTS, split
from lm_eval_kinject.provenance import fingerprint
from lm_eval_kinject.stages import known_arguments, near

__all__ = ["Cell", "Study", "Variant", "bundled_studies", "read_study"]

FILES = Path(__file__).parent / "files"
MOST_CELLS = 100_000
_NAME = re.compile(r"[A-Za-z0-9][\w.+-]*")
_OF_THE_GRID = ("retriever", "k", "placement", "adapter")
_Plain = str | int | float | bool | None


def _listed(value: Any) -> Any:
    return value if isinstance(value, list | tuple) or value is None else [value]


def _named(value: Any) -> Any:
    """A list of names is a mapping of names to nothing in particular."""
    return {name: {} for name in value} if isinstance(value, list) else value


def _filled(value: Any) -> Any:
    """In YAML, ``base:`` with nothing behind it is None."""
    if isinstance(value, Mapping):
        return {name: {} if given is None else given for name, given in value.items()}
    return value


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Variant(_Strict):
    """How the knowledge gets into the weights; nothing given: not at all."""

    recipe: str | None = Field(default=None, description="trained here: a bundled recipe's name, or a file")
    set: dict[str, Any] = Field(default_factory=dict, description="over the recipe's values, as `kinject train --set`")
    adapter: str | None = Field(default=None, description="a name of `kinject adapters list`")
    peft: str | None = Field(default=None, description="an adapter: a folder or Hub id")
    pretrained: str | None = Field(default=None, description="a whole model in the base's place: a folder or Hub id")
    family: str | None = Field(
        default=None, description="its name in tables, which variants with other numbers of paraphrases share"
    )
    paraphrases: int | None = Field(default=None, ge=0, description="in training, for tables; a recipe knows it itself")

    def problems(self, name: str) -> list[str]:
        """What is wrong with it by itself."""
        sources = [s for s in ("recipe", "adapter", "peft", "pretrained") if getattr(self, s) is not None]
        found = []
        if len(sources) > 1:
            found.append(f"variants.{name}: {' and '.join(sources)} exclude each other; keep one")
        if self.set and self.recipe is None:
            found.append(f"variants.{name}.set: there is no recipe to set it in; name one, or remove it")
        return found


class Retrieved(_Strict):
    """A retriever of the grid."""

    k: Annotated[list[int] | None, BeforeValidator(_listed)] = Field(
        default=None, description="its own numbers of chunks; default: the study's"
    )
    arguments: dict[str, _Plain] = Field(
        default_factory=dict, description="of rag-hf, with this retriever alone; in reports the name stands for them"
    )
    retriever: str | None = Field(default=None, description="what rag-hf takes, if not the name here")
    variants: Annotated[list[str] | None, BeforeValidator(_listed)] = Field(
        default=None, description="with these alone, as controls often are; default: all"
    )


class Study(_Strict):
    """A study file."""

    title: str = Field(description="heads the report")
    about: str = Field(default="", description="a paragraph for the report")
    models: Annotated[dict[str, dict[str, Any]], BeforeValidator(lambda v: _filled(_named(v)))] = Field(
        description="name -> arguments of hf (pretrained, dtype, …); empty: the embedded reader"
    )
    variants: Annotated[dict[str, Variant], BeforeValidator(lambda v: _filled(_named(v)))] = Field(
        default={"base": Variant()}, description="name -> how the knowledge gets into the weights"
    )
    retrievers: Annotated[dict[str, Retrieved], BeforeValidator(lambda v: _filled(_named(v)))] = Field(
        default={}, description="name -> settings; none: closed book alone"
    )
    k: Annotated[list[int], BeforeValidator(_listed)] = Field(default=[0, 3], description="chunks in the prompt")
    shots: Annotated[list[int], BeforeValidator(_listed)] = Field(default=[0], description="examples in the prompt")
    tasks: Annotated[list[str], BeforeValidator(_listed)] = Field(description="of lm_eval")
    placement: Annotated[list[str], BeforeValidator(_listed)] = Field(default=["question"], description="of rag-hf")
    seeds: Annotated[list[int], BeforeValidator(_listed)] = Field(default=[0], description="one training a seed")
    axes: dict[str, Annotated[list[_Plain], BeforeValidator(_listed)]] = Field(
        default={}, description="any other argument of rag-hf -> its values; those of prompts vary with k > 0 only"
    )
    corpus: str | None = Field(default=None, description="of all cells; default: what the tasks declare")
    include_path: str | None = Field(default=None, description="folder with tasks of your own")
    batch_size: int = Field(default=8, ge=1, description="where lm_eval's own path is taken")
    limit: int | None = Field(default=None, ge=1, description="questions a task; for trying things out")
    apply_chat_template: bool = Field(default=False, description="as lm_eval's option")

    @cached_property
    def cells(self) -> tuple[Cell, ...]:
        """The grid, those of one load of weights and one kind of prompt side by side."""
        return tuple(self._cells())

    def _cells(self) -> Iterator[Cell]:
        for model, (name, variant) in itertools.product(self.models, self.variants.items()):
            for seed in self.seeds if variant.recipe else self.seeds[:1]:
                for task, shots in itertools.product(self.tasks, self.shots):
                    for way, arguments in self._prompts(name):
                        yield Cell(model, name, seed if variant.recipe else None, task, shots, arguments, way)

    def _prompts(self, variant: str | None = None) -> Iterator[tuple[str | None, tuple[tuple[str, Any], ...]]]:
        """Name of the retriever in this study and arguments of rag-hf, of one variant or all; closed book once."""
        if 0 in self.k:
            yield None, (("k", 0),)
        names = list(self.axes)
        for retriever, settings in self.retrievers.items():
            if variant is not None and settings.variants is not None and variant not in settings.variants:
                continue
            ks = settings.k if settings.k is not None else [k for k in self.k if k > 0]
            for placement in self.placement:
                for values in itertools.product(*(self.axes[name] for name in names)):
                    for k in ks:
                        given: dict[str, Any] = {"retriever": settings.retriever or retriever, "k": k}
                        if self.corpus:
                            given["corpus"] = self.corpus
                        if placement != "question" or len(self.placement) > 1:
                            given["placement"] = placement
                        given |= settings.arguments | dict(zip(names, values, strict=True))
                        yield retriever, tuple(given.items())

    def problems(self) -> list[str]:
        """What is wrong beyond the types of the values, a sentence each."""
        found = []
        for kind in ("models", "variants", "retrievers"):
            for name in getattr(self, kind):
                if not _NAME.fullmatch(name):
                    found.append(
                        f"{kind}.{name}: names take letters, digits and . _ + - (they name folders); rename it"
                    )
        for name, variant in self.variants.items():
            found += variant.problems(name)
        for kind in ("models", "variants", "k", "shots", "tasks", "placement", "seeds"):
            if not getattr(self, kind):
                found.append(f"{kind}: there is nothing in it, so there is no cell; name at least one")
            elif len(set(getattr(self, kind))) < len(getattr(self, kind)):
                found.append(f"{kind}: a value stands there twice; remove one")
        found += [f"k: {k} is negative; remove it" for k in self.k if k < 0]
        found += [f"shots: {n} is negative; remove it" for n in self.shots if n < 0]
        if not self.retrievers and any(k > 0 for k in self.k):
            found.append("k: chunks are asked for, but there are no retrievers; name one, or leave k: [0]")
        for name, settings in self.retrievers.items():
            found += [
                f"retrievers.{name}.variants: there is no variant {other}{near(other, self.variants)}; correct it"
                for other in settings.variants or ()
                if other not in self.variants
            ]
        found += self._wrong_axes()
        if found:
            return found
        count = self.count()
        if count > MOST_CELLS:
            return [f"this is a grid of {count:,} cells, more than the {MOST_CELLS:,} allowed; take axes or values out"]
        if not count:
            return ["the grid has no cell; give k a 0, or a retriever with some k"]
        return self._wrong_arguments()

    def count(self) -> int:
        """How many cells there are, without making them."""
        axes = len(self.placement)
        for values in self.axes.values():
            axes *= len(values)
        weights = {n: len(self.models) * (len(self.seeds) if v.recipe else 1) for n, v in self.variants.items()}
        cells = sum(weights.values()) * int(0 in self.k)
        for settings in self.retrievers.values():
            ks = settings.k if settings.k is not None else [k for k in self.k if k > 0]
            with_it = [n for n in weights if settings.variants is None or n in settings.variants]
            cells += sum(weights[n] for n in with_it) * len(ks) * axes
        return cells * len(self.tasks) * len(self.shots)

    def _wrong_axes(self) -> Iterator[str]:
        known = known_arguments(ALL_SLOTS)
        for name in self.axes:
            if name in _OF_THE_GRID:
                where = "variants" if name == "adapter" else {"retriever": "retrievers"}.get(name, name)
                yield f"axes.{name}: the study has {where}: for this; put it there"
            elif name not in known:
                yield f"axes.{name} is no argument of rag-hf{near(name, known)}; correct it"

    def _wrong_arguments(self) -> list[str]:
        """Every kind of prompt once through the check that rag-hf makes, and every model's arguments."""
        import inspect

        from lm_eval.models.huggingface import HFLM

        names = set(inspect.signature(HFLM.__init__).parameters) - {"self", "kwargs"}
        found: dict[str, None] = {}
        for name, given in self.models.items():
            found |= dict.fromkeys(f"models.{name}: {problem}" for problem in _problems(given, names))
        seen: dict[frozenset[tuple[str, Any]], str | None] = {}
        for way, arguments in self._prompts():
            found |= dict.fromkeys(_problems(dict(arguments), ()))
            first = seen.setdefault(frozenset(arguments), way)
            if first != way:
                found[f"retrievers.{way} asks for the same as retrievers.{first}; remove one"] = None
        return list(found)


def _problems(given: Mapping[str, Any], names: Any) -> Sequence[str]:
    try:
        split(given, names)
    except ArgumentError as error:
        return error.problems
    return ()


@dataclass(frozen=True)
class Cell:
    """One cell: one `lm_eval` command.

    Attributes:
        model: a name of the study's.
        variant: a name of the study's.
        seed: of the training; None where nothing is trained.
        task: of lm_eval.
        shots: examples in the prompt.
        arguments: of rag-hf, beside those that name the weights.
        way: name of the retriever in the study, which may stand for several of these; None closed book.
    """

    model: str
    variant: str
    seed: int | None
    task: str
    shots: int
    arguments: tuple[tuple[str, Any], ...]
    way: str | None = None

    @property
    def weights(self) -> str:
        """What is loaded: cells with the same are scored one after the other."""
        return f"{self.model}/{self.variant}" + ("" if self.seed is None else f"-seed{self.seed}")

    @property
    def prompts(self) -> str:
        """Cells of the same weights with the same are scored in one pass."""
        return f"{self.task}/{self.shots}-shot"

    @property
    def name(self) -> str:
        """Unique in its study, fit for a folder."""
        given = dict(self.arguments)
        parts = [f"k{given.pop('k')}"]
        if "retriever" in given:
            parts.insert(0, str(given.pop("retriever")))
        parts += [f"{name}={value}" for name, value in given.items()]
        last = re.sub(r"[^\w.+=,-]", "_", ",".join(parts))
        if last != ",".join(parts) or len(last) > 100:  # something was replaced: told apart by a digest
            last = f"{last[:80]}-{fingerprint([list(pair) for pair in self.arguments])[:8]}"
        return f"{self.weights}/{self.prompts}/{last}"


def bundled_studies() -> dict[str, Path]:
    """Name -> file of the studies that come with the package."""
    return {file.stem: file for file in sorted(FILES.glob("*.yaml"))}


def read_study(spec: str | Path) -> Study:
    """Reads a study.

    Args:
        spec: a YAML file, or the name of a bundled study.

    Raises:
        ArgumentError: with everything that is wrong with it.
    """
    bundled = bundled_studies()
    path = bundled.get(str(spec), Path(spec).expanduser())
    where = f"the study {spec}"
    if not path.is_file():
        guess = near(str(spec), bundled)
        raise ArgumentError(
            f"no such file{guess}; pass a YAML file, or one of the bundled studies: {', '.join(bundled)}", where
        )
    try:
        said = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ArgumentError(f"not a YAML file: {' '.join(str(error).split())}; mend it", where) from error
    if not isinstance(said, dict):
        raise ArgumentError("it must be a mapping (title:, models:, tasks:, …); see docs/study.md", where)
    try:
        study = Study.model_validate(said)
    except ValidationError as error:
        raise ArgumentError([_said(problem, said) for problem in error.errors()], where) from error
    problems = study.problems()
    if problems:
        raise ArgumentError(problems, where)
    return study


def _said(problem: Any, given: Mapping[str, Any]) -> str:
    """One of pydantic's findings as a sentence."""
    place = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        last = str(problem["loc"][-1])
        known = Study.model_fields if len(problem["loc"]) == 1 else {**Variant.model_fields, **Retrieved.model_fields}
        return f"{place} is unknown{near(last, set(known))}; remove or correct it"
    if problem["type"] == "missing":
        return f"{place} is missing; add it"
    return f"{place}: {problem['msg'][:1].lower()}{problem['msg'][1:]} (it is {problem['input']!r}); correct it"
