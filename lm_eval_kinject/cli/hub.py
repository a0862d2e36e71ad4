"""The Hub: `kinject push`, `submit` and `adapters`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from lm_eval_kinject.cli.shell import DryRunOption, app, group, say
from lm_eval_kinject.errors import ArgumentError

if TYPE_CHECKING:
    from lm_eval_kinject.hub.publish import Plan, Published

adapters_app = group("adapters", "Published adapters: those that `adapter=NAME` knows.")

PublicOption = Annotated[bool, typer.Option("--public", help="open a new repository to everybody (default: private)")]
ToOption = Annotated[str, typer.Option("--to", help="OWNER/NAME on the Hub; made if it isn't there")]
PullRequestOption = Annotated[bool, typer.Option("--pr", help="a pull request, for somebody else's repository")]
BenchmarkOption = Annotated[
    list[str] | None,
    typer.Option("--benchmark", help="TASK=OWNER/DATASET[#TASK_ID]: a task's benchmark on the Hub, repeatable"),
]


@app.command()
def push(
    folder: Annotated[Path, typer.Argument(help="a finished run, or the folder of a model, a data set or a Space")],
    to: ToOption,
    kind: Annotated[
        Literal["run", "model", "dataset", "space"], typer.Option("--as", help="what the folder is published as")
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
    """Publish a run (adapter or model, with card and scores), a base model, a data set or a leaderboard on the Hub."""
    from lm_eval_kinject.hub.eval_results import parse_benchmarks
    from lm_eval_kinject.hub.push import push_dataset, push_model, push_run, push_space

    of_runs = {
        "--base": base, "--unchecked-base": unchecked_base, "--corpus": corpus, "--results": results,
        "--licence": licence, "--benchmark": benchmark,
    }  # fmt: skip
    _refuse_idle(
        kind, {"run": of_runs, "model": {}, "space": {}, "dataset": {"--framework": framework}}, "kinject push"
    )
    _refuse_public_request(public, pull_request, "kinject push")
    if kind == "model":
        _report(push_model(folder, to, public=public, pull_request=pull_request, dry_run=dry_run, say=say))
        return
    if kind == "space":
        _report(push_space(folder, to, public=public, pull_request=pull_request, dry_run=dry_run, say=say))
        return
    if kind == "dataset":
        more = {"framework": framework} if framework else {}
        _report(push_dataset(folder, to, public=public, pull_request=pull_request, dry_run=dry_run, say=say, **more))
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
            say=say,
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
        _report(submit_results(results, to, pull_request=asked, dry_run=dry_run, say=say, **more))
        return
    benchmarks = parse_benchmarks(benchmark or (), "kinject submit")
    _report(
        submit_scores(results, to, benchmarks=benchmarks, source=source, pull_request=asked, dry_run=dry_run, say=say)
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

    pull(name, say)


@adapters_app.command("verify")
def adapters_verify(name: Annotated[str, typer.Argument(help="an adapter's name")]) -> None:
    """Check an adapter's record against its files, its base, and what its run says."""
    from lm_eval_kinject.hub.adapters import verify

    verify(name, say)
    print(f"{name} is as its record says")


@adapters_app.command("add")
def adapters_add(
    repo: Annotated[str, typer.Argument(help="OWNER/NAME or OWNER/NAME@REVISION of a published run")],
    name: Annotated[str | None, typer.Option("--name", help="of the record; default: the repository's")] = None,
    folder: Annotated[Path | None, typer.Option("--registry", help="folder of records; default: your own")] = None,
) -> None:
    """Register a published run at the commit that it has now."""
    from lm_eval_kinject.hub.adapters import add

    add(repo, name, folder=folder, say=say)


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
