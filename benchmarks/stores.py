"""Stores measured: recall, latency, time to build, size and memory of ``store=`` over made-up vectors.

What it is for: the figures in docs/log.md, and for finding out which store pays at one's own size. What it does not do:
say how much a store misses of real texts; that is measured whenever one is built, and stands in its manifest.

The one idea: every figure of memory is that of a process which did nothing else. So vectors, exact answers, each
building and each searching are processes of their own, one after the other, and their peaks are the system's (VmHWM:
what was mapped and touched counts; in brackets the most that was the process's own, sampled).

The vectors are unit ones of `--dimension` numbers, as those of embedded texts: a mixture of clusters in 48 directions,
with some noise in all. Questions are further draws of the same mixture, 200 of them; the exact five nearest of each are
what recall@5 asks for (the "own figure" is that of the manifest, of stored vectors). They are asked one at a time.
Seconds of CPU stand beside those of the clock, as the machine may be shared; the CPU's of a building hold the measuring
of its recall, too.

    python benchmarks/stores.py --sizes 1000,10000,100000
    python benchmarks/stores.py --sizes 10000000 --threads 2 --limit-gib 12      # exits with 1 above 12 GiB
    python benchmarks/stores.py --stores 'flat,hnsw,hnsw;M=32,ivf-pq;nprobe=200' --sizes 1000000
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

RESULTS = Path(__file__).parent / "results"
K = 5
_LATENT = 48
_NOISE = 0.02  # in each of all numbers, beside a length of about 1
_A_CLUSTER = 1000  # vectors: more than are proposed of a question, or the exact products would mend everything
_SPREAD = 0.7  # of a cluster, against the distance of clusters
_PIECE = 1 << 16
_QDRANT_MOST = 20_000  # vectors from which on qdrant-client itself advises against its local mode


def main() -> int:
    arguments = _arguments()
    if arguments.step is not None:
        print(json.dumps(_step(arguments)))
        return 0
    _print_heading(arguments)
    rows = []
    with tempfile.TemporaryDirectory(dir=arguments.folder) as scratch:
        for size in map(int, arguments.sizes.split(",")):
            rows += _measure(arguments, size, Path(scratch) / str(size))
    if arguments.out is not None:
        found = {"date": date.today().isoformat(), "environment": _environment(), "arguments": vars(arguments)}
        arguments.out.write_text(json.dumps({**found, "rows": rows}, indent=2, default=str) + "\n", encoding="utf-8")
    above = [row for row in rows if row["peak_gib"] > arguments.limit_gib]
    for row in above:
        print(f"above {arguments.limit_gib} GiB: {row['store']} with {row['size']} vectors, {row['peak_gib']:.2f} GiB")
    return int(bool(above))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", default="1000,10000,100000", help="numbers of vectors, comma-separated")
    parser.add_argument("--stores", default="flat,sq8,hnsw,ivf-pq", help="as in store=, comma-separated")
    parser.add_argument("--dimension", type=int, default=384)
    parser.add_argument("--questions", type=int, default=200)
    parser.add_argument("--threads", type=int, default=1, help="of FAISS; a graph is built by one all the same")
    parser.add_argument("--folder", type=Path, help="for vectors and stores (default: the system's temporary folder)")
    parser.add_argument("--limit-gib", type=float, default=12.0, help="memory above which the exit code is 1")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--out", type=Path, help=f"write the figures as JSON, for example into {RESULTS.name}/")
    parser.add_argument("--step", choices=("vectors", "truth", "build", "search"), help=argparse.SUPPRESS)
    parser.add_argument("--size", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--store", help=argparse.SUPPRESS)
    return parser.parse_args()


def _environment() -> dict[str, Any]:
    from lm_eval_kinject.provenance import environment

    return environment()


def _print_heading(arguments: argparse.Namespace) -> None:
    found = _environment()
    versions = ", ".join(f"{name} {found['packages'][name]}" for name in ("faiss-cpu", "numpy"))
    print(
        f"{date.today().isoformat()}, {found['cpu']}, {found['cpu_count']} cores, Python {found['python']}, {versions}"
    )
    print(f"{arguments.dimension} numbers a vector, {arguments.questions} questions, {arguments.threads} thread(s)\n")
    heads = ("vectors", "store", "recall@5", "own figure", "ms a question: median, 95 %, CPU", "build: seconds, CPU")
    heads = (*heads, "store", "peak (own) GiB, build", "search")
    print(f"| {' | '.join(heads)} |\n{'|---' * len(heads)}|", flush=True)


def _measure(arguments: argparse.Namespace, size: int, folder: Path) -> list[dict[str, Any]]:
    folder.mkdir()
    _run(arguments, folder, size, "vectors")
    _run(arguments, folder, size, "truth")
    rows = []
    for store in arguments.stores.split(","):
        if store.startswith("qdrant") and size > _QDRANT_MOST:
            continue
        built = {} if store == "flat" else _run(arguments, folder, size, "build", store)
        searched = _run(arguments, folder, size, "search", store)
        row = {"size": size, "store": store, "build": built, "search": searched}
        row["peak_gib"] = max(built.get("peak_gib", 0.0), searched["peak_gib"])
        rows.append(row)
        _print_row(row)
    return rows


def _print_row(row: dict[str, Any]) -> None:
    built, searched = row["build"], row["search"]
    own = built.get("recall", {}).get("recall@5")
    cells = [
        f"{row['size']:,}",
        f"`{row['store']}`",
        f"{searched['recall']:.3f}",
        "" if own is None else f"{own:.3f}",
        f"{searched['median_ms']:.2f}, {searched['slow_ms']:.2f}, {searched['cpu_ms']:.2f}",
        f"{built['seconds']:.1f}, {built['cpu_seconds']:.1f}" if built else "",
        f"{searched['bytes'] / 2**20:,.1f} MiB",
        f"{built['peak_gib']:.2f} ({built['own_gib']:.2f})" if built else "",
        f"{searched['peak_gib']:.2f} ({searched['own_gib']:.2f})",
    ]
    print(f"| {' | '.join(cells)} |", flush=True)


def _run(arguments: argparse.Namespace, folder: Path, size: int, step: str, store: str = "") -> dict[str, Any]:
    """One step in a process of its own; what it prints last, read."""
    command = [sys.executable, __file__, "--step", step, "--size", str(size), "--folder", str(folder)]
    for name in ("dimension", "questions", "threads", "seed"):
        command += [f"--{name}", str(getattr(arguments, name))]
    environment = {**os.environ, "OMP_NUM_THREADS": str(arguments.threads), "TQDM_DISABLE": "1"}
    done = subprocess.run(
        [*command, "--store", store], stdout=subprocess.PIPE, text=True, check=True, env=environment
    )  # fmt: skip
    return json.loads(done.stdout.splitlines()[-1])


# A step, in its own process -------------------------------------------------------------------------------------------


def _step(arguments: argparse.Namespace) -> dict[str, Any]:
    own = _Own()
    steps = {"vectors": _vectors, "truth": _truth, "build": _build, "search": _search}
    found = steps[arguments.step](arguments)
    return {**found, "peak_gib": _status("VmHWM"), "own_gib": own.stop()}


class _Own:
    """The most anonymous memory that this process has, looked at 20 times a second."""

    def __init__(self) -> None:
        self._most, self._done = 0.0, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._done.wait(0.05):
            self._most = max(self._most, _status("RssAnon"))

    def stop(self) -> float:
        self._done.set()
        self._thread.join()
        return max(self._most, _status("RssAnon"))


def _status(name: str) -> float:
    """A line of /proc/self/status, in GiB."""
    text = Path("/proc/self/status").read_text(encoding="ascii")
    match = re.search(rf"^{name}:\s+(\d+) kB", text, re.MULTILINE)
    return int(match[1]) / 2**20 if match else float("nan")


class _Mixture:
    """Draws unit vectors; a draw of so many is a matter of seed and number alone."""

    def __init__(self, size: int, dimension: int, seed: int) -> None:
        rng = np.random.default_rng([seed, 0])
        latent = min(_LATENT, dimension)
        self._centres = rng.standard_normal((max(1, size // _A_CLUSTER), latent)).astype(np.float32)
        self._turn = (rng.standard_normal((latent, dimension)) / np.sqrt(latent * dimension)).astype(np.float32)
        self._seed = seed

    def draw(self, number: int, count: int) -> np.ndarray:
        rng = np.random.default_rng([self._seed, number])
        near = self._centres[rng.integers(len(self._centres), size=count)]
        points = near + _SPREAD * rng.standard_normal(near.shape, dtype=np.float32)
        vectors = points @ self._turn + _NOISE * rng.standard_normal((count, self._turn.shape[1]), dtype=np.float32)
        return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype("<f4")


def _vectors(arguments: argparse.Namespace) -> dict[str, Any]:
    mixture = _Mixture(arguments.size, arguments.dimension, arguments.seed)
    np.save(arguments.folder / "questions.npy", mixture.draw(1, arguments.questions))
    with open(arguments.folder / "embeddings.npy", "wb") as handle:
        shape = (arguments.size, arguments.dimension)
        np.lib.format.write_array_header_1_0(handle, {"descr": "<f4", "fortran_order": False, "shape": shape})
        for number, start in enumerate(range(0, arguments.size, _PIECE), start=2):
            handle.write(mixture.draw(number, min(_PIECE, arguments.size - start)).tobytes())
    return {}


def _truth(arguments: argparse.Namespace) -> dict[str, Any]:
    from lm_eval_kinject.retrieval.exact import Exact

    _threads(arguments)
    found = Exact(_mapped(arguments), np.arange(arguments.size)).nearest(_questions(arguments), K)
    np.save(arguments.folder / "truth.npy", np.stack([rows for rows, _ in found]))
    return {}


def _build(arguments: argparse.Namespace) -> dict[str, Any]:
    started = time.process_time()
    store = _store(arguments)
    spent = time.process_time() - started
    manifest = json.loads((store.path / "manifest.json").read_text(encoding="utf-8"))
    told = {"recall": dict(store.recall), "settings": store.provenance(), "cpu_seconds": spent}
    return {**told, "seconds": manifest["built"]["seconds"]}


def _search(arguments: argparse.Namespace) -> dict[str, Any]:
    from lm_eval_kinject.retrieval.exact import Exact

    _threads(arguments)
    ranks = np.arange(arguments.size)
    if arguments.store == "flat":
        vectors = _mapped(arguments)
        finder, size = Exact(vectors, ranks), vectors.nbytes
    else:
        store = _store(arguments)
        finder, _ = store.finder(ranks, None)
        size = sum(file.stat().st_size for file in store.path.rglob("*") if file.is_file())
    questions, truth = _questions(arguments), np.load(arguments.folder / "truth.npy")
    finder.nearest(questions[:1], K)  # what is loaded at the first use
    found, times, cpu = 0, [], time.process_time()
    for question, right in zip(questions, truth, strict=True):
        started = time.perf_counter()
        ((rows, _),) = finder.nearest(question[None], K)
        times.append(1000 * (time.perf_counter() - started))
        found += len({*map(int, rows)} & {*map(int, right)})
    cpu = 1000 * (time.process_time() - cpu) / len(questions)
    told = {"median_ms": float(np.median(times)), "slow_ms": float(np.quantile(times, 0.95)), "cpu_ms": cpu}
    return {**told, "recall": found / truth.size, "bytes": size}


def _threads(arguments: argparse.Namespace) -> None:
    from lm_eval_kinject.retrieval.exact import load_faiss

    load_faiss().omp_set_num_threads(arguments.threads)


def _mapped(arguments: argparse.Namespace) -> np.ndarray:
    return np.load(arguments.folder / "embeddings.npy", mmap_mode="r")


def _questions(arguments: argparse.Namespace) -> np.ndarray:
    return np.load(arguments.folder / "questions.npy")


class _Chunks(Sequence):
    """Chunks that are made when they are asked for, as ten million would take gigabytes."""

    def __init__(self, size: int) -> None:
        self._size = size

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, row: Any) -> Any:
        from lm_eval_kinject.records import Chunk

        if not 0 <= row < self._size:
            raise IndexError(row)
        return Chunk(f"{row:09}", "a text")


def _store(arguments: argparse.Namespace) -> Any:
    from lm_eval_kinject.corpus import Corpus
    from lm_eval_kinject.retrieval import DenseIndex
    from lm_eval_kinject.retrieval.stores import open_store, parse_store

    _threads(arguments)
    settings = {"made up": [arguments.size, arguments.dimension, arguments.seed]}
    index = DenseIndex(_mapped(arguments), settings, f"made-up-{arguments.size}", 0)
    corpus = Corpus("made-up", _Chunks(arguments.size), "made up", "made by a benchmark")  # type: ignore[arg-type]
    return open_store(
        parse_store(arguments.store), index, corpus, np.arange(arguments.size), cache=arguments.folder
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
