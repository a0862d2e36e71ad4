"""The `kinject` command: everything but scoring, which is `lm_eval`'s.

This is the only module that prints or exits (`demo.py` beside it does too). Each command is a thin shell around a
function of one of the rooms, imported when the command runs, so that `kinject --help` is quick.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from typer.core import TyperGroup

from lm_eval_kinject import __version__
from lm_eval_kinject.errors import ArgumentError, KinjectError

if TYPE_CHECKING:
    from lm_eval_kinject.hub.publish import Plan, Published
    from lm_eval_kinject.questions.folder import QuestionSet
    from lm_eval_kinject.questions.ledger import Asker, Expected
    from lm_eval_kinject.questions.wordings import Settings as WordingSettings


class _Stopped(Exception):
    """Ctrl-C inside a command."""


class _Commands(TyperGroup):
    """Lets Ctrl-C through to `main`: Typer would end the process without a word."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as stop:
            raise _Stopped from stop


app = typer.Typer(
    name="kinject",
    cls=_Commands,
    help="Inject knowledge into a language model and measure it with lm_eval.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
index_app = typer.Typer(help="Indexes on disk: build one, look into it, verify it.", no_args_is_help=True)
corpus_app = typer.Typer(help="Corpora: show one, or make an edition of the newswire.", no_args_is_help=True)
adapters_app = typer.Typer(help="Published adapters: those that `adapter=NAME` knows.", no_args_is_help=True)
study_app = typer.Typer(help="Studies: the whole comparison from one file, and its report.", no_args_is_help=True)
questions_app = typer.Typer(help="A benchmark from any corpus.", no_args_is_help=True)
app.add_typer(study_app, name="study")
app.add_typer(questions_app, name="questions")
app.add_typer(corpus_app, name="corpus")
app.add_typer(index_app, name="index")
app.add_typer(adapters_app, name="adapters")

_out = Console(soft_wrap=True)

CorpusOption = Annotated[str, typer.Option("--corpus", help="a bundled name, folder, file or Hub dataset id")]
RetrieverOption = Annotated[str, typer.Option("--retriever", help="minilm, bge, e5, bm25, … or an encoder's id")]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="say what would be done, and do nothing")]
PublicOption = Annotated[bool, typer.Option("--public", help="open a new repository to everybody (default: private)")]
ToOption = Annotated[str, typer.Option("--to", help="OWNER/NAME on the Hub; made if it isn't there")]
PullRequestOption = Annotated[bool, typer.Option("--pr", help="a pull request, for somebody else's repository")]
BenchmarkOption = Annotated[
    list[str] | None,
    typer.Option("--benchmark", help="TASK=OWNER/DATASET[#TASK_ID]: a task's benchmark on the Hub, repeatable"),
]
SetArgument = Annotated[Path, typer.Argument(help="a question set's folder, of `kinject questions write`")]
WriterOption = Annotated[
    str, typer.Option("--writer", envvar="OPENAI_BASE_URL", help="an endpoint's address, ending in /v1, or hf:MODEL")
]
WriterModelOption = Annotated[
    str | None, typer.Option("--model", help="the endpoint's name of the model; default: the only one that it lists")
]
ConcurrencyOption = Annotated[int, typer.Option("--concurrency", help="requests at a time")]
PriceOption = Annotated[
    str | None, typer.Option("--price", help="READ,WRITTEN: money for a million tokens, for the estimate and the count")
]
SeedOption = Annotated[int, typer.Option("--seed", help="of sampling and of all that is drawn")]
DtypeOption = Annotated[str, typer.Option("--dtype", help="float32, or bfloat16 (faster, hits may move)")]


def main() -> None:
    """Run the `kinject` script: a `KinjectError` is printed alone, Ctrl-C says so, and both exit non-zero."""
    try:
        app()
    except KinjectError as error:
        print(f"kinject: {error}", file=sys.stderr)
        sys.exit(1)
    except (_Stopped, KeyboardInterrupt):
        print("kinject: stopped; unfinished work is kept where it can be gone on with", file=sys.stderr)
        sys.exit(130)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"kinject {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="show the version")
    ] = False,
) -> None:
    del version


@app.command()
def doctor(
    offline: Annotated[bool, typer.Option("--offline", help="don't try to reach the Hub")] = False,
) -> None:
    """Say of each part of this installation whether it works, and what to do if not (exit code 1: something fails)."""
    from lm_eval_kinject.doctor import examine

    findings = examine(network=not offline)
    table = Table(show_edge=False, pad_edge=False)
    for title in ("", "part", "found", "what to do"):
        table.add_column(title, overflow="fold")
    mark = {"ok": "[green]ok[/]", "note": "[yellow]note[/]", "problem": "[red]problem[/]"}
    for finding in findings:
        table.add_row(mark[finding.state], finding.subject, finding.detail, finding.remedy)
    _out.print(table)
    failed = sum(f.state == "problem" for f in findings)
    print(f"\n{failed} problem{'s' * (failed != 1)}" if failed else "\nAll is well.")
    raise typer.Exit(int(failed > 0))


@app.command()
def retrieve(
    question: Annotated[str, typer.Argument(help="what to look for")],
    corpus: CorpusOption = "current_events",
    retriever: RetrieverOption = "minilm",
    k: Annotated[int, typer.Option("-k", "--k", min=1, help="how many chunks")] = 3,
    dtype: DtypeOption = "float32",
) -> None:
    """Show the chunks that a retriever finds for a question, with their scores."""
    from lm_eval_kinject.corpus import load_corpus
    from lm_eval_kinject.records import Query
    from lm_eval_kinject.retrieval import make_retriever

    found = make_retriever(retriever, load_corpus(corpus), dtype=_dtype(dtype)).search([Query(question)], k)[0]
    for hit in found:
        _out.print(f"[bold]{hit.rank}. {escape(hit.chunk.id)}[/]  score {hit.score:.4f}", highlight=False)
        _out.print(hit.chunk.text + "\n", markup=False, highlight=False)


@index_app.command("build")
def index_build(
    corpus: CorpusOption = "current_events",
    retriever: RetrieverOption = "minilm",
    out: Annotated[Path | None, typer.Option("-o", "--out", help="folder; default: the cache")] = None,
    dtype: DtypeOption = "float32",
) -> None:
    """Build the index of a corpus, or say that it is there; a killed build goes on where it stopped."""
    from lm_eval_kinject.corpus import load_corpus
    from lm_eval_kinject.retrieval import make_index

    texts = load_corpus(corpus)
    built = make_index(retriever, texts, path=out, dtype=_dtype(dtype))
    print(f"{len(texts)} chunks of {texts.name}, {built.vectors.shape[1]} dimensions: {built.path or 'in memory only'}")


@index_app.command("info")
def index_info_(path: Annotated[Path, typer.Argument(help="an index folder")]) -> None:
    """Show an index's manifest."""
    from lm_eval_kinject.retrieval import index_info

    _out.print_json(data=index_info(path))


@index_app.command("list")
def index_list() -> None:
    """List the indexes in the cache."""
    from lm_eval_kinject.retrieval import cache_dir
    from lm_eval_kinject.retrieval.index import cached_indexes

    found = cached_indexes()
    for path in found:
        print(path)
    if not found:
        _say(f"none yet in {cache_dir()}: `kinject index build` builds one, and so does scoring with retrieval")


@index_app.command("verify")
def index_verify(path: Annotated[Path, typer.Argument(help="an index folder")]) -> None:
    """Check an index against its manifest; exit code 1 if it is damaged."""
    from lm_eval_kinject.retrieval import verify_index

    problems = verify_index(path)
    print("\n".join(problems) if problems else "the index is whole")
    raise typer.Exit(int(bool(problems)))


@corpus_app.command("show")
def corpus_show(spec: Annotated[str, typer.Argument(help="a bundled name, folder, file or Hub dataset id")]) -> None:
    """Show what a corpus holds: size, fingerprint, source and its first chunk."""
    from lm_eval_kinject.corpus import load_corpus

    texts = load_corpus(spec)
    _out.print_json(data={**texts.provenance(), "chunks": len(texts)}, default=str)
    _out.print(texts.chunks[0].text, markup=False, highlight=False)


@corpus_app.command("newswire")
def corpus_newswire(
    out: Annotated[Path, typer.Option("-o", "--out", help="folder to write (must not hold an edition yet)")],
    seed: Annotated[int, typer.Option("--seed", help="fixes every name, event and wording")] = 1,
    events: Annotated[int | None, typer.Option("--events", min=200, help="events in all; default: 2,465")] = None,
    edition: Annotated[
        int | None,
        typer.Option("--edition", help="2: no type gives an answer away, questions of two chunks; default: 1"),
    ] = None,
) -> None:
    """Make an edition of the newswire: chunks, paraphrases, validation set, questions and the tasks that ask them."""
    from lm_eval_kinject.corpus.sources.newswire import DEFAULT_EDITION, make_edition, size_for, write_edition

    made = make_edition(seed, size_for(events), edition=DEFAULT_EDITION if edition is None else edition)
    cloze = ",".join(name for name in write_edition(made, out) if name.endswith("_cloze"))
    print(f"{out}: {len(made.chunks)} chunks, {len(made.paraphrases)} paraphrases, {len(made.test)} questions")
    if made.multihop_test:
        print(f"and {len(made.multihop_test)} questions that take two chunks")
    print("Score a model on it (pretrained=MODEL in model_args; default: the embedded reader):")
    where = f"--include_path {shlex.quote(str(out))}"
    print(f"  lm_eval --model rag-hf --model_args retriever=minilm,k=3 {where} --tasks {cloze}")


@app.command()
def train(
    recipe: Annotated[str, typer.Argument(help="a recipe's YAML file, or the name of a bundled one")],
    out: Annotated[Path | None, typer.Option("-o", "--out", help="folder of the result; default: runs/NAME")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="go on with the unfinished run in that folder")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="print counts, steps, time and memory; train nothing")
    ] = False,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="key=value over the recipe's, repeatable")
    ] = None,
) -> None:
    """Continue a model's pretraining on a corpus, as a recipe says; killed runs go on with --resume."""
    from kinject_trainer.command import train as run

    result = run(recipe, out=out, resume=resume, dry_run=dry_run, overrides=overrides or (), say=_say)
    if result.estimate is not None:
        print("\n".join(result.estimate.lines()))
        return
    base = result.record["base"]["name"]
    loads = "" if base == "reader" else f"pretrained={base if '/' in base else 'BASE'},"
    how = "pretrained" if result.record["recipe"]["method"] == "full" else f"{loads}peft"
    print(f"{result.folder} {'was finished before' if result.already else 'is finished'}. Score it:")
    print(f"  lm_eval --model rag-hf --model_args {how}={result.folder},k=0 --tasks current_events_cloze")
    if "=BASE," in how:
        print("BASE is the folder of the base model.")


StudyArgument = Annotated[str, typer.Argument(help="a study's YAML file, or a bundled one: embedded, quick, paper")]
StudyFolderOption = Annotated[
    Path | None, typer.Option("--out", "-o", help="folder of the study; default: studies/NAME")
]


@study_app.command("run")
def study_run(
    study: StudyArgument,
    out: StudyFolderOption = None,
    dry_run: DryRunOption = False,
    jobs: Annotated[int, typer.Option("--jobs", "-j", min=1, help="processes, a load of weights each")] = 1,
    only: Annotated[list[str] | None, typer.Option("--only", help="MODEL/VARIANT, repeatable")] = None,
    report: Annotated[bool, typer.Option("--report/--no-report", help="write the report at the end")] = True,
    outcome: Annotated[Path | None, typer.Option("--outcome", hidden=True)] = None,
) -> None:
    """Train, index and score what is missing of a study, then write its report; goes on where it was stopped."""
    import dataclasses

    from lm_eval_kinject.provenance import write_json
    from lm_eval_kinject.study.engines import Workers, duration
    from lm_eval_kinject.study.grid import read_study
    from lm_eval_kinject.study.plan import forecast
    from lm_eval_kinject.study.run import run_study

    read = read_study(study)
    folder = _study_folder(study, out)
    if dry_run:
        print("\n".join([*forecast(read, folder), f"folder       {folder}"]))
        return
    engine = Workers(jobs) if jobs > 1 else None
    done = run_study(read, folder, only=only or (), engine=engine, say=_say)
    if outcome is not None:
        write_json(outcome, dataclasses.asdict(done))
    there = f", {done.there} were there" if done.there else ""
    print(f"{done.scored} cells scored in {duration(done.seconds)}{there}, {len(done.failures)} failed.")
    if report and done.scored + done.there:
        _write_report(folder)
    raise typer.Exit(int(bool(done.failures)))


@study_app.command("report")
def study_report(
    folder: Annotated[Path, typer.Argument(help="a study's folder")],
) -> None:
    """Write the report of what has been scored so far: one page, tables and figures."""
    _write_report(folder)


@study_app.command("show")
def study_show(
    study: Annotated[
        str | None, typer.Argument(help="a study's file, name or folder; default: list the bundled")
    ] = None,
    cells: Annotated[bool, typer.Option("--cells", help="every cell with its command")] = False,
) -> None:
    """List the bundled studies, or the cells of one and what they scored."""
    from lm_eval_kinject.study.grid import bundled_studies, read_study
    from lm_eval_kinject.study.show import cell_lines, overview

    if study is None:
        for name in bundled_studies():
            print(f"{name:10} {read_study(name).title}")
        return
    folder = Path(study)
    kept = folder / "study.yaml"
    read = read_study(kept if kept.is_file() else study)
    place = folder if kept.is_file() else _study_folder(study, None)
    if cells:
        print("\n".join(cell_lines(read, place)))
        return
    _out.print(overview(read, place), markup=False, highlight=False)


@app.command()
def rerun(
    results: Annotated[Path, typer.Argument(help="lm_eval's results JSON of rag-hf, its samples beside it")],
    pretrained: Annotated[str | None, typer.Option("--pretrained", help="the model, if it was a local folder")] = None,
    peft: Annotated[str | None, typer.Option("--peft", help="the adapter, if it was a local folder")] = None,
) -> None:
    """Score a result again from what it says of itself, and compare sample by sample (exit code 1: it differs)."""
    from lm_eval_kinject.study.rerun import rerun as run

    found = run(results, pretrained=pretrained, peft=peft, say=_say)
    print("\n".join(found.lines()))
    raise typer.Exit(int(not found.same))


T = TypeVar("T")


@questions_app.command("write")
def questions_write(
    out: Annotated[Path, typer.Option("-o", "--out", help="folder of the set; one that is there is gone on with")],
    writer: WriterOption,
    corpus: CorpusOption = "current_events",
    model: WriterModelOption = None,
    asked: Annotated[int, typer.Option("--asked", help="questions written on a chunk")] = 4,
    kept: Annotated[int, typer.Option("--kept", help="of these, the most specific")] = 2,
    tries: Annotated[int, typer.Option("--tries", help="requests for them on a chunk, at most")] = 3,
    min_words: Annotated[int, typer.Option("--min-words", help="chunks with fewer are left out")] = 40,
    limit: Annotated[int | None, typer.Option("--limit", help="chunks to write on, drawn by the seed")] = None,
    words: Annotated[int, typer.Option("--words", help="documents with more are cut")] = 180,
    seed: SeedOption = 1,
    concurrency: ConcurrencyOption = 8,
    price: PriceOption = None,
    dry_run: DryRunOption = False,
) -> None:
    """Write four-option questions on a corpus's chunks; what was paid for is kept, and a killed run goes on."""
    import tempfile

    from lm_eval_kinject.questions.folder import QuestionSet
    from lm_eval_kinject.questions.write import Settings, chosen_chunks, expected_requests, write_questions

    settings = Settings(seed=seed, asked=asked, kept=kept, tries=tries, min_words=min_words, limit=limit)
    with tempfile.TemporaryDirectory() as nowhere:
        folder = Path(nowhere) if dry_run and not (out / "set.json").is_file() else out
        there = QuestionSet.begin(folder, corpus, words=words)
        wrote = _ask(
            there, writer, model, concurrency, price, dry_run,
            lambda: expected_requests(chosen_chunks(there.corpus.chunks, settings), settings),
            lambda asker: write_questions(there, asker, settings, _say),
        )  # fmt: skip
    if wrote is not None:
        print(f"{out}: {wrote.questions} questions on {wrote.chunks} chunks, {wrote.short} of which have too few")
        _print_counts("asked for again or left out", wrote.problems)


@questions_app.command("verify")
def questions_verify(
    folder: SetArgument,
    writer: WriterOption,
    model: WriterModelOption = None,
    tries: Annotated[int, typer.Option("--tries", help="without the passage, the options turned each time")] = 3,
    seed: SeedOption = 1,
    concurrency: ConcurrencyOption = 8,
    price: PriceOption = None,
    dry_run: DryRunOption = False,
) -> None:
    """Ask a model each question with its passage and without; flag what is known anyway, open, or wrong."""
    from lm_eval_kinject.questions.folder import QuestionSet
    from lm_eval_kinject.questions.verify import check_tries, expected_requests, verify_questions

    check_tries(tries)
    there = QuestionSet.open(folder)
    found = _ask(
        there, writer, model, concurrency, price, dry_run,
        lambda: expected_requests(there, there.questions(), tries, seed),
        lambda asker: verify_questions(there, asker, _say, tries=tries, seed=seed),
    )  # fmt: skip
    if found is not None:
        print(f"{folder}: {found.sound} of {found.questions} questions have no flag")
        _print_counts("flagged", found.flags)


@questions_app.command("paraphrase")
def questions_paraphrase(
    folder: SetArgument,
    writer: WriterOption,
    model: WriterModelOption = None,
    count: Annotated[int, typer.Option("-n", "--n", help="of each chunk that is asked about")] = 10,
    validation: Annotated[int, typer.Option("--validation", help="further ones, for choosing training settings")] = 0,
    validation_chunks: Annotated[int, typer.Option("--validation-chunks", help="chunks that have these")] = 240,
    tries: Annotated[int, typer.Option("--tries", help="requests for them on a chunk, at most")] = 4,
    seed: SeedOption = 1,
    concurrency: ConcurrencyOption = 8,
    price: PriceOption = None,
    dry_run: DryRunOption = False,
) -> None:
    """Write paraphrases of the chunks that are asked about; lost and invented facts are asked for again."""
    from lm_eval_kinject.questions.wordings import Settings

    settings = Settings(count=count, validation=validation, validation_chunks=validation_chunks, tries=tries, seed=seed)
    _wordings(folder, settings, writer, model, concurrency, price, dry_run)


@questions_app.command("augment")
def questions_augment(
    folder: SetArgument,
    writer: WriterOption,
    style: Annotated[
        Literal["entigraph", "qa", "active-reading"], typer.Option("--style", help="how texts come about")
    ],
    model: WriterModelOption = None,
    count: Annotated[int, typer.Option("-n", "--n", help="texts of each chunk that is asked about")] = 10,
    tries: Annotated[int, typer.Option("--tries", help="requests for a text, at most, on average")] = 4,
    seed: SeedOption = 1,
    concurrency: ConcurrencyOption = 8,
    price: PriceOption = None,
    dry_run: DryRunOption = False,
) -> None:
    """Write other training texts of these chunks: relations of entities, questions with answers, ways of studying."""
    from lm_eval_kinject.questions.wordings import Settings

    _wordings(folder, Settings(style, count, tries=tries, seed=seed), writer, model, concurrency, price, dry_run)


@questions_app.command("check")
def questions_check(
    folder: Annotated[str, typer.Argument(help="an exported set's folder, or the name of a bundled task folder")],
    closed_book: Annotated[
        str | None, typer.Option("--closed-book", help="a model to ask without any text: a Hub id, a folder, or reader")
    ] = None,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="questions that it is asked")] = None,
) -> None:
    """Look for what gives answers away: cues in options, overlaps, known answers (exit code 1: something was found)."""
    from lm_eval_kinject.questions.check import check_folder

    found = check_folder(folder, closed_book=closed_book, limit=limit)
    table = Table(show_edge=False, pad_edge=False)
    for title in ("", "what", "questions", "share, 95 %", "by chance"):
        table.add_column(title, overflow="fold")
    for one in found:
        mark = "[red]fault[/]" if one.fault else ""
        by_chance = "" if one.chance is None else f"{100 * one.chance:.1f} %"
        table.add_row(mark, escape(one.what), f"{one.count} of {one.of}", one.share.percent(), by_chance)
    _out.print(table)
    faults = sum(one.fault for one in found)
    print(f"\n{faults} fault{'s' * (faults != 1)}" if faults else "\nNothing gives answers away.")
    raise typer.Exit(int(faults > 0))


def _wordings(
    folder: Path,
    settings: WordingSettings,
    writer: str,
    model: str | None,
    concurrency: int,
    price: str | None,
    dry_run: bool,
) -> None:
    from lm_eval_kinject.questions.folder import QuestionSet
    from lm_eval_kinject.questions.wordings import expected_requests, write_wordings

    there = QuestionSet.open(folder)
    found = _ask(
        there, writer, model, concurrency, price, dry_run,
        lambda: expected_requests(there, settings),
        lambda asker: write_wordings(there, asker, settings, _say),
    )  # fmt: skip
    if found is None:
        return
    path = folder / f"{settings.stage}.jsonl"
    held = f" and {found.held_out} for validation" if found.held_out else ""
    print(f"{path}: {found.texts - found.held_out} texts of {found.chunks} chunks, {found.words} words{held}")
    _print_counts("asked for again or left out", found.problems)
    if (of := found.diversity) is not None:
        print(f"distinct words {of.distinct_1:.3f}, pairs {of.distinct_2:.3f}; two texts of a chunk share")
        print(f"{of.overlap_1:.3f} of their words and {of.overlap_2:.3f} of their pairs (Jaccard)")
    if found.short:
        remedy = f"train with paraphrases: {found.every}, or run again" if found.every else "run again"
        _say(f"{found.short} of {found.chunks} chunks have fewer texts than asked for: {remedy} with more --tries")
    print(f"Train on them: --set paraphrases_file={shlex.quote(str(path))}, or on the exported set's corpus")


@questions_app.command("export")
def questions_export(
    folder: SetArgument,
    out: Annotated[Path, typer.Option("-o", "--out", help="folder to write (must not be there yet)")],
    name: Annotated[str | None, typer.Option("--name", help="of the tasks; default: the folder's")] = None,
    subject: Annotated[str, typer.Option("--subject", help="the questions are about it, says the prompt")] = "the news",
    few_shot: Annotated[int, typer.Option("--few-shot", help="questions for few-shot examples, at least")] = 5,
    validation: Annotated[
        float, typer.Option("--validation", help="share of the questions for choosing settings")
    ] = 0.1,
    seed: Annotated[int, typer.Option("--seed", help="of which documents go to which split")] = 1,
) -> None:
    """Write the questions that stand as lm_eval tasks and as a data set that `kinject push` takes."""
    from lm_eval_kinject.questions.export import Settings, export_set
    from lm_eval_kinject.questions.folder import QuestionSet

    named = name if name is not None else out.resolve().name.lower().replace("-", "_")
    settings = Settings(named, subject=subject, few_shot=few_shot, validation=validation, seed=seed)
    there = QuestionSet.open(folder)
    done = export_set(there, out, settings)
    print(f"{out}: {', '.join(f'{split} {count}' for split, count in done.questions.items())}")
    _print_counts("left out", done.settled.dropped)
    if done.settled.unverified:
        _say(f"{done.settled.unverified} questions are unverified and unreviewed: `kinject questions verify` asks them")
    if not there.licence or "not" in there.licence.split():
        _say(f"licence of the texts: {there.licence or 'not stated'}; find out before you publish them")
    print("Score a model on it (pretrained=MODEL in model_args; default: the embedded reader), or publish it:")
    path = shlex.quote(str(out))
    print(f"  lm_eval --model rag-hf --model_args retriever=minilm,k=3 --include_path {path} --tasks {named}_cloze")
    print(f"  kinject push {path} --as dataset --to OWNER/{named}")


def _ask(
    there: QuestionSet,
    writer: str,
    model: str | None,
    concurrency: int,
    price: str | None,
    dry_run: bool,
    expected: Callable[[], Sequence[Expected]],
    work: Callable[[Asker], T],
) -> T | None:
    """Says what a stage will cost, lets it work, and says what it did cost; None: it was only to be said."""
    from lm_eval_kinject.questions.asking import open_writer
    from lm_eval_kinject.questions.ledger import Asker, Prices

    prices = Prices.parse(price) if price else None
    with there.locked() as ledger:
        asker = Asker(open_writer(writer, model=model, concurrency=concurrency), ledger)
        _say(f"{asker.writer.name}: {asker.estimate(expected()).forecast(prices)}")
        if dry_run:
            return None
        try:
            return work(asker)
        finally:
            _say(asker.spent.line(prices))
            _say_counts("waited out", asker.writer.faults)


def _print_counts(what: str, counts: Mapping[str, int]) -> None:
    if counts:
        print(f"{what}: {', '.join(f'{name} {count}' for name, count in sorted(counts.items()))}")


def _say_counts(what: str, counts: Mapping[str, int]) -> None:
    if counts:
        _say(f"{what}: {', '.join(f'{name} {count}' for name, count in sorted(counts.items()))}")


def _study_folder(study: str, out: Path | None) -> Path:
    return out if out is not None else Path("studies") / Path(study).stem


def _write_report(folder: Path) -> None:
    from lm_eval_kinject.study.load import load_curves, load_outcomes, study_provenance
    from lm_eval_kinject.study.report import write_report

    said = study_provenance(folder)
    files = write_report(
        load_outcomes(folder), load_curves(folder), folder / "report", title=str(said["title"]), provenance=said
    )
    print(f"report: {files[0]}")


@app.command()
def push(
    folder: Annotated[Path, typer.Argument(help="a finished run, a model's folder, or a data set's")],
    to: ToOption,
    kind: Annotated[
        Literal["run", "model", "dataset"], typer.Option("--as", help="what the folder is published as")
    ] = "run",
    base: Annotated[str | None, typer.Option("--base", help="a run's base on the Hub, if it was local")] = None,
    unchecked_base: Annotated[bool, typer.Option("--unchecked-base", help="don't compare that base's content")] = False,
    corpus: Annotated[str | None, typer.Option("--corpus", help="a run's corpus on the Hub, if it was local")] = None,
    results: Annotated[list[Path] | None, typer.Option("--results", help="lm_eval's results, for the card")] = None,
    licence: Annotated[str | None, typer.Option("--licence", help="of the weights; default: the base's")] = None,
    public: PublicOption = False,
    framework: Annotated[
        str | None, typer.Option("--framework", help="of the Hub's list, for a data set's eval.yaml")
    ] = None,
    pull_request: PullRequestOption = False,
    benchmark: BenchmarkOption = None,
    dry_run: DryRunOption = False,
) -> None:
    """Publish a run (adapter or model, with card and scores), a base model, or a data set on the Hub."""
    from lm_eval_kinject.hub.eval_results import parse_benchmarks
    from lm_eval_kinject.hub.push import push_dataset, push_model, push_run

    of_runs = {
        "--base": base, "--unchecked-base": unchecked_base, "--corpus": corpus, "--results": results,
        "--licence": licence, "--benchmark": benchmark,
    }  # fmt: skip
    _refuse_idle(kind, {"run": of_runs, "model": {}, "dataset": {"--framework": framework}}, "kinject push")
    _refuse_public_request(public, pull_request, "kinject push")
    if kind == "model":
        _report(push_model(folder, to, public=public, pull_request=pull_request, dry_run=dry_run, say=_say))
        return
    if kind == "dataset":
        more = {"framework": framework} if framework else {}
        _report(push_dataset(folder, to, public=public, pull_request=pull_request, dry_run=dry_run, say=_say, **more))
        return
    _report(
        push_run(
            folder,
            to,
            base=base,
            check_base=not unchecked_base,
            corpus=corpus,
            results=results or (),
            benchmarks=parse_benchmarks(benchmark or (), "kinject push"),
            licence=licence,
            public=public,
            pull_request=pull_request,
            dry_run=dry_run,
            say=_say,
        )
    )


@app.command()
def submit(
    results: Annotated[list[Path], typer.Argument(help="lm_eval's results, files or folders")],
    to: ToOption,
    kind: Annotated[
        Literal["model", "dataset"], typer.Option("--as", help="scores to a model, or results to a data set")
    ] = "model",
    source: Annotated[str | None, typer.Option("--source", help="address of the full results (model)")] = None,
    samples: Annotated[bool, typer.Option(help="send the samples too (dataset)")] = True,
    public: PublicOption = False,
    pull_request: PullRequestOption = False,
    benchmark: BenchmarkOption = None,
    dry_run: DryRunOption = False,
) -> None:
    """Submit scores to a model's repository, or results to a data set; a pull request where you may not write."""
    from lm_eval_kinject.hub.eval_results import parse_benchmarks
    from lm_eval_kinject.hub.submit import submit_results, submit_scores

    of_models = {"--source": source, "--benchmark": benchmark}
    _refuse_idle(
        kind, {"model": of_models, "dataset": {"--public": public, "--no-samples": not samples}}, "kinject submit"
    )
    _refuse_public_request(public, pull_request, "kinject submit")
    asked = True if pull_request else None  # without, the Hub says whether one may write
    if kind == "dataset":
        more = {"samples": samples, "public": public}
        _report(submit_results(results, to, pull_request=asked, dry_run=dry_run, say=_say, **more))
        return
    benchmarks = parse_benchmarks(benchmark or (), "kinject submit")
    _report(
        submit_scores(results, to, benchmarks=benchmarks, source=source, pull_request=asked, dry_run=dry_run, say=_say)
    )


@adapters_app.command("list")
def adapters_list() -> None:
    """List the registered adapters, one line each."""
    from lm_eval_kinject.hub.registry import records

    found = records()
    for record in found.values():
        print(f"{record.name}  {record.variant}  on {record.base.name}  {record.repo or 'comes with this package'}")
    if not found:
        print("none yet: register one with `kinject adapters add OWNER/NAME`")


@adapters_app.command("show")
def adapters_show(name: Annotated[str, typer.Argument(help="an adapter's name")]) -> None:
    """Show an adapter's record."""
    from lm_eval_kinject.hub.registry import find_record

    print("\n".join(find_record(name)[0].lines()))


@adapters_app.command("pull")
def adapters_pull(name: Annotated[str, typer.Argument(help="an adapter's name")]) -> None:
    """Bring an adapter to this disk at its pinned revision and say where it is."""
    from lm_eval_kinject.hub.adapters import pull

    pull(name, _say)


@adapters_app.command("verify")
def adapters_verify(name: Annotated[str, typer.Argument(help="an adapter's name")]) -> None:
    """Check an adapter's record against its files, its base, and what its run says."""
    from lm_eval_kinject.hub.adapters import verify

    verify(name, _say)
    print(f"{name} is as its record says")


@adapters_app.command("add")
def adapters_add(
    repo: Annotated[str, typer.Argument(help="OWNER/NAME or OWNER/NAME@REVISION of a published run")],
    name: Annotated[str | None, typer.Option("--name", help="of the record; default: the repository's")] = None,
    folder: Annotated[Path | None, typer.Option("--registry", help="folder of records; default: your own")] = None,
) -> None:
    """Register a published run at the commit that it has now."""
    from lm_eval_kinject.hub.adapters import add

    add(repo, name, folder=folder, say=_say)


def _refuse_public_request(public: bool, pull_request: bool, command: str) -> None:
    if public and pull_request:
        raise ArgumentError("--public is for a repository of your own, --pr for somebody else's; remove one", command)


def _refuse_idle(kind: str, options: Mapping[str, Mapping[str, object]], command: str) -> None:
    """Refuses options that mean nothing for what is published: one that is ignored is one that misleads."""
    problems = [
        f"{name} is for --as {other} and means nothing with --as {kind}; remove it"
        for other, named in options.items()
        if other != kind
        for name, value in named.items()
        if value
    ]
    if problems:
        raise ArgumentError(problems, command)


def _say(line: str) -> None:
    """What a room has to say while it works goes to stderr, so that stdout holds results."""
    print(line, file=sys.stderr, flush=True)


def _report(done: Plan | Published) -> None:
    """What a push did, or would do."""
    from lm_eval_kinject.hub.publish import Plan

    if isinstance(done, Plan):
        print("\n".join(done.lines()))
    elif done.pull_request:
        print(done.pull_request)
    else:
        changed = len(done.sent) + len(done.removed)
        print(f"{done.url} at {done.commit[:12]}: {f'{changed} files changed' if changed else 'nothing had changed'}")


def _dtype(name: str) -> Literal["float32", "bfloat16"]:
    if name == "float32":
        return "float32"
    if name == "bfloat16":
        return "bfloat16"
    raise KinjectError(f"--dtype {name!r} is neither float32 nor bfloat16")


if __name__ == "__main__":
    main()
