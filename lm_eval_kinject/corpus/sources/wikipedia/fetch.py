"""Articles of a selection, from the API to this disk, each at a revision that is named.

What it is for: `Pages` finds out which articles a selection means today, fetches them in batches of fifty, and keeps
each batch, so that a stop loses one request. What it does not do: it cleans nothing (`documents` does, when the corpus
is built).

The one idea: what is listed and what is fetched are two files that only grow. Whoever goes on reads them first and asks
for the rest; whoever wants the very same corpus again asks for its revisions instead of its titles.

    FOLDER/listing.json     the categories still to be looked into, the articles found so far, and their months
    FOLDER/batches.jsonl    a line a request: its pages, and what became of those that are none
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lm_eval_kinject.corpus.sources.wikipedia.api import LARGEST_BATCH, Api
from lm_eval_kinject.corpus.sources.wikipedia.spec import Selection
from lm_eval_kinject.corpus.sources.wikipedia.wikitext import sections, title_of
from lm_eval_kinject.errors import CorpusError
from lm_eval_kinject.provenance import read_json, write_json
from lm_eval_kinject.records import Document

__all__ = ["LICENCE", "Page", "Pages", "documents"]

LICENCE = "CC BY-SA 4.0"
"""Of Wikipedia's text."""

_LISTED_TOGETHER = 500


@dataclass(frozen=True, slots=True)
class Page:
    """One article at one revision; ``month`` (YYYY-MM) is that of the category of events in which it was found."""

    pageid: int
    title: str
    revid: int
    url: str
    text: str
    month: str | None = None


def documents(pages: Iterable[Page], counts: Counter[str]) -> Iterator[Document]:
    """A Document a section, with attribution and licence; each article once.

    Args:
        pages: as they were fetched.
        counts: told of ``pages``, ``sections``, ``duplicates`` (found by several ways) and ``without_text``.
    """
    seen: set[int] = set()
    for page in pages:
        if page.pageid in seen:
            counts["duplicates"] += 1
            continue
        seen.add(page.pageid)
        counts["pages"] += 1
        found = sections(page.text)
        counts["sections"] += len(found)
        counts["without_text"] += not found
        for number, (heading, prose) in enumerate(found):
            meta: dict[str, Any] = {
                "attribution": f"Wikipedia contributors, “{page.title}”",
                "licence": LICENCE,
                "revision": page.revid,
                "url": page.url,
            }
            if heading:
                meta["section"] = heading
            title = f"{page.title}: {heading}" if heading else page.title
            yield Document(f"{page.pageid}-{number}", prose, title=title, date=page.month, meta=meta)


class Pages:
    """The articles of a selection, fetched into a folder.

    Args:
        api: asked for what isn't there yet.
        selection: which articles.
        folder: kept between stops.
        revisions: what to fetch in place of today's articles of the selection: (page id, revision, month) of each.
        say: takes a line for a person now and then.
    """

    def __init__(
        self,
        api: Api,
        selection: Selection,
        folder: Path,
        *,
        revisions: Sequence[tuple[int, int, str | None]] | None = None,
        say: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._api, self._selection, self._folder, self._say = api, selection, folder, say
        self._revisions = revisions
        self._hubs_missing = 0
        self.counts: Counter[str] = Counter()
        folder.mkdir(parents=True, exist_ok=True)

    def fetch(self) -> None:
        """Fetches what isn't there yet.

        Raises:
            CorpusError: the API fails for good, or nothing was found.
        """
        wanted = self._pinned() if self._revisions is not None else self._listed()
        done = self._whole_batches()
        for number, batch in enumerate(wanted):
            if number >= done:
                with self._batches.open("a", encoding="utf-8") as kept:
                    kept.write(json.dumps(self._batch(batch), ensure_ascii=False) + "\n")
                self._say(f"{number + 1} of {len(wanted)} requests")
        self.counts = Counter(missing=self._hubs_missing)
        for line in self._lines():
            self.counts.update(line["counts"])
        if not any(line["pages"] for line in self._lines()):
            raise CorpusError(
                f"Wikipedia has no article of this selection ({dict(self.counts) or 'nothing was found'}): check its "
                f"names."
            )

    def __iter__(self) -> Iterator[Page]:
        for line in self._lines():
            yield from (Page(**page) for page in line["pages"])

    @property
    def _batches(self) -> Path:
        return self._folder / "batches.jsonl"

    def _lines(self) -> Iterator[dict[str, Any]]:
        with self._batches.open(encoding="utf-8") as kept:
            for line in kept:
                yield json.loads(line)

    def _whole_batches(self) -> int:
        """How many lines are whole; half a line, of a stop while it was written, is cut off."""
        if not self._batches.exists():
            return 0
        whole = lines = 0
        with self._batches.open("rb+") as kept:
            for line in kept:
                if line.endswith(b"\n"):
                    whole += len(line)
                    lines += 1
            kept.truncate(whole)
        return lines

    # What is asked for ------------------------------------------------------------------------------------------------

    def _pinned(self) -> list[dict[str, Any]]:
        batches = _batched(list(self._revisions or ()))
        return [
            {"revids": [revision for _, revision, _ in batch], "months": {page: month for page, _, month in batch}}
            for batch in batches
        ]

    def _listed(self) -> list[dict[str, Any]]:
        state = self._listing()
        self._hubs_missing = int(state["missing"])
        found = {int(pageid): month for pageid, month in state["found"].items()}
        titles = dict.fromkeys(map(title_of, (*self._selection.pages, *state["linked"])))
        by_title = [{"titles": batch, "months": {}} for batch in _batched([t for t in titles if t])]
        by_id = [{"pageids": ids, "months": {one: found[one] for one in ids}} for ids in _batched(sorted(found))]
        return [*by_title, *by_id]

    def _listing(self) -> dict[str, Any]:
        """Titles and page ids, from where an earlier listing stopped; written after every category and hub."""
        path = self._folder / "listing.json"
        try:
            state: dict[str, Any] = read_json(path)
        except (OSError, ValueError):
            queue = [[f"Category:{title_of(name)}", 0, None] for name in self._selection.categories]
            hubs = list(self._selection.hubs)
            state = {"hubs": hubs, "missing": 0, "linked": [], "queue": queue, "seen": [], "found": {}}
        seen = set(state["seen"])
        unwritten = 0
        while state["hubs"]:
            there, links = self._links(state["hubs"][0])
            state["missing"] += not there
            state["linked"] += links
            del state["hubs"][0]
            write_json(path, state)
        while state["queue"]:
            name, depth, month = state["queue"].pop(0)
            if name not in seen:
                seen.add(name)
                state["seen"].append(name)
                self._look_into(name, depth, month, state)
                self._say(f"{len(state['found'])} articles in {len(seen)} categories, {len(state['queue'])} to go")
            unwritten += 1
            if unwritten > len(state["found"]) // 500:  # the file grows with what it lists
                write_json(path, state)
                unwritten = 0
        write_json(path, state)
        return state

    def _links(self, hub: str) -> tuple[bool, list[str]]:
        """Whether there is such a page, and the articles that it links to."""
        asked = self._api.query(prop="links", titles=hub, plnamespace=0, pllimit=_LISTED_TOGETHER, redirects=1)
        pages = [page for answer in asked for page in answer.get("pages", [])]
        there = any("pageid" in page for page in pages)
        return there, [link["title"] for page in pages for link in page.get("links", [])]

    def _look_into(self, name: str, depth: int, month: str | None, state: dict[str, Any]) -> None:
        """Adds a category's articles and subcategories; with a window, only those of months in it."""
        follow, month = self._selection.follows(name, month)
        if not follow:
            return
        asked = self._api.query(
            list="categorymembers",
            cmtitle=name,
            cmtype="page|subcat",
            cmprop="ids|title|type",
            cmlimit=_LISTED_TOGETHER,
        )
        for member in (member for answer in asked for member in answer.get("categorymembers", [])):
            if member["type"] == "subcat" and depth < self._selection.depth:
                state["queue"].append([member["title"], depth + 1, month])
            elif member["type"] == "page" and member["ns"] == 0 and self._selection.takes(month):
                state["found"].setdefault(str(member["pageid"]), month)

    # What comes back --------------------------------------------------------------------------------------------------

    def _batch(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """The pages of one request, and the figures of those that are none."""
        what = next(key for key in ("titles", "pageids", "revids") if key in batch)
        asked: dict[str, Any] = {
            what: "|".join(map(str, batch[what])), "prop": "revisions|info|pageprops", "rvprop": "ids|content",
            "rvslots": "main", "inprop": "url", "ppprop": "disambiguation",
        }  # fmt: skip
        if what != "revids":
            asked["redirects"] = 1
        counts: Counter[str] = Counter()
        found: dict[Any, dict[str, Any]] = {}
        for answer in self._api.query(**asked):
            # Of an answer in parts each part names all pages; only one of them brings a page's text.
            for page in answer.get("pages", []):
                found.setdefault(page.get("pageid", page.get("title")), {}).update(page)
            counts["missing"] += len(answer.get("badrevids", {}))
        pages = [page for one in found.values() if (page := self._page(one, batch["months"], counts)) is not None]
        # The answer's order is the server's affair; that of the corpus must be the same whenever it is made.
        place = {revision: number for number, revision in enumerate(batch.get("revids", ()))}
        pages.sort(key=lambda page: (place.get(page.revid, 0), page.pageid))
        return {"pages": [asdict(page) for page in pages], "counts": dict(counts)}

    def _page(self, page: Mapping[str, Any], months: Mapping[int, str | None], counts: Counter[str]) -> Page | None:
        if page.get("missing") or page.get("invalid") or not page.get("revisions"):
            counts["missing"] += 1
            return None
        if "disambiguation" in page.get("pageprops", {}):
            counts["disambiguations"] += 1
            return None
        revision = page["revisions"][0]
        text = revision.get("slots", {}).get("main", {}).get("content")
        if text is None:  # an administrator hid it
            counts["hidden"] += 1
            return None
        pageid = int(page["pageid"])
        url = f"{page['fullurl']}?oldid={revision['revid']}"
        return Page(pageid, page["title"], int(revision["revid"]), url, text, months.get(pageid))


def _batched(values: list[Any]) -> list[list[Any]]:
    return [values[start : start + LARGEST_BATCH] for start in range(0, len(values), LARGEST_BATCH)]
