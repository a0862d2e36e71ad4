"""Text and how it is found: `kinject corpus`, `index` and `retrieve`."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.markup import escape

from lm_eval_kinject.cli.shell import app, console, group, say
from lm_eval_kinject.errors import ArgumentError, KinjectError

index_app = group("index", "Indexes on disk: build one, look into it, verify it.")
corpus_app = group(
    "corpus",
    "Corpora: show one, build one from your files, Wikipedia or real news, or make an edition of the newswire.",
)

CorpusOption = Annotated[str, typer.Option("--corpus", help="a bundled name, folder, file or Hub dataset id")]
RetrieverOption = Annotated[str, typer.Option("--retriever", help="minilm, bge, e5, bm25, … or an encoder's id")]
BackendOption = Annotated[str, typer.Option("--backend", help="torch, or openvino (faster on a processor)")]
StoreOption = Annotated[
    str, typer.Option("--store", help="flat (exact), hnsw, ivf-pq, sq8, qdrant; parameters: 'hnsw;M=32'")
]
DtypeOption = Annotated[str, typer.Option("--dtype", help="float32, or bfloat16 (faster, hits may move)")]


@app.command()
def retrieve(
    question: Annotated[str, typer.Argument(help="what to look for")],
    corpus: CorpusOption = "current_events",
    retriever: RetrieverOption = "minilm",
    k: Annotated[int, typer.Option("-k", "--k", min=1, help="how many chunks")] = 3,
    dtype: DtypeOption = "float32",
    backend: BackendOption = "torch",
    store: StoreOption = "flat",
    only: Annotated[str | None, typer.Option("--filter", help="by date and source: 'date<2026-11;source=NAME'")] = None,
) -> None:
    """Show the chunks that a retriever finds for a question, with their scores."""
    from lm_eval_kinject.corpus import load_corpus
    from lm_eval_kinject.records import Query
    from lm_eval_kinject.retrieval import make_retriever

    made = make_retriever(
        retriever, load_corpus(corpus), dtype=_dtype(dtype), backend=_backend(backend), store=store, filter=only
    )
    for hit in made.search([Query(question)], k)[0]:
        console.print(f"[bold]{hit.rank}. {escape(hit.chunk.id)}[/]  score {hit.score:.4f}", highlight=False)
        console.print(hit.chunk.text + "\n", markup=False, highlight=False)


@index_app.command("build")
def index_build(
    corpus: CorpusOption = "current_events",
    retriever: RetrieverOption = "minilm",
    out: Annotated[Path | None, typer.Option("-o", "--out", help="folder; default: the cache")] = None,
    dtype: DtypeOption = "float32",
    backend: BackendOption = "torch",
    store: StoreOption = "flat",
    processes: Annotated[
        int, typer.Option("--processes", min=1, help="how many embed, with a GPU each where there are GPUs; same bytes")
    ] = 1,
) -> None:
    """Build the index of a corpus, or say that it is there; a killed build goes on where it stopped."""
    from lm_eval_kinject.corpus import load_corpus
    from lm_eval_kinject.retrieval import make_index, make_store
    from lm_eval_kinject.retrieval.stores import parse_store

    parse_store(store)  # a typing error costs no build
    texts = load_corpus(corpus)
    built = make_index(retriever, texts, path=out, dtype=_dtype(dtype), backend=_backend(backend), processes=processes)
    print(f"{len(texts)} chunks of {texts.name}, {built.vectors.shape[1]} dimensions: {built.path or 'in memory only'}")
    held = make_store(store, built, texts, within=out is not None)
    if held is not None:
        found = ", ".join(f"{name} {value:.2%}" for name, value in held.recall.items() if name.startswith("recall"))
        print(f"store {held.name}{f' ({found})' if found else ''}: {held.path or 'in memory only'}")


@index_app.command("info")
def index_info_(path: Annotated[Path, typer.Argument(help="an index folder")]) -> None:
    """Show an index's manifest."""
    from lm_eval_kinject.retrieval import index_info

    console.print_json(data=index_info(path))


@index_app.command("list")
def index_list() -> None:
    """List the indexes in the cache."""
    from lm_eval_kinject.retrieval import cache_dir
    from lm_eval_kinject.retrieval.index import cached_indexes

    found = cached_indexes()
    for path in found:
        print(path)
    if not found:
        say(f"none yet in {cache_dir()}: `kinject index build` builds one, and so does scoring with retrieval")


@index_app.command("verify")
def index_verify(path: Annotated[Path, typer.Argument(help="an index folder")]) -> None:
    """Check an index against its manifest; exit code 1 if it is damaged."""
    from lm_eval_kinject.retrieval import verify_index

    problems = verify_index(path)
    print("\n".join(problems) if problems else "the index is whole")
    raise typer.Exit(int(bool(problems)))


def _backend(name: str) -> Literal["torch", "openvino"]:
    if name == "torch":
        return "torch"
    if name == "openvino":
        return "openvino"
    raise KinjectError(f"--backend {name!r} is neither torch nor openvino")


def _dtype(name: str) -> Literal["float32", "bfloat16"]:
    if name == "float32":
        return "float32"
    if name == "bfloat16":
        return "bfloat16"
    raise KinjectError(f"--dtype {name!r} is neither float32 nor bfloat16")


@corpus_app.command("show")
def corpus_show(spec: Annotated[str, typer.Argument(help="a bundled name, folder, file or Hub dataset id")]) -> None:
    """Show what a corpus holds: size, fingerprint, source and its first chunk."""
    from lm_eval_kinject.corpus import load_corpus

    texts = load_corpus(spec)
    console.print_json(data={**texts.provenance(), "chunks": len(texts)}, default=str)
    console.print(texts.chunks[0].text, markup=False, highlight=False)


@corpus_app.command("build")
def corpus_build(
    spec: Annotated[str, typer.Argument(help="a folder, file or Hub dataset id")],
    out: Annotated[Path, typer.Option("-o", "--out", help="folder to write; a killed build goes on there")],
    size: Annotated[int, typer.Option("--size", min=1, help="most words (or tokens) in a chunk")] = 180,
    unit: Annotated[str, typer.Option("--unit", help="words, minilm, or a tokenizer's Hub id or folder")] = "words",
    overlap: Annotated[int, typer.Option("--overlap", min=0, help="units repeated of the chunk before")] = 0,
    cut: Annotated[Literal["sentences", "sections", "anywhere"], typer.Option("--cut", help="where")] = "sentences",
    smallest: Annotated[int, typer.Option("--smallest", min=0, help="drop chunks of fewer units")] = 0,
) -> None:
    """Read and cut files once, and list what can't be read of them: text, HTML, DOCX, PDF, EPUB, rows; or a folder."""
    from lm_eval_kinject.corpus import Chunking
    from lm_eval_kinject.corpus.build import build_corpus
    from lm_eval_kinject.corpus.corpus import find_source

    name, source = find_source(spec)
    chunking = Chunking(size, overlap, unit=unit, cut=cut, smallest=smallest)
    built = build_corpus(name, source, out, chunking=chunking, progress=lambda n: say(f"{n:,} chunks"))
    for entry in built.left_out:
        say(f"left out ({entry.why.replace('_', ' ')}): {entry.reason}")
    print(f"{out}: {built.chunks:,} chunks, fingerprint {built.fingerprint[:16]}{' (was there)' * built.already}")
    print(", ".join(f"{count:,} {key.replace('_', ' ')}" for key, count in sorted(built.counts.items())))
    print(f"Use it: corpus={shlex.quote(str(out))} in --model_args, or `kinject retrieve QUESTION --corpus {out}`")


@corpus_app.command("wikipedia")
def corpus_wikipedia(
    selection: Annotated[
        str | None, typer.Argument(help="a bundled selection or a YAML file; default: list them")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="default: where corpus=wikipedia:NAME finds it")
    ] = None,
    contact: Annotated[
        str, typer.Option("--contact", envvar="KINJECT_CONTACT", help="your e-mail address, which Wikimedia asks for")
    ] = "",
    dump: Annotated[Path | None, typer.Option("--dump", help="read a …-pages-articles.xml(.bz2), ask nobody")] = None,
    category: Annotated[list[str] | None, typer.Option("--category", help="a tree of categories, repeatable")] = None,
    since: Annotated[str | None, typer.Option("--from", help="first month, YYYY-MM, of categories with one")] = None,
    until: Annotated[str | None, typer.Option("--to", help="last month, YYYY-MM")] = None,
    depth: Annotated[int | None, typer.Option("--depth", help="levels of subcategories; default: 3")] = None,
    revisions: Annotated[
        Path | None, typer.Option("--revisions", help="a corpus made before (or its revisions.json): the same again")
    ] = None,
    site: Annotated[str, typer.Option("--site", help="address of api.php")] = "https://en.wikipedia.org/w/api.php",
) -> None:
    """Make a corpus of Wikipedia's articles: an MMLU subject, a category's months, or a selection of your own."""
    from lm_eval_kinject.corpus.sources.wikipedia import (
        Api,
        bundled_selections,
        chosen_selection,
        corpus_folder,
        make_wikipedia,
        read_revisions,
    )

    if selection is None:
        print("\n".join(bundled_selections()))
        return
    if dump is not None and revisions is not None:
        raise ArgumentError("--dump has the revisions of its day: leave out --revisions, or --dump.")
    given = {"since": since, "until": until, "depth": depth}
    given = {key: value for key, value in given.items() if value is not None}
    if selection == "all" and dump is not None:
        name, chosen = selection, None
    else:
        name, chosen = chosen_selection(selection, tuple(category or ()), given)
    built = make_wikipedia(
        name,
        chosen,
        out or corpus_folder(name),
        dump if dump is not None else Api(contact, address=site),
        revisions=None if revisions is None else read_revisions(revisions),
        say=say,
    )
    print(f"{built.folder}: {built.chunks:,} chunks{' (was there)' * built.already}")
    print(", ".join(f"{count:,} {key.replace('_', ' ')}" for key, count in sorted(built.counts.items())))
    spec = f"wikipedia:{name}" if out is None else shlex.quote(str(out))
    print(f"Use it: corpus={spec} in --model_args" + " (kinject_mmlu's tasks name theirs)" * (out is None))


@corpus_app.command("newswire")
def corpus_newswire(
    out: Annotated[Path, typer.Option("-o", "--out", help="folder to write (must not hold an edition yet)")],
    seed: Annotated[int, typer.Option("--seed", help="fixes every name, event and wording")] = 1,
    events: Annotated[
        int | None, typer.Option("--events", min=200, help="events in all; default: 2,465, or 240 a month")
    ] = None,
    edition: Annotated[
        int | None,
        typer.Option("--edition", help="2: no type gives an answer away, questions of two chunks; default: 1"),
    ] = None,
    months: Annotated[
        int | None, typer.Option("--months", help="dated news of so many months, whose language drifts")
    ] = None,
    first: Annotated[str | None, typer.Option("--from", help="first of the months, YYYY-MM")] = None,
) -> None:
    """Make an edition of the newswire: chunks, paraphrases, validation set, questions and the tasks that ask them."""
    from lm_eval_kinject.corpus.sources.newswire import (
        DEFAULT_EDITION,
        make_edition,
        make_months,
        size_for,
        write_edition,
    )

    problems = []
    if (months is None) != (first is None):
        problems.append("--months and --from belong together: give both, or neither")
    if months is not None and edition not in (None, DEFAULT_EDITION):
        problems.append(f"--edition {edition} has no months: leave it out")
    if problems:
        raise ArgumentError(problems, "the command")
    if months is not None and first is not None:
        made = make_months(seed, first, months, events)
    else:
        made = make_edition(seed, size_for(events), edition=DEFAULT_EDITION if edition is None else edition)
    cloze = ",".join(name for name in write_edition(made, out) if name.endswith("_cloze"))
    print(f"{out}: {len(made.chunks)} chunks, {len(made.paraphrases)} paraphrases, {len(made.test)} questions")
    if made.multihop_test:
        print(f"and {len(made.multihop_test)} questions that take two chunks")
    print("Score a model on it (pretrained=MODEL in model_args; default: the embedded reader):")
    where = f"--include_path {shlex.quote(str(out))}"
    print(f"  lm_eval --model rag-hf --model_args retriever=minilm,k=3 {where} --tasks {cloze}")
    if made.months:
        window = json.dumps({"from": made.months[-1], "to": made.months[-1]})
        print(f"Questions of the last month alone: --metadata {shlex.quote(window)}")


@corpus_app.command("realtimeqa")
def corpus_realtimeqa(
    source: Annotated[
        str, typer.Option("--source", help="a clone of github.com/realtimeqa/realtimeqa_public, or URL@COMMIT")
    ],
    out: Annotated[Path, typer.Option("-o", "--out", help="folder to write")] = Path("realtimeqa"),
    first: Annotated[str | None, typer.Option("--from", help="first year, month or day: 2023-08")] = None,
    last: Annotated[str | None, typer.Option("--to", help="last year, month or day, included")] = None,
    unit: Annotated[str, typer.Option("--unit", help="words, or a tokenizer: minilm, a Hub id, a folder")] = "words",
    size: Annotated[int, typer.Option("--size", help="the most units in a chunk")] = 180,
    overlap: Annotated[int, typer.Option("--overlap", help="units repeated of the chunk before")] = 0,
    cut: Annotated[
        Literal["sentences", "sections", "anywhere"], typer.Option("--cut", help="where cuts may fall")
    ] = "sentences",
    smallest: Annotated[int, typer.Option("--smallest", help="chunks of fewer units are dropped")] = 15,
) -> None:
    """Make corpus and questions of RealTimeQA's weekly news; a build that was stopped goes on."""
    from lm_eval_kinject.corpus import Chunking
    from lm_eval_kinject.corpus.days import Window
    from lm_eval_kinject.corpus.sources.realtimeqa_build import build_live
    from lm_eval_kinject.corpus.sources.realtimeqa_fetch import fetch_weeks, is_address
    from lm_eval_kinject.retrieval import cache_dir

    chunking = Chunking(size, overlap, unit, cut, smallest)
    window = Window.of(first, last)
    fetched = cache_dir() / "realtimeqa" / "upstream"
    clone = fetch_weeks(source, window, fetched) if is_address(source) else Path(source).expanduser()
    built = build_live(clone, out, window, chunking=chunking, say=say)
    for name, count in sorted(built.counts.items()):
        print(f"{name.replace('_', ' '):24} {count:>9,}")
    print(f"{out}{' was there before' if built.already else ''}: rows set aside are in {out / 'set_aside.txt'}. Score:")
    where = shlex.quote(f'{{"folder": "{out.resolve()}"}}')
    print("  lm_eval --model rag-hf --model_args retriever=minilm,k=5 --tasks current_events_live_cloze \\")
    print(f"    --metadata {where}")
