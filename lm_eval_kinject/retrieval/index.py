"""Vectors of a corpus on disk: built once, checked on every opening, mapped and not read.

What it is for: an encoder's vectors of a corpus's chunks, in a folder that any later run and any other process can
open. What it does not do: search (``dense.py``), or trust a folder because it exists.

The one idea: a folder is named after everything that decides its vectors (``index_settings``), carries these settings
and its files' checksums in a manifest that is written last, and appears under its name in one rename. So there are
three states only: absent, whole, or damaged, and the last is named, never used.

    CACHE/indexes/
      NAME-KEY/              embeddings.npy (chunks x dimension, float32)  ids.json  manifest.json
      NAME-KEY.building/     shards/00000.npy 00000.json …   finished parts of a build; a killed one goes on from them
      NAME-KEY.lock          held while building, freed by the system if the holder dies
      NAME-KEY.STORE-KEY/    what `stores.py` makes of an index, in the same three states
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import BrokenExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import IO, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from lm_eval_kinject.corpus.corpus import Corpus
from lm_eval_kinject.errors import IndexStoreError
from lm_eval_kinject.log import log
from lm_eval_kinject.plugin import cache_dir
from lm_eval_kinject.provenance import (
    atomic_write,
    environment,
    fingerprint,
    fingerprint_file,
    move_into_place,
    read_json,
    write_json,
)
from lm_eval_kinject.records import Chunk
from lm_eval_kinject.retrieval.encoders import Encoder, Vectors

__all__ = [
    "DenseIndex",
    "Helpers",
    "Progress",
    "Work",
    "build_index",
    "cache_dir",
    "cached_indexes",
    "embed_shard",
    "index_info",
    "index_settings",
    "open_index",
    "verify_index",
]

FORMAT = 1
INDEX_KIND = "lm-eval-kinject dense index"
STORE_KIND = "lm-eval-kinject store"
_SHARD = 512
_FILES = ("embeddings.npy", "ids.json")
_STORE_FILES = ("rows.npy", "starts.npy")  # and those that the manifest names: each sort of store has its own
UNWRITABLE = {errno.EROFS, errno.EACCES, errno.EPERM}
_FULL = {errno.ENOSPC, errno.EDQUOT}

Progress = Callable[[int, int], None]
"""Called with (passages done, passages in all) while an index is built."""

Work: TypeAlias = Iterator[tuple[int, Sequence[Chunk]]]
"""Shards that aren't there yet: number and chunks."""

Helpers: TypeAlias = Callable[[Work, int, Path], Generator[int, None, None]]
"""Given work, how many shards that is and their folder, has each done by `embed_shard`; yields its number then."""


@dataclass(frozen=True)
class DenseIndex:
    """Vectors of a corpus, one row a chunk, in corpus order.

    Attributes:
        vectors: shape (chunks, dimension), float32; read-only and memory-mapped where ``path`` is set.
        settings: what decides the vectors.
        key: fingerprint of ``settings``.
        passages_cut: chunks that were longer than the encoder reads.
        path: the folder; None for an index that is only in memory.
    """

    vectors: Vectors
    settings: Mapping[str, Any]
    key: str
    passages_cut: int
    path: Path | None = None


def cached_indexes(cache: str | os.PathLike[str] | None = None) -> list[Path]:
    """Index folders in the cache, by name; one that ends in ``.building`` is the unfinished work of a killed build."""
    root = (Path(cache) if cache is not None else cache_dir()) / "indexes"
    return sorted(folder for folder in root.glob("*") if folder.is_dir() and not folder.name.startswith("."))


def index_settings(corpus: Corpus, encoder: Encoder) -> dict[str, Any]:
    """All that decides an index's vectors: chunks, cutting, model and revision, prefixes, pooling, length and dtype."""
    return {
        "format": FORMAT,
        "corpus": corpus.fingerprint,
        "chunking": dict(corpus.chunking),
        "encoder": dict(encoder.settings),
    }


def build_index(
    corpus: Corpus,
    encoder: Encoder,
    *,
    path: str | os.PathLike[str] | None = None,
    cache: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
    helpers: Helpers | None = None,
) -> DenseIndex:
    """Opens the index of this corpus and encoder, building it first where there is none.

    One process builds while others that want the same index wait, then map the same file. A build that was killed goes
    on from its last finished shard of 512 passages. A damaged or foreign folder of the right name is named in a warning
    and built anew. The shards are the same whoever embeds them, so ``helpers`` change the time and not the bytes.

    Args:
        corpus: its chunks become the rows.
        encoder: embeds them.
        path: folder to build in; default: one in the cache, named after the key.
        cache: default: :func:`cache_dir`.
        progress: called after every shard.
        helpers: processes that embed shards in place of this one.

    Returns:
        The index; only in memory, with a warning, where the cache can't be written.

    Raises:
        IndexStoreError: the disk is full, or ``path`` can't be written or holds something else.
    """
    settings = index_settings(corpus, encoder)
    folder = Path(path) if path is not None else default_folder(corpus, settings, cache)
    if path is not None:
        _refuse_foreign_content(folder)
    found = _usable(folder, settings)
    if found is not None:
        return found
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with one_builder(folder):
            found = _usable(folder, settings, warn=True)
            return found if found is not None else _build(corpus, encoder, settings, folder, progress, helpers)
    except OSError as problem:
        if problem.errno in UNWRITABLE and path is None:
            log.warning(
                "the index cache can't be written (%s): the index of %s is built in memory, for this process only; set "
                "KINJECT_CACHE to a folder that can be written",
                problem.strerror,
                corpus.name,
            )
            return _in_memory(corpus, encoder, settings, progress)
        raise IndexStoreError(disk_message(problem, folder)) from problem


def disk_message(problem: OSError, folder: Path) -> str:
    if problem.errno in _FULL:
        return (
            f"The disk is full: the index {folder} can't be written. Free some space, or set KINJECT_CACHE to a folder "
            f"on another disk; the parts that are finished will be used."
        )
    return f"The index {folder} can't be written: {problem.strerror or problem}. Set KINJECT_CACHE to another folder."


def default_folder(corpus: Corpus, settings: Mapping[str, Any], cache: str | os.PathLike[str] | None) -> Path:
    root = Path(cache) if cache is not None else cache_dir()
    label = re.sub(r"[^\w.-]+", "-", corpus.name).strip("-.")[:40] or "corpus"
    return root / "indexes" / f"{label}-{fingerprint(settings)[:16]}"


def _refuse_foreign_content(folder: Path) -> None:
    """A folder named by the user is replaced only if it is an index (or empty)."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if not folder.is_dir() or not {"manifest.json", *_FILES} & {entry.name for entry in folder.iterdir()}:
        raise IndexStoreError(f"{folder} exists and is not an index: give another path, or remove it yourself.")


def _usable(folder: Path, settings: Mapping[str, Any], *, warn: bool = False) -> DenseIndex | None:
    """The index in ``folder`` if it is whole and of these settings; else None, naming what is wrong if asked."""
    if not folder.is_dir():
        return None
    try:
        return open_index(folder, settings)
    except IndexStoreError as problem:
        if warn:
            log.warning("%s It is built anew.", problem)
        return None


@contextmanager
def one_builder(folder: Path) -> Iterator[None]:
    """Holds the folder's lock; others wait. The system frees it when its holder dies."""
    from filelock import FileLock, Timeout

    lock = FileLock(folder.with_name(folder.name + ".lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        log.info("another process is building the index %s: waiting for it", folder.name)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


# --- Building -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Plan:
    """Which chunks to embed: the first of those that read alike (``rows``), and where each chunk's vector is."""

    rows: list[int]
    vector_of: list[int]

    @classmethod
    def of(cls, corpus: Corpus, encoder: Encoder) -> _Plan:
        place: dict[bytes, int] = {}  # by digests: the texts of a million chunks are not to be held here
        rows: list[int] = []
        vector_of = []
        for row, chunk in enumerate(corpus.chunks):
            text = hashlib.blake2b(encoder.reads(chunk).encode("utf-8", "surrogatepass"), digest_size=16).digest()
            if text not in place:
                place[text] = len(rows)
                rows.append(row)
            vector_of.append(place[text])
        return cls(rows, vector_of)

    def shards(self) -> list[list[int]]:
        return [self.rows[start : start + _SHARD] for start in range(0, len(self.rows), _SHARD)]


def _build(
    corpus: Corpus,
    encoder: Encoder,
    settings: Mapping[str, Any],
    folder: Path,
    progress: Progress | None,
    helpers: Helpers | None,
) -> DenseIndex:
    started = time.monotonic()
    building = folder.with_name(folder.name + ".building")
    if _usable(building, settings) is None:
        _prepare(building, settings)
        plan = _Plan.of(corpus, encoder)
        progress = progress and _rising(progress)
        if helpers is not None:
            _share_out(corpus, plan, building / "shards", progress, helpers)
        cut = _embed_shards(corpus, encoder, plan, building / "shards", progress)
        dimension = _assemble(plan, building)
        write_json(building / "ids.json", list(corpus.ids))
        manifest = _manifest(corpus, settings, building, dimension, cut)
        manifest["built"] = {
            "environment": environment(),
            "device": encoder.device,
            "seconds": round(time.monotonic() - started, 3),
        }
        write_json(building / "manifest.json", manifest)
    shutil.rmtree(building / "shards", ignore_errors=True)
    move_into_place(building, folder)
    log.info("index %s: %d chunks in %.1f s", folder.name, len(corpus), time.monotonic() - started)
    return open_index(folder, settings)


def _prepare(building: Path, settings: Mapping[str, Any]) -> None:
    """Makes the building folder ready: what another build left there stays only if it was of these settings."""
    note = building / "settings.json"
    try:
        same = read_json(note) == settings
    except (OSError, ValueError):
        same = False
    if not same:
        shutil.rmtree(building, ignore_errors=True)
    (building / "shards").mkdir(parents=True, exist_ok=True)
    if not same:
        write_json(note, settings)


def _embed_shards(corpus: Corpus, encoder: Encoder, plan: _Plan, folder: Path, progress: Progress | None) -> int:
    """Embeds what isn't there yet, a shard at a time; returns how many chunks were longer than the encoder reads."""
    cut = done = 0
    for number, rows in enumerate(plan.shards()):
        finished = _finished_shard(folder, number, len(rows))
        if finished is None:
            finished = embed_shard(encoder, [corpus.chunks[row] for row in rows], folder, number)
        cut += finished
        done += len(rows)
        if progress is not None:
            progress(done, len(plan.rows))
    return cut


def _share_out(corpus: Corpus, plan: _Plan, folder: Path, progress: Progress | None, helpers: Helpers) -> None:
    """Has what isn't there yet embedded by helpers; what they leave, should one die, is left to `_embed_shards`."""
    shards = plan.shards()
    missing = [n for n, rows in enumerate(shards) if _finished_shard(folder, n, len(rows)) is None]
    done = len(plan.rows) - sum(len(shards[number]) for number in missing)
    work = ((number, [corpus.chunks[row] for row in shards[number]]) for number in missing)
    try:
        with closing(helpers(work, len(missing), folder)) as finished:
            for number in finished:
                done += len(shards[number])
                if progress is not None:
                    progress(done, len(plan.rows))
    except BrokenExecutor:
        log.warning("a process that embedded ended before it was done (out of memory?): this one goes on alone")


def _rising(progress: Progress) -> Progress:
    """Leaves out what was said before: shards that others embedded are looked at once more."""
    most = -1

    def say(done: int, total: int) -> None:
        nonlocal most
        if done > most:
            most = done
            progress(done, total)

    return say


def embed_shard(encoder: Encoder, chunks: Sequence[Chunk], folder: Path, number: int) -> int:
    """Embeds and writes a shard; returns how many of its chunks were longer than the encoder reads."""
    data, note = _shard_files(folder, number)
    vectors, cut = encoder.encode_passages(chunks)
    with atomic_write(data) as handle:
        _save_array(handle, vectors)
    write_json(note, {"sha256": fingerprint_file(data), "rows": len(chunks), "cut": cut})
    return cut


def _shard_files(folder: Path, number: int) -> tuple[Path, Path]:
    return folder / f"{number:05}.npy", folder / f"{number:05}.json"


def _save_array(handle: IO[bytes], array: npt.NDArray[Any]) -> None:
    """`np.save`, whose error for a write that was cut short doesn't say (by errno) that the disk is full."""
    np.lib.format.write_array_header_1_0(handle, np.lib.format.header_data_from_array_1_0(array))
    handle.write(np.ascontiguousarray(array).data.cast("B"))


def _finished_shard(folder: Path, number: int, rows: int) -> int | None:
    """How many passages of a finished shard were cut; None if it isn't there or isn't what its note says."""
    data, note = _shard_files(folder, number)
    try:
        written = read_json(note)
        whole = written["rows"] == rows and written["sha256"] == fingerprint_file(data)
        return int(written["cut"]) if whole else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _assemble(plan: _Plan, building: Path) -> int:
    """Writes embeddings.npy, a row a chunk, from the shards; returns the dimension."""
    # Read and not mapped, and few at a time: pages that were mapped would stay, up to the size of the whole.
    shard = lru_cache(maxsize=4)(lambda number: np.load(_shard_files(building / "shards", number)[0]))
    dimension = int(shard(0).shape[1])
    with atomic_write(building / "embeddings.npy") as handle:
        header = {"descr": "<f4", "fortran_order": False, "shape": (len(plan.vector_of), dimension)}
        np.lib.format.write_array_header_1_0(handle, header)
        for start in range(0, len(plan.vector_of), _SHARD):
            places = plan.vector_of[start : start + _SHARD]
            block = np.stack([shard(place // _SHARD)[place % _SHARD] for place in places])
            handle.write(np.ascontiguousarray(block, dtype="<f4").tobytes())
    return dimension


def _manifest(corpus: Corpus, settings: Mapping[str, Any], folder: Path, dimension: int, cut: int) -> dict[str, Any]:
    return {
        "kind": INDEX_KIND,
        "key": fingerprint(settings),
        "settings": dict(settings),
        "corpus": corpus.name,
        "chunks": len(corpus),
        "dimension": dimension,
        "passages_cut": cut,
        "files": checksums(folder, _FILES),
    }


def checksums(folder: Path, names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """What a manifest says of its folder's files: size and SHA-256, by name."""
    return {
        name: {"bytes": (folder / name).stat().st_size, "sha256": fingerprint_file(folder / name)} for name in names
    }


def _in_memory(corpus: Corpus, encoder: Encoder, settings: Mapping[str, Any], progress: Progress | None) -> DenseIndex:
    plan = _Plan.of(corpus, encoder)
    parts, cut = [], 0
    for rows in plan.shards():
        vectors, shard_cut = encoder.encode_passages([corpus.chunks[row] for row in rows])
        parts.append(vectors)
        cut += shard_cut
        if progress is not None:
            progress(sum(map(len, parts)), len(plan.rows))
    vectors = np.ascontiguousarray(np.concatenate(parts)[plan.vector_of])
    vectors.setflags(write=False)
    return DenseIndex(vectors, settings, fingerprint(settings), cut)


# --- Opening ------------------------------------------------------------------------------------------------------


def open_index(path: str | os.PathLike[str], settings: Mapping[str, Any] | None = None) -> DenseIndex:
    """Maps an index's vectors after checking its files against the manifest.

    Args:
        path: the folder.
        settings: what it must have been made with (:func:`index_settings`); None takes it as it is.

    Raises:
        IndexStoreError: it is no index, damaged, or made with other settings; the message says what differs.
    """
    folder = Path(path)
    problems = folder_problems(folder)
    if problems:
        raise IndexStoreError(f"The index {folder} is damaged: {'; '.join(problems)}.")
    manifest = read_json(folder / "manifest.json")
    if manifest["kind"] != INDEX_KIND:
        raise IndexStoreError(f"{folder} is a store of an index, not the index: give the folder of the index itself.")
    if settings is not None and manifest["key"] != fingerprint(settings):
        differences = list(_differences(manifest["settings"], settings))
        raise IndexStoreError(
            f"The index {folder} is of another corpus or encoder: {'; '.join(differences)}. Leave out index= to build "
            f"the right one, or give the corpus and retriever that this one was built with."
        )
    vectors = np.load(folder / "embeddings.npy", mmap_mode="r", allow_pickle=False)
    return DenseIndex(vectors, manifest["settings"], manifest["key"], manifest["passages_cut"], folder)


def _differences(old: Any, new: Any, name: str = "") -> Iterator[str]:
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in sorted({*old, *new}):
            yield from _differences(old.get(key), new.get(key), f"{name}.{key}" if name else str(key))
    elif old != new:
        yield f"{name}: the index has {_short(old)}, this run needs {_short(new)}"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:24]}…"


def verify_index(path: str | os.PathLike[str]) -> list[str]:
    """What is wrong with an index or a store of one, one sentence each; empty if it is whole.

    Every byte is read: sizes and SHA-256 against the manifest, the manifest's key against its settings, and the shape
    against its count of chunks. The stores that lie within an index's folder are looked at, too.
    """
    folder = Path(path)
    within = sorted(entry for entry in (folder / "stores").glob("*") if not entry.name.endswith((".building", ".lock")))
    inner = [f"stores/{store.name}: {problem}" for store in within for problem in folder_problems(store)]
    return folder_problems(folder) + inner


def folder_problems(folder: Path) -> list[str]:
    """As `verify_index`, of the folder alone."""
    if not folder.is_dir():
        return ["there is no such folder"]
    try:
        manifest = read_json(folder / "manifest.json")
    except OSError:
        return ["it has no manifest.json, so it was never finished"]
    except ValueError as problem:
        return [f"its manifest.json is malformed ({problem})"]
    try:
        return list(_manifest_problems(folder, manifest))
    except (KeyError, TypeError, AttributeError) as problem:
        return [f"its manifest.json lacks or garbles an entry ({problem})"]


def _manifest_problems(folder: Path, manifest: Any) -> Iterator[str]:
    kind = manifest["kind"]
    if kind not in (INDEX_KIND, STORE_KIND) or manifest["settings"]["format"] != FORMAT:
        yield f"its manifest.json is of another kind or format ({kind})"
        return
    if manifest["key"] != fingerprint(manifest["settings"]):
        yield "its settings don't match its key"
    names = _FILES if kind == INDEX_KIND else tuple(dict.fromkeys((*_STORE_FILES, *manifest["files"])))
    before = len(names)
    for name in names:
        file, entry = folder / name, manifest["files"][name]
        if not file.is_file():
            yield f"{name} is missing"
        elif file.stat().st_size != entry["bytes"]:
            yield f"{name} has {file.stat().st_size} bytes instead of {entry['bytes']}"
        elif fingerprint_file(file) != entry["sha256"]:
            yield f"the checksum of {name} doesn't match"
        else:
            before -= 1
    if before == 0 and kind == INDEX_KIND:
        shape = np.load(folder / "embeddings.npy", mmap_mode="r", allow_pickle=False).shape
        if shape != (manifest["chunks"], manifest["dimension"]):
            yield f"its vectors have the shape {shape}, not {(manifest['chunks'], manifest['dimension'])}"


def index_info(path: str | os.PathLike[str]) -> dict[str, Any]:
    """An index's manifest: corpus, chunks, dimension, settings, files, and when and with what it was built.

    Raises:
        IndexStoreError: there is none, or it can't be read.
    """
    folder = Path(path)
    try:
        manifest = read_json(folder / "manifest.json")
    except (OSError, ValueError) as problem:
        raise IndexStoreError(f"{folder} is not an index: its manifest.json can't be read ({problem}).") from problem
    if not isinstance(manifest, dict):
        raise IndexStoreError(f"{folder} is not an index: its manifest.json is not an object.")
    return manifest
