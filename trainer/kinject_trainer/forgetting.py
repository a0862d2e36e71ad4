"""What a training costs: how much worse a model becomes at what it knew before.

What it is for: perplexity on held-out general text, and for the embedded reader recall of its old world, measured
before the first update and after the last by the same code. What it does not do: it prevents nothing.

The one idea: the text must be none of the corpus. A user names a file (``general_text``); for the reader it is news of
a world that it has never read about, and otherwise the reference pages that come with Python, which every model of
English has seen the like of and no corpus of events contains.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from kinject_trainer.base import READER
from kinject_trainer.data import cut, encoder
from kinject_trainer.evaluate import mean_token_loss
from kinject_trainer.recipe import Recipe
from lm_eval_kinject.errors import CorpusError
from lm_eval_kinject.plugin import assets_dir
from lm_eval_kinject.provenance import fingerprint

__all__ = ["Figures", "Gauge", "Question", "answered", "general_text_fingerprint", "make_gauge", "recall"]

_BLOCKS = 64  # of general text
_QUESTIONS = 240  # about the old world
_SEED = 7


@dataclass(frozen=True)
class Figures:
    """One measurement.

    Attributes:
        perplexity: exp of the mean negative log-likelihood a token of the general text; None where there is none, NaN
            where that likelihood is no number.
        recall: share of the old world's questions answered right among four options; None but for the reader.
    """

    perplexity: float | None
    recall: float | None

    def plain(self) -> dict[str, float | None]:
        """As JSON can hold it."""
        return asdict(self)


@dataclass(frozen=True)
class Question:
    """A closed-book question as token ids: the prompt, and each option's continuation."""

    prompt: tuple[int, ...]
    options: tuple[tuple[int, ...], ...]
    answer: int


@dataclass(frozen=True)
class Gauge:
    """What is measured.

    Attributes:
        text: what the general text is, in a few words.
        blocks: its token ids.
        questions: about the old world.
        micro: blocks a forward pass.
    """

    text: str
    blocks: Sequence[Sequence[int]]
    questions: Sequence[Question]
    micro: int

    def measure(self, model: Any, accelerator: Any) -> Figures:
        """Measures a model; the same on every process."""
        perplexity = None
        if self.blocks:
            loss = mean_token_loss(model, self.blocks, self.micro, accelerator)
            # A model in ruins still has a figure, one that predicts no numbers hasn't: infinity is no perplexity.
            perplexity = math.exp(min(loss, 700.0)) if math.isfinite(loss) else math.nan
        return Figures(perplexity, recall(model, self.questions, accelerator.device) if self.questions else None)


def make_gauge(recipe: Recipe, tokenizer: PreTrainedTokenizerBase, micro: int) -> Gauge | None:
    """What to measure forgetting on; None where the recipe says not to.

    Raises:
        CorpusError: the named general text isn't there or is empty.
    """
    if not recipe.forgetting:
        return None
    name, texts = _general_text(recipe)
    encode = encoder(tokenizer)
    blocks: list[list[int]] = []
    for text in texts:
        blocks += cut([encode(text)], recipe.block_size)
        if len(blocks) >= 2 * _BLOCKS:
            break
    # Whole blocks only: a title or a last line says little of how well a model writes.
    whole = [block for block in blocks if len(block) == recipe.block_size][:_BLOCKS]
    questions = old_world(tokenizer, reader_edition()) if recipe.model == READER else []
    return Gauge(name, whole or cut([encode(t) for t in texts], recipe.block_size)[:1], questions, micro)


def general_text_fingerprint(recipe: Recipe) -> str | None:
    """Names the file that the recipe measures forgetting on; None where there is none.

    Raises:
        CorpusError: the file isn't there or is empty.
    """
    if not recipe.forgetting or recipe.general_text is None:
        return None
    return fingerprint(_general_text(recipe)[1])


def _general_text(recipe: Recipe) -> tuple[str, list[str]]:
    if recipe.general_text is not None:
        file = Path(recipe.general_text).expanduser()
        try:
            text = file.read_bytes().decode("utf-8")
        except (OSError, UnicodeDecodeError) as problem:
            raise CorpusError(f"general_text {recipe.general_text} is no readable UTF-8 text: {problem}.") from problem
        if not text.strip():
            raise CorpusError(f"general_text {recipe.general_text} is empty.")
        return f"file {file.name}", [text]
    if recipe.model == READER:
        return "news of a world that the reader has never read about", _unread_news()
    try:
        from pydoc_data.topics import topics
    except ImportError:
        return "none (this Python comes without its reference pages)", []
    return "reference pages of Python", [str(topics[name]) for name in sorted(topics)]


def _unread_news() -> list[str]:
    from kinject_trainer.reader.mixture import PROBE_SEED, training_kinds
    from lm_eval_kinject.corpus.sources.newswire.realise import realise
    from lm_eval_kinject.corpus.sources.newswire.world import World

    world = World(PROBE_SEED, training_kinds(reader_edition()), 4 * _BLOCKS, "reader")
    # In one text, as chunks stand in the reader's training: many to a block.
    return ["\n\n".join(realise(event, 0, stream="reader") for event in world.events)]


# The reader's old world -----------------------------------------------------------------------------------------------


def reader_edition() -> int:
    """The edition of the newswire that the embedded reader was trained for."""
    from kinject_trainer.reader.mixture import edition_of

    return edition_of(assets_dir() / READER)


def old_world(tokenizer: PreTrainedTokenizerBase, edition: int) -> list[Question]:
    """Questions about the world that the reader knows by heart: both those it was trained on and those it wasn't."""
    from kinject_trainer.reader.mixture import Mixture, cloze_prompt
    from lm_eval_kinject.corpus.sources.newswire.ask import Examiner

    world = Mixture(tokenizer, edition=edition).recall_world
    examiner = Examiner(world.events, _SEED)
    rng = random.Random(f"forgetting:{_SEED}")
    questions: list[Question] = []
    while len(questions) < _QUESTIONS:
        event = rng.choice(world.events)
        asked = examiner.ask(event, rng.choice(sorted(event.kind.questions)), "")
        prompt = tokenizer.encode(cloze_prompt(asked), add_special_tokens=False)
        options = tuple(tuple(tokenizer.encode(f" {c}", add_special_tokens=False)) for c in asked.choices)
        questions.append(Question((tokenizer.bos_token_id, *prompt), options, asked.answer))
    return questions


def recall(model: Any, questions: Sequence[Question], device: Any, batch: int = 8) -> float:
    """Share of questions whose right option has the highest log-likelihood, as lm_eval's ``acc`` has it.

    A tie with the right option counts as wrong: what can't tell them apart doesn't know.
    """
    right = answered(model, questions, device, batch)
    return sum(right) / len(right)


@torch.no_grad()
def answered(model: Any, questions: Sequence[Question], device: Any, batch: int = 8) -> list[bool]:
    """Whether each question is answered right; see `recall`."""
    was_training = model.training
    model.eval()
    right: list[bool] = []
    for start in range(0, len(questions), batch):
        part = questions[start : start + batch]
        rows = [(q.prompt, option) for q in part for option in q.options]
        scores = iter(_option_scores(model, rows, device))
        for question in part:
            own = [next(scores) for _ in question.options]
            best = own[question.answer]
            right.append(all(best > s for i, s in enumerate(own) if i != question.answer))
    model.train(was_training)
    return right


def _option_scores(model: Any, rows: Sequence[tuple[Sequence[int], Sequence[int]]], device: Any) -> list[float]:
    """Log-likelihood of each (prompt, continuation)'s continuation; padded at the right, where nothing looks."""
    longest = max(len(prompt) + len(option) for prompt, option in rows)
    ids = torch.zeros((len(rows), longest), dtype=torch.long)
    mask = torch.zeros((len(rows), longest), dtype=torch.bool)
    for i, (prompt, option) in enumerate(rows):
        ids[i, : len(prompt) + len(option)] = torch.tensor([*prompt, *option])
        mask[i, len(prompt) : len(prompt) + len(option)] = True
    ids, mask = ids.to(device), mask.to(device)
    logits = model(input_ids=ids, use_cache=False).logits[:, :-1].float()
    found = logits.log_softmax(-1).gather(-1, ids[:, 1:, None]).squeeze(-1)
    return [float(s) for s in (found * mask[:, 1:]).sum(-1)]
