"""The report's folder: what is written, that the page needs nothing else, and that it says what is missing."""

from __future__ import annotations

import builtins
import csv
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from helpers.outcomes import curves, synthetic

from lm_eval_kinject.errors import KinjectError
from lm_eval_kinject.provenance import fingerprint_file
from lm_eval_kinject.study.figures import front
from lm_eval_kinject.study.load import kept_by
from lm_eval_kinject.study.outcomes import Answered, CellOutcome, Kept
from lm_eval_kinject.study.report import write_report


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    cells = synthetic(questions=40, ks=(0, 1, 2), paraphrases=(2, 10))
    cells += synthetic(
        questions=40, tasks=("mmlu_anatomy",), shots=(0, 5), ks=(0, 1, 2), paraphrases=(), model="Mistral"
    )
    write_report(cells, curves(), folder, title="A <study>", provenance={"corpus": {"name": "news & more"}})
    return folder


def test_what_is_written(written: Path) -> None:
    names = {p.relative_to(written).as_posix() for p in written.rglob("*") if p.is_file()}
    tables = (
        "table-1-mmlu table-2-current-events table-3-k orderings paraphrases pairs flips gold places detectable cells"
    ).split()
    figures = "gains loss paraphrases k cost significance".split()
    expected = {"report.html", "report.md", "report.json"}
    expected |= {f"tables/{t}.{end}" for t in tables for end in ("csv", "tex")}
    expected |= {f"figures/{f}.{end}" for f in figures for end in ("svg", "csv")}
    assert names == expected
    manifest = json.loads((written / "report.json").read_text())
    assert manifest["files"] == {name: fingerprint_file(written / name) for name in names - {"report.json"}}
    assert manifest["provenance"] == {"corpus": {"name": "news & more"}}


class _Page(HTMLParser):
    """Collects ids and every address that a browser would fetch; checks that tags are closed in order."""

    VOID = frozenset({"meta", "link", "img", "br", "hr", "input"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.fetched: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in self.VOID:
            self.open.append(tag)
        self._note(tag, attrs)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._note(tag, attrs)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def _note(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name == "id":
                self.ids.append(value or "")
            if name in ("src", "href", "xlink:href", "data"):
                (self.links if (value or "").startswith("#") else self.fetched).append(value or "")


def test_the_page_is_whole_in_itself(written: Path) -> None:
    text = (written / "report.html").read_text(encoding="utf-8")
    page = _Page()
    page.feed(text)
    page.close()
    assert page.open == []
    assert page.fetched == []
    assert len(page.ids) == len(set(page.ids))
    assert {link[1:] for link in page.links} <= set(page.ids)
    used = set(re.findall(r"url\(#([^)]+)\)", text))
    assert used
    assert used <= set(page.ids)
    assert "@import" not in text
    assert "url(http" not in text
    assert "<script" not in text
    assert text.count("<svg") == 6
    assert "A &lt;study&gt;" in text
    assert "news &amp; more" in text


def test_figures_come_with_what_was_drawn(written: Path) -> None:
    with open(written / "figures" / "paraphrases.csv", encoding="utf-8", newline="") as file:
        drawn = list(csv.DictReader(file))
    assert [line["Paraphrases"] for line in drawn] == ["0", "2", "10"]
    with open(written / "tables" / "cells.csv", encoding="utf-8", newline="") as file:
        cells = list(csv.DictReader(file))
    of_ft_par = next(c for c in cells if (c["Variant"], c["K"], c["Task"]) == ("ft-par", "0", "current_events"))
    assert drawn[-1]["Accuracy"] == of_ft_par["Accuracy"]
    with open(written / "figures" / "gains.csv", encoding="utf-8", newline="") as file:
        paper = [line for line in csv.DictReader(file) if line["Whose"] == "paper"]
    assert len(paper) == 90


def test_the_same_cells_give_the_same_files(tmp_path: Path) -> None:
    cells = synthetic(questions=20, ks=(0, 1), paraphrases=(10,))
    for name in ("a", "b"):
        write_report(cells, None, tmp_path / name)
    assert (tmp_path / "a" / "report.json").read_bytes() == (tmp_path / "b" / "report.json").read_bytes()


def test_an_earlier_report_leaves_nothing_behind_and_other_files_stay(tmp_path: Path) -> None:
    write_report(synthetic(questions=20, ks=(0, 1, 2), paraphrases=(2, 10)), curves(), tmp_path)
    (tmp_path / "tables" / "mine.csv").write_text("mine")
    assert (tmp_path / "figures" / "loss.svg").exists()
    files = write_report(synthetic(questions=20, ks=(0,), paraphrases=(10,)), None, tmp_path)
    assert not (tmp_path / "figures" / "loss.svg").exists()
    assert not (tmp_path / "tables" / "table-3-k.csv").exists()
    assert (tmp_path / "tables" / "mine.csv").read_text() == "mine"
    assert (files[0].name, files[-1].name) == ("report.html", "report.json")
    assert all(file.exists() for file in files)


def test_the_frontier_is_what_was_learned_against_what_was_kept(tmp_path: Path) -> None:
    """Four trainings of two questions each: one is beaten in both, and the base stands where nothing was forgotten."""

    def cell(variant: str, right: tuple[float, float], kept: Kept | None) -> CellOutcome:
        answers = tuple(Answered(n, f"c{n}", one, False, None, None, 0) for n, one in enumerate(right))
        return CellOutcome({"model": "m", "variant": variant, "k": 0, "task": "t"}, answers, kept=kept)

    cells = [
        cell("base", (0.0, 0.0), None),
        cell("plain", (1.0, 1.0), Kept(0.8, 0.3, "nothing")),
        cell("l2-weak", (1.0, 1.0), Kept(0.8, 0.5, "l2")),
        cell("l2-strong", (0.0, 1.0), Kept(0.8, 0.75, "l2")),
        cell("replay", (0.0, 1.0), Kept(0.8, 0.6, "replay")),
    ]
    write_report(cells, None, tmp_path)
    rows = list(csv.DictReader((tmp_path / "figures" / "frontier.csv").read_text().splitlines()))
    found = {row["Variant"]: (row["Held by"], float(row["Recall"]), row["On the frontier"]) for row in rows}
    assert found == {
        "plain": ("nothing", 0.3, "no"),
        "l2-weak": ("l2", 0.5, "yes"),
        "l2-strong": ("l2", 0.75, "yes"),
        "replay": ("replay", 0.6, "no"),
        "base": ("", 0.8, ""),
    }
    assert (tmp_path / "figures" / "frontier.svg").read_text().startswith("<svg")


def test_points_that_are_equal_are_both_on_the_frontier() -> None:
    assert front([(1.0, 0.0), (0.5, 0.5), (0.5, 0.5), (0.4, 0.5), (0.0, 1.0)]) == {0, 1, 2, 4}


def test_what_a_training_kept_is_in_its_record(tmp_path: Path) -> None:
    def kept(recall: object, **recipe: object) -> Kept | None:
        outcome = {"before": {"recall": 0.78, "perplexity": 9.0}, "after": recall}
        (tmp_path / "kinject.json").write_text(json.dumps({"outcome": outcome, "recipe": recipe}))
        return kept_by(tmp_path)

    assert kept_by(tmp_path) is None
    assert kept({"recall": 0.6}) == Kept(0.78, 0.6, "nothing")
    assert kept({"recall": 0.6}, replay={"ratio": 0}, regulariser={"kind": "ewc"}) == Kept(0.78, 0.6, "ewc")
    both = kept({"recall": 0.0}, replay={"ratio": 1}, regulariser={"kind": "l2"})
    assert both == Kept(0.78, 0.0, "replay and l2")
    assert kept({"recall": None}) is None
    assert kept(None) is None


def test_figures_without_data_are_left_out_and_said_to_be(tmp_path: Path) -> None:
    cell = CellOutcome(
        {"model": "m", "variant": "base", "k": 0, "task": "t"}, (Answered(0, "", 1.0, False, None, None, 0),)
    )
    write_report([cell], None, tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert page.count("Left out: Needs") == 7
    assert "Left out: Needs the logs of training runs." in (tmp_path / "report.md").read_text()
    assert not (tmp_path / "figures").exists()


def test_all_problems_are_told_at_once() -> None:
    twice = (Answered(0, "", 1.0, False, None, None, 0),) * 2
    odd = (Answered(0, "", 2.0, False, None, None, 0),)
    lost = (Answered(0, "", None, False, None, None, 0),)
    cells = [CellOutcome({"task": "t", "k": number}, answers) for number, answers in enumerate((twice, odd, lost))]
    with pytest.raises(KinjectError) as found:
        write_report(cells, None, "nowhere")
    assert str(found.value).splitlines()[1:] == [
        "  - cell 1 (task=t, k=0) has a question twice; each doc_id may be there once",
        "  - cell 2 (task=t, k=1) has answers outside 0 to 1, or NaN; what couldn't be scored is None",
        "  - cell 3 (task=t, k=2) has no answer that could be scored; leave the cell out",
    ]
    assert not Path("nowhere").exists()
    with pytest.raises(KinjectError, match="no cells"):
        write_report([], None, "nowhere")


def test_without_matplotlib_the_message_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *rest: object) -> object:
        if name.partition(".")[0] == "matplotlib":
            raise ImportError(name)
        return real(name, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(KinjectError, match=r"lm-eval-kinject\[study\]"):
        write_report(synthetic(questions=4, ks=(0,), paraphrases=()), None, tmp_path)
