"""From a reply to what was asked for, or the name of what is wrong with it.

What it is for: `read_object` gets the JSON object out of a reply, and tells a refusal, a cut and junk apart. What it
does not do: it repairs nothing. JSON that has to be guessed at is asked for again, and counted.
"""

from __future__ import annotations

import json
import re
from typing import Any

from lm_eval_kinject.questions.asking import Reply

__all__ = ["Unusable", "read_list", "read_object", "read_text"]

_REFUSAL = re.compile(
    r"^\W*(?:i['’]?m sorry|sorry,|i apologi[sz]e|i (?:can['’]?t|cannot|can not|won['’]?t|am unable|am not able)|"
    r"as an ai|unfortunately, i)\b",
    re.IGNORECASE,
)


class Unusable(Exception):
    """A reply that can't be used; its text is what is counted: ``refusal``, ``cut off``, ``junk JSON``, …"""


def read_text(reply: Reply) -> str:
    """A reply's free text.

    Raises:
        Unusable: refused, cut off or empty.
    """
    text = _without_thinking(reply.text).strip()
    if reply.finish == "refusal" or _REFUSAL.match(text):
        raise Unusable("refusal")
    if reply.finish == "length":
        raise Unusable("cut off")
    if not text:
        raise Unusable("empty answer")
    return text


def read_object(reply: Reply) -> dict[str, Any]:
    """The JSON object of a reply, which may stand in a fence or behind a preamble.

    Raises:
        Unusable: refused, cut off, or no such object in it.
    """
    text = _without_thinking(reply.text)
    decoder = json.JSONDecoder()
    for start in (match.start() for match in re.finditer(r"\{", text)):
        try:
            found, _ = decoder.raw_decode(text, start)
        except (ValueError, RecursionError):
            break  # an object inside a broken one isn't what was asked for
        if isinstance(found, dict) and reply.finish != "refusal":
            return found
    read_text(reply)  # names a refusal or a cut
    raise Unusable("junk JSON")


def read_list(reply: Reply, name: str) -> list[Any]:
    """A list in the JSON object of a reply.

    Raises:
        Unusable: as `read_object`, or there is no such list.
    """
    found = read_object(reply).get(name)
    if not isinstance(found, list):
        raise Unusable("junk JSON")
    return found


def _without_thinking(text: str) -> str:
    """A reply without what reasoning models write first for themselves."""
    return re.sub(r"^\s*<think>.*?</think>", "", text, count=1, flags=re.DOTALL)
