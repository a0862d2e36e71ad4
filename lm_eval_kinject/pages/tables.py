"""A leaderboard as HTML: the table, a row's provenance, the list of what was left out, and two figures.

What it is for: `board_table`, `row_details`, `left_out` and `figures` take rows and give text. What it doesn't do: it
reads no files and remembers nothing; what is chosen is in a `View`.

The one idea: a page is a function of a board and a view, so it can be tested without a browser.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from lm_eval_kinject.hub.eval_results import Results
from lm_eval_kinject.pages.against import Versus
from lm_eval_kinject.pages.board import INJECTIONS, Board, Row
from lm_eval_kinject.pages.command import command_of
from lm_eval_kinject.pages.look import button, escape, percent
from lm_eval_kinject.stats import Interval, signed, wilson
from lm_eval_kinject.study.figures import Drawing, Series, scatter

__all__ = ["PAGE", "View", "board_table", "figures", "interval_of", "left_out", "row_details", "shown"]

PAGE = 100
"""Rows of a table before somebody asks for all."""


@dataclass(frozen=True, slots=True)
class View:
    """What somebody looks at: filters (empty: all), order, and ids of the picked and of the opened row."""

    task: str = ""
    subjects: tuple[str, ...] = ()
    injections: tuple[str, ...] = ()
    retrievers: tuple[str, ...] = ()
    ks: tuple[int, ...] = ()
    shots: tuple[int, ...] = ()
    sort: str = "accuracy"
    down: bool = True
    picked: str = ""
    opened: str = ""
    everything: bool = False
    versus: Mapping[str, Versus | str] = field(default_factory=dict)


_COLUMNS = {
    "model": "Model",
    "accuracy": "Accuracy",
    "versus": "Against the picked",
    "injection": "Knowledge",
    "retriever": "Retriever",
    "k": "K",
    "shots": "Shots",
    "cost": "Tokens a question",
    "date": "Date",
}
_SMALLEST_FIRST = ("model", "injection", "retriever", "k", "shots", "cost")
"""Columns that are sorted upwards at the first press."""


def interval_of(row: Row) -> Interval:
    """A row's accuracy with Wilson's interval over its questions, taken as independent."""
    return Interval(row.value, *wilson(row.value, row.n))


def shown(board: Board, view: View) -> list[Row]:
    """The rows that a view's filters let through, in its order; ties by name and place, what has no value last."""
    kept = sorted((row for row in board.rows if _passes(row, view)), key=lambda row: (row.name, row.id))
    keys = {row.id: _key(row, view) for row in kept}
    known = [(key, row) for row in kept if (key := keys[row.id]) is not None]
    known.sort(key=lambda pair: pair[0], reverse=view.down)
    return [row for _, row in known] + [row for row in kept if keys[row.id] is None]


def _passes(row: Row, view: View) -> bool:
    wanted = (
        (view.subjects, row.subject),
        (view.injections, row.injection),
        (view.retrievers, row.retriever),
        (view.ks, row.k),
        (view.shots, row.shots),
    )
    return (not view.task or row.task == view.task) and all(not some or one in some for some, one in wanted)


def _key(row: Row, view: View) -> tuple[float, str] | None:
    """What a row is sorted by: a number or a text; None where it has none."""
    texts = {"model": row.subject.lower(), "retriever": row.retriever.lower(), "date": row.date}
    if view.sort in texts:
        return (0.0, texts[view.sort]) if texts[view.sort] else None
    numbers: dict[str, float | None] = {
        "injection": INJECTIONS.index(row.injection),
        "k": row.k,
        "shots": row.shots,
        "cost": row.cost,
        "versus": _gain(row, view),
    }
    number = numbers.get(view.sort, row.value)
    return None if number is None else (number, "")


def _gain(row: Row, view: View) -> float | None:
    found = view.versus.get(row.id)
    return found.gain.estimate if isinstance(found, Versus) else 0.0 if row.id == view.picked else None


# The table ------------------------------------------------------------------------------------------------------------


def board_table(board: Board, view: View, details: str = "") -> str:
    """The table with a line on top that says what is in it.

    Args:
        board: where the rows are.
        view: which of them, and how.
        details: `row_details` of the opened row.
    """
    rows = shown(board, view)
    few = rows if view.everything else rows[:PAGE]
    columns = [name for name in _COLUMNS if name != "versus" or view.picked]
    head = "".join(_heading(name, view) for name in columns)
    body = "".join(_line(row, columns, view, details) for row in few)
    more = button(f"Show all {len(rows):,}", "solid", do="all") if len(few) < len(rows) else ""
    label = escape(f"Results on {view.task}" if view.task else "Results")
    return (
        f'<div class="kj board">{_status(board, view, rows)}'
        f'<div class="scroll" tabindex="0" role="region" aria-label="{label}"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>{more}</div>"
    )


def _heading(name: str, view: View) -> str:
    order = ("descending" if view.down else "ascending") if name == view.sort else "none"
    arrow = {"descending": " ↓", "ascending": " ↑", "none": ""}[order]
    return f'<th scope="col" aria-sort="{order}">{button(_COLUMNS[name] + arrow, do="sort", what=name)}</th>'


def first_way(name: str) -> bool:
    """Whether a column's first press sorts it downwards."""
    return name not in _SMALLEST_FIRST


def _status(board: Board, view: View, rows: Sequence[Row]) -> str:
    said = [f"{len(rows):,} of {len(board.rows):,} rows"]
    if waiting := len(board.unchecked()):
        said.append(f"samples of {waiting:,} not compared yet")
    parts = f'<p class="note" role="status">{", ".join(said)}. Intervals are 95 %.</p>'
    picked = board.row(view.picked) if view.picked else None
    if picked is None:
        return parts
    pairs = [one for one in view.versus.values() if isinstance(one, Versus)]
    unpaired = sum(not one.paired for one in pairs)
    how = "question by question (McNemar’s exact test over chunks)"
    if unpaired:
        how += f", {unpaired} of them by their totals alone (Fisher’s exact test), marked “unpaired”"
    stop = button("Stop comparing", "solid", do="pick", what="")
    return parts + (
        f"<p>Compared with <b>{escape(picked.name)}</b>: {len(pairs)} rows, {how}; p-values after Holm over them. "
        f"{stop}</p>"
    )


def _line(row: Row, columns: Sequence[str], view: View, details: str) -> str:
    opened = row.id == view.opened
    cells = "".join(_cell(name, row, view, opened) for name in columns)
    style = ' class="picked"' if row.id == view.picked else ""
    line = f"<tr{style}>{cells}</tr>"
    return line + (f'<tr class="details"><td colspan="{len(columns)}">{details}</td></tr>' if opened else "")


def _cell(name: str, row: Row, view: View, opened: bool) -> str:
    if name == "model":
        mark = "picked" if row.id == view.picked else ""
        part = f"first {row.n:,} of {row.of:,} questions" if row.n != row.of else ""
        small = "".join(f"<small>{escape(note)}</small>" for note in (mark, part) if note)
        name_button = button(escape(row.subject), expanded=opened, do="open", what=row.id)
        return f'<th scope="row" class="name">{name_button}{small}</th>'
    if name == "accuracy":
        i = interval_of(row)
        bar = f'style="--low:{100 * i.low:.1f}%;--high:{100 * i.high:.1f}%;--at:{100 * i.estimate:.1f}%"'
        bounds = f"{100 * i.low:.1f} to {100 * i.high:.1f}"
        text = f'<b>{percent(row.value)}</b><small>{bounds}, N={row.n:,}</small><span class="bar" {bar}></span>'
        return f'<td class="number">{text}</td>'
    if name == "versus":
        return f'<td class="number">{_versus(row, view)}</td>'
    if name == "cost":
        return f'<td class="number">{"–" if row.cost is None else f"{row.cost:,.0f}"}</td>'
    if name == "date":
        return f'<td class="number">{escape(row.date[:10] or "–")}</td>'
    if name in ("k", "shots"):
        return f'<td class="number">{row.k if name == "k" else row.shots}</td>'
    texts = {"injection": row.injection, "retriever": row.retriever or "–"}
    return f"<td>{escape(texts[name])}</td>"


def _versus(row: Row, view: View) -> str:
    if row.id == view.picked:
        return "–"
    found = view.versus.get(row.id)
    if not isinstance(found, Versus):
        return f'<small class="why">{escape(found or "not among the rows compared")}</small>'
    p = found.p if found.p_holm is None else found.p_holm
    said = "p &lt; .001" if p < 0.0005 else f"p = {p:.3f}".replace("0.", ".", 1)
    style, verdict = "", "noise"
    if not found.noise:
        style, verdict = ("good", "better") if found.gain.estimate > 0 else ("bad", "worse")
    kind = "" if found.paired else ", unpaired"
    bounds = f"{signed(found.gain.low)} to {signed(found.gain.high)}"
    points = f'<span class="{style}">{signed(found.gain.estimate)} points</span>'
    return f"{points}<small>{bounds}</small><small>{said}, {verdict}{kind}</small>"


# Provenance -----------------------------------------------------------------------------------------------------------


def row_details(board: Board, row: Row, results: Results) -> str:
    """What a row was made from, the command that makes it again, and what somebody else would lack."""
    told, config = results.kinject, results.data.get("config") or {}
    tasks, environment = told.get("tasks") or {}, told.get("environment") or {}
    parameters = config.get("model_num_parameters")
    retrieval = {name: value for name, value in (tasks.get(row.task) or {}).items() if name != "corpus"}
    facts = {
        "Task": f"{row.task}, version {row.version}, {row.metric}",
        "Setting": row.variant,
        "Model": _named(told.get("model")),
        "Adapter": _named(told.get("peft") or told.get("delta")),
        "Parameters": f"{parameters:,}" if isinstance(parameters, int) else "",
        "Retrievers": _all_named(told.get("retrievers")),
        "Corpora": _all_named(told.get("corpora")),
        "Prompt": _pairs(told.get("prompt")),
        "Retrieval": _pairs(retrieval),
        "Versions": _pairs(environment.get("packages")),
        "Machine": _pairs({name: environment.get(name) for name in ("python", "cpu", "threads")}),
        "Scored": row.date,
        "Samples": "agree with the result" if row.id in board.checked else "there" if row.sampled else "not there",
        "File": row.file,
    }
    lines = "".join(f"<dt>{name}</dt><dd>{escape(value)}</dd>" for name, value in facts.items() if value)
    lacking = "".join(f"<li>{escape(gap)}</li>" for gap in row.gaps)
    gaps = f"<h2>What somebody else would lack to rerun it</h2><ul>{lacking}</ul>" if lacking else ""
    pick = button("Compare all rows with this one", "solid", do="pick", what=row.id)
    return (
        f'<div class="provenance">{pick}<h2>Reproduce it</h2><pre tabindex="0">{escape(command_of(results))}</pre>'
        f'<p class="note">Or score it again and compare sample by sample: <code>kinject rerun {escape(row.file)}</code>'
        f"</p>"
        f"<h2>Made from</h2><dl>{lines}</dl>{gaps}</div>"
    )


def _named(one: object) -> str:
    """A model, corpus or retriever in words: name, and commit or fingerprint."""
    if not isinstance(one, Mapping):
        return ""
    digest = one.get("commit") or one.get("revision") or one.get("fingerprint")
    source = f", {one['source']}" if isinstance(one.get("source"), str) else ""
    return f"{one.get('name')}{f' @ {str(digest)[:16]}' if digest else ''}{source}"


def _all_named(some: object) -> str:
    return "; ".join(filter(None, map(_named, some))) if isinstance(some, list) else ""


def _pairs(some: object) -> str:
    if not isinstance(some, Mapping):
        return ""
    numbers = {k: f"{v:.4g}" if isinstance(v, float) else str(v) for k, v in some.items() if v is not None}
    return ", ".join(f"{key} {value}" for key, value in numbers.items())


def left_out(board: Board) -> str:
    """The list of what is in no table, each with its reason."""
    if not board.left_out:
        return '<div class="kj"><p class="note">Nothing was left out.</p></div>'
    items = "".join(
        f'<tr><th scope="row" class="name"><code>{escape(one.place)}</code></th><td>{escape(one.reason)}</td></tr>'
        for one in board.left_out
    )
    head = '<thead><tr><th scope="col">File</th><th scope="col">Why it is left out</th></tr></thead>'
    box = '<div class="scroll" tabindex="0" role="region" aria-label="Left out">'
    return f'<div class="kj">{box}<table>{head}<tbody>{items}</tbody></table></div></div>'


# Figures --------------------------------------------------------------------------------------------------------------


def figures(rows: Sequence[Row]) -> list[Drawing]:
    """Accuracy against what it costs, and against K: a line a model and retriever, its points by K.

    K = 0 belongs to the line of every retriever of its model and shots, and is a line of its own where there is none.
    """
    lines: dict[tuple[str, str, int, str], list[Row]] = {}
    for row in rows:
        lines.setdefault((row.subject, row.commit, row.shots, row.retriever), []).append(row)
    for key in [key for key in lines if not key[-1]]:
        if others := [other for other in lines if other[:-1] == key[:-1] and other[-1]]:
            closed = lines.pop(key)
            for other in others:
                lines[other] = [*closed, *lines[other]]
    several = len({row.shots for row in rows}) > 1
    names = {
        key: ", ".join(filter(None, [key[0], key[3] or "no retrieval", f"{key[2]}-shot" if several else ""]))
        for key in lines
    }
    cost = [
        Series(names[key], tuple((row.cost, interval_of(row)) for row in some if row.cost is not None))
        for key, some in lines.items()
    ]
    k = [Series(names[key], tuple((float(row.k), interval_of(row)) for row in some)) for key, some in lines.items()]
    return [
        scatter("board-cost", "Accuracy against cost", cost, "tokens forwarded a question (log scale)", log=True),
        scatter("board-k", "Accuracy against K", k, "chunks in the prompt (K)"),
    ]
