"""In the browser: results with `kinject leaderboard` and `show`, documents with `chat`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lm_eval_kinject.cli.shell import PortOption, app, say, show_page
from lm_eval_kinject.errors import ArgumentError

ShareOption = Annotated[bool, typer.Option("--share", help="a public address through Gradio's servers, too")]


@app.command()
def leaderboard(
    place: Annotated[str, typer.Argument(help="a folder of results, or OWNER/NAME[@REVISION] of a data set of them")],
    port: PortOption = None,
    strict: Annotated[bool, typer.Option("--strict", help="a folder, too: only what others could rerun")] = False,
    export: Annotated[Path | None, typer.Option("--export", help="write the folder of a Space instead")] = None,
    share: ShareOption = False,
) -> None:
    """Show results as a leaderboard in the browser: intervals, significance, provenance, and what is left out."""
    if export is not None:
        from lm_eval_kinject.pages.space import export_space

        if port or share or strict:
            raise ArgumentError(
                "--port, --share and --strict mean nothing with --export; remove them", "kinject leaderboard"
            )
        print("\n".join(export_space(place, export)))
        return
    from lm_eval_kinject.pages.leaderboard import CSS
    from lm_eval_kinject.pages.leaderboard import leaderboard as page_of

    show_page(page_of(place, strict=True if strict else None), CSS, port, share)


@app.command()
def show(
    results: Annotated[list[Path], typer.Argument(help="one or two of lm_eval's results, their samples beside them")],
    corpus: Annotated[str | None, typer.Option("--corpus", help="where their corpus is, if it was local")] = None,
    port: PortOption = None,
    share: ShareOption = False,
) -> None:
    """Show the samples of a result, or of two side by side, in the browser: prompts, chunks, hits, options, flips."""
    if len(results) > 2:
        raise ArgumentError(f"{len(results)} results were named; one or two can be shown", "kinject show")
    from lm_eval_kinject.pages.show import CSS
    from lm_eval_kinject.pages.show import show as page_of

    show_page(page_of(results, corpus=corpus), CSS, port, share)


@app.command()
def chat(
    documents: Annotated[
        list[Path] | None, typer.Argument(help="documents, or folders of them; more can be brought on the page")
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            help="none (default): the passages alone; hf:MODEL; URL or URL#NAME of an endpoint; reader. Repeatable: "
            "the first is chosen, the others can be",
        ),
    ] = None,
    retriever: Annotated[str, typer.Option("--retriever", help="minilm, bm25, hybrid, or an encoder")] = "minilm",
    k: Annotated[int, typer.Option("-k", "--k", help="passages that the model is shown")] = 4,
    order: Annotated[str, typer.Option("--order", help="of the passages: relevance, reverse or sides")] = "relevance",
    upload: Annotated[int, typer.Option("--upload", min=1, max=2000, help="most MB of a file that is brought")] = 50,
    port: PortOption = None,
    share: ShareOption = False,
) -> None:
    """Ask documents in the browser: PDF and others, answers with the passages that they rest on."""
    from lm_eval_kinject.pages.chat import CSS
    from lm_eval_kinject.pages.chat import chat as page_of
    from lm_eval_kinject.pages.shelf import Limits
    from lm_eval_kinject.pages.talk import NO_MODEL, How

    first, *others = model or [NO_MODEL]
    page = page_of(
        documents or [],
        how=How(retriever, k, order, first),
        models=others,
        any_model=not share,
        limits=Limits(megabytes=upload),
        say=say,
    )
    show_page(page, CSS, port, share, upload=upload)
