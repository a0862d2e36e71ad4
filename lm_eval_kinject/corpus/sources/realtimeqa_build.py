"""Makes a window of RealTimeQA's weeks into a corpus and a question set on disk.

What it is for: `kinject corpus realtimeqa` and the tasks ``current_events_live``. What it does not do: download (give
it a clone of github.com/realtimeqa/realtimeqa_public), or pass the texts on: upstream states no licence.

The one idea: a week at a time, so that memory doesn't grow with the texts, and each week's work is a file that a build
which was stopped finds again. Two passes, as what repeats is known only when all was read: articles (without HTML,
each once, no near-duplicates), then chunks (without page furniture). What a pass must remember of earlier weeks is made
from their files again, so that a build in one go and one in twenty give the same bytes.

    OUT/corpus/chunks.parquet, README.md    the corpus: corpus=OUT/corpus
    OUT/data/test.parquet                   the questions
    OUT/set_aside.txt                       rows that can't be used, by file and line
    OUT/build.json                          what it was made from, and counts; written last
"""

from __future__ import annotations

import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lm_eval_kinject.corpus.chunk import Chunker, Chunking
from lm_eval_kinject.corpus.days import Window
from lm_eval_kinject.corpus.duplicates import NearDuplicates
from lm_eval_kinject.corpus.furniture import LineTally, Repeated, take_out
from lm_eval_kinject.corpus.marks import AnswerMarks
from lm_eval_kinject.corpus.sources.realtimeqa import (
    LICENCE,
    SetAside,
    Week,
    describe,
    find_weeks,
    read_articles,
    read_questions,
    with_text,
)
from lm_eval_kinject.errors import CorpusError
from lm_eval_kinject.provenance import atomic_write, fingerprint, fingerprint_file, read_json, write_json
from lm_eval_kinject.records import Document, Question

__all__ = ["LIVE_CHUNKING", "Built", "build_live"]

LIVE_CHUNKING = Chunking(smallest=15)
_FORMAT = 1
_SECONDS = 5.0  # between two lines of progress
_TEXT, _NUMBER = pa.string(), pa.int32()
_DOCUMENTS = pa.schema([(name, _TEXT) for name in ("id", "text", "title", "date", "url", "week")])
_CHUNKS = pa.schema(
    [
        ("id", _TEXT), ("text", _TEXT), ("title", _TEXT), ("document_id", _TEXT), ("position", _NUMBER),
        ("date", _TEXT), ("url", _TEXT), ("week", _TEXT), ("chars", pa.list_(_NUMBER)),
    ]
)  # fmt: skip
_ASKED = pa.schema(
    [
        ("id", _TEXT), ("question", _TEXT), ("choices", pa.list_(_TEXT)), ("answer", _NUMBER),
        ("source_chunk", _TEXT), ("answer_chunks", pa.list_(_TEXT)),
        *((name, _TEXT) for name in ("week", "date", "source", "url", "evidence")),
    ]
)  # fmt: skip

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Built:
    """A finished build: its folder, its counts, and whether it was there before."""

    folder: Path
    counts: dict[str, int]
    already: bool


def build_live(
    source: Path, out: Path, window: Window, *, chunking: Chunking = LIVE_CHUNKING, say: Say = lambda line: None
) -> Built:
    """Builds ``out`` from upstream's files, or says that it is there; goes on with a build that was stopped.

    Args:
        source: a copy of upstream.
        out: folder to write; beside it lies ``.NAME.building`` while the build isn't finished.
        window: weeks whose last day lies in it.
        chunking: how articles are cut.
        say: takes lines of progress.

    Raises:
        CorpusError: no weeks there, a library is missing, ``out`` holds something else, another process builds it, or
            the disk is full.
        ArgumentError: ``chunking`` can't be used.
    """
    from filelock import FileLock, Timeout

    chunker = Chunker(chunking)
    weeks = find_weeks(source, window)
    settings = _settings(weeks, window, chunking)
    work = out.with_name(f".{out.name}.building")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(work.with_name(work.name + ".lock"), timeout=0):
            if (built := _there(out, settings)) is not None:
                return built
            _prepare(work, settings, say)
            return _Build(weeks, work, out, chunker, settings, say).run()
    except Timeout as problem:
        raise CorpusError(f"{out} is being built by another process: wait for it.") from problem
    except OSError as problem:
        raise CorpusError(
            f"{out} can't be built: {problem.strerror or problem}. Make room; the same command goes on."
        ) from problem


def _settings(weeks: Sequence[Week], window: Window, chunking: Chunking) -> dict[str, Any]:
    """All that the result depends on."""
    files = [[f"{file.parent.name}/{file.name}", fingerprint_file(file)] for week in weeks for file in week.files]
    return {"format": _FORMAT, "window": asdict(window), "chunking": chunking.provenance(), "files": files}


def _there(out: Path, settings: dict[str, Any]) -> Built | None:
    """The build that is there, if it is this one."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return None
    manifest = out / "build.json"
    made = read_json(manifest) if manifest.is_file() else {}
    if made.get("settings") == fingerprint(settings):
        return Built(out, made["counts"], already=True)
    if made or not out.is_dir() or any(p.name not in ("corpus", "data", "set_aside.txt") for p in out.iterdir()):
        raise CorpusError(
            f"{out} holds something else, or was made from other files: delete it or name another folder."
        )
    return None  # a build that was stopped while it wrote its last files


def _prepare(work: Path, settings: dict[str, Any], say: Say) -> None:
    """Makes the folder of unfinished work, or finds that of the same build."""
    marker = work / "settings.json"
    if marker.is_file() and read_json(marker) == {"settings": fingerprint(settings)}:
        say("going on with a build that was stopped")
        return
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    write_json(marker, {"settings": fingerprint(settings)})


class _Build:
    """One build; its methods are its steps, in order."""

    def __init__(
        self, weeks: Sequence[Week], work: Path, out: Path, chunker: Chunker, settings: dict[str, Any], say: Say
    ) -> None:
        self._weeks, self._work, self._out = weeks, work, out
        self._chunker, self._settings, self._say = chunker, settings, say
        self._counts: Counter[str] = Counter(weeks=len(weeks))
        self._aside: list[str] = []
        self._questions: list[Question] = []
        self._said = time.monotonic()

    def run(self) -> Built:
        """All steps."""
        repeated = self._read_all()
        self._cut_all(repeated)
        self._ask()
        self._finish()
        return Built(self._out, dict(self._counts), already=False)

    # Articles and questions

    def _read_all(self) -> Repeated:
        near, tally, known = NearDuplicates(), LineTally(), set[str]()
        asked: set[tuple[str, tuple[str, ...]]] = set()
        for number, week in enumerate(self._weeks):
            self._progress("read", number, week)
            documents, lines = self._file(number, "articles.parquet"), self._file(number, "lines.npz")
            done = self._file(number, "read.json")
            if done.is_file():
                near.keep(row["text"] for row in _rows(documents))
            else:
                self._read(number, week, near, known)
            with np.load(lines) as kept:
                tally.extend(kept["lines"], kept["articles"])
            said = read_json(done)
            known.update(said["known"])
            self._counts.update(said["counts"])
            self._aside += said["aside"]
            for question in _questions_of(said["questions"]):
                key = (question.question, question.choices)
                self._counts["questions_repeated"] += key in asked
                if key not in asked:
                    asked.add(key)
                    self._questions.append(question)
        return tally.repeated()

    def _read(self, number: int, week: Week, near: NearDuplicates, known: set[str]) -> None:
        """One week's articles, lines and questions, each to its file; the JSON, last, says that the week is done."""
        aside = SetAside()
        documents = list(read_articles(week, aside, known))
        kept = near.keep(document.text for document in documents)
        aside.counts["near_duplicates"] += kept.count(False)
        chosen = [document for document, keep in zip(documents, kept, strict=True) if keep]
        questions = list(read_questions(week, aside))
        tally = LineTally()
        for document in chosen:
            tally.add(document.id, document.text)
        _write_rows(self._file(number, "articles.parquet"), map(_row_of, chosen), _DOCUMENTS)
        with atomic_write(self._file(number, "lines.npz")) as file:
            np.savez(file, lines=tally.lines, articles=tally.articles)
        aside.counts["rows_with_articles"] = aside.counts.pop("questions", 0)
        said = {
            "known": [document.id for document in documents],
            "counts": dict(aside.counts),
            "aside": aside.rows,
            "questions": [asdict(question) for question in questions],
        }
        write_json(self._file(number, "read.json"), said)

    # Chunks

    def _cut_all(self, repeated: Repeated) -> None:
        for number, week in enumerate(self._weeks):
            self._progress("cut", number, week)
            if not self._file(number, "cut.json").is_file():
                self._cut(number, repeated)
            self._counts.update(read_json(self._file(number, "cut.json")))

    def _cut(self, number: int, repeated: Repeated) -> None:
        """One week's chunks, to a file."""
        counts: Counter[str] = Counter()
        self._chunker.counts.clear()
        chunks = []
        for row in _rows(self._file(number, "articles.parquet")):
            text, taken = take_out(row["id"], row["text"], repeated)
            counts.update({f"furniture_{kind.replace('-', '_')}": lines for kind, lines in taken.items()})
            counts["articles_without_news"] += not text
            if text:
                document = with_text(_document_of(row), text)
                chunks += [_chunk_row(chunk, row) for chunk in self._chunker(document)]
        counts["chunks"] = len(chunks)
        counts.update(
            {"articles_kept": self._chunker.counts["documents"], "chunks_small": self._chunker.counts["small"]}
        )
        _write_rows(self._file(number, "chunks.parquet"), iter(chunks), _CHUNKS)
        write_json(self._file(number, "cut.json"), dict(counts))

    # Questions, and what is left on disk

    def _ask(self) -> None:
        marks = AnswerMarks(self._questions)
        for number, week in enumerate(self._weeks):
            self._progress("look for answers", number, week)
            for row in _rows(self._file(number, "chunks.parquet"), ["id", "text"]):
                marks.look(row["id"], row["text"])
        found = marks.marks()
        self._counts["questions"] = len(self._questions)
        self._counts["questions_marked"] = sum(map(bool, found))
        if not self._questions or not self._counts["chunks"]:
            what = "question" if self._counts["chunks"] else "article"
            raise CorpusError(f"The {len(self._weeks)} weeks hold no usable {what}: widen the window.")
        rows = [_asked(question, chunks) for question, chunks in zip(self._questions, found, strict=True)]
        ids = Counter(row["id"] for row in rows)
        for number, row in enumerate(rows):
            if ids[row["id"]] > 1:
                row["id"] = f"{row['id']}/{number}"
        _write_rows(self._work / "test.parquet", iter(rows), _ASKED)

    def _finish(self) -> None:
        """Writes the result: what is read by others first, the manifest last; then the unfinished work goes."""
        for folder in ("corpus", "data"):
            (self._out / folder).mkdir(parents=True, exist_ok=True)
        with (
            atomic_write(self._out / "corpus" / "chunks.parquet") as file,
            pq.ParquetWriter(file, _CHUNKS, compression="zstd") as writer,
        ):
            for number in range(len(self._weeks)):
                writer.write_table(pq.read_table(self._file(number, "chunks.parquet"), schema=_CHUNKS))
        with atomic_write(self._out / "corpus" / "README.md", "w") as card:
            card.write(f"---\npretty_name: {describe(self._weeks)}\nlicense: {LICENCE}\n---\n")
        with atomic_write(self._out / "data" / "test.parquet") as file:
            file.write((self._work / "test.parquet").read_bytes())
        with atomic_write(self._out / "set_aside.txt", "w") as listing:
            listing.writelines(f"{row}\n" for row in self._aside)
        made = {"settings": fingerprint(self._settings), "counts": dict(self._counts)}
        made |= {name: self._settings[name] for name in ("window", "chunking", "files")}
        write_json(self._out / "build.json", made)
        shutil.rmtree(self._work, ignore_errors=True)

    def _file(self, number: int, kind: str) -> Path:
        return self._work / f"{number:04}.{kind}"

    def _progress(self, what: str, number: int, week: Week) -> None:
        if time.monotonic() - self._said >= _SECONDS:
            self._said = time.monotonic()
            self._say(f"{what}: week {week.name}, {number} of {len(self._weeks)} done")


# Rows of the files ----------------------------------------------------------------------------------------------------


def _write_rows(path: Path, rows: Iterator[dict[str, Any]], schema: pa.Schema) -> None:
    with atomic_write(path) as file:
        pq.write_table(pa.Table.from_pylist(list(rows), schema=schema), file, compression="zstd")


def _rows(path: Path, columns: list[str] | None = None) -> Iterator[dict[str, Any]]:
    for batch in pq.read_table(path, columns=columns).to_batches(max_chunksize=256):
        yield from batch.to_pylist()


def _row_of(document: Document) -> dict[str, Any]:
    fields = {"id": document.id, "text": document.text, "title": document.title, "date": document.date}
    return {**fields, "url": document.meta.get("url"), "week": document.meta["week"]}


def _document_of(row: dict[str, Any]) -> Document:
    return Document(row["id"], row["text"], title=row["title"], date=row["date"])


def _chunk_row(chunk: Any, article: dict[str, Any]) -> dict[str, Any]:
    return {
        "id": chunk.id, "text": chunk.text, "title": chunk.title, "document_id": chunk.document_id,
        "position": chunk.position, "date": chunk.date, "url": article["url"], "week": article["week"],
        "chars": chunk.meta.get("chars"),
    }  # fmt: skip


def _questions_of(rows: Sequence[dict[str, Any]]) -> Iterator[Question]:
    for row in rows:
        yield Question(**{**row, "choices": tuple(row["choices"])})


def _asked(question: Question, chunks: Sequence[str]) -> dict[str, Any]:
    return {
        "id": question.id, "question": question.question, "choices": list(question.choices),
        "answer": question.answer, "source_chunk": chunks[0] if chunks else None, "answer_chunks": list(chunks),
        **question.meta,
    }  # fmt: skip
