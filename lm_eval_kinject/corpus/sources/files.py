"""Reads files and folders that a user hands over: rows (JSON Lines, JSON, CSV/TSV, Parquet), text, documents.

What it is for: rows or whole files become Documents (still to be cut) or Chunks (already cut: a row that names its
``document_id``, and every row of a prepared ``chunks.parquet``), one after the other, so that a file's length doesn't
decide the memory. What it does not do: it cleans and cuts nothing; a text stays as its bytes say (UTF-8, or what a byte
order mark says). HTML, DOCX, PDF and EPUB are read in ``documents.py``.

The one idea: rows are data that somebody prepared, so that they are all right or none is taken: a file is read to its
end, and one message lists all that is wrong with it (the first ten), each with its line. A folder of documents is what
people happen to have: what can't be read of it is listed with its reason, and the rest is the corpus.
"""

from __future__ import annotations

import codecs
import csv
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date, datetime
from pathlib import Path
from typing import Any, TextIO, TypeAlias

from lm_eval_kinject.corpus.sources.documents import DOCUMENT_READERS, read_document
from lm_eval_kinject.corpus.sources.left_out import LeftOut, Reading, UnreadableFile, lines
from lm_eval_kinject.errors import CorpusError
from lm_eval_kinject.log import log
from lm_eval_kinject.provenance import read_json
from lm_eval_kinject.records import Chunk, Document

__all__ = ["CORPUS_KIND", "SUFFIXES", "Files", "Source", "decode", "read_card", "read_manifest", "read_path"]

CORPUS_KIND = "lm-eval-kinject corpus"
"""What a built corpus's manifest says it is."""

_SHOWN = 10
_BLOCK = 1 << 20  # characters read at a time
_ROWS_AT_ONCE = 1024
_OWN_FIELDS = {"id", "_id", "text", "title", "date", "document_id", "position"}
_NOT_DATA = re.compile(
    r"(readme|licen[cs]e|notice|citation|changelog|dataset_infos?|state|manifest)(\.|$)", re.IGNORECASE
)


@dataclass(frozen=True, slots=True)
class Source:
    """Documents and ready chunks in reading order, and what is known of where they come from.

    Attributes:
        items: may be read as they are asked for, and again with each ``iter``; reading raises what is wrong.
        description: one phrase, path-free.
        licence: as the source states it.
        revision: of the source, where it has one.
        counts: what was read, skipped and dropped, for the record.
        reading: of a folder of files: what was read and left out, known when ``items`` has come to its end.
        fingerprint: of the texts, where it is known without reading them all.
        built: of a corpus that `kinject corpus build` wrote: what its manifest says.
    """

    items: Iterable[Document | Chunk]
    description: str
    licence: str | None = None
    revision: str | None = None
    counts: Mapping[str, int] | None = None
    reading: Reading | None = None
    fingerprint: str | None = None
    built: Mapping[str, Any] | None = None


class _Problems:
    """Collects what is wrong with the rows of one file; raises it as one message, or adds it to a folder's list."""

    def __init__(self, name: str, reading: Reading | None = None) -> None:
        self.name = name
        self.reading = reading
        self.count = 0
        self.found: list[str] = []  # the first few

    def add(self, where: str, what: str) -> None:
        self.count += 1
        if self.count <= _SHOWN:
            self.found.append(f"{where}: {what}")

    def finish(self) -> None:
        """Raises unless the rest of the folder is to be read all the same."""
        if self.reading is not None:
            for what in self.found:
                self.reading.leave_out(self.name, "rows", f"The corpus file {self.name}, {what}: this row is left out.")
            if more := self.count - len(self.found):
                text = f"The corpus file {self.name}: {more:,} more rows like these are left out."
                self.reading.leave_out(self.name, "rows", text, more)
        elif self.found:
            raise self._error()

    def _error(self) -> CorpusError:
        count = self.count
        shown = [*self.found]
        if count > _SHOWN:
            shown.append(f"… and {count - _SHOWN} more")
        head = f"The corpus file {self.name} has {count} problem{'s' if count > 1 else ''}; mend or remove these rows:"
        return CorpusError("\n".join([head, *(f"  - {p}" for p in shown)]))


def read_path(path: Path) -> Source:
    """Reads a file or a folder, as its items are asked for.

    A folder with Parquet files, and no documents beside them or a dataset card, is a Hugging Face dataset folder:
    ``chunks*.parquet`` where there are such, else all Parquet files, are its rows, and its README is its card. Any
    other folder gives all its readable files, in the order of their relative paths. Files named ``paraphrases`` or
    ``validation`` whose rows name a ``chunk`` and a ``number`` are other wordings of the corpus, for `kinject train`,
    and no part of it.

    One file, and a folder of rows, must be right in all: what isn't is an error. Of a folder that holds documents
    (text, Markdown, HTML, DOCX, PDF, EPUB) what can't be read is left out: listed in the log and ``Source.reading``.

    Raises:
        CorpusError: nothing readable is there. Reading the items raises it for what is unreadable, malformed, empty, or
            of a kind that isn't known; the message lists every problem of the first file that has any.
    """
    if path.is_dir():
        return _read_folder(path)
    # Of one document, too, pages can be left out; of rows none.
    reading = Reading(path.name) if path.suffix.lower() in DOCUMENT_READERS else None
    return Source(Files([path], path.parent, reading), f"file {path.name}", reading=reading)


def _read_folder(folder: Path) -> Source:
    files = sorted(
        (f for f in folder.rglob("*") if f.is_file() and not _hidden(f.relative_to(folder))),
        key=lambda f: f.relative_to(folder).as_posix(),
    )
    card = read_card(folder)
    chosen, left_out = _choose(files, is_data_set=bool(card))
    if not chosen:
        raise CorpusError(_nothing_readable(folder, files, ()))
    lenient = any(f.suffix.lower() not in _ROWS for f in chosen)
    reading = Reading(folder.name) if lenient or left_out else None
    licence = card.get("license")
    revision = card.get("revision")
    return Source(
        Files(chosen, folder, reading, lenient=lenient, unknown=left_out, seen=files),
        str(card.get("pretty_name") or f"folder {folder.name}, {len(chosen)} files"),
        licence=None if licence is None else str(licence),
        revision=None if revision is None else str(revision),
        reading=reading,
        built=read_manifest(folder),
    )


def _nothing_readable(folder: Path, files: Sequence[Path], left_out: Sequence[LeftOut]) -> str:
    seen = f" (it holds {', '.join(f.name for f in files[:5])})" if files else " (it is empty)"
    head = f"The corpus folder {folder} has no readable file{seen}. Put files ending in {', '.join(SUFFIXES)} there."
    return "\n".join([head, *lines(left_out)])


def _hidden(relative: Path) -> bool:
    return any(part.startswith(".") or part == "__pycache__" for part in relative.parts)


def _choose(files: list[Path], *, is_data_set: bool) -> tuple[list[Path], list[Path]]:
    """The files that make up a folder's corpus, and those that were left out though they may have been meant."""
    # Other wordings of its chunks, for a training: to find them would be to find what the chunks were put aside for.
    files = [f for f in files if not _rewords_chunks(f)]
    readable = [f for f in files if f.suffix.lower() in SUFFIXES]
    data = [f for f in readable if not _NOT_DATA.match(f.name)]
    parquet = [f for f in files if f.suffix.lower() == ".parquet"]
    if parquet and (is_data_set or all(f.suffix.lower() in _ROWS for f in data)):
        return [f for f in parquet if _is_prepared(f)] or parquet, []
    rest = [f for f in files if f.suffix.lower() not in SUFFIXES and not _NOT_DATA.match(f.name)]
    # A README with no other data beside it is itself what the folder says, unless it is a dataset card.
    chosen = data or [f for f in readable if not _front_matter(f)]
    return chosen, rest


class Files:
    """The texts of a list of files, read when they are asked for, from the first or from where a build stopped.

    Args:
        files: in reading order.
        folder: names in messages and ids are relative to it.
        reading: takes down what was read.
        lenient: what can't be read is taken down, too, and not raised.
        unknown: files of unknown kinds, to be taken down.
        seen: all files of the folder, for the message where none can be read.
    """

    def __init__(
        self,
        files: Sequence[Path],
        folder: Path,
        reading: Reading | None = None,
        *,
        lenient: bool = False,
        unknown: Sequence[Path] = (),
        seen: Sequence[Path] = (),
    ) -> None:
        self._files, self._folder, self._reading, self._lenient = files, folder, reading, lenient
        self._unknown, self._seen = unknown, seen
        self._file = self._within = 0
        self._mark = (0, 0)

    def __iter__(self) -> Iterator[Document | Chunk]:
        if self._reading is not None:
            self._reading.restore({"files": 0, "left_out": [], "pages_by_ocr": 0})
            for file in self._unknown:
                name = file.relative_to(self._folder).as_posix()
                self._reading.leave_out(name, "unknown_kind", str(_unknown_kind(file, name)))
        return self._texts(0, 0)

    def has(self, path: Path) -> bool:
        """Whether a path is in the folder that is read."""
        return bool(self._seen) and path.resolve().is_relative_to(self._folder.resolve())

    def fingerprint(self) -> list[Any]:
        """Names, sizes and times of the files: what must be the same for a stopped build to go on."""
        stats = [(file.relative_to(self._folder).as_posix(), file.stat()) for file in self._files]
        return [[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats]

    def position(self) -> dict[str, Any]:
        """Where reading stands: after the text that was given last."""
        reading = None if self._reading is None else self._reading.state(self._mark)
        return {"file": self._file, "within": self._within, "reading": reading}

    def resume(self, position: Mapping[str, Any]) -> Iterator[Document | Chunk]:
        """The texts after a position."""
        if self._reading is not None and position["reading"] is not None:
            self._reading.restore(position["reading"])
        return self._texts(int(position["file"]), int(position["within"]))

    def _texts(self, file: int, within: int) -> Iterator[Document | Chunk]:
        for number in range(file, len(self._files)):
            self._file, self._within = number, 0
            if self._reading is not None:
                self._mark = self._reading.mark()
            skipped = within if number == file else 0
            for item in self._one(self._files[number]):
                self._within += 1
                if self._within > skipped:
                    yield item
        if self._reading is not None:
            if not self._reading.files:
                raise CorpusError(_nothing_readable(self._folder, self._seen, self._reading.left_out))
            self._reading.warn()

    def _one(self, path: Path) -> Iterator[Document | Chunk]:
        """The texts of one file; what is wrong with it is raised or taken down."""
        relative = path.relative_to(self._folder)
        name, stem = relative.as_posix(), relative.with_suffix("").as_posix()
        reading, given = self._reading or Reading(name), 0
        try:
            for item in _read_file(path, name, stem, reading, lenient=self._lenient):
                given += 1
                yield item
        except UnreadableFile as problem:
            if not self._lenient:
                raise
            kept = f" The {given} texts before that are read." if given else ""
            reading.leave_out(name, problem.why, f"{problem}{kept}")
        reading.files += given > 0


def _unknown_kind(path: Path, name: str) -> UnreadableFile:
    return UnreadableFile(
        "unknown_kind",
        f"The corpus file {name} can't be read: files ending in {path.suffix or 'nothing'!r} aren't known. Use one of "
        f"{', '.join(SUFFIXES)}.",
    )


def _rewords_chunks(file: Path) -> bool:
    """Whether the file is the ``paraphrases`` or ``validation`` of chunks that stand in another file."""
    if file.stem.lower() not in ("paraphrases", "validation"):
        return False
    try:
        if file.suffix.lower() == ".parquet":
            import pyarrow.parquet as pq

            columns = set(pq.read_schema(file).names)
        elif file.suffix.lower() == ".jsonl":
            with file.open("rb") as opened:
                codec, _ = _encoding(opened.read(4))
            with file.open(encoding=codec) as lines_:
                columns = set(json.loads(lines_.readline()))
        else:
            return False
    except (OSError, ValueError, TypeError):  # ArrowInvalid is a ValueError; whoever reads it will say what is wrong
        return False
    return {"chunk", "number", "text"} <= columns


def _is_prepared(file: Path) -> bool:
    return file.suffix.lower() == ".parquet" and re.match(r"chunks\b", file.name) is not None


def _read_file(path: Path, name: str, stem: str, reading: Reading, *, lenient: bool) -> Iterator[Document | Chunk]:
    """All texts of one file; ``name`` stands in messages, ``stem`` in the ids of rows that have none."""
    suffix = path.suffix.lower()
    try:
        if suffix in DOCUMENT_READERS:
            yield from read_document(path, name, reading)
        elif suffix in _TEXTS:
            yield _read_text(path, name)
        elif suffix in _ROWS:
            yield from _ROWS[suffix](path, stem, _Problems(name, reading if lenient else None))
        else:
            raise _unknown_kind(path, name)
    except OSError as problem:
        raise UnreadableFile(
            "unreadable", f"The corpus file {name} can't be read: {problem.strerror or problem}."
        ) from problem


_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig", "UTF-8"),
    (codecs.BOM_UTF32_LE, "utf-32", "UTF-32"),  # before UTF-16, whose mark is the first half of this one
    (codecs.BOM_UTF32_BE, "utf-32", "UTF-32"),
    (codecs.BOM_UTF16_LE, "utf-16", "UTF-16"),
    (codecs.BOM_UTF16_BE, "utf-16", "UTF-16"),
)
"""Byte order marks, with the codec that reads what follows (and drops the mark) and its name for people."""


def _encoding(start: bytes) -> tuple[str, str]:
    """Codec, and name for people, of a file that starts with these bytes (four are enough): UTF-8 without a mark."""
    return next(((codec, called) for mark, codec, called in _MARKS if start.startswith(mark)), ("utf-8", "UTF-8"))


def decode(data: bytes, name: str) -> str:
    """Text of a file's bytes: UTF-8, or UTF-16 or UTF-32 with a byte order mark (which is dropped).

    Raises:
        UnreadableFile: naming the file, the line and the offset of the first byte that isn't of its encoding, or the
            encoding that the file seems to have where its mark is missing.
    """
    codec, called = _encoding(data[:4])
    if codec == "utf-8":
        _refuse_wide(data, name)
    try:
        return data.decode(codec)
    except UnicodeDecodeError as problem:
        # The codec of UTF-8 with a mark counts from behind it, the others from the file's first byte.
        offset = problem.start + (len(codecs.BOM_UTF8) if codec == "utf-8-sig" else 0)
        line = data[:offset].decode(codec, errors="replace").count("\n") + 1
        raise UnreadableFile(
            "encoding",
            f"The corpus file {name} is not {called}: byte 0x{data[offset]:02x} at offset {offset} (line {line}). "
            f"{_remedy(data, codec, called)}",
        ) from problem


def _refuse_wide(data: bytes, name: str) -> None:
    """Refuses what is mostly sound UTF-8, of letters with NUL between them: it would be read as rubbish."""
    wide = _wide_without_mark(data)
    if wide:
        raise UnreadableFile(
            "encoding",
            f"The corpus file {name} looks like {wide} without a byte order mark. Convert it, for example with "
            f"`iconv -f {wide} -t UTF-8`.",
        )


def _remedy(data: bytes, codec: str, called: str) -> str:
    """What to do about bytes that aren't of the encoding that was taken for theirs."""
    if codec != "utf-8":
        return f"Its byte order mark says {called}: it is cut off or damaged, so write it anew."
    # Bytes that are control characters in ISO-8859-1 are quotation marks, dashes and the euro in Windows' version.
    western = "WINDOWS-1252" if any(0x80 <= byte < 0xA0 for byte in data) else "ISO-8859-1"
    return f"Convert it from its own encoding; Western European text, for example, with `iconv -f {western} -t UTF-8`."


def _wide_without_mark(data: bytes) -> str | None:
    """``UTF-16LE`` and the like if every other byte, or three of four, are NUL, as Latin letters give; else None."""
    head = data[:4096]
    if head.count(0) * 4 < len(head) or len(head) < 2:
        return None
    nul_first = head[0::2].count(0) > head[1::2].count(0)
    if head.count(0) * 8 > len(head) * 5:
        return "UTF-32BE" if head[0::4].count(0) > head[3::4].count(0) else "UTF-32LE"
    return "UTF-16BE" if nul_first else "UTF-16LE"


def _read_text(path: Path, name: str) -> Document:
    text = decode(path.read_bytes(), name)
    if not text or text.isspace():
        raise UnreadableFile("empty", f"The corpus file {name} is empty: give it text or remove it.")
    heading = re.match(r"\s*#\s+(.+)", text) if path.suffix.lower() in {".md", ".markdown"} else None
    return Document(id=name, text=text, title=heading.group(1).strip() if heading else "")


Row: TypeAlias = tuple[int, str, Any]
"""Number in the file, the id to use where the row has none, and the row."""


def _read_jsonl(path: Path, stem: str, problems: _Problems) -> Iterator[Document | Chunk]:
    def rows() -> Iterator[Row]:
        # Not splitlines(): U+2028 and its like are legal inside a JSON string.
        for number, line in enumerate(_text_lines(path, problems.name), start=1):
            if not line.strip():
                continue
            try:
                yield number, f"{stem}:{number}", json.loads(line)
            except (json.JSONDecodeError, RecursionError) as problem:
                detail = (
                    f"{problem.msg} at column {problem.colno}"
                    if isinstance(problem, json.JSONDecodeError)
                    else "too deep"
                )
                problems.add(f"line {number}", f"not valid JSON ({detail})")

    return _records("line", rows(), problems, prepared=False)


@contextmanager
def _opened(path: Path, name: str) -> Iterator[TextIO]:
    """A text file to be read bit by bit; what isn't of its encoding raises what `decode` says of the whole file."""
    with path.open("rb") as start:
        head = start.read(4096)
    codec, _ = _encoding(head[:4])
    if codec == "utf-8":
        _refuse_wide(head, name)
    try:
        with path.open(encoding=codec, newline="") as opened:
            yield opened
    except UnicodeDecodeError:
        decode(path.read_bytes(), name)
        raise  # it has been mended meanwhile


def _text_lines(path: Path, name: str) -> Iterator[str]:
    """Lines that end with a line feed and nothing else."""
    with _opened(path, name) as opened:
        rest = ""
        while block := opened.read(_BLOCK):
            first, *more = (rest + block).split("\n")
            yield from (first, *more)[:-1]
            rest = more[-1] if more else first
        yield rest


def _read_json(path: Path, stem: str, problems: _Problems) -> Iterator[Document | Chunk]:
    name = problems.name
    text = decode(path.read_bytes(), name)
    try:
        data = json.loads(text) if text.strip() else []
    except (json.JSONDecodeError, RecursionError) as problem:
        where = (
            f"line {problem.lineno}: {problem.msg}" if isinstance(problem, json.JSONDecodeError) else "nested too deep"
        )
        hint = " (one object a line is JSON Lines: name the file .jsonl)" if "Extra data" in str(problem) else ""
        raise UnreadableFile("broken", f"The corpus file {name} is not valid JSON, {where}{hint}.") from problem
    if isinstance(data, dict) and "text" not in data:
        lists = [value for value in data.values() if isinstance(value, list)]
        data = lists[0] if len(lists) == 1 else data
    if isinstance(data, dict):
        data = [data]
    if not isinstance(data, list):
        raise UnreadableFile("broken", f"The corpus file {name} must hold a list of objects with a `text` field.")
    rows = ((n, f"{stem}:{n}", row) for n, row in enumerate(data, start=1))
    return _records("item", rows, problems, prepared=False)


def _read_csv(path: Path, stem: str, problems: _Problems) -> Iterator[Document | Chunk]:
    return _records("line", _csv_rows(path, stem, problems.name), problems, prepared=False)


def _csv_rows(path: Path, stem: str, name: str) -> Iterator[Row]:
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    limit = csv.field_size_limit(max(path.stat().st_size, 131_072))
    try:
        with _opened(path, name) as opened:
            reader = csv.DictReader(opened, delimiter=delimiter, strict=True)
            if reader.fieldnames is not None and "text" not in reader.fieldnames:
                raise UnreadableFile(
                    "broken",
                    f"The corpus file {name} has no column `text` (its columns: {', '.join(reader.fieldnames)}): name "
                    f"the columns in the first line, separated by {'tabs' if delimiter == chr(9) else 'commas'}.",
                )
            for row in reader:
                yield reader.line_num, f"{stem}:{reader.line_num}", _csv_row(row)
    except csv.Error as problem:
        raise UnreadableFile(
            "broken", f"The corpus file {name} is malformed at line {reader.line_num}: {problem}."
        ) from problem
    finally:
        csv.field_size_limit(limit)


def _csv_row(row: dict[str | Any, Any]) -> dict[str, Any]:
    """A CSV row without its empty cells (CSV has no null) and without cells beyond the header."""
    return {k: v for k, v in row.items() if k is not None and v is not None and (v != "" or k == "text")}


def _read_parquet(path: Path, stem: str, problems: _Problems) -> Iterator[Document | Chunk]:
    prepared = _is_prepared(path)
    return _records("row", _parquet_rows(path, stem, problems.name, prepared), problems, prepared=prepared)


def _parquet_rows(path: Path, stem: str, name: str, prepared: bool) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
            if "text" not in names:
                raise UnreadableFile(
                    "broken",
                    f"The corpus file {name} has no column `text` (its columns: {', '.join(names)}): rename one.",
                )
            number = 0
            for batch in file.iter_batches(batch_size=_ROWS_AT_ONCE):
                for row in batch.to_pylist():
                    number += 1
                    yield number, f"{stem}:{number}", _with_meta(row) if prepared else row
    except (pa.ArrowException, OSError) as problem:
        first = str(problem).splitlines()[0]
        raise UnreadableFile(
            "broken", f"The corpus file {name} is not a readable Parquet file ({first}): write it anew."
        ) from problem


def _with_meta(row: dict[str, Any]) -> dict[str, Any]:
    """A ready chunk's row as `corpus.build` writes it, ``meta`` as JSON: a column has one type, meta have many."""
    meta = row.get("meta")
    if not isinstance(meta, str) or not meta.startswith("{"):
        return row
    return {**json.loads(meta), **{key: value for key, value in row.items() if key != "meta"}}


def _records(unit: str, rows: Iterable[Row], problems: _Problems, *, prepared: bool) -> Iterator[Document | Chunk]:
    """Checks rows and gives the sound ones; what is wrong with others is raised or taken down behind the last."""
    seen: dict[str, int] = {}
    for number, fallback, row in rows:
        where = f"{unit} {number}"
        record = _record(row, where, fallback, problems, prepared)
        if record is None:
            continue
        if record.id in seen:
            problems.add(where, f"duplicate id {record.id!r} (first at {unit} {seen[record.id]})")
            continue
        seen[record.id] = number
        yield record
    problems.finish()
    if not seen and not problems.found:
        raise UnreadableFile("empty", f"The corpus file {problems.name} is empty: it has no row with a text.")


def _record(row: Any, where: str, fallback: str, problems: _Problems, prepared: bool) -> Document | Chunk | None:
    if not isinstance(row, dict):
        problems.add(where, f"is {_kind(row)}, not an object with a `text` field")
        return None
    own_id = row.get("id", row.get("_id"))
    if own_id is not None and (isinstance(own_id, bool) or not isinstance(own_id, str | int) or own_id == ""):
        problems.add(where, f"its id is {_kind(own_id)}, not a string")
        return None
    identifier = fallback if own_id is None else str(own_id)
    complaint = _text_problem(row, identifier)
    if complaint:
        problems.add(where, complaint)
        return None
    common: dict[str, Any] = {
        "id": identifier,
        "text": row["text"],
        "title": "" if row.get("title") is None else str(row["title"]),
        "date": _date(row.get("date")),
        "meta": {k: _plain(v) for k, v in row.items() if k not in _OWN_FIELDS and v is not None},
    }
    if not prepared and row.get("document_id") is None:
        return Document(**common)
    position = row.get("position")
    if position is not None and not str(position).isdigit():
        problems.add(where, f"its position is {position!r}, not a count from 0")
        return None
    document_id = str(row.get("document_id") or identifier)
    return Chunk(
        # Of a million chunks that are whole documents, each text that is the same in two places counts.
        document_id=identifier if document_id == identifier else document_id,
        position=0 if position is None else int(position),
        **common,
    )


def _text_problem(row: dict[str, Any], identifier: str) -> str | None:
    if "text" not in row:
        return f"no `text` field (it has: {', '.join(map(str, row)) or 'nothing'})"
    text = row["text"]
    if not isinstance(text, str):
        return f"its `text` is {_kind(text)}, not a string (id {identifier!r})"
    if not text.strip():
        return f"empty text (id {identifier!r})"
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return f"its text has half of a surrogate pair, which is no character (id {identifier!r})"
    return None


def _kind(value: Any) -> str:
    names: dict[type, str] = {
        type(None): "null",
        bool: "a boolean",
        int: "a number",
        float: "a number",
        str: "an empty string" if value == "" else "a string",
        list: "a list",
        dict: "an object",
    }
    return names.get(type(value), f"a {type(value).__name__}")


def _date(value: Any) -> str | None:
    if value is None:
        return None
    return value.isoformat() if isinstance(value, date | datetime) else str(value)


def _plain(value: Any) -> Any:
    """A metadata value as JSON can hold it."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if value == value and abs(value) != float("inf") else str(value)
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return _date(value)


def read_card(folder: Path) -> dict[str, Any]:
    """The YAML front matter of a folder's README.md; empty where there is none."""
    readme = folder / "README.md"
    return _front_matter(readme) if readme.is_file() else {}


def _front_matter(file: Path) -> dict[str, Any]:
    import yaml

    if file.suffix.lower() not in {".md", ".markdown"}:
        return {}
    data = file.read_bytes()
    text = data.decode(_encoding(data[:4])[0], errors="replace")
    match = re.match(r"---\r?\n(.*?)\r?\n---\s*(\n|$)", text, re.DOTALL)
    if match is None:
        return {}
    try:
        data = yaml.safe_load(match.group(1))
    except yaml.YAMLError as problem:
        log.warning("the card %s has malformed front matter, which is not used: %s", file.name, problem)
        return {}
    return data if isinstance(data, dict) else {}


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest of a corpus that `corpus.build` wrote; None where there is none."""
    try:
        manifest = read_json(folder / "manifest.json")
    except (OSError, ValueError):
        return None
    return manifest if isinstance(manifest, dict) and manifest.get("kind") == CORPUS_KIND else None


_ROWS: dict[str, Callable[[Path, str, _Problems], Iterator[Document | Chunk]]] = {
    ".jsonl": _read_jsonl,
    ".ndjson": _read_jsonl,
    ".json": _read_json,
    ".parquet": _read_parquet,
    ".csv": _read_csv,
    ".tsv": _read_csv,
}
_TEXTS = (".txt", ".md", ".markdown")
SUFFIXES = (*_ROWS, *_TEXTS, *DOCUMENT_READERS)
"""File name endings that can be read."""
