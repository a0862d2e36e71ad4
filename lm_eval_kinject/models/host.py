"""What a model type must offer so that retrieval can be mixed into it.

What it is for: `RagMixin` works on any of lm_eval's model classes whose subclass answers these questions; `hf_host`
does for transformers models. A model type behind another engine or an endpoint writes its own host and inherits the
rest. What it does not do: it scores nothing; that is ``loglikelihood`` and ``generate_until`` of the host class.

The one idea: everything that composing a prompt, naming the model and collecting figures needs is here, and nothing
that needs weights in this process.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from lm_eval_kinject.models.arguments import RagArguments

__all__ = ["Decoder", "Host", "Roller"]


@runtime_checkable
class Host(Protocol):
    """One loaded model.

    Attributes:
        gives_log_probs: whether log-probabilities of a prompt's own tokens can be had: without, ``loglikelihood`` and
            with it every multiple-choice task is refused.
        max_length: the window, in tokens.
    """

    gives_log_probs: bool
    max_length: int

    def load(self, rag: RagArguments, arguments: dict[str, Any], usual: Mapping[str, Any]) -> None:
        """Loads the model, or connects to it.

        Args:
            rag: our arguments.
            arguments: the host class's own, checked.
            usual: the defaults of the host class's parameters.

        Raises:
            ArgumentError: they contradict each other.
            ModelError: the model can't be reached.
        """

    def markers(self) -> tuple[str, ...]:
        """Strings in a text that the model would read as control and not as text; see `compose.markers_of`."""

    def bos(self) -> str:
        """What a prompt may begin with that text must not be put before; empty if there is nothing."""

    def count(self, text: str, *, bare: bool) -> int:
        """Tokens of a text, or of what `render` gives; with ``bare``, without BOS and EOS."""

    def room(self, request_type: str, arguments: Sequence[Any]) -> int:
        """Tokens of the window that a request leaves free; ``arguments`` are its prompt and what follows it."""

    def render(self, messages: list[dict[str, str]], generation_prompt: bool) -> str:
        """The prompt that the model's chat template makes of messages; the messages, where a server does that."""

    def identity(self) -> dict[str, Any]:
        """Whose answers these are: ``model`` with its name and commit or fingerprint, and what else decides them."""

    def encoder_device(self) -> str:
        """Where an embedding model may run beside it, for example ``cpu``."""

    def prefix_scorer(self) -> Any | None:
        """A `SharedPrefixScorer` over the loaded model, made anew; None where the host scores in a way of its own."""

    def gather(self, value: Any) -> list[Any] | None:
        """The values of all processes of a run, on the first; None on the others."""


@runtime_checkable
class Decoder(Protocol):
    """What a host offers besides where a fusion may generate with it (see `lm_eval_kinject.models.generation`).

    Attributes:
        decodes: whether the loaded model is one that it can be done with.
    """

    @property
    def decodes(self) -> bool:
        """See above; a property, as it may depend on what was loaded."""

    def prompt_ids(self, prompt: str, gen_kwargs: Mapping[str, Any]) -> list[int]:
        """Token ids of a prompt, as its own generation reads it."""

    def continuations(
        self, rows: Sequence[Sequence[int]], gen_kwargs: Mapping[str, Any], prior: Sequence[float] | None = None
    ) -> list[list[int]]:
        """Tokens of the likeliest continuations of a prompt, or of several that are marginalised at every token.

        Args:
            rows: token ids of each prompt.
            gen_kwargs: as a task gives them; with ``num_beams`` there may be so many continuations, else there is one.
            prior: log-weight of each prompt.

        Returns:
            The likeliest first.

        Raises:
            ModelError: the model doesn't read several prompts side by side as each alone.
        """

    def text_of(self, tokens: Sequence[int], gen_kwargs: Mapping[str, Any]) -> str:
        """The answer that a continuation is: decoded, and cut where a stop string begins."""


@runtime_checkable
class Roller(Protocol):
    """What a host offers besides where rolling text can be read behind retrieved text: its tokens.

    Attributes:
        decodes: as of a `Decoder`.
        prefix_token_id: stands before the first token of a text.
    """

    @property
    def decodes(self) -> bool:
        """See above."""

    @property
    def prefix_token_id(self) -> int:
        """See above."""

    def tok_encode(self, string: str, add_special_tokens: bool | None = None) -> list[int]:
        """Token ids of a text; with None, as its own ``loglikelihood_rolling`` reads it."""

    def tok_decode(self, tokens: Sequence[int], skip_special_tokens: bool = True) -> str:
        """The text of tokens."""
