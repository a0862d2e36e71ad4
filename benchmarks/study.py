"""What a study costs and survives: a sweep of K against its deepest cell, and SIGKILL at random moments.

    python benchmarks/study.py sweep [--limit 200]     K = 0 to 5 in one pass, against K = 5 alone: seconds of scoring
    python benchmarks/study.py kills [--kills 20]      killed at random moments and resumed: are the results the same?
    python benchmarks/study.py ray [--workers 2]       two trainings on Ray against one after the other
    python benchmarks/study.py rerun FOLDER [--cells 3]     some cells of a study that ran, scored again

Everything is offline: the embedded reader and the bundled newswire. Exits with 1 if a promise isn't kept.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
import yaml

from lm_eval_kinject.provenance import environment, read_json
from lm_eval_kinject.study.engines import Engine, RayTasks
from lm_eval_kinject.study.grid import read_study
from lm_eval_kinject.study.load import manifests, read_samples, result_file
from lm_eval_kinject.study.rerun import compare, rerun
from lm_eval_kinject.study.run import InTurn, run_study

SWEEP: dict[str, Any] = {
    "title": "A sweep of K",
    "models": ["reader"],
    "retrievers": ["bm25"],
    "k": [0, 1, 2, 3, 4, 5],
    "tasks": ["current_events_cloze"],
}
KILLED: dict[str, Any] = {
    "title": "Killed",
    "models": ["reader"],
    "variants": {
        "base": None,
        "lora": {"adapter": "reader-ft-par-lora"},
        "trained": {"recipe": "reader-ft-reg", "set": {"epochs": 0.5}},
    },
    "retrievers": ["bm25"],
    "k": [0, 1, 3],
    "tasks": ["current_events_cloze", "current_events"],
    "limit": 40,
}


TWO: dict[str, Any] = {
    "title": "Two trainings",
    "models": ["reader"],
    "variants": {"regular": {"recipe": "reader-ft-reg"}, "paraphrased": {"recipe": "reader-ft-par"}},
    "k": [0],
    "tasks": ["current_events_cloze"],
}


def written(place: Path, name: str, said: dict[str, Any]) -> Path:
    file = place / f"{name}.yaml"
    file.write_text(yaml.safe_dump(said), encoding="utf-8")
    return file


def scoring_seconds(place: Path, name: str, said: dict[str, Any]) -> float:
    """Seconds of scoring of all cells of a study, which are one pass."""
    out = place / name
    outcome = run_study(read_study(written(place, name, said)), out)
    if outcome.failures:
        raise SystemExit(str(outcome.failures))
    results = [read_json(result_file(manifest.parent)) for manifest in manifests(out)]
    return sum(result["config"]["kinject"]["seconds"]["scoring"] for result in results)


def sweep(place: Path, limit: int | None, rounds: int) -> bool:
    said = SWEEP | ({"limit": limit} if limit else {})
    times: dict[str, list[float]] = {"sweep": [], "deepest": []}
    for number in range(rounds):
        times["sweep"].append(scoring_seconds(place, f"sweep-{number}", said))
        times["deepest"].append(scoring_seconds(place, f"deepest-{number}", said | {"k": [5]}))
    ratio = median(times["sweep"]) / median(times["deepest"])
    shown = {name: [round(seconds, 1) for seconds in each] for name, each in times.items()}
    print(f"scoring K = 0 to 5 in one pass takes {ratio:.2f} of K = 5 alone (promised: 1.3); seconds {shown}")
    return ratio <= 1.3


def contents(out: Path) -> dict[str, Any]:
    """The samples of every cell, and its figures."""
    found = {}
    for manifest in manifests(out):
        results = result_file(manifest.parent)
        cell = {"samples": read_samples(results), "results": read_json(results)["results"]}
        found[str(manifest.parent.relative_to(out))] = cell
    return found


def differences(out: Path, other_out: Path) -> list[str]:
    """In which cells two folders of a study differ, and how."""
    one, other = contents(out), contents(other_out)
    problems = [] if one.keys() == other.keys() else [f"other cells: {sorted(one.keys() ^ other.keys())}"]
    for name in one.keys() & other.keys():
        problems += [f"{name}: {line}" for line in compare(one[name]["samples"], other[name]["samples"])]
        problems += [] if one[name]["results"] == other[name]["results"] else [f"{name}: other figures"]
    return problems


def kills(place: Path, wanted: int, seed: int) -> bool:
    file, calm, hunted = written(place, "killed", KILLED), place / "calm", place / "hunted"
    command = [sys.executable, "-m", "lm_eval_kinject.cli", "study", "run", str(file), "--no-report", "--out"]
    began = time.monotonic()
    subprocess.run([*command, str(calm)], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    whole = time.monotonic() - began
    print(f"undisturbed: {whole:.0f} s", flush=True)
    draw = random.Random(seed)
    done = 0
    while done < wanted:
        process = subprocess.Popen([*command, str(hunted)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            process.wait(timeout=draw.uniform(0.1, 1.1) * whole)
            if process.returncode:
                print(f"a run ended by itself with exit code {process.returncode}")
                return False
            for manifest in manifests(hunted):  # finished before its turn: some cells are to do again
                if draw.random() < 0.5:
                    manifest.unlink()
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            done += 1
            print(f"killed {done} times, {len(manifests(hunted))} cells there", flush=True)
    subprocess.run([*command, str(hunted)], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    problems = differences(calm, hunted)
    cells = len(manifests(calm))
    print(f"{cells} cells, {wanted} kills: " + ("the same, to the bit" if not problems else "\n".join(problems[:20])))
    return not problems


def on_ray(place: Path, workers: int, rounds: int, epochs: float, limit: int | None) -> bool:
    """Both with one thread a training, so that two don't share what one has alone."""
    torch.set_num_threads(1)
    variants = {name: kind | {"set": {"epochs": epochs}} for name, kind in TWO["variants"].items()}
    study = read_study(written(place, "two", TWO | {"variants": variants, "limit": limit}))
    ways: dict[str, Engine] = {"in turn": InTurn(), "on Ray": RayTasks(workers)}
    times: dict[str, list[float]] = {way: [] for way in ways}
    problems: list[str] = []
    for number in range(rounds):
        for way, engine in ways.items():
            outcome = run_study(study, place / f"{way}-{number}", engine=engine)
            problems += [failure.problem for failure in outcome.failures]
            times[way].append(outcome.seconds)
        problems += differences(place / f"in turn-{number}", place / f"on Ray-{number}")
    ratio = median(times["on Ray"]) / median(times["in turn"])
    shown = {way: [round(seconds, 1) for seconds in each] for way, each in times.items()}
    print(f"two trainings on Ray with {workers} workers take {ratio:.2f} of the time in turn (promised: .7); {shown}")
    print("results: " + ("the same, to the bit" if not problems else "\n".join(problems[:20])))
    return ratio <= 0.7 and not problems


def again(folder: Path, cells: int, seed: int) -> bool:
    chosen = random.Random(seed).sample(manifests(folder), cells)
    same = True
    for manifest in chosen:
        found = rerun(manifest.parent)
        print(f"{manifest.parent.relative_to(folder)}: {'; '.join(found.lines()[-3:])}", flush=True)
        same &= found.same
    return same


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("sweep", "kills", "ray", "rerun"))
    parser.add_argument("folder", type=Path, nargs="?", help="of a study that ran (rerun)")
    parser.add_argument("--limit", type=int, help="questions of sweep and ray; default: all 910")
    parser.add_argument("--rounds", type=int, default=3, help="of sweep and ray, both ways in turn; medians count")
    parser.add_argument("--workers", type=int, default=2, help="of ray")
    parser.add_argument("--epochs", type=float, default=1.0, help="of each training of ray")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--cells", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    print(json.dumps(environment(), default=str))
    with tempfile.TemporaryDirectory() as scratch:
        if asked.what == "sweep":
            kept = sweep(Path(scratch), asked.limit, asked.rounds)
        elif asked.what == "kills":
            kept = kills(Path(scratch), asked.kills, asked.seed)
        elif asked.what == "ray":
            kept = on_ray(Path(scratch), asked.workers, asked.rounds, asked.epochs, asked.limit)
        else:
            if asked.folder is None:
                parser.error("rerun needs the folder of a study")
            kept = again(asked.folder, asked.cells, asked.seed)
    sys.exit(0 if kept else 1)


if __name__ == "__main__":
    main()
