"""Kills the making of a question set again and again, and holds what comes of it against an untroubled one.

    python benchmarks/questions_killed.py --kills 20

The test of the same name does it once a seam; this is for more of them, at other moments (`--seed`).
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
from helpers.question_story import SEAMS, killed_story


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=11)
    given = parser.parse_args()
    # In the order of the story: what is through can't be killed any more.
    kills = [SEAMS[n * len(SEAMS) // given.kills] for n in range(given.kills)]
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as root:
        told = killed_story(Path(root), kills, chunks=max(8, given.kills), seed=given.seed)
    print(json.dumps({**told, "seconds": round(time.monotonic() - began, 1)}, indent=2))
    print(f"{told['kills']} kills; every file of the set and of its export is as without.")


if __name__ == "__main__":
    main()
