"""Days, months and years as people write them: ``2023-08`` and what it spans.

What it is for: windows of weeks (`corpus.sources.realtimeqa`) and of dated texts (`kinject_perplexity`), and filters by
date (`retrieval.filters`). What it does not do: guess; another spelling than ISO 8601's is no date.

The one idea: a date is a range of days. ``2023`` has a first and a last day, as ``2023-08-15`` has.
"""

from __future__ import annotations

import calendar
import re
from dataclasses import dataclass

from lm_eval_kinject.errors import ArgumentError

__all__ = ["Window", "days_of"]


def days_of(said: str) -> tuple[str, str] | None:
    """The first and the last day of a year, a month or a day, as ``YYYY-MM-DD``; None where it is none of these."""
    match = re.fullmatch(r"(\d{4})(?:-(\d{1,2})(?:-(\d{1,2}))?)?", said.strip())
    if match is None:
        return None
    year, month, day = (None if part is None else int(part) for part in match.groups())
    try:
        last_month = month or 12
        last_day = day or calendar.monthrange(year or 0, last_month)[1]
        if not 1 <= last_day <= calendar.monthrange(year or 0, last_month)[1]:
            return None
    except (ValueError, IndexError):  # no such month
        return None
    return f"{year:04}-{month or 1:02}-{day or 1:02}", f"{year:04}-{last_month:02}-{last_day:02}"


@dataclass(frozen=True, slots=True)
class Window:
    """A range of days, both ends included, as ``YYYY-MM-DD``; either may be open (empty)."""

    first: str = ""
    last: str = ""

    @classmethod
    def of(cls, first: str | None, last: str | None) -> Window:
        """The window between two days, months (``2023-08``) or years, each taken whole.

        Raises:
            ArgumentError: no such day, month or year, or the window ends before it begins; all problems at once.
        """
        problems = []
        ends = []
        for name, said, index in (("from", first, 0), ("to", last, 1)):
            days = ("", "") if not said else days_of(said)
            if days is None:
                problems.append(f"{name}={said} is no date: write 2023, 2023-08 or 2023-08-15.")
                days = ("", "")
            ends.append(days[index])
        if all(ends) and ends[0] > ends[1]:
            problems.append(f"from={first} lies behind to={last}: swap them.")
        if problems:
            raise ArgumentError(problems, "the window")
        return cls(*ends)

    def __contains__(self, day: str) -> bool:
        """Whether a day, ``YYYY-MM-DD``, is in it."""
        return self.first <= day and (not self.last or day <= self.last)

    def __str__(self) -> str:
        return f"{self.first or 'the beginning'} to {self.last or 'the end'}"
