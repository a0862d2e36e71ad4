"""The dry run: what a recipe would do, before it does it.

What it is for: counts of tokens, blocks, updates and trainable parameters, and rough figures for time and memory. What
it does not do: it trains nothing and downloads no weights.

The one idea: what can be counted is counted; what can't (a tokenizer that isn't on this disk, another machine's speed)
is estimated, and every estimate is labelled as one, with what it rests on.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from huggingface_hub.errors import RevisionNotFoundError
from transformers import AutoConfig, PretrainedConfig

from kinject_trainer.base import READER, Base, context_of, find_base, is_hub_id, known_config, load_tokenizer, skeleton
from kinject_trainer.data import Demarcation, Plan, Replayed, Store, Stream, encoder
from kinject_trainer.documents import Texts
from kinject_trainer.keep import target_share
from kinject_trainer.recipe import ADAPTERS, UNTESTED, Ewc, Recadam, Recipe, untested
from kinject_trainer.robust import Exercises, exercises_of
from kinject_trainer.selfstudy import Study, opening, study_of
from lm_eval_kinject.errors import ModelError
from lm_eval_kinject.hub.fetch import fetch_snapshot
from lm_eval_kinject.log import duration
from lm_eval_kinject.retrieval.make import kind_of

__all__ = [
    "Estimate",
    "Reading",
    "estimate",
    "exercise_notes",
    "fisher_passes",
    "reading",
    "regulariser_notes",
    "replay_notes",
    "run_tokens",
    "speed",
]

_CHARACTERS_A_TOKEN = 3.6  # English news under a vocabulary of 32,000; names cost more than prose
_WITHOUT_WEIGHTS = ("*.json", "*.txt", "tokenizer*", "*.model")
_GPU_FLOPS = 312e12  # an A100's bf16 peak
_UTILISATION = 0.4
_LARGE = 1_000_000_000  # parameters; nobody trains more of them on a processor
_PRODUCT = {"cpu": 512, "cuda": 4096}  # a GPU isn't filled by less


@dataclass(frozen=True)
class Estimate:
    """A dry run's figures. ``tokens_estimated`` says that they rest on counts of characters, not on the tokenizer.

    ``documents`` and ``epoch_tokens`` are the corpus's own; ``tokens`` has what is replayed in it. ``replay`` names
    what is replayed, ``replayed_documents`` are those of the first epoch, ``replayed_tokens`` those of the whole run.
    """

    documents: int
    epoch_tokens: int
    tokens: int
    tokens_estimated: bool
    blocks: int
    updates: int
    trials: int
    micro: int
    accumulation: int
    parameters: int
    trainable: int
    seconds: float
    seconds_from: str
    gigabytes: float
    gigabytes_from: str
    notes: tuple[str, ...]
    replay: str = ""
    replayed_documents: int = 0
    replayed_tokens: int = 0

    def lines(self) -> list[str]:
        """For people."""
        about = "about " if self.tokens_estimated else ""
        label = (
            f" (estimated: the tokenizer is not on this disk; 1 token for {_CHARACTERS_A_TOKEN} characters)"
            if self.tokens_estimated
            else ""
        )
        runs = f", in each of {self.trials} trials" if self.trials > 1 else ""
        share = 100 * self.trainable / max(self.parameters, 1)
        return [
            f"documents    {self.documents:,} an epoch",
            f"tokens       {about}{self.epoch_tokens:,} an epoch, {about}{self.tokens:,} in all{label}",
            *([f"replay       {self._replay(about)}"] if self.replay else []),
            f"blocks       {about}{self.blocks:,}",
            f"updates      {about}{self.updates:,}{runs}",
            f"batch        {self.micro} blocks a forward pass, {self.accumulation} passes an update and process",
            f"parameters   {self.trainable:,} trainable of {self.parameters:,} ({share:.2f}%)",
            f"time         roughly {duration(self.seconds * self.trials)} (estimated: {self.seconds_from})",
            f"memory       roughly {self.gigabytes:.1f} GB a process (estimated: {self.gigabytes_from})",
            *(f"note         {note}" for note in self.notes),
        ]

    def _replay(self, about: str) -> str:
        of_all = f"{about}{self.replayed_tokens:,} of the tokens in all"
        return f"{self.replayed_documents:,} documents of {self.replay} in the first epoch, {of_all}"


def estimate(recipe: Recipe, texts: Texts) -> Estimate:
    """Works out a recipe without running it.

    Raises:
        KinjectError: what would also stop the run: no such model, no such targets, an empty corpus.
    """
    notes = list(texts.notes)
    base, config = _config(recipe, notes)
    count, estimated, marks = _counter(base)
    notes += [marks] if marks else []
    study = _study(recipe, texts, base, config, notes)
    notes += _exercises(recipe, texts, base)
    stream = _counted(recipe, texts, count)
    tokens, documents = stream.total, len(stream.store)
    notes += replay_notes(stream)
    micro, accumulation = recipe.accumulation(recipe.processes)
    plan = Plan.of(tokens, recipe.block_size, recipe.global_batch, micro, accumulation, recipe.processes)
    model = skeleton(config, recipe)
    parameters = sum(p.numel() for p in model.parameters())
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    passes = fisher_passes(recipe, texts)
    notes += regulariser_notes(recipe, plan.updates, passes)
    # The teacher passes forward alone, which is half of what the frozen weights cost the student.
    heard = 0 if study is None else round(recipe.epochs * study.taught_tokens / 2)
    seconds, reason = _seconds(recipe, parameters, trainable, tokens + passes * recipe.block_size + heard)
    memory, sharing = _bytes(recipe, config, parameters, trainable, micro)
    if recipe.method in UNTESTED:
        notes.append(untested(recipe))
    return Estimate(
        documents=documents,
        epoch_tokens=stream.epoch_tokens,
        tokens=tokens,
        tokens_estimated=estimated,
        blocks=-(-tokens // recipe.block_size),
        updates=plan.updates,
        trials=len(recipe.rates),
        micro=micro,
        accumulation=accumulation,
        parameters=parameters,
        trainable=trainable,
        seconds=seconds,
        seconds_from=reason,
        gigabytes=memory / 1e9,
        gigabytes_from=sharing,
        notes=tuple(notes),
        replay="" if texts.older is None else str(texts.older.provenance["name"]),
        replayed_documents=0 if stream.replay is None else stream.replay.count(0, documents),
        replayed_tokens=stream.replayed_tokens(),
    )


def _counted(recipe: Recipe, texts: Texts, count: Callable[[str], int]) -> Stream:
    """The run's stream, of which nothing but the documents' lengths is known."""
    if texts.asked is None:
        lengths = [count(wording.text) for wording in texts.training(0 if recipe.distils else None)]
    else:
        lengths = [recipe.block_size] * len(texts.asked.questions)
    if recipe.compresses is not None and recipe.distils:
        lengths = [recipe.block_size] * (len(lengths) * recipe.compresses.lessons)
    store = Store.of_lengths(lengths)
    replay = None
    if texts.older is not None and recipe.replays is not None:
        lengths = [count(wording.text) for wording in texts.older.wordings]
        replay = Replayed(Store.of_lengths(lengths), recipe.replays.ratio, recipe.replays.decay)
    stream = Stream(store, recipe.order_seed, recipe.block_size, 0, replay)
    stream.total = run_tokens(recipe, texts, stream, count)
    return stream


def run_tokens(recipe: Recipe, texts: Texts, stream: Stream, count: Callable[[str], int]) -> int:
    """Tokens of the whole run: epochs of what is trained on, or of as much text as more paraphrases would give.

    Args:
        recipe: says which.
        texts: of the run.
        stream: of the run; its ``total`` is not looked at.
        count: tokens of a text.
    """
    tokens = stream.tokens_of(recipe.epochs)
    if recipe.equal_updates_to_paraphrases is not None:
        epoch_tokens = sum(count(w.text) for w in texts.training(recipe.equal_updates_to_paraphrases))
        tokens = round(recipe.epochs * epoch_tokens)
    if recipe.by_rows:  # a block is a lesson or an exercise, whole
        tokens = max(1, round(tokens / recipe.block_size)) * recipe.block_size
    return max(2, tokens)  # less has nothing to predict


def _study(recipe: Recipe, texts: Texts, base: Base | None, config: PretrainedConfig, notes: list[str]) -> Study | None:
    """The lessons of a cartridge, and whether the corpus is long enough to start one; not known without a tokenizer."""
    made = recipe.compresses
    if made is None:
        return None
    if base is None:
        notes.append("cartridge: without the tokenizer its start and its lessons aren't looked at")
        return None
    tokenizer = load_tokenizer(base)
    opening(texts.training(0), tokenizer, made.tokens)
    study = study_of(recipe, texts, tokenizer, context_of(config))
    if study is not None:
        notes.append(
            f"cartridge: {len(study.store):,} lessons an epoch, each padded to a block, with {study.answer_tokens:,} "
            f"tokens that are learned from; the teacher reads {study.taught_tokens:,} an epoch"
        )
    return study


def _exercises(recipe: Recipe, texts: Texts, base: Base | None) -> list[str]:
    """What is to be said of the questions; retrieved for where that takes no model."""
    if recipe.questions is None:
        return []
    if base is None or kind_of(recipe.questions.retriever) not in ("bm25", "control"):
        return ["questions: not retrieved for in a dry run, which asks no model and needs the tokenizer"]
    return exercise_notes(recipe, exercises_of(recipe, texts, load_tokenizer(base)))


def exercise_notes(recipe: Recipe, made: Exercises | None) -> list[str]:
    """What a user should know of the questions that are trained on."""
    if made is None or recipe.questions is None:
        return []
    said, count = made.record(), len(made.store)
    learned = f"{said['answer_tokens']:,} tokens that are learned from; no validation loss is measured"
    notes = [f"questions: {count:,} an epoch, each padded to a block, with {learned}"]
    if said["source_known"]:
        notes.append(f"questions: {said['source_in_prompt']:,} of {said['source_known']:,} have their source in front")
    wanted = count * recipe.questions.k
    if kind_of(recipe.questions.retriever) != "control" and said["passages"] < wanted:
        notes.append(
            f"questions: blocks have room for {said['passages']:,} of {wanted:,} chunks; raise block_size for more"
        )
    return notes


def replay_notes(stream: Stream) -> list[str]:
    """What a user should know of a replay that is not what it seems: nothing fresh is left, or nothing is replayed."""
    if stream.replay is None:
        return []
    wanted, there = stream.replay.count(0, len(stream.store)), len(stream.replay.store)
    if not wanted:
        return ["replay: its ratio is below one document of the first epoch, so nothing is replayed"]
    if wanted > there:
        return [f"replay: the first epoch takes {wanted:,} documents of {there:,}, so some come more than once in it"]
    return []


def fisher_passes(recipe: Recipe, texts: Texts) -> int:
    """Texts that the Fisher information is measured on, with one backward pass each; 0 where it isn't."""
    if texts.fisher is None or not isinstance(recipe.regulariser, Ewc):
        return 0
    return min(recipe.regulariser.fisher_examples, len(texts.fisher.wordings))


def regulariser_notes(recipe: Recipe, updates: int, passes: int) -> list[str]:
    """What a user should know of a regulariser in a run of so many updates."""
    held = recipe.regulariser
    if isinstance(held, Ewc):
        return [f"regulariser {held.kind}: {passes:,} texts pass back one by one before each start of the run"]
    if isinstance(held, Recadam):
        share = target_share(updates, held.k, held.t0)
        return [f"regulariser recadam: the target's share λ(t) is {share:.3g} at the last update, {updates:,}"]
    return []


def _config(recipe: Recipe, notes: list[str]) -> tuple[Base | None, PretrainedConfig]:
    """The base if it is on this disk, and the model's shape."""
    known = known_config(recipe.model)
    try:
        base = _shape_at_hub(recipe) if is_hub_id(recipe.model) else find_base(recipe)
    except ModelError as problem:
        if known is None or isinstance(problem.__cause__, RevisionNotFoundError):
            raise
        notes.append(f"{recipe.model} is not on this disk: its shape is the one this trainer knows it by")
        return None, known
    return base, AutoConfig.from_pretrained(base.folder)


def _shape_at_hub(recipe: Recipe) -> Base:
    """A Hub model's configuration and tokenizer; its weights stay where they are."""
    found = fetch_snapshot(
        recipe.model, kind="model", revision=recipe.model_revision, patterns=_WITHOUT_WEIGHTS, error=ModelError,
        offline_advice="Without a network give model: reader or a folder.",
    )  # fmt: skip
    return Base(recipe.model, found.path, found.commit)


def _counter(base: Base | None) -> tuple[Callable[[str], int], bool, str]:
    """Text → tokens with its marks, whether that is an estimate, and what is to be said of the marks."""
    if base is None:
        return (lambda text: round(len(text) / _CHARACTERS_A_TOKEN) + 2), True, ""
    tokenizer = load_tokenizer(base)
    encode = encoder(tokenizer)
    return (lambda text: len(encode(text))), False, Demarcation.of(tokenizer).note


def _seconds(recipe: Recipe, parameters: int, trainable: int, tokens: int) -> tuple[float, str]:
    """Two multiply-adds a parameter and token forward, as many for the inputs' gradients, and for trained weights'."""
    passes = 4 + 2 * trainable / max(parameters, 1) + (2 if recipe.gradient_checkpointing else 0)
    large = parameters > _LARGE and recipe.model != READER
    flops, reason = speed(recipe.precision == "bf16", large, recipe.processes)
    return passes * parameters * tokens / flops, reason


def speed(half: bool, large: bool, processes: int = 1) -> tuple[float, str]:
    """Floating-point operations a second that can be hoped for, and what that rests on.

    Args:
        half: in bfloat16.
        large: a model that nobody runs on a processor; without a GPU here, the figure is an A100's.
        processes: that work together.
    """
    precision, dtype = ("bf16", torch.bfloat16) if half else ("fp32", torch.float32)
    if torch.cuda.is_available():
        flops = processes * _measured_flops("cuda", dtype)
        gpus = f"{processes} GPU{'s' if processes > 1 else ''} like {torch.cuda.get_device_name()}"
        return flops * _UTILISATION, f"{gpus} at {_UTILISATION:.0%} of its matrix products in {precision}"
    if large:
        return processes * _GPU_FLOPS * _UTILISATION, f"{processes} A100 in bf16 at {_UTILISATION:.0%} of their peak"
    # Processes without accelerators share the processor, and are together no faster than one.
    shared = f", shared by {processes} processes" if processes > 1 else ""
    return (
        _measured_flops("cpu", dtype) * _UTILISATION,
        f"this machine's matrix products at {_UTILISATION:.0%}{shared}",
    )


@dataclass(frozen=True)
class Reading:
    """What it takes to read with a model.

    Attributes:
        parameters: how many it has; 0 where its shape isn't known.
        count: tokens of a text.
        estimated: whether these are estimated from characters.
        seconds_a_token: forward, roughly.
        seconds_from: what that rests on.
    """

    parameters: int
    count: Callable[[str], int]
    estimated: bool
    seconds_a_token: float
    seconds_from: str


def reading(model: str, revision: str | None = None) -> Reading:
    """The cost of reading with a model, without loading its weights.

    Raises:
        ModelError: it is unknown.
    """
    recipe = Recipe(model=model, model_revision=revision, corpus="none", variant="ft-reg", method="full")
    base, config = _config(recipe, [])
    count, estimated, _ = _counter(base)
    parameters = sum(p.numel() for p in skeleton(config, recipe).parameters())
    large = parameters > _LARGE and model != READER
    flops, reason = speed(True, large)
    return Reading(parameters, count, estimated, 2 * parameters / flops, reason)


def _measured_flops(device: str, dtype: torch.dtype, seconds: float = 0.3) -> float:
    """Floating-point operations a second of a matrix product on one device here, at its quickest.

    The mean of several would say how busy the machine is at this moment, and two threads that wait for one another on a
    busy one are ten times slower.
    """
    size = _PRODUCT[device]
    a = torch.randn(size, size, device=device, dtype=dtype)
    float((a @ a).sum())  # the first one chooses a kernel
    quickest, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        began = time.perf_counter()
        product = a @ a
        if device == "cuda":
            torch.cuda.synchronize()  # or the loop would only queue them
        quickest = min(quickest, time.perf_counter() - began)
    del product
    return 2 * size**3 / quickest


def _bytes(recipe: Recipe, config: Any, parameters: int, trainable: int, micro: int) -> tuple[float, str]:
    """Weights, gradients and Adam's two moments, activations and logits; and what is assumed of how they are shared."""
    frozen_width = {"qlora": 0.6}.get(recipe.method, 2 if recipe.precision == "bf16" else 4)
    # A regulariser holds the start, and EWC the importance of each number, too.
    held = 0 if recipe.regulariser is None else 8 if isinstance(recipe.regulariser, Ewc) else 4
    weights = trainable * (16 + held) + (parameters - trainable) * (frozen_width if recipe.method in ADAPTERS else 4)
    width = 2 if recipe.precision == "bf16" else 4
    tokens = micro * recipe.block_size
    hidden, layers = config.hidden_size, config.num_hidden_layers
    a_layer = 2 if recipe.gradient_checkpointing else 17
    activations = tokens * hidden * layers * a_layer * width
    heard = 2 * tokens * width if recipe.distils else 0  # a teacher's rows have a chunk in front: about twice as long
    passing = float(activations + (tokens * 12 + heard) * config.vocab_size)
    if recipe.processes == 1:
        return weights + passing, "one process holds all"
    if recipe.method != "full":
        return weights + passing, "each process holds all weights"
    shared = (
        f"weights, gradients and moments are sharded over {recipe.processes} processes, as fsdp.yaml does; where each "
        f"holds all, {(weights + passing) / 1e9:.1f} GB"
    )
    return weights / recipe.processes + passing, shared
