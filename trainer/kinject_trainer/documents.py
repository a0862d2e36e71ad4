"""What a run trains on and is validated on: texts, from a corpus and the wordings that lie beside it.

What it is for: `open_corpus` finds a recipe's corpus, its paraphrases and its validation set, and checks them;
`Texts.training()` gives the training documents one after the other, `Texts.validation()` the validation texts. What it
does not do: it cuts no blocks and knows no tokenizer.

The one idea: a training document is one *wording* of one chunk, (chunk, number, text), where number 0 is the original;
documents are read in passes over files and never collected, so a corpus may be larger than memory (``stream: true``).
What is replayed, and what is searched for questions (ft-robust), are the exceptions: their chunks are held.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from kinject_trainer.questions import Question, read_questions
from kinject_trainer.recipe import OLDER_NEWS, OLDER_READING, Ewc, Recipe
from kinject_trainer.rows import ROW_FILES, raw_rows
from lm_eval_kinject.corpus import Corpus, bundled_corpora, load_corpus
from lm_eval_kinject.errors import CorpusError
from lm_eval_kinject.hub.fetch import fetch_snapshot
from lm_eval_kinject.plugin import tasks_dir
from lm_eval_kinject.provenance import fingerprint, fingerprint_file, fingerprint_records

__all__ = ["Asked", "Older", "Texts", "Wording", "check_revision", "open_corpus", "whole_corpus"]

_SHORTEST_REVISION = 8  # hexadecimal digits of a fingerprint that may name a corpus


class Wording(NamedTuple):
    """One document: a chunk's original (number 0) or its paraphrase of that number.

    ``is_source`` is False for an original that the corpus marks as background: it need not have paraphrases.
    """

    chunk: str
    number: int
    text: str
    is_source: bool = True


_Originals = Callable[[], Iterator[Wording]]
"""Gives the chunks anew at each call."""


@dataclass(frozen=True)
class Older:
    """Texts that stand for what was known before: some are replayed in each epoch, or EWC's weights measured on some.

    Attributes:
        provenance: what names them in results: plain, path-free; ``fingerprint`` is of their content.
        wordings: all of them.
    """

    provenance: Mapping[str, Any]
    wordings: Sequence[Wording]


@dataclass(frozen=True)
class Asked:
    """Questions that are trained on, and the corpus that is searched for them, all of it.

    Attributes:
        questions: of the training side.
        corpus: what a retriever searches.
        provenance: what names the questions in results: plain, path-free; ``fingerprint`` is of their content.
    """

    questions: Sequence[Question]
    corpus: Corpus
    provenance: Mapping[str, Any]


@dataclass
class Texts:
    """The texts of one run.

    Attributes:
        provenance: what names them in results: plain, path-free.
        notes: what a user should be told about them.
        older: texts to replay; None: nothing is.
        fisher: texts that EWC measures on which weights they rest; None: it isn't asked for.
        asked: questions that are trained on in the place of the corpus's text; None: that text is.
    """

    provenance: dict[str, Any]
    paraphrases: int
    _originals: _Originals
    _wordings_file: Path | None
    _validation_file: Path | None
    notes: list[str] = field(default_factory=list)
    older: Older | None = None
    fisher: Older | None = None
    asked: Asked | None = None

    def training(self, paraphrases: int | None = None) -> Iterator[Wording]:
        """The originals, then the paraphrases, each in the order of its file.

        Args:
            paraphrases: of each chunk; default: as many as the recipe says.

        Raises:
            CorpusError: empty, or a source chunk lacks one of the paraphrases that were asked for, or a chunk has one
                twice.
        """
        wanted = self.paraphrases if paraphrases is None else paraphrases
        missing: dict[str, int] = {}  # bit n - 1: paraphrase n hasn't come yet
        optional, doubled = set(), set()
        for wording in self._originals():
            if wording.chunk in missing:
                raise CorpusError(f"The corpus has the chunk id {wording.chunk!r} twice: make its ids unique.")
            missing[wording.chunk] = (1 << wanted) - 1
            if not wording.is_source:
                optional.add(wording.chunk)
            yield wording
        if not missing and self.provenance.get("trained_on") == "all":
            raise CorpusError("The corpus is empty: give it texts, or name another one.")
        if not missing:
            raise CorpusError(
                "The corpus is empty: no chunk of it is a source chunk. Set chunks: all to train on all of it."
            )
        if wanted and self._wordings_file:
            for wording in _rows(self._wordings_file):
                if wording.chunk in missing and 1 <= wording.number <= wanted:
                    bit = 1 << (wording.number - 1)
                    if not missing[wording.chunk] & bit:
                        doubled.add(wording.chunk)
                    missing[wording.chunk] &= ~bit
                    yield wording
            wrong = [c for c, due in missing.items() if c in doubled or (due and c not in optional)]
            _complain_of(wrong, wanted, self._wordings_file)

    def validation(self) -> list[str]:
        """Held-out wordings of chunks that are trained on; empty where there are none.

        Raises:
            CorpusError: one of them is also a training text, or one to replay, which would make the loss on it
                worthless.
        """
        if self._validation_file is None:
            return []
        trained, chunks = set(), set()
        for wording in self.training():
            trained.add(_digest(wording.text))
            trained.add(_digest(wording.text.partition("\n")[2]))  # without its title, as validation texts are
            chunks.add(wording.chunk)
        trained |= {_digest(wording.text) for wording in (self.older.wordings if self.older else ())}
        rows = [row for row in _rows(self._validation_file) if row.chunk in chunks]
        leaked = [row.chunk for row in rows if _digest(row.text) in trained]
        if leaked:
            raise CorpusError(
                f"{len(leaked)} validation texts (such as one of chunk {leaked[0]}) are training texts, too: remove "
                f"them from {self._validation_file.name}{' or from what is replayed' if self.older else ''}."
            )
        # By number first: two wordings of one chunk are then far apart, and the second can't be copied from the first.
        return [row.text for row in sorted(rows, key=lambda row: row.number)]

    def beside(self) -> dict[str, Path]:
        """The files that are used beside the corpus, by what they hold: ``paraphrases``, ``validation``."""
        files = {"paraphrases": self._wordings_file, "validation": self._validation_file}
        return {stem: file for stem, file in files.items() if file is not None}


def _complain_of(chunks: list[str], wanted: int, file: Path) -> None:
    if chunks:
        some = ", ".join(chunks[:3])
        raise CorpusError(
            f"{len(chunks)} chunks (such as {some}) don't have each paraphrase from 1 to {wanted} once in "
            f"{file.name}: write them, or lower the number of paraphrases in the recipe."
        )


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8"), digest_size=16).digest()


def open_corpus(recipe: Recipe) -> Texts:
    """Finds what a recipe trains on.

    Raises:
        CorpusError: the corpus, its paraphrases or the validation set that a search needs can't be found, are
            malformed, or are of another revision than the recipe names.
    """
    fisher = _older(recipe.regulariser.corpus) if isinstance(recipe.regulariser, Ewc) else None
    if recipe.questions is not None:
        return _asked(recipe, fisher)
    folder = _folder(recipe)
    if recipe.stream:
        originals, provenance = _streamed(recipe)
        notes: list[str] = []
    else:
        originals, provenance, notes = _loaded(recipe)
    needed = max(recipe.wordings, recipe.equal_updates_to_paraphrases or 0)
    paraphrases = _beside(recipe.paraphrases_file, folder, "paraphrases") if needed else None
    if needed and paraphrases is None:
        raise CorpusError(
            f"The corpus {recipe.corpus} has no paraphrases beside it: write them (`kinject questions`), name them as "
            f"paraphrases_file (Parquet or JSON Lines with chunk, number, text), or take variant: ft-reg."
        )
    validation = _beside(recipe.validation_file, folder, "validation") if recipe.validate_every != "never" else None
    if validation is None and len(recipe.rates) > 1:
        raise CorpusError(
            f"The corpus {recipe.corpus} has no validation set beside it, which a search over learning rates needs: "
            f"name one as validation_file, or give learning_rate one number."
        )
    if validation is None and recipe.validate_every != "never":
        notes.append("no validation set beside the corpus: no validation loss is measured")
    for name, file in (("paraphrases", paraphrases), ("validation", validation)):
        provenance[name] = None if file is None else fingerprint_file(file)
    older = None if recipe.replays is None else _older(recipe.replays.corpus)
    return Texts(provenance, recipe.wordings, originals, paraphrases, validation, notes, older, fisher)


# The chunks -----------------------------------------------------------------------------------------------------------


def _loaded(recipe: Recipe) -> tuple[_Originals, dict[str, Any], list[str]]:
    """All chunks in memory, through the corpus room, which knows every source."""
    corpus = whole_corpus(recipe)
    chosen, notes = _choose(corpus, recipe)

    def originals() -> Iterator[Wording]:
        for chunk in chosen:
            text = f"{chunk.title}\n{chunk.text}" if chunk.title else chunk.text
            yield Wording(chunk.id, 0, text, chunk.meta.get("role", "source") == "source")

    made = {**corpus.provenance(), "trained_on": recipe.chunks, "chunks_trained_on": len(chosen)}
    return originals, made, notes


def whole_corpus(recipe: Recipe) -> Corpus:
    """The corpus as it is named, of the revision that is named.

    Raises:
        CorpusError: it can't be found or read, or is of another revision.
    """
    spec = recipe.corpus
    at_hub = recipe.corpus_revision and "/" in spec and "@" not in spec and not Path(spec).expanduser().exists()
    corpus = load_corpus(f"{spec}@{recipe.corpus_revision}" if at_hub else spec)
    if not at_hub:
        check_revision(spec, recipe.corpus_revision, corpus.revision, corpus.fingerprint)
    return corpus


def _asked(recipe: Recipe, fisher: Older | None) -> Texts:
    """Questions and the whole corpus; no text of it is trained on, or validated on."""
    assert recipe.questions is not None  # asked by the caller
    questions = read_questions(recipe.questions.source)
    corpus = whole_corpus(recipe)
    there = {chunk.id for chunk in corpus.chunks}
    strange = [question for question in questions if question.gold and question.gold not in there]
    if strange:
        raise CorpusError(
            f"{len(strange)} of {len(questions)} questions (such as {strange[0].id}) are of a chunk that the corpus "
            f"{corpus.name} hasn't got ({strange[0].gold}): name the corpus they were asked about, or leave "
            f"source_chunk out of them."
        )
    named = {"questions": len(questions), "fingerprint": fingerprint_records(list(q) for q in questions)}
    provenance = {**corpus.provenance(), "trained_on": "questions", "paraphrases": None, "validation": None}
    asked = Asked(questions, corpus, {"name": recipe.public()["questions"]["source"], **named})
    return Texts(provenance, 0, lambda: iter(()), None, None, fisher=fisher, asked=asked)


def _choose(corpus: Corpus, recipe: Recipe) -> tuple[Sequence[Any], list[str]]:
    if recipe.chunks == "all":
        return corpus.chunks, []
    roles = {str(chunk.meta["role"]) for chunk in corpus.chunks if "role" in chunk.meta}
    if not roles:
        return corpus.chunks, ["the corpus marks no chunk as source: all are trained on"]
    return tuple(chunk for chunk in corpus.chunks if chunk.meta.get("role") == "source"), []


def check_revision(name: str, wanted: str | None, revision: str | None, found: str) -> None:
    """Makes sure that a corpus is of the revision that a recipe names, if it names one.

    Raises:
        CorpusError: it is of another one.
    """
    if wanted is None or wanted == revision or (len(wanted) >= _SHORTEST_REVISION and found.startswith(wanted)):
        return
    raise CorpusError(
        f"The corpus {name} is not of revision {wanted!r}: it is {revision or 'without a revision'}, with the "
        f"fingerprint {found[:16]}…. Set corpus_revision to one of the two, or fetch the right corpus."
    )


def _streamed(recipe: Recipe) -> tuple[_Originals, dict[str, Any]]:
    """Chunks row by row from files; nothing is held but the row at hand."""
    path = Path(recipe.corpus).expanduser()
    if not path.exists():
        raise CorpusError(f"There is no file or folder {recipe.corpus}: stream: true needs one on this disk.")
    files = [path] if path.is_file() else sorted(f for f in path.rglob("*") if f.suffix in ROW_FILES)
    files = [f for f in files if f.stem not in ("paraphrases", "validation")]
    if not files or any(f.suffix not in ROW_FILES for f in files):
        raise CorpusError(f"{recipe.corpus} can't be streamed: it must be, or hold, {' or '.join(ROW_FILES)} files.")
    found = fingerprint([[f.name, fingerprint_file(f)] for f in files])
    check_revision(recipe.corpus, recipe.corpus_revision, None, found)

    def originals() -> Iterator[Wording]:
        for file in files:
            for number, row in enumerate(raw_rows(file), start=1):
                is_source = row.get("role", "source") == "source"
                if recipe.chunks == "source" and not is_source:
                    continue
                text, title = _text(row, file, number), row.get("title")
                name = str(row.get("id", f"{file.stem}:{number}"))
                yield Wording(name, 0, f"{title}\n{text}" if title else text, is_source)

    source = f"{len(files)} streamed files"
    return originals, {"name": path.stem, "fingerprint": found, "source": source, "trained_on": recipe.chunks}


# What was known before ------------------------------------------------------------------------------------------------


def _older(spec: str) -> Older:
    """All chunks of a corpus."""
    if spec in (OLDER_NEWS, OLDER_READING):
        return _older_news(spec)
    corpus = load_corpus(spec)
    wordings = [
        Wording(chunk.id, 0, f"{chunk.title}\n{chunk.text}" if chunk.title else chunk.text) for chunk in corpus.chunks
    ]
    return Older(corpus.provenance(), wordings)


def _older_news(name: str) -> Older:
    from kinject_trainer.reader.mixture import READING_SEED, RECALL_SEED, older_news, older_reading

    texts, seed = (older_news(), RECALL_SEED) if name == OLDER_NEWS else (older_reading(), READING_SEED)
    wordings = [Wording(event, number, text) for event, number, text in texts]
    provenance = {
        "name": name,
        "fingerprint": fingerprint_records(list(wording[:3]) for wording in wordings),
        "chunks": len(wordings),
        "source": "older news that the embedded reader was trained on"
        + (", with questions behind it" if name == OLDER_READING else ""),
        "revision": f"seed {seed}",
        "licence": "cc0-1.0",
    }
    return Older(provenance, wordings)


# Files beside the corpus ----------------------------------------------------------------------------------------------


def _folder(recipe: Recipe) -> Path | None:
    """The folder in which a corpus's paraphrases and validation set would lie."""
    spec = recipe.corpus
    if spec in bundled_corpora():
        return tasks_dir() / spec / "corpus"
    path = Path(spec).expanduser()
    if path.exists():
        return path if path.is_dir() else path.parent
    if spec.count("/") == 1:
        repo_id, _, revision = spec.partition("@")
        wanted = revision or recipe.corpus_revision
        return fetch_snapshot(repo_id, kind="dataset", revision=wanted, error=CorpusError).path
    return None


def _beside(named: str | None, folder: Path | None, stem: str) -> Path | None:
    if named is not None:
        file = Path(named).expanduser()
        if not file.is_file():
            raise CorpusError(f"There is no file {named}, which the recipe names as {stem}_file.")
        if file.suffix not in ROW_FILES:
            raise CorpusError(f"{stem}_file {file.name} must end in {' or '.join(ROW_FILES)}.")
        return file
    candidates = [] if folder is None else [folder / f"{stem}{suffix}" for suffix in ROW_FILES]
    return next((file for file in candidates if file.is_file()), None)


def _rows(file: Path) -> Iterator[Wording]:
    for number, row in enumerate(raw_rows(file), start=1):
        chunk, place = row.get("chunk"), row.get("number")
        if not isinstance(chunk, str) or not isinstance(place, int):
            raise CorpusError(f"{file.name}, row {number}: needs a string `chunk` and a whole `number`.")
        yield Wording(chunk, place, _text(row, file, number))


def _text(row: Mapping[str, Any], file: Path, number: int) -> str:
    text = row.get("text")
    if not isinstance(text, str) or not text.strip():
        raise CorpusError(f"{file.name}, row {number}: has no `text`. Give it one or remove it.")
    return text
