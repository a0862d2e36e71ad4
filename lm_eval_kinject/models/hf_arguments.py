"""What is wrong with the arguments that go to lm_eval's ``hf``, as far as it can be told before a model is loaded.

What it is for: `problems` looks at the values whose kind is known (dtypes, devices, batch sizes, switches, lengths) and
at those that exclude one another, so that a slip costs a second and is one sentence, not a traceback after a download.
What it does not do: it never asks the Hub, and lets everything through that only the model or its loader can judge.

The one idea: a value is refused only where ``hf`` (lm-eval 0.4.13) is sure to fail on it or to take it for something
else than its words say, such as ``trust_remote_code=no``, which is a text and so counts as true.
"""

from __future__ import annotations

import importlib.util
import math
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from lm_eval_kinject.stages import near

__all__ = ["problems"]

_EXCLUSIVE = (("peft", "delta"), ("parallelize", "tp_plan"), ("autogptq", "gptqmodel"))
_SWITCHES = (
    "truncation", "logits_cache", "trust_remote_code", "use_fast_tokenizer", "add_bos_token", "parallelize",
    "gptqmodel", "enable_thinking", "load_in_4bit", "load_in_8bit", "force_download", "local_files_only",
    "ignore_mismatched_sizes", "low_cpu_mem_usage", "use_safetensors", "weights_only",
)  # fmt: skip
_COUNTS = {"max_length": (1, "tokens"), "max_batch_size": (1, "requests"), "prefix_token_id": (0, "a token's id")}
_DTYPES = ("float32", "float16", "bfloat16")
_BACKENDS = ("default", "causal", "seq2seq")
_NAMES = ("pretrained", "peft", "delta", "tokenizer")


def problems(hf: Mapping[str, Any]) -> list[str]:
    """All that is wrong with the arguments for ``hf``, one sentence each that ends with what to do.

    Args:
        hf: names and values as lm_eval parsed them, without those that only `RagArguments` knows. ``pretrained`` may be
            missing (the embedded reader), or a model that is loaded already, for which ``hf`` ignores the device.
    """
    found = [*_switches(hf), *_counts(hf), *_dtypes(hf), *_batch_size(hf), *_device(hf), *_kinds(hf)]
    return [*found, *_together(hf), *_missing_folders(hf)]


# One value ------------------------------------------------------------------------------------------------------------


def _switches(hf: Mapping[str, Any]) -> list[str]:
    return [
        f"{name}={hf[name]} must be True or False; correct it"
        for name in _SWITCHES
        if hf.get(name) is not None and not (isinstance(hf[name], int) and hf[name] in (0, 1))
    ]


def _counts(hf: Mapping[str, Any]) -> list[str]:
    return [
        f"{name}={_as_typed(hf[name])} must be a whole number ({unit}), {least} or more; correct it"
        for name, (least, unit) in _COUNTS.items()
        if hf.get(name) is not None and not _is_whole(hf[name], least)
    ]


def _is_whole(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _as_typed(value: Any) -> Any:
    """A value as it stood on the command line, where lm_eval reads ``-3`` as -3.0."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _dtypes(hf: Mapping[str, Any]) -> list[str]:
    """``hf`` looks names up in torch, and only weights can follow the model's own dtype (``auto``)."""
    import torch

    found = []
    for name in ("dtype", "softmax_dtype", "mixed_precision_dtype", "bnb_4bit_compute_dtype"):
        value = hf.get(name)
        words = ("auto", *_DTYPES) if name == "dtype" else _DTYPES
        if value is None or (isinstance(value, str) and value in words):
            continue
        dtype = getattr(torch, value, None) if isinstance(value, str) else value
        if not isinstance(dtype, torch.dtype):
            found.append(f"{name}={value} is unknown{near(str(value), words)}; pass {_either(words)}")
        elif not dtype.is_floating_point:
            found.append(f"{name}={value} holds no fractions, which weights need; pass {_either(words)}")
    return found


def _either(words: Collection[str]) -> str:
    *first, last = words
    return f"{', '.join(first)} or {last}"


def _batch_size(hf: Mapping[str, Any]) -> list[str]:
    """A whole number as number or text, ``auto``, or ``auto:N`` (it is found anew N times in the course of a run)."""
    if "batch_size" not in hf:
        return []
    value = hf["batch_size"]
    head, _, times = value.partition(":") if isinstance(value, str) else ("", "", "")
    if head == "auto":
        sound = value == "auto" or _is_positive(times)
    else:
        sound = _is_whole(int(value) if isinstance(value, str) and value.strip().isdecimal() else value, 1)
    if sound:
        return []
    kinds = "a whole number of requests, 1 or more, or auto, or auto:N with N above 0"
    return [f"batch_size={_as_typed(value)} must be {kinds}; correct it"]


def _is_positive(text: str) -> bool:
    try:
        number = float(text)
    except ValueError:
        return False
    return number > 0 and math.isfinite(number)


def _device(hf: Mapping[str, Any]) -> list[str]:
    import torch

    if "device" not in hf or not isinstance(hf.get("pretrained") or "", str):
        return []
    value = hf["device"]
    if not isinstance(value, str):
        example = f"cuda:{value}" if _is_whole(value, 0) else "cuda:0"
        return [f"device={value} must be a device's name; pass for example cpu or {example}, or leave it out"]
    try:
        torch.device(value)
    except RuntimeError:
        known = ("cpu", "cuda", "cuda:0", "mps")
        return [f"device={value} is no device that torch knows{near(value, known)}; pass for example {_either(known)}"]
    spread = hf.get("parallelize") or hf.get("tp_plan") or int(os.environ.get("WORLD_SIZE") or 1) > 1
    if value == "cuda" and not spread and not torch.cuda.is_available():
        return ["device=cuda: torch finds no such device on this machine; pass device=cpu, or leave it out"]
    return []


def _kinds(hf: Mapping[str, Any]) -> list[str]:
    found = []
    if "backend" in hf and hf["backend"] not in _BACKENDS:
        value = str(hf["backend"])
        found.append(f"backend={value} is unknown{near(value, _BACKENDS)}; pass {_either(_BACKENDS)}")
    if hf.get("chat_template_args") is not None and not isinstance(hf["chat_template_args"], Mapping):
        found.append('chat_template_args must be a dictionary; pass it in JSON model_args: {"chat_template_args": {…}}')
    found += [
        f"{name}={hf[name]} must be a name or a path; correct it (a folder of that name: {name}=./{hf[name]})"
        for name in _NAMES
        if isinstance(hf.get(name), bool | int | float)
    ]
    return found


# Together -------------------------------------------------------------------------------------------------------------


def _together(hf: Mapping[str, Any]) -> list[str]:
    found = [
        f"{one}= and {other}= exclude each other; remove one of the two"
        for one, other in _EXCLUSIVE
        if hf.get(one) and hf.get(other)
    ]
    if hf.get("enable_thinking") and hf.get("think_end_token") is None:
        found.append("enable_thinking=True needs think_end_token=, the token that ends a model's thoughts; pass it")
    if hf.get("peft") and importlib.util.find_spec("peft") is None:
        found.append("peft= needs the package peft; install it with `pip install peft`")
    return found


def _missing_folders(hf: Mapping[str, Any]) -> list[str]:
    """Values that can only be a path on this disk (a Hub id has one slash and no dot first), and aren't there."""
    found = []
    for name in _NAMES:
        value = hf.get(name)
        if not isinstance(value, str):
            continue
        path = Path(value).expanduser()
        looks_local = value.startswith(("/", "./", "../", "~")) or value.count("/") > 1
        if looks_local and not path.exists():
            found.append(f"{name}={value}: no such folder; correct the path, or pass a Hub id in the form owner/name")
    return found
