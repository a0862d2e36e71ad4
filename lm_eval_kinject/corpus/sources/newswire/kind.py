"""Event kinds: the language of the newswire, read from `kinds/*.yaml` and checked in full.

A kind knows its slots, the sentences that state them, and the questions that ask for them; it draws nothing. The
format is described in docs/newswire-kinds.md.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lm_eval_kinject.errors import CorpusError

KINDS_DIR = Path(__file__).parent / "kinds"
READER_HELD_OUT_KINDS = ("chess_open", "flood", "literary_award", "merger")
"""Kinds that the embedded reader never trains on, so that reading can be told from matching templates."""

HELD_OUT_PHRASINGS = 2
"""How many phrasings at the end of each sentence's list the reader never trains on."""

FEWEST_PHRASINGS = 13
"""Of a sentence: a chunk, ten paraphrases and two for validation take one each, and none twice."""

FEWEST_FILLERS = 12

# The C loader reads the same YAML about ten times faster; wheels of PyYAML carry it, some distributions don't.
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_SLOT = re.compile(r"\{(\w+)\}")


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class PersonSlot(_Strict):
    """A person of the world's pool."""

    type: Literal["person"]


class TownSlot(_Strict):
    """A town of the world's pool."""

    type: Literal["town"]


class CompanySlot(_Strict):
    """A company of the world's pool."""

    type: Literal["company"]


class DateSlot(_Strict):
    """A day of the year, rendered ``14 March``."""

    type: Literal["date"]


class WeekdaySlot(_Strict):
    """A day of the week."""

    type: Literal["weekday"]


class NumberSlot(_Strict):
    """A number with its unit, rendered ``4,250 homes``."""

    type: Literal["number"]
    low: float
    high: float
    step: float = 1
    unit: str = ""


class MoneySlot(_Strict):
    """A sum in crowns, rendered ``3.4 million crowns``."""

    type: Literal["money"]
    low: float
    high: float
    scale: Literal["thousand", "million", "billion"]


class ChoiceSlot(_Strict):
    """One of a fixed list of noun phrases."""

    type: Literal["choice"]
    of: tuple[str, ...]


class ComposeSlot(_Strict):
    """A name made of one entry from each list in ``parts``."""

    type: Literal["compose"]
    parts: tuple[tuple[str, ...], ...]
    join: str = " "
    prefix: str = ""
    suffix: str = ""


Slot = Annotated[
    PersonSlot | TownSlot | CompanySlot | DateSlot | WeekdaySlot | NumberSlot | MoneySlot | ChoiceSlot | ComposeSlot,
    Field(discriminator="type"),
]


class Sentence(_Strict):
    """One statement and the ways to say it; ``phrasings`` have no final period."""

    slots: tuple[str, ...]
    phrasings: tuple[str, ...]


class Kind(_Strict):
    """One kind of event. ``anchor`` slots single an event out; ``name`` is built from them."""

    kind: str
    anchor: tuple[str, ...]
    name: str
    subjects: tuple[str, ...]
    slots: dict[str, Slot]
    sentences: tuple[Sentence, ...]
    questions: dict[str, tuple[str, ...]]
    fillers: tuple[str, ...]

    def for_reader_training(self) -> Kind:
        """This kind without the phrasings (two a sentence, one a question) that the reader must never see."""
        return self.model_copy(
            update={
                "sentences": tuple(
                    s.model_copy(update={"phrasings": s.phrasings[:-HELD_OUT_PHRASINGS]}) for s in self.sentences
                ),
                "questions": {slot: asked[:-1] for slot, asked in self.questions.items()},
            }
        )

    def held_out_only(self) -> Kind:
        """This kind with only the phrasings that the reader never trains on."""
        return self.model_copy(
            update={
                "sentences": tuple(
                    s.model_copy(update={"phrasings": s.phrasings[-HELD_OUT_PHRASINGS:]}) for s in self.sentences
                ),
                "questions": {slot: asked[-1:] for slot, asked in self.questions.items()},
            }
        )


def slots_in(template: str) -> list[str]:
    """The slot names of a template, in order, with repetitions."""
    return _SLOT.findall(template)


def read_kind(path: Path) -> Kind:
    """Read one kind file.

    Raises:
        CorpusError: the file isn't YAML, has wrong fields, or breaks a rule of the format; all problems are listed.
    """
    try:
        kind = Kind.model_validate(yaml.load(path.read_text(encoding="utf-8"), Loader=_LOADER))
    except (yaml.YAMLError, ValidationError) as error:
        raise CorpusError(f"{path.name} is not an event kind: {error}") from error
    problems = list(_problems(kind, path.stem))
    if problems:
        raise CorpusError("\n".join([f"{len(problems)} problems in {path.name}:", *(f"  - {p}" for p in problems)]))
    return kind


@lru_cache(maxsize=4)
def load_kinds(folder: Path = KINDS_DIR) -> tuple[Kind, ...]:
    """All kinds of a folder, sorted by name."""
    return tuple(read_kind(path) for path in sorted(folder.glob("*.yaml")))


def _problems(kind: Kind, stem: str) -> Iterable[str]:
    """Everything in a kind that breaks docs/newswire-kinds.md."""
    if kind.kind != stem:
        yield f"kind is {kind.kind!r}; it must equal the file's name, {stem!r}"
    if sorted(slots_in(kind.name)) != sorted(kind.anchor):
        yield f"name must contain exactly the anchor slots {list(kind.anchor)}"
    stated = [slot for sentence in kind.sentences for slot in sentence.slots]
    if sorted(stated) != sorted(kind.slots):
        yield f"each slot must be stated by exactly one sentence: {sorted(stated)} against {sorted(kind.slots)}"
    if not set(kind.anchor) <= set(kind.sentences[0].slots):
        yield "the lead (first sentence) must state every anchor slot"
    for slot, spec in kind.slots.items():
        if isinstance(spec, ComposeSlot) and min(map(len, spec.parts)) < 24:
            yield f"slot {slot}: each list of parts needs at least 24 entries (has {min(map(len, spec.parts))})"
        if isinstance(spec, ComposeSlot) and any(len(set(p)) < len(p) for p in spec.parts):
            yield f"slot {slot}: a part is listed twice"
        if isinstance(spec, ChoiceSlot) and len(set(spec.of)) < 24:
            yield f"slot {slot}: needs at least 24 different choices (has {len(set(spec.of))})"
        if isinstance(spec, NumberSlot) and (spec.high - spec.low) / spec.step < 59:
            yield f"slot {slot}: low, high and step leave fewer than 60 values"
    for number, sentence in enumerate(kind.sentences, 1):
        yield from _phrasing_problems(number, sentence)
    yield from _question_problems(kind)
    if len(set(kind.fillers)) < FEWEST_FILLERS:
        yield f"needs at least {FEWEST_FILLERS} different fillers (has {len(set(kind.fillers))})"
    for filler in kind.fillers:
        if set(slots_in(filler)) - {"event"} or re.search(r"\d", filler) or filler.endswith("."):
            yield f"filler with a slot, a digit or a final period: {filler!r}"


def _phrasing_problems(number: int, sentence: Sentence) -> Iterable[str]:
    where = f"sentence {number}"
    if len(set(sentence.phrasings)) < FEWEST_PHRASINGS:
        yield f"{where}: needs at least {FEWEST_PHRASINGS} different phrasings (has {len(set(sentence.phrasings))})"
    if sum("," not in p for p in sentence.phrasings) < 4:
        yield f"{where}: needs at least 4 phrasings without a comma"
    for phrasing in sentence.phrasings:
        found = slots_in(phrasing)
        named = [slot for slot in found if slot != "event"]
        if sorted(named) != sorted(sentence.slots) or found.count("event") > (0 if number == 1 else 1):
            yield f"{where}: slots {found} instead of {list(sentence.slots)}: {phrasing!r}"
        if phrasing.endswith(".") or re.search(r"\d", phrasing) or not (phrasing[0].isupper() or phrasing[0] == "{"):
            yield f"{where}: final period, digit or small first letter: {phrasing!r}"
        if re.search(r"\b[Aa]n? \{(?!event)", phrasing):
            yield f"{where}: 'a' or 'an' before a slot: {phrasing!r}"
        if re.search(r"\b(he|she|his|her|him|hers)\b", phrasing, re.IGNORECASE):
            yield f"{where}: assumes a gender: {phrasing!r}"


def _question_problems(kind: Kind) -> Iterable[str]:
    if not 4 <= len(kind.questions) <= 8:
        yield f"asks for {len(kind.questions)} slots; 4 to 8 are wanted"
    for slot, phrasings in kind.questions.items():
        if slot in kind.anchor or slot not in kind.slots:
            yield f"questions ask for {slot!r}, which is an anchor or no slot"
        if len(set(phrasings)) < 4:
            yield f"questions for {slot}: at least 4 phrasings are wanted (has {len(set(phrasings))})"
        for phrasing in phrasings:
            if sorted(slots_in(phrasing)) != sorted(kind.anchor) or not phrasing.endswith("?"):
                yield f"question must hold each anchor slot once and end with '?': {phrasing!r}"
