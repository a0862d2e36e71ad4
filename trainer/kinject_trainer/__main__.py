"""``python -m kinject_trainer RECIPE``: ``kinject train`` for launchers of several processes.

torchrun --nproc-per-node 4 -m kinject_trainer RECIPE --out RUN
accelerate launch --config_file "$(python -m kinject_trainer --recipes)/fsdp.yaml" -m kinject_trainer RECIPE --out RUN
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from kinject_trainer.command import train
from kinject_trainer.recipe import recipes_dir
from lm_eval_kinject.errors import KinjectError


def main() -> int:
    """Runs a recipe; returns the exit status."""
    parser = argparse.ArgumentParser(prog="kinject_trainer", description="Train from a recipe.")
    parser.add_argument("recipe", nargs="?", help="a YAML file, or the name of a bundled recipe")
    parser.add_argument("--out", type=Path, help="folder of the result (default: runs/NAME)")
    parser.add_argument("--resume", action="store_true", help="go on with the unfinished run in that folder")
    parser.add_argument("--dry-run", action="store_true", help="work out counts, time and memory only")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="over the recipe's value")
    parser.add_argument("--recipes", action="store_true", help="print the folder of the bundled recipes and fsdp.yaml")
    given = parser.parse_args()
    if given.recipes:
        sys.stdout.write(f"{recipes_dir()}\n")
        return 0
    if given.recipe is None:
        parser.error("name a recipe: a YAML file, or a bundled one (--recipes prints their folder)")

    leads = os.environ.get("RANK", "0") == "0"  # of the processes that a launcher starts, one speaks

    def say(text: str) -> None:
        sys.stderr.write(text + "\n")

    try:
        made = train(
            given.recipe, out=given.out, resume=given.resume, dry_run=given.dry_run, overrides=given.set, say=say
        )
    except KinjectError as problem:
        say(str(problem))
        return 1
    if not leads:
        return 0
    for line in made.estimate.lines() if made.estimate else [f"{made.folder}"]:
        sys.stdout.write(line + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
