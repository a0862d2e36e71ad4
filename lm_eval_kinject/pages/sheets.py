"""Samples as HTML: the list of questions, and one question with prompt, options and hits of each result.

What it is for: `question_list` and `sheet`. What it doesn't do: read or filter (samples.py).

The one idea: right and wrong are told by words and signs as well as by colour, and the gold chunk is outlined.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from lm_eval_kinject.pages.look import button, escape, percent
from lm_eval_kinject.pages.samples import HitLine, Pair, Sample, Told, pieces

__all__ = ["LIST", "question_list", "sheet"]

LIST = 200
"""Questions of a list at a time, around the one that is open."""

_SIGN = {True: ("✓", "good", "right"), False: ("✗", "bad", "wrong"), None: ("?", "", "could not be scored")}


def question_list(pairs: Sequence[Pair], place: int) -> str:
    """Questions as buttons, those near the open one where there are many.

    Args:
        pairs: those that the filters let through.
        place: of the open one, from 0.
    """
    if not pairs:
        return '<div class="kj"><p role="status">No sample passes these filters.</p></div>'
    start = max(0, min(place - LIST // 2, len(pairs) - LIST))
    items = []
    for number in range(start, min(len(pairs), start + LIST)):
        pair = pairs[number]
        signs = "".join(_sign(one.right) for one in pair.samples)
        words = escape(pair.question if len(pair.question) <= 90 else f"{pair.question[:89]}…")
        current = ' aria-current="true"' if number == place else ""
        items.append(f"<li{current}>{button(f'{signs} <span>{words}</span>', place=number)}</li>")
    near = f" (near the open one: {start + 1:,} to {start + len(items):,})" if len(items) < len(pairs) else ""
    status = f'<p class="note" role="status">{place + 1:,} of {len(pairs):,}{near}; keys j and k go on and back</p>'
    return f'<div class="kj questions">{status}<ol start="{start + 1}">{"".join(items)}</ol></div>'


def _sign(right: bool | None) -> str:
    sign, style, word = _SIGN[right]
    return f'<b class="{style}" aria-hidden="true">{sign}</b><span class="hidden">{word}, </span>'


def sheet(pair: Pair, told: Sequence[Told]) -> str:
    """One question, a column a result.

    Args:
        pair: the question.
        told: of each result.
    """
    flip = {"gained": "Right in the second only.", "lost": "Right in the first only."}.get(pair.flip, "")
    columns = "".join(_column(one, about) for one, about in zip(pair.samples, told, strict=True))
    return (
        f'<div class="kj sheet"><h2>{escape(pair.question)}</h2>'
        f'<p class="note">{escape(pair.task)}, document {pair.doc_id}. {flip}</p>'
        f'<div class="columns">{columns}</div></div>'
    )


def _column(sample: Sample, told: Told) -> str:
    sign, style, word = _SIGN[sample.right]
    tie = ", a tie of the best options" if sample.answer.tied else ""
    return (
        f'<section aria-label="{escape(told.name)}"><h3>{escape(told.name)}</h3>'
        f'<p><span class="{style}">{sign} {word}</span>{tie}</p>'
        f"{_options(sample, told)}{_hits(sample, told)}{_prompt(sample, told)}{_gold(sample, told)}</section>"
    )


def _options(sample: Sample, told: Told) -> str:
    if not sample.options:
        return f"<dl><dt>Answer</dt><dd>{escape(sample.said)}</dd><dt>Wanted</dt><dd>{escape(sample.target)}</dd></dl>"
    rows = []
    for one in sample.options:
        marks = ", ".join(word for word, there in (("chosen", one.chosen), ("right answer", one.target)) if there)
        style = ' class="target"' if one.target else ""
        score = "not a number" if math.isnan(one.score) else f"{one.score:.3f}"
        share = "–" if math.isnan(one.share) else percent(one.share)
        rows.append(
            f'<tr{style}><th scope="row">{escape(one.text)}<small>{marks}</small></th>'
            f'<td class="number">{score}</td><td class="number">{share}</td></tr>'
        )
    head = ("Option", "Log-probability", "Share")
    return _table(f"Options, {told.name}", head, rows)


def _hits(sample: Sample, told: Told) -> str:
    if not sample.hits:
        return '<p class="note">Nothing was retrieved.</p>' if not sample.used else ""
    rows = [_hit(hit, told) for hit in sample.hits]
    left = f'<p class="note">{sample.dropped} chunks were left out for room.</p>' if sample.dropped else ""
    return _table(f"Hits, {told.name}", ("Rank", "Chunk", "Score"), rows) + left


def _hit(hit: HitLine, told: Told) -> str:
    marks = [word for word, there in (("gold", hit.gold), ("cut", hit.truncated)) if there]
    marks += [] if hit.used else ["not in the prompt"]
    chunk = told.chunks.get(hit.id)
    name = f"<code>{escape(hit.id)}</code>"
    if chunk is not None and not hit.used:
        name = f"<details><summary>{name}</summary>{escape(chunk.text)}</details>"
    score = "–" if hit.score is None else f"{hit.score:.4f}"
    style = ' class="target"' if hit.gold else ""
    return (
        f'<tr{style}><td class="number">{hit.rank}</td><th scope="row">{name}<small>{", ".join(marks)}</small></th>'
        f'<td class="number">{score}</td></tr>'
    )


def _table(label: str, head: Sequence[str], rows: Sequence[str]) -> str:
    columns = "".join(f'<th scope="col">{name}</th>' for name in head)
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(label)}"><table>'
        f"<thead><tr>{columns}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def _prompt(sample: Sample, told: Told) -> str:
    parts = []
    for piece in pieces(sample, told.chunks):
        if not piece.chunk:
            parts.append(escape(piece.text))
            continue
        gold = " gold" if piece.chunk in sample.gold else ""
        label = escape(piece.chunk) + (", gold" if gold else "") + (", cut" if piece.chunk == sample.truncated else "")
        parts.append(f'<mark class="chunk{gold}"><span class="label">{label}</span>{escape(piece.text)}</mark>')
    unmarked = sum(name not in {p.chunk for p in pieces(sample, told.chunks)} for name in sample.used)
    why = ""
    if unmarked:
        reason = told.lacking or "its template changes their texts, or the corpus lacks them."
        why = f'<p class="note">{unmarked} of {len(sample.used)} chunks can’t be marked: {escape(reason)}</p>'
    return f'<h3>Prompt</h3>{why}<pre tabindex="0" aria-label="Prompt, {escape(told.name)}">{"".join(parts)}</pre>'


def _gold(sample: Sample, told: Told) -> str:
    """The gold chunks that the prompt lacks."""
    if not sample.gold_missed:
        return ""
    parts = []
    for name in sample.gold:
        if name not in sample.used:
            chunk = told.chunks.get(name)
            text = escape(chunk.text) if chunk else "its text isn't here"
            parts.append(f'<p><code>{escape(name)}</code></p><pre tabindex="0">{text}</pre>')
    rank = sample.answer.gold_rank
    where = f"ranked {rank}, but left out" if rank else "not among the hits"
    return f'<h3 class="bad">Gold chunk missed: {where}</h3>{"".join(parts)}'
