"""The one logger of everything that runs under ``lm_eval``.

Below lm_eval's own logger, whose handler shows what it says: a logger named after this package would have none.
"""

from __future__ import annotations

import logging

__all__ = ["log"]

log = logging.getLogger("lm_eval.kinject")
