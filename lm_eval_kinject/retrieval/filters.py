"""Filters by date and source: which chunks of a corpus may be found at all, decided before anything is ranked.

What it is for: ``filter=date<2026-11;source=bbc.co.uk``, for every retriever that searches or draws. What it does not
do: look at texts, or change an index: vectors, idf and scores stay those of the whole corpus.

The one idea: a condition holds where it must, not where it may. A chunk of ``2026-11`` is not before the 15th for
certain, a chunk without a date is before nothing; both stay out, so that a filter by date lets no later news in.

    date<D    the chunk's last day lies before D's first        date<=D  its last day is D's last or before
    date>D    its first day lies behind D's last                date>=D  its first day is D's first or later
    date=D    it lies within D
    source=A|B, source!=A|B    its source is one, or none, of these, in any case

A chunk's source is its field ``source``; without one, the host of its ``url`` (no ``www.``); else its document's id.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias
from urllib.parse import urlsplit

import numpy as np
import numpy.typing as npt

from lm_eval_kinject.corpus.corpus import Corpus
from lm_eval_kinject.corpus.days import days_of
from lm_eval_kinject.errors import ArgumentError
from lm_eval_kinject.log import log
from lm_eval_kinject.records import Chunk

__all__ = ["Allowed", "Filter", "Mask", "days_of_chunk", "parse_filter", "source_of"]

Mask: TypeAlias = npt.NDArray[np.bool_]
Days: TypeAlias = tuple[str, str]

_CONDITION = re.compile(r"\s*(date|source)\s*(<=|>=|!=|<|>|=)\s*(.*?)\s*", re.DOTALL)
_DATE_TESTS: Mapping[str, Callable[[Days, Days], bool]] = {
    "<": lambda chunk, day: chunk[1] < day[0],
    "<=": lambda chunk, day: chunk[1] <= day[1],
    ">": lambda chunk, day: chunk[0] > day[1],
    ">=": lambda chunk, day: chunk[0] >= day[0],
    "=": lambda chunk, day: day[0] <= chunk[0] and chunk[1] <= day[1],
}
_HOW = "write filter=date<2026-11, filter=source=NAME, or several conditions with ; between them"


@dataclass(frozen=True)
class Condition:
    """One of a filter's conditions: ``field`` is ``date`` or ``source``, ``value`` as it was written."""

    field: str
    sign: str
    value: str

    def holds(self, chunk: Chunk) -> bool:
        """Whether a chunk surely meets it."""
        if self.field == "date":
            days, bound = days_of_chunk(chunk), days_of(self.value)
            return days is not None and bound is not None and _DATE_TESTS[self.sign](days, bound)
        return (source_of(chunk).casefold() in self.names) == (self.sign == "=")

    @cached_property
    def names(self) -> frozenset[str]:
        """The sources named, in small letters."""
        return frozenset(name.strip().casefold() for name in self.value.split("|"))

    def problem(self) -> str | None:
        """What is wrong with it, or None."""
        if self.field == "date" and self.sign == "!=":
            return f"date!={self.value}: dates are compared by <, <=, >, >= and ="
        if self.field == "date" and days_of(self.value) is None:
            return f"date{self.sign}{self.value} names no date: write 2026, 2026-11 or 2026-11-25"
        if self.field == "source" and self.sign not in {"=", "!="}:
            return f"source{self.sign}{self.value}: sources are compared by = and !="
        if self.field == "source" and not all(self.names):
            return f"source{self.sign}{self.value} names no source: write source=NAME, or source=ONE|OTHER"
        return None


@dataclass(frozen=True)
class Filter:
    """Conditions that all must hold."""

    conditions: tuple[Condition, ...]

    @property
    def by_date(self) -> bool:
        """Whether it looks at dates."""
        return any(condition.field == "date" for condition in self.conditions)

    def __str__(self) -> str:
        return ";".join(sorted({f"{c.field}{c.sign}{c.value}" for c in self.conditions}))

    def of(self, corpus: Corpus) -> Allowed:
        """The chunks of a corpus that pass.

        Raises:
            ArgumentError: none does; the message says what dates or sources there are.
        """
        mask = np.fromiter(
            (all(condition.holds(chunk) for condition in self.conditions) for chunk in corpus.chunks),
            dtype=np.bool_,
            count=len(corpus),
        )
        undated = sum(days_of_chunk(chunk) is None for chunk in corpus.chunks) if self.by_date else 0
        if not mask.any():
            raise ArgumentError(f"filter={self} leaves no chunk of {corpus.name}: {_there(self, corpus)}", "retrieval")
        return Allowed(self, mask, undated)


@dataclass(frozen=True, eq=False)
class Allowed:
    """The chunks of one corpus that pass a filter.

    Attributes:
        filter: which.
        mask: shape (chunks,), true where a chunk passes.
        undated: chunks without a readable date, of a filter that asks for one; none of them passes.
    """

    filter: Filter
    mask: Mask
    undated: int

    @cached_property
    def rows(self) -> npt.NDArray[np.int64]:
        """The rows that pass, rising."""
        return np.flatnonzero(self.mask).astype(np.int64)

    def __len__(self) -> int:
        return len(self.rows)

    def say(self, corpus: Corpus) -> None:
        """Says, once a retriever, that chunks are left out because nobody knows their date."""
        if self.undated:
            log.warning(
                "filter=%s: %d of %d chunks of %s have no date and are left out",
                self.filter,
                self.undated,
                len(corpus),
                corpus.name,
            )

    def provenance(self) -> dict[str, Any]:
        """What a result says of it."""
        said: dict[str, Any] = {"conditions": str(self.filter), "chunks": len(self), "of": len(self.mask)}
        return {**said, "without_date": self.undated} if self.filter.by_date else said


def parse_filter(text: str) -> Filter:
    """A filter from what stands behind ``filter=``.

    Raises:
        ArgumentError: listing every condition that can't be read, and how to write it.
    """
    conditions, problems = [], []
    for part in text.split(";"):
        match = _CONDITION.fullmatch(part)
        if match is None:
            problems.append(f"filter={text}: {part.strip() or 'an empty condition'} is no condition; {_HOW}")
            continue
        condition = Condition(*match.groups())
        if problem := condition.problem():
            problems.append(f"filter={text}: {problem}")
        conditions.append(condition)
    if problems:
        raise ArgumentError(problems, "the retriever's arguments")
    return Filter(tuple(conditions))


def days_of_chunk(chunk: Chunk) -> Days | None:
    """The first and the last day that a chunk may be of; None where it has no date, or one that isn't ISO 8601."""
    return days_of(re.split(r"[T ]", chunk.date.strip(), maxsplit=1)[0]) if chunk.date else None


def source_of(chunk: Chunk) -> str:
    """Where a chunk comes from: its field ``source``, else the host of its ``url``, else its document."""
    said = chunk.meta.get("source")
    if isinstance(said, str) and said.strip():
        return said.strip()
    url = chunk.meta.get("url")
    try:
        host = urlsplit(url).hostname if isinstance(url, str) else None
    except ValueError:  # half an IPv6 address
        host = None
    return (host or "").removeprefix("www.") or chunk.document_id or chunk.id


def _there(chosen: Filter, corpus: Corpus) -> str:
    """What a corpus has of that which a filter asks for."""
    said = []
    if chosen.by_date:
        days = sorted(found for chunk in corpus.chunks if (found := days_of_chunk(chunk)) is not None)
        without = len(corpus) - len(days)
        range_ = f"its dates go from {days[0][0]} to {max(last for _, last in days)}" if days else "it has no dates"
        said.append(f"{range_}, {without} of {len(corpus)} chunks are without one")
    if any(condition.field == "source" for condition in chosen.conditions):
        most = Counter(source_of(chunk) for chunk in corpus.chunks).most_common(5)
        said.append(f"its largest sources are {', '.join(name for name, _ in most)}")
    return "; ".join(said) + ". Change filter= or leave it out."
