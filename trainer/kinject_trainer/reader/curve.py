"""The picture of a reader's training: ``python -m kinject_trainer.reader.curve LOG PNG``.

Above, the weighted losses (nats; the weights make them no perplexities); below, the probe: answers whose every token
was the first choice, on worlds that are never trained on and on the recall world.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

_SMOOTH = 5  # log entries


def draw(entries: Sequence[Mapping[str, Any]], file: Path) -> None:
    """Draws a log's entries to a PNG; where a phase begins stands a line."""
    figure = Figure(figsize=(8, 8), dpi=110, layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    starts = _phase_starts(entries)
    steps = [starts[e["phase"]] + e["step"] + 1 for e in entries]
    for name in ("option texts", "letters", "statements", "closed book", "plain news", "two chunks"):
        points = [(step, e["losses"][name]) for step, e in zip(steps, entries, strict=True) if name in e["losses"]]
        losses = [loss for _, loss in points]
        means = [sum(losses[max(0, i - _SMOOTH + 1) : i + 1]) / min(i + 1, _SMOOTH) for i in range(len(losses))]
        above.plot([step for step, _ in points], means, label=name)
    above.set_ylabel("weighted training loss, nats")
    above.set_ylim(0, 2.5)  # the first steps, which start at 7.6, would flatten all the others
    above.legend()
    probed = [(step, e["probe"]) for step, e in zip(steps, entries, strict=True) if "probe" in e]
    for name in probed[0][1] if probed else ():
        style = "--" if "held-out" in name else ":" if "recall" in name else "-"
        below.plot([step for step, _ in probed], [values[name] for _, values in probed], style, marker=".", label=name)
    below.set_xlabel("step")
    below.set_ylabel("share of answers exactly right")
    below.set_ylim(0, 1)
    below.legend(fontsize=7)
    for axes in (above, below):
        axes.grid(alpha=0.3)
        for start in starts.values():
            axes.axvline(start, color="grey", linewidth=0.8)
    figure.savefig(file)


def _phase_starts(entries: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Steps taken before each phase, in their order."""
    starts: dict[str, int] = {}
    taken = 0
    for phase in dict.fromkeys(e["phase"] for e in entries):
        starts[phase] = taken
        taken += max(e["step"] for e in entries if e["phase"] == phase) + 1
    return starts


def main() -> None:
    """Command line of the picture."""
    if len(sys.argv) != 3:
        raise SystemExit("usage: python -m kinject_trainer.reader.curve LOG PNG")
    draw([json.loads(line) for line in Path(sys.argv[1]).read_text().splitlines()], Path(sys.argv[2]))


if __name__ == "__main__":
    main()
