"""The leaderboard's page.

What it is for: `leaderboard` reads a board and gives the page that shows it. What it doesn't do: everything that can be
done without a browser (board.py, against.py, tables.py).

The one idea: what somebody looks at is one `View`; each press of a button and each filter makes a new one, and the
table is written anew from it. The board itself is shared; only samples that disagree ever change it.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from lm_eval_kinject.errors import KinjectError
from lm_eval_kinject.hub.eval_results import read_results
from lm_eval_kinject.pages.against import against
from lm_eval_kinject.pages.board import INJECTIONS, Answers, Board, Row, answers_for, read_board
from lm_eval_kinject.pages.look import REPORT, escape
from lm_eval_kinject.pages.serve import gradio
from lm_eval_kinject.pages.tables import PAGE, View, board_table, figures, first_way, left_out, row_details, shown
from lm_eval_kinject.study.report import inline

__all__ = ["CSS", "leaderboard", "pressed"]

CSS = """
.kj.board th.name { min-width: 9rem; max-width: 16rem; font-weight: 500; white-space: normal; position: sticky; left: 0;
  background: var(--paper); z-index: 1; }
.kj.board thead th:first-child { position: sticky; left: 0; z-index: 2; }
.kj.board tr.picked th, .kj.board tr.picked td { background: var(--wash); }
.kj.board th.name small { display: block; font-weight: 400; }
.kj.board small.why { white-space: normal; min-width: 8rem; }
.kj .bar { display: block; position: relative; height: 8px; width: 8rem; background: var(--tint); margin-top: .2rem; }
.kj .bar::before { content: ""; position: absolute; top: 3px; height: 2px; background: var(--mark); left: var(--low);
  right: calc(100% - var(--high)); }
.kj .bar::after { content: ""; position: absolute; top: 0; height: 8px; width: 3px; background: var(--mark);
  left: calc(var(--at) - 1px); }
.kj .provenance { max-width: min(60rem, calc(100vw - 4rem)); position: sticky; left: 0; }
.kj.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(36rem, 100%), 1fr)); gap: 0 1.5rem; }
.kj figure { margin: 0 0 1rem; min-width: 0; }
.kj figure svg { height: auto; max-width: 100%; min-width: 34rem; display: block; }
.kj figure .scroll { background: #fff; } .dark .kj figure .scroll { background: #000; }
.dark .kj figure svg { filter: invert(1) hue-rotate(180deg); }
@media (max-width: 40rem) { .kj.board th.name { min-width: 7rem; max-width: 8.5rem; } .kj .bar { width: 6rem; } }
"""


def leaderboard(place: str, *, strict: bool | None = None, check: bool = True) -> Any:
    """The page of a board.

    Args:
        place, strict: see `read_board`.
        check: hold rows against their samples in the background.

    Returns:
        Gradio's Blocks, to be shown by `serve` (or by a Space, which finds it).

    Raises:
        KinjectError: as `read_board`; or gradio is missing.
    """
    gr = gradio()
    board = read_board(place, strict=strict)
    if check:
        threading.Thread(target=_check_all, args=(board,), daemon=True).start()
    choices, first = _choices(board), _first_view(board)
    with gr.Blocks(title="Leaderboard", analytics_enabled=False, fill_width=True) as page:
        view = gr.State(first)
        gr.HTML(_title(board), apply_default_css=False, js_on_load=None)
        with gr.Row():
            task = gr.Dropdown(choices["task"], value=first.task, label="Task", min_width=120)
            many = [
                gr.Dropdown(choices[name], value=[], multiselect=True, label=label, min_width=120)
                for name, label in _FILTERS.items()
            ]
        with gr.Tabs():
            with gr.Tab("Results"):
                table = gr.HTML(board_table(board, first), apply_default_css=False, js_on_load=REPORT)
            with gr.Tab("Figures") as tab:
                drawn = gr.HTML("", apply_default_css=False, js_on_load=None)
            with gr.Tab("Left out"):
                out = gr.HTML(left_out(board), apply_default_css=False, js_on_load=None)
        quiet: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
        # One after the other: whoever starts with an old view would write an old table over a newer one.
        quiet |= {"concurrency_id": "view", "concurrency_limit": 1}
        filters = [task, *many]
        for one in filters:
            one.change(_filtering(board), [view, *filters], [view, table], **quiet)
            one.change(_drawing(board, only_if_drawn=True), [view, drawn, *filters], drawn, **quiet)

        def press(now: View, event: Any) -> tuple[View, str]:
            new = pressed(board, now, str(event._data.get("do")), str(event._data.get("what")))
            return new, _table(board, new)

        press.__annotations__["event"] = gr.EventData  # Gradio looks for it, and finds a text under `annotations`
        table.click(press, view, [view, table], **quiet)
        tab.select(_drawing(board), [view, drawn, *filters], drawn, **quiet)
        timer = gr.Timer(1.0, active=check)
        seen = gr.State(-1)
        timer.tick(_ticking(board), [view, seen], [table, out, seen, timer], **quiet)
    return page


_FILTERS = {"subjects": "Model", "injections": "Knowledge", "retrievers": "Retriever", "ks": "K", "shots": "Shots"}


def _choices(board: Board) -> dict[str, list[Any]]:
    tasks = Counter(row.task for row in board.rows)
    return {
        "task": [task for task, _ in sorted(tasks.items(), key=lambda pair: (-pair[1], pair[0]))],
        "subjects": sorted({row.subject for row in board.rows}),
        "injections": [name for name in INJECTIONS if any(row.injection == name for row in board.rows)],
        "retrievers": sorted({row.retriever for row in board.rows} - {""}),
        "ks": sorted({row.k for row in board.rows}),
        "shots": sorted({row.shots for row in board.rows}),
    }


def _first_view(board: Board) -> View:
    """Of the task with most rows."""
    tasks = _choices(board)["task"]
    return View(task=tasks[0] if tasks else "")


def _title(board: Board) -> str:
    strict = "complete submissions only" if board.strict else "whatever is in the folder"
    later = f"; {board.superseded:,} replaced by a later result of the same setting" if board.superseded else ""
    return (
        '<div class="kj"><h1>Knowledge injection: results</h1>'
        f'<p class="note">{escape(board.place)}: {len(board.rows):,} rows, {len(board.left_out):,} left out '
        f"({strict}){later}. Press a model’s name for what its result was made from.</p></div>"
    )


# What happens ---------------------------------------------------------------------------------------------------------


def pressed(board: Board, view: View, do: str, what: str) -> View:
    """The view after a button was pressed; of what isn't there nothing comes."""
    if do == "sort":
        down = not view.down if what == view.sort else first_way(what)
        return replace(view, sort=what, down=down)
    if do == "open":
        return replace(view, opened="" if what == view.opened else what)
    if do == "all":
        return _compared(board, replace(view, everything=True))
    if do == "pick":
        sort = "accuracy" if view.sort == "versus" and not what else view.sort
        return _compared(board, replace(view, picked=what, sort=sort, opened=""))
    return view


def _compared(board: Board, view: View) -> View:
    """A view with its rows compared with the picked one; only those that are shown, as each may take a second."""
    picked = board.row(view.picked) if view.picked else None
    if picked is None:
        return replace(view, picked="", versus={})
    rows = shown(board, replace(view, sort="accuracy", down=True))
    read: dict[str, Answers] = {}

    def answers(row: Row) -> Answers:
        if row.id not in read:
            if (gone := board.check(row)) is not None:
                raise KinjectError(f"left out: {gone.reason}")
            read[row.id] = answers_for(board, row)
        return read[row.id]

    return replace(view, versus=against(rows if view.everything else rows[:PAGE], picked, answers))


def _table(board: Board, view: View) -> str:
    row = board.row(view.opened) if view.opened else None
    if row is None:
        return board_table(board, view)
    try:
        details = row_details(board, row, read_results(board.root / row.file)[0])
    except KinjectError as error:
        details = f"<p>{escape(error)}</p>"
    return board_table(board, view, details)


def _filtered(view: View, task: str, *many: Sequence[Any]) -> View:
    subjects, injections, retrievers, ks, shots = (tuple(some or ()) for some in many)  # as in `_FILTERS`
    return replace(
        view,
        task=task or "",
        subjects=subjects,
        injections=injections,
        retrievers=retrievers,
        ks=ks,
        shots=shots,
    )


def _filtering(board: Board) -> Callable[..., tuple[View, str]]:
    def filtering(view: View, task: str, *many: Sequence[Any]) -> tuple[View, str]:
        new = _compared(board, _filtered(view, task, *many))
        return new, _table(board, new)

    return filtering


def _drawing(board: Board, *, only_if_drawn: bool = False) -> Callable[..., str]:
    def drawing(view: View, drawn: str, task: str, *many: Sequence[Any]) -> str:
        if only_if_drawn and not drawn:
            return drawn  # nobody has looked at them yet
        parts = []
        for one in figures(shown(board, _filtered(view, task, *many))):
            label = escape(one.title)
            svg = inline(one) if one.svg else ""
            box = f'<div class="scroll" tabindex="0" role="region" aria-label="{label}">{svg}</div>' if svg else ""
            caption = f'<figcaption class="note">{escape(one.caption)}</figcaption>'
            parts.append(f"<figure><h2>{label}</h2>{box}{caption}</figure>")
        return f'<div class="kj figures">{"".join(parts)}</div>'

    return drawing


def _ticking(board: Board) -> Callable[..., tuple[Any, Any, int, Any]]:
    """Shows what the comparison with samples has found, and stops when it is through."""

    def ticking(view: View, seen: int) -> tuple[Any, Any, int, Any]:
        gr = gradio()
        found, waiting = len(board.left_out), len(board.unchecked())
        timer = gr.Timer(active=waiting > 0)
        if waiting and found == seen:
            return gr.skip(), gr.skip(), found, timer
        return _table(board, view), left_out(board), found, timer

    return ticking


def _check_all(board: Board) -> None:
    for row in board.unchecked():
        board.check(row)
