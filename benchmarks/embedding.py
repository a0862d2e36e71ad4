"""What embeds fastest on a processor, and what that costs: speed, likeness of the vectors and recall, side by side.

What it is for: the figures on retriever_backend, retriever_dtype and retriever=static in docs/log.md. What it does not
do: search (benchmarks/retrieval.py measures that), or compare encoders.

The one idea: all choices embed the same chunks in one run, in turn, and are compared with the first one. Seconds are of
the processor, since the machine may be shared.

    python benchmarks/embedding.py --corpus realtimeqa:PATH --sample 64 --threads 1
    python benchmarks/embedding.py --questions current_events --choices float32,openvino-bfloat16 --sample 0
    python benchmarks/embedding.py --corpus realtimeqa:PATH --questions realtimeqa:PATH --every 10
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

import numpy as np
import retrieval as searching  # beside this file
import torch

from lm_eval_kinject.corpus import Corpus, load_corpus, make_corpus
from lm_eval_kinject.corpus.sources.files import Source
from lm_eval_kinject.provenance import environment
from lm_eval_kinject.records import Chunk
from lm_eval_kinject.retrieval import encoders, make_retriever


@dataclass(frozen=True)
class Choice:
    """What `make_retriever` and `load_encoder` are told, and how many tokens go together."""

    name: str = "minilm"
    dtype: Any = "float32"
    backend: Any = "torch"
    tokens: int = encoders._TOKENS_A_BATCH["cpu"]


CHOICES = {
    "before": Choice(tokens=8192),  # the default until there were choices
    "float32": Choice(),
    "bfloat16": Choice(dtype="bfloat16"),
    "openvino-float32": Choice(backend="openvino"),
    "openvino-bfloat16": Choice(dtype="bfloat16", backend="openvino"),
    "static": Choice("static"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--corpus", default="current_events", help="as in corpus=")
    parser.add_argument("--questions", help="measure recall, too: as in benchmarks/retrieval.py")
    parser.add_argument("--choices", default=",".join(CHOICES), help=f"comma-separated: {', '.join(CHOICES)}")
    parser.add_argument(
        "--sample", type=int, default=64, help="chunks that are embedded for the speed; 0: leave it out"
    )
    parser.add_argument("--every", type=int, default=1, help="recall over every Nth chunk")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--cache", help="keep indexes here (default: a temporary folder)")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    corpus, chosen = load_corpus(arguments.corpus), arguments.choices.split(",")
    found = environment()
    print(f"{date.today().isoformat()}, {found['cpu']}, {arguments.threads} threads, torch {torch.__version__}")
    if arguments.sample:
        _speed(corpus, chosen, arguments.sample)
    if arguments.questions:
        with tempfile.TemporaryDirectory() as temporary:
            _recall(corpus, chosen, arguments, arguments.cache or temporary)


def _speed(corpus: Corpus, chosen: Sequence[str], sample: int) -> None:
    chunks = random.Random(0).sample(list(corpus.chunks), min(sample, len(corpus)))
    print(f"{len(chunks)} of {len(corpus)} chunks of {corpus.name}; cosines with {chosen[0]}")
    first: tuple[float, np.ndarray] | None = None
    for name in chosen:
        choice = CHOICES[name]
        encoders._TOKENS_A_BATCH["cpu"] = choice.tokens
        spec = encoders.KNOWN[choice.name]
        loading, encoder = _timed(
            lambda c=choice, s=spec: encoders.load_encoder(
                c.name, spec=s, dtype=c.dtype, backend=c.backend, device="cpu"
            )
        )
        encoder.encode_passages(chunks[: max(1, sample // 8)])  # warms up
        seconds, vectors = _timed(lambda e=encoder: _unit(e, chunks))
        first = first or (seconds, vectors)
        speed = len(chunks) / seconds
        line = f"{name:18} {speed:8.1f} chunks/CPU s  {first[0] / seconds:6.2f} times  load {loading:.1f} s"
        if vectors.shape == first[1].shape:
            cosines = (vectors * first[1]).sum(axis=1)
            line += f"  cosine {cosines.min():.5f} to {cosines.max():.5f}, mean {cosines.mean():.5f}"
        print(line, flush=True)


def _timed(do: Callable[[], Any]) -> tuple[float, Any]:
    began = time.process_time()
    result = do()
    return time.process_time() - began, result


def _unit(encoder: Any, chunks: Sequence[Chunk]) -> np.ndarray:
    vectors = encoder.encode_passages(chunks)[0]
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def _recall(corpus: Corpus, chosen: Sequence[str], arguments: argparse.Namespace, cache: str) -> None:
    part = corpus
    if arguments.every > 1:
        part = make_corpus(corpus.name, Source(corpus.chunks[:: arguments.every], f"every {arguments.every}th chunk"))
    queries, answers = searching._questions(arguments.questions)
    print(f"{len(part)} chunks, {len(queries)} questions")
    for name in chosen:
        choice = CHOICES[name]
        encoders._TOKENS_A_BATCH["cpu"] = choice.tokens
        told = {"dtype": choice.dtype, "backend": choice.backend, "cache": cache, "device": "cpu"}
        seconds, retriever = _timed(lambda c=choice, t=told: make_retriever(c.name, part, **t))
        hits = retriever.search(queries, max(searching.KS))
        print(f"{name}: ready in {seconds:.1f} CPU s", flush=True)
        searching._print_recall(part, queries, answers, hits)


if __name__ == "__main__":
    main()
