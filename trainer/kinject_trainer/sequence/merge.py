"""Several months' adapters as one, by PEFT's ``add_weighted_adapter``, in a folder like that of any other run.

What it is for: `merge` writes that folder: the adapter, the tokenizer's files, a card and ``kinject.json``. What it
does not do: it invents no way of merging; what PEFT's do is said at `plan.Merge`.

The one idea: what the merged adapter was trained on is the months' corpora together, so its record names those
(`combine`), and the adapters that it was made from with their fingerprints. Of one adapter alone PEFT knows no other
merge than its own values, whatever the kind.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from peft import PeftModel
from transformers import AutoModelForCausalLM

from kinject_trainer.base import Base
from kinject_trainer.command import RECORD, name_base
from kinject_trainer.sequence.plan import Merge
from lm_eval_kinject.errors import ArgumentError
from lm_eval_kinject.hub.content import TOKENIZER, matches
from lm_eval_kinject.provenance import environment, fingerprint, fingerprint_file, publish_folder, read_json, write_json

__all__ = ["MergedFrom", "merge"]

_PEFTS = {"stacked": "cat", "weighted": "linear", "ties": "ties", "dare_ties": "dare_ties"}
_WEIGHTS = "adapter_model.safetensors"


@dataclass(frozen=True)
class MergedFrom:
    """What an adapter is merged from.

    Attributes:
        name: of the result.
        base: that all were trained on.
        months: their names.
        runs: the months' runs, in the same order.
        corpus: provenance of the months' corpora together.
        how: the kind of merge and its constants.
        seed: of what DARE drops.
    """

    name: str
    base: Base
    months: Sequence[str]
    runs: Sequence[Path]
    corpus: Mapping[str, Any]
    how: Merge
    seed: int

    def plain(self) -> dict[str, Any]:
        """What names the result, as JSON can hold it."""
        return {
            "kind": self.how.kind,
            "peft": _PEFTS[self.how.kind],
            "weight": self._weight,
            "density": self._density,
            "months": list(self.months),
            "weights": [read_json(run / RECORD)["weights"] for run in self.runs],
        }

    @property
    def _weight(self) -> float:
        share = 1 / len(self.runs) if self.how.kind == "weighted" else 1.0
        return share if self.how.weight is None else self.how.weight

    @property
    def _density(self) -> float | None:
        return (self.how.density or 0.5) if self.how.prunes else None

    def put_together(self) -> Any:
        """The base with the merged adapter on it, named ``merged``.

        Raises:
            ArgumentError: PEFT refuses to merge these.
        """
        names = [f"month_{number}" for number in range(len(self.runs))]
        model = AutoModelForCausalLM.from_pretrained(self.base.folder, dtype="auto")
        model = PeftModel.from_pretrained(model, str(self.runs[0]), adapter_name=names[0])
        for name, run in zip(names[1:], self.runs[1:], strict=True):
            model.load_adapter(str(run), adapter_name=name)
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
            try:
                model.add_weighted_adapter(
                    names,
                    [self._weight] * len(names),
                    "merged",
                    combination_type=_PEFTS[self.how.kind],
                    density=self._density,
                )
            except ValueError as problem:
                raise ArgumentError(
                    f"PEFT can't merge these adapters: {problem}; take merge: routed, or leave out what the recipe has "
                    f"under peft",
                    f"the sequence {self.name}",
                ) from problem
        return model


def merge(made_of: MergedFrom, folder: Path) -> None:
    """Writes the merged adapter's folder; one that is there and was made from the same is left as it is.

    Args:
        made_of: what.
        folder: where to; appears whole.

    Raises:
        ArgumentError: see `MergedFrom.put_together`.
    """
    said = made_of.plain()
    if (folder / RECORD).is_file() and read_json(folder / RECORD)["merged"] == said:
        return
    model = made_of.put_together()
    # Where PEFT looks whether the vocabulary is as it was; what a result names is put there by `name_base`.
    model.peft_config["merged"].base_model_name_or_path = str(made_of.base.folder)
    with publish_folder(folder) as building:
        model.save_pretrained(str(building), selected_adapters=["merged"])
        for file in sorted((building / "merged").iterdir()):
            shutil.move(file, building / file.name)
        (building / "merged").rmdir()
        last = made_of.runs[-1]
        for file in sorted(last.iterdir()):
            if matches(file.name, TOKENIZER):
                shutil.copyfile(file, building / file.name)
        name_base(building, made_of.base)
        record = _record(made_of, read_json(last / RECORD), building, said)
        (building / "README.md").write_text(_card(record), encoding="utf-8")
        write_json(building / RECORD, record)


def _record(made_of: MergedFrom, last: Mapping[str, Any], folder: Path, said: Mapping[str, Any]) -> dict[str, Any]:
    settings = read_json(folder / "adapter_config.json")
    recipe = {
        **last["recipe"],
        "name": made_of.name,
        "corpus": made_of.corpus["name"],
        "corpus_revision": None,
        "paraphrases_file": None,
        "validation_file": None,
        "rank": settings["r"],
        "alpha": settings["lora_alpha"],
    }
    return {
        "recipe": recipe,
        "recipe_fingerprint": fingerprint([last["recipe_fingerprint"], dict(said)]),
        "base": last["base"],
        "tokenizer": last["tokenizer"],
        "corpus": dict(made_of.corpus),
        "paraphrases": last["paraphrases"],
        "outcome": {},
        "trials": [],
        "merged": dict(said),
        "weights": fingerprint([[_WEIGHTS, fingerprint_file(folder / _WEIGHTS)]]),
        "environment": environment(),
    }


def _card(record: Mapping[str, Any]) -> str:
    said, base, recipe = record["merged"], record["base"]["name"], record["recipe"]
    matter: dict[str, Any] = {
        "library_name": "peft",
        "pipeline_tag": "text-generation",
        "tags": ["lm-eval-kinject", "knowledge-injection", recipe["variant"], recipe["method"]],
    }
    if "/" in base:
        matter["base_model"] = base
    density = "" if said["density"] is None else f", density {said['density']:g}"
    pretrained = "" if base == "reader" else f"pretrained={base if '/' in base else 'BASE'},"
    return (
        f"---\n{yaml.safe_dump(matter, sort_keys=True, allow_unicode=True)}---\n\n# {recipe['name']}\n\n"
        f"LoRA adapters on the model `{base}`, one a month and each trained by itself, put together by PEFT's "
        f"`{said['peft']}` with the weight {said['weight']:g} each{density}: {', '.join(said['months'])}. Nothing was "
        f"trained after that. The result has rank {recipe['rank']}.\n\n"
        f"## Use\n\n```\nlm_eval --model rag-hf --model_args {pretrained}peft=RUN,k=0 --tasks current_events_cloze\n"
        f"```\n\nRUN is this folder. `kinject.json` has the fingerprints of the adapters that it was made from.\n"
    )
