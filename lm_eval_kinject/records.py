"""The records that pass between rooms: frozen, plain, and nothing else crosses a room's wall.

They hold data, not behaviour. Identifiers are strings, unique within their corpus or question set; ties anywhere
break by them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Gold = str | tuple[str, ...]
"""What answers a question: one chunk's id, or the ids of several that are needed together, in their order."""


def gold_ids(gold: Gold | None) -> tuple[str, ...]:
    """The ids of a question's gold chunks, none where it names none."""
    return () if gold is None else (gold,) if isinstance(gold, str) else gold


@dataclass(frozen=True, slots=True)
class Document:
    """One source text before chunking (an article, a page, a file).

    ``pages`` are the offsets into ``text``, in characters and ascending, at which its pages start; empty where it has
    none.
    """

    id: str
    text: str
    title: str = ""
    date: str | None = None  # ISO 8601, where known
    meta: Mapping[str, Any] = field(default_factory=dict)
    pages: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Chunk:
    """A passage that a retriever returns whole.

    ``document_id`` names the Document it was cut from and ``position`` its place there, counted from 0.
    """

    id: str
    text: str
    title: str = ""
    document_id: str = ""
    position: int = 0
    date: str | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Question:
    """A multiple-choice question; ``answer`` indexes ``choices``; ``source_chunk`` is the gold chunk's id."""

    id: str
    question: str
    choices: tuple[str, ...]
    answer: int
    source_chunk: str | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Query:
    """What a retriever is asked: ``text`` alone is searched; ``gold`` is for the oracle control, ``without`` a filter.

    ``gold`` is the id of the chunk that answers the question, or a tuple of ids where it takes all of them. ``without``
    names the document whose chunks are not to be found, as it is what is scored.
    """

    text: str
    gold: Gold | None = None
    without: str | None = None


@dataclass(frozen=True, slots=True)
class Hit:
    """A retrieved chunk: ``rank`` counts from 1, higher ``score`` is better; scores compare within one retriever."""

    chunk: Chunk
    score: float
    rank: int


@dataclass(frozen=True, slots=True)
class Trace:
    """What happened to one question on its way into the prompt: enough to explain its score afterwards."""

    query: str
    hits: tuple[Hit, ...]
    used: tuple[str, ...]  # chunk ids in the order in which they stand in the prompt
    dropped: tuple[str, ...]  # chunk ids left out for the token budget, lowest rank first
    truncated: str | None  # id of the chunk whose tail was cut, if any
    context_tokens: int
    gold: Gold | None = None
