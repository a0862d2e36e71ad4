"""A cell on the disk and on the command line: where it is, what scores it, what is written.

What it is for: places, arguments and manifests of the cells of a study. What it does not do: score them (`run`).

The one idea: a folder with a manifest is a finished cell. The manifest is written last, and names the command whose
result the cell is and the cells that it was scored together with.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from lm_eval_kinject.errors import ArgumentError
from lm_eval_kinject.provenance import atomic_write, fingerprint_file, publish_folder, read_json, write_json
from lm_eval_kinject.study.grid import Cell, Study, Variant
from lm_eval_kinject.study.lines import CONTROLS

__all__ = [
    "MANIFEST", "axes_of", "cell_folder", "claim", "command_of", "is_done", "jobs_of", "method_of",
    "overrides_of", "paraphrases_of", "passes_of", "run_folder", "training_overrides", "weight_arguments", "write_cell",
]  # fmt: skip

MANIFEST = "cell.json"
_READER = "reader"


def cell_folder(out: Path, cell: Cell) -> Path:
    """Where a cell's results are."""
    return out / "cells" / cell.name


def run_folder(out: Path, cell: Cell) -> Path:
    """Where the training of a cell's variant is."""
    return out / "runs" / cell.weights


def weight_arguments(study: Study, cell: Cell, out: Path) -> dict[str, Any]:
    """Arguments of rag-hf that name the weights of a cell."""
    given = dict(study.models[cell.model])
    variant = study.variants[cell.variant]
    for name in ("adapter", "peft", "pretrained"):
        if getattr(variant, name) is not None:
            given[name] = getattr(variant, name)
    if variant.recipe is not None:
        folder = run_folder(out, cell)
        method = read_json(folder / "kinject.json")["recipe"]["method"] if (folder / "kinject.json").is_file() else ""
        given["pretrained" if method in ("full", "") else "peft"] = str(folder)
    return given


def command_of(study: Study, cell: Cell, out: Path) -> list[str]:
    """The `lm_eval` command whose result a cell is."""
    given = {**weight_arguments(study, cell, out), **dict(cell.arguments)}
    device = given.pop("device", None)  # lm_eval passes it on twice if it stands in model_args
    said = [f"{name}={value}" for name, value in given.items()]
    command = ["lm_eval", "--model", "rag-hf", "--model_args", ",".join(said), "--tasks", cell.task]
    command += ["--num_fewshot", str(cell.shots), "--batch_size", str(study.batch_size)]
    if device is not None:
        command += ["--device", str(device)]
    if study.limit is not None:
        command += ["--limit", str(study.limit)]
    if study.apply_chat_template:
        command.append("--apply_chat_template")
    if study.include_path:
        command += ["--include_path", study.include_path]
    return [*command, "--log_samples", "--output_path", "results"]


def is_done(out: Path, cell: Cell) -> bool:
    """Whether a cell has been scored; its manifest is written last."""
    return (cell_folder(out, cell) / MANIFEST).is_file()


def jobs_of(study: Study) -> dict[str, list[Cell]]:
    """The cells by the weights that they need."""
    jobs: dict[str, list[Cell]] = {}
    for cell in study.cells:
        jobs.setdefault(cell.weights, []).append(cell)
    return jobs


def passes_of(cells: Sequence[Cell]) -> dict[str, list[Cell]]:
    """The cells of one job by what is scored together."""
    passes: dict[str, list[Cell]] = {}
    for cell in cells:
        passes.setdefault(cell.prompts, []).append(cell)
    return passes


def claim(study: Study, out: Path) -> None:
    """Makes a folder this study's.

    Raises:
        ArgumentError: it is another's, or holds something else.
    """
    note = out / "study.yaml"
    said = study.model_dump(mode="json", exclude_defaults=True)
    if note.is_file():
        kept = yaml.safe_load(note.read_text(encoding="utf-8"))
        if changed := _changed(kept, said):
            raise ArgumentError(
                [
                    f"{out} holds results of a study in which {what} was something else: choose another folder with "
                    "--out, or give it another name"
                    for what in changed
                ],
                "the study",
            )
        if kept == said:
            return
    elif out.is_dir() and any(out.iterdir()):
        raise ArgumentError(f"{out} is not empty and holds no study: choose another folder with --out", "the study")
    out.mkdir(parents=True, exist_ok=True)
    with atomic_write(note, "w") as handle:
        yaml.safe_dump(said, handle, sort_keys=False, allow_unicode=True)


def _changed(kept: Mapping[str, Any], said: Mapping[str, Any]) -> list[str]:
    """What decides results and isn't what it was; more of everything may come to a study."""
    whole = ("corpus", "limit", "apply_chat_template", "include_path", "batch_size")
    changed = [name for name in whole if kept.get(name) != said.get(name)]
    for kind in ("models", "variants", "retrievers"):
        then, now = kept.get(kind) or {}, said.get(kind) or {}
        changed += [f"{kind}.{name}" for name in then.keys() & now.keys() if then[name] != now[name]]
    return sorted(changed)


def write_cell(
    study: Study, out: Path, cell: Cell, found: Any, together: Sequence[str], into: Path | None = None
) -> None:
    """Writes what `lm_eval` would have written, by its own means, and our manifest last.

    Args:
        study: the study.
        out: its folder.
        cell: the cell.
        found: what lm_eval's evaluator returned.
        together: names of the cells of its pass.
        into: where it is written, if not there.
    """
    from lm_eval.loggers import EvaluationTracker

    model_args = {**weight_arguments(study, cell, out), **dict(cell.arguments)}
    found["config"] |= {"model": "rag-hf", "model_args": model_args}
    samples = found.pop("samples")
    with publish_folder(cell_folder(into or out, cell)) as place:
        tracker = EvaluationTracker(output_path=str(place / "results.json"))
        tracker.general_config_tracker.log_experiment_args("rag-hf", model_args, None, None, True)
        tracker.save_results_aggregated(results=found, samples=samples)
        for task in found["configs"]:
            tracker.save_results_samples(task_name=task, samples=samples[task])
        files = sorted(file.name for file in place.iterdir())
        manifest = {
            "name": cell.name,
            "axes": axes_of(study, cell),
            "command": command_of(study, cell, out),
            "together": list(together),
            "files": {name: fingerprint_file(place / name) for name in files},
        }
        write_json(place / MANIFEST, manifest)


def axes_of(study: Study, cell: Cell) -> dict[str, Any]:
    """Where a cell is in the grid, for tables and figures."""
    given = dict(cell.arguments)
    k = given.pop("k")
    retriever = given.pop("retriever", "none")
    variant = study.variants[cell.variant]
    if cell.way is not None and cell.way != retriever:
        # A report knows controls by their names.
        retriever = f"{retriever} ({cell.way})" if retriever in CONTROLS else cell.way
        given = {name: value for name, value in given.items() if name not in study.retrievers[cell.way].arguments}
    axes = {"model": cell.model, "variant": variant.family or cell.variant, "paraphrases": paraphrases_of(variant)}
    axes |= {"retriever": retriever, "k": k, "shots": cell.shots, "task": cell.task, "seed": cell.seed}
    axes["placement"] = given.pop("placement", "question")
    return axes | given


def paraphrases_of(variant: Variant) -> int | None:
    """Paraphrases beside each chunk in training, where that is known."""
    if variant.recipe is None:
        return variant.paraphrases
    from kinject_trainer.recipe import load_recipe

    return load_recipe(variant.recipe, overrides_of(variant)).wordings


def training_overrides(study: Study, cell: Cell) -> list[str]:
    """What a recipe is run with: the study's model in the recipe's place, the variant's values, the seed."""
    given = study.models[cell.model]
    overrides = [f"model={json.dumps(given.get('pretrained', _READER))}"]
    if given.get("revision"):
        overrides.append(f"model_revision={json.dumps(given['revision'])}")
    overrides += overrides_of(study.variants[cell.variant])
    return [*overrides, f"seed={cell.seed}"] if cell.seed else overrides


def overrides_of(variant: Variant) -> list[str]:
    """A variant's own values over its recipe's."""
    return [f"{name}={json.dumps(value)}" for name, value in variant.set.items()]


def method_of(variant: Variant) -> str:
    """How a recipe trains: ``full``, or a kind of adapter."""
    from kinject_trainer.recipe import load_recipe

    return load_recipe(str(variant.recipe), overrides_of(variant)).method
