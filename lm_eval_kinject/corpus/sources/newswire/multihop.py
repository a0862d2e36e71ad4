"""Questions that take two chunks: what follows from an event is told elsewhere, and without the name.

An event's chunk says who won the Marble Knight Open; another chunk, its *consequence*, says that "the winner of the
Marble Knight Open" will unveil a fountain. Asked who will unveil it, one needs both: the consequence for the part in
the event, the event for who had that part. No chunk has the fountain and the name (tests/unit/test_newswire.py looks).

A question names the fountain and the event, so that a single search can find both chunks, but not the part. Wrong
options are the event's other people as far as they go: who has read the event's chunk alone still has to guess. A
second wording (``bridge``) names only the fountain, for retrievers that search again with what they found.

`consequences/*.yaml` are event kinds with a slot of type ``role``; `kinds/*.yaml` say under ``roles`` how each of their
people is spoken of.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from lm_eval_kinject.corpus.sources.newswire.ask import OPTIONS
from lm_eval_kinject.corpus.sources.newswire.kind import ORIGIN, Kind, PersonSlot, load_kinds, slots_in
from lm_eval_kinject.corpus.sources.newswire.world import Event, World
from lm_eval_kinject.errors import CorpusError
from lm_eval_kinject.records import Question

CONSEQUENCES_DIR = Path(__file__).parent / "consequences"
FIRST_EDITION = 2
"""The first edition with consequences: kinds have had ``roles`` since."""

FEWEST_PEOPLE = 3
"""Of an event with a consequence: so many options are then of its own chunk."""

_TRIES = 1000  # draws until the name of a consequence is given up as used up


@dataclass(frozen=True)
class Consequence:
    """An event that follows from another; ``slot`` is the part in ``origin`` that ``event`` speaks of."""

    event: Event
    origin: Event
    slot: str

    @property
    def answer(self) -> str:
        """Who had the part."""
        return self.origin.values[self.slot]


def people(event: Event) -> list[str]:
    """The names of an event's people."""
    return [event.values[slot] for slot, spec in event.kind.slots.items() if isinstance(spec, PersonSlot)]


def can_follow(event: Event) -> bool:
    """Whether an event has people enough to ask for one of them by a consequence."""
    return len(people(event)) >= FEWEST_PEOPLE


def consequences_of(world: World, origins: Iterable[Event], kinds: Sequence[Kind] | None = None) -> list[Consequence]:
    """One consequence of each event, kinds in turn (default: all), no two of a kind with the same anchor.

    None of its own values is one of the event that it follows from. They also hold ``origin``, that event's full
    name, which is part of the role and therefore stated.
    """
    kinds = kinds or load_kinds(CONSEQUENCES_DIR, edition=world.edition)
    taken: set[tuple[str, ...]] = set()
    return [_consequence(world, origin, kinds[n % len(kinds)], taken) for n, origin in enumerate(origins)]


def _consequence(world: World, origin: Event, kind: Kind, taken: set[tuple[str, ...]]) -> Consequence:
    rng = world.rng("consequence", origin.id)
    slot = rng.choice(sorted(origin.kind.roles))
    role = {kind.role_slots[0]: origin.kind.roles[slot].format(event=origin.name)}
    for _ in range(_TRIES):
        values = world.draw_values(kind, rng, given=role, but=origin.values.values())
        anchor = (kind.kind, *(values[name] for name in kind.anchor))
        if anchor not in taken:
            break
    else:
        raise CorpusError(f"kind {kind.kind!r} has no name left for what follows from {origin.id}; ask for less of it")
    taken.add(anchor)
    return Consequence(Event(f"{origin.id}-next", kind, {**values, ORIGIN: origin.name}), origin, slot)


class MultihopExaminer:
    """Writes questions that take two chunks.

    Args:
        consequences: all that are asked about; where an event has too few people, wrong options are those of others.
        seed: fixes options, wording and the places of the right answers.
    """

    def __init__(self, consequences: Sequence[Consequence], seed: int) -> None:
        self._rng = random.Random(f"multihop:{seed}")
        # Once for each mention: who is mentioned more is a right option more often, and must be a wrong one as often.
        self._people = [name for one in consequences for name in people(one.origin)]
        self._places: list[int] = []

    def ask(self, consequence: Consequence, identifier: str) -> Question:
        """The question that a consequence raises.

        ``source_chunk`` is the consequence's; ``meta`` holds ``source_chunks``, this and the event's, and ``bridge``.
        """
        event, origin = consequence.event, consequence.origin
        (asked,) = event.kind.role_slots
        wordings = event.kind.questions[asked]
        named = self._rng.choice([w for w in wordings if ORIGIN in slots_in(w)])
        bridge = self._rng.choice([w for w in wordings if ORIGIN not in slots_in(w)])
        wrong = self._wrong_options(consequence)
        place = self._next_place()
        return Question(
            id=identifier,
            question=named.format(**event.values),
            choices=(*wrong[:place], consequence.answer, *wrong[place:]),
            answer=place,
            source_chunk=event.id,
            meta={
                "source_chunks": [event.id, origin.id],
                "bridge": bridge.format(**event.values),
                "kind": event.kind.kind,
                "slot": asked,
                "origin_kind": origin.kind.kind,
                "origin_slot": consequence.slot,
            },
        )

    def _wrong_options(self, consequence: Consequence) -> list[str]:
        nearby = [name for name in people(consequence.origin) if name != consequence.answer]
        chosen = self._rng.sample(nearby, min(len(nearby), OPTIONS - 1))
        out = {*people(consequence.origin), *people(consequence.event)}
        elsewhere = [name for name in self._people if name not in out]
        if len(set(elsewhere)) + len(chosen) < OPTIONS - 1:
            raise CorpusError("too few consequences to find wrong options; draw more events")
        while len(chosen) < OPTIONS - 1:
            name = self._rng.choice(elsewhere)
            if name not in chosen:
                chosen.append(name)
        self._rng.shuffle(chosen)
        return chosen

    def _next_place(self) -> int:
        if not self._places:
            self._places = list(range(OPTIONS))
            self._rng.shuffle(self._places)
        return self._places.pop()
