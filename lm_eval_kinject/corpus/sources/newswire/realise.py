"""From an event to text: choose phrasings, order and join sentences, refer back, add filler.

Realisation ``n`` of an event takes the n-th entry of a fixed shuffle of each sentence's phrasings, so that the ten
paraphrases of a chunk differ in every sentence. Every realisation states every slot (`missing_facts` checks it).
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping

from lm_eval_kinject.corpus.sources.newswire.kind import Sentence, slots_in
from lm_eval_kinject.corpus.sources.newswire.names import TOWN_FRONTS
from lm_eval_kinject.corpus.sources.newswire.world import Event

_JOINS = ("; ", ", and ")
_JOIN_RATE = 0.35
_FULL_NAME_RATE = 0.35
MIN_WORDS, MAX_WORDS = 60, 180

# How many fillers are wanted, by edition. A chunk of edition 2 has more facts, and some encoders cut at 256 tokens.
_FILLERS = {1: (0, 1, 1, 2, 2, 3), 2: (0, 0, 0, 1)}

# What makes a value part of another one. Before it: a letter or digit, digits that its own would go on ("1," before
# "240"), a front that makes another town (with its capital: "a new Dunhaven bridge" is at Dunhaven). Then: behind it.
_RUNS_INTO = re.compile(rf"(\w|\d[.,]|\b({'|'.join(front for front in dict.fromkeys(TOWN_FRONTS) if front)}))$")
_GOES_ON = re.compile(r"\w|[.,]\d")


def realise(event: Event, number: int = 0, *, stream: str = "text") -> str:
    """The event as one chunk of text, 60 to 180 words.

    Args:
        event: what happened.
        number: which realisation; different numbers give different wording of the same facts.
        stream: names the random stream, so that training worlds can draw wordings of their own.
    """
    rng = random.Random(f"{stream}:{event.id}:{number}")
    lead, *rest = event.kind.sentences
    rng.shuffle(rest)
    clauses = [phrasing(event, sentence, number, stream=stream) for sentence in [lead, *rest]]
    sentences = _join(event, clauses, rng)
    words = sum(len(s.split()) for s in sentences)
    fillers = list(event.kind.fillers)
    rng.shuffle(fillers)
    wanted = rng.choice(_FILLERS[event.kind.edition])
    while fillers and (wanted > 0 or words < MIN_WORDS):
        filler = _render(fillers.pop(), event, rng, start=True) + "."
        if words + len(filler.split()) > MAX_WORDS:
            break
        sentences.insert(rng.randint(1, len(sentences)), filler)
        words += len(filler.split())
        wanted -= 1
    return " ".join(sentences)


def missing_facts(facts: Mapping[str, str], text: str) -> list[str]:
    """The slots whose value the text doesn't state, of ``facts`` (slot → value)."""
    return [slot for slot, value in facts.items() if not states(text, value)]


def states(text: str, value: str) -> bool:
    """Whether a text states a value: as whole words and numbers, and not as the end of another town's name.

    "24 days" is not in "124 days", nor "240 homes" in "1,240 homes", nor "Dunhaven" in "Port Dunhaven". Case doesn't
    count, since a value may open a sentence.
    """
    lowered, wanted = text.lower(), value.lower()
    start = lowered.find(wanted)
    while start >= 0:
        if not _RUNS_INTO.search(text[:start]) and not _GOES_ON.match(text, start + len(wanted)):
            return True
        start = lowered.find(wanted, start + 1)
    return False


def phrasing(event: Event, sentence: Sentence, number: int = 0, *, stream: str = "text") -> str:
    """The template of one sentence in realisation ``number``: the list is shuffled once an event, taken in turn."""
    order = list(sentence.phrasings)
    random.Random(f"{stream}:{event.id}:{sentence.slots}").shuffle(order)
    return order[number % len(order)]


def _join(event: Event, clauses: list[str], rng: random.Random) -> list[str]:
    """Sentences with capital and period; neighbours without commas are sometimes joined into one."""
    sentences: list[str] = []
    open_for_join = False
    for place, clause in enumerate(clauses):
        plain = "," not in clause and ";" not in clause
        # Not onto the lead: it introduces the event and stands alone.
        if open_for_join and plain and place > 1 and rng.random() < _JOIN_RATE:
            tail = _render(clause, event, rng, start=False)
            sentences[-1] = sentences[-1][:-1] + rng.choice(_JOINS) + tail + "."
            open_for_join = False
        else:
            sentences.append(_render(clause, event, rng, start=True) + ".")
            open_for_join = plain
    return sentences


def _render(template: str, event: Event, rng: random.Random, *, start: bool) -> str:
    """Fill a template's slots; ``start`` says whether it opens a sentence (capital) or continues one."""
    filled = template
    if "event" in slots_in(template):
        name = event.name if rng.random() < _FULL_NAME_RATE else rng.choice(event.kind.subjects)
        filled = filled.replace("{event}", name)
    text = filled.format(**event.values)
    if start:
        return _capitalised(text)
    return text if template.startswith("{") else _first(text, str.lower)


def _capitalised(text: str) -> str:
    return _first(text, str.upper)


def _first(text: str, change: Callable[[str], str]) -> str:
    return change(text[0]) + text[1:]
