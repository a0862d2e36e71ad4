"""The search over learning rates: one whole training each, the lowest validation loss wins.

What it is for: `search` runs the trials of a recipe (one, where the rate is given) and records every one. What it does
not do: it looks at no test question; it can't, for none is loaded.

The one idea: trials differ in the rate and in nothing else, so the winner's weights *are* the result; nothing is
trained again.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kinject_trainer.checkpoints import complete
from kinject_trainer.errors import TrainingError
from kinject_trainer.train import Outcome, run_training
from kinject_trainer.trainer import Materials, NotANumber
from lm_eval_kinject.provenance import read_json, write_json

__all__ = ["Trial", "search"]


@dataclass(frozen=True)
class Trial:
    """One training of a search; ``outcome`` is None where it stopped, and ``stopped`` says why."""

    learning_rate: float
    outcome: Outcome | None
    stopped: str | None
    place: Path

    @property
    def validation_loss(self) -> float:
        """What trials are compared by; infinite where there is none."""
        loss = None if self.outcome is None else self.outcome.validation_loss
        return math.inf if loss is None or not math.isfinite(loss) else loss

    def plain(self) -> dict[str, Any]:
        """As the record of trials holds it."""
        outcome = None if self.outcome is None else self.outcome.plain()
        return {"learning_rate": self.learning_rate, "stopped": self.stopped, "outcome": outcome}


def search(
    materials: Materials, work: Path, out: Path, say: Callable[[str], None], *, main: bool
) -> tuple[Trial, list[Trial]]:
    """Trains at each of the recipe's rates.

    Args:
        materials: of the run.
        work: folder for checkpoints and weights.
        out: folder for logs and the record of trials, ``trials.json``, written anew after each.
        say: told how the search goes.
        main: whether this process writes.

    Returns:
        The best trial, and all in ascending order of their rates. Equal losses go to the lower rate.

    Raises:
        TrainingError: the only rate, or every one, ended in a loss that is no number; or anything else that ends a run.
    """
    rates = materials.recipe.rates
    if len(rates) == 1:
        outcome = run_training(materials, rates[0], work / "run", out / "log.jsonl", say)
        trial = Trial(rates[0], outcome, None, work / "run")
        return trial, [trial]
    trials: list[Trial] = []
    (out / "trials").mkdir(exist_ok=True)
    for number, rate in enumerate(rates, start=1):
        say(f"trial {number} of {len(rates)}: learning rate {rate:g}")
        trials.append(_trial(materials, rate, work, out, say, main=main))
        if main:
            write_json(out / "trials.json", [trial.plain() for trial in trials])
        said = f"{trials[-1].validation_loss:.4f}" if trials[-1].outcome else trials[-1].stopped
        say(f"trial {number} of {len(rates)}: validation loss {said}")
        if main:
            _drop_losers(trials)
    best = min(trials, key=lambda trial: (trial.validation_loss, trial.learning_rate))
    if best.outcome is None or math.isinf(best.validation_loss):
        raise TrainingError(
            f"None of the {len(rates)} learning rates gave a validation loss that is a number: search lower ones. The "
            f"trials are in {out / 'trials.json'}."
        )
    if main:
        shutil.copyfile(_log_of(best.learning_rate, out), out / "log.jsonl")
    return best, trials


def _trial(
    materials: Materials, rate: float, work: Path, out: Path, say: Callable[[str], None], *, main: bool
) -> Trial:
    place = work / f"rate-{rate:g}"
    run = {**materials.identity, "learning rate": rate}
    stop = place / "stopped.json"
    if stop.is_file() and (found := read_json(stop))["run"] == run:
        return Trial(rate, None, found["why"], place)
    try:
        return Trial(rate, run_training(materials, rate, place, _log_of(rate, out), say), None, place)
    except TrainingError as problem:
        # A rate that is too high ends so; the others may be fine. Whatever else goes wrong ends the search, and so does
        # a base that predicts no numbers: no rate would mend it.
        if not isinstance(problem.__cause__, NotANumber) or problem.__cause__.update == 0:
            raise
        why = str(problem.__cause__)
    if main:
        write_json(stop, {"run": run, "why": why})
        for checkpoint in complete(place):  # nobody will go on from there
            shutil.rmtree(checkpoint.folder, ignore_errors=True)
    return Trial(rate, None, why, place)


def _log_of(rate: float, out: Path) -> Path:
    return out / "trials" / f"rate-{rate:g}.jsonl"


def _drop_losers(trials: list[Trial]) -> None:
    """Deletes the weights of trials that can't win any more: a search needs room for two, not for all."""
    best = min(trials, key=lambda trial: (trial.validation_loss, trial.learning_rate))
    for trial in trials:
        if trial is not best:
            shutil.rmtree(trial.place / "result", ignore_errors=True)
