"""``kinject train``: from a recipe to a result folder.

What it is for: `train` puts the parts in order: recipe, corpus and base, the run or the search, picture, card, record.
What it does not do: it prints nothing; it tells a callback, and raises.

The one idea: the result folder is finished when `kinject.json` stands in it, which is written last. Until then all that
is needed to go on is in its folder ``work``, which the end removes.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import accelerate
import yaml
from transformers import AutoConfig, PreTrainedTokenizerBase

from kinject_trainer.base import Base, check_fit, context_of, find_base, load_tokenizer, skeleton, tokenizer_fingerprint
from kinject_trainer.card import write_card
from kinject_trainer.checkpoints import claim, complete, earlier_record, refuse_another, refuse_foreign
from kinject_trainer.data import Demarcation, Replayed, Stream, build_store, cut, encoder, shuffled
from kinject_trainer.documents import Texts, open_corpus
from kinject_trainer.errors import TrainingError
from kinject_trainer.estimate import (
    Estimate,
    estimate,
    exercise_notes,
    fisher_passes,
    regulariser_notes,
    replay_notes,
    run_tokens,
)
from kinject_trainer.failures import told_of_a_full_disk
from kinject_trainer.forgetting import general_text_fingerprint, make_gauge
from kinject_trainer.plot import draw
from kinject_trainer.processes import on_cpu
from kinject_trainer.recipe import UNTESTED, Ewc, Recipe, load_recipe, to_run_again, untested
from kinject_trainer.robust import exercises_of
from kinject_trainer.selfstudy import opening, study_of
from kinject_trainer.train import Outcome
from kinject_trainer.trainer import Materials
from kinject_trainer.tune import Trial, search
from lm_eval_kinject.errors import CorpusError
from lm_eval_kinject.provenance import (
    atomic_write,
    environment,
    fingerprint,
    fingerprint_file,
    read_json,
    write_json,
)

__all__ = ["RECORD", "Result", "Say", "name_base", "train"]

Say = Callable[[str], None]
RECORD = "kinject.json"
_WORK = "work"
_OUR_FILES = (RECORD, "log.jsonl", "trials.json", "trials", "recipe.yaml", _WORK)


@dataclass(frozen=True)
class Result:
    """What `train` did.

    Attributes:
        folder: of the result; None after a dry run.
        estimate: of a dry run; None otherwise.
        record: what `kinject.json` holds; empty after a dry run.
        already: the folder held this very result before, and nothing was done.
    """

    folder: Path | None
    estimate: Estimate | None
    record: Mapping[str, Any]
    already: bool = False


def train(
    recipe: str | Path | Recipe,
    *,
    out: Path | None = None,
    resume: bool = False,
    dry_run: bool = False,
    overrides: Sequence[str] = (),
    say: Say = lambda text: None,
) -> Result:
    """Runs a recipe.

    Args:
        recipe: a YAML file, the name of a bundled recipe, or one that was checked before.
        out: folder of the result; default ``runs/NAME``.
        resume: go on with the unfinished run in ``out``; starts one where there is none.
        dry_run: work out counts, time and memory, and do nothing else.
        overrides: ``key=value`` over the values of a recipe's file.
        say: told, in one line each, what a user should know.

    Raises:
        KinjectError: everything that a user can mend; what was trained before stays, and the message says where.
    """
    checked = recipe if isinstance(recipe, Recipe) else load_recipe(recipe, overrides)
    texts = open_corpus(checked)
    if dry_run:
        return Result(None, estimate(checked, texts), {})
    folder = (out or Path("runs") / checked.name).expanduser()
    state = accelerate.PartialState(cpu=on_cpu())
    tell: Say = say if state.is_main_process else (lambda text: None)
    checked.accumulation(state.num_processes)  # refuses a batch that can't be shared, before anything is written
    earlier = _look_at(folder, resume)
    state.wait_for_everyone()  # nobody writes before everybody has looked
    base = find_base(checked)
    tokenizer = load_tokenizer(base)
    identity = _identity(checked, base, texts, tokenizer_fingerprint(tokenizer))
    if earlier is not None:
        if earlier["identity"] != identity:
            raise TrainingError(f"{folder} holds the finished result of another run: choose another folder with --out.")
        if state.is_main_process:
            shutil.rmtree(folder / _WORK, ignore_errors=True)  # left by a run that was killed right after its record
        return Result(folder, None, earlier, already=True)
    if resume:
        refuse_another(folder / _WORK, identity)
        state.wait_for_everyone()
    _check_before(checked, base, tokenizer, folder)
    with told_of_a_full_disk(folder):
        materials = _prepare(checked, texts, base, tokenizer, identity, folder / _WORK, state, tell)
        best, trials = search(materials, folder / _WORK, folder, tell, main=state.is_main_process)
        if state.is_main_process:
            record = _publish(materials, texts, best, trials, folder, tell)
    state.wait_for_everyone()
    return Result(folder, None, record if state.is_main_process else read_json(folder / RECORD))


def _look_at(folder: Path, resume: bool) -> Mapping[str, Any] | None:
    """What is in the result's folder already: the record of a finished run, or None.

    Raises:
        TrainingError: a run is there and ``resume`` wasn't asked for, or something that isn't ours.
    """
    work = folder / _WORK
    found = earlier_record(folder / RECORD, begun=_is_begun(work), resume=resume, words=("result", "run"))
    if found is None and not work.is_dir():
        refuse_foreign(folder, _OUR_FILES)
    return found


def _is_begun(work: Path) -> bool:
    """Whether there is something to go on with: a finished checkpoint, or a finished trial."""
    places = [f for f in work.iterdir() if f.is_dir()] if work.is_dir() else []
    return any(complete(place) or (place / "outcome.json").is_file() for place in places)


def _prepare(
    recipe: Recipe,
    texts: Texts,
    base: Base,
    tokenizer: PreTrainedTokenizerBase,
    identity: Mapping[str, Any],
    work: Path,
    state: Any,
    tell: Say,
) -> Materials:
    """Tokenizes all that a run needs; the first process writes, the others wait and read."""
    marks = Demarcation.of(tokenizer)
    for note in [*texts.notes, *([marks.note] if marks.note else [])]:
        tell(note)
    if recipe.method in UNTESTED:
        tell(untested(recipe))
    work.mkdir(parents=True, exist_ok=True)
    if state.is_main_process:
        claim(work, identity)
    encode = encoder(tokenizer)
    key = [identity["corpus"], identity["tokenizer"], recipe.wordings, recipe.chunks]
    study = study_of(recipe, texts, tokenizer, context_of(AutoConfig.from_pretrained(base.folder)))
    with state.main_process_first():
        exercises = exercises_of(recipe, texts, tokenizer)
        made = study or exercises
        store = made.store if made else build_store(work / "tokens", texts.training(), encode, key)
        replay = _replayed(recipe, texts, encode, identity, work)
    stream = Stream(store, recipe.order_seed, recipe.block_size, 0, replay)
    stream.total = run_tokens(recipe, texts, stream, lambda text: len(encode(text)))
    micro, _ = recipe.accumulation(state.num_processes)
    validation = cut((encode(text) for text in texts.validation()), recipe.block_size)
    if not validation and len(recipe.rates) > 1:
        raise CorpusError(
            "The validation set has no text of a chunk that is trained on, and a search over learning rates goes by "
            "the loss on them: mend the set's chunk ids, or give learning_rate one number."
        )
    materials = Materials(
        recipe=recipe,
        base=base,
        tokenizer=tokenizer,
        stream=stream,
        validation=validation,
        gauge=make_gauge(recipe, tokenizer, micro),
        identity=identity,
        fisher_rows=_fisher_rows(recipe, texts, encode),
        opening=() if recipe.compresses is None else opening(texts.training(0), tokenizer, recipe.compresses.tokens),
        study=study,
        exercises=exercises,
    )
    updates = materials.plan(state.num_processes).updates
    notes = [*replay_notes(stream), *exercise_notes(recipe, exercises)]
    for note in [*notes, *regulariser_notes(recipe, updates, fisher_passes(recipe, texts))]:
        tell(note)
    return materials


def _fisher_rows(recipe: Recipe, texts: Texts, encode: Callable[[str], list[int]]) -> list[list[int]]:
    """Token ids of the texts that EWC measures on, each cut to one block; a choice of the seed's."""
    if texts.fisher is None or not isinstance(recipe.regulariser, Ewc):
        return []
    wordings = texts.fisher.wordings
    chosen = shuffled(len(wordings), recipe.order_seed)[: recipe.regulariser.fisher_examples]
    return [encode(wordings[number].text)[: recipe.block_size] for number in chosen]


def _replayed(
    recipe: Recipe, texts: Texts, encode: Callable[[str], list[int]], identity: Mapping[str, Any], work: Path
) -> Replayed | None:
    """The replay corpus, tokenized."""
    if texts.older is None or recipe.replays is None:
        return None
    key = [identity["replay corpus"], identity["tokenizer"]]
    store = build_store(work / "replay", texts.older.wordings, encode, key)
    return Replayed(store, recipe.replays.ratio, recipe.replays.decay)


def _identity(recipe: Recipe, base: Base, texts: Texts, tokenizer: str) -> dict[str, Any]:
    """What a checkpoint's run is: equal for whoever may go on with it."""
    corpus = {k: texts.provenance.get(k) for k in ("fingerprint", "paraphrases", "validation")}
    made = {"base model": base.identity, "tokenizer": tokenizer, "corpus": corpus, **recipe.effective()}
    if texts.older is not None:
        made["replay corpus"] = texts.older.provenance["fingerprint"]
    if texts.fisher is not None:
        made["fisher corpus"] = texts.fisher.provenance["fingerprint"]
    if texts.asked is not None:
        made["questions asked"] = texts.asked.provenance["fingerprint"]
    text = general_text_fingerprint(recipe)
    return made if text is None else {**made, "general text": text}


def _check_before(recipe: Recipe, base: Base, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Finds what would stop the run before anything is written.

    Raises:
        ModelError: tokenizer, blocks or targets don't fit the model.
        TrainingError: checkpoints and result wouldn't fit on the disk; says how much is needed and how much there is.
    """
    model = skeleton(AutoConfig.from_pretrained(base.folder), recipe)
    check_fit(model, tokenizer, recipe)
    trained = 4 * sum(p.numel() for p in model.parameters() if p.requires_grad)
    # A checkpoint has weights and two moments, and is written before the oldest goes. The result is copied once.
    needed = trained * (3 * (recipe.checkpoints_kept + 1) + 2) - _written_before(folder / _WORK)
    there = next(f for f in (folder, *folder.absolute().parents) if f.is_dir())
    free = shutil.disk_usage(there).free
    if needed > free:
        raise TrainingError(
            f"The disk of {folder} has {free / 1e9:.1f} GB free and the run needs about {needed / 1e9:.1f} GB: free "
            f"space, choose another folder with --out, or lower checkpoints_kept."
        )


def _written_before(work: Path) -> int:
    """Bytes of checkpoints and results of this very run, which is gone on with: their room is needed once."""
    files = [f for pattern in ("*/checkpoint-*/*", "*/result/*") for f in work.glob(pattern)]
    return sum(f.stat().st_size for f in files if f.is_file())


# The result -----------------------------------------------------------------------------------------------------------


def _publish(
    materials: Materials, texts: Texts, best: Trial, trials: Sequence[Trial], folder: Path, tell: Say
) -> dict[str, Any]:
    """Puts weights, picture, card and record into the result's folder; the record last."""
    outcome = best.outcome
    if outcome is None:
        raise TrainingError("There is no finished training to publish.")
    recipe = materials.recipe
    for file in sorted(outcome.folder.iterdir()):
        shutil.copyfile(file, folder / file.name)
    name_base(folder, materials.base)
    drawn = draw(folder / "log.jsonl", folder / "loss.png", recipe.name)
    if not drawn:
        tell("no picture of the losses: matplotlib is not installed (pip install 'lm-eval-kinject[trainer]')")
    record = _record(materials, texts, outcome, trials, drawn)
    record["weights"] = fingerprint([[f.name, fingerprint_file(f)] for f in sorted(folder.glob("*.safetensors"))])
    with atomic_write(folder / "recipe.yaml", "w") as handle:
        yaml.safe_dump(to_run_again(recipe.public()), handle, sort_keys=False, allow_unicode=True)
    with atomic_write(folder / "README.md", "w") as handle:
        handle.write(write_card(record))
    write_json(folder / RECORD, record)
    shutil.rmtree(folder / _WORK, ignore_errors=True)
    return record


def name_base(folder: Path, base: Base) -> None:
    """Makes an adapter name its base as the recipe does (a path of this machine helps nobody), its modules in order."""
    config = folder / "adapter_config.json"
    if not config.is_file():
        return
    is_hub = "/" in base.public_name
    named = {"base_model_name_or_path": base.public_name, "revision": base.identity if is_hub else None}
    said = read_json(config)
    for part in ("target_modules", "exclude_modules", "modules_to_save"):
        if isinstance(said.get(part), list):  # sets in PEFT, written in an order that changes from run to run
            said[part] = sorted(said[part])
    write_json(config, {**said, **named})


def _record(
    materials: Materials, texts: Texts, outcome: Outcome, trials: Sequence[Trial], drawn: bool
) -> dict[str, Any]:
    stream, gauge = materials.stream, materials.gauge
    store = stream.store
    made = {
        "recipe": materials.recipe.public(),
        "recipe_fingerprint": materials.recipe.fingerprint(),
        "identity": dict(materials.identity),
        "base": {"name": materials.base.public_name, "identity": materials.base.identity},
        "tokenizer": materials.identity["tokenizer"],
        "corpus": texts.provenance,
        "paraphrases": materials.recipe.wordings,
        "data": {
            "documents": len(store),
            "chunks": int(store.chunks.max()) + 1,
            "epoch_tokens": stream.epoch_tokens,
            "tokens": stream.total,
            "blocks": len(stream),
            "tokens_of_the_last_block": stream.tail or stream.block_size,
            "validation_tokens": sum(map(len, materials.validation)),
        },
        "outcome": outcome.plain(),
        "trials": [trial.plain() for trial in trials],
        "general_text": None if gauge is None else gauge.text,
        "files": {"picture": "loss.png" if drawn else None, "log": "log.jsonl"},
        "environment": environment(),
    }
    if texts.older is not None and stream.replay is not None:
        made["replay"] = {
            "corpus": dict(texts.older.provenance),
            "documents_of_the_first_epoch": stream.replay.count(0, len(store)),
            "tokens": stream.replayed_tokens(),
            "epochs": stream.epochs_of(stream.total),
        }
    if materials.opening:
        made["cartridge"] = {"tokens": len(materials.opening), "started_as": "the corpus's first tokens"}
    if materials.study is not None:
        made["cartridge"]["lessons"] = len(materials.study.store)
        made["cartridge"]["answer_tokens"] = materials.study.answer_tokens
    if texts.asked is not None and materials.exercises is not None:
        made["questions"] = {**texts.asked.provenance, **materials.exercises.record()}
    if texts.fisher is not None:
        made["fisher"] = {"corpus": dict(texts.fisher.provenance), "examples": len(materials.fisher_rows)}
    return made
