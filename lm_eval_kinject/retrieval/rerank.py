"""Rerankers: what looks at the best hits again before some of them go into the prompt; the slot ``rerank``.

What it is for: `ByModel` (a cross-encoder, which reads question and chunk together) and `MMR` (chunks that say
something new). What it does not do: it finds nothing; a chunk that isn't among the ``rerank_from`` best hits of the
retriever stays behind them.

The one idea: a list is decided by its question and its hits alone. Pairs are scored in batches of one question's, so
the same question with the same hits gives the same bits in any company; what scores alike keeps the order it came in.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from lm_eval_kinject.errors import RetrievalError
from lm_eval_kinject.hub.fetch import locate_model
from lm_eval_kinject.log import log
from lm_eval_kinject.records import Hit, Query
from lm_eval_kinject.retrieval.dense import DenseRetriever
from lm_eval_kinject.retrieval.hybrid import Hybrid
from lm_eval_kinject.retrieval.library import Ranker, Reranker, Search
from lm_eval_kinject.retrieval.make import kind_of
from lm_eval_kinject.retrieval.protocol import Hits, Retriever
from lm_eval_kinject.stages import Open, argument, register, share, whole

__all__ = ["MMR", "ByModel", "CrossEncoder"]

_FROM = 20
_BATCH = 32  # pairs, of one question
_NO_LIMIT = 1 << 20  # tokens; tokenizers write "none" as a far larger number, which no tokenizer takes back
_ADVICE = "Without a network pass rerank= the folder of a cross-encoder, or leave it out."


def _rerank_from() -> Any:
    return argument("the retriever's best hits that are ranked again, k or more", whole(1, "hits"), _FROM)


def _too_few(given: Mapping[str, Any]) -> list[str]:
    """Problems that all rerankers have: fewer hits than go into the prompt, or hits that aren't ranked."""
    retriever, k = given.get("retriever", Search.retriever), given.get("k", Search.k)
    seen = given.get("rerank_from", _FROM)
    problems = []
    if retriever in {"oracle", "full"}:
        what = "one chunk" if retriever == "oracle" else "everything"
        problems.append(
            f"rerank={given['rerank']} has no meaning for retriever={retriever}, which gives {what}; remove it"
        )
    elif k > seen and retriever != "none":
        problems.append(
            f"k={k} chunks can't be chosen from rerank_from={seen} hits; pass rerank_from={k} or more, or a smaller k"
        )
    return problems


# A cross-encoder ------------------------------------------------------------------------------------------------------


def _is_model(word: str) -> bool:
    if not word.strip() or Path(word).expanduser().is_dir():
        return bool(word.strip())
    is_id = re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@[\w./-]+)?", word) is not None
    return is_id and not Path(word.partition("/")[0]).is_dir()  # else it is a path in this folder, misspelt


@register
@dataclass(frozen=True)
class ByModel(Reranker):
    """By its score of question and chunk together."""

    name: ClassVar[str] = "cross-encoder"
    open: ClassVar[Open] = Open(
        "model", "MODEL", "a cross-encoder's Hub id (owner/name[@revision]) or folder", _is_model
    )

    model: str = ""
    rerank_from: int = _rerank_from()

    @classmethod
    def problems(cls, given: Mapping[str, Any]) -> list[str]:
        """Too few hits to choose from, or none that are ranked."""
        return _too_few(given)

    def depth(self, k: int) -> int:
        """``rerank_from``, whatever k is, so that the ranks don't depend on it."""
        return self.rerank_from

    def model_stage(self) -> Reranker:
        """``rerank_from`` decides nothing about the model."""
        return replace(self, rerank_from=_FROM)

    def load(self, device: str) -> Ranker:
        """The cross-encoder; see `CrossEncoder`."""
        return CrossEncoder(self.model, device)

    def provenance(self) -> dict[str, Any]:
        """The model as asked for, without a path; the loaded one says which it was."""
        name = self.model
        if Path(name).expanduser().is_dir():
            name = Path(name).expanduser().resolve().name
        return {"name": self.name, "asked": name, "rerank_from": self.rerank_from}


class CrossEncoder:
    """A model of sentence-transformers that reads question and chunk together and gives one score.

    Ranks are those of the raw score: the sigmoid that many of these models end with would make the best ones equal in
    float32. Chunks are read as their text, without the title. Equal lists are scored once in the model's life.

    Args:
        model: Hub id with or without ``@revision``, or folder.
        device: torch device, for example ``cpu``.

    Raises:
        RetrievalError: it can't be reached or loaded, is no cross-encoder, or needs its own code.
    """

    def __init__(self, model: str, device: str) -> None:
        self.device = device
        path, self.identity = locate_model(model, error=RetrievalError, offline_advice=_ADVICE)
        self._model = _load(model, path, device)
        self._known: dict[tuple[str, tuple[str, ...]], dict[str, float]] = {}
        self._cut = 0

    def rank(self, retriever: Retriever, queries: Sequence[Query], found: Sequence[Hits]) -> list[Hits]:
        """See `Ranker`; a hit's score is the model's."""
        cut = self._cut
        ranked = [self._ranked(query.text, hits) for query, hits in zip(queries, found, strict=True)]
        if self._cut > cut:
            log.warning(
                "rerank=%s reads %s tokens of question and chunk: %d pairs are longer and were cut for ranking",
                self.label,
                self._model.max_seq_length,
                self._cut - cut,
            )
        return ranked

    def _ranked(self, question: str, hits: Hits) -> Hits:
        texts = tuple(sorted({hit.chunk.text for hit in hits}, key=lambda text: (-len(text), text)))
        if not texts:
            return ()
        if (question, texts) not in self._known:
            # Not pair by pair: the last bits of a score depend on the batch, which must be the list's own.
            scores = self._scores([(question, text) for text in texts])
            self._known[question, texts] = dict(zip(texts, scores, strict=True))
        known = self._known[question, texts]
        scored = [(known[hit.chunk.text], hit) for hit in hits]
        best = sorted(scored, key=lambda pair: -pair[0])  # stable: equal scores keep the retriever's order
        return tuple(Hit(hit.chunk, score, rank) for rank, (score, hit) in enumerate(best, start=1))

    def _scores(self, pairs: Sequence[tuple[str, str]]) -> list[float]:
        import torch

        self._cut += self._count_cut(pairs)
        scores = self._model.predict(
            list(pairs), batch_size=_BATCH, show_progress_bar=False, activation_fn=torch.nn.Identity()
        )
        if not np.isfinite(scores).all():
            raise RetrievalError(
                f"rerank={self.label} gave a score that is no number for the question {pairs[0][0][:80]!r}; check the "
                "model, or pass another"
            )
        return [float(score) for score in scores]

    def _count_cut(self, pairs: Sequence[tuple[str, str]]) -> int:
        """Pairs longer than the model reads; 0 where it has no such limit."""
        limit, tokenizer = self._model.max_seq_length, getattr(self._model, "tokenizer", None)
        if limit is None or limit > _NO_LIMIT or not callable(tokenizer):
            return 0
        tokens = tokenizer([q for q, _ in pairs], [t for _, t in pairs], truncation=True, max_length=limit)
        return sum(bool(encoding.overflowing) for encoding in tokens.encodings or ())

    @property
    def label(self) -> str:
        """The model's name without a path."""
        return next(iter(self.identity.values()))

    def provenance(self) -> dict[str, Any]:
        """The model's identity, how it was read, and how many pairs were too long for it."""
        return {
            "model": dict(self.identity),
            "reads": "text",
            "score": "before its activation",
            "max_tokens": self._model.max_seq_length,
            "device": self.device,
            "pairs_cut": self._cut,
        }


def _load(name: str, path: Path, device: str) -> Any:
    """The model, checked to be made for scoring pairs: for another, transformers only logs that its head is random."""
    from lm_eval_kinject.retrieval.encoders import first_line, quiet, unloadable

    label = Path(name).name if Path(name).expanduser().is_dir() else name
    try:
        architectures = json.loads((path / "config.json").read_text(encoding="utf-8")).get("architectures") or [""]
    except (OSError, ValueError) as problem:
        raise RetrievalError(
            f"rerank={label}: its config.json can't be read; pass a whole model. {_ADVICE}"
        ) from problem
    if not _scores_pairs(str(architectures[0]), path / "modules.json"):
        raise RetrievalError(
            f"rerank={label} is no cross-encoder but {architectures[0] or 'of an unnamed architecture'}, so its score "
            "would mean nothing; pass a model for reranking, such as cross-encoder/ms-marco-MiniLM-L6-v2"
        )
    import sentence_transformers

    try:
        with quiet():
            model = sentence_transformers.CrossEncoder(
                str(path), device=device, local_files_only=True, trust_remote_code=False
            )
    except unloadable() as problem:
        raise RetrievalError(
            f"rerank={label} can't be loaded by sentence-transformers: {first_line(problem)}. Models that bring their "
            f"own code are refused. {_ADVICE}"
        ) from problem
    if model.num_labels != 1:
        raise RetrievalError(
            f"rerank={label} gives {model.num_labels} scores a pair (a classifier); pass a model for reranking, which "
            "gives one"
        )
    return model


def _scores_pairs(architecture: str, modules: Path) -> bool:
    """Whether a model has a head for it: a classifier's, or a language model's that was set up to say yes or no."""
    if architecture.endswith("ForCausalLM") and modules.is_file():
        return "LogitScore" in modules.read_text(encoding="utf-8", errors="replace")
    return architecture.endswith("ForSequenceClassification")


# Maximal marginal relevance -------------------------------------------------------------------------------------------


@register
@dataclass(frozen=True)
class MMR(Reranker):
    """Near the question, unlike those before: maximal marginal relevance of the retriever's own vectors.

    Carbonell and Goldstein, SIGIR 1998: the next chunk is the d among those left with the highest

        lambda * cos(q, d) - (1 - lambda) * max over the d' already chosen of cos(d, d')

    where the first has nothing before it, and equal ones stand in the order they came in. It needs a retriever that
    embeds; of a hybrid it takes the dense part's vectors. With lambda 1 and an encoder whose similarity is the cosine,
    that encoder's ranks come out.
    """

    name: ClassVar[str] = "mmr"

    rerank_from: int = _rerank_from()
    mmr_lambda: float = argument("1: nearest to the question, 0: least like those before", share, 0.5)

    @classmethod
    def problems(cls, given: Mapping[str, Any]) -> list[str]:
        """Too few hits to choose from, or a retriever without vectors."""
        problems = _too_few(given)
        retriever = given.get("retriever", Search.retriever)
        if not problems and retriever != "none" and kind_of(retriever) in {"bm25", "control"}:
            problems.append(
                f"rerank=mmr compares vectors, and retriever={retriever} has none; pass a retriever that embeds, such "
                "as minilm or hybrid, or remove rerank="
            )
        return problems

    def depth(self, k: int) -> int:
        """``rerank_from``, whatever k is, so that the ranks don't depend on it."""
        return self.rerank_from

    def load(self, device: str) -> Ranker:
        """The vectors are the retriever's."""
        return self

    def rank(self, retriever: Retriever, queries: Sequence[Query], found: Sequence[Hits]) -> list[Hits]:
        """See `Ranker`; a hit's score is what it was chosen by."""
        dense = retriever.dense if isinstance(retriever, Hybrid) else retriever
        if not isinstance(dense, DenseRetriever):
            raise RetrievalError(f"rerank=mmr compares vectors, and {retriever.name} has none; pass another retriever")
        return [self._ranked(dense, query, hits) for query, hits in zip(queries, found, strict=True)]

    def _ranked(self, dense: DenseRetriever, query: Query, hits: Hits) -> Hits:
        question, vectors = dense.unit_vectors(query, [hit.chunk for hit in hits])
        near = (vectors * question).sum(axis=1)  # along each row alone: equal vectors get equal bits
        left = list(range(len(hits)))
        ranked: list[Hit] = []
        nearest = np.full(len(hits), -np.inf)
        for rank in range(1, len(hits) + 1):
            penalty = nearest if ranked else np.zeros(len(hits))
            gain = self.mmr_lambda * near - (1 - self.mmr_lambda) * penalty
            best = max(left, key=lambda i: (gain[i], -i))
            left.remove(best)
            nearest = np.maximum(nearest, (vectors * vectors[best]).sum(axis=1))
            ranked.append(Hit(hits[best].chunk, float(gain[best]), rank))
        return tuple(ranked)
