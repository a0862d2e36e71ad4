"""How contexts become prompts, and prompts an answer: one prompt with everything, or several that are combined.

What it is for: the slot ``fusion``: which hits stand together in one context, and how the answers of several become
one. What it does not do: order or write hits (`order`, `compose`), ask again with more of them (`route`), have steps
written first (`reason`), or score.

The one idea: a fusion splits a question's hits into *groups*, each of which is written into a prompt of its own. With
one group a request keeps its one prompt and the host's own answer; with several, the answer's log-probabilities under
each are marginalised over the documents (Lewis et al. 2020, arXiv 2005.11401), whose prior is the softmax of their
retrieval scores::

    rag-sequence   log p(y) = LSE over k of ( prior k + sum over t of log p(y t | document k, y before t) )
    rag-token      log p(y) = sum over t of LSE over k of ( prior k + log p(y t | document k, y before t) )
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from lm_eval_kinject.records import Hit
from lm_eval_kinject.stages import Stage, argument, one_of, positive, register, slot

__all__ = ["Concat", "Fusion", "RagSequence", "RagToken", "log_prior"]

slot("fusion", "how several chunks become one answer", default="concat")

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Fusion(Stage):
    """Says which hits share a prompt, and what their answers are together."""

    slot: ClassVar[str] = "fusion"
    several: ClassVar[bool] = False
    """Whether there can be more than one group."""

    stepwise: ClassVar[bool] = False
    """Whether each token is marginalised by itself, so that an answer can be decoded token by token."""

    @property
    def thorough(self) -> bool:
        """Whether an answer that one document proposes is read behind all others, too."""
        return True

    def groups(self, hits: Sequence[Hit]) -> Sequence[Sequence[Hit]]:
        """The hits, best first, in groups of one prompt each; never empty, though a group may be."""
        raise NotImplementedError

    def combine(self, log_probs: Floats, scores: Sequence[float]) -> float:
        """The log-probability of an answer, from those of its tokens under each document.

        Args:
            log_probs: shape (documents, tokens), in nats.
            scores: retrieval score of each document.
        """
        raise NotImplementedError

    def prior(self, scores: Sequence[float]) -> Floats:
        """The log-weight of each document, from their retrieval scores; shape (documents,)."""
        raise NotImplementedError


@register
@dataclass(frozen=True)
class Concat(Fusion):
    """All chunks in one prompt."""

    name: ClassVar[str] = "concat"

    def groups(self, hits: Sequence[Hit]) -> Sequence[Sequence[Hit]]:
        """One group."""
        return [hits]


@dataclass(frozen=True)
class _Marginal(Fusion):
    several: ClassVar[bool] = True

    temperature: float = argument(
        "of the softmax over retrieval scores, above 0: cosines of unit vectors differ little and want .01 to .1",
        positive,
        1.0,
    )

    @classmethod
    def problems(cls, given: Mapping[str, Any]) -> list[str]:
        """An order means nothing where each chunk has a prompt of its own."""
        if given.get("order", "relevance") != "relevance":
            return [f"order={given['order']} has no meaning for fusion={cls.name}: each chunk stands alone; remove it"]
        return []

    def groups(self, hits: Sequence[Hit]) -> Sequence[Sequence[Hit]]:
        """Each chunk alone."""
        return [[hit] for hit in hits] or [[]]

    def prior(self, scores: Sequence[float]) -> Floats:
        """See `log_prior`."""
        return log_prior(scores, self.temperature)


@register
@dataclass(frozen=True)
class RagSequence(_Marginal):
    """One chunk a prompt; the whole answer is marginalised over the chunks."""

    name: ClassVar[str] = "rag-sequence"

    decoding: str = argument(
        "of open answers. `thorough`: what one chunk proposes is judged by all; `fast`: by those that propose it",
        one_of("thorough", "fast"),
        "thorough",
    )

    @property
    def thorough(self) -> bool:
        """See `Fusion`."""
        return self.decoding == "thorough"

    def combine(self, log_probs: Floats, scores: Sequence[float]) -> float:
        """``LSE over k of (prior k + sum over t)``."""
        return float(np.logaddexp.reduce(self.prior(scores) + log_probs.sum(axis=1)))


@register
@dataclass(frozen=True)
class RagToken(_Marginal):
    """One chunk a prompt; each token is marginalised over the chunks."""

    name: ClassVar[str] = "rag-token"
    stepwise: ClassVar[bool] = True

    def combine(self, log_probs: Floats, scores: Sequence[float]) -> float:
        """``sum over t of LSE over k of (prior k + log p)``."""
        prior = self.prior(scores)[:, None]
        return float(np.logaddexp.reduce(prior + log_probs, axis=0).sum())


def log_prior(scores: Sequence[float], temperature: float) -> Floats:
    """``log softmax(scores / temperature)`` over the retrieved documents alone; shape (documents,)."""
    scaled = np.asarray(scores, np.float64) / temperature
    return scaled - np.logaddexp.reduce(scaled)
