"""Days, months and years as people write them: ``2023-08`` and what it spans.

What it is for: windows of weeks (`corpus.sources.realtimeqa`) and filters by date (`retrieval.filters`). What it does
not do: guess; another spelling than ISO 8601's is no date.

The one idea: a date is a range of days. ``2023`` has a first and a last day, as ``2023-08-15`` has.
"""

from __future__ import annotations

import calendar
import re

__all__ = ["days_of"]


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
