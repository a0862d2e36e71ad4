"""The injection pipeline as one thing: which steps there are, in which order, and what stands in each.

What it is for: `Pipeline` holds one stage a slot, for one run; `SLOTS` is their order. What it does not do: the steps'
work, which is in the rooms that declare them.

    question ─ query ─ search ─ rerank ─ probe ─ order ─ compose ─ fusion ─ route ─ reasoning ─ score
               context └ retrieval ────────────┘ └ context ──────────────────────────────────┘ the host, or `scoring`

A new variant is a class in one of these rooms (see `lm_eval_kinject.stages`); nothing here changes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lm_eval_kinject.context.combine import Fusion
from lm_eval_kinject.context.compose import Compose
from lm_eval_kinject.context.order import Order
from lm_eval_kinject.context.query import QuestionQuery
from lm_eval_kinject.context.reason import Reasoning
from lm_eval_kinject.context.route import Route
from lm_eval_kinject.retrieval import probe, rerank  # noqa: F401  (they register their stages)
from lm_eval_kinject.retrieval.library import Probe, Reranker, Search
from lm_eval_kinject.stages import Stage

__all__ = ["SLOTS", "Pipeline"]

SLOTS = ("query", "search", "rerank", "probe", "order", "compose", "fusion", "route", "reasoning")


@dataclass(frozen=True)
class Pipeline:
    """One stage a slot; see `SLOTS`."""

    query: QuestionQuery
    search: Search
    rerank: Reranker
    probe: Probe
    order: Order
    compose: Compose
    fusion: Fusion
    route: Route
    reasoning: Reasoning

    def stages(self) -> Mapping[str, Stage]:
        """The stages by slot, in order."""
        return {slot: getattr(self, slot) for slot in SLOTS}

    @property
    def needs_gold(self) -> str | None:
        """The argument that needs each question's source chunk, for messages; None if it isn't needed."""
        return self.search.needs_gold or self.probe.needs_gold

    def prompt(self) -> dict[str, Any]:
        """``config.kinject.prompt`` of a result: what decides the prompt, by the names of the arguments."""
        return {
            "query": self.query.rule.source or self.query.rule.mode,
            "placement": self.compose.placement,
            "order": self.order.name,
            "fusion": self.fusion.name,
            "context_template": self.compose.template,
            "context_tokens": self.compose.context_tokens,
        }

    def provenance(self) -> dict[str, dict[str, Any]]:
        """``config.kinject.pipeline`` of a result: what every stage says of itself, by slot."""
        return {slot: stage.provenance() for slot, stage in self.stages().items()}
