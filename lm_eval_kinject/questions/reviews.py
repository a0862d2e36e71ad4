"""What people decided about questions: kept line by line, read back, and compared.

What it is for: `decide` adds a decision to ``reviews.jsonl`` and `decisions` reads them; `agreements` compares
reviewers. What it does not do: it shows nothing (`pages.review`), and which questions stand in the end is for
verify.py to say.

The one idea: a decision is one line, and it is on the disk before anybody is told that it is kept. The lock is held for
that line alone, so that reviewers who work at the same time lose nothing to each other, and whoever is killed loses
what wasn't confirmed yet and nothing else.
"""

from __future__ import annotations

import itertools
import json
import os
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lm_eval_kinject.errors import ArgumentError, CorpusError
from lm_eval_kinject.questions.checks import OPTIONS, Doubles, problems_of
from lm_eval_kinject.questions.folder import QuestionSet, Row, fingerprint_question
from lm_eval_kinject.questions.ledger import append_whole
from lm_eval_kinject.questions.prompts import passage_of

if TYPE_CHECKING:
    from lm_eval_kinject.stats import Interval

__all__ = [
    "ACTIONS",
    "Agreement",
    "agreements",
    "check_reviewer",
    "decide",
    "decisions",
    "edit_problems",
    "on_these_words",
    "tally",
    "worded",
]

ACTIONS = ("accept", "edit", "reject")

_FILE = "reviews.jsonl"
_WORDS = ("question", "choices", "answer", "evidence")
_LONGEST_NAME = 80
_PATIENCE = 30.0  # seconds; another reviewer's line takes milliseconds

Decisions = Mapping[str, Sequence[Row]]


# Kept and read --------------------------------------------------------------------------------------------------------


def check_reviewer(name: str) -> str:
    """A reviewer's name without spaces around it.

    Raises:
        ArgumentError: it is empty, too long, or holds line breaks and the like.
    """
    name = name.strip()
    if not name or len(name) > _LONGEST_NAME or not name.isprintable():
        raise ArgumentError(
            f"--reviewer {name!r}: give a name or initials on one line, up to {_LONGEST_NAME} characters",
            "kinject questions review",
        )
    return name


def decisions(there: QuestionSet) -> dict[str, list[Row]]:
    """Question id -> the last decision of each reviewer, in the order in which they were made, on any words.

    A last line that was cut off by a crash isn't there: nobody was told that it was kept.

    Raises:
        CorpusError: a decision can't be read.
    """
    last: dict[tuple[str, str], Row] = {}
    for number, row in enumerate(there.read(_FILE, growing=True), start=1):
        if problem := _wrong_with(row):
            raise CorpusError(f"{there.folder / _FILE}, line {number}: {problem}; mend or remove it.")
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
    if row.get("action") not in ACTIONS:
        return f"its action {row.get('action')!r} is neither accept, edit nor reject"
    if row["action"] != "edit":
        return None
    choices, answer = row.get("choices"), row.get("answer")
    sound = isinstance(choices, list) and len(choices) == OPTIONS and all(isinstance(c, str) and c for c in choices)
    placed = isinstance(answer, int) and not isinstance(answer, bool) and 0 <= answer < OPTIONS
    if not (sound and placed and isinstance(row.get("question"), str) and isinstance(row.get("evidence", ""), str)):
        return "an edit needs `question`, four `choices` and `answer`, a place from 0"
    return None


def on_these_words(row: Row, found: Decisions) -> list[Row]:
    """The decisions on a question that were made on the words that it has now."""
    some = found.get(row["id"], ())
    name = fingerprint_question(row) if some else ""
    return [one for one in some if one["of"] == name]


def worded(row: Row, mine: Sequence[Row]) -> Row:
    """A question as the last edit among some decisions has it."""
    edits = [one for one in mine if one["action"] == "edit"]
    return {**row, **{key: edits[-1][key] for key in _WORDS if key in edits[-1]}} if edits else row


def decide(
    there: QuestionSet,
    reviewer: str,
    identifier: str,
    action: str,
    *,
    of: str | None = None,
    reason: str = "",
    edit: Mapping[str, Any] | None = None,
) -> Row:
    """Keeps a reviewer's decision on a question, in the place of an earlier one of theirs.

    The same decision twice in a row is kept once: a key that was pressed twice, or a stage that is run again, changes
    nothing.

    Args:
        there: the set.
        reviewer: a name; each has one say on a question.
        identifier: the question's.
        action: ``accept``, ``edit`` or ``reject``.
        of: `fingerprint_question` of the words that the reviewer saw; None: those that are there now.
        reason: why; a rejection needs one.
        edit: of an edit ``question``, ``choices``, ``answer`` (a place from 0) and, if it changes, ``evidence``.

    Returns:
        The line that is on the disk now.

    Raises:
        ArgumentError: no such question, other words by now, no reason, or an edit that the checks refuse; all problems
            at once, and nothing is kept.
        CorpusError: another program holds the file for too long.
    """
    reviewer = check_reviewer(reviewer)
    rows = there.questions()
    row = next((one for one in rows if one["id"] == identifier), None)
    if row is None:
        raise ArgumentError(f"there is no question {identifier!r} any more; look at the set again", _WHERE)
    name = fingerprint_question(row)
    found = decisions(there)
    problems = []
    if of is not None and of != name:
        problems.append("the question was written anew since you saw it; look at it again")
    if action not in ACTIONS:
        problems.append(f"action {action!r}: take one of {', '.join(ACTIONS)}")
    reason = " ".join(reason.split())
    if action == "reject" and not reason:
        problems.append("a rejection needs a reason; a word will do")
    made: Row = {"id": identifier, "of": name, "reviewer": reviewer, "action": action, "reason": reason}
    if action == "edit":
        made |= _tidy(edit or {})
        problems += _refused(there, row, made, rows, found, reviewer)
    if problems:
        raise ArgumentError(problems, _WHERE)
    before = next((one for one in found.get(identifier, ()) if one.get("reviewer") == reviewer), None)
    if made != before:
        _append(there.folder / _FILE, made)
    return made


_WHERE = "the decision"


def _tidy(edit: Mapping[str, Any]) -> Row:
    """An edit's words with single spaces; what isn't text becomes empty and no place -1, which the checks refuse."""

    def squeezed(text: Any) -> str:
        return " ".join(text.split()) if isinstance(text, str) else ""

    choices, answer = edit.get("choices"), edit.get("answer")
    found: Row = {
        "question": squeezed(edit.get("question")),
        "choices": [squeezed(one) for one in choices] if isinstance(choices, list | tuple) else [],
        "answer": answer if isinstance(answer, int) and not isinstance(answer, bool) else -1,
    }
    return found | ({"evidence": squeezed(edit["evidence"])} if "evidence" in edit else {})


def _refused(
    there: QuestionSet, row: Row, made: Row, rows: Sequence[Row], found: Decisions, reviewer: str
) -> list[str]:
    """Why an edit isn't kept."""
    if all(made.get(key, row.get(key, "")) == row.get(key, "") for key in _WORDS):
        return ["nothing was changed; accept the question instead"]
    others = Doubles()
    for other in rows:
        mine = [one for one in on_these_words(other, found) if one.get("reviewer") == reviewer]
        if other["id"] != row["id"] and not any(one["action"] == "reject" for one in mine):
            now = worded(other, mine)
            others.add(other["id"], now["question"], now["choices"][now["answer"]])
    return edit_problems(there, worded(row, [made]), others)


def edit_problems(there: QuestionSet, row: Row, others: Doubles) -> list[str]:
    """What is wrong with a question as a person worded it: the checks that a written one has to pass.

    Args:
        there: the set.
        row: the question, its edit made.
        others: the questions beside it.
    """
    right = row["answer"]
    options = [{"text": text, "right": place == right} for place, text in enumerate(row["choices"])]
    candidate = {"question": row["question"], "options": options, "evidence": row.get("evidence", "")}
    problems = problems_of(candidate, passage_of(there.chunk(row["source_chunk"])))
    if not problems and (double := others.find(row["question"], row["choices"][right])) is not None:
        problems = [f"near-duplicate of {double}"]
    return problems


def _append(path: Path, row: Row) -> None:
    """Puts a line on the disk; a line that a crash cut off before it is taken away first, or ended if it is whole."""
    import filelock

    try:
        with filelock.FileLock(path.parent / ".reviews.lock", timeout=_PATIENCE):
            data = path.read_bytes() if path.is_file() else b""
            whole = data.rfind(b"\n") + 1
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
            try:
                line = json.dumps(row, ensure_ascii=True).encode() + b"\n"
                if whole < len(data) and _is_object(data[whole:]):
                    line = b"\n" + line
                elif whole < len(data):
                    os.ftruncate(descriptor, whole)
                append_whole(descriptor, line)
            finally:
                os.close(descriptor)
    except filelock.Timeout as problem:
        raise CorpusError(f"Another program holds {path}: end it, then decide again.") from problem


def _is_object(data: bytes) -> bool:
    try:
        return isinstance(json.loads(data), dict)
    except ValueError:
        return False


# Compared -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Agreement:
    """How far two reviewers agree on the questions that both decided on.

    Attributes:
        first, second: their names, in alphabetical order.
        chunks: of the questions, for intervals: questions on one chunk aren't independent.
        said: what each of the two decided, question by question.
        apart: ids of the questions on which they differ.
    """

    first: str
    second: str
    chunks: tuple[str, ...]
    said: tuple[tuple[str, str], ...]
    apart: tuple[str, ...]

    @property
    def same(self) -> int:
        """Questions on which they decided alike."""
        return len(self.said) - len(self.apart)

    def share(self) -> Interval:
        """Of the questions, those on which they decided alike, with its 95 % interval."""
        from lm_eval_kinject.stats import clustered_accuracy

        return clustered_accuracy([float(one == other) for one, other in self.said], self.chunks)

    def kappa(self, *, stands: bool = False) -> float:
        """Cohen's kappa of the three actions, or of whether the question stands; NaN where there is none.

        Args:
            stands: take an edit for an acceptance: both keep the question.
        """
        from lm_eval_kinject.stats import cohen_kappa

        told = [tuple("reject" if one == "reject" else "stands" for one in pair) for pair in self.said]
        pairs = told if stands else self.said
        return cohen_kappa([pair[0] for pair in pairs], [pair[1] for pair in pairs])


def agreements(there: QuestionSet) -> list[Agreement]:
    """Every two reviewers who decided on a question each, on the words that it has now.

    Raises:
        CorpusError: there are no questions, or a decision can't be read.
    """
    found = decisions(there)
    by_pair: dict[tuple[str, str], list[tuple[Row, str, str]]] = defaultdict(list)
    for row in there.questions():
        said = {str(one.get("reviewer", "")): one["action"] for one in on_these_words(row, found)}
        for pair in itertools.combinations(sorted(said), 2):
            by_pair[pair].append((row, said[pair[0]], said[pair[1]]))
    return [
        Agreement(
            first,
            second,
            tuple(row["source_chunk"] for row, _, _ in both),
            tuple((one, other) for _, one, other in both),
            tuple(row["id"] for row, one, other in both if one != other),
        )
        for (first, second), both in sorted(by_pair.items())
    ]


def tally(there: QuestionSet) -> dict[str, Counter[str]]:
    """Reviewer -> actions and how often, on the words that questions have now."""
    found = decisions(there)
    told: dict[str, Counter[str]] = defaultdict(Counter)
    for row in there.questions():
        for one in on_these_words(row, found):
            told[str(one.get("reviewer", ""))][one["action"]] += 1
    return dict(sorted(told.items()))
