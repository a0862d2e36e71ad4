"""The samples of one result, or of two side by side, as they are shown.

What it is for: `read_pairs` reads samples and puts those of two results together, `kept` filters them, `pieces` finds
the chunks in a prompt. What it doesn't do: HTML (sheets.py).

The one idea: samples name chunks by their ids alone, so their texts are taken from the corpus that the result names,
and only from a corpus with its fingerprint; without it, prompts are shown unmarked and the page says why.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lm_eval_kinject.errors import ArgumentError, KinjectError
from lm_eval_kinject.hub.eval_results import BUNDLED_CORPUS, HUB_CORPUS
from lm_eval_kinject.provenance import read_json
from lm_eval_kinject.records import Chunk, gold_ids
from lm_eval_kinject.study.load import answers_of, option_scores, read_samples, result_file, trace_of
from lm_eval_kinject.study.outcomes import Answered

__all__ = ["FILTERS", "HitLine", "Option", "Pair", "Piece", "Sample", "Told", "kept", "pieces", "read_pairs", "told_of"]

FILTERS = {
    "all": "All",
    "flips": "Flips: right in one only",
    "gained": "Right in the second only",
    "lost": "Right in the first only",
    "wrong": "Wrong (in either)",
    "gold": "Gold chunk missed (in either)",
    "unscored": "Could not be scored (in either)",
}
_FOR_TWO = ("flips", "gained", "lost")


@dataclass(frozen=True, slots=True)
class Option:
    """An option of a question: text, log-likelihood in nats, its share among the options (softmax), and its marks."""

    text: str
    score: float
    share: float
    target: bool
    chosen: bool


@dataclass(frozen=True, slots=True)
class HitLine:
    """A chunk that was retrieved: place, score, and whether it stands in the prompt and answers the question."""

    id: str
    rank: int
    score: float | None
    used: bool
    truncated: bool
    gold: bool


@dataclass(frozen=True, slots=True)
class Sample:
    """One question in one result.

    Args:
        answer: `Answered`: whether it was right (None: could not be scored) and where the gold chunk came.
        prompt: as scored.
        options: of multiple choice; empty where the answer is a text.
        said, target: what the model wrote, and what was wanted; of multiple choice the texts of the options.
        hits: chunks by rank.
        used: ids of the chunks in the prompt, from its top.
        gold: ids of the chunks that answer the question.
        truncated: id of the chunk whose tail was cut; ``""`` for none.
        dropped: how many chunks were left out for room.
    """

    answer: Answered
    prompt: str
    options: tuple[Option, ...]
    said: str
    target: str
    hits: tuple[HitLine, ...]
    used: tuple[str, ...]
    gold: tuple[str, ...]
    truncated: str
    dropped: int

    @property
    def right(self) -> bool | None:
        """Whether it was right; None: could not be scored. A share counts from a half on."""
        return None if self.answer.correct is None else self.answer.correct >= 0.5

    @property
    def gold_missed(self) -> bool:
        """Whether there is retrieval and a gold chunk, and the prompt hasn't got all of it."""
        return bool(self.used or self.hits) and bool(self.gold) and not set(self.gold) <= set(self.used)


@dataclass(frozen=True, slots=True)
class Pair:
    """One question in one or two results."""

    task: str
    doc_id: int
    question: str
    samples: tuple[Sample, ...]

    @property
    def flip(self) -> str:
        """``gained`` or ``lost`` where exactly one of two is right, else ``""``."""
        if len(self.samples) < 2 or None in (self.samples[0].right, self.samples[1].right):
            return ""
        first, second = (bool(one.right) for one in self.samples)
        return "" if first == second else "gained" if second else "lost"


@dataclass(frozen=True, slots=True)
class Told:
    """What a result says of itself: a name for people, and the chunks of its corpora, or why they aren't here."""

    name: str
    chunks: Mapping[str, Chunk]
    lacking: str = ""


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a prompt; ``chunk`` is the id of the chunk that it is, ``""`` for what stands between."""

    text: str
    chunk: str = ""


# Reading --------------------------------------------------------------------------------------------------------------


def results_of(place: Path) -> Path:
    """The results file that a person named, or that is in the folder named.

    Raises:
        ArgumentError: there is none.
    """
    file = result_file(place) if place.is_dir() else place
    if not file.is_file():
        raise ArgumentError(f"{place}: no such file or folder; pass a results_….json of lm_eval", "kinject show")
    return file


def read_pairs(files: Sequence[Path]) -> list[Pair]:
    """The samples of one or two results, question by question; of two, of the tasks that both have.

    Raises:
        ArgumentError: samples are missing or malformed, there is no common task, or its questions differ.
    """
    found = [_samples(file) for file in files]
    tasks = [task for task in found[0] if all(task in one for one in found)]
    if not tasks:
        both = "; ".join(", ".join(one) or "none" for one in found)
        raise ArgumentError(f"the results have no task in common ({both})", "kinject show")
    pairs = []
    for task in tasks:
        rows = [{int(row["doc_id"]): row for row in one[task]} for one in found]
        common = [doc for doc in rows[0] if all(doc in one for one in rows)]
        if other := [doc for doc in common if any(one[doc]["doc"] != rows[0][doc]["doc"] for one in rows)]:
            problem = f"{task}: document {other[0]} is another question in the second result; take one task version"
            raise ArgumentError(problem, "kinject show")
        pairs += [
            Pair(task, doc, _question(rows[0][doc]), tuple(_sample(task, one[doc]) for one in rows)) for doc in common
        ]
    return pairs


def _samples(file: Path) -> dict[str, list[dict[str, Any]]]:
    try:
        found = read_samples(file)
        for rows in found.values():
            for row in rows:
                _sample("", row)  # whatever is wrong is said before anything is shown
        return found
    except KinjectError:
        raise
    except (ValueError, TypeError, KeyError, AttributeError, IndexError, RecursionError) as problem:
        said = f"{type(problem).__name__}: {str(problem)[:200]}"
        raise ArgumentError(
            f"{file.name} or its samples aren't as lm_eval writes them ({said})", "kinject show"
        ) from problem


def _question(row: Mapping[str, Any]) -> str:
    doc = row["doc"]
    for name in ("question", "query", "prompt", "text"):
        if isinstance(doc, Mapping) and isinstance(doc.get(name), str):
            return str(doc[name]).strip()
    return str(trace_of(row).get("query") or f"document {row['doc_id']}")


def _sample(task: str, row: Mapping[str, Any]) -> Sample:
    (answer,) = answers_of({task: [row]})
    trace = trace_of(row)
    said = trace.get("gold")
    gold = gold_ids(tuple(said) if isinstance(said, list) else said)
    given = row["arguments"]
    arguments = (
        [list(one.values()) for one in given.values()] if isinstance(given, dict) else [list(one) for one in given]
    )
    options = _options(row, [str(one[1]).strip() for one in arguments])
    used = tuple(map(str, trace.get("used", ())))
    chosen = next((one.text for one in options if one.chosen), "")
    wanted = next((one.text for one in options if one.target), str(row.get("target", "")))
    return Sample(
        answer=answer,
        prompt=_prompt(arguments[0][0]),
        options=options,
        said=chosen if options else str(row["filtered_resps"][0]),
        target=wanted,
        hits=tuple(_hit(hit, used, gold, trace) for hit in trace.get("hits", ())),
        used=used,
        gold=gold,
        truncated=str(trace.get("truncated") or ""),
        dropped=int(trace.get("dropped_count") or len(trace.get("dropped", ()))),
    )


def _prompt(logged: Any) -> str:
    """A prompt as it was asked; messages to a chat endpoint, which lm_eval logs as JSON in a list, below each other."""
    if not isinstance(logged, list):
        return str(logged)
    return "\n\n".join(f"{message['role']}: {message['content']}" for message in json.loads(logged[0]))


def _hit(hit: Mapping[str, Any], used: Sequence[str], gold: Sequence[str], trace: Mapping[str, Any]) -> HitLine:
    name, score = str(hit["id"]), hit.get("score")
    finite = float(score) if isinstance(score, int | float) and math.isfinite(score) else None
    return HitLine(name, int(hit["rank"]), finite, name in used, name == trace.get("truncated"), name in gold)


def _options(row: Mapping[str, Any], texts: Sequence[str]) -> tuple[Option, ...]:
    """Options with their scores, where the answer is one of several; the first of equally good ones is chosen."""
    scores = option_scores(row)
    if len(scores) < 2 or len(texts) < len(scores):
        return ()
    target = str(row.get("target"))
    whole = [score for score in scores if not math.isnan(score)]
    top = max(whole, default=math.nan)
    weights = [math.exp(score - top) if math.isfinite(score) and math.isfinite(top) else 0.0 for score in scores]
    total = math.fsum(weights)
    return tuple(
        Option(
            texts[place],
            score,
            weights[place] / total if total else math.nan,
            target in (str(place), texts[place]),
            len(whole) == len(scores) and scores.index(top) == place,
        )
        for place, score in enumerate(scores)
    )


# Filtering ------------------------------------------------------------------------------------------------------------


def kept(pairs: Iterable[Pair], which: str, task: str = "", text: str = "") -> list[Pair]:
    """The pairs that a filter of `FILTERS` lets through, of one task (``""``: all), whose question holds a text."""
    needle = text.strip().lower()
    return [
        pair
        for pair in pairs
        if _passes(pair, which) and (not task or pair.task == task) and needle in pair.question.lower()
    ]


def _passes(pair: Pair, which: str) -> bool:
    if which in _FOR_TWO:
        return bool(pair.flip) if which == "flips" else pair.flip == which
    if which == "wrong":
        return any(one.right is False for one in pair.samples)
    if which == "gold":
        return any(one.gold_missed for one in pair.samples)
    if which == "unscored":
        return any(one.right is None for one in pair.samples)
    return True


def filters_for(results: int) -> dict[str, str]:
    """`FILTERS` that mean something for one result, or for two."""
    return {name: words for name, words in FILTERS.items() if results > 1 or name not in _FOR_TWO}


# Chunks ---------------------------------------------------------------------------------------------------------------


def told_of(file: Path, corpus: str | None = None) -> Told:
    """What a result says of itself, and the texts of its chunks.

    Args:
        file: the results file.
        corpus: where its corpus is, if it is none of the bundled ones and on no Hub.
    """
    data = read_json(file)
    told = (data.get("config") or {}).get("kinject") or {}
    subject = (told.get("peft") or told.get("delta") or told.get("model") or {}).get("name") or data.get("model_name")
    k = told.get("k") or 0
    name = f"{subject}, {told.get('retriever')}, K={k}" if k else f"{subject}, K=0"
    chunks: dict[str, Chunk] = {}
    lacking = []
    for one in told.get("corpora") or ():
        try:
            chunks |= _chunks(one, corpus)
        except KinjectError as problem:
            lacking.append(str(problem))
    return Told(name, chunks, " ".join(lacking))


def _chunks(told: Mapping[str, Any], given: str | None) -> dict[str, Chunk]:
    from lm_eval_kinject.corpus import load_corpus

    name, source = str(told.get("name")), str(told.get("source") or "")
    if given is None and source.startswith(HUB_CORPUS):
        given = f"{name}@{told.get('revision')}"
    elif given is None and source.startswith(BUNDLED_CORPUS):
        given = name
    if given is None:
        raise KinjectError(f"The corpus {name} is none of the bundled ones; say where it is with --corpus.")
    found = load_corpus(given)
    if found.fingerprint != told.get("fingerprint"):
        raise KinjectError(f"The corpus {given} is not the one that was scored with (its fingerprint is another).")
    return {chunk.id: chunk for chunk in found.chunks}


def pieces(sample: Sample, chunks: Mapping[str, Chunk]) -> list[Piece]:
    """A prompt cut where chunks begin and end; a chunk's title, where it stands on top of it, belongs to it.

    A chunk whose tail was cut is found by the longest beginning of it that is there. One that isn't found (a template
    may change texts) is left unmarked.
    """
    found: list[Piece] = []
    at = 0
    for name in sample.used:
        chunk = chunks.get(name)
        span = _span(sample.prompt, at, chunk, cut=name == sample.truncated) if chunk else None
        if span is None:
            continue
        start, end = span
        found += [Piece(sample.prompt[at:start])] if start > at else []
        found.append(Piece(sample.prompt[start:end], name))
        at = end
    return [*found, Piece(sample.prompt[at:])] if at < len(sample.prompt) else found


def _span(prompt: str, at: int, chunk: Chunk, *, cut: bool) -> tuple[int, int] | None:
    start = prompt.find(chunk.text, at)
    end = start + len(chunk.text)
    if start < 0:
        if not cut:
            return None
        start, end = _longest_beginning(prompt, at, chunk.text)
        if end - start < 8:  # a word or two could stand anywhere
            return None
    head = f"{chunk.title}\n"
    if chunk.title and prompt[max(at, start - len(head)) : start] == head:
        start -= len(head)
    return start, end


def _longest_beginning(prompt: str, at: int, text: str) -> tuple[int, int]:
    """Where the longest beginning of a text stands in a prompt: bisection, as a part of what is there is there too."""
    low, high = 0, len(text)
    while low < high:
        middle = (low + high + 1) // 2
        if prompt.find(text[:middle], at) >= 0:
            low = middle
        else:
            high = middle - 1
    start = prompt.find(text[:low], at) if low else at
    return start, start + low
