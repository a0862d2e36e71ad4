"""What gives the answers of a benchmark away: cues in its options, overlaps with what is trained on, known answers.

What it is for: `check_folder` looks at an exported question set, or a bundled task folder, and gives `Finding`s with
intervals. What it does not do: it mends nothing, and it doesn't see what a pretraining corpus held; `closed_book`
only asks.

The one idea: a rule that sees the options alone must be right as often as chance. Each is asked with the interval
that the number of rules calls for, so that a fair benchmark isn't blamed for the luckiest of twenty.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lm_eval_kinject.corpus.sources.newswire.measure import co_occurrence_guesses, guesses, learnt_guesses
from lm_eval_kinject.errors import CorpusError
from lm_eval_kinject.plugin import tasks_dir
from lm_eval_kinject.questions.checks import Doubles, content_words, words_of
from lm_eval_kinject.questions.folder import QuestionSet, Row
from lm_eval_kinject.stats import Interval, clustered_accuracy

__all__ = ["NEAR", "Finding", "check_folder", "check_set", "check_tables"]

NEAR = 30
"""Words on either side of an option in which the question's words are looked for."""

_RUN = 8
_REPEATED = 0.5
_LEAST_QUESTION = 5
_SPLITS = ("test", "validation", "dev")

Tables = Mapping[str, Sequence[Row]]


@dataclass(frozen=True)
class Finding:
    """One thing that was looked for.

    Attributes:
        what: in words.
        count: questions (or texts) for which it is so.
        of: that were looked at.
        share: with its 95 % interval, questions on one chunk counting as one draw.
        chance: the share that means nothing; None: there is none.
        fault: whether it gives answers away.
        ids: of the questions for which it is so.
    """

    what: str
    count: int
    of: int
    share: Interval
    chance: float | None = None
    fault: bool = False
    ids: tuple[str, ...] = field(default=(), compare=False, repr=False)


def check_folder(folder: str, *, closed_book: str | None = None, limit: int | None = None) -> list[Finding]:
    """Looks at a folder as `kinject questions export` writes it.

    Args:
        folder: its path, or the name of a bundled task folder.
        closed_book: a model to ask without any text; None: none is asked.
        limit: questions that it is asked; None: all.

    Raises:
        CorpusError: there is no such folder, or it has no questions.
        ModelError: the model can't be loaded.
    """
    path = Path(folder).expanduser()
    if not path.is_dir() and (tasks_dir() / folder / "data").is_dir():
        path = tasks_dir() / folder
    tables = _read(path)
    found = check_tables(tables)
    if closed_book is not None:
        found.append(_closed_book(path, closed_book, limit))
    return found


def check_tables(tables: Tables) -> list[Finding]:
    """The same for tables: ``test``, ``dev``, ``validation`` (questions), ``chunks``, ``corpus/NAME`` (other texts)."""
    return [*_guessers(tables["test"], tables["chunks"]), *_in_the_text(tables), *_overlaps(tables)]


def check_set(there: QuestionSet) -> list[Finding]:
    """The same for a set that isn't exported yet: all of its questions count as test questions.

    Raises:
        CorpusError: there are no questions yet.
    """
    chunks = [{"id": one.id, "text": one.text, "document_id": one.document_id} for one in there.corpus.chunks]
    wordings = {f"corpus/{name}": there.read(f"{name}.jsonl") for name in ("paraphrases", "validation")}
    tables = {"test": there.questions(), "chunks": chunks, **wordings}
    return check_tables({name: rows for name, rows in tables.items() if rows})


def _read(folder: Path) -> Tables:
    import pyarrow.parquet as pq

    files = {split: folder / "data" / f"{split}.parquet" for split in _SPLITS}
    files |= {f"corpus/{file.stem}": file for file in sorted((folder / "corpus").glob("*.parquet"))}
    tables = {name: pq.read_table(file).to_pylist() for name, file in files.items() if file.is_file()}
    if not tables.get("test") or "corpus/chunks" not in tables:
        raise CorpusError(
            f"{folder} has no questions to check: give a folder that `kinject questions export` wrote "
            "(data/test.parquet, corpus/chunks.parquet), or the name of a bundled task folder."
        )
    return {name.removeprefix("corpus/") if name == "corpus/chunks" else name: rows for name, rows in tables.items()}


def _finding(
    what: str, answers: Sequence[bool], rows: Sequence[Row], chance: float | None = None, rules: int = 1
) -> Finding:
    """A share over questions; a fault where it is above chance even if it is the best of so many rules."""
    clusters = [row["source_chunk"] for row in rows]
    values = [float(answer) for answer in answers]
    share = clustered_accuracy(values, clusters)
    fault = chance is not None and clustered_accuracy(values, clusters, 1 - 0.05 / rules).low > chance
    ids = tuple(str(row["id"]) for row, answer in zip(rows, answers, strict=True) if answer and "id" in row)
    return Finding(what, sum(answers), len(answers), share, chance, fault, ids)


def _chance(rows: Sequence[Row]) -> float:
    return sum(1 / len(row["choices"]) for row in rows) / len(rows)


# Guessers -------------------------------------------------------------------------------------------------------------


def _guessers(rows: Sequence[Row], chunks: Sequence[Row]) -> list[Finding]:
    known = chunks if all("facts" in chunk for chunk in chunks) else _with_facts(chunks, rows)
    picked = guesses(rows, known)
    picked["the one met most with the question's names in other chunks"] = co_occurrence_guesses(rows, known)
    if len({row["source_chunk"] for row in rows}) > 1:
        picked["what a classifier learnt from option texts"] = learnt_guesses(rows)
        picked["its opposite"] = learnt_guesses(rows, inverted=True)
    chance = _chance(rows)
    return [
        _finding(
            f"guessing {name}",
            [row["answer"] == place for row, place in zip(rows, places, strict=True)],
            rows,
            chance,
            len(picked),
        )
        for name, places in picked.items()
    ]


def _with_facts(chunks: Sequence[Row], rows: Sequence[Row]) -> list[Row]:
    """Chunks with the options that stand in them word by word as their ``facts``, as the newswire has its own."""
    options: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for option in dict.fromkeys(choice for row in rows for choice in row["choices"]):
        options[tuple(words_of(option))].append(option)
    lengths = sorted({len(words) for words in options})
    found = []
    for chunk in chunks:
        words = words_of(chunk["text"])
        runs = {tuple(words[at : at + n]) for n in lengths for at in range(len(words) - n + 1)}
        inside = [option for run in sorted(runs & options.keys()) for option in options[run]]
        found.append({**chunk, "facts": json.dumps({str(n): option for n, option in enumerate(inside)})})
    return found


# The text -------------------------------------------------------------------------------------------------------------


def _in_the_text(tables: Tables) -> list[Finding]:
    rows, chunks = tables["test"], tables["chunks"]
    words = {chunk["id"]: words_of(chunk["text"]) for chunk in chunks}
    holders: dict[str, list[str]] = defaultdict(list)
    for chunk in _with_facts(chunks, rows):
        for option in set(json.loads(chunk["facts"]).values()):
            holders[option].append(chunk["id"])

    def right(row: Row) -> str:
        return str(row["choices"][row["answer"]])

    def near(row: Row, chunk: str) -> bool:
        return _near(right(row), row["question"], words[chunk])

    def is_at_home(row: Row) -> bool:
        return row["source_chunk"] in holders[right(row)]

    looks: dict[str, Callable[[Row], bool]] = {
        "the right option stands in its chunk": is_at_home,
        "… near the question's words": lambda row: is_at_home(row) and near(row, row["source_chunk"]),
        "… near the question's words in another chunk": lambda row: any(
            near(row, chunk) for chunk in holders[right(row)] if chunk != row["source_chunk"]
        ),
        "a wrong option stands in its chunk": lambda row: any(
            row["source_chunk"] in holders[choice] for choice in row["choices"] if choice != right(row)
        ),
    }
    return [_finding(what, [look(row) for row in rows], rows) for what, look in looks.items()]


def _near(option: str, question: str, words: Sequence[str]) -> bool:
    """Whether half of the question's content words stand within `NEAR` words of the option."""
    wanted, asked = words_of(option), content_words(question)
    places = [at for at in range(len(words) - len(wanted) + 1) if list(words[at : at + len(wanted)]) == wanted]
    return any(
        2 * len(asked & set(words[max(0, at - NEAR) : at + len(wanted) + NEAR])) >= len(asked) > 0 for at in places
    )


# Overlap --------------------------------------------------------------------------------------------------------------


def _overlaps(tables: Tables) -> list[Finding]:
    rows, chunks = tables["test"], tables["chunks"]
    others = [row for split in ("dev", "validation") for row in tables.get(split, ())]
    texts = {chunk["id"]: chunk["text"] for chunk in chunks}
    document = {chunk["id"]: chunk.get("document_id") or chunk["id"] for chunk in chunks}
    shared = {document[row["source_chunk"]] for row in others}
    repeated = _repeated({row["source_chunk"] for row in rows}, texts)
    training = {
        name: found for name, found in tables.items() if name.startswith("corpus/") and name != "corpus/validation"
    }
    verbatim = _verbatim(rows, [*texts.values(), *(row["text"] for found in training.values() for row in found)])
    looks = {
        "asks what another test question asks": _doubles(rows, ()),
        "asks what a few-shot or validation question asks": _doubles(rows, others) if others else [],
        "shares its document with few-shot examples or validation": [
            document[r["source_chunk"]] in shared for r in rows
        ],
        "its chunk is repeated by another chunk": [row["source_chunk"] in repeated for row in rows],
        "is asked in a chunk or a training text word by word": [row["id"] in verbatim for row in rows],
    }
    found = [_overlap(what, answers, rows) for what, answers in looks.items() if answers]
    held_out = tables.get("corpus/validation", ())
    if held_out:
        trained = {tuple(words_of(row["text"])) for name in training for row in training[name]}
        trained |= {tuple(words_of(text)) for text in texts.values()}
        leaked = [tuple(words_of(row["text"])) in trained for row in held_out]
        by_chunk = [{"source_chunk": row["chunk"]} for row in held_out]
        found.append(_overlap("held-out paraphrases that are training texts", leaked, by_chunk))
    return found


def _overlap(what: str, answers: Sequence[bool], rows: Sequence[Row]) -> Finding:
    plain = _finding(what, answers, rows)
    return replace(plain, fault=plain.count > 0)


def _doubles(rows: Sequence[Row], others: Sequence[Row]) -> list[bool]:
    """For each question, whether an earlier one (with ``others``: one of them) asks the same."""
    known, found = Doubles(), []
    for row in others:
        known.add(row["id"], row["question"], row["choices"][row["answer"]])
    for row in rows:
        right = row["choices"][row["answer"]]
        found.append(known.find(row["question"], right) is not None)
        if not others:
            known.add(row["id"], row["question"], right)
    return found


def _repeated(asked: set[str], texts: Mapping[str, str]) -> set[str]:
    """Chunks that are asked about of which another one has half of the runs of eight words."""
    runs = {name: _runs(text) for name, text in texts.items()}
    holders: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for name, mine in runs.items():
        for run in mine:
            holders[run].append(name)
    found = set()
    for name in asked:
        shared: dict[str, int] = defaultdict(int)
        for run in runs[name]:
            for other in holders[run]:
                shared[other] += other != name
        if any(count >= _REPEATED * len(runs[name]) for count in shared.values() if count):
            found.add(name)
    return found


def _runs(text: str) -> set[tuple[str, ...]]:
    """Runs of eight words; a shorter text is one run."""
    words = words_of(text)
    return {tuple(words[at : at + _RUN]) for at in range(max(1, len(words) - _RUN + 1))}


def _verbatim(rows: Sequence[Row], texts: Iterable[str]) -> set[str]:
    """Ids of questions of five words or more that are asked in one of the texts.

    A question mark counts as a word: "…, who wrote The Painted Umbrella, …" states what a question may ask.
    """
    starts: dict[tuple[str, ...], list[tuple[str, list[str]]]] = defaultdict(list)
    for row in rows:
        words = _with_marks(row["question"])
        if len(words) >= _LEAST_QUESTION:
            starts[tuple(words[:_LEAST_QUESTION])].append((row["id"], words))
    found = set()
    for text in texts:
        words = _with_marks(text)
        for at in range(len(words) - _LEAST_QUESTION + 1):
            for name, question in starts.get(tuple(words[at : at + _LEAST_QUESTION]), ()):
                if words[at : at + len(question)] == question:
                    found.add(name)
    return found


def _with_marks(text: str) -> list[str]:
    return words_of(text.replace("?", " questionmark "))


# Closed book ----------------------------------------------------------------------------------------------------------


def _closed_book(folder: Path, model: str, limit: int | None) -> Finding:
    """A model's accuracy on option texts, asked through lm_eval without any text."""
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    from lm_eval_kinject.models.rag_hf import RagHFLM

    manager = TaskManager(include_defaults=False, include_path=str(folder))
    name = next((one for one in sorted(manager.all_subtasks) if one.endswith("_cloze") and "multihop" not in one), None)
    if name is None:
        raise CorpusError(f"{folder} has no task that ends in _cloze to ask the model with.")
    arguments: dict[str, Any] = {"k": 0} if model == "reader" else {"k": 0, "pretrained": model}
    result = simple_evaluate(
        model=RagHFLM(**arguments), tasks=[name], task_manager=manager, limit=limit, bootstrap_iters=0, log_samples=True
    )
    samples = sorted(result["samples"][name], key=lambda sample: sample["doc_id"])
    rows = [sample["doc"] for sample in samples]
    answers = [bool(sample["acc"]) for sample in samples]
    return _finding(f"{model} answers {name} closed-book", answers, rows, _chance(rows))
