"""Rows of Parquet and JSON Lines files, one at a time: texts, their paraphrases, questions.

What it does not do: it knows no column. The one idea: nothing is held but the rows at hand, so a file may be larger
than memory.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lm_eval_kinject.errors import CorpusError

__all__ = ["ROW_FILES", "find_rows", "raw_rows"]

ROW_FILES = (".parquet", ".jsonl")


def find_rows(place: Path, *splits: str) -> Path | None:
    """The file that ``place`` is or has: itself, or of a folder (or ``data`` in it) the first of these splits."""
    if place.is_file() and place.suffix in ROW_FILES:
        return place
    files = (folder / f"{split}{end}" for split in splits for folder in (place, place / "data") for end in ROW_FILES)
    return next((file for file in files if file.is_file()), None)


def raw_rows(file: Path) -> Iterator[Mapping[str, Any]]:
    """The rows of a file whose name ends in one of `ROW_FILES`, in its order.

    Raises:
        CorpusError: it can't be read as what its name says; with the place.
    """
    return _parquet_rows(file) if file.suffix == ".parquet" else _json_rows(file)


def _parquet_rows(file: Path) -> Iterator[Mapping[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(file) as table:
            for batch in table.iter_batches(batch_size=1024):
                yield from batch.to_pylist()
    except (pa.ArrowException, OSError) as problem:
        raise CorpusError(f"{file.name} is not a readable Parquet file: {str(problem).splitlines()[0]}.") from problem


def _json_rows(file: Path) -> Iterator[Mapping[str, Any]]:
    with file.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as problem:
                raise CorpusError(f"{file.name}, line {number}: not valid JSON in UTF-8 ({problem}).") from problem
            if not isinstance(row, dict):
                raise CorpusError(f"{file.name}, line {number}: not an object with a `text`.")
            yield row
