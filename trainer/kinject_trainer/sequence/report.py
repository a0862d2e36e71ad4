"""A finished sequence on paper: the record as Markdown, and its matrix as a picture.

What it is for: `markdown` for people, `draw_matrix` for the eye. What it does not do: it works nothing out; every
figure is in ``sequence.json``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kinject_trainer.plot import canvas, save

__all__ = ["draw_matrix", "markdown"]

_HOW = {
    "continued": "One model, whose training goes on from month to month.",
    "adapter-a-month": "Each month an adapter by itself, on the same base.",
    "retrained": "Each month the base trained anew, on all months so far.",
}
_MERGED = {
    "stacked": "After each month, the adapters so far add up (PEFT's `cat`, exact).",
    "weighted": "After each month, the adapters so far are averaged (PEFT's `linear`).",
    "ties": "After each month, the adapters so far are merged by PEFT's `ties`.",
    "dare_ties": "After each month, the adapters so far are merged by PEFT's `dare_ties`.",
    "routed": (
        "A question is answered with the adapter of its month, or where that isn't there yet with the newest; so what "
        "was learned of a month stays as it is, and backward transfer is 0 by construction. What is older than the "
        "first month is the base's to answer, and so is the old world."
    ),
}
_ROWS = (
    "Rows: after which month. Columns: the month asked about. Without any text in front, by the options' "
    "log-likelihoods; a tie counts as wrong.\n"
)
_SOURCE = (
    "As Lopez-Paz & Ranzato (arXiv 1706.08840) define them, but for b[j], which is a random start's there. Months "
    "without questions are left out.\n"
)


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _signed(value: float | None) -> str:
    return "not measured" if value is None else f"{value:+.3f}"


_MEASURES = (
    ("average_accuracy", "average accuracy", "(1/T) Σ R[T][j]", _share),
    ("backward_transfer", "backward transfer", "(1/(T − 1)) Σ_{j<T} R[T][j] − R[j][j]", _signed),
    ("forward_transfer", "forward transfer", "(1/(T − 1)) Σ_{j>1} R[j−1][j] − b[j]", _signed),
)


def markdown(record: Mapping[str, Any]) -> str:
    """The report of a sequence's record (``sequence.json``)."""
    months = [month["month"] for month in record["months"]]
    how = _HOW[record["mode"]] + (f" {_MERGED[record['merge']['kind']]}" if record["merge"] else "")
    parts = [
        f"# {record['name']}\n",
        f"{how} The base is `{record['base']['name']}`.\n",
        "## Accuracy\n",
        _ROWS,
        _table(
            ["", *months, "mean of the months so far"],
            [
                [name, *map(_share, row), _share(mean)]
                for name, row, mean in zip(
                    ["base", *months], record["accuracy"], [None, *record["averages"]], strict=True
                )
            ],
        ),
        _table(["questions", *months], [["", *(str(month["questions"] or "none") for month in record["months"])]]),
        "## Transfer\n",
        _table(
            ["", "", "R[i][j]: accuracy on month j after month i, of T; b[j]: the base's"],
            [[name, shown(record["measures"][key]), formula] for key, name, formula, shown in _MEASURES],
        ),
        _SOURCE,
        *_forgetting(record, months),
        "## The months' models\n",
        _table(
            ["month", "run", "corpus"], [[m["month"], f"`{m['run']}`", m["corpus"]["name"]] for m in record["months"]]
        ),
    ]
    return "\n".join(parts)


def _forgetting(record: Mapping[str, Any], months: Sequence[str]) -> list[str]:
    figures = record["forgetting"]
    if not any(figures):
        return ["## What was known before\n", "Not measured.\n"]
    rows = [
        [name, *(_number(one.get(key) if one else None) for key in ("perplexity", "recall"))]
        for name, one in zip(["base", *months], figures, strict=True)
    ]
    return [
        "## What was known before\n",
        _table(["", "perplexity of general text", "recall of the old world"], rows),
        f"General text: {record['general_text']}.\n",
    ]


def draw_matrix(record: Mapping[str, Any], picture: Path) -> bool:
    """Draws the accuracies as a map, dark where much is known.

    Returns:
        Whether it could: False without matplotlib, or where nothing was asked.
    """
    cells = [[float("nan") if value is None else value for value in row] for row in record["accuracy"]]
    there = [value for row in record["accuracy"] for value in row if value is not None]
    made = canvas((2.5 + 0.7 * len(cells[0]), 1.8 + 0.45 * len(cells))) if there else None
    if made is None:
        return False
    figure, axes = made
    months = [month["month"] for month in record["months"]]
    shown = axes.imshow(cells, cmap="Blues", vmin=0.0, vmax=1.0, aspect="auto")
    for i, row in enumerate(record["accuracy"]):
        for j, value in enumerate(row):
            if value is not None:
                colour = "white" if value > 0.6 else "black"
                axes.text(j, i, f"{value:.2f}", ha="center", va="center", color=colour, fontsize=8)
    axes.set_xticks(range(len(months)), months, rotation=45, ha="right")
    axes.set_yticks(range(len(months) + 1), ["base", *months])
    axes.set_xlabel("month asked about")
    axes.set_ylabel("after month")
    axes.set_title(record["name"])
    figure.colorbar(shown, label="accuracy")
    save(figure, picture)
    return True


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines) + "\n"


def _number(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.4g}"
