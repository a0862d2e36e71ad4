"""A study's report: one page, and its tables and figures as files of their own.

What it is for: `write_report` takes what was measured and leaves a folder that can be read, printed, cited and computed
with. What it doesn't do: it scores nothing and reads no result files.

The one idea: the page is whole in itself (styles and figures inside, nothing from a network), and all else is a copy of
what is on it in a form for another tool:

    report.html, report.md
    tables/NAME.csv, tables/NAME.tex
    figures/NAME.svg, figures/NAME.csv
    report.json                  title, provenance and the files, each with its SHA-256; written last
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from lm_eval_kinject.errors import KinjectError
from lm_eval_kinject.provenance import atomic_write, fingerprint_file, read_json, write_json
from lm_eval_kinject.study.figures import Curves, Drawing, all_figures
from lm_eval_kinject.study.lines import Grid
from lm_eval_kinject.study.outcomes import CellOutcome
from lm_eval_kinject.study.sheet import Table, text
from lm_eval_kinject.study.tables import all_tables

__all__ = ["inline", "write_report"]

_MANIFEST = "report.json"


def write_report(
    outcomes: Sequence[CellOutcome],
    curves: Curves | None,
    folder: str | Path,
    *,
    title: str = "Knowledge injection: a study",
    provenance: Mapping[str, object] | None = None,
    reference: str = "",
) -> list[Path]:
    """Writes the report of a grid.

    Files of an earlier report in the same folder that this one doesn't have are removed; no others are touched.

    Args:
        outcomes: the cells, in any order; see `CellOutcome`.
        curves: training loss by variant, as (update, epoch, nats a token); None for none.
        folder: where to; made if need be.
        title: of the page.
        provenance: what the study was made from, shown on the page: plain values, and mappings of them.
        reference: the retriever that the others are compared with at the same K; default: the first by name.

    Returns:
        The files written, `report.html` first, `report.json` last.

    Raises:
        KinjectError: nothing was measured, an answer is out of range, or a package is missing.
    """
    _check(outcomes)
    grid = Grid(outcomes, reference)
    tables, figures = all_tables(grid), all_figures(grid, curves)
    files = {
        "report.html": page(title, tables, figures, provenance or {}),
        "report.md": markdown(title, tables, figures, provenance or {}),
    }
    for table in tables:
        files[f"tables/{table.name}.csv"] = table.csv()
        files[f"tables/{table.name}.tex"] = table.latex()
    for drawing in figures:
        if drawing.svg and drawing.data is not None:
            files[f"figures/{drawing.name}.svg"] = drawing.svg
            files[f"figures/{drawing.name}.csv"] = drawing.data.csv()
    return _write(Path(folder), files, title, provenance or {})


def _check(outcomes: Sequence[CellOutcome]) -> None:
    problems = [] if outcomes else ["there are no cells; run the study first"]
    for number, cell in enumerate(outcomes, 1):
        docs = [a.doc_id for a in cell.answers]
        where = f"cell {number} ({', '.join(f'{k}={v}' for k, v in cell.axes.items() if v is not None)})"
        if len(set(docs)) != len(docs):
            problems.append(f"{where} has a question twice; each doc_id may be there once")
        if any(a.correct is not None and not 0 <= a.correct <= 1 for a in cell.answers):
            problems.append(f"{where} has answers outside 0 to 1, or NaN; what couldn't be scored is None")
        if all(a.correct is None for a in cell.answers):
            problems.append(f"{where} has no answer that could be scored; leave the cell out")
    if problems:
        raise KinjectError("\n".join(["The report can't be written:", *(f"  - {p}" for p in problems)]))


def _write(folder: Path, files: Mapping[str, str], title: str, provenance: Mapping[str, object]) -> list[Path]:
    earlier = _earlier(folder)
    (folder / _MANIFEST).unlink(missing_ok=True)
    for name in sorted(earlier - set(files)):
        (folder / name).unlink(missing_ok=True)
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(folder / name, "w") as out:
            out.write(content)
    fingerprints = {name: fingerprint_file(folder / name) for name in files}
    plain = json.loads(json.dumps(dict(provenance), default=str))
    write_json(folder / _MANIFEST, {"title": title, "provenance": plain, "files": fingerprints})
    return [folder / name for name in (*files, _MANIFEST)]


def _earlier(folder: Path) -> set[str]:
    """The files of an earlier report here, by its manifest; only such names as a report gives."""
    try:
        names = read_json(folder / _MANIFEST)["files"]
    except (OSError, ValueError, KeyError, TypeError):
        return set()
    return {n for n in names if re.fullmatch(r"(tables|figures)/[\w-]+\.(csv|tex|svg)", n)}


# Markdown -------------------------------------------------------------------------------------------------------------


def markdown(title: str, tables: Sequence[Table], figures: Sequence[Drawing], provenance: Mapping[str, object]) -> str:
    """The report as Markdown; figures are linked."""
    parts = [f"# {title}", "", *(f"- {line}" for line in findings(tables)), ""]
    parts += [table.markdown() for table in tables]
    for drawing in figures:
        parts += [f"## {drawing.title}", ""]
        parts += [f"![{drawing.title}](figures/{drawing.name}.svg)", ""] if drawing.svg else []
        parts += [drawing.caption if drawing.svg else f"Left out: {drawing.caption}", ""]
    if provenance:
        parts += ["## Made from", "", *(f"- {key}: {value}" for key, value in _flat(provenance)), ""]
    return "\n".join(parts)


def findings(tables: Sequence[Table]) -> list[str]:
    """The paper's orderings in a sentence each, from the tables that test them.

    One setting is told with its figures; of several it is counted in how many an ordering holds, and the others are
    named.
    """
    claims: dict[str, list[tuple[str, str, str]]] = {}
    for table in tables:
        if table.name not in ("orderings", "paraphrases"):
            continue
        points = table.columns.index("Points" if table.name == "orderings" else "Points a paraphrase")
        for row in table.rows:
            cells = dict(zip(table.columns, row, strict=True))
            claim = str(cells.get("Paper", "Accuracy rises with the number of paraphrases"))
            parts = [cells["Task"], cells["Model"], f"{text(cells['Shots'])}-shot", cells.get("Retriever")]
            where = ", ".join(text(part) for part in parts if part is not None)
            claims.setdefault(claim, []).append((where, text(cells["Here"]), text(row[points])))
    return [_finding(claim, settings) for claim, settings in claims.items()]


def _finding(claim: str, settings: Sequence[tuple[str, str, str]]) -> str:
    if len(settings) == 1:
        where, verdict, points = settings[0]
        return f"{claim}: {verdict}, {points} points ({where})."
    held = sum(verdict.startswith("holds") for _, verdict, _ in settings)
    others = [
        f"{where}: {verdict.partition(': ')[2]}, {points} points"
        for where, verdict, points in settings
        if not verdict.startswith("holds")
    ]
    said = f"{claim}: holds in {held} of {len(settings)} settings."
    if len(others) > 4:
        noise = sum("noise" in other for other in others)
        counts = [f"inside the noise in {noise}"] * (noise > 0)
        counts += [f"the other way round in {len(others) - noise}"] * (noise < len(others))
        return f"{said[:-1]}; {', '.join(counts)}."
    return " ".join([said, *(f"Not in {other}." for other in others)])


# HTML -----------------------------------------------------------------------------------------------------------------

_CSS = """
:root { color-scheme: light; --ink: #1a1a1a; --soft: #5a5a5a; --line: #d9d9d9; --tint: #f6f6f4; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 96rem; padding: 1rem clamp(.75rem, 3vw, 2.5rem) 4rem; color: var(--ink);
  background: #fff; font: 16px/1.5 system-ui, "Segoe UI", "DejaVu Sans", sans-serif; }
h1 { font-size: clamp(1.4rem, 4vw, 2rem); line-height: 1.2; }
h2 { font-size: 1.2rem; margin: 2.5rem 0 .5rem; line-height: 1.3; }
nav ul { columns: 18rem; column-gap: 2.5rem; padding-left: 1.2rem; } nav a { color: #00588c; }
ul.findings li { margin: .2rem 0; }
.scroll { overflow-x: auto; border: 1px solid var(--line); border-radius: 4px; max-width: 100%; }
.scroll:focus-visible { outline: 2px solid #0072b2; }
.tall { max-height: 40rem; overflow-y: auto; }
table { border-collapse: collapse; font-size: .85rem; line-height: 1.3; width: 100%; }
th, td { padding: .35rem .6rem; text-align: left; vertical-align: top; border-bottom: 1px solid var(--line); }
thead th { background: var(--tint); white-space: nowrap; position: sticky; top: 0; }
td.number { white-space: nowrap; font-variant-numeric: tabular-nums; }
td.text { min-width: 4.5rem; overflow-wrap: break-word; }
td small { display: block; color: var(--soft); font-size: .75rem; white-space: normal; min-width: 5.2rem; max-width:
6.4rem; } tbody tr:last-child td { border-bottom: 0; } tbody tr:nth-child(even) { background: #fbfbfa; }
p.note, figcaption, p.left-out { color: var(--soft); font-size: .85rem; max-width: 60rem; }
figure { margin: 0; } figure svg { display: block; height: auto; max-width: 100%; }
@media (max-width: 40rem) { figure svg { max-width: none; } body { font-size: 15px; }
  th, td { padding: .3rem .4rem; } td.text { max-width: 8rem; } }
@media print { .scroll, .tall { overflow: visible; max-height: none; border: 0; } thead th { position: static; } nav {
display: none; } }
"""


def page(title: str, tables: Sequence[Table], figures: Sequence[Drawing], provenance: Mapping[str, object]) -> str:
    """The report as one HTML page that needs nothing else."""
    anchors = [(t.name, t.title) for t in tables] + [(f"figure-{d.name}", d.title) for d in figures if d.svg]
    contents = "".join(f'<li><a href="#{name}">{html.escape(said)}</a></li>' for name, said in anchors)
    said = "".join(f"<li>{html.escape(line)}</li>" for line in findings(tables))
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{html.escape(title)}</title>",
        f"<style>{_CSS}</style></head>",
        f"<body><main><h1>{html.escape(title)}</h1>",
        f'<h2>What came out</h2><ul class="findings">{said}</ul>' if said else "",
        f'<nav aria-label="Contents"><h2>Contents</h2><ul>{contents}</ul></nav>',
        *(_section(table) for table in tables),
        *(_figure(drawing) for drawing in figures),
        _made_from(provenance),
        "</main></body></html>\n",
    ]
    return "\n".join(part for part in parts if part)


def _section(table: Table) -> str:
    notes = "".join(f'<p class="note">{html.escape(note)}</p>' for note in table.notes)
    body = table.html()
    if len(table.rows) > 20:
        body = body.replace('class="scroll"', 'class="scroll tall"', 1)
    return f'<section id="{table.name}"><h2>{html.escape(table.title)}</h2>\n{body}\n{notes}</section>'


def _figure(drawing: Drawing) -> str:
    title = html.escape(drawing.title)
    if not drawing.svg:
        return f'<section><h2>{title}</h2><p class="left-out">Left out: {html.escape(drawing.caption)}</p></section>'
    return (
        f'<section id="figure-{drawing.name}"><h2>{title}</h2><figure>'
        f'<div class="scroll" tabindex="0" role="region" aria-label="{title}">{inline(drawing)}</div>'
        f"<figcaption>{html.escape(drawing.caption)}</figcaption></figure></section>"
    )


def inline(drawing: Drawing) -> str:
    """An SVG fit to stand in a page beside others: a label for who can't see it, and ids that are its own."""
    found = re.sub(r'<g id="[\w.-]+"', "<g", drawing.svg)
    found = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{drawing.name}-", found)
    found = re.sub(r"<metadata>.*?</metadata>", "", found, flags=re.DOTALL)
    label = html.escape(drawing.title, quote=True)
    return found.replace("<svg", f'<svg role="img" aria-label="{label}"', 1)


def _made_from(provenance: Mapping[str, object]) -> str:
    if not provenance:
        return ""
    rows = "".join(
        f"<tr><th scope=row>{html.escape(k)}</th><td>{html.escape(v)}</td></tr>" for k, v in _flat(provenance)
    )
    return f'<section id="made-from"><h2>Made from</h2><div class="scroll"><table>{rows}</table></div></section>'


def _flat(provenance: Mapping[str, object], head: str = "") -> list[tuple[str, str]]:
    """Nested mappings as lines of ``outer.inner``."""
    found: list[tuple[str, str]] = []
    for key, value in provenance.items():
        if isinstance(value, Mapping):
            found += _flat(value, f"{head}{key}.")
        else:
            found.append((f"{head}{key}", str(value)))
    return found
