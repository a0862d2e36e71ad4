"""Questions asked twice: first with a short context, and those that it doesn't seem to suffice for with a long one.

What it is for: `Router` runs a route (`lm_eval_kinject.context.route`) over the requests of one call of a model;
`route_figures` is what a result says of it. What it does not do: it writes no prompt (`prompts` has written both) and
computes no log-likelihood (the model does).

The one idea: *two calls of the model, whatever the route*. The first asks everything with the short context, and the
marker as one more option where that is the criterion; the second asks what is to be asked again. Instances then say
which prompt their answer comes from, and their trace says why.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lm_eval.api.instance import Instance

from lm_eval_kinject.context.route import Again, RandomRoute, SelfRoute, declined, entropy, margin, unanswerable
from lm_eval_kinject.errors import ArgumentError, ContextError
from lm_eval_kinject.models import task_hook
from lm_eval_kinject.models.host import Host
from lm_eval_kinject.models.prompts import Longer, Written, behind, mark_on

__all__ = ["Routed", "Router", "route_figures"]


@dataclass(frozen=True, slots=True)
class Routed:
    """One question's share in the figures.

    ``routed``: its answer comes from the long context. ``more``: the long context has text that the short one lacks.
    Tokens are those of the prompts, the question and all before it included. ``short`` and ``long`` are what the task's
    metric gives for each context's answer, both None where not both were asked.
    """

    task: str
    doc_id: int
    routed: bool
    more: bool
    short_tokens: int
    long_tokens: int
    short: float | None = None
    long: float | None = None


@dataclass
class _Question:
    """A question on its way: the Instances of its options, or the one that is generated from."""

    instances: list[Any]
    mark: Written
    value: float | None = None
    routed: bool = False

    @property
    def longer(self) -> Longer:
        assert self.mark.longer is not None  # else it isn't one that can be asked again
        return self.mark.longer


class Router:
    """Asks the requests of one call, all or some of them twice.

    Args:
        route: says which, and with what.
        host: counts tokens.
        bare: makes a plain request of an Instance and a prompt (`PromptWriter.bare`).
        ask: the model: requests in, answers out.
        jointly: other processes ask at the same time, so that each of them must call the model as often.

    Attributes:
        routed: what became of each question, after `answers`.
    """

    def __init__(
        self,
        route: Again,
        host: Host,
        bare: Callable[..., Any],
        ask: Callable[[list[Any]], list[Any]],
        *,
        jointly: bool = False,
    ) -> None:
        self._route = route
        self._host = host
        self._bare = bare
        self._ask = ask
        self._jointly = jointly
        self._lengths: dict[tuple[str, str], int] = {}
        self.routed: list[Routed] = []

    def answers(self, method: str, requests: Sequence[Any]) -> list[Any]:
        """The answers that count, in the order of the requests, whose Instances are changed to show their prompt.

        Raises:
            ArgumentError: the criterion needs options, and something is to be generated.
            ContextError: it needs several options, and a question has one.
        """
        questions = _questions(requests)
        if method == "loglikelihood":
            return self._choose(requests, questions)
        return self._write(requests, questions)

    # Multiple choice ------------------------------------------------------------------------------------------------

    def _choose(self, requests: Sequence[Any], questions: list[_Question]) -> list[Any]:
        route = self._route
        for question in questions:
            self._refuse_options(question)
        asked = [question for question in questions if route.declines]
        found = self._ask([*map(self._short, requests), *map(self._decline, asked)])
        found, declining = found[: len(requests)], found[len(requests) :]
        short = dict(zip(map(id, requests), found, strict=True))
        markers = dict(zip(map(id, asked), (score for score, _ in declining), strict=True))
        for question in questions:
            question.value = self._value(question, [short[id(i)][0] for i in question.instances], markers)
        self._decide(questions)
        again = [question for question in questions if question.routed or route.route_both]
        long = self._ask_long([i for question in again for i in question.instances], questions)
        for question in questions:
            both = [[of[id(i)] for i in question.instances if id(i) in of] for of in (short, long)]
            self._note(question, both[0], both[1], [score for score, _ in both[0]], [score for score, _ in both[1]])
        final = {id(i) for question in questions if question.routed for i in question.instances}
        return [long[id(r)] if id(r) in final else answer for r, answer in zip(requests, found, strict=True)]

    def _refuse_options(self, question: _Question) -> None:
        """A route that looks at options needs some: of one alone, which is the right one, it would tell the answer."""
        route, instances = self._route, question.instances
        if not isinstance(route, SelfRoute) or route.route_by == "retrieval":
            return
        where = task_hook.where(instances[0])
        if len(instances) < 2:
            raise ContextError(
                f"{where}: route_by={route.route_by} compares options, and there is one alone; pass "
                "route_by=retrieval, or route=none for this task"
            )
        if route.declines and len({i.args[1] for i in instances}) == 1:
            raise ContextError(
                f"{where}: in this task the question differs from option to option, so none can be added to them; pass "
                "route_by=margin"
            )

    def _short(self, request: Any) -> Any:
        mark = mark_on(request)
        return self._bare(request, None if mark is None else mark.prompts[0])

    def _decline(self, question: _Question) -> Any:
        """The marker as one more option."""
        first = question.instances[0]
        return Instance(
            request_type="loglikelihood",
            doc=first.doc,
            arguments=(question.mark.prompts[0], behind(first, question.longer.marker)),
            idx=len(question.instances),
            metadata=(first.task_name, first.doc_id, 1),
        )

    def _value(self, question: _Question, scores: list[float], markers: Mapping[int, float]) -> float | None:
        if not isinstance(self._route, SelfRoute):
            return None
        by = self._route.route_by
        if by == "retrieval":
            return question.mark.trace.hits[0].score
        if by == "margin":
            return margin(scores)
        if by == "entropy":
            return entropy(scores)
        prompt = question.mark.prompts[0]
        lengths = [self._tokens(prompt, i.args[1]) for i in question.instances]
        marker = behind(question.instances[0], question.longer.marker)
        return unanswerable(scores, lengths, markers[id(question)], self._tokens(prompt, marker))

    def _tokens(self, prompt: str, continuation: str) -> int:
        """Tokens that a continuation adds to a prompt, of which the last word is enough to know."""
        last = (prompt.rsplit(maxsplit=1) or [""])[-1]
        if (last, continuation) not in self._lengths:
            added = self._host.count(last + continuation, bare=True) - self._host.count(last, bare=True)
            self._lengths[last, continuation] = max(1, added)
        return self._lengths[last, continuation]

    # Open answers ---------------------------------------------------------------------------------------------------

    def _write(self, requests: Sequence[Any], questions: list[_Question]) -> list[Any]:
        """As `_choose`; an Instance that comes several times (repeats) is routed by each of its answers."""
        route = self._route
        if isinstance(route, SelfRoute) and route.route_by in ("margin", "entropy"):
            raise ArgumentError(
                f"route_by={route.route_by} compares options, and this task generates; pass route_by=unanswerable or "
                "route_by=retrieval",
                "the command",
            )
        found = self._ask(list(map(self._short, requests)))
        for question in questions:
            question.value = question.mark.trace.hits[0].score if isinstance(route, SelfRoute) else None
        self._decide(questions)
        routed = {id(question.instances[0]) for question in questions if question.routed}
        marked = [mark_on(request) is not None for request in requests]
        away = [
            known and (declined(text) if route.declines else id(request) in routed)
            for request, text, known in zip(requests, found, marked, strict=True)
        ]
        again = [place for place, known in enumerate(marked) if known and (away[place] or route.route_both)]
        long = dict(zip(again, self._ask_long_texts([requests[place] for place in again], questions), strict=True))
        unwilling = [place for place in again if route.route_both and route.declines and away[place]]
        plain = self._ask_some([self._plain(requests[place]) for place in unwilling], questions)
        insisted = {**dict(enumerate(found)), **dict(zip(unwilling, plain, strict=True))}
        places = {id(request): place for place, request in reversed(list(enumerate(requests)))}
        for question in questions:
            place = places[id(question.instances[0])]
            question.routed = away[place]
            if route.declines:
                question.value = float(declined(found[place]))
            texts = [long[place]] if place in long else []
            self._note(question, [insisted[place]], texts, [found[place]], texts)
        return [long[place] if away[place] else text for place, text in enumerate(found)]

    def _plain(self, request: Any) -> Any:
        mark = mark_on(request)
        assert mark is not None  # only what was written can be asked again
        assert mark.longer is not None
        return self._bare(request, mark.longer.plain)

    # Both -----------------------------------------------------------------------------------------------------------

    def _decide(self, questions: list[_Question]) -> None:
        """Sets which questions are asked again."""
        route = self._route
        if isinstance(route, SelfRoute):
            for question in questions:
                question.routed = question.value is not None and route.beyond(question.value)
            return
        assert isinstance(route, RandomRoute)  # there is no third
        tasks: dict[str, list[_Question]] = {}
        for question in questions:
            tasks.setdefault(str(question.instances[0].task_name), []).append(question)
        for task, of in tasks.items():
            names = [f"{task}\0{question.instances[0].doc_id}\0{question.mark.trace.query}" for question in of]
            for place in route.drawn(names):
                of[place].routed = True

    def _ask_long(self, instances: list[Any], questions: list[_Question]) -> dict[int, Any]:
        return dict(zip(map(id, instances), self._ask_long_texts(instances, questions), strict=True))

    def _ask_long_texts(self, instances: list[Any], questions: list[_Question]) -> list[Any]:
        return self._ask_some([self._bare(i, _long_prompt(i)) for i in instances], questions)

    def _ask_some(self, requests: list[Any], questions: list[_Question]) -> list[Any]:
        """Asks again; where others do so at the same time, one request at least, so that none waits for this one."""
        if not requests and self._jointly and questions:
            first = questions[0].instances[0]
            self._ask([self._bare(first, questions[0].longer.prompt)])
        return self._ask(requests) if requests else []

    def _note(
        self, question: _Question, short: list[Any], long: list[Any], short_shown: list[Any], long_shown: list[Any]
    ) -> None:
        """Writes into the Instances and the figures what became of a question.

        ``short`` and ``long`` are its answers with each context, the latter empty where it wasn't asked.
        """
        first, mark = question.instances[0], question.mark
        tokens = [self._host.count(prompt, bare=False) for prompt in (mark.prompts[0], question.longer.prompt)]
        known = question.value is not None and not math.isnan(question.value)
        note: dict[str, Any] = {"routed": question.routed, "value": question.value if known else None}
        note |= {"short_tokens": tokens[0], "long_tokens": tokens[1], "used": list(question.longer.used)}
        note |= {"short": short_shown, "long": long_shown} if long else {"short": short_shown}
        right: list[float | None] = [None, None]
        if self._route.route_both:
            right = [task_hook.would_score(question.instances, answers) for answers in (short, long)]
            note["scores"] = {"short": right[0], "long": right[1]}
        for instance in question.instances:
            own = mark_on(instance)
            assert own is not None  # it is one of the question's
            log = {**instance.arguments[-1]["kinject"], "route": note}
            shown = _long_prompt(instance) if question.routed else own.prompts[0]
            instance.arguments = (shown, *own.original[1:], {"kinject": log})
        doc_id = -1 if first.doc_id is None else int(first.doc_id)
        more = question.longer.more
        self.routed.append(Routed(str(first.task_name), doc_id, question.routed, more, tokens[0], tokens[1], *right))


def _long_prompt(instance: Any) -> str:
    mark = mark_on(instance)
    assert mark is not None  # only what was written is asked again
    assert mark.longer is not None
    return mark.longer.prompt


def _questions(requests: Iterable[Any]) -> list[_Question]:
    """Those that were written, each Instance once, options in order."""
    groups: dict[int, dict[int, Any]] = {}
    for request in requests:
        mark = mark_on(request)
        if mark is not None and request.args[0] != "":
            groups.setdefault(id(mark.trace), {})[id(request)] = request
    found = []
    for group in groups.values():
        instances = sorted(group.values(), key=lambda instance: instance.idx)
        mark = mark_on(instances[0])
        assert mark is not None  # asked above
        found.append(_Question(instances, mark))
    return found


def route_figures(of: Iterable[Routed]) -> dict[str, dict[str, Any]]:
    """What a result says of a route, per task.

    ``answerable_share`` is the share of questions answered from the short context, ``token_share`` the tokens of all
    short prompts and of the long ones that were needed, over those of the long ones of all questions (SPEC §4; prompts
    alone, each once a question). Where both contexts were scored for every question: the accuracy of each alone,
    ``false_answerable``, the share of the questions answered from the short context whose answer the long one betters,
    and ``false_unanswerable``, the share of the routed ones that the short context would have answered as well (and not
    wrong); None where there are no such questions.
    """
    tasks: dict[str, list[Routed]] = {}
    for one in of:
        tasks.setdefault(one.task, []).append(one)
    return {task: _figures(found) for task, found in sorted(tasks.items())}


def _figures(found: list[Routed]) -> dict[str, Any]:
    kept, away = ([one for one in found if one.routed is routed] for routed in (False, True))
    spent = sum(one.short_tokens for one in found) + sum(one.long_tokens for one in away)
    figures: dict[str, Any] = {
        "questions": len(found),
        "routed": len(away),
        "answerable_share": len(kept) / len(found),
        "token_share": spent / sum(one.long_tokens for one in found),
        "mean_short_tokens": sum(one.short_tokens for one in found) / len(found),
        "mean_long_tokens": sum(one.long_tokens for one in found) / len(found),
        "questions_without_more_text": sum(not one.more for one in found),
    }
    if all(one.short is not None and one.long is not None for one in found):
        pairs = [[(one.short or 0.0, one.long or 0.0) for one in part] for part in (kept, away)]
        figures |= {
            "short_accuracy": _share([short for part in pairs for short, _ in part]),
            "long_accuracy": _share([long for part in pairs for _, long in part]),
            "false_answerable": _share([float(long > short) for short, long in pairs[0]]),
            "false_unanswerable": _share([float(short > 0 and short >= long) for short, long in pairs[1]]),
        }
    return figures


def _share(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
