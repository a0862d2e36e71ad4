"""The log of a run: `log.jsonl`, one JSON object a line, and the progress bar.

What it is for: every update's loss, the validation losses, and where in the epochs they were measured. What it does not
do: it draws nothing (`plot.py`) and reports to no tracker (transformers' ``report_to`` does, through the recipe).

The one idea: a line names its update, so a resumed run drops the lines after its checkpoint and writes them again: the
log of a run that was killed and resumed tells the same as that of one that wasn't.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lm_eval_kinject.provenance import atomic_write

__all__ = ["Log", "read_log"]


class Log:
    """Appends to a run's log.

    Args:
        path: of the file; its folder must exist.
        after: keep lines up to this update and drop later ones, and a last line that was cut off.
    """

    def __init__(self, path: Path, after: int) -> None:
        self.path = path
        kept = [entry for entry in read_log(path) if entry["update"] <= after] if after else []
        with atomic_write(path, "w") as out:
            out.writelines(_line(entry) for entry in kept)

    def write(self, entry: Mapping[str, Any]) -> None:
        """Adds one line; it is with the operating system when this returns."""
        with self.path.open("a", encoding="utf-8") as out:
            out.write(_line(entry))


def _line(entry: Mapping[str, Any]) -> str:
    plain = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in entry.items()}
    return json.dumps(plain, allow_nan=False) + "\n"


def read_log(path: Path) -> list[dict[str, Any]]:
    """The lines of a log, less one that a kill cut off; empty where there is no file."""
    entries = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict) and "update" in entry:
            entries.append(entry)
    return entries
