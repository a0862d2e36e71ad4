"""How a request knows which task it comes from; our only hold on lm_eval's internals.

lm_eval hands a model bare Instances: a document, a task's name and strings. To put text directly before the asked
question we must know how the task rendered it, and to retrieve we must know which corpus the task declares. So each
Instance is given its task, as an attribute, when lm_eval builds the requests (`install`), and lookups here answer
what the task says about it. What this module does not do: it changes no prompt, no score and no other model's run.

Shims, each with the condition for its removal:

- `install` wraps ``Task.build_all_requests`` (lm-eval 0.4.13): until lm_eval's Instances name their Task.
- `Origin.chat` carries ``apply_chat_template`` over: until Instances say how their prompt was rendered.
- `would_score` runs a task's filters and metrics on other responses than its Instances got (``Task._filters``): until a
  task offers that itself.
- the same wrapper refuses tasks of multiple choice for our models that have no log-probabilities, where lm_eval would
  run the tasks of open answers first: until lm_eval asks a model what it can do.
- for our models with ``k > 0`` the wrapper turns ``cache_requests`` off where a chat template is applied, as requests
  read from lm_eval's cache never went through ``apply_chat_template``: until that cache keeps the messages.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lm_eval.api.task import Task

from lm_eval_kinject.errors import ArgumentError, ContextError
from lm_eval_kinject.log import log
from lm_eval_kinject.records import Gold

__all__ = [
    "Declaration",
    "Origin",
    "declaration",
    "endings",
    "gold_of",
    "install",
    "no_log_probs",
    "origin_of",
    "rendered_question",
    "where",
    "would_score",
]

_ATTRIBUTE = "kinject_origin"
_INSTALLED = "_kinject_wraps_build_all_requests"


@dataclass(frozen=True, slots=True)
class Origin:
    """Where an Instance comes from: its ``task``, and whether its prompt went through a chat template."""

    task: Any
    chat: bool


@dataclass(frozen=True, slots=True)
class Declaration:
    """What a task's YAML says under ``metadata: kinject:``, each None where it says nothing.

    ``corpus`` is a name or path of a corpus, ``query`` the document's field with the question (or a Jinja template),
    ``gold`` the document's field with the id of the chunk that the question was made from, or a list
    of ids where it takes all of them, ``document`` its field with the name of the corpus's document that a rolling text
    is, which is never retrieved for it.
    """

    corpus: str | None = None
    query: str | None = None
    gold: str | None = None
    document: str | None = None


def install() -> None:
    """Makes every Task give its Instances their `Origin`; a second call does nothing."""
    original = Task.build_all_requests
    if getattr(original, _INSTALLED, False):
        return

    @functools.wraps(original)
    def build_all_requests(self: Any, **kwargs: Any) -> None:
        model = getattr(kwargs.get("chat_template"), "__self__", None)
        if getattr(model, "gives_log_probs", True) is False and self.OUTPUT_TYPE != "generate_until":
            raise no_log_probs(self.config.task)
        chat = bool(kwargs.get("apply_chat_template"))
        if chat and kwargs.get("cache_requests") and getattr(getattr(model, "rag", None), "k", 0) > 0:
            log.warning("cache_requests is ignored: with a chat template and retrieval, prompts are built afresh.")
            kwargs["cache_requests"] = False
        original(self, **kwargs)
        origin = Origin(self, chat)
        for instance in self.instances or ():
            setattr(instance, _ATTRIBUTE, origin)

    setattr(build_all_requests, _INSTALLED, True)
    Task.build_all_requests = build_all_requests


def no_log_probs(task: str | None) -> ArgumentError:
    """What is said of a task that is scored by log-probabilities, to a model without them."""
    named = "this task" if task is None else f"the task {task}"
    return ArgumentError(
        f"{named} is scored by log-probabilities of the prompt's own tokens, as every one of multiple choice, "
        "and there are no log-probabilities of a prompt here; run tasks of open answers (generate_until), such as "
        "current_events_gen, or score the model with rag-hf",
        "the command",
    )


def origin_of(instance: Any) -> Origin | None:
    """Returns where an Instance comes from; None if it wasn't built by a Task since `install`."""
    return getattr(instance, _ATTRIBUTE, None)


def where(instance: Any) -> str:
    """Names an Instance in an error: ``arc_easy, document 3``."""
    return f"{instance.task_name or 'a request without a task'}, document {instance.doc_id}"


def declaration(instance: Any) -> Declaration:
    """Returns what the Instance's task declares.

    A ``corpus`` that is a path relative to the YAML's folder is made absolute, so that it holds from anywhere.

    Raises:
        ContextError: ``metadata.kinject`` is no mapping of text, or has a key that isn't known.
    """
    origin = origin_of(instance)
    metadata = getattr(getattr(origin and origin.task, "config", None), "metadata", None)
    said = metadata.get("kinject") if isinstance(metadata, Mapping) else None
    if not isinstance(metadata, Mapping) or said is None:
        return Declaration()
    known = ("corpus", "query", "gold", "document")
    if not isinstance(said, Mapping) or set(said) - set(known) or not all(isinstance(v, str) for v in said.values()):
        raise ContextError(
            f"{instance.task_name}: metadata.kinject in the task's YAML is {said!r}; it must be a mapping of some of "
            f"{', '.join(known)} to text."
        )
    corpus = said.get("corpus")
    if corpus is not None:
        beside = Path(str(metadata.get("config_source", ""))).parent / corpus
        corpus = str(beside) if beside.exists() else corpus
    return Declaration(corpus, said.get("query"), said.get("gold"), said.get("document"))


def gold_of(instance: Any, field: str | None) -> Gold | None:
    """Returns what the document names as its gold chunk, or chunks; None where it names none.

    Args:
        instance: whose document.
        field: what the task declares as ``gold``.

    Raises:
        ContextError: the field is neither an id nor a list of them.
    """
    found = instance.doc.get(field) if field and isinstance(instance.doc, Mapping) else None
    if isinstance(found, Mapping) or (isinstance(found, list | tuple) and not all(_is_id(one) for one in found)):
        raise ContextError(
            f"{where(instance)}: its field {field} (metadata.kinject.gold) must hold a chunk's id or a "
            f"list of ids, and is {found!r}."
        )
    if isinstance(found, list | tuple):
        return tuple(dict.fromkeys(map(str, found))) or None
    return None if found is None else str(found)


def _is_id(value: Any) -> bool:
    return isinstance(value, str | int) and not isinstance(value, bool)


def rendered_question(instance: Any) -> tuple[str | None, list[str] | None, bool]:
    """Returns the question as the task rendered it into this Instance's prompt.

    Returns:
        The text, None where there is no task to ask; the task's options, if it has any; and whether the text varies
        by option (then it is the one of this Instance's option).
    """
    origin = origin_of(instance)
    if origin is None:
        return None, None, False
    task = origin.task
    config = getattr(task, "config", None)
    has_choices = getattr(config, "doc_to_choice", None) is not None
    choices = [str(c) for c in task.doc_to_choice(instance.doc)] if has_choices else None
    text = task.doc_to_text(instance.doc)
    if isinstance(text, int) and choices is not None:
        return choices[instance.idx % len(choices)], choices, True
    return str(text), choices, False


def endings(instance: Any, question: str) -> tuple[str, ...]:
    """Returns what may stand behind the question at the end of a prompt without a chat template, likeliest first.

    That is nothing, or the task's ``gen_prefix`` with or without the delimiter that lm_eval puts before it.
    """
    origin = origin_of(instance)
    prefix = origin.task.doc_to_prefix(instance.doc) if origin is not None else None
    if not prefix:
        return ("",)
    delimiter = str(getattr(getattr(origin.task, "config", None), "target_delimiter", " ")) if origin else " "
    return (delimiter + prefix, prefix)


_METRICS = ("acc", "exact_match", "em", "f1")


def would_score(instances: Sequence[Any], responses: Sequence[Any]) -> float | None:
    """What a question would score with other responses, by the task's own filters and metrics.

    Args:
        instances: all of one question, in the order of its options.
        responses: one an Instance, as a model returns them.

    Returns:
        Accuracy, exact match or F1, whichever the task has first, else its first metric; None where there is no task,
        or no number for a single question (as of mutual information, which takes other requests too).
    """
    origin = origin_of(instances[0])
    if origin is None or "acc_mutual_info" in getattr(origin.task, "_metric_fn_list", {}):
        return None
    copies = [copy.copy(instance) for instance in instances]
    for one, response in zip(copies, responses, strict=True):
        one.resps, one.filtered_resps = [response], {}
    origin.task._filters[0].apply(copies)
    name = origin.task._filters[0].name
    found = origin.task.process_results(instances[0].doc, [one.filtered_resps[name] for one in copies])
    metric = next((m for m in _METRICS if m in found), next(iter(found), None))
    try:
        return None if metric is None else float(found[metric])
    except (TypeError, ValueError):  # a metric of all questions together
        return None
