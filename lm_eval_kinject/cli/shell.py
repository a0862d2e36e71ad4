"""What all commands share: the application, how it ends, and `kinject doctor`."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from typer.core import TyperGroup

from lm_eval_kinject import __version__
from lm_eval_kinject.errors import KinjectError

__all__ = ["DryRunOption", "PortOption", "app", "console", "group", "main", "say", "show_page"]


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

console = Console(soft_wrap=True)

DryRunOption = Annotated[bool, typer.Option("--dry-run", help="say what would be done, and do nothing")]
PortOption = Annotated[int | None, typer.Option("--port", min=1, max=65535, help="default: a free one from 7860")]


def group(name: str, help: str) -> typer.Typer:
    """Commands below one word: ``kinject NAME …``."""
    made = typer.Typer(help=help, no_args_is_help=True)
    app.add_typer(made, name=name)
    return made


def say(line: str) -> None:
    """What a room has to say while it works goes to stderr, so that stdout holds results."""
    print(line, file=sys.stderr, flush=True)


def show_page(page: Any, css: str, port: int | None, share: bool = False, upload: int = 0) -> None:
    """Shows one of the pages until Ctrl-C, and says where; ``upload`` as in `serve`."""
    from lm_eval_kinject.pages.serve import serve

    where = serve(page, css=css, port=port, share=share, upload=upload, wait=False)
    print(f"{where}   (Ctrl-C stops it)", flush=True)
    page.block_thread()


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
    console.print(table)
    failed = sum(f.state == "problem" for f in findings)
    print(f"\n{failed} problem{'s' * (failed != 1)}" if failed else "\nAll is well.")
    raise typer.Exit(int(failed > 0))
