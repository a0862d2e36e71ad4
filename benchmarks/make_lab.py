"""The embedded lab made again, from an edition of the newswire to the tables of the log: ``make lab``.

What it is for: all that is published about the lab hangs together (edition, reader, trainings, adapters, figures, what
tests record), so one command makes it, in stages that go on where they were stopped. What it does not do: write prose.
README.md, the reader's card and docs/log.md quote figures, and take them by hand from the last stage's table.

    make lab                                                  all of it, for the newest edition
    make lab LAB_ARGS=--dry-run                               which stages are up to date, and what the others take
    make lab LAB_ARGS="--device cuda --reader-args '--workers 4 --tokens 8192 --mixed-steps 1600'"
    make lab LAB_ARGS="--reader-args '--mixed-steps 3000' --reader-args '--mixed-steps 2000 --shares letters=2'"
    python benchmarks/make_lab.py --only edition,reader
    make lab LAB_ARGS="--jobs 2"                              trainings and measurements two at a time

The one idea: a stage is up to date when what it was made from still has the fingerprint that it had, all that it makes
is there and unchanged, and the stages before it are up to date. What is noted is noted in ``runs/lab/stages``; what is
unfinished (the reader, a training) lies in a folder named by what it is made from and goes on by itself.

The reader starts from the one in the package when this is first run, of which ``runs/lab/start`` keeps a copy; with
``--scratch`` from nothing, which takes about two hours more. Given several times, ``--reader-args`` make several legs,
each from where the one before ended. They are remembered for the runs after.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from lm_eval_kinject.provenance import (
    atomic_write,
    fingerprint,
    fingerprint_file,
    fingerprint_folder,
    publish_folder,
    read_json,
    write_json,
)

ROOT = Path(__file__).resolve().parent.parent
LICENCE = "apache-2.0"
SCORED = "current_events_cloze"
READER_FILES = ("config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")

# Minutes on two CPU cores; of trainings those of edition 1 (docs/log.md), whose chunks are a fifth shorter.
MINUTES = {"edition": 0.2, "reader": 130.0, "install": 0.2, "train": 12.0, "score": 2.0, "adapters": 0.2, "pins": 0.2,
           "lab": 35.0, "multihop": 8.0, "newswire": 3.0, "retrieval": 5.0, "runs": 45.0, "table": 0.0}  # fmt: skip


class LabError(Exception):
    """A stage can't be done; the text says which and why."""


@dataclass(frozen=True)
class Stage:
    """One step.

    Attributes:
        name: as in ``--only``.
        minutes: what it takes, about.
        after: names of the stages that it needs.
        inputs: returns a plain value naming all that it depends on.
        outputs: returns files and folders that it makes; a folder counts with all in it.
        run: makes them; called again after a stop, it goes on.
    """

    name: str
    minutes: float
    after: tuple[str, ...]
    inputs: Callable[[], Any]
    outputs: Callable[[], Sequence[Path]]
    run: Callable[[], None]


class Notes:
    """What the finished stages were made from, one file a stage."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def fits(self, stage: Stage) -> bool:
        """Whether a stage has been done from the inputs of now, and what it made is as it was left."""
        file = self._folder / f"{stage.name.replace('/', '-')}.json"
        return file.is_file() and read_json(file) == self._state(stage)

    def keep(self, stage: Stage) -> None:
        """Note that a stage is done."""
        missing = [str(path) for path in stage.outputs() if not path.exists()]
        if missing:
            raise LabError(f"{stage.name} ended without {', '.join(missing)}")
        self._folder.mkdir(parents=True, exist_ok=True)
        write_json(self._folder / f"{stage.name.replace('/', '-')}.json", self._state(stage))

    def _state(self, stage: Stage) -> Mapping[str, Any]:
        # Where the checkout lies is no part of it: only the outputs' order and content.
        return {"from": fingerprint(stage.inputs()), "made": [digest(path) for path in stage.outputs()]}


def digest(path: Path) -> str | None:
    """The fingerprint of a file, or of a folder with all in it; None where there is nothing."""
    if path.is_dir():
        return fingerprint_folder(path)
    return fingerprint_file(path) if path.is_file() else None


def status(stages: Sequence[Stage], notes: Notes) -> dict[str, bool]:
    """Stage -> whether it is up to date. ``stages`` stand in the order in which they are done."""
    done: dict[str, bool] = {}
    for stage in stages:
        done[stage.name] = all(done[name] for name in stage.after) and notes.fits(stage)
    return done


def make(
    stages: Sequence[Stage],
    notes: Notes,
    only: Sequence[str] = (),
    say: Callable[[str], None] = print,
    jobs: int = 1,
) -> None:
    """Do what isn't up to date, in order, or as soon as what it needs is done.

    Args:
        stages: in order.
        notes: what has been done.
        only: names of the stages to do, if need be; default: all.
        say: hears about it.
        jobs: how many stages at a time.

    Raises:
        LabError: there is no such stage, one of those named needs another that isn't up to date, or one failed. Those
            beside it are ended and noted first.
    """
    unknown = set(only) - {stage.name for stage in stages}
    if unknown:
        raise LabError(f"no stage {', '.join(sorted(unknown))}; there are {', '.join(s.name for s in stages)}")
    done: dict[str, bool] = {}
    waiting, at_work = list(stages), dict[Future[float], Stage]()

    def ended() -> None:
        """Waits for one of those at work, at least, and notes it."""
        for future in wait(at_work, return_when=FIRST_COMPLETED).done:
            stage = at_work.pop(future)
            minutes = future.result()
            notes.keep(stage)
            done[stage.name] = True
            say(f"== {stage.name} done in {minutes:.1f} min")

    with ThreadPoolExecutor(jobs) as pool:
        try:
            while waiting or at_work:
                ready = next((s for s in waiting if all(name in done for name in s.after)), None)
                if ready is None or len(at_work) == jobs:
                    ended()
                    continue
                waiting.remove(ready)
                late = [name for name in ready.after if not done[name]]
                done_before = not late and notes.fits(ready)
                if done_before or (only and ready.name not in only):
                    done[ready.name] = done_before
                    continue
                if late:
                    raise LabError(f"{ready.name} needs {', '.join(late)}, which isn't up to date; do that first")
                say(f"== {ready.name} (about {ready.minutes:g} min)")
                at_work[pool.submit(_timed, ready.run)] = ready
        finally:
            while at_work:  # one failed
                with contextlib.suppress(Exception):
                    ended()


def _timed(run: Callable[[], None]) -> float:
    """The minutes that it took."""
    began = time.monotonic()
    run()
    return (time.monotonic() - began) / 60


# The stages -----------------------------------------------------------------------------------------------------------


class Lab:
    """The stages of one edition's lab.

    Args:
        root: the checkout.
        work: where unfinished things and reports lie.
        edition: of the newswire.
        device: of the reader's training.
        reader_args: further arguments of `pretrain`, for each leg of the reader's training; none: one leg without.
        scratch: whether the reader starts from nothing.
        jobs: stages at a time, which share the processor; the reader's training has it for itself.
    """

    def __init__(
        self,
        root: Path,
        work: Path,
        edition: int,
        device: str = "cpu",
        reader_args: Sequence[Sequence[str]] = (),
        scratch: bool = False,
        jobs: int = 1,
    ) -> None:
        self.scratch, self.jobs = scratch, jobs
        self.root, self.work, self.edition, self.device = root, work, edition, device
        self.legs = [tuple(arguments) for arguments in reader_args] or [()]
        self.tasks = root / "tasks" / "current_events"
        self.assets = root / "lm_eval_kinject" / "assets" / "reader"
        self.docs = root / "docs" / "reader"
        self.pins = root / "tests" / "gold" / "lab.json"
        self.results = root / "benchmarks" / "results"
        self.recipes = sorted((root / "trainer" / "recipes").glob("reader-*.yaml"))
        # Every recipe for an adapter is one that comes with the package; of the others only the figures are kept.
        methods = {r.stem: yaml.safe_load(r.read_text(encoding="utf-8"))["method"] for r in self.recipes}
        self.adapters = [name for name, method in methods.items() if method != "full"]

    def stages(self) -> list[Stage]:
        """All of them, in order."""
        trained = [self._training(recipe) for recipe in self.recipes]
        scored = [self._score(name) for name in self.adapters]
        base, runs = ("edition", "install"), tuple(stage.name for stage in trained)
        made = [
            self._stage("edition", (), self._edition_inputs, self._edition_files, self._make_edition),
            self._stage("reader", (), self._reader_inputs, lambda: [self._reader() / "model"], self._train_reader),
            self._stage("install", ("reader",), self._reader_model, self._installed, self._install),
            *trained,
            *scored,
            self._stage(
                "adapters",
                tuple(stage.name for stage in scored),
                lambda: [digest(self._run(name)) for name in self.adapters],
                lambda: [self.root / "adapters" / f"{name}{end}" for name in self.adapters for end in ("", ".yaml")],
                self._bundle,
            ),
            self._stage("pins", base, self._lab_inputs, lambda: [self.pins, self._readme()], self._pin),
            self._report("lab", base, ["lab.py", "--out", str(self._kept("lab"))]),
            self._report("newswire", ("edition",), ["newswire.py"]),
            self._report("retrieval", ("edition",), ["retrieval.py", "--corpus", "current_events", "--questions",
                                                     "current_events", "--retrievers", "minilm,bm25,random"]),
            self._report("runs", (*base, *runs), self._runs_command()),
        ]  # fmt: skip
        if self.edition > 1:
            made.append(self._report("multihop", base, ["lab.py", "--multihop", "--out", str(self._kept("multihop"))]))
        reports = [stage.name for stage in made if stage.name in ("lab", "newswire", "retrieval", "runs", "multihop")]
        made.append(
            self._stage(
                "table",
                tuple(reports),
                lambda: [digest(self._text(name)) for name in reports],
                lambda: [self.work / "log.md"],
                lambda: self._table(reports),
            )
        )
        return made

    def _stage(
        self,
        name: str,
        after: tuple[str, ...],
        inputs: Callable[[], Any],
        outputs: Callable[[], Sequence[Path]],
        run: Callable[[], None],
    ) -> Stage:
        return Stage(name, MINUTES[name.split("/")[0]], after, inputs, outputs, run)

    def _python(self, *arguments: str, to: Path | None = None, alone: bool = False) -> None:
        """Run Python in the checkout; what it prints goes to a file too, if one is named, when all went well."""
        command, environment = [sys.executable, *arguments], dict(os.environ)
        if self.jobs > 1 and not alone:
            environment["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // self.jobs))
        to_us = subprocess.PIPE if to else None
        ended = subprocess.run(command, cwd=self.root, env=environment, check=False, text=True, stdout=to_us)
        if to and ended.stdout:
            sys.stdout.write(ended.stdout)
        if ended.returncode:
            raise LabError(f"this failed with status {ended.returncode}: {shlex.join(command)}")
        if to:
            to.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(to, "w") as file:
                file.write(ended.stdout)

    def _lab_inputs(self) -> Any:
        """What every measurement depends on: the questions, the chunks and the reader."""
        return [digest(self.tasks / "data"), digest(self.tasks / "corpus"), digest(self.assets / "model.safetensors")]

    # The edition

    def _edition_inputs(self) -> Any:
        newswire = self.root / "lm_eval_kinject" / "corpus" / "sources" / "newswire"
        files = sorted(f for f in newswire.rglob("*") if f.suffix in {".py", ".yaml", ".md"})
        return [self.edition, [(str(f.relative_to(newswire)), fingerprint_file(f)) for f in files]]

    def _edition_files(self) -> list[Path]:
        return [self.tasks / "data", self.tasks / "corpus", *sorted(self.tasks.glob("*yaml"))]

    def _make_edition(self) -> None:
        from lm_eval_kinject.corpus.sources.newswire.edition import BUNDLED_SEED, bundle_edition, make_edition

        bundle_edition(make_edition(BUNDLED_SEED, edition=self.edition), self.tasks)

    # The reader

    def _start(self) -> Path:
        start = self.work / "start"
        if not start.is_dir():
            with publish_folder(start) as building:
                for name in READER_FILES:
                    shutil.copyfile(self.assets / name, building / name)
        return start

    def _reader_inputs(self) -> Any:
        from kinject_trainer.reader.seen import seen

        start = self.work / "start" if (self.work / "start").is_dir() else self.assets
        weights = None if self.scratch else fingerprint_file(start / "model.safetensors")
        return [seen(self.edition), self.legs, weights]

    def _readers(self) -> list[Path]:
        """A folder for each leg, named by all that led there."""
        edition, legs, weights = self._reader_inputs()
        made = [fingerprint([edition, legs[: n + 1], weights])[:8] for n in range(len(legs))]
        return [self.work / f"reader-{name}" for name in made]

    def _reader(self) -> Path:
        return self._readers()[-1]

    def _train_reader(self) -> None:
        start = [] if self.scratch else ["--start", str(self._start())]
        for folder, arguments in zip(self._readers(), self.legs, strict=True):
            if not (folder / "model").is_dir():
                self._python(
                    "-m", "kinject_trainer.reader.pretrain", "--edition", str(self.edition), *start,
                    "--device", self.device, "--probe-after-training", *arguments, "--out", str(folder), alone=True,
                )  # fmt: skip
            start = ["--start", str(folder / "model")]

    def _reader_model(self) -> str | None:
        return digest(self._reader() / "model")

    def _installed(self) -> list[Path]:
        return [*(self.assets / name for name in READER_FILES), self.docs / "log.jsonl", self.docs / "curve.png"]

    def _install(self) -> None:
        for name in READER_FILES:
            with atomic_write(self.assets / name) as file:
                file.write((self._reader() / "model" / name).read_bytes())
        with atomic_write(self.docs / "log.jsonl", "w") as log:
            for leg, folder in enumerate(self._readers(), 1):
                for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines():
                    entry = json.loads(line)
                    entry["phase"] += f", leg {leg}" if leg > 1 else ""
                    log.write(json.dumps(entry) + "\n")
        self._python(
            "-m", "kinject_trainer.reader.curve", str(self.docs / "log.jsonl"), str(self.docs / "curve.png")
        )  # fmt: skip

    # Trainings and adapters

    def _run_inputs(self, name: str) -> Any:
        return [*self._lab_inputs(), fingerprint_file(self.root / "trainer" / "recipes" / f"{name}.yaml")]

    def _run(self, name: str) -> Path:
        return self.work / "trained" / fingerprint(self._run_inputs(name))[:8] / name

    def _training(self, recipe: Path) -> Stage:
        name = recipe.stem

        def run() -> None:
            self._python("-m", "kinject_trainer", str(recipe), "--resume", "--out", str(self._run(name)))

        return self._stage(
            f"train/{name}",
            ("edition", "install"),
            lambda: self._run_inputs(name),
            lambda: [self._run(name) / "kinject.json"],
            run,
        )

    def _scores(self, name: str) -> Path:
        return self._run(name).parent / f"{name}-scores"

    def _score(self, name: str) -> Stage:
        def run() -> None:
            building = self.work / "scoring" / name
            shutil.rmtree(building, ignore_errors=True)  # of a scoring that was stopped
            self._python(
                "-m", "lm_eval_kinject", "--model", "rag-hf", "--model_args", f"peft={self._run(name)},k=0",
                "--tasks", SCORED, "--batch_size", "8", "--output_path", str(building),
            )  # fmt: skip
            with publish_folder(self._scores(name)) as final:
                shutil.copytree(building, final, dirs_exist_ok=True)

        return self._stage(
            f"score/{name}",
            (f"train/{name}",),
            lambda: digest(self._run(name) / "kinject.json"),
            lambda: [self._scores(name)],
            run,
        )

    def _bundle(self) -> None:
        from lm_eval_kinject.hub.adapters import bundle

        made = self.work / "adapters"
        shutil.rmtree(made, ignore_errors=True)
        made.mkdir(parents=True)
        for name in self.adapters:
            bundle(self._run(name), name, made, licence=LICENCE, results=[self._scores(name)])
        # All are sound: now they take the places of the old ones.
        for name in self.adapters:
            shutil.rmtree(self.root / "adapters" / name, ignore_errors=True)
            shutil.copytree(made / name, self.root / "adapters" / name)
            shutil.copyfile(made / f"{name}.yaml", self.root / "adapters" / f"{name}.yaml")

    # Records and measurements

    def _pin(self) -> None:
        from kinject_trainer.reader.seen import seen

        from lm_eval_kinject.corpus import load_corpus
        from lm_eval_kinject.corpus.sources.newswire.edition import bundled_edition

        corpus = load_corpus("current_events", tasks_dir=self.tasks.parent)
        question, chunk = answered(corpus, _ASKED.findall(self._readme().read_text(encoding="utf-8"))[0])
        with atomic_write(self._readme(), "w") as file:
            file.write(_ASKED.sub(question, self._readme().read_text(encoding="utf-8")))
        pins = {
            "edition": bundled_edition(self.tasks),
            "revision": corpus.revision,
            "reader": seen(self.edition),
            "readme": {"question": question, "chunk": chunk},
        }
        write_json(self.pins, pins)

    def _readme(self) -> Path:
        return self.root / "README.md"

    def _kept(self, name: str) -> Path:
        return self.results / f"{name}-edition-{self.edition}.json"

    def _text(self, name: str) -> Path:
        return self.work / "reports" / f"{name}.txt"

    def _runs_command(self) -> list[str]:
        runs = ",".join(str(self._run(recipe.stem)) for recipe in self.recipes)
        return ["lab.py", "--runs", runs, "--out", str(self._kept("lab-runs"))]

    def _report(self, name: str, after: tuple[str, ...], command: Sequence[str]) -> Stage:
        def run() -> None:
            # The runs' folders are named by what was made meanwhile.
            script, *arguments = self._runs_command() if name == "runs" else command
            self._python(str(self.root / "benchmarks" / script), *arguments, to=self._text(name))

        def inputs() -> Any:
            trained = [self._run_inputs(recipe.stem) for recipe in self.recipes] if name == "runs" else []
            return [self._lab_inputs(), trained]

        kept = [Path(command[-1])] if "--out" in command else []
        return self._stage(name, after, inputs, lambda: [self._text(name), *kept], run)

    def _table(self, reports: Sequence[str]) -> None:
        parts = [f"### {name}\n\n{self._text(name).read_text(encoding='utf-8')}" for name in reports]
        with atomic_write(self.work / "log.md", "w") as file:
            file.write("\n".join(parts))


_ASKED = re.compile(r'(?<=kinject retrieve ")[^"]+(?=")')
_STORM = re.compile(r"Storm [A-Z]\w+")


def answered(corpus: Any, question: str) -> tuple[str, str]:
    """A question about a storm that bm25 finds the storm for, and the chunk's id; the one given, if it is such.

    Args:
        corpus: the bundled one.
        question: what the README asks, of this edition or of another, with one storm's name in it.

    Raises:
        LabError: there is no such question.
    """
    from lm_eval_kinject.records import Query
    from lm_eval_kinject.retrieval import make_retriever

    retriever = make_retriever("bm25", corpus)
    present = [_STORM.search(chunk.text) for chunk in corpus.chunks]
    for storm in dict.fromkeys([_STORM.findall(question)[0], *(found.group() for found in present if found)]):
        asked = _STORM.sub(storm, question)
        ((hit,),) = retriever.search([Query(asked)], 1)
        if storm in hit.chunk.text:
            return asked, str(hit.chunk.id)
    raise LabError(f"no storm of the corpus {corpus.name} is found by {question!r}")


def plan(stages: Sequence[Stage], notes: Notes) -> list[str]:
    """What a dry run says: one line a stage, and the minutes that are left."""
    done = status(stages, notes)
    lines = [f"{s.name:42} {'up to date' if done[s.name] else f'to do, about {s.minutes:g} min'}" for s in stages]
    left = sum(stage.minutes for stage in stages if not done[stage.name])
    return [*lines, f"{sum(not d for d in done.values())} of {len(done)} to do, about {left:.0f} min on two CPU cores"]


def remembered(file: Path, given: Sequence[str] | None, *, keep: bool) -> list[list[str]]:
    """Each leg's arguments, or those of last time: without them a reader made with them would be made again."""
    if given is None:
        return list(read_json(file)) if file.is_file() else []
    arguments = [shlex.split(leg) for leg in given]
    if keep:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, arguments)
    return arguments


def main() -> None:
    from lm_eval_kinject.corpus.sources.newswire import EDITIONS

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--edition", type=int, choices=EDITIONS, default=max(EDITIONS), help="default: the newest")
    parser.add_argument("--dry-run", action="store_true", help="say what would be done, and do nothing")
    parser.add_argument("--only", default="", help="some stages, separated by commas")
    parser.add_argument("--device", default="cpu", help="of the reader's training: cpu (default), cuda")
    parser.add_argument(
        "--reader-args",
        action="append",
        help="further arguments of kinject_trainer.reader.pretrain; again: a further leg from there; remembered",
    )
    parser.add_argument("--jobs", type=int, default=1, help="stages at a time, each with its share of the cores")
    parser.add_argument("--scratch", action="store_true", help="train the reader from nothing, two hours more")
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "lab", help="folder of what is unfinished")
    given = parser.parse_args()
    work: Path = given.work.resolve()
    reader_args = remembered(work / "reader-args.json", given.reader_args, keep=not given.dry_run)
    lab = Lab(ROOT, work, given.edition, given.device, reader_args, given.scratch, given.jobs)
    stages, notes = lab.stages(), Notes(work / "stages")
    if given.dry_run:
        print("\n".join(plan(stages, notes)))
        return
    try:
        make(stages, notes, [name for name in given.only.split(",") if name], jobs=given.jobs)
    except LabError as problem:
        raise SystemExit(str(problem)) from problem
    if not given.only:
        print((work / "log.md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
