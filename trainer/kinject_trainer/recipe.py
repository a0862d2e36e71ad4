"""The recipe: one YAML file that says everything about a training run.

What it is for: `load_recipe` reads it, lays ``--set`` overrides over it and reports every problem at once: unknown
keys (with near misses), values out of range, combinations that can't be. What it does not do: it looks at no model and
no corpus; whether they exist and fit is found out when they are opened.

The one idea: checks of single values and checks of combinations run separately, the latter on a recipe in which each
broken value has been replaced by its default, so that one bad value never hides another problem.

Defaults are the values of Ovadia et al. (arXiv 2312.05934) where the paper gives them: blocks of 256, at most 5 epochs,
64 blocks an update, learning rates searched in 1e-6…5e-5. They are no bounds.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib.util
import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StrictInt, ValidationError

from lm_eval_kinject.errors import ArgumentError
from lm_eval_kinject.provenance import fingerprint

__all__ = [
    "ADAPTERS",
    "OLDER_NEWS",
    "OLDER_READING",
    "UNTESTED",
    "L2",
    "Cartridge",
    "Ewc",
    "Questions",
    "Recadam",
    "Recipe",
    "Regulariser",
    "Replay",
    "Search",
    "check_recipe",
    "last_name",
    "load_recipe",
    "read_recipe",
    "recipes_dir",
    "to_run_again",
    "untested",
    "without_tokens",
]

Method = Literal["lora", "rslora", "full", "dora", "qlora", "loftq", "cartridge"]
ADAPTERS = ("lora", "rslora", "dora", "qlora", "loftq", "cartridge")
UNTESTED = ("dora", "qlora", "loftq")
"""Methods handed through to PEFT; this project's tests don't run them."""

OLDER_NEWS = "newswire-older"
OLDER_READING = "newswire-older-questions"
"""Corpora that are no file: older news that the embedded reader was trained on, and older news with questions behind
it, as it was trained to read."""

_NEEDS = {"qlora": ("bitsandbytes",), "loftq": ("bitsandbytes", "scipy")}
_ONLY_ADAPTERS = ("rank", "alpha", "dropout", "targets", "peft")
_WITHOUT_RANK = ("full", "cartridge")
"""Methods for which those keys have no meaning."""

_WITHOUT_EFFECT = {"checkpoint_every", "checkpoints_kept", "micro_batch", "processes", "name"}
"""Keys that may differ between a checkpoint's recipe and the one that resumes it."""

_PLACES = ("model", "corpus", "paraphrases_file", "validation_file", "general_text")
_NAMED_BY_CONTENT = {*_PLACES, "model_revision", "corpus_revision", "forgetting"}
"""Keys whose content has a fingerprint of its own, wherever it lies, and what measures but doesn't train."""

_OURS_IN_TRAINER = {
    "output_dir", "per_device_train_batch_size", "num_train_epochs", "max_steps", "learning_rate", "lr_scheduler_type",
    "warmup_steps", "weight_decay", "adam_beta1", "adam_beta2", "max_grad_norm", "gradient_accumulation_steps", "bf16",
    "fp16", "gradient_checkpointing", "activation_checkpointing", "seed", "data_seed", "save_strategy", "save_steps",
    "save_total_limit", "eval_strategy", "logging_strategy", "logging_steps", "remove_unused_columns", "label_names",
    "average_tokens_across_devices", "ignore_data_skip", "load_best_model_at_end", "resume_from_checkpoint",
    "auto_find_batch_size", "dataloader_drop_last", "use_cpu", "logging_nan_inf_filter", "do_train",
    "disable_tqdm", "save_only_model", "lr_scheduler_kwargs",
}  # fmt: skip
_PUBLISHES_IN_TRAINER = {
    "push_to_hub", "push_to_hub_model_id", "push_to_hub_organization", "push_to_hub_token", "hub_token", "hub_model_id",
    "hub_strategy", "hub_private_repo", "hub_always_push", "hub_revision",
}  # fmt: skip
"""Under ``trainer`` these would publish checkpoints while training, or put a token into what is published later."""
_OURS_IN_PEFT = {
    "r", "lora_alpha", "lora_dropout", "target_modules", "use_rslora", "use_dora", "task_type", "inference_mode",
    "base_model_name_or_path", "revision", "peft_type", "auto_mapping", "peft_version",
}  # fmt: skip

_TOKEN = re.compile(r"(?<![A-Za-z0-9])hf_[A-Za-z0-9]{20,}")
"""What a Hub token looks like."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


_HIGHEST_RATE = 10
_Rate = Annotated[float, Field(gt=0, le=_HIGHEST_RATE)]


class Search(_Strict):
    """Learning rates to try; the one with the lowest validation loss wins.

    Either ``rates``, or ``trials`` of them spaced evenly in the logarithm from ``low`` to ``high``.
    """

    low: float = Field(default=1e-6, gt=0, le=_HIGHEST_RATE, description="lowest rate")
    high: float = Field(default=5e-5, gt=0, le=_HIGHEST_RATE, description="highest rate")
    trials: int = Field(default=5, ge=2, le=100, description="number of rates from low to high")
    rates: tuple[_Rate, ...] = Field(default=(), description="the rates themselves")

    def values(self) -> tuple[float, ...]:
        """The rates in ascending order, each rounded to three digits."""
        if self.rates:
            return tuple(sorted(self.rates))
        step = math.log(self.high / self.low) / (self.trials - 1)
        return tuple(float(f"{self.low * math.exp(i * step):.3g}") for i in range(self.trials))


class Replay(_Strict):
    """Older texts mixed into each epoch, drawn anew for each, so that what was known is not forgotten.

    Epoch e = 0, 1, … holds ⌊ratio · decay^e · D⌋ of them, where D is the documents of an epoch, wordings included. With
    a decay below 1 this is Mix-review; CKL's code has ratio 4 for T5 and 1 for GPT-2, and decay .7.
    """

    corpus: str = Field(
        description="`newswire-older` (what the reader recalls), `newswire-older-questions` (what it learnt to read "
        "from), or what `kinject corpus` takes"
    )
    ratio: float = Field(default=1.0, ge=0, le=1000, description="of them for each document, in the first epoch")
    decay: float = Field(default=1.0, gt=0, le=1, description="factor on the ratio from epoch to epoch")


class Cartridge(_Strict):
    """A compressed context: keys and values of a prefix, trained in the place of a prompt with the corpus in it.

    It starts as the model's own keys and values of the corpus's first tokens (arXiv 2506.06266).
    """

    tokens: int = Field(default=128, ge=1, le=1_048_576, description="length of the prefix")
    frozen: int = Field(default=1, ge=0, le=1_048_576, description="its first ones, which stay as they start")
    objective: Literal["distillation", "next-token"] = Field(
        default="distillation", description="say what the base says that has the chunk before it, or the corpus's text"
    )
    lessons: int = Field(default=5, ge=1, le=1000, description="exchanges about each chunk, for distillation")


class Questions(_Strict):
    """Robust fine-tuning: answers to questions that have retrieved chunks before them, wrong ones too.

    Jin et al. (arXiv 2410.05983): implicit learns the answer, explicit what is relevant and why, and then the answer.
    Xia et al. (arXiv 2407.19813): self-reasoning learns relevance, evidence, and analysis with the answer, in stages.
    """

    source: str = Field(description="a bundled question set or a folder (its dev split), or a Parquet or JSONL file")
    form: Literal["implicit", "explicit", "self-reasoning"] = Field(
        default="implicit", description="answer alone, relevance first, or what reasoning=self-reasoning asks for"
    )
    retriever: str = Field(default="bm25", description="what `retriever=` takes")
    k: int = Field(default=5, ge=0, le=100_000, description="chunks before a question; 0: it is asked without any")
    instruction: str = Field(default="", description="stands before the chunks as it is, line ends included")


class L2(_Strict):
    """λ‖θ − start‖² beside the loss, which is in nats a token."""

    kind: Literal["l2"] = "l2"
    strength: float = Field(gt=0, le=1e9, description="λ; there is no usual value: try several")


class Ewc(_Strict):
    """(λ/2) Σ F (θ − start)² beside the loss: F is the Fisher information of texts of which less is to be forgotten.

    ``ewc`` draws their labels from the model, as F is defined; ``ewc-empirical`` takes the texts' own tokens.
    """

    kind: Literal["ewc", "ewc-empirical"]
    corpus: str = Field(description="the texts: `newswire-older`, or what `kinject corpus` takes")
    strength: float = Field(default=1000.0, gt=0, le=1e12, description="λ; usual are 100 to 10,000")
    fisher_examples: int = Field(default=200, ge=1, le=1_000_000, description="texts, each cut to one block")


class Recadam(_Strict):
    """RecAdam: λ(t) of the target's step and 1 − λ(t) of a pull to the start, λ(t) = 1/(1 + e^(−k(t − t0))).

    γ as its authors have it, k and t0 as CKL's code has them; the authors tried k .05 to 1 and t0 100 to 1000.
    """

    kind: Literal["recadam"] = "recadam"
    gamma: float = Field(default=5000.0, gt=0, le=1e9, description="γ, strength of the pull")
    k: float = Field(default=0.5, gt=0, le=100, description="how fast the target takes over, an update")
    t0: int = Field(default=250, ge=0, le=10_000_000, description="the update at which both have half")
    eps: float = Field(default=1e-6, gt=0, le=1, description="of Adam's division")

    @property
    def first_pull(self) -> float:
        """γ(1 − λ) at the first update, where it is largest."""
        return self.gamma * 0.5 * (1 - math.tanh(0.5 * self.k * (1 - self.t0)))


Regulariser = L2 | Ewc | Recadam
_PARTS: dict[str, type[BaseModel]] = {"Search": Search, "l2": L2, "ewc": Ewc, "ewc-empirical": Ewc, "recadam": Recadam}
"""Parts of a recipe by the names that errors give them."""


def _kind(value: Any) -> Any:
    """A regulariser without constants can be named by its kind alone."""
    if isinstance(value, str):
        return None if value == "none" else {"kind": value}
    return value


def _rate(value: Any) -> Any:
    """YAML 1.1 reads ``1e-5`` as a string; a number is what was meant."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


class Recipe(_Strict):
    """Everything about one run. Counts are in blocks, updates (optimizer steps), epochs or tokens, as each says."""

    name: str = Field(default="", description="of the run; default: the file's")

    model: str = Field(description="`reader` (the embedded one), a folder, or a Hub id")
    model_revision: str | None = Field(default=None, description="Hub commit, tag or branch; of a folder: fingerprint")
    corpus: str = Field(description="what `kinject corpus` takes: a bundled name, a path, a Hub dataset")
    corpus_revision: str | None = Field(default=None, description="Hub revision, edition, or start of the fingerprint")
    chunks: Literal["source", "all"] = Field(default="source", description="those that are asked about, or all")
    stream: bool = Field(default=False, description="read the corpus row by row: for one larger than memory")
    paraphrases_file: str | None = Field(default=None, description="default: `paraphrases.parquet` beside the corpus")
    validation_file: str | None = Field(default=None, description="default: `validation.parquet` beside the corpus")

    variant: Literal["ft-reg", "ft-par", "ft-robust"] = Field(
        description="originals alone, or with paraphrases; or questions with retrieved chunks"
    )
    paraphrases: int | None = Field(default=None, ge=0, le=100, description="per chunk; default 10 for ft-par")

    questions: Questions | None = Field(default=None, description="of variant ft-robust: what is asked, and how")

    replay: Replay | None = Field(default=None, description="older texts among those of each epoch")

    method: Method = Field(default="lora", description="full fine-tuning, or a kind of adapter")
    rank: int = Field(default=16, ge=1, le=4096, description="of the adapter")
    alpha: float = Field(default=16, gt=0, description="scale: alpha/rank, for rsLoRA alpha/√rank")
    dropout: float = Field(default=0.0, ge=0, lt=1, description="of the adapter's input, a share")
    targets: Literal["all-linear"] | tuple[str, ...] = Field(
        default="all-linear", description="modules by last name; of method full, those that are trained (default: all)"
    )
    peft: dict[str, Any] = Field(default_factory=dict, description="further arguments of peft.LoraConfig")

    cartridge: Cartridge | None = Field(default=None, description="of method cartridge: its length and what it learns")

    block_size: int = Field(default=256, ge=8, le=1_048_576, description="tokens")
    epochs: float = Field(default=5, gt=0, le=10_000, description="passes over the corpus with all its wordings")
    equal_updates_to_paraphrases: int | None = Field(
        default=None, ge=0, le=100, description="train on as many tokens as this many paraphrases would give"
    )
    global_batch: int = Field(default=64, ge=1, le=1_000_000, description="blocks an update, over all processes")
    micro_batch: int | None = Field(default=None, ge=1, description="blocks a forward pass; default: up to 8")
    processes: int = Field(default=1, ge=1, le=100_000, description="expected, for --dry-run and the batch's division")
    learning_rate: Annotated[_Rate | Search, BeforeValidator(_rate)] = Field(
        default=Search(), description="a rate, or a search by validation loss"
    )
    warm_up: float = Field(default=0.05, ge=0, lt=1, description="share of the updates")
    regulariser: Annotated[
        Annotated[Regulariser, Field(discriminator="kind")] | None,
        BeforeValidator(_kind),
    ] = Field(default=None, description="what holds the weights near the start: l2, ewc, ewc-empirical, recadam")
    schedule: Literal["linear", "cosine", "constant"] = Field(default="linear", description="after the warm-up")
    weight_decay: float = Field(default=0.0, ge=0, le=10, description="decoupled, of AdamW")
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = Field(
        default=(0.9, 0.999), description="of AdamW"
    )
    max_grad_norm: float = Field(default=1.0, ge=0, description="gradient clipping; 0 is none")
    precision: Literal["fp32", "bf16"] = Field(default="fp32", description="bf16: autocast; master weights stay fp32")
    save_precision: Literal["fp32", "bf16"] = Field(default="fp32", description="of the weights in the result")
    gradient_checkpointing: bool = Field(default=False, description="memory for time")
    seed: int = Field(default=0, ge=0, lt=2**32, description="of initialisation and dropout")
    data_seed: int | None = Field(default=None, ge=0, lt=2**32, description="of the order; default: seed")

    checkpoint_every: StrictInt | Literal["epoch", "never"] = Field(default="epoch", description="updates, or `epoch`")
    checkpoints_kept: int = Field(default=1, ge=1, le=1000, description="number of newest checkpoints")
    validate_every: StrictInt | Literal["epoch", "never"] = Field(default="epoch", description="updates, or `epoch`")
    forgetting: bool = Field(default=True, description="measure perplexity on general text before and after")
    general_text: str | None = Field(default=None, description="held-out general text: a path; default: see docs")
    trainer: dict[str, Any] = Field(default_factory=dict, description="further transformers.TrainingArguments")

    @property
    def wordings(self) -> int:
        """Paraphrases per chunk that are trained on, beside the original."""
        if self.variant != "ft-par":
            return 0
        return 10 if self.paraphrases is None else self.paraphrases

    @property
    def replays(self) -> Replay | None:
        """What is replayed; None where nothing is, be it by a ratio of 0."""
        return self.replay if self.replay is not None and self.replay.ratio else None

    @property
    def compresses(self) -> Cartridge | None:
        """The cartridge that is trained; None with every other method."""
        return (self.cartridge or Cartridge()) if self.method == "cartridge" else None

    @property
    def distils(self) -> bool:
        """Whether lessons are trained on and not the corpus's text."""
        return self.compresses is not None and self.compresses.objective == "distillation"

    @property
    def by_rows(self) -> bool:
        """Whether a block is a row of its own, padded, and not a cut of a stream of text."""
        return self.distils or self.questions is not None

    @property
    def rates(self) -> tuple[float, ...]:
        """The learning rates to train with, one run each."""
        found = self.learning_rate
        return found.values() if isinstance(found, Search) else (found,)

    @property
    def order_seed(self) -> int:
        """Seed of the data's order."""
        return self.seed if self.data_seed is None else self.data_seed

    def plain(self) -> dict[str, Any]:
        """As JSON can hold it, defaults included."""
        return self.model_dump(mode="json")

    def public(self) -> dict[str, Any]:
        """As `plain`, fit to publish: of a path on this disk only the last name is left."""
        made = self.plain()
        for key in _PLACES:
            made[key] = None if made[key] is None else last_name(made[key])
        for key in ("replay", "regulariser"):
            if made[key] is not None and "corpus" in made[key]:
                made[key]["corpus"] = last_name(made[key]["corpus"])
        if made["questions"] is not None:
            made["questions"] |= {key: last_name(made["questions"][key]) for key in ("source", "retriever")}
        return made

    def fingerprint(self) -> str:
        """Of all keys but those that say how a run is divided and kept, and its name."""
        made = {**self.public(), **self._settled()}
        left_out = {*_WITHOUT_EFFECT, *self._unused()}
        return fingerprint({k: v for k, v in made.items() if k not in left_out})

    def _settled(self) -> dict[str, Any]:
        """Keys that can say one thing in several ways, each in one of them: equal recipes have equal names."""
        return {
            "variant": "ft-robust" if self.questions else "ft-par" if self.wordings else "ft-reg",
            "paraphrases": self.wordings,
            "data_seed": None if self.data_seed == self.seed else self.data_seed,
            "cartridge": None if self.compresses is None else self.compresses.model_dump(mode="json"),
        }

    def _unused(self) -> set[str]:
        """Later keys that ask for nothing: a recipe without them has the name that it had before there were such."""
        used: dict[str, BaseModel | None] = {
            "replay": self.replays,
            "regulariser": self.regulariser,
            "cartridge": self.compresses,
            "questions": self.questions,
        }
        return {key for key, value in used.items() if value is None}

    def effective(self) -> dict[str, Any]:
        """The keys that say how the weights come about, not from what: `_NAMED_BY_CONTENT` has fingerprints instead."""
        # A search is the sum of its trials; a checkpoint belongs to one of them, and names its own rate.
        left_out = {*_WITHOUT_EFFECT, *_NAMED_BY_CONTENT, *self._unused(), "learning_rate"}
        made = {**self.plain(), **self._settled()}
        for key in ("replay", "regulariser"):  # whose corpora have fingerprints, too
            made[key] = {k: v for k, v in (made[key] or {}).items() if k != "corpus"}
        made["questions"] = {k: v for k, v in (made["questions"] or {}).items() if k != "source"}
        return {**{k: v for k, v in made.items() if k not in left_out}, "learning_rates": list(self.rates)}

    def accumulation(self, processes: int) -> tuple[int, int]:
        """(blocks a forward pass, forward passes an update) of each process.

        Raises:
            ArgumentError: the global batch can't be divided so.
        """
        share, rest = divmod(self.global_batch, processes)
        if rest:
            raise ArgumentError(
                f"global_batch {self.global_batch} can't be shared by {processes} processes: choose a multiple",
                self.where,
            )
        micro = self.micro_batch or max(m for m in range(1, min(8, share) + 1) if share % m == 0)
        if share % micro:
            raise ArgumentError(
                f"micro_batch {micro} does not divide the {share} blocks of each of {processes} processes", self.where
            )
        return micro, share // micro

    @property
    def where(self) -> str:
        """How errors name this recipe."""
        return f"the recipe {self.name or 'at hand'}"


def last_name(place: str) -> str:
    """Of a path on this disk its last name; anything else as it is."""
    kind, separator, rest = place.rpartition(":")  # realtimeqa:PATH
    path = Path(rest if kind.isalpha() else place).expanduser()
    if place in (OLDER_NEWS, OLDER_READING) or not path.exists():
        return place
    return f"{kind}{separator}{path.resolve().name}" if kind.isalpha() else path.resolve().name


def to_run_again(public: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe's `public` values as a file that `load_recipe` takes: less those that have no meaning in it."""
    left_out = set(_ONLY_ADAPTERS) if public["method"] in _WITHOUT_RANK else set()
    if public["method"] == "full" and public["targets"] != "all-linear":
        left_out.discard("targets")
    made = {key: value for key, value in public.items() if key not in left_out}
    rate = made["learning_rate"]
    if isinstance(rate, Mapping):
        given = ("rates",) if rate["rates"] else ("low", "high", "trials")
        made["learning_rate"] = {key: rate[key] for key in given}
    return made


def untested(recipe: Recipe) -> str:
    """What is to be said of a method that is passed through to PEFT."""
    said = f"method {recipe.method} is passed through to PEFT; this project's tests don't run it"
    if recipe.method != "loftq":
        return said
    return f"{said}, and its adapter belongs to base weights rounded to 4 bits, not to the base as published"


def recipes_dir() -> Path:
    """The folder of the recipes that come with the trainer."""
    package = Path(__file__).resolve().parent
    inside = package / "_data" / "recipes"
    return inside if inside.is_dir() else package.parent / "recipes"


def load_recipe(path: str | os.PathLike[str], overrides: Sequence[str] = ()) -> Recipe:
    """Reads and checks a recipe.

    Args:
        path: a YAML file; a name without folder is also looked for among the bundled recipes.
        overrides: ``key=value`` or ``key.part=value``, values in YAML; they win over the file.

    Raises:
        ArgumentError: not there, not YAML, or with problems: all of them, each with what to do.
    """
    file, raw, problems = read_recipe(path, overrides)
    recipe, more = check_recipe({"name": file.stem, **raw})
    found = [_TOKEN.sub("hf_…", problem) for problem in (*problems, *more)]
    if found or recipe is None:
        raise ArgumentError(found, f"the recipe {file.name}")
    return recipe


def read_recipe(path: str | os.PathLike[str], overrides: Sequence[str] = ()) -> tuple[Path, dict[str, Any], list[str]]:
    """A recipe's file, its values with the overrides over them, none of them checked, and what can't be read of them.

    Raises:
        ArgumentError: not there, or not YAML.
    """
    file = _find(Path(path))
    raw, problems = _read(file)
    for item in overrides:
        problems += _override(raw, item)
    return file, raw, problems


def check_recipe(raw: Mapping[str, Any]) -> tuple[Recipe | None, list[str]]:
    """A recipe's values as a recipe, or else all that is wrong with them, each with what to do."""
    clean, tokens = without_tokens(dict(raw))
    recipe, problems = _check(clean)
    return (None if tokens else recipe), [*tokens, *problems]


def _find(path: Path) -> Path:
    for candidate in (path, recipes_dir() / path, recipes_dir() / f"{path}.yaml"):
        if candidate.is_file():
            return candidate
    bundled = sorted(p.relative_to(recipes_dir()).as_posix() for p in recipes_dir().rglob("*.yaml"))
    bundled = [name for name in bundled if name != "fsdp.yaml"]
    raise ArgumentError(f"there is no recipe {path}: give a YAML file or one of {', '.join(bundled)}", "kinject train")


class _UniqueKeys(yaml.SafeLoader):
    """YAML in which a key that stands twice is an error and not a silent choice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key} stands twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


def _read(file: Path) -> tuple[dict[str, Any], list[str]]:
    try:
        raw = yaml.load(file.read_bytes().decode("utf-8"), Loader=_UniqueKeys)
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as problem:
        said = _TOKEN.sub("hf_…", str(problem))
        raise ArgumentError(f"it can't be read as YAML: {said}", f"the recipe {file.name}") from None
    if not isinstance(raw, dict):
        return {}, [f"it holds {type(raw).__name__}, not `key: value` lines"]
    return {str(k): v for k, v in raw.items()}, []


def _override(raw: dict[str, Any], item: str) -> list[str]:
    key, equals, text = item.partition("=")
    if not equals or not key.strip():
        return [f"--set {item!r} is not key=value"]
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        return [f"--set {item!r}: the value is not YAML; quote it"]
    place: dict[str, Any] = raw
    *parents, last = key.strip().split(".")
    for parent in parents:
        inner = place.get(parent)
        place[parent] = dict(inner) if isinstance(inner, dict) else {}
        place = place[parent]
    place[last] = value
    return []


def without_tokens(raw: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The recipe with whatever looks like a Hub token blotted out, and a problem for each place of one."""
    problems: list[str] = []

    def blot(value: Any, place: str) -> Any:
        if isinstance(value, Mapping):
            return {
                blot(k, place or "the recipe"): blot(v, f"{place}.{k}" if place else f"{k}") for k, v in value.items()
            }
        if isinstance(value, list | tuple):
            return [blot(v, place) for v in value]
        if not isinstance(value, str) or not _TOKEN.search(value):
            return value
        problems.append(
            f"{place}: looks like a Hub token, and a recipe is published with its result: remove it, and log in with "
            f"`hf auth login` or set HF_TOKEN"
        )
        return _TOKEN.sub("hf_…", value)

    return blot(raw, ""), problems


# Checking -------------------------------------------------------------------------------------------------------------

_REQUIRED = {"model": "?", "corpus": "?", "variant": "ft-reg"}


def _check(raw: dict[str, Any]) -> tuple[Recipe | None, list[str]]:
    """The recipe if it is good, and every problem of it."""
    problems = []
    try:
        recipe = Recipe.model_validate(raw)
    except ValidationError as invalid:
        problems = _readable(invalid)
        broken = {str(e["loc"][0]) for e in invalid.errors()}
        rest = {k: v for k, v in raw.items() if k not in broken}
        if "questions" in broken:
            rest["questions"] = Questions(source="?")
        if "questions" in rest and "variant" not in rest:
            rest["variant"] = "ft-robust"
        recipe = Recipe.model_validate({**{k: v for k, v in _REQUIRED.items() if k not in rest}, **rest})
    problems += _combinations(recipe)
    return (None if problems else recipe), problems


_WANTED = {
    "learning_rate": "a number above 0 and up to 10, or a search ({low, high, trials} or {rates: […]})",
    "targets": "`all-linear` or a list of module names",
    "betas": "a list of two numbers from 0 to below 1, such as [0.9, 0.999]",
    "checkpoint_every": "a whole number of updates, `epoch` or `never`",
    "validate_every": "a whole number of updates, `epoch` or `never`",
    "regulariser": "none, or {kind: …} with l2, ewc, ewc-empirical or recadam and its constants",
    "cartridge": "what the cartridge is like ({tokens: 128, frozen: 1, objective: distillation, lessons: 5})",
    "questions": "what is asked and how ({source: …, form: implicit, retriever: bm25, k: 5})",
    "replay": "what to replay and how much of it ({corpus: …, ratio: 1, decay: 1})",
}
"""What keys of several types take: the checker's own messages speak of each type by itself."""


def _readable(invalid: ValidationError) -> list[str]:
    """One sentence a problem, and one problem a place."""
    problems: dict[str, str] = {}
    for error in invalid.errors():
        path = [str(part) for part in error["loc"]]
        key, inner = path[0], path[1:]
        if inner[:1] == ["constrained-float"] and len(inner) == 1 and isinstance(error["input"], dict):
            continue  # a search was meant, and is complained of by itself
        part, inner = _part_of(key, inner)
        if part is Recipe and key in _WANTED:
            problems.setdefault(key, f"{key}: must be {_WANTED[key]}")
            continue
        place = ".".join([key, *inner])
        if error["type"] == "extra_forbidden":
            near = difflib.get_close_matches(path[-1], part.model_fields, n=1, cutoff=0.6)
            problems[place] = f"{place}: no such key; {f'did you mean {near[0]}?' if near else 'remove it'}"
        elif error["type"] == "missing":
            problems[place] = f"{place}: missing; give {part.model_fields[path[-1]].description}"
        else:
            problems[place] = f"{place}: {error['input']!r}: {error['msg'][0].lower()}{error['msg'][1:]}"
    return list(problems.values())


def _part_of(key: str, inner: list[str]) -> tuple[type[BaseModel], list[str]]:
    """The part of the recipe that a place lies in, and the place in it, less the name that errors give the part."""
    plain: dict[str, type[BaseModel]] = {"replay": Replay, "cartridge": Cartridge, "questions": Questions}
    if key in plain and inner:
        return plain[key], inner
    if len(inner) > 1 and inner[0] in _PARTS:
        return _PARTS[inner[0]], inner[1:]
    return Recipe, inner


def _combinations(recipe: Recipe) -> list[str]:
    given = recipe.model_fields_set
    problems = []
    if recipe.variant != "ft-par" and recipe.paraphrases:
        said = "say ft-par, or leave paraphrases out"
        problems.append(f"paraphrases {recipe.paraphrases} with variant {recipe.variant}: {said}")
    if not recipe.targets:
        problems.append("targets: an empty list names no module; name some, or remove it")
    if recipe.method in _WITHOUT_RANK:
        some = recipe.method == "full" and recipe.targets != "all-linear"  # the others are frozen
        unused = [key for key in _ONLY_ADAPTERS if key in given and not (some and key == "targets")]
        problems += [f"{key}: has no meaning with method {recipe.method}; remove it" for key in unused]
    if recipe.model == "reader" and recipe.model_revision:
        problems.append("model_revision: the embedded reader has none; remove it")
    more = recipe.equal_updates_to_paraphrases
    if more is not None and more <= recipe.wordings:
        problems.append(f"equal_updates_to_paraphrases {more}: must be more than the {recipe.wordings} trained on")
    if more is not None and recipe.replays:
        problems.append(
            "replay with equal_updates_to_paraphrases: both settle how long the run is; give epochs instead"
        )
    if recipe.method == "qlora" and recipe.precision == "fp32":
        problems.append("method qlora computes in bf16: set precision: bf16")
    problems += _batch_problems(recipe) + _search_problems(recipe) + _missing_packages(recipe)
    problems += _cadence_problems(recipe) + _regulariser_problems(recipe) + _cartridge_problems(recipe)
    problems += _questions_problems(recipe)
    problems += _passed_through("trainer", recipe.trainer, _training_argument_names(recipe), _OURS_IN_TRAINER)
    return problems + _passed_through("peft", recipe.peft, _lora_argument_names(recipe), _OURS_IN_PEFT)


def _batch_problems(recipe: Recipe) -> list[str]:
    unit = recipe.processes * (recipe.micro_batch or 1)
    if recipe.global_batch % unit:
        parts = f"{recipe.processes} processes" + (f" × micro_batch {recipe.micro_batch}" if recipe.micro_batch else "")
        return [f"global_batch {recipe.global_batch} is not a multiple of {parts}"]
    return []


def _search_problems(recipe: Recipe) -> list[str]:
    search = recipe.learning_rate
    if not isinstance(search, Search):
        return []
    problems = []
    if search.rates and search.model_fields_set - {"rates"}:
        problems.append("learning_rate: give either rates, or low, high and trials")
    if not search.rates and search.low >= search.high:
        problems.append(f"learning_rate: low {search.low:g} is not below high {search.high:g}")
    if len(set(search.rates)) != len(search.rates):
        problems.append("learning_rate: a rate stands twice in rates")
    if recipe.validate_every == "never":
        problems.append("learning_rate: a search needs the validation loss; remove validate_every: never")
    return problems


def _regulariser_problems(recipe: Recipe) -> list[str]:
    held = recipe.regulariser
    if held is None:
        return []
    problems = []
    if recipe.method != "full":
        problems.append(
            f"regulariser {held.kind} with method {recipe.method}: an adapter leaves the pretrained weights as they "
            f"are, and would be held at its own random start; take method: full, or remove the regulariser"
        )
    if not isinstance(held, Recadam):
        return problems
    if recipe.weight_decay:
        problems.append("weight_decay with regulariser recadam: one pulls to 0, the other to the start; remove one")
    problems += [
        f"trainer.{key}: regulariser recadam is the optimizer; remove it"
        for key in ("optim", "optim_args")
        if key in recipe.trainer
    ]
    rate, pull = max(recipe.rates), held.first_pull
    if rate * pull >= 1:
        problems.append(
            f"regulariser recadam: learning rate {rate:g} · gamma {held.gamma:g} · (1 − λ) is {rate * pull:.3g} at the "
            f"first update and must be below 1, or the pull overshoots: take a learning rate below {1 / pull:g}, or "
            f"gamma below {held.gamma / (rate * pull):g}"
        )
    return problems


def _cartridge_problems(recipe: Recipe) -> list[str]:
    made = recipe.compresses
    if made is None:
        return [] if recipe.cartridge is None else ["cartridge: has a meaning with method cartridge alone; remove it"]
    problems = []
    if made.frozen >= made.tokens:
        problems.append(f"cartridge.frozen {made.frozen}: nothing is trained of {made.tokens} tokens; take fewer")
    if recipe.gradient_checkpointing:
        problems.append("gradient_checkpointing with method cartridge: it throws the cache away; remove it")
    if not recipe.distils:
        unused = "lessons" in made.model_fields_set
        return problems + (["cartridge.lessons: are of objective distillation; remove it"] if unused else [])
    for key, value in (
        ("replay", recipe.replays),
        ("equal_updates_to_paraphrases", recipe.equal_updates_to_paraphrases),
        ("stream", recipe.stream or None),
    ):
        if value is not None:
            problems.append(f"{key} with a cartridge that is distilled: lessons are trained on, not text; remove it")
    return problems


def _questions_problems(recipe: Recipe) -> list[str]:
    asked = recipe.questions
    if asked is None:
        missing = "questions: missing, and variant ft-robust trains on them; give {source: …}, or say ft-reg"
        return [missing] if recipe.variant == "ft-robust" else []
    from lm_eval_kinject.retrieval import retriever_problems  # here, as it takes seconds to import

    problems = [f"questions.retriever: {problem}" for problem in retriever_problems(asked.retriever)]
    if recipe.variant != "ft-robust":
        problems.append(f"questions with variant {recipe.variant}: say ft-robust, or remove questions")
    if asked.form != "implicit" and (asked.k == 0 or asked.retriever == "none"):
        problems.append(f"questions.form {asked.form}: there are no chunks to judge; raise k, or say implicit")
    if isinstance(recipe.learning_rate, Search):
        problems.append(
            "learning_rate: a search goes by the loss on texts, and questions are trained on; give a number"
        )
    for key, value in (
        ("method cartridge", recipe.compresses),
        ("replay", recipe.replays),
        ("equal_updates_to_paraphrases", recipe.equal_updates_to_paraphrases),
        ("stream", recipe.stream or None),
        ("chunks all", recipe.chunks == "all" or None),
        ("paraphrases_file", recipe.paraphrases_file),
        ("validation_file", recipe.validation_file),
    ):
        if value is not None:
            problems.append(f"{key} with variant ft-robust: questions are trained on, not text; remove it")
    return problems


def _cadence_problems(recipe: Recipe) -> list[str]:
    cadences = {"checkpoint_every": recipe.checkpoint_every, "validate_every": recipe.validate_every}
    return [f"{k} {v}: must be 1 or more" for k, v in cadences.items() if isinstance(v, int) and v < 1]


def _missing_packages(recipe: Recipe) -> list[str]:
    missing = [name for name in _NEEDS.get(recipe.method, ()) if importlib.util.find_spec(name) is None]
    found = [f"method {recipe.method} needs {name}: run `pip install {name}`" for name in missing]
    if recipe.method == "cartridge" and importlib.util.find_spec("peft.tuners.cartridge") is None:
        found.append("method cartridge needs a later PEFT, which knows cartridges: run `pip install -U peft`")
    return found


def _passed_through(key: str, values: Mapping[str, Any], known: frozenset[str], ours: set[str]) -> list[str]:
    problems = []
    for name in values:
        if name in _PUBLISHES_IN_TRAINER and key == "trainer":
            problems.append(f"{key}.{name}: a run publishes nothing by itself; remove it, and use `kinject push` after")
        elif name in ours:
            problems.append(f"{key}.{name}: is set from the recipe's own keys; remove it")
        elif name not in known:
            near = difflib.get_close_matches(name, known - ours, n=1, cutoff=0.6)
            problems.append(f"{key}.{name}: no such argument; {f'did you mean {near[0]}?' if near else 'remove it'}")
    return problems


def _training_argument_names(recipe: Recipe) -> frozenset[str]:
    """Asked only where it matters: the import takes seconds."""
    if not recipe.trainer:
        return frozenset()
    from transformers import TrainingArguments

    return frozenset(f.name for f in dataclasses.fields(TrainingArguments) if f.init)


def _lora_argument_names(recipe: Recipe) -> frozenset[str]:
    if not recipe.peft:
        return frozenset()
    from peft import LoraConfig

    return frozenset(f.name for f in dataclasses.fields(LoraConfig) if f.init)
