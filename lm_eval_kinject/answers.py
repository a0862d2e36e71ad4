"""Open answers: how a generated text is compared with the right answers, and which chunks it cites.

What it is for: tasks of lm_eval that generate name `process_results` and `target` in their YAML
(``!function lm_eval_kinject.answers.process_results``), whatever data set they ask: its rows hold ``answers`` (a text
or a list of texts, all of them right), or ``answer`` (a text, or the place of the right one in ``choices``). What it
does not do: it asks no model whether an answer means the same, and needs neither torch nor lm_eval.

The one idea: a model says *what* in the first line that has something in it, and *why* behind that. So exact match and
F1 take that line alone, and nothing has to stop a model that begins with an empty line or goes on in a second
paragraph::

    ⏎ ⏎ Answer: the Clay Tablet [2]. ⏎ ⏎ The second passage says so.
                └──────┬──────┘ └┬┘      └────────────┬────────────┘
               the short answer  cites 2     counts for `answer_in_text` alone
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any

__all__ = [
    "citation_scores",
    "citations",
    "exact_match",
    "f1",
    "in_text",
    "normalise",
    "process_results",
    "short_answer",
    "target",
]

_CITED = re.compile(r"\[(\d{1,3}(?:\s*[,;–-]\s*\d{1,3})*)\]")  # four digits are a year
_RANGE = re.compile(r"(\d+)(?:\s*[–-]\s*(\d+))?")
_LABEL = re.compile(r"^[\s*_#>]*(?:the\s+|final\s+)*answer\s*:[\s*_]*", re.IGNORECASE)  # in Markdown, too
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
_WIDEST = 50  # numbers of a range; of a wider one only its ends count


# What lm_eval calls ---------------------------------------------------------------------------------------------------


def process_results(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """Scores the generated text of one row; see lm_eval's ``process_results``.

    Returns:
        ``exact_match``, ``f1`` and ``answer_in_text``, each from 0 to 1 and the best over the row's right answers.

    Raises:
        ValueError: the row has no right answer.
    """
    golds, text = _golds(doc), results[0]
    short = short_answer(text)
    return {
        "exact_match": max(exact_match(short, gold) for gold in golds),
        "f1": max(f1(short, gold) for gold in golds),
        "answer_in_text": max(in_text(text, gold) for gold in golds),
    }


def target(doc: Mapping[str, Any]) -> str:
    """The right answer of a row, for few-shot examples: the first where there are several.

    Raises:
        ValueError: the row has none.
    """
    return _golds(doc)[0]


def _golds(doc: Mapping[str, Any]) -> list[str]:
    """All right answers of a row."""
    found = doc.get("answers", doc.get("answer"))
    if isinstance(found, int) and not isinstance(found, bool) and 0 <= found < len(doc.get("choices") or ()):
        found = doc["choices"][found]
    golds = [found] if isinstance(found, str) else list(found) if isinstance(found, list | tuple) else []
    if not golds or not all(isinstance(gold, str) and gold.strip() for gold in golds):
        raise ValueError(
            f"the row {doc.get('id', doc)!r} has no right answer: give it `answers` (a text, or a list of texts) or "
            "`answer` (a text, or the place of the right one in `choices`)"
        )
    return golds


# Texts ----------------------------------------------------------------------------------------------------------------


def short_answer(text: str) -> str:
    """The first line of a text that has something in it, without citations and a leading ``Answer:``."""
    lines = (_CITED.sub("", _LABEL.sub("", line)).strip() for line in text.splitlines())
    return next((line for line in lines if line), "")


def normalise(text: str) -> str:
    """Lower case, without ASCII punctuation, articles and superfluous white space: as SQuAD's evaluation has it.

    Source: evaluate-v1.1.py of Rajpurkar et al. 2016 (arXiv 1606.05250). Differs in one case: a text of nothing but
    articles and punctuation (``A``, ``+``) stays as it is, in lower case, as else every empty answer would match it.
    """
    lowered = text.lower()
    bare = " ".join(_ARTICLES.sub(" ", lowered.translate(_NO_PUNCTUATION)).split())
    return bare or " ".join(lowered.split())


def exact_match(answer: str, gold: str) -> float:
    """1.0 where both are the same when normalised, else 0.0."""
    return float(normalise(answer) == normalise(gold))


def f1(answer: str, gold: str) -> float:
    """Harmonic mean of precision and recall over words, when normalised; a word counts as often as it stands in both.

    Source: as `normalise`; 0.0 where no word is shared.
    """
    said, right = normalise(answer).split(), normalise(gold).split()
    shared = sum((Counter(said) & Counter(right)).values())
    return 2 * shared / (len(said) + len(right)) if shared else 0.0


def in_text(text: str, gold: str) -> float:
    """1.0 where the right answer stands somewhere in the text, word by word when normalised, else 0.0."""
    return float(f" {normalise(gold)} " in f" {normalise(_CITED.sub(' ', text))} ")


# Citations ------------------------------------------------------------------------------------------------------------


def citations(text: str) -> tuple[int, ...]:
    """The numbers that a text cites in brackets, each once, in order: ``[2]``, ``[1][3]``, ``[1, 3]``, ``[2-4]``."""
    found: dict[int, None] = {}
    for group in _CITED.findall(text):
        for first, last in _RANGE.findall(group):
            low, high = int(first), int(last or first)
            found.update(dict.fromkeys(range(low, high + 1) if high - low < _WIDEST else (low, high)))
    return tuple(found)


def citation_scores(cited: Collection[int], gold: Collection[int]) -> tuple[float, float | None]:
    """How well an answer cites the chunks that its question was made from.

    Args:
        cited: numbers, from `citations`.
        gold: the right chunks' numbers; one that isn't in the prompt has a number that can't be cited, such as 0.

    Returns:
        Recall (the share of the right chunks that are cited) and precision (the share of the cited that are right),
        None where nothing is cited, which is neither right nor wrong. These are by source chunk; whether a cited text
        bears out what is said, as entailment models are asked (Gao et al. 2023, arXiv 2305.14627), isn't looked at.

    Raises:
        ValueError: there is no right chunk.
    """
    right = len(set(cited) & set(gold))
    if not gold:
        raise ValueError("a question without a source chunk has no citation recall; leave it out")
    return right / len(set(gold)), right / len(set(cited)) if cited else None
