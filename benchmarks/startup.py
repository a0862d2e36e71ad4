"""What the start-up hook costs: `python -c pass` with and without this package, side by side.

Makes two fresh environments, installs the package into one of them (wheel or `--editable`), and starts Python in each
of them in turn, 50 times after a warm-up, in alternating order. Prints the medians and the median of the differences
within a pair. It measures the start of Python alone, not of lm_eval.

    python benchmarks/startup.py [--pairs 50] [--editable]
"""

from __future__ import annotations

import argparse
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def make_environment(folder: Path) -> Path:
    """Make an environment with nothing in it; returns its Python."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    return folder / "bin" / "python"


def install(python: Path, editable: bool) -> None:
    """Install this checkout without what it depends on: that has no part in the start."""
    target = ["-e", ROOT] if editable else [ROOT]
    subprocess.run([sys.executable, "-m", "pip", "--python", python, "install", "-q", "--no-deps", *target], check=True)


def milliseconds(python: Path) -> float:
    """Wall time of one start."""
    start = time.perf_counter()
    subprocess.run([python, "-c", "pass"], check=True)
    return (time.perf_counter() - start) * 1000


def main() -> None:
    """Measure, and print one line for each figure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=50)
    parser.add_argument("--editable", action="store_true")
    arguments = parser.parse_args()

    with tempfile.TemporaryDirectory() as scratch:
        without, with_us = make_environment(Path(scratch, "without")), make_environment(Path(scratch, "with"))
        install(with_us, arguments.editable)
        for python in (without, with_us) * 5:
            milliseconds(python)
        pairs = []
        for number in range(arguments.pairs):
            # The order alternates, so that what the first of a pair does for the second falls on both.
            if number % 2:
                after, before = milliseconds(with_us), milliseconds(without)
            else:
                before, after = milliseconds(without), milliseconds(with_us)
            pairs.append((before, after))

    differences = [after - before for before, after in pairs]
    low, _, high = statistics.quantiles(differences, n=4)
    kind = "editable install" if arguments.editable else "wheel"
    print(f"python -c pass, {kind}, {arguments.pairs} pairs, Python {platform.python_version()}, {platform.machine()}")
    print(f"without: {statistics.median(before for before, _ in pairs):.2f} ms (median)")
    print(f"with:    {statistics.median(after for _, after in pairs):.2f} ms (median)")
    print(f"difference within a pair: {statistics.median(differences):+.2f} ms (quartiles {low:+.2f}, {high:+.2f})")


if __name__ == "__main__":
    main()
