"""The model types behind an endpoint: lm_eval's ``local-`` and ``openai-(chat-)completions`` with retrieval."""

from __future__ import annotations

from lm_eval.api.registry import model_registry, register_model
from lm_eval.models.openai_completions import (
    LocalChatCompletion,
    LocalCompletionsAPI,
    OpenAIChatCompletion,
    OpenAICompletionsAPI,
)

from lm_eval_kinject.models.api_host import COMPLETIONS, OPENAI_COMPLETIONS, CompletionsHost
from lm_eval_kinject.models.chat_host import CHAT, OPENAI_CHAT, ChatHost
from lm_eval_kinject.models.rag import RagMixin

__all__ = [
    "RagLocalChatCompletionsLM",
    "RagLocalCompletionsLM",
    "RagOpenAIChatCompletionsLM",
    "RagOpenAICompletionsLM",
]


class RagLocalCompletionsLM(RagMixin, CompletionsHost, LocalCompletionsAPI):
    """Takes every argument of ``local-completions`` and those of the pipeline (`kinject arguments` lists them)."""

    host_class = LocalCompletionsAPI
    engine = COMPLETIONS


class RagOpenAICompletionsLM(RagMixin, CompletionsHost, OpenAICompletionsAPI):
    """Takes every argument of ``openai-completions`` and those of the pipeline."""

    host_class = OpenAICompletionsAPI
    engine = OPENAI_COMPLETIONS


class RagLocalChatCompletionsLM(RagMixin, ChatHost, LocalChatCompletion):
    """Takes every argument of ``local-chat-completions`` and those of the pipeline."""

    host_class = LocalChatCompletion
    engine = CHAT
    needs_messages = True


class RagOpenAIChatCompletionsLM(RagMixin, ChatHost, OpenAIChatCompletion):
    """Takes every argument of ``openai-chat-completions`` and those of the pipeline."""

    host_class = OpenAIChatCompletion
    engine = OPENAI_CHAT
    needs_messages = True


for _type in (RagLocalCompletionsLM, RagOpenAICompletionsLM, RagLocalChatCompletionsLM, RagOpenAIChatCompletionsLM):
    if _type.engine.type not in model_registry:
        register_model(_type.engine.type)(_type)
