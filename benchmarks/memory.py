"""Memory measured: what a corpus of a million chunks takes to build, to open and to index.

What it is for: the figures in docs/log.md. What it does not do: measure searching by words, or embedding (the vectors
are random).

The one idea: each step runs in a process of its own, whose peak of resident memory the system has counted. That a
corpus is held in memory, as all were before version 0.1, is one step more: the same code with a limit that it never
reaches.

    python benchmarks/memory.py --chunks 1000000 --folder /tmp/million
"""

from __future__ import annotations

import argparse
import os
import random
import resource
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

from lm_eval_kinject.corpus import load_corpus, mapped
from lm_eval_kinject.corpus.build import build_corpus
from lm_eval_kinject.corpus.sources.files import Source
from lm_eval_kinject.provenance import environment
from lm_eval_kinject.records import Chunk
from lm_eval_kinject.retrieval import build_index

STEPS = ("import", "build", "held", "mapped", "read", "index")
DIMENSION = 384  # MiniLM's


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--chunks", type=int, default=1_000_000)
    parser.add_argument("--folder", type=Path, required=True, help="for corpus, index and cache: 5 GB for a million")
    parser.add_argument("--steps", default=",".join(STEPS), help=f"comma-separated: {', '.join(STEPS)}")
    parser.add_argument("--step", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.step:
        _STEPS[arguments.step](arguments.folder, arguments.chunks)
        return
    found = environment()
    print(
        f"{date.today().isoformat()}, {found['cpu']}, Python {found['python']}, {arguments.chunks:,} chunks", flush=True
    )
    for step in arguments.steps.split(","):
        _measure(step, arguments)


def _measure(step: str, arguments: argparse.Namespace) -> None:
    command = [sys.executable, __file__, "--step", step, "--chunks", str(arguments.chunks)]
    before = time.perf_counter()
    cache = {"KINJECT_CACHE": str(arguments.folder / "cache")}
    child = subprocess.Popen([*command, "--folder", str(arguments.folder)], env={**os.environ, **cache})
    _, status, used = os.wait4(child.pid, 0)
    cpu, wall = used.ru_utime + used.ru_stime, time.perf_counter() - before
    unit = 1 if sys.platform == "darwin" else 1024
    told = "" if status == 0 else f"  FAILED ({status})"
    print(f"{step:7} peak {used.ru_maxrss * unit / 2**20:7,.0f} MiB  {cpu:6.1f} CPU s  {wall:6.1f} s{told}", flush=True)


class _Rows:
    """Chunks of 860 characters, typographic quotes among them, as news has them."""

    def __init__(self, chunks: int) -> None:
        self.chunks = chunks

    def __iter__(self) -> Iterator[Chunk]:
        sentence = "The council “of number {}” met again, and nothing was decided about the bridge. "
        for row in range(self.chunks):
            text = "".join(sentence.format(row * 7 + i) for i in range(12))[:860]
            yield Chunk(f"c{row}", text, f"Title {row}", f"c{row}", meta={"url": f"https://example.org/{row}"})


class _Random:
    """Random vectors: an encoder that costs nothing."""

    settings: dict[str, Any] = {"name": "random", "dimension": DIMENSION}  # noqa: RUF012
    device = "cpu"
    queries_cut = 0

    def encode_queries(self, texts: Sequence[str]) -> Any:
        return np.random.default_rng(len(texts)).standard_normal((len(texts), DIMENSION), dtype=np.float32)

    def encode_passages(self, chunks: Sequence[Chunk]) -> tuple[Any, int]:
        return self.encode_queries([chunk.text for chunk in chunks]), 0

    def reads(self, chunk: Chunk) -> str:
        return chunk.text


def _build(folder: Path, chunks: int) -> None:
    build_corpus("million", Source(_Rows(chunks), "made up", fingerprint=f"{chunks} rows"), folder / "corpus")


def _held(folder: Path, chunks: int) -> None:
    mapped.LIMIT = 1 << 60
    assert isinstance(load_corpus(folder / "corpus").chunks, tuple)


def _mapped(folder: Path, chunks: int) -> None:
    assert len(load_corpus(folder / "corpus")) == chunks


def _read(folder: Path, chunks: int) -> None:
    """Opens it, reads every chunk once in order, then 10,000 anywhere."""
    corpus = load_corpus(folder / "corpus")
    opened = resource.getrusage(resource.RUSAGE_SELF).ru_utime
    assert sum(len(chunk.text) for chunk in corpus.chunks) == 860 * chunks
    through = resource.getrusage(resource.RUSAGE_SELF).ru_utime
    rows = random.Random(1).choices(range(chunks), k=10_000)
    assert all(corpus.chunks[row].id == f"c{row}" for row in rows)
    anywhere = resource.getrusage(resource.RUSAGE_SELF).ru_utime
    print(f"        all in {through - opened:.1f} CPU s, one in {(anywhere - through) / 10_000 * 1e6:.0f} microseconds")


def _index(folder: Path, chunks: int) -> None:
    corpus = load_corpus(folder / "corpus")
    assert build_index(corpus, _Random(), path=folder / "index").vectors.shape == (chunks, DIMENSION)


_STEPS = {
    "import": lambda folder, chunks: None,
    "build": _build,
    "held": _held,
    "mapped": _mapped,
    "read": _read,
    "index": _index,
}

if __name__ == "__main__":
    main()
