"""What people are told: the one logger of everything that runs under ``lm_eval``, and how long something takes.

Below lm_eval's own logger, whose handler shows what it says: a logger named after this package would have none.
"""

from __future__ import annotations

import logging

__all__ = ["duration", "log"]

log = logging.getLogger("lm_eval.kinject")


def duration(seconds: float) -> str:
    """A time for people: ``42 s``, ``12 min``, ``2.5 h``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
