"""Wikipedia's API, asked politely.

What it is for: one request after the other, with a name that says who asks, waiting as long as the servers want, and
going on where an answer was cut into several. What it does not do: it logs in nowhere, writes nothing, and never asks
two things at a time.

The one idea: "come back later" has four forms (HTTP 429 and 503 with Retry-After, the error ``maxlag`` in an answer of
status 200, a lost connection), and one function waits for all of them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from lm_eval_kinject import __version__
from lm_eval_kinject.errors import CorpusError
from lm_eval_kinject.log import log

__all__ = ["LARGEST_BATCH", "Api"]

LARGEST_BATCH = 50
"""Pages that may be asked for at once without a bot's rights."""

TRIES = 8
LONGEST_WAIT = 600.0
"""Seconds; a server that asks for more is reported instead of waited for."""

_MAXLAG = 5  # seconds that a copy of the database may be behind; what Wikimedia asks bots to pass
_SECONDS = 60.0
_PASSING = {429, 500, 502, 503, 504}
_LATER = {
    "maxlag",
    "ratelimited",
    "readonly",
    "internal_api_error_DBQueryError",
    "internal_api_error_DBQueryTimeoutError",
}


class Api:
    """A MediaWiki's ``api.php``.

    Args:
        contact: an e-mail address or a page, by which Wikimedia can reach whoever runs this, as its policy asks.
        address: of ``api.php``.
        pause: seconds between two requests.
        sleep: waits; tests count instead.

    Raises:
        CorpusError: no contact, or requests isn't installed.
    """

    def __init__(
        self,
        contact: str,
        *,
        address: str = "https://en.wikipedia.org/w/api.php",
        pause: float = 0.2,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        if "@" not in contact and "://" not in contact:
            raise CorpusError(
                "Wikimedia asks programs to say whom to write to: give --contact, or KINJECT_CONTACT, with an e-mail "
                "address or the address of a page about you."
            )
        try:
            import requests
        except ImportError as problem:
            raise CorpusError(
                "Wikipedia can't be asked without requests: `pip install 'lm-eval-kinject[wikipedia]'`."
            ) from problem
        self.address = address
        self._pause, self._sleep = pause, sleep
        self._trouble = (requests.RequestException, ValueError)  # ValueError: an answer that is no JSON
        self._session = requests.Session()
        self._session.headers["User-Agent"] = f"lm-eval-kinject/{__version__} ({contact}) python-requests"
        self._asked = False

    def query(self, **params: str | int) -> Iterator[dict[str, Any]]:
        """The ``query`` of each answer to ``action=query``, until there are no more.

        Raises:
            CorpusError: the API can't be reached, doesn't come round, or refuses the question.
        """
        more: dict[str, Any] = {}
        while True:
            answer = self._ask({"action": "query", **params, **more})
            yield answer.get("query") or {}
            if "continue" not in answer:
                return
            if answer["continue"] == more:
                raise CorpusError(f"{self.address} goes on with the same page for ever: try again later.")
            more = answer["continue"]

    def _ask(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """One answer, however often it takes."""
        said = "no answer"
        for tries in range(TRIES):
            if self._asked:
                self._sleep(self._pause)
            self._asked = True
            try:
                answer, wait, said = self._once(params)
            except self._trouble as problem:
                answer, wait, said = None, None, type(problem).__name__
            if answer is not None:
                return answer
            wait = 2.0**tries if wait is None else wait
            if wait > LONGEST_WAIT:
                raise CorpusError(
                    f"{self.address} asks to wait for {wait:.0f} s ({said}): give the command again later."
                )
            log.info("%s: %s; asking again in %.0f s", self.address, said, wait)
            self._sleep(wait)
        raise CorpusError(
            f"{self.address} can't be reached ({said}, {TRIES} times): what was fetched is kept; give the command "
            f"again, or use --dump with a file from dumps.wikimedia.org."
        )

    def _once(self, params: Mapping[str, Any]) -> tuple[dict[str, Any] | None, float | None, str]:
        """(answer, None, "") or (None, seconds to wait if the server says, why)."""
        fixed = {"format": "json", "formatversion": 2, "maxlag": _MAXLAG}
        answer = self._session.post(self.address, data={**params, **fixed}, timeout=_SECONDS)
        wait = _seconds(answer.headers.get("Retry-After"))
        if answer.status_code in _PASSING:
            return None, wait, f"HTTP {answer.status_code}"
        if answer.status_code != 200:
            raise CorpusError(f"{self.address} answers HTTP {answer.status_code}: check --site and --contact.")
        found = answer.json()
        error = found.get("error") if isinstance(found, dict) else None
        if error and error.get("code") in _LATER:
            return None, wait if wait is not None else float(_MAXLAG), str(error["code"])
        if error:
            raise CorpusError(f"{self.address} refuses the question: {error.get('info') or error.get('code')}.")
        return found, None, ""


def _seconds(value: str | None) -> float | None:
    """Retry-After in seconds; None where there is none, or where it is a date."""
    return float(value) if value is not None and value.strip().isdigit() else None
