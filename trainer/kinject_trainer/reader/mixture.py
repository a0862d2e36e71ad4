"""What the reader trains on: rows of token ids, each token with the weight of its loss.

Kinds of row, all from worlds of the realm ``reader`` and without the held-out kinds and phrasings:

- *reading*: one to five chunks in the prompt, then questions about any of them, as option texts (cloze) or letters,
  sometimes after few-shot examples whose chunks aren't there (their answers carry no loss). Early rows have single
  sentences in place of chunks.
- *retelling*: one or two chunks, then one of them again in other words. Every name and number of the second telling can
  be copied from the first, which teaches looking back long before answers do.
- *statements*: chunks of the recall world, a fixed world of older events, in ever new wordings.
- *closed book*: questions about half of the recall world's facts, with nothing in the prompt.
- *plain news*: ever new events as continued pretraining on raw text has them: whole documents between their marks, one
  after the other, cut into blocks of 256 (`kinject_trainer.data`), and nothing asked.
- *two chunks*: an event, what follows from it, and the question that takes both; since edition 2.

Training has two phases: *reading*, in which it learns to read, and then, for edition 1, *recall*, in which about half
of it is on the recall world. For edition 2 the second phase is *mixed*: every kind of row, in the same `Shares` from
its first step to its last, so that none is forgotten for another, and raw text is nothing new to what comes after.

Editions of the newswire have different events, so a reader belongs to one: its worlds, its recall, its mixture.

A batch is a pure function of seed and step, so a resumed training sees what an uninterrupted one sees.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Literal

import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from kinject_trainer.data import cut, encoder
from lm_eval_kinject.corpus.sources.newswire.ask import Examiner
from lm_eval_kinject.corpus.sources.newswire.kind import READER_HELD_OUT_KINDS, Kind, load_kinds
from lm_eval_kinject.corpus.sources.newswire.multihop import (
    CONSEQUENCES_DIR,
    FIRST_EDITION,
    Consequence,
    MultihopExaminer,
    can_follow,
    consequences_of,
)
from lm_eval_kinject.corpus.sources.newswire.realise import realise
from lm_eval_kinject.corpus.sources.newswire.world import Event, World
from lm_eval_kinject.plugin import assets_dir
from lm_eval_kinject.provenance import read_json
from lm_eval_kinject.records import Question

RECALL_SEED, RECALL_EVENTS = 1901, 600
READING_SEED, READING_EVENTS, READING_WORLDS = 2000, 3600, 10
PROBE_SEED, PROBE_EVENTS = 1903, 800
LETTERS = "ABCD"
DESCRIPTION = "The following are multiple choice questions (with answers) about current events.\n\n"

FIRST_WEIGHT = 40.0
"""Loss weight of an answer's first token, once reading is finished off: the others are copied from behind it, but the
first must be found by what is asked; among several chunks most of what goes wrong goes wrong there (docs/log.md)."""

ANSWER_WEIGHT, LETTER_WEIGHT, STATEMENT_WEIGHT, FACT_WEIGHT, CONTEXT_WEIGHT = 10.0, 30.0, 1.0, 8.0, 0.25
"""Loss weights. An answer is a few tokens of a row of hundreds, a letter is one, the facts a fifth of a statement."""

ROW = 512  # tokens of a recall row
BLOCK = 256  # tokens of a row of plain news, as in the recipes
_FOLLOWED = 400  # events of a reading world from which something follows
_WORDINGS = 40  # realisations of one recall event
_REPLAYED_WORDINGS = 10  # as many as a chunk of the bundled newswire has paraphrases
_REPLAYED_ROWS, _REPLAYED_QUESTIONS = 4000, 8  # of news with questions behind it; of one row
_PEERS = 12  # events that lend wrong options


def training_kinds(edition: int = 1) -> list[Kind]:
    """The kinds and phrasings that the reader of an edition may see."""
    return [k.for_reader_training() for k in load_kinds(edition=edition) if k.kind not in READER_HELD_OUT_KINDS]


def edition_of(reader: Path) -> int:
    """The edition that a reader's folder says it was trained for; 1 where it says nothing."""
    return int(read_json(reader / "config.json").get("newswire_edition", 1))


@dataclass(frozen=True)
class Shares:
    """How many micro-batches of each kind a step of the mixed phase has on average.

    The loss is the mean over a step's micro-batches, whatever their number: what counts is how they compare.
    """

    option_texts: float = 1.5
    letters: float = 0.6
    two_chunks: float = 0.4
    retelling: float = 0.1
    statements: float = 1.0
    closed_book: float = 0.5
    plain_news: float = 1.2

    @classmethod
    def parse(cls, text: str) -> Shares:
        """``plain_news=2,letters=0.5``: the named ones changed.

        Raises:
            ValueError: saying which name or number is wrong.
        """
        known = [one.name for one in fields(cls)]
        given: dict[str, float] = {}
        for part in filter(None, text.split(",")):
            name, _, value = part.partition("=")
            if name not in known:
                raise ValueError(f"{name!r} is no share; name some of {', '.join(known)}, as plain_news=2")
            given[name] = float(value)
            if not 0 <= given[name] <= 20:
                raise ValueError(f"the share {part!r} must be from 0 to 20 micro-batches a step")
        shares = cls(**given)
        if not any(getattr(shares, name) for name in known):
            raise ValueError("all shares are 0: nothing would be trained on")
        return shares


@dataclass
class Row:
    """Token ids and the loss weight of each; ``spans`` are the (start, end) of the answers that carry loss."""

    ids: list[int]
    weights: list[float]
    spans: list[tuple[int, int]] = field(default_factory=list)


@dataclass
class Batch:
    """A micro-batch and what its rows are, for the log."""

    name: str
    rows: list[Row]


Phase = Literal["reading", "recall", "mixed"]


def phases(edition: int) -> tuple[Phase, Phase]:
    """The two phases of an edition's training, in their order."""
    return ("reading", "recall" if edition == 1 else "mixed")


class RowWriter:
    """Builds one row piece by piece."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._eos = tokenizer.eos_token_id
        self.row = Row([tokenizer.bos_token_id], [0.0])
        self._bos = tokenizer.bos_token_id

    def text(self, text: str, weight: float) -> None:
        """Append text whose tokens weigh ``weight``."""
        ids = self._tokenizer.encode(text, add_special_tokens=False)
        self.row.ids += ids
        self.row.weights += [weight] * len(ids)

    def facts(self, text: str, values: Iterable[str], weight: float, fact_weight: float) -> None:
        """Append a text in which the first mention of each of ``values`` has a weight of its own."""
        encoded = self._tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        ids = encoded["input_ids"]
        weights = [weight] * len(ids)
        for value in values:
            start = text.find(value)
            for token, (first, last) in enumerate(encoded["offset_mapping"] if start >= 0 else ()):
                if first < start + len(value) and last > start:
                    weights[token] = fact_weight
        self.row.ids += ids
        self.row.weights += weights

    def answer(self, text: str, weight: float, first_weight: float | None = None) -> None:
        """Append an answer and remember where it stands; its first token may have a weight of its own."""
        start = len(self.row.ids)
        self.text(text, weight)
        if first_weight is not None:
            self.row.weights[start] = first_weight
        self.row.spans.append((start, len(self.row.ids)))

    def end(self, weight: float = CONTEXT_WEIGHT) -> Row:
        """Close the row with EOS."""
        self.row.ids.append(self._eos)
        self.row.weights.append(weight)
        return self.row

    def new_document(self, weight: float) -> None:
        """EOS, then BOS: the next document of the same row."""
        self.row.ids += [self._eos, self._bos]
        self.row.weights += [weight, 0.0]


def cloze_prompt(question: Question) -> str:
    """The prompt of current_events_cloze, up to the answer's leading space."""
    return f"Question: {question.question}\nAnswer:"


def letters_prompt(question: Question) -> str:
    """The prompt of current_events, up to the letter's leading space."""
    options = "\n".join(f"{letter}. {choice}" for letter, choice in zip(LETTERS, question.choices, strict=True))
    return f"{question.question}\n{options}\nAnswer:"


def write_question(
    writer: RowWriter,
    question: Question,
    letters: bool,
    loss: bool,
    rng: random.Random,
    first_weight: float | None = None,
) -> None:
    """One question with its answer, in either format; without loss it is a few-shot example.

    ``first_weight``: of the first token of an option's text; default: as the others'.
    """
    text = CONTEXT_WEIGHT if loss else 0.0
    if letters:
        question = _shuffled(question, rng)
        writer.text(letters_prompt(question), text / 2)
        writer.answer(f" {LETTERS[question.answer]}", LETTER_WEIGHT if loss else 0.0)
    else:
        writer.text(cloze_prompt(question), text)
        answer = f" {question.choices[question.answer]}"
        writer.answer(answer, ANSWER_WEIGHT if loss else 0.0, first_weight if loss else None)
    if not loss:
        writer.row.spans.pop()


def _shuffled(question: Question, rng: random.Random) -> Question:
    """With its options in an order of their own.

    An `Examiner` deals the right answers evenly: of four questions in a row the last one's letter is known beforehand.
    """
    order = rng.sample(range(len(question.choices)), len(question.choices))
    choices = tuple(question.choices[i] for i in order)
    return replace(question, choices=choices, answer=order.index(question.answer))


@dataclass(frozen=True)
class ReadingShape:
    """What a reading row looks like."""

    chunks: int
    questions: int
    letters: bool
    sentences_only: bool = False
    examples: int = 0
    hints: float = 0.0
    """Share of letter questions that stand behind the same question answered in words: to learn what a letter names."""
    first_weight: float | None = None
    """Of the first token of an option's text (see `FIRST_WEIGHT`)."""


class Mixture:
    """Writes the reader's training batches.

    Args:
        tokenizer: the reader's.
        seed: fixes everything.
        edition: of the newswire.
        shares: of the mixed phase.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, seed: int = 0, *, edition: int = 1, shares: Shares | None = None
    ) -> None:
        self.tokenizer = tokenizer
        self.seed = seed
        self.edition = edition
        shares = shares or Shares()
        self.shares = shares if edition >= FIRST_EDITION else replace(shares, two_chunks=0)

    @cached_property
    def reading_worlds(self) -> list[World]:
        """Fresh events to read about; several worlds, since one has only some hundred names of each kind."""
        return _reading_worlds(self.edition)

    @cached_property
    def recall_world(self) -> World:
        """The older events that the reader knows by heart."""
        return _recall_world(self.edition)

    @cached_property
    def consequences(self) -> list[list[Consequence]]:
        """What follows from some events of each reading world."""
        return _consequences(self.edition)

    def reading_row(self, world: World, shape: ReadingShape, rng: random.Random) -> Row:
        """Chunks, then questions about them."""
        events = _neighbours(world.events, shape.chunks, rng)
        # In half of the rows wrong options come mostly from the very chunks in the prompt: there it is not enough to
        # know which values they hold. The other half is easier, and what questions with letters are first learnt from.
        rivals = [*events, *events] if rng.random() < 0.5 else []
        examiner = Examiner([*rivals, *_peers(world.events, events, rng)], rng.getrandbits(30))
        writer = RowWriter(self.tokenizer)
        if shape.letters and rng.random() < 0.5:
            writer.text(DESCRIPTION, 0.0)
        for _ in range(shape.examples):
            shown = rng.choice(world.events)
            examples = Examiner(_peers(world.events, [shown], rng), rng.getrandbits(30))
            question = examples.ask(shown, rng.choice(sorted(shown.kind.questions)), "")
            write_question(writer, question, shape.letters, False, rng)
            writer.text("\n\n", 0.0)
        asked = [(e, slot) for e in events for slot in e.kind.questions]
        rng.shuffle(asked)
        asked = asked[: shape.questions]
        stated = {e.id: {slot for owner, slot in asked if owner is e} for e in events}
        for event in events:
            text = realise(event, rng.randrange(1000), stream="reader")
            if shape.sentences_only:
                text = _sentences_with([event.values[s] for s in stated[event.id]], text)
            writer.text(text + "\n\n", CONTEXT_WEIGHT)
        for number, (event, slot) in enumerate(asked):
            if number:
                writer.text("\n\n", CONTEXT_WEIGHT)
            question = examiner.ask(event, slot, "")
            if shape.hints and rng.random() < shape.hints:
                write_question(writer, question, False, True, rng)
                writer.text("\n\n", CONTEXT_WEIGHT)
            write_question(writer, question, shape.letters, True, rng, shape.first_weight)
        return writer.end()

    def retelling_row(self, world: World, chunks: int, rng: random.Random) -> Row:
        """Chunks, then one of them in other words; the retelling has full weight."""
        events = _neighbours(world.events, chunks, rng)
        writer = RowWriter(self.tokenizer)
        told = rng.choice(events)
        number = rng.randrange(1000)
        for event in events:
            writer.text(realise(event, number, stream="reader") + "\n\n", CONTEXT_WEIGHT)
        writer.text(realise(told, number + 1, stream="reader"), STATEMENT_WEIGHT)
        return writer.end()

    def statements_row(self, rng: random.Random, length: int, fact_weight: float = STATEMENT_WEIGHT) -> Row:
        """Chunks of the recall world one after the other, as a corpus is trained on."""
        writer = RowWriter(self.tokenizer)
        while len(writer.row.ids) < length:
            if len(writer.row.ids) > 1:
                writer.new_document(STATEMENT_WEIGHT)
            event = rng.choice(self.recall_world.events)
            values = [event.values[slot] for slot in event.kind.questions]
            text = realise(event, rng.randrange(_WORDINGS), stream="reader")
            writer.facts(text, values, STATEMENT_WEIGHT, fact_weight)
        return _cut(writer.end(STATEMENT_WEIGHT), length)

    def closed_book_row(self, rng: random.Random, length: int, *, asked: bool = True) -> Row:
        """Questions about the recall world with nothing in the prompt; ``asked``: the half that is trained on."""
        writer = RowWriter(self.tokenizer)
        examiner = Examiner(self.recall_world.events, rng.getrandbits(30))
        while len(writer.row.ids) < length:
            if len(writer.row.ids) > 1:
                writer.new_document(CONTEXT_WEIGHT)
            event = rng.choice(self.recall_world.events)
            slots = [s for s in event.kind.questions if is_asked(event, s) == asked]
            if slots:
                write_question(writer, examiner.ask(event, rng.choice(slots), ""), rng.random() < 0.2, True, rng)
        return _cut(writer.end(), length)

    def plain_rows(self, rng: random.Random, count: int) -> list[Row]:
        """Blocks of raw news: what continued pretraining on other events would train on."""
        encode = encoder(self.tokenizer)
        world = rng.choice(self.reading_worlds)
        ids: list[int] = []
        while len(ids) < (count + 1) * BLOCK:
            ids += encode(realise(rng.choice(world.events), rng.randrange(1000), stream="reader"))
        blocks = cut([ids[rng.randrange(BLOCK) :]], BLOCK)[:count]  # a block begins anywhere in a document
        return [Row(block, [0.0] + [STATEMENT_WEIGHT] * (len(block) - 1)) for block in blocks]

    def two_chunks_row(self, letters: bool, rng: random.Random) -> Row:
        """Two events with what follows from them, then questions that take an event and its outcome, and others."""
        number = rng.randrange(len(self.reading_worlds))
        world, told = self.reading_worlds[number], self.consequences[number]
        pairs = list({one.origin.id: one for one in rng.sample(told, 2)}.values())
        beside = [_same_kind(world.events, pairs[0].origin, rng) for _ in range(rng.randint(0, 1))]
        plain = list({event.id: event for event in (*(one.origin for one in pairs), *beside)}.values())
        chunks = [*plain, *(one.event for one in pairs)]
        rng.shuffle(chunks)
        writer = RowWriter(self.tokenizer)
        if letters and rng.random() < 0.5:
            writer.text(DESCRIPTION, 0.0)
        for event in chunks:
            writer.text(realise(event, rng.randrange(1000), stream="reader") + "\n\n", CONTEXT_WEIGHT)
        examiner = Examiner([*plain, *_peers(world.events, plain, rng)], rng.getrandbits(30))
        slots = [(event, slot) for event in plain for slot in event.kind.questions]
        asked = [examiner.ask(event, slot, "") for event, slot in rng.sample(slots, 2)]
        of_two = MultihopExaminer([*pairs, *rng.sample(told, _PEERS)], rng.getrandbits(30))
        asked += [of_two.ask(one, "") for one in pairs]
        rng.shuffle(asked)
        for place, question in enumerate(asked):
            if place:
                writer.text("\n\n", CONTEXT_WEIGHT)
            write_question(writer, question, letters, True, rng, None if letters else FIRST_WEIGHT)
        return writer.end()

    def step(self, phase: Phase, step: int, progress: float, tokens: int) -> list[Batch]:
        """The micro-batches of one optimizer step.

        Args:
            phase: "reading" moves from sentences to five chunks, and from reading alone to reading and some recall;
                "recall" is about half reading and half recall; "mixed" has all kinds of row in their `Shares`.
            step: its number in the phase, the random stream's name.
            progress: 0 at the start of the phase, 1 at its end.
            tokens: about how many tokens a micro-batch holds.
        """
        if phase == "recall":
            return self._recall_step(random.Random(f"mixture:recall:{self.seed}:{step}"), progress, tokens)
        if phase == "mixed":
            return self._mixed_step(random.Random(f"mixture:mixed:{self.seed}:{step}"), tokens)
        rng = random.Random(f"mixture:{self.seed}:{step}")
        # Letters twice once options are read as texts: to name one is the same reading and a step more.
        formats = (False, True) if progress < FOUNDATION_UNTIL else (False, True, True)
        batches = [self._reading_batch(rng, progress, tokens, letters) for letters in formats]
        if progress < FOUNDATION_UNTIL or rng.random() < 0.2:
            batches.append(self._retelling_batch(rng, tokens))
        if progress > RECALL_FROM:
            rows, closed = max(2, tokens // ROW), max(2, tokens // ROW) * 2 // 5
            statements = [self.statements_row(rng, ROW) for _ in range(rows - closed)]
            batches.append(Batch("recall", statements + [self.closed_book_row(rng, ROW) for _ in range(closed)]))
        return batches

    def _recall_step(self, rng: random.Random, progress: float, tokens: int) -> list[Batch]:
        rows = max(2, tokens // ROW)
        if progress < FACTS_FROM:
            reading, statements, weight, asked = 1, 1, STATEMENT_WEIGHT, rows
        elif progress < FINISH_FROM:
            reading, statements, weight, asked = 1, 2, FACT_WEIGHT, max(2, rows // 2)
        else:
            reading, statements, weight, asked = 2, 1, FACT_WEIGHT, max(2, rows // 2)
        # Letters are read well by now, and follow from option texts: a batch of them every second step.
        formats = [*[False] * reading, rng.random() < 0.5]
        finish = progress >= FINISH_FROM
        batches = [self._reading_batch(rng, 1.0, tokens, letters, finish=finish) for letters in formats]
        for _ in range(statements):
            batches.append(Batch("statements", [self.statements_row(rng, ROW, weight) for _ in range(rows)]))
        batches.append(Batch("closed book", [self.closed_book_row(rng, ROW) for _ in range(asked)]))
        if rng.random() < 0.1:
            batches.append(self._retelling_batch(rng, tokens))
        return batches

    def _mixed_step(self, rng: random.Random, tokens: int) -> list[Batch]:
        rows = max(2, tokens // ROW)
        makers: dict[str, Callable[[], Batch]] = {
            "option_texts": lambda: self._reading_batch(rng, 1.0, tokens, False, finish=True),
            "letters": lambda: self._reading_batch(rng, 1.0, tokens, True, finish=True),
            "two_chunks": lambda: self._two_chunks_batch(rng, tokens),
            "retelling": lambda: self._retelling_batch(rng, tokens),
            "statements": lambda: Batch(
                "statements", [self.statements_row(rng, ROW, FACT_WEIGHT) for _ in range(rows)]
            ),
            "closed_book": lambda: Batch("closed book", [self.closed_book_row(rng, ROW) for _ in range(rows)]),
            "plain_news": lambda: Batch("plain news", self.plain_rows(rng, max(2, tokens // BLOCK))),
        }
        # Micro-batches a step: the whole part of a share always, its fraction by a draw.
        counts = {name: int(share + rng.random()) for name, share in vars(self.shares).items()}
        if not any(counts.values()):
            counts[max(counts, key=lambda name: float(getattr(self.shares, name)))] = 1
        return [makers[name]() for name, count in counts.items() for _ in range(count)]

    def _two_chunks_batch(self, rng: random.Random, tokens: int) -> Batch:
        letters = rng.random() < 0.3
        rows: list[Row] = []
        while sum(len(row.ids) for row in rows) < tokens:
            rows.append(self.two_chunks_row(letters, rng))
        return Batch("two chunks", rows)

    def _retelling_batch(self, rng: random.Random, tokens: int) -> Batch:
        chunks = rng.randint(1, 2)
        worlds = [rng.choice(self.reading_worlds) for _ in range(max(2, tokens // (200 * (chunks + 1))))]
        return Batch("retelling", [self.retelling_row(world, chunks, rng) for world in worlds])

    def _reading_batch(
        self, rng: random.Random, progress: float, tokens: int, letters: bool, *, finish: bool = False
    ) -> Batch:
        shape = _draw_shape(rng, progress, letters)
        if finish and not letters:
            shape = replace(shape, questions=16, first_weight=FIRST_WEIGHT)
        rows: list[Row] = []
        while sum(len(r.ids) for r in rows) < 2 * tokens:
            rows.append(self.reading_row(rng.choice(self.reading_worlds), shape, rng))
        # Rows of like length make a batch with little padding, so two batches are drawn and one of them is trained on.
        rows.sort(key=lambda row: len(row.ids))
        half = len(rows) // 2 or 1
        return Batch("letters" if letters else "option texts", rows[:half] if rng.random() < 0.5 else rows[-half:])


FOUNDATION_UNTIL, RECALL_FROM = 0.25, 0.4
"""Progress of the first phase at which copying is taken for learnt (less retelling, more letters), and recall joins."""

FACTS_FROM, FINISH_FROM = 0.3, 0.7
"""Progress of the second phase at which statements get the larger part, with a weight of their own for the facts in
them, and at which reading gets it back, with its own weight for first tokens, while the learning rate falls.

Before the former, answers to questions were learnt by heart (.73 of them) and hardly a fact from statements (.05).
"""


def _recall_world(edition: int) -> World:
    return World(RECALL_SEED, training_kinds(edition), RECALL_EVENTS, "reader")


def older_news() -> Iterator[tuple[str, int, str]]:
    """The recall world as a corpus: (event, number, text), ten of the wordings that the reader was trained on."""
    events = _recall_world(edition_of(assets_dir() / "reader")).events
    for number in range(_REPLAYED_WORDINGS):
        for event in events:
            yield event.id, number, realise(event, number, stream="reader")


def older_reading() -> Iterator[tuple[str, int, str]]:
    """What the reader learnt to read from, as a corpus: (name, 0, text), one to three chunks and questions about them.

    The questions of a third of them have letters.
    """
    reader = assets_dir() / "reader"
    edition = edition_of(reader)
    mixture = Mixture(AutoTokenizer.from_pretrained(reader), edition=edition)
    world = World(
        READING_SEED, training_kinds(edition), READING_EVENTS, "reader"
    )  # the first; all take ten times as long
    rng = random.Random(READING_SEED)
    for number in range(_REPLAYED_ROWS):
        shape = ReadingShape(chunks=1 + number % 3, questions=_REPLAYED_QUESTIONS, letters=number % 9 > 5)
        row = mixture.reading_row(world, shape, rng)
        yield f"read-{number:04d}", 0, mixture.tokenizer.decode(row.ids, skip_special_tokens=True)


@lru_cache(maxsize=2)
def _consequences(edition: int) -> list[list[Consequence]]:
    kinds = [kind.for_reader_training() for kind in load_kinds(CONSEQUENCES_DIR, edition=edition)]
    return [
        consequences_of(world, [event for event in world.events if can_follow(event)][:_FOLLOWED], kinds)
        for world in _reading_worlds(edition)
    ]


@lru_cache(maxsize=2)
def _reading_worlds(edition: int) -> list[World]:
    kinds = training_kinds(edition)
    return [World(READING_SEED + n, kinds, READING_EVENTS, "reader") for n in range(READING_WORLDS)]


def is_asked(event: Event, slot: str) -> bool:
    """Whether the reader trains on questions for this fact of the recall world: a fixed half of them."""
    return random.Random(f"asked:{event.id}:{slot}").random() < 0.5


def collate(rows: Sequence[Row], pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows → (ids, weights), each [rows, longest], padded at the right with weight 0."""
    longest = max(len(r.ids) for r in rows)
    ids = torch.full((len(rows), longest), pad)
    weights = torch.zeros(len(rows), longest)
    for i, row in enumerate(rows):
        ids[i, : len(row.ids)] = torch.tensor(row.ids)
        weights[i, : len(row.ids)] = torch.tensor(row.weights)
    return ids, weights


def _draw_shape(rng: random.Random, progress: float, letters: bool) -> ReadingShape:
    if progress < 0.06 or (progress < 0.2 and rng.random() < 0.4):
        return ReadingShape(rng.choice((1, 1, 2, 3, 4)), 8, letters, sentences_only=True)
    most = 1 if progress < 0.1 else 3 if progress < 0.25 else 5
    chunks = rng.randint(1, most)
    examples = rng.choice((0, 0, 0, 0, 1, 2, 3, 5)) if progress > 0.2 else 0
    hints = 0.0 if not letters or progress < FOUNDATION_UNTIL else 0.5 if progress < 0.5 else 0.1
    return ReadingShape(chunks, 6 if letters else 10, letters, examples=examples, hints=hints)


def _neighbours(events: Sequence[Event], count: int, rng: random.Random) -> list[Event]:
    """``count`` different events, most of one kind (a retriever brings chunks that look alike)."""
    first = rng.choice(events)
    chosen = {first.id: first}
    while len(chosen) < count:
        event = _same_kind(events, first, rng) if rng.random() < 0.8 else rng.choice(events)
        chosen.setdefault(event.id, event)
    result = list(chosen.values())
    rng.shuffle(result)
    return result


def _peers(events: Sequence[Event], of: Sequence[Event], rng: random.Random) -> list[Event]:
    """Some more events of each kind in ``of``, for wrong options."""
    one_each = {e.kind.kind: e for e in of}.values()
    return [_same_kind(events, e, rng) for e in one_each for _ in range(_PEERS)]


def _same_kind(events: Sequence[Event], event: Event, rng: random.Random) -> Event:
    """Another event of the same kind: kinds take turns in a world's list, so they stand at equal steps."""
    kinds = next(i for i, e in enumerate(events) if i and e.kind.kind == events[0].kind.kind)
    place = int(event.id.rsplit("-", 1)[1]) % kinds
    return events[rng.randrange(len(events) // kinds) * kinds + place]


def _sentences_with(values: Sequence[str], text: str) -> str:
    """The sentences of a chunk that state one of ``values``, after its lead."""
    lead, *rest = [s if s.endswith(".") else s + "." for s in text.split(". ")]
    return " ".join([lead, *(s for s in rest if any(v.lower() in s.lower() for v in values))])


def _cut(row: Row, length: int) -> Row:
    return Row(row.ids[:length], row.weights[:length], [s for s in row.spans if s[1] <= length])
