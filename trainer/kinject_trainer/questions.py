"""Questions of the training side: what is learned to be answered with retrieved chunks in the prompt.

What it is for: `read_questions` finds a question set's dev or validation split, or a file of one's own, checks every
row, and refuses test questions. What it does not do: it retrieves nothing and writes no prompt (`robust.py`).

The one idea: a question is known by its words, not by its file. Whatever the file is called, none of its questions may
be one of a bundled task's test set, or of a test split that lies beside it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from kinject_trainer.rows import ROW_FILES, find_rows, raw_rows
from lm_eval_kinject.errors import CorpusError
from lm_eval_kinject.plugin import tasks_dir
from lm_eval_kinject.provenance import fingerprint
from lm_eval_kinject.retrieval.sparse import tokenise

__all__ = ["Question", "content_id", "questions_in", "read_question", "read_questions"]

_SPLITS = ("dev", "validation")
_SHOWN = 3  # of the problems or questions that an error lists


class Question(NamedTuple):
    """One question; ``gold`` is the id of the chunk that answers it, empty where that isn't said."""

    id: str
    text: str
    answer: str
    gold: str = ""


def content_id(question: str) -> str:
    """What a question is known by: its words, whatever their case, punctuation and spacing."""
    return fingerprint(tokenise(question))


def read_questions(source: str, key: str = "questions.source") -> tuple[Question, ...]:
    """The questions of a bundled set, a folder or a file.

    Args:
        source: the name of a bundled question set or a folder, of which the dev split is taken, else the validation
            split; or a Parquet or JSON Lines file. Its columns: ``question``; ``answer``, a text, or the place (from 0)
            of the right one in ``choices``; if they are known ``id`` and ``source_chunk``.
        key: of the recipe, for errors.

    Raises:
        CorpusError: not there, malformed, empty, with a question twice, or with test questions.
    """
    file = _find(source, key)
    found = questions_in(file, key)
    _refuse_test_questions(found, file)
    return tuple(found)


def questions_in(file: Path, key: str) -> list[Question]:
    """The questions of a file, whatever they are for.

    Raises:
        CorpusError: rows that are no questions with an answer, or none at all.
    """
    found, problems = [], []
    for number, row in enumerate(raw_rows(file), start=1):
        try:
            found.append(read_question(row, number))
        except ValueError as problem:
            problems.append(f"row {number} {problem}")
    if problems:
        raise CorpusError(
            f"{file.name}: {len(problems)} of its rows are no questions with an answer: "
            f"{'; '.join(problems[:_SHOWN])}. Correct them, or remove them."
        )
    if not found:
        raise CorpusError(f"{file.name} has no questions: give it some, or name another file as {key}.")
    return found


def _find(source: str, key: str) -> Path:
    bundled = tasks_dir() / source / "data"
    place = bundled if "/" not in source and bundled.is_dir() else Path(source).expanduser()
    file = find_rows(place, *_SPLITS)
    if file is None:
        named = sorted(folder.parent.name for folder in tasks_dir().glob("*/data"))
        raise CorpusError(
            f"{key} {source}: there is no such file or folder with a dev or validation split; give a "
            f"{' or '.join(ROW_FILES)} file, a folder with dev{ROW_FILES[0]} in it, or one of {', '.join(named)}."
        )
    return file


def read_question(row: Mapping[str, Any], number: int) -> Question:
    """A row as a question.

    Raises:
        ValueError: says what it lacks.
    """
    text, answer, choices = row.get("question"), row.get("answer"), row.get("choices")
    if not isinstance(text, str) or not tokenise(text):
        raise ValueError("has no `question`")
    if isinstance(answer, int) and not isinstance(answer, bool):
        if not isinstance(choices, list) or not 0 <= answer < len(choices):
            raise ValueError(f"has the answer {answer}, which is no place in its `choices`")
        answer = choices[answer]
    if not isinstance(answer, str) or not answer.strip():
        raise ValueError("has no `answer`")
    gold = row.get("source_chunk")
    if gold is not None and not isinstance(gold, str):
        raise ValueError("has a `source_chunk` that is no chunk's id")
    return Question(str(row.get("id", number)), text.strip(), answer.strip(), gold or "")


def _refuse_test_questions(questions: list[Question], file: Path) -> None:
    """Compares with every test split of the bundled tasks, and with those beside the file."""
    test = {content_id(text): split for split in _test_splits(file) for text in _texts(split)}
    tested = [question for question in questions if content_id(question.text) in test]
    if tested:
        some = "; ".join(repr(question.text) for question in tested[:_SHOWN])
        split = test[content_id(tested[0].text)]
        raise CorpusError(
            f"{file.name}: {len(tested)} of its {len(questions)} questions are test questions (of "
            f"{split.parent.parent.name}/{split.parent.name}/{split.name}): {some}. What is trained on can't be tested "
            f"on: remove them, or name a split of the training side."
        )


def _test_splits(file: Path) -> Iterator[Path]:
    for folder in (*sorted(tasks_dir().glob("*/data")), file.resolve().parent):
        for split in sorted(folder.iterdir()):
            if split.suffix in ROW_FILES and (split.stem == "test" or split.stem.endswith("_test")):
                yield split


def _texts(split: Path) -> Iterator[str]:
    for row in raw_rows(split):
        if isinstance(row.get("question"), str):
            yield row["question"]
