"""Robust fine-tuning: questions with retrieved chunks before them, wrong ones too, and what is to be answered.

What it is for: `exercises_of` retrieves for each question and lays prompt and answer out in a row. What it does not
do: it asks no model, and it wraps nothing in a chat template.

The one idea: a prompt is what ``rag-hf`` puts before a model at ``current_events_cloze``, to the token, and an exercise
is padded to one block, so that block n is an exercise and everything that counts, shuffles and resumes blocks
(`data.py`) does so with exercises. The loss is on the target alone::

    implicit   [BOS instruction d1 … dk Question: q Answer:     a EOS                  pad]
    explicit   [BOS instruction d1 … dk Question: q Relevance:  which and why Answer: a EOS pad]
                                                                └ target ──────────┘

With the form ``self-reasoning`` the target is the JSON object that ``reasoning=self-reasoning`` asks a model for,
behind that prompt. It is learned in three stages, a third of the run each: up to the end of relevance, then up to the
end of the evidence, then whole, so that no part is learned before what it rests on.

Chunks are as retrieval gives them: nobody sees to it that the right one is there. Where a row has no room for all of
them, those of the lowest rank are left out whole, as rag-hf does.

Sources: Jin et al., "Long-Context LLMs Meet RAG" (arXiv 2410.05983); Xia et al. (arXiv 2407.19813) for self-reasoning.
There, a model writes what is relevant and why; here it is a template around the sentence that has the answer in it.
"""

from __future__ import annotations

import bisect
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from transformers import PreTrainedTokenizerBase

from kinject_trainer.data import Demarcation, Ints, Store
from kinject_trainer.documents import Texts
from kinject_trainer.questions import Question
from kinject_trainer.recipe import Questions, Recipe
from kinject_trainer.selfstudy import lead, plain_ids, sentences
from lm_eval_kinject.context import reason
from lm_eval_kinject.context.compose import Composer, markers_of
from lm_eval_kinject.errors import CorpusError
from lm_eval_kinject.records import Chunk, Hit, Query
from lm_eval_kinject.retrieval import Retriever, make_retriever

__all__ = ["Exercises", "exercises", "exercises_of", "relevance", "steps"]


@dataclass(frozen=True)
class Exercises:
    """The questions of a run as rows of one block each.

    Attributes:
        store: the rows, each a document of exactly one block.
        answers: where in its row each target begins, and where what is learned of it ends in each stage of the run,
            [questions, 1 + stages]; in the last stage that is its end.
        passages: chunks in each prompt, [questions].
        gold: per question 1 where its source chunk is in the prompt, 0 where it isn't, -1 where the source isn't said.
        retriever: what names it in results.
    """

    store: Store
    answers: Ints
    passages: Ints
    gold: Ints
    retriever: dict[str, Any]

    @property
    def answer_tokens(self) -> int:
        """Tokens that are learned from, in one epoch."""
        return int((self.answers[:, -1] - self.answers[:, 0]).sum())

    def record(self) -> dict[str, Any]:
        """What results say of them."""
        known = self.gold[self.gold >= 0]
        return {
            "answer_tokens": self.answer_tokens,
            "passages": int(self.passages.sum()),
            "source_known": len(known),
            "source_in_prompt": int(known.sum()),
            "retriever": self.retriever,
        }


# What is said ---------------------------------------------------------------------------------------------------------


def _prompt_end(question: str, form: str) -> str:
    """What stands behind the chunks; the target goes on from there."""
    told = reason.INSTRUCTION if form == "self-reasoning" else ""
    return f"{told}Question: {question}\n{'Relevance' if form == 'explicit' else 'Answer'}:"


def relevance(question: Question, chunks: Sequence[Chunk]) -> str:
    """Which chunks are relevant and why: the source or, where that isn't said, each that has the answer in it.

    Chunks carry no numbers in the prompt, so a relevant one is named by what it says: the first sentence that has the
    answer in it, or its first sentence.
    """
    said = _evidence(question, chunks)
    if not said:
        return "None of the passages answers the question."
    others = len(chunks) - len(said)
    which = "passage that says" if len(said) == 1 else "passages that say"
    rest = "" if not others else ", and the other is not" if others == 1 else f", and the other {others} are not"
    quoted = " and ".join(f'"{one}"' for one in said)
    return f"The {which} {quoted} {'is' if len(said) == 1 else 'are'} relevant{rest}."


def _evidence(question: Question, chunks: Sequence[Chunk]) -> list[str]:
    """A sentence of each relevant chunk."""
    words = re.compile(rf"(?<!\w){re.escape(question.answer)}(?!\w)", re.IGNORECASE)
    right = [c for c in chunks if (c.id == question.gold if question.gold else words.search(c.text))]
    told = [sentences(chunk.text) for chunk in right]
    return [next((part for part in parts if words.search(part)), parts[0]) for parts in told]


def steps(question: Question, chunks: Sequence[Chunk]) -> reason.Steps:
    """Relevance, evidence, analysis and answer; where no chunk is relevant, the answer stands there all the same."""
    said = _evidence(question, chunks)
    if not said:
        why, analysis = "None of the passages answers the question.", "The text does not say it."
    else:
        why, analysis = "It says what is asked.", f"The text says: {' '.join(said)}"
    cited = tuple(reason.Evidence(one, "It holds the answer.") for one in said)
    return reason.Steps(bool(said), why, cited, analysis, question.answer)


# Its tokens -----------------------------------------------------------------------------------------------------------


class _Row(NamedTuple):
    ids: list[int]
    start: int  # of the target
    ends: list[int]  # of what is learned in each stage


class _Writer:
    """Writes one question and some hits as a row, unpadded."""

    def __init__(self, asked: Questions, tokenizer: PreTrainedTokenizerBase) -> None:
        self._asked, self._tokenizer = asked, tokenizer
        self._before, self._after = lead(tokenizer), list(Demarcation.of(tokenizer).after)
        self._composer = Composer(lambda text: 0, markers_of(tokenizer))  # counted is the whole row

    def row(self, question: Question, hits: Sequence[Hit]) -> _Row:
        """Prompt and target are tokenized together and split where the prompt's tokens end, as lm_eval does."""
        chunks = self._composer.compose(hits, None, where=f"question {question.id}").text
        prompt = f"{self._asked.instruction}{chunks}{_prompt_end(question.text, self._asked.form)}"
        target, parts = f" {question.answer}", []
        if self._asked.form == "explicit":
            target = f" {relevance(question, [hit.chunk for hit in hits])}\nAnswer:{target}"
        elif self._asked.form == "self-reasoning":
            target = f" {reason.as_text(steps(question, [hit.chunk for hit in hits]))}"
            parts = [target[: target.index(f', "{field}": ')] for field in ("evidence", "analysis")]
        ids = [*self._before, *plain_ids(self._tokenizer, prompt + target), *self._after]
        start, *ends = (len(self._before) + len(plain_ids(self._tokenizer, prompt + part)) for part in ("", *parts))
        return _Row(ids, start, [*ends, len(ids)])


def exercises(
    questions: Sequence[Question],
    retriever: Retriever,
    tokenizer: PreTrainedTokenizerBase,
    asked: Questions,
    block_size: int,
) -> Exercises:
    """Retrieves for each question, and lays it out in a row of one block.

    Args:
        questions: of the training side.
        retriever: asked for ``asked.k`` chunks of each.
        tokenizer: of the base.
        asked: form and instruction.
        block_size: tokens of a row.

    Raises:
        CorpusError: a question doesn't fit in a row with its best chunk.
        ArgumentError: the corpus has fewer chunks than are asked for.
    """
    writer, rows, answers, passages, gold = _Writer(asked, tokenizer), [], [], [], []
    found = retriever.search([Query(q.text, q.gold or None) for q in questions], asked.k)
    for question, hits in zip(questions, found, strict=True):
        kept = _fitting(writer, question, hits, block_size)
        row = writer.row(question, kept)
        answers.append((row.start, *row.ends))
        rows.append((row.ids + [0] * block_size)[:block_size])
        passages.append(len(kept))
        gold.append(any(hit.chunk.id == question.gold for hit in kept) if question.gold else -1)
    starts = np.arange(len(rows) + 1, dtype=np.int64) * block_size
    numbers = np.arange(len(rows), dtype=np.int64)
    store = Store(np.asarray(rows, dtype=np.uint32).reshape(-1), starts, numbers)
    return Exercises(
        store,
        answers=np.asarray(answers, dtype=np.int64),
        passages=np.asarray(passages, dtype=np.int64),
        gold=np.asarray(gold, dtype=np.int64),
        retriever=retriever.provenance(),
    )


def _fitting(writer: _Writer, question: Question, hits: Sequence[Hit], block_size: int) -> Sequence[Hit]:
    """As many of the best hits as a row has room for."""
    count = bisect.bisect_right(
        range(len(hits) + 1), block_size, key=lambda n: len(writer.row(question, hits[:n]).ids)
    )  # with none of them, with one, …
    if count - 1 < min(1, len(hits)):
        needed = len(writer.row(question, hits[:1]).ids)
        raise CorpusError(
            f"Question {question.id} needs {needed} tokens with its answer{' and its best chunk' if hits else ''}, and "
            f"block_size is {block_size}: raise block_size, or cut the corpus into shorter chunks."
        )
    return hits[: count - 1]


def exercises_of(recipe: Recipe, texts: Texts, tokenizer: PreTrainedTokenizerBase) -> Exercises | None:
    """The exercises of a recipe; None where it has none. See `exercises`."""
    if recipe.questions is None or texts.asked is None:
        return None
    retriever = make_retriever(recipe.questions.retriever, texts.asked.corpus)
    return exercises(texts.asked.questions, retriever, tokenizer, recipe.questions, recipe.block_size)
