"""The embedded lab, measured with lm_eval: what the reader scores on the bundled edition, and what training on it adds.

What it is for: the tables in docs/log.md, with Wilson intervals, paired tests and parts by what the reader has seen.
What it does not do: train (`kinject train` does), or choose anything by what it measures.

The one idea: every line is one call of lm_eval's evaluator with `rag-hf`, as on the command line; lines are compared
question by question.

    python benchmarks/lab.py                                    the reader's table: both tasks, all lines
    python benchmarks/lab.py --lines "closed book;oracle" --limit 100
    python benchmarks/lab.py --runs runs/reader-ft-reg,runs/reader-ft-par      trained on it, against the base
    python benchmarks/lab.py --multihop                         the questions that take two chunks (since edition 2)
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from lm_eval_kinject.corpus.sources.newswire.edition import bundled_edition
from lm_eval_kinject.corpus.sources.newswire.kind import (
    HELD_OUT_PHRASINGS,
    READER_HELD_OUT_KINDS,
    load_kinds,
)
from lm_eval_kinject.corpus.sources.newswire.realise import phrasing
from lm_eval_kinject.corpus.sources.newswire.world import Event
from lm_eval_kinject.plugin import register, tasks_dir
from lm_eval_kinject.provenance import environment, read_json, write_json
from lm_eval_kinject.stats import accuracy, mcnemar, paired_difference

TASKS = {"current_events_cloze": "cloze", "current_events": "letters"}
MULTIHOP_TASKS = {"current_events_multihop_cloze": "cloze", "current_events_multihop": "letters"}
LINES: dict[str, tuple[str, int]] = {  # name -> model_args, examples
    "closed book": ("k=0", 0),
    "minilm, k=3": ("retriever=minilm,k=3", 0),
    "bm25, k=3": ("retriever=bm25,k=3", 0),
    "oracle": ("retriever=oracle,k=1", 0),
    "random, k=3": ("retriever=random,k=3", 0),
    "minilm, k=3, 5-shot": ("retriever=minilm,k=3", 5),
    "minilm, k=1": ("retriever=minilm,k=1", 0),
    "minilm, k=5": ("retriever=minilm,k=5", 0),
}
FORMATS = TASKS | MULTIHOP_TASKS
MULTIHOP_LINES: dict[str, tuple[str, int]] = {
    "closed book": ("k=0", 0),
    "oracle, k=1": ("retriever=oracle,k=1", 0),
    "oracle, k=2": ("retriever=oracle,k=2", 0),
    "minilm, k=3": ("retriever=minilm,k=3", 0),
    "bm25, k=3": ("retriever=bm25,k=3", 0),
    "bm25, k=5": ("retriever=bm25,k=5", 0),
}
MULTIHOP_COMPARED = {"oracle, k=1": "closed book", "oracle, k=2": "oracle, k=1"}
COMPARED = {"random, k=3": "closed book", "minilm, k=3, 5-shot": "minilm, k=3"}

Answers = dict[str, dict[str, list[float]]]  # line -> task -> 1.0 or 0.0 a question


def main() -> None:
    arguments = _arguments()
    register()
    # After register: lm_eval looks its models up when it is imported. With torch, the environment names its threads.
    import torch  # noqa: F401
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(tasks_dir()), include_defaults=False)
    here = environment()
    print(f"{date.today()}, {here}\n", flush=True)
    answers: Answers = {}
    for name, (model_args, shots) in _lines(arguments).items():
        began = time.perf_counter()
        answers[name] = evaluate(model_args, shots, arguments, manager)
        shown = ", ".join(f"{FORMATS[task]} {accuracy(a).percent()}" for task, a in answers[name].items())
        print(f"{name}: {shown}; {time.perf_counter() - began:.0f} s", flush=True)
    if arguments.multihop:
        report(answers, {}, MULTIHOP_COMPARED)
    else:
        report(answers, _groups(arguments.limit), {k: v for k, v in COMPARED.items() if not arguments.runs})
    if arguments.runs:
        report_runs(answers, arguments.runs.split(","))
    if arguments.out:
        kept = {line: {task: _digits(right) for task, right in tasks.items()} for line, tasks in answers.items()}
        write_json(arguments.out, {"date": str(date.today()), "environment": here, "answers": kept})


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lines", help=f"some of them, separated by semicolons: {'; '.join(LINES)}")
    parser.add_argument("--runs", help="comma-separated result folders of `kinject train`: closed book and minilm each")
    parser.add_argument("--multihop", action="store_true", help="questions that take two chunks, with their own lines")
    parser.add_argument("--limit", type=int, help="the first questions only")
    parser.add_argument("--pretrained", help="another base model than the embedded reader")
    parser.add_argument("--out", type=Path, help="keep every answer here, as JSON: a 1 or 0 a question")
    arguments = parser.parse_args()
    if arguments.multihop and arguments.runs:
        parser.error("--multihop has no runs: it measures the reader (or --pretrained)")
    if arguments.multihop and bundled_edition() < 2:
        parser.error(
            "the bundled edition has no questions that take two chunks; `make lab` makes edition 2 the bundled one"
        )
    return arguments


def _tasks(arguments: argparse.Namespace) -> Mapping[str, str]:
    return MULTIHOP_TASKS if arguments.multihop else TASKS


def _lines(arguments: argparse.Namespace) -> Mapping[str, tuple[str, int]]:
    """What to evaluate: name -> model_args and number of examples."""
    base = f",pretrained={arguments.pretrained}" if arguments.pretrained else ""
    if not arguments.runs:
        lines = MULTIHOP_LINES if arguments.multihop else LINES
        chosen = arguments.lines.split(";") if arguments.lines else list(lines)[:6]
        return {name.strip(): (lines[name.strip()][0] + base, lines[name.strip()][1]) for name in chosen}
    lines = {"base": (f"k=0{base}", 0), "base, minilm, k=3": (f"retriever=minilm,k=3{base}", 0)}
    for run in map(Path, arguments.runs.split(",")):
        is_adapter = (run / "adapter_config.json").is_file()
        model = f",peft={run}{base}" if is_adapter else f",pretrained={run}"
        lines[run.name] = (f"k=0{model}", 0)
        lines[f"{run.name}, minilm, k=3"] = (f"retriever=minilm,k=3{model}", 0)
    return lines


def evaluate(model_args: str, shots: int, arguments: argparse.Namespace, manager: Any) -> dict[str, list[float]]:
    """Task -> one 1.0 or 0.0 a question, in the order of the question set."""
    import lm_eval

    results = lm_eval.simple_evaluate(
        model="rag-hf",
        model_args=model_args,
        tasks=list(_tasks(arguments)),
        num_fewshot=shots,
        task_manager=manager,
        limit=arguments.limit,
        batch_size=8,
        bootstrap_iters=0,
        log_samples=True,
    )
    if results is None:
        raise SystemExit("run this in one process, without a launcher")
    samples = {task: sorted(results["samples"][task], key=lambda s: s["doc_id"]) for task in _tasks(arguments)}
    return {task: [float(s["acc"]) for s in found] for task, found in samples.items()}


def _groups(limit: int | None) -> Mapping[str, list[int]]:
    """Places of the questions by what the reader has seen in its training of their kind and words."""
    folder = tasks_dir() / "current_events"
    questions = pq.read_table(folder / "data" / "test.parquet").to_pylist()[:limit]
    chunks = {row["id"]: row for row in pq.read_table(folder / "corpus" / "chunks.parquet").to_pylist()}
    kinds = {kind.kind: kind for kind in load_kinds(edition=bundled_edition())}
    groups: dict[str, list[int]] = {name: [] for name in ("known wordings", "held-out phrasings", "held-out kinds")}
    for place, question in enumerate(questions):
        kind = kinds[question["kind"]]
        event = Event(question["source_chunk"], kind, json.loads(chunks[question["source_chunk"]]["facts"]))
        sentence = next(s for s in kind.sentences if question["slot"] in s.slots)
        stated = phrasing(event, sentence) in sentence.phrasings[-HELD_OUT_PHRASINGS:]
        asked = kind.questions[question["slot"]][-1].format(**event.values) == question["question"]
        if kind.kind in READER_HELD_OUT_KINDS:
            groups["held-out kinds"].append(place)
        else:
            groups["held-out phrasings" if stated or asked else "known wordings"].append(place)
    return groups


def report(answers: Answers, groups: Mapping[str, list[int]], compared: Mapping[str, str]) -> None:
    """The table, the parts, and the comparisons asked for."""
    print("\n| line | task | all | " + " | ".join(f"{name} ({len(p)})" for name, p in groups.items()) + " |")
    print("|---" * (3 + len(groups)) + "|")
    for line, tasks in answers.items():
        for task, right in tasks.items():
            parts = [_share([right[i] for i in places]) for places in groups.values()]
            print(f"| {line} | {FORMATS[task]} | {accuracy(right).percent()} | {' | '.join(parts)} |")
    print()
    for line, other in compared.items():
        if line in answers and other in answers:
            for task in answers[line]:
                _compare(line, answers[line][task], other, answers[other][task], FORMATS[task])


def report_runs(answers: Answers, runs: Sequence[str]) -> None:
    """Each run against the base, the run named before it and the base with retrieval; what its record says besides."""
    names = [Path(run).name for run in runs]
    for earlier, run in zip([None, *names], map(Path, runs), strict=False):
        for task in TASKS:
            for other in ("base", earlier, "base, minilm, k=3"):
                if other:
                    _compare(run.name, answers[run.name][task], other, answers[other][task], TASKS[task])
        outcome = read_json(run / "kinject.json")["outcome"]
        told = ("updates", "tokens", "seconds", "learning_rate", "validation_loss", "before", "after")
        print(f"{run.name}: " + ", ".join(f"{key} {outcome[key]}" for key in told))


def _compare(line: str, right: Sequence[float], other: str, other_right: Sequence[float], task: str) -> None:
    gain = paired_difference(other_right, right)
    points = f"{100 * gain.estimate:+.1f} points ({100 * gain.low:+.1f} to {100 * gain.high:+.1f})"
    print(f"{line} against {other}, {task}: {points}, McNemar p = {mcnemar(right, other_right):.2g}")


def _digits(right: Sequence[float]) -> str:
    return "".join(str(int(answer)) for answer in right)


def _share(right: Sequence[float]) -> str:
    return f"{100 * sum(right) / len(right):.1f} %" if right else "none"


if __name__ == "__main__":
    main()
