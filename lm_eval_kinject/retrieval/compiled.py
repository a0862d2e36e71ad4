"""A transformer that runs in OpenVINO: the same numbers sooner, on a processor.

What it is for: ``retriever_backend=openvino``. What it does not do: tokenise or pool (``encoders.py`` does, whatever
the model runs in), quantise, or use a GPU.

The one idea: to its caller the compiled model is the model. It takes the same two tensors and gives an output with the
one tensor that is pooled, so that nothing else knows of it.
"""

from __future__ import annotations

import ctypes
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, Literal

from lm_eval_kinject.errors import RetrievalError

__all__ = ["Compiled"]


class Compiled:
    """A transformer, called as before.

    Args:
        name: of the retriever, for messages.
        model: in float32, in evaluation mode, on the processor; not needed afterwards.
        output: the tensor that is wanted: ``last_hidden_state`` or ``pooler_output``.
        dtype: ``float32``, or ``bfloat16`` where the processor has it. It decides matrix products; the rest of the pass
            is rounded where OpenVINO sees fit, and what comes out is float32.

    Raises:
        RetrievalError: the model has something that OpenVINO can't run, or the processor no bfloat16.
    """

    def __init__(self, name: str, model: Any, output: str, dtype: Literal["float32", "bfloat16"]) -> None:
        import openvino
        import torch

        self.config = model.config
        self._output = output
        precision = {"float32": openvino.Type.f32, "bfloat16": openvino.Type.bf16}[dtype]
        try:
            graph = _graph(model, output)
            how = {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": torch.get_num_threads()}
            with _same_signal_stack():
                self._compiled = openvino.Core().compile_model(graph, "CPU", how)
        except Exception as problem:  # RuntimeErrors of several kinds, and whatever tracing meets
            said = (str(problem).strip().splitlines() or [type(problem).__name__])[0]
            raise RetrievalError(
                f"retriever={name}: OpenVINO can't run this model ({said[:200]}): leave retriever_backend= out."
            ) from problem
        if self._compiled.get_property("INFERENCE_PRECISION_HINT") != precision:
            raise RetrievalError(
                f"retriever={name}: this processor has no {dtype} for OpenVINO: leave retriever_dtype= out."
            )

    def __call__(self, *, input_ids: Any, attention_mask: Any) -> Any:
        """The output, of which there is only the tensor that was asked for.

        Args:
            input_ids: shape (texts, tokens), int64.
            attention_mask: of the same shape, 0 where there is no token.
        """
        import torch

        found = self._compiled([input_ids.numpy(), attention_mask.numpy()])[0]
        return SimpleNamespace(**{self._output: torch.from_numpy(found)})


class _SignalStack(ctypes.Structure):
    """Linux's ``stack_t``."""

    _fields_ = (("pointer", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t))


@contextmanager
def _same_signal_stack() -> Iterator[None]:
    """Keeps the stack that this thread's signal handlers run on.

    OpenVINO's processor plugin puts another there while a model is compiled, and at the model's end frees it and puts
    back what it found. Two models that don't end in the reverse order (DPR has two) leave a stack that is no more, and
    the next signal that Python handles, Ctrl-C among them, ends the process with a segmentation fault. Where the stack
    is put back at once, every model finds, and later puts back, the thread's own.
    """
    if not sys.platform.startswith("linux"):
        yield
        return
    process, stack = ctypes.CDLL(None), _SignalStack()
    process.sigaltstack(None, ctypes.byref(stack))
    try:
        yield
    finally:
        process.sigaltstack(ctypes.byref(stack), None)


def _graph(model: Any, output: str) -> Any:
    """OpenVINO's form of a model, of any batch and length.

    By the frontend, and not by ``openvino.convert_model``, which reports its use to Intel unless it has been forbidden.
    """
    import torch
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

    class Wanted(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, input_ids: Any, attention_mask: Any) -> Any:
            return getattr(self.model(input_ids=input_ids, attention_mask=attention_mask), output)

    # One of the two texts is padded, so that the trace doesn't take a mask to be full.
    mask = torch.tensor([[1] * 8, [1] * 5 + [0] * 3])
    example = {"input_ids": torch.ones_like(mask), "attention_mask": mask}
    frontend = FrontEndManager().load_by_framework("pytorch")
    with torch.no_grad(), warnings.catch_warnings():
        # Tracing warns of branches that it takes for good; they are the same for every batch: a mask, and no cache.
        warnings.simplefilter("ignore")
        decoder = TorchScriptPythonDecoder(Wanted().eval(), example_input=example, shared_memory=False)
        return frontend.convert(frontend.load(decoder))
