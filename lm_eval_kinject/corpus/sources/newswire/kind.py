"""Event kinds: the language of the newswire, read from `kinds/*.yaml` and checked in full.

A kind knows its slots, the sentences that state them, and the questions that ask for them; it draws nothing. The
format is described in docs/newswire-kinds.md.

One file serves every edition: what bears ``since: 2`` is there from edition 2 on, and `load_kinds` leaves out what is
newer than the edition asked for. Edition 1 therefore stays what it was, whatever is added.
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

EDITIONS = (1, 2)
DEFAULT_EDITION = 1
"""The edition that is made where none is named; the embedded reader and the bundled adapters know this one."""

TWICE_SINCE_2 = ("person", "date", "town", "money", "number")
"""Types of which an edition-2 chunk has two values or more, so that the one asked for has to be told from another."""

ORIGIN = "origin"
"""In questions about a role: the full name of the event that it is a part in."""

_MOST_ASKED = {1: 8, 2: 18}  # slots that a kind's questions may ask for, by edition

# The C loader reads the same YAML about ten times faster; wheels of PyYAML carry it, some distributions don't.
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_SLOT = re.compile(r"\{(\w+)\}")


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _Slot(_Strict):
    since: Literal[1, 2] = 1


class PersonSlot(_Slot):
    """A person of the world's pool."""

    type: Literal["person"]


class TownSlot(_Slot):
    """A town of the world's pool."""

    type: Literal["town"]


class CompanySlot(_Slot):
    """A company of the world's pool."""

    type: Literal["company"]


class DateSlot(_Slot):
    """A day of the year, rendered ``14 March``."""

    type: Literal["date"]


class WeekdaySlot(_Slot):
    """A day of the week."""

    type: Literal["weekday"]


class NumberSlot(_Slot):
    """A number with its unit, rendered ``4,250 homes``."""

    type: Literal["number"]
    low: float
    high: float
    step: float = 1
    unit: str = ""


class MoneySlot(_Slot):
    """A sum in crowns, rendered ``3.4 million crowns``."""

    type: Literal["money"]
    low: float
    high: float
    scale: Literal["thousand", "million", "billion"]


class ChoiceSlot(_Slot):
    """One of a fixed list of noun phrases."""

    type: Literal["choice"]
    of: tuple[str, ...]


class ComposeSlot(_Slot):
    """A name made of one entry from each list in ``parts``."""

    type: Literal["compose"]
    parts: tuple[tuple[str, ...], ...]
    join: str = " "
    prefix: str = ""
    suffix: str = ""


class RoleSlot(_Slot):
    """A person spoken of by their part in another event ("the winner of the Marble Knight Open"), never named."""

    type: Literal["role"]


Slot = Annotated[
    PersonSlot
    | TownSlot
    | CompanySlot
    | DateSlot
    | WeekdaySlot
    | NumberSlot
    | MoneySlot
    | ChoiceSlot
    | ComposeSlot
    | RoleSlot,
    Field(discriminator="type"),
]


class Sentence(_Strict):
    """One statement and the ways to say it; ``phrasings`` have no final period."""

    since: Literal[1, 2] = 1
    slots: tuple[str, ...]
    phrasings: tuple[str, ...]


class _KindFields(_Strict):
    """What a kind has in its file and in every edition alike."""

    kind: str
    anchor: tuple[str, ...]
    name: str
    subjects: tuple[str, ...]
    slots: dict[str, Slot]
    sentences: tuple[Sentence, ...]
    fillers: tuple[str, ...]
    roles: dict[str, str] = {}
    """Slot → how its value is spoken of by who doesn't name it, with ``{event}`` for the event's full name; since 2."""


class Kind(_KindFields):
    """One kind of event in one edition. ``anchor`` slots single an event out; ``name`` is built from them."""

    questions: dict[str, tuple[str, ...]]
    edition: int = 1

    @property
    def role_slots(self) -> list[str]:
        """Its slots for parts in other events; only a consequence (`multihop`) has one."""
        return [name for name, slot in self.slots.items() if isinstance(slot, RoleSlot)]

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


class _Asked(_Strict):
    since: Literal[1, 2] = 1
    phrasings: tuple[str, ...]


class _KindFile(_KindFields):
    """A kind file whole: what all editions have, each part with the edition that it came with."""

    questions: dict[str, tuple[str, ...] | _Asked]

    def at(self, edition: int) -> Kind:
        """The kind as it is in one edition: without what came later."""
        slots = {name: slot for name, slot in self.slots.items() if slot.since <= edition}
        newer = self.slots.keys() - slots.keys()
        asked = {
            name: asked if isinstance(asked, _Asked) else _Asked(phrasings=asked)
            for name, asked in self.questions.items()
            if name not in newer
        }
        return Kind(
            kind=self.kind,
            anchor=self.anchor,
            name=self.name,
            subjects=self.subjects,
            slots=slots,
            sentences=tuple(sentence for sentence in self.sentences if sentence.since <= edition),
            questions={name: one.phrasings for name, one in asked.items() if one.since <= edition},
            fillers=self.fillers,
            roles=self.roles if edition > 1 else {},
            edition=edition,
        )


def slots_in(template: str) -> list[str]:
    """The slot names of a template, in order, with repetitions."""
    return _SLOT.findall(template)


def read_kind(path: Path, edition: int = DEFAULT_EDITION) -> Kind:
    """Read one kind file as it is in one edition.

    Raises:
        CorpusError: the file isn't YAML, has wrong fields, or breaks a rule of the format; all problems are listed.
    """
    try:
        file = _KindFile.model_validate(yaml.load(path.read_text(encoding="utf-8"), Loader=_LOADER))
    except (yaml.YAMLError, ValidationError) as error:
        raise CorpusError(f"{path.name} is not an event kind: {error}") from error
    kind = file.at(edition)
    problems = list(_problems(kind, path.stem))
    if problems:
        raise CorpusError("\n".join([f"{len(problems)} problems in {path.name}:", *(f"  - {p}" for p in problems)]))
    return kind


@lru_cache(maxsize=8)
def load_kinds(folder: Path = KINDS_DIR, *, edition: int = DEFAULT_EDITION) -> tuple[Kind, ...]:
    """All kinds of a folder as they are in one edition, sorted by name.

    Raises:
        CorpusError: there is no such edition, or a file is wrong (`read_kind`).
    """
    if edition not in EDITIONS:
        raise CorpusError(f"there is no edition {edition} of the newswire; name one of {', '.join(map(str, EDITIONS))}")
    return tuple(read_kind(path, edition) for path in sorted(folder.glob("*.yaml")))


def _problems(kind: Kind, stem: str) -> Iterable[str]:
    """Everything in a kind that breaks docs/newswire-kinds.md."""
    if kind.kind != stem:
        yield f"kind is {kind.kind!r}; it must equal the file's name, {stem!r}"
    if sorted(slots_in(kind.name)) != sorted(kind.anchor):
        yield f"name must contain exactly the anchor slots {list(kind.anchor)}"
    stated = [slot for sentence in kind.sentences for slot in sentence.slots]
    # What came with edition 2 may name an older fact again, to set its own off against it.
    old = [slot for sentence in kind.sentences if sentence.since == 1 for slot in sentence.slots]
    new = [slot for sentence in kind.sentences if sentence.since > 1 for slot in sentence.slots if slot not in old]
    if sorted(old + new) != sorted(kind.slots):
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
    for slot, role in kind.roles.items():
        if slot in kind.anchor or not isinstance(kind.slots.get(slot), PersonSlot):
            yield f"role of {slot!r}, which is no person or an anchor"
        if slots_in(role) != ["event"] or not role.startswith("the "):
            yield f"a role must start with 'the' and hold {{event}} once and no other slot: {role!r}"
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
    most = _MOST_ASKED[kind.edition]
    if kind.role_slots:
        yield from _role_question_problems(kind)
        return
    if not 4 <= len(kind.questions) <= most:
        yield f"asks for {len(kind.questions)} slots; 4 to {most} are wanted"
    for slot, phrasings in kind.questions.items():
        if slot in kind.anchor or slot not in kind.slots:
            yield f"questions ask for {slot!r}, which is an anchor or no slot"
        if len(set(phrasings)) < 4:
            yield f"questions for {slot}: at least 4 phrasings are wanted (has {len(set(phrasings))})"
        for phrasing in phrasings:
            if sorted(slots_in(phrasing)) != sorted(kind.anchor) or not phrasing.endswith("?"):
                yield f"question must hold each anchor slot once and end with '?': {phrasing!r}"


def _role_question_problems(kind: Kind) -> Iterable[str]:
    """A consequence asks for its one role: in four wordings with the other event's name, and in four without."""
    if len(kind.role_slots) != 1 or list(kind.questions) != kind.role_slots:
        yield f"a kind with a role has one and asks for it alone; roles {kind.role_slots}, asked {list(kind.questions)}"
    for asked in kind.questions.values():
        for wanted in ([*kind.anchor, ORIGIN], [*kind.anchor]):
            found = {p for p in asked if sorted(slots_in(p)) == sorted(wanted) and p.endswith("?")}
            if len(found) < 4:
                yield f"at least 4 questions with exactly the slots {wanted} are wanted (has {len(found)})"
        if other := [p for p in asked if set(slots_in(p)) - {ORIGIN} != set(kind.anchor)]:
            yield f"questions without the anchor or with other slots: {other}"
