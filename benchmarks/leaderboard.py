"""How long a leaderboard takes from 1,000 submissions to its first table: cold (nothing in the cache) and warm.

    python benchmarks/leaderboard.py [--submissions 1000]

Made-up submissions of a data set: results of 12 kB, half of them with samples of 100 questions. Timed is what
``kinject leaderboard`` does between the folder and the table's HTML; Python's and Gradio's own start is not in it.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))


def main() -> None:
    """Prints the times."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--submissions", type=int, default=1000)
    count = parser.parse_args().submissions
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["KINJECT_CACHE"] = f"{scratch}/cache"
        root = Path(scratch) / "results"
        _make(root, count)
        from lm_eval_kinject.pages.board import read_board
        from lm_eval_kinject.pages.tables import View, board_table

        for name in ("cold", "warm"):
            start = time.perf_counter()
            board = read_board(str(root), strict=True)
            read = time.perf_counter()
            table = board_table(board, View())
            end = time.perf_counter()
            print(
                f"{name}: {len(board.rows)} rows, {len(board.left_out)} left out; read {read - start:.2f} s, "
                f"table {end - read:.3f} s ({len(table) / 1e3:.0f} kB)"
            )


def _make(root: Path, count: int) -> None:
    from helpers.pages_story import submission

    from lm_eval_kinject.hub.eval_results import read_results
    from lm_eval_kinject.hub.submit import submitted_name

    for number in range(count):
        right = [(number * 7 + place) % 10 < 3 + number % 6 for place in range(100)]
        file = submission(root, f"model-{number:04}", k=number % 6, right=right, samples=number % 2 == 0)
        data = json.loads(file.read_text(encoding="utf-8"))
        data["pretty_env_info"] = "x" * 10_000  # what lm_eval fills most of a results file with
        file.write_text(json.dumps(data, indent=2), encoding="utf-8")
        file.parent.rename(root / submitted_name(read_results(file)[0]))


if __name__ == "__main__":
    main()
