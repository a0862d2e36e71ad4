"""Marks the chunks that seem to answer a question: where its answer's words stand near the question's own.

What it is for: questions about news that were not written from a chunk (RealTimeQA) get chunks against which recall can
be shown. What it does not do: it understands nothing. An answer told in other words is missed, and one that stands near
the question's words by chance is marked: figures made with it compare retrievers on one corpus and say little by
themselves.

The one idea: DPR (Karpukhin et al. 2020) takes any passage with the answer's string for right, which "London" or "2020"
makes too easy. Here two fifths of the question's words, by their first five letters, must stand within 30 words of it.
"""

from __future__ import annotations

import heapq
import math
import re
from collections.abc import Iterable, Sequence

from lm_eval_kinject.records import Question

__all__ = ["AnswerMarks"]

_NEAR = 30  # words before and behind the answer
_SHARE = 0.4  # of the question's words
_STEM = 5
_MOST = 20  # marks kept of a question, the best
_WORD = re.compile(r"\w+")
_STOP = frozenset(
    "a about after all also an and are as at be been but by can did do does for from had has have he her his how i if "
    "in into is it its last many most much new not of on one or our out said she than that the their them there these "
    "they this to two up was week were what when where which while who whom whose why will with would you your".split()
)
_NO_ANSWER = frozenset(("yes", "no", "true", "false", "all of the above", "none of the above", "none", "both"))


class AnswerMarks:
    """Looks through chunks, one after another, for those that seem to answer some questions.

    Args:
        questions: whose right options and words are looked for. Those with an answer such as "yes" get no marks.
    """

    def __init__(self, questions: Sequence[Question]) -> None:
        self._starts: dict[str, list[tuple[int, tuple[str, ...], frozenset[str]]]] = {}
        self._found: list[list[tuple[float, int, str]]] = [[] for _ in questions]
        self._chunks = 0
        for number, question in enumerate(questions):
            answer = _words(question.choices[question.answer])
            while answer and answer[0] in ("the", "a", "an"):
                answer = answer[1:]
            asked = frozenset(_stems(w for w in _words(question.question) if w not in _STOP and w not in answer))
            if answer and asked and " ".join(answer) not in _NO_ANSWER:
                self._starts.setdefault(answer[0], []).append((number, tuple(answer), asked))

    def look(self, chunk_id: str, text: str) -> None:
        """Looks at one chunk; of equally good ones the earlier counts more."""
        self._chunks += 1
        words = _words(text)
        stems = list(_stems(words))
        best: dict[int, float] = {}
        for place, word in enumerate(words):
            for number, answer, asked in self._starts.get(word, ()):
                end = place + len(answer)
                if tuple(words[place:end]) != answer:
                    continue
                near = len(asked.intersection(stems[max(0, place - _NEAR) : place] + stems[end : end + _NEAR]))
                if near >= max(min(2, len(asked)), math.ceil(_SHARE * len(asked))):
                    best[number] = max(best.get(number, 0.0), near / len(asked))
        for number, share in best.items():
            kept = self._found[number]
            heapq.heappush(kept, (share, -self._chunks, chunk_id))
            if len(kept) > _MOST:
                heapq.heappop(kept)

    def marks(self) -> list[tuple[str, ...]]:
        """Ids of the chunks that seem to answer each question, best first, 20 at most."""
        return [tuple(chunk for _, _, chunk in sorted(kept, reverse=True)) for kept in self._found]


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())


def _stems(words: Iterable[str]) -> list[str]:
    return [word[:_STEM] for word in words]
