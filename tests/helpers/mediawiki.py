"""A small MediaWiki on 127.0.0.1: ``api.php`` as Wikipedia's answers, its trouble included; and the same as a dump.

What it has of the real one: answers in several parts (members, links, and texts, each in its own way), redirects,
titles that are missing or no titles, disambiguations, protected pages, hidden and unknown revisions, ``maxlag``, HTTP
errors with Retry-After, answers that are no JSON, and the refusal of a program that doesn't say who it is.
"""

from __future__ import annotations

import bz2
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs
from xml.sax.saxutils import escape, quoteattr


@dataclass
class Article:
    """A page; ``revisions`` are (id, text), the newest last."""

    pageid: int
    title: str
    revisions: list[tuple[int, str]]
    redirect: str | None = None
    disambiguation: bool = False
    hidden: bool = False


@dataclass
class Wiki:
    """Pages, and category -> members (``Category:…`` for a subcategory); ``faults``: request number -> what happens."""

    articles: list[Article]
    categories: dict[str, list[str]] = field(default_factory=dict)
    links: dict[str, list[str]] = field(default_factory=dict)
    faults: dict[int, tuple[int, dict[str, str], Any]] = field(default_factory=dict)
    asked: list[dict[str, str]] = field(default_factory=list)
    agents: set[str] = field(default_factory=set)
    members: int = 2
    texts: int = 2

    def named(self, title: str) -> Article | None:
        return next((article for article in self.articles if article.title == title), None)

    def answer(self, asked: dict[str, str]) -> dict[str, Any]:
        if asked.get("list") == "categorymembers":
            return self._members(asked)
        if asked["prop"] == "links":
            return self._links(asked)
        return self._texts(asked)

    def _members(self, asked: dict[str, str]) -> dict[str, Any]:
        assert asked["cmtype"] == "page|subcat"
        inside = self.categories.get(asked["cmtitle"].removeprefix("Category:"), [])
        start = int(asked.get("cmcontinue", "page|0").partition("|")[2])
        given = []
        for title in inside[start : start + self.members]:
            sub, article = title.startswith("Category:"), self.named(title)
            ns = 14 if sub else 1 if title.startswith("Talk:") else 0
            given.append(
                {
                    "pageid": article.pageid if article else 9000,
                    "ns": ns,
                    "title": title,
                    "type": "subcat" if sub else "page",
                }
            )
        after = start + self.members
        more = {"continue": {"cmcontinue": f"page|{after}", "continue": "-||"}} if after < len(inside) else {}
        return {**more, "batchcomplete": True, "query": {"categorymembers": given}}

    def _links(self, asked: dict[str, str]) -> dict[str, Any]:
        title = asked["titles"]
        if title not in self.links:
            return {"batchcomplete": True, "query": {"pages": [{"ns": 0, "title": title, "missing": True}]}}
        start = int(asked.get("plcontinue", "1|0|0").rpartition("|")[2])
        given = [{"ns": 0, "title": link} for link in self.links[title][start : start + self.members]]
        after = start + self.members
        more = {"continue": {"plcontinue": f"1|0|{after}", "continue": "||"}} if after < len(self.links[title]) else {}
        return {**more, "query": {"pages": [{"pageid": 1, "ns": 0, "title": title, "links": given}]}}

    def _texts(self, asked: dict[str, str]) -> dict[str, Any]:
        found: list[tuple[Article, int]] = []
        others: list[dict[str, Any]] = []
        query: dict[str, Any] = {}
        for title in asked.get("titles", "").split("|") if "titles" in asked else []:
            article = self.named(title)
            if article is not None and article.redirect is not None and "redirects" in asked:
                query.setdefault("redirects", []).append({"from": title, "to": article.redirect})
                article = self.named(article.redirect)
            if "[" in title:
                others.append({"title": title, "invalidreason": "no title", "invalid": True})
            elif article is None:
                others.append({"ns": 0, "title": title, "missing": True})
            elif all(article is not one for one, _ in found):
                found.append((article, -1))
        for pageid in asked.get("pageids", "").split("|") if "pageids" in asked else []:
            article = next((one for one in self.articles if str(one.pageid) == pageid), None)
            if article is None:
                others.append({"pageid": int(pageid), "missing": True})
            else:
                found.append((article, -1))
        for revid in asked.get("revids", "").split("|") if "revids" in asked else []:
            places = [(one, n) for one in self.articles for n, (r, _) in enumerate(one.revisions) if str(r) == revid]
            if places:
                found.append(places[0])
            else:
                query.setdefault("badrevids", {})[revid] = {"revid": int(revid), "missing": True}
        found.sort(key=lambda one: -one[0].pageid)  # in no order that anybody asked for
        start = int(asked.get("rvcontinue", "0"))
        pages = [self._page(one, n, start <= i < start + self.texts, start == 0) for i, (one, n) in enumerate(found)]
        query["pages"] = [*others, *pages]
        after = start + self.texts
        more = {"continue": {"rvcontinue": str(after), "continue": "||info|pageprops"}} if after < len(found) else {}
        return {**more, "query": query}

    @staticmethod
    def _page(article: Article, number: int, text: bool, first: bool) -> dict[str, Any]:
        page: dict[str, Any] = {"pageid": article.pageid, "ns": 0, "title": article.title}
        if first:
            page["fullurl"] = f"https://wiki.example/wiki/{article.title.replace(' ', '_')}"
            if article.disambiguation:
                page["pageprops"] = {"disambiguation": ""}
        if text:
            revid, content = article.revisions[number]
            main = {"contentmodel": "wikitext", **({"texthidden": True} if article.hidden else {"content": content})}
            page["revisions"] = [{"revid": revid, "parentid": 0, "slots": {"main": main}}]
        return page

    def write_dump(self, path: Path) -> Path:
        """The same pages as ``pages-articles.xml`` (``.bz2`` packs it); categories as pages of their own."""
        inside = {
            member: [name for name, members in self.categories.items() if member in members]
            for members in self.categories.values()
            for member in members
        }
        parts = [
            '<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.11/" version="0.11">',
            "<siteinfo><base>https://wiki.example/wiki/Main_Page</base></siteinfo>",
        ]
        pages = [(0, a.pageid, a.title, *a.revisions[-1], a.redirect) for a in self.articles]
        pages += [(0, 500 + n, title, 7, "", None) for n, title in enumerate(self.links) if self.named(title) is None]
        pages += [(14, 700 + n, f"Category:{name}", 8, "", None) for n, name in enumerate(self.categories)]
        for ns, pageid, title, revid, text, redirect in pages:
            said = "".join(f"* [[{link}]]\n" for link in self.links.get(title, []))
            said += text + "".join(f"\n[[Category:{name}]]" for name in inside.get(title, []))
            if (article := self.named(title)) is not None and article.disambiguation:
                said += "{{Disambiguation}}"
            to = f"<redirect title={quoteattr(redirect)}/>" if redirect else ""
            parts.append(
                f"<page><title>{escape(title)}</title><ns>{ns}</ns><id>{pageid}</id>{to}<revision><id>{revid}</id>"
                f'<contributor><id>1</id></contributor><text xml:space="preserve">{escape(said)}</text></revision>'
                "</page>"
            )
        data = ("\n".join(parts) + "</mediawiki>").encode("utf-8")
        path.write_bytes(bz2.compress(data) if path.suffix == ".bz2" else data)
        return path


@contextmanager
def serve(wiki: Wiki) -> Iterator[str]:
    """The address of the wiki's ``api.php`` while the block runs."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"])).decode("utf-8")
            asked = {name: values[0] for name, values in parse_qs(body, keep_blank_values=True).items()}
            wiki.agents.add(self.headers["User-Agent"])
            number = len(wiki.asked)
            wiki.asked.append(asked)
            fixed = (asked["action"], asked["format"], asked["formatversion"], int(asked["maxlag"]) <= 5)
            assert fixed == ("query", "json", "2", True)
            if "@" not in self.headers["User-Agent"]:
                self.send(403, {}, "say who you are")
            elif number in wiki.faults:
                self.send(*wiki.faults[number])
            else:
                self.send(200, {}, wiki.answer(asked))

        def send(self, status: int, headers: dict[str, str], content: Any) -> None:
            data = (content if isinstance(content, str) else json.dumps(content)).encode("utf-8")
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(data))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/w/api.php"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
