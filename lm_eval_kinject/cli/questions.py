"""Questions out of a corpus: `kinject questions`."""

from __future__ import annotations

import math
import shlex
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TypeVar

import typer
from rich.markup import escape
from rich.table import Table

from lm_eval_kinject.cli.corpora import CorpusOption
from lm_eval_kinject.cli.shell import DryRunOption, PortOption, console, group, say, show_page
from lm_eval_kinject.errors import CorpusError

if TYPE_CHECKING:
    from lm_eval_kinject.questions.folder import QuestionSet
    from lm_eval_kinject.questions.ledger import Asker, Expected
    from lm_eval_kinject.questions.wordings import Settings as WordingSettings

questions_app = group(
    "questions", "A benchmark from any corpus: write questions, verify, review, paraphrase, check, export."
)

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
            lambda asker: write_questions(there, asker, settings, say),
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
        lambda asker: verify_questions(there, asker, say, tries=tries, seed=seed),
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
    nli: Annotated[
        str | None, typer.Option("--nli", help="a cross-encoder of entailment that has its say, too: id or folder")
    ] = None,
    seed: SeedOption = 1,
    concurrency: ConcurrencyOption = 8,
    price: PriceOption = None,
    dry_run: DryRunOption = False,
) -> None:
    """Write paraphrases of the chunks that are asked about; lost and invented facts are asked for again."""
    from lm_eval_kinject.questions.wordings import Settings

    settings = Settings(
        count=count, validation=validation, validation_chunks=validation_chunks, tries=tries, seed=seed, nli=nli
    )
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
    console.print(table)
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
        lambda asker: write_wordings(there, asker, settings, say),
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
        say(f"{found.short} of {found.chunks} chunks have fewer texts than asked for: {remedy} with more --tries")
    print(f"Train on them: --set paraphrases_file={shlex.quote(str(path))}, or on the exported set's corpus")


@questions_app.command("review")
def questions_review(
    folder: SetArgument,
    reviewer: Annotated[str, typer.Option("--reviewer", help="your name or initials; each has one say on a question")],
    port: PortOption = None,
) -> None:
    """Go through the questions in the browser, by keys: accept, edit or reject each; kept as you go."""
    from lm_eval_kinject.pages.desk import Desk
    from lm_eval_kinject.pages.review import CSS, review
    from lm_eval_kinject.questions.folder import QuestionSet

    show_page(review(Desk(QuestionSet.open(folder), reviewer)), CSS, port)


@questions_app.command("agreement")
def questions_agreement(folder: SetArgument) -> None:
    """Say how far every two reviewers of a set agree: raw agreement, Cohen's kappa, and on how many questions."""
    from lm_eval_kinject.questions.folder import QuestionSet
    from lm_eval_kinject.questions.reviews import agreements, tally

    there = QuestionSet.open(folder)
    told = tally(there)
    for name, counts in told.items():
        _print_counts(f"{name}: {counts.total()} decided", counts)
    pairs = agreements(there)
    if not pairs:
        raise CorpusError(
            f"{folder} has no question that two people decided on ({len(told)} reviewed it): a second one begins with "
            f"`kinject questions review {shlex.quote(str(folder))} --reviewer NAME`."
        )
    table = Table(show_edge=False, pad_edge=False)
    for title in ("reviewers", "both decided", "alike, 95 %", "kappa", "kappa of keep or reject"):
        table.add_column(title, overflow="fold")
    for pair in pairs:
        kappas = [pair.kappa(), pair.kappa(stands=True)]
        table.add_row(
            escape(f"{pair.first}, {pair.second}"),
            str(len(pair.said)),
            f"{pair.same}: {pair.share().percent()}",
            *("none" if math.isnan(kappa) else f"{kappa:.3f}" for kappa in kappas),
        )
    console.print(table)
    for pair in pairs:
        ways = Counter((one, other) for one, other in pair.said if one != other)
        _print_counts("apart", {f"{pair.first} {one}, {pair.second} {other}:": n for (one, other), n in ways.items()})
    print("Kappa: 1 is full agreement, 0 what chance gives; none: chance alone would agree on all.")


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
    reviewed: Annotated[
        Literal["all", "accepted", "majority"] | None,
        typer.Option("--reviewed", help="how people's decisions count; default: accepted, all if there are none"),
    ] = None,
) -> None:
    """Write the questions that stand as lm_eval tasks and as a data set that `kinject push` takes."""
    from lm_eval_kinject.questions.export import Settings, export_set
    from lm_eval_kinject.questions.folder import QuestionSet
    from lm_eval_kinject.questions.verify import REVIEWED

    named = name if name is not None else out.resolve().name.lower().replace("-", "_")
    settings = Settings(named, subject=subject, few_shot=few_shot, validation=validation, seed=seed, reviewed=reviewed)
    there = QuestionSet.open(folder)
    done = export_set(there, out, settings)
    print(f"{out}: {', '.join(f'{split} {count}' for split, count in done.questions.items())}")
    _print_counts("left out", done.settled.dropped)
    if done.settled.reviewed != "all":
        say(f"taken: {REVIEWED[done.settled.reviewed]} (--reviewed {done.settled.reviewed})")
    if done.settled.unverified:
        say(f"{done.settled.unverified} questions are unverified and unreviewed: `kinject questions verify` asks them")
    if not there.licence or "not" in there.licence.split():
        say(f"licence of the texts: {there.licence or 'not stated'}; find out before you publish them")
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
        say(f"{asker.writer.name}: {asker.estimate(expected()).forecast(prices)}")
        if dry_run:
            return None
        try:
            return work(asker)
        finally:
            say(asker.spent.line(prices))
            _say_counts("waited out", asker.writer.faults)


def _print_counts(what: str, counts: Mapping[str, int]) -> None:
    if counts:
        print(f"{what}: {', '.join(f'{name} {count}' for name, count in sorted(counts.items()))}")


def _say_counts(what: str, counts: Mapping[str, int]) -> None:
    if counts:
        say(f"{what}: {', '.join(f'{name} {count}' for name, count in sorted(counts.items()))}")
