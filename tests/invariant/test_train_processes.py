"""Two processes make of a recipe what one makes; so do other divisions of the batch, and recomputed activations."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from accelerate.commands.config.config_args import ClusterConfig, load_config_from_file
from accelerate.commands.launch import launch_command_parser
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from helpers.tiny_models import make_tiny
from helpers.training import free_port, read_lines, run, start, write_corpus, write_recipe
from kinject_trainer.__main__ import main
from kinject_trainer.command import train
from kinject_trainer.recipe import recipes_dir
from safetensors.torch import load_file


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes")
    return folder, make_tiny("llama", folder), write_corpus(folder / "corpus")


def losses(out):
    return [(e["update"], e.get("loss", e.get("validation_loss"))) for e in read_lines(out / "log.jsonl")]


def close(one, other, tolerance):
    assert [u for u, _ in losses(one)] == [u for u, _ in losses(other)]
    assert max(abs(a - b) for (_, a), (_, b) in zip(losses(one), losses(other), strict=True)) < tolerance


@pytest.mark.parametrize(
    "keys",
    [
        {"epochs": 2},
        {"epochs": 1.93},
        {"epochs": 1, "regulariser": {"kind": "ewc", "corpus": "PAST", "strength": 3.0}},
        {"epochs": 1, "regulariser": {"kind": "recadam", "gamma": 500, "k": 0.5, "t0": 4}},
    ],
    ids=["2", "1.93", "ewc", "recadam"],
)
def test_two_gloo_processes_equal_one(place, tmp_path, keys):
    """Also where the last update can't be shared evenly: the numbers of epochs leave other remainders."""
    folder, model, corpus = place
    if keys.get("regulariser", {}).get("corpus") == "PAST":
        (folder / "past.jsonl").write_text('{"text": "Rain fell on the hills."}\n{"text": "The river rose."}\n')
        keys = {**keys, "regulariser": {**keys["regulariser"], "corpus": str(folder / "past.jsonl")}}
    recipe = write_recipe(folder / "two.yaml", model, corpus, micro_batch=1, checkpoint_every=3, **keys)
    assert run(recipe, tmp_path / "one") == 0
    port = free_port()
    both = [start(recipe, tmp_path / "two", rank=rank, world=2, port=port) for rank in range(2)]
    for process in both:
        process.join(timeout=120)
    assert [process.exitcode for process in both] == [0, 0]
    close(tmp_path / "one", tmp_path / "two", 1e-4)
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    assert max(float((one[k] - two[k]).abs().max()) for k in one) < 1e-5


def test_two_processes_share_lessons(place, tmp_path):
    """A cartridge's lessons, an odd number of them: in the last update one process has none."""
    folder, model, corpus = place
    keys = {"method": "cartridge", "cartridge": {"tokens": 8, "lessons": 1}, "block_size": 96, "epochs": 1.1}
    recipe = write_recipe(folder / "lessons.yaml", model, corpus, micro_batch=1, **keys)
    assert run(recipe, tmp_path / "one") == 0
    port = free_port()
    both = [start(recipe, tmp_path / "two", rank=rank, world=2, port=port) for rank in range(2)]
    for process in both:
        process.join(timeout=120)
    assert [process.exitcode for process in both] == [0, 0]
    close(tmp_path / "one", tmp_path / "two", 1e-4)
    one, two = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("one", "two"))
    assert float((one["prompt_embeddings"] - two["prompt_embeddings"]).abs().max()) < 1e-5


def test_torchrun_equals_one_process(place, tmp_path):
    """The module that launchers start, under torch's own launcher."""
    folder, model, corpus = place
    recipe = write_recipe(folder / "launched.yaml", model, corpus, epochs=1, micro_batch=1)
    assert run(recipe, tmp_path / "one") == 0
    launcher = ["torch.distributed.run", "--nproc_per_node", "2", "--master_port", str(free_port())]
    done = subprocess.run(
        [sys.executable, "-m", *launcher, "-m", "kinject_trainer", str(recipe), "--out", str(tmp_path / "two")],
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.splitlines() == [str(tmp_path / "two")]  # one of the two speaks
    close(tmp_path / "one", tmp_path / "two", 1e-4)


def test_the_fsdp_configuration_is_one_that_accelerate_takes(monkeypatch):
    """Read by its own class, which refuses unknown keys, and turned into the plugin that a run under it gets."""
    found = load_config_from_file(str(recipes_dir() / "fsdp.yaml"))
    assert isinstance(found, ClusterConfig)
    assert (found.distributed_type, found.num_processes, found.mixed_precision) == (DistributedType.FSDP, 4, "bf16")
    for key, value in found.fsdp_config.items():  # as `accelerate launch` hands them on
        monkeypatch.setenv(key.upper(), str(value))
    plugin = FullyShardedDataParallelPlugin()
    assert (plugin.fsdp_version, plugin.reshard_after_forward) == (2, True)
    assert plugin.state_dict_type.name == "FULL_STATE_DICT"
    assert type(plugin.cpu_offload).__name__ == "OffloadPolicy"  # the one that offloads nothing
    # Each key is one that `accelerate launch` knows an argument for: it passes over others without a word.
    known = vars(launch_command_parser().parse_args(["script"]))
    assert set(found.fsdp_config) <= set(known)


def test_launchers_find_the_bundled_recipes(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["kinject_trainer", "--recipes"])
    assert main() == 0
    assert (Path(capsys.readouterr().out.strip()) / "fsdp.yaml").is_file()
    monkeypatch.setattr(sys, "argv", ["kinject_trainer"])
    with pytest.raises(SystemExit):
        main()
    assert "name a recipe" in capsys.readouterr().err


def test_a_batch_that_two_processes_cannot_share_is_refused_before_training(place, tmp_path):
    """The command itself must know how many processes there are: it is what lets one write while others wait."""
    folder, model, corpus = place
    recipe = write_recipe(folder / "odd.yaml", model, corpus, global_batch=3, micro_batch=1)
    port = free_port()
    both = [start(recipe, tmp_path / "odd", rank=rank, world=2, port=port) for rank in range(2)]
    for process in both:
        process.join(timeout=120)
    assert [process.exitcode for process in both] == [1, 1]
    assert not (tmp_path / "odd").exists()


@pytest.mark.parametrize(
    "changes",
    [{"micro_batch": 1}, {"micro_batch": 4}, {"gradient_checkpointing": True}, {"stream": True}],
    ids=lambda changes: next(iter(changes)) + str(next(iter(changes.values()))),
)
def test_how_a_batch_is_computed_changes_nothing(place, tmp_path, changes):
    folder, model, corpus = place
    for name, keys in (("plain", {}), ("changed", changes)):
        train(write_recipe(folder / f"{name}.yaml", model, corpus, **keys), out=tmp_path / name)
    close(tmp_path / "plain", tmp_path / "changed", 1e-5)
