"""An edition measured: what guessing earns, how much a chunk gives away by type, and how different its wordings are.

What it is for: figures about an edition, for its tests and for docs/log.md. What it does not do: judge them.
"""

from __future__ import annotations

import itertools
import json
import math
import random
import re
import statistics
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lm_eval_kinject.corpus.sources.newswire.kind import Kind

__all__ = [
    "GivenAway",
    "co_occurrence",
    "co_occurrence_guesses",
    "distinct_n",
    "given_away_by_type",
    "guessers",
    "guesses",
    "learnt_from_texts",
    "learnt_guesses",
    "mean_overlap",
    "new_words",
    "wordings_by_chunk",
]

Row = Mapping[str, Any]


def wordings_by_chunk(chunks: Iterable[Row], paraphrases: Iterable[Row]) -> dict[str, list[list[str]]]:
    """Chunk id → its wordings, each a list of lower-case words, the original first; only of chunks with paraphrases."""
    others: dict[str, list[list[str]]] = defaultdict(list)
    for row in paraphrases:
        others[row["chunk"]].append(_words(row["text"]))
    return {row["id"]: [_words(row["text"]), *others[row["id"]]] for row in chunks if row["id"] in others}


def distinct_n(wordings: Sequence[Sequence[str]], n: int) -> float:
    """Distinct-n (Li et al., arXiv 1510.03055) over the wordings of one chunk, between 0 and 1."""
    found = [gram for words in wordings for gram in _ngrams(words, n)]
    return len(set(found)) / len(found)


def mean_overlap(wordings: Sequence[Sequence[str]], n: int) -> float:
    """Mean Jaccard similarity of the n-gram sets of all pairs of wordings of one chunk."""
    pairs = itertools.combinations([set(_ngrams(words, n)) for words in wordings], 2)
    return statistics.mean(len(a & b) / len(a | b) for a, b in pairs)


def new_words(known: Iterable[str], texts: Iterable[str]) -> float:
    """Share of the running words of texts that none of the known texts has, between 0 and 1: how far language drifted.

    Raises:
        ValueError: the texts have no words.
    """
    vocabulary = {word for text in known for word in _words(text)}
    found = [word not in vocabulary for text in texts for word in _words(text)]
    if not found:
        raise ValueError("the texts have no words")
    return sum(found) / len(found)


def guessers(questions: Sequence[Row], chunks: Sequence[Row]) -> dict[str, float]:
    """How often someone would be right who looks at the options only, or counts their values in the corpus.

    Args:
        questions: with ``choices``, ``answer`` (a place in them) and ``source_chunk``.
        chunks: with ``id`` and ``facts`` (JSON: name → value).

    Returns:
        Name of the rule → share of right answers.
    """
    return {name: _share(questions, picked) for name, picked in guesses(questions, chunks).items()}


def guesses(questions: Sequence[Row], chunks: Sequence[Row]) -> dict[str, list[int]]:
    """The same question by question: name of the rule → the place that it picks for each."""
    asked = {row["source_chunk"] for row in questions}
    everywhere = Counter(value for row in chunks for value in json.loads(row["facts"]).values())
    sources = Counter(value for row in chunks if row["id"] in asked for value in json.loads(row["facts"]).values())
    rng = random.Random(0)  # between equals

    def number(choice: str) -> float:
        found = re.search(r"\d[\d,]*\.?\d*", choice)
        return float(found.group().replace(",", "")) if found else rng.random()

    def from_mean(choices: Sequence[str]) -> list[float]:
        values = [number(choice) for choice in choices]
        return [-abs(value - statistics.mean(values)) for value in values]

    def each(key: Callable[[str], float]) -> Callable[[Sequence[str]], list[float]]:
        return lambda choices: [key(choice) for choice in choices]

    rules: dict[str, Callable[[Sequence[str]], Sequence[float]]] = {
        "the longest option": each(len),
        "the shortest": each(lambda choice: -len(choice)),
        "the most frequent in the corpus": each(lambda choice: everywhere[choice]),
        "the rarest in the corpus": each(lambda choice: -everywhere[choice]),
        # What a model trained on the source chunks may have seen more often, or at all, without knowing where.
        "the most frequent in source chunks": each(lambda choice: sources[choice]),
        "one that is in source chunks": each(lambda choice: sources[choice] > 0),
        "the largest number": each(number),
        "the smallest": each(lambda choice: -number(choice)),
        "the nearest to their mean": from_mean,
        "the first in the alphabet": lambda choices: [-sorted(choices).index(choice) for choice in choices],
    }
    most = max(len(row["choices"]) for row in questions)
    picked = {f"always {'ABCDEFGH'[i]}": [i] * len(questions) for i in range(most)}
    for name, rule in rules.items():
        picked[name] = [_place_of_best(rule(row["choices"]), rng) for row in questions]
    return picked


def co_occurrence(questions: Sequence[Row], chunks: Sequence[Row]) -> float:
    """How often someone is right who picks the option met most with the question's names, gold chunks left out.

    The names are the words with a capital behind the first word. Each of the other chunks in which an option is a
    fact counts for it with the names that it has too, rare ones more (inverse document frequency).
    """
    return _share(questions, co_occurrence_guesses(questions, chunks))


def co_occurrence_guesses(questions: Sequence[Row], chunks: Sequence[Row]) -> list[int]:
    """What that someone picks for each question."""
    words = {row["id"]: set(_words(row["text"])) for row in chunks}
    found = Counter(word for each in words.values() for word in each)
    holders: dict[str, list[str]] = defaultdict(list)
    for row in chunks:
        for value in json.loads(row["facts"]).values():
            holders[value].append(row["id"])
    rng = random.Random(0)  # between equals
    picked = []
    for row in questions:
        gold = {row["source_chunk"], *row.get("source_chunks", ())}
        names = {word.lower() for word in re.findall(r"(?<!^)\b[A-Z][a-z]+", row["question"])}
        weight = {word: math.log(len(chunks) / found[word]) for word in names if found[word]}
        scores = [
            sum(weight[word] for chunk in holders[choice] if chunk not in gold for word in weight.keys() & words[chunk])
            for choice in row["choices"]
        ]
        picked.append(_place_of_best(scores, rng))
    return picked


_FEATURES, _STEPS, _RATE, _DECAY = 4096, 300, 0.5, 1e-3


def learnt_from_texts(questions: Sequence[Row], *, inverted: bool = False) -> float:
    """How often a classifier is right that has seen the option texts of other events, with which one was right.

    A conditional logit (softmax over a question's options) on hashed n-grams: of 1 to 4 characters, and of 1 and 2
    words. It learns on the questions of one half of the source chunks and is asked those of the other, both ways.

    Args:
        questions: with ``choices``, ``answer`` and ``source_chunk``.
        inverted: pick the option that looks least right (what is right here may be wrong there, and a sign is a cue).
    """
    return _share(questions, learnt_guesses(questions, inverted=inverted))


def learnt_guesses(questions: Sequence[Row], *, inverted: bool = False) -> list[int]:
    """What that classifier picks for each question."""
    places = sorted({row["source_chunk"] for row in questions})
    half = {chunk: n % 2 for n, chunk in enumerate(random.Random(0).sample(places, len(places)))}
    features = np.stack([[_hashed(choice) for choice in row["choices"]] for row in questions])  # [asked, options, F]
    answers = np.array([row["answer"] for row in questions])
    side = np.array([half[row["source_chunk"]] for row in questions])
    picked = np.zeros(len(questions), dtype=np.int64)
    for learnt in (0, 1):
        weights = _conditional_logit(features[side == learnt], answers[side == learnt])
        scores = features[side != learnt] @ (-weights if inverted else weights)
        picked[side != learnt] = scores.argmax(axis=1)
    return [int(place) for place in picked]


def _hashed(text: str) -> np.ndarray:
    """Counts of a text's n-grams in hashed places, of length 1: [F]."""
    words = ["<", *text.lower().split(), ">"]
    marked = " ".join(words)
    grams = [marked[i : i + n] for n in range(1, 5) for i in range(len(marked) - n + 1)]
    grams += ["w:" + " ".join(words[i : i + n]) for n in (1, 2) for i in range(len(words) - n + 1)]
    vector = np.zeros(_FEATURES, dtype=np.float32)
    for gram in grams:
        vector[zlib.crc32(gram.encode()) % _FEATURES] += 1
    return vector / np.linalg.norm(vector)


def _conditional_logit(features: np.ndarray, answers: np.ndarray) -> np.ndarray:
    """Weights [F] that maximise the likelihood of the answers less a quadratic penalty, by gradient descent.

    Features are scaled by how much they vary among a question's options, as those that don't vary tell nothing.
    """
    features = features - features.mean(axis=1, keepdims=True)
    scale = 1 / (features.std(axis=(0, 1)) + 1e-2)
    features = features * scale
    weights = np.zeros(features.shape[-1], dtype=np.float32)
    chosen = np.eye(features.shape[1], dtype=np.float32)[answers]
    for _ in range(_STEPS):
        scores = features @ weights
        shares = np.exp(scores - scores.max(axis=1, keepdims=True))
        shares /= shares.sum(axis=1, keepdims=True)
        gradient = np.einsum("qo,qof->f", chosen - shares, features) / len(answers) - _DECAY * weights
        weights += _RATE * gradient
    return weights * scale


@dataclass(frozen=True)
class GivenAway:
    """How far the source chunk gives the answers of some questions away by their type.

    Attributes:
        questions: how many there are.
        candidates: mean number of values in the source chunk that are of the asked type, the right one among them.
        guessed: share right of who answers with one of these at random (its expectation, not a draw).
        alone: share of questions whose answer is the only value of its type in the chunk.
        rivalled: share of questions with a wrong option out of the same chunk; of the others, who looks up which
            option the chunk holds is right without having understood the question.
    """

    questions: int
    candidates: float
    guessed: float
    alone: float
    rivalled: float


def given_away_by_type(questions: Sequence[Row], chunks: Sequence[Row], kinds: Iterable[Kind]) -> dict[str, GivenAway]:
    """What someone who has the right chunk, and sees of a question only what type of value it asks for, gets right.

    All numbers are one type, whatever their units: whoever reads the unit out of the question guesses better.

    Args:
        questions: with ``choices``, ``answer``, ``source_chunk``, ``kind`` and ``slot``.
        chunks: with ``id`` and ``facts`` (JSON: slot → value).
        kinds: those of the edition, whose slots have the types (person, town, date, number, money, choice, …).

    Returns:
        Type of the asked slot → figures, in the alphabet's order; ``all`` comes last.
    """
    types = {kind.kind: {slot: spec.type for slot, spec in kind.slots.items()} for kind in kinds}
    facts: dict[str, dict[str, str]] = {row["id"]: json.loads(row["facts"]) for row in chunks}
    found: dict[str, list[tuple[int, bool]]] = defaultdict(list)
    for row in questions:
        inside, of = facts[row["source_chunk"]], types[row["kind"]]
        right, asked = row["choices"][row["answer"]], of[row["slot"]]
        candidates = {value for slot, value in inside.items() if of[slot] == asked}
        rivalled = any(choice != right and choice in inside.values() for choice in row["choices"])
        found[asked].append((len(candidates), rivalled))
    everything = [one for each in found.values() for one in each]
    return {name: _given_away(ones) for name, ones in [*sorted(found.items()), ("all", everything)]}


def _given_away(ones: Sequence[tuple[int, bool]]) -> GivenAway:
    counts = [count for count, _ in ones]
    return GivenAway(
        questions=len(ones),
        candidates=statistics.mean(counts),
        guessed=statistics.mean(1 / count for count in counts),
        alone=statistics.mean(count == 1 for count in counts),
        rivalled=statistics.mean(rivalled for _, rivalled in ones),
    )


def _place_of_best(scores: Sequence[float], rng: random.Random) -> int:
    return max(range(len(scores)), key=lambda place: (scores[place], rng.random()))


def _words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9']+", text.lower())


def _ngrams(words: Sequence[str], n: int) -> list[tuple[str, ...]]:
    return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]


def _share(questions: Sequence[Row], guesses: Sequence[int]) -> float:
    return statistics.mean(row["answer"] == guess for row, guess in zip(questions, guesses, strict=True))
