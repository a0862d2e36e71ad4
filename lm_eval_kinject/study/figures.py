"""The figures of a study's report, as SVG with the data behind each.

What it is for: the paper's Figures 2 to 4, the sweep over K, what accuracy costs, and which differences are more than
noise. What it doesn't do: it computes no more than it must to draw; numbers come from `lines` and `tables`.

The one idea: a figure is drawn once and must be read on a screen, in print and in grey, so methods differ in marker and
dash as well as in colour (Okabe and Ito's eight, which people with colour blindness tell apart), and whoever wants to
draw it again takes the rows that come with it.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from lm_eval_kinject.errors import KinjectError
from lm_eval_kinject.stats import Interval
from lm_eval_kinject.study.lines import CONTROLS, Comparison, Grid, Setting, adjusted, share
from lm_eval_kinject.study.outcomes import CellOutcome, Kept
from lm_eval_kinject.study.published import load
from lm_eval_kinject.study.sheet import Score, Share, Table, Value
from lm_eval_kinject.study.tables import all_pairs, paraphrase_cells

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

__all__ = ["Curves", "Drawing", "Series", "all_figures", "front", "scatter"]

Curves = Mapping[str, Sequence[tuple[float, float, float]]]
"""Training loss by variant: (update, epoch, loss in nats a token) in order."""

_BLACK, _ORANGE, _SKY, _GREEN, _BLUE, _RED, _PURPLE = (
    "#000000", "#E69F00", "#56B4E9", "#009E73", "#0072B2", "#D55E00", "#CC79A7",
)  # fmt: skip
_LOOKS = {
    "base": (_BLACK, "o", "-"),
    "rag": (_BLUE, "s", "-"),
    "ft-reg": (_ORANGE, "^", "--"),
    "ft-par": (_RED, "v", "-."),
    "ft-reg+rag": (_SKY, "D", "--"),
    "ft-par+rag": (_GREEN, "P", "-."),
    "oracle": (_BLACK, "^", ":"),
    "random": (_PURPLE, "x", ":"),
}
_SPARE = (
    (_BLUE, "s", "-"),
    (_RED, "v", "--"),
    (_GREEN, "D", "-."),
    (_ORANGE, "P", (0, (4, 1, 1, 1, 1, 1))),
    (_SKY, "X", "-"),
)
_STYLE = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "0.9",
    "legend.frameon": False,
    "svg.fonttype": "path",
    "svg.hashsalt": "kinject",
}


@dataclass(frozen=True, slots=True)
class Drawing:
    """A figure, or the reason why there is none.

    Args:
        svg: the picture; empty where there is none.
        caption: what to see in it; where there is none, why.
        data: what was drawn, as a table of the same name.
        width: of the picture, in CSS pixels.
    """

    name: str
    title: str
    svg: str
    caption: str
    data: Table | None = None
    width: int = 0


@dataclass(frozen=True, slots=True)
class Series:
    """Points of one colour, marker and line: where on the horizontal axis, and the accuracy there."""

    name: str
    points: tuple[tuple[float, Interval], ...]


def scatter(
    name: str, title: str, series: Sequence[Series], xlabel: str, *, log: bool = False, most: int = 12
) -> Drawing:
    """One panel of accuracies over something else, points of a series joined from left to right.

    Args:
        name, title: see `Drawing`.
        series: those without points are left out; a legend names at most ``most`` of them.
        xlabel: of the horizontal axis.
        log: whether that is logarithmic, and points at 0 left out; else its ticks are whole numbers.
        most: see ``series``.

    Raises:
        KinjectError: matplotlib is missing.
    """
    matplotlib = _matplotlib()
    from matplotlib.ticker import MaxNLocator

    kept = [
        Series(s.name, tuple(sorted((p for p in s.points if p[0] > 0 or not log), key=lambda p: p[0]))) for s in series
    ]
    kept = [s for s in kept if s.points]
    if not kept:
        return Drawing(name, title, "", "None of these rows says where it would stand.")
    with matplotlib.rc_context(_STYLE):
        picture, (axes,) = _panels(1, width=7.0, height=4.0)
        for number, one in enumerate(kept):
            # Neighbours in the legend must differ, so looks go by place and not by name here.
            colour, marker, dash = _SPARE[number % len(_SPARE)]
            label = one.name if number < most else "_unnamed"
            _curve(axes, [(x, i) for x, i in one.points], (colour, marker, dash), label)
        if log:
            _log_axis(axes)
        else:
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set(xlabel=xlabel, ylabel="accuracy")
        picture.legend(loc="outside lower center", ncols=2, fontsize=7)
    rows: list[tuple[Value, ...]] = [(s.name, Share(x, 1), Share(i.estimate)) for s in kept for x, i in s.points]
    more = f"; the legend names the first {most} of {len(kept)} lines" if len(kept) > most else ""
    with matplotlib.rc_context(_STYLE):
        return _drawing(name, title, picture, f"Bars are 95 % intervals{more}.", ("Line", xlabel, "Accuracy"), rows)


def _matplotlib() -> Any:
    try:
        import matplotlib
    except ImportError as error:
        raise KinjectError(
            "Figures need matplotlib, which isn't installed: pip install 'lm-eval-kinject[study]'"
        ) from error
    return matplotlib


def all_figures(grid: Grid, curves: Curves | None = None) -> list[Drawing]:
    """Every figure in the order of the report; those without data say so.

    Raises:
        KinjectError: matplotlib is missing.
    """
    matplotlib = _matplotlib()
    makers: tuple[Callable[[], Drawing], ...] = (
        lambda: gains(grid),
        lambda: losses(curves or {}),
        lambda: over_paraphrases(grid),
        lambda: over_k(grid),
        lambda: cost(grid),
        lambda: frontier(grid),
        lambda: matrix(grid),
    )
    with matplotlib.rc_context(_STYLE):
        return [make() for make in makers]


# The paper's figures --------------------------------------------------------------------------------------------------


def gains(grid: Grid) -> Drawing:
    """Relative gains over the base, a box a method over all settings (Fig. 2), the paper's beside them."""
    name, title = "gains", "Gain over the base, relative to it (the paper's Fig. 2)"
    ours: dict[str, list[tuple[str, float]]] = {}
    for setting in grid.settings():
        for retriever in grid.retrievers(setting) or [""]:
            lines = grid.lines(setting, retriever)
            base = share(lines["base"].answers).estimate if "base" in lines else 0.0
            for method, line in lines.items():
                if method != "base" and base > 0:
                    where = ", ".join(filter(None, [setting.label(), retriever if "rag" in method else ""]))
                    found = (where, share(line.answers).estimate / base - 1)
                    if found not in ours.setdefault(method, []):
                        ours[method].append(found)
    if not ours:
        return Drawing(name, title, "", "Needs a base and another method on the same task.")
    paper = _paper_gains()
    order = sorted(ours, key=lambda m: (list(_LOOKS).index(m) if m in _LOOKS else len(_LOOKS), m))
    boxes: list[tuple[str, str, list[float]]] = []
    for method in order:
        boxes.append((method, "ours", [gain for _, gain in ours[method]]))
        if method in paper:
            boxes.append((method, "paper", paper[method]))
    picture, (axes,) = _panels(1, width=max(4.5, 0.85 * len(boxes) + 1.5), height=3.6)
    for place, (method, whose, values) in enumerate(boxes):
        colour = _look(method)[0] if whose == "ours" else "0.45"
        percent = [100 * v for v in values]
        axes.boxplot(
            [percent], positions=[place], widths=0.6, whis=(0, 100), manage_ticks=False,
            boxprops={"color": colour, "linestyle": "-" if whose == "ours" else "--"},
            medianprops={"color": colour, "linewidth": 2}, whiskerprops={"color": colour}, capprops={"color": colour},
        )  # fmt: skip
        spread = np.linspace(-0.18, 0.18, len(values)) if len(values) > 1 else np.zeros(1)
        axes.plot(place + spread, percent, _look(method)[1], color=colour, markersize=3.5, alpha=0.7, linestyle="none")
    axes.axhline(0, color="0.3", linewidth=0.8)
    axes.set_xticks(range(len(boxes)), [f"{m}\n{w}, n={len(v)}" for m, w, v in boxes], fontsize=8)
    axes.set_ylabel("relative gain (%)")
    axes.grid(axis="x", visible=False)
    rows: list[tuple[Value, ...]] = [(m, "ours", at, Share(gain, 6)) for m in order for at, gain in ours[m]]
    rows += [(m, "paper", None, Share(gain, 6)) for m in order for gain in paper.get(m, [])]
    caption = (
        "Accuracy over the base's, less 1. Whiskers reach the least and the greatest; a point is a setting (task, "
        "model, shots). Beside them, dashed and grey, the paper's Table 1."
    )
    return _drawing(name, title, picture, caption, ("Method", "Whose", "Setting", "Gain"), rows)


def losses(curves: Curves) -> Drawing:
    """Training loss over updates with the ends of epochs marked (Fig. 3)."""
    name, title = "loss", "Training loss (the paper's Fig. 3)"
    curves = {variant: points for variant, points in curves.items() if points}
    if not curves:
        return Drawing(name, title, "", "Needs the logs of training runs.")
    picture, panels = _panels(len(curves), width=4.2, height=2.7)
    for axes, (variant, points) in zip(panels, sorted(curves.items()), strict=True):
        for number, update in enumerate(_epoch_ends(points)):
            axes.axvline(
                update, color="0.55", linewidth=0.8, linestyle="--", label=None if number else "end of an epoch"
            )
        colour = _look(variant)[0]
        axes.plot([p[0] for p in points], [p[2] for p in points], color=colour, linewidth=1.2, label="training loss")
        axes.set(title=variant, xlabel="update", ylabel="loss (nats a token)")
        axes.legend(fontsize=8)
    rows: list[tuple[Value, ...]] = [
        (variant, Share(step), Share(epoch), Share(loss))
        for variant, found in sorted(curves.items())
        for step, epoch, loss in found
    ]
    caption = "A step down at an epoch's end says that the second reading finds what the first has learnt by heart."
    return _drawing(name, title, picture, caption, ("Variant", "Update", "Epoch", "Loss"), rows)


def over_paraphrases(grid: Grid) -> Drawing:
    """Closed-book accuracy against the number of paraphrases trained on, with intervals (Fig. 4)."""
    name, title = "paraphrases", "Accuracy against the number of paraphrases (the paper's Fig. 4)"
    found = [(s, family, by) for s in grid.settings() for family, by in paraphrase_cells(grid, s).items()]
    if not found:
        return Drawing(name, title, "", "Needs variants that were trained on different numbers of paraphrases.")
    settings = list(dict.fromkeys(s for s, _, _ in found))
    picture, panels = _panels(len(settings), same_y=True)
    rows: list[tuple[Value, ...]] = []
    for axes, setting in zip(panels, settings, strict=True):
        for number, (family, by) in enumerate((f, by) for s, f, by in found if s == setting):
            points = [(n, share(cell.answers)) for n, cell in by.items()]
            _curve(axes, points, _SPARE[number % len(_SPARE)], family)
            rows += [(*_columns(setting), family, n, Score(i, len(by[n].answers))) for n, i in points]
        closed = grid.closed(setting, "base")
        if closed is not None:
            axes.axhline(share(closed.answers).estimate, color=_BLACK, linewidth=1, linestyle=":", label="base")
        axes.set(xlabel="paraphrases of each chunk", ylabel="accuracy")
        _heading(axes, setting)
    _legend(picture, panels)
    caption = "Closed book; bars are 95 % intervals, clustered by chunk; 0 is training on the chunks as they are."
    return _drawing(
        name, title, picture, caption, ("Task", "Model", "Shots", "Trained", "Paraphrases", "Accuracy"), rows
    )


# K, cost, significance ------------------------------------------------------------------------------------------------


def over_k(grid: Grid) -> Drawing:
    """Accuracy against K, a line a retriever, with the controls oracle and random; a panel a variant and setting."""
    name, title = "k", "Accuracy against the number of chunks (K)"
    panels_of: list[tuple[Setting, str, dict[str, dict[int, CellOutcome]]]] = []
    for setting in grid.settings():
        for variant in grid.variants(setting):
            sweeps = {r: dict(grid.sweep(setting, variant, r).cells) for r in grid.retrievers(setting, controls=True)}
            sweeps = {r: cells for r, cells in sweeps.items() if any(cells)}
            if any(r.partition(" ")[0] not in CONTROLS and len(cells) > 2 for r, cells in sweeps.items()):
                panels_of.append((setting, variant, sweeps))
    if not panels_of:
        return Drawing(name, title, "", "Needs cells with at least two K beside 0.")
    picture, panels = _panels(len(panels_of), same_y=True)
    looks = _retriever_looks(sweeps for _, _, sweeps in panels_of)
    rows: list[tuple[Value, ...]] = []
    for axes, (setting, variant, sweeps) in zip(panels, panels_of, strict=True):
        for retriever, cells in sweeps.items():
            points = [(k, share(cell.answers)) for k, cell in cells.items()]
            rows += [(*_columns(setting), variant, retriever, k, Score(i, len(cells[k].answers))) for k, i in points]
            above = [i for k, i in points if k > 0]
            if retriever.partition(" ")[0] in CONTROLS and len(above) == 1:
                _level(axes, above[0], looks[retriever], retriever)
            else:
                _curve(axes, points, looks[retriever], retriever)
        axes.set(xlabel="K", ylabel="accuracy")
        axes.set_xticks(sorted({k for cells in sweeps.values() for k in cells}))
        _heading(axes, setting, variant)
    _legend(picture, panels)
    caption = "Bars are 95 % intervals, clustered by chunk. A control scored at one K is a level."
    head = ("Task", "Model", "Shots", "Variant", "Retriever", "K", "Accuracy")
    return _drawing(name, title, picture, caption, head, rows)


def _retriever_looks(sweeps: Iterable[Iterable[str]]) -> dict[str, tuple[str, str, object]]:
    """Each retriever's look, the same in all panels."""
    names = sorted({name for retrievers in sweeps for name in retrievers})
    spare = iter(_SPARE * (len(names) + 1))
    return {name: _LOOKS.get(name.partition(" ")[0]) or next(spare) for name in names}


def cost(grid: Grid) -> Drawing:
    """Accuracy against tokens forwarded a question, a point a cell; a panel a setting."""
    name, title = "cost", "Accuracy against cost"
    cells = {setting: _costed(grid, setting) for setting in grid.settings()}
    settings = [setting for setting, found in cells.items() if found]
    if not settings:
        return Drawing(name, title, "", "Needs the number of tokens forwarded.")
    picture, panels = _panels(len(settings), same_y=True)
    dashes = {r: look[2] for r, look in _retriever_looks(grid.retrievers(s) for s in settings).items()}
    rows: list[tuple[Value, ...]] = []
    for axes, setting in zip(panels, settings, strict=True):
        methods: dict[tuple[str, str], list[tuple[float, Interval, CellOutcome]]] = {}
        for cell in cells[setting]:
            methods.setdefault(_method(grid, cell), []).append((_tokens(cell), share(cell.answers), cell))
        for (method, retriever), points in sorted(methods.items()):
            points.sort(key=lambda point: point[0])
            colour, marker, _ = _look(method)
            label = f"{method} ({retriever})" if retriever else method
            _cost_line(axes, points, (colour, marker, dashes.get(retriever, "")), label)
            rows += [
                (*_columns(setting), label, cell.whole("k"), Share(tokens, 1), Score(i, len(cell.answers)))
                for tokens, i, cell in points
            ]
        _log_axis(axes)
        axes.set(xlabel="tokens forwarded a question (log scale)", ylabel="accuracy")
        _heading(axes, setting)
    _legend(picture, panels)
    caption = (
        "A point is a cell, so a method with retrieval has one for each K; bars are 95 % intervals, clustered by chunk."
    )
    return _drawing(
        name, title, picture, caption, ("Task", "Model", "Shots", "Method", "K", "Tokens", "Accuracy"), rows
    )


def frontier(grid: Grid) -> Drawing:
    """Closed-book accuracy against what is left of the old world, a point a training; a panel a setting."""
    name, title = "frontier", "What was learned against what was forgotten"
    found = {setting: _trained(grid, setting) for setting in grid.settings()}
    settings = [setting for setting, cells in found.items() if cells]
    if not settings:
        return Drawing(name, title, "", "Needs trainings that measured the recall of the old world.")
    picture, panels = _panels(len(settings), width=5.5, height=4.0, same_y=True)
    rows: list[tuple[Value, ...]] = []
    for axes, setting in zip(panels, settings, strict=True):
        points = [(kept.after, share(cell.answers), kept, cell) for kept, cell in found[setting]]
        best = front([(x, interval.estimate) for x, interval, _, _ in points])
        _front_line(axes, [(x, i.estimate) for n, (x, i, _, _) in enumerate(points) if n in best])
        for place, held in enumerate(
            sorted({kept.held for _, _, kept, _ in points}, key=lambda h: (h != "nothing", h))
        ):
            mine = sorted((p for p in points if p[2].held == held), key=lambda p: p[0])
            _curve(axes, [(x, i) for x, i, _, _ in mine], _SPARE[place % len(_SPARE)], f"held by {held}")
        for number, (x, interval, kept, cell) in enumerate(points):
            axes.annotate(
                grid.variant(cell), (x, interval.estimate), xytext=(4, 3), textcoords="offset points", fontsize=6
            )
            on = "yes" if number in best else "no"
            rows.append(
                (*_columns(setting), grid.variant(cell), kept.held, Share(x), Score(interval, len(cell.answers)), on)
            )
        _start(axes, grid, setting, points[0][2].before, rows)
        axes.set(xlabel="recall of the old world after the training", ylabel="accuracy, closed book")
        _heading(axes, setting)
    _legend(picture, panels)
    caption = (
        "Up and to the right is better; the dotted line joins trainings that none other beats in both. Bars are 95 % "
        "intervals, clustered by chunk. Where the older news itself was replayed, or a penalty measured on it, the "
        "recall asks about the very texts that were kept in view."
    )
    head = ("Task", "Model", "Shots", "Variant", "Held by", "Recall", "Accuracy", "On the frontier")
    return _drawing(name, title, picture, caption, head, rows)


def front(points: Sequence[tuple[float, float]]) -> set[int]:
    """Which points (both coordinates the more the better) no other beats: as good in both, and better in one."""
    return {
        n
        for n, (x, y) in enumerate(points)
        if not any(other[0] >= x and other[1] >= y and other != (x, y) for other in points)
    }


def _trained(grid: Grid, setting: Setting) -> list[tuple[Kept, CellOutcome]]:
    """Closed-book cells of trainings whose recall was measured before and after."""
    cells = [cell for cell in grid.within(setting) if cell.whole("k") == 0]
    return [(cell.kept, cell) for cell in cells if cell.kept is not None]


def _front_line(axes: Axes, points: Sequence[tuple[float, float]]) -> None:
    ordered = sorted(points)
    axes.plot([x for x, _ in ordered], [y for _, y in ordered], color="0.5", linestyle=":", label="not beaten in both")


def _start(axes: Axes, grid: Grid, setting: Setting, recall: float, rows: list[tuple[Value, ...]]) -> None:
    """The base, where it was scored: all of the old world that there was."""
    base = next((c for c in grid.within(setting) if grid.variant(c) == "base" and c.whole("k") == 0), None)
    if base is not None:
        interval = share(base.answers)
        _curve(axes, [(recall, interval)], _look("base"), "base")
        rows.append((*_columns(setting), "base", None, Share(recall), Score(interval, len(base.answers)), None))


def _costed(grid: Grid, setting: Setting) -> list[CellOutcome]:
    """Cells with known cost, without controls and without variants of fewer paraphrases, which cost the same."""
    return [
        cell
        for cell in grid.within(setting)
        if _tokens(cell)
        and "×" not in grid.variant(cell)
        and (cell.whole("k") == 0 or cell.text("retriever") not in CONTROLS)
    ]


def _cost_line(
    axes: Axes,
    points: Sequence[tuple[float, Interval, CellOutcome]],
    look: tuple[str, str, object],
    label: str,
) -> None:
    colour, marker, dash = look
    axes.errorbar(
        [tokens for tokens, _, _ in points],
        [i.estimate for _, i, _ in points],
        yerr=_bars([i for _, i, _ in points]),
        color=colour, marker=marker, linestyle=dash, markersize=4.5, linewidth=0.8, elinewidth=0.8, label=label,
    )  # fmt: skip


def _log_axis(axes: Axes) -> None:
    """Whole numbers at 1, 2 and 5 of each power of ten."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))


def matrix(grid: Grid) -> Drawing:
    """Differences of all pairs of methods; those inside the noise in grey and in brackets."""
    name, title = "significance", "Which differences are more than noise"
    made = adjusted(all_pairs(grid))
    where: dict[tuple[Setting, str], list[Comparison]] = {}
    for c in made:
        names = {line.retriever for line in (c.first, c.second)} - {"none"}
        for retriever in names or {r for s, r in _pair_keys(made) if s == c.first.setting} or {""}:
            where.setdefault((c.first.setting, retriever), []).append(c)
    if not where:
        return Drawing(name, title, "", "Needs two methods on the same task.")
    most = max(len({line.name for c in cs for line in (c.first, c.second)}) for cs in where.values())
    picture, panels = _panels(len(where), width=max(3.0, 0.5 * most + 1.1), height=max(2.6, 0.5 * most + 1.0))
    for axes, ((setting, retriever), found) in zip(
        panels, sorted(where.items(), key=lambda item: item[0]), strict=True
    ):
        _matrix_panel(axes, found)
        _heading(axes, setting, retriever)
    rows: list[tuple[Value, ...]] = [
        (
            *_columns(c.first.setting),
            c.first.name,
            c.second.name,
            Share(c.gain.estimate),
            Share(c.p_holm or 0.0, 6),
            str(c.noise),
        )
        for c in made
    ]
    caption = (
        "Points by which the method of the row is above that of the column; coloured if that is more than noise (p "
        "after Holm below .05 and a clustered interval without 0), in brackets if not."
    )
    head = ("Task", "Model", "Shots", "First", "Second", "Second less first", "p (Holm)", "Noise")
    return _drawing(name, title, picture, caption, head, rows)


def _matrix_panel(axes: Axes, found: Sequence[Comparison]) -> None:
    names = list(dict.fromkeys(line.name for c in found for line in (c.first, c.second)))
    names.sort(key=lambda n: (list(_LOOKS).index(n) if n in _LOOKS else len(_LOOKS), n))
    place = {name: number for number, name in enumerate(names)}
    largest = max(0.01, *(abs(c.gain.estimate) for c in found))
    for c in found:
        for above, below, gain in ((c.second, c.first, c.gain.estimate), (c.first, c.second, -c.gain.estimate)):
            x, y = place[below.name], place[above.name]
            strength = 0.12 + 0.4 * abs(gain) / largest
            colour = "0.93" if c.noise else (_BLUE if gain > 0 else _ORANGE, strength)
            axes.add_patch(_square(x, y, colour))
            shown = f"{100 * gain:+.0f}".replace("-", "−") if abs(gain) >= 0.005 else "0"
            axes.text(x, y, f"({shown})" if c.noise else shown, ha="center", va="center", fontsize=8,
                      color="0.35" if c.noise else "black", weight="normal" if c.noise else "bold")  # fmt: skip
    axes.set(xlim=(-0.5, len(names) - 0.5), ylim=(len(names) - 0.5, -0.5), aspect="equal")
    axes.set_xticks(range(len(names)), names, rotation=40, ha="right", fontsize=8)
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.grid(visible=False)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def _square(x: int, y: int, colour: str | tuple[str, float]) -> Rectangle:
    from matplotlib.patches import Rectangle

    return Rectangle((x - 0.48, y - 0.48), 0.96, 0.96, facecolor=colour, edgecolor="none")


def _pair_keys(made: Sequence[Comparison]) -> set[tuple[Setting, str]]:
    return {(c.first.setting, line.retriever) for c in made for line in (c.first, c.second) if line.retriever != "none"}


# Parts ----------------------------------------------------------------------------------------------------------------


def _panels(count: int, *, width: float = 4.0, height: float = 3.0, same_y: bool = False) -> tuple[Figure, list[Axes]]:
    """A figure of so many panels, at most three in a row; sizes in inches."""
    from matplotlib.figure import Figure

    across = min(3 if count != 4 else 2, count)
    down = math.ceil(count / across)
    picture = Figure(figsize=(width * across, height * down + 0.4), layout="constrained")
    grid = picture.subplots(down, across, squeeze=False, sharey=same_y)
    axes = list(grid.flat)
    for unused in axes[count:]:
        unused.remove()
    for shown in axes[:count]:
        shown.tick_params(labelleft=True)
    return picture, axes[:count]


def _legend(picture: Figure, panels: Sequence[Axes]) -> None:
    """One legend under all panels, where it covers no data."""
    found: dict[str, Artist] = {}
    for axes in panels:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    across = max(2, round(picture.get_figwidth() / 1.6))
    picture.legend(list(found.values()), list(found), loc="outside lower center", ncols=across, fontsize=8)


def _heading(axes: Axes, setting: Setting, *more: str) -> None:
    """Two short lines, so that headings of neighbours don't meet."""
    first = ", ".join(filter(None, [setting.model.rsplit("/", 1)[-1], setting.more(), *more]))
    axes.set_title(f"{first}\n{setting.task}, {setting.shots}-shot", fontsize=8.5)


def _curve(axes: Axes, points: Sequence[tuple[float, Interval]], look: tuple[str, str, object], label: str) -> None:
    colour, marker, dash = look
    axes.errorbar(
        [x for x, _ in points], [i.estimate for _, i in points], yerr=_bars([i for _, i in points]), color=colour,
        marker=marker, linestyle=dash, markersize=4.5, linewidth=1.3, elinewidth=0.9, capsize=2, label=label,
    )  # fmt: skip


def _level(axes: Axes, interval: Interval, look: tuple[str, str, object], label: str) -> None:
    axes.axhline(interval.estimate, color=look[0], linestyle=look[2], linewidth=1.2, label=label)
    axes.axhspan(interval.low, interval.high, color=look[0], alpha=0.08, linewidth=0)


def _bars(intervals: Sequence[Interval]) -> list[list[float]]:
    """Lengths of error bars below and above; never below 0, which rounding could make of a bound at its estimate."""
    return [
        [max(0.0, i.estimate - i.low) for i in intervals],
        [max(0.0, i.high - i.estimate) for i in intervals],
    ]


def _look(method: str) -> tuple[str, str, object]:
    """Colour, marker and dash; a method that isn't known gets one by its name, the same in every figure."""
    return _LOOKS.get(method) or _SPARE[sum(map(ord, method)) % len(_SPARE)]


def _method(grid: Grid, cell: CellOutcome) -> tuple[str, str]:
    """Method and retriever of a cell; no retriever with K = 0."""
    variant = grid.variant(cell)
    if cell.whole("k") == 0:
        return variant, ""
    return "rag" if variant == "base" else f"{variant}+rag", grid.retriever(cell)


def _tokens(cell: CellOutcome) -> float:
    return cell.tokens_forwarded / len(cell.answers) if cell.answers else 0.0


def _columns(setting: Setting) -> tuple[str, str, int]:
    more = setting.more()
    return setting.task, f"{setting.model} ({more})" if more else setting.model, setting.shots


def _paper_gains() -> dict[str, list[float]]:
    at = {(f.task, f.model, f.shots, f.method): f.value for f in load() if f.table == "1"}
    found: dict[str, list[float]] = {}
    for (task, model, shots, method), value in at.items():
        if method != "base":
            found.setdefault(method.replace("ft", "ft-reg"), []).append(value / at[task, model, shots, "base"] - 1)
    return found


def _epoch_ends(points: Sequence[tuple[float, float, float]]) -> list[float]:
    """Where in updates each whole epoch ends, between two updates where need be."""
    found: list[float] = []
    before = (0.0, 0.0)
    for step, epoch, _ in points:
        for whole in range(math.floor(before[1] + 1e-9) + 1, math.floor(epoch + 1e-9) + 1):
            found.append(before[0] + (whole - before[1]) / (epoch - before[1]) * (step - before[0]))
        before = (step, epoch)
    return found if len(found) <= 60 else []


def _drawing(
    name: str, title: str, picture: Figure, caption: str, columns: tuple[str, ...], rows: Sequence[tuple[Value, ...]]
) -> Drawing:
    out = io.StringIO()
    picture.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    found = out.getvalue()
    return Drawing(
        name,
        title,
        found[found.index("<svg") :],
        caption,
        Table(f"figure-{name}", title, columns, tuple(rows)),
        round(96 * picture.get_figwidth()),
    )
