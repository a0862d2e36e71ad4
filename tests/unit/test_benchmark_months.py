"""The benchmark of months: who trains on what, that scored texts are trained on by nobody, and the curve it writes."""

from __future__ import annotations

import csv
import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
from helpers.local_tasks import ROOT

from lm_eval_kinject.stats import Interval
from lm_eval_kinject.study.months import Month


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    spec = importlib.util.spec_from_file_location("benchmark_months", ROOT / "benchmarks" / "months.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["benchmark_months"] = module
    spec.loader.exec_module(module)
    return module


def rows_of(file: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_a_dry_run_writes_the_texts(benchmark, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--months", "5", "--test", "2", "--events", "200", "--dry-run", "--out", str(tmp_path / "out")]
    benchmark.main(words)
    trained, control, scored = (rows_of(tmp_path / "out" / f"{n}.jsonl") for n in ("stratified", "control", "scored"))
    assert len(trained) == len(control) == 3 * 90
    assert len(scored) == 2 * 100
    assert [sorted({row["date"][:7] for row in rows}) for rows in (trained, control, scored)] == [
        ["2026-01", "2026-02", "2026-03"],
        ["2026-03", "2026-04", "2026-05"],
        ["2026-04", "2026-05"],
    ]
    assert not {row["id"] for row in scored} & {row["id"] for row in (*trained, *control)}
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("stratified   270 texts")
    new = [float(line.split("scored words ")[1].split("%")[0]) for line in said[:2]]
    assert new[0] > 1.5 * new[1]
    with pytest.raises(SystemExit, match="was made with other settings"):
        benchmark.main([*words, "--seed", "8"])
    with pytest.raises(SystemExit):
        benchmark.main(["--months", "5", "--test", "3"])
    assert "--test 3: half of the 5 months at most" in capsys.readouterr().err


def test_the_curve_is_written(benchmark, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    months = [Month(name, 20, 10.0, 11.0, Interval(0.1, 0.08, 0.13)) for name in ("2026-05", "2026-06", "all")]
    benchmark._write({"stratified": months}, {"seed": "7"}, tmp_path)
    found = list(csv.DictReader((tmp_path / "months.csv").open()))
    assert [row["month"] for row in found] == ["2026-05", "2026-06", "all"]
    assert found[0]["increase"] == "0.1"
    assert json.loads((tmp_path / "months.json").read_text())["months"][0]["low"] == 0.08
    assert "10.0 % (8.0 to 13.0)" in capsys.readouterr().out
    picture = (tmp_path / "months.svg").read_text()
    assert "<svg" in picture
    assert "2026-06" in picture
    assert "all" not in [line.strip() for line in picture.splitlines()]
