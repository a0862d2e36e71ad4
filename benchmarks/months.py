"""Perplexity by month: a reader trained up to some month against a control of its size that saw the months after it.

What it is for: the curve of *Mind the Gap* (Lazaridou et al. 2021, arXiv 2102.01951) on the newswire's drifting months.
What it does not do: choose anything by what it measures, or tell what drift real news has.

The one idea: both readers start from the same weights and train on as many texts of as many months, by one recipe; only
the months differ. In each month some events are held out from both, and their texts are scored::

    months        1 2 3 4 5 6 7 8        --months 8 --test 4
    stratified    ■ ■ ■ ■
    control               ■ ■ ■ ■
    scored                □ □ □ □        other events than were trained on

    python benchmarks/months.py                            a few minutes on two cores; goes on where it was stopped
    python benchmarks/months.py --dry-run                  writes the texts, says what would be trained
    python benchmarks/months.py --start scratch --epochs 20     random weights: nothing known but these months
    python benchmarks/months.py --retriever bm25           and the stratified reader again, with retrieval of the
                                                           control's texts: what that wins back untrained

The result is OUT/months.csv, OUT/months.svg and OUT/months.json (with settings, versions and date), and the table on
the screen. Everything made is kept in OUT; other settings need another OUT.
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import yaml

from lm_eval_kinject.corpus.sources.newswire import make_months
from lm_eval_kinject.corpus.sources.newswire.measure import new_words
from lm_eval_kinject.plugin import assets_dir
from lm_eval_kinject.provenance import atomic_write, environment, read_json, write_json
from lm_eval_kinject.study.months import ALL, Month, compare, rows, table

FIRST = "2026-01"
READERS = ("stratified", "control")
TASK = "kinject_perplexity"

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Split:
    """Which texts are trained on by whom, and which are scored; of the months, the last are tested."""

    stratified: list[Row]
    control: list[Row]
    scored: list[Row]
    trained_to: str


def main(argv: Sequence[str] | None = None) -> None:
    arguments = _arguments(argv)
    out: Path = arguments.out
    settings = {name: str(value) for name, value in sorted(vars(arguments).items()) if name not in ("out", "dry_run")}
    _keep(out, settings)
    news = make_months(arguments.seed, FIRST, arguments.months, arguments.months * arguments.events)
    split = split_months(news.chunks, arguments.test)
    _write_texts(out, split)
    print("\n".join(described(split)))
    if arguments.dry_run:
        return
    start = _start(arguments.start, arguments.seed, out)
    for name in READERS:
        _train(name, start, arguments, out)
    window = {"corpus": str(out / "scored.jsonl"), "from": split.scored[0]["date"][:7]}
    scores = {name: _score(name, f"pretrained={out / name},k=0", window, out) for name in READERS}
    found = {"stratified": compare(scores["stratified"], scores["control"])}
    if arguments.retriever:
        how = f"pretrained={out / 'stratified'},retriever={arguments.retriever},k=3,corpus={out / 'control.jsonl'}"
        name = f"stratified, {arguments.retriever}"
        found[name] = compare(_score(f"stratified-{arguments.retriever}", how, window, out), scores["control"])
    _write(found, settings, out)


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    made = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    made.add_argument("--out", type=Path, default=Path("runs/months"), help="folder; goes on there")
    made.add_argument("--seed", type=int, default=7, help="of the news, and of random weights")
    made.add_argument("--months", type=int, default=8, help="of news in all")
    made.add_argument("--test", type=int, default=4, help="the last of them, which are scored; half of them at most")
    made.add_argument("--events", type=int, default=240, help="a month; 46%% are trained on, half scored")
    made.add_argument("--start", default="reader", help="reader, scratch (its shape, random weights), or a folder")
    made.add_argument("--epochs", type=float, default=5)
    made.add_argument("--rate", type=float, default=1e-3, help="learning rate")
    made.add_argument("--retriever", help="scores the stratified reader with retrieval, too")
    made.add_argument("--dry-run", action="store_true")
    arguments = made.parse_args(argv)
    if not 1 <= arguments.test <= arguments.months // 2:
        made.error(
            f"--test {arguments.test}: half of the {arguments.months} months at most, so that the control, which "
            "trains on as many months as the other, has all of them"
        )
    return arguments


def split_months(chunks: Sequence[Row], test: int) -> Split:
    """The first months for the one reader, as many that end with the last for the other; held out are source chunks."""
    months = sorted({row["date"][:7] for row in chunks})
    length = len(months) - test

    def of(names: Iterable[str], role: str) -> list[Row]:
        chosen = set(names)
        found = [row for row in chunks if row["date"][:7] in chosen and row["role"] == role]
        return [{"id": row["id"], "text": row["text"], "date": row["date"]} for row in found]

    return Split(
        stratified=of(months[:length], "background"),
        control=of(months[-length:], "background"),
        scored=of(months[length:], "source"),
        trained_to=months[length - 1],
    )


def described(split: Split) -> list[str]:
    """What is trained on and scored, and how far the scored texts' words are from each reader's."""
    lines = []
    for name in READERS:
        texts = [row["text"] for row in getattr(split, name)]
        words = sum(len(text.split()) for text in texts)
        unknown = new_words(texts, [row["text"] for row in split.scored])
        dates = sorted(row["date"][:7] for row in getattr(split, name))
        lines.append(
            f"{name:10} {len(texts):5,} texts, {words:7,} words, {dates[0]} to {dates[-1]}; of the scored words "
            f"{unknown:.1%} are new to it"
        )
    months = sorted({row["date"][:7] for row in split.scored})
    return [*lines, f"{'scored':10} {len(split.scored):5,} texts, {months[0]} to {months[-1]}"]


def _keep(out: Path, settings: Mapping[str, str]) -> None:
    """Notes the settings, or stops where the folder was made with others."""
    out.mkdir(parents=True, exist_ok=True)
    note = out / "settings.json"
    if note.is_file() and read_json(note) != settings:
        sys.exit(f"{out} was made with other settings ({note}): give another --out, or remove it.")
    write_json(note, settings)


def _write_texts(out: Path, split: Split) -> None:
    for name in (*READERS, "scored"):
        with atomic_write(out / f"{name}.jsonl", "w") as file:
            file.writelines(json.dumps(row) + "\n" for row in getattr(split, name))


def _start(named: str, seed: int, out: Path) -> str:
    """What ``model:`` of the recipe is: random weights are made once."""
    if named != "scratch":
        return named
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    folder, reader = out / "scratch", assets_dir() / "reader"
    if not (folder / "config.json").is_file():
        torch.manual_seed(seed)
        AutoTokenizer.from_pretrained(reader).save_pretrained(folder)
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(reader), dtype=torch.float32)
        model.save_pretrained(folder)
    return str(folder)


def _train(name: str, start: str, arguments: argparse.Namespace, out: Path) -> None:
    from kinject_trainer.command import train

    recipe = {
        "model": start,
        "corpus": str(out / f"{name}.jsonl"),
        "chunks": "all",
        "variant": "ft-reg",
        "method": "full",
        "epochs": arguments.epochs,
        "global_batch": 16,
        "learning_rate": arguments.rate,
        "warm_up": 0.05,
        "weight_decay": 0.01,
        "precision": "bf16",
        "forgetting": False,
    }
    file = out / f"{name}.yaml"
    with atomic_write(file, "w") as stream:
        yaml.safe_dump(recipe, stream, sort_keys=False)
    train(file, out=out / name, resume=True, say=lambda text: print(f"{name}: {text}"))


def _score(name: str, model_args: str, window: Mapping[str, str], out: Path) -> Path:
    """One `lm_eval` command, or its results where it was run before."""
    folder = out / "scores" / name
    if not list(folder.rglob("results_*.json")):
        words = ["--model", "rag-hf", "--model_args", model_args, "--tasks", TASK, "--metadata", json.dumps(window)]
        words += ["--batch_size", "8", "--log_samples", "--output_path", str(folder)]
        subprocess.run([sys.executable, "-m", "lm_eval_kinject", *words], check=True)
    return next(iter(sorted(folder.rglob("results_*.json"))))


def _write(found: Mapping[str, Sequence[Month]], settings: Mapping[str, str], out: Path) -> None:
    """The table on the screen, and the curve as CSV, JSON and SVG."""
    lines = [{"reader": name, **row} for name, months in found.items() for row in rows(months)]
    with atomic_write(out / "months.csv", "w") as file:
        writer = csv.DictWriter(file, lines[0])
        writer.writeheader()
        writer.writerows(lines)
    said = {"date": date.today().isoformat(), "settings": settings, "environment": environment(), "months": lines}
    write_json(out / "months.json", said)
    draw(found, out / "months.svg")
    for name, months in found.items():
        print(f"\n{name}, against the control (perplexity a word)")
        print("\n".join(table(months)))


def draw(found: Mapping[str, Sequence[Month]], path: Path) -> None:
    """The increase by month, in percent of the control's perplexity, with 95 % intervals."""
    from matplotlib.figure import Figure

    picture = Figure(figsize=(5, 3.2), layout="constrained")
    axes = picture.add_subplot()
    for name, months in found.items():
        dated = [month for month in months if month.name != ALL]
        heights = [100 * month.increase.estimate for month in dated]
        below = [100 * (month.increase.estimate - month.increase.low) for month in dated]
        above = [100 * (month.increase.high - month.increase.estimate) for month in dated]
        axes.errorbar([month.name for month in dated], heights, [below, above], marker="o", capsize=3, label=name)
    axes.axhline(0, color="grey", linewidth=0.8)
    axes.set_ylabel("perplexity above the control's, %")
    axes.legend(frameon=False)
    picture.savefig(path, format="svg", metadata={"Date": None, "Creator": None})


if __name__ == "__main__":
    main()
