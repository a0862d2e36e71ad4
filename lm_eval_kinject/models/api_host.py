"""The hosts of endpoints: lm_eval's classes for completions, asked what retrieval needs to know.

What it is for: `EndpointHost` is what all endpoints share: their arguments, connecting, errors in words, names.
`CompletionsHost` stands between `RagMixin` and ``LocalCompletionsAPI`` or ``OpenAICompletionsAPI``: it tries once
whether the server gives log-probabilities of a prompt, counts tokens with the tokenizer that lm_eval took, and checks
every answer. What it does not do: retrieval, or chats (`chat_host`).

The one idea: lm_eval cuts an answer's list of log-probabilities by its own count of tokens and believes the rest, so a
server that cuts a text otherwise, or sends one token more or less, would give a wrong number. Here the list must have
the length of the prompt and one generated token, or there is an error.
"""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from lm_eval.api.model import TemplateLM

from lm_eval_kinject.context.compose import markers_of
from lm_eval_kinject.errors import ArgumentError, KinjectError, ModelError
from lm_eval_kinject.models.arguments import RagArguments
from lm_eval_kinject.models.engine import Engine, missing_packages
from lm_eval_kinject.models.results import loading, model_identity

__all__ = [
    "COMPLETIONS",
    "OPENAI_COMPLETIONS",
    "CompletionsHost",
    "EndpointHost",
    "endpoint",
    "load_tokenizer",
    "token_count",
    "tokenizer_identity",
    "tokenizer_markers",
]

_COMMANDS = ("device", "max_batch_size")  # options of lm_eval's command that mean nothing to a server
_DECIDE = ("add_bos_token", "max_length", "seed", "tokenized_requests", "custom_prefix_token_id", "eos_string")
_PROBE = "Where is the bridge? It is in the town."
_KEY = "OPENAI_API_KEY"


# What is known before connecting --------------------------------------------------------------------------------------


def endpoint(kind: str, path: str, *, hosted: bool) -> Engine:
    """What is known of an endpoint's model type.

    Args:
        kind: the type's name.
        path: what its address ends in, such as ``/completions``.
        hosted: OpenAI's own: it has an address by default, needs a key, and counts with tiktoken.
    """
    return Engine(
        type=kind,
        problems=functools.partial(_problems, kind, path, hosted),
        limits=_limits,
        passes_on=_COMMANDS,
        secret=f"set the environment variable {_KEY}",
        connects=True,
    )


def _problems(kind: str, path: str, hosted: bool, own: Mapping[str, Any], ours: Mapping[str, Any]) -> list[str]:
    packages = ["aiohttp", "requests", "tenacity", *(["tiktoken"] if hosted and not own.get("tokenizer") else [])]
    found = missing_packages(kind, packages, "pip install 'lm-eval-kinject[api]'")
    if not own.get("model") and not own.get("pretrained"):
        found.append("model= is missing: the name under which the server has the model; pass it")
    if not hosted or "base_url" in own:
        found += _wrong_address(own.get("base_url"), path)
    if hosted and not os.environ.get(_KEY):
        found.append(f"there is no key for the endpoint; set the environment variable {_KEY}")
    backends = ("auto", "huggingface", *(("tiktoken",) if hosted else ()))
    if own.get("tokenizer_backend") not in (None, *backends):
        found.append(
            f"tokenizer_backend={own['tokenizer_backend']} is not supported: tokens are counted with a Hugging Face "
            "tokenizer; remove it, and pass tokenizer=, a Hub id or folder"
        )
    if any(str(name).lower() in ("authorization", "api-key") for name in own.get("header") or ()):
        found.append(
            f"header= holds a secret, which lm_eval would write into its results; set the environment variable {_KEY}"
        )
    return found


def _wrong_address(address: Any, path: str) -> list[str]:
    if not isinstance(address, str) or not address.startswith(("http://", "https://")):
        return [f"base_url={address} must be the endpoint's address, such as http://localhost:8000/v1{path}"]
    if address.endswith(path) and (path == _CHAT or not address.endswith(_CHAT)):
        return []
    other = "" if path == _CHAT else " (no chat endpoint)"
    return [f"base_url={address} must end in {path}{other}; correct it"]


def _limits(ours: Mapping[str, Any]) -> list[str]:
    if ours.get("adapter"):
        return ["adapter= has no meaning here: the server loads the weights; start it with the adapter, and remove it"]
    return []


_CHAT = "/chat/completions"
COMPLETIONS = endpoint("rag-local-completions", "/completions", hosted=False)
OPENAI_COMPLETIONS = endpoint("rag-openai-completions", "/completions", hosted=True)


# Tokens ---------------------------------------------------------------------------------------------------------------


@contextmanager
def _tokenizer_needed(name: Any) -> Iterator[None]:
    """Says what to do where a tokenizer can't be loaded."""
    try:
        yield
    except (OSError, ValueError, KeyError) as error:  # KeyError: tiktoken doesn't know a model of this name
        raise ModelError(
            f"The tokenizer of model={name} can't be loaded ({' '.join(str(error).split())[:200]}). Pass "
            "tokenizer=, the Hub id or folder of the tokenizer that the server uses."
        ) from error


def load_tokenizer(name: Any, own: Mapping[str, Any], *, hosted: bool) -> Any:
    """The tokenizer that ``tokenizer=`` names; without, OpenAI's of that model, or the Hub's.

    Raises:
        ModelError: it can't be had.
    """
    with _tokenizer_needed(name):
        if hosted and not own.get("tokenizer"):
            import tiktoken

            return tiktoken.encoding_for_model(name)
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(
            own.get("tokenizer") or name,
            revision=own.get("revision", "main"),
            trust_remote_code=bool(own.get("trust_remote_code", False)),
        )


def token_count(tokenizer: Any, text: str, *, special: bool = False) -> int:
    """Tokens of a text; with ``special``, with what a Hugging Face tokenizer puts around it (tiktoken's do nothing)."""
    if hasattr(tokenizer, "encode_ordinary"):
        return len(tokenizer.encode_ordinary(text))
    return len(tokenizer(text, add_special_tokens=special, return_attention_mask=False).input_ids)


def tokenizer_markers(tokenizer: Any) -> tuple[str, ...]:
    """Its control tokens, of either kind of tokenizer."""
    special = getattr(tokenizer, "special_tokens_set", None)
    return markers_of(tokenizer) if special is None else tuple(sorted(special))


def tokenizer_identity(tokenizer: Any, name: Any, own: Mapping[str, Any]) -> dict[str, Any]:
    """Names the tokenizer that tokens were counted with."""
    if hasattr(tokenizer, "encode_ordinary"):
        made = {"fingerprint": f"{tokenizer.n_vocab} tokens", "method": "tiktoken's encoding of this name"}
        return {"name": f"tiktoken/{tokenizer.name}", **made}
    return model_identity(own.get("tokenizer") or name, commit=None, revision=own.get("revision", "main"))


# Hosts ----------------------------------------------------------------------------------------------------------------


class EndpointHost:
    """What all endpoints share; see `lm_eval_kinject.models.host.Host`."""

    engine: Engine

    # what TemplateAPI has after its __init__
    base_url: str
    model: str
    max_length: int
    model_call: Any
    _max_gen_toks: int

    # Loading --------------------------------------------------------------------------------------------------------

    def load(self, rag: RagArguments, arguments: dict[str, Any], usual: Mapping[str, Any]) -> None:
        """Connects, and finds out what the server gives."""
        own = {name: value for name, value in arguments.items() if name not in _COMMANDS}
        name = own.get("model") or own.get("pretrained")
        self._identity: dict[str, Any] = {
            "model": {
                "name": str(name).rstrip("/").rpartition("/")[2] if str(name).startswith("/") else str(name),
                "fingerprint": "a server's model",
                "method": "none: an endpoint doesn't show its weights",
            },
        }
        if found := loading({one: own[one] for one in _DECIDE if one in own}, usual):
            self._identity["loading"] = found
        self._connect(name, own)
        self._probe()

    def _connect(self, name: Any, own: dict[str, Any]) -> None:
        """Makes lm_eval's class ready."""
        raise NotImplementedError

    def _probe(self) -> None:
        """Asks once, in the beginning."""
        raise NotImplementedError

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

    # What retrieval asks --------------------------------------------------------------------------------------------

    def count(self, text: str, *, bare: bool) -> int:
        """Tokens of a text; with ``bare``, without BOS and EOS."""
        raise NotImplementedError

    def room(self, request_type: str, arguments: Sequence[Any]) -> int:
        """Tokens of ``max_length`` that a request leaves free."""
        free = self.max_length - self.count(arguments[0], bare=False)
        if request_type == "generate_until":
            return free - int(arguments[1].get("max_tokens", arguments[1].get("max_gen_toks", self._max_gen_toks)))
        return free - self.count(arguments[1], bare=True)

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


class CompletionsHost(EndpointHost):
    """Mixed in before ``LocalCompletionsAPI`` or ``OpenAICompletionsAPI``."""

    gives_log_probs = True

    # what TemplateAPI has after its __init__
    add_bos_token: bool
    tokenizer: Any
    tok_encode: Any

    # Loading --------------------------------------------------------------------------------------------------------

    def _connect(self, name: Any, own: dict[str, Any]) -> None:
        hosted = self.engine is OPENAI_COMPLETIONS and not own.get("tokenizer")
        own["tokenizer_backend"] = "tiktoken" if hosted else "huggingface"
        with _tokenizer_needed(name):
            super().__init__(**own)
        self._identity["tokenizer"] = tokenizer_identity(self.tokenizer, name, own)

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

    def loglikelihood(self, requests: Any, **more: Any) -> list[tuple[float, bool]]:
        """As lm_eval's, for each model that gave log-probabilities: its class for OpenAI knows two names alone."""
        found: list[tuple[float, bool]] = TemplateLM.loglikelihood(self, requests, **more)
        return found

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
        return tokenizer_markers(self.tokenizer)

    def bos(self) -> str:
        """The tokenizer's BOS."""
        return str(getattr(self.tokenizer, "bos_token", None) or "")

    def count(self, text: str, *, bare: bool) -> int:
        """Tokens of a text; with ``bare``, without BOS and EOS."""
        return token_count(self.tokenizer, text, special=self.add_bos_token and not bare)

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
