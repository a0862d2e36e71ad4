"""The arguments of our model types: which are ours, which are lm_eval's, and everything that is wrong at once.

What it is for: `split` takes all of ``--model_args`` apart before anything is loaded, so that a typo costs a second
and not an hour. What it does not do: it loads no model, corpus or index, so it can't say whether these fit together.

The one idea: lm_eval's ``hf`` hands every name it doesn't know on to ``from_pretrained``, where a misspelt name may be
ignored without a word. Here a name must be one of ours, one of ``hf``'s own (read from its signature), or a known
keyword of ``from_pretrained``; anything else is an error. ``model_kwargs``, a dictionary in JSON model_args, passes
on what this list doesn't know. What is so for ``rag-hf`` another `Engine` says for another model type.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from lm_eval_kinject.errors import ArgumentError
from lm_eval_kinject.models import hf_arguments
from lm_eval_kinject.models.engine import Engine
from lm_eval_kinject.models.pipeline import SLOTS, Pipeline
from lm_eval_kinject.stages import (
    Line,
    Stage,
    argument,
    arguments_of,
    assemble,
    known_arguments,
    near,
    one_of,
    optional,
    reference,
    register,
    slot,
    text,
)

__all__ = ["ALL_SLOTS", "FROM_PRETRAINED", "HF", "WHERE", "RagArguments", "argument_table", "split"]

FROM_PRETRAINED = frozenset(
    {
        "allow_all_kernels", "attn_implementation", "cache_dir", "config", "device_map", "disable_mmap",
        "experts_implementation", "force_download", "generation_config", "ignore_mismatched_sizes", "kernel_config",
        "key_mapping", "local_files_only", "low_cpu_mem_usage", "max_memory", "offload_buffers", "offload_state_dict",
        "proxies", "tp_size", "use_cache", "use_kernels", "use_safetensors", "variant", "weights_only",
        # quantization
        "bnb_4bit_compute_dtype", "bnb_4bit_quant_storage", "bnb_4bit_quant_type", "bnb_4bit_use_double_quant",
        "load_in_4bit", "load_in_8bit", "quantization_config",
        # overrides of a model's configuration that change how it reads long prompts
        "attention_dropout", "max_position_embeddings", "partial_rotary_factor", "rope_parameters", "rope_scaling",
        "rope_theta", "sliding_window",
    }
)  # fmt: skip
"""Names that ``hf`` passes on to ``from_pretrained`` and that mean something there (transformers 5)."""

HF = Engine(
    type="rag-hf",
    problems=lambda own, ours: hf_arguments.problems(own),
    passes_on=FROM_PRETRAINED,
    hands_to="from_pretrained",
    adapter_excludes=("peft", "delta"),
    shared=True,
)
"""lm_eval's ``hf``: what a model type is taken for that says nothing else."""

WHERE = HF.where

_SECRETS = ("token", "hf_token", "use_auth_token", "auth_token", "api_key", "access_token")

slot("scoring", "what is scored, and how")


@register
@dataclass(frozen=True)
class Scoring(Stage):
    """The weights that answer, and the way of scoring."""

    slot: ClassVar[str] = "scoring"
    name: ClassVar[str] = "log-likelihood"

    adapter: str | None = argument(
        "a name of `kinject adapters list`, instead of `peft=`", optional(text), None, shown="none"
    )
    scorer: str | None = argument(
        "`shared`: each distinct prefix is computed once; `harness`: lm_eval's own path",
        one_of("shared", "harness"),
        None,
        shown="`shared` for k > 0",
    )


ALL_SLOTS = (*SLOTS, "scoring")


@dataclass(frozen=True)
class RagArguments:
    """Our own arguments, checked: the pipeline, and what is scored how."""

    pipeline: Pipeline
    adapter: str | None
    scorer: str

    @property
    def k(self) -> int:
        """Chunks in the prompt."""
        return self.pipeline.search.k

    def values(self) -> dict[str, Any]:
        """All arguments of ours by name, with the defaults filled in; a choice's by the name of its slot."""
        found: dict[str, Any] = {}
        for name, stage in self.pipeline.stages().items():
            if name in known_arguments((name,)):
                found[name] = stage.asked
            found |= {own: getattr(stage, own) for own in arguments_of(type(stage))}
        return found | {"adapter": self.adapter, "scorer": self.scorer}


@dataclass(frozen=True)
class Split:
    """What `split` returns: `rag` are ours, `hf` goes to the host class as it is (``pretrained`` may be missing)."""

    rag: RagArguments
    hf: dict[str, Any]


def split(given: Mapping[str, Any], names: Collection[str], engine: Engine = HF, *, loaded: bool = False) -> Split:
    """Takes the arguments apart and checks ours.

    Args:
        given: names and values as lm_eval parsed them (it turns ``none`` into None, ``3`` into an int).
        names: the parameters of the host class's ``__init__``, without ``self`` and ``kwargs``.
        engine: what else is known of the model type.
        loaded: the model is there already, so only arguments of ours are asked for.

    Raises:
        ArgumentError: with all problems that there are.
    """
    problems: list[str] = []
    own: dict[str, Any] = {}
    ours: dict[str, Any] = {}
    known = known_arguments(ALL_SLOTS)
    for name, value in given.items():
        if problem := _refused(name, engine):
            problems.append(problem)
        elif name in known:
            ours[name] = value
        elif name == "model_kwargs" and engine.hands_to and not loaded:
            problems += _escape(value, own, engine)
        elif not loaded and (name in names or name in engine.passes_on):
            own[name] = value
        else:
            problems.append(_unknown(name, {*known, *names}, engine))
    stages, wrong = assemble(ALL_SLOTS, ours)
    problems += wrong
    problems += _contradictions(ours, own, engine)
    problems += engine.limits(ours)
    if not loaded:
        problems += engine.problems(own, ours)
    if problems:
        raise ArgumentError(problems, engine.where)
    return Split(_build(stages, engine), own)


# Names ----------------------------------------------------------------------------------------------------------------


def _refused(name: str, engine: Engine) -> str | None:
    """Why an argument is refused whatever its value, or None."""
    if name in _SECRETS:
        return (
            f"{name}=: lm_eval writes model_args into its log and results, so a secret must not stand there; remove it "
            f"and {engine.secret}"
        )
    return None


def _unknown(name: str, known: Collection[str], engine: Engine) -> str:
    escape = ("model_kwargs",) if engine.hands_to else ()
    said = f"{name}= is unknown{near(name, {*known, *engine.passes_on, *escape})}; remove or correct it"
    if not engine.hands_to:
        return said
    return (
        f"{said} (what only {engine.hands_to} knows goes into model_kwargs of JSON model_args: "
        '{"model_kwargs": {…}})'
    )


def _escape(value: Any, own: dict[str, Any], engine: Engine) -> list[str]:
    if not isinstance(value, Mapping):
        return ['model_kwargs must be a dictionary; pass it in JSON model_args: {"model_kwargs": {"name": value}}']
    secret = [f"model_kwargs: {problem}" for name in value if (problem := _refused(name, engine))]
    own.update({str(name): v for name, v in value.items() if name not in _SECRETS})
    return secret


# Together -------------------------------------------------------------------------------------------------------------


def _contradictions(ours: Mapping[str, Any], own: Mapping[str, Any], engine: Engine) -> list[str]:
    found = [
        f"adapter= and {other}= exclude each other; remove one of the two"
        for other in engine.adapter_excludes
        if ours.get("adapter") and own.get(other)
    ]
    if ours.get("scorer") == "shared" and not engine.shared:
        found.append(f"scorer=shared reads a model in this process, and {engine.type} has none; remove it")
    return found


def _build(stages: Mapping[str, Any], engine: Engine) -> RagArguments:
    """Fills in the default that depends on another stage."""
    pipeline = Pipeline(**{name: stages[name] for name in SLOTS})
    scoring: Scoring = stages["scoring"]
    usual = "shared" if pipeline.search.k > 0 and engine.shared else "harness"
    return RagArguments(pipeline, scoring.adapter, scoring.scorer or usual)


# Docs -----------------------------------------------------------------------------------------------------------------


def argument_table() -> str:
    """The arguments of ``rag-hf`` as the Markdown table of docs/score.md; a test holds the two together."""
    lines = [
        Line("pretrained", "the language model", "the embedded reader, said in one line"),
        *reference(ALL_SLOTS),
        Line("model_kwargs", "JSON model_args only: a dictionary for `from_pretrained`", "none"),
    ]
    rows = [f"| `{line.argument}` | {line.about} | {line.default.replace('`None`', 'none')} |" for line in lines]
    return "\n".join(["| argument | meaning | default |", "|---|---|---|", *rows])
