"""Stages: the steps from a question to a score, each registered by name, each declaring its own arguments.

What it is for: a step of the pipeline is a *slot* (``order``), and what may stand in it is a *stage* (``relevance``,
``sides``): a frozen dataclass whose fields are the arguments that it takes. `assemble` turns ``--model_args`` into one
stage a slot and says everything that is wrong; `reference` lists all arguments for the docs. What this module does not
do: it knows no slot; those are declared by the rooms that have them, and put in order by `models.pipeline`.

The one idea: a variant is one class in one room. Registered, it can be asked for, is checked, documented and named in
the results like those that were there before::

    @register
    @dataclass(frozen=True)
    class Sides(Order):
        # a docstring, whose first line goes into the docs

        name: ClassVar[str] = "sides"               # order=sides

        def arrange(self, hits): ...
"""

from __future__ import annotations

import dataclasses
import difflib
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeVar

from lm_eval_kinject.errors import ArgumentError

__all__ = [
    "SLOTS",
    "Check",
    "Line",
    "Open",
    "Slot",
    "Stage",
    "argument",
    "arguments_of",
    "assemble",
    "known_arguments",
    "near",
    "number",
    "one_of",
    "optional",
    "positive",
    "reference",
    "register",
    "share",
    "slot",
    "switch",
    "text",
    "whole",
]

Check = Callable[[str, Any], Any]
"""``(name, value as lm_eval parsed it) -> the value to use``; raises `ArgumentError` saying what to do."""


# What an argument may be ----------------------------------------------------------------------------------------------


def whole(least: int, unit: str) -> Check:
    """A whole number of ``unit``, ``least`` or more."""

    def check(name: str, value: Any) -> int:
        if isinstance(value, float) and value.is_integer():
            value = int(value)  # lm_eval's command line reads -3 as -3.0
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ArgumentError(f"{name}={value} must be a whole number of {unit}, {least} or more; correct it")
        return value

    return check


def positive(name: str, value: Any) -> float:
    """A finite number above 0."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
        raise ArgumentError(f"{name}={value} must be a number above 0; correct it")
    return float(value)


def number(name: str, value: Any) -> float:
    """A finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < float("inf"):
        raise ArgumentError(f"{name}={value} must be a number; correct it")
    return float(value)


def share(name: str, value: Any) -> float:
    """A number from 0 to 1."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise ArgumentError(f"{name}={value} must be a number from 0 to 1; correct it")
    return float(value)


def switch(name: str, value: Any) -> bool:
    """True or false."""
    if not isinstance(value, bool):
        raise ArgumentError(f"{name}={value} must be true or false; correct it")
    return value


def text(name: str, value: Any) -> str:
    """A name or a path."""
    if not isinstance(value, str | os.PathLike) or not str(value).strip():
        raise ArgumentError(f"{name}={value} must be a name or a path; correct it")
    return os.fspath(value)


def one_of(*allowed: str) -> Check:
    """One of some words."""

    def check(name: str, value: Any) -> str:
        word = str(value)
        if word not in allowed:
            raise ArgumentError(f"{name}={word} is unknown{near(word, allowed)}; pass {' or '.join(allowed)}")
        return word

    return check


def optional(check: Check) -> Check:
    """What `check` takes, or nothing."""
    return lambda name, value: None if value is None else check(name, value)


def near(word: str, known: Collection[str]) -> str:
    """`` (did you mean …?)`` where a known name is close, else nothing."""
    close = difflib.get_close_matches(word, sorted(known), n=2, cutoff=0.6)
    return f" (did you mean {' or '.join(close)}?)" if close else ""


# Stages ---------------------------------------------------------------------------------------------------------------


def argument(about: str, check: Check, default: Any, *, shown: str | None = None) -> Any:
    """A dataclass field that is an argument.

    Args:
        about: its line in the docs.
        check: what it may be.
        default: taken where it isn't given.
        shown: how the docs show the default, if not as it is.
    """
    return field(default=default, metadata={"about": about, "check": check, "shown": shown})


@dataclass(frozen=True)
class Open:
    """Makes a stage the one that takes what names no other stage of its slot, such as a model's id.

    Attributes:
        field: the stage's own that gets the value; not an `argument`, as the slot's argument is it.
        shown: how docs and messages write the value, for example ``MODEL``.
        about: what it may be: "the Hub id or folder of a model".
        takes: whether a value may be that; what isn't is taken for a misspelt name.
    """

    field: str
    shown: str
    about: str
    takes: Callable[[str], bool]


@dataclass(frozen=True)
class Stage:
    """What may stand in a slot. A subclass is a frozen dataclass; its docstring's first line goes into the docs.

    Fields made by `argument` are arguments. Others are derived from them in `build`.
    """

    slot: ClassVar[str]
    name: ClassVar[str]
    open: ClassVar[Open | None] = None

    @property
    def asked(self) -> str:
        """What the slot's argument was: the stage's name, or the value that an open stage took."""
        return self.name if self.open is None else str(getattr(self, self.open.field))

    @classmethod
    def problems(cls, given: Mapping[str, Any]) -> list[str]:
        """What is wrong with arguments together; ``given`` are those of all stages that were given and are sound."""
        return []

    @classmethod
    def build(cls, given: Mapping[str, Any]) -> Stage:
        """Makes the stage of its own sound arguments; what needs more than the dataclass's defaults overrides it."""
        return cls(**given)

    def provenance(self) -> dict[str, Any]:
        """What a result says of the stage: its name and arguments, plain and path-free."""
        return {"name": self.name, **{name: getattr(self, name) for name in arguments_of(type(self))}}


def arguments_of(stage: type[Stage]) -> dict[str, dataclasses.Field[Any]]:
    """The arguments of a stage by name."""
    return {f.name: f for f in dataclasses.fields(stage) if "about" in f.metadata}


@dataclass(frozen=True)
class Slot:
    """A step of the pipeline.

    Attributes:
        name: of the step; where there is a choice, also of the argument that makes it.
        about: what the step does: the argument's line in the docs.
        default: the stage that stands there if none is asked for; None: there is one stage, and no choice.
        stages: what may stand there, by name.
    """

    name: str
    about: str
    default: str | None = None
    stages: dict[str, type[Stage]] = field(default_factory=dict)

    def choose(self, value: Any) -> type[Stage]:
        """The stage asked for (lm_eval reads the word ``none`` as None).

        Raises:
            ArgumentError: it is unknown.
        """
        if self.default is None:
            return next(iter(self.stages.values()))
        word = "none" if value is None else str(value)
        named = [stage.name for stage in self.stages.values() if stage.open is None]
        if word in named:
            return self.stages[word]
        offered = f"pass {self.name}={' or '.join(named)}"
        for stage in self.stages.values():
            if stage.open is not None:
                if stage.open.takes(word):
                    return stage
                offered += f", or {stage.open.about}"
        raise ArgumentError(f"{self.name}={word} is unknown{near(word, named)}; {offered}")


SLOTS: dict[str, Slot] = {}
"""All slots declared so far, by name."""

_Declared = TypeVar("_Declared", bound=type[Stage])


def slot(name: str, about: str, default: str | None = None) -> Slot:
    """Declares a slot; see `Slot`."""
    return SLOTS.setdefault(name, Slot(name, about, default))


def register(stage: _Declared) -> _Declared:
    """Puts a stage into its slot, under its name.

    Raises:
        ValueError: the slot is unknown, the name is taken, the docstring is missing, or an argument of another slot
            has the same name; another stage of the slot is open.
    """
    if stage.slot not in SLOTS:
        raise ValueError(f"{stage.__name__}: there is no slot {stage.slot!r}; there are {', '.join(SLOTS)}")
    stages = SLOTS[stage.slot].stages
    if stages.get(stage.name, stage).__qualname__ != stage.__qualname__:
        raise ValueError(f"{stage.slot}={stage.name} is taken by {stages[stage.name].__name__}; choose another name")
    others = [other for other in stages.values() if other.open is not None and other.name != stage.name]
    if stage.open is not None and others:
        raise ValueError(f"{stage.__name__}: {others[0].__name__} takes what names no stage of {stage.slot} already")
    if not (stage.__doc__ or "").strip() or (stage.__doc__ or "").startswith(f"{stage.__name__}("):
        raise ValueError(f"{stage.__name__} has no docstring; its first line is what the docs say of it")
    elsewhere = {name for other in _stages() if other.slot != stage.slot for name in arguments_of(other)}
    if taken := sorted((elsewhere | SLOTS.keys() - {stage.slot}) & arguments_of(stage).keys()):
        raise ValueError(f"{stage.__name__}: another slot has the arguments {', '.join(taken)}; choose other names")
    stages[stage.name] = stage
    return stage


def _stages() -> Iterator[type[Stage]]:
    for one in SLOTS.values():
        yield from one.stages.values()


def known_arguments(slots: Sequence[str]) -> set[str]:
    """Names of all arguments that stages of these slots take, the slots' own included."""
    names = {name for one in slots for stage in SLOTS[one].stages.values() for name in arguments_of(stage)}
    return names | {one for one in slots if SLOTS[one].default is not None}


def assemble(slots: Sequence[str], given: Mapping[str, Any]) -> tuple[dict[str, Stage], list[str]]:
    """One stage a slot, from arguments.

    Args:
        slots: the pipeline's, in order.
        given: arguments by name, all of them among `known_arguments`.

    Returns:
        The stages by slot (empty if anything is wrong), and what is wrong, a sentence each.
    """
    problems: list[str] = []
    chosen: dict[str, type[Stage]] = {}
    for name in slots:
        try:
            chosen[name] = SLOTS[name].choose(given.get(name, SLOTS[name].default))
        except ArgumentError as error:
            problems += error.problems
    sound: dict[str, dict[str, Any]] = {name: {} for name in chosen}
    for name, stage in chosen.items():
        if stage.open is not None:
            sound[name][stage.open.field] = str(given[name])
        for own, declared in arguments_of(stage).items():
            if own in given:
                try:
                    sound[name][own] = declared.metadata["check"](own, given[own])
                except ArgumentError as error:
                    problems += error.problems
    problems += _of_no_use(slots, chosen, given)
    together = {own: value for values in sound.values() for own, value in values.items()}
    for name, stage in chosen.items():
        if SLOTS[name].default is not None:
            together[name] = stage.name if stage.open is None else str(given[name])
    for stage in chosen.values():
        problems += stage.problems(together)
    if problems:
        return {}, problems
    return {name: stage.build(sound[name]) for name, stage in chosen.items()}, []


def _of_no_use(slots: Sequence[str], chosen: Mapping[str, type[Stage]], given: Mapping[str, Any]) -> Iterator[str]:
    """Arguments that only a stage takes which wasn't chosen."""
    for name in slots:
        if name not in chosen:
            continue  # its choice is wrong, which has been said
        takers: dict[str, list[str]] = {}
        for stage in SLOTS[name].stages.values():
            for own in arguments_of(stage):
                takers.setdefault(own, []).append(_shown(stage))
        for own in sorted((takers.keys() & given.keys()) - arguments_of(chosen[name]).keys()):
            needed = " or ".join(f"{name}={taker}" for taker in takers[own])
            yield f"{own}= has no meaning for {name}={_shown(chosen[name])}; remove it, or pass {needed}"


def _shown(stage: type[Stage]) -> str:
    """How a stage is asked for, in docs and messages."""
    return stage.name if stage.open is None else stage.open.shown


# Docs -----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Line:
    """A line of the reference: an argument, what it means, its default as the docs show it."""

    argument: str
    about: str
    default: str


def reference(slots: Sequence[str]) -> list[Line]:
    """All arguments of the slots' stages, in the pipeline's order; a choice lists what there is to choose from."""
    lines: dict[str, Line] = {}
    for name in slots:
        one = SLOTS[name]
        if one.default is not None:
            choices = "; ".join(map(_choice, one.stages.values()))
            lines[name] = Line(name, f"{one.about}. {choices}", f"`{one.default}`")
        for stage in one.stages.values():
            for own, declared in arguments_of(stage).items():
                takers = [_shown(other) for other in one.stages.values() if own in arguments_of(other)]
                where = "" if one.default is None else f" ({', '.join(f'`{name}={taker}`' for taker in takers)})"
                shown = declared.metadata["shown"]
                default = shown if shown is not None else f"`{declared.default}`"
                lines.setdefault(own, Line(own, declared.metadata["about"] + where, default))
    return list(lines.values())


def _choice(stage: type[Stage]) -> str:
    what = f"`{stage.name}`" if stage.open is None else f"`{stage.open.shown}`, {stage.open.about}"
    return f"{what}: {_first_line(stage)}"


def _first_line(stage: type[Stage]) -> str:
    line = (stage.__doc__ or "").strip().splitlines()[0].rstrip(".")
    return line[:1].lower() + line[1:]
