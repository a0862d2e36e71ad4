"""What the paper printed: Tables 1 and 2 and the K sweep of Ovadia et al. (arXiv 2312.05934), as data.

What it is for: a report puts these figures beside its own, and the tests recompute from them what is claimed about
them. What it doesn't do: it says nothing of how near ours should come. The MMLU questions are the same as ours; the
paper's 910 questions on current events are not public, and ours of that name are others.

The one idea: one line a figure, so that whoever wants another shape groups lines. `ovadia2023.csv` has the columns

    table    1, 2, or k-sweep (Table 3 of the first version, which later ones lack; no prehistory there)
    task     as MMLU names its subjects, and current_events
    model    Mistral, Llama2, Orca2 (each with 7 billion parameters)
    method   base, rag; ft, ft+rag in Table 1; ft-reg, ft-par, ft-reg+rag, ft-par+rag in Table 2
    shots    0 or 5; empty in Table 2, where the paper doesn't say
    k        chunks in the prompt; empty where the paper doesn't say which K it printed
    value    accuracy, 0 to 1, to three decimals
    note     what else is known
"""

from __future__ import annotations

import csv
import functools
import re
from dataclasses import dataclass
from importlib import resources

from lm_eval_kinject.errors import KinjectError

__all__ = ["Figure", "load", "lookup", "paper_model", "paper_task"]

_COLUMNS = ("table", "task", "model", "method", "shots", "k", "value", "note")


@dataclass(frozen=True, slots=True)
class Figure:
    """One accuracy (``value``, 0 to 1) of the paper; see this file's head for the fields."""

    table: str
    task: str
    model: str
    method: str
    shots: int | None
    k: int | None
    value: float
    note: str


@functools.cache
def load() -> tuple[Figure, ...]:
    """All figures, in the paper's order.

    Raises:
        KinjectError: the file that comes with the package is damaged.
    """
    text = (resources.files(__package__) / "ovadia2023.csv").read_text(encoding="utf-8")
    reader = csv.DictReader(text.splitlines())
    if tuple(reader.fieldnames or ()) != _COLUMNS:
        raise KinjectError("published/ovadia2023.csv has other columns than it came with; install the package again")
    return tuple(
        Figure(
            table=line["table"],
            task=line["task"],
            model=line["model"],
            method=line["method"],
            shots=int(line["shots"]) if line["shots"] else None,
            k=int(line["k"]) if line["k"] else None,
            value=float(line["value"]),
            note=line["note"],
        )
        for line in reader
    )


def lookup(
    table: str, task: str, model: str, method: str, *, shots: int | None = None, k: int | None = None
) -> float | None:
    """The paper's accuracy for a task and a model as *we* name them, or None where it has none.

    Args:
        table: ``1``, ``2`` or ``k-sweep``.
        task: an lm_eval task, such as ``kinject_mmlu_anatomy`` (`paper_task`).
        model: a Hub id or name (`paper_model`).
        method: as in the table's lines.
        shots: examples in the prompt; Table 2 has figures for whatever is asked, as it doesn't say.
        k: chunks in the prompt, for the sweep only.
    """
    wanted = (table, paper_task(task), paper_model(model), method)
    for figure in load():
        if (figure.table, figure.task, figure.model, figure.method) != wanted:
            continue
        if (figure.shots is None or figure.shots == shots) and (table != "k-sweep" or figure.k == k):
            return figure.value
    return None


def paper_task(task: str) -> str | None:
    """The paper's name of an lm_eval task: ``kinject_mmlu_anatomy_cloze`` is ``anatomy``; None for other tasks."""
    bare = task.removesuffix("_cloze").removeprefix("kinject_").removeprefix("mmlu_")
    return bare if any(bare == figure.task for figure in load()) else None


def paper_model(model: str) -> str | None:
    """The paper's name of a model: ``mistralai/Mistral-7B-v0.1`` is ``Mistral``; None for others.

    Later versions and chat or instruction models of the same family are others.
    """
    bare = re.sub(r"[^a-z0-9]", "", model.rsplit("/", 1)[-1].lower())
    names = {
        r"mistral(7b)?(v01)?": "Mistral",
        r"llama2(7b)?(hf)?": "Llama2",
        r"orca2(7b)?": "Orca2",
    }
    return next((name for pattern, name in names.items() if re.fullmatch(pattern, bare)), None)
