"""The hard-negative probe: the right chunk among wrong ones, at a place of one's choice; the slot ``probe``.

What it is for: telling what wrong chunks do to an answer when the right one is there anyway (Jin et al. 2024,
arXiv 2410.05983): accuracy against k with `Hard` and with `RandomOnes`, and against the place. What it does not do: it
measures no retrieval; recall in the results stays that of the hits that were found.

The one idea: both probes make lists of one shape, so that they differ in nothing but the wrong chunks::

    k=4, probe_place=2     wrong 1, RIGHT, wrong 2, wrong 3        ranks, which `order` then arranges

A chunk is wrong if it isn't the one that the question was made from, whatever it says. Scores are 1 / rank, as those
of the controls, so that no template can tell the right one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from lm_eval_kinject.corpus import Corpus
from lm_eval_kinject.errors import RetrievalError
from lm_eval_kinject.records import Query
from lm_eval_kinject.retrieval.controls import Random, chunks_as_hits, gold_chunks
from lm_eval_kinject.retrieval.library import Probe, Search
from lm_eval_kinject.retrieval.protocol import Hits
from lm_eval_kinject.stages import argument, register, whole

__all__ = ["Hard", "RandomOnes"]


@dataclass(frozen=True)
class _Among(Probe):
    """The right chunk at its place; a subclass gives the wrong ones."""

    probe_place: int = argument("rank of the right chunk, 1 to k", whole(1, "ranks"), 1)

    @classmethod
    def problems(cls, given: Mapping[str, Any]) -> list[str]:
        """A place behind the last, or a retriever that doesn't find wrong chunks."""
        retriever, k = given.get("retriever", Search.retriever), given.get("k", Search.k)
        place = given.get("probe_place", 1)
        if retriever == "none" or k == 0:
            return []  # there is no text in the prompt
        problems = []
        if place > k:
            problems.append(f"probe_place={place} is behind the last of k={k} chunks; pass probe_place={k} or less")
        if retriever in {"oracle", "full"}:
            what = "the right chunk alone" if retriever == "oracle" else "everything"
            problems.append(f"probe={cls.name} has no meaning for retriever={retriever}, which gives {what}; remove it")
        return problems

    @property
    def needs_gold(self) -> str:
        """The argument that needs each question's source chunk."""
        return f"probe={self.name}"

    def prompt(self, corpus: Corpus, queries: Sequence[Query], found: Sequence[Hits], search: Search) -> list[Hits]:
        """See `Probe`."""
        right = gold_chunks(corpus, queries, self.needs_gold)
        made = []
        for gold, hits in zip(right, self._candidates(corpus, queries, found, search), strict=True):
            if len(gold) > 1:
                raise RetrievalError(
                    f"{self.needs_gold} puts one right chunk among wrong ones, and a question takes {len(gold)} chunks "
                    "together; leave it out for this task"
                )
            chunks = [hit.chunk for hit in hits if hit.chunk.id != gold[0].id][: search.k - 1]
            chunks.insert(self.probe_place - 1, gold[0])
            made.append(chunks_as_hits(chunks))
        return made

    def _candidates(
        self, corpus: Corpus, queries: Sequence[Query], found: Sequence[Hits], search: Search
    ) -> Sequence[Hits]:
        """Hits of each query of which the first k - 1 wrong ones are taken; k are enough, as one chunk is right."""
        raise NotImplementedError


@register
@dataclass(frozen=True)
class Hard(_Among):
    """The right chunk and the best k - 1 wrong ones that were found."""

    name: ClassVar[str] = "hard"

    def _candidates(
        self, corpus: Corpus, queries: Sequence[Query], found: Sequence[Hits], search: Search
    ) -> Sequence[Hits]:
        return found


@register
@dataclass(frozen=True)
class RandomOnes(_Among):
    """The right chunk and k - 1 others, drawn with `retriever_seed`."""

    name: ClassVar[str] = "random"

    def _candidates(
        self, corpus: Corpus, queries: Sequence[Query], found: Sequence[Hits], search: Search
    ) -> Sequence[Hits]:
        return Random(corpus, search.retriever_seed, search.allowed(corpus)).search(queries, search.k)
