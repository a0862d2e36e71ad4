"""What a study would do, before it does it.

What it is for: `forecast` counts cells, trainings, indexes, tokens, time and memory. What it does not do: it loads no
weights, trains and scores nothing.

The one idea: what is scored together shares its chunks. A question at K = 0 to 5 costs the chunks of K = 5 once, and
each K's own question and options; few-shot examples are read once for all questions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lm_eval_kinject.corpus import load_corpus
from lm_eval_kinject.log import duration
from lm_eval_kinject.retrieval.make import CONTROLS
from lm_eval_kinject.retrieval.rerank import MMR, ByModel
from lm_eval_kinject.study.cells import is_done, jobs_of, passes_of, run_folder, training_overrides
from lm_eval_kinject.study.grid import Cell, Study
from lm_eval_kinject.study.run import quietly, task_manager

__all__ = ["forecast"]

_SAMPLE = 50  # questions and chunks whose lengths stand for all
_FORWARD_IN_PRACTICE = 4.0  # times what matrix products alone would take, on small models


@dataclass(frozen=True)
class _Asked:
    """A task in figures: questions, and the mean tokens of a question with all its options, and of an example."""

    questions: int
    question: float
    example: float
    corpus: str | None


def forecast(study: Study, out: Path) -> list[str]:
    """What there is to do, a line each, for people.

    Raises:
        KinjectError: what would stop the study, as far as it can be seen: an unknown task, recipe, model or corpus.
    """
    from kinject_trainer.estimate import reading

    jobs = jobs_of(study)
    done = sum(is_done(out, cell) for cell in study.cells)
    head = f"{len(study.cells)} cells ({done} of them scored already), {len(jobs)} loads of weights"
    lines = [study.title, f"cells        {head}, {_passes(jobs)} passes"]
    training = _trainings(study, out, jobs)
    lines += [line for line, _ in training]
    with quietly():
        manager = task_manager(study)
    totals = [0.0, 0.0]
    for model, given in study.models.items():
        costs = reading(str(given.get("pretrained", "reader")), given.get("revision"))
        with quietly():
            tasks = {task: _asked(manager, task, costs.count) for task in study.tasks}
        chunks = {spec: _chunk(spec, costs.count) for spec in _corpora(study, tasks)}
        tokens = 0.0
        for cells in jobs.values():
            for together in passes_of([cell for cell in cells if cell.model == model]).values():
                if not all(is_done(out, cell) for cell in together):
                    tokens += _tokens(study, together, tasks[together[0].task], chunks)
        seconds = tokens * costs.seconds_a_token * _FORWARD_IN_PRACTICE
        about = "about " if costs.estimated else ""
        lines.append(
            f"score        {model}: {about}{tokens / 1e6:,.1f} million tokens, roughly {duration(seconds)} (estimated: "
            f"{costs.seconds_from}); weights of {2 * costs.parameters / 1e9:.2f} GB in bf16"
        )
        totals[0] += seconds
        totals[1] = max([totals[1], *(size for size, _ in chunks.values())])
    lines += _indexes(study, out, totals[1]) + _rerankings(study, out, tasks)
    seconds = totals[0] + sum(took for _, took in training)
    return [*lines, f"time         roughly {duration(seconds)} in all, one job after the other"]


def _passes(jobs: dict[str, list[Cell]]) -> int:
    return sum(len(passes_of(cells)) for cells in jobs.values())


def _trainings(study: Study, out: Path, jobs: dict[str, list[Cell]]) -> list[tuple[str, float]]:
    """A line and the seconds of each training that isn't there yet."""
    from kinject_trainer.command import train

    found = []
    for name, cells in jobs.items():
        variant = study.variants[cells[0].variant]
        if variant.recipe is None:
            continue
        if (run_folder(out, cells[0]) / "kinject.json").is_file():
            found.append((f"train        {name}: is there", 0.0))
            continue
        costs = train(variant.recipe, dry_run=True, overrides=training_overrides(study, cells[0])).estimate
        if costs is None:
            continue
        seconds = costs.seconds * costs.trials
        line = f"train        {name}: {costs.tokens:,} tokens, {costs.updates:,} updates, roughly {duration(seconds)}"
        found.append((f"{line}, {costs.gigabytes:.1f} GB a process", seconds))
    return found


def _asked(manager: Any, name: str, count: Callable[[str], int]) -> _Asked:
    """A task's questions, and how long they are."""
    loaded = manager.load([name])["tasks"]
    questions, lengths, corpus = 0, [], None
    for task in loaded.values():
        docs = list(task.eval_docs)
        questions += len(docs)
        declared = (task.config.metadata or {}).get("kinject", {})
        corpus = declared.get("corpus", corpus)
        for doc in docs[:_SAMPLE]:
            rendered = task.doc_to_text(doc)
            choices = task.doc_to_choice(doc) if task.config.doc_to_choice is not None else []
            text = rendered if isinstance(rendered, str) else ""
            lengths.append(count(text) + sum(count(f" {choice}") for choice in choices))
    mean = sum(lengths) / max(1, len(lengths))
    return _Asked(questions, mean, mean, corpus)


def _corpora(study: Study, tasks: dict[str, _Asked]) -> list[str]:
    if not study.retrievers:
        return []
    specs = [study.corpus] if study.corpus else [asked.corpus for asked in tasks.values()]
    return [spec for spec in dict.fromkeys(specs) if spec is not None]


def _chunk(spec: str, count: Callable[[str], int]) -> tuple[int, float]:
    """How many chunks a corpus has, and their mean tokens."""
    chunks = load_corpus(spec).chunks
    some = chunks[:: max(1, len(chunks) // _SAMPLE)]
    return len(chunks), sum(count(f"{c.title}\n{c.text}\n\n") for c in some) / len(some)


def _tokens(study: Study, together: Sequence[Cell], asked: _Asked, chunks: dict[str, tuple[int, float]]) -> float:
    """Distinct tokens of a pass."""
    questions = min(asked.questions, study.limit or asked.questions)
    spec = study.corpus or asked.corpus
    chunk = chunks[spec][1] if spec in chunks else 0.0
    deepest: dict[Any, int] = {}  # cells that differ in k alone share their chunks
    for cell in together:
        given = dict(cell.arguments)
        k = given.pop("k")
        key = tuple(sorted(given.items()))
        deepest[key] = max(deepest.get(key, 0), k)
    each = sum(deepest.values()) * chunk + len(together) * asked.question
    return questions * each + together[0].shots * asked.example


def _indexes(study: Study, out: Path, chunks: float) -> list[str]:
    """Which retrievers embed a corpus."""
    names = [settings.retriever or name for name, settings in study.retrievers.items()]
    dense = [name for name in names if name not in (*CONTROLS, "bm25")]
    return [
        f"index        {name}: {chunks:,.0f} chunks a corpus, embedded once into the cache unless they are there"
        for name in dense
    ]


def _rerankings(study: Study, out: Path, tasks: Mapping[str, _Asked]) -> list[str]:
    """How many pairs of question and chunk cross-encoders read; what that takes depends on them, so it isn't said."""
    pairs: dict[str, int] = {}
    lists: set[tuple[Any, ...]] = set()  # what is ranked once: cells that differ in k, shots or weights share it
    for cell in study.cells:
        given = dict(cell.arguments)
        name = given.get("rerank")
        if name is None or name == MMR.name or is_done(out, cell):
            continue
        depth = given.get("rerank_from", ByModel.rerank_from)
        ranked = (cell.model, cell.task, name, depth, given.get("retriever"), given.get("corpus"))
        if ranked not in lists:
            lists.add(ranked)
            questions = tasks[cell.task].questions
            pairs[name] = pairs.get(name, 0) + depth * min(questions, study.limit or questions)
    return [
        f"rerank       {name}: {count:,} pairs of question and chunk, which tokens and time above don't hold"
        for name, count in pairs.items()
    ]
