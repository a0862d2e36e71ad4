"""The Hub's checks of metadata: model and dataset cards, ``.eval_results/*.yaml`` and ``eval.yaml``.

They follow the public documentation (hub-docs: model cards, eval results) as far as a test needs it: field types,
known licences, required parts of results. The Hub itself checks more.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import yaml

LICENCES = frozenset(
    "apache-2.0 mit openrail bigscience-openrail-m creativeml-openrail-m bsl-1.0 bsd bsd-2-clause bsd-3-clause cc "
    "cc0-1.0 cc-by-2.0 cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-4.0 cc-by-nd-4.0 "
    "cc-by-nc-nd-4.0 cc-by-nc-sa-4.0 gpl gpl-2.0 gpl-3.0 lgpl lgpl-3.0 agpl-3.0 llama2 llama3 llama3.1 llama3.2 gemma "
    "odc-by odbl pddl unlicense unknown other".split()
)
FRAMEWORKS = frozenset(
    "exgentic inspect-ai math-arena mteb olmocr-bench harbor archipelago apex-evals screenspot-pro swe-bench "
    "swe-bench-pro nemo-evaluator yc-bench open-asr-leaderboard mdpbench parsebench video-mme-v2 claw-eval "
    "wildclawbench".split()
)
"""The frameworks that ``eval.yaml`` may name (huggingface.js, ``packages/tasks/src/eval.ts``, summer 2026)."""

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


def check_card(content: str, kind: str) -> tuple[list[str], list[str]]:
    """Errors and warnings about a README's metadata."""
    match = re.match(r"---\s*\n(.*?)\n---\s*(\n|$)", content, re.DOTALL)
    if match is None:
        return [], ["empty or missing yaml metadata in repo card"]
    try:
        data = yaml.safe_load(match.group(1))
    except yaml.YAMLError as error:
        return [f"YAML parsing error: {error}"], []
    if not isinstance(data, dict):
        return ["the metadata must be a mapping"], []
    errors = [*_licence(data), *_ids(data), *_lists(data)]
    errors += _model_index(data.get("model-index")) if kind == "model" and "model-index" in data else []
    return errors, []


def _licence(data: Mapping[str, Any]) -> list[str]:
    given = data.get("license")
    named = given if isinstance(given, list) else [given] if given is not None else []
    errors = [f'"license" must be one of the known licences, not {name!r}' for name in named if name not in LICENCES]
    if "other" in named and not data.get("license_name"):
        errors.append('"license_name" is required when "license" is "other"')
    return errors


def _ids(data: Mapping[str, Any]) -> list[str]:
    errors = []
    for field in ("base_model", "datasets"):
        given = data.get(field)
        for name in given if isinstance(given, list) else [given] if given is not None else []:
            if not isinstance(name, str) or not _HUB_ID.fullmatch(name):
                errors.append(f'"{field}" with value {name!r} is not valid. Use a model id or dataset id from the Hub')
    relation = data.get("base_model_relation")
    if relation not in (None, "adapter", "finetune", "merge", "quantized"):
        errors.append(f'"base_model_relation" must be one of adapter, finetune, merge, quantized, not {relation!r}')
    return errors


def _lists(data: Mapping[str, Any]) -> list[str]:
    errors = []
    if "tags" in data and not (isinstance(data["tags"], list) and all(isinstance(t, str) for t in data["tags"])):
        errors.append('"tags" must be a list of strings')
    errors += [
        f'"{f}" must be a string' for f in ("library_name", "pipeline_tag") if not isinstance(data.get(f, ""), str)
    ]
    for entry in data.get("configs") or []:
        if not isinstance(entry, dict) or "config_name" not in entry:
            errors.append('each of "configs" needs a "config_name"')
    return errors


def _model_index(index: Any) -> list[str]:
    if not isinstance(index, list):
        return ['"model-index" must be a list']
    errors = []
    for model in index:
        if not isinstance(model, dict) or not model.get("name"):
            errors.append('"model-index[].name" is required')
            continue
        for result in model.get("results") or []:
            if not (result.get("task") or {}).get("type"):
                errors.append('"model-index[].results[].task.type" is required')
            if not {"type", "name"} <= set(result.get("dataset") or {}):
                errors.append('"model-index[].results[].dataset" needs type and name')
            if not result.get("metrics") or any(not {"type", "value"} <= set(m) for m in result["metrics"]):
                errors.append('"model-index[].results[].metrics" need type and value')
    return errors


def check_eval_results(content: str) -> list[str]:
    """What is wrong with a file of ``.eval_results/``."""
    try:
        data = yaml.safe_load(content)
    except yaml.YAMLError as error:
        return [f"YAML parsing error: {error}"]
    if not isinstance(data, list) or not data:
        return ["it must be a list of results"]
    errors = []
    allowed = {"dataset", "value", "verifyToken", "date", "source", "notes", "evaluation_framework"}
    for entry in data:
        dataset = entry.get("dataset") if isinstance(entry, dict) else None
        if not isinstance(dataset, dict) or not {"id", "task_id"} <= set(dataset):
            errors.append("dataset.id and dataset.task_id are required")
            continue
        if not isinstance(entry.get("value"), int | float) or isinstance(entry.get("value"), bool):
            errors.append("value must be a number")
        if "source" in entry and not (isinstance(entry["source"], dict) and entry["source"].get("url")):
            errors.append("source.url is required if source is provided")
        errors += [f"unknown field {name!r}" for name in sorted(set(entry) - allowed)]
    return errors


def check_eval_yaml(content: str) -> list[str]:
    """What is wrong with a dataset's ``eval.yaml``."""
    try:
        data = yaml.safe_load(content)
    except yaml.YAMLError as error:
        return [f"YAML parsing error: {error}"]
    if not isinstance(data, dict) or not {"name", "description", "evaluation_framework", "tasks"} <= set(data):
        return ["name, description, evaluation_framework and tasks are required"]
    if data["evaluation_framework"] not in FRAMEWORKS:
        return [f"evaluation_framework {data['evaluation_framework']!r} is not supported"]
    if not data["tasks"] or any(not isinstance(t, dict) or "id" not in t for t in data["tasks"]):
        return ["each of tasks needs an id"]
    return []


def card_data(content: str) -> dict[str, Any]:
    """A README's metadata, or nothing where it can't be read."""
    match = re.match(r"---\s*\n(.*?)\n---\s*(\n|$)", content, re.DOTALL)
    try:
        data = yaml.safe_load(match.group(1)) if match else None
    except yaml.YAMLError:
        data = None
    return data if isinstance(data, dict) else {}
