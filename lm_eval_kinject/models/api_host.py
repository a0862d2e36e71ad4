"""The host of completions endpoints: lm_eval's ``local-completions``, asked what retrieval needs to know.

What it is for: `CompletionsHost` stands between `RagMixin` and ``LocalCompletionsAPI``: it connects, tries once whether
the server gives log-probabilities of a prompt, counts tokens with the tokenizer that lm_eval took, and checks every
answer. What it does not do: retrieval, or chat endpoints.

The one idea: lm_eval cuts an answer's list of log-probabilities by its own count of tokens and believes the rest, so a
server that cuts a text otherwise, or sends one token more or less, would give a wrong number. Here the list must have
the length of the prompt and one generated token, or there is an error.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from lm_eval_kinject.context.compose import markers_of
from lm_eval_kinject.errors import ArgumentError, KinjectError, ModelError
from lm_eval_kinject.models.arguments import RagArguments
from lm_eval_kinject.models.engine import Engine, missing_packages
from lm_eval_kinject.models.results import loading, model_identity

__all__ = ["COMPLETIONS", "CompletionsHost"]

_COMMANDS = ("device", "max_batch_size")  # options of lm_eval's command that mean nothing to a server
_DECIDE = ("add_bos_token", "max_length", "seed", "tokenized_requests", "custom_prefix_token_id", "eos_string")
_PROBE = "Where is the bridge? It is in the town."


def _problems(own: Mapping[str, Any], ours: Mapping[str, Any]) -> list[str]:
    found = missing_packages(
        COMPLETIONS.type, ("aiohttp", "requests", "tenacity"), "pip install 'lm-eval-kinject[api]'"
    )
    if not own.get("model") and not own.get("pretrained"):
        found.append("model= is missing: the name under which the server has the model; pass it")
    address = own.get("base_url")
    if not isinstance(address, str) or not address.startswith(("http://", "https://")):
        found.append(f"base_url={address} must be the endpoint's address, such as http://localhost:8000/v1/completions")
    elif address.endswith("/chat/completions") or not address.endswith("/completions"):
        found.append(f"base_url={address} must end in /completions (no chat endpoint); correct it")
    if own.get("tokenizer_backend", "auto") not in ("auto", "huggingface"):
        found.append(
            f"tokenizer_backend={own['tokenizer_backend']} is not supported: tokens are counted with a Hugging Face "
            "tokenizer; remove it, and pass tokenizer=, a Hub id or folder"
        )
    if any(str(name).lower() in ("authorization", "api-key") for name in own.get("header") or ()):
        found.append(f"header= holds a secret, which lm_eval would write into its results; {COMPLETIONS.secret}")
    return found


def _limits(ours: Mapping[str, Any]) -> list[str]:
    if ours.get("adapter"):
        return ["adapter= has no meaning here: the server loads the weights; start it with the adapter, and remove it"]
    return []


COMPLETIONS = Engine(
    type="rag-local-completions",
    problems=_problems,
    limits=_limits,
    passes_on=_COMMANDS,
    secret="set the environment variable OPENAI_API_KEY",
    connects=True,
)


class CompletionsHost:
    """Mixed in before ``LocalCompletionsAPI``; see `lm_eval_kinject.models.host.Host`."""

    gives_log_probs = True

    # what TemplateAPI has after its __init__
    add_bos_token: bool
    base_url: str
    model: str
    max_length: int
    tokenizer: Any
    tok_encode: Any
    model_call: Any
    _max_gen_toks: int

    # Loading --------------------------------------------------------------------------------------------------------

    def load(self, rag: RagArguments, arguments: dict[str, Any], usual: Mapping[str, Any]) -> None:
        """Connects, and finds out whether there are log-probabilities."""
        own = {name: value for name, value in arguments.items() if name not in _COMMANDS}
        own["tokenizer_backend"] = "huggingface"
        name, tokenizer = own.get("model") or own.get("pretrained"), own.get("tokenizer")
        try:
            super().__init__(**own)
        except (OSError, ValueError) as error:
            raise ModelError(
                f"The tokenizer of model={name} can't be loaded ({' '.join(str(error).split())[:200]}). Pass "
                "tokenizer=, the Hub id or folder of the tokenizer that the server uses."
            ) from error
        said = {one: own[one] for one in _DECIDE if one in own}
        self._identity: dict[str, Any] = {
            "model": {
                "name": str(name).rstrip("/").rpartition("/")[2] if str(name).startswith("/") else str(name),
                "fingerprint": "a server's model",
                "method": "none: an endpoint doesn't show its weights",
            },
            "tokenizer": model_identity(tokenizer or name, commit=None, revision=own.get("revision", "main")),
        }
        if found := loading(said, usual):
            self._identity["loading"] = found
        self._probe()

    def _probe(self) -> None:
        """Asks once for the log-probabilities of a short prompt.

        Raises:
            ModelError: nobody answers, or the key or the model's name isn't known there.
        """
        import requests

        tokens = self.tok_encode(_PROBE)
        try:
            with self._explained():
                answer = self.model_call(messages=[tokens], generate=False)
            self.parse_logprobs(answer, tokens=[tokens], ctxlens=[1])
        except ModelError as error:
            status = getattr(getattr(error.__cause__, "response", None), "status_code", None)
            if isinstance(error.__cause__, requests.RequestException) and status not in (400, 422, 501):
                raise
            self.gives_log_probs = False

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Says in one message what goes wrong with a request, once lm_eval has tried it ``max_retries`` times."""
        import asyncio

        import aiohttp
        import requests

        try:
            yield
        except KinjectError:
            raise
        except (requests.RequestException, aiohttp.ClientError, asyncio.TimeoutError, ValueError) as error:
            response = getattr(error, "response", None)
            said = f"{error} {getattr(response, 'text', '') or ''}"
            raise ModelError(
                f"The endpoint {self.base_url} gave no usable answer: {' '.join(said.split())[:300]}. Check that the "
                "server runs and knows model=, and OPENAI_API_KEY if it wants a key; raise timeout= or max_retries=, "
                "or lower num_concurrent=, if it is busy."
            ) from error

    # Answers --------------------------------------------------------------------------------------------------------

    def parse_logprobs(
        self, outputs: Any, tokens: Sequence[Any] = (), ctxlens: Sequence[int] = (), **more: Any
    ) -> list[tuple[float, bool]]:
        """As lm_eval's, of answers that are what was asked for.

        Raises:
            ModelError: a prompt is missing, or has no log-probability for each of its tokens.
        """
        answers = outputs if isinstance(outputs, list) else [outputs]
        try:
            choices = sorted((c for one in answers for c in one["choices"]), key=lambda c: c["index"])
            if [c["index"] for c in choices] != list(range(len(tokens))):
                raise ValueError(f"{len(choices)} answers to {len(tokens)} prompts")
            for choice, prompt, start in zip(choices, tokens, ctxlens, strict=True):
                numbers, best = choice["logprobs"]["token_logprobs"], choice["logprobs"]["top_logprobs"]
                if not len(numbers) == len(best) == len(prompt) + 1:
                    raise ValueError(f"log-probabilities of {len(numbers) - 1} tokens, and {len(prompt)} were sent")
                if not all(math.isfinite(one) for one in numbers[start:-1]) or not all(best[start:-1]):
                    raise ValueError("a log-probability is missing or no number")
        except (KeyError, TypeError, ValueError) as error:
            raise ModelError(
                f"The endpoint {self.base_url} doesn't give the log-probabilities of a prompt ({error!r}), which must "
                "come for echo=true, logprobs=1, max_tokens=1: multiple choice can't be scored through it. Use a "
                "server that does (vLLM), with the tokenizer that tokenizer= names."
            ) from error
        found: list[tuple[float, bool]] = super().parse_logprobs(answers, tokens=tokens, ctxlens=ctxlens)  # type: ignore[misc]
        return found

    def parse_generations(self, outputs: Any, **more: Any) -> list[str]:
        """As lm_eval's, of answers that hold a text each.

        Raises:
            ModelError: one doesn't.
        """
        for one in outputs if isinstance(outputs, list) else [outputs]:
            choices: Any = one.get("choices") if isinstance(one, Mapping) else None
            whole = isinstance(choices, list) and all(isinstance(c.get("text"), str) for c in choices)
            if not whole or sorted(c.get("index", -1) for c in choices) != list(range(len(choices))):
                raise ModelError(f"The endpoint {self.base_url} sent an answer without a text: {str(one)[:200]}.")
        found: list[str] = super().parse_generations(outputs, **more)  # type: ignore[misc]
        return found

    def _loglikelihood_tokens(
        self, requests: Any, disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[tuple[float, bool]]:
        with self._explained():
            found: list[tuple[float, bool]] = super()._loglikelihood_tokens(requests)  # type: ignore[misc]
        return found

    def generate_until(self, requests: Any, **more: Any) -> list[str]:
        """As lm_eval's, with errors in words."""
        with self._explained():
            found: list[str] = super().generate_until(requests, **more)  # type: ignore[misc]
        return found

    # What retrieval asks --------------------------------------------------------------------------------------------

    def markers(self) -> tuple[str, ...]:
        """The tokenizer's control tokens."""
        return markers_of(self.tokenizer)

    def bos(self) -> str:
        """The tokenizer's BOS."""
        return str(getattr(self.tokenizer, "bos_token", None) or "")

    def count(self, text: str, *, bare: bool) -> int:
        """Tokens of a text; with ``bare``, without BOS and EOS."""
        special = self.add_bos_token and not bare
        return len(self.tokenizer(text, add_special_tokens=special, return_attention_mask=False).input_ids)

    def room(self, request_type: str, arguments: Sequence[Any]) -> int:
        """Tokens of ``max_length`` that a request leaves free."""
        free = self.max_length - self.count(arguments[0], bare=False)
        if request_type == "generate_until":
            return free - int(arguments[1].get("max_tokens", arguments[1].get("max_gen_toks", self._max_gen_toks)))
        return free - self.count(arguments[1], bare=True)

    def render(self, messages: list[dict[str, str]], generation_prompt: bool) -> str:
        """The prompt that the tokenizer's chat template makes of messages.

        Raises:
            ArgumentError: it has none.
        """
        if not getattr(self.tokenizer, "chat_template", None):
            raise ArgumentError("the tokenizer has no chat template; remove --apply_chat_template", "the command")
        return str(
            self.tokenizer.apply_chat_template(
                messages,
                tokenize=False,
                add_generation_prompt=generation_prompt,
                continue_final_message=not generation_prompt,
            )
        )

    def identity(self) -> dict[str, Any]:
        """The name that the server has for the model; nobody outside can name its weights."""
        return dict(self._identity)

    def encoder_device(self) -> str:
        """The GPU where there is one, as the model is elsewhere."""
        import torch

        return "cuda" if torch.cuda.is_available() else "cpu"

    def prefix_scorer(self) -> None:
        """None: the server shares prefixes, if it does."""

    def gather(self, value: Any) -> list[Any] | None:
        """There is one process."""
        return [value]
