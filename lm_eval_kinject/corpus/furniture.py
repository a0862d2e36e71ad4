"""Takes page furniture out of scraped articles: what a page says about itself and not about the news.

What it is for: calls to register or to subscribe, newsletters, cookie and privacy notices, lists of related articles,
by-lines and addresses of reporters stand in many articles, and a retriever finds them. What it does not do: it finds no
main text in HTML (``clean.strip_html`` comes first, and scraped articles come as text), and it rewrites no line.

The one idea: a line is furniture by its form (few forms, each a way to speak to the reader or to link to another page),
or because it stands in many different articles. Of repeated lines two kinds stay: a short one before text of the
article's own is a heading ("Alabama" in a round-up of states), and the first article that has one of four words or more
keeps it, as it may be background that reporters use again.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from lm_eval_kinject.corpus.clean import squeeze

__all__ = ["LEAST", "LineTally", "Repeated", "take_out"]

LEAST = 4
"""A line that stands in this many different articles, or more, is a repeated one."""

_TELLING = 4  # words from which on a repeated line may tell something, which its first article keeps
_HEADING = 6  # words up to which a repeated line may be a heading
_MOST = 90  # words up to which a line can be furniture by its form
_MOST_OF_A_LINK = 30

_NAME = r"[A-Z][\w.'’-]*"
_FORMS = {
    "related": (
        # A link whose label has lost its space: "Cancer risk:Americans have 40% chance of getting cancer"
        r"^[^:.!?]{0,60}[A-Za-z'’]:[A-Z'‘“\"#](?!\S*//).{8,}",
        r"(?i:^(?:more|related|read|read more|see also|watch|watch more|listen|also|recommended): ?\S)",
        r"(?i:^(?:more|read more|watch) (?:on|from|in|about)\b[^:.!?]{0,40}: ?\S)",
        r"(?i:^(?:don['’]t miss|click here|tap here|also read|read also)\b)",
    ),
    "register": (
        r"(?i:\b(?:sign(?:ing)? up|register|log(?:ging)? in)\b.{0,60}\b(?:here|now|today|free|inbox|account)\b)",
        r"(?i:\b(?:sign(?:ing)? up|register)\b.{0,60}\b(?:newsletters?|alerts?|emails?)\b|\bcreate an account\b)",
        r"(?i:\bnewsletters?\b.{0,80}\b(?:sign up|subscribe|inbox|here)\b|\b(?:in|to) your inbox\b)",
        r"(?i:\b(?:subscribe (?:to|now|today|for|here|&)|you can subscribe|subscribe and|digital subscription)\b)",
        r"(?i:\bsupport (?:local|our|quality|independent) journalism\b|\bsupporting our journalism\b)",
        r"(?i:\bdownload (?:the|our)\b.{0,30}\bapp\b)",
    ),
    "privacy": (
        r"(?i:\b(?:we|partners|(?:web)?site|you agree to)\b.{0,40}\b(?:use|uses|using|store|set)\b.{0,20}\bcookies\b)",
        r"(?i:\baccept (?:all )?cookies\b|\bcookie (?:policy|notice|settings|preferences)\b)",
        r"(?i:\b(?:our|the) privacy (?:policy|notice)\b|\bterms (?:of (?:use|service)|and conditions) apply\b)",
        r"(?i:\ball rights reserved\b|\bmay not be (?:published|republished|reproduced)\b|^(?:©|copyright \d{4}))",
        r"(?i:\baffiliate (?:fee|link|commission)|\bwe may (?:earn|receive|be paid)\b|\bcontent partner\b)",
        r"(?i:\bsupported in part by a grant\b|\bmade possible in part by\b)",
    ),
    "by-line": (
        r"(?i:^contribut(?:ing|ors?)(?: writers?| reporters?)? ?:|\bcontributed to this (?:report|story|article)\b)",
        rf"^[-–—−]{{1,2}} ?{_NAME}(?: {_NAME}){{1,3}}(?:(?:,| and) {_NAME}(?: {_NAME}){{0,3}})*,?$",
        r"(?i:\b(?:reach|e-?mail|contact|follow|message|tweet) (?:him|her|them|me|us)\b.{0,60}(?:@|\bon\b|\d{3}[-.]))",
        r"(?i:^(?:contact|reach|follow|email)\b.{0,80}(?:@|\d{3}[-.]\d{4})|\bcan be reached (?:at|by|via)\b)",
        r"(?i:\bfollow @?\w+.{0,40} on (?:twitter|x|instagram|facebook|bluesky)\b)",
        r"(?i:\bgot a (?:news |story )?tip\b|\bstory ideas?\b.{0,40}(?:\bemail\b|@))",
    ),
}
"""Kind of furniture -> forms of its lines."""

_PATTERNS = {kind: re.compile("|".join(f"(?:{form})" for form in forms)) for kind, forms in _FORMS.items()}
_TAIL = re.compile(r"(?<=[.!?”\"]) (?:Read|See|Learn|Hear|Watch) (?:more|it|the full story)(?: about it)?(?: here)?\.$")

Keys: TypeAlias = npt.NDArray[np.uint64]


@dataclass(frozen=True, slots=True)
class Repeated:
    """Lines that stand in many articles: a line's key -> that of the first article, in reading order, that has it."""

    first: Mapping[int, int] = field(default_factory=dict)


class LineTally:
    """Counts in how many articles each line stands, in 16 bytes a line of an article.

    Attributes:
        lines: keys of the lines that were added, each once an article, shape (n,).
        articles: keys of the articles they stand in, shape (n,), in reading order.
    """

    def __init__(self) -> None:
        self._lines: list[Keys] = []
        self._articles: list[Keys] = []

    def add(self, article: str, text: str) -> None:
        """Counts an article's lines, each once; the same article isn't to be added twice."""
        keys = np.array(sorted({_key(line) for line in map(_normal, text.split("\n")) if line}), dtype=np.uint64)
        self.extend(keys, np.full(len(keys), _key(article), dtype=np.uint64))

    def extend(self, lines: Keys, articles: Keys) -> None:
        """Counts what another tally has kept."""
        self._lines.append(lines)
        self._articles.append(articles)

    @property
    def lines(self) -> Keys:
        """The first of what was kept; see above."""
        return np.concatenate([np.empty(0, np.uint64), *self._lines])

    @property
    def articles(self) -> Keys:
        """The second of what was kept; see above."""
        return np.concatenate([np.empty(0, np.uint64), *self._articles])

    def repeated(self, least: int = LEAST) -> Repeated:
        """The lines that stand in at least so many articles."""
        keys, first, counts = np.unique(self.lines, return_index=True, return_counts=True)
        many = counts >= least
        articles = self.articles[first[many]]
        return Repeated(dict(zip(keys[many].tolist(), articles.tolist(), strict=True)))


def take_out(article: str, text: str, repeated: Repeated) -> tuple[str, Counter[str]]:
    """An article's text without its furniture.

    Args:
        article: its id, as the tally knows it.
        text: plain, lines as scraped.
        repeated: of the corpus that the article stands in.

    Returns:
        The text, squeezed, which may be empty; and how many lines of each kind were taken out: ``related``,
        ``register``, ``privacy``, ``by-line``, ``repeated``.
    """
    lines = [_TAIL.sub("", line.strip()) for line in text.split("\n")]
    kinds = [_kind(line) for line in lines]
    keys = [_key(_normal(line)) if line else -1 for line in lines]
    counts: Counter[str] = Counter()
    kept: list[str] = []
    follower = False  # whether the line after this one is the article's own
    owner = _key(article)
    for line, kind, key in zip(reversed(lines), reversed(kinds), reversed(keys), strict=True):
        if not line:
            kept.append("")
            continue
        again = key in repeated.first
        if not kind and again and not _has_its_place(line, repeated.first[key] == owner, follower):
            kind = "repeated"
        if kind:
            counts[kind] += 1
        else:
            kept.append(line)
        follower = not kind and not again
    return squeeze("\n".join(reversed(kept))), counts


def _has_its_place(line: str, is_first: bool, follower: bool) -> bool:
    """Whether a repeated line is to stay: a heading of what follows, or background where it came first."""
    words = len(line.split())
    return (words <= _HEADING and follower) or (words >= _TELLING and is_first)


def _kind(line: str) -> str:
    words = line.count(" ") + 1
    if words > _MOST:
        return ""
    found = (kind for kind, pattern in _PATTERNS.items() if pattern.search(line))
    return next((kind for kind in found if kind != "related" or words <= _MOST_OF_A_LINK), "")


def _normal(line: str) -> str:
    return " ".join(line.lower().split())


def _key(text: str) -> int:
    """A 63-bit name of a line or an article."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1
