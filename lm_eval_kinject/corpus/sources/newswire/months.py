"""Dated months of fictional news, whose language drifts as that of real news does.

What it is for: time as an axis. A model that read the news to March is asked about, or scored on, what was written in
June (Lazaridou et al. 2021, *Mind the Gap*, arXiv 2102.01951), with news that no model can have read elsewhere. What it
does not do: it writes no event anew (`world`, `realise` and `ask` do), and its drift is of no real newspaper's size.

The one idea: what may be drawn is a window over a longer list, and the window moves by a fixed share a month::

    names      a b c d e f g h i j k l m n …      a quarter of a pool leaves a month, and no name comes back
    month 1    └─────────────┘
    month 2        └─────────────┘
    month 3            └─────────────┘

Kinds of event, phrasings, fillers and the things that kinds choose from are short lists, so their windows go round in
`CYCLE` months: what two months share falls until they are half a cycle apart. No event happens twice, all months have
as many events and questions, and more months only add to those that were there.
"""

from __future__ import annotations

import calendar
import datetime
import random
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import chain
from typing import TypeVar

from lm_eval_kinject.corpus.sources.newswire.edition import Edition, EditionSize, Row, drawn
from lm_eval_kinject.corpus.sources.newswire.kind import ChoiceSlot, DateSlot, Kind, load_kinds
from lm_eval_kinject.corpus.sources.newswire.world import MONTHS, Era, Event, World
from lm_eval_kinject.errors import ArgumentError

__all__ = ["CYCLE", "EVENTS_A_MONTH", "TURNOVER", "make_months", "month_names"]

EVENTS_A_MONTH = 240
FEWEST_EVENTS = 200  # a month: about ten of a kind are asked about, which lend each other wrong options
MOST_MONTHS = 24

CYCLE = 24
"""Months after which the same kinds of event and phrasings are in use again."""

TURNOVER = 0.25
"""Share of the pools of people, towns and companies that leaves, and is replaced, from month to month."""

_KINDS_A_MONTH = 10
_PHRASINGS = 5  # of a sentence in a month: a chunk, three paraphrases and one for validation take one each
_FILLERS = 8
_CHOICES = 8
_PARAPHRASES, _VALIDATION_PARAPHRASES = 3, 1
_FEW_SHOT = 10  # chunks in a month

_T = TypeVar("_T")


def make_months(seed: int, first: str, count: int, events: int | None = None) -> Edition:
    """Consecutive months as one edition: its chunks, paraphrases and questions have a ``date``, YYYY-MM-DD.

    Args:
        seed: fixes everything, together with the number of events a month.
        first: the first month, YYYY-MM: it names and dates the events, and changes nothing else but the days.
        count: how many months.
        events: in all; `EVENTS_A_MONTH` for each month if not given.

    Raises:
        ArgumentError: an argument can't be used; all problems at once.
        CorpusError: more is asked for than there are names.
    """
    size = _month_size(first, count, events)
    kinds = load_kinds()
    months: list[Edition] = []
    taken: frozenset[tuple[str, ...]] = frozenset()
    for index, name in enumerate(month_names(first, count)):
        begin = datetime.date.fromisoformat(f"{name}-01")
        days = calendar.monthrange(begin.year, begin.month)[1]
        era = Era(name, begin, days, turnover=TURNOVER * index, taken=taken)
        world = World(seed, _in_use(kinds, seed, index), size.events, era=era)
        months.append(_dated(drawn(world, size, f"{seed}:{name}"), begin.year))
        taken |= {event.anchor for event in world.events}
    return _together(months, tuple(month_names(first, count)))


def month_names(first: str, count: int) -> list[str]:
    """``count`` months as YYYY-MM, the first of them ``first``."""
    start = datetime.date.fromisoformat(f"{first}-01")
    numbers = range(start.year * 12 + start.month - 1, start.year * 12 + start.month - 1 + count)
    return [f"{number // 12:04}-{number % 12 + 1:02}" for number in numbers]


def _month_size(first: str, count: int, events: int | None) -> EditionSize:
    problems = []
    if re.fullmatch(r"\d{4}-(0[1-9]|1[0-2])", first) is None or not 1900 <= int(first[:4]) <= 2200:
        problems.append(f"from={first} is no month: write 2026-01")
    if not 1 <= count <= MOST_MONTHS:
        problems.append(f"months={count}: give 1 to {MOST_MONTHS}, as kinds of event come round every {CYCLE} months")
    elif events is not None and (events % count or events // count < FEWEST_EVENTS):
        problems.append(
            f"events={events} in {count} months: all months have as many, {FEWEST_EVENTS} or more, so give "
            f"{count * max(FEWEST_EVENTS, events // count)}"
        )
    if problems:
        raise ArgumentError(problems, "the months")
    a_month = EVENTS_A_MONTH if events is None else events // count
    # Half are asked about. Of fewer, unasked ones would have to lend wrong options, which who trains on the others
    # alone knows by never having seen them.
    asked = a_month // 2
    return EditionSize(
        sources=asked,
        paraphrases=_PARAPHRASES,
        background=a_month - asked - _FEW_SHOT,
        few_shot_sources=_FEW_SHOT,
        validation_sources=asked // 2,
        validation_paraphrases=_VALIDATION_PARAPHRASES,
    )


# What is in use -------------------------------------------------------------------------------------------------------


def _in_use(kinds: Sequence[Kind], seed: int, index: int) -> tuple[Kind, ...]:
    """The kinds of event of a month, each as it is told then."""
    return tuple(_as_told(kind, seed, index) for kind in _window(kinds, _KINDS_A_MONTH, index, f"{seed}:kinds"))


def _as_told(kind: Kind, seed: int, index: int) -> Kind:
    """A kind with the phrasings, fillers and choices of a month; its questions are always the same."""

    def part(of: Sequence[_T], width: int, *purpose: object) -> tuple[_T, ...]:
        return _window(of, width, index, ":".join(map(str, (seed, kind.kind, *purpose))))

    sentences = (
        sentence.model_copy(update={"phrasings": part(sentence.phrasings, _PHRASINGS, "sentence", *sentence.slots)})
        for sentence in kind.sentences
    )
    slots = {
        name: slot.model_copy(update={"of": part(slot.of, _CHOICES, name)}) if isinstance(slot, ChoiceSlot) else slot
        for name, slot in kind.slots.items()
    }
    told = {"sentences": tuple(sentences), "slots": slots, "fillers": part(kind.fillers, _FILLERS, "fillers")}
    return kind.model_copy(update=told)


def _window(of: Sequence[_T], width: int, index: int, stream: str) -> tuple[_T, ...]:
    """``width`` neighbours in a shuffle of a list, begun further on every month, and back in `CYCLE` months."""
    mixed = list(of)
    random.Random(f"in use:{stream}").shuffle(mixed)
    begin = len(mixed) * (index % CYCLE) // CYCLE
    return tuple((mixed + mixed)[begin : begin + min(width, len(mixed))])


# Dates ----------------------------------------------------------------------------------------------------------------


def _dated(month: Edition, year: int) -> Edition:
    """A month whose rows have the day that their event's text names."""
    days = {event.id: _day(event, year) for event in month.events}

    def dated(rows: Iterable[Row], by: str) -> list[Row]:
        return [{**row, "date": days[row[by]]} for row in rows]

    return replace(
        month,
        chunks=dated(month.chunks, "id"),
        paraphrases=dated(month.paraphrases, "chunk"),
        validation=dated(month.validation, "chunk"),
        test=dated(month.test, "source_chunk"),
        dev=dated(month.dev, "source_chunk"),
    )


def _day(event: Event, year: int) -> str:
    """``2026-03-14`` of ``14 March``; every kind has a date."""
    slot = next(name for name, slot in event.kind.slots.items() if isinstance(slot, DateSlot))
    day, month = event.values[slot].split()
    return datetime.date(year, MONTHS.index(month) + 1, int(day)).isoformat()


def _together(months: Sequence[Edition], names: tuple[str, ...]) -> Edition:
    return replace(
        months[0],
        events=list(chain.from_iterable(month.events for month in months)),
        chunks=list(chain.from_iterable(month.chunks for month in months)),
        paraphrases=list(chain.from_iterable(month.paraphrases for month in months)),
        validation=list(chain.from_iterable(month.validation for month in months)),
        test=list(chain.from_iterable(month.test for month in months)),
        dev=list(chain.from_iterable(month.dev for month in months)),
        months=names,
    )
