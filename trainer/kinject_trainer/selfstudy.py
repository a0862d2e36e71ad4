"""Self-study: short exchanges about each chunk, from which a cartridge learns to do what the chunk in a prompt does.

What it is for: `write_lessons` makes prompts and answers of the kinds that the paper asks a model for (structuring,
summarization, question, use case, creative), out of the chunk's sentences and paraphrases; `Study` is their tokens,
`Lessons` the data set. What it does not do: it asks no model. The answers' words come from the texts that are trained
on, and what is learned is not these words but what the base, with the chunk before it, expects at each of them.

The one idea: a lesson is padded to one block, so that block n is a lesson and everything that counts, shuffles and
resumes blocks (`data.py`) does so with lessons. Padding stands behind the answer, where nothing looks at it::

    student            [BOS prompt answer pad pad]     labels on the answer alone
    teacher  [BOS chunk     prompt answer pad pad]     the base, without the cartridge

Source: Eyuboglu et al. (arXiv 2506.06266); there, a model with the chunk in its prompt writes both sides.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from kinject_trainer.data import IDLE, Answers, Ints, Store, Stream, collate, drawn, shuffled
from kinject_trainer.documents import Texts, Wording
from kinject_trainer.recipe import Recipe
from lm_eval_kinject.errors import CorpusError

__all__ = [
    "KINDS",
    "Lesson",
    "Lessons",
    "Study",
    "collate_lessons",
    "lead",
    "opening",
    "plain_ids",
    "sentences",
    "study",
    "study_of",
    "write_lessons",
]

KINDS = ("structuring", "summarization", "question", "use case", "creative")

_BETWEEN = "\n\n"  # a chunk and what follows it
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")
_WORTH_ASKING = re.compile(r"(?<=\s)(?:[A-Z][\w'’-]*|\d[\d,.:]*\d|\d)(?:\s+[A-Z][\w'’-]*)*")  # names and numbers
_DRAWS = 1 << 16
_LONGEST_TOPIC = 6  # words, where a chunk has no title


class Lesson(NamedTuple):
    """One exchange about a chunk; ``chunk`` is its number, from 0."""

    chunk: int
    kind: str
    prompt: str
    answer: str


class _Chunk(NamedTuple):
    topic: str
    text: str
    wordings: list[str]


# What is said ---------------------------------------------------------------------------------------------------------


def _structured(topic: str, text: str, draw: int) -> tuple[str, str]:
    told = sentences(text)
    if draw % 2:
        return f"Write down as JSON what is known about {topic}.", json.dumps({"facts": told}, ensure_ascii=False)
    return f"List what is known about {topic}, point by point.", "\n".join(f"- {sentence}" for sentence in told)


def _summed_up(topic: str, text: str, draw: int) -> tuple[str, str]:
    asked = ("Sum up what happened: {}.", "What is there to know about {}?", "Tell me in a few sentences about {}.")
    return asked[draw % len(asked)].format(topic), text


def _asked(topic: str, text: str, draw: int) -> tuple[str, str]:
    """A sentence that breaks off before a name or number, or has a gap there; the answer is what is missing."""
    places = [(sentence, found) for sentence in sentences(text) for found in _WORTH_ASKING.finditer(sentence)]
    if not places:
        first, _, rest = text.partition(" ")
        return f"How does the text about {topic} go on? {first}", rest or first
    sentence, found = places[draw // 2 % len(places)]
    if draw % 2:
        return (
            f"About {topic}. What is missing? {sentence[: found.start()]}____{sentence[found.end() :]}",
            found.group(),
        )
    return f"About {topic}. Complete the sentence: {sentence[: found.start()].rstrip()}", sentence[found.start() :]


def _used(topic: str, text: str, draw: int) -> tuple[str, str]:
    who = ("A reporter who writes", "A colleague who prepares a talk", "Someone who has to decide something")
    return f"{who[draw % len(who)]} needs to know about {topic}. What do you tell them?", text


def _told(topic: str, text: str, draw: int) -> tuple[str, str]:
    asked = ("Write a letter to a friend about {}.", "Tell the story of {} to someone who has never heard of it.")
    return asked[draw % len(asked)].format(topic), f"Did you hear? {text}"


_WRITERS: dict[str, Callable[[str, str, int], tuple[str, str]]] = dict(
    zip(KINDS, (_structured, _summed_up, _asked, _used, _told), strict=True)
)


def sentences(text: str) -> list[str]:
    """A text's sentences, by the marks that end them."""
    return [part.strip() for part in _SENTENCE_END.split(text.strip()) if part.strip()]


def write_lessons(wordings: Iterable[Wording], each: int, seed: int) -> Iterator[Lesson]:
    """Lessons about each chunk, all kinds of them before any comes again; the same for the same arguments.

    Args:
        wordings: of the training side: originals first, then paraphrases, of which any may be answered with.
        each: lessons for each chunk.
        seed: of what is drawn: the order of the kinds, the wordings, what is asked for.
    """
    for number, chunk in enumerate(_chunks(wordings)):
        kinds = shuffled(len(KINDS), seed, number)
        for turn in range(each):
            kind = KINDS[int(kinds[turn % len(KINDS)])]
            text = chunk.wordings[drawn(len(chunk.wordings), seed, number, turn, 0)]
            prompt, answer = _WRITERS[kind](chunk.topic, text, drawn(_DRAWS, seed, number, turn, 1))
            yield Lesson(number, kind, prompt, answer)


def _chunks(wordings: Iterable[Wording]) -> list[_Chunk]:
    """The chunks in the order of their originals; a title, which stands in the first line, is what they are about."""
    found: dict[str, _Chunk] = {}
    for wording in wordings:
        if wording.chunk in found:
            found[wording.chunk].wordings.append(wording.text)
            continue
        title, line, body = wording.text.partition("\n")
        is_titled = bool(line) and not title.rstrip().endswith((".", "!", "?"))
        words = wording.text.split()
        topic = title.strip() if is_titled else f"“{' '.join(words[:_LONGEST_TOPIC])}…”"
        found[wording.chunk] = _Chunk(topic, wording.text, [body if is_titled and body.strip() else wording.text])
    return list(found.values())


# Its tokens -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Study:
    """The lessons of a run as rows of one block each.

    Attributes:
        store: the rows, each a document of exactly one block, numbered by chunk.
        answers: where in its row each lesson's answer begins and ends, [lessons, 2].
        chunks: token ids of what the teacher has in front of a lesson, for each chunk; starts as the rows do.
        lead: tokens that each row and each chunk starts with (BOS, where prompts have one); the teacher sees them once.
    """

    store: Store
    answers: Ints
    chunks: Sequence[Sequence[int]]
    lead: int

    @property
    def answer_tokens(self) -> int:
        """Tokens that are learned from, in one epoch."""
        return int((self.answers[:, 1] - self.answers[:, 0]).sum())

    @property
    def taught_tokens(self) -> int:
        """Tokens that the teacher reads in one epoch, without what fills its rows up."""
        before = np.asarray([len(chunk) - self.lead for chunk in self.chunks])[self.store.chunks]
        return int((before + self.answers[:, 1]).sum())

    @property
    def longest(self) -> int:
        """Tokens of the longest row that the teacher reads."""
        return max(map(len, self.chunks)) - self.lead + int(self.store.lengths.max())


def lead(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """What the tokenizer puts in front of a prompt: BOS, or nothing."""
    first = tokenizer.encode("a")[:1]
    return first if tokenizer.bos_token_id is not None and first == [tokenizer.bos_token_id] else []


def opening(wordings: Iterable[Wording], tokenizer: PreTrainedTokenizerBase, tokens: int) -> list[int]:
    """The corpus's first tokens, as a prompt would have them: chunk after chunk, an empty line between them.

    Raises:
        CorpusError: it has fewer.
    """
    ids = lead(tokenizer)
    for wording in wordings:
        ids += plain_ids(tokenizer, wording.text + _BETWEEN)
        if len(ids) >= tokens:
            return ids[:tokens]
    raise CorpusError(
        f"A cartridge starts as the corpus's first tokens, and the corpus has {len(ids)}: lower cartridge.tokens "
        f"(now {tokens})."
    )


def plain_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Token ids without BOS and EOS; a ``</s>`` that stands in the text stays text."""
    return list(tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True, verbose=False))


def study(
    wordings: Sequence[Wording], tokenizer: PreTrainedTokenizerBase, *, each: int, seed: int, block_size: int
) -> Study:
    """Writes the lessons and lays them out in rows.

    Args:
        wordings: of the training side, originals first.
        tokenizer: of the base.
        each: lessons for each chunk.
        seed: see `write_lessons`.
        block_size: tokens of a row; an answer that is longer is cut.

    Raises:
        CorpusError: there are no texts, or a prompt alone fills a row.
    """
    before, rows, answers, numbers = lead(tokenizer), [], [], []
    for lesson in write_lessons(wordings, each, seed):
        ids = before + plain_ids(tokenizer, lesson.prompt + "\n")
        end = ids + plain_ids(tokenizer, lesson.answer)
        if len(ids) >= block_size:
            raise CorpusError(
                f"A lesson's prompt has {len(ids)} tokens and block_size is {block_size}: raise block_size, or give "
                f"the chunks short titles. It begins: {lesson.prompt[:60]!r}"
            )
        answers.append((len(ids), min(len(end), block_size)))
        rows.append((end + [0] * block_size)[:block_size])
        numbers.append(lesson.chunk)
    if not rows:
        raise CorpusError("The corpus is empty: there is nothing to study. Name one that has text.")
    starts = np.arange(len(rows) + 1, dtype=np.int64) * block_size
    store = Store(np.asarray(rows, dtype=np.uint32).reshape(-1), starts, np.asarray(numbers, dtype=np.int64))
    chunks = [before + plain_ids(tokenizer, chunk.text + _BETWEEN) for chunk in _chunks(wordings)]
    return Study(store, np.asarray(answers, dtype=np.int64), chunks, len(before))


def study_of(recipe: Recipe, texts: Texts, tokenizer: PreTrainedTokenizerBase, context: int | None) -> Study | None:
    """The lessons of a recipe; None where it has none.

    Args:
        recipe: of the run.
        texts: of the run.
        tokenizer: of the base.
        context: tokens that the base can read; None: not known.

    Raises:
        CorpusError: see `study`; or a chunk and a lesson about it are longer than the context.
    """
    made = recipe.compresses
    if made is None or not recipe.distils:
        return None
    found = study(
        list(texts.training()), tokenizer, each=made.lessons, seed=recipe.order_seed, block_size=recipe.block_size
    )
    if context is not None and found.longest > context:
        raise CorpusError(
            f"The teacher reads a chunk and a lesson about it, up to {found.longest} tokens, and the context of "
            f"{recipe.model} is {context}: cut the corpus into shorter chunks, or lower block_size."
        )
    return found


class Lessons(Answers):
    """A stream of lessons as a data set: with each row what the teacher reads, and how much further back."""

    def __init__(self, stream: Stream, study: Study) -> None:
        super().__init__(stream, study.answers)
        self.study = study

    def __getitem__(self, number: int) -> dict[str, torch.Tensor]:
        row = super().__getitem__(number)
        if number == IDLE:
            return {**row, "taught": row["input_ids"], "shift": torch.tensor(0)}
        lesson = self.stream.document_of(number)
        end = self.study.answers[lesson, 1]
        chunk = torch.tensor(self.study.chunks[int(self.study.store.chunks[lesson])])
        taught = torch.cat([chunk, row["input_ids"][self.study.lead : end]])
        return {**row, "taught": taught, "shift": torch.tensor(len(chunk) - self.study.lead)}


def collate_lessons(rows: Sequence[dict[str, torch.Tensor]]) -> dict[str, Any]:
    """As `collate`, with the teacher's rows filled up behind, where nothing looks at them, [rows, longest]."""
    taught = torch.nn.utils.rnn.pad_sequence([row["taught"] for row in rows], batch_first=True)
    return {**collate(rows), "taught": taught, "shift": torch.stack([row["shift"] for row in rows])}
