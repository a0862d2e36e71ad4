"""A result, scored again from what it says of itself, and compared sample by sample.

What it is for: `rerun` reads the results JSON and samples that `lm_eval --model rag-hf --log_samples` or a study left,
rebuilds model, corpus, retriever and prompt from their provenance, scores, and says what differs. What it does not do:
trust a name: whatever the result names by a fingerprint or commit must have the same one here.

The one idea: three kinds of difference, said apart: what the result was made *from* (model, corpus, versions), what was
*asked* (prompts), and what came *out* (scores). Where what it was made from is the same, so are the bits of the rest,
if it is scored as it was: a cell of a study together with the cells that it shared its pass with.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml

from lm_eval_kinject.errors import ArgumentError
from lm_eval_kinject.provenance import read_json
from lm_eval_kinject.study.cells import MANIFEST, cell_folder
from lm_eval_kinject.study.grid import Cell, Study
from lm_eval_kinject.study.load import doctored, read_samples, result_file
from lm_eval_kinject.study.run import Scoring, evaluate, quietly, task_manager

__all__ = ["Comparison", "compare", "rerun"]

_SHOWN = 20
_MADE_FROM = (
    "model",
    "peft",
    "delta",
    "tokenizer",
    "loading",
    "adapter",
    "corpora",
    "retrievers",
    "prompt",
    "pipeline",
    "k",
)
_VOLATILE = frozenset({"device", "queries_cut", "index"})


@dataclass(frozen=True)
class Comparison:
    """What a second scoring found.

    Attributes:
        samples: how many were compared.
        made_from: what the two were made from and isn't the same, a line each.
        differences: what differs in the samples, a line each: task, document, field, both values.
        versions: packages and processor that differ; they may change the last bits.
    """

    samples: int
    made_from: tuple[str, ...]
    differences: tuple[str, ...]
    versions: tuple[str, ...]

    @property
    def same(self) -> bool:
        """Whether every sample is the same, to the bit, and made from the same."""
        return not self.made_from and not self.differences

    def lines(self) -> list[str]:
        """For people."""
        found = [f"made from something else: {line}" for line in self.made_from]
        found += [f"differs: {line}" for line in self.differences[:_SHOWN]]
        if len(self.differences) > _SHOWN:
            found.append(f"… and {len(self.differences) - _SHOWN} more")
        if not self.same:
            found += [f"version: {line}" for line in self.versions]
        verdict = "the same, to the bit" if self.same else f"{len(self.differences)} differences"
        return [*found, f"{self.samples} samples compared: {verdict}"]


def rerun(
    results: Path,
    *,
    pretrained: str | None = None,
    peft: str | None = None,
    include_path: str | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> Comparison:
    """Scores a result again.

    Args:
        results: the results JSON, or its folder; the samples are beside it.
        pretrained: the model, where the result names a folder that isn't at its place any more.
        peft: the adapter, likewise.
        include_path: folder of the result's tasks, where they are the user's own; a study names it itself.
        say: told how it goes.

    Raises:
        ArgumentError: the file is none of rag-hf's, was changed after it was written, or something can't be had.
    """
    file = result_file(results) if results.is_dir() else results
    if not file.is_file():
        raise ArgumentError(f"{file}: no such file; pass a results_….json of lm_eval", "the results")
    before = read_json(file)
    told = before.get("config", {}).get("kinject")
    if told is None or before["config"].get("model") != "rag-hf":
        raise ArgumentError(f"{file} is no result of --model rag-hf, so it doesn't say how to repeat it", "the results")
    samples = read_samples(file)
    changed = doctored(file)
    manifest = file.parent / MANIFEST
    with _threads(told.get("environment", {}).get("threads"), say):
        if manifest.is_file() and _study_of(file.parent) is not None:
            after, new = _with_its_pass(manifest, say)
        else:
            after, new = _alone(before, pretrained, peft, include_path)
    made_from = [*changed, *_made_from(told, after["config"]["kinject"])]
    differences = [*_results_differ(before, after), *compare(samples, new)]
    versions = _flat_differences("environment", told.get("environment", {}), after["config"]["kinject"]["environment"])
    return Comparison(sum(map(len, samples.values())), tuple(made_from), tuple(differences), tuple(versions))


def _study_of(folder: Path) -> Path | None:
    return next((parent for parent in folder.parents if (parent / "study.yaml").is_file()), None)


@contextmanager
def _threads(count: int | None, say: Callable[[str], None]) -> Iterator[None]:
    """Within, torch has as many threads as the result was made with: how sums are split decides their last bits."""
    import torch

    own = torch.get_num_threads()
    if count is not None and count != own:
        say(f"with {count} threads, as it was scored (here: {own})")
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(own)


# Scoring again --------------------------------------------------------------------------------------------------------


def _with_its_pass(manifest: Path, say: Callable[[str], None]) -> tuple[Any, dict[str, list[Any]]]:
    """A cell of a study, with all cells that it was scored together with."""
    out = _study_of(manifest.parent)
    assert out is not None  # asked before
    study = Study.model_validate(yaml.safe_load((out / "study.yaml").read_text(encoding="utf-8")))
    said = read_json(manifest)
    by_name = {cell.name: cell for cell in study.cells}
    missing = [name for name in said["together"] if name not in by_name]
    if missing:
        raise ArgumentError(
            f"the study no longer has {', '.join(missing[:3])}, which this cell was scored together with", "the results"
        )
    together = [by_name[name] for name in said["together"]]
    cell = by_name[said["name"]]
    say(f"scoring {len(together)} cells together, as they were")
    with TemporaryDirectory() as scratch:
        _again(study, out, together, cell, Path(scratch))
        file = result_file(cell_folder(Path(scratch), cell))
        return read_json(file), read_samples(file)


def _again(study: Study, out: Path, together: Sequence[Cell], cell: Cell, scratch: Path) -> None:
    from lm_eval_kinject.study.engines import Outcome

    scoring = Scoring(study, out, lambda text: None, into=scratch)
    outcome = Outcome()
    scoring.load(cell)
    scoring.score(together, [cell], outcome)
    if outcome.failures:
        raise ArgumentError(f"it can't be scored again: {outcome.failures[0].problem}", "the results")


def _alone(
    before: Mapping[str, Any], pretrained: str | None, peft: str | None, include_path: str | None
) -> tuple[Any, dict[str, list[Any]]]:
    """A result of a single command."""
    import json

    from lm_eval.utils import handle_non_serializable, sanitize_list

    from lm_eval_kinject.models.rag_hf import RagHFLM

    config = before["config"]
    given = dict(config["model_args"]) if isinstance(config["model_args"], dict) else _parsed(config["model_args"])
    given |= {name: value for name, value in (("pretrained", pretrained), ("peft", peft)) if value is not None}
    given.setdefault("batch_size", _batch_size(config.get("batch_size")))
    shots = {task: before["n-shot"].get(task, 0) for task in before["configs"]}
    study = Study(title="again", models={"again": {}}, tasks=list(shots), include_path=include_path)
    with quietly():
        # What --metadata named is among what the result says of a task; the rest of it is the task's own again.
        managers = {
            task: task_manager(study, before["configs"][task].get("metadata"), where="the results") for task in shots
        }
        lm = RagHFLM(**given)
    found: dict[str, Any] = {}
    samples: dict[str, list[Any]] = {}
    for task, count in shots.items():
        cell = Cell("again", "base", None, task, count, ())
        limit = before["n-samples"][task]["effective"]
        one = evaluate(study.model_copy(update={"limit": limit}), cell, lm, managers[task])
        rows = sorted(one.pop("samples")[task], key=lambda row: row["doc_id"])
        for row in rows:
            row["resps"], row["filtered_resps"] = sanitize_list(row["resps"]), sanitize_list(row["filtered_resps"])
            row["target"] = str(row["target"])
            row["arguments"] = {
                f"gen_args_{i}": {f"arg_{j}": part for j, part in enumerate(arguments)}
                for i, arguments in enumerate(row["arguments"])
            }
        samples[task] = json.loads(json.dumps(rows, default=handle_non_serializable))
        found = {**one, "results": {**found.get("results", {}), **one["results"]}}
    return json.loads(json.dumps(found, default=handle_non_serializable)), samples


def _parsed(text: str) -> dict[str, Any]:
    from lm_eval.utils import simple_parse_args_string

    return dict(simple_parse_args_string(text))


def _batch_size(said: Any) -> Any:
    return said if isinstance(said, int) or said == "auto" else 1


# Comparing ------------------------------------------------------------------------------------------------------------


def _made_from(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    found = []
    for part in _MADE_FROM:
        if part == "pipeline" and part not in before:
            continue  # results of earlier releases don't name the stages
        found += _flat_differences(part, before.get(part), after.get(part))
    return found


def _results_differ(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Figures of the results that aren't those of the new ones (a figure may have been changed, its samples not)."""
    found = []
    for task, figures in before["results"].items():
        new = after["results"].get(task, {})
        for name, value in figures.items():
            if isinstance(value, int | float) and not isinstance(value, bool) and name in new and new[name] != value:
                found.append(f"{task}, results, {name}: {value} was written, {new[name]} comes out")
    return found


def compare(before: Mapping[str, Sequence[Any]], after: Mapping[str, Sequence[Any]]) -> list[str]:
    """Differences of samples, a line each: task, document, field, both values."""
    found = []
    for task, rows in before.items():
        new = {row["doc_id"]: row for row in after.get(task, ())}
        for row in rows:
            where = f"{task}, document {row['doc_id']}"
            other = new.get(row["doc_id"])
            if other is None:
                found.append(f"{where}: isn't among the new samples")
                continue
            found += _flat_differences(where, row, other)
    return found


def _flat_differences(where: str, one: Any, other: Any) -> list[str]:
    """Where two plain values differ, as paths with both values."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        found = []
        for name in [*one, *(key for key in other if key not in one)]:
            if name not in _VOLATILE:
                found += _flat_differences(f"{where}, {name}", one.get(name), other.get(name))
        return found
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        found = []
        for number, (a, b) in enumerate(zip(one, other, strict=True)):
            found += _flat_differences(f"{where}, {number}", a, b)
        return found
    if one == other:
        return []
    return [f"{where}: {_short(one)} was written, {_short(other)} comes out"]


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}…"
