"""Spares the last block the tokens that nobody scores.

For: `forward`. Not for: correctness; without it the answers are the same, later.

The one idea: after the last attention, a token's activations are read only if its logits are. So from there on, the
block's projections get the scored rows alone, and the other rows come out as zeros, which the row-wise rest of the
model carries along unread:

    input      ■ ■ ■ ■ ■ ■      queries, keys, values: every token, since later ones look back at it
    attention  ⬚ ⬚ ⬚ ■ ⬚ ■      tiles that hold a scored row
    o, mlp     ⬚ ⬚ ⬚ ■ ⬚ ■      scored rows
    logits           ■   ■      `logits_to_keep`

That is most of one block in however many the model has: 7% of the work with twelve, 2.5% with thirty-two.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from transformers.pytorch_utils import Conv1D

from lm_eval_kinject.scoring.attention import PackAttention


class LastBlock:
    """The last block of a model, where its layers can be told apart.

    Args:
        model: a transformers model, with or without adapters.

    Attributes:
        attention: identifies the last attention layer, as `PackAttention` does; None if it couldn't be found.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        self.attention: int | None = None
        self._projections: list[torch.nn.Module] = []
        modules = dict(model.named_modules())
        layers = {
            name: module.layer_idx
            for name, module in modules.items()
            if type(module).__name__.endswith("Attention") and isinstance(getattr(module, "layer_idx", None), int)
        }
        last = [name for name, index in layers.items() if index == max(layers.values())]
        if len(last) == 1 and "." in last[0]:
            self.attention = id(modules[last[0]])
            block = modules[last[0].rpartition(".")[0]]
            self._projections = [part for part in block.modules() if isinstance(part, (torch.nn.Linear, Conv1D))]

    @contextlib.contextmanager
    def only_scored_rows(self, pack: PackAttention) -> Iterator[None]:
        """While entered, projections of the last block that run after its attention see the pack's scored rows."""
        n, rows = pack.n_queries, pack.scored_rows or [0]  # no kernel has to do without any row

        def narrow(_: torch.nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
            states = inputs[0]
            if not pack.finished or tuple(states.shape[:-1]) != (1, n):
                return None
            return (states[:, rows], *inputs[1:])

        def widen(_: torch.nn.Module, inputs: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor | None:
            if not pack.finished or tuple(inputs[0].shape[:-1]) != (1, len(rows)):
                return None
            full = output.new_zeros(1, n, output.shape[-1])
            full[:, rows] = output
            return full

        handles = []
        if len(rows) < n:
            for part in self._projections:
                handles += [part.register_forward_pre_hook(narrow), part.register_forward_hook(widen)]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
