"""The base model of a run, and the adapter that is put on it.

What it is for: `find_base` turns a recipe's ``model`` into a folder with a name that holds; `load_tokenizer`,
`load_model` and `with_adapter` open it and prepare what will be trained, and `skeleton` does the same without weights,
for ``--dry-run``. What it does not do: it trains nothing.

The one idea: everything that can be wrong with a base (missing, another revision, a tokenizer that doesn't fit, no
module of the named targets) is found here, before the first update.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PretrainedConfig, PreTrainedTokenizerBase

from kinject_trainer.cartridge import with_cartridge
from kinject_trainer.recipe import ADAPTERS, Recipe
from lm_eval_kinject.errors import ArgumentError, ModelError
from lm_eval_kinject.hub.content import fingerprint_model
from lm_eval_kinject.hub.fetch import fetch_snapshot
from lm_eval_kinject.plugin import assets_dir
from lm_eval_kinject.provenance import fingerprint

__all__ = [
    "Base",
    "check_fit",
    "context_of",
    "find_base",
    "is_hub_id",
    "load_model",
    "load_tokenizer",
    "skeleton",
    "tokenizer_fingerprint",
    "with_adapter",
]

READER = "reader"
_DIGITS = 8


@dataclass(frozen=True)
class Base:
    """A base model on this disk.

    Attributes:
        name: as the recipe has it: `reader`, a path, a Hub id.
        folder: where its files are.
        identity: ``commit`` of the Hub or ``fingerprint`` of the folder: what a result names.
    """

    name: str
    folder: Path
    identity: str

    @property
    def public_name(self) -> str:
        """For cards and results: never a path."""
        local = self.name != READER and Path(self.name).expanduser().is_dir()
        return self.folder.resolve().name if local else self.name


def find_base(recipe: Recipe) -> Base:
    """Finds the base model's files.

    Raises:
        ModelError: not there, or of another revision than the recipe names.
    """
    if recipe.model == READER:
        folder = assets_dir() / READER
        if not (folder / "config.json").is_file():
            raise ModelError(f"The embedded reader is not in {assets_dir()}: reinstall, or name another model.")
        return Base(READER, folder, fingerprint_model(folder))
    folder = Path(recipe.model).expanduser()
    if not folder.is_dir():
        if not is_hub_id(recipe.model):
            raise ModelError(
                f"There is no model folder {recipe.model}: give `reader`, a folder or a Hub id owner/name."
            )
        advice = "Without a network give model: reader or a folder."
        found = fetch_snapshot(
            recipe.model, kind="model", revision=recipe.model_revision, error=ModelError, offline_advice=advice
        )
        return Base(recipe.model, found.path, found.commit)
    if not (folder / "config.json").is_file():
        raise ModelError(f"The folder {recipe.model} is no model: it has no config.json.")
    made = fingerprint_model(folder)
    wanted = recipe.model_revision
    if wanted is not None and (len(wanted) < _DIGITS or not made.startswith(wanted)):
        raise ModelError(
            f"The model {recipe.model} is not of revision {wanted!r}: a folder's revision is the start (8 digits or "
            f"more) of its fingerprint, {made[:16]}…. Mend model_revision, or take the right folder."
        )
    return Base(recipe.model, folder, made)


def is_hub_id(model: str) -> bool:
    """Whether a recipe's model is meant to be on the Hub: owner/name, and no folder here."""
    return model.count("/") == 1 and not model.startswith((".", "~", "/")) and not Path(model).is_dir()


def load_tokenizer(base: Base) -> PreTrainedTokenizerBase:
    """The base's tokenizer.

    Raises:
        ModelError: it has none that loads.
    """
    try:
        return AutoTokenizer.from_pretrained(base.folder)
    except (OSError, ValueError, KeyError, ImportError) as problem:
        raise ModelError(f"The model {base.name} has no tokenizer that loads: {_first_line(problem)}.") from problem


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """Names a tokenizer by its vocabulary, its marks and what it makes of a probe with digits, case and spaces."""
    probe = tokenizer.encode("Été 2023:  12,5 %\n\tthe Naïve_test’s end…", add_special_tokens=False)
    marks = [tokenizer.bos_token_id, tokenizer.eos_token_id]
    return fingerprint([dict(tokenizer.get_vocab()), marks, [int(token) for token in probe]])


def load_model(base: Base, recipe: Recipe) -> Any:
    """The base's weights, ready to be trained in full or to take an adapter.

    Full fine-tuning has fp32 master weights, also under bf16 autocast: a bf16 weight doesn't notice an update of 1e-6
    of its size. Frozen weights under an adapter are held in the recipe's precision.

    Raises:
        ModelError: it doesn't load as a causal language model.
    """
    frozen = recipe.method in ADAPTERS
    dtype = torch.bfloat16 if frozen and recipe.precision == "bf16" else torch.float32
    extra: dict[str, Any] = {}
    if recipe.method == "qlora":
        from transformers import BitsAndBytesConfig

        extra["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16
        )
    try:
        model = AutoModelForCausalLM.from_pretrained(base.folder, dtype=dtype, **extra)
    except (OSError, ValueError, KeyError, RuntimeError) as problem:
        raise ModelError(f"The model {base.name} doesn't load: {_first_line(problem)}.") from problem
    model.config.use_cache = False
    return model


def check_fit(model: Any, tokenizer: PreTrainedTokenizerBase, recipe: Recipe) -> None:
    """Whether the tokenizer's ids and the blocks fit the model.

    Raises:
        ModelError: an id without an embedding, or blocks longer than the model's context.
    """
    rows = model.get_input_embeddings().weight.shape[0]
    highest = max(tokenizer.get_vocab().values())
    if highest >= rows:
        raise ModelError(
            f"The tokenizer doesn't fit the model {recipe.model}: its ids go up to {highest}, and the model has "
            f"{rows} embeddings. Take the model's own tokenizer, or enlarge its embeddings first."
        )
    context = context_of(model.config)
    before = 0 if recipe.compresses is None else recipe.compresses.tokens
    if context is not None and before + recipe.block_size > context:
        named = (
            f"cartridge.tokens {before} and block_size {recipe.block_size} are"
            if before
            else (f"block_size {recipe.block_size} is")
        )
        raise ModelError(f"{named} longer than the context of {recipe.model}: {context}.")


def context_of(config: PretrainedConfig) -> int | None:
    """Tokens that a model can read; None where its configuration doesn't say so."""
    return getattr(config, "max_position_embeddings", None)


def with_adapter(model: Any, recipe: Recipe) -> Any:
    """The model to train: itself for ``full``, otherwise with a fresh adapter, the only part that is then trained.

    With ``full`` and targets the modules that these name are trained, and all others frozen.

    Raises:
        ModelError: the model has no module of one of the named targets; lists those it has.
        ArgumentError: PEFT refuses the combination of arguments.
    """
    if recipe.method not in ADAPTERS:
        return _of_targets(model, recipe.targets)
    if recipe.compresses is not None:
        return with_cartridge(model, recipe.compresses, recipe.model)
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training

    _check_targets(model, recipe.targets)
    extra = dict(recipe.peft)
    if recipe.method == "loftq":
        from peft import LoftQConfig

        extra = {"init_lora_weights": "loftq", "loftq_config": LoftQConfig(loftq_bits=4), **extra}
    if recipe.method == "qlora":
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=recipe.gradient_checkpointing)
    try:
        config = LoraConfig(
            task_type="CAUSAL_LM",
            r=recipe.rank,
            lora_alpha=recipe.alpha,
            lora_dropout=recipe.dropout,
            target_modules=recipe.targets if isinstance(recipe.targets, str) else list(recipe.targets),
            use_rslora=recipe.method == "rslora",
            use_dora=recipe.method == "dora",
            **extra,
        )
        made = get_peft_model(model, config)
    except (ValueError, ImportError, TypeError) as problem:
        raise ArgumentError(f"PEFT refuses the adapter: {_first_line(problem)}", recipe.where) from problem
    return made


def _of_targets(model: Any, targets: str | Sequence[str]) -> Any:
    _check_targets(model, targets)
    if not isinstance(targets, str):
        for name, module in model.named_modules():
            for weights in module.parameters(recurse=False):
                weights.requires_grad_(any(name == t or name.endswith(f".{t}") for t in targets))
    return model


def _check_targets(model: Any, targets: str | Sequence[str]) -> None:
    if isinstance(targets, str):
        return
    linear = [name for name, module in model.named_modules() if _takes_adapter(module)]
    lost = [t for t in targets if not any(name == t or name.endswith(f".{t}") for name in linear)]
    if lost:
        has = sorted({name.rsplit(".", 1)[-1] for name in linear})
        raise ModelError(
            f"The base has no linear module named {', '.join(lost)}. It has: {', '.join(has)}. Mend targets, or say "
            f"targets: all-linear."
        )


def _takes_adapter(module: Any) -> bool:
    # GPT-2's Conv1D is linear in all but its class.
    return isinstance(module, torch.nn.Linear) or type(module).__name__ == "Conv1D"


def _first_line(problem: BaseException) -> str:
    return (str(problem).strip() or type(problem).__name__).splitlines()[0].rstrip(".")


# Without weights ------------------------------------------------------------------------------------------------------

_LLAMA_2 = {
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "max_position_embeddings": 4096,
}
_KNOWN_SHAPES: dict[str, tuple[str, dict[str, int]]] = {
    "mistralai/Mistral-7B-v0.1": (
        "mistral",
        {
            **_LLAMA_2,
            "intermediate_size": 14336,
            "num_key_value_heads": 8,
            "vocab_size": 32000,
            "max_position_embeddings": 32768,
        },
    ),
    "meta-llama/Llama-2-7b-hf": ("llama", {**_LLAMA_2, "vocab_size": 32000}),
    "microsoft/Orca-2-7b": ("llama", {**_LLAMA_2, "vocab_size": 32003}),
}
"""Shapes of the paper's models, so that ``--dry-run`` can count their parameters without reaching the Hub."""


def known_config(name: str) -> PretrainedConfig | None:
    """The configuration of one of the paper's models, from this file and not from the Hub."""
    if name not in _KNOWN_SHAPES:
        return None
    kind, shape = _KNOWN_SHAPES[name]
    return AutoConfig.for_model(kind, **shape, tie_word_embeddings=False)


def skeleton(config: PretrainedConfig, recipe: Recipe) -> Any:
    """The model to train without its weights (on the device ``meta``): to be counted, not to be run.

    Raises:
        ModelError: its kind predicts no next tokens, or see `with_adapter`.
    """
    plain = recipe.method in ("qlora", "loftq")  # how the weights are stored changes nothing in what is trained
    counted = recipe.model_copy(update={"method": "lora"}) if plain else recipe
    with torch.device("meta"):
        try:
            model = AutoModelForCausalLM.from_config(config)
        except ValueError as problem:
            raise ModelError(
                f"The model {recipe.model} is no causal language model: {_first_line(problem)}."
            ) from problem
        return with_adapter(model, counted)
