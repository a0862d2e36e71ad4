"""The Hub's client, with patience and with errors a person can act on: the floor of all that talks to the Hub.

What it is for: `open_hub` makes the official client, `attempt` repeats what may succeed the next time (connection lost,
server error, rate limit with its Retry-After) and turns what won't into a `HubError` that says what to do. What it does
not do: it decides nothing about content, and it never takes a token: the client finds it in the environment.

The one idea: whatever is repeated must find out by itself what an earlier try has already done, because a lost answer
doesn't say whether the work was done. Callers hand over such functions and nothing else.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from lm_eval_kinject import __version__
from lm_eval_kinject.errors import ArgumentError, HubError, KinjectError

__all__ = [
    "RefusedError", "Say", "attempt", "check_repo_id", "listed", "open_hub", "quiet", "redact", "status_of",
    "without_token",
]  # fmt: skip

Say = Callable[[str], None]
"""Takes a line for a person; the command line prints it."""

TRIES = 6
LONGEST_WAIT = 300.0
"""Seconds; a rate limit that asks for more is reported instead of waited for."""

_PASSING = frozenset({408, 429, 500, 502, 503, 504})
_RACES = frozenset({409, 412})
_TOKEN = re.compile(r"\b(?:hf|api_org)_[A-Za-z0-9]{16,}")

T = TypeVar("T")


class RefusedError(HubError):
    """The Hub answered with an error.

    Args:
        text: for a person.
        status: HTTP's.
    """

    def __init__(self, text: str, status: int) -> None:
        super().__init__(text)
        self.status = status


def quiet(_: str) -> None:
    """A `Say` that says nothing."""


def listed(headline: str, problems: Iterable[str]) -> str:
    """A headline and a line a problem, for an error."""
    return "\n".join([headline, *(f"  - {problem}" for problem in problems)])


def open_hub() -> Any:
    """The official client, which finds endpoint and token in the environment."""
    from huggingface_hub import HfApi

    return HfApi(library_name="lm-eval-kinject", library_version=__version__)


def check_repo_id(repo_id: str) -> str:
    """Returns a repository's name if it is one.

    Raises:
        ArgumentError: it isn't ``owner/name`` in the Hub's letters (a path, for one, is not).
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo_id)  # which lets names without an owner pass
    except HFValidationError:
        sound = False
    else:
        sound = "/" in repo_id and not repo_id.endswith(".ipynb")
    if not sound:
        raise ArgumentError(
            f"{repo_id!r} is no Hub repository: it must be owner/name, of letters, digits, '-', '_' and '.'"
        )
    return repo_id


# Secrets --------------------------------------------------------------------------------------------------------------


def redact(text: str) -> str:
    """A text without tokens: neither the one in force nor anything that looks like one."""
    for token in _tokens():
        text = text.replace(token, "<token>")
    return _TOKEN.sub("<token>", text)


def has_token(text: str) -> bool:
    """Whether a text holds the token in force, or what looks like one."""
    return redact(text) != text


def _tokens() -> Iterator[str]:
    from huggingface_hub import get_token

    for token in (get_token(), os.environ.get("HF_TOKEN"), os.environ.get("HUGGING_FACE_HUB_TOKEN")):
        if token and len(token) >= 8:
            yield token


# Patience -------------------------------------------------------------------------------------------------------------


def attempt(doing: str, work: Callable[[], T], say: Say = quiet) -> T:
    """Does something on the Hub, again where that can help.

    Args:
        doing: what it is, for messages: "push to me/adapter".
        work: safe to repeat: it looks at what is there before it changes anything.
        say: hears of waits.

    Raises:
        HubError: it won't succeed, or didn't in `TRIES` tries; what to do is said, and no token. A `RefusedError`
            where the Hub answered at all.
    """
    for number in range(1, TRIES + 1):
        try:
            return work()
        except KinjectError:
            raise  # has its own words, and was waited for where it arose
        except Exception as problem:
            cause = _root(problem)
            wait = _wait(cause, number)
            if wait is None:
                raise
            if wait < 0 or number == TRIES:
                said = redact(f"{doing[0].upper()}{doing[1:]} failed: {_short(cause)}. {_advice(cause)}")
                status = status_of(cause)
                refusal = HubError(said) if status is None else RefusedError(said, status)
                raise refusal from without_token(problem)
            say(f"{doing}: {_short(cause)}; trying again in {wait:g} s ({number} of {TRIES - 1})")
            time.sleep(wait)
    raise AssertionError("unreachable")


def without_token(problem: BaseException) -> BaseException | None:
    """The exception to chain; None if its text would carry a token into a traceback."""
    seen: BaseException | None = problem
    while seen is not None:
        if has_token(str(seen)):
            return None
        seen = seen.__cause__ or seen.__context__
    return problem


def _root(problem: BaseException) -> BaseException:
    """What a client's wrapper exception (``Error while uploading 'x'``) is about."""
    seen: BaseException | None = problem
    while seen is not None:
        if status_of(seen) is not None or _is_connection_problem(seen):
            return seen
        seen = seen.__cause__
    return problem


def status_of(problem: BaseException) -> int | None:
    """The HTTP status of a client's exception, if it has one."""
    found = getattr(getattr(problem, "response", None), "status_code", None)
    return found if isinstance(found, int) else None


def _is_connection_problem(problem: BaseException) -> bool:
    # httpx, httpx2 and whatever comes next call the base class of these TransportError.
    names = {base.__name__ for base in type(problem).__mro__}
    return "TransportError" in names or isinstance(problem, ConnectionError | TimeoutError)


def _comes_from_xet(problem: BaseException) -> bool:
    """hf_xet raises the builtin ConnectionError, so that only the place tells its errors from others."""
    trace = problem.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_name == "_upload_xet_files":
            return isinstance(problem, ConnectionError)
        trace = trace.tb_next
    return False


def _wait(problem: BaseException, number: int) -> float | None:
    """Seconds to wait before the next try; negative: trying again is no use; None: not the Hub's doing."""
    from huggingface_hub import errors

    status = status_of(problem)
    if _comes_from_xet(problem) or isinstance(problem, errors.OfflineModeIsEnabled):
        return -1  # hf_xet has tried for minutes by itself; and a setting doesn't pass
    if status in _PASSING or status in _RACES:
        headers = getattr(getattr(problem, "response", None), "headers", {})
        asked = str(headers.get("retry-after", "")).strip()
        if asked.isdigit():
            return float(asked) + 1 if float(asked) <= LONGEST_WAIT else -1
    elif not _is_connection_problem(problem):
        known = errors.HfHubHTTPError, errors.HFValidationError, errors.LocalTokenNotFoundError
        return -1 if status is not None or isinstance(problem, known) or _is_refusal(problem) else None
    return min(2.0 ** (number - 1), 30.0)


def _is_refusal(problem: BaseException) -> bool:
    """The client tells of some refusals with a bare ValueError."""
    return isinstance(problem, ValueError) and str(problem).startswith(("LFS batch API", "Invalid metadata"))


# Words ----------------------------------------------------------------------------------------------------------------


def _short(problem: BaseException) -> str:
    status = status_of(problem)
    said = str(getattr(problem, "server_message", None) or "").strip()
    if status is None:
        lines = [line.strip() for line in str(problem).splitlines() if line.strip()]
        said = " ".join(lines)[:500] or type(problem).__name__
        return redact(said.rstrip("."))
    return redact(f"the Hub answered {status}" + (f" ({said.rstrip('.')})" if said else ""))


def _advice(problem: BaseException) -> str:
    from huggingface_hub import errors

    status, text = status_of(problem), str(problem).lower()
    rerun = "run the same command again: it goes on where it stopped"
    if isinstance(problem, errors.OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set: unset it and try again."
    if _comes_from_xet(problem):
        return (
            "Large files go through Xet where hf_xet is installed. If its servers can't be reached from here, or this "
            f"Hub has none, set HF_HUB_DISABLE_XET=1 to send them without it; then {rerun}."
        )
    if isinstance(problem, errors.LocalTokenNotFoundError) or status == 401:
        return "Log in with `hf auth login`, or set HF_TOKEN to a token with write access, and try again."
    if "quota" in text or "storage" in text or status in (402, 413, 507):
        return f"Free some storage on the Hub (or push to another owner), then {rerun}."
    if isinstance(problem, errors.RevisionNotFoundError):
        return "Give a commit, tag or branch that exists."
    if isinstance(problem, errors.RepositoryNotFoundError) or status == 404:
        return "Check the name, and that you are logged in if it is private (`hf auth whoami`)."
    if status == 403:
        return (
            "Use a token with write access to it (https://huggingface.co/settings/tokens); for somebody else's "
            "repository open a pull request instead."
        )
    if status in _RACES:
        return f"Somebody else is changing it; {rerun}."
    if status == 400 or _is_refusal(problem):
        return f"Mend what it names, then {rerun}."
    return f"{rerun[0].upper()}{rerun[1:]}."  # an answer can be lost after the work was done: no word on what is there
