"""Paid answers, kept: one line an answer, on the disk before anybody uses it.

What it is for: a `Ledger` is the file ``answers.jsonl`` of a question set; an `Asker` puts it before a writer, counts
what is spent, and `each` works through many chunks at a time. What it does not do: it understands no answer.

The one idea: **the ledger is all that a stage knows.** Questions, verdicts and paraphrases are worked out from the
answers, in the corpus's order, each time a stage runs; what is in the ledger costs nothing. So a stage that was killed
at any moment is run again, and pays only for answers that hadn't arrived whole. (A request that was under way when the
process died may be charged by its server all the same; nobody on this side can know.)
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from lm_eval_kinject.errors import ArgumentError, CorpusError
from lm_eval_kinject.provenance import fingerprint
from lm_eval_kinject.questions.asking import Reply, Request, Writer, tokens_in

__all__ = ["Asker", "Expected", "Ledger", "Prices", "Say", "Spent", "append_whole", "each", "jsonl"]

Say = Callable[[str], None]
Item = TypeVar("Item")
Made = TypeVar("Made")

_SECONDS_BETWEEN_LINES = 10.0


class Ledger:
    """The answers in a file, by their requests' fingerprints.

    A line is an object with ``key``, ``about`` (for people), ``writer`` and the fields of `Reply`. A last line that was
    cut off by a crash is taken away; the answer in it hadn't arrived whole. Only one process may have a ledger open
    (`QuestionSet.locked`).

    Raises:
        CorpusError: a line in the middle is damaged.
    """

    def __init__(self, path: Path) -> None:
        self._answers: dict[str, Reply] = {}
        self._lock = threading.Lock()
        data = path.read_bytes() if path.is_file() else b""
        whole = data[: data.rfind(b"\n") + 1]
        for number, line in enumerate(whole.splitlines(), start=1):
            try:
                row = json.loads(line)
                self._answers[row["key"]] = Reply(**{name: row[name] for name in Reply.__dataclass_fields__})
            except (ValueError, KeyError, TypeError) as problem:
                raise CorpusError(
                    f"{path.name}, line {number}, is damaged: remove that line (its answer will be asked for again)."
                ) from problem
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        if len(whole) < len(data):
            os.ftruncate(self._descriptor, len(whole))

    def __len__(self) -> int:
        return len(self._answers)

    def get(self, key: str) -> Reply | None:
        """The answer to a request, if it was given."""
        return self._answers.get(key)

    def keep(self, key: str, about: str, writer: str, reply: Reply) -> None:
        """Puts an answer on the disk, then at everybody's disposal."""
        row = {"key": key, "about": about, "writer": writer, **asdict(reply)}
        line = (json.dumps(row, ensure_ascii=True) + "\n").encode()
        with self._lock:
            append_whole(self._descriptor, line)
            self._answers[key] = reply

    def close(self) -> None:
        """Closes the file."""
        os.close(self._descriptor)


@dataclass(frozen=True)
class Prices:
    """What a writer costs, in any money, for a million tokens read and written."""

    read: float
    written: float

    @classmethod
    def parse(cls, text: str) -> Prices:
        """Prices from ``READ,WRITTEN``.

        Raises:
            ArgumentError: it isn't two numbers.
        """
        try:
            read, written = (float(part) for part in text.split(","))
        except ValueError as problem:
            raise ArgumentError(
                f"--price {text!r}: give two numbers, money for a million tokens read and written, as in 0.15,0.6",
                "kinject questions",
            ) from problem
        return cls(read, written)

    def of(self, read: int, written: int) -> float:
        """The price of so many tokens."""
        return (read * self.read + written * self.written) / 1e6


@dataclass
class Spent:
    """What a stage took: requests that were paid for, answers that were in the ledger, and tokens.

    ``unmetered`` counts the answers whose tokens the writer didn't count, so that they are estimates.
    """

    paid: int = 0
    kept: int = 0
    read: int = 0
    written: int = 0
    unmetered: int = 0

    def forecast(self, prices: Prices | None) -> str:
        """An estimate (`Asker.estimate`) for a person."""
        money = f", {prices.of(self.read, self.written):.4f} at these prices" if prices else ""
        return (
            f"about {self.paid} requests to pay for, {self.kept} answers are there; some {self.read} tokens to read, "
            f"{self.written} to write{money}, if nothing has to be asked for again"
        )

    def line(self, prices: Prices | None) -> str:
        """For a person."""
        money = f", {prices.of(self.read, self.written):.4f} at these prices" if prices else ""
        guessed = f" (of {self.unmetered} requests the tokens are estimates)" if self.unmetered else ""
        return (
            f"{self.paid} requests paid for, {self.kept} answers were there; {self.read} tokens read, "
            f"{self.written} written{money}{guessed}"
        )


@dataclass(frozen=True)
class Expected:
    """A request that a stage will make first of all for a chunk, and how many tokens its answer should have."""

    request: Request
    written: int


@dataclass
class Asker:
    """A writer behind a ledger.

    Attributes:
        writer: who is asked for what isn't there.
        ledger: where answers are kept.
    """

    writer: Writer
    ledger: Ledger
    spent: Spent = field(default_factory=Spent)

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._under_way: dict[str, threading.Lock] = defaultdict(threading.Lock)

    def ask(self, request: Request, about: str) -> Reply:
        """The answer from the ledger, or else from the writer.

        Args:
            request: what is asked.
            about: for a person who reads the ledger.
        """
        key = self._key(request)
        with self._lock:
            mine = self._under_way[key]
        with mine:  # two chunks of one text ask the same
            known = self.ledger.get(key)
            if known is not None:
                with self._lock:
                    self.spent.kept += 1
                return known
            reply = self.writer.ask(request)
            self.ledger.keep(key, about, self.writer.name, reply)
        with self._lock:
            self.spent.paid += 1
            self.spent.read += reply.prompt_tokens
            self.spent.written += reply.completion_tokens
            self.spent.unmetered += not reply.metered
        return reply

    def _key(self, request: Request) -> str:
        return fingerprint([self.writer.name, request])

    def estimate(self, expected: Sequence[Expected]) -> Spent:
        """What requests will take that aren't in the ledger, if each is answered well at once."""
        found = Spent()
        for one in expected:
            if self.ledger.get(self._key(one.request)) is not None:
                found.kept += 1
                continue
            found.paid += 1
            found.unmetered += 1
            found.read += tokens_in(one.request.system + one.request.user)
            found.written += one.written
        return found


def each(
    items: Sequence[Item], work: Callable[[Item], Made], *, workers: int, unit: str, say: Say, asker: Asker
) -> list[Made]:
    """Works on items, several at a time; results in the items' order.

    The first error stops what hasn't begun; what is under way is waited for, as it is being paid for. So does Ctrl-C.
    """
    pool = ThreadPoolExecutor(max_workers=workers)
    futures: list[Future[Made]] = [pool.submit(work, item) for item in items]
    try:
        waiting: set[Future[Made]] = set(futures)
        said = time.monotonic()
        while waiting:
            done, waiting = wait(waiting, timeout=1.0, return_when=FIRST_EXCEPTION)
            if any(one.exception() is not None for one in done):
                break
            if waiting and time.monotonic() - said > _SECONDS_BETWEEN_LINES:
                said = time.monotonic()
                say(f"{len(items) - len(waiting)} of {len(items)} {unit}: {asker.spent.line(None)}")
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
    failed = next((one for one in futures if not one.cancelled() and one.exception() is not None), None)
    if failed is not None:
        failed.result()  # raises
    return [one.result() for one in futures]


def append_whole(descriptor: int, line: bytes) -> None:
    """Writes a line to a file that is open for appending, and sees it to the disk."""
    left = memoryview(line)
    while left:
        left = left[os.write(descriptor, left) :]
    os.fsync(descriptor)


def jsonl(rows: Sequence[Any]) -> bytes:
    """Rows as JSON Lines."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode("utf-8")
