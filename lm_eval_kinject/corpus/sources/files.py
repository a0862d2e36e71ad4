"""Reads files and folders that a user hands over: JSON Lines, JSON, CSV/TSV, Parquet, text and Markdown.

What it is for: rows or whole files become Documents (still to be cut) or Chunks (already cut: a row that names its
``document_id``, and every row of a prepared ``chunks.parquet``). What it does not do: it cleans and cuts nothing; a
text stays as its bytes say (UTF-8, or what a byte order mark says).

The one idea: a file is read to its end before anyone complains, so that one message lists all that is wrong with it
(the first ten), each with its line.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import date, datetime
from pathlib import Path
from typing import Any

from lm_eval_kinject.errors import CorpusError
from lm_eval_kinject.log import log
from lm_eval_kinject.records import Chunk, Document

__all__ = ["SUFFIXES", "Source", "decode", "read_card", "read_path"]

_SHOWN = 10
_OWN_FIELDS = {"id", "_id", "text", "title", "date", "document_id", "position"}
_NOT_DATA = re.compile(
    r"(readme|licen[cs]e|notice|citation|changelog|dataset_infos?|state|manifest)(\.|$)", re.IGNORECASE
)


@dataclass(frozen=True, slots=True)
class Source:
    """What was read: documents and ready chunks in reading order, and what is known of where they come from.

    ``counts`` says what was read, skipped and dropped, for the record.
    """

    items: tuple[Document | Chunk, ...]
    description: str
    licence: str | None = None
    revision: str | None = None
    counts: Mapping[str, int] | None = None


class _Problems:
    """Collects what is wrong with one file and raises it as one message."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.found: list[str] = []

    def add(self, where: str, what: str) -> None:
        self.found.append(f"{where}: {what}")

    def raise_if_any(self) -> None:
        if not self.found:
            return
        count = len(self.found)
        shown = self.found[:_SHOWN]
        if count > _SHOWN:
            shown.append(f"… and {count - _SHOWN} more")
        head = f"The corpus file {self.name} has {count} problem{'s' if count > 1 else ''}; mend or remove these rows:"
        raise CorpusError("\n".join([head, *(f"  - {p}" for p in shown)]))


def read_path(path: Path) -> Source:
    """Reads a file or a folder.

    A folder with Parquet files is a Hugging Face dataset folder: ``chunks*.parquet`` where there are such, else all
    of them, are its rows, and its README is its card. Any other folder gives all its readable files, in the order of
    their relative paths; others are left out with a warning. Files named ``paraphrases`` or ``validation`` whose rows
    name a ``chunk`` and a ``number`` are other wordings of the corpus, for `kinject train`, and no part of it.

    Raises:
        CorpusError: unreadable, malformed, empty, or of a kind that isn't known; the message lists every problem of
            the first file that has any.
    """
    if path.is_dir():
        return _read_folder(path)
    items = _read_file(path, path.name, path.stem)
    return Source(tuple(items), f"file {path.name}")


def _read_folder(folder: Path) -> Source:
    files = sorted(
        (f for f in folder.rglob("*") if f.is_file() and not _hidden(f.relative_to(folder))),
        key=lambda f: f.relative_to(folder).as_posix(),
    )
    chosen, left_out = _choose(files)
    if not chosen:
        seen = f" (it holds {', '.join(f.name for f in files[:5])})" if files else " (it is empty)"
        raise CorpusError(
            f"The corpus folder {folder} has no readable file{seen}. Put files ending in {', '.join(SUFFIXES)} there."
        )
    if left_out:
        names = ", ".join(f.relative_to(folder).as_posix() for f in left_out[:5])
        log.warning("corpus %s: %d files of other kinds are left out: %s", folder.name, len(left_out), names)
    items: list[Document | Chunk] = []
    for file in chosen:
        relative = file.relative_to(folder)
        items += _read_file(file, relative.as_posix(), relative.with_suffix("").as_posix())
    card = read_card(folder)
    licence = card.get("license")
    revision = card.get("revision")
    return Source(
        tuple(items),
        str(card.get("pretty_name") or f"folder {folder.name}, {len(chosen)} files"),
        licence=None if licence is None else str(licence),
        revision=None if revision is None else str(revision),
    )


def _hidden(relative: Path) -> bool:
    return any(part.startswith(".") or part == "__pycache__" for part in relative.parts)


def _choose(files: list[Path]) -> tuple[list[Path], list[Path]]:
    """The files that make up a folder's corpus, and those that were left out though they may have been meant."""
    # Other wordings of its chunks, for a training: to find them would be to find what the chunks were put aside for.
    files = [f for f in files if not _rewords_chunks(f)]
    parquet = [f for f in files if f.suffix.lower() == ".parquet"]
    if parquet:
        return [f for f in parquet if _is_prepared(f)] or parquet, []
    readable = [f for f in files if f.suffix.lower() in _READERS]
    data = [f for f in readable if not _NOT_DATA.match(f.name)]
    rest = [f for f in files if f.suffix.lower() not in _READERS and not _NOT_DATA.match(f.name)]
    # A README with no other data beside it is itself what the folder says, unless it is a dataset card.
    chosen = data or [f for f in readable if not _front_matter(f)]
    return chosen, rest


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
            with file.open(encoding=codec) as lines:
                columns = set(json.loads(lines.readline()))
        else:
            return False
    except (OSError, ValueError, TypeError):  # ArrowInvalid is a ValueError; whoever reads it will say what is wrong
        return False
    return {"chunk", "number", "text"} <= columns


def _is_prepared(file: Path) -> bool:
    return file.suffix.lower() == ".parquet" and re.match(r"chunks\b", file.name) is not None


def _read_file(path: Path, name: str, stem: str) -> list[Document | Chunk]:
    """All rows of one file; ``name`` stands in messages, ``stem`` in the ids of rows that have none."""
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise CorpusError(
            f"The corpus file {name} can't be read: files ending in {path.suffix or 'nothing'!r} aren't known. Use one "
            f"of {', '.join(SUFFIXES)}."
        )
    try:
        return reader(path, name, stem)
    except OSError as problem:
        raise CorpusError(f"The corpus file {name} can't be read: {problem.strerror or problem}.") from problem


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
        CorpusError: naming the file, the line and the offset of the first byte that isn't of its encoding, or the
            encoding that the file seems to have where its mark is missing.
    """
    codec, called = _encoding(data[:4])
    if codec == "utf-8" and (wide := _wide_without_mark(data)):
        # Mostly sound UTF-8, of letters with NUL between them: it would be read without complaint, as rubbish.
        raise CorpusError(
            f"The corpus file {name} looks like {wide} without a byte order mark. Convert it, for example with "
            f"`iconv -f {wide} -t UTF-8`."
        )
    try:
        return data.decode(codec)
    except UnicodeDecodeError as problem:
        # The codec of UTF-8 with a mark counts from behind it, the others from the file's first byte.
        offset = problem.start + (len(codecs.BOM_UTF8) if codec == "utf-8-sig" else 0)
        line = data[:offset].decode(codec, errors="replace").count("\n") + 1
        raise CorpusError(
            f"The corpus file {name} is not {called}: byte 0x{data[offset]:02x} at offset {offset} (line {line}). "
            f"{_remedy(data, codec, called)}"
        ) from problem


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


def _read_text(path: Path, name: str, stem: str) -> list[Document | Chunk]:
    text = decode(path.read_bytes(), name)
    if not text.strip():
        raise CorpusError(f"The corpus file {name} is empty: give it text or remove it.")
    heading = re.match(r"\s*#\s+(.+)", text) if path.suffix.lower() in {".md", ".markdown"} else None
    return [Document(id=name, text=text, title=heading.group(1).strip() if heading else "")]


def _read_jsonl(path: Path, name: str, stem: str) -> list[Document | Chunk]:
    problems = _Problems(name)

    def rows() -> Iterator[tuple[str, str, Any]]:
        # Not splitlines(): U+2028 and its like are legal inside a JSON string.
        for number, line in enumerate(decode(path.read_bytes(), name).split("\n"), start=1):
            if not line.strip():
                continue
            try:
                yield f"line {number}", f"{stem}:{number}", json.loads(line)
            except (json.JSONDecodeError, RecursionError) as problem:
                detail = (
                    f"{problem.msg} at column {problem.colno}"
                    if isinstance(problem, json.JSONDecodeError)
                    else "too deep"
                )
                problems.add(f"line {number}", f"not valid JSON ({detail})")

    return _records(rows(), problems, prepared=False)


def _read_json(path: Path, name: str, stem: str) -> list[Document | Chunk]:
    text = decode(path.read_bytes(), name)
    try:
        data = json.loads(text) if text.strip() else []
    except (json.JSONDecodeError, RecursionError) as problem:
        where = (
            f"line {problem.lineno}: {problem.msg}" if isinstance(problem, json.JSONDecodeError) else "nested too deep"
        )
        hint = " (one object a line is JSON Lines: name the file .jsonl)" if "Extra data" in str(problem) else ""
        raise CorpusError(f"The corpus file {name} is not valid JSON, {where}{hint}.") from problem
    if isinstance(data, dict) and "text" not in data:
        lists = [value for value in data.values() if isinstance(value, list)]
        data = lists[0] if len(lists) == 1 else data
    if isinstance(data, dict):
        data = [data]
    if not isinstance(data, list):
        raise CorpusError(f"The corpus file {name} must hold a list of objects with a `text` field.")
    rows = ((f"item {n}", f"{stem}:{n}", row) for n, row in enumerate(data, start=1))
    return _records(rows, _Problems(name), prepared=False)


def _read_csv(path: Path, name: str, stem: str) -> list[Document | Chunk]:
    text = decode(path.read_bytes(), name)
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    limit = csv.field_size_limit(max(len(text), 131_072))
    try:
        reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
        if reader.fieldnames is not None and "text" not in reader.fieldnames:
            raise CorpusError(
                f"The corpus file {name} has no column `text` (its columns: {', '.join(reader.fieldnames)}): name the "
                f"columns in the first line, separated by {'tabs' if delimiter == chr(9) else 'commas'}."
            )
        rows = [(f"line {reader.line_num}", f"{stem}:{reader.line_num}", _csv_row(row)) for row in reader]
    except csv.Error as problem:
        raise CorpusError(f"The corpus file {name} is malformed at line {reader.line_num}: {problem}.") from problem
    finally:
        csv.field_size_limit(limit)
    return _records(rows, _Problems(name), prepared=False)


def _csv_row(row: dict[str | Any, Any]) -> dict[str, Any]:
    """A CSV row without its empty cells (CSV has no null) and without cells beyond the header."""
    return {k: v for k, v in row.items() if k is not None and v is not None and (v != "" or k == "text")}


def _read_parquet(path: Path, name: str, stem: str) -> list[Document | Chunk]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path)
    except (pa.ArrowException, OSError) as problem:
        first = str(problem).splitlines()[0]
        raise CorpusError(
            f"The corpus file {name} is not a readable Parquet file ({first}): write it anew."
        ) from problem
    if "text" not in table.column_names:
        raise CorpusError(
            f"The corpus file {name} has no column `text` (its columns: {', '.join(table.column_names)}): rename one."
        )

    def rows() -> Iterator[tuple[str, str, Any]]:
        number = 0
        for batch in table.to_batches(max_chunksize=4096):
            for row in batch.to_pylist():
                number += 1
                yield f"row {number}", f"{stem}:{number}", row

    return _records(rows(), _Problems(name), prepared=_is_prepared(path))


def _records(rows: Iterable[tuple[str, str, Any]], problems: _Problems, *, prepared: bool) -> list[Document | Chunk]:
    """Checks (place, id to use where there is none, row) triples; raises all that is wrong with them at once."""
    records = []
    seen: dict[str, str] = {}
    for where, fallback, row in rows:
        record = _record(row, where, fallback, problems, prepared)
        if record is None:
            continue
        if record.id in seen:
            problems.add(where, f"duplicate id {record.id!r} (first at {seen[record.id]})")
        seen.setdefault(record.id, where)
        records.append(record)
    problems.raise_if_any()
    if not records:
        raise CorpusError(f"The corpus file {problems.name} is empty: it has no row with a text.")
    return records


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
    document_id = row.get("document_id")
    return Chunk(
        document_id=identifier if document_id is None else str(document_id),
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


_READERS: dict[str, Callable[[Path, str, str], list[Document | Chunk]]] = {
    ".jsonl": _read_jsonl,
    ".ndjson": _read_jsonl,
    ".json": _read_json,
    ".parquet": _read_parquet,
    ".csv": _read_csv,
    ".tsv": _read_csv,
    ".txt": _read_text,
    ".md": _read_text,
    ".markdown": _read_text,
}
SUFFIXES = tuple(_READERS)
"""File name endings that can be read."""
