"""Stores by FAISS: ``sq8``, ``hnsw`` and ``ivf-pq``, each one file, mapped when it is opened.

What it is for: proposals out of a copy of the vectors that is four times smaller (``sq8``, ``hnsw``) or thirty times
(``ivf-pq``), read whole (``sq8``) or in part. What it does not do: decide; `stores.py` does, by the exact vectors.

The one idea: codes alone are held, never the vectors, so that 10 million of 384 numbers stay below 12 GiB with any of
the three. What codes lose is mended by the exact products of some more candidates than are asked for. With n chunks of
d numbers:

    sq8      a byte a number; every code is read                    n * d bytes
    hnsw     the same codes, as a graph of near ones that is walked  + n * M * 8 bytes of links
    ivf-pq   m bytes a vector, in nlist lists; nprobe are read      n * (m + 8) bytes

A graph depends on the order in which vectors come to it, so it is built by one thread: equal builds are equal bytes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lm_eval_kinject.errors import ArgumentError, IndexStoreError
from lm_eval_kinject.retrieval.encoders import Vectors
from lm_eval_kinject.retrieval.exact import Rows, load_faiss
from lm_eval_kinject.retrieval.index import Progress
from lm_eval_kinject.retrieval.proposers import Material, Passing, Proposer, Settings, largest_divisor
from lm_eval_kinject.stages import Check, whole

__all__ = ["FAISS_KINDS", "FaissKind"]

_FILE = "store.faiss"
_SEED = 1234
_SAMPLE = 1 << 16  # vectors that codes are learnt from
_A_LIST = 64  # vectors a list that lists are learnt from
_MOST = 1 << 19
_ALONE = 16  # questions at a time: from 20 on FAISS finds lists by a product whose last bits depend on the company
_WIDEST = 16  # how far a filter may widen a search


@dataclass(frozen=True)
class FaissKind:
    """A sort of store that is one FAISS index; see `proposers.Kind`.

    ``fill`` gives both settings; ``learn`` an index that has learnt its codes; ``search`` the parameters of a search,
    of which ``wider`` asks for as many times as much.
    """

    name: str
    parameters: Mapping[str, Check]
    fill: Callable[[Settings, int, int], tuple[Settings, Settings]]
    learn: Callable[[Any, Material, Settings], Any]
    search: Callable[[Any, Settings, Any, float], Any]
    one_thread: bool = False
    shareable: bool = True

    def problems(self, given: Settings) -> list[str]:
        """See `proposers.Kind`; what there is depends on the corpus, and `settings` says it."""
        return []

    def settings(self, given: Settings, chunks: int, dimension: int) -> tuple[Settings, Settings]:
        """See `proposers.Kind`."""
        return self.fill(given, chunks, dimension)

    def build(
        self, material: Material, settings: Settings, given: Settings, folder: Path | None, progress: Progress | None
    ) -> Proposer:
        """See `proposers.Kind`."""
        faiss = load_faiss()
        index = self.learn(faiss, material, settings)
        with _threads(faiss, 1 if self.one_thread else None):
            for start, piece in material.pieces():
                index.add(piece)
                if progress is not None:
                    progress(start + len(piece), len(material.distinct))
        if folder is None:
            return _Open(index, self.search)
        faiss.write_index(index, str(folder / _FILE))
        del index
        return self.open(folder, settings, given, len(material.distinct))

    def open(self, folder: Path, settings: Settings, given: Settings, distinct: int) -> Proposer:
        """See `proposers.Kind`."""
        faiss = load_faiss()
        flags = faiss.IO_FLAG_MMAP if self.name == "ivf-pq" else faiss.IO_FLAG_MMAP_IFC
        try:
            return _Open(faiss.read_index(str(folder / _FILE), flags), self.search)
        except RuntimeError as problem:  # its checksum was right, so it is of another version
            raise IndexStoreError(
                f"The store {folder} can't be read by this FAISS ({str(problem).splitlines()[0][:120]}): delete it; "
                f"it is built anew."
            ) from problem


@dataclass(frozen=True, eq=False)
class _Open:
    """An index that is open."""

    index: Any
    search: Callable[[Any, Settings, Any, float], Any]

    def propose(self, questions: Vectors, count: int, search: Settings, passing: Passing | None) -> Rows:
        """See `proposers.Proposer`. A filter widens the search by the share that it leaves, 16 times at most."""
        faiss = load_faiss()
        bits = None if passing is None else np.packbits(passing.ids, bitorder="little")
        selector = None if bits is None else faiss.IDSelectorBitmap(bits)
        wider = 1.0 if passing is None else min(_WIDEST, 1 / max(passing.share, 1 / _WIDEST))
        parameters = self.search(faiss, search, selector, wider)
        found = [
            self.index.search(np.ascontiguousarray(questions[start : start + _ALONE]), count, params=parameters)[1]
            for start in range(0, len(questions), _ALONE)
        ]
        return np.concatenate(found)

    def close(self) -> None:
        """Nothing is open but the map, which goes with the index."""


@contextmanager
def _threads(faiss: Any, count: int | None) -> Iterator[None]:
    before = faiss.omp_get_max_threads()
    if count is not None:
        faiss.omp_set_num_threads(count)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)


# sq8 ------------------------------------------------------------------------------------------------------------------


def _fill_sq8(given: Settings, chunks: int, dimension: int) -> tuple[Settings, Settings]:
    return {"seed": _SEED}, {}


def _learn_sq8(faiss: Any, material: Material, settings: Settings) -> Any:
    index = faiss.IndexScalarQuantizer(
        material.dimension, faiss.ScalarQuantizer.QT_8bit, faiss.METRIC_INNER_PRODUCT
    )  # fmt: skip
    index.train(material.sample(_SAMPLE, settings["seed"]))
    return index


def _search_sq8(faiss: Any, search: Settings, selector: Any, wider: float) -> Any:
    return faiss.SearchParameters(sel=selector)


# hnsw -----------------------------------------------------------------------------------------------------------------


def _fill_hnsw(given: Settings, chunks: int, dimension: int) -> tuple[Settings, Settings]:
    build = {"M": given.get("M", 16 if chunks <= 1_000_000 else 24), "ef_construction": 100, "seed": _SEED}
    usual = 128 if chunks <= 100_000 else 256 if chunks <= 1_000_000 else 512
    return build, {"ef": given.get("ef", usual)}


def _learn_hnsw(faiss: Any, material: Material, settings: Settings) -> Any:
    index = faiss.IndexHNSWSQ(
        material.dimension, faiss.ScalarQuantizer.QT_8bit, settings["M"], faiss.METRIC_INNER_PRODUCT
    )
    index.hnsw.efConstruction = settings["ef_construction"]
    index.train(material.sample(_SAMPLE, settings["seed"]))
    return index


def _search_hnsw(faiss: Any, search: Settings, selector: Any, wider: float) -> Any:
    return faiss.SearchParametersHNSW(efSearch=math.ceil(search["ef"] * wider), sel=selector)


# ivf-pq ---------------------------------------------------------------------------------------------------------------


def _fill_ivf_pq(given: Settings, chunks: int, dimension: int) -> tuple[Settings, Settings]:
    nlist = given.get("nlist", max(1, min(chunks, round(2 * math.sqrt(chunks)))))
    nprobe = given.get("nprobe", min(nlist, max(8, round(2 * math.sqrt(nlist)))))
    m = given.get("m", largest_divisor(dimension, dimension // 8))
    problems = []
    if nlist > chunks:
        problems.append(f"nlist={nlist} is more than the {chunks} chunks of the corpus: pass nlist={chunks} or less")
    if nprobe > nlist:
        problems.append(f"nprobe={nprobe} is more than the {nlist} lists that there are: pass nprobe={nlist} or less")
    if dimension % m:
        near = largest_divisor(dimension, m)
        problems.append(f"m={m} doesn't divide the {dimension} numbers of a vector: pass m={near}, for example")
    if problems:
        raise ArgumentError(problems, "store=ivf-pq")
    return {"nlist": nlist, "m": m, "seed": _SEED}, {"nprobe": nprobe}


def _learn_ivf_pq(faiss: Any, material: Material, settings: Settings) -> Any:
    """Fewer distinct vectors than lists, or than the 256 codes of a byte, make fewer of both."""
    count = len(material.distinct)
    nlist = min(settings["nlist"], count)
    bits = max(1, min(8, int(math.log2(count)))) if count > 1 else 1
    sample = material.sample(min(_MOST, max(_SAMPLE, _A_LIST * nlist)), settings["seed"])
    if len(sample) < 2:
        sample = np.repeat(sample, 2, axis=0)  # of a single vector two codes can't be learnt
    coarse = faiss.IndexFlatIP(material.dimension)
    index = faiss.IndexIVFPQ(coarse, material.dimension, nlist, settings["m"], bits, faiss.METRIC_INNER_PRODUCT)
    for clustering in (index.cp, index.pq.cp):
        clustering.min_points_per_centroid = 1
        clustering.seed = settings["seed"]
    index.train(sample)
    return index


def _search_ivf_pq(faiss: Any, search: Settings, selector: Any, wider: float) -> Any:
    return faiss.SearchParametersIVF(nprobe=math.ceil(search["nprobe"] * wider), sel=selector)


FAISS_KINDS = (
    FaissKind("hnsw", {"M": whole(2, "links"), "ef": whole(1, "vectors")}, _fill_hnsw, _learn_hnsw, _search_hnsw, True),
    FaissKind(
        "ivf-pq",
        {"nlist": whole(1, "lists"), "nprobe": whole(1, "lists"), "m": whole(1, "bytes")},
        _fill_ivf_pq,
        _learn_ivf_pq,
        _search_ivf_pq,
    ),
    FaissKind("sq8", {}, _fill_sq8, _learn_sq8, _search_sq8),
)
"""The three, by name in alphabetical order."""
