"""Recall of a retriever, before and after, over the same questions.

What it is for: `ranks` asks a retriever, `compare` says what changed and how sure that is. What it does not do: it
trains nothing.

The one idea: both are asked in pairs, so what counts is the questions of which one of them alone finds the chunk first
(McNemar's exact test, over chunks, as two questions about one chunk are not two independent ones).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kinject_trainer.retriever.material import Material
from lm_eval_kinject.records import Query
from lm_eval_kinject.retrieval import make_retriever
from lm_eval_kinject.stats import mcnemar

__all__ = ["DEPTH", "compare", "ranks"]

DEPTH = 5
_AT = (1, 3, 5)


def ranks(retriever: str, measured: Material, *, revision: str | None = None, cache: str | None = None) -> list[int]:
    """Of each question the rank of its chunk, from 1; 0: it isn't among the first `DEPTH`.

    Args:
        retriever: what `retriever=` takes.
        measured: questions and the corpus.
        revision: as of `make_retriever`.
        cache: where the index is kept; default: where all are.
    """
    made = make_retriever(retriever, measured.corpus, revision=revision, cache=cache)
    depth = min(DEPTH, len(measured.corpus))
    hits = made.search([Query(question.text, question.gold) for question in measured.questions], depth)
    return [
        next((hit.rank for hit in found if hit.chunk.id == question.gold), 0)
        for question, found in zip(measured.questions, hits, strict=True)
    ]


def compare(before: Sequence[int], after: Sequence[int], chunks: Sequence[str]) -> dict[str, Any]:
    """Recall at 1, 3 and 5 of both, and how many questions changed.

    Args:
        before, after: of `ranks`.
        chunks: of each question.

    Returns:
        ``before`` and ``after`` (``recall@1`` …), ``better`` and ``worse`` (questions whose chunk came first only
        after, only before), ``p`` (two-sided, of recall@1).
    """
    first, second = ([rank == 1 for rank in found] for found in (before, after))
    return {
        "questions": len(before),
        "before": _recall(before),
        "after": _recall(after),
        "better": sum(new and not old for old, new in zip(first, second, strict=True)),
        "worse": sum(old and not new for old, new in zip(first, second, strict=True)),
        "p": mcnemar([float(x) for x in second], [float(x) for x in first], chunks),
    }


def _recall(found: Sequence[int]) -> dict[str, float]:
    return {f"recall@{k}": sum(0 < rank <= k for rank in found) / len(found) for k in _AT}
