"""Mean negative log-likelihood a token, exactly: over all tokens, whatever the batches and processes.

What it is for: validation losses and perplexities. What it does not do: it measures no accuracy (lm_eval does).

The one idea: sums and counts are added up, never means of batches, so that a shorter last block weighs by its tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional

from kinject_trainer.data import IDLE, Plan

__all__ = ["mean_token_loss", "next_token_loss", "summed_token_loss"]


def summed_token_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Sum of the negative log-likelihoods of next tokens, in nats and fp32.

    Args:
        logits: [rows, length, vocabulary].
        labels: [rows, length]; a label is predicted from the logits one place before it; -100 is left out.
    """
    # The labels are shifted and not the logits: a slice of the logits would be copied whole.
    shifted = functional.pad(labels[:, 1:], (0, 1), value=-100)
    return functional.cross_entropy(logits.flatten(0, 1).float(), shifted.flatten(), reduction="sum")


def next_token_loss(outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
    """The training loss, as transformers' Trainer asks for it: this pass's share of the update's mean.

    Args:
        outputs: of the model, with ``logits``.
        labels: [rows, length], -100 where there is no loss.
        num_items_in_batch: predicted tokens of the whole update, over all passes and processes.
    """
    count = (labels[:, 1:] != -100).sum() if num_items_in_batch is None else num_items_in_batch
    return summed_token_loss(outputs.logits, labels) / max(int(count), 1)


@torch.no_grad()
def mean_token_loss(model: Any, blocks: Sequence[Sequence[int]], micro: int, accelerator: Any) -> float:
    """Mean negative log-likelihood of the predicted tokens of ``blocks``, in nats; the same on every process.

    Args:
        model: causal language model, on its device.
        blocks: token ids, all of one length but the last, which may be shorter.
        micro: blocks a forward pass.
        accelerator: of the run; its processes share the blocks.
    """
    shorter = len(blocks) > 1 and len(blocks[-1]) != len(blocks[0])
    world, rank = accelerator.num_processes, accelerator.process_index
    plan = Plan(len(blocks) - shorter, shorter, micro * world, micro, 1, world)
    sums = torch.zeros(2, dtype=torch.float64, device=accelerator.device)
    was_training = model.training
    model.eval()
    for numbers in plan.passes(rank):
        rows = [[0, 0] if n == IDLE else blocks[n] for n in numbers]
        ids = torch.tensor(rows, device=accelerator.device)
        labels = torch.full_like(ids, -100) if IDLE in numbers else ids
        logits = model(input_ids=ids, use_cache=False).logits
        sums[0] += summed_token_loss(logits, labels)
        sums[1] += 0 if IDLE in numbers else ids.shape[0] * (ids.shape[1] - 1)
    model.train(was_training)
    total, count = accelerator.reduce(sums, reduction="sum").tolist()
    return float(total / max(count, 1.0))
