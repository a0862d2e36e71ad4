"""Reads the web articles of RealTimeQA (Kasai et al. 2023) from a user's own copy of its repository.

What it is for: ``corpus=realtimeqa:PATH`` gives the articles that a search engine returned for each week's questions,
as documents. What it does not do: it downloads nothing and carries nothing: upstream states no licence for these
texts. The questions themselves are another module's business.

The one idea: upstream's layout is the interface. ``past/YEAR/YYYYMMDD_gcs.jsonl`` has a line a question, whose
``search_result`` lists articles (``url``, ``title``, ``text``, ``publish_date``); lists are often empty, an article
often comes back for several questions, and some have no text. Such rows are counted, never fatal.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lm_eval_kinject.corpus.clean import strip_html
from lm_eval_kinject.corpus.sources.files import Source, decode
from lm_eval_kinject.errors import CorpusError
from lm_eval_kinject.records import Document

__all__ = ["read_realtimeqa"]

_PATTERN = "*_gcs.jsonl"


def read_realtimeqa(path: Path) -> Source:
    """Articles below ``path``, in the order of weeks and lines, each (address, text) once.

    Args:
        path: upstream's root, its ``past`` folder, a year's folder, or one ``*_gcs.jsonl`` file.

    Returns:
        Documents with ids ``rtqa-`` and 16 hexadecimal digits of address and text; ``date`` is the publication date,
        ``meta`` has the address and the week. ``counts``: files, questions, articles, duplicates, without_text,
        malformed.

    Raises:
        CorpusError: no such path, no such file below it, or no usable article.
    """
    if not path.exists():
        raise CorpusError(
            f"realtimeqa:{path}: no such path. Clone github.com/realtimeqa/realtimeqa_public and give its folder."
        )
    files = [path] if path.is_file() else sorted(path.rglob(_PATTERN), key=lambda file: file.name)
    if not files:
        raise CorpusError(
            f"realtimeqa:{path}: no {_PATTERN} below it. Give the repository's root, or its `past` folder."
        )
    counts: Counter[str] = Counter(files=len(files))
    documents: dict[str, Document] = {}
    for file in files:
        week = file.name.partition("_")[0]
        for article in _articles(file, counts):
            document = _document(article, week)
            counts["articles"] += 1
            if document is None:
                counts["without_text"] += 1
            elif document.id in documents:
                counts["duplicates"] += 1
            else:
                documents[document.id] = document
    if not documents:
        raise CorpusError(f"realtimeqa:{path}: its {len(files)} files hold no article with a text.")
    keys = ("files", "questions", "articles", "duplicates", "without_text", "malformed")
    weeks = f"{files[0].name.partition('_')[0]} to {files[-1].name.partition('_')[0]}"
    return Source(
        tuple(documents.values()),
        f"RealTimeQA search results, weeks {weeks}",
        licence="not stated upstream; not to be passed on",
        counts={key: counts[key] for key in keys},
    )


def _articles(file: Path, counts: Counter[str]) -> Iterator[dict[str, Any]]:
    for line in decode(file.read_bytes(), file.name).split("\n"):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            counts["malformed"] += 1
            continue
        results = row.get("search_result") if isinstance(row, dict) else None
        if not isinstance(results, list):
            counts["malformed"] += 1
            continue
        counts["questions"] += 1
        for article in results:
            if isinstance(article, dict):
                yield article
            else:
                counts["malformed"] += 1


def _document(article: dict[str, Any], week: str) -> Document | None:
    """One article, cleaned; None where no text is left."""
    text = strip_html(_string(article.get("text")))
    if not text:
        return None
    url = _string(article.get("url"))
    digest = hashlib.sha256(f"{url}\0{text}".encode("utf-8", errors="replace")).hexdigest()
    meta = {"url": url, "week": week} if url else {"week": week}
    title = strip_html(_string(article.get("title")))
    return Document(f"rtqa-{digest[:16]}", text, title=title, date=_iso(article.get("publish_date")), meta=meta)


def _string(value: Any) -> str:
    """A text without half surrogate pairs, which upstream's JSON escapes can spell but UTF-8 can't."""
    return value.encode("utf-8", errors="replace").decode("utf-8") if isinstance(value, str) else ""


def _iso(value: Any) -> str | None:
    match = re.fullmatch(r"(\d{4})[/-](\d{1,2})[/-](\d{1,2})", value.strip()) if isinstance(value, str) else None
    return f"{match[1]}-{int(match[2]):02}-{int(match[3]):02}" if match else None
