"""Comparisons: `kinject study`, `rerun` and `route`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lm_eval_kinject.cli.shell import DryRunOption, app, console, group, say

study_app = group("study", "Studies: the whole comparison from one file, and its report.")

StudyArgument = Annotated[str, typer.Argument(help="a study's YAML file, or a bundled one: embedded, frontier, …")]
StudyFolderOption = Annotated[
    Path | None, typer.Option("--out", "-o", help="folder of the study; default: studies/NAME")
]


@study_app.command("run")
def study_run(
    study: StudyArgument,
    out: StudyFolderOption = None,
    dry_run: DryRunOption = False,
    jobs: Annotated[int, typer.Option("--jobs", "-j", min=1, help="processes, a load of weights each")] = 1,
    ray: Annotated[
        str | None,
        typer.Option(
            "--ray", metavar="ADDRESS", help="run --jobs as tasks of Ray: local, auto, or HOST:PORT of a cluster"
        ),
    ] = None,
    only: Annotated[list[str] | None, typer.Option("--only", help="MODEL/VARIANT, repeatable")] = None,
    report: Annotated[bool, typer.Option("--report/--no-report", help="write the report at the end")] = True,
    outcome: Annotated[Path | None, typer.Option("--outcome", hidden=True)] = None,
) -> None:
    """Train, index and score what is missing of a study, then write its report; goes on where it was stopped."""
    import dataclasses

    from lm_eval_kinject.log import duration
    from lm_eval_kinject.provenance import write_json
    from lm_eval_kinject.study.engines import RayTasks, Workers
    from lm_eval_kinject.study.grid import read_study
    from lm_eval_kinject.study.plan import forecast
    from lm_eval_kinject.study.run import run_study

    read = read_study(study)
    folder = _study_folder(study, out)
    if dry_run:
        print("\n".join([*forecast(read, folder), f"folder       {folder}"]))
        return
    engine = RayTasks(jobs, ray) if ray is not None else Workers(jobs) if jobs > 1 else None
    done = run_study(read, folder, only=only or (), engine=engine, say=say)
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
    console.print(overview(read, place), markup=False, highlight=False)


@study_app.command("months")
def study_months(
    other: Annotated[
        Path, typer.Argument(help="lm_eval's results of the model trained up to some month, with samples")
    ],
    control: Annotated[Path, typer.Argument(help="the same of a control of its size that saw these months, too")],
) -> None:
    """Perplexity by month against a control, from two results of kinject_perplexity on the same texts."""
    from lm_eval_kinject.study.months import compare, table

    print("\n".join(table(compare(other, control))))


@app.command()
def rerun(
    results: Annotated[Path, typer.Argument(help="lm_eval's results JSON of rag-hf, its samples beside it")],
    pretrained: Annotated[str | None, typer.Option("--pretrained", help="the model, if it was a local folder")] = None,
    peft: Annotated[str | None, typer.Option("--peft", help="the adapter, if it was a local folder")] = None,
    include_path: Annotated[
        str | None, typer.Option("--include_path", "--include-path", help="folder of its tasks, if they are your own")
    ] = None,
) -> None:
    """Score a result again from what it says of itself, and compare sample by sample (exit code 1: it differs)."""
    from lm_eval_kinject.study.rerun import rerun as run

    found = run(results, pretrained=pretrained, peft=peft, include_path=include_path, say=say)
    print("\n".join(found.lines()))
    raise typer.Exit(int(not found.same))


@app.command()
def route(
    results: Annotated[
        Path, typer.Argument(help="lm_eval's results of route=self-route,route_both=true, with samples")
    ],
    validation: Annotated[
        bool, typer.Option("--validation", help="nothing is reported on these questions, though it is a test split")
    ] = False,
    most_tokens: Annotated[
        float | None, typer.Option("--most-tokens", help="share of the long context's tokens that may be spent")
    ] = None,
) -> None:
    """Fit the threshold of route=self-route on a validation run and print it as an argument (last line)."""
    from lm_eval_kinject.study.threshold import fit, read_questions

    by, questions = read_questions(results, validation=validation)
    best, found = fit(by, questions, most_tokens)
    print(f"{len(questions)} questions, route_by={by}; by lot: as many routed, in expectation")
    print(f"{'threshold':>12} {'answerable':>10} {'tokens':>7} {'accuracy':>8} {'by lot':>7}")
    for one in [*found[:: max(1, len(found) // 20)], best]:
        mark = "  <- best" if one is best else ""
        print(f"{one.threshold:12.5g} {one.answerable:10.1%} {one.tokens:7.1%}", end=" ")
        print(f"{one.accuracy:8.3f} {one.by_lot:7.3f}{mark}")
    print(f"route=self-route,route_by={by},route_threshold={best.threshold}")


def _study_folder(study: str, out: Path | None) -> Path:
    return out if out is not None else Path("studies") / Path(study).stem


def _write_report(folder: Path) -> None:
    from lm_eval_kinject.study.load import load_curves, load_outcomes, reference_of, study_provenance
    from lm_eval_kinject.study.report import write_report

    said = study_provenance(folder)
    files = write_report(
        load_outcomes(folder),
        load_curves(folder),
        folder / "report",
        title=str(said["title"]),
        provenance=said,
        reference=reference_of(folder),
    )
    print(f"report: {files[0]}")
