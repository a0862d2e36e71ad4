"""Results in the browser: `kinject leaderboard` and `show`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lm_eval_kinject.cli.shell import PortOption, app, show_page
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
