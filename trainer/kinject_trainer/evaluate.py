"""Mean negative log-likelihood a token, exactly: over all tokens, whatever the batches and processes.

What it is for: validation losses and perplexities. What it does not do: it measures no accuracy (lm_eval does).

The one idea: sums and counts are added up, never means of batches, so that a shorter last block weighs by its tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from kinject_trainer.data import IDLE, Plan
from kinject_trainer.head import NO_LOSS, LossHead

__all__ = ["mean_token_loss"]


@torch.no_grad()
def mean_token_loss(model: Any, head: LossHead, blocks: Sequence[Sequence[int]], micro: int, accelerator: Any) -> float:
    """Mean negative log-likelihood of the predicted tokens of ``blocks``, in nats; the same on every process.

    Args:
        model: causal language model, on its device.
        head: of that model.
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
        sums[0] += head.loss(model, ids, torch.full_like(ids, NO_LOSS) if IDLE in numbers else ids)
        sums[1] += 0 if IDLE in numbers else ids.shape[0] * (ids.shape[1] - 1)
    model.train(was_training)
    total, count = accelerator.reduce(sums, reduction="sum").tolist()
    return float(total / max(count, 1.0))
