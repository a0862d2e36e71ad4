"""Small local stand-ins for public data sets, so that lm_eval's own task files run unchanged and offline.

`datasets.load_dataset("cais/mmlu", "anatomy")` reads a folder ``cais/mmlu`` of the working directory if there is one.
`write_foreign` makes such folders, in the shape of the real data sets; a test changes into the folder that holds them.
`copy_current_events` copies our own task with rows of the same shape, `write_corpus` writes what they are about.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lm_eval.tasks
import pyarrow as pa
import pyarrow.parquet as pq
from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager

ROOT = Path(__file__).resolve().parent.parent.parent
HARNESS_TASKS = Path(lm_eval.tasks.__file__).parent
TOWNS = ("Arden", "Brill", "Corby", "Dover", "Eston", "Filey", "Goole", "Hythe")
PEOPLE = ("Abe Ash", "Bea Birk", "Cal Cole", "Dot Dunn", "Eli East", "Fay Fox", "Gus Gale", "Hal Hart")
LABELS = ["A", "B", "C", "D"]

SUBJECTS = ("anatomy", "astronomy", "college_biology", "college_chemistry", "prehistory")


def choices_of(i: int) -> list[str]:
    """The i-th question's options; its answer is the (i % 4)-th."""
    return [PEOPLE[(i + n) % len(PEOPLE)] for n in range(4)]


def question_text(i: int) -> str:
    return f"Who opened the bridge at {TOWNS[i]}?"


def chunk_text(i: int) -> str:
    return f"The bridge at {TOWNS[i]} was opened by {choices_of(i)[i % 4]}."


def write_corpus(folder: Path) -> str:
    """Eight chunks, ``c0`` to ``c7``; the i-th answers the i-th question."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [{"id": f"c{i}", "title": f"News from {TOWNS[i]}", "text": chunk_text(i)} for i in range(len(TOWNS))]
    (folder / "chunks.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder)


def copy_current_events(folder: Path) -> Path:
    """Our task folder with eight rows of the real ones' shape; returns it."""
    target = folder / "current_events"
    shutil.copytree(ROOT / "tasks" / "current_events", target, ignore=shutil.ignore_patterns("data", "corpus"))
    rows = [
        {
            "id": f"q{i}",
            "question": question_text(i),
            "choices": choices_of(i),
            "answer": i % 4,
            "source_chunk": f"c{i}",
            "kind": "opening",
            "slot": "who",
        }
        for i in range(len(TOWNS))
    ]
    (target / "data").mkdir()
    for split, part in (("test", rows), ("dev", rows[:5])):
        pq.write_table(pa.Table.from_pylist(part), target / "data" / f"{split}.parquet")
    return target


def _dataset(folder: Path, configs: Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]]) -> None:
    """A data set folder as on the Hub: a card that lists the files of each config and split."""
    lines = ["---", "configs:"]
    for config, splits in configs.items():
        lines += [f"- config_name: {config}", "  data_files:"]
        for split, rows in splits.items():
            (folder / config).mkdir(parents=True, exist_ok=True)
            pq.write_table(pa.Table.from_pylist(list(rows)), folder / config / f"{split}.parquet")
            lines += [f"  - split: {split}", f"    path: {config}/{split}.parquet"]
    (folder / "README.md").write_text("\n".join([*lines, "---", ""]))


def write_foreign(folder: Path) -> None:
    """Data of the shapes of ARC, MMLU, TriviaQA and WinoGrande."""
    indices = range(len(TOWNS))
    arc = [
        {
            "id": f"a{i}",
            "question": question_text(i),
            "choices": {"text": choices_of(i), "label": LABELS},
            "answerKey": LABELS[i % 4],
        }
        for i in indices
    ]
    _dataset(folder / "allenai/ai2_arc", {"ARC-Easy": {"train": arc[:2], "validation": arc[:2], "test": arc}})
    mmlu = [{"question": question_text(i), "subject": "x", "choices": choices_of(i), "answer": i % 4} for i in indices]
    _dataset(folder / "cais/mmlu", {subject: {"test": mmlu, "dev": mmlu[:5]} for subject in SUBJECTS})
    trivia = [
        {
            "question": question_text(i).rstrip("?"),
            "question_id": f"t{i}",
            "answer": {"aliases": [choices_of(i)[i % 4], TOWNS[i]], "value": TOWNS[i]},
        }
        for i in indices
    ]
    _dataset(folder / "mandarjoshi/trivia_qa", {"rc.nocontext": {"train": trivia[:2], "validation": trivia}})
    wino = [
        {
            "sentence": f"Ann met Eve in {TOWNS[i]} as _ lived there.",
            "option1": "Ann",
            "option2": "Eve",
            "answer": str(1 + i % 2),
        }
        for i in indices
    ]
    _dataset(folder / "allenai/winogrande", {"winogrande_xl": {"train": wino[:2], "validation": wino}})


def task_manager(*folders: Path, metadata: Mapping[str, Any] | None = None) -> TaskManager:
    """A manager of our MMLU tasks, lm_eval's own files for the foreign shapes, and the tasks in `folders`."""
    theirs = [HARNESS_TASKS / name for name in ("arc", "triviaqa", "winogrande", "mmlu/default")]
    paths = [*theirs, ROOT / "tasks" / "kinject_mmlu", *folders]
    return TaskManager(include_defaults=False, include_path=[str(p) for p in paths], metadata=dict(metadata or {}))


def evaluate(
    model: Any, arguments: Mapping[str, Any] | None, tasks: Sequence[Any], manager: TaskManager, **more: Any
) -> Any:
    """`lm_eval.simple_evaluate` on the CPU, four documents, no bootstrap."""
    settings = {"limit": 4, "device": "cpu", "bootstrap_iters": 0, "fewshot_as_multiturn": False, **more}
    return simple_evaluate(
        model=model, model_args=dict(arguments or {}), tasks=list(tasks), task_manager=manager, **settings
    )


def prompts(result: Any, task: str) -> list[str]:
    """The prompt of each document's first request, in order of the documents."""
    samples = sorted(result["samples"][task], key=lambda sample: sample["doc_id"])
    return [sample["arguments"][0][0] for sample in samples]
