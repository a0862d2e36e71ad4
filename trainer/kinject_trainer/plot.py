"""The loss curve: training and validation loss over updates, epoch boundaries marked (the paper's third figure).

What it does not do: it measures nothing; it draws what `log.jsonl` says. Without matplotlib there is no picture, and
that is said.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from kinject_trainer.log import read_log
from lm_eval_kinject.provenance import atomic_write

__all__ = ["canvas", "draw", "save"]

_SEVERAL = 60  # with more epochs than this their lines would be a grey area


def draw(log: Path, picture: Path, title: str) -> bool:
    """Draws a log as PNG.

    Returns:
        Whether it could: False without matplotlib.
    """
    made = canvas((8, 4.5))
    if made is None:
        return False
    figure, axes = made
    entries = read_log(log)
    training = [(e["update"], e["loss"]) for e in entries if e.get("loss") is not None]
    validation = [(e["update"], e["validation_loss"]) for e in entries if e.get("validation_loss") is not None]
    for number, update in enumerate(boundaries(entries)):
        axes.axvline(update, color="0.75", linewidth=0.8, linestyle="--", label=None if number else "end of an epoch")
    if training:
        axes.plot(*zip(*training, strict=True), linewidth=1.2, label="training, each update")
    if validation:
        axes.plot(*zip(*validation, strict=True), marker="o", markersize=4, label="validation, held-out wordings")
    axes.set_xlabel("update")
    axes.set_ylabel("loss (nats a token)")
    axes.set_title(title)
    axes.legend(frameon=False)
    save(figure, picture)
    return True


def canvas(size: tuple[float, float]) -> tuple[Any, Any] | None:
    """A figure of one panel, and the panel; None without matplotlib. ``size`` is width and height in inches."""
    if importlib.util.find_spec("matplotlib") is None:
        return None
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.add_subplot()


def save(figure: Any, picture: Path) -> None:
    """Writes a figure as PNG, the same bytes for the same figure."""
    with atomic_write(picture) as out:
        figure.savefig(out, format="png", metadata={"Software": None})


def boundaries(entries: list[dict[str, object]]) -> list[float]:
    """Where in updates each epoch ends, between two updates where need be; none where there are too many to see."""
    points = [(float(str(e["update"])), float(str(e["epoch"]))) for e in entries if e.get("loss") is not None]
    found: list[float] = []
    before = (0.0, 0.0)
    for update, epoch in points:
        for whole in range(int(before[1]) + 1, int(epoch + 1e-9) + 1):
            share = (whole - before[1]) / (epoch - before[1])
            found.append(before[0] + share * (update - before[0]))
        before = (update, epoch)
    return found if len(found) <= _SEVERAL else []
