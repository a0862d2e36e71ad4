"""Reads RealTimeQA (Kasai et al. 2023): weekly news questions, and the web articles that a search returned for them.

What it is for: ``corpus=realtimeqa:PATH`` gives the articles of a user's own copy as documents, and
``realtimeqa_build.py`` makes corpus and question set of a window of weeks from the readers here. What it does not do:
it downloads nothing and carries nothing: upstream states no licence for these texts.

The one idea: upstream's layout is the interface. ``past/YEAR/WEEK_qa.jsonl`` has a line a question, ``WEEK_gcs.jsonl``
a line a question with the articles found for it (``search_result``: ``url``, ``title``, ``text``, ``publish_date``),
where WEEK is YYYYMMDD or YYYYMMDD-YYYYMMDD. Unknown fields don't matter; lists are often empty, articles come back for
several questions, and a few rows have other than four options or one answer. What can't be used is set aside with file,
line and reason, never fatal. ``WEEK_dpr.jsonl`` (passages of an old Wikipedia) and ``WEEK_qa_nota.jsonl`` (the same
questions with "none of the above") are left out.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lm_eval_kinject.corpus.clean import strip_html
from lm_eval_kinject.corpus.days import Window
from lm_eval_kinject.corpus.furniture import LineTally, take_out
from lm_eval_kinject.corpus.sources.files import Source
from lm_eval_kinject.errors import CorpusError
from lm_eval_kinject.log import log
from lm_eval_kinject.records import Document, Question

__all__ = ["SetAside", "Week", "find_weeks", "read_articles", "read_questions", "read_realtimeqa"]

_ARTICLES, _QUESTIONS = "gcs", "qa"
_FILE = re.compile(r"(?P<week>.+?)_(?P<kind>gcs|qa)\.jsonl")
_DATED = re.compile(r"(?:\d{8}-)?(\d{4})(\d{2})(\d{2})")
_DATE = re.compile(r"(\d{4})[/-](\d{1,2})[/-](\d{1,2})(?:[T ].*)?")
_SHOWN = 10
_OPTIONS = 4
LICENCE = "not stated upstream; not to be passed on"


@dataclass(frozen=True, slots=True)
class Week:
    """One of upstream's weeks: its name (``20230811``), its last day, and its files."""

    name: str
    day: str
    questions: tuple[Path, ...] = ()
    articles: tuple[Path, ...] = ()

    @property
    def files(self) -> tuple[Path, ...]:
        """All of them."""
        return (*self.questions, *self.articles)


@dataclass(slots=True)
class SetAside:
    """Rows that can't be used: ``file line n: why`` each, and figures of the reading."""

    rows: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)

    def add(self, kind: str, file: Path, line: int, why: str) -> None:
        """Sets a row aside under a kind of figure."""
        self.counts[kind] += 1
        self.rows.append(f"{file.parent.name}/{file.name} line {line}: {why}")

    def shown(self) -> str:
        """The first ten, a line each, and how many more there are; empty where there are none."""
        more = [f"… and {len(self.rows) - _SHOWN} more"] if len(self.rows) > _SHOWN else []
        return "\n".join(f"  - {row}" for row in [*self.rows[:_SHOWN], *more])


def find_weeks(path: Path, window: Window | None = None) -> list[Week]:
    """The weeks below a folder, oldest first.

    Args:
        path: upstream's root, its ``past`` folder, a year's folder, or one file.
        window: weeks whose last day lies in it; None: all, those too whose name is no date.

    Raises:
        CorpusError: no such path, no file of upstream's below it, or none in the window.
    """
    if not path.exists():
        raise CorpusError(
            f"realtimeqa:{path}: no such path. Clone github.com/realtimeqa/realtimeqa_public and give its folder."
        )
    weeks: dict[str, dict[str, list[Path]]] = {}
    for file in [path] if path.is_file() else sorted(path.rglob("*.jsonl"), key=lambda file: (file.name, str(file))):
        match = _FILE.fullmatch(file.name)
        if match and not any(part.startswith(".") for part in file.relative_to(path).parts):
            weeks.setdefault(match["week"], {}).setdefault(match["kind"], []).append(file)
    if not weeks:
        raise CorpusError(
            f"realtimeqa:{path}: no *_{_ARTICLES}.jsonl below it. Give the repository's root, or its `past` folder."
        )
    found = [
        Week(name, _day(name), tuple(files.get(_QUESTIONS, ())), tuple(files.get(_ARTICLES, ())))
        for name, files in sorted(weeks.items(), key=lambda item: (_day(item[0]), item[0]))
    ]
    chosen = [week for week in found if window is None or (week.day and week.day in window)]
    if not chosen:
        there = [week.day for week in found if week.day]
        range_ = f"{there[0]} to {there[-1]}" if there else "none with a date"
        raise CorpusError(f"realtimeqa:{path}: no week in {window}; its weeks end on {range_}.")
    return chosen


def _day(week: str) -> str:
    """The last day of a week by its name; empty where that is no date."""
    match = _DATED.fullmatch(week)
    return "-".join(match.groups()) if match else ""


def read_realtimeqa(path: Path) -> Source:
    """Articles below ``path``, in the order of weeks and lines, each (address, text) once, without page furniture.

    Args:
        path: upstream's root, its ``past`` folder, a year's folder, or one ``*_gcs.jsonl`` file.

    Returns:
        Documents with ids ``rtqa-`` and 16 hexadecimal digits of address and text; ``date`` is the publication date,
        ``meta`` has the address and the week. ``counts``: files, questions, articles, duplicates, without_text,
        malformed, furniture_lines.

    Raises:
        CorpusError: no such path, no such file below it, or no usable article.
    """
    weeks = [week for week in find_weeks(path) if week.articles]
    if not weeks:
        raise CorpusError(
            f"realtimeqa:{path}: no *_{_ARTICLES}.jsonl below it. Give the repository's root, or its `past` folder."
        )
    aside = SetAside(counts=Counter(files=sum(len(week.articles) for week in weeks)))
    documents: dict[str, Document] = {}
    tally = LineTally()
    for week in weeks:
        for document in read_articles(week, aside, documents):
            documents[document.id] = document
            tally.add(document.id, document.text)
    if not documents:
        raise CorpusError(f"realtimeqa:{path}: its {aside.counts['files']} files hold no article with a text.")
    if aside.rows:
        log.warning("realtimeqa: %d rows are set aside:\n%s", len(aside.rows), aside.shown())
    repeated = tally.repeated()
    cleaned = []
    for document in documents.values():
        text, taken = take_out(document.id, document.text, repeated)
        aside.counts["furniture_lines"] += taken.total()
        cleaned.append(text)
    keys = ("files", "questions", "articles", "duplicates", "without_text", "malformed", "furniture_lines")
    return Source(
        tuple(with_text(document, text) for document, text in zip(documents.values(), cleaned, strict=True) if text),
        describe(weeks),
        licence=LICENCE,
        counts={key: aside.counts[key] for key in keys},
    )


def describe(weeks: Sequence[Week]) -> str:
    """Where the texts of these weeks come from, in a phrase."""
    return f"RealTimeQA search results, weeks {weeks[0].name} to {weeks[-1].name}"


def with_text(document: Document, text: str) -> Document:
    """The document with another text, its id kept: ids name what was scraped, however it is cleaned."""
    return Document(document.id, text, document.title, document.date, document.meta)


# Rows -----------------------------------------------------------------------------------------------------------------


def read_articles(week: Week, aside: SetAside, known: Container[str] = ()) -> Iterator[Document]:
    """A week's articles as plain text, each (address, text) once, one line of a file in memory at a time.

    Args:
        week: whose files are read.
        aside: takes malformed rows, and counts ``questions`` (rows), ``articles``, ``duplicates``, ``without_text``.
        known: a container of ids of articles that were read before, which count as duplicates.
    """
    seen: set[str] = set()
    for file in week.articles:
        for number, row in _rows(file, aside):
            results = row.get("search_result")
            if not isinstance(results, list):
                aside.add("malformed", file, number, "its `search_result` is no list of articles")
                continue
            aside.counts["questions"] += 1
            for article in results:
                if not isinstance(article, dict):
                    aside.add("malformed", file, number, "an article in its `search_result` is no object")
                    continue
                aside.counts["articles"] += 1
                document = _document(article, week.name)
                if document is None:
                    aside.counts["without_text"] += 1
                elif document.id in seen or document.id in known:
                    aside.counts["duplicates"] += 1
                else:
                    seen.add(document.id)
                    yield document


def read_questions(week: Week, aside: SetAside) -> Iterator[Question]:
    """A week's questions that have four different options and one answer.

    Args:
        week: whose files are read.
        aside: takes the others, under ``questions_malformed``, ``questions_options`` and ``questions_answers``.

    Yields:
        Questions with upstream's ids. ``meta``: week, date, source, url, and evidence (the quiz's own explanation,
        as plain text; it gives the answer away and is no part of the corpus).
    """
    for file in week.questions:
        for number, row in _rows(file, aside, "questions_malformed"):
            sentence = strip_html(_string(row.get("question_sentence")))
            if not sentence:
                aside.add("questions_malformed", file, number, "no `question_sentence`")
                continue
            choices = _choices(row.get("choices"))
            if len(choices) != _OPTIONS or len(set(choices)) != _OPTIONS:
                why = f"{len(choices)} options" if len(choices) != _OPTIONS else "two options are the same"
                aside.add("questions_options", file, number, f"{why}; four different ones are asked for")
                continue
            answer = _answer(row.get("answer"))
            if isinstance(answer, str):
                aside.add("questions_answers", file, number, answer)
                continue
            meta = {
                "week": week.name,
                "date": _iso(row.get("question_date")) or week.day,
                "source": _string(row.get("question_source")),
                "url": _string(row.get("question_url")),
                "evidence": strip_html(_string(row.get("evidence"))),
            }
            identifier = _string(row.get("question_id")) or f"{week.name}_{number - 1}"
            yield Question(identifier, sentence, choices, answer, meta=meta)


def _rows(file: Path, aside: SetAside, kind: str = "malformed") -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number, object) of a JSON Lines file, a line in memory at a time."""
    try:
        with file.open("rb") as lines:
            for number, data in enumerate(lines, start=1):
                if not data.strip():
                    continue
                try:
                    row = json.loads(data.decode("utf-8-sig" if number == 1 else "utf-8"))
                except UnicodeDecodeError as problem:
                    aside.add(kind, file, number, f"not UTF-8 (byte 0x{data[problem.start]:02x})")
                except json.JSONDecodeError as problem:
                    aside.add(kind, file, number, f"not valid JSON ({problem.msg} at column {problem.colno})")
                except (RecursionError, ValueError):  # a number of more digits than Python takes is a ValueError
                    aside.add(kind, file, number, "not usable JSON (too deep, or too long a number)")
                else:
                    if isinstance(row, dict):
                        yield number, row
                    else:
                        aside.add(kind, file, number, "no object")
    except OSError as problem:
        raise CorpusError(f"{file} can't be read: {problem.strerror or problem}.") from problem


def _document(article: dict[str, Any], week: str) -> Document | None:
    """One article, without HTML; None where no text is left."""
    text = strip_html(_string(article.get("text")))
    if not text:
        return None
    url = _string(article.get("url"))
    digest = hashlib.sha256(f"{url}\0{text}".encode("utf-8", errors="replace")).hexdigest()
    meta = {"url": url, "week": week} if url else {"week": week}
    title = strip_html(_string(article.get("title")))
    return Document(f"rtqa-{digest[:16]}", text, title=title, date=_iso(article.get("publish_date")), meta=meta)


def _choices(value: Any) -> tuple[str, ...]:
    """Option texts; numbers as they are written, and nothing for what is no list of texts."""
    if not isinstance(value, list):
        return ()
    texts = [strip_html(_string(str(one) if isinstance(one, int | float) else one)) for one in value]
    return tuple(text for text in texts if text)


def _answer(value: Any) -> int | str:
    """The index of the one right option; otherwise why there is none."""
    given = value if isinstance(value, list) else [] if value is None else [value]
    if len(given) != 1:
        return f"{len(given)} answers; one is asked for"
    try:
        index = int(given[0])
    except (TypeError, ValueError):
        index = -1
    return index if 0 <= index < _OPTIONS else f"its answer {given[0]!r} is no index of an option"


def _string(value: Any) -> str:
    """A text without half surrogate pairs, which upstream's JSON escapes can spell but UTF-8 can't."""
    return value.encode("utf-8", errors="replace").decode("utf-8") if isinstance(value, str) else ""


def _iso(value: Any) -> str | None:
    match = _DATE.fullmatch(value.strip()) if isinstance(value, str) else None
    return f"{match[1]}-{int(match[2]):02}-{int(match[3]):02}" if match else None
