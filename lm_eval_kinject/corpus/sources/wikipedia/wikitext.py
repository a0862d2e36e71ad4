"""Wikitext to clean sections.

What it is for: an article's source becomes the sentences that a reader sees, section by section. What it does not do:
it expands no template (only a server can), beside the few that stand within sentences.

The one idea: what isn't prose is left out as a whole, where it is still a node of the parsed page (tables, info boxes,
references, pictures, navigation), and not by patterns afterwards, which would leave its pieces.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from lm_eval_kinject.corpus.clean import squeeze
from lm_eval_kinject.errors import CorpusError

__all__ = ["categories_of", "links_of", "sections"]

_NO_PROSE = {
    "see also", "references", "notes", "external links", "further reading", "bibliography", "sources", "citations",
    "footnotes", "works cited", "gallery", "notes and references", "references and notes", "literature",
    "explanatory notes", "general references", "publications", "filmography", "discography",
}  # fmt: skip
_DROPPED_TAGS = set(
    "table ref references gallery math timeline score imagemap graph syntaxhighlight source templatedata categorytree "
    "inputbox maplink mapframe style script templatestyles".split()
)
_NOT_ARTICLES = re.compile(
    r"^\s*:?(file|image|media|category|template|wikipedia|help|portal|draft|module|user|talk|special|[a-z]{2,3})\s*:",
    re.I,
)
_FIRST = {
    "nowrap",
    "nobr",
    "em",
    "strong",
    "small",
    "smaller",
    "big",
    "tooltip",
    "abbr",
    "center",
    "sic",
    "not a typo",
    "chem2",
    "sub",
    "sup",
}
_SECOND = {"lang", "transliteration", "transl", "langx"}
_FIXED = {
    "ndash": "–",
    "mdash": "—",
    "snd": " – ",
    "spnd": " – ",
    "spaced ndash": " – ",
    "'": "'",
    "!": "",
    "circa": "c.",
    "c.": "c.",
}
_URL = re.compile(r"\b(?:https?|ftp)://\S+|\bwww\.\S+", re.IGNORECASE)
_LEFT_OVER = re.compile(
    r"__[A-Z]+__|</?(?:ref|br|small|div|span|center|nowiki)\b[^>]*>|\[\[|\]\]|\{\{|\}\}|'{2,}", re.IGNORECASE
)
# What a template or an address leaves behind that stood alone in brackets, first in them, or before a full stop.
_OPEN_GAP, _CLOSED_GAP = re.compile(r"([(\[])[\s,;:]+"), re.compile(r"[ \t]+([.,;:)\]])")
_EMPTY_BRACKETS = re.compile(r"\s*[(\[][\s,;:]*[)\]]")
_CATEGORY = re.compile(r"\[\[\s*category\s*:\s*([^\]|]+)", re.IGNORECASE)


def _parser() -> Any:
    try:
        import mwparserfromhell
    except ImportError as problem:
        raise CorpusError(
            "Wikipedia's text can't be read without mwparserfromhell: `pip install 'lm-eval-kinject[wikipedia]'`."
        ) from problem
    return mwparserfromhell


def sections(text: str) -> list[tuple[str, str]]:
    """(heading, prose) of each section that has prose, in order; the heading of the first, the lead, is empty.

    Sections without prose by their nature (references, see also, external links and so on) are left out, with what is
    below them.
    """
    found = []
    hidden = 7  # level of the section that is left out: all below it are, too
    for section in _parser().parse(text).get_sections(flat=True, include_lead=True):
        headings = section.filter_headings(recursive=False)
        heading = squeeze(_rendered(headings[0].title)) if headings else ""
        level = headings[0].level if headings else 1
        if headings and level > hidden:
            continue
        hidden = level if heading.lower() in _NO_PROSE else 7
        if hidden == 7 and (prose := _prose(section)):
            found.append((heading, prose))
    return found


def _prose(section: Any) -> str:
    # An entity can spell half of a surrogate pair, which is no character.
    text = _rendered(section).replace("\xa0", " ").encode("utf-8", errors="replace").decode("utf-8")
    text = _LEFT_OVER.sub("", _URL.sub("", text))
    while _EMPTY_BRACKETS.search(text):
        text = _EMPTY_BRACKETS.sub("", text)
    text = _OPEN_GAP.sub(r"\1", _CLOSED_GAP.sub(r"\1", text))
    return squeeze("\n".join(line for line in text.split("\n") if _is_prose(line) or not line.strip()))


def _rendered(code: Any) -> str:
    """What a reader sees of some wikitext, its lines as they are; headings are no prose."""
    return "" if code is None else "".join(map(_node, code.nodes))


def _node(node: Any) -> str:
    kind = type(node).__name__
    if kind == "Text":
        return str(node.value)
    if kind == "Wikilink":
        leads_elsewhere = _NOT_ARTICLES.match(str(node.title)) is not None
        return "" if leads_elsewhere else _rendered(node.title if node.text is None else node.text)
    if kind == "ExternalLink":
        return _rendered(node.title)
    if kind == "Template":
        return _template(node)
    if kind == "HTMLEntity":
        return str(node.normalize())
    if kind == "Tag":
        name = str(node.tag).strip().lower()
        return "" if name in _DROPPED_TAGS else " " if name == "br" else _rendered(node.contents)
    return ""  # comments, headings, a template's own arguments


def _is_prose(line: str) -> bool:
    """Whether a line is more than what is left of a table or a row of numbers."""
    return not re.match(r"\s*(\{\||\|[}\-+]?|!)", line) and sum(map(str.isalpha, line)) * 3 > len(line.strip())


def _template(template: Any) -> str:
    """What a template says within a sentence; nothing for all that aren't known."""
    name = str(template.name).strip().lower().replace("_", " ")
    given = [squeeze(_rendered(param.value)) for param in template.params if not param.showkey]
    if name in _FIXED:
        return _FIXED[name] + (f" {given[0]}" if given and name in {"circa", "c."} else "")
    if name in _FIRST and given:
        return given[0]
    if (name in _SECOND or name.startswith("lang-")) and given:
        return given[-1] if name.startswith("lang-") or len(given) == 1 else given[1]
    if name in {"convert", "cvt", "val"} and given:
        return " ".join(given[:2])
    return "".join(given) if name == "chem" else ""


def categories_of(text: str) -> Iterator[str]:
    """Names of the categories that a page names itself (those that its templates add aren't in its source)."""
    for match in _CATEGORY.finditer(text):
        yield title_of(match[1])


def links_of(text: str) -> Iterator[str]:
    """Titles of the articles that a page links to."""
    for link in _parser().parse(text).filter_wikilinks():
        title = str(link.title)
        if not _NOT_ARTICLES.match(title) and title_of(title):
            yield title_of(title)


def title_of(text: str) -> str:
    """A title as MediaWiki writes it: no anchor, spaces for underscores, a capital first."""
    title = " ".join(text.partition("#")[0].replace("_", " ").split())
    return title[:1].upper() + title[1:]
