"""Other texts of the same facts, for training: paraphrases, and the augmentations that the field compares them with.

What it is for: `write_wordings` fills ``paraphrases.jsonl`` (and ``validation.jsonl``) or ``augment-STYLE.jsonl`` with
rows that the trainer reads: chunk, number from 1, text. What it does not do: it trains nothing and cuts no style to the
length of another; the words of each are recorded, so that whoever compares them at equal tokens can.

The one idea: a style is how a chunk's texts come about (`Style`): what is asked, what is read out of a reply, and
what a text must keep. Facts are compared by rule (`checks.lost_or_new`); a text that has lost or invented one, or
that says again what another said, is asked for again and counted.

    style            a chunk's texts                                                   must keep
    paraphrase       paraphrases                                                       all facts, about the length
    entigraph        how two or three of its entities relate (Yang et al. 2024)        no new numbers and dates
    qa               a question with its answer each                                   the same; no test question
    active-reading   the chunk studied in ways that the writer thinks of (Lin et al.)  no new numbers and dates
"""

from __future__ import annotations

import itertools
import random
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from lm_eval_kinject.corpus.chunk import count_words
from lm_eval_kinject.corpus.sources.newswire.measure import distinct_n, mean_overlap
from lm_eval_kinject.errors import ArgumentError
from lm_eval_kinject.questions.answers import Unusable, read_list, read_text
from lm_eval_kinject.questions.checks import Doubles, lost_or_new, repeated, words_of
from lm_eval_kinject.questions.entailment import INVENTED, LOST, Entailment
from lm_eval_kinject.questions.folder import QuestionSet, Row
from lm_eval_kinject.questions.ledger import Asker, Expected, Say, each
from lm_eval_kinject.questions.prompts import (
    apply_strategy_request,
    entities_request,
    paraphrase_request,
    passage_of,
    qa_request,
    relation_request,
    strategies_request,
)
from lm_eval_kinject.records import Chunk

__all__ = ["STYLES", "Diversity", "Settings", "Style", "Wordings", "expected_requests", "write_wordings"]

Style = Literal["paraphrase", "entigraph", "qa", "active-reading"]
STYLES: tuple[Style, ...] = ("paraphrase", "entigraph", "qa", "active-reading")

LENGTHS = (0.5, 2.0)
"""Words of a paraphrase, as a multiple of its chunk's."""
AT_A_TIME = 5
"""Most paraphrases or pairs in one request, each with a seed of its own: long replies are cut off, and grow alike."""
REPEATED = 0.8
"""Share of pairs of words (Jaccard) with the chunk or another text from which on a text is a repetition."""

_COMPLAINTS = {
    "a number is lost": "every number of the passage must stand in each text",
    "a date is lost": "every date of the passage must stand in each text",
    "a name is lost": "every name of the passage must stand in each text, spelt as it is there",
    "a number is new": "there must be no number that the passage doesn't have",
    "a date is new": "there must be no date that the passage doesn't have",
    "a name is new": "there must be no name that the passage doesn't have",
    INVENTED: "each text must say nothing that the passage doesn't say",
    LOST: "each text must say all that the passage says",
    "repeats another": "each text must be worded quite differently from the passage and from the others",
    "too short": "each text must be about as long as the passage",
    "too long": "each text must be about as long as the passage",
    "junk JSON": "the answer must be one JSON object in the form that is given, and nothing else",
}


@dataclass(frozen=True)
class Settings:
    """How wordings are written.

    Attributes:
        style: see this file's head.
        count: texts of each chunk.
        validation: of paraphrases, further ones of some chunks, held out for choosing training settings.
        validation_chunks: how many chunks have those, drawn by the seed.
        tries: rounds of requests for a chunk's texts, the first among them; a round may take several requests.
        seed: of sampling and drawing.
        nli: a model that is asked whether paraphrase and chunk entail each other (entailment.py); None: none is.
    """

    style: Style = "paraphrase"
    count: int = 10
    validation: int = 0
    validation_chunks: int = 240
    tries: int = 4
    seed: int = 1
    nli: str | None = None

    def __post_init__(self) -> None:
        least = {"n": (self.count, 1), "validation": (self.validation, 0), "tries": (self.tries, 1)}
        least["validation-chunks"] = (self.validation_chunks, 1)
        problems = [f"{name} {value}: take {low} or more" for name, (value, low) in least.items() if value < low]
        if self.style not in STYLES:
            problems.append(f"style {self.style!r}: take one of {', '.join(STYLES[1:])}")
        if self.validation and self.style != "paraphrase":
            problems.append(f"validation {self.validation}: only paraphrases are held out for it")
        if self.nli is not None and (self.style != "paraphrase" or not self.nli.strip()):
            problems.append(
                f"nli {self.nli!r}: name a model, for paraphrases only: other styles don't say all of a chunk"
            )
        if problems:
            raise ArgumentError(
                problems, f"kinject questions {'paraphrase' if self.style == 'paraphrase' else 'augment'}"
            )

    @property
    def stage(self) -> str:
        """What ``set.json`` and the file are named after."""
        return "paraphrases" if self.style == "paraphrase" else f"augment-{self.style}"


@dataclass(frozen=True)
class Diversity:
    """How different the texts of a chunk are, the chunk among them; means over chunks.

    Attributes:
        distinct_1: distinct words among all words (Li et al., arXiv 1510.03055).
        distinct_2: the same of pairs of words.
        overlap_1: words that two texts share (Jaccard), mean over pairs.
        overlap_2: the same of pairs of words.
    """

    distinct_1: float
    distinct_2: float
    overlap_1: float
    overlap_2: float

    @classmethod
    def of(cls, wordings: Iterable[Sequence[str]]) -> Diversity | None:
        """Of each chunk's texts; None: no chunk has two with two words or more."""
        found = [[words for text in one if len(words := words_of(text)) > 1] for one in wordings]
        found = [one for one in found if len(one) > 1]
        if not found:
            return None
        figures = [
            (distinct_n(one, 1), distinct_n(one, 2), mean_overlap(one, 1), mean_overlap(one, 2)) for one in found
        ]
        return cls(*(statistics.mean(column) for column in zip(*figures, strict=True)))


@dataclass
class Wordings:
    """What `write_wordings` did.

    Attributes:
        chunks: that were written on.
        short: of these, with fewer texts than asked for.
        every: texts that each of the chunks has: what a training can ask for.
        texts: all of them.
        held_out: of these, for validation.
        words: of the texts for training, together.
        problems: what was wrong with replies and texts, and how often.
        diversity: of the texts for training; None: there are too few.
    """

    chunks: int
    short: int
    every: int
    texts: int
    held_out: int
    words: int
    problems: Counter[str]
    diversity: Diversity | None


@dataclass
class _Texts:
    chunk: Chunk
    wanted: int
    good: list[str] = field(default_factory=list)
    problems: Counter[str] = field(default_factory=Counter)

    @property
    def missing(self) -> int:
        return self.wanted - len(self.good)


def chosen_chunks(there: QuestionSet) -> list[Chunk]:
    """The chunks that questions were kept on, in the corpus's order: what is asked about is what is trained on.

    Raises:
        CorpusError: there are no questions yet.
    """
    asked = {row["source_chunk"] for row in there.questions()}
    return [chunk for chunk in there.corpus.chunks if chunk.id in asked]


def expected_requests(there: QuestionSet, settings: Settings) -> list[Expected]:
    """What writing takes if no text has to be asked for again; later steps by the length of what is known."""
    found = []
    for chunk, wanted in _wanted(there, settings):
        length = len(passage_of(chunk)) // 4
        batches = [AT_A_TIME] * (wanted // AT_A_TIME) + [wanted % AT_A_TIME] * (wanted % AT_A_TIME > 0)
        if settings.style == "paraphrase":
            for n, count in enumerate(batches):
                found.append(Expected(paraphrase_request(chunk, count, seed=settings.seed + n), count * length))
        elif settings.style == "qa":
            for n, count in enumerate(batches):
                found.append(Expected(qa_request(chunk, count, seed=settings.seed + n), 60 * count))
        elif settings.style == "entigraph":
            found.append(Expected(entities_request(chunk, seed=settings.seed), 60))
            steps = (relation_request(chunk, ["?" * 15] * 2, seed=n) for n in range(wanted))
            found += [Expected(step, 250) for step in steps]
        else:
            found.append(Expected(strategies_request(chunk, wanted, seed=settings.seed), 30 * wanted))
            found += [Expected(apply_strategy_request(chunk, "?" * 80, seed=n), length) for n in range(wanted)]
    return found


def _wanted(there: QuestionSet, settings: Settings) -> list[tuple[Chunk, int]]:
    """Chunks with the number of texts of each: some have further ones for validation."""
    chunks = chosen_chunks(there)
    rng = random.Random(f"validation:{settings.seed}")
    held = set(rng.sample(range(len(chunks)), min(settings.validation_chunks, len(chunks))))
    return [(chunk, settings.count + settings.validation * (place in held)) for place, chunk in enumerate(chunks)]


def write_wordings(there: QuestionSet, asker: Asker, settings: Settings, say: Say) -> Wordings:
    """Writes one style's texts of a set; the ledger must be locked.

    Raises:
        CorpusError: there are no questions yet.
        ModelError: the writer can't answer; what was answered is kept. Or ``nli`` can't be loaded; nobody was asked.
    """
    wanted = _wanted(there, settings)
    asked = _asked(there) if settings.style == "qa" else None
    judge = Entailment(settings.nli) if settings.nli is not None else None
    made = each(
        wanted,
        lambda one: _write(_Texts(*one), asker, settings, asked, judge),
        workers=asker.writer.concurrency,
        unit="chunks",
        say=say,
        asker=asker,
    )
    rows, held_out = _rows(made, settings)
    there.write(f"{settings.stage}.jsonl", rows)
    if settings.style == "paraphrase":
        there.write("validation.jsonl", held_out)
    found = Wordings(
        chunks=len(made),
        short=sum(one.missing > 0 for one in made),
        every=min(settings.count, *(len(one.good) for one in made)) if made else 0,
        texts=len(rows) + len(held_out),
        held_out=len(held_out),
        words=sum(count_words(row["text"]) for row in rows),
        problems=sum((one.problems for one in made), Counter()),
        diversity=Diversity.of([passage_of(one.chunk), *one.good[: settings.count]] for one in made),
    )
    there.record(
        settings.stage,
        {
            **asdict(found),
            "problems": dict(sorted(found.problems.items())),
            "writer": asker.writer.name,
            "settings": {**asdict(settings), "nli": judge.provenance() if judge else None},
            "faults": dict(sorted(asker.writer.faults.items())),
            "spent": asdict(asker.spent),
        },
    )
    if judge and judge.unjudged:
        say(f"{judge.unjudged} paraphrases were too long for {judge.name} and weren't judged by it")
    return found


def _rows(made: Sequence[_Texts], settings: Settings) -> tuple[list[Row], list[Row]]:
    """Rows for training and for validation; numbers go on from one to the other, as the bundled edition's do."""
    rows: list[Row] = []
    held_out: list[Row] = []
    for one in made:
        for number, text in enumerate(one.good, start=1):
            row = {"chunk": one.chunk.id, "number": number, "text": text}
            (rows if number <= settings.count else held_out).append(row)
    return rows, held_out


def _asked(there: QuestionSet) -> Doubles:
    """The set's questions, which no training text may ask."""
    found = Doubles()
    for row in there.questions():
        found.add(row["id"], row["question"], row["choices"][row["answer"]])
    return found


# One chunk ------------------------------------------------------------------------------------------------------------


def _write(found: _Texts, asker: Asker, settings: Settings, asked: Doubles | None, judge: Entailment | None) -> _Texts:
    """A chunk's good texts, in the order in which they came."""
    about = f"{settings.stage} {found.chunk.id}"
    rounds = {"paraphrase": _paraphrases, "qa": _pairs, "entigraph": _relations, "active-reading": _studies}
    propose = rounds[settings.style](found, asker, settings, about)
    passage = passage_of(found.chunk)
    for proposed in propose:
        for text, question, answer in proposed:
            if not found.missing:
                break
            problem = _problem(passage, text, found.good, settings.style)
            if problem is None and asked is not None and asked.find(question, answer) is not None:
                problem = "asks a question of the set"
            if problem is None and judge is not None:
                problem = judge.problem(passage, text)
            if problem is None:
                found.good.append(text)
            else:
                found.problems[problem] += 1
        if not found.missing:
            break
    return found


_Proposed = list[tuple[str, str, str]]
"""Texts, each with the question and answer in it (of ``qa``; otherwise empty)."""


def _problem(passage: str, text: str, others: Sequence[str], style: Style) -> str | None:
    """What is wrong with a text; None: nothing that a rule can see."""
    changed = lost_or_new(passage, text, whole=style == "paraphrase")
    if style != "paraphrase":  # names in such texts may be those of a genre: Dear Diary, a Teacher
        changed = [one for one in changed if one != "a name is new"]
    if changed:
        return changed[0]
    if style == "paraphrase":
        ratio = count_words(text) / max(1, count_words(passage))
        if not LENGTHS[0] <= ratio <= LENGTHS[1]:
            return "too short" if ratio < 1 else "too long"
    return "repeats another" if repeated(text, [passage, *others], REPEATED) else None


def _rounds(found: _Texts, tries: int, ask: Callable[[int, int, list[str]], _Proposed]) -> Iterator[_Proposed]:
    """Asks again and again, telling what was wrong with the reply before; ``ask`` takes a count and a number."""
    complaints: list[str] = []
    for attempt in range(tries * -(-found.wanted // AT_A_TIME)):
        before = Counter(found.problems)
        try:
            proposed = ask(min(found.missing, AT_A_TIME), attempt, complaints)
        except Unusable as problem:
            found.problems[str(problem)] += 1
            proposed = []
        yield proposed
        complaints = sorted({_COMPLAINTS[name] for name in found.problems - before if name in _COMPLAINTS})


def _paraphrases(found: _Texts, asker: Asker, settings: Settings, about: str) -> Iterator[_Proposed]:
    def ask(count: int, attempt: int, complaints: list[str]) -> _Proposed:
        request = paraphrase_request(found.chunk, count, seed=settings.seed + attempt, complaints=complaints)
        return [(_squeezed(text), "", "") for text in read_list(asker.ask(request, about), "paraphrases")]

    return _rounds(found, settings.tries, ask)


def _pairs(found: _Texts, asker: Asker, settings: Settings, about: str) -> Iterator[_Proposed]:
    def ask(count: int, attempt: int, complaints: list[str]) -> _Proposed:
        request = qa_request(found.chunk, count, seed=settings.seed + attempt, complaints=complaints)
        proposed: _Proposed = []
        for pair in read_list(asker.ask(request, about), "pairs"):
            question, answer = (
                _squeezed(pair.get(part)) if isinstance(pair, dict) else "" for part in ("question", "answer")
            )
            if question and answer:
                proposed.append((f"Question: {question}\nAnswer: {answer}", question, answer))
            else:
                found.problems["junk JSON"] += 1
        return proposed

    return _rounds(found, settings.tries, ask)


def _relations(found: _Texts, asker: Asker, settings: Settings, about: str) -> Iterator[_Proposed]:
    """Pairs of entities in an order drawn by the seed, then triples; as many at a time as texts are missing."""
    entities = _steps(
        found, settings, lambda seed: read_list(asker.ask(entities_request(found.chunk, seed=seed), about), "entities")
    )
    groups: list[tuple[str, ...]] = []
    rng = random.Random(f"entities:{settings.seed}:{found.chunk.id}")
    for size in (2, 3):
        some = list(itertools.islice(itertools.combinations(entities, size), 1000))
        rng.shuffle(some)
        groups += some
    return _one_by_one(
        found,
        settings,
        groups,
        lambda group, seed: read_text(asker.ask(relation_request(found.chunk, group, seed=seed), about)),
    )


def _studies(found: _Texts, asker: Asker, settings: Settings, about: str) -> Iterator[_Proposed]:
    """A text a way of studying; where the writer thinks of too few ways, each is taken again with another seed."""
    count = found.wanted

    def ways(seed: int) -> list[Any]:
        return read_list(asker.ask(strategies_request(found.chunk, count, seed=seed), about), "strategies")

    strategies = [(way,) for way in _steps(found, settings, ways)]
    return _one_by_one(
        found,
        settings,
        strategies * settings.tries,
        lambda way, seed: read_text(asker.ask(apply_strategy_request(found.chunk, way[0], seed=seed), about)),
    )


def _steps(found: _Texts, settings: Settings, ask: Callable[[int], list[Any]]) -> list[str]:
    """A first step's list of texts, each once; empty where no reply can be used."""
    for attempt in range(settings.tries):
        try:
            listed = ask(settings.seed + attempt)
        except Unusable as problem:
            found.problems[f"first step: {problem}"] += 1
            continue
        texts = list(dict.fromkeys(filter(None, map(_squeezed, listed))))
        if texts:
            return texts
        found.problems["first step: nothing in it"] += 1
    return []


def _one_by_one(
    found: _Texts,
    settings: Settings,
    groups: Sequence[tuple[str, ...]],
    ask: Callable[[tuple[str, ...], int], str],
) -> Iterator[_Proposed]:
    """A request a text, for at most ``tries`` times as many as are wanted."""
    for number, group in enumerate(groups[: found.wanted * settings.tries]):
        try:
            yield [(ask(group, settings.seed + number), "", "")]
        except Unusable as problem:
            found.problems[str(problem)] += 1
            yield []


def _squeezed(text: Any) -> str:
    return " ".join(text.split()) if isinstance(text, str) else ""
