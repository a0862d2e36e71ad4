"""In which order the chunks stand in the prompt.

What it is for: a stage that arranges the hits which the budget has left; the slot ``order``. What it does not do: it
drops nothing and ranks nothing (`retrieval` ranks, `compose` drops the lowest rank first, whatever the order).

The one idea: an order is a permutation of ranks, so an `Order` sees the hits, best first, and returns the same hits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from lm_eval_kinject.records import Hit
from lm_eval_kinject.stages import Stage, register, slot

__all__ = ["Order", "Relevance", "Reverse", "Sides"]

slot("order", "in which order the chunks stand", default="relevance")


@dataclass(frozen=True)
class Order(Stage):
    """Arranges hits. A subclass gives `arrange`, and a `preface` if the chunks need a word before them."""

    slot: ClassVar[str] = "order"

    def arrange(self, hits: Sequence[Hit]) -> Sequence[Hit]:
        """The hits, which come best first, in the order in which they are to stand in the prompt."""
        raise NotImplementedError

    @property
    def preface(self) -> str:
        """Text directly before the chunks; it counts into the budget."""
        return ""


@register
@dataclass(frozen=True)
class Relevance(Order):
    """Best first."""

    name: ClassVar[str] = "relevance"

    def arrange(self, hits: Sequence[Hit]) -> Sequence[Hit]:
        """As they come."""
        return hits


@register
@dataclass(frozen=True)
class Reverse(Order):
    """Best last, next to the question."""

    name: ClassVar[str] = "reverse"

    def arrange(self, hits: Sequence[Hit]) -> Sequence[Hit]:
        """Worst first."""
        return hits[::-1]


@register
@dataclass(frozen=True)
class Sides(Order):
    """Best at both ends, worst in the middle (1, 3, 5, …, 6, 4, 2).

    Jin et al. 2024 (arXiv 2410.05983): of k hits, odd rank i stands at place (i + 1) / 2 and even rank i at place
    (k + 1) - i / 2, counted from 1: five hits as 1, 3, 5, 4, 2, six as 1, 3, 5, 6, 4, 2. LangChain's
    ``LongContextReorder`` does the same for odd k and the mirror image for even k.
    """

    name: ClassVar[str] = "sides"

    def arrange(self, hits: Sequence[Hit]) -> Sequence[Hit]:
        """Odd ranks from the left, even ranks from the right."""
        return [*hits[::2], *hits[1::2][::-1]]
