"""Four-option questions about events, built so that the options alone give nothing away.

Wrong options are values of the same slot in other events (so all four come from one distribution and each occurs in
the corpus) and, where the chunk holds another value of the same type, one of those. The place of the right answer is
dealt evenly over the whole set.
"""

from __future__ import annotations

import random
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from lm_eval_kinject.corpus.sources.newswire.kind import (
    ChoiceSlot,
    CompanySlot,
    DateSlot,
    Kind,
    MoneySlot,
    NumberSlot,
    PersonSlot,
    Slot,
    TownSlot,
)
from lm_eval_kinject.corpus.sources.newswire.world import Event
from lm_eval_kinject.errors import CorpusError
from lm_eval_kinject.records import Question

OPTIONS = 4
_STOP_WORDS = frozenset(
    "a an and are as at be been by did do does for from had has have how in into is it its of on or that the their "
    "there this to was were what when where which who whom whose why will with".split()
)


def family(kind: Kind, slot: str) -> tuple[str, ...]:
    """What makes two slots' values exchangeable as options: the type, and for the rest the very same slot or unit.

    Since edition 2 numbers and sums of one unit and range are exchangeable too: their values are drawn alike.
    """
    spec: Slot = kind.slots[slot]
    if isinstance(spec, PersonSlot | TownSlot | CompanySlot | DateSlot):
        return (spec.type,)
    if isinstance(spec, NumberSlot | MoneySlot) and kind.edition > 1:
        unit = spec.unit if isinstance(spec, NumberSlot) else spec.scale
        return (spec.type, unit, f"{spec.low} to {spec.high}")
    if isinstance(spec, NumberSlot):
        return (spec.type, spec.unit, kind.kind, slot)
    if isinstance(spec, MoneySlot):
        return (spec.type, spec.scale, kind.kind, slot)
    return (spec.type, kind.kind, slot)


class Examiner:
    """Writes questions about the events of one world.

    Args:
        events: all events of the corpus; wrong options come from them.
        seed: fixes options, wording and the places of the right answers.
    """

    def __init__(self, events: Sequence[Event], seed: int | str) -> None:
        self._rng = random.Random(f"examiner:{seed}")
        self._same_slot: Mapping[tuple[str, str], list[str]] = _values_by_slot(events)
        self._places: list[int] = []

    def ask(self, event: Event, slot: str, identifier: str, phrasing: int | None = None) -> Question:
        """One question for one slot of an event; ``phrasing`` picks the wording (default: at random)."""
        wordings = event.kind.questions[slot]
        wording = self._rng.choice(wordings) if phrasing is None else wordings[phrasing % len(wordings)]
        right = event.values[slot]
        wrong = self._wrong_options(event, slot)
        place = self._next_place()
        choices = (*wrong[:place], right, *wrong[place:])
        return Question(
            id=identifier,
            question=wording.format(**event.values),
            choices=choices,
            answer=place,
            source_chunk=event.id,
            meta={"kind": event.kind.kind, "slot": slot},
        )

    def _wrong_options(self, event: Event, slot: str) -> list[str]:
        right = event.values[slot]
        group = family(event.kind, slot)
        nearby = [v for s, v in event.values.items() if s != slot and family(event.kind, s) == group and v != right]
        chosen = [self._rng.choice(nearby)] if nearby else []
        inside = set(event.values.values())
        elsewhere = [v for v in self._same_slot[event.kind.kind, slot] if v not in inside]
        spec = event.kind.slots[slot]
        if len(set(elsewhere)) < OPTIONS - 1 and isinstance(spec, ChoiceSlot):  # a small edition repeats choices
            elsewhere += [v for v in spec.of if v not in inside]
        if len(set(elsewhere)) < OPTIONS - 1:
            raise CorpusError(
                f"too few events of kind {event.kind.kind!r} to find wrong options for {slot!r}; draw more events"
            )
        while len(chosen) < OPTIONS - 1:
            value = self._rng.choice(elsewhere)
            if value not in chosen:
                chosen.append(value)
        self._rng.shuffle(chosen)
        return chosen

    def _next_place(self) -> int:
        if not self._places:
            self._places = list(range(OPTIONS))
            self._rng.shuffle(self._places)
        return self._places.pop()


def _values_by_slot(events: Iterable[Event]) -> dict[tuple[str, str], list[str]]:
    """All values that a slot takes over the events of its kind, one entry an event."""
    values: dict[tuple[str, str], list[str]] = defaultdict(list)
    for event in events:
        for slot, value in event.values.items():
            values[event.kind.kind, slot].append(value)
    return values


def content_overlap(wording: str, event: Event, text: str) -> float:
    """Share of a question's content words, names left out, that the text uses too."""
    bare = re.sub(r"\{\w+\}", " ", wording)
    words = {w for w in re.findall(r"[a-z]+", bare.lower()) if w not in _STOP_WORDS}
    named = {w for anchor in event.kind.anchor for w in re.findall(r"[a-z]+", event.values[anchor].lower())}
    asked = words - named
    return len(asked & set(re.findall(r"[a-z]+", text.lower()))) / max(1, len(asked))
