"""The `lm_eval` command whose result a results file is.

What it is for: a leaderboard shows it, so that anybody can do the same again. What it doesn't do: run it
(``kinject rerun`` does, and compares).

The one idea: the command is put together from what lm_eval wrote, and quoted for a shell, as a submission is a
stranger's text.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from typing import Any

from lm_eval_kinject.hub.eval_results import Results

__all__ = ["command_of"]

_NAMED_ELSEWHERE = ("device", "batch_size", "max_batch_size")  # lm_eval puts them into model_args by itself
_PINS = (("model", "revision", "pretrained"),)


def command_of(results: Results) -> str:
    """One line for a shell.

    Models of the Hub are pinned to the commit that was scored. Arguments with a comma, which lm_eval would cut there,
    are given as JSON, which it reads too.
    """
    config, data = results.data.get("config") or {}, results.data
    given = _arguments(config.get("model_args"))
    for part, argument, name in _PINS:
        commit = (results.kinject.get(part) or {}).get("commit")
        if commit and name in given:
            given[argument] = commit
    shots = {task: (data.get("n-shot") or {}).get(task) for task in data["configs"]}
    command = ["lm_eval", "--model", str(config.get("model") or "rag-hf")]
    command += ["--model_args", _said(given)] if given else []
    command += ["--tasks", ",".join(shots)]
    if len(set(shots.values())) == 1 and (count := next(iter(shots.values()))) is not None:
        command += ["--num_fewshot", str(count)]
    for name in ("batch_size", "device", "limit"):
        command += [f"--{name}", str(config[name])] if config.get(name) is not None else []
    command += ["--apply_chat_template"] if data.get("chat_template_sha") else []
    if isinstance(data.get("system_instruction"), str):
        command += ["--system_instruction", data["system_instruction"]]
    return shlex.join([*command, "--log_samples", "--output_path", "results"])


def _arguments(given: Any) -> dict[str, Any]:
    """``model_args``, which lm_eval writes as a mapping or as it was typed."""
    if isinstance(given, str):
        pairs = [part.partition("=") for part in given.split(",") if part]
        given = {name: value for name, _, value in pairs}
    if not isinstance(given, Mapping):
        return {}
    return {str(name): value for name, value in given.items() if name not in _NAMED_ELSEWHERE and value is not None}


def _said(given: Mapping[str, Any]) -> str:
    plain = all(isinstance(v, str | int | float) and not set(str(v)) & set(",=\n{") for v in given.values())
    if plain:
        return ",".join(f"{name}={value}" for name, value in given.items())
    return json.dumps(given, ensure_ascii=False, default=str)
