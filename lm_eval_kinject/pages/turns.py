"""A conversation as HTML: the documents that are asked, questions with their answers, and the passages behind them.

What it is for: `paper_list` and `conversation`. What it does not do: read, search or ask (shelf.py, talk.py).

The one idea: an answer is text of a model about text of strangers, so that nothing in it is markup: it is escaped, its
lines are kept, and the only things that can be pressed in it are the numbers of passages that were really shown.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from lm_eval_kinject.pages.look import button, escape
from lm_eval_kinject.pages.shelf import Paper, label_of, place_of
from lm_eval_kinject.pages.talk import NO_MODEL, ORDERS, Turn, cited, label

__all__ = ["CSS", "conversation", "paper_list"]

CSS = """
.kj.papers ul { list-style: none; padding: 0; margin: .3rem 0; border: 1px solid var(--line); border-radius: 4px;
  background: var(--paper); max-height: 24rem; overflow-y: auto; }
.kj.papers li { display: grid; grid-template-columns: 1fr auto; gap: 0 .6rem; padding: .35rem .6rem;
  border-bottom: 1px solid var(--line); } .kj.papers li:last-child { border-bottom: 0; }
.kj.papers li > small { grid-column: 1 / -1; padding-left: 1.5em; overflow-wrap: anywhere; }
.kj.papers button.tick { color: var(--ink); padding-left: 1.5em; text-indent: -1.5em; }
.kj.papers button.tick b { display: inline-block; width: 1.5em; text-indent: 0; color: var(--mark); }
.kj .problems { border-left: 3px solid var(--bad); padding: .1rem 0 .1rem .7rem; overflow-wrap: anywhere; }
.kj.talk article { border-top: 1px solid var(--line); padding: .2rem 0 1rem; } .kj.talk > article:first-of-type {
  border-top: 0; }
.kj.talk h2 { overflow-wrap: anywhere; margin-top: .7rem; }
.kj.talk .answer { white-space: pre-wrap; overflow-wrap: anywhere; max-width: 46rem; margin: .4rem 0 .6rem; }
.kj.talk .answer button { font-size: .8em; vertical-align: .2em; padding: 0 .25em; min-width: 1.7em; margin: 0 .1em;
  text-align: center; border: 1px solid var(--line); border-radius: 4px; background: var(--wash); line-height: 1.5; }
.kj.talk .answer button[aria-expanded=true] { outline: 2px solid var(--mark); }
.kj.talk ol { list-style: none; margin: .3rem 0; padding: 0; display: grid; gap: .15rem; }
.kj.talk ol b { display: inline-block; min-width: 1.7em; font-variant-numeric: tabular-nums; }
.kj.talk ol small { color: var(--soft); } .kj.talk li.quiet button { color: var(--soft); }
.kj.talk blockquote { margin: .1rem 0 .5rem 1.7em; color: var(--soft); font-size: .87rem; max-width: 46rem;
  overflow-wrap: anywhere; }
.kj.talk .page { border: 1px solid var(--line); border-radius: 4px; background: var(--paper); margin: .4rem 0;
  padding: .4rem .9rem .7rem; white-space: pre-wrap; overflow-wrap: anywhere; max-width: 52rem; max-height: 32rem;
  overflow-y: auto; font-size: .9rem; }
.kj.talk .page mark { background: var(--gold); color: inherit; box-shadow: -3px 0 #e69f00; display: block;
  padding: 0 .3rem; }
.kj.talk .page:focus-visible { outline: 2px solid var(--mark); }
"""

_GLANCE = 220  # characters of a passage that are shown unopened, where no model answers


# Documents ------------------------------------------------------------------------------------------------------------


def paper_list(given: Sequence[Paper], own: Sequence[Paper], left: Sequence[str], problems: Sequence[str]) -> str:
    """The documents, each with a tick that says whether it is asked.

    Args:
        given: those that everybody sees.
        own: this person's.
        left: names of those that aren't asked.
        problems: why others aren't there.
    """
    wrong = "".join(f"<p>{escape(problem)}</p>" for problem in problems)
    said = f'<div class="problems" role="alert">{wrong}</div>' if wrong else ""
    items = "".join(_paper(paper, paper.name not in left, paper in own) for paper in [*given, *own])
    if not items:
        return f'<div class="kj papers">{said}<p class="note">No documents yet.</p></div>'
    count = len(given) + len(own) - len(left)
    status = f'<p class="note" role="status">{count:,} of {len(given) + len(own):,} documents are asked</p>'
    return f'<div class="kj papers">{said}{status}<ul aria-label="Documents">{items}</ul></div>'


def _paper(paper: Paper, asked: bool, own: bool) -> str:
    tick = f'<b aria-hidden="true">{"☑" if asked else "☐"}</b>{escape(paper.name)}'
    state = f'<button type="button" class="tick" data-do="tick" data-what="{escape(paper.name)}" role="checkbox" '
    state += f'aria-checked="{str(asked).lower()}">{tick}</button>'
    remove = button(f'Remove<span class="hidden"> {escape(paper.name)}</span>', do="remove", what=paper.name)
    facts = [_count(paper.pages, "page") if paper.pages else "", _count(len(paper.corpus), "passage")]
    facts += [f"{_count(paper.ocr, 'page')} read by OCR" if paper.ocr else "", *paper.notes]
    return (
        f"<li>{state}{remove if own else '<span></span>'}<small>{escape(', '.join(filter(None, facts)))}</small></li>"
    )


# Questions and answers ------------------------------------------------------------------------------------------------


def conversation(turns: Sequence[Turn]) -> str:
    """All turns, the newest on top.

    Args:
        turns: in the order in which they were asked.
    """
    parts = [_turn(turn, number) for number, turn in enumerate(turns)]
    busy = str(bool(turns and turns[-1].doing)).lower()
    return f'<div class="kj talk" aria-live="polite" aria-busy="{busy}">{"".join(reversed(parts))}</div>'


def _turn(turn: Turn, number: int) -> str:
    body = f"<h2>{escape(turn.question)}</h2>{_answer(turn, number)}"
    if turn.problem:
        lines = "".join(f"<p>{escape(line)}</p>" for line in turn.problem.splitlines())
        body += f'<div class="problems">{lines}</div>'
    if turn.doing:
        body += f'<p class="note">{escape(turn.doing)} …</p>'
    if turn.stopped:
        body += '<p class="note">Stopped.</p>'
    return f'<article aria-label="{escape(turn.question[:80])}">{body}{_sources(turn, number)}{_how(turn)}</article>'


def _answer(turn: Turn, number: int) -> str:
    if turn.absent:
        why = "The model finds no answer in the passages below." if turn.sources else "No passage has a word of it."
        return f"<p><b>Not in the documents.</b> {why}</p>"
    if turn.how.model == NO_MODEL:
        return "<p>No model is asked: these passages are nearest.</p>" if turn.sources else ""
    pieces = "".join(
        escape(text.rstrip(" ") if numbers else text) + "".join(_cite(turn, number, cite) for cite in numbers)
        for text, numbers in cited(turn.text, len(turn.sources))
    )
    return f'<div class="answer">{pieces}</div>' if turn.text else ""


def _cite(turn: Turn, number: int, cite: int) -> str:
    label = f'<span class="hidden">passage </span>{cite}'
    return button(label, expanded=turn.opened == cite, do="open", what=f"{number} {cite}")


def _sources(turn: Turn, number: int) -> str:
    if not turn.sources:
        return ""
    named = {cite for _, numbers in cited(turn.text, len(turn.sources)) for cite in numbers}
    items = "".join(_source(turn, number, rank, rank in named) for rank in range(1, len(turn.sources) + 1))
    dropped = f" {turn.dropped} more had no room in the model’s window." if turn.dropped else ""
    some = "" if named or turn.how.model == NO_MODEL or turn.doing or turn.absent else " The answer names none of them."
    note = f'<p class="note">Passages.{some}{dropped}</p>' if some or dropped else ""
    return f'{note}<ol aria-label="Passages">{items}</ol>'


def _source(turn: Turn, number: int, rank: int, named: bool) -> str:
    chunk, opened = turn.sources[rank - 1].chunk, turn.opened == rank
    label = f"<b>{rank}</b> {escape(label_of(chunk))}{'<small> cited</small>' if named else ''}"
    head = button(label, expanded=opened, do="open", what=f"{number} {rank} list")
    glance = ""
    if turn.how.model == NO_MODEL and not opened:
        text = " ".join(chunk.text.split())
        glance = f"<blockquote>{escape(text[:_GLANCE])}{'…' if len(text) > _GLANCE else ''}</blockquote>"
    quiet = "" if named or turn.how.model == NO_MODEL else ' class="quiet"'
    return f"<li{quiet}>{head}{_page(turn, rank) if opened else glance}</li>"


def _page(turn: Turn, rank: int) -> str:
    """The passage, marked, on its page."""
    place = place_of(turn.papers, turn.sources[rank - 1].chunk)
    before = f"{'' if place.starts else '… '}{place.before.strip()}"
    behind = f"{place.behind.strip()}{'' if place.ends else ' …'}"
    return (
        f'<div class="page" tabindex="0" role="region" aria-label="Passage {rank}: {escape(place.label)}">'
        f"{_lines(before)}<mark>{_lines(place.passage)}</mark>{_lines(behind)}</div>"
    )


def _lines(text: str) -> str:
    """Text as HTML, in which the lines of a printed page run on where a sentence does."""
    return escape(re.sub(r"(?<=[^\n])\n(?=[a-z])", " ", text))


def _how(turn: Turn) -> str:
    how = turn.how
    model = "no model" if how.model == NO_MODEL else f"{_order(how.order)}, {label(how.model)}"
    said = f"{how.retriever}, K={how.k}, {_count(len(turn.papers), 'document')}, {model}"
    return f'<p class="note">{escape(said)}</p>'


def _count(number: int, thing: str) -> str:
    return f"{number:,} {thing}{'' if number == 1 else 's'}"


def _order(name: str) -> str:
    return ORDERS[name][0] if name in ORDERS else name
