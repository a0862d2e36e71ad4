"""The loss at the output layer, some hundreds of tokens at a time: the logits of a whole batch never exist.

What it is for: with a vocabulary of 32,000 the logits of eight blocks are a quarter of a gigabyte, three times over
(fp32 copy, softmax, gradient): more than the rest of a small model. `LossHead` has the output layer return the summed
loss instead of logits, while it is given labels. What it does not do: it changes no formula, and models that do
something to their logits afterwards (scale, cap) are left as they are.

The one idea: the gradient of a sum of cross-entropies by the logits is softmax minus one-hot, known as soon as the
logits are. So a slice of tokens goes through projection, loss and both gradients in one go, in a buffer that is used
again for the next slice; backward only multiplies by the incoming scalar. That is three matrix products, as many as
without slices, where recomputing in the backward pass would take four. Working inside the layer's own forward keeps
DDP's and FSDP's bookkeeping as it is.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn import functional

__all__ = ["LossHead", "summed_token_loss"]

NO_LOSS = -100
_SLICE = 1 << 23  # logits a slice: 32 MiB in fp32
_CHANGES_LOGITS = (
    "final_logit_softcapping", "logit_scale", "output_multiplier", "lm_head_multiplier", "logits_scaling"
)  # fmt: skip


def summed_token_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Sum of the negative log-likelihoods of next tokens, in nats and fp32, from logits.

    Args:
        logits: [rows, length, vocabulary].
        labels: [rows, length]; a label is predicted from the logits one place before it; -100 is left out.
    """
    return functional.cross_entropy(logits.flatten(0, 1).float(), shifted(labels).flatten(), reduction="sum")


def shifted(labels: torch.Tensor) -> torch.Tensor:
    """Labels moved one place to the left: them and not the logits, of which a slice would be copied whole."""
    return functional.pad(labels[:, 1:], (0, 1), value=NO_LOSS)


class _SummedLoss(torch.autograd.Function):
    """Σ cross-entropy(hidden · weightᵀ + bias, targets), with gradients computed along the way."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,  # [tokens, width]
        weight: torch.Tensor,  # [vocabulary, width]
        bias: torch.Tensor | None,
        targets: torch.Tensor,  # [tokens]
    ) -> torch.Tensor:
        wants = [t is not None and t.requires_grad for t in (hidden, weight, bias)]
        kind = hidden.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype
        with torch.autocast(kind, enabled=False):
            projection = weight.to(dtype)
            total, *grads = _slices(hidden.to(dtype), projection, bias, targets, weight, wants)
        ctx.save_for_backward(*grads)
        ctx.hidden_dtype = hidden.dtype
        return total

    @staticmethod
    def backward(ctx: Any, scale: torch.Tensor) -> Any:
        made = [None if g is None else g.mul_(scale.to(g.dtype)) for g in ctx.saved_tensors]
        by_hidden = None if made[0] is None else made[0].to(ctx.hidden_dtype)
        return by_hidden, made[1], made[2], None


def _slices(
    hidden: torch.Tensor,
    projection: torch.Tensor,
    bias: torch.Tensor | None,
    targets: torch.Tensor,
    weight: torch.Tensor,
    wants: list[bool],
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
    """The loss, and its gradients by hidden states, weight and bias where they are wanted."""
    tokens, vocabulary = len(hidden), len(projection)
    size = max(1, min(tokens, _SLICE // vocabulary))
    total = torch.zeros((), dtype=torch.float32, device=hidden.device)
    by_hidden = torch.empty_like(hidden) if wants[0] else None
    by_weight = torch.zeros_like(weight) if wants[1] else None
    by_bias = torch.zeros_like(bias) if bias is not None and wants[2] else None
    for start in range(0, tokens, size):
        part, goal = hidden[start : start + size], targets[start : start + size]
        scores = torch.mm(part, projection.T).float()
        if bias is not None:
            scores += bias
        counts = goal != NO_LOSS
        goal = goal.clamp(min=0)[:, None]
        spread = scores.logsumexp(-1, keepdim=True)
        total += ((spread - scores.gather(-1, goal)).squeeze(-1) * counts).sum()
        if by_hidden is None and by_weight is None and by_bias is None:
            continue
        scores.sub_(spread).exp_()
        scores.scatter_add_(-1, goal, -torch.ones_like(spread))
        scores.mul_(counts[:, None])
        slope = scores.to(hidden.dtype)
        if by_hidden is not None:
            torch.mm(slope, projection, out=by_hidden[start : start + size])
        if by_weight is not None:
            _add_product(by_weight, slope.T, part)
        if by_bias is not None:
            by_bias += scores.sum(0)
    return total, by_hidden, by_weight, by_bias


def _add_product(sums: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> None:
    """``sums += left @ right``, the sum in the precision of ``sums`` whatever the factors'."""
    if sums.dtype == left.dtype:
        sums.addmm_(left, right)
    else:
        sums += left @ right


class LossHead:
    """Has a model's output layer return a summed loss while it has labels, and logits otherwise.

    Args:
        model: causal language model, plain or PEFT's. Nothing is changed if its logits aren't the plain output of one
            linear layer.

    Attributes:
        applies: whether it does anything.
    """

    def __init__(self, model: Any) -> None:
        inner = model.get_base_model() if hasattr(model, "get_base_model") else model
        layer = inner.get_output_embeddings()
        config = inner.config.get_text_config()
        plain = type(layer) is torch.nn.Linear and all(getattr(config, n, None) is None for n in _CHANGES_LOGITS)
        self.applies = bool(plain)
        self._labels: torch.Tensor | None = None
        if not plain:
            return
        project = layer.forward

        def forward(hidden: torch.Tensor) -> torch.Tensor:
            labels = self._labels
            if labels is None:
                return project(hidden)
            if labels.shape != hidden.shape[:-1]:
                raise RuntimeError(f"labels of {tuple(labels.shape)} for hidden states of {tuple(hidden.shape)}")
            goal = shifted(labels).flatten()
            return _SummedLoss.apply(hidden.flatten(0, -2), layer.weight, layer.bias, goal)[None, None, None]

        layer.forward = forward

    def check(self, model: Any, ids: torch.Tensor, accelerator: Any) -> None:
        """Compares both ways on a row of ids, [1, length], and gives itself up where they differ by more than rounding.

        What a model does to its logits behind the output layer can't be known from outside. All processes decide alike.
        """
        if not self.applies:
            return
        with torch.no_grad():
            ours = self.loss(model, ids, ids)
            theirs = summed_token_loss(model(input_ids=ids, use_cache=False).logits, ids)
        apart = ((ours - theirs).abs() > 1e-3 * theirs.abs()).float()
        self.applies = float(accelerator.reduce(apart, reduction="sum")) == 0

    @contextmanager
    def scoring(self, labels: torch.Tensor) -> Iterator[None]:
        """While it lasts, the model's ``logits`` are one number, [1, 1, 1]: the summed loss of these labels."""
        self._labels = labels if self.applies else None
        try:
            yield
        finally:
            self._labels = None

    def loss(self, model: Any, ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Summed loss of rows of ids, both [rows, length]; by logits where the head doesn't apply."""
        with self.scoring(labels):
            logits = model(input_ids=ids, use_cache=False).logits
        return self.reduce(logits, labels)

    def reduce(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """The summed loss that ``logits`` are, or that follows from them."""
        return logits.squeeze() if self.applies else summed_token_loss(logits, labels)
