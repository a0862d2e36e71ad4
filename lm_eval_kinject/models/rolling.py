"""Rolling text with retrieval: perplexity of a text that is read behind what its own beginning finds.

What it is for: `RollingWriter` turns the requests of ``loglikelihood_rolling`` into windows of tokens to score. What it
does not do: it scores nothing, and without retrieval (``k=0``) it isn't asked: that is lm_eval's number, to the bit.

The one idea: a language model may use all that stands before a token, and retrieval may, too. So a text is cut into
stretches of ``stride`` tokens, and each is scored behind the chunks that the ``query_tokens`` before it find (Ram et
al. 2023, *In-Context Retrieval-Augmented Language Models*, arXiv 2302.00083); the first has nothing before it::

    stride=3      a b c | d e f | g h
    query           -     a b c   d e f            the text that is scored is never part of its own query
    scored        a b c   d e f   g h
    behind          ^   ^ C a b c   ^ D a b c d e f      ^: the prefix token; C, D: what was found, with its template

All tokens are scored once, and they are those that lm_eval scores. The document that the text comes from is left out of
the search, by the name that the task declares; a chunk of another name with the same text stops the run. Of a text that
is longer than the window the nearest tokens are read, and retrieved text takes half of what a stretch leaves of it, at
most: lm_eval's own windows end where they end, so only texts within the window compare with ``k=0`` token by token.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lm_eval_kinject.context.compose import Composer
from lm_eval_kinject.context.reason import SelfReasoning
from lm_eval_kinject.context.route import Again
from lm_eval_kinject.errors import ArgumentError, ContextError
from lm_eval_kinject.log import log
from lm_eval_kinject.models import task_hook
from lm_eval_kinject.models.host import Host, Roller
from lm_eval_kinject.models.pipeline import Pipeline
from lm_eval_kinject.models.prompts import as_log
from lm_eval_kinject.models.results import Figure
from lm_eval_kinject.records import Hit, Query, Trace
from lm_eval_kinject.retrieval.library import Found, Library, clock

__all__ = ["Rolled", "RollingWriter", "stretches"]

_SHOWN = 3  # examples in an error
_FEWEST_WORDS = 12  # of a text that can't be in two places by chance

Window = tuple[list[int], list[int]]
"""Token ids that are read, and those behind them that are scored."""


@dataclass(frozen=True, slots=True)
class Rolled:
    """One text, ready to be scored: its log-likelihood is the sum over ``windows``; ``figure`` is for the results."""

    windows: tuple[Window, ...]
    figure: Figure
    searches: int


@dataclass(frozen=True, slots=True)
class _Text:
    """A request's text, its tokens, and the query of each stretch; None where there is nothing to ask."""

    request: Any
    corpus: str
    document: str
    tokens: Sequence[int]
    parts: Sequence[tuple[int, int]]
    queries: Sequence[Query | None]


def stretches(length: int, stride: int) -> list[tuple[int, int]]:
    """Begin and end of each stretch of a text of ``length`` tokens; the last may be shorter."""
    return [(begin, min(begin + stride, length)) for begin in range(0, length, stride)]


class RollingWriter:
    """Puts retrieved text before the stretches of rolling texts.

    Args:
        pipeline: which stages make the text.
        host: the model.
        library: where chunks come from.
    """

    def __init__(self, pipeline: Pipeline, host: Host, library: Library) -> None:
        self._pipeline, self._host, self._library = pipeline, host, library
        template, order = pipeline.compose.template, pipeline.order
        self._composer = Composer(lambda text: host.count(text, bare=True), host.markers(), template, order)

    def is_declared(self, request: Any) -> bool:
        """Whether the request's task says which document its text is; others are left to lm_eval, with a warning."""
        if task_hook.declaration(request).document is not None:
            return True
        log.warning(
            "The rolling text of %s is scored without retrieval: its task doesn't declare which document of the corpus "
            "it is (metadata: kinject: document:), so it could be found for itself.",
            request.task_name,
        )
        return False

    def write(self, requests: Sequence[Any]) -> list[Rolled]:
        """The windows of each text; the trace is put on its Instance, as its second argument.

        Raises:
            ArgumentError: a stage, the model or the stride isn't made for rolling text; all problems at once.
            ContextError: a text's document isn't named, or the corpus has the same text under another name.
        """
        self._check()
        texts = [self._asked(request) for request in requests]
        found: dict[str, Mapping[Query, Found]] = {}
        for spec in dict.fromkeys(text.corpus for text in texts):
            asked = [query for text in texts if text.corpus == spec for query in text.queries if query is not None]
            self._library.corpus(spec)
            found[spec] = self._library.find(spec, asked) if asked else {}
        self._check_others(texts, found)
        with clock(self._library.seconds, "composition"):
            return [self._rolled(text, found[text.corpus]) for text in texts]

    def _check(self) -> None:
        stages, window = self._pipeline, self._host.max_length
        problems = []
        if not (isinstance(self._host, Roller) and self._host.decodes):
            problems.append("rolling text is read behind retrieved text by decoder-only models of rag-hf; pass k=0")
        if stages.needs_gold is not None:
            problems.append(f"{stages.needs_gold}: a rolling text has no right chunk but itself; leave it out")
        if stages.fusion.several:
            problems.append(f"fusion={stages.fusion.name} is for questions; pass fusion=concat")
        if isinstance(stages.route, Again):
            problems.append(f"route={stages.route.name} is for questions; pass route=none")
        if isinstance(stages.reasoning, SelfReasoning):
            problems.append("reasoning=self-reasoning has the model write, and here nothing is; pass reasoning=none")
        if stages.query.stride > window // 2:
            problems.append(
                f"stride={stages.query.stride} leaves too little of the window of {window} tokens; pass "
                f"stride={window // 2} or less"
            )
        if problems:
            raise ArgumentError(problems, self._library.where)

    # What is asked --------------------------------------------------------------------------------------------------

    def _asked(self, request: Any) -> _Text:
        said = task_hook.declaration(request)
        corpus = self._pipeline.search.corpus or said.corpus
        if corpus is None:
            raise ArgumentError(
                f"corpus= is missing: the task {request.task_name} declares no corpus of its own; pass corpus=PATH, or "
                "k=0",
                self._library.where,
            )
        document = request.doc.get(said.document) if isinstance(request.doc, Mapping) else None
        if not isinstance(document, str) or not document:
            raise ContextError(
                f"{task_hook.where(request)}: its field {said.document} (metadata.kinject.document) doesn't name the "
                "document that the text is, so it could be retrieved for itself. Name it, or pass k=0."
            )
        query, host = self._pipeline.query, self._roller
        tokens = host.tok_encode(request.args[0])
        parts = stretches(len(tokens), query.stride)
        asked = (host.tok_decode(tokens[max(0, begin - query.query_tokens) : begin]).strip() for begin, _ in parts)
        queries = [Query(text, without=document) if text else None for text in asked]
        return _Text(request, corpus, document, tokens, parts, queries)

    @property
    def _roller(self) -> Roller:
        assert isinstance(self._host, Roller)  # checked first
        return self._host

    def _check_others(self, texts: Sequence[_Text], found: Mapping[str, Mapping[Query, Found]]) -> None:
        """Refuses to read a text behind itself, where the corpus has it under another name too."""
        twice = [
            f"{task_hook.where(text.request)} is {text.document} and {hit.chunk.id}"
            for text in texts
            for hit in {hit.chunk.id: hit for hit in self._hits(text, found)}.values()
            if _is_part(hit, str(text.request.args[0]))
        ]
        if twice:
            more = f" and {len(twice) - _SHOWN} more" if len(twice) > _SHOWN else ""
            raise ContextError(
                f"The corpus has texts that are scored under other names too: {'; '.join(twice[:_SHOWN])}{more}. They "
                "would be read before themselves: take them out of the corpus, or pass k=0."
            )

    @staticmethod
    def _hits(text: _Text, found: Mapping[str, Mapping[Query, Found]]) -> Iterator[Hit]:
        for query in text.queries:
            if query is not None:
                yield from found[text.corpus][query].prompt

    # What is written ------------------------------------------------------------------------------------------------

    def _rolled(self, text: _Text, found: Mapping[Query, Found]) -> Rolled:
        windows, traces = [], []
        for (begin, end), query in zip(text.parts, text.queries, strict=True):
            room = self._host.max_length - (end - begin)  # the prefix token has one more: the last isn't read
            retrieved: list[int] = []
            if query is not None:
                trace, retrieved = self._retrieved(text, query, found[query], room // 2)
                traces.append(trace)
            windows.append((self._before(text.tokens[:begin], retrieved, room), list(text.tokens[begin:end])))
        request = text.request
        request.arguments = (request.args[0], {"kinject": {"stretches": [as_log(trace) for trace in traces]}})
        figure = Figure(
            task=str(request.task_name),
            doc_id=-1 if request.doc_id is None else int(request.doc_id),
            corpus=self._library.corpora[text.corpus].fingerprint,
            has_gold=False,
            gold_rank=None,
            gold_used=False,
            dropped=sum(len(trace.dropped) for trace in traces),
            truncated=any(trace.truncated is not None for trace in traces),
            context_tokens=sum(trace.context_tokens for trace in traces),
        )
        return Rolled(tuple(windows), figure, len(traces))

    def _retrieved(self, text: _Text, query: Query, found: Found, budget: int) -> tuple[Trace, list[int]]:
        limit = self._pipeline.compose.context_tokens
        budget = budget if limit is None else min(budget, limit)
        made = self._composer.compose(found.prompt, budget, where=task_hook.where(text.request))
        trace = Trace(query.text, found.prompt, made.used, made.dropped, made.truncated, made.tokens)
        return trace, self._roller.tok_encode(made.text, add_special_tokens=False) if made.text else []

    def _before(self, own: Sequence[int], retrieved: Sequence[int], room: int) -> list[int]:
        """What a stretch is scored behind: the prefix token, retrieved text, and as much of its own as there is room.

        A text's own first token may be the prefix token already, which then stands before the retrieved text.
        """
        prefix = self._roller.prefix_token_id
        if retrieved and own[:1] == [prefix]:
            own = own[1:]
        left = room - len(retrieved)
        return [prefix, *retrieved, *(own[-left:] if left else ())]


def _is_part(hit: Hit, text: str) -> bool:
    """Whether a chunk is a part of a text, or the text of the chunk; spaces and phrases of a few words don't count."""
    chunk, scored = hit.chunk.text.split(), text.split()
    if min(len(chunk), len(scored)) < _FEWEST_WORDS:
        return chunk == scored
    return " ".join(chunk) in " ".join(scored) or " ".join(scored) in " ".join(chunk)
