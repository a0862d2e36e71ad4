"""The model type ``rag-hf``: lm_eval's ``hf`` with retrieval. All of it is in `RagMixin` and `HFHost`."""

from __future__ import annotations

from lm_eval.api.registry import model_registry, register_model
from lm_eval.models.huggingface import HFLM

from lm_eval_kinject.models.hf_host import HFHost
from lm_eval_kinject.models.rag import RagMixin

__all__ = ["RagHFLM"]


class RagHFLM(RagMixin, HFHost, HFLM):
    """Takes every argument of ``hf`` and those of the pipeline (`kinject arguments` lists them)."""

    host_class = HFLM


if "rag-hf" not in model_registry:  # lm_eval's registry refuses a class where an entry point already stands
    register_model("rag-hf")(RagHFLM)
