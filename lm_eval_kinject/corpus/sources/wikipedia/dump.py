"""Articles from a dump of Wikipedia (``…-pages-articles.xml``, as it is or packed by bzip2).

What it is for: the same selections without a network, or all articles. What it does not do: it expands no templates,
so that categories which only a template adds to a page aren't seen; those that the page itself names are.

The one idea: the file is far larger than any memory, so that it is read from front to back: once to learn which pages
link, belong and redirect where (only if the selection needs it), and once for the articles.
"""

from __future__ import annotations

import bz2
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any
from urllib.parse import quote
from xml.etree import ElementTree

from lm_eval_kinject.corpus.sources.wikipedia.fetch import Page
from lm_eval_kinject.corpus.sources.wikipedia.spec import Selection
from lm_eval_kinject.corpus.sources.wikipedia.wikitext import categories_of, links_of, title_of
from lm_eval_kinject.errors import CorpusError

__all__ = ["Dump"]

_DISAMBIGUATION = re.compile(r"\{\{\s*(?:[\w -]*\bdisambig(?:uation)?\b[\w -]*|dab|hndis|geodis)\s*[|}]", re.IGNORECASE)
_ARTICLE, _CATEGORY = "0", "14"


class Dump:
    """A dump's articles.

    Args:
        path: of the file.
        selection: which articles; None for all.

    Attributes:
        counts: ``read`` (pages of the file), ``redirects``, ``disambiguations``, ``missing`` (names of the selection
            that the file doesn't have); known when the articles have been read.

    Raises:
        CorpusError: no such file. Reading raises it for a file that is damaged or no dump.
    """

    def __init__(self, path: Path, selection: Selection | None = None) -> None:
        if not path.is_file():
            raise CorpusError(f"There is no dump {path}: fetch a …-pages-articles.xml.bz2 from dumps.wikimedia.org.")
        self._path, self._selection = path, selection
        self._hubs_missing = 0
        self.counts: Counter[str] = Counter()

    def __iter__(self) -> Iterator[Page]:
        self.counts.clear()
        wanted = None if self._selection is None else self._wanted(self._selection)
        taken: set[str] = set()
        for namespace, title, page, base in self._pages():
            if namespace != _ARTICLE:
                continue
            text = _text(page)
            if _redirect(page) is not None:
                self.counts["redirects"] += 1
            elif wanted is not None and title not in wanted:
                continue
            elif _DISAMBIGUATION.search(text):
                taken.add(title)
                self.counts["disambiguations"] += 1
            else:
                taken.add(title)
                revid = int(_child(page, "revision", "id") or 0)
                url = f"{base}{quote(title.replace(' ', '_'))}?oldid={revid}"
                month = None if wanted is None else wanted[title]
                yield Page(int(_child(page, "id") or 0), title, revid, url, text, month)
        self.counts["missing"] = self._hubs_missing + (len(wanted.keys() - taken) if wanted is not None else 0)

    def _wanted(self, selection: Selection) -> dict[str, str | None]:
        """Titles of the articles of a selection, redirects followed, and their months."""
        hubs = {title_of(hub) for hub in selection.hubs}
        hubs_there: set[str] = set()
        redirects: dict[str, str] = {}
        linked: dict[str, None] = {}
        articles: dict[str, list[str]] = defaultdict(list)
        below: dict[str, list[str]] = defaultdict(list)
        for namespace, title, page, _ in self._pages():
            text = _text(page)
            if namespace == _CATEGORY:
                for category in categories_of(text):
                    below[category].append(title.partition(":")[2])
            elif namespace == _ARTICLE:
                target = _redirect(page)
                if target is not None:
                    redirects[title] = target
                    continue
                if title in hubs:
                    hubs_there.add(title)
                    linked |= dict.fromkeys(links_of(text))
                for category in categories_of(text) if selection.categories else ():
                    articles[category].append(title)
        self._hubs_missing = len(hubs - hubs_there)
        found: dict[str, str | None] = dict.fromkeys(map(title_of, (*selection.pages, *linked)))
        for name, month in _tree(selection, below):
            for title in articles[name] if selection.takes(month) else ():
                found.setdefault(title, month)
        return {redirects.get(title, title): month for title, month in found.items()}

    def _pages(self) -> Iterator[tuple[str, str, ElementTree.Element, str]]:
        """(namespace, title, element, address to put a title behind) of each page; an element is emptied afterwards."""
        base = "https://en.wikipedia.org/wiki/"
        found = 0
        try:
            with self._opened() as opened:
                events = ElementTree.iterparse(opened, events=("start", "end"))
                _, root = next(events)
                for event, element in events:
                    name = element.tag.rpartition("}")[2]
                    if event == "end" and name == "base" and element.text:
                        base = element.text.rpartition("/")[0] + "/"
                    if event == "end" and name == "page":
                        found += 1
                        yield _child(element, "ns") or _ARTICLE, _child(element, "title") or "", element, base
                        root.clear()
        except (ElementTree.ParseError, OSError, EOFError, StopIteration) as problem:
            raise CorpusError(
                f"The dump {self._path.name} is damaged, or no dump of pages ({problem}), behind {found} pages: fetch "
                f"it again."
            ) from problem
        self.counts["read"] = found

    def _opened(self) -> IO[bytes]:
        return bz2.open(self._path) if self._path.suffix == ".bz2" else self._path.open("rb")


def _tree(selection: Selection, below: dict[str, list[str]]) -> Iterator[tuple[str, str | None]]:
    """Categories of a selection with the month of their articles, each once, level by level."""
    queue: list[tuple[str, int, str | None]] = [(title_of(name), 0, None) for name in selection.categories]
    seen: set[str] = set()
    for name, depth, month in queue:
        follow, own = selection.follows(name, month)
        if name in seen or not follow:
            continue
        seen.add(name)
        yield name, own
        if depth < selection.depth:
            queue += [(child, depth + 1, own) for child in below[name]]


def _child(element: ElementTree.Element, *path: str) -> str | None:
    """The text of a descendant, whatever the version of the dump's schema calls itself."""
    found: Any = element
    for name in path:
        found = next((child for child in found if child.tag.rpartition("}")[2] == name), None)
        if found is None:
            return None
    return found.text


def _redirect(page: ElementTree.Element) -> str | None:
    """Where a page leads, if that is all it does."""
    found = next((child for child in page if child.tag.rpartition("}")[2] == "redirect"), None)
    return None if found is None else title_of(found.get("title", ""))


def _text(page: ElementTree.Element) -> str:
    return _child(page, "revision", "text") or ""
