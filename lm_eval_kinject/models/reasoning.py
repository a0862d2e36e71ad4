"""What became of written steps: the answers that are handed on, and what a result says of the rest.

What it is for: `read` turns what a model wrote (`lm_eval_kinject.context.reason`) into the answers for lm_eval and one
`Reasoned` a question; `reasoning_figures` adds those up. What it does not do: it asks no model, and judges no answer.

The one idea: *citations are compared word for word*, with what was in the prompt and with the chunk that the question
was made from. That is stricter than the paper's entailment model, needs none, and a paraphrase doesn't pass for a
quotation.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from lm_eval_kinject.context.reason import MalformedError, parse, quotes
from lm_eval_kinject.models.prompts import Written, mark_on
from lm_eval_kinject.records import gold_ids

__all__ = ["Reasoned", "read", "reasoning_figures"]


@dataclass(frozen=True, slots=True)
class Reasoned:
    """One question's share in the figures.

    ``malformed`` is why its text is no trajectory, None where it is one. Of its citations, ``in_prompt`` stand in a
    chunk of the prompt and ``in_source`` in a source chunk that is in the prompt; ``sources_cited`` of its ``sources``
    are cited.
    """

    task: str
    doc_id: int
    malformed: str | None
    relevant: bool = False
    citations: int = 0
    in_prompt: int = 0
    in_source: int = 0
    sources: int = 0
    sources_cited: int = 0


def read(requests: Sequence[Any], texts: Sequence[str]) -> tuple[list[str], list[Reasoned]]:
    """The final answers, empty where a text is malformed, and what became of each question.

    Instances get what was written into their log. One that comes several times (repeats, padding between ranks) counts
    once, as it was answered first. What has no retrieved text was given no instruction and keeps its answer.
    """
    answers: list[str] = []
    found: dict[int, Reasoned] = {}
    for request, text in zip(requests, texts, strict=True):
        mark = mark_on(request)
        if mark is None:
            answers.append(text)
            continue
        answer, one, note = _one(request, mark, text)
        answers.append(answer)
        if id(request) not in found:
            found[id(request)] = one
            log = {**request.arguments[-1]["kinject"], "reasoning": note}
            request.arguments = (*request.arguments[:-1], {"kinject": log})
    return answers, list(found.values())


def _one(request: Any, mark: Written, text: str) -> tuple[str, Reasoned, dict[str, Any]]:
    task, doc_id = str(request.task_name), -1 if request.doc_id is None else int(request.doc_id)
    gold = gold_ids(mark.trace.gold)
    try:
        steps = parse(text)
    except MalformedError as error:
        note = {"written": text, "malformed": str(error)}
        return "", Reasoned(task, doc_id, str(error), sources=len(gold)), note
    cited = [one.content for one in steps.evidence]
    chunks = [hit.chunk for hit in mark.trace.hits if hit.chunk.id in mark.trace.used]
    stand = {(one, chunk.id) for one in cited for chunk in chunks if quotes(one, f"{chunk.title}\n{chunk.text}")}
    within = {one for one, _ in stand}
    right = {one for one, chunk in stand if chunk in gold}
    made = Reasoned(
        task,
        doc_id,
        None,
        steps.relevant,
        len(cited),
        in_prompt=sum(one in within for one in cited),
        in_source=sum(one in right for one in cited),
        sources=len(gold),
        sources_cited=len({chunk for _, chunk in stand if chunk in gold}),
    )
    return steps.answer, made, {"written": text, **asdict(steps)}


def reasoning_figures(of: Iterable[Reasoned]) -> dict[str, dict[str, Any]]:
    """What a result says of written steps, per task.

    ``malformed`` counts the questions whose text is no trajectory, ``malformed_by`` why. ``citations_in_prompt`` is the
    share of citations that stand in the prompt's chunks. Of questions that name source chunks, ``citation_recall`` is
    the share of these that are cited (a malformed text cites none), ``citation_precision`` the share of citations that
    stand in one; None where there is nothing to take a share of.
    """
    tasks: dict[str, list[Reasoned]] = {}
    for one in of:
        tasks.setdefault(one.task, []).append(one)
    return {task: _figures(found) for task, found in sorted(tasks.items())}


def _figures(found: list[Reasoned]) -> dict[str, Any]:
    why = Counter(one.malformed for one in found if one.malformed is not None)
    gold = [one for one in found if one.sources]
    citations = sum(one.citations for one in found)
    return {
        "questions": len(found),
        "malformed": why.total(),
        "malformed_by": dict(sorted(why.items())),
        "relevant": sum(one.relevant for one in found),
        "citations": citations,
        "citations_in_prompt": _share(sum(one.in_prompt for one in found), citations),
        "citation_recall": _share(sum(one.sources_cited for one in gold), sum(one.sources for one in gold)),
        "citation_precision": _share(sum(one.in_source for one in gold), sum(one.citations for one in gold)),
    }


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None
