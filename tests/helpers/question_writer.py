"""A process that writes the questions of a set, to be killed at any moment."""

from __future__ import annotations

from pathlib import Path

from lm_eval_kinject.questions.asking import Endpoint
from lm_eval_kinject.questions.folder import QuestionSet
from lm_eval_kinject.questions.ledger import Asker
from lm_eval_kinject.questions.write import Settings, write_questions


def write(url: str, corpus: str, folder: str, *, concurrency: int = 4, settings: Settings | None = None) -> None:
    there = QuestionSet.begin(Path(folder), corpus)
    with there.locked() as ledger:
        writer = Endpoint(url, model="scripted", concurrency=concurrency, first_wait=0.001)
        write_questions(there, Asker(writer, ledger), settings or Settings(min_words=10), lambda _: None)
