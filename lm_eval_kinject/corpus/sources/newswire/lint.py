"""The editor who reads kind files: checks every rule and prints sample chunks and questions.

Run it as ``python -m lm_eval_kinject.corpus.sources.newswire.lint FILE… [--samples N] [--edition N]``.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections import Counter
from itertools import repeat
from pathlib import Path

from lm_eval_kinject.corpus.sources.newswire.ask import content_overlap
from lm_eval_kinject.corpus.sources.newswire.kind import EDITIONS, ORIGIN, TWICE_SINCE_2, Kind, read_kind
from lm_eval_kinject.corpus.sources.newswire.realise import MAX_WORDS, MIN_WORDS, missing_facts, realise
from lm_eval_kinject.corpus.sources.newswire.world import Event, World
from lm_eval_kinject.errors import CorpusError

MOST_OVERLAP = 0.35
"""Mean share of its content words that a question may share with the texts and still count as worded otherwise."""


def review(kind: Kind, samples: int) -> tuple[list[str], list[str]]:
    """What to mend in a kind, and sample lines to read."""
    events = _events(kind)
    problems = _given_away(kind)
    lengths: list[int] = []
    for event in events:
        for number in range(12):
            text = realise(event, number)
            lengths.append(len(text.split()))
            if missing := missing_facts(event.values, text):
                problems.append(f"{missing} not stated in: {text}")
    if min(lengths) < MIN_WORDS or max(lengths) > MAX_WORDS:
        problems.append(f"chunks have {min(lengths)} to {max(lengths)} words; {MIN_WORDS} to {MAX_WORDS} are wanted")
    texts = [realise(event) for event in events]
    for slot, phrasings in kind.questions.items():
        overlaps = [statistics.mean(map(content_overlap, repeat(p), events, texts)) for p in phrasings]
        if min(overlaps) > MOST_OVERLAP:
            listed = ", ".join(f"{o:.2f}" for o in overlaps)
            problems.append(
                f"questions for {slot}: all share over {MOST_OVERLAP:.0%} of their words with texts ({listed})"
            )
    shown = [f"words: mean {statistics.mean(lengths):.0f}, {min(lengths)} to {max(lengths)}"]
    for event in events[:samples]:
        shown += [
            "",
            realise(event, 0),
            *(
                q[i % len(q)].format(**event.values) + f" -> {event.values[s]}"
                for i, (s, q) in enumerate(kind.questions.items())
            ),
        ]
    return problems, shown


def _events(kind: Kind) -> list[Event]:
    """Sixty events of a kind; the roles in a consequence are all the same one."""
    world = World(seed=7, kinds=[kind], size=60)
    if not kind.role_slots:
        return world.events
    name = "the Marble Knight Open"
    role = dict.fromkeys(kind.role_slots, f"the winner of {name}")
    drawn = [world.draw_values(kind, world.rng("lint", n), given=role) for n in range(world.size)]
    return [Event(f"lint-{n}", kind, {**values, ORIGIN: name}) for n, values in enumerate(drawn)]


def _given_away(kind: Kind) -> list[str]:
    """Types that edition 2 wants at least twice in a chunk; what only follows from another event is free of that."""
    if kind.edition == 1 or kind.role_slots:
        return []
    found = Counter[str](slot.type for slot in kind.slots.values())
    return [f"has {found[name]} {name} slots; at least 2 are wanted" for name in TWICE_SINCE_2 if found[name] < 2]


def main() -> int:
    """Check the files named on the command line; 1 if anything is to be mended."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--samples", type=int, default=3)
    parser.add_argument("--edition", type=int, choices=EDITIONS, default=EDITIONS[-1])
    arguments = parser.parse_args()
    bad = 0
    for path in arguments.files:
        try:
            problems, shown = review(read_kind(path, arguments.edition), arguments.samples)
        except CorpusError as error:
            problems, shown = [str(error)], []
        sys.stdout.write(
            "\n".join([f"== {path.name}: {'OK' if not problems else 'TO MEND'}", *problems[:20], *shown]) + "\n"
        )
        bad += bool(problems)
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
