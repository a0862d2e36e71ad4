r"""From hits to the text that stands in the prompt.

What it is for: `Composer` writes the retrieved chunks through a template, within a budget of tokens, and says what it
left out; `Compose` is the stage that takes ``context_template=``, ``context_tokens=`` and ``placement=``. What it does
not do: it doesn't know the question, and it runs no model.

Two ideas. *Whole chunks first*: over budget, the lowest-ranked chunk is left out, and again, until what is left fits;
only when the best chunk alone is too long is its tail cut::

    budget 10, chunks of 6, 5, 4 tokens   →   [6]        dropped: 3rd, 2nd
    budget 11                             →   [6, 5]     dropped: 3rd
    budget 5                              →   [6 cut]    dropped: 3rd, 2nd; truncated: 1st

*Text is data*: what a tokenizer would read as a control token (``</s>``, ``<|im_end|>``) gets a space behind its first
character before it goes in, and nothing in a chunk is ever a template.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import jinja2

from lm_eval_kinject.context.order import Order, Relevance
from lm_eval_kinject.context.query import read_utf8, sandbox
from lm_eval_kinject.errors import ArgumentError, ContextError
from lm_eval_kinject.records import Chunk, Hit
from lm_eval_kinject.stages import Stage, argument, one_of, optional, register, slot, whole
from lm_eval_kinject.stages import text as is_text

__all__ = ["DEFAULT_TEMPLATE", "Compose", "Composer", "Composition", "markers_of", "neutralise", "read_template"]

slot("compose", "how chunks are written into the prompt")

DEFAULT_TEMPLATE = "{% for c in chunks %}{% if c.title %}{{ c.title }}\n{% endif %}{{ c.text }}\n\n{% endfor %}"
"""Title (if any), text and an empty line for each chunk, best first. A template sees ``chunks``, a list of mappings
with ``id``, ``title``, ``text``, ``date`` (or None), ``rank`` (from 1) and ``score``."""

_FIRST_TRY = 8
"""Hits tried together first: all, for an ordinary k; a whole corpus (``retriever=full``) is tried in doubling steps."""

_CONTROL = re.compile(r"<\|[^\s<>|]+\|>|<</?[A-Za-z_]+>>|</?[A-Za-z_][\w-]*>|\[/?[A-Z][A-Z_]*\]|<｜[^\s<>]+｜>")


def read_template(path: str) -> str:
    """Reads and checks a file for ``context_template=``.

    Raises:
        ArgumentError: there is no such file, it doesn't parse, or it doesn't use ``chunks``.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise ArgumentError(f"context_template={path}: no such file; pass the path of a Jinja template")
    source = read_utf8(file, f"context_template={path}")
    try:
        sandbox().from_string(source)  # parses, and knows every filter's name
    except jinja2.TemplateSyntaxError as error:
        raise ArgumentError(
            f"context_template={path}: not a Jinja template, line {error.lineno}: {error.message}; mend the template"
        ) from error
    if "chunks" not in source:
        raise ArgumentError(
            f"context_template={path}: it never uses `chunks`, so no retrieved text would reach the prompt; loop over "
            "`chunks` and write {{ c.title }} and {{ c.text }}"
        )
    return source


def markers_of(tokenizer: Any) -> tuple[str, ...]:
    """Returns the strings that this tokenizer, or its chat template, reads as control and not as text.

    These are its special tokens, added tokens in the shape of a marker (``<think>``, ``[INST]``; an ordinary word that
    someone added to the vocabulary stays a word), and markers that its chat template writes.

    Args:
        tokenizer: a transformers tokenizer.
    """
    found = {str(token) for token in getattr(tokenizer, "all_special_tokens", ())}
    for token in getattr(tokenizer, "added_tokens_decoder", {}).values():
        content = str(getattr(token, "content", token))
        if getattr(token, "special", False) or _CONTROL.fullmatch(content):
            found.add(content)
    for template in _texts(getattr(tokenizer, "chat_template", None)):
        found.update(_CONTROL.findall(template))
    return tuple(sorted(marker for marker in found if len(marker.strip()) > 1))


def _texts(template: Any) -> Iterable[str]:
    if isinstance(template, str):
        return [template]
    if isinstance(template, dict):
        return [text for text in template.values() if isinstance(text, str)]
    return []


def neutralise(text: str, markers: Sequence[str]) -> str:
    """Returns `text` with a space behind the first character of every marker in it: ``</s>`` becomes ``< /s>``.

    A plain space, as every vocabulary has one and a reader of the log can see it.
    """
    if not markers:
        return text
    pattern = re.compile("|".join(re.escape(m) for m in sorted(markers, key=lambda m: (-len(m), m))))
    while (opened := pattern.sub(lambda m: f"{m[0][0]} {m[0][1:]}", text)) != text:
        text = opened  # breaking one marker may complete another, longer one: "<</s>/s>"
    return text


@dataclass(frozen=True, slots=True)
class Composition:
    """What `Composer.compose` made: ``text`` of ``tokens`` tokens, and as chunk ids what is in it and what isn't.

    ``used`` is in prompt order, ``dropped`` lowest rank first, ``truncated`` the chunk that lost its tail or None.
    """

    text: str
    tokens: int
    used: tuple[str, ...]
    dropped: tuple[str, ...]
    truncated: str | None


class Composer:
    """Writes hits as text within a token budget.

    Args:
        count_tokens: tokens of a text, without BOS and EOS.
        markers: strings to neutralise, from `markers_of`.
        template: Jinja over ``chunks``; see `DEFAULT_TEMPLATE`.
        order: arranges the hits that are kept.
    """

    def __init__(
        self,
        count_tokens: Callable[[str], int],
        markers: Sequence[str] = (),
        template: str = DEFAULT_TEMPLATE,
        order: Order | None = None,
    ) -> None:
        self._count = count_tokens
        self._markers = tuple(markers)
        self._template = sandbox().from_string(template)
        self._order = order or Relevance()

    def compose(self, hits: Sequence[Hit], budget: int | None, *, where: str, closing: str = "") -> Composition:
        """Writes as many of the best hits as fit, arranged by the order.

        Args:
            hits: best first. None of them gives the empty text.
            budget: tokens there are for the text; None is unlimited.
            where: names the question in an error, for example ``arc_easy, document 3``.
            closing: stands directly behind the chunks and counts into the budget.

        Raises:
            ContextError: not even one token of the best chunk fits, or the template fails.
        """
        if not hits:
            return Composition("", 0, (), (), None)
        low, high, step = 0, len(hits) + 1, _FIRST_TRY  # the first `low` hits fit, the first `high` don't
        text, tokens = "", 0
        while high - low > 1:
            middle = min(low + step, len(hits)) if high > len(hits) else (low + high) // 2
            written = self._write(hits[:middle], None, where, closing)
            if budget is None or written[1] <= budget:
                low, step, (text, tokens) = middle, 2 * step, written
            else:
                high = middle
        dropped = tuple(hit.chunk.id for hit in reversed(hits[max(low, 1) :]))
        if low == 0:
            assert budget is not None  # without one everything fits
            return self._cut(hits[0], budget, dropped, where, closing)
        return Composition(text, tokens, tuple(hit.chunk.id for hit in self._order.arrange(hits[:low])), dropped, None)

    def _cut(self, hit: Hit, budget: int, dropped: tuple[str, ...], where: str, closing: str) -> Composition:
        """Keeps the longest beginning of the one hit that fits, found by bisection over its characters."""
        low, high = 0, len(hit.chunk.text)  # `low` characters fit (checked below for 0), `high` don't
        while high - low > 1:
            middle = (low + high) // 2
            if self._write([hit], middle, where, closing)[1] <= budget:
                low = middle
            else:
                high = middle
        if low == 0:
            raise ContextError(
                f"{where}: there is room for {max(budget, 0)} tokens of retrieved text, too few for even the beginning "
                "of one chunk. Lower --num_fewshot, raise max_length= or context_tokens=, or pass k=0."
            )
        text, tokens = self._write([hit], low, where, closing)
        return Composition(text, tokens, (hit.chunk.id,), dropped, hit.chunk.id)

    def _write(self, hits: Sequence[Hit], length: int | None, where: str, closing: str) -> tuple[str, int]:
        """Renders `hits`, each cut to its first `length` characters; returns the text and its tokens."""
        chunks = [self._data(hit.chunk, hit, length) for hit in self._order.arrange(hits)]
        try:
            text = self._order.preface + self._template.render(chunks=chunks) + closing
        except (jinja2.TemplateError, TypeError, ValueError) as error:
            raise ContextError(
                f"{where}: the context template failed: {error}. It sees `chunks`, each with id, title, text, date, "
                "rank and score; mend context_template=."
            ) from error
        return text, self._count(text)

    def _data(self, chunk: Chunk, hit: Hit, length: int | None) -> dict[str, Any]:
        strings = {"id": chunk.id, "title": chunk.title, "text": chunk.text[:length], "date": chunk.date}
        safe = {name: neutralise(value, self._markers) if value else value for name, value in strings.items()}
        return {**safe, "rank": hit.rank, "score": hit.score}


# The stage ------------------------------------------------------------------------------------------------------------


def _readable(name: str, value: Any) -> str:
    found = is_text(name, value)
    read_template(found)
    return found


@register
@dataclass(frozen=True)
class Compose(Stage):
    """Title, text and an empty line for each chunk, or what a template makes of them."""

    slot: ClassVar[str] = "compose"
    name: ClassVar[str] = "template"

    placement: str = argument(
        "`question`: directly before the asked question, after few-shot examples; `start`: before everything",
        one_of("question", "start"),
        "question",
    )
    context_template: str | None = argument(
        "a file with a Jinja template over `chunks`", optional(_readable), None, shown="title, text, an empty line"
    )
    context_tokens: int | None = argument(
        "most tokens of retrieved text", optional(whole(1, "tokens")), None, shown="what the window leaves"
    )
    template: str = DEFAULT_TEMPLATE

    @classmethod
    def build(cls, given: Mapping[str, Any]) -> Compose:
        """Reads the template that ``context_template=`` names."""
        file = given.get("context_template")
        return cls(**given, template=read_template(file) if file else DEFAULT_TEMPLATE)

    def provenance(self) -> dict[str, Any]:
        """The template's text, never its path."""
        settings = {"placement": self.placement, "context_template": self.template}
        return {"name": self.name, **settings, "context_tokens": self.context_tokens}
