"""From a data set or folder of results to the rows of a leaderboard, and to a list of what was kept out and why.

What it is for: `read_board` reads every results file, `Board.check` holds a row against its samples, `answers_for`
gives a row's answers one by one. What it doesn't do: it compares no rows (against.py) and shows nothing.

The one idea: submissions come from strangers. A file that can't be read, or that says something else than its samples,
costs its own row and no other; and since samples are a thousand times as large as results, the table is made from
results alone, while samples are read afterwards, once, and what came out of them is kept in the cache.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lm_eval_kinject.errors import ArgumentError, KinjectError, PublishError
from lm_eval_kinject.hub.eval_results import Results, Score, gaps, read_results, scores_of
from lm_eval_kinject.hub.fetch import fetch_snapshot
from lm_eval_kinject.hub.submit import submitted_name
from lm_eval_kinject.provenance import atomic_write, fingerprint, read_json
from lm_eval_kinject.retrieval import cache_dir
from lm_eval_kinject.study.load import METRICS, answers_of, doctored, read_rows
from lm_eval_kinject.study.outcomes import Answered

__all__ = ["INJECTIONS", "Answers", "Board", "LeftOut", "Row", "answers_for", "read_board"]

INJECTIONS = ("nowhere", "in the prompt", "in the weights", "in both")
"""Where the knowledge is: ``k=0``, retrieval, an adapter, both."""

_MOST_RESULTS = 8 << 20  # bytes of a results file; lm_eval's have some 12 kB
_MOST_SAMPLES = 1 << 30
_FORMAT = 1  # of what is kept in the cache
_SHARES = ("acc", "acc_norm", "exact_match", "em")  # means of values in 0..1
_BROKEN = (ValueError, TypeError, KeyError, AttributeError, IndexError, OverflowError, OSError, RecursionError)
"""What reading somebody's JSON can end in, where a list stands for a mapping, or a text for a number."""


@dataclass(frozen=True, slots=True)
class Row:
    """One variant's accuracy on one task.

    Args:
        file: its results file, relative to the board's root.
        task, version: lm_eval's.
        metric: the first of acc, exact_match, em, f1 that the task has; with its filter, if it has one.
        value: as lm_eval has it, 0 to 1.
        n: how many questions it is over.
        of: how many the task has; more than ``n`` where only a part was scored (``--limit``).
        subject: what was scored: the adapter, else the model.
        commit: of the Hub, or the fingerprint of a folder; ``""`` where it isn't said.
        model: the base.
        injection: one of `INJECTIONS`.
        retriever: ``""`` without.
        k, shots: chunks and examples in the prompt.
        cost: tokens through the model a question, shared prefixes counted once; None where it isn't said.
        date: ISO 8601, UTC; ``""`` where it isn't said.
        variant: a short, unique name of the setting.
        sampled: whether its samples are there.
        gaps: what somebody else would lack to rerun it.
    """

    file: str
    task: str
    version: str
    metric: str
    value: float
    n: int
    of: int
    subject: str
    commit: str
    model: str
    injection: str
    retriever: str
    k: int
    shots: int
    cost: float | None
    date: str
    variant: str
    sampled: bool
    gaps: tuple[str, ...] = ()

    @property
    def id(self) -> str:
        """Its place: file and task."""
        return f"{self.file}#{self.task}"

    @property
    def name(self) -> str:
        """For people: what was scored, and how."""
        how = f"{self.retriever}, K={self.k}" if self.k else "K=0"
        return f"{self.subject} ({how}, {self.shots}-shot)"


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A results file, or a task of one (``file#task``), that is in no table, and why."""

    place: str
    reason: str


@dataclass(frozen=True, slots=True)
class Answers:
    """A row's answers.

    Args:
        answered: one a question.
        questions: doc_id -> the start of the digest of its document, by which other questions are noticed.
        mean: of the row's metric over all samples; None where a sample has none.
    """

    answered: tuple[Answered, ...]
    questions: Mapping[int, str]
    mean: float | None


@dataclass(slots=True)
class Board:
    """All rows, what was kept out, and where it was read.

    Args:
        root: the folder.
        within: what links may lead to: the same, or the whole of a data set's cache, whose snapshots are links.
        place: what a person calls it: the folder's own name, or the data set with its commit.
        rows: in the order of their files.
        left_out: in the order of their files.
        superseded: how many rows a later one of the same variant has replaced.
        strict: whether what somebody else couldn't rerun is kept out.
        checked: ids of rows whose samples have been read and agree.
    """

    root: Path
    within: Path
    place: str
    rows: list[Row]
    left_out: list[LeftOut]
    superseded: int = 0
    strict: bool = True
    checked: set[str] = field(default_factory=set)

    def row(self, row_id: str) -> Row | None:
        """A row by its id, if it is there."""
        return next((row for row in self.rows if row.id == row_id), None)

    def unchecked(self) -> list[Row]:
        """Rows with samples that haven't been read yet."""
        return [row for row in self.rows if row.sampled and row.id not in self.checked]

    def check(self, row: Row) -> LeftOut | None:
        """Holds a row against its samples; one that says something else goes to those left out.

        Returns:
            Why it went; None where it stays.
        """
        if not row.sampled or row.id in self.checked:
            return None
        try:
            problem = disagreement(row, answers_for(self, row)) or _doctored(self.root / row.file)
        except KinjectError as error:
            problem = str(error)
        if problem is None:
            self.checked.add(row.id)
            return None
        gone = LeftOut(row.id, problem)
        self.rows = [other for other in self.rows if other.id != row.id]
        self.left_out = sorted([*self.left_out, gone], key=lambda one: one.place)
        return gone


# Reading results ------------------------------------------------------------------------------------------------------


def read_board(place: str, *, strict: bool | None = None, cache: bool = True) -> Board:
    """Reads all results in a folder, or in a data set of submissions.

    Args:
        place: a folder, or ``owner/name`` or ``owner/name@revision`` on the Hub (see ``kinject submit --as dataset``).
        strict: keep out what somebody else couldn't rerun, and what isn't in the folder that `submitted_name` gives
            it; None: for a data set, but not for a folder of one's own.
        cache: whether rows are kept, and taken from files that haven't changed since.

    Raises:
        ArgumentError: there is no such folder, or it holds no results.
        HubError: the data set can't be reached.
    """
    folder = Path(place).expanduser()
    if folder.is_dir():
        root = within = folder.resolve()
        place = root.name
        strict = bool(strict)
    elif _looks_like_hub_id(place):
        repo_id, _, revision = place.partition("@")
        found = fetch_snapshot(repo_id, kind="dataset", revision=revision or None, error=ArgumentError)
        root, within = found.path, found.path.parent.parent.resolve()  # the Hub's cache links to its blobs
        place, strict = f"{repo_id}@{found.commit}", strict is not False
    else:
        raise ArgumentError(f"{place!r} is no folder, nor OWNER/NAME of a data set: name where the results are")
    files = sorted(file for file in root.rglob("results_*.json") if not _hidden(file.relative_to(root)))
    if not files:
        raise ArgumentError(f"{place} holds no results_….json: name the folder that lm_eval's --output_path named")
    kept = _Kept(root, strict, cache)
    entries = [(_relative(file, root), kept.entry(file, within)) for file in files]
    kept.write()
    rows, superseded = _latest(Row(**{**row, "gaps": tuple(row["gaps"])}) for _, e in entries for row in e["rows"])
    left = [LeftOut(*pair) for name, entry in entries for pair in _named(name, entry["problems"])]
    return Board(root, within, place, rows, left, superseded, strict)


def _named(name: str, problems: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    return ((f"{name}#{task}" if task else name, reason) for task, reason in problems.items())


def _looks_like_hub_id(place: str) -> bool:
    from lm_eval_kinject.hub.client import check_repo_id

    try:
        check_repo_id(place.partition("@")[0])
    except ArgumentError:
        return False
    return True


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)  # of a killed run, half-written


def _relative(file: Path, root: Path) -> str:
    return file.relative_to(root).as_posix()


class _Kept:
    """What was read before, by file; one file of JSON a board in the cache. Damaged, it is read again from the start.

    An entry is ``{"size", "time", "folder", "rows", "problems"}``, the last being reasons by task, ``""`` for all.
    """

    def __init__(self, root: Path, strict: bool, used: bool) -> None:
        self._root, self._strict, self._used = root, strict, used
        self._file = cache_dir() / "boards" / f"{fingerprint([_FORMAT, str(root), strict])[:24]}.json"
        self._old: Mapping[str, Any] = {}
        self._new: dict[str, Any] = {}
        try:
            self._old = read_json(self._file) if used else {}
        except (OSError, ValueError):
            pass  # none yet

    def entry(self, file: Path, within: Path) -> dict[str, Any]:
        """A file's rows and problems, as kept or read now."""
        name = _relative(file, self._root)
        try:
            real = file.resolve(strict=True)
            about = file.stat()
        except (OSError, RuntimeError):  # a link to nowhere, or to itself
            return {"rows": [], "problems": {"": "it is a link to nothing that can be read"}}
        # The folder's time changes when samples come or go, which changes what is said of a result.
        stamp = {"size": about.st_size, "time": about.st_mtime_ns, "folder": file.parent.stat().st_mtime_ns}
        old = self._old.get(name)
        if isinstance(old, dict) and {key: old.get(key) for key in stamp} == stamp:
            self._new[name] = old
            return old
        if not real.is_relative_to(within):
            return {"rows": [], "problems": {"": "it is a link out of the folder, and isn't followed"}}
        if not real.is_file():  # a pipe would never end
            return {"rows": [], "problems": {"": "it is no file"}}
        if about.st_size > _MOST_RESULTS:
            problem = f"it has {about.st_size / 1e6:.0f} MB; a results file has some kB"
            return {"rows": [], "problems": {"": problem}}
        rows, problems = rows_of(file, self._root, strict=self._strict)
        self._new[name] = {**stamp, "rows": [_plain(row) for row in rows], "problems": problems}
        return self._new[name]

    def write(self) -> None:
        if not self._used or self._new == self._old:
            return
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(self._file, "w") as handle:
                handle.write(json.dumps(self._new))  # several times as quick as `json.dump`
        except OSError:
            pass  # no cache, no harm


def _plain(row: Row) -> dict[str, Any]:
    """A row as JSON takes it; `asdict` copies each value, which a thousand rows feel."""
    return {name: getattr(row, name) for name in Row.__slots__}


def rows_of(file: Path, root: Path, *, strict: bool) -> tuple[list[Row], dict[str, str]]:
    """The rows of one results file, and reasons by task (``""``: the whole file) why there aren't more."""
    try:
        results = read_results(file)[0]
        problem = _whole_file_problem(results, file, root, strict)
        if problem is not None:
            return [], {"": problem}
        return _rows(results, file, root)
    except PublishError as error:
        return [], {"": str(error)}
    except _BROKEN as error:
        said = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        return [], {"": f"it isn't as lm_eval writes it: {said}"}


def _whole_file_problem(results: Results, file: Path, root: Path, strict: bool) -> str | None:
    if not strict:
        return None
    if lacking := gaps(results, samples=False):
        return "incomplete: " + "; ".join(lacking)
    if (name := submitted_name(results)) != file.parent.name or file.parent.parent != root:
        where = file.parent.name if file.parent != root else "no folder of its own"
        return f"it was moved or edited: what it says belongs into {name}, and it is in {where}"
    return None


def _rows(results: Results, file: Path, root: Path) -> tuple[list[Row], dict[str, str]]:
    rows: list[Row] = []
    problems: dict[str, str] = {}
    lacking = tuple(gaps(results, samples=False))
    for task, scores in _by_task(scores_of(results)).items():
        if task not in results.data["configs"]:
            continue  # a group: its tasks have rows of their own
        main = next((s for name in METRICS for s in scores if s.metric.partition(",")[0] == name), None)
        if main is None:
            problems[task] = f"none of {', '.join(METRICS)} is among its figures, or it couldn't be scored"
        elif (problem := implausible(main)) is not None:
            problems[task] = problem
        else:
            rows.append(_row(results, main, _relative(file, root), lacking))
    if not rows and not problems:
        problems[""] = "there is no task with a score in it"
    return rows, problems


def _by_task(scores: Iterable[Score]) -> dict[str, list[Score]]:
    found: dict[str, list[Score]] = {}
    for score in scores:
        found.setdefault(score.task, []).append(score)
    return found


def implausible(score: Score) -> str | None:
    """Why a score can't be what it says, from the score alone; None where it can.

    Values in 0..1 with mean p have a standard error of at most √(p (1 − p) / (n − 1)), which zeros and ones have.
    """
    if not 0 <= score.value <= 1:
        return f"its {score.metric} of {score.value:g} is outside 0 to 1"
    if not score.n or score.n < 1:
        return "it doesn't say how many questions it is over (n-samples)"
    if score.stderr is None or score.n < 2 or score.metric.partition(",")[0] not in _SHARES:
        return None
    most = math.sqrt(score.value * (1 - score.value) / (score.n - 1))
    if score.stderr <= most * (1 + 1e-6) + 1e-9:
        return None
    return (
        f"edited: with {score.metric} {score.value:.4f} over {score.n} questions the standard error is at most "
        f"{most:.4f}, and it says {score.stderr:.4f}"
    )


def _row(results: Results, score: Score, file: str, lacking: tuple[str, ...]) -> Row:
    data, kinject = results.data, results.kinject
    counts = (data.get("n-samples") or {}).get(score.task) or {}
    told = (kinject.get("tasks") or {}).get(score.task) or {}
    together = (kinject.get("scorer") or {}).get("together") or {}
    asked = sum(int(one["questions"]) for one in (kinject.get("tasks") or {}).values()) if told else score.n
    tokens = together.get("distinct_tokens")
    return Row(
        file=file,
        task=score.task,
        version=str((data.get("versions") or {}).get(score.task)),
        metric=score.metric,
        value=score.value,
        n=int(score.n or 0),
        of=int(counts.get("original") or score.n or 0),
        subject=score.subject,
        commit=score.subject_commit or score.subject_fingerprint or "",
        model=score.model,
        injection=INJECTIONS[(score.k > 0) + 2 * score.has_adapter],
        retriever=str(score.setting.get("retriever") or ""),
        k=score.k,
        shots=int(score.shots or 0),
        cost=float(tokens) / asked if tokens and asked else None,
        date=score.date or "",
        variant=score.variant,
        sampled=score.task in results.samples,
        gaps=lacking,
    )


def _latest(rows: Iterable[Row]) -> tuple[list[Row], int]:
    """Of rows about the same thing the latest, each at the place of the first; and how many that left out."""
    found: dict[tuple[object, ...], Row] = {}
    count = 0
    for row in rows:
        count += 1
        key = (row.task, row.version, row.metric, row.subject, row.commit, row.model, row.variant, row.n)
        if key not in found or row.date >= found[key].date:
            found[key] = row
    return list(found.values()), count - len(found)


# Reading samples ------------------------------------------------------------------------------------------------------


def answers_for(board: Board, row: Row) -> Answers:
    """A row's answers one by one, from its samples or from the cache.

    Raises:
        KinjectError: the samples can't be read.
    """
    file = samples_file(board, row)
    about = file.stat()
    if about.st_size > _MOST_SAMPLES:
        raise KinjectError(f"its samples have {about.st_size / 1e6:.0f} MB, which is too much to read")
    digest = fingerprint([_FORMAT, str(file), about.st_size, about.st_mtime_ns, row.metric])
    kept = cache_dir() / "answers" / digest[:2] / f"{digest[:24]}.json"
    try:
        return _thawed(read_json(kept))
    except _BROKEN:
        pass  # not there, or damaged: read again
    try:
        found = answers_in(read_rows(file), row)
    except _BROKEN as error:
        raise KinjectError(f"its samples aren't as lm_eval writes them: {str(error)[:200]}") from error
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(kept, "w") as handle:
            json.dump(asdict(found), handle)
    except OSError:
        pass  # no cache, no harm
    return found


def samples_file(board: Board, row: Row) -> Path:
    """Where a row's samples are.

    Raises:
        KinjectError: they have gone, or are a link out of the board's folder.
    """
    moment = Path(row.file).stem.removeprefix("results_")
    file = board.root / Path(row.file).parent / f"samples_{row.task}_{moment}.jsonl"
    if not file.is_file() or not file.resolve().is_relative_to(board.within):
        raise KinjectError("its samples aren't there any more, or are a link out of the folder")
    return file


def answers_in(rows: Sequence[Mapping[str, Any]], row: Row) -> Answers:
    """Samples of one task as answers to a row; of several filters those of the row's own."""
    metric, _, name = row.metric.partition(",")
    mine = [one for one in rows if one.get("filter", "none") in (name or "none", "none")]
    values = [one.get(metric) for one in mine]
    numbers = [float(value) for value in values if isinstance(value, int | float) and not isinstance(value, bool)]
    documents = {int(one["doc_id"]): str(one.get("doc_hash") or fingerprint(one["doc"]))[:12] for one in mine}
    return Answers(
        tuple(answers_of({row.task: mine})),
        documents,
        math.fsum(numbers) / len(numbers) if numbers and len(numbers) == len(values) else None,
    )


def _thawed(kept: Mapping[str, Any]) -> Answers:
    answered = tuple(Answered(**one) for one in kept["answered"])
    return Answers(answered, {int(doc): digest for doc, digest in kept["questions"].items()}, kept["mean"])


def disagreement(row: Row, answers: Answers) -> str | None:
    """What a row's samples say against it; None where nothing."""
    if len(answers.questions) != len(answers.answered):
        return "its samples have a question twice"
    if len(answers.answered) != row.n:
        return f"it is said to be over {row.n} questions, and there are {len(answers.answered)} samples"
    if answers.mean is None:
        return f"a sample has no {row.metric}"
    if not math.isclose(answers.mean, row.value, abs_tol=1e-6):
        return f"edited: it says {row.metric} {row.value:.4f}, and its samples have {answers.mean:.4f}"
    return None


def _doctored(file: Path) -> str | None:
    """Of a study's cell: a file that isn't what its manifest says any more."""
    try:
        return "; ".join(doctored(file)) or None
    except _BROKEN:
        return "its cell.json can't be read"
