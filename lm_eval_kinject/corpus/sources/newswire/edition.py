"""A whole data set from one seed: chunks, paraphrases, a validation set for tuning, and questions.

The bundled edition under `tasks/current_events/` is `make_edition(BUNDLED_SEED)`; another seed gives another edition
of the same shape. Source chunks are asked about, background chunks are not, and the few-shot questions have source
chunks of their own. Validation paraphrases restate source chunks whose originals are trained on, as in the paper.

Edition 2 has chunks in which a type gives no answer away, and questions that take two chunks (`multihop`).

A written edition can be scored where it lies: its lm_eval tasks are the bundled edition's, with other names.
"""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from lm_eval_kinject.corpus.sources.newswire.ask import Examiner
from lm_eval_kinject.corpus.sources.newswire.kind import DEFAULT_EDITION, Kind, load_kinds
from lm_eval_kinject.corpus.sources.newswire.multihop import (
    FIRST_EDITION,
    Consequence,
    MultihopExaminer,
    can_follow,
    consequences_of,
)
from lm_eval_kinject.corpus.sources.newswire.realise import realise
from lm_eval_kinject.corpus.sources.newswire.world import Event, World
from lm_eval_kinject.errors import CorpusError
from lm_eval_kinject.plugin import tasks_dir
from lm_eval_kinject.provenance import atomic_write
from lm_eval_kinject.records import Question

BUNDLED_SEED = 2042
YEAR_OF_EVENTS = 2042

_BUNDLED_TASK = "current_events"
_VERSION = re.compile(r"(?m)^  version: (?P<edition>\d+)\.\d+$")

# Events of a kind, so that three wrong options can be found that are neither alike nor of the chunk itself.
_FEWEST_RIVALS = 8

Row = dict[str, Any]


@dataclass(frozen=True)
class EditionSize:
    """How much an edition holds; the defaults are the bundled edition's (the paper's 910 questions)."""

    sources: int = 455
    questions_per_source: int = 2
    paraphrases: int = 10
    background: int = 2000
    few_shot_sources: int = 10
    validation_sources: int = 240
    validation_paraphrases: int = 2
    multihop: int = 200  # of the background: events that are asked about with what follows from them; edition 2 only
    multihop_background: int = 200  # of the background: events that something follows from that nobody asks about

    @property
    def events(self) -> int:
        """Events of all roles together, consequences not among them."""
        return self.sources + self.background + self.few_shot_sources


@dataclass(frozen=True)
class Edition:
    """The tables of an edition, as rows ready for Parquet; see `write_edition` for the files they become."""

    edition: int
    seed: int
    size: EditionSize
    events: Sequence[Event]
    chunks: Sequence[Row]
    paraphrases: Sequence[Row]
    validation: Sequence[Row]
    test: Sequence[Row]
    dev: Sequence[Row]
    multihop_test: Sequence[Row] = ()
    multihop_dev: Sequence[Row] = ()
    months: tuple[str, ...] = ()  # ``YYYY-MM`` of dated news, whose rows have a date (`months`)

    def tables(self) -> Mapping[str, Sequence[Row]]:
        """File path within the edition's folder → its rows."""
        tables = {
            "corpus/chunks.parquet": self.chunks,
            "corpus/paraphrases.parquet": self.paraphrases,
            "corpus/validation.parquet": self.validation,
            "data/test.parquet": self.test,
            "data/dev.parquet": self.dev,
        }
        if self.edition >= FIRST_EDITION:
            tables |= {"data/multihop_test.parquet": self.multihop_test, "data/multihop_dev.parquet": self.multihop_dev}
        return tables


def make_edition(
    seed: int,
    size: EditionSize | None = None,
    kinds: Sequence[Kind] | None = None,
    *,
    edition: int = DEFAULT_EDITION,
) -> Edition:
    """Draw an edition. The same seed, size, kinds and edition give the same rows on any machine.

    Args:
        seed: fixes everything.
        size: how much of what; default: as the bundled one.
        kinds: of that edition; default: all.
        edition: which one (`kind.EDITIONS`); where ``kinds`` are given, theirs.

    Raises:
        CorpusError: there is no such edition, or the size asks for more than there are names or events.
    """
    size = size or EditionSize()
    world = World(seed=seed, kinds=kinds or load_kinds(edition=edition), size=size.events)
    single = drawn(world, size, str(seed))
    if world.edition < FIRST_EDITION:
        return single
    return _with_consequences(single, world, {row["id"] for row in single.chunks if row["role"] != "background"})


def drawn(world: World, size: EditionSize, stream: str) -> Edition:
    """The tables of a world's own events, consequences left out.

    Args:
        world: of ``size.events`` events.
        size: how much of what.
        stream: names the random streams of all that is drawn beside the events.
    """
    rng = random.Random(f"edition:{stream}")
    shuffled = list(world.events)
    rng.shuffle(shuffled)
    sources = sorted(shuffled[: size.sources], key=lambda e: e.id)
    few_shot = sorted(shuffled[size.sources : size.sources + size.few_shot_sources], key=lambda e: e.id)
    role = {e.id: "source" for e in sources} | {e.id: "few-shot" for e in few_shot}
    tuned = sorted(rng.sample(sources, size.validation_sources), key=lambda e: e.id)
    first_validation = 1 + size.paraphrases
    examiner = Examiner(_rivals(sources, world.events), stream)
    return Edition(
        edition=world.edition,
        seed=world.seed,
        size=size,
        events=world.events,
        chunks=[_chunk(e, role.get(e.id, "background")) for e in world.events],
        paraphrases=_paraphrases(sources, 1, first_validation),
        validation=_paraphrases(tuned, first_validation, first_validation + size.validation_paraphrases),
        test=_questions(examiner, sources, size.questions_per_source, rng),
        dev=_questions(Examiner(world.events, stream), few_shot, size.questions_per_source, rng),
    )


def _with_consequences(edition: Edition, world: World, taken: Collection[str]) -> Edition:
    """An edition and what follows from some of its events: more chunks and paraphrases, and multihop questions.

    What the other questions ask about (``taken``: ids) has no consequences: a second chunk with the event's name would
    make those harder to find. Both chunks of a multihop question are sources, with as many paraphrases as any.
    """
    size, rng = edition.size, random.Random(f"consequences:{edition.seed}")
    free = [event for event in world.events if event.id not in taken and can_follow(event)]
    wanted = size.multihop + size.few_shot_sources + size.multihop_background
    told = consequences_of(world, rng.sample(free, min(wanted, len(free))))
    asked, shown = told[: size.multihop], told[size.multihop :][: size.few_shot_sources]
    tuned = asked[: round(len(asked) * size.validation_sources / size.sources)]
    role = {e.id: "few-shot" for e in _both(shown)} | {e.id: "source" for e in _both(asked)}
    first_validation = 1 + size.paraphrases
    last = first_validation + size.validation_paraphrases
    return replace(
        edition,
        chunks=[
            *({**row, "role": role.get(row["id"], row["role"])} for row in edition.chunks),
            *(_chunk(one.event, role.get(one.event.id, "background")) for one in told),
        ],
        paraphrases=[*edition.paraphrases, *_paraphrases(_both(asked), 1, first_validation)],
        validation=[*edition.validation, *_paraphrases(_both(tuned), first_validation, last)],
        multihop_test=_multihop_questions(asked, asked, edition.seed),
        multihop_dev=_multihop_questions(shown, told, edition.seed),
    )


def _both(consequences: Iterable[Consequence]) -> list[Event]:
    """The events of both chunks, each behind what it follows from."""
    return [event for one in consequences for event in (one.origin, one.event)]


def _multihop_questions(asked: Sequence[Consequence], rivals: Sequence[Consequence], seed: int) -> list[Row]:
    examiner = MultihopExaminer(rivals, seed)
    return [_question_row(examiner.ask(one, f"{one.event.id}/q0")) for one in asked]


def _rivals(sources: Sequence[Event], events: Sequence[Event]) -> list[Event]:
    """The events that lend wrong options: those that are asked about too.

    Values of the background would be wrong options that a model trained on the source chunks knows by never having
    seen them. Only a small edition takes some of the background, for kinds of which it has too few sources.
    """
    each = Counter(event.kind.kind for event in sources)
    asked = {event.id for event in sources}
    return [e for e in events if e.id in asked or each[e.kind.kind] < _FEWEST_RIVALS]


def _chunk(event: Event, role: str) -> Row:
    return {
        "id": event.id,
        "title": "",
        "text": realise(event, 0),
        "kind": event.kind.kind,
        "role": role,
        "facts": json.dumps(dict(event.values), sort_keys=True),
    }


def _paraphrase(event: Event, number: int) -> Row:
    return {"id": f"{event.id}/p{number:02d}", "chunk": event.id, "number": number, "text": realise(event, number)}


def _paraphrases(events: Iterable[Event], first: int, end: int) -> list[Row]:
    """Realisations ``first`` to ``end - 1`` of each event."""
    return [_paraphrase(event, number) for event in events for number in range(first, end)]


def _questions(examiner: Examiner, events: Sequence[Event], each: int, rng: random.Random) -> list[Row]:
    """``each`` questions an event, on different slots drawn at random."""
    rows: list[Row] = []
    for event in events:
        for number, slot in enumerate(_drawn_slots(event.kind, each, rng)):
            rows.append(_question_row(examiner.ask(event, slot, f"{event.id}/q{number}")))
    return rows


def _drawn_slots(kind: Kind, each: int, rng: random.Random) -> list[str]:
    """Slots to ask for; since edition 2 half of the draws that a type gives away are drawn again."""
    if kind.edition == 1:
        return rng.sample(sorted(kind.questions), each)
    types = Counter(slot.type for slot in kind.slots.values())
    left, drawn = sorted(kind.questions), list[str]()
    while len(drawn) < each:
        slot = rng.choice(left)
        if types[kind.slots[slot].type] > 1 or rng.random() < 0.5:
            left.remove(slot)
            drawn.append(slot)
    return drawn


def _question_row(question: Question) -> Row:
    row = asdict(question)
    meta = row.pop("meta")
    return {**row, "choices": list(question.choices), **meta}


def size_for(events: int | None) -> EditionSize:
    """The bundled edition's size, or its proportions at another number of events (at least 200)."""
    if events is None:
        return EditionSize()
    whole = EditionSize()
    sources = round(whole.sources * events / whole.events)
    few_shot = whole.few_shot_sources
    return EditionSize(
        sources=sources,
        background=events - sources - few_shot,
        validation_sources=round(whole.validation_sources * sources / whole.sources),
        multihop=round(whole.multihop * sources / whole.sources),
        multihop_background=round(whole.multihop_background * sources / whole.sources),
    )


def write_edition(edition: Edition, folder: Path) -> tuple[str, ...]:
    """Write an edition's Parquet files, its card and its lm_eval tasks below ``folder`` (created if missing).

    Returns:
        The names of the tasks, for lm_eval's ``--tasks`` with ``--include_path FOLDER``: option letters, option texts,
        open answers; since edition 2 the same three for questions that take two chunks.

    Raises:
        CorpusError: the folder holds an edition already, or can't be written.
    """
    names, files = _task_files(edition)
    present = [name for name in (*edition.tables(), *files) if (folder / name).exists()]
    if present:
        raise CorpusError(f"{folder} holds {', '.join(present)} already; name another folder or delete these first")
    _write_files(edition, files, folder)
    return names


def bundled_edition(folder: Path | None = None) -> int:
    """Which edition the bundled tasks are of: the version that their YAML gives.

    Args:
        folder: of the tasks; default: where they are installed.
    """
    common = ((folder or tasks_dir() / _BUNDLED_TASK) / "_common_yaml").read_text(encoding="utf-8")
    found = _VERSION.search(common)
    if found is None:
        raise CorpusError("the bundled tasks are damaged: they have no version; reinstall the package")
    return int(found["edition"])


def bundle_edition(edition: Edition, folder: Path) -> tuple[str, ...]:
    """Put an edition in the place of the bundled one: data, corpus, tasks, and the revision that its card names.

    For this project's own checkout. The tasks keep their names; since edition 2 those of questions that take two chunks
    are beside them, and what an older edition doesn't have is taken away.

    Args:
        edition: of the bundled seed.
        folder: ``tasks/current_events``.

    Returns:
        The names of the tasks.

    Raises:
        CorpusError: the folder isn't the bundled tasks', or can't be written.
    """
    names, files = _task_files(edition, folder)
    _write_files(edition, files, folder)
    for stale in (*folder.glob("*multihop*"), *folder.glob("data/multihop_*")):
        if str(stale.relative_to(folder)) not in (*files, *edition.tables()):
            stale.unlink()
    readme = (folder / "README.md").read_text(encoding="utf-8")
    with atomic_write(folder / "README.md") as file:
        file.write(re.sub(r"\bnewswire\d?-\d+", revision_of(edition), readme).encode())
    return names


def revision_of(edition: Edition) -> str:
    """What results call an edition: ``newswire-2042``, ``newswire2-2042``, ``newswire-7-2026-01-to-2026-06``."""
    months = f"-{edition.months[0]}-to-{edition.months[-1]}" if edition.months else ""
    return f"newswire{edition.edition if edition.edition > 1 else ''}-{edition.seed}{months}"


def _write_files(edition: Edition, files: Mapping[str, str], folder: Path) -> None:
    try:
        for name, rows in edition.tables().items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(folder / name) as file:
                pq.write_table(pa.Table.from_pylist(list(rows)), file, compression="zstd", compression_level=19)
        with atomic_write(folder / "corpus" / "README.md") as file:
            file.write(card(edition).encode())
        for name, text in files.items():  # last, so that lm_eval finds no task whose data isn't there
            with atomic_write(folder / name) as file:
                file.write(text.encode())
    except OSError as error:
        raise CorpusError(f"{folder} can't be written: {error.strerror or error}; make room or name another") from error


def _task_files(edition: Edition, bundled: Path | None = None) -> tuple[tuple[str, ...], dict[str, str]]:
    """The bundled edition's tasks under names of their own and with the corpus beside them: names, file → text.

    They are made from the bundled files, so that a fresh edition is asked exactly as the bundled one. Two editions of
    one seed and different sizes have the same names. Tasks of edition 2 have version 2.

    Args:
        edition: what they are tasks of.
        bundled: where they are the bundled tasks themselves, with their own names and corpus.
    """
    theirs = bundled or tasks_dir() / _BUNDLED_TASK
    shared = ("dataset.py", "_common_yaml", "_generate_yaml")
    files = {name: (theirs / name).read_text(encoding="utf-8") for name in shared}
    common = _VERSION.sub(f"  version: {edition.edition}.0", files["_common_yaml"])
    if bundled is None:
        common = _renamed(common, f"corpus: {_BUNDLED_TASK}", "corpus: corpus")
    files["_common_yaml"] = common
    ours = revision_of(edition).replace("-", "_") if bundled is None else _BUNDLED_TASK
    variants = {"": "_common_yaml"}
    if edition.edition >= FIRST_EDITION:
        variants["_multihop"] = "_multihop_yaml"
        for split in ("dev", "test"):
            common = _renamed(common, f"{split}: data/{split}.parquet", f"{split}: data/multihop_{split}.parquet")
        common = _renamed(common, "gold: source_chunk", "gold: source_chunks")  # both
        files["_multihop_yaml"] = common
    names: list[str] = []
    for variant, include in variants.items():
        for suffix, line in (("", "include: {}"), ("_cloze", "include: {}"), ("_gen", "- {}")):
            template = _BUNDLED_TASK + suffix
            text = (theirs / f"{template}.yaml").read_text(encoding="utf-8")
            text = _renamed(text, line.format("_common_yaml"), line.format(include))
            names.append(ours + variant + suffix)
            files[f"{names[-1]}.yaml"] = _renamed(text, f"task: {template}", f"task: {names[-1]}")
    return tuple(names), files


def _renamed(text: str, line: str, instead: str) -> str:
    """``text`` with one whole line replaced; whatever stands before it on the line, as indentation, stays."""
    renamed, count = re.subn(rf"(?m)^( *){re.escape(line)}$", rf"\g<1>{instead}", text)
    if count != 1:
        raise CorpusError(f"the bundled tasks are damaged: they hold {line!r} {count} times; reinstall the package")
    return renamed


def card(edition: Edition) -> str:
    """The data set's card, in the Hub's form."""
    size = edition.size
    first = edition.edition == 1
    title = f"edition {edition.seed}" if first else f"edition {edition.edition}, seed {edition.seed}"
    option = "" if first else f" --edition {edition.edition}"
    if edition.months:
        title = f"seed {edition.seed}, {edition.months[0]} to {edition.months[-1]}"
        option = f" --months {len(edition.months)} --from {edition.months[0]}"
    multihop = (
        f"| `../data/multihop_test.parquet` | {len(edition.multihop_test):,} | "
        "questions that take two chunks: an event's and one of what follows from it |\n"
        f"| `../data/multihop_dev.parquet` | {len(edition.multihop_dev):,} | such questions for few-shot examples |\n"
    )
    dated = (
        "\nEvery row has its `date`. What the news is about, its names and its wording change from month to month; no\n"
        "event comes twice, and all months have as many events and questions.\n"
    )
    told = (
        (Path(__file__).parent / "card.md")
        .read_text(encoding="utf-8")
        .format(
            title=title,
            seed=edition.seed,
            events=len(edition.events),
            option=option,
            multihop="" if edition.edition < FIRST_EDITION else multihop,
            chunks=len(edition.chunks),
            paraphrases=len(edition.paraphrases),
            each=size.paraphrases,
            validation=len(edition.validation),
            validation_each=size.validation_paraphrases,
            validation_sources=len({row["chunk"] for row in edition.validation}),
            test=len(edition.test),
            dev=len(edition.dev),
        )
    )
    return told + dated if edition.months else told
