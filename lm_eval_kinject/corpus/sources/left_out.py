"""What of a user's files could not be read, and why: listed and counted, never lost without a word.

What it is for: readers of files raise `UnreadableFile` for a whole file and call `Reading.leave_out` for a part of one;
the `Reading` of a folder keeps both, for the log, the counts of a corpus and `kinject corpus build`. What it does not
do: it reads nothing.

The one idea: one and the same fault ends the reading of a file that was asked for by name, and is a line in the list
where the file is one of a folder's many.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias, get_args

from lm_eval_kinject.errors import CorpusError
from lm_eval_kinject.log import log

__all__ = ["LeftOut", "Reading", "UnreadableFile", "Why"]

_SHOWN = 20

Why: TypeAlias = Literal[
    "broken", "empty", "encoding", "library", "password", "rows", "scanned", "too_large", "unknown_kind", "unreadable"
]
"""``rows``: single rows of a file; ``library``: an extra isn't installed; ``unreadable``: the system refuses it."""


class UnreadableFile(CorpusError):
    """A file that can't be read.

    Args:
        why: the sort of reason, for counting.
        text: the whole message, with the file's name and what to do.
    """

    def __init__(self, why: Why, text: str) -> None:
        super().__init__(text)
        self.why = why


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A file, or a part of one, that is no part of the corpus: its name in the folder, sort of reason, reason."""

    name: str
    why: Why
    reason: str
    count: int = 1  # above 1 where one entry stands for so many rows


@dataclass
class Reading:
    """What has been read and left out so far.

    Attributes:
        corpus: the folder's name, for the log.
        files: how many files gave something.
        left_out: in reading order.
        pages_by_ocr: pages of PDF whose text tesseract read.
        silent: whoever reads lists what was left out himself, so that the log needn't.
    """

    corpus: str
    files: int = 0
    left_out: list[LeftOut] = field(default_factory=list)
    pages_by_ocr: int = 0
    silent: bool = False

    def leave_out(self, name: str, why: Why, reason: str, count: int = 1) -> None:
        """Adds an entry."""
        self.left_out.append(LeftOut(name, why, reason, count))

    def counts(self) -> dict[str, int]:
        """``files``, ``left_out``, ``left_out_REASON`` for each sort of reason, ``pages_by_ocr`` if any."""
        sorts: Counter[Why] = Counter()
        for entry in self.left_out:
            sorts[entry.why] += entry.count
        found = {"files": self.files, "left_out": sorts.total()}
        found |= {f"left_out_{why}": sorts[why] for why in get_args(Why) if sorts[why]}
        return {**found, **({"pages_by_ocr": self.pages_by_ocr} if self.pages_by_ocr else {})}

    def warn(self) -> None:
        """Says in the log what was left out; files of unknown kinds in one line."""
        if self.silent:
            return
        unknown = [entry.name for entry in self.left_out if entry.why == "unknown_kind"]
        if unknown:
            names = ", ".join(unknown[:5])
            log.warning("corpus %s: %d files of other kinds are left out: %s", self.corpus, len(unknown), names)
        others = lines([entry for entry in self.left_out if entry.why != "unknown_kind"])
        if others:
            log.warning("corpus %s: not all of it can be read:\n%s", self.corpus, "\n".join(others))

    def mark(self) -> tuple[int, int]:
        """Where the lists and counts stand; a file that is read again from its start must not be counted twice."""
        return len(self.left_out), self.pages_by_ocr

    def state(self, mark: tuple[int, int]) -> dict[str, Any]:
        """As plain values, as it was at a mark."""
        entries = [[entry.name, entry.why, entry.reason, entry.count] for entry in self.left_out[: mark[0]]]
        return {"files": self.files, "left_out": entries, "pages_by_ocr": mark[1]}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Takes up what `state` gave."""
        self.files, self.pages_by_ocr = int(state["files"]), int(state["pages_by_ocr"])
        self.left_out[:] = [LeftOut(*entry) for entry in state["left_out"]]


def lines(entries: Sequence[LeftOut], shown: int = _SHOWN) -> list[str]:
    """A line an entry, the first ``shown``, and how many more there are."""
    found = [f"  - {entry.reason}" for entry in entries[:shown]]
    return found + ([f"  - … and {len(entries) - shown} more"] if len(entries) > shown else [])
