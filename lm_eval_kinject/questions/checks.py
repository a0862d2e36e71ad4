"""What a machine can see of a question or a wording: answers that aren't in the text, cues, doubles, lost facts.

What it is for: `problems_of` names what is wrong with a candidate question, `Doubles` finds near-duplicates, `facts_of`
and `lost_or_new` compare the numbers, dates and names of two texts. What it does not do: it doesn't read. Whether a
question can be answered with the passage, and only with it, is asked of a model (verify.py).

The one idea: rules err on the side of asking again. A sound question that is refused costs one more request; an unsound
one that is kept costs a benchmark its credit.
"""

from __future__ import annotations

import itertools
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

__all__ = [
    "OPTIONS",
    "Doubles",
    "Facts",
    "content_words",
    "facts_of",
    "is_in",
    "lost_or_new",
    "places_of",
    "problems_of",
    "same_question",
    "similarity",
    "words_of",
]

OPTIONS = 4

LONGER = 1.6
"""A right option this many times as long as the longest wrong one (or as short against the shortest) is a cue,"""
BY_CHARACTERS = 8
"""if it differs from it by at least so many characters."""

ALIKE = 0.7
"""Share of content words (Jaccard) from which on two questions on the same names and numbers are one,"""
ALIKE_WITH_ANSWER = 0.4
"""and the same where their right answers are the same, too."""

_STOP_WORDS = frozenset(
    "a an and are as at be been by did do does for from had has have how in into is it its of on or that the their "
    "there this to was were what when where which who whom whose why will with".split()
)
_TOKEN = re.compile(r"\d+(?:\.\d+)*|[^\W\d_]+(?:'[^\W\d_]+)?")
_PASSAGE = re.compile(
    r"\b(?:passage|excerpt|article|paragraph)s?\b"
    r"|\b(?:according to|based on|mentioned in|described in|stated in|given in|in|from|of)\s+(?:the|this|that|above|"
    r"given|provided)\s+(?:\w+\s+)?(?:text|document|context|source|author|report above|information)\b"
    r"|\bthe (?:text|author|writer)\b",
    re.IGNORECASE,
)
_ALL_OR_NONE = re.compile(
    r"\b(?:all|none|both|neither|any) of (?:the|these|those)\b|\bnot (?:stated|mentioned|given)\b", re.I
)


def _plain(text: str) -> str:
    """Compatibility forms unified, straight apostrophes, no thousands separators."""
    text = unicodedata.normalize("NFKC", text).replace("’", "'")
    return re.sub(r"(?<=\d)[, \u00a0\u202f](?=\d{3}(?!\d))", "", text)


def words_of(text: str) -> list[str]:
    """Lower-case words and numbers, without punctuation; a possessive 's is taken off."""
    return [word.removesuffix("'s") for word in _TOKEN.findall(_plain(text).lower())]


def content_words(text: str) -> frozenset[str]:
    """The words that say something: no articles, prepositions and question words."""
    return frozenset(words_of(text)) - _STOP_WORDS


def is_in(part: str, text: str) -> bool:
    """Whether words stand in a text one after the other, whatever their case and punctuation."""
    wanted, there = words_of(part), words_of(text)
    if wanted and wanted[0] in ("a", "an", "the") and len(wanted) > 1:
        wanted = wanted[1:]
    # Scripts without spaces are compared as they stand.
    close = re.sub(r"\s+", "", _plain(part).lower())
    return bool(wanted) and (
        f" {' '.join(wanted)} " in f" {' '.join(there)} "
        or (not close.isascii() and close in re.sub(r"\s+", "", _plain(text).lower()))
    )


def places_of(part: str, text: str) -> list[tuple[int, int]]:
    """Where words stand in a text one after the other, whatever their case and what is between them: (start, end)s.

    It is for showing: what `is_in` finds by making both texts alike may be missing here (1200 in "1,200").
    """
    words = re.findall(r"\w+", part)
    if len(words) > 1 and words[0].lower() in ("a", "an", "the"):
        words = words[1:]
    if not words:
        return []
    pattern = r"\W+".join(map(re.escape, words))
    if words[0].isascii() and words[-1].isascii():  # scripts without spaces have no ends of words
        pattern = rf"\b{pattern}\b"
    return [match.span() for match in re.finditer(pattern, text, re.IGNORECASE)]


# Questions ------------------------------------------------------------------------------------------------------------


def problems_of(candidate: Mapping[str, Any], passage: str) -> list[str]:
    """What is wrong with a candidate as a writer gave it, in words that are counted and told to the writer.

    Args:
        candidate: should hold ``question``, ``options`` (four objects with ``text`` and ``right``) and ``evidence``.
        passage: the chunk's text.
    """
    question, options = candidate.get("question"), candidate.get("options")
    if not isinstance(question, str) or not question.strip():
        return ["no question"]
    if not isinstance(options, list) or len(options) != OPTIONS:
        return ["not four options"]
    texts = [one["text"] for one in options if isinstance(one, dict) and isinstance(one.get("text"), str)]
    if len(texts) < OPTIONS or not all(map(words_of, texts)):
        return ["an option is empty"]
    right = [text for text, one in zip(texts, options, strict=True) if one.get("right") is True]
    if len(right) != 1:
        return ["several right options" if right else "no right option"]
    wrong = [text for text, one in zip(texts, options, strict=True) if one.get("right") is not True]
    return [
        *(["an option twice"] if len({" ".join(words_of(text)) for text in texts}) < OPTIONS else []),
        *(["all or none of the options as an option"] if any(_ALL_OR_NONE.search(text) for text in texts) else []),
        *(["speaks of the passage"] if _PASSAGE.search(question) else []),
        *(["answer not in the text"] if not _answer_in(right[0], candidate.get("evidence"), passage) else []),
        *(["answer in the question"] if is_in(right[0], question) else []),
        *(["length gives the answer away"] if _stands_out(right[0], wrong) else []),
    ]


def _answer_in(answer: str, evidence: Any, passage: str) -> bool:
    """Whether the passage has the answer's words in a row, or a quoted part of it has all of them."""
    if is_in(answer, passage):
        return True
    quoted = isinstance(evidence, str) and is_in(evidence, passage)
    return quoted and content_words(answer) <= frozenset(words_of(str(evidence)))


def _stands_out(right: str, wrong: Sequence[str]) -> bool:
    longest, shortest = max(map(len, wrong)), min(map(len, wrong))
    longer = len(right) > LONGER * longest and len(right) - longest >= BY_CHARACTERS
    shorter = LONGER * len(right) < shortest and shortest - len(right) >= BY_CHARACTERS
    return longer or shorter


def similarity(one: str, other: str) -> float:
    """Jaccard similarity of the content words of two texts, between 0 and 1."""
    a, b = content_words(one), content_words(other)
    return len(a & b) / len(a | b) if a | b else 1.0


def _marks(question: str) -> frozenset[str]:
    """Numbers, and words with a capital behind the first: what two questions of one pattern differ in."""
    tokens = _TOKEN.findall(_plain(question))
    return frozenset(
        t.lower().removesuffix("'s") for n, t in enumerate(tokens) if t[0].isdigit() or (n and t[0].isupper())
    )


def same_question(one: str, other: str, answers: tuple[str, str]) -> bool:
    """Whether two questions ask the same, as far as their words tell: see `ALIKE`."""
    if _marks(one) != _marks(other):
        return False
    same_answer = words_of(answers[0]) == words_of(answers[1])
    return similarity(one, other) >= (ALIKE_WITH_ANSWER if same_answer else ALIKE)


@dataclass
class Doubles:
    """Questions so far; finds one that asks the same, looking only at those with the same names and numbers."""

    _by_marks: dict[frozenset[str], list[tuple[str, str, str]]] = field(default_factory=lambda: defaultdict(list))

    def find(self, question: str, answer: str) -> str | None:
        """The id of an earlier question that asks the same; None: there is none."""
        rivals = self._by_marks.get(_marks(question), ())
        return next((name for name, other, right in rivals if same_question(question, other, (answer, right))), None)

    def add(self, name: str, question: str, answer: str) -> None:
        """Remembers a question."""
        self._by_marks[_marks(question)].append((name, question, answer))


# Wordings -------------------------------------------------------------------------------------------------------------


_UNITS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen"
).split()
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
_NUMBER_WORDS = {word: str(n) for n, word in enumerate(_UNITS)} | {
    word: str(20 + 10 * n) for n, word in enumerate(_TENS)
}
_MONTHS = "january february march april may june july august september october november december".split()
_MONTH_OF = {name: name for name in _MONTHS} | {name[:3]: name for name in _MONTHS} | {"sept": "september"}
_ISO_DATE = re.compile(r"\b(\d{4})-(\d{2})-(\d{2})\b")
_SENTENCE_START = re.compile(r"(?:^|[.!?:…]\s*[\"'”’)\]]*\s*|\n\s*|[“\"(\[]\s*)$")
_LIST_MARK = re.compile(r"(?m)^\s*(?:\d{1,2}[.)]|[-*•])\s+")


@dataclass(frozen=True)
class Facts:
    """What a text states in numbers (those of dates among them), months and names; all normalised."""

    numbers: frozenset[str]
    dates: frozenset[str]
    names: frozenset[str]


def facts_of(text: str) -> Facts:
    """The facts of a text that a rule can see.

    Numbers are taken without thousands separators and trailing zeros, number words up to ninety-nine as numbers (but
    "one", which is mostly a pronoun). Names are words with a capital that don't begin a sentence. Days of the week and
    months by name are dates.
    """
    plain = _ISO_DATE.sub(
        lambda m: f"{int(m[3])} {_MONTHS[(int(m[2]) - 1) % 12].capitalize()} {m[1]}", _plain(_LIST_MARK.sub("", text))
    )
    numbers, dates, names = set(), set(), set()
    before = ""
    for match in _TOKEN.finditer(plain):
        word = match.group()
        lower = word.lower().removesuffix("'s")
        hyphen = plain[match.start() - 1 : match.start()] == "-"
        if word[0].isdigit():
            numbers.add(_number(word))
        elif lower in _NUMBER_WORDS and lower != "one":
            if hyphen and before in _TENS and lower in _UNITS[1:10]:
                numbers.discard(_NUMBER_WORDS[before])
                numbers.add(str(int(_NUMBER_WORDS[before]) + int(_NUMBER_WORDS[lower])))
            else:
                numbers.add(_NUMBER_WORDS[lower])
        elif (
            word[0].isupper()
            and lower in _MONTH_OF
            and not (lower == "may" and _SENTENCE_START.search(plain[: match.start()]))
        ):
            dates.add(_MONTH_OF[lower])
        elif (
            word[0].isupper()
            and len(lower) > 1
            and not _SENTENCE_START.search(plain[max(0, match.start() - 8) : match.start()])
        ):
            names.add(lower)
        before = lower
    return Facts(frozenset(numbers), frozenset(dates), frozenset(names))


def _number(word: str) -> str:
    whole, _, part = word.partition(".")
    part = part.rstrip("0") if "." not in part else part
    return (whole.lstrip("0") or "0") + (f".{part}" if part else "")


def lost_or_new(original: str, wording: str, *, whole: bool = True) -> list[str]:
    """How a wording's facts differ from its original's: ``a number is lost``, ``a name is new`` and so on.

    Args:
        original: the chunk, its title among it.
        wording: what was made of it.
        whole: whether all facts of the original must be in it; otherwise only new ones count.
    """
    then, now = facts_of(original), facts_of(wording)
    there, here = frozenset(words_of(original)), frozenset(words_of(wording))
    found = [
        ("a number is lost", whole and then.numbers - now.numbers),
        ("a date is lost", whole and then.dates - now.dates),
        ("a name is lost", whole and then.names - here),
        ("a number is new", now.numbers - then.numbers),
        ("a date is new", now.dates - then.dates),
        ("a name is new", now.names - there - _STOP_WORDS),
    ]
    return [problem for problem, which in found if which]


def repeated(wording: str, others: Iterable[str], most: float) -> bool:
    """Whether a wording shares more than ``most`` of its pairs of words (Jaccard) with one of the others."""
    mine = _pairs(wording)
    return any(len(mine & theirs) / max(1, len(mine | theirs)) > most for theirs in map(_pairs, others))


def _pairs(text: str) -> frozenset[tuple[str, str]]:
    words = words_of(text)
    return frozenset(itertools.pairwise(words))
