"""The picture of a reader's training: ``python -m kinject_trainer.reader.curve LOG PNG``.

Above, the weighted losses of the two kinds of reading (nats; the weights make them no perplexities); below, the probe:
answers whose every token was the first choice, on worlds that are never trained on.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

_SMOOTH = 5  # log entries, ten steps apart


def draw(entries: Sequence[Mapping[str, Any]], file: Path) -> None:
    """Draws a log's entries to a PNG."""
    figure = Figure(figsize=(7, 7), dpi=110, layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    for place, label in enumerate(("option texts", "letters")):
        steps, losses = zip(*((e["step"], e["losses"][place]) for e in entries), strict=True)
        means = [sum(losses[max(0, i - _SMOOTH + 1) : i + 1]) / min(i + 1, _SMOOTH) for i in range(len(losses))]
        above.plot(steps, means, label=label)
    above.set_ylabel("weighted training loss, nats")
    above.set_ylim(bottom=0)
    above.legend()
    probed = [e for e in entries if "probe" in e]
    for name in probed[0]["probe"] if probed else ():
        style = "--" if "held-out" in name else ":" if "recall" in name else "-"
        below.plot([e["step"] for e in probed], [e["probe"][name] for e in probed], style, marker=".", label=name)
    below.set_xlabel("step")
    below.set_ylabel("share of answers exactly right")
    below.set_ylim(0, 1)
    below.legend(fontsize=7)
    for axes in (above, below):
        axes.grid(alpha=0.3)
    figure.savefig(file)


def main() -> None:
    """Command line of the picture."""
    if len(sys.argv) != 3:
        raise SystemExit("usage: python -m kinject_trainer.reader.curve LOG PNG")
    draw([json.loads(line) for line in Path(sys.argv[1]).read_text().splitlines()], Path(sys.argv[2]))


if __name__ == "__main__":
    main()
