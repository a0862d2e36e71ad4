"""The questions of the months, and what a model answers without any text in front.

What it is for: `read_month` finds and checks a month's questions, `ask` has a model answer those of all months. What it
does not do: it retrieves nothing; for that, score a month's run with `lm_eval --model rag-hf`.

The one idea: the log-likelihood of each option behind the question and ``Answer:`` is what `current_events_cloze` and
the trainer's own recall go by (`forgetting.answered`), tokenized as lm_eval does: the option's tokens are what it adds
to those of the prompt.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase

from kinject_trainer.forgetting import Figures, Gauge, Question, answered
from kinject_trainer.rows import ROW_FILES, find_rows, raw_rows
from lm_eval_kinject.errors import CorpusError
from lm_eval_kinject.provenance import fingerprint_records
from lm_eval_kinject.questions.folder import QuestionSet
from lm_eval_kinject.questions.verify import settled

__all__ = ["Answers", "MonthQuestions", "Weights", "ask", "read_month"]

_SHOWN = 3  # of the rows that an error lists


@dataclass(frozen=True)
class MonthQuestions:
    """What is asked about one month.

    Attributes:
        rows: question, its options, the place of the right one from 0.
        fingerprint: of all of them.
    """

    rows: tuple[tuple[str, tuple[str, ...], int], ...]
    fingerprint: str

    def encoded(self, tokenizer: PreTrainedTokenizerBase) -> list[Question]:
        """As token ids."""
        return [_encoded(tokenizer, *row) for row in self.rows]


@dataclass(frozen=True)
class Weights:
    """What answers: a base, and an adapter on it or none.

    Attributes:
        model: folder of a whole model.
        adapter: folder of an adapter; None: the model as it is.
        fingerprint: of what was trained.
    """

    model: Path
    adapter: Path | None
    fingerprint: str


@dataclass(frozen=True)
class Answers:
    """What one model answered.

    Attributes:
        right: month -> whether each of its questions was answered right; months without questions aren't there.
        figures: of what it knew before; None where that isn't measured.
    """

    right: Mapping[str, Sequence[bool]]
    figures: Figures | None

    def accuracy(self, month: str) -> float | None:
        """Share of a month's questions answered right; None where it has none."""
        right = self.right.get(month)
        return sum(right) / len(right) if right else None


def read_month(spec: str) -> MonthQuestions:
    """Reads a month's questions.

    Args:
        spec: a question set's folder (those that stand are taken), a folder with ``test.parquet`` or ``test.jsonl`` in
            it or in its ``data``, or such a file. Columns of files: ``question``, ``choices``, ``answer``, the place of
            the right one from 0.

    Raises:
        CorpusError: not there, malformed (with the rows), or empty.
    """
    folder = Path(spec).expanduser()
    if (folder / "set.json").is_file():
        rows: Sequence[Mapping[str, Any]] = settled(QuestionSet.open(folder)).rows
    else:
        rows = list(raw_rows(_find(folder, spec)))
    wrong = [f"row {number} {problem}" for number, row in enumerate(rows, start=1) if (problem := _problem(row))]
    if wrong:
        raise CorpusError(
            f"questions {spec}: {len(wrong)} of {len(rows)} can't be asked: {'; '.join(wrong[:_SHOWN])}. Correct them, "
            f"or remove them."
        )
    if not rows:
        raise CorpusError(f"questions {spec}: there are none; name others, or leave questions out of the month.")
    made = tuple((str(row["question"]), tuple(row["choices"]), int(row["answer"])) for row in rows)
    return MonthQuestions(made, fingerprint_records([text, list(choices), answer] for text, choices, answer in made))


def _find(place: Path, spec: str) -> Path:
    found = find_rows(place, "test")
    if found is None:
        raise CorpusError(
            f"questions {spec}: no such question set, folder with a test split, or {' or '.join(ROW_FILES)} file; "
            f"correct the place, or leave questions out of the month."
        )
    return found


def _problem(row: Mapping[str, Any]) -> str | None:
    choices, answer = row.get("choices"), row.get("answer")
    if not isinstance(row.get("question"), str) or not row["question"].strip():
        return "has no `question`"
    if not isinstance(choices, list) or len(choices) < 2 or not all(isinstance(c, str) and c.strip() for c in choices):
        return "has no `choices`, two texts or more"
    if len(set(choices)) < len(choices):
        return "has a choice twice"
    if isinstance(answer, bool) or not isinstance(answer, int) or not 0 <= answer < len(choices):
        return "has an `answer` that is no place in its `choices`, from 0"
    return None


def _encoded(tokenizer: PreTrainedTokenizerBase, text: str, choices: Sequence[str], answer: int) -> Question:
    prompt = f"Question: {text.strip()}\nAnswer:"
    before = tokenizer.encode(prompt)
    options = tuple(tuple(tokenizer.encode(f"{prompt} {choice}")[len(before) :]) for choice in choices)
    return Question(tuple(before), options, answer)


def ask(
    weights: Weights, questions: Mapping[str, Sequence[Question]], gauge: Gauge | None, accelerator: Any
) -> Answers:
    """Has a model answer.

    Args:
        weights: what answers, in the precision that it is kept in.
        questions: month -> its questions.
        gauge: what forgetting is measured on; None: it isn't.
        accelerator: of the run; its processes share the general text, and each answers all questions.
    """
    if not questions and gauge is None:
        return Answers({}, None)
    model = AutoModelForCausalLM.from_pretrained(weights.model, dtype="auto")
    if weights.adapter is not None:
        model = PeftModel.from_pretrained(model, str(weights.adapter))
    model = model.to(accelerator.device).eval()
    right = {month: answered(model, asked, accelerator.device) for month, asked in questions.items()}
    figures = None if gauge is None else gauge.measure(model, accelerator)
    del model
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return Answers(right, figures)
