"""A run that is killed, at whatever moment, and resumed ends in the bits of one that wasn't."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path

import pytest
from helpers.tiny_models import make_tiny
from helpers.training import read_lines, run, start, write_corpus, write_recipe
from kinject_trainer.command import train
from kinject_trainer.errors import TrainingError

from lm_eval_kinject.provenance import read_json

DEATHS = (
    "update 3",
    "half a checkpoint",
    "before the seal",
    "between old and new",
    "half a result",
    "before the record",
)
KEYS = {"checkpoint_every": 2, "variant": "ft-par", "paraphrases": 1, "seed": 3, "forgetting": True}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("resume")
    (folder / "general.txt").write_text("Rain fell on the hills, and the river rose by the width of a hand. " * 4)
    return folder, make_tiny("llama", folder), write_corpus(folder / "corpus", chunks=6, validation=3)


def recipe_of(place, name, **changes):
    folder, model, corpus = place
    keys = {**KEYS, "general_text": str(folder / "general.txt"), **changes}
    return write_recipe(folder / f"{name}.yaml", model, corpus, **keys)


def weights(out):
    return next(Path(out).glob("*.safetensors")).read_bytes()


def without_speed(out):
    return [{k: v for k, v in e.items() if k != "tokens_per_second"} for e in read_lines(out / "log.jsonl")]


def figures(out):
    return {k: v for k, v in read_json(out / "kinject.json")["outcome"].items() if k != "seconds"}


def same(one, other):
    assert weights(one) == weights(other)
    assert figures(one) == figures(other)
    assert without_speed(one) == without_speed(other)


@pytest.mark.parametrize(("method", "deaths"), [("full", DEATHS), ("lora", DEATHS[1:4])])
def test_killed_at_every_kind_of_moment(place, tmp_path, method, deaths):
    """One run dies several times, each time elsewhere, and is resumed each time."""
    # Dropout draws random numbers, so the generators' state has to survive, too.
    more = {"method": "lora", "rank": 4, "dropout": 0.3} if method == "lora" else {}
    recipe = recipe_of(place, method, **more)
    assert run(recipe, tmp_path / "whole") == 0
    for number, death in enumerate(deaths):
        assert run(recipe, tmp_path / "killed", kill=death, resume=number > 0) == -signal.SIGKILL, death
        assert not (tmp_path / "killed" / "kinject.json").exists()
    assert run(recipe, tmp_path / "killed", resume=True) == 0
    same(tmp_path / "killed", tmp_path / "whole")
    assert not (tmp_path / "killed" / "work").exists()
    # The updates before a checkpoint weren't made again: the log names each once.
    updates = [e["update"] for e in read_lines(tmp_path / "killed" / "log.jsonl") if "loss" in e]
    assert updates == list(range(1, len(updates) + 1))


def test_killed_amid_replay(place, tmp_path):
    """Each epoch draws older texts of its own; whoever resumes in the second one draws the same."""
    rows = [{"id": f"o{i}", "text": f"In the year {1900 + i} the mill at the river was sold."} for i in range(9)]
    (tmp_path / "past.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    replay = {"corpus": str(tmp_path / "past.jsonl"), "ratio": 0.5, "decay": 0.7}
    recipe = recipe_of(place, "replay", replay=replay)
    assert run(recipe, tmp_path / "whole") == 0
    record = read_json(tmp_path / "whole" / "kinject.json")
    first = record["data"]["epoch_tokens"] + record["replay"]["tokens"] * 6 // 10  # of 6 and 4 texts, much alike
    after = first // (4 * 16) + 2  # an update of the second epoch
    assert run(recipe, tmp_path / "killed", kill=f"update {after}") == -signal.SIGKILL
    assert run(recipe, tmp_path / "killed", kill="between old and new", resume=True) == -signal.SIGKILL
    (tmp_path / "past.jsonl").write_text(json.dumps(rows[0]) + "\n")
    with pytest.raises(TrainingError, match=r"work is another one: its replay corpus differ"):
        train(recipe, out=tmp_path / "killed", resume=True)
    (tmp_path / "past.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert run(recipe, tmp_path / "killed", resume=True) == 0
    same(tmp_path / "killed", tmp_path / "whole")


@pytest.mark.parametrize("kind", ["l2", "ewc", "ewc-empirical", "recadam"])
def test_killed_under_a_regulariser(place, tmp_path, kind):
    """Whoever resumes is held at the base and not at the checkpoint, by the same importance of each weight."""
    (tmp_path / "past.jsonl").write_text(
        "".join(json.dumps({"text": f"Rain fell on hill {n}."}) + "\n" for n in range(5))
    )
    constants = {
        "l2": {"strength": 2.0},
        "recadam": {"gamma": 500.0, "k": 0.5, "t0": 4},
    }.get(kind, {"corpus": str(tmp_path / "past.jsonl"), "fisher_examples": 3})
    recipe = recipe_of(place, kind, regulariser={"kind": kind, **constants})
    assert run(recipe, tmp_path / "whole") == 0
    assert run(recipe, tmp_path / "killed", kill="update 5") == -signal.SIGKILL
    assert run(recipe, tmp_path / "killed", kill="half a result", resume=True) == -signal.SIGKILL
    assert run(recipe, tmp_path / "killed", resume=True) == 0
    same(tmp_path / "killed", tmp_path / "whole")


def test_killed_at_some_moment(place, tmp_path):
    """By another process, whenever: mostly between the moments that one thinks of."""
    recipe = recipe_of(place, "some")
    began = time.monotonic()
    assert run(recipe, tmp_path / "whole") == 0
    lasted = time.monotonic() - began
    for share in (0.6, 0.9):
        process = start(recipe, tmp_path / "killed", resume=True)
        process.join(timeout=share * lasted)
        process.kill()
        process.join()
    assert run(recipe, tmp_path / "killed", resume=True) == 0
    same(tmp_path / "killed", tmp_path / "whole")


def test_checkpoint_of_another_run_is_refused(place, tmp_path):
    recipe = recipe_of(place, "first")
    assert run(recipe, tmp_path / "out", kill="update 5") == -signal.SIGKILL
    before = sorted((f, f.stat().st_mtime_ns) for f in (tmp_path / "out").rglob("*") if f.is_file())
    with pytest.raises(TrainingError, match=r"unfinished run: go on with --resume"):
        train(recipe, out=tmp_path / "out")
    other = recipe_of(place, "second", epochs=3, seed=4)
    with pytest.raises(TrainingError, match=r"work is another one: its epochs, seed differ"):
        train(other, out=tmp_path / "out", resume=True)
    assert sorted((f, f.stat().st_mtime_ns) for f in (tmp_path / "out").rglob("*") if f.is_file()) == before
    (tmp_path / "out" / "work" / "run.json").unlink()
    with pytest.raises(TrainingError, match=r"checkpoint-4 is of another run: its epochs, seed differ"):
        train(other, out=tmp_path / "out", resume=True)
    assert run(recipe, tmp_path / "out", resume=True) == 0


def test_unfinished_work_without_a_checkpoint_is_of_its_run_too(place, tmp_path):
    """Another number of rates lets a search look for its checkpoints in other folders."""
    assert run(recipe_of(place, "third"), tmp_path / "out", kill="update 1") == -signal.SIGKILL
    other = recipe_of(place, "fourth", learning_rate={"rates": [1e-4, 1e-3]})
    with pytest.raises(TrainingError, match=r"work is another one: its learning_rates differ"):
        train(other, out=tmp_path / "out", resume=True)
