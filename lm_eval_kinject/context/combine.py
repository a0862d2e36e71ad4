"""How contexts become prompts, and prompts an answer: one prompt with everything, or several that are combined.

What it is for: the slots ``fusion`` (which hits stand together in one context), ``route`` (whether a question is asked
again with more text) and ``reasoning`` (whether the model writes steps first). What it does not do: order or write
hits (`order`, `compose`), or score.

The one idea: a fusion splits a question's hits into *groups*, each of which is written into a prompt of its own. With
one group, which is all there is so far, a request keeps its one prompt and the host's own answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from lm_eval_kinject.records import Hit
from lm_eval_kinject.stages import Stage, register, slot

__all__ = ["Concat", "Direct", "Fusion", "OnePass"]

slot("fusion", "how several chunks become one answer", default="concat", later=("rag-sequence", "rag-token"))
slot("route", "whether a question may be asked again with more text", default="none", later=("self-route",))
slot("reasoning", "whether the model writes steps before it answers", default="none", later=("self-reasoning",))


@dataclass(frozen=True)
class Fusion(Stage):
    """Says which hits share a prompt."""

    slot: ClassVar[str] = "fusion"

    def groups(self, hits: Sequence[Hit]) -> Sequence[Sequence[Hit]]:
        """The hits, best first, in groups of one prompt each; never empty, though a group may be."""
        raise NotImplementedError


@register
@dataclass(frozen=True)
class Concat(Fusion):
    """All chunks in one prompt."""

    name: ClassVar[str] = "concat"

    def groups(self, hits: Sequence[Hit]) -> Sequence[Sequence[Hit]]:
        """One group."""
        return [hits]


@register
@dataclass(frozen=True)
class OnePass(Stage):
    """Every question is asked once."""

    slot: ClassVar[str] = "route"
    name: ClassVar[str] = "none"


@register
@dataclass(frozen=True)
class Direct(Stage):
    """The answer comes directly."""

    slot: ClassVar[str] = "reasoning"
    name: ClassVar[str] = "none"
