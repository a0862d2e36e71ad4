"""Asks the questions: by the passage they must be answerable, without it they must not.

What it is for: `verify_questions` fills ``verdicts.jsonl``; `settled` says which questions stand after verdicts and
people's decisions. What it does not do: it changes no question and removes none; a flag is a reason to look.

The one idea: a guess is right one time in four, so one right answer without the passage says nothing. It is asked for
several times with the options turned by a place each time, and only who is right every time knows (a model that always
says A is right at most once).
"""

from __future__ import annotations

import string
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from lm_eval_kinject.errors import ArgumentError, CorpusError
from lm_eval_kinject.questions.answers import Unusable, read_list
from lm_eval_kinject.questions.asking import Request
from lm_eval_kinject.questions.checks import OPTIONS
from lm_eval_kinject.questions.folder import QuestionSet, Row, fingerprint_question
from lm_eval_kinject.questions.ledger import Asker, Expected, Say, each
from lm_eval_kinject.questions.prompts import answer_request, passage_of

__all__ = ["FLAGS", "Settled", "Verified", "expected_requests", "settled", "verify_questions"]

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


@dataclass
class Settled:
    """The questions that stand, and why others don't.

    Attributes:
        rows: as in ``questions.jsonl``, edits made.
        dropped: reason -> questions.
        unverified: that stand without a verdict or a person's word.
        edited: that stand as a person rewrote them.
    """

    rows: list[Row]
    dropped: Counter[str]
    unverified: int
    edited: int


def settled(there: QuestionSet) -> Settled:
    """Which questions stand: a person's word counts for more than a model's, and one rejection is enough.

    Raises:
        CorpusError: there are no questions, or a decision can't be read.
    """
    verdicts = {row["id"]: row for row in there.read("verdicts.jsonl")}
    decisions = _decisions(there)
    found = Settled([], Counter(), 0, 0)
    for row in there.questions():
        name = fingerprint_question(row)
        mine = [one for one in decisions.get(row["id"], []) if one["of"] == name]
        verdict = verdicts.get(row["id"])
        if any(one["action"] == "reject" for one in mine):
            found.dropped["rejected by a reviewer"] += 1
        elif edits := [one for one in mine if one["action"] == "edit"]:
            found.rows.append({**row, **{key: edits[-1][key] for key in ("question", "choices", "answer")}})
            found.edited += 1
        elif mine:
            found.rows.append(row)
        elif verdict is None or verdict["of"] != name:
            found.rows.append(row)
            found.unverified += 1
        elif verdict["flags"]:
            found.dropped.update(verdict["flags"][:1])
        else:
            found.rows.append(row)
    return found


def _decisions(there: QuestionSet) -> dict[str, list[Row]]:
    """Question id -> the last decision of each reviewer, in the order in which they were made."""
    last: dict[tuple[str, str], Row] = {}
    for number, row in enumerate(there.read("reviews.jsonl"), start=1):
        if problem := _wrong_with(row):
            raise CorpusError(f"{there.folder / 'reviews.jsonl'}, line {number}: {problem}; mend or remove it.")
        key = (row["id"], str(row.get("reviewer", "")))
        last.pop(key, None)
        last[key] = row
    found: dict[str, list[Row]] = defaultdict(list)
    for (identifier, _), row in last.items():
        found[identifier].append(row)
    return found


def _wrong_with(row: Row) -> str | None:
    if not all(isinstance(row.get(key), str) for key in ("id", "of")):
        return "needs the strings `id` and `of`"
    if row.get("action") not in ("accept", "edit", "reject"):
        return f"its action {row.get('action')!r} is neither accept, edit nor reject"
    if row["action"] != "edit":
        return None
    choices, answer = row.get("choices"), row.get("answer")
    sound = isinstance(choices, list) and len(choices) == OPTIONS and all(isinstance(c, str) and c for c in choices)
    placed = isinstance(answer, int) and not isinstance(answer, bool) and 0 <= answer < OPTIONS
    if not (sound and placed and isinstance(row.get("question"), str)):
        return "an edit needs `question`, four `choices` and `answer`, a place from 0"
    return None
