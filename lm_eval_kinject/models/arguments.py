"""The arguments of ``rag-hf``: which are ours, which are lm_eval's, and everything that is wrong with them at once.

What it is for: `split` takes all of ``--model_args`` apart before anything is loaded, so that a typo costs a second
and not an hour. What it does not do: it loads no model, corpus or index, so it can't say whether these fit together.

The one idea: lm_eval's ``hf`` hands every name it doesn't know on to ``from_pretrained``, where a misspelt name may be
ignored without a word. Here a name must be one of ours, one of ``hf``'s own (read from its signature), or a known
keyword of ``from_pretrained``; anything else is an error. ``model_kwargs``, a dictionary in JSON model_args, passes
on what this list doesn't know.
"""

from __future__ import annotations

import difflib
import importlib.util
import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from lm_eval_kinject.context.compose import DEFAULT_TEMPLATE, read_template
from lm_eval_kinject.context.query import QueryRule
from lm_eval_kinject.errors import ArgumentError
from lm_eval_kinject.retrieval.make import DEFAULT_SEED, retriever_problems

__all__ = ["FROM_PRETRAINED", "WHERE", "RagArguments", "split"]

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

_LATER = {
    "rerank": "a cross-encoder over the hits",
    "rerank_from": "a cross-encoder over the hits",
    "temperature": "marginalised fusion",
}
_LATER_VALUES = {
    "order": ("relevance", ("reverse", "sides")),
    "fusion": ("concat", ("rag-sequence", "rag-token")),
    "route": ("none", ("self-route",)),
    "reasoning": ("none", ("self-reasoning",)),
}
_SECRETS = ("token", "hf_token", "use_auth_token", "auth_token", "api_key", "access_token")
_EXCLUSIVE = (("peft", "delta"), ("parallelize", "tp_plan"), ("autogptq", "gptqmodel"))


def _help(text: str, **more: Any) -> Any:
    return field(metadata={"help": text}, **more)


@dataclass(frozen=True)
class RagArguments:
    """Our own arguments, checked; each field's ``help`` metadata is its line in the reference."""

    retriever: str = _help("finds the chunks: a short name, a sentence-transformers id or a path", default="minilm")
    k: int = _help("chunks in the prompt, 0 or more; 0 is lm_eval's hf to the bit", default=3)
    corpus: str | None = _help("a name, folder, file or Hub dataset id; None: what the task declares", default=None)
    index: str | None = _help("a prebuilt index, a folder or Hub id; None: built once and reused", default=None)
    query: str = _help("question, question+choices, or a Jinja template over the document", default="question")
    placement: str = _help("question: directly before the asked question; start: before everything", default="question")
    context_template: str | None = _help("file with a Jinja template over `chunks`; None: built in", default=None)
    context_tokens: int | None = _help(
        "most tokens of retrieved text; None: as the model's window allows", default=None
    )
    retriever_dtype: Literal["float32", "bfloat16"] = _help(
        "float32, or bfloat16 where the processor has it", default="float32"
    )
    retriever_revision: str | None = _help("commit, branch or tag of the retriever's weights", default=None)
    retriever_seed: int = _help("seed of the control `random`", default=DEFAULT_SEED)
    adapter: str | None = _help("a name of `kinject adapters list`, instead of peft= and its revision", default=None)
    scorer: str = _help("shared (default for k > 0) or harness (default for k = 0)", default="harness")
    # not arguments themselves, but read from the files that these name
    rule: QueryRule = field(default_factory=lambda: QueryRule("question"))
    template: str = DEFAULT_TEMPLATE


_DERIVED = {"rule", "template"}
_OURS = {f.name for f in fields(RagArguments)} - _DERIVED


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
    for name, value in given.items():
        if problem := _refused(name, value):
            problems.append(problem)
        elif name in _LATER_VALUES:
            continue  # its only value so far is the default
        elif name in _OURS:
            ours[name] = value
        elif name == "model_kwargs":
            problems += _escape(value, hf)
        elif name in hf_names or name in FROM_PRETRAINED:
            hf[name] = value
        else:
            problems.append(_unknown(name, hf_names))
    checked = _check(ours, problems)
    problems += _contradictions(ours, checked, hf)
    problems += _missing_folders(hf)
    if problems:
        raise ArgumentError(problems, WHERE)
    return Split(_build(checked), hf)


# Names ----------------------------------------------------------------------------------------------------------------


def _refused(name: str, value: Any) -> str | None:
    """Why an argument is refused whatever else is given, or None."""
    if name in _SECRETS:
        return (
            f"{name}=: lm_eval writes model_args into its log and results, so a secret must not stand there; remove it "
            "and set the environment variable HF_TOKEN (or run `hf auth login`)"
        )
    if name in _LATER:
        return f"{name}= ({_LATER[name]}) is not yet available; remove it"
    if name in _LATER_VALUES:
        only, later = _LATER_VALUES[name]
        text = "none" if value is None else str(value)
        if text in later:
            return f"{name}={text} is not yet available; remove it, or pass {name}={only}"
        if text != only:
            return f"{name}={text} is unknown{_near(text, (only, *later))}; pass {name}={only}"
    return None


def _unknown(name: str, hf_names: Collection[str]) -> str:
    known = {*_OURS, *_LATER_VALUES, *hf_names, *FROM_PRETRAINED, "model_kwargs"}
    return (
        f"{name}= is unknown{_near(name, known)}; remove or correct it (what only from_pretrained knows goes into "
        'model_kwargs of JSON model_args: {"model_kwargs": {…}})'
    )


def _near(word: str, known: Collection[str]) -> str:
    close = difflib.get_close_matches(word, sorted(known), n=2, cutoff=0.6)
    return f" (did you mean {' or '.join(close)}?)" if close else ""


def _escape(value: Any, hf: dict[str, Any]) -> list[str]:
    if not isinstance(value, Mapping):
        return ['model_kwargs must be a dictionary; pass it in JSON model_args: {"model_kwargs": {"name": value}}']
    secret = [f"model_kwargs: {problem}" for name in value if (problem := _refused(name, None)) and name in _SECRETS]
    hf.update({str(name): v for name, v in value.items() if name not in _SECRETS})
    return secret


# Values ---------------------------------------------------------------------------------------------------------------


def _check(ours: Mapping[str, Any], problems: list[str]) -> dict[str, Any]:
    """Returns the values that are sound by themselves; adds what is wrong with the others to `problems`."""
    checked: dict[str, Any] = {}
    for name, value in ours.items():
        try:
            checked[name] = _CHECKS[name](name, value)
        except ArgumentError as error:
            problems += error.problems
    return checked


def _whole(least: int, unit: str) -> Callable[[str, Any], int]:
    def check(name: str, value: Any) -> int:
        if isinstance(value, float) and value.is_integer():
            value = int(value)  # lm_eval's command line reads -3 as -3.0
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ArgumentError(f"{name}={value} must be a whole number of {unit}, {least} or more; correct it")
        return value

    return check


def _optional(check: Callable[[str, Any], Any]) -> Callable[[str, Any], Any]:
    return lambda name, value: None if value is None else check(name, value)


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str | os.PathLike) or not str(value).strip():
        raise ArgumentError(f"{name}={value} must be a name or a path; correct it")
    return os.fspath(value)


def _one_of(*allowed: str) -> Callable[[str, Any], str]:
    def check(name: str, value: Any) -> str:
        text = str(value)
        if text not in allowed:
            raise ArgumentError(f"{name}={text} is unknown{_near(text, allowed)}; pass {' or '.join(allowed)}")
        return text

    return check


def _retriever(name: str, value: Any) -> str:
    return "none" if value is None else _text(name, value)  # lm_eval reads the word none as None


def _query(name: str, value: Any) -> str:
    text = _text(name, value)
    QueryRule.parse(text)
    return text


def _template(name: str, value: Any) -> str:
    text = _text(name, value)
    read_template(text)
    return text


_CHECKS: dict[str, Callable[[str, Any], Any]] = {
    "retriever": _retriever,
    "k": _whole(0, "chunks"),
    "corpus": _optional(_text),
    "index": _optional(_text),
    "query": _query,
    "placement": _one_of("question", "start"),
    "context_template": _optional(_template),
    "context_tokens": _optional(_whole(1, "tokens")),
    "retriever_dtype": _text,
    "retriever_revision": _optional(_text),
    "retriever_seed": _whole(0, "the seed"),
    "adapter": _optional(_text),
    "scorer": _one_of("shared", "harness"),
}


# Together -------------------------------------------------------------------------------------------------------------


def _contradictions(ours: Mapping[str, Any], checked: Mapping[str, Any], hf: Mapping[str, Any]) -> list[str]:
    problems = []
    retriever = checked.get("retriever", RagArguments.retriever)
    if retriever == "none" and checked.get("k", 0) > 0:
        problems.append(f"retriever=none with k={checked['k']} contradict each other; pass k=0, or another retriever")
    problems += retriever_problems(
        retriever,
        dtype=checked.get("retriever_dtype", RagArguments.retriever_dtype),
        index=checked.get("index"),
        revision=checked.get("retriever_revision"),
    )
    for one, other in _EXCLUSIVE:
        if hf.get(one) and hf.get(other):
            problems.append(f"{one}= and {other}= exclude each other; remove one of the two")
    problems += [
        f"adapter= and {other}= exclude each other; remove one of the two"
        for other in ("peft", "delta")
        if checked.get("adapter") and hf.get(other)
    ]
    if hf.get("enable_thinking") and hf.get("think_end_token") is None:
        problems.append("enable_thinking=True needs think_end_token=, the token that ends a model's thoughts; pass it")
    if hf.get("peft") and importlib.util.find_spec("peft") is None:
        problems.append("peft= needs the package peft; install it with `pip install peft`")
    return problems


def _missing_folders(hf: Mapping[str, Any]) -> list[str]:
    """Values that can only be a path on this disk (a Hub id has one slash and no dot first), and aren't there."""
    problems = []
    for name in ("pretrained", "peft", "delta", "tokenizer"):
        value = hf.get(name)
        if not isinstance(value, str):
            continue
        path = Path(value).expanduser()
        looks_local = value.startswith(("/", "./", "../", "~")) or value.count("/") > 1
        if looks_local and not path.exists():
            problems.append(
                f"{name}={value}: no such folder; correct the path, or pass a Hub id in the form owner/name"
            )
    return problems


def _build(checked: dict[str, Any]) -> RagArguments:
    """Fills in the defaults that depend on one another and reads the files that arguments name."""
    if checked.get("retriever") == "none":
        checked["k"] = 0
    k = checked.get("k", RagArguments.k)
    checked.setdefault("scorer", "shared" if k > 0 else "harness")
    file = checked.get("context_template")
    return RagArguments(
        **checked,
        rule=QueryRule.parse(checked.get("query", "question")),
        template=read_template(file) if file else DEFAULT_TEMPLATE,
    )
