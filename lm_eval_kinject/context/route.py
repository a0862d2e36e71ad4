"""Whether a question may be asked again with more text; the slot ``route``.

What it is for: `SelfRoute` (Li et al. 2024, arXiv 2407.16833) asks with the retrieved chunks first, and only where
these don't seem to suffice again with a long context; `RandomRoute` is its control, which asks just as often again, but
by lot. What it does not do: it asks no model (`models.routing`) and fits no threshold (`study.threshold`).

The one idea: a route is two contexts and one number a question::

    question ─ short context ─ answer ─ number beyond the threshold? ─┬ no: that is the answer
                                                                      └ yes: long context ─ answer

In open answers the number is the model's own word: it may write ``unanswerable``. In multiple choice, where nothing is
written, it is taken from the log-likelihoods: of ``unanswerable`` as one more option, of the two best options, of all
of them, or from the score of the best chunk.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import jinja2
import numpy as np

from lm_eval_kinject.context.order import Order
from lm_eval_kinject.context.query import read_utf8, sandbox
from lm_eval_kinject.corpus import Corpus
from lm_eval_kinject.errors import ArgumentError
from lm_eval_kinject.records import Chunk, Hit
from lm_eval_kinject.retrieval.controls import chunks_as_hits
from lm_eval_kinject.retrieval.library import Search
from lm_eval_kinject.stages import Stage, argument, number, one_of, optional, register, share, slot, switch, text, whole

__all__ = [
    "BELOW", "CRITERIA", "DECLINE", "Again", "ByArticle", "OnePass", "RandomRoute", "Route", "SelfRoute", "declined",
    "entropy", "margin", "marker_for", "unanswerable",
]  # fmt: skip

slot("route", "whether a question may be asked again with more text", default="none")

CRITERIA = ("unanswerable", "margin", "entropy", "retrieval")
BELOW = frozenset({"margin", "retrieval"})
"""Criteria whose number is small where the short context doesn't suffice; the others' is large."""

MARKER = "unanswerable"
DECLINE = "Answer from the text above alone. If it doesn't say, answer {{ marker }}.\n\n"
"""What stands behind the short context where the model may decline; a template sees ``marker``."""

_ROUTE_K = 20
_WORD = re.compile(r"[^\W_]+")


# Numbers --------------------------------------------------------------------------------------------------------------


def declined(answer: str) -> bool:
    """Whether a written answer declines: `MARKER` stands in it as a word, in any case, or it has no word at all."""
    words = _WORD.findall(answer.lower())
    return not words or MARKER in words


def marker_for(continuations: Sequence[str]) -> str:
    """What the model may answer instead of an option: the next letter where the options are A, B, …, else `MARKER`.

    Args:
        continuations: the options as they are scored, in order.
    """
    options = [continuation.strip() for continuation in continuations]
    for first in "Aa":
        letters = [chr(ord(first) + place) for place in range(len(options))]
        if len(options) > 1 and options == letters and len(options) < 26:
            return chr(ord(first) + len(options))
    return MARKER


def unanswerable(scores: Sequence[float], lengths: Sequence[int], marker: float, marker_length: int) -> float:
    """By how many nats a token the marker is likelier than the likeliest option; above 0, the model rather declines.

    Log-likelihoods are divided by their tokens, as a marker of several tokens would lose against letters always.

    Args:
        scores: log-likelihood of each option.
        lengths: its tokens.
        marker: log-likelihood of the marker.
        marker_length: its tokens.
    """
    each = [score / length for score, length in zip(scores, lengths, strict=True)]
    return marker / marker_length - float(np.max(each))


def margin(scores: Sequence[float]) -> float:
    """By how many nats the likeliest option leads the second; 0 and more, NaN where a score is none."""
    best, second = sorted(map(float, scores), reverse=True)[:2]
    return float("nan") if any(math.isnan(score) for score in scores) else best - second


def entropy(scores: Sequence[float]) -> float:
    """Entropy of the softmax over the options as a share of the largest possible: 0 one is sure, 1 all are alike."""
    logs = np.asarray(scores, np.float64)
    with np.errstate(invalid="ignore"):
        logs = logs - np.logaddexp.reduce(logs)
    if np.isnan(logs).any():
        return float("nan")
    shares = np.exp(logs)
    some = shares > 0  # 0 log 0 is 0
    return float(-(shares[some] * logs[some]).sum() / math.log(len(logs)))


# Stages ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Route(Stage):
    """Says whether questions are asked again, with what, and which."""

    slot: ClassVar[str] = "route"
    again: ClassVar[bool] = False
    """Whether a question can be asked again at all."""

    @property
    def depth(self) -> int:
        """Hits that the long context is taken from; 0: no more than are in the prompt anyway."""
        return 0

    def check(self, corpus: Corpus, k: int) -> None:
        """Makes sure that a corpus has more text than ``k`` chunks.

        Raises:
            ArgumentError: it hasn't.
        """


@register
@dataclass(frozen=True)
class OnePass(Route):
    """Every question is asked once."""

    name: ClassVar[str] = "none"


@dataclass(frozen=True)
class Again(Route):
    """A route with a long context to fall back on."""

    again: ClassVar[bool] = True

    route_context: str = argument(
        "the long context: `chunks`, the best `route_k`; `articles`, the whole documents of the k chunks; either as "
        "far as the window goes, whatever `context_tokens` says",
        one_of("chunks", "articles"),
        "chunks",
    )
    route_k: int = argument("chunks in a long context of chunks, more than k", whole(1, "chunks"), _ROUTE_K)
    route_both: bool = argument(
        "every question is scored with both contexts, for error rates and for fitting a threshold; which answer counts "
        "stays as it is",
        switch,
        False,
    )

    @classmethod
    def problems(cls, given: Mapping[str, Any]) -> list[str]:
        """Nothing to fall back on, or steps before that leave no one short context."""
        retriever, k = given.get("retriever", Search.retriever), given.get("k", Search.k)
        asked = f"route={cls.name}"
        found = []
        articles = given.get("route_context") == "articles"
        if retriever == "none" or k == 0:
            found.append(
                f"{asked} with k=0: no text is retrieved that could be too little; pass k=1 or more, or remove it"
            )
        elif retriever == "full":
            found.append(f"{asked} with retriever=full: there is no more text to fall back on; pass another retriever")
        elif retriever == "oracle" and not articles:
            found.append(
                f"{asked} with retriever=oracle: it finds no more than the right chunk, so there is nothing to fall "
                "back on; pass route_context=articles, or another retriever"
            )
        elif not articles and (most := given.get("route_k", _ROUTE_K)) <= k:
            found.append(
                f"route_k={most} is no more than the k={k} chunks of the first prompt, so there is nothing to fall "
                f"back on; pass route_k={k + 1} or more"
            )
        if articles and "route_k" in given:
            found.append("route_k= has no meaning for route_context=articles, which takes whole documents; remove it")
        if articles and given.get("filter") is not None:
            found.append(
                "route_context=articles takes whole documents, which filter= can't hold back; pass "
                "route_context=chunks, or remove filter="
            )
        if (fusion := given.get("fusion", "concat")) != "concat":
            found.append(
                f"{asked} needs one prompt a question, and fusion={fusion} has one a chunk; pass fusion=concat"
            )
        if (probe := given.get("probe", "none")) != "none":
            found.append(
                f"{asked} with probe={probe}: what is in a probe's prompt is set, not found; remove one of them"
            )
        return found

    @property
    def depth(self) -> int:
        """As many as the long context has chunks."""
        return self.route_k if self.route_context == "chunks" else 0

    def check(self, corpus: Corpus, k: int) -> None:
        """See `Route`."""
        if self.route_context == "chunks" and len(corpus) <= k:
            raise ArgumentError(
                f"route={self.name} has nothing to fall back on: all {len(corpus)} chunks of the corpus {corpus.name} "
                f"are in the first prompt (k={k}); lower k=, or pass a larger corpus="
            )
        if self.route_context == "articles" and all(len(chunks) == 1 for chunks in corpus.by_document.values()):
            raise ArgumentError(
                f"route_context=articles has nothing to fall back on: each of the {len(corpus)} chunks of the corpus "
                f"{corpus.name} is a document of its own; pass route_context=chunks"
            )

    def longer(self, corpus: Corpus, hits: Sequence[Hit], more: Sequence[Hit]) -> Sequence[Hit]:
        """The hits of the long context, those first that the budget drops last, ranks from 1.

        Args:
            corpus: what was searched.
            hits: those of the short context.
            more: the best `depth`.
        """
        if self.route_context == "chunks":
            return more
        there = {hit.chunk.id for hit in hits}
        around = [chunk for name in _documents(hits) for chunk in corpus.by_document[name] if chunk.id not in there]
        return chunks_as_hits([*(hit.chunk for hit in hits), *around])

    def arrangement(self, usual: Order) -> Order:
        """How the long context's chunks stand: an article's in its own order."""
        return usual if self.route_context == "chunks" else ByArticle()

    @property
    def declines(self) -> bool:
        """Whether the model is told, behind the short context, that it may decline."""
        return False

    def permission(self, marker: str) -> str:
        """What it is told; empty where it isn't."""
        return ""


@register
@dataclass(frozen=True)
class SelfRoute(Again):
    """Again with a long context where the chunks don't seem to suffice."""

    name: ClassVar[str] = "self-route"

    route_by: str = argument(
        "what tells that they don't: `unanswerable` (the model's word; in multiple choice: by how many nats a token it "
        "is likelier than the best option), `margin` (nats between the two best options), `entropy` (over the options, "
        "as a share of the largest possible), `retrieval` (score of the best chunk)",
        one_of(*CRITERIA),
        "unanswerable",
    )
    route_threshold: float | None = argument(
        "asked again is above it (`unanswerable`, `entropy`) or below it (`margin`, `retrieval`); `kinject route` fits "
        "it on a validation run",
        optional(number),
        None,
        shown="0 for `unanswerable`; the others need it, but with `route_both=true`, and nothing is routed",
    )
    route_prompt: str | None = argument(
        "a file with a Jinja template over `marker`, which permits to decline (`unanswerable`)",
        optional(lambda name, value: _permitting(text(name, value))[0]),
        None,
        shown="one sentence",
    )
    decline: str = DECLINE

    @classmethod
    def problems(cls, given: Mapping[str, Any]) -> list[str]:
        """What `Again` says, and thresholds that nothing or everything is beyond."""
        found = super().problems(given)
        by, threshold = given.get("route_by", cls.route_by), given.get("route_threshold")
        if threshold is None and by != "unanswerable" and not given.get("route_both"):
            found.append(
                f"route_by={by} needs route_threshold=; fit one: score validation questions with route_both=true, then "
                "`kinject route RESULTS`"
            )
        if by == "margin" and threshold is not None and threshold <= 0:
            found.append(
                f"route_threshold={threshold:g}: a margin is never below 0, so nothing is routed; pass a number above 0"
            )
        if by == "entropy" and threshold is not None and not 0 <= threshold < 1:
            found.append(
                f"route_threshold={threshold:g}: entropy is a share of the largest possible; pass 0 or more, below 1"
            )
        if given.get("route_prompt") and by != "unanswerable":
            found.append(
                f"route_prompt= has no meaning for route_by={by}, which never lets the model decline; remove it"
            )
        return found

    @classmethod
    def build(cls, given: Mapping[str, Any]) -> SelfRoute:
        """Reads the file that ``route_prompt=`` names, and fills in the threshold that needs no fitting."""
        file, usual = given.get("route_prompt"), given.get("route_by", cls.route_by) == "unanswerable"
        threshold = given.get("route_threshold")
        filled = {**given, "route_threshold": 0.0 if threshold is None and usual else threshold}
        return cls(**filled, decline=_permitting(file)[1] if file else DECLINE)

    @property
    def declines(self) -> bool:
        """Where the marker is the criterion."""
        return self.route_by == "unanswerable"

    def permission(self, marker: str) -> str:
        """See `Again`."""
        return sandbox().from_string(self.decline).render(marker=marker) if self.declines else ""

    def beyond(self, value: float) -> bool:
        """Whether a question with this number is asked again; without a threshold none is, without a number it is."""
        if self.route_threshold is None:
            return False
        below = self.route_by in BELOW
        return math.isnan(value) or (value < self.route_threshold if below else value > self.route_threshold)

    def provenance(self) -> dict[str, Any]:
        """The template's text, never its path."""
        return {**super().provenance(), "route_prompt": self.decline if self.declines else None}


@register
@dataclass(frozen=True)
class RandomRoute(Again):
    """Again with a long context by lot: the control of self-route."""

    name: ClassVar[str] = "random"

    route_rate: float = argument(
        "share of each task's questions that are asked again; as a control, 1 - `answerable_share` of self-route's "
        "result",
        share,
        0.5,
    )
    route_seed: int = argument("of the lot", whole(0, "the seed"), 1234)

    def drawn(self, questions: Sequence[str]) -> set[int]:
        """Places of the questions that are asked again: the share `route_rate` of them, rounded to whole questions.

        Each draws a number from the seed and its own text, and the smallest win: a larger rate takes the same ones and
        more.
        """
        lots = [
            hashlib.sha256(f"{self.route_seed}\0{one}".encode(errors="surrogatepass")).digest() for one in questions
        ]
        order = sorted(range(len(lots)), key=lambda place: (lots[place], place))
        return set(order[: math.floor(self.route_rate * len(lots) + 0.5)])


@dataclass(frozen=True)
class ByArticle(Order):
    """Articles in the order of their best chunks, the chunks of each in its own; for long contexts alone."""

    name: ClassVar[str] = "by-article"

    def arrange(self, hits: Sequence[Hit]) -> Sequence[Hit]:
        """See `Order`."""
        first = {name: place for place, name in enumerate(_documents(hits))}
        return sorted(hits, key=lambda hit: (first[_document(hit.chunk)], hit.chunk.position))


def _documents(hits: Sequence[Hit]) -> list[str]:
    """Names of the documents that hits come from, each once, best first."""
    return list(dict.fromkeys(_document(hit.chunk) for hit in hits))


def _document(chunk: Chunk) -> str:
    return chunk.document_id or chunk.id


def _permitting(path: str) -> tuple[str, str]:
    """The path of a file for ``route_prompt=``, and its text, checked."""
    file = Path(path).expanduser()
    if not file.is_file():
        raise ArgumentError(f"route_prompt={path}: no such file; pass the path of a Jinja template")
    source = read_utf8(file, f"route_prompt={path}")
    try:
        written = [sandbox().from_string(source).render(marker=marker) for marker in ("E", MARKER)]
    except jinja2.TemplateError as error:
        raise ArgumentError(
            f"route_prompt={path}: not a Jinja template over `marker`: {error}; mend the template"
        ) from error
    if written[0] == written[1]:
        raise ArgumentError(
            f"route_prompt={path}: it never says {{{{ marker }}}}, so the model couldn't know how to decline; write it"
        )
    return path, source
