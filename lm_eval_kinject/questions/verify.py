"""Asks the questions: by the passage they must be answerable, without it they must not.

What it is for: `verify_questions` fills ``verdicts.jsonl``; `settled` says which questions stand after verdicts and
people's decisions. What it does not do: it changes no question and removes none; a flag is a reason to look.

The one idea: a guess is right one time in four, so one right answer without the passage says nothing. It is asked for
several times with the options turned by a place each time, and only who is right every time knows (a model that always
says A is right at most once).
"""

from __future__ import annotations

import string
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal

from lm_eval_kinject.errors import ArgumentError
from lm_eval_kinject.questions.answers import Unusable, read_list
from lm_eval_kinject.questions.asking import Request
from lm_eval_kinject.questions.checks import OPTIONS, Doubles
from lm_eval_kinject.questions.folder import QuestionSet, Row, fingerprint_question
from lm_eval_kinject.questions.ledger import Asker, Expected, Say, each
from lm_eval_kinject.questions.prompts import answer_request, passage_of
from lm_eval_kinject.questions.reviews import decisions, edit_problems, on_these_words, worded

__all__ = [
    "FLAGS",
    "REVIEWED",
    "Reviewed",
    "Settled",
    "Verified",
    "check_tries",
    "expected_requests",
    "settled",
    "verify_questions",
]

FLAGS = {
    "known": "answered right without the passage, in every order of the options",
    "unanswerable": "the passage leaves all options open",
    "several right": "by the passage the right option is right, and another one too",
    "wrong by the passage": "by the passage another option is right",
    "not verified": "no reply could be used",
}
"""What a verdict can hold against a question."""

_TRIES_TO_READ = 2
_TOKENS_AN_ANSWER = 20


@dataclass
class Verified:
    """What `verify_questions` did: questions asked, those without a flag, and the flags' counts."""

    questions: int
    sound: int
    flags: Counter[str]


def expected_requests(there: QuestionSet, rows: Sequence[Row], tries: int, seed: int) -> list[Expected]:
    """What verifying takes if every reply can be read."""
    return [
        Expected(request, _TOKENS_AN_ANSWER)
        for row in rows
        for request in (_with_passage(there, row, seed), *(_without(row, turn, seed) for turn in range(tries)))
    ]


def verify_questions(there: QuestionSet, asker: Asker, say: Say, *, tries: int = 3, seed: int = 1) -> Verified:
    """Asks each question with its passage once, and without it ``tries`` times; the ledger must be locked.

    Raises:
        ArgumentError: ``tries`` isn't 1 to 4 (there are only so many turns of four options).
        CorpusError: there are no questions yet.
        ModelError: the model can't answer; what was answered is kept.
    """
    check_tries(tries)
    verdicts = each(
        there.questions(),
        lambda row: _judge(there, row, asker, tries, seed),
        workers=asker.writer.concurrency,
        unit="questions",
        say=say,
        asker=asker,
    )
    there.write("verdicts.jsonl", verdicts)
    flags = Counter[str](flag for verdict in verdicts for flag in verdict["flags"])
    found = Verified(len(verdicts), sum(not verdict["flags"] for verdict in verdicts), flags)
    there.record(
        "verify",
        {
            "model": asker.writer.name,
            "tries": tries,
            "seed": seed,
            "questions": found.questions,
            "sound": found.sound,
            "flags": dict(sorted(flags.items())),
            "faults": dict(sorted(asker.writer.faults.items())),
            "spent": asdict(asker.spent),
        },
    )
    return found


def check_tries(tries: int) -> None:
    """Refuses a number of tries that options can't be turned for."""
    if not 1 <= tries <= OPTIONS:
        raise ArgumentError(f"tries {tries}: take 1 to {OPTIONS}", "kinject questions verify")


def _judge(there: QuestionSet, row: Row, asker: Asker, tries: int, seed: int) -> Row:
    by_passage = _ask([_with_passage(there, row, seed + again) for again in range(_TRIES_TO_READ)], asker, row["id"])
    guesses: list[int | None] = []
    for turn in range(tries):
        letters = _ask([_without(row, turn, seed + again) for again in range(_TRIES_TO_READ)], asker, row["id"])
        guesses.append((letters[0] + turn) % OPTIONS if letters is not None and len(letters) == 1 else None)
    flags = _flags(by_passage, row["answer"])
    if all(guess == row["answer"] for guess in guesses):
        flags.append("known")
    elif all(guess is None for guess in guesses) and "not verified" not in flags:
        flags.append("not verified")
    return {
        "id": row["id"],
        "of": fingerprint_question(row),
        "flags": flags,
        "with_passage": by_passage,
        "without_passage": guesses,
        "tries": tries,
        "model": asker.writer.name,
    }


def _ask(tries: Sequence[Request], asker: Asker, about: str) -> list[int] | None:
    """Places that a reply names, in order and each once; None: none of the tries can be read."""
    letters = string.ascii_uppercase[:OPTIONS]
    for request in tries:
        try:
            said = [
                str(one).strip().rstrip(".)").upper()
                for one in read_list(asker.ask(request, f"verify {about}"), "right")
            ]
        except Unusable:
            continue
        if all(len(one) == 1 and one in letters for one in said):
            return sorted({letters.index(one) for one in said})
    return None


def _flags(by_passage: list[int] | None, right: int) -> list[str]:
    if by_passage is None:
        return ["not verified"]
    if not by_passage:
        return ["unanswerable"]
    if right not in by_passage:
        return ["wrong by the passage"]
    return ["several right"] if len(by_passage) > 1 else []


def _with_passage(there: QuestionSet, row: Row, seed: int) -> Request:
    passage = passage_of(there.chunk(row["source_chunk"]))
    return answer_request(row["question"], row["choices"], passage=passage, seed=seed)


def _without(row: Row, turn: int, seed: int) -> Request:
    """The question alone, its options turned: the one at place ``turn`` comes first."""
    options = [*row["choices"][turn:], *row["choices"][:turn]]
    return answer_request(row["question"], options, passage=None, seed=seed)


# What stands ----------------------------------------------------------------------------------------------------------


Reviewed = Literal["all", "accepted", "majority"]
REVIEWED: dict[Reviewed, str] = {
    "all": "what nobody looked at stands if no flag is against it; one rejection is enough",
    "accepted": "only what a reviewer accepted or edited, and none rejected",
    "majority": "only what more reviewers accepted or edited than rejected",
}
"""How people's decisions count."""


@dataclass
class Settled:
    """The questions that stand, and why others don't.

    Attributes:
        rows: as in ``questions.jsonl``, edits made.
        dropped: reason -> questions.
        unverified: that stand without a verdict or a person's word.
        edited: that stand as a person rewrote them.
        reviewed: how people's decisions counted.
        approved: that stand because of a person's word, those edited among them.
    """

    rows: list[Row]
    dropped: Counter[str]
    unverified: int
    edited: int
    reviewed: Reviewed = "all"
    approved: int = 0


def settled(there: QuestionSet, reviewed: Reviewed = "all") -> Settled:
    """Which questions stand: a person's word counts for more than a model's (see `REVIEWED`).

    An edited question has to pass the checks of a written one.

    Raises:
        CorpusError: there are no questions, or a decision can't be read.
    """
    verdicts = {row["id"]: row for row in there.read("verdicts.jsonl")}
    decided = decisions(there)
    found = Settled([], Counter(), 0, 0, reviewed)
    edited: set[str] = set()
    for row in there.questions():
        mine = on_these_words(row, decided)
        verdict = verdicts.get(row["id"])
        judged = verdict if verdict is not None and verdict["of"] == fingerprint_question(row) else None
        if why := _against(mine, judged, reviewed):
            found.dropped[why] += 1
            continue
        now = worded(row, mine)
        found.rows.append(now)
        found.approved += bool(mine)
        found.unverified += not mine and judged is None
        if now is not row:
            edited.add(row["id"])
    _check_edits(there, found, edited)
    return found


def _against(mine: Sequence[Row], verdict: Row | None, reviewed: Reviewed) -> str | None:
    """Why a question doesn't stand after decisions on its words and a verdict on them; None: it does."""
    rejected = sum(one["action"] == "reject" for one in mine)
    kept = len(mine) - rejected
    if reviewed == "majority" and rejected:
        return None if kept > rejected else "rejected by reviewers" if rejected > kept else "no majority of reviewers"
    if rejected:
        return "rejected by a reviewer"
    if mine:
        return None
    if reviewed != "all":
        return "not reviewed"
    return str(verdict["flags"][0]) if verdict is not None and verdict["flags"] else None


def _check_edits(there: QuestionSet, found: Settled, edited: set[str]) -> None:
    """Drops edited questions that the checks refuse; the page doesn't let them through, other programs may."""
    others = Doubles()
    for row in found.rows:
        if row["id"] not in edited:
            others.add(row["id"], row["question"], row["choices"][row["answer"]])
    for row in [row for row in found.rows if row["id"] in edited]:
        if problems := edit_problems(there, row, others):
            found.rows.remove(row)
            found.approved -= 1
            found.dropped[f"edited, but {problems[0].partition(' of ')[0]}"] += 1
        else:
            others.add(row["id"], row["question"], row["choices"][row["answer"]])
            found.edited += 1
