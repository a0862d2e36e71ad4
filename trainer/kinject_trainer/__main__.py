"""``python -m kinject_trainer RECIPE``: ``kinject train`` for launchers of several processes.

torchrun --nproc-per-node 4 -m kinject_trainer RECIPE --out RUN
accelerate launch --config_file "$(python -m kinject_trainer --recipes)/fsdp.yaml" -m kinject_trainer RECIPE --out RUN
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kinject_trainer.command import Say, train
from kinject_trainer.recipe import recipes_dir
from kinject_trainer.retriever import is_retriever, train_retriever
from kinject_trainer.sequence import is_sequence, train_sequence
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
        lines = _run(given, say)
    except KinjectError as problem:
        say(str(problem))
        return 1
    if not leads:
        return 0
    for line in lines:
        sys.stdout.write(line + "\n")
    return 0


def _run(given: argparse.Namespace, say: Say) -> Sequence[str]:
    """Runs a recipe, of a retriever too, or a sequence; returns what is to be printed."""
    how: dict[str, Any] = {"out": given.out, "resume": given.resume, "dry_run": given.dry_run, "overrides": given.set}
    if is_sequence(given.recipe) or is_retriever(given.recipe):
        run = train_sequence if is_sequence(given.recipe) else train_retriever
        made = run(given.recipe, say=say, **how)
        return made.lines if made.folder is None else [str(made.folder), *made.lines]
    done = train(given.recipe, say=say, **how)
    return done.estimate.lines() if done.estimate else [str(done.folder)]


if __name__ == "__main__":
    sys.exit(main())
