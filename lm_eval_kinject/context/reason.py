"""Whether the model writes steps before it answers; the slot ``reasoning``.

What it is for: `SelfReasoning` (Xia et al. 2024, arXiv 2407.19813) has one generation say whether the retrieved text is
relevant, what of it is evidence, and the analysis with its answer; `Steps` is such a trajectory, `parse` and `as_text`
are its two directions, for prompts and for training alike. What it does not do: it asks no model and counts nothing
(`models.reasoning`), and trains none (`kinject train`, the form ``self-reasoning`` of robust fine-tuning).

The one idea: *a trajectory is one JSON object of one shape*. What has any other shape is malformed as a whole; nothing
is guessed from it, so that no answer is scored that isn't part of a complete chain.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from lm_eval_kinject.retrieval.library import Search
from lm_eval_kinject.stages import Stage, argument, register, slot, whole

__all__ = [
    "INSTRUCTION", "Direct", "Evidence", "MalformedError", "Reasoning", "SelfReasoning", "Steps", "as_text", "parse",
    "quotes",
]  # fmt: skip

slot("reasoning", "whether the model writes steps before it answers", default="none")

INSTRUCTION = """\
Answer the question below with one JSON object and nothing else. Its fields, in this order:
"relevant": true if the text above helps to answer the question, else false.
"relevant reason": why it does or doesn't.
"evidence": a list, empty if nothing is relevant, of objects {"cite content": a sentence copied word for word from the \
text above, "reason to cite": how it bears on the question}.
"analysis": what follows from the evidence; if nothing is relevant, what you know yourself.
"answer": the final answer alone, as short as possible.

"""
"""What stands behind the chunks; wording ours, fields the paper's."""

_FENCED = re.compile(r"```(?:json)?[ \t]*\n(.*)\n```", re.DOTALL)
_WORD = re.compile(r"[^\W_]+")
_FEWEST = 3
"""Words of a quotation at least; fewer stand nearly anywhere."""

_FIELDS = {"relevant": bool, "relevant reason": str, "evidence": list, "analysis": str, "answer": str}
_CITED = {"cite content": str, "reason to cite": str}


class MalformedError(ValueError):
    """A text isn't a trajectory; says why, in few words that can be counted."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """A passage that is cited, and why."""

    content: str
    reason: str


@dataclass(frozen=True, slots=True)
class Steps:
    """A trajectory: relevance, evidence (empty if nothing is relevant), analysis and answer."""

    relevant: bool
    relevant_reason: str
    evidence: tuple[Evidence, ...]
    analysis: str
    answer: str


def as_text(steps: Steps) -> str:
    """Writes a trajectory as `parse` reads it."""
    cited = [{"cite content": one.content, "reason to cite": one.reason} for one in steps.evidence]
    values = (steps.relevant, steps.relevant_reason, cited, steps.analysis, steps.answer)
    return json.dumps(dict(zip(_FIELDS, values, strict=True)), ensure_ascii=False)


def parse(text: str) -> Steps:
    """Reads a trajectory: one JSON object, alone or in one Markdown fence, with just the fields it must have, in order.

    Raises:
        MalformedError: it has another shape, an answer or a citation without a word, or evidence where nothing is
            relevant, or none where something is.
    """
    text = text.strip()
    fenced = _FENCED.fullmatch(text)
    try:
        found = json.loads(fenced[1] if fenced else text, object_pairs_hook=_object)
        json.dumps(found, ensure_ascii=False).encode()  # half a character can't be written into any log
    except MalformedError:
        raise
    except (ValueError, RecursionError) as error:
        raise MalformedError("not one JSON object") from error
    fields = _checked(found, _FIELDS, "the object")
    cited = [_checked(one, _CITED, "evidence") for one in fields["evidence"]]
    evidence = tuple(Evidence(one["cite content"], one["reason to cite"]) for one in cited)
    if fields["relevant"] != bool(evidence):
        raise MalformedError("evidence contradicts relevance")
    if not all(_WORD.search(one.content) for one in evidence):
        raise MalformedError("empty citation")
    answer = fields["answer"].strip()
    if not _WORD.search(answer):
        raise MalformedError("empty answer")
    return Steps(fields["relevant"], fields["relevant reason"], evidence, fields["analysis"], answer)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) < len(pairs):
        raise MalformedError("a field twice")
    return dict(pairs)


def _checked(value: Any, shape: Mapping[str, type], what: str) -> dict[str, Any]:
    if not isinstance(value, dict) or list(value) != list(shape):
        raise MalformedError(f"{what} has other fields")
    if any(not isinstance(value[name], kind) for name, kind in shape.items()):
        raise MalformedError(f"{what} has values of another kind")
    return value


def quotes(citation: str, source: str) -> bool:
    """Whether a citation's words stand in a source in a row, whatever case and punctuation; fewer than 3 never do."""
    words, said = (_WORD.findall(text.casefold()) for text in (citation, source))
    return len(words) >= _FEWEST and f" {' '.join(words)} " in f" {' '.join(said)} "


# Stages ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Reasoning(Stage):
    """Says what the model is told to write, and how much it may."""

    slot: ClassVar[str] = "reasoning"
    instruction: ClassVar[str] = ""
    """Stands behind the chunks."""

    def generation(self, asked: Any) -> Any:
        """A request's second argument, as the model is to get it."""
        return asked


@register
@dataclass(frozen=True)
class Direct(Reasoning):
    """The answer comes directly."""

    name: ClassVar[str] = "none"


@register
@dataclass(frozen=True)
class SelfReasoning(Reasoning):
    """Relevance, evidence, analysis and answer as one JSON object; the answer alone is scored."""

    name: ClassVar[str] = "self-reasoning"
    instruction: ClassVar[str] = INSTRUCTION

    reasoning_tokens: int = argument("most tokens of the steps with the answer", whole(1, "tokens"), 512)

    @classmethod
    def problems(cls, given: Mapping[str, Any]) -> list[str]:
        """Nothing to cite, or other stages that ask otherwise."""
        found, asked = [], f"reasoning={cls.name}"
        if given.get("retriever", Search.retriever) == "none" or given.get("k", Search.k) == 0:
            found.append(f"{asked} with k=0: no text is retrieved that could be cited; pass k=1 or more, or remove it")
        if (fusion := given.get("fusion", "concat")) != "concat":
            found.append(
                f"{asked} needs one prompt a question, and fusion={fusion} has one a chunk; pass fusion=concat"
            )
        if (route := given.get("route", "none")) != "none":
            found.append(f"{asked} says itself whether the text suffices, as route={route} does; remove one of them")
        return found

    def generation(self, asked: Any) -> dict[str, Any]:
        """A task's, with room for the steps and without its stop strings, which are meant for a bare answer."""
        lengths = ("max_new_tokens", "max_tokens", "max_completion_tokens", "max_length")
        kept = {name: value for name, value in asked.items() if name not in lengths}
        return {**kept, "until": [], "max_gen_toks": self.reasoning_tokens}

    def provenance(self) -> dict[str, Any]:
        """The instruction too."""
        return {**super().provenance(), "instruction": self.instruction}
