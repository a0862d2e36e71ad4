"""What the retriever is asked: the text of the question, taken from the document of a task.

What it is for: `QueryRule` turns ``query=`` (or a task's own declaration) into one query text per document, for our
tasks and for anybody's. What it does not do: it never looks at the prompt, so few-shot examples, instructions and
the answer can't reach the retriever by way of it; and it adds no prefix (each retriever has its own).

`QuestionQuery` is the stage of the pipeline that takes ``query=``.

The one idea is a ladder, in this order, which stops at the first rung that holds and refuses below the last:

1. the field that the task declares (``metadata: kinject: query:`` in its YAML);
2. the first of `QUESTION_FIELDS` that the document has as a non-empty string;
3. the rendered question (``doc_to_text``) without its options, its ``Question:`` label and its ``Answer:`` line.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import jinja2
from jinja2.sandbox import SandboxedEnvironment

from lm_eval_kinject.errors import ArgumentError, ContextError
from lm_eval_kinject.stages import Stage, argument, register, slot, text, whole

__all__ = ["QUESTION_FIELDS", "QueryRule", "QuestionQuery", "sandbox", "without_choices"]

slot("query", "what the retriever is asked")

QUESTION_FIELDS = ("question", "query", "question_stem", "goal", "problem", "prompt")
"""Where benchmarks keep the bare question, most usual first. ``text``, ``sentence`` and ``input`` aren't among them:
in many tasks they hold the options or the answer too."""

_MODES = ("question", "question+choices")
_OPTION_LINE = re.compile(r"^\s*\(?(?:[A-Ja-j]|\d{1,2})[.):]\s")
_LABELS = re.compile(r"^\s*(?:question|problem|q)\s*:\s*", re.IGNORECASE)
_ANSWER_LINE = re.compile(r"^\s*(?:the\s+)?(?:correct\s+|best\s+)?(?:answer|a)\s*(?:is)?\s*:?\s*$", re.IGNORECASE)


def sandbox() -> SandboxedEnvironment:
    """Returns a Jinja environment for untrusted data: a missing name is an error, nothing is escaped."""
    return SandboxedEnvironment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True, autoescape=False)


def read_utf8(file: Path, where: str) -> str:
    """The text of a template's file.

    Raises:
        ArgumentError: it can't be read, or isn't UTF-8; ``where`` names the argument.
    """
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ArgumentError(f"{where}: not UTF-8 (byte {error.start}); save the file as UTF-8") from error
    except OSError as error:
        raise ArgumentError(f"{where}: can't be read ({error.strerror}); pass a readable file") from error


@dataclass(frozen=True)
class QueryRule:
    """How a query is made of a document.

    Attributes:
        mode: ``question``, ``question+choices`` or ``template``.
        source: the template's text in mode ``template``, else empty; part of a result's provenance.
    """

    mode: str
    source: str = ""

    @classmethod
    def parse(cls, value: str) -> QueryRule:
        """Reads the argument ``query=``.

        Args:
            value: a mode, a Jinja template (it contains ``{{`` or ``{%``), or the path of a file that holds one.

        Raises:
            ArgumentError: there is no such file, or the template doesn't parse.
        """
        if value in _MODES:
            return cls(value)
        source = value
        if "{{" not in value and "{%" not in value:
            path = Path(value).expanduser()
            if not path.is_file():
                raise ArgumentError(
                    f"query={value}: no such file; pass question, question+choices, or the path of a file with a Jinja "
                    "template over the document (a template itself only fits into JSON model_args)"
                )
            source = read_utf8(path, f"query={value}")
        try:
            sandbox().from_string(source)  # parses, and knows every filter's name
        except jinja2.TemplateSyntaxError as error:
            raise ArgumentError(
                f"query={value}: not a Jinja template, line {error.lineno}: {error.message}; mend the template"
            ) from error
        return cls("template", source)

    def text(
        self,
        doc: Mapping[str, Any],
        *,
        where: str,
        declared: str | None = None,
        rendered: str | None = None,
        choices: Sequence[str] | None = None,
    ) -> str:
        """Returns the query for one document, stripped.

        Args:
            doc: the document.
            where: names the document in an error, for example ``arc_easy, document 3``.
            declared: the question field that the task's YAML declares, if it does.
            rendered: ``doc_to_text`` of the document, if it is known and doesn't vary by option.
            choices: ``doc_to_choice`` of the document, if the task has it.

        Raises:
            ContextError: the document doesn't hold what the rule needs.
        """
        if self.mode == "template":
            found = _render(self.source, doc, where)
        else:
            found = _question(doc, declared, rendered, choices, where)
            if self.mode == "question+choices":
                found = "\n".join([found, *_choice_texts(doc, choices, where)])
        if not found.strip():
            raise ContextError(
                f"{where}: the query is empty. Pass query=FILE, a Jinja template over its fields: {_fields(doc)}."
            )
        return found.strip()


def _parses(name: str, value: Any) -> str:
    found = text(name, value)
    QueryRule.parse(found)
    return found


@register
@dataclass(frozen=True)
class QuestionQuery(Stage):
    """The question alone, or what a template makes of the document."""

    slot: ClassVar[str] = "query"
    name: ClassVar[str] = "question"

    query: str = argument(
        "`question`, `question+choices`, or a Jinja template over the document (a file, or in JSON model_args)",
        _parses,
        "question",
    )
    stride: int = argument(
        "rolling text (perplexity): tokens that are scored behind one search", whole(1, "tokens"), 32
    )
    query_tokens: int = argument("rolling text: tokens directly before them that are the query", whole(1, "tokens"), 32)
    rule: QueryRule = QueryRule("question")

    @classmethod
    def build(cls, given: Mapping[str, Any]) -> QuestionQuery:
        """Reads the template that ``query=`` names."""
        return cls(**given, rule=QueryRule.parse(given.get("query", "question")))

    def provenance(self) -> dict[str, Any]:
        """The mode or the template's text, never its path."""
        return {"name": self.name, "query": self.rule.source or self.rule.mode}


def without_choices(rendered: str, choices: Sequence[str]) -> str:
    r"""Returns a rendered question without its options.

    Lines that list an option (``A. …``, ``(b) …``) or hold nothing but one, a trailing ``Answer:`` line and a leading
    ``Question:`` label are dropped: ``"Question: Who?\nA. He\nB. She\nAnswer:"`` becomes ``"Who?"``.
    """
    texts = {choice.strip() for choice in choices}
    lines = [line for line in rendered.split("\n") if not (_OPTION_LINE.match(line) or line.strip() in texts)]
    while lines and (not lines[-1].strip() or _ANSWER_LINE.match(lines[-1])):
        lines.pop()
    return _LABELS.sub("", "\n".join(lines).strip(), count=1).strip()


def _question(
    doc: Mapping[str, Any], declared: str | None, rendered: str | None, choices: Sequence[str] | None, where: str
) -> str:
    if declared is not None:
        if "{{" in declared or "{%" in declared:
            return _render(declared, doc, where)
        value = doc.get(declared)
        if not isinstance(value, str):
            raise ContextError(
                f"{where}: the task declares that its question is in the field {declared!r}, which the document "
                f"doesn't have as text. It has {_fields(doc)}; mend metadata.kinject.query in the task's YAML."
            )
        return value
    for name in QUESTION_FIELDS:
        value = doc.get(name)
        if isinstance(value, str) and value.strip():
            return value
    found = without_choices(rendered, choices or ()) if rendered else ""
    if not found:
        raise ContextError(
            f"{where}: no question found to ask the retriever (the document's fields are {_fields(doc)}). "
            "Pass query=FILE, a file with a Jinja template over these fields."
        )
    return found


def _choice_texts(doc: Mapping[str, Any], choices: Sequence[str] | None, where: str) -> list[str]:
    """The options' texts: of the document where it lists them, else of the task unless these are bare letters."""
    for name in ("choices", "options"):
        value = doc.get(name)
        if isinstance(value, Mapping):
            value = value.get("text")
        if isinstance(value, list | tuple) and value and all(isinstance(v, str) for v in value):
            return [v.strip() for v in value]
    if choices and any(len(c.strip()) > 1 for c in choices):
        return [c.strip() for c in choices]
    raise ContextError(
        f"{where}: query=question+choices, but the options' texts were not found (the document's fields are "
        f"{_fields(doc)}). Pass query=FILE, a file with a Jinja template over these fields."
    )


def _render(source: str, doc: Mapping[str, Any], where: str) -> str:
    try:
        return sandbox().from_string(source).render(**{str(k): v for k, v in doc.items()})
    except (jinja2.TemplateError, TypeError, ValueError) as error:
        raise ContextError(
            f"{where}: the query template failed: {error}. The document's fields are {_fields(doc)}; mend the template."
        ) from error


def _fields(doc: Mapping[str, Any]) -> str:
    return ", ".join(str(name) for name in doc) or "none"
