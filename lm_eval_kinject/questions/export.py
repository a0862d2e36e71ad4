"""From a question set to what others use: an lm_eval task folder that is a Hugging Face data set folder as well.

What it is for: `export_set` writes the questions that stand (verify.py), the corpus and its paraphrases as Parquet, the
tasks that ask them, and a card. What it does not do: it publishes nothing (`kinject push --as dataset` does).

The one idea: the tasks are the bundled edition's with other names, so that every question set is asked in the same
words. What is added there (``current_events_….yaml`` and the Python beside it) is exported from then on, too.

Splits go by document: test, validation and few-shot examples share none, so that no example tells of what is asked.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lm_eval_kinject.errors import ArgumentError, CorpusError
from lm_eval_kinject.plugin import tasks_dir
from lm_eval_kinject.provenance import fingerprint, publish_folder
from lm_eval_kinject.questions.folder import QuestionSet, Row
from lm_eval_kinject.questions.reviews import agreements, tally
from lm_eval_kinject.questions.verify import REVIEWED, Reviewed, Settled, settled
from lm_eval_kinject.records import Chunk

__all__ = ["Exported", "Settings", "Splits", "export_set", "split_by_document"]

_BUNDLED = "current_events"
_COLUMNS = ("id", "question", "choices", "answer", "source_chunk", "evidence")
_WORDINGS = ("paraphrases", "validation")


@dataclass(frozen=True)
class Settings:
    """How a set is exported.

    Attributes:
        name: of the tasks: small letters, digits and underscores, beginning with a letter.
        subject: what the questions are about, in the prompt ("… questions (with answers) about SUBJECT.").
        few_shot: questions for few-shot examples, at least so many.
        validation: share of the questions for choosing settings, 0 to 0.5.
        seed: of which documents go to which split.
        reviewed: how people's decisions count (`verify.REVIEWED`); None: ``accepted`` if there is one, else ``all``.
    """

    name: str
    subject: str = "the news"
    few_shot: int = 5
    validation: float = 0.1
    seed: int = 1
    reviewed: Reviewed | None = None

    def __post_init__(self) -> None:
        problems = []
        if not re.fullmatch(r"[a-z][a-z0-9_]*", self.name):
            problems.append(
                f"the name {self.name!r}: take small letters, digits and underscores, a letter first (--name)"
            )
        elif (tasks_dir() / self.name).exists():
            problems.append(f"the name {self.name!r} is that of a bundled task: take another (--name)")
        if not re.fullmatch(r"[^\"\\{}\n]+", self.subject):
            problems.append(f"the subject {self.subject!r}: take a few words without quotes and braces")
        if self.few_shot < 1:
            problems.append(f"few_shot {self.few_shot}: take 1 or more")
        if not 0 <= self.validation <= 0.5:
            problems.append(f"validation {self.validation}: take a share from 0 to 0.5")
        if self.reviewed is not None and self.reviewed not in REVIEWED:
            problems.append(f"reviewed {self.reviewed!r}: take one of {', '.join(REVIEWED)}")
        if problems:
            raise ArgumentError(problems, "kinject questions export")


@dataclass
class Splits:
    """Questions by what they are for."""

    test: list[Row] = field(default_factory=list)
    validation: list[Row] = field(default_factory=list)
    dev: list[Row] = field(default_factory=list)

    def named(self) -> dict[str, list[Row]]:
        """Split -> rows, without empty ones."""
        found = {"test": self.test, "validation": self.validation, "dev": self.dev}
        return {name: rows for name, rows in found.items() if rows}


@dataclass
class Exported:
    """What `export_set` wrote: the tasks' names, the questions of each split, and what stayed behind."""

    tasks: tuple[str, ...]
    questions: dict[str, int]
    settled: Settled


def split_by_document(rows: Sequence[Row], chunks: Mapping[str, Chunk], settings: Settings) -> Splits:
    """Splits questions so that no document is in two splits.

    Documents are taken in an order that the seed and their ids give: few-shot examples first, then validation, the rest
    is the test. Within a split the order is that of the questions.

    Raises:
        CorpusError: nothing is left to test.
    """
    documents: dict[str, list[Row]] = {}
    for row in rows:
        chunk = chunks[row["source_chunk"]]
        documents.setdefault(chunk.document_id or chunk.id, []).append(row)
    place: dict[str, str] = {}
    taken = Counter[str]()
    wanted = {"dev": settings.few_shot, "validation": round(settings.validation * len(rows))}
    for name in sorted(documents, key=lambda one: fingerprint([settings.seed, one])):
        split = next((split for split, count in wanted.items() if taken[split] < count), "test")
        place[name] = split
        taken[split] += len(documents[name])
    if not taken["test"]:
        raise CorpusError(
            f"{len(rows)} questions on {len(documents)} documents leave none to test beside {taken['dev']} few-shot "
            f"examples and {taken['validation']} for validation: write more, or lower --few-shot and --validation."
        )
    found = Splits()
    for row in rows:
        chunk = chunks[row["source_chunk"]]
        getattr(found, place[chunk.document_id or chunk.id]).append(row)
    return found


def export_set(there: QuestionSet, out: Path, settings: Settings) -> Exported:
    """Writes the folder, whole or not at all.

    Raises:
        CorpusError: no question stands, too few for the splits, or there is something at ``out``.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise CorpusError(f"{out} is there already: name another folder, or remove it first.")
    stands = settled(there, settings.reviewed or ("accepted" if tally(there) else "all"))
    if not stands.rows:
        why = ", ".join(f"{reason} {count}" for reason, count in sorted(stands.dropped.items()))
        where = "verdicts.jsonl" if stands.reviewed == "all" else "reviews.jsonl, or take --reviewed all"
        raise CorpusError(f"No question of {there.folder} stands ({why}): look at {where}.")
    splits = split_by_document(stands.rows, there.corpus.by_id, settings)
    tables = _tables(there, splits)
    names, files = _tasks(settings, list(splits.named()))
    with publish_folder(out) as building:
        for path, rows in tables.items():
            _write_table(building / path, rows)
        # Cards last but the tasks: lm_eval finds none whose data isn't there.
        (building / "README.md").write_bytes(_card(there, settings, splits, tables, stands, names))
        for path, text in files.items():
            (building / path).write_text(text, encoding="utf-8")
    return Exported(names, {split: len(rows) for split, rows in splits.named().items()}, stands)


# Tables ---------------------------------------------------------------------------------------------------------------


def _tables(there: QuestionSet, splits: Splits) -> dict[str, list[Row]]:
    """Path -> rows. Wordings are those of chunks that are tested or validated on: few-shot chunks aren't trained on."""
    role: dict[str, str] = {}
    for split, rows in splits.named().items():
        role |= {row["source_chunk"]: "few-shot" if split == "dev" else "source" for row in rows}
    tables = {
        f"data/{split}.parquet": [{name: row.get(name, "") for name in _COLUMNS} for row in rows]
        for split, rows in splits.named().items()
    }
    tables["corpus/chunks.parquet"] = [
        {
            "id": chunk.id,
            "title": chunk.title,
            "text": chunk.text,
            "document_id": chunk.document_id or chunk.id,
            "position": chunk.position,
            "date": chunk.date,
            "role": role.get(chunk.id, "background"),
        }
        for chunk in there.corpus.chunks
    ]
    for stem in (*_WORDINGS, *sorted(file.stem for file in there.folder.glob("augment-*.jsonl"))):
        wordings = [row for row in there.read(f"{stem}.jsonl") if role.get(row["chunk"]) == "source"]
        if wordings:
            tables[f"corpus/{stem}.parquet"] = [
                {name: row[name] for name in ("chunk", "number", "text")} for row in wordings
            ]
    return tables


def _write_table(path: Path, rows: Sequence[Row]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.Table.from_pylist(list(rows))
    if "date" in table.column_names:  # a column of nulls would have no type
        table = table.set_column(table.column_names.index("date"), "date", table["date"].cast(pa.string()))
    pq.write_table(table, path, compression="zstd", compression_level=19)


# Tasks ----------------------------------------------------------------------------------------------------------------


def _tasks(settings: Settings, splits: Iterable[str]) -> tuple[tuple[str, ...], dict[str, str]]:
    """The tasks' names, and file -> text: the bundled ones' YAML with other names, corpus and subject."""
    theirs = tasks_dir() / _BUNDLED
    files = {
        file.name: file.read_text(encoding="utf-8")
        for file in sorted([*theirs.glob("*.py"), *theirs.glob("_*_yaml")])
        if "multihop" not in file.name
    }
    common = _line(files["_common_yaml"], rf"corpus: {_BUNDLED}", "corpus: corpus")
    common = _line(common, r"version: \S+", "version: 1.0")
    if "validation" in splits:
        common = _line(
            common, r"test: data/test\.parquet", r"test: data/test.parquet\n    validation: data/validation.parquet"
        )
        common = _line(common, r"test_split: test", r"test_split: test\nvalidation_split: validation")
    files["_common_yaml"] = common
    names = []
    for file in sorted(theirs.glob(f"{_BUNDLED}*.yaml")):
        if "multihop" not in file.name:
            name = settings.name + file.stem.removeprefix(_BUNDLED)
            text = _line(file.read_text(encoding="utf-8"), rf"task: {file.stem}", f"task: {name}")
            files[f"{name}.yaml"] = text.replace("about current events.", f"about {settings.subject}.")
            names.append(name)
    return tuple(names), files


def _line(text: str, line: str, instead: str) -> str:
    """``text`` with one whole line, a pattern, replaced; its indentation stays."""
    replaced, count = re.subn(rf"(?m)^( *){line}$", rf"\g<1>{instead}", text)
    if count != 1:
        raise CorpusError(f"The bundled tasks are damaged: they hold {line!r} {count} times; reinstall the package.")
    return replaced


# The card -------------------------------------------------------------------------------------------------------------


_TABLES = {
    "data/test.parquet": "the questions that are scored",
    "data/validation.parquet": "questions for choosing settings such as k, on other documents",
    "data/dev.parquet": "few-shot examples, on other documents, taken in order",
    "corpus/chunks.parquet": "the corpus; `role` is source (tested or validated on), few-shot or background",
    "corpus/paraphrases.parquet": "paraphrases of source chunks, for training; never retrieved",
    "corpus/validation.parquet": "held-out paraphrases of source chunks, for choosing training settings",
}


def _card(
    there: QuestionSet,
    settings: Settings,
    splits: Splits,
    tables: Mapping[str, Sequence[Row]],
    stands: Settled,
    names: Sequence[str],
) -> bytes:
    """The README.md: data set card and the tasks' page in one."""
    import yaml

    from lm_eval_kinject.hub.push import card_with_configs

    configs: dict[str, dict[str, str | list[str]]] = {"data": {}}
    for path in sorted(tables):
        folder, _, file = path.rpartition("/")
        stem = file.removesuffix(".parquet")
        configs.setdefault(stem if folder == "corpus" else "data", {})[stem if folder == "data" else "train"] = path
    front = {
        **_licence(there.licence),
        "pretty_name": settings.name,
        "task_categories": ["question-answering"],
        "tags": ["knowledge-injection", "lm-evaluation-harness", "synthetic"],
    }
    body = "\n".join(_page(there, settings, splits, tables, stands, names))
    return card_with_configs(f"---\n{yaml.safe_dump(front, sort_keys=False)}---\n\n{body}\n", configs)


def _licence(licence: str | None) -> Row:
    from lm_eval_kinject.hub.cards import LICENCES

    if not licence:
        return {}
    if licence.lower() in LICENCES:
        return {"license": licence.lower()}
    return {"license": "other", "license_name": re.sub(r"[^a-z0-9.]+", "-", licence.lower()).strip("-")}


def _page(
    there: QuestionSet,
    settings: Settings,
    splits: Splits,
    tables: Mapping[str, Sequence[Row]],
    stands: Settled,
    names: Sequence[str],
) -> list[str]:
    told = {path: _TABLES.get(path, "texts made of source chunks, for training; never retrieved") for path in tables}
    return [
        f"# {settings.name}",
        "",
        f"Four-option questions about {settings.subject}, each written from one passage of a corpus: does a model know",
        "them closed-book, after continued pretraining, with retrieval, or with both?",
        "",
        "    lm_eval --model rag-hf --model_args pretrained=MODEL,retriever=minilm,k=3 --include_path FOLDER \\",
        f"        --tasks {','.join(names)}",
        "",
        "| file | rows | what |",
        "|---|---|---|",
        *(f"| `{path}` | {len(rows):,} | {told[path]} |" for path, rows in tables.items()),
        "",
        "## Source",
        "",
        *_source(there, splits),
        "",
        "## How it was made",
        "",
        *_making(there, stands),
        "",
        "## Known limits",
        "",
        *_limits(there, stands),
    ]


def _source(there: QuestionSet, splits: Splits) -> list[str]:
    told = there.manifest["corpus"]
    revision = f", revision {told['revision']}" if told["revision"] else ""
    asked = {row["source_chunk"] for rows in splits.named().values() for row in rows}
    dates = sorted(date for name in asked if (date := there.chunk(name).date))
    window = f"{dates[0]} to {dates[-1]}, of {len(dates)} of {len(asked)} source chunks" if dates else "not stated"
    return [
        f"- corpus: {told['name']} ({told['source']}{revision})",
        f"- chunks: {len(there.corpus):,}, fingerprint `{told['fingerprint'][:16]}…`",
        f"- window: {window}",
        f"- licence of the texts: {there.licence or 'not stated'}",
    ]


def _making(there: QuestionSet, stands: Settled) -> list[str]:
    stages = there.manifest["stages"]
    wrote, verified = stages["write"], stages.get("verify")
    asked, kept = (wrote["settings"][name] for name in ("asked", "kept"))
    dropped = ", ".join(f"{why} {count}" for why, count in sorted(stands.dropped.items())) or "none"
    how = (
        f"verified by {verified['model']}, {verified['tries']} times without the passage"
        if verified
        else "not verified"
    )
    return [
        f"- written by {wrote['writer']}: {asked} questions a chunk on {wrote['chunks']:,} chunks",
        f"- kept: the {kept} most specific of each, {wrote['questions']:,} in all",
        f"- {how}",
        *_reviewing(there, stands),
        f"- left out afterwards: {dropped}; rewritten by people: {stands.edited}",
        "- made with `kinject questions` of lm-eval-kinject",
    ]


def _reviewing(there: QuestionSet, stands: Settled) -> list[str]:
    """Who looked at the questions, what counted, and how far people agree. Names stay in the set's folder."""
    told = tally(there)
    if not told:
        return []
    counts = sum(told.values(), Counter[str]())
    people = "one person" if len(told) == 1 else f"{len(told)} people"
    said = ", ".join(f"{counts[action]:,} {word}" for action, word in _DECIDED.items())
    lines = [f"- reviewed by {people}: {said}; exported: {REVIEWED[stands.reviewed]}"]
    for n, pair in enumerate(agreements(there), start=1):
        kappa = pair.kappa()
        figure = "Cohen's kappa can't be given" if math.isnan(kappa) else f"Cohen's kappa {kappa:.2f}"
        which = "the two" if len(told) == 2 else f"pair {n} of reviewers"
        lines.append(
            f"- {which} decided alike on {pair.same} of the {len(pair.said)} questions that both saw ({figure})"
        )
    return lines


_DECIDED = {"accept": "acceptances", "edit": "edits", "reject": "rejections"}


def _limits(there: QuestionSet, stands: Settled) -> list[str]:
    found = [
        "- Each question was written from one chunk of the corpus that is searched, which favours retrieval.",
        "- What a machine wrote may be wrong, ambiguous or dull all the same.",
    ]
    if not stands.approved:
        found.append("- No person has looked at these questions.")
    elif stands.approved < len(stands.rows):
        found.append(f"- People have looked at {stands.approved} of these {len(stands.rows)} questions.")
    if stands.unverified:
        found.append(f"- {stands.unverified} questions were neither verified nor reviewed.")
    if not there.licence:
        found.append("- The corpus states no licence: find out what its texts allow before you pass them on.")
    return found
