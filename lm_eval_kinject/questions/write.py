"""From chunks to questions: four a chunk are written and checked, the two most specific are kept.

What it is for: `write_questions` fills ``questions.jsonl`` of a question set. What it does not do: it doesn't know
whether a question can be answered (verify.py asks).

The one idea: a chunk's questions are a function of its answers in the ledger, and the set is put together afterwards,
in the corpus's order: what is a double of an earlier chunk's question gives way to the chunk's next best. So it doesn't
matter in which order answers came, or how often the stage was begun.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from lm_eval_kinject.corpus.chunk import count_words
from lm_eval_kinject.errors import ArgumentError, CorpusError
from lm_eval_kinject.questions.answers import Unusable, read_list
from lm_eval_kinject.questions.asking import Request
from lm_eval_kinject.questions.checks import OPTIONS, Doubles, problems_of
from lm_eval_kinject.questions.folder import QuestionSet, Row
from lm_eval_kinject.questions.ledger import Asker, Expected, Say, each
from lm_eval_kinject.questions.prompts import passage_of, rank_request, write_request
from lm_eval_kinject.records import Chunk

__all__ = ["Settings", "Wrote", "chosen_chunks", "expected_requests", "write_questions"]

_TOKENS_A_QUESTION = 160
_TRIES_TO_RANK = 2
_COMPLAINTS = {
    "answer not in the text": "the right option must be in the passage's own words",
    "speaks of the passage": "the question must not speak of a passage, text, article or author",
    "answer in the question": "the question must not contain its answer",
    "length gives the answer away": "the right option must not be longer or shorter than the others",
    "near-duplicate": "two questions asked for the same fact",
    "an option twice": "an option stood there twice",
    "not four options": "each question needs exactly four options",
    "no right option": "exactly one option must be marked as right",
    "several right options": "exactly one option must be marked as right",
    "junk JSON": "the answer must be one JSON object in the form that is given, and nothing else",
}


@dataclass(frozen=True)
class Settings:
    """How a set is written.

    Attributes:
        seed: of sampling, of which chunks are asked about, and of the places of right options.
        asked: questions that a writer writes on a chunk.
        kept: of these, the most specific.
        tries: requests for them on a chunk, the first among them.
        min_words: chunks with fewer words are left out.
        limit: chunks to write on, drawn by the seed; None: all.
    """

    seed: int = 1
    asked: int = 4
    kept: int = 2
    tries: int = 3
    min_words: int = 40
    limit: int | None = None

    def __post_init__(self) -> None:
        problems = [
            f"{name} {value}: take 1 or more"
            for name, value in (("asked", self.asked), ("kept", self.kept), ("tries", self.tries))
            if value < 1
        ]
        if self.kept > self.asked >= 1:
            problems.append(f"kept {self.kept} of {self.asked} asked: take at most as many as are asked for")
        if self.limit is not None and self.limit < 1:
            problems.append(f"limit {self.limit}: take 1 or more, or leave it out for all chunks")
        if problems:
            raise ArgumentError(problems, "kinject questions write")


@dataclass
class Wrote:
    """What `write_questions` did.

    Attributes:
        chunks: that were asked about.
        short: of these, with fewer questions than wanted in the end.
        questions: kept.
        problems: what was wrong with replies and candidates, and how often.
    """

    chunks: int
    short: int
    questions: int
    problems: Counter[str]


@dataclass
class _Candidates:
    chunk: Chunk
    good: list[Row] = field(default_factory=list)
    problems: Counter[str] = field(default_factory=Counter)


def chosen_chunks(chunks: Sequence[Chunk], settings: Settings) -> list[Chunk]:
    """The chunks to write on, in the corpus's order: long enough, not marked as background, and drawn if limited.

    Raises:
        CorpusError: there are none.
    """
    asked = [chunk for chunk in chunks if chunk.meta.get("role", "source") == "source"]
    found = [chunk for chunk in asked if count_words(chunk.text) >= settings.min_words]
    if not found:
        raise CorpusError(
            f"None of {len(asked)} chunks has {settings.min_words} words or more: lower --min-words, or cut the "
            "documents into longer chunks (--words)."
        )
    if settings.limit is None or settings.limit >= len(found):
        return found
    drawn = set(random.Random(f"chunks:{settings.seed}").sample(range(len(found)), settings.limit))
    return [chunk for place, chunk in enumerate(found) if place in drawn]


def expected_requests(chunks: Sequence[Chunk], settings: Settings) -> list[Expected]:
    """What writing takes if no reply has to be asked for again."""
    found = []
    for chunk in chunks:
        found.append(Expected(_first(chunk, settings), _TOKENS_A_QUESTION * settings.asked))
        if settings.kept < settings.asked:
            # Its words aren't known yet; its length is.
            found.append(Expected(rank_request(chunk, ["?" * 100] * settings.asked, seed=settings.seed), 20))
    return found


def _first(chunk: Chunk, settings: Settings) -> Request:
    return write_request(chunk, settings.asked, seed=settings.seed)


def write_questions(there: QuestionSet, asker: Asker, settings: Settings, say: Say) -> Wrote:
    """Writes the questions of a set; the ledger must be locked.

    Raises:
        ModelError: the writer can't answer; what was answered is kept.
        CorpusError: no chunk can be written on.
    """
    chunks = chosen_chunks(there.corpus.chunks, settings)
    made = each(
        chunks,
        lambda chunk: _write_on(chunk, asker, settings),
        workers=asker.writer.concurrency,
        unit="chunks",
        say=say,
        asker=asker,
    )
    rows, short, problems = _put_together(made, settings)
    for row in rows:
        row["writer"] = asker.writer.name
    there.write("questions.jsonl", rows)
    wrote = Wrote(len(chunks), short, len(rows), problems)
    there.record(
        "write",
        {
            "writer": asker.writer.name,
            "settings": asdict(settings),
            "chunks": wrote.chunks,
            "short": wrote.short,
            "questions": wrote.questions,
            "problems": dict(sorted(problems.items())),
            "faults": dict(sorted(asker.writer.faults.items())),
            "spent": asdict(asker.spent),
        },
    )
    return wrote


def _write_on(chunk: Chunk, asker: Asker, settings: Settings) -> _Candidates:
    """The good candidates of one chunk, the most specific first."""
    found, doubles = _Candidates(chunk), Doubles()
    complaints: list[str] = []
    for attempt in range(settings.tries):
        missing = settings.asked - len(found.good)
        if not missing:
            break
        had = [row["question"] for row in found.good]
        request = write_request(chunk, missing, seed=settings.seed + attempt, had=had, complaints=complaints)
        before = Counter(found.problems)
        try:
            candidates = read_list(asker.ask(request, f"write {chunk.id}"), "questions")
        except Unusable as problem:
            found.problems[str(problem)] += 1
        else:
            if len(candidates) < missing:
                found.problems["fewer questions than asked for"] += 1
            for candidate in candidates[:missing]:
                _take(candidate, found, doubles)
        new = found.problems - before
        complaints = sorted({_COMPLAINTS[problem] for problem in new if problem in _COMPLAINTS})
    _rank(found, asker, settings)
    return found


def _take(candidate: Any, found: _Candidates, doubles: Doubles) -> None:
    """Adds a candidate to the good ones, or counts what is wrong with it."""
    problems = problems_of(candidate if isinstance(candidate, dict) else {}, passage_of(found.chunk))
    if not problems:
        question = " ".join(candidate["question"].split())
        options = [" ".join(one["text"].split()) for one in candidate["options"]]
        right = next(place for place, one in enumerate(candidate["options"]) if one["right"] is True)
        if doubles.find(question, options[right]) is None:
            number = len(found.good)
            doubles.add(str(number), question, options[right])
            evidence = candidate.get("evidence")
            found.good.append(
                {
                    "id": f"{found.chunk.id}/q{number}",
                    "question": question,
                    "choices": options,
                    "answer": right,
                    "source_chunk": found.chunk.id,
                    "evidence": evidence if isinstance(evidence, str) else "",
                }
            )
            return
        problems = ["near-duplicate"]
    found.problems.update(problems)


def _rank(found: _Candidates, asker: Asker, settings: Settings) -> None:
    """Puts the most specific candidates first, as the writer sees it; where it can't say, they stay as written."""
    if len(found.good) > settings.kept:
        for attempt in range(_TRIES_TO_RANK):
            request = rank_request(found.chunk, [row["question"] for row in found.good], seed=settings.seed + attempt)
            try:
                order = read_list(asker.ask(request, f"rank {found.chunk.id}"), "order")
            except Unusable as problem:
                found.problems[f"ranking: {problem}"] += 1
                continue
            if sorted(order, key=str) == sorted(range(1, len(found.good) + 1), key=str):
                found.good = [found.good[number - 1] for number in order]
                break
            found.problems["ranking: no order of all questions"] += 1
    for place, row in enumerate(found.good, start=1):
        row["specificity"] = place


def _put_together(made: Sequence[_Candidates], settings: Settings) -> tuple[list[Row], int, Counter[str]]:
    """The kept questions in the corpus's order, how many chunks have too few, and all problems."""
    rows: list[Row] = []
    short, problems, doubles = 0, Counter[str](), Doubles()
    for found in made:
        problems += found.problems
        kept = 0
        for row in found.good:
            if kept == settings.kept:
                break
            right = row["choices"][row["answer"]]
            if doubles.find(row["question"], right) is not None:
                problems["near-duplicate of another chunk's"] += 1
                continue
            doubles.add(row["id"], row["question"], right)
            rows.append(_shuffled(row, settings.seed))
            kept += 1
        short += kept < settings.kept
    return rows, short, problems


def _shuffled(row: Row, seed: int) -> Row:
    """A question with its options in an order that its id and the seed give: no matter what else is in the set."""
    order = random.Random(f"places:{seed}:{row['id']}").sample(range(OPTIONS), OPTIONS)
    return {**row, "choices": [row["choices"][place] for place in order], "answer": order.index(row["answer"])}
