"""A study as text: what it has scored so far, and the command of each cell."""

from __future__ import annotations

import shlex
from pathlib import Path

from rich.table import Table

from lm_eval_kinject.stats import accuracy
from lm_eval_kinject.study.cells import command_of, is_done
from lm_eval_kinject.study.grid import Study
from lm_eval_kinject.study.load import load_outcomes

__all__ = ["cell_lines", "overview"]


def cell_lines(study: Study, out: Path) -> list[str]:
    """Every cell: whether it is scored, its name, and the `lm_eval` command whose result it is."""
    lines = []
    for cell in study.cells:
        lines.append(f"{'scored ' if is_done(out, cell) else 'missing'}  {cell.name}")
        lines.append(f"         {shlex.join(command_of(study, cell, out))}")
    return lines


def overview(study: Study, out: Path) -> Table:
    """What is scored, a line a cell; what is missing, as a count."""
    scored = load_outcomes(out) if out.is_dir() else []
    table = Table(show_edge=False, pad_edge=False, title=study.title, title_justify="left")
    columns = ("variant", "retriever", "k", "shots", "task")
    for name in (*(["model"] if len(study.models) > 1 else []), *columns, "accuracy (95 %)"):
        table.add_column(name, overflow="fold", justify="right" if name in ("k", "shots") else "left")
    for cell in scored:
        answers = [a.correct for a in cell.answers if a.correct is not None]
        start = [cell.text("model")] if len(study.models) > 1 else []
        right = accuracy(answers).percent() if answers else "could not be scored"
        table.add_row(*start, *(cell.text(name) for name in columns), right)
    missing = len(study.cells) - sum(is_done(out, cell) for cell in study.cells)
    table.caption = f"{len(scored)} cells scored, {missing} missing"
    return table
