"""From requests to prompts with retrieved text: in one batch, in place, once.

What it is for: `PromptWriter` takes the Instances of one call of a model, finds out what each asks and of which
corpus, searches everything together, and puts the text where ``placement`` says. What it does not do: it scores
nothing and loads no language model; tokens, window and chat template come from its
`Host`, and what is asked, found and written from the stages of its `Pipeline`.

Ideas. *Requests that ask the same are one*: the options of a question share its query, its budget and its text.
*The place is found, not guessed*: the task is asked again how it renders the question, and the prompt must end with
just that; a prompt that went through a chat template is rendered anew from its messages, with the text in the last
user turn (``start``: in the first)::

    plain        description, examples, [text] question
    start        [text] description, examples, question
    chat         <bos> system | user: example | model: answer | user: [text] question | model:
    chat, start  <bos> system | user: [text] example | model: answer | user: question | model:

Instances are rewritten in place, so that ``--log_samples`` shows the prompt that was scored, and carry their trace as
a third argument; `PromptWriter.bare` strips it before scoring. An Instance that this writer has rewritten is left
alone when it comes again (repeats, padding between ranks).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lm_eval.api.instance import Instance

from lm_eval_kinject.context.compose import Composer, Composition
from lm_eval_kinject.context.route import Again, marker_for
from lm_eval_kinject.errors import ArgumentError, ContextError
from lm_eval_kinject.models import task_hook
from lm_eval_kinject.models.host import Host
from lm_eval_kinject.models.pipeline import Pipeline
from lm_eval_kinject.records import Hit, Query, Trace
from lm_eval_kinject.retrieval.library import Found, Library, clock

__all__ = ["Longer", "PromptWriter", "Written", "as_log", "behind", "mark_on"]

_SLACK = 8
"""Tokens kept free, as the parts of a prompt may be cut into a few tokens more together than apart."""

_SHOWN = 50
"""Most hits and dropped chunks that a sample log lists, beside those in the prompt."""

_ATTRIBUTE = "kinject_written"


@dataclass(frozen=True, slots=True)
class Longer:
    """What a question is asked with if it is asked again (see `lm_eval_kinject.context.route`).

    ``prompt`` has the long context, ``plain`` the short one without the permission to decline. ``used`` are the ids of
    the chunks in the long one, ``more`` says whether it has text that the short one lacks, and ``marker`` is what may
    be answered instead of an option.
    """

    prompt: str
    plain: str
    used: tuple[str, ...]
    more: bool
    marker: str


@dataclass(frozen=True, slots=True)
class Written:
    """The mark on a rewritten Instance: by whom, from which arguments, and what happened.

    ``hits`` are all that were looked at, `DEPTH` at least where there is a gold chunk, in their final ranks;
    ``retrieved`` the same in the retriever's; the trace has the prompt's own. ``corpus`` is the fingerprint of the
    corpus that was searched. ``prompts`` are those that are scored, one a group of hits, and ``scores`` their hits' own
    (empty where there is one prompt). ``longer`` is there where the question may be asked again. The Instances of one
    question share the trace itself.
    """

    writer: PromptWriter
    original: tuple[Any, ...]
    trace: Trace
    hits: tuple[Hit, ...]
    corpus: str
    retrieved: tuple[Hit, ...]
    prompts: tuple[str, ...]
    scores: tuple[float, ...] = ()
    longer: Longer | None = None


@dataclass(frozen=True, slots=True)
class _Asked:
    """Instances that ask the same, and what they ask of which corpus."""

    instances: list[Any]
    query: Query
    corpus: str
    where: str


class PromptWriter:
    """Puts retrieved text into the prompts of one model.

    Args:
        pipeline: which stages make the text.
        host: the model.
        library: where chunks come from.
    """

    def __init__(self, pipeline: Pipeline, host: Host, library: Library) -> None:
        self._pipeline = pipeline
        self._host = host
        self._library = library
        route = pipeline.route
        self._composer, self._long_composer = (
            Composer(lambda text: host.count(text, bare=True), host.markers(), pipeline.compose.template, order)
            for order in (
                pipeline.order,
                route.arrangement(pipeline.order) if isinstance(route, Again) else pipeline.order,
            )
        )
        self._messages: dict[str, tuple[list[dict[str, str]], bool]] = {}

    def remember(self, prompt: str, messages: list[dict[str, str]], generation_prompt: bool) -> None:
        """Notes of which messages a chat template made a prompt."""
        self._messages[prompt] = ([dict(message) for message in messages], generation_prompt)

    def write(self, requests: Sequence[Any]) -> list[Written]:
        """Rewrites, in place, the Instances that haven't been yet; those with an empty context stay as they are.

        Returns:
            The marks of the Instances rewritten now, one a question.

        Raises:
            ContextError: a question, its query, its gold chunk or room for its text can't be found.
            ArgumentError: no corpus is known for a task, or it has no text to fall back on.
        """
        fresh = {id(r): r for r in requests if r.args[0] != "" and not self._is_mine(r)}
        asked = [self._asked(instances) for instances in _by_question(fresh.values())]
        found: dict[str, dict[Query, Found]] = {}
        for spec in dict.fromkeys(a.corpus for a in asked):
            self._pipeline.route.check(self._library.corpus(spec), self._pipeline.search.k)
            found[spec] = self._library.find(spec, [a.query for a in asked if a.corpus == spec])
        with clock(self._library.seconds, "composition"):
            return [self._compose(a, found[a.corpus][a.query]) for a in asked]

    def bare(self, request: Any, prompt: str | None = None) -> Any:
        """Returns an Instance as lm_eval's own scorer expects it: without the trace; with another prompt, if given."""
        return Instance(
            request_type=request.request_type,
            doc=request.doc,
            arguments=request.arguments[:2] if prompt is None else (prompt, request.arguments[1]),
            idx=request.idx,
            metadata=(request.task_name, request.doc_id, request.repeats),
        )

    # What is asked --------------------------------------------------------------------------------------------------

    def _is_mine(self, request: Any) -> bool:
        mark = mark_on(request)
        if mark is not None and mark.writer is not self:
            request.arguments = mark.original  # another model's text doesn't belong into our prompt
            return False
        return mark is not None

    def _asked(self, instances: list[Any]) -> _Asked:
        first = instances[0]
        where = task_hook.where(first)
        said = task_hook.declaration(first)
        rendered, choices, varies = task_hook.rendered_question(first)
        if varies and self._pipeline.query.rule.mode != "template":
            raise ContextError(
                f"{where}: in this task the question differs from option to option, so asking with it would give the "
                "answer away. Pass query=FILE, a file with a Jinja template over the document."
            )
        text = self._pipeline.query.rule.text(
            first.doc if isinstance(first.doc, Mapping) else {},
            where=where,
            declared=said.query,
            rendered=rendered,
            choices=choices,
        )
        gold = task_hook.gold_of(first, said.gold)
        if gold is None and (needed_by := self._pipeline.needs_gold):
            instead = "pass another retriever" if needed_by == "retriever=oracle" else "leave it out"
            raise ContextError(
                f"{where}: {needed_by} needs the chunk that the question was made from, and the task names none. "
                f"Declare its field in the task's YAML (metadata: kinject: gold:), or {instead}."
            )
        return _Asked(instances, Query(text, gold), self._corpus(first, said), where)

    def _corpus(self, instance: Any, said: task_hook.Declaration) -> str:
        spec = self._pipeline.search.corpus or said.corpus
        if spec is None:
            raise ArgumentError(
                f"corpus= is missing: the task {instance.task_name} declares no corpus of its own; pass "
                "corpus=PATH (a folder or file), a Hub dataset id or a bundled name, or k=0",
                self._library.where,
            )
        return spec

    # What is written ------------------------------------------------------------------------------------------------

    def _compose(self, asked: _Asked, found: Found) -> Written:
        marker, permission = self._permission(asked)
        room = self._room(asked, marker if permission else None)
        limit = self._pipeline.compose.context_tokens
        budget = room if limit is None else min(room, limit)
        groups = self._pipeline.fusion.groups(found.prompt)
        closing = permission or self._pipeline.reasoning.instruction
        made = [self._composer.compose(group, budget, where=asked.where, closing=closing) for group in groups]
        long = self._compose_long(asked, found, room)
        trace = _trace(asked.query, found.prompt, made)
        scores = tuple(group[0].score for group in groups if group) if len(groups) > 1 else ()
        fingerprint = self._library.corpora[asked.corpus].fingerprint
        written = None
        for instance in asked.instances:
            arguments = instance.args
            prompts = tuple(
                self._insert(instance, arguments[0], one.text) if one.text else arguments[0] for one in made
            )
            longer = None
            if long is not None:
                plain = self._insert(instance, arguments[0], made[0].text.removesuffix(permission))
                more = not set(long.used) <= set(trace.used) or trace.truncated is not None
                longer = Longer(self._insert(instance, arguments[0], long.text), plain, long.used, more, marker)
            written = Written(self, arguments, trace, found.hits, fingerprint, found.retrieved, prompts, scores, longer)
            log = as_log(trace) | ({"contexts": [one.text for one in made]} if len(made) > 1 else {})
            instance.arguments = (prompts[0], *arguments[1:], {"kinject": log})
            setattr(instance, _ATTRIBUTE, written)
        assert written is not None  # a group has at least one Instance
        return written

    def _room(self, asked: _Asked, marker: str | None) -> int:
        """Tokens that there are for retrieved text, whatever of the question's options is scored behind it."""
        asks = self._pipeline.reasoning.generation
        rooms = [self._host.room(i.request_type, (i.args[0], asks(i.args[1]))) for i in asked.instances]
        first = asked.instances[0]
        if marker is not None and first.request_type == "loglikelihood":
            rooms.append(self._host.room(first.request_type, (first.args[0], behind(first, marker))))
        room = min(rooms) - _SLACK
        if room < 1:
            raise ContextError(
                f"{asked.where}: the prompt fills the model's window before any retrieved text is in it (free: "
                f"{room + _SLACK} tokens, of which {_SLACK} are kept in reserve). Lower --num_fewshot, raise "
                "max_length= if the model allows it, or pass k=0."
            )
        return room

    def _permission(self, asked: _Asked) -> tuple[str, str]:
        """What may be answered instead of an option, and the words that say so; both empty where nothing may."""
        route = self._pipeline.route
        if not isinstance(route, Again):
            return "", ""
        scored = asked.instances[0].request_type == "loglikelihood"
        marker = marker_for([i.args[1] for i in asked.instances] if scored else ())
        return marker, route.permission(marker)

    def _compose_long(self, asked: _Asked, found: Found, room: int) -> Composition | None:
        """The context for asking again: as much as the window holds; None where nothing is asked again."""
        route = self._pipeline.route
        if not isinstance(route, Again):
            return None
        hits = route.longer(self._library.corpora[asked.corpus], found.prompt, found.more)
        return self._long_composer.compose(hits, room, where=asked.where)

    def _insert(self, instance: Any, prompt: str, text: str) -> str:
        origin = task_hook.origin_of(instance)
        if prompt in self._messages:
            return self._insert_in_turn(instance, prompt, text)
        if origin is not None and origin.chat:
            raise ContextError(
                f"{task_hook.where(instance)}: the task changes its prompt after the chat template, so the user's turn "
                "can't be found in it. Run this task without --apply_chat_template, or with k=0."
            )
        if self._pipeline.compose.placement == "start":
            bos = self._host.bos()
            head = len(bos) if bos and prompt.startswith(bos) else 0
            return prompt[:head] + text + prompt[head:]
        question = self._question(instance)
        for ending in task_hook.endings(instance, question):
            if prompt.endswith(question + ending):
                place = len(prompt) - len(question) - len(ending)
                return prompt[:place] + text + prompt[place:]
        raise self._lost(instance)

    def _insert_in_turn(self, instance: Any, prompt: str, text: str) -> str:
        messages, generation_prompt = self._messages[prompt]
        changed = [dict(message) for message in messages]
        turns = [message for message in changed if message["role"] == "user"]
        if not turns:
            raise self._lost(instance)
        if self._pipeline.compose.placement == "start":
            turns[0]["content"] = text + turns[0]["content"]
        else:
            question, content = self._question(instance), turns[-1]["content"]
            if not content.endswith(question):
                raise self._lost(instance)
            turns[-1]["content"] = content[: len(content) - len(question)] + text + question
        return self._host.render(changed, generation_prompt)

    def _question(self, instance: Any) -> str:
        question, _, _ = task_hook.rendered_question(instance)
        if not question:
            raise self._lost(instance)
        return question

    def _lost(self, instance: Any) -> ContextError:
        return ContextError(
            f"{task_hook.where(instance)}: the asked question can't be found at the end of its prompt, so there is no "
            "place directly before it. Pass placement=start (the text goes before everything), and query=FILE if the "
            "question itself can't be told from the document."
        )


def _trace(query: Query, top: tuple[Hit, ...], made: Sequence[Composition]) -> Trace:
    """What happened to a question whose hits were written into one or several contexts."""
    used = tuple(chunk for one in made for chunk in one.used)
    dropped = tuple(chunk for one in made for chunk in one.dropped)
    truncated = next((one.truncated for one in made if one.truncated is not None), None)
    return Trace(query.text, top, used, dropped, truncated, sum(one.tokens for one in made), query.gold)


def behind(instance: Any, answer: str) -> str:
    """An answer as this Instance's own would be scored: with the space, or whatever it is, that is put before it."""
    continuation = str(instance.args[1])
    return continuation[: len(continuation) - len(continuation.lstrip())] + answer


def mark_on(instance: Any) -> Written | None:
    """Returns the mark of the writer that rewrote an Instance, if one did."""
    return getattr(instance, _ATTRIBUTE, None)


def _by_question(instances: Iterable[Any]) -> Iterable[list[Any]]:
    """Groups the Instances of one document of one task; an Instance without a task stands alone."""
    groups: dict[Any, list[Any]] = {}
    for instance in instances:
        known = task_hook.origin_of(instance) is not None
        key = (instance.task_name, instance.doc_id) if known else id(instance)
        groups.setdefault(key, []).append(instance)
    return groups.values()


def as_log(trace: Trace) -> dict[str, Any]:
    """A trace as plain JSON, with the hits' ids, ranks and scores (their texts stand in the prompt).

    Of a whole corpus (``retriever=full``) only the hits in the prompt and the last few that were dropped are listed.
    """
    shown = trace.hits[: max(len(trace.used), _SHOWN)]
    return {
        "query": trace.query,
        "hits": [{"id": hit.chunk.id, "rank": hit.rank, "score": float(hit.score)} for hit in shown],
        "used": list(trace.used),
        "dropped": list(trace.dropped[-_SHOWN:]),
        "dropped_count": len(trace.dropped),
        "truncated": trace.truncated,
        "context_tokens": trace.context_tokens,
        "gold": list(trace.gold) if isinstance(trace.gold, tuple) else trace.gold,
    }
