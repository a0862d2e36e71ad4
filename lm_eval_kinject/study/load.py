"""From the result files of a study to the records of its report.

What it is for: `load_outcomes` reads every finished cell, `load_curves` the losses of every finished training. What it
does not do: judge them (`stats`, `tables`).

The one idea: only what lm_eval wrote is read, so a result that a plain `lm_eval` command left can be read just so.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from lm_eval_kinject.errors import ArgumentError
from lm_eval_kinject.provenance import fingerprint_file, read_json
from lm_eval_kinject.records import gold_ids
from lm_eval_kinject.study.cells import MANIFEST
from lm_eval_kinject.study.lines import CONTROLS
from lm_eval_kinject.study.outcomes import Answered, CellOutcome, Kept

__all__ = [
    "METRICS", "answers_of", "doctored", "kept_by", "load_curves", "load_outcomes", "manifests", "option_scores",
    "read_rows", "read_samples", "reference_of", "result_file", "study_provenance", "trace_of",
]  # fmt: skip

METRICS = ("acc", "exact_match", "em", "f1")
"""What counts as a right answer: the first of these that a sample has."""


def result_file(folder: Path) -> Path:
    """The results JSON in a folder that lm_eval wrote to.

    Raises:
        ArgumentError: there is none, or more than one.
    """
    found = sorted(folder.glob("results*.json"))
    if len(found) != 1:
        raise ArgumentError(f"{folder} holds {len(found)} results files, not one: name the file", "the results")
    return found[0]


def read_samples(results: Path) -> dict[str, list[dict[str, Any]]]:
    """The samples beside a results file, by task, in the order of their documents.

    Raises:
        ArgumentError: there are none for a task.
    """
    stem = results.stem.removeprefix("results")
    found: dict[str, list[dict[str, Any]]] = {}
    for task in read_json(results)["configs"]:
        file = results.with_name(f"samples_{task}{stem}.jsonl")
        if not file.is_file():  # the two files' dates may differ by a moment
            candidates = sorted(results.parent.glob(f"samples_{task}_2*.jsonl"))
            if len(candidates) != 1:
                raise ArgumentError(
                    f"{results}: there is no {file.name} beside it; run lm_eval with --log_samples", "the results"
                )
            file = candidates[0]
        found[task] = read_rows(file)
    return found


def read_rows(file: Path) -> list[dict[str, Any]]:
    """The samples in one file, in the order of their documents."""
    with file.open(encoding="utf-8") as lines:
        return sorted(map(json.loads, lines), key=lambda row: int(row["doc_id"]))


def doctored(file: Path) -> list[str]:
    """Files of a study's cell that aren't what its manifest says any more."""
    manifest = file.parent / MANIFEST
    if not manifest.is_file():
        return []
    return [
        f"{name} was changed after it was written"
        for name, digest in read_json(manifest)["files"].items()
        if not (file.parent / name).is_file() or fingerprint_file(file.parent / name) != digest
    ]


def load_outcomes(out: Path) -> list[CellOutcome]:
    """The finished cells of a study's folder."""
    return [_outcome(out, manifest) for manifest in manifests(out)]


def manifests(out: Path) -> list[Path]:
    """Those of all finished cells; what a killed run left half-written is hidden and doesn't count."""
    found = sorted((out / "cells").rglob(MANIFEST))
    return [file for file in found if not any(part.startswith(".") for part in file.relative_to(out).parts)]


def _outcome(out: Path, manifest: Path) -> CellOutcome:
    results, cell = result_file(manifest.parent), read_json(manifest)
    found = read_json(results)
    told = found["config"]["kinject"]
    tasks = told["tasks"].values()
    questions = sum(task["questions"] for task in tasks)
    share = told["scorer"].get("together", {})
    return CellOutcome(
        axes=cell["axes"],
        answers=tuple(answers_of(read_samples(results))),
        tokens_forwarded=share.get("distinct_tokens", 0),
        context_tokens=_mean(tasks, "mean_context_tokens", questions),
        seconds=told["seconds"].get("scoring", 0.0),
        recall={
            name: _mean(tasks, name, questions)
            for name in sorted({key for task in tasks for key in task if key.startswith("recall@") or key == "mrr"})
        },
        kept=kept_by(out / "runs" / Path(*Path(cell["name"]).parts[:2])),
    )


def kept_by(run: Path) -> Kept | None:
    """What a training left of what was known before; None where there is none, or its recall wasn't measured.

    Args:
        run: its folder.
    """
    record = run / "kinject.json"
    if not record.is_file():
        return None
    said = read_json(record)
    before, after = ((said["outcome"].get(when) or {}).get("recall") for when in ("before", "after"))
    if before is None or after is None:
        return None
    replay, held = said["recipe"].get("replay"), said["recipe"].get("regulariser")
    done = [*(["replay"] if replay and replay["ratio"] else []), *([str(held["kind"])] if held else [])]
    return Kept(before, after, " and ".join(done) or "nothing")


def _mean(tasks: Any, name: str, questions: int) -> float:
    """Of a figure, over the questions of all tasks of a cell."""
    return float(sum(task.get(name, 0.0) * task["questions"] for task in tasks)) / max(1, questions)


def answers_of(samples: Mapping[str, Sequence[Mapping[str, Any]]]) -> Iterator[Answered]:
    """Samples by task, as `read_samples` gives them, as answers; the tasks' documents are numbered on and on."""
    offset = 0
    for task, rows in samples.items():
        for row in rows:
            yield _answer(task, row, offset)
        offset += len(rows)


def _answer(task: str, row: Mapping[str, Any], offset: int) -> Answered:
    trace = trace_of(row)
    said = trace.get("gold")
    gold = gold_ids(tuple(said) if isinstance(said, list) else said)  # of several, all must be there
    chunk = gold[0] if gold else row["doc"].get("source_chunk") if isinstance(row["doc"], dict) else None
    used = list(trace.get("used", ()))
    return Answered(
        doc_id=offset + int(row["doc_id"]),
        cluster="" if chunk is None else f"{task}/{chunk}" if offset else str(chunk),
        correct=_correct(row),
        tied=_tied(row),
        gold_rank=_last(gold, {hit["id"]: hit["rank"] for hit in trace.get("hits", ())}),
        gold_place=_last(gold, {chunk: place for place, chunk in enumerate(used, 1)}),
        prompt_places=len(used),
    )


def _last(gold: Sequence[str], places: Mapping[str, int]) -> int | None:
    """The place of the last of the gold chunks; None where one is missing."""
    return max(places[chunk] for chunk in gold) if gold and all(chunk in places for chunk in gold) else None


def trace_of(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """What retrieval left in a sample, or nothing."""
    arguments = row["arguments"]
    first = next(iter(arguments.values())) if isinstance(arguments, dict) else arguments[0]
    third = first.get("arg_2") if isinstance(first, dict) else first[2] if len(first) > 2 else None
    return third["kinject"] if isinstance(third, dict) and "kinject" in third else {}


def _correct(row: Mapping[str, Any]) -> float | None:
    metric = next((name for name in METRICS if name in row), None) or next(iter(row.get("metrics", ())), None)
    value = row.get(metric) if metric else None
    if not isinstance(value, int | float) or math.isnan(value) or math.isinf(value):
        return None
    return None if any(math.isnan(score) for score in option_scores(row)) else float(value)


def option_scores(row: Mapping[str, Any]) -> list[float]:
    """Log-likelihoods of the options; empty where the answer is a text."""
    scores = []
    for response in row["resps"]:
        one = response[0] if isinstance(response, list) and response else None
        if isinstance(one, list | tuple) and one:
            scores.append(float(one[0]))
    return scores


def _tied(row: Mapping[str, Any]) -> bool:
    scores = option_scores(row)
    return len(scores) > 1 and scores.count(max(scores)) > 1


def load_curves(out: Path) -> dict[str, list[tuple[int, float, float]]]:
    """Training loss of each finished run: name of the weights -> (update, epoch, nats a token)."""
    curves = {}
    for record in sorted((out / "runs").rglob("kinject.json")):
        log = record.with_name("log.jsonl")
        if not log.is_file():
            continue
        rows = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines() if line.strip()]
        points = [(int(r["update"]), float(r["epoch"]), float(r["loss"])) for r in rows if r.get("loss") is not None]
        if points:
            curves[str(record.parent.relative_to(out / "runs"))] = points
    return curves


def reference_of(out: Path) -> str:
    """The first retriever of a study that is no control; empty where there is none."""
    found = yaml.safe_load((out / "study.yaml").read_text(encoding="utf-8")).get("retrievers") or {}
    return next((n for n, given in found.items() if ((given or {}).get("retriever") or n) not in CONTROLS), "")


def study_provenance(out: Path) -> dict[str, Any]:
    """What a report says its figures come from: the study, and what all results agree on.

    Raises:
        ArgumentError: the folder holds no study.
    """
    note = out / "study.yaml"
    if not note.is_file():
        raise ArgumentError(f"{out} holds no study; run `kinject study run FILE --out {out}`", "the report")
    study = yaml.safe_load(note.read_text(encoding="utf-8"))
    said: dict[str, Any] = {"title": study["title"]}
    if study.get("about"):
        said["about"] = " ".join(study["about"].split())
    found: dict[str, dict[str, Any]] = {}
    for manifest in manifests(out):
        told = read_json(result_file(manifest.parent))["config"]["kinject"]
        for corpus in told.get("corpora", ()):
            found.setdefault("corpora", {})[corpus["name"]] = corpus["fingerprint"]
        for retriever in told.get("retrievers", ()):
            found.setdefault("retrievers", {})[retriever["name"]] = retriever["fingerprint"]
        model = told["model"]
        found.setdefault("weights", {})[model["name"]] = model.get("commit") or model.get("fingerprint")
        said["environment"] = told["environment"]
    return said | found
