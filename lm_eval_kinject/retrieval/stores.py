"""What holds an index's vectors for searching: ``store=flat`` all of them, exactly; the others a copy that may miss.

What it is for: from ``store=hnsw;M=32`` to a searcher that is ready, its folder built or opened; and how much it
misses. What it does not do: hold vectors (`faiss_stores.py`, `qdrant_store.py` do), or embed.

The one idea: a store proposes, the index decides. Of each question `_DEPTH` distinct vectors are proposed (k + 32, if
that is more), all chunks that share one come along, and the exact products of the index's own vectors rank them, ties
by chunk id. So whatever is found has the score that ``flat`` gives it and stands in ``flat``'s order; up to k = 96 a
smaller k is the beginning of a larger one; and where too little is proposed, the question is searched exactly.

How much is missed is measured when a store is built: up to 1,000 stored vectors are searched for their nearest others,
and the share of the exact ones that is found stands in the manifest and in results. Another ``ef`` or ``nprobe`` than
then, or a filter, is measured anew when the store is opened.
"""

from __future__ import annotations

import difflib
import os
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lm_eval_kinject.corpus.corpus import Corpus
from lm_eval_kinject.errors import ArgumentError, IndexStoreError
from lm_eval_kinject.log import log
from lm_eval_kinject.provenance import environment, fingerprint, move_into_place, read_json, write_json
from lm_eval_kinject.retrieval.encoders import Vectors
from lm_eval_kinject.retrieval.exact import Exact, Found, Nearest, Rows, decide, take_rows
from lm_eval_kinject.retrieval.faiss_stores import FAISS_KINDS
from lm_eval_kinject.retrieval.filters import Allowed
from lm_eval_kinject.retrieval.index import (
    FORMAT,
    STORE_KIND,
    UNWRITABLE,
    DenseIndex,
    Progress,
    checksums,
    default_folder,
    disk_message,
    folder_problems,
    one_builder,
)
from lm_eval_kinject.retrieval.proposers import Distinct, Kind, Material, Passing, Proposer, Settings, StoreGone
from lm_eval_kinject.retrieval.qdrant_store import QdrantKind

__all__ = ["FLAT", "KINDS", "Store", "StoreSpec", "measured_recall", "open_store", "parse_store"]

FLAT = "flat"
KINDS: Mapping[str, Kind] = {kind.name: kind for kind in (*FAISS_KINDS, QdrantKind())}
"""All stores but ``flat``, by name."""

_DEPTH = 128
_MARGIN = 32
_SAMPLE = 1000
_SEED = 1234
_CUTOFFS = (1, 5)
_FEW = (
    20_000  # chunks, and the share of them, below which a filter's are searched exactly: that is fast, and misses none
)
_LITTLE = 0.1
_LOW = 0.9  # recall@5 below which a warning says so


@dataclass(frozen=True)
class StoreSpec:
    """A store and the parameters given to it, as of ``hnsw;M=32;ef=256``."""

    name: str = FLAT
    given: tuple[tuple[str, Any], ...] = ()

    @property
    def flat(self) -> bool:
        """Whether the index itself is searched."""
        return self.name == FLAT


def parse_store(text: str) -> StoreSpec:
    """A store from what stands behind ``store=``.

    Raises:
        ArgumentError: listing everything that is wrong with it.
    """
    name, *parts = (part.strip() for part in text.split(";"))
    names = (FLAT, *KINDS)
    if name not in names:
        near = difflib.get_close_matches(name.lower(), names, n=2, cutoff=0.5)
        guess = f" Did you mean {' or '.join(near)}?" if near else ""
        raise ArgumentError(f"store={name} is unknown.{guess} Use one of {', '.join(names)}.", "the store")
    takes = {} if name == FLAT else KINDS[name].parameters
    problems, given = [], {}
    for part in parts:
        key, sign, value = part.partition("=")
        if not sign or key not in takes:
            offered = (
                f"it takes {', '.join(takes)}, as store={name};{next(iter(takes))}=…" if takes else "it takes none"
            )
            problems.append(f"store={text}: {part or 'an empty part'} is no parameter of {name}; {offered}")
            continue
        try:
            given[key] = takes[key](f"store={name}: {key}", int(value) if value.isdecimal() else value)
        except ArgumentError as error:
            problems += error.problems
    if name != FLAT:
        problems += KINDS[name].problems(given)
    if problems:
        raise ArgumentError(problems, "the store")
    return StoreSpec(name, tuple(sorted(given.items())))


@dataclass(frozen=True, eq=False)
class Store:
    """A store of an index that is open.

    Attributes:
        name: behind ``store=``.
        settings: what decides its content, the index's key included.
        search: how it is searched.
        index: whose vectors decide.
        distinct: which rows share a vector.
        proposer: what it holds.
        recall: as measured with ``search`` when it was built or opened.
        path: its folder; None in memory.
    """

    name: str
    settings: Settings
    search: Settings
    index: DenseIndex
    distinct: Distinct
    proposer: Proposer
    recall: Mapping[str, Any]
    path: Path | None = None

    def finder(self, ranks: Rows, allowed: Allowed | None) -> tuple[Nearest, dict[str, Any]]:
        """What searches it, and what a result says of that.

        Args:
            ranks: what ties are broken by, of all rows.
            allowed: the chunks that may be found; None: all.
        """
        exact = Exact(self.index.vectors, ranks, None if allowed is None else allowed.rows)
        if allowed is not None and (len(allowed) <= _FEW or len(allowed) <= _LITTLE * len(ranks)):
            return exact, {**self.provenance(), "recall": None, "searched": "exactly, as the filter leaves few chunks"}
        approximate = Approximate(self, ranks, allowed, exact)
        recall = self.recall
        if allowed is not None:
            recall = measured_recall(approximate, exact, self.index.vectors, allowed.rows)
            _warn(self.name, recall, f" with filter={allowed.filter}")
        return approximate, {**self.provenance(), "recall": dict(recall)}

    def provenance(self) -> dict[str, Any]:
        """What decides the hits, plain and path-free."""
        build = {
            name: value for name, value in self.settings.items() if name not in {"format", "index", "store", "server"}
        }
        return {"name": self.name, **build, **self.search}


class Approximate:
    """Search by a store's proposals; see `exact.Nearest`.

    Attributes:
        searched_exactly: questions so far for which too little was proposed.
    """

    def __init__(self, store: Store, ranks: Rows, allowed: Allowed | None, exact: Exact) -> None:
        self._store = store
        self._ranks = ranks
        self._exact = exact
        self._mask = None if allowed is None else allowed.mask
        self._passing = None
        self._most = len(store.distinct)
        if allowed is not None:
            self._passing = Passing(allowed.filter, store.distinct.passing(allowed.mask))
            self._most = int(self._passing.ids.sum())
        self.searched_exactly = 0

    def nearest(self, questions: Vectors, k: int) -> list[Found]:
        """See `exact.Nearest`."""
        count = min(self._most, max(_DEPTH, k + _MARGIN))
        proposed = self._store.proposer.propose(questions, count, self._store.search, self._passing)
        results: list[Found] = []
        for question, ids in zip(questions, proposed, strict=True):
            rows = self._store.distinct.rows_of(ids[ids >= 0], k, self._mask)
            if len(rows) >= k:
                results.append(decide(self._store.index.vectors, self._ranks, question, rows, k))
            else:
                self.searched_exactly += 1
                results += self._exact.nearest(question[None], k)
        return results


def measured_recall(finder: Nearest, exact: Exact, vectors: Vectors, rows: Rows | None = None) -> dict[str, Any]:
    """The share of the exact nearest others of stored vectors that is found.

    Args:
        finder: is measured.
        exact: knows; over the same rows.
        vectors: shape (rows, dimension).
        rows: those that may be found; None: all.

    Returns:
        ``sample`` (up to 1,000 of the rows, drawn by ``seed``), ``recall@1`` and ``recall@5``: of the best so many
        others (as many as there are) of a sampled row, itself left out. Of a single row there is no recall.
    """
    pool = np.arange(len(vectors)) if rows is None else rows
    size = min(_SAMPLE, len(pool))
    said: dict[str, Any] = {"sample": size if len(pool) > 1 else 0, "seed": _SEED}
    if len(pool) < 2:
        return said
    sample = np.sort(np.random.default_rng(_SEED).choice(pool, size, replace=False))
    questions = np.ascontiguousarray(take_rows(vectors, sample))
    depth = min(max(_CUTOFFS) + 1, len(pool))
    lists = [searcher.nearest(questions, depth) for searcher in (exact, finder)]
    for k in _CUTOFFS:
        found = 0
        for row, (right, _), (rows_found, _) in zip(sample, *lists, strict=True):
            found += len({*_others(right, row)[:k]} & {*_others(rows_found, row)[:k]})
        said[f"recall@{k}"] = round(found / (size * min(k, depth - 1)), 6)
    return said


def _others(rows: Rows, row: int) -> list[int]:
    return [int(other) for other in rows if other != row]


def _warn(name: str, recall: Mapping[str, Any], where: str = "") -> None:
    if recall.get("recall@5", 1.0) < _LOW:
        more = {"hnsw": "raise ef= or M=", "qdrant": "raise ef= or M=", "ivf-pq": "raise nprobe= or m="}
        log.warning(
            "store=%s finds %.1f %% of the five nearest%s: %s, or use store=flat, which misses none",
            name,
            100 * recall["recall@5"],
            where,
            more.get(name, "look at its vectors"),
        )


# On disk --------------------------------------------------------------------------------------------------------------


def open_store(
    spec: StoreSpec,
    index: DenseIndex,
    corpus: Corpus,
    ranks: Rows,
    *,
    cache: str | os.PathLike[str] | None = None,
    within: bool = False,
    progress: Progress | None = None,
) -> Store:
    """Opens the store of an index, building it first where there is none; like an index, by one process at a time.

    One that lies in the index's own folder (``stores/``) is used; else it is kept in the cache beside the indexes.

    Args:
        spec: any but ``flat``.
        index: whose vectors it holds.
        corpus: that of the index.
        ranks: what ties are broken by.
        cache: default: `cache_dir`.
        within: build it in the index's own folder.
        progress: called with (distinct vectors done, in all) while it is built.

    Raises:
        ArgumentError: its parameters don't fit.
        IndexStoreError: the disk is full, or it can't be opened.
    """
    kind = KINDS[spec.name]
    given = dict(spec.given)
    build, search = kind.settings(given, *index.vectors.shape)
    settings = {"format": FORMAT, "index": index.key, "store": spec.name, **build}
    maker = _Maker(kind, given, settings, search, index, corpus, ranks, progress)
    folder = _folder(maker, cache, within)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with one_builder(folder):
            found = maker.usable(folder) or maker.build(folder)
    except OSError as problem:
        if problem.errno not in UNWRITABLE:
            raise IndexStoreError(disk_message(problem, folder)) from problem
        log.warning("the store %s can't be written (%s): it is made in memory", folder.name, problem.strerror)
        found = maker.in_memory()
    return found


def _folder(maker: _Maker, cache: str | os.PathLike[str] | None, within: bool) -> Path:
    name = f"{maker.kind.name}-{fingerprint(maker.settings)[:16]}"
    if maker.index.path is not None:
        inside = maker.index.path / "stores" / name
        if maker.kind.shareable and (within or (inside.is_dir() and not folder_problems(inside))):
            return inside
    default = default_folder(maker.corpus, maker.index.settings, cache)
    return default.with_name(f"{default.name}.{name}")


def _files(folder: Path) -> list[str]:
    """All files of a store that is finished, but for the locks of those who open it."""
    files = [file for file in folder.rglob("*") if file.is_file() and file.name != ".lock"]
    return sorted(file.relative_to(folder).as_posix() for file in files)


@dataclass(frozen=True, eq=False)
class _Maker:
    """All that a store is made of."""

    kind: Kind
    given: Settings
    settings: Settings
    search: Settings
    index: DenseIndex
    corpus: Corpus
    ranks: Rows
    progress: Progress | None

    def usable(self, folder: Path) -> Store | None:
        """The store in a folder, if it is whole; a damaged one is named."""
        if not folder.is_dir():
            return None
        problems = folder_problems(folder)
        if not problems and read_json(folder / "manifest.json")["key"] != fingerprint(self.settings):
            problems = ["it is of another index or other parameters"]
        if problems:
            log.warning("The store %s is damaged: %s. It is built anew.", folder, "; ".join(problems))
            return None
        try:
            return self._opened(folder)
        except StoreGone as problem:
            log.warning("%s The store %s is built anew.", problem, folder)
            return None

    def _opened(self, folder: Path) -> Store:
        manifest = read_json(folder / "manifest.json")
        distinct = Distinct(*(np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("rows", "starts")))
        store = self._store(distinct, self.kind.open(folder, self.settings, self.given, len(distinct)), folder)
        if manifest["search"] == self.search:
            return self._with(store, manifest["recall"])
        return self._measured(store)

    def build(self, folder: Path) -> Store:
        """Builds the store in a folder."""
        started = time.monotonic()
        building = folder.with_name(folder.name + ".building")
        shutil.rmtree(building, ignore_errors=True)
        building.mkdir(parents=True)
        distinct = Distinct.of(self.index.vectors, self.ranks)
        for name in ("rows", "starts"):
            np.save(building / f"{name}.npy", getattr(distinct, name))
        material = Material(self.index.vectors, distinct, self.corpus)
        proposer = self.kind.build(material, self.settings, self.given, building, self.progress)
        seconds = time.monotonic() - started
        recall = self._measured(self._store(distinct, proposer, building)).recall
        proposer.close()
        write_json(building / "manifest.json", self._manifest(building, distinct, recall, seconds))
        move_into_place(building, folder)
        log.info("store %s: %d vectors in %.1f s, %s", folder.name, len(distinct), seconds, dict(recall))
        return self._opened(folder)

    def in_memory(self) -> Store:
        """Builds the store for this process only."""
        distinct = Distinct.of(self.index.vectors, self.ranks)
        material = Material(self.index.vectors, distinct, self.corpus)
        return self._measured(
            self._store(distinct, self.kind.build(material, self.settings, self.given, None, self.progress), None)
        )

    def _manifest(self, folder: Path, distinct: Distinct, recall: Mapping[str, Any], seconds: float) -> dict[str, Any]:
        return {
            "kind": STORE_KIND,
            "key": fingerprint(self.settings),
            "settings": self.settings,
            "search": self.search,
            "recall": dict(recall),
            "corpus": self.corpus.name,
            "chunks": len(self.corpus),
            "distinct": len(distinct),
            "dimension": int(self.index.vectors.shape[1]),
            "files": checksums(folder, _files(folder)),
            "built": {"environment": environment(), "seconds": round(seconds, 3)},
        }

    def _store(self, distinct: Distinct, proposer: Proposer, path: Path | None) -> Store:
        return Store(self.kind.name, self.settings, self.search, self.index, distinct, proposer, {}, path)

    def _with(self, store: Store, recall: Mapping[str, Any]) -> Store:
        _warn(store.name, recall)
        return Store(
            store.name, store.settings, store.search, store.index, store.distinct, store.proposer, recall, store.path
        )

    def _measured(self, store: Store) -> Store:
        exact = Exact(self.index.vectors, self.ranks)
        return self._with(
            store, measured_recall(Approximate(store, self.ranks, None, exact), exact, self.index.vectors)
        )
