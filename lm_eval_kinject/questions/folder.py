"""The folder of a question set: which files it has, what a line of each holds, and who may change it.

What it is for: `QuestionSet` opens or begins such a folder; the stages read and write through it. What it does not do:
it asks nobody and judges nothing.

The one idea: people and programs work on one folder at different times, so every file has one writer, and what is made
again is replaced whole:

    file                 written by       a line (or the object) is
    set.json             all stages       corpus, its fingerprint and settings; under `stages` what each did and took
    chunks.jsonl         write, once      a chunk: id, text, title, document_id, position, date, and what else it had
    answers.jsonl        all stages       a paid answer (ledger.py); append-only, never edited
    questions.jsonl      write            a question: id, question, choices, answer (place from 0), source_chunk,
                                          evidence (words of the chunk), specificity (1: the most), writer
    verdicts.jsonl       verify           a question's verdict: id, of, flags, with_passage, without_passage, tries
    reviews.jsonl        review           a person's decision; append-only: id, of, reviewer, action (accept, edit,
                                          reject), reason, and for an edit question, choices, answer, evidence
    paraphrases.jsonl    paraphrase       another wording: chunk, number (from 1), text: what the trainer reads
    validation.jsonl     paraphrase       the same, held out for choosing training settings
    augment-STYLE.jsonl  augment          the same columns: texts made of a chunk in another style

``of`` is `fingerprint_question` of the question that was judged: a verdict or decision on other words than those that
stand in questions.jsonl by now doesn't count. Of several decisions of one reviewer the last line counts.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lm_eval_kinject.corpus import CHUNK_WORDS, Corpus, load_corpus
from lm_eval_kinject.errors import CorpusError
from lm_eval_kinject.provenance import atomic_write, fingerprint, read_json, write_json
from lm_eval_kinject.questions.ledger import Ledger, jsonl
from lm_eval_kinject.records import Chunk

__all__ = ["QuestionSet", "Row", "fingerprint_question"]

Row = dict[str, Any]

FORMAT = 1
_KEPT = ("id", "text", "title", "document_id", "position", "date")


def fingerprint_question(question: Mapping[str, Any]) -> str:
    """Names what a question asks: its words, its options in their order, and which is right. 16 hexadecimal digits."""
    return fingerprint([question["question"], list(question["choices"]), question["answer"]])[:16]


@dataclass(frozen=True)
class QuestionSet:
    """A question set's folder; see this file's head."""

    folder: Path
    manifest: Row
    corpus: Corpus

    @classmethod
    def begin(cls, folder: Path, spec: str, *, words: int = CHUNK_WORDS, overlap: int = 0) -> QuestionSet:
        """Begins a set with a corpus, or opens the one that is there if it has the same chunks.

        Raises:
            CorpusError: the corpus can't be read, or the folder holds a set on another one.
        """
        corpus = load_corpus(spec, words=words, overlap=overlap)
        if (folder / "set.json").is_file():
            there = cls.open(folder)
            if there.corpus.fingerprint != corpus.fingerprint:
                raise CorpusError(
                    f"{folder} holds questions on other chunks ({there.manifest['corpus']['name']}, fingerprint "
                    f"{there.corpus.fingerprint[:16]}…, not {corpus.fingerprint[:16]}…): name another folder."
                )
            return there
        folder.mkdir(parents=True, exist_ok=True)
        # `meta` as columns, as they came: the fingerprint of what is read back is that of what was read.
        rows = [{**one.meta, **{name: getattr(one, name) for name in _KEPT}} for one in corpus.chunks]
        _write(folder / "chunks.jsonl", rows)
        write_json(folder / "set.json", {"format": FORMAT, "corpus": corpus.provenance(), "stages": {}})
        return cls.open(folder)

    @classmethod
    def open(cls, folder: Path) -> QuestionSet:
        """Opens a set.

        Raises:
            CorpusError: there is none, or it is of a later release or damaged.
        """
        try:
            manifest = read_json(folder / "set.json")
        except OSError as problem:
            raise CorpusError(
                f"{folder} holds no question set: begin one with `kinject questions write --out {folder}`."
            ) from problem
        except ValueError as problem:
            raise CorpusError(f"{folder / 'set.json'} is damaged: begin the set in another folder.") from problem
        if manifest.get("format") != FORMAT:
            raise CorpusError(f"{folder} was made by a later release of this package: update it.")
        corpus = load_corpus(folder / "chunks.jsonl")
        if corpus.fingerprint != manifest["corpus"]["fingerprint"]:
            raise CorpusError(f"{folder / 'chunks.jsonl'} has been changed since the set was begun: get it back.")
        return cls(folder, manifest, corpus)

    @contextmanager
    def locked(self) -> Iterator[Ledger]:
        """The set's ledger, with no other stage at work on the folder.

        Raises:
            CorpusError: another is.
        """
        import filelock

        lock = filelock.FileLock(self.folder / ".lock")
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout as problem:
            raise CorpusError(f"Another `kinject questions` is at work in {self.folder}: wait for it.") from problem
        try:
            ledger = Ledger(self.folder / "answers.jsonl")
            try:
                yield ledger
            finally:
                ledger.close()
        finally:
            lock.release()

    def read(self, name: str, *, growing: bool = False) -> list[Row]:
        """The rows of a file, none where it isn't there.

        Args:
            name: the file's.
            growing: others may be adding to it: a last line without an end that isn't whole is left out.

        Raises:
            CorpusError: a line is no object.
        """
        path = self.folder / name
        lines = path.read_text(encoding="utf-8").split("\n") if path.is_file() else []
        rows: list[Row] = []
        for number, line in enumerate(lines, start=1):
            if line.strip():
                try:
                    row = json.loads(line)
                except ValueError:
                    row = None
                if not isinstance(row, dict):
                    if growing and number == len(lines):
                        break
                    raise CorpusError(f"{path}, line {number}, is no JSON object: mend or remove it.")
                rows.append(row)
        return rows

    def questions(self) -> list[Row]:
        """The written questions.

        Raises:
            CorpusError: there are none.
        """
        rows = self.read("questions.jsonl")
        if not rows:
            raise CorpusError(f"{self.folder} has no questions yet: run `kinject questions write`.")
        return rows

    @property
    def licence(self) -> str | None:
        """Of the corpus, as its source states it."""
        stated = self.manifest["corpus"]["licence"]
        return None if stated is None else str(stated)

    def chunk(self, identifier: str) -> Chunk:
        """A chunk by its id."""
        return self.corpus.by_id[identifier]

    def write(self, name: str, rows: Sequence[Row]) -> None:
        """Replaces a file, whole."""
        _write(self.folder / name, rows)

    def record(self, stage: str, did: Mapping[str, Any]) -> None:
        """Puts down what a stage did, in the place of what it did before."""
        now = read_json(self.folder / "set.json")
        now["stages"][stage] = dict(did)
        write_json(self.folder / "set.json", now)


def _write(path: Path, rows: Sequence[Row]) -> None:
    with atomic_write(path) as file:
        file.write(jsonl(rows))
