"""A cartridge: a compressed context, which stands in a model's cache where the corpus would stand in its prompt.

What it is for: `with_cartridge` puts one on a model that can have one, `fill` starts it as the model's own keys and
values of the corpus's first tokens, `divergence` is what it is trained on. What it does not do: it writes no lessons
(`selfstudy.py`), and it is no format of ours: PEFT keeps, saves and loads it.

The one idea: before the first update the cartridge *is* a prompt. The model with it must say what the model says that
has those tokens before it; that is asked of the model itself, so that no wrong position or mask is trained on unseen.

Source: Eyuboglu et al., "Cartridges" (arXiv 2506.06266): start from the first tokens, first token frozen, distillation.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch

from kinject_trainer.recipe import Cartridge
from lm_eval_kinject.errors import ModelError

__all__ = ["divergence", "fill", "untrained", "with_cartridge"]

_LAYERS = frozenset({"full_attention", "sliding_attention"})
_PROBE = 8  # tokens behind the cartridge that the model is asked for
_ROUNDING = 1e-3  # mean difference of log-probabilities that is none, nats
_ROUNDING_OF_HALVES = 0.2
_INSTEAD = "Take an adapter, such as method: lora."


def with_cartridge(model: Any, recipe: Cartridge, name: str) -> Any:
    """The model with a cartridge that is empty yet, the only part that is then trained.

    Args:
        model: a causal language model of transformers; may be without weights.
        recipe: of the cartridge.
        name: of the model, for errors.

    Raises:
        ModelError: nothing can stand in this model's cache from the start; says why.
    """
    from peft import CartridgeConfig, get_peft_model

    problem = _problem(model, recipe.tokens)
    if problem:
        raise ModelError(f"The model {name} can't have a cartridge: {problem}. {_INSTEAD}")
    config = CartridgeConfig(task_type="CAUSAL_LM", num_virtual_tokens=recipe.tokens, num_frozen_tokens=recipe.frozen)
    try:
        return get_peft_model(model, config)
    except (ValueError, KeyError, AttributeError) as refused:
        raise ModelError(f"PEFT knows no cartridge for {name}: {_first_line(refused)}. {_INSTEAD}") from refused


def _problem(model: Any, tokens: int) -> str | None:
    """Why a prefix of so many tokens can't stand in the model's cache, as far as the model says so without weights."""
    config = model.config.get_text_config()
    if getattr(model, "_is_stateful", False):
        return "it carries a recurrent state, which is no cache of tokens"
    if "past_key_values" not in inspect.signature(model.forward).parameters:
        return "its forward takes no cache"
    odd = sorted(set(getattr(config, "layer_types", None) or ()) - _LAYERS)
    if odd:
        return f"it has layers of type {', '.join(odd)}"
    window = getattr(config, "sliding_window", None)
    if window is not None and getattr(config, "use_sliding_window", True) and tokens >= window:
        return f"its layers look {window} tokens back, and cartridge.tokens is {tokens}: take fewer"
    return None


@torch.no_grad()
def fill(model: Any, opening: Sequence[int]) -> None:
    """Starts the cartridge as the model's keys and values of ``opening``, and asks whether it is that prompt now.

    Args:
        model: from `with_cartridge`, with weights, on its device.
        opening: token ids, as many as the cartridge has.

    Raises:
        ModelError: keys and values don't fit in, or what the model then says isn't what it says after these tokens.
    """
    from peft.tuners.cartridge.utils import initialize_kv_prefix_from_past_key_values

    base, was_training = model.get_base_model(), model.training
    model.eval()
    ids = torch.tensor([list(opening)], device=base.device)
    probe = ids[:, -_PROBE:]
    try:
        cache = base(input_ids=ids, use_cache=True).past_key_values
        initialize_kv_prefix_from_past_key_values(model, past_key_values=cache)
        ours = model(input_ids=probe, use_cache=False).logits
    except torch.OutOfMemoryError:
        raise
    except (ValueError, TypeError, IndexError, RuntimeError) as problem:
        raise ModelError(f"{_name(base)} can't have a cartridge: {_first_line(problem)}. {_INSTEAD}") from problem
    theirs = base(input_ids=torch.cat([ids, probe], 1), use_cache=False).logits[:, ids.shape[1] :]
    away = float((ours.float().log_softmax(-1) - theirs.float().log_softmax(-1)).abs().mean())
    if not away <= (_ROUNDING if base.dtype in (torch.float32, torch.float64) else _ROUNDING_OF_HALVES):  # nor NaN
        raise ModelError(
            f"{_name(base)} can't have a cartridge: after one made of {len(opening)} tokens it doesn't say what it "
            f"says after these tokens (log-probabilities are {away:.2g} away). {_INSTEAD}"
        )
    model.train(was_training)


def _name(model: Any) -> str:
    return f"The model ({type(model).__name__})"


def _first_line(problem: BaseException) -> str:
    return (str(problem).strip() or type(problem).__name__).splitlines()[0].rstrip(".")


def untrained(model: Any) -> Any:
    """The base below a cartridge, which training leaves as it is; any other model itself."""
    kinds = {getattr(config.peft_type, "value", "") for config in getattr(model, "peft_config", {}).values()}
    return model.get_base_model() if kinds == {"CARTRIDGE"} else model


def divergence(
    logits: torch.Tensor, taught: torch.Tensor, labels: torch.Tensor, shift: torch.Tensor, count: Any = None
) -> torch.Tensor:
    """Mean divergence KL(teacher ‖ student) of the next token, over all answers' tokens, in nats and fp32.

    The teacher's rows have more in front, so a token stands ``shift`` places later in them::

        student   [prompt answer . .]        labels  [-100 … answer -100 …]
        teacher   [chunk prompt answer . .]  shift   tokens of the chunk

    Args:
        logits: the student's, [rows, length, vocabulary].
        taught: the teacher's, [rows, longer, vocabulary].
        labels: [rows, length], -100 where there is no answer; a token is predicted from the place before it.
        shift: [rows].
        count: answers' tokens of the whole update; default: of these rows.

    Returns:
        This pass's share of the update's mean; 0 where there is no answer.
    """
    rows, places = (labels[:, 1:] != -100).nonzero(as_tuple=True)
    student = logits[rows, places].float().log_softmax(-1)
    teacher = taught[rows, places + shift[rows]].float().log_softmax(-1)
    total = (teacher.exp() * (teacher - student)).sum()
    return total / max(int(rows.numel() if count is None else count), 1)
