"""What a reviewer has before them: one question of a set, all that is known of it, and how far they are.

What it is for: `Desk.act` takes what somebody did (a key, a press) and gives the page as HTML. What it doesn't do: it
knows no browser (review.py), and what a decision means is said in `questions.reviews`.

The one idea: nothing is remembered here. Every message says which question was seen, in which words and through which
filter, and everything else is read from the folder. So a page that is loaded again is where it was, two of them can't
mix up their places, and a decision is always on the words that were before somebody's eyes.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lm_eval_kinject.errors import ArgumentError, KinjectError
from lm_eval_kinject.pages.look import button, escape
from lm_eval_kinject.questions.check import Finding, check_set
from lm_eval_kinject.questions.checks import content_words, places_of
from lm_eval_kinject.questions.folder import QuestionSet, Row, fingerprint_question
from lm_eval_kinject.questions.reviews import check_reviewer, decide, decisions, on_these_words, worded
from lm_eval_kinject.questions.verify import FLAGS

__all__ = ["FILTERS", "KEYS", "REASONS", "Desk", "passage_html"]

FILTERS = {
    "all": "All",
    "unreviewed": "Unreviewed",
    "flagged": "Flagged",
    "disagreed": "Disagreements",
    "rejected": "Rejected",
}
"""Which questions are gone through: flagged by verify, decided otherwise by somebody else, rejected by oneself."""

REASONS = (
    "the answer is wrong",
    "more than one option is right",
    "the passage doesn't say",
    "anybody knows this",
    "unclear without the passage",
    "dull or trivial",
)
"""Why questions are rejected; picked with 1 to 6."""

KEYS = {
    "a": "accept the question",
    "e": "edit it (Ctrl and Enter keep, Esc leaves)",
    "r": "reject it (1 to 6 pick a reason, Enter keeps, Esc leaves)",
    "n": "next unreviewed question",
    "j": "next question of the filter",
    "k": "back, to the one before",
    "f": "next filter; F: the one before",
    "?": "these keys",
}

_LETTERS = "ABCD"


@dataclass
class _Now:
    """The folder as it is: rows by place, the decisions on their words, and mine among them."""

    rows: list[Row]
    verdicts: dict[str, Row]
    decided: dict[str, list[Row]]
    mine: dict[str, Row]

    def passes(self, row: Row, show: str) -> bool:
        mine = self.mine.get(row["id"])
        if show == "unreviewed":
            return mine is None
        if show == "flagged":
            return bool(self.flags(row))
        if show == "rejected":
            return mine is not None and mine["action"] == "reject"
        if show == "disagreed":
            # Of what one hasn't decided oneself nothing is told: two opinions are worth more than one and its echo.
            return mine is not None and any(one["action"] != mine["action"] for one in self.decided[row["id"]])
        return True

    def flags(self, row: Row) -> list[str]:
        verdict = self.verdict(row)
        return list(verdict["flags"]) if verdict else []

    def verdict(self, row: Row) -> Row | None:
        verdict = self.verdicts.get(row["id"])
        return verdict if verdict is not None and verdict["of"] == fingerprint_question(row) else None

    def step(self, at: int, show: str, way: int, *, around: bool = False) -> int | None:
        """The place of the next question that a filter lets through; None: there is none that way."""
        count = len(self.rows)
        steps = range(1, count + 1) if around else range(1, count - at if way > 0 else at + 1)
        return next((p for n in steps if self.passes(self.rows[p := (at + way * n) % count], show)), None)


@dataclass
class Desk:
    """One reviewer's desk.

    Attributes:
        there: the set.
        reviewer: whose decisions are made here.
        found: what `check` says of the set; None: it hasn't been looked at, or is being looked at.
        trouble: why it can't be.
    """

    there: QuestionSet
    reviewer: str
    found: list[Finding] | None = None
    trouble: str = ""

    def __post_init__(self) -> None:
        self.reviewer = check_reviewer(self.reviewer)
        self._now()  # what can't be read is said before a page is shown

    def look(self) -> None:
        """Looks at the set as `check` does; takes some seconds on a large one."""
        try:
            self.found = check_set(self.there)
        except KinjectError as problem:
            self.trouble = str(problem)

    def _now(self) -> _Now:
        rows = self.there.questions()
        every = decisions(self.there)
        decided = {row["id"]: on_these_words(row, every) for row in rows}
        mine = {name: one for name, some in decided.items() for one in some if one.get("reviewer") == self.reviewer}
        return _Now(rows, {row["id"]: row for row in self.there.read("verdicts.jsonl")}, decided, mine)

    # What happens -----------------------------------------------------------------------------------------------------

    def act(self, told: Mapping[str, Any]) -> str:
        """The page after something was done.

        Args:
            told: ``do`` (``go``, ``next``, ``back``, ``unreviewed``, ``filter``, or a decision: ``accept``, with
                ``original`` in the place of one's edit, ``edit``, ``reject``), ``at`` (the id of the question that was
                seen; empty: none yet), ``of`` (its fingerprint), ``show`` (the filter), ``way`` (of a filter: 1 or -1,
                or ``to``: its name), ``reason``, ``edit``, and ``turn``, a number that comes back so that no two pages
                in a row are the same.
        """
        said = {name: value for name, value in told.items() if isinstance(value, str)}
        do, show = said.get("do", "go"), said.get("show", "")
        show = show if show in FILTERS else "all"
        typed: Mapping[str, Any] | None = None
        message = ""
        if do == "accept" and not told.get("original") and self._edited(said.get("at", "")):
            do = "stands"
        if do in ("accept", "edit", "reject"):
            edit = told.get("edit")
            try:
                decide(
                    self.there,
                    self.reviewer,
                    said.get("at", ""),
                    do,
                    of=said.get("of"),
                    reason=said.get("reason", ""),
                    edit=edit if isinstance(edit, Mapping) else None,
                )
            except KinjectError as problem:
                problems = problem.problems if isinstance(problem, ArgumentError) else (str(problem),)
                message = _refusal(do, problems)
                typed = edit if do == "edit" and isinstance(edit, Mapping) else None
                do = "go"
        if do == "filter":
            names = list(FILTERS)
            step = -1 if told.get("way") == -1 else 1
            show = said["to"] if said.get("to") in FILTERS else names[(names.index(show) + step) % len(names)]
        try:
            now = self._now()
        except KinjectError as problem:
            told_so = f'<p class="bad" role="alert">{escape(problem)}</p>'
            return f'<div class="kj">{told_so}<p>Then load the page again.</p></div>'
        place, note = _moved(now, said.get("at", ""), do, show)
        turn = told.get("turn")
        return self._html(now, place, show, message or note, typed, turn if isinstance(turn, int) else 0)

    def _edited(self, identifier: str) -> bool:
        """Whether the words that the reviewer sees are their own: accepting these is no way to bring back others."""
        try:
            mine = self._now().mine.get(identifier)
        except KinjectError:
            return False
        return mine is not None and mine["action"] == "edit"

    # How it looks -----------------------------------------------------------------------------------------------------

    def _html(self, now: _Now, place: int, show: str, message: str, typed: Mapping[str, Any] | None, turn: int) -> str:
        row = now.rows[place]
        mine = now.mine.get(row["id"])
        mine_now = worded(row, [mine] if mine else [])
        data = (
            f'data-at="{escape(row["id"])}" data-of="{fingerprint_question(row)}" data-show="{show}" data-turn="{turn}"'
        )
        return (
            f'<div class="kj desk" {data}>{self._head(now, place, show)}'
            f'<div class="said" role="status">{message}</div>'
            f'<div class="columns"><section aria-label="Question">{_question(row, mine_now, mine)}'
            f"{_buttons()}{_reject_form()}{_edit_form(mine_now, typed)}{_others(now, row, mine)}</section>"
            f'<section aria-label="Passage and findings">{self._passage(mine_now)}'
            f"{_verdict(now.verdict(row), row)}{self._cues(row)}</section></div>{_help()}</div>"
        )

    def _head(self, now: _Now, place: int, show: str) -> str:
        total, done = len(now.rows), len(now.mine)
        passing = [n for n, row in enumerate(now.rows) if now.passes(row, show)]
        among = (
            f", {passing.index(place) + 1:,} of {len(passing):,} {FILTERS[show].lower()}" if place in passing else ""
        )
        where = f"Question {place + 1:,} of {total:,}{among if show != 'all' else ''}"
        filters = "".join(
            f'<button type="button" data-do="filter" data-to="{name}" aria-pressed="{str(name == show).lower()}">'
            f"{label} <small>{sum(now.passes(row, name) for row in now.rows):,}</small></button>"
            for name, label in FILTERS.items()
        )
        return (
            f"<header><h1>Review of {escape(self.there.folder.resolve().name)}</h1>"
            f'<p class="note">{escape(self.reviewer)}: {done:,} of {total:,} decided '
            f'<progress max="{total}" value="{done}" aria-label="Decided"></progress> {where}</p>'
            f'<div class="filters" role="group" aria-label="Which questions">{filters}</div></header>'
        )

    def _passage(self, row: Row) -> str:
        chunk = self.there.chunk(row["source_chunk"])
        title = f"<h3>{escape(chunk.title)}</h3>" if chunk.title else ""
        told = ", ".join(filter(None, [chunk.document_id or chunk.id, chunk.date or ""]))
        body, note = passage_html(chunk.text, row["choices"][row["answer"]], row.get("evidence", ""))
        extra = f'<p class="bad">{note}</p>' if note else ""
        return (
            f'<h2>Passage</h2>{title}<p class="note">{escape(told)}</p>{extra}'
            f'<div class="passage" tabindex="0" role="region" aria-label="Passage">{body}</div>'
        )

    def _cues(self, row: Row) -> str:
        if self.found is None:
            why = (
                escape(self.trouble) or "The set is being looked at for cues; they are here from the next question on."
            )
            return f'<h2>Check</h2><p class="note">{why}</p>'
        mine = [one for one in self.found if row["id"] in one.ids and one.count]
        faults = "".join(f'<li class="bad">{escape(one.what)}</li>' for one in mine if one.fault)
        rest = "".join(f"<li>{escape(one.what)}</li>" for one in mine if not one.fault)
        told = f"<ul>{faults}</ul>" if faults else '<p class="note">None of the set’s faults is in this question.</p>'
        more = f"<details><summary>What else is so</summary><ul>{rest}</ul></details>" if rest else ""
        return f"<h2>Check</h2>{told}{more}"


def _moved(now: _Now, at: str, do: str, show: str) -> tuple[int, str]:
    """The place to look at, and what is to be said of it."""
    here = next((place for place, row in enumerate(now.rows) if row["id"] == at), None)
    if here is None:
        first = next((p for p, row in enumerate(now.rows) if now.passes(row, show if at else "unreviewed")), 0)
        return first, "The question that was here is gone: the set was written anew." if at else ""
    none = f"No question is under “{FILTERS[show]}”." if show != "all" else ""
    if do == "go" or (do == "filter" and now.passes(now.rows[here], show)):
        return here, ""
    if do == "filter":
        found = now.step(here, show, 1, around=True)
        return (here, none) if found is None else (found, "")
    if do == "unreviewed":
        found = now.step(here, "unreviewed", 1, around=True)
        if found == here:
            return here, "This is the last unreviewed question."
        return (here, "You have decided on all questions.") if found is None else (found, "")
    found = now.step(here, show, -1 if do == "back" else 1, around=do in _KEPT and show != "all")
    kept = _KEPT.get(do, "")
    if found is not None and found != here:
        return found, kept.strip()
    end = none if show != "all" and not now.passes(now.rows[here], show) else ""
    return here, kept + (end or ("This is the first one." if do == "back" else "This was the last one."))


_KEPT = {"accept": "Accepted. ", "edit": "Edit kept. ", "reject": "Rejected. ", "stands": "Your edit stands. "}


def _refusal(do: str, problems: Sequence[str]) -> str:
    listed = "".join(f"<li>{escape(one)}</li>" for one in problems)
    what = "edit" if do == "edit" else "decision"
    return f'<div class="bad">This {what} isn’t kept:<ul>{listed}</ul></div>'


# The question ---------------------------------------------------------------------------------------------------------


def _question(row: Row, now: Row, mine: Row | None) -> str:
    options = "".join(
        f'<li class="{"right" if place == now["answer"] else ""}"><span>{escape(text)}</span>'
        f"{'<small> right answer</small>' if place == now['answer'] else ''}</li>"
        for place, text in enumerate(now["choices"])
    )
    before = ""
    if now is not row:
        listed = "".join(
            f"<li>{escape(text)}{' (right)' if place == row['answer'] else ''}</li>"
            for place, text in enumerate(row["choices"])
        )
        before = (
            f'<details><summary>As it was written</summary><p>{escape(row["question"])}</p><ol type="A">{listed}</ol>'
            f"{button('Accept it as it was', 'solid', do='accept', original=1)}</details>"
        )
    said = {"accept": ("good", "✓ accepted"), "edit": ("good", "✎ edited"), "reject": ("bad", "✗ rejected")}
    style, word = said[mine["action"]] if mine else ("", "not decided yet")
    reason = f": {escape(mine['reason'])}" if mine and mine.get("reason") else ""
    return (
        f'<h2 tabindex="-1" class="asked">{escape(now["question"])}</h2><ol class="options" type="A">{options}</ol>'
        f'<p class="mine">You: <span class="{style}">{word}</span>{reason}</p>{before}'
    )


def _key(key: str) -> str:
    return f"<kbd>{escape(key)}</kbd>"


def _buttons() -> str:
    three = "".join(
        f'<button type="button" class="solid {style}" {told} aria-keyshortcuts="{key}">{label} {_key(key)}</button>'
        for label, key, style, told in (
            ("Accept", "a", "yes", 'data-do="accept"'),
            ("Edit", "e", "", 'data-open="edit" aria-expanded="false"'),
            ("Reject", "r", "no", 'data-open="reject" aria-expanded="false"'),
        )
    )
    rest = "".join(
        button(f"{label} {_key(key)}", do=do)
        for label, key, do in (("Back", "k", "back"), ("Next", "j", "next"), ("Next unreviewed", "n", "unreviewed"))
    )
    keys = f'<button type="button" data-open="keys">Keys {_key("?")}</button>'
    return f'<div class="doing">{three}</div><div class="moving">{rest}{keys}</div>'


def _reject_form() -> str:
    picks = "".join(
        f'<button type="button" class="solid" data-reason="{escape(text)}">{_key(str(n))} {escape(text)}</button>'
        for n, text in enumerate(REASONS, start=1)
    )
    return (
        '<form class="panel reject" hidden aria-label="Why is it rejected?"><p><b>Why is it rejected?</b></p>'
        f'<div class="picks">{picks}</div><label>Another reason<input name="reason" autocomplete="off" '
        'maxlength="400"></label><button type="submit" class="solid">Reject <kbd>Enter</kbd></button> '
        '<button type="button" data-close>Leave <kbd>Esc</kbd></button></form>'
    )


def _edit_form(now: Row, typed: Mapping[str, Any] | None) -> str:
    """The form with a question's words, or with those that were just refused."""
    words: dict[str, Any] = {"evidence": "", **now, **(typed or {})}
    choices = words["choices"] if isinstance(words["choices"], list) else now["choices"]
    options = "".join(
        f'<div class="option"><input type="radio" name="answer" value="{place}" aria-label="Option {letter} is right"'
        f'{" checked" if place == words["answer"] else ""}><label>{letter}<input name="choice" autocomplete="off" '
        f'value="{escape(text)}"></label></div>'
        for place, (letter, text) in enumerate(zip(_LETTERS, choices, strict=False))
    )
    return (
        f'<form class="panel edit" {"" if typed else "hidden"} aria-label="Edit"><label>Question<textarea '
        f'name="question" rows="3">{escape(words["question"])}</textarea></label>'
        f"<fieldset><legend>Options; the dot marks the right one</legend>{options}</fieldset>"
        f'<label>Evidence: words of the passage that hold the answer<textarea name="evidence" rows="2">'
        f"{escape(words['evidence'])}</textarea></label>"
        '<button type="submit" class="solid">Keep the edit <kbd>Ctrl</kbd> <kbd>Enter</kbd></button> '
        '<button type="button" data-close>Leave <kbd>Esc</kbd></button></form>'
    )


def _others(now: _Now, row: Row, mine: Row | None) -> str:
    """What others decided; told when one has decided oneself."""
    others = [one for one in now.decided[row["id"]] if one is not mine]
    if not others:
        return ""
    if mine is None:
        return (
            f'<p class="note">{len(others)} other decision{"s" * (len(others) > 1)}, told when you have made yours.</p>'
        )
    parts = []
    for one in others:
        reason = f": {escape(one['reason'])}" if one.get("reason") else ""
        text = f" “{escape(one['question'])}”" if one["action"] == "edit" else ""
        parts.append(f"<li>{escape(one.get('reviewer', ''))}: <b>{one['action']}</b>{reason}{text}</li>")
    return f"<h3>Others</h3><ul>{''.join(parts)}</ul>"


def _verdict(verdict: Row | None, row: Row) -> str:
    if verdict is None:
        return '<h2>Verify</h2><p class="note">No model was asked this question as it stands.</p>'
    flags = "".join(
        f'<li class="bad">{escape(flag)}<small>: {escape(FLAGS.get(flag, ""))}</small></li>'
        for flag in verdict["flags"]
    )

    def letters(places: Sequence[Any] | None) -> str:
        if places is None:
            return "no reply could be used"
        return ", ".join("–" if p is None else _LETTERS[p] for p in places) or "none"

    told = {
        "with the passage": letters(verdict.get("with_passage")),
        "without it": letters(verdict.get("without_passage")),
        "right": _LETTERS[row["answer"]],
        "asked": verdict.get("model", ""),
    }
    lines = "".join(f"<dt>{name}</dt><dd>{escape(value)}</dd>" for name, value in told.items() if value)
    return f"<h2>Verify</h2>{f'<ul>{flags}</ul>' if flags else '<p>No flag.</p>'}<dl>{lines}</dl>"


def _help() -> str:
    keys = "".join(f"<dt>{_key(key)}</dt><dd>{escape(what)}</dd>" for key, what in KEYS.items())
    return (
        '<dialog class="keys" aria-label="Keys"><h2>Keys</h2><dl>'
        f'{keys}</dl><form method="dialog"><button class="solid">Close {_key("Esc")}</button></form></dialog>'
    )


# The passage ----------------------------------------------------------------------------------------------------------


def passage_html(text: str, answer: str, evidence: str) -> tuple[str, str]:
    """A passage as HTML with the answer marked, and the evidence around it; and what is to be said if it isn't there.

    Where the answer's words don't stand in a row, those of them that are in the evidence are marked.
    """
    quoted = places_of(evidence, text)
    marked, note = places_of(answer, text), ""
    if not marked:
        words = content_words(answer)
        marked = [
            (low + m.start(), low + m.end())
            for low, high in quoted
            for m in re.finditer(r"\w+", text[low:high])
            if m.group().lower() in words
        ]
        note = "The right option’s words don’t stand in a row in the passage" + (
            "; those in the quoted evidence are marked." if marked else "."
        )
    cuts = sorted({0, len(text), *(place for span in (*marked, *quoted) for place in span)})
    parts = []
    for low, high in itertools.pairwise(cuts):
        piece = escape(text[low:high])
        if any(a <= low and high <= b for a, b in marked):
            piece = f"<mark>{piece}</mark>"
        elif any(a <= low and high <= b for a, b in quoted):
            piece = f'<span class="evidence">{piece}</span>'
        parts.append(piece)
    return "".join(parts), note
