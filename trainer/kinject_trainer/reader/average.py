"""Averages of a training's weights: what is saved may be smoother than where the last step happened to end.

What it is for: `Average` keeps, beside the weights that train, an exponential moving average of them or their mean over
the last steps. What it does not do: it changes nothing about the training, and costs one more copy of the weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TypedDict

import torch
from torch import Tensor, nn


class AverageState(TypedDict):
    """What a checkpoint holds of an average: its weights, and how many steps are in it."""

    weights: dict[str, Tensor]
    count: int


class Average:
    """An average of a model's weights over its steps.

    Args:
        how: ``none``; ``ema:DECAY``, each step moving the average by 1 - DECAY; or ``mean:SHARE``, the plain
            mean over the last SHARE of the steps.
        steps: of the whole training.

    Raises:
        ValueError: ``how`` is none of these, or its number isn't between 0 and 1.
    """

    def __init__(self, how: str, steps: int) -> None:
        kind, _, number = how.partition(":")
        if kind not in {"none", "ema", "mean"} or (kind == "none") != (number == ""):
            raise ValueError(f"no average {how!r}: name none, ema:DECAY (as ema:0.998) or mean:SHARE (as mean:0.1)")
        self._kind = kind
        self._number = float(number or 0)
        if kind != "none" and not 0 < self._number < 1:
            raise ValueError(f"the number in {how!r} must be between 0 and 1")
        self._first = 0 if kind == "ema" else round(steps * (1 - self._number))
        self._weights: dict[str, Tensor] = {}
        self._count = 0

    @torch.no_grad()
    def add(self, model: nn.Module, step: int) -> None:
        """Take in the weights after step number ``step``, counted from 0."""
        if self._kind == "none" or step < self._first:
            return
        self._count += 1
        if self._count == 1:
            self._weights = {name: value.detach().clone() for name, value in model.named_parameters()}
            return
        share = 1 - self._number if self._kind == "ema" else 1 / self._count
        for name, value in model.named_parameters():
            self._weights[name].lerp_(value, share)

    @contextmanager
    def applied(self, model: nn.Module) -> Iterator[None]:
        """Within, the model has the averaged weights, as far as there are any; behind it, its own again."""
        own = {name: value.detach().clone() for name, value in model.named_parameters()} if self._weights else {}
        _put(model, self._weights)
        try:
            yield
        finally:
            _put(model, own)

    def state(self) -> AverageState:
        """For a checkpoint."""
        return {"weights": self._weights, "count": self._count}

    def load(self, state: AverageState, device: torch.device) -> None:
        """Go on from a checkpoint."""
        self._weights = {name: value.to(device) for name, value in state["weights"].items()}
        self._count = state["count"]


@torch.no_grad()
def _put(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    for name, value in model.named_parameters():
        if name in weights:
            value.copy_(weights[name])
