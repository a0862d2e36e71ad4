"""The arguments of ``rag-hf``: which are ours, which are lm_eval's, and everything that is wrong with them at once.

What it is for: `split` takes all of ``--model_args`` apart before anything is loaded, so that a typo costs a second
and not an hour. What it does not do: it loads no model, corpus or index, so it can't say whether these fit together.

The one idea: lm_eval's ``hf`` hands every name it doesn't know on to ``from_pretrained``, where a misspelt name may be
ignored without a word. Here a name must be one of ours, one of ``hf``'s own (read from its signature), or a known
keyword of ``from_pretrained``; anything else is an error. ``model_kwargs``, a dictionary in JSON model_args, passes
on what this list doesn't know.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from lm_eval_kinject.errors import ArgumentError
from lm_eval_kinject.models import hf_arguments
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

__all__ = ["ALL_SLOTS", "FROM_PRETRAINED", "WHERE", "RagArguments", "argument_table", "split"]

WHERE = "the arguments of rag-hf (--model_args)"

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
    """What `split` returns: `rag` are ours, `hf` goes to lm_eval's ``hf`` as it is (``pretrained`` may be missing)."""

    rag: RagArguments
    hf: dict[str, Any]


def split(given: Mapping[str, Any], hf_names: Collection[str]) -> Split:
    """Takes the arguments apart and checks ours.

    Args:
        given: names and values as lm_eval parsed them (it turns ``none`` into None, ``3`` into an int).
        hf_names: the parameters of lm_eval's ``HFLM.__init__``, without ``self`` and ``kwargs``.

    Raises:
        ArgumentError: with all problems that there are.
    """
    problems: list[str] = []
    hf: dict[str, Any] = {}
    ours: dict[str, Any] = {}
    known = known_arguments(ALL_SLOTS)
    for name, value in given.items():
        if problem := _refused(name):
            problems.append(problem)
        elif name in known:
            ours[name] = value
        elif name == "model_kwargs":
            problems += _escape(value, hf)
        elif name in hf_names or name in FROM_PRETRAINED:
            hf[name] = value
        else:
            problems.append(_unknown(name, {*known, *hf_names}))
    stages, wrong = assemble(ALL_SLOTS, ours)
    problems += wrong
    problems += _contradictions(ours, hf)
    problems += hf_arguments.problems(hf)
    if problems:
        raise ArgumentError(problems, WHERE)
    return Split(_build(stages), hf)


# Names ----------------------------------------------------------------------------------------------------------------


def _refused(name: str) -> str | None:
    """Why an argument is refused whatever its value, or None."""
    if name in _SECRETS:
        return (
            f"{name}=: lm_eval writes model_args into its log and results, so a secret must not stand there; remove it "
            "and set the environment variable HF_TOKEN (or run `hf auth login`)"
        )
    return None


def _unknown(name: str, known: Collection[str]) -> str:
    return (
        f"{name}= is unknown{near(name, {*known, *FROM_PRETRAINED, 'model_kwargs'})}; remove or correct it (what only "
        'from_pretrained knows goes into model_kwargs of JSON model_args: {"model_kwargs": {…}})'
    )


def _escape(value: Any, hf: dict[str, Any]) -> list[str]:
    if not isinstance(value, Mapping):
        return ['model_kwargs must be a dictionary; pass it in JSON model_args: {"model_kwargs": {"name": value}}']
    secret = [f"model_kwargs: {problem}" for name in value if (problem := _refused(name)) and name in _SECRETS]
    hf.update({str(name): v for name, v in value.items() if name not in _SECRETS})
    return secret


# Together -------------------------------------------------------------------------------------------------------------


def _contradictions(ours: Mapping[str, Any], hf: Mapping[str, Any]) -> list[str]:
    return [
        f"adapter= and {other}= exclude each other; remove one of the two"
        for other in ("peft", "delta")
        if ours.get("adapter") and hf.get(other)
    ]


def _build(stages: Mapping[str, Any]) -> RagArguments:
    """Fills in the default that depends on another stage."""
    pipeline = Pipeline(**{name: stages[name] for name in SLOTS})
    scoring: Scoring = stages["scoring"]
    usual = "shared" if pipeline.search.k > 0 else "harness"
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
