"""The model type ``rag-local-completions``: lm_eval's ``local-completions`` with retrieval."""

from __future__ import annotations

from lm_eval.api.registry import model_registry, register_model
from lm_eval.models.openai_completions import LocalCompletionsAPI

from lm_eval_kinject.models.api_host import COMPLETIONS, CompletionsHost
from lm_eval_kinject.models.rag import RagMixin

__all__ = ["RagLocalCompletionsLM"]


class RagLocalCompletionsLM(RagMixin, CompletionsHost, LocalCompletionsAPI):
    """Takes every argument of ``local-completions`` and those of the pipeline (`kinject arguments` lists them)."""

    host_class = LocalCompletionsAPI
    engine = COMPLETIONS


if "rag-local-completions" not in model_registry:
    register_model("rag-local-completions")(RagLocalCompletionsLM)
