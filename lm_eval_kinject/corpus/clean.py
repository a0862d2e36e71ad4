"""Turns text that still carries HTML into plain text, and squeezes its spaces.

What it is for: sources that are scraped (RealTimeQA, web pages). What it does not do: it is never applied to a file
that a user hands over as text, whose bytes are theirs, and it does not find a page's main text among its menus.

The one idea: only *known* HTML tags go. A ``<`` in running text, a chat token such as ``<|im_end|>`` or ``</s>``, and
``{{ }}`` are text like any other and stay.
"""

from __future__ import annotations

import html
import re

__all__ = ["squeeze", "strip_html"]

_BLOCK = (
    "address|article|aside|blockquote|br|center|dd|div|dl|dt|figcaption|figure|footer|form|h1|h2|h3|h4|h5|h6|header|hr|"
    "html|body|li|main|nav|ol|p|pre|section|table|tbody|td|tfoot|th|thead|tr|ul"
)
_INLINE = (
    "a|abbr|b|bdi|bdo|big|button|cite|code|data|del|dfn|em|font|head|i|iframe|img|input|ins|kbd|label|link|mark|meta|"
    "noscript|object|picture|q|samp|small|source|span|strong|sub|sup|svg|path|time|title|u|var|video|audio|wbr"
)
_DROPPED = re.compile(r"<(script|style|template)\b[^>]*>.*?</\1\s*>", re.IGNORECASE | re.DOTALL)
_COMMENT = re.compile(r"<!--.*?-->|<!doctype[^>]*>", re.IGNORECASE | re.DOTALL)
_BLOCK_TAG = re.compile(rf"</?(?:{_BLOCK})(?:\s[^<>]*)?/?>", re.IGNORECASE)
_INLINE_TAG = re.compile(rf"</?(?:{_INLINE})(?:\s[^<>]*)?/?>", re.IGNORECASE)


def strip_html(text: str) -> str:
    """Plain text of an HTML fragment: scripts, comments and known tags removed, entities decoded, spaces squeezed.

    Block tags (paragraphs, list items, table cells, headings) become line breaks, inline tags vanish. Text without
    tags or entities comes back with its spaces squeezed.
    """
    text = _COMMENT.sub("", _DROPPED.sub(" ", text))
    text = _INLINE_TAG.sub("", _BLOCK_TAG.sub("\n", text))
    return squeeze(html.unescape(text))


def squeeze(text: str) -> str:
    """One space for any run of spaces within a line, at most one empty line between paragraphs, none at the ends."""
    lines = (" ".join(line.split()) for line in text.replace("\r\n", "\n").replace("\r", "\n").split("\n"))
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip()
