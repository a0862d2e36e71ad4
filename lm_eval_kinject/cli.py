"""The `kinject` command: everything but scoring, which is `lm_eval`'s.

This is the only module that prints or exits (`demo.py` beside it does too). Each command is a thin shell around a
function of one of the rooms, imported when the command runs, so that `kinject --help` is quick.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console
from rich.table import Table

from lm_eval_kinject import __version__
from lm_eval_kinject.errors import KinjectError

app = typer.Typer(
    name="kinject",
    help="Inject knowledge into a language model and measure it with lm_eval.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
index_app = typer.Typer(help="Indexes on disk: build one, look into it, verify it.", no_args_is_help=True)
corpus_app = typer.Typer(help="Corpora: show one, or make an edition of the newswire.", no_args_is_help=True)
app.add_typer(index_app, name="index")
app.add_typer(corpus_app, name="corpus")

_out = Console(soft_wrap=True)

CorpusOption = Annotated[str, typer.Option("--corpus", help="a bundled name, folder, file or Hub dataset id")]
RetrieverOption = Annotated[str, typer.Option("--retriever", help="minilm, bge, e5, bm25, … or an encoder's id")]
DtypeOption = Annotated[str, typer.Option("--dtype", help="float32, or bfloat16 (faster, hits may move)")]


def main() -> None:
    """Run the `kinject` script: a `KinjectError` is printed alone, Ctrl-C says so, and both exit non-zero."""
    try:
        app()
    except KinjectError as error:
        print(f"kinject: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
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
    k: Annotated[int, typer.Option("--k", min=1, help="how many chunks")] = 3,
    dtype: DtypeOption = "float32",
) -> None:
    """Show the chunks that a retriever finds for a question, with their scores."""
    from lm_eval_kinject.corpus import load_corpus
    from lm_eval_kinject.records import Query
    from lm_eval_kinject.retrieval import make_retriever

    found = make_retriever(retriever, load_corpus(corpus), dtype=_dtype(dtype)).search([Query(question)], k)[0]
    for hit in found:
        _out.print(f"[bold]{hit.rank}. {hit.chunk.id}[/]  score {hit.score:.4f}", highlight=False)
        _out.print(hit.chunk.text + "\n", markup=False, highlight=False)


@index_app.command("build")
def index_build(
    corpus: CorpusOption = "current_events",
    retriever: RetrieverOption = "minilm",
    out: Annotated[Path | None, typer.Option("--out", help="folder; default: the cache")] = None,
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
    from lm_eval_kinject.retrieval.index import cached_indexes

    for path in cached_indexes():
        print(path)


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
    out: Annotated[Path, typer.Option("--out", help="folder to write (must not hold an edition yet)")],
    seed: Annotated[int, typer.Option("--seed", help="fixes every name, event and wording")] = 1,
    events: Annotated[int | None, typer.Option("--events", min=200, help="events in all (2,465)")] = None,
) -> None:
    """Make an edition of the newswire: chunks, paraphrases, validation set and questions, as Parquet with a card."""
    from lm_eval_kinject.corpus.sources.newswire import make_edition, size_for, write_edition

    edition = make_edition(seed, size_for(events))
    write_edition(edition, out)
    print(f"{out}: {len(edition.chunks)} chunks, {len(edition.paraphrases)} paraphrases, {len(edition.test)} questions")


def _dtype(name: str) -> Literal["float32", "bfloat16"]:
    if name == "float32":
        return "float32"
    if name == "bfloat16":
        return "bfloat16"
    raise KinjectError(f"--dtype {name!r} is neither float32 nor bfloat16")


if __name__ == "__main__":
    main()
