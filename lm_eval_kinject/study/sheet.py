"""One table, four forms: HTML, Markdown, CSV and LaTeX.

What it is for: `tables` says what is in a table, this file how it looks. What it doesn't do: it computes nothing.

The one idea: a cell of a table is a value that knows both its text for people (``.481 (.449 to .514), N=910``) and its
figures for programs (estimate, bounds, N in columns of their own), so that the CSV is never cut out of printed text.
"""

from __future__ import annotations

import csv
import html
import io
from collections.abc import Sequence
from dataclasses import dataclass

from lm_eval_kinject.stats import Interval, signed

__all__ = ["Gain", "P", "Score", "Share", "Table", "Value", "figure"]

Fields = dict[str, str]


@dataclass(frozen=True, slots=True)
class Score:
    """An accuracy with its interval, the number of questions, what to know of it (``K=3``), and the paper's figure."""

    interval: Interval
    asked: int
    note: str = ""
    published: float | None = None

    def lines(self) -> list[str]:
        """The parts in the order of their weight."""
        about = [f"{figure(self.interval.low)} to {figure(self.interval.high)}", f"N={self.asked}"]
        paper = [] if self.published is None else [f"paper {figure(self.published)}"]
        return [figure(self.interval.estimate), ", ".join(about), *([self.note] if self.note else []), *paper]

    def text(self) -> str:
        """On one line."""
        first, about, *more = self.lines()
        bounds, _, asked = about.partition(", ")
        return f"{first} ({bounds}), {asked}" + "".join(f"; {part}" for part in more)

    def fields(self) -> Fields:
        """Figures by the ending of their column's name."""
        return {
            "": exact(self.interval.estimate),
            " low": exact(self.interval.low),
            " high": exact(self.interval.high),
            " n": str(self.asked),
            " note": self.note,
            " paper": "" if self.published is None else exact(self.published),
        }


@dataclass(frozen=True, slots=True)
class Gain:
    """A difference of two accuracies, in points, with its interval."""

    interval: Interval

    def lines(self) -> list[str]:
        """The parts in the order of their weight."""
        i = self.interval
        return [signed(i.estimate), f"{signed(i.low)} to {signed(i.high)}"]

    def text(self) -> str:
        """On one line."""
        first, bounds = self.lines()
        return f"{first} ({bounds})"

    def fields(self) -> Fields:
        """Figures by the ending of their column's name, as shares."""
        i = self.interval
        return {"": exact(i.estimate), " low": exact(i.low), " high": exact(i.high)}


@dataclass(frozen=True, slots=True)
class P:
    """A p-value."""

    value: float

    def lines(self) -> list[str]:
        """One part."""
        return [self.text()]

    def text(self) -> str:
        """Three decimals."""
        return "<.001" if self.value < 0.0005 else figure(self.value)

    def fields(self) -> Fields:
        """One figure, as exact as it is known."""
        return {"": f"{self.value:.6g}"}


@dataclass(frozen=True, slots=True)
class Share:
    """A share, a mean or another plain figure, printed with so many decimals."""

    value: float
    decimals: int = 3

    def lines(self) -> list[str]:
        """One part."""
        return [self.text()]

    def text(self) -> str:
        """As ``.481``, or ``1,234`` without decimals."""
        return figure(self.value, self.decimals)

    def fields(self) -> Fields:
        """One figure."""
        return {"": exact(self.value)}


Value = Score | Gain | P | Share | str | int | None


@dataclass(frozen=True, slots=True)
class Table:
    """A table with a file name, a heading, columns, rows as long as the columns, and notes under it."""

    name: str
    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Value, ...], ...]
    notes: tuple[str, ...] = ()

    def html(self) -> str:
        """An HTML table in a box that scrolls sideways; the caller prints title and notes.

        Columns of text that say the same in every row go into a line above the box.
        """
        same = self._same()
        kept = [place for place in range(len(self.columns)) if place not in same]
        head = "".join(f'<th scope="col">{html.escape(self.columns[place])}</th>' for place in kept)
        body = "\n".join(f"<tr>{''.join(_html_cell(row[place]) for place in kept)}</tr>" for row in self.rows)
        common = ", ".join(f"{self.columns[place]} {text(self.rows[0][place])}" for place in same)
        return (
            (f'<p class="note">In all rows: {html.escape(common)}.</p>\n' if common else "")
            + f'<div class="scroll" tabindex="0" role="region" aria-label="{html.escape(self.title, quote=True)}">'
            f"<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table></div>"
        )

    def _same(self) -> list[int]:
        """Places of the columns that only say where a row is (task, model, shots, …), and say the same in all."""
        where = ("Task", "Model", "Shots", "Variant", "Retriever", "Trained")
        return [
            place
            for place, column in enumerate(self.columns)
            if column in where
            and len({text(row[place]) for row in self.rows} - {text(None)}) == 1
            and None not in [row[place] for row in self.rows]
        ]

    def markdown(self) -> str:
        """A Markdown table with its heading and notes."""

        def line(cells: Sequence[str]) -> str:
            return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"

        rows = [line([text(v) for v in row]) for row in self.rows]
        table = [line(self.columns), "|" + "---|" * len(self.columns), *rows]
        notes = [f"\n{note}" for note in self.notes]
        return "\n".join([f"## {self.title}", "", *table, *notes, ""])

    def csv(self) -> str:
        """Comma-separated values, with a column for each figure of a cell; None is empty."""
        endings = [_endings([row[place] for row in self.rows]) for place in range(len(self.columns))]
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow([c + end for c, ends in zip(self.columns, endings, strict=True) for end in ends])
        for row in self.rows:
            found = [_fields(v) for v in row]
            writer.writerow([f.get(end, "") for f, ends in zip(found, endings, strict=True) for end in ends])
        return out.getvalue()

    def latex(self) -> str:
        """A LaTeX table for the package booktabs, wide ones shrunk to the page (graphicx)."""
        rows = [" & ".join(_latex_cell(v) for v in row) + r" \\" for row in self.rows]
        head = " & ".join(latex(c) for c in self.columns) + r" \\"
        notes = [rf"\par\smallskip\footnotesize {latex(note)}" for note in self.notes]
        return "\n".join(
            [
                r"\begin{table}",
                r"\centering",
                rf"\caption{{{latex(self.title)}}}",
                rf"\label{{tab:{self.name}}}",
                r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%",
                rf"\begin{{tabular}}{{{'l' * len(self.columns)}}}",
                r"\toprule",
                head,
                r"\midrule",
                *rows,
                r"\bottomrule",
                r"\end{tabular}}",
                *notes,
                r"\end{table}",
                "",
            ]
        )


def figure(value: float, decimals: int = 3) -> str:
    """A number as the paper prints shares: ``.481``, ``-.012``, ``1.000``; thousands get commas."""
    shown = f"{value:,.{decimals}f}"
    if shown.startswith("0."):
        return shown[1:]
    return "-" + shown[2:] if shown.startswith("-0.") else shown


def exact(value: float) -> str:
    """A number for a CSV, to ten digits."""
    return f"{value:.10g}"


def text(value: Value) -> str:
    """A value on one line; a dash for None."""
    if value is None:
        return "–"
    if isinstance(value, str):
        return value
    return f"{value:,}" if isinstance(value, int) else value.text()


def latex(words: str) -> str:
    """Text with LaTeX's special characters made harmless."""
    special = {
        "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
        "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"$<$", ">": r"$>$", "|": r"$|$", "–": "--",
        "×": r"$\times$", "→": r"$\rightarrow$",
        "−": "$-$", "±": r"$\pm$", "≥": r"$\geq$", "…": r"\ldots{}", "·": r"$\cdot$",
    }  # fmt: skip
    return "".join(special.get(c, c) for c in words)


def _parts(value: Value) -> list[str]:
    return [text(value)] if value is None or isinstance(value, str | int) else value.lines()


def _html_cell(value: Value) -> str:
    first, *more = (html.escape(part) for part in _parts(value))
    if isinstance(value, str):
        return f'<td class="text">{first}</td>'
    small = "".join(f"<small>{part}</small>" for part in more)
    return f'<td class="number">{f"<b>{first}</b>" if more else first}{small}</td>'


def _latex_cell(value: Value) -> str:
    first, *more = (latex(part) for part in _parts(value))
    return first + "".join(rf" {{\scriptsize {part}}}" for part in more)


def _fields(value: Value) -> Fields:
    if value is None:
        return {}
    return {"": str(value)} if isinstance(value, str | int) else value.fields()


def _endings(values: Sequence[Value]) -> list[str]:
    found: dict[str, None] = {"": None}
    for value in values:
        found.update(dict.fromkeys(_fields(value)))
    return list(found)
