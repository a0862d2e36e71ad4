"""Which models the shared-prefix scorer can score exactly, and in which way, found from the model alone.

For: `scorer` and for messages to the user. Not for: proof. A model that passes is still compared with lm_eval's own
path at the start of a run (`scorer`), because a configuration can't say everything.

The one idea: name what is known to be exact and refuse the rest. A token's key, value and logits must depend on its
ancestors and its position alone; virtual tokens, and rotary frequencies that follow the longest position of a forward
break that for good. A tree in one forward breaks with a recurrent state, too, and with any mixing across positions but
attention through transformers' interface; such models may still have their cache forked.
"""

from __future__ import annotations

import inspect
import math
import sys
from collections.abc import Callable, Sequence
from typing import Any

from lm_eval.models.huggingface import HFLM
from transformers import PreTrainedModel

from lm_eval_kinject.scoring.fork import CACHE_ARGUMENTS

_PER_TOKEN_ADAPTERS = frozenset(
    {"LORA", "ADALORA", "IA3", "LOHA", "LOKR", "OFT", "BOFT", "VERA", "FOURIERFT", "HRA", "VBLORA", "MISS", "BONE"}
    | {"RANDLORA", "LN_TUNING", "TRAINABLE_TOKENS", "SHIRA", "C3A", "ROAD", "WAVEFT", "DELORA"}
)
_FORWARD_ARGUMENTS = frozenset({"input_ids", "position_ids", "use_cache", "logits_to_keep"})
_EXACT_LAYERS = frozenset({"full_attention", "sliding_attention", "chunked_attention"})
_ROPE_BY_LONGEST_POSITION = frozenset({"dynamic", "longrope"})


def reason_unsupported(lm: HFLM) -> str | None:
    """Why prefixes can't be shared in one forward by tree attention (`forward`), or None if that is exact for `lm`.

    Args:
        lm: a loaded ``hf`` model of lm_eval or a subclass.

    Returns:
        A clause fit to follow "because", for example ``it is an encoder-decoder``.
    """
    return _common_problem(lm) or _first_problem(base_model(lm), (_code_problem, _attention_problem))


def reason_no_fork(lm: HFLM) -> str | None:
    """Why prefixes can't be shared by forking the model's cache (`fork`), or None if that is worth trying.

    Whether the model goes on from its cache exactly is asked of the model itself before it is used.

    Args:
        lm: a loaded ``hf`` model of lm_eval or a subclass.

    Returns:
        A clause fit to follow "because", for example ``its forward takes no cache``.
    """
    return _common_problem(lm) or _first_problem(base_model(lm), (_cache_problem, _direction_problem))


def _common_problem(lm: HFLM) -> str | None:
    """What stands in the way of sharing prefixes at all."""
    if lm.backend != "causal":
        return "it is an encoder-decoder"
    if type(lm)._model_call is not HFLM._model_call:
        return f"{type(lm).__name__} has a forward of its own"
    adapters = _adapter_problem(lm.model)
    if adapters:
        return adapters
    model = base_model(lm)
    if not isinstance(model, PreTrainedModel):
        return f"{type(model).__name__} isn't a transformers model"
    if not type(model).__module__.startswith("transformers."):
        return f"{type(model).__name__} isn't part of transformers, so its masks are unknown"
    if (getattr(model, "_tp_size", None) or 1) > 1:
        return "it runs tensor-parallel"
    return _rope_problem(model)


def _first_problem(model: Any, checks: Sequence[Callable[[Any], str | None]]) -> str | None:
    return next((problem for check in checks if (problem := check(model))), None)


def base_model(lm: HFLM) -> Any:
    """The transformers model inside `lm`, below any adapter."""
    model = lm.model
    return model.get_base_model() if hasattr(model, "peft_config") and hasattr(model, "get_base_model") else model


def _adapter_problem(model: Any) -> str | None:
    """Adapters that do more than change what a single token's activations go through."""
    for config in getattr(model, "peft_config", {}).values() if hasattr(model, "get_base_model") else ():
        kind = getattr(config.peft_type, "value", str(config.peft_type))
        if getattr(config, "is_prompt_learning", False):
            return f"its adapter ({kind}) puts virtual tokens in front of each prompt"
        if kind not in _PER_TOKEN_ADAPTERS:
            return f"adapters of type {kind} aren't known to act on each token alone"
        if getattr(config, "alora_invocation_tokens", None):
            return "an activated LoRA depends on where its invocation stands in the sequence"
    return None


def _code_problem(model: PreTrainedModel) -> str | None:
    name = type(model).__name__
    if getattr(model, "_is_stateful", False):
        return f"{name} carries a recurrent state"
    if not _attention_replaceable(type(model)):
        return f"{name} doesn't let its attention be replaced"
    parameters = inspect.signature(model.forward).parameters
    missing = sorted(_FORWARD_ARGUMENTS - parameters.keys())
    if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values()):
        missing = [argument for argument in missing if argument != "use_cache"]  # goes on to the layers below
    if missing:
        return f"{name}'s forward doesn't take {', '.join(missing)}"
    return None


def _attention_replaceable(model_class: type[PreTrainedModel]) -> bool:
    """Whether the model's layers look their attention up in transformers' registry.

    Most classes say so. Of those that say nothing (StableLM, BioGPT), what counts is whether their code knows the
    registry; a class that says no (Inkling) means it.
    """
    for kind in model_class.__mro__[: model_class.__mro__.index(PreTrainedModel)]:
        if "_supports_attention_backend" in vars(kind):
            return bool(vars(kind)["_supports_attention_backend"])
    return hasattr(sys.modules[model_class.__module__], "ALL_ATTENTION_FUNCTIONS")


def _cache_problem(model: PreTrainedModel) -> str | None:
    if not set(CACHE_ARGUMENTS) & inspect.signature(model.forward).parameters.keys():
        return f"{type(model).__name__}'s forward takes no cache"
    limit = getattr(model.config.get_text_config(), "time_step_limit", None) or (0.0, math.inf)
    if limit[0] > 0 or limit[1] < math.inf:
        return "its time steps are limited, which transformers leaves out where tokens come one by one"
    return None


def _direction_problem(model: PreTrainedModel) -> str | None:
    config = model.config.get_text_config()
    bidirectional = getattr(config, "use_bidirectional_attention", None) or "vision"
    if bidirectional != "vision" or getattr(config, "is_causal", True) is False:  # no images here
        return "its attention isn't causal"
    return None


def _rope_problem(model: PreTrainedModel) -> str | None:
    config = model.config.get_text_config()
    parameters = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    nested = [parameters, *(value for value in parameters.values() if isinstance(value, dict))]
    kinds = {str(entry.get("rope_type") or entry.get("type") or "default") for entry in nested}
    for kind in sorted(kinds & _ROPE_BY_LONGEST_POSITION):
        return f"its {kind} rotary scaling depends on the longest position of a forward"
    return None


def _attention_problem(model: PreTrainedModel) -> str | None:
    config = model.config.get_text_config()
    odd = sorted(set(getattr(config, "layer_types", None) or ()) - _EXACT_LAYERS)
    if odd:
        return f"it has layers of type {', '.join(odd)}"
    if getattr(config, "attention_chunk_size", None) and not getattr(config, "layer_types", None):
        return "it attends in chunks"
    return _direction_problem(model)
