"""The host of chat endpoints: lm_eval's classes for chat completions, asked what retrieval needs to know.

What it is for: `ChatHost` stands between `RagMixin` and ``LocalChatCompletion`` or ``OpenAIChatCompletion``: it hands
on messages, counts their tokens, and says of each answer that isn't one why. What it does not do: multiple choice, as
no chat endpoint gives log-probabilities of its prompt; chat templates, which are the server's.

The one idea: an empty answer has a reason (a refusal, a filter, tokens used up by thinking), and lm_eval scores them
all as the empty text. Here the reasons are counted, warned of and written into the results, and an answer that has
neither text nor reason is asked for again.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
from lm_eval.models.api_models import JsonChatStr

from lm_eval_kinject.errors import ModelError
from lm_eval_kinject.log import log
from lm_eval_kinject.models.api_host import (
    EndpointHost,
    endpoint,
    load_tokenizer,
    token_count,
    tokenizer_identity,
    tokenizer_markers,
)

__all__ = ["CHAT", "OPENAI_CHAT", "ChatHost"]

CHAT = endpoint("rag-local-chat-completions", "/chat/completions", hosted=False)
OPENAI_CHAT = endpoint("rag-openai-chat-completions", "/chat/completions", hosted=True)

_PROBE = "Reply with the word yes."
_PER_MESSAGE = 3
"""Tokens around a message, and again those that open the answer, where no chat template tells (OpenAI's figure)."""

_REMEDIES = {
    "cut short": "max_gen_toks was used up before there was an answer, as by a model that thinks first; raise it with "
    "--gen_kwargs max_gen_toks=…",
    "refused": "the model refused; its words are the answer",
    "filtered": "the server's content filter took the answer away",
    "empty": "the model wrote nothing, or began with what stops it",
}


class ChatHost(EndpointHost):
    """Mixed in before ``LocalChatCompletion`` or ``OpenAIChatCompletion``; see `lm_eval_kinject.models.host.Host`."""

    gives_log_probs = False

    think_end_token: str | None
    _create_payload: Any

    # Loading --------------------------------------------------------------------------------------------------------

    def _connect(self, name: Any, own: dict[str, Any]) -> None:
        self._ends: Counter[str] = Counter()
        # the server makes tokens of messages, so lm_eval gets no tokenizer; we need one to keep to the window
        self._counter = load_tokenizer(name, own, hosted=self.engine is OPENAI_CHAT)
        self._identity["tokenizer"] = tokenizer_identity(self._counter, name, own)
        super().__init__(**{**own, "tokenizer": None, "tokenizer_backend": None, "tokenized_requests": False})
        self._note_sampling()

    def _note_sampling(self) -> None:
        """Says where lm_eval's class doesn't ask for the greedy answer although a task does, as by a model's name."""
        sent = self._create_payload([], generate=True, gen_kwargs={"temperature": 0.0})
        if sent["temperature"] != 0:
            self._identity["sampling"] = {"temperature": sent["temperature"]}
            log.warning(
                "lm_eval asks this model at temperature %s whatever the task says: answers differ from run to run.",
                sent["temperature"],
            )

    def _probe(self) -> None:
        """Asks once for one word.

        Raises:
            ModelError: nobody answers as a chat endpoint does, or the key or the model's name isn't known there.
        """
        asked = self.render([{"role": "user", "content": _PROBE}], generation_prompt=True)
        with self._explained():
            self.model_call(messages=[asked], generate=True, gen_kwargs={"until": ["\n\n"]})

    # Answers --------------------------------------------------------------------------------------------------------

    def model_call(self, messages: Any, **more: Any) -> Any:
        """As lm_eval's, of an answer that is one: others are tried again with those that the server says are none.

        Raises:
            ModelError: the server sent something else.
        """
        answer = super().model_call(messages, **more)
        self._choices(answer)
        return answer

    def parse_generations(self, outputs: Any, **more: Any) -> list[str]:
        """As lm_eval's, of answers with a text or a reason for having none."""
        answers = outputs if isinstance(outputs, list) else [outputs]
        told = [{"choices": [self._told(choice) for choice in self._choices(one)]} for one in answers]
        found: list[str] = super().parse_generations(told, **more)  # type: ignore[misc]
        return found

    def _choices(self, answer: Any) -> list[Any]:
        """The answers in what a server sent.

        Raises:
            ModelError: there are none, or one has neither text nor reason.
        """
        choices = answer.get("choices") if isinstance(answer, Mapping) else None
        whole = isinstance(choices, list) and all(isinstance(one, Mapping) and _is_answer(one) for one in choices)
        if not choices or not whole or sorted(one.get("index", -1) for one in choices) != list(range(len(choices))):
            raise ModelError(
                f"The chat endpoint {self.base_url} sent an answer without a text: {str(answer)[:200]}. Check that it "
                "is a chat endpoint (…/chat/completions), and its log."
            )
        return list(choices)

    def _told(self, choice: Mapping[str, Any]) -> dict[str, Any]:
        """An answer with a text, and a note of why it is no usual one."""
        message, end = choice["message"], choice.get("finish_reason")
        text = message.get("content") or message.get("refusal") or ""
        thinks = bool(self.think_end_token) and end == "length" and self.think_end_token not in text
        if message.get("refusal"):
            self._ends["refused"] += 1
        elif end == "content_filter":
            self._ends["filtered"] += 1
        elif thinks or (end == "length" and not text.strip()):
            self._ends["cut short"] += 1
            text = ""  # thoughts without an end are no answer
        elif not text.strip():
            self._ends["empty"] += 1
        return {"index": choice["index"], "message": {"content": text}}

    def generate_until(self, requests: Any, **more: Any) -> list[str]:
        """As lm_eval's, with errors in words, and cut at every stop sequence (servers get four at most, or none)."""
        before = Counter(self._ends)
        with self._explained():
            texts: list[str] = super().generate_until(requests, **more)  # type: ignore[misc]
        for end, count in (self._ends - before).items():
            log.warning("%d of %d answers were %s: %s.", count, len(texts), end, _REMEDIES[end])
        return [_cut(text, request.args[1].get("until")) for text, request in zip(texts, requests, strict=True)]

    def get_model_info(self) -> dict[str, Any]:
        """How many answers since the last evaluation were no usual ones, by reason."""
        info: dict[str, Any] = getattr(super(), "get_model_info", dict)()
        info["chat_answers"] = {end: self._ends[end] for end in _REMEDIES}
        self._ends.clear()
        return info

    # What retrieval asks --------------------------------------------------------------------------------------------

    def markers(self) -> tuple[str, ...]:
        """The tokenizer's control tokens: some servers read them in a message, too."""
        return tokenizer_markers(self._counter)

    def bos(self) -> str:
        """Nothing: text goes into messages."""
        return ""

    def count(self, text: Any, *, bare: bool) -> int:
        """Tokens of a text, or of messages with what the chat template puts around them."""
        if isinstance(text, str):
            return token_count(self._counter, text)
        messages = json.loads(text.prompt)
        if getattr(self._counter, "chat_template", None):
            try:
                prompt = self._counter.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
                return token_count(self._counter, prompt)
            except jinja2.TemplateError:
                pass  # it takes no system message, for example; the server's own template may
        each = (token_count(self._counter, part) for m in messages for part in (m["role"], m["content"]))
        return sum(each) + _PER_MESSAGE * (len(messages) + 1)

    def render(self, messages: list[dict[str, str]], generation_prompt: bool) -> Any:
        """The messages themselves, as lm_eval carries them."""
        return JsonChatStr(json.dumps(messages, ensure_ascii=False))


def _is_answer(choice: Mapping[str, Any]) -> bool:
    message = choice.get("message")
    if not isinstance(message, Mapping):
        return False
    said = message.get("content"), message.get("refusal")
    return any(isinstance(one, str) for one in said) or choice.get("finish_reason") in ("length", "content_filter")


def _cut(text: str, until: str | Sequence[str] | None) -> str:
    for stop in [until] if isinstance(until, str) else until or ():
        if stop:
            text = text.split(stop)[0]
    return text
