"""`kinject train` of a retriever: masked words, pairs, recall before and after, and a folder that `retriever=` takes.

What it is for: `train_retriever` puts the parts in order. What it does not do: it trains nothing itself.

The one idea: each part leaves a folder or file in ``work`` that appears whole, and a part whose result is there isn't
made again. A run that was killed goes on from the part it was in, from that part's start. The result is finished when
`kinject.json` stands in it, which is written last.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from kinject_trainer.checkpoints import claim, earlier_record, refuse_another, refuse_foreign
from kinject_trainer.data import shuffled
from kinject_trainer.errors import TrainingError
from kinject_trainer.failures import told_of_a_full_disk
from kinject_trainer.retriever.card import summary, write_card
from kinject_trainer.retriever.material import Material, Pair, make_pairs, open_material, open_measured
from kinject_trainer.retriever.plan import RetrieverRecipe, load_retriever
from lm_eval_kinject.provenance import (
    atomic_write,
    environment,
    fingerprint,
    fingerprint_file,
    publish_folder,
    read_json,
    write_json,
)

__all__ = ["RetrieverResult", "train_retriever"]

Say = Callable[[str], None]
RECORD = "kinject.json"
_WORK, _CLAIM = "work", "work/run.json"


@dataclass(frozen=True)
class RetrieverResult:
    """What `train_retriever` did.

    Attributes:
        folder: of the result; None after a dry run.
        lines: for people: of a dry run what would be trained, else what came out.
        record: what `kinject.json` holds; empty after a dry run.
    """

    folder: Path | None
    lines: Sequence[str]
    record: Mapping[str, Any] = field(default_factory=dict)


def train_retriever(
    path: str | os.PathLike[str],
    *,
    out: Path | None = None,
    resume: bool = False,
    dry_run: bool = False,
    overrides: Sequence[str] = (),
    say: Say = lambda text: None,
) -> RetrieverResult:
    """Runs a retriever's recipe; arguments as of `command.train`.

    Raises:
        KinjectError: everything that a user can mend; what was done before stays.
    """
    recipe = load_retriever(path, overrides)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise TrainingError("A retriever is trained by one process: start it with `kinject train`, without a launcher.")
    material = open_material(recipe)
    measured = open_measured(recipe, material)
    if dry_run:
        return RetrieverResult(None, _forecast(recipe, material, measured))
    pairs = [] if recipe.contrastive is None else make_pairs(material, recipe.contrastive, recipe.seed)
    folder = (out or Path("runs") / recipe.name).expanduser()
    earlier = _look_at(folder, resume)
    from lm_eval_kinject.retrieval import trainable  # here, as it takes seconds to import

    model, weights = trainable(recipe.retriever, recipe.revision)
    identity = _identity(recipe, weights, material, measured)
    if earlier is not None:
        if earlier["identity"] != identity:
            raise TrainingError(f"{folder} holds the finished result of another run: choose another folder with --out.")
        shutil.rmtree(folder / _WORK, ignore_errors=True)  # left by a kill right after the record
        return RetrieverResult(folder, summary(earlier), earlier)
    if resume:
        refuse_another(folder / _WORK, identity)
    (folder / _WORK).mkdir(parents=True, exist_ok=True)
    claim(folder / _WORK, identity)
    with told_of_a_full_disk(folder):
        record = _Run(recipe, material, pairs, measured, folder, identity, say).all(model, weights)
    return RetrieverResult(folder, summary(record), record)


def _identity(
    recipe: RetrieverRecipe, weights: Mapping[str, str], material: Material, measured: Material | None
) -> dict[str, Any]:
    """What the run is: equal for whoever may go on with it. Model, corpus and questions by their content."""
    contents: dict[str, Any] = {
        "retriever": {k: v for k, v in weights.items() if k != "folder"},
        "recipe": recipe.effective(),
    }
    for name, what in (("trained on", material), ("measured on", measured)):
        if what is not None:
            asked = what.provenance["questions"]
            contents[name] = [what.corpus.fingerprint, None if asked is None else asked["fingerprint"]]
    return contents


def _look_at(folder: Path, resume: bool) -> Mapping[str, Any] | None:
    """The record of a finished run in the folder, or None.

    Raises:
        TrainingError: a run is there and ``resume`` wasn't asked for, or something that isn't ours.
    """
    begun = (folder / _CLAIM).is_file()
    found = earlier_record(folder / RECORD, begun=begun, resume=resume, words=("result", "run"))
    if found is None and not begun:
        refuse_foreign(folder, (_WORK,))
    return found


def _forecast(recipe: RetrieverRecipe, material: Material, measured: Material | None) -> list[str]:
    """What would be trained; no model is loaded, and no time told."""
    lines = [f"corpus      {material.corpus.name}: {len(material.corpus):,} chunks"]
    if recipe.mlm is not None:
        count = min(recipe.mlm.chunks or len(material.corpus), len(material.corpus))
        updates = _updates(count, recipe.mlm.batch, recipe.mlm.epochs)
        lines.append(
            f"masked      {count:,} chunks, {updates:,} updates (before them, of a new head alone, "
            f"{_updates(count, recipe.mlm.batch, recipe.mlm.head_epochs):,})"
        )
    if recipe.contrastive is not None:
        count = min(recipe.contrastive.pairs or len(material.questions), len(material.questions))
        lines.append(
            f"pairs       {count:,} with {recipe.contrastive.hard_negatives} hard negatives each, "
            f"{_updates(count, recipe.contrastive.batch, recipe.contrastive.epochs):,} updates"
        )
    if measured is None:
        return [*lines, "recall      not measured"]
    return [*lines, f"recall      of {len(measured.questions):,} questions, {len(measured.corpus):,} chunks, twice"]


def _updates(rows: int, batch: int, epochs: float) -> int:
    return round(-(-rows // batch) * epochs)


class _Run:
    """One run from its start, or from the part it was in, to its record."""

    def __init__(
        self,
        recipe: RetrieverRecipe,
        material: Material,
        pairs: Sequence[Pair],
        measured: Material | None,
        folder: Path,
        identity: Mapping[str, Any],
        say: Say,
    ) -> None:
        self.recipe, self.material, self.pairs, self.measured = recipe, material, pairs, measured
        self.folder, self.work, self.identity, self.say = folder, folder / _WORK, identity, say
        self.count: dict[str, Any] = {"chunks": 0, "pairs": len(pairs), "scale": None}

    def all(self, model: Any, weights: Mapping[str, str]) -> dict[str, Any]:
        """Every part in its order; returns the record."""
        before = self._ranks("before", self.recipe.retriever, self.recipe.revision, None)
        model = self._masked(model)
        model = self._contrasted(model)
        newest = self._newest()
        after = self._ranks("after", str(newest), None, str(self.work / "indexes"))
        return self._publish(newest, weights, before, after)

    def _newest(self) -> Path:
        return self.work / ("pairs" if self.recipe.contrastive is not None else "masked")

    def _masked(self, model: Any) -> Any:
        how = self.recipe.mlm
        if how is None:
            return model
        rows = sorted(shuffled(len(self.material.corpus), self.recipe.seed)[: how.chunks])
        self.count["chunks"] = len(rows)
        if (self.work / "masked").is_dir():
            return _load(self.work / "masked")
        from kinject_trainer.retriever.masked import train_masked

        self.say(f"training by masked words on {len(rows):,} chunks")
        texts = [self.material.corpus.chunks[row].text for row in rows]
        return self._made("masked", model, lambda journal: train_masked(model, texts, self.recipe, journal))

    def _contrasted(self, model: Any) -> Any:
        how = self.recipe.contrastive
        if how is None:
            return model
        from kinject_trainer.retriever.contrast import scale_of, train_pairs

        self.count["scale"] = scale_of(model, how.scale)
        if (self.work / "pairs").is_dir():
            return model
        self.say(f"training on {len(self.pairs):,} pairs")
        return self._made("pairs", model, lambda journal: train_pairs(model, self.pairs, self.recipe, journal))

    def _made(self, part: str, model: Any, train: Callable[[Any], None]) -> Any:
        """Trains a part and keeps what came of it; the folder appears when it is whole."""
        from kinject_trainer.retriever.arguments import Journal
        from kinject_trainer.train import quietly

        journal = Journal(self.say)
        train(journal)
        with publish_folder(self.work / part) as building, quietly():
            model.save_pretrained(str(building), create_model_card=False)
            write_json(building / "figures.json", journal.figures())
            (building / "log.jsonl").write_text(journal.text(), encoding="utf-8")
        return model

    def _ranks(self, when: str, retriever: str, revision: str | None, cache: str | None) -> list[int] | None:
        if self.measured is None:
            return None
        kept = self.work / f"{when}.json"
        if not kept.is_file():
            from kinject_trainer.retriever.recall import ranks

            self.say(f"asking {len(self.measured.questions):,} questions {when} the training")
            write_json(kept, ranks(retriever, self.measured, revision=revision, cache=cache))
        return list(read_json(kept))

    def _publish(
        self, newest: Path, weights: Mapping[str, str], before: list[int] | None, after: list[int] | None
    ) -> dict[str, Any]:
        """Puts model, card and record into the result's folder; the record last."""
        parts = [self.work / part for part in ("masked", "pairs") if (self.work / part).is_dir()]
        left_out = shutil.ignore_patterns("figures.json", "log.jsonl")
        shutil.copytree(newest, self.folder, ignore=left_out, dirs_exist_ok=True)
        record = {
            "recipe": self.recipe.public(),
            "recipe_fingerprint": self.recipe.fingerprint(),
            "identity": dict(self.identity),
            "base": {"name": self.recipe.public()["retriever"], "identity": dict(weights)},
            "corpus": self.material.provenance["corpus"],
            "questions": self.material.provenance["questions"] if self.recipe.contrastive else None,
            "data": self.count,
            "training": {name: said for part in parts for name, said in read_json(part / "figures.json").items()},
            "measured": None if self.measured is None else dict(self.measured.provenance),
            "recall": self._compared(before, after),
            "environment": environment(),
            "weights": fingerprint([[f.name, fingerprint_file(f)] for f in sorted(newest.glob("*.safetensors"))]),
        }
        log = "".join((part / "log.jsonl").read_text(encoding="utf-8") for part in parts)
        for name, text in (
            ("log.jsonl", log),
            ("recipe.yaml", yaml.safe_dump(self.recipe.again(), sort_keys=False, allow_unicode=True)),
            ("README.md", write_card(record, self.recipe.again())),
        ):
            with atomic_write(self.folder / name, "w") as handle:
                handle.write(text)
        write_json(self.folder / RECORD, record)
        shutil.rmtree(self.work, ignore_errors=True)
        return record

    def _compared(self, before: list[int] | None, after: list[int] | None) -> dict[str, Any] | None:
        if self.measured is None or before is None or after is None:
            return None
        from kinject_trainer.retriever.recall import compare

        return compare(before, after, [question.gold for question in self.measured.questions])


def _load(folder: Path) -> Any:
    from lm_eval_kinject.retrieval import trainable

    return trainable(str(folder))[0]
