"""Several processes that train together: what all must know, and when they wait for each other."""

from __future__ import annotations

import torch

__all__ = ["anywhere", "are_several", "on_cpu", "wait"]


def on_cpu() -> bool:
    """Whether there is no accelerator; accelerate must be told, or processes on a CPU don't find each other."""
    if hasattr(torch, "accelerator"):
        return not torch.accelerator.is_available()
    return not torch.cuda.is_available()


def are_several() -> bool:
    """Whether this process is one of a group."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def wait() -> None:
    """Until every process of the group is here."""
    if are_several():
        torch.distributed.barrier()


def anywhere(found: list[bool], device: torch.device) -> list[bool]:
    """Whether each holds on some process."""
    if not are_several():
        return found
    flags = torch.tensor(found, dtype=torch.float32, device=device)
    torch.distributed.all_reduce(flags, op=torch.distributed.ReduceOp.MAX)
    return [bool(flag) for flag in flags.tolist()]
