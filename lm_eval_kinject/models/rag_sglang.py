"""The model type ``rag-sglang``: lm_eval's ``sglang`` with retrieval. All of it is in `RagMixin` and `SGLangHost`."""

from __future__ import annotations

from lm_eval.api.registry import model_registry, register_model
from lm_eval.models.sglang_causallms import SGLangLM

from lm_eval_kinject.models.rag import RagMixin
from lm_eval_kinject.models.serving_host import SGLANG, SGLangHost

__all__ = ["RagSGLangLM"]


class RagSGLangLM(RagMixin, SGLangHost, SGLangLM):
    """Takes every argument of ``sglang`` and those of the pipeline (`kinject arguments` lists them)."""

    host_class = SGLangLM
    engine = SGLANG


if "rag-sglang" not in model_registry:
    register_model("rag-sglang")(RagSGLangLM)
