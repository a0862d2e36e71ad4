"""Two processes make of a recipe what one makes; so do other divisions of the batch, and recomputed activations."""

from __future__ import annotations

import pytest
from helpers.tiny_models import make_tiny
from helpers.training import free_port, read_lines, run, start, write_corpus, write_recipe
from kinject_trainer.command import train
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


@pytest.mark.parametrize("epochs", [2, 1.93])
def test_two_gloo_processes_equal_one(place, tmp_path, epochs):
    """Also where the last update can't be shared evenly: the numbers of epochs leave other remainders."""
    folder, model, corpus = place
    recipe = write_recipe(folder / "two.yaml", model, corpus, epochs=epochs, micro_batch=1, checkpoint_every=3)
    assert run(recipe, tmp_path / "one") == 0
    port = free_port()
    both = [start(recipe, tmp_path / "two", rank=rank, world=2, port=port) for rank in range(2)]
    for process in both:
        process.join(timeout=120)
    assert [process.exitcode for process in both] == [0, 0]
    close(tmp_path / "one", tmp_path / "two", 1e-4)
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    assert max(float((one[k] - two[k]).abs().max()) for k in one) < 1e-5


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
