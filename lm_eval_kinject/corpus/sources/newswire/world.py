"""Worlds: a pool of names and a list of events drawn from it, fixed by seed, realm and kinds.

People, towns and companies come from pools much smaller than the number of mentions, so that each recurs in several
events and a retriever has to match the event, not the name. The pools grow with the world's size, and an event may not
have the name of an earlier one: two worlds of one seed and different sizes are different worlds, though every event has
a random stream of its own. An `Era` makes a world one of several in a row, whose names come and go.
"""

from __future__ import annotations

import datetime
import random
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from lm_eval_kinject.corpus.sources.newswire import names
from lm_eval_kinject.corpus.sources.newswire.kind import (
    ChoiceSlot,
    CompanySlot,
    ComposeSlot,
    DateSlot,
    Kind,
    MoneySlot,
    NumberSlot,
    PersonSlot,
    RoleSlot,
    Slot,
    TownSlot,
    WeekdaySlot,
)
from lm_eval_kinject.errors import CorpusError

MONTHS = "January February March April May June July August September October November December".split()
_WEEKDAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
_MENTIONS_PER_PERSON = 5  # a name recurs about this often over a world
_EVENTS_PER_TOWN = 8
_EVENTS_PER_COMPANY = 12
_TRIES = 1000  # draws until an event's name is given up as used up


@dataclass(frozen=True)
class Event:
    """One fictional event: its kind and the rendered value of every slot."""

    id: str
    kind: Kind
    values: Mapping[str, str]

    @property
    def name(self) -> str:
        """The event's full name."""
        return self.kind.name.format(**self.values)

    @property
    def anchor(self) -> tuple[str, ...]:
        """What singles it out among the events of a world: its kind, and the values of the kind's anchor."""
        return (self.kind.kind, *(self.values[slot] for slot in self.kind.anchor))


@dataclass(frozen=True)
class Era:
    """The stretch of time that a world's events are of, and what went before it.

    Attributes:
        name: part of the events' ids and of their random streams; empty: there is no other era.
        first: its first day.
        days: how many days it has.
        turnover: how much of the pools of names has been replaced before it: 1.5 is a pool and a half.
        taken: anchors of earlier events, which none of its own may have.
    """

    name: str = ""
    first: datetime.date = datetime.date(2042, 1, 1)
    days: int = 365
    turnover: float = 0.0
    taken: frozenset[tuple[str, ...]] = frozenset()


@dataclass(frozen=True)
class World:
    """Events of one seed; ``size`` sets how many events the pools of names are made for.

    The kinds are all of one edition. Editions of one seed share no event: they have random streams of their own.
    """

    seed: int
    kinds: Sequence[Kind]
    size: int
    realm: names.Realm = "public"
    era: Era = Era()

    @property
    def edition(self) -> int:
        """The edition of the kinds."""
        return self.kinds[0].edition

    @property
    def name(self) -> str:
        """What its events' ids begin with: ``nw2042``, in edition 2 ``nw2042e2``, of an era ``nw2042-2026-03``."""
        edition = f"e{self.edition}" if self.edition > 1 else ""
        return f"nw{self.seed}{edition}" + (f"-{self.era.name}" if self.era.name else "")

    def rng(self, *purpose: object) -> random.Random:
        """The random stream of one purpose."""
        stream = "newswire" if self.edition == 1 else f"newswire{self.edition}"
        return random.Random(":".join(map(str, (stream, self.seed, self.realm, *purpose))))

    @cached_property
    def people(self) -> list[str]:
        """The pool of people."""
        return self._pool("people", names.people, max(40, 3 * self.size // _MENTIONS_PER_PERSON))

    @cached_property
    def towns(self) -> list[str]:
        """The pool of towns."""
        return self._pool("towns", names.towns, min(1500, max(24, self.size // _EVENTS_PER_TOWN)))

    @cached_property
    def companies(self) -> list[str]:
        """The pool of companies."""
        return self._pool("companies", names.companies, min(300, max(24, self.size // _EVENTS_PER_COMPANY)))

    def _pool(self, purpose: str, draw: Callable[[random.Random, int, names.Realm], list[str]], size: int) -> list[str]:
        """``size`` names; those drawn first have left where the era says so."""
        gone = round(size * self.era.turnover)
        return draw(self.rng(purpose), gone + size, self.realm)[gone:]

    @cached_property
    def events(self) -> list[Event]:
        """``size`` events, kinds in turn, no two of a kind with the same anchor."""
        events: list[Event] = []
        taken = set(self.era.taken)
        stream = ("event", self.era.name) if self.era.name else ("event",)
        for number in range(self.size):
            kind = self.kinds[number % len(self.kinds)]
            rng = self.rng(*stream, number)
            for _ in range(_TRIES):
                event = Event(f"{self.name}-{number:05d}", kind, self.draw_values(kind, rng))
                if event.anchor not in taken:
                    break
            else:
                raise CorpusError(
                    f"kind {kind.kind!r} has no name left for event {number} of {self.size}; ask for fewer events"
                )
            taken.add(event.anchor)
            events.append(event)
        return events

    def draw_values(
        self, kind: Kind, rng: random.Random, given: Mapping[str, str] | None = None, but: Collection[str] = ()
    ) -> dict[str, str]:
        """A value for every slot; no two slots of an event share one.

        Args:
            kind: whose slots.
            rng: the event's random stream.
            given: values that are settled already (roles must be).
            but: values that no other slot may have.
        """
        values: dict[str, str] = {}
        for slot, spec in kind.slots.items():
            if given and slot in given:
                values[slot] = given[slot]
                continue
            value = self.draw(spec, rng)
            while value in values.values() or value in but:
                value = self.draw(spec, rng)
            values[slot] = value
        return values

    def draw(self, spec: Slot, rng: random.Random) -> str:
        """A rendered value for one slot."""
        match spec:
            case PersonSlot():
                return rng.choice(self.people)
            case TownSlot():
                return rng.choice(self.towns)
            case CompanySlot():
                return rng.choice(self.companies)
            case DateSlot():
                day = self.era.first + datetime.timedelta(days=rng.randrange(self.era.days))
                return f"{day.day} {MONTHS[day.month - 1]}"
            case WeekdaySlot():
                return rng.choice(_WEEKDAYS)
            case NumberSlot():
                return _number(spec, rng)
            case MoneySlot():
                return _money(spec, rng)
            case ChoiceSlot():
                return rng.choice(spec.of)
            case RoleSlot():
                raise CorpusError("a role is not drawn by itself; give the event that it is a part in")
            case ComposeSlot():
                name = names.compose(rng, spec.parts, spec.join, self.realm)
                return f"{spec.prefix}{name}{spec.suffix}"


def _number(spec: NumberSlot, rng: random.Random) -> str:
    steps = round((spec.high - spec.low) / spec.step)
    value = spec.low + spec.step * rng.randint(0, steps)
    shown = f"{value:,.1f}" if spec.step < 1 else f"{round(value):,}"
    return f"{shown} {spec.unit}".strip()


def _money(spec: MoneySlot, rng: random.Random) -> str:
    value = f"{rng.uniform(spec.low, spec.high):.1f}"
    if spec.scale == "thousand":
        return f"{round(float(value) * 1000):,} crowns"
    return f"{value.removesuffix('.0')} {spec.scale} crowns"
