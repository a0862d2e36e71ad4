"""Writes a corpus to a folder: read and cut once, then opened by any run, in memory that doesn't grow with it.

What it is for: people's own files, Wikipedia, the news: what takes minutes to read is read once, and what was left out
of it stays on record beside it. What it does not do: it embeds nothing, and a corpus needn't be built to be used.

The one idea: chunks go to disk in parts, each with a note of where reading stood behind it. A build that is killed goes
on behind its last part, and as reading and cutting are the same every time, it ends in the same fingerprint.

    OUT.building/chunks-00000.parquet  notes/00000.json  notes/settings.json      OUT.lock
    OUT/chunks-00000.parquet …  README.md  left_out.jsonl  manifest.json          (one rename, when all is there)
"""

from __future__ import annotations

import json
import os
import shutil
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from lm_eval_kinject.corpus.chunk import Chunker, Chunking
from lm_eval_kinject.corpus.corpus import described
from lm_eval_kinject.corpus.mapped import row_of
from lm_eval_kinject.corpus.sources.files import CORPUS_KIND, Files, Source, read_manifest, read_path
from lm_eval_kinject.corpus.sources.left_out import LeftOut
from lm_eval_kinject.errors import CorpusError
from lm_eval_kinject.log import log
from lm_eval_kinject.provenance import (
    atomic_write,
    fingerprint,
    fingerprint_file,
    fingerprint_records,
    move_into_place,
    read_json,
    write_json,
)
from lm_eval_kinject.records import Chunk, Document

__all__ = ["Built", "build_corpus", "opened_corpus"]

PART = 10_000
"""Chunks written together: what a killed build loses at most, and about 20 MB."""

_FORMAT = 1


@dataclass(frozen=True, slots=True)
class Built:
    """A corpus on disk.

    Attributes:
        folder: for ``corpus=``.
        chunks: how many.
        fingerprint: as of the `Corpus` that is loaded from it.
        counts: figures of the reading.
        left_out: what of the files could not be read.
        already: nothing was to be done.
    """

    folder: Path
    chunks: int
    fingerprint: str
    counts: Mapping[str, int]
    left_out: tuple[LeftOut, ...]
    already: bool = False


def build_corpus(
    name: str,
    source: Source,
    out: str | os.PathLike[str],
    *,
    chunking: Chunking | None = None,
    progress: Callable[[int], None] | None = None,
    part: int = PART,
) -> Built:
    """Reads and cuts a source into ``out``, or finds it there; a killed build goes on.

    Args:
        name: of the corpus, for messages.
        source: as `find_source` gives it.
        out: a folder that isn't there, is empty, or holds a corpus that was built before (which is replaced once the
            new one is whole).
        chunking: how documents are cut.
        progress: called with the number of chunks written, after every part.
        part: chunks written together.

    Raises:
        CorpusError: the source is unreadable or empty, its ids aren't unique, or ``out`` holds something else or can't
            be written.
        ArgumentError: ``chunking`` can't be used.
    """
    folder = Path(out)
    chunker = Chunker(chunking)
    settings = _settings(name, source, chunker.chunking, part)
    _refuse_foreign_content(folder)
    if isinstance(source.items, Files) and source.items.has(folder):
        raise CorpusError(f"{folder} is in the folder that is read, and would be read the next time: give another one.")
    if source.reading is not None:
        source.reading.silent = True  # what was left out is in what is returned
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _one_builder(folder):
            found = _there(folder, settings)
            return found or _build(folder, name, source, chunker, settings, progress)
    except OSError as problem:
        raise CorpusError(
            f"The corpus {name} can't be built in {folder}: {problem.strerror or problem}. Give another folder; the "
            f"parts that are finished will be used."
        ) from problem


def _settings(name: str, source: Source, chunking: Chunking, part: int) -> dict[str, Any]:
    """All that decides the chunks: what is read, how it is cut, and how many go together."""
    if isinstance(source.items, Files):
        texts: Any = source.items.fingerprint()
    else:
        texts = source.fingerprint or fingerprint_records(source.items)
    return {
        "format": _FORMAT,
        "name": name,
        "source": [source.description, source.licence, source.revision],
        "texts": fingerprint(texts),
        "chunking": asdict(chunking),
        "part": part,
    }


def _refuse_foreign_content(folder: Path) -> None:
    if folder.is_dir() and (not any(folder.iterdir()) or read_manifest(folder) is not None):
        return
    if folder.exists():
        raise CorpusError(f"{folder} exists and is no built corpus: give another folder, or remove it yourself.")


@contextmanager
def _one_builder(folder: Path) -> Iterator[None]:
    """Holds the folder's lock; others wait. The system frees it when its holder dies."""
    from filelock import FileLock

    with FileLock(folder.with_name(f".{folder.name}.lock")):
        yield


def _there(folder: Path, settings: Mapping[str, Any]) -> Built | None:
    """What an earlier build of the same settings left, if it is whole."""
    manifest = read_manifest(folder)
    if manifest is None or manifest["key"] != fingerprint(settings):
        return None
    files = manifest["files"].items()
    if any(not (folder / name).is_file() or fingerprint_file(folder / name) != digest for name, digest in files):
        log.warning("the corpus %s is damaged: it is built anew", folder)
        return None
    return _built(folder, manifest, already=True)


def opened_corpus(folder: Path) -> Built:
    """What is in a folder that `build_corpus` wrote.

    Raises:
        CorpusError: it holds no built corpus.
    """
    manifest = read_manifest(folder)
    if manifest is None:
        raise CorpusError(f"{folder} is no built corpus.")
    return _built(folder, manifest, already=True)


def _built(folder: Path, manifest: Mapping[str, Any], *, already: bool = False) -> Built:
    lines = (folder / "left_out.jsonl").read_text(encoding="utf-8").split("\n")
    left_out = tuple(LeftOut(**json.loads(line)) for line in lines if line)
    return Built(folder, manifest["chunks"], manifest["fingerprint"], manifest["counts"], left_out, already)


# Building -------------------------------------------------------------------------------------------------------------


@dataclass
class _State:
    """Where a build stands behind its last part."""

    parts: int = 0
    chunks: int = 0
    items: int = 0
    position: Any = None
    cutting: dict[str, int] = field(default_factory=dict)


def _build(
    folder: Path,
    name: str,
    source: Source,
    chunker: Chunker,
    settings: Mapping[str, Any],
    progress: Callable[[int], None] | None,
) -> Built:
    building = folder.with_name(f"{folder.name}.building")
    state = _prepared(building, settings)
    chunker.counts.update(state.cutting)
    pending: list[Chunk] = []
    for item in _rest(source, state):
        pending += chunker(item) if isinstance(item, Document) else [item]
        state.items += 1
        if len(pending) >= settings["part"]:
            _write_part(building, pending, name, source, chunker, state)
            pending = []
            if progress is not None:
                progress(state.chunks)
    if pending:
        _write_part(building, pending, name, source, chunker, state)
    if not state.chunks:
        raise CorpusError(f"The corpus {name} is empty: it has no text.")
    manifest = _finish(building, name, source, chunker, settings, state)
    shutil.rmtree(building / "notes")
    move_into_place(building, folder)
    return _built(folder, manifest)


def _prepared(building: Path, settings: Mapping[str, Any]) -> _State:
    """The building folder, with what is whole of an earlier build of the same settings, and where that stood."""
    notes = building / "notes"
    try:
        same = read_json(notes / "settings.json") == settings
    except (OSError, ValueError):
        same = False
    if not same:
        shutil.rmtree(building, ignore_errors=True)
        notes.mkdir(parents=True)
        write_json(notes / "settings.json", settings)
    state = _State()
    while (found := _finished_part(building, state.parts)) is not None:
        state = found
    return state


def _finished_part(building: Path, number: int) -> _State | None:
    try:
        note = read_json(building / "notes" / f"{number:05}.json")
        whole = note["sha256"] == fingerprint_file(building / _part_name(number))
        return _State(**note["state"]) if whole else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _part_name(number: int) -> str:
    return f"chunks-{number:05}.parquet"


def _rest(source: Source, state: _State) -> Iterator[Document | Chunk]:
    """The source's texts behind those that are in the parts."""
    if isinstance(source.items, Files):
        return iter(source.items) if state.position is None else source.items.resume(state.position)
    return islice(iter(source.items), state.items, None)


def _write_part(
    building: Path, chunks: list[Chunk], name: str, source: Source, chunker: Chunker, state: _State
) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    deque(_each_once(name, chunks), maxlen=0)
    text, number = pa.string(), pa.int64()
    schema = pa.schema(
        [("id", text), ("text", text), ("title", text), ("document_id", text), ("position", number), ("date", text),
         ("meta", text)]
    )  # fmt: skip
    path = building / _part_name(state.parts)
    with atomic_write(path) as handle, pq.ParquetWriter(handle, schema, compression="zstd") as writer:
        for start in range(0, len(chunks), PART):  # a document of a hundred megabytes makes a part of its own
            rows = [row_of(chunk) for chunk in chunks[start : start + PART]]
            writer.write_table(pa.Table.from_pylist(rows, schema=schema))
    state.parts += 1
    state.chunks += len(chunks)
    state.position = source.items.position() if isinstance(source.items, Files) else None
    state.cutting = dict(chunker.counts)
    note = {"state": asdict(state), "sha256": fingerprint_file(path)}
    write_json(building / "notes" / f"{state.parts - 1:05}.json", note)


def _finish(
    building: Path, name: str, source: Source, chunker: Chunker, settings: Mapping[str, Any], state: _State
) -> dict[str, Any]:
    """Writes what stands beside the parts, the manifest last; what a killed build left behind the last part goes."""
    files = [_part_name(number) for number in range(state.parts)]
    for other in set(building.glob("*.parquet")) - {building / file for file in files}:
        other.unlink()
    how, counts = described(chunker, source)
    left_out = source.reading.left_out if source.reading is not None else []
    with atomic_write(building / "left_out.jsonl", "w") as handle:
        handle.writelines(json.dumps(asdict(entry), ensure_ascii=False) + "\n" for entry in left_out)
    with atomic_write(building / "README.md", "w") as handle:
        handle.write(_card(name, source, state.chunks))
    (building / "manifest.json").unlink(missing_ok=True)
    manifest = {
        "kind": CORPUS_KIND,
        "key": fingerprint(settings),
        "fingerprint": fingerprint_records(_each_once(name, read_path(building).items)),
        "chunks": state.chunks,
        "chunking": how,
        "counts": counts,
        "files": {file: fingerprint_file(building / file) for file in files},
    }
    write_json(building / "manifest.json", manifest)
    return manifest


def _each_once(name: str, chunks: Iterable[Any]) -> Iterator[Chunk]:
    seen: set[str] = set()
    for chunk in chunks:
        if chunk.id in seen:
            raise CorpusError(f"The corpus {name} has the id {chunk.id!r} twice: ids must be unique across its files.")
        seen.add(chunk.id)
        yield chunk


def _card(name: str, source: Source, chunks: int) -> str:
    import yaml

    said = {"pretty_name": source.description, "license": source.licence, "revision": source.revision}
    front = yaml.safe_dump({key: value for key, value in said.items() if value}, allow_unicode=True, sort_keys=True)
    return (
        f"---\n{front}---\n\n# {name}\n\n{chunks:,} chunks, made by `kinject corpus build` of lm-eval-kinject. "
        "`manifest.json` says\nhow they were cut and what was counted, `left_out.jsonl` what could not be read.\n"
    )
