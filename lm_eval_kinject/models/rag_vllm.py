"""The model type ``rag-vllm``: lm_eval's ``vllm`` with retrieval. All of it is in `RagMixin` and `VLLMHost`."""

from __future__ import annotations

from lm_eval.api.registry import model_registry, register_model

from lm_eval_kinject.errors import ModelError
from lm_eval_kinject.models import ending, serving_host
from lm_eval_kinject.models.rag import RagMixin

try:
    from lm_eval.models.vllm_causallms import VLLM
except ModuleNotFoundError as error:  # lm_eval's module imports vllm, so there is no later place to say it
    ending.install()
    raise ModelError(
        f"rag-vllm needs the package vllm ({error}). Install with `pip install 'lm-eval-kinject[vllm]'` on Linux with "
        "a GPU, or score the model with rag-hf."
    ) from error

__all__ = ["RagVLLM"]


class RagVLLM(RagMixin, serving_host.VLLMHost, VLLM):
    """Takes every argument of ``vllm`` and those of the pipeline (`kinject arguments` lists them)."""

    host_class = VLLM
    engine = serving_host.VLLM


if "rag-vllm" not in model_registry:
    register_model("rag-vllm")(RagVLLM)
