"""What both trainings of an encoder share: transformers' arguments, and a journal of losses.

What it does not do: it trains nothing. The one idea: the libraries' trainers save nothing; a part that was killed is
made again from its start, and its result appears whole.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import PrinterCallback, TrainerCallback, TrainingArguments

from kinject_trainer.errors import TrainingError
from kinject_trainer.processes import on_cpu
from kinject_trainer.retriever.plan import RetrieverRecipe

__all__ = ["Journal", "common_arguments"]


def common_arguments(
    recipe: RetrieverRecipe,
    folder: Path,
    batch: int,
    rate: float,
    epochs: float,
    kind: Callable[..., Any] = TrainingArguments,
    **more: Any,
) -> Any:
    """Arguments of transformers' or sentence-transformers' trainer."""
    return kind(
        output_dir=str(folder),
        per_device_train_batch_size=batch,
        learning_rate=rate,
        num_train_epochs=epochs,
        lr_scheduler_type="linear",
        warmup_steps=recipe.warm_up,  # below 1 it is a share
        max_grad_norm=recipe.max_grad_norm,
        weight_decay=recipe.weight_decay,
        bf16=recipe.precision == "bf16",
        use_cpu=on_cpu(),
        seed=recipe.seed,
        data_seed=recipe.seed,
        logging_steps=1,
        logging_nan_inf_filter=False,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        **more,
    )


class _Part(TrainerCallback):
    """Writes down the losses of one part, and stops where one is not a number."""

    def __init__(self, journal: Journal, name: str) -> None:
        self.journal, self.name = journal, name

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """See transformers."""
        if not logs or "loss" not in logs:
            return
        loss = float(logs["loss"])
        if not math.isfinite(loss):
            raise TrainingError(
                f"The training stopped: the loss of {self.name} is not a number at update {state.global_step}. Lower "
                f"its learning_rate (now {args.learning_rate:g}), or set precision: fp32."
            )
        self.journal.add(self.name, state.global_step, loss, float(logs.get("learning_rate", 0.0)))
        if state.global_step % max(1, state.max_steps // 10) == 0:
            self.journal.say(f"{self.name}: update {state.global_step:,} of {state.max_steps:,}, loss {loss:.4f}")


@dataclass
class Journal:
    """Losses, update by update.

    Attributes:
        say: told every tenth of a part.
        lines: ``part``, ``update`` (from 1), ``loss`` and ``learning_rate``.
    """

    say: Callable[[str], None] = lambda text: None
    lines: list[dict[str, Any]] = field(default_factory=list)

    def part(self, name: str) -> TrainerCallback:
        """The callback that writes into it."""
        return _Part(self, name)

    def add(self, part: str, update: int, loss: float, rate: float) -> None:
        """One update."""
        self.lines.append({"part": part, "update": update, "loss": loss, "learning_rate": rate})

    def figures(self) -> dict[str, dict[str, Any]]:
        """Of each part how many updates there were, and the mean loss of its first and last tenth."""
        found: dict[str, dict[str, Any]] = {}
        for part in dict.fromkeys(line["part"] for line in self.lines):
            losses = [line["loss"] for line in self.lines if line["part"] == part]
            tenth = max(1, len(losses) // 10)
            found[part] = {
                "updates": len(losses),
                "loss_first": sum(losses[:tenth]) / tenth,
                "loss_last": sum(losses[-tenth:]) / tenth,
            }
        return found

    def text(self) -> str:
        """As JSON Lines."""
        return "".join(json.dumps(line) + "\n" for line in self.lines)


def silence(trainer: Any) -> Any:
    """Takes the libraries' own printing of losses away."""
    trainer.remove_callback(PrinterCallback)
    return trainer
