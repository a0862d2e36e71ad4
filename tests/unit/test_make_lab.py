"""`make lab`: stages are done in order, once, again when what they are made from changed, and go on where stopped."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pyarrow.parquet as pq
import pytest
from helpers.local_tasks import ROOT

from lm_eval_kinject.corpus import make_corpus
from lm_eval_kinject.corpus.sources.files import Source
from lm_eval_kinject.corpus.sources.newswire import edition as edition_module
from lm_eval_kinject.corpus.sources.newswire import make_edition, size_for
from lm_eval_kinject.hub import adapters as adapters_module
from lm_eval_kinject.records import Chunk


def _module() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_lab", ROOT / "benchmarks" / "make_lab.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["make_lab"] = module
    spec.loader.exec_module(module)
    return module


lab = _module()


# The engine -----------------------------------------------------------------------------------------------------------


class Kitchen:
    """Three stages: b and c are made from a."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.did = folder, list[str]()
        self.given = {"a": 1, "b": 1, "c": 1}
        self.fails: str | None = None
        self.notes = lab.Notes(folder / "stages")

    def stages(self) -> list[Any]:
        def stage(name: str, *after: str) -> Any:
            def run() -> None:
                self.did.append(name)
                if self.fails == name:
                    raise lab.LabError("no")
                (self.folder / name).write_text(f"{name}{self.given[name]}")

            return lab.Stage(name, 1.5, after, lambda: self.given[name], lambda: [self.folder / name], run)

        return [stage("a"), stage("b", "a"), stage("c", "a")]

    def make(self, only: Sequence[str] = ()) -> str:
        self.did.clear()
        lab.make(self.stages(), self.notes, only, say=lambda text: None)
        return "".join(self.did)

    def done(self) -> str:
        return "".join(name for name, is_done in lab.status(self.stages(), self.notes).items() if is_done)


def test_what_is_up_to_date_is_not_done_again(tmp_path: Path) -> None:
    kitchen = Kitchen(tmp_path)
    assert (kitchen.done(), kitchen.make(), kitchen.done(), kitchen.make()) == ("", "abc", "abc", "")
    kitchen.given["b"] = 2
    assert (kitchen.done(), kitchen.make()) == ("ac", "b")
    kitchen.given["a"] = 2  # until a is made again, nothing behind it counts; then b and c still fit
    assert (kitchen.done(), kitchen.make()) == ("", "a")
    (tmp_path / "c").write_text("changed by hand")
    assert (kitchen.done(), kitchen.make()) == ("ab", "c")
    (tmp_path / "b").unlink()
    assert kitchen.make() == "b"


def test_it_goes_on_where_it_stopped(tmp_path: Path) -> None:
    kitchen = Kitchen(tmp_path)
    kitchen.fails = "b"
    with pytest.raises(lab.LabError, match="no"):
        kitchen.make()
    assert (kitchen.did, kitchen.done()) == (["a", "b"], "a")
    kitchen.fails = None
    assert kitchen.make() == "bc"


def test_two_at_a_time(tmp_path: Path) -> None:
    """b and c can end only together: each waits for the other to begin. d needs both."""
    began, did = {"b": threading.Event(), "c": threading.Event()}, list[str]()

    def stage(name: str, *after: str, fails: bool = False) -> Any:
        def run() -> None:
            if name in began:
                began[name].set()
                assert began["c" if name == "b" else "b"].wait(20)
            if fails:
                raise lab.LabError("no")
            did.append(name)
            (tmp_path / name).write_text(name)

        return lab.Stage(name, 1, after, lambda: 1, lambda: [tmp_path / name], run)

    notes = lab.Notes(tmp_path / "stages")

    def make(failing: bool) -> None:
        stages = [stage("a"), stage("b", "a", fails=failing), stage("c", "a"), stage("d", "b", "c")]
        lab.make(stages, notes, say=lambda text: None, jobs=2)

    with pytest.raises(lab.LabError, match="no"):
        make(failing=True)
    assert did == ["a", "c"]  # c ended, and is noted
    began["c"].set()
    make(failing=False)
    assert did == ["a", "c", "b", "d"]


def test_some_stages_only(tmp_path: Path) -> None:
    kitchen = Kitchen(tmp_path)
    with pytest.raises(lab.LabError, match="c needs a, which isn't up to date"):
        kitchen.make(["c"])
    assert (kitchen.make(["a"]), kitchen.make(["c"]), kitchen.done()) == ("a", "c", "ac")
    with pytest.raises(lab.LabError, match="no stage d; there are a, b, c"):
        kitchen.make(["d"])


def test_a_stage_that_makes_nothing_is_not_done(tmp_path: Path) -> None:
    stage = lab.Stage("x", 1.0, (), lambda: 1, lambda: [tmp_path / "x"], lambda: None)
    with pytest.raises(lab.LabError, match="x ended without"):
        lab.make([stage], lab.Notes(tmp_path / "stages"), say=lambda text: None)
    assert lab.status([stage], lab.Notes(tmp_path / "stages")) == {"x": False}


def test_a_dry_run_counts_what_is_left(tmp_path: Path) -> None:
    kitchen = Kitchen(tmp_path)
    kitchen.make(["a"])
    lines = lab.plan(kitchen.stages(), kitchen.notes)
    assert [line.split(maxsplit=1) for line in lines[:3]] == [
        ["a", "up to date"],
        ["b", "to do, about 1.5 min"],
        ["c", "to do, about 1.5 min"],
    ]
    assert lines[3] == "2 of 3 to do, about 3 min on two CPU cores"


def test_the_readers_arguments_are_remembered(tmp_path: Path) -> None:
    file = tmp_path / "work" / "args.json"
    assert lab.remembered(file, None, keep=True) == []
    assert lab.remembered(file, ["--dropout 0.1"], keep=False) == [["--dropout", "0.1"]]
    assert not file.exists()
    assert lab.remembered(file, ["--dropout 0.1", "--seed 1"], keep=True) == [["--dropout", "0.1"], ["--seed", "1"]]
    assert lab.remembered(file, None, keep=True) == [["--dropout", "0.1"], ["--seed", "1"]]


# The lab's own stages, with a stand-in for what takes hours -----------------------------------------------------------


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    root = tmp_path / "checkout"
    for part in (
        "tasks/current_events", "trainer/recipes", "adapters", "docs/reader", "lm_eval_kinject/assets/reader",
        "lm_eval_kinject/corpus/sources/newswire", "tests/gold",
    ):  # fmt: skip
        shutil.copytree(ROOT / part, root / part)
    shutil.copyfile(ROOT / "README.md", root / "README.md")
    return root


def test_the_question_of_the_readme_stays_while_it_has_an_answer() -> None:
    def corpus(*storms: str) -> Any:
        chunks = [Chunk(f"c{n}", f"Storm {storm} struck the coast") for n, storm in enumerate(storms)]
        return make_corpus("news", Source(chunks, "made up"))

    asked = "Who led the rescue during Storm Ironfinch?"
    assert lab.answered(corpus("Ambercrest", "Ironfinch"), asked) == (asked, "c1")
    assert lab.answered(corpus("Ambercrest", "Hollowmere"), asked) == (asked.replace("Ironfinch", "Ambercrest"), "c0")
    with pytest.raises(lab.LabError, match="no storm"):
        lab.answered(make_corpus("news", Source([Chunk("c0", "It rained")], "made up")), asked)


class StandIn:
    """Takes the place of the processes: writes what each would write, and may fail or be stopped at one."""

    def __init__(self) -> None:
        self.commands: list[str] = []
        self.fails_at = "nothing"

    def __call__(self, made: Any, *arguments: str, to: Path | None = None) -> None:
        command = " ".join(Path(one).name if one.startswith("/") else one for one in arguments)
        self.commands.append(command)
        if self.fails_at in command:
            raise lab.LabError(f"stopped at {command}")
        out = Path(arguments[arguments.index("--out") + 1]) if "--out" in arguments else None
        if "pretrain" in command:
            assert out is not None
            shutil.copytree(ROOT / "lm_eval_kinject" / "assets" / "reader", out / "model")
            (out / "model" / "model.safetensors").write_bytes(b"new weights")
            (out / "log.jsonl").write_text('{"phase": "mixed"}\n')
        elif "kinject_trainer recipe" in command or "kinject_trainer reader-" in command:
            assert out is not None
            out.mkdir(parents=True)
            (out / "kinject.json").write_text("{}")
        elif "--output_path" in arguments:
            scores = Path(arguments[arguments.index("--output_path") + 1])
            scores.mkdir(parents=True)
            (scores / "results.json").write_text("{}")
        elif out is not None:
            out.parent.mkdir(parents=True, exist_ok=True)
            out.write_text("{}")
        if to is not None:
            to.parent.mkdir(parents=True, exist_ok=True)
            to.write_text(f"what {Path(arguments[0]).name} says\n")


def test_the_lab_is_made_once_in_order_and_goes_on(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def small(seed: int, *, edition: int) -> Any:
        return make_edition(seed, size_for(300), edition=edition)

    def bundled(run: Path, name: str, registry: Path, **kwargs: Any) -> None:
        (registry / name).mkdir()
        (registry / name / "kinject.json").write_text(f"of {run.name}")
        (registry / f"{name}.yaml").write_text("made anew")

    stand_in = StandIn()
    monkeypatch.setattr(
        lab.Lab, "_python", lambda self, *arguments, to=None, alone=False: stand_in(self, *arguments, to=to)
    )
    monkeypatch.setattr(edition_module, "make_edition", small)
    monkeypatch.setattr(adapters_module, "bundle", bundled)
    work = checkout / "runs" / "lab"

    def stages() -> list[Any]:
        return list(lab.Lab(checkout, work, 2, reader_args=[["--seed", "1"], ["--seed", "2"]]).stages())

    def make() -> list[str]:
        stand_in.commands.clear()
        lab.make(stages(), lab.Notes(work / "stages"), say=lambda text: None)
        return stand_in.commands

    recipes = sorted(file.stem for file in (checkout / "trainer" / "recipes").glob("reader-*.yaml"))
    adapters = ["reader-ft-par-lora", "reader-ft-reg-lora"]
    stand_in.fails_at = "kinject_trainer reader-ft-reg-lora"
    with pytest.raises(lab.LabError, match="stopped at"):
        make()
    stand_in.fails_at = "nothing"
    first, second = stand_in.commands[:2]
    for command, start, seed in ((first, "start", 1), (second, "model", 2)):
        assert re.search(rf"pretrain .*--start {start} .*--seed {seed} ", command)
    log = (checkout / "docs" / "reader" / "log.jsonl").read_text()
    assert log == '{"phase": "mixed"}\n{"phase": "mixed, leg 2"}\n'
    left = make()
    assert not any("pretrain" in command for command in left)  # two hours that aren't spent again
    assert [c for c in left if "-m lm_eval_kinject" in c] != []
    assert make() == []
    assert all(lab.status(stages(), lab.Notes(work / "stages")).values())

    assert edition_module.bundled_edition(checkout / "tasks" / "current_events") == 2
    assert (checkout / "lm_eval_kinject" / "assets" / "reader" / "model.safetensors").read_bytes() == b"new weights"
    assert (work / "start" / "model.safetensors").stat().st_size > 1_000_000  # what it started from
    pins = json.loads((checkout / "tests" / "gold" / "lab.json").read_text())
    assert (pins["edition"], pins["reader"]["edition"], pins["revision"]) == (2, 2, "newswire2-2042")
    asked = re.findall(r'kinject retrieve "(.+?)"', (checkout / "README.md").read_text())
    assert asked == [pins["readme"]["question"]]
    chunks = pq.read_table(checkout / "tasks" / "current_events" / "corpus" / "chunks.parquet").to_pylist()
    (storm,) = [row for row in chunks if row["id"] == pins["readme"]["chunk"]]
    assert asked == [f"Who led the rescue during Storm {json.loads(storm['facts'])['storm']}?"]
    for name in adapters:
        assert (checkout / "adapters" / name / "kinject.json").read_text() == f"of {name}"
        assert (checkout / "adapters" / f"{name}.yaml").read_text() == "made anew"
    log = (work / "log.md").read_text()
    assert [line for line in log.splitlines() if line.startswith("### ")] == [
        "### lab", "### newswire", "### retrieval", "### runs", "### multihop"
    ]  # fmt: skip

    # A changed recipe is trained again, and only what is made of it is made again.
    recipe = checkout / "trainer" / "recipes" / "reader-ft-reg.yaml"
    recipe.write_text(recipe.read_text().replace("epochs: 5", "epochs: 6"))
    again = make()
    assert sum("-m kinject_trainer " in command for command in again) == 1
    assert sum("--runs" in command for command in again) == 1
    assert len(again) == 2
    assert len(recipes) >= 5
