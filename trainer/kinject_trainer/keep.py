"""Regularisers: what holds the weights near those that the training starts from.

What it is for: `Pull` adds the gradient of a quadratic penalty to the target's (L2 to the start, EWC), `RecAdam` is the
optimizer that takes over from such a penalty bit by bit, `fisher` measures which weights matter to older texts. What it
does not do: it replays nothing (`data.py`), and it doesn't know adapters, whose pretrained weights don't move anyway.

The one idea: the start is the base as it was loaded, so a resumed run has it again without a checkpoint holding it. The
penalty is 0 there; losses in the log are the target's, without it.

Sources: L2 and EWC (Kirkpatrick et al., arXiv 1612.00796), RecAdam (Chen et al., arXiv 2004.12651).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from kinject_trainer.recipe import L2, Ewc, Regulariser

__all__ = ["Pull", "RecAdam", "fisher", "make_pull", "target_share", "trained"]


def trained(model: Any) -> list[torch.Tensor]:
    """The weights that are trained, in the model's order."""
    return [p for p in model.parameters() if p.requires_grad]


@dataclass(frozen=True)
class Pull:
    """A penalty ½ · factor · Σ importance · (θ − start)².

    Attributes:
        weights: θ, which the training changes.
        start: where they were, one for each.
        importance: of each number of each weight; None: 1 for all.
        factor: the gradient's, in the loss's nats a token.
    """

    weights: Sequence[torch.Tensor]
    start: Sequence[torch.Tensor]
    importance: Sequence[torch.Tensor] | None
    factor: float

    def value(self) -> float:
        """The penalty, in nats."""
        parts = [float((d * d if f is None else f * d * d).sum()) for d, f in self._away()]
        return 0.5 * self.factor * math.fsum(parts)

    def add_gradients(self) -> None:
        """Adds the penalty's gradient to the gradients that are there; a weight without one has not moved."""
        for weight, (away, importance) in zip(self.weights, self._away(), strict=True):
            if weight.grad is not None:
                weight.grad.add_(away if importance is None else importance * away, alpha=self.factor)

    def _away(self) -> Iterable[tuple[torch.Tensor, torch.Tensor | None]]:
        """(θ − start, importance) of each weight, one at a time: together they would take the model's memory again."""
        for number, (weight, start) in enumerate(zip(self.weights, self.start, strict=True)):
            yield weight.detach() - start, None if self.importance is None else self.importance[number]


def make_pull(regulariser: Regulariser | None, model: Any, rows: Sequence[Sequence[int]], seed: int) -> Pull | None:
    """The penalty that a recipe asks for; None where it asks for none, or for RecAdam.

    Args:
        regulariser: of the recipe.
        model: at the start, on its device.
        rows: token ids of the texts that the Fisher information is measured on; not looked at for L2.
        seed: of the labels that are drawn.
    """
    weights = trained(model)
    if isinstance(regulariser, L2):  # λ‖θ − start‖², whose gradient has a 2 that EWC's ½ takes away
        return Pull(weights, [w.detach().clone() for w in weights], None, 2 * regulariser.strength)
    if isinstance(regulariser, Ewc):
        importance = fisher(model, rows, sampled=regulariser.kind == "ewc", seed=seed)
        return Pull(weights, [w.detach().clone() for w in weights], importance, regulariser.strength)
    return None


def fisher(model: Any, rows: Sequence[Sequence[int]], *, sampled: bool, seed: int) -> list[torch.Tensor]:
    """The diagonal of the Fisher information: the mean over examples of (∂ log p(example) / ∂θ)².

    Each example has a backward pass of its own: the square of a batch's mean gradient is something else, and near 0
    where a model has been trained well. log p is the sum over an example's predicted tokens.

    Args:
        model: causal language model; its mode, gradients and the global random numbers stay as they are.
        rows: token ids, one example each; those of fewer than two tokens predict nothing and are left out.
        sampled: labels are drawn from the model's own predictions behind the example's text (the Fisher information);
            otherwise they are the text's tokens (the "empirical Fisher", which is another quantity).
        seed: of what is drawn.

    Returns:
        For each trained weight, in the model's order, a tensor of its shape, none below 0.
    """
    weights = trained(model)
    sums = [torch.zeros_like(w) for w in weights]
    generator = torch.Generator().manual_seed(seed)  # on the processor, so that every device draws the same
    was_training, examples = model.training, [row for row in rows if len(row) > 1]
    model.eval()
    for row in examples:
        ids = torch.tensor([list(row)], device=weights[0].device)
        scores = model(input_ids=ids, use_cache=False).logits[0, :-1].float().log_softmax(-1)
        labels = ids[0, 1:]
        if sampled:
            labels = torch.multinomial(scores.detach().exp().cpu(), 1, generator=generator)[:, 0].to(ids.device)
        told = torch.autograd.grad(scores.gather(-1, labels[:, None]).sum(), weights, allow_unused=True)
        for total, gradient in zip(sums, told, strict=True):
            if gradient is not None:
                total.addcmul_(gradient, gradient)
    model.train(was_training)
    return [total / max(len(examples), 1) for total in sums]


def target_share(step: int, k: float, t0: float) -> float:
    """λ(t) = 1 / (1 + e^(−k(t − t0))), written so that nothing overflows; t counts updates from 1."""
    return 0.5 * (1 + math.tanh(0.5 * k * (step - t0)))


class RecAdam(torch.optim.Optimizer):
    """Adam on the target, whose share λ(t) rises from 0 to 1, and a pull to the start, whose share falls.

    At update t = 1, 2, …, with the moments m and v of the target's gradient alone::

        θ −= lr · λ(t) · m · √(1 − β₂ᵗ) / (1 − β₁ᵗ) / (√v + eps)
        θ −= lr · (1 − λ(t)) · γ · (θ − start)

    As in its authors' code the pull is decoupled: it goes into no moment, and follows the step. It overshoots where
    lr · γ · (1 − λ) is 1 or more, which a recipe is refused for.

    Args:
        weights: what is trained.
        start: where each was; not part of the optimizer's state, since the base holds it.
        lr: learning rate.
        betas: decay of the moments.
        gamma: γ, strength of the pull.
        k: how fast the target takes over, an update.
        t0: the update at which both have half.
        eps: keeps the division from 0.
    """

    def __init__(
        self,
        weights: Sequence[torch.Tensor],
        start: Sequence[torch.Tensor],
        *,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        gamma: float = 5000.0,
        k: float = 0.5,
        t0: float = 250,
        eps: float = 1e-6,
    ) -> None:
        self._pull = (gamma, k, t0)
        self._start = list(start)
        super().__init__(list(weights), {"lr": lr, "betas": betas, "eps": eps})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """One update."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        starts = iter(self._start)
        for group in self.param_groups:
            for weight in group["params"]:
                start = next(starts)
                if weight.grad is not None:
                    self._update(weight, start, group)
        return loss

    def _update(self, weight: torch.Tensor, start: torch.Tensor, group: dict[str, Any]) -> None:
        state, (first, second) = self.state[weight], group["betas"]
        if not state:
            state["step"] = 0
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(weight), torch.zeros_like(weight)
        state["step"] += 1
        gamma, k, t0 = self._pull
        share = target_share(state["step"], k, t0)
        state["exp_avg"].lerp_(weight.grad, 1 - first)
        state["exp_avg_sq"].mul_(second).addcmul_(weight.grad, weight.grad, value=1 - second)
        corrected = math.sqrt(1 - second ** state["step"]) / (1 - first ** state["step"])
        denominator = state["exp_avg_sq"].sqrt().add_(group["eps"])
        weight.addcdiv_(state["exp_avg"], denominator, value=-group["lr"] * share * corrected)
        weight.add_(weight - start, alpha=-group["lr"] * (1 - share) * gamma)
