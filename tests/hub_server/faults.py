"""Trouble to order: which requests of the test Hub fail, how, and how often.

The one idea: a `Fault` is matched against each request in the order in which faults were planned, and is used up after
``times`` matches, so that a test can say "the second upload breaks off half-way" and the rerun meets a healthy server.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass
class Fault:
    """One kind of trouble.

    Attributes:
        status: answer with this HTTP status instead of doing the work; None: do the work (see the others).
        path: regular expression searched in ``METHOD /path``.
        times: how many matching requests meet it; -1: all.
        skip: how many matching requests pass unharmed before.
        message: the error text; ``{authorization}`` in it becomes the request's header, as with a careless server.
        retry_after: seconds, sent with the status.
        reset: break the connection: ``before`` the work, ``body`` (half of the request's body was read) or ``after``
            (the work is done, the answer is lost).
        delay: seconds to wait between the two halves of an answer's body.
        then: called at the moment when the fault strikes (to kill the client, say).
    """

    status: int | None = None
    path: str = ""
    times: int = 1
    skip: int = 0
    message: str = "a planned fault"
    retry_after: int | None = None
    reset: str | None = None
    delay: float = 0.0
    then: Callable[[], None] | None = None


@dataclass
class Plan:
    """The faults that are still to come, and a log of the requests that were seen."""

    faults: list[Fault] = field(default_factory=list)
    seen: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def next(self, request: str) -> Fault | None:
        """Notes a request (``METHOD /path``) and returns the fault that it meets, if any."""
        with self.lock:
            self.seen.append(request)
            for fault in self.faults:
                if not re.search(fault.path, request) or fault.times == 0:
                    continue
                if fault.skip > 0:
                    fault.skip -= 1
                    continue
                fault.times -= fault.times > 0
                return fault
        return None
