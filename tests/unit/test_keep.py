"""Regularisers: penalties by hand, the Fisher information by brute force, RecAdam against its formula in numpy."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from helpers.tiny_models import make_tiny
from helpers.training import write_corpus, write_recipe
from kinject_trainer import keep
from kinject_trainer.base import Base, load_model
from kinject_trainer.command import train
from kinject_trainer.keep import Pull, RecAdam, fisher, make_pull, target_share, trained
from kinject_trainer.recipe import L2, Ewc, Recadam, Recipe, load_recipe, to_run_again
from safetensors.torch import load_file

from lm_eval_kinject.errors import ArgumentError
from lm_eval_kinject.hub.cards import Run, _settings

BEFORE = "9ff2fc43f4543200b247893d555d804bf5dd990ac8ca69d84bd48c29adc358eb"
"""The fingerprint of `LEAST` in the release before regularisers."""

ROWS = [[1, 5, 9, 13, 17, 21], [1, 6, 10, 14], [1, 30, 31, 32, 33], [7]]
"""The last one predicts nothing, and is no example."""


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    base = Base("m", Path(make_tiny("llama", tmp_path_factory.mktemp("keep"))), "")
    return load_model(base, Recipe(model="m", corpus="c", variant="ft-reg", method="full"))


# Penalties ------------------------------------------------------------------------------------------------------------


class Two(torch.nn.Module):
    """Two numbers, and a third that isn't trained."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
        self.frozen = torch.nn.Parameter(torch.tensor([5.0]), requires_grad=False)


def moved(pull, model):
    """Penalty and gradient after θ went from (1, 2) to (2, 4), beside a target gradient of (10, 20)."""
    model.weight.data = torch.tensor([2.0, 4.0])
    model.weight.grad = torch.tensor([10.0, 20.0])
    pull.add_gradients()
    return pull.value(), model.weight.grad.tolist()


def test_l2_by_hand():
    """½ (1² + 2²), and 2 · ½ · (1, 2)."""
    model = Two()
    assert moved(make_pull(L2(strength=0.5), model, [], 0), model) == (2.5, [11.0, 22.0])


def test_ewc_by_hand():
    """2/2 · (3 · 1² + 1 · 2²), and 2 · (3 · 1, 1 · 2)."""
    model = Two()
    pull = Pull([model.weight], [model.weight.detach().clone()], [torch.tensor([3.0, 1.0])], 2.0)
    assert moved(pull, model) == (7.0, [16.0, 24.0])


@pytest.mark.parametrize("asked", [L2(strength=3), Ewc(kind="ewc", corpus="x"), Ewc(kind="ewc-empirical", corpus="x")])
def test_nothing_at_the_start_and_something_beside_it(model, asked):
    pull = make_pull(asked, model, ROWS, 0)
    for weight in pull.weights:
        weight.grad = torch.zeros_like(weight)
    pull.add_gradients()
    assert pull.value() == 0.0
    assert not any(weight.grad.any() for weight in pull.weights)
    with torch.no_grad():
        pull.weights[0].add_(0.01)
    pull.add_gradients()
    assert pull.value() > 0
    assert pull.weights[0].grad.any()
    assert not any(weight.grad.any() for weight in pull.weights[1:])
    with torch.no_grad():
        pull.weights[0].copy_(pull.start[0])
    model.zero_grad(set_to_none=True)


@pytest.mark.parametrize("asked", [L2(strength=0.3), Ewc(kind="ewc-empirical", corpus="x", strength=50.0)])
def test_its_gradient_is_that_of_its_value(model, asked):
    """By autograd on the penalty as the formula has it."""
    pull = make_pull(asked, model, ROWS, 0)
    torch.manual_seed(2)
    free = [(start + 0.1 * torch.randn_like(start)).requires_grad_() for start in pull.start]
    away = [(f - s) ** 2 for f, s in zip(free, pull.start, strict=True)]
    if isinstance(asked, L2):
        penalty = asked.strength * sum(a.sum() for a in away)
    else:
        penalty = asked.strength / 2 * sum((a * i).sum() for a, i in zip(away, pull.importance, strict=True))
    penalty.backward()
    moved = Pull([f.detach() for f in free], pull.start, pull.importance, pull.factor)
    assert moved.value() == pytest.approx(penalty.item(), rel=1e-4)
    for weight in moved.weights:
        weight.grad = torch.zeros_like(weight)
    moved.add_gradients()
    for ours, its in zip(moved.weights, free, strict=True):
        torch.testing.assert_close(ours.grad, its.grad, rtol=1e-4, atol=1e-6)


# The Fisher information -----------------------------------------------------------------------------------------------


def test_fisher_is_the_mean_of_each_examples_square(model):
    """By brute force, one backward pass each on the text's own tokens; the squared mean gradient is another thing."""
    found = fisher(model, ROWS, sampled=False, seed=0)
    squares = [torch.zeros_like(w) for w in trained(model)]
    means = [torch.zeros_like(w) for w in trained(model)]
    for row in ROWS[:3]:
        model.zero_grad()
        scores = model(torch.tensor([row])).logits[0].log_softmax(-1)
        sum(scores[place, token] for place, token in enumerate(row[1:])).backward()
        for square, mean, weight in zip(squares, means, trained(model), strict=True):
            square += weight.grad**2 / 3
            mean += weight.grad / 3
    model.zero_grad(set_to_none=True)
    for ours, square, mean in zip(found, squares, means, strict=True):
        torch.testing.assert_close(ours, square, rtol=1e-4, atol=1e-7)
        assert (ours >= 0).all()
        assert (ours - mean**2).abs().max() > 0.1 * ours.max()  # far beyond rounding


class Biased(torch.nn.Module):
    """The same three probabilities everywhere, whatever stands before."""

    def __init__(self):
        super().__init__()
        self.bias = torch.nn.Parameter(torch.tensor([0.7, 0.2, 0.1]).log())

    def forward(self, input_ids, use_cache):
        return SimpleNamespace(logits=self.bias.expand(*input_ids.shape, 3))


def test_labels_are_drawn_from_the_model():
    """The information on a softmax's own logits in T draws is T p (1 − p); gold labels, all the rarest, give else."""
    p, rows = np.asarray([0.7, 0.2, 0.1]), [[2, 2, 2, 2]] * 3000
    (found,) = fisher(Biased(), rows, sampled=True, seed=1)
    # The mean of 3,000 squares: its standard error is below .04 of it.
    assert found.tolist() == pytest.approx((3 * p * (1 - p)).tolist(), rel=0.12)
    (gold,) = fisher(Biased(), rows[:5], sampled=False, seed=1)
    assert gold.tolist() == pytest.approx(((3 * (np.eye(3)[2] - p)) ** 2).tolist(), rel=1e-5)


def test_what_is_drawn_is_of_the_seed_and_nothing_else_changes(model):
    model.train()
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    first = fisher(model, ROWS, sampled=True, seed=5)
    torch.manual_seed(4)
    again = fisher(model, ROWS, sampled=True, seed=5)
    torch.manual_seed(3)
    assert torch.equal(before, torch.random.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    other = fisher(model, ROWS, sampled=True, seed=6)
    assert not all(torch.equal(a, b) for a, b in zip(first, other, strict=True))
    assert model.training
    assert all(weight.grad is None for weight in model.parameters())


def test_measuring_draws_no_global_random_numbers(model):
    before = torch.random.get_rng_state()
    fisher(model, ROWS, sampled=True, seed=5)
    assert torch.equal(before, torch.random.get_rng_state())


# RecAdam --------------------------------------------------------------------------------------------------------------


def test_the_targets_share_by_hand():
    assert target_share(250, 0.5, 250) == 0.5
    assert target_share(252, 0.5, 250) == pytest.approx(1 / (1 + math.exp(-1)), abs=1e-15)
    assert target_share(248, 0.5, 250) == pytest.approx(1 - target_share(252, 0.5, 250), abs=1e-15)
    assert (target_share(1, 1.0, 100_000), target_share(100_000, 1.0, 1)) == (0.0, 1.0)  # neither overflows


def test_recadam_against_numpy():
    """Thirty updates under a falling rate, in float64 and written from the formula."""
    rng = np.random.default_rng(0)
    pre = [rng.normal(size=(3, 4)), rng.normal(size=5)]
    ours = [torch.nn.Parameter(torch.tensor(w)) for w in pre]
    first, second, gamma, k, t0, eps = 0.8, 0.99, 40.0, 0.3, 12, 1e-6
    start = [w.detach().clone() for w in ours]
    optimizer = RecAdam(ours, start, lr=0.02, betas=(first, second), gamma=gamma, k=k, t0=t0, eps=eps)
    theirs, m, v = [w.copy() for w in pre], [np.zeros_like(w) for w in pre], [np.zeros_like(w) for w in pre]
    for t in range(1, 31):
        rate = 0.02 * (1 - t / 40)
        optimizer.param_groups[0]["lr"] = rate
        share = 1 / (1 + np.exp(-k * (t - t0)))
        for i, weight in enumerate(ours):
            gradient = np.cos(theirs[i] * (i + 2)) + 0.3 * rng.normal(size=theirs[i].shape)
            weight.grad = torch.tensor(gradient)
            m[i] = first * m[i] + (1 - first) * gradient
            v[i] = second * v[i] + (1 - second) * gradient**2
            direction = m[i] / (np.sqrt(v[i]) + eps) * np.sqrt(1 - second**t) / (1 - first**t)
            theirs[i] = theirs[i] - rate * share * direction
            theirs[i] = theirs[i] - rate * (1 - share) * gamma * (theirs[i] - pre[i])
        optimizer.step()
        for weight, expected in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(weight.detach().numpy(), expected, rtol=0, atol=1e-6)
    assert all(np.abs(w - p).max() > 0.05 for w, p in zip(theirs, pre, strict=True))  # it did move


def test_recadam_goes_on_from_its_state():
    """What a checkpoint holds, with the start from elsewhere, is all that it needs."""
    torch.manual_seed(0)
    gradients = [torch.randn(6) for _ in range(8)]

    def steps(weight, optimizer, part):
        for gradient in part:
            weight.grad = gradient
            optimizer.step()

    keys = {"lr": 0.01, "gamma": 30.0, "k": 0.5, "t0": 4}
    whole = torch.nn.Parameter(torch.ones(6))
    steps(whole, RecAdam([whole], [torch.ones(6)], **keys), gradients)
    half = torch.nn.Parameter(torch.ones(6))
    before = RecAdam([half], [torch.ones(6)], **keys)
    steps(half, before, gradients[:3])
    resumed = torch.nn.Parameter(half.detach().clone())
    after = RecAdam([resumed], [torch.ones(6)], **keys)
    after.load_state_dict(before.state_dict())
    steps(resumed, after, gradients[3:])
    assert torch.equal(resumed, whole)


# The recipe -----------------------------------------------------------------------------------------------------------

LEAST = {"model": "reader", "corpus": "current_events", "variant": "ft-reg", "method": "full", "learning_rate": 1e-4}


def problems(tmp_path, **changes):
    file = tmp_path / "r.yaml"
    file.write_text(yaml.safe_dump({**LEAST, **changes}))
    with pytest.raises(ArgumentError) as caught:
        load_recipe(file)
    return caught.value.problems


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"regulariser": "l3"}, "regulariser: must be none, or {kind: …} with l2, ewc, ewc-empirical or recadam"),
        ({"regulariser": {"strength": 1}}, "regulariser: must be none, or {kind: …}"),
        ({"regulariser": 3}, "regulariser: must be none, or {kind: …}"),
        ({"regulariser": "l2"}, "regulariser.strength: missing; give λ; there is no usual value: try several"),
        ({"regulariser": "ewc"}, "regulariser.corpus: missing; give the texts: `newswire-older`, or what"),
        (
            {"regulariser": {"kind": "l2", "strenght": 1, "strength": 1}},
            "regulariser.strenght: no such key; did you me",
        ),
        ({"regulariser": {"kind": "recadam", "k": 0}}, "regulariser.k: 0: input should be greater than 0"),
        ({"regulariser": "recadam", "method": "lora"}, "regulariser recadam with method lora: an adapter leaves the"),
        ({"regulariser": "recadam", "weight_decay": 0.1}, "weight_decay with regulariser recadam: one pulls to 0"),
        (
            {"regulariser": "recadam", "trainer": {"optim": "sgd"}},
            "trainer.optim: regulariser recadam is the optimizer",
        ),
        (
            {"regulariser": "recadam", "learning_rate": {"rates": [1e-5, 1e-3]}},  # 1e-3 · 5000
            "regulariser recadam: learning rate 0.001 · gamma 5000 · (1 − λ) is 5 at the first update and must be",
        ),
    ],
)
def test_a_regulariser_that_cannot_be(tmp_path, changes, said):
    (problem,) = problems(tmp_path, **changes)
    assert problem.startswith(said)


def test_an_overshooting_pull_is_told_what_would_do(tmp_path):
    (problem,) = problems(tmp_path, regulariser={"kind": "recadam", "gamma": 20_000})  # · 1e-4 = 2
    assert problem.endswith("overshoots: take a learning rate below 5e-05, or gamma below 10000")


def test_recadams_bound_is_at_one(tmp_path):
    """With t0 1 the share at the first update is a half: rate · gamma / 2."""
    assert Recipe(**LEAST, regulariser="recadam").regulariser == Recadam()
    held = {"kind": "recadam", "gamma": 100, "t0": 1}
    assert any("is 1 at the first" in p for p in problems(tmp_path, regulariser=held, learning_rate=0.02))
    file = tmp_path / "good.yaml"
    file.write_text(yaml.safe_dump({**LEAST, "regulariser": held, "learning_rate": 0.0199}))
    assert load_recipe(file).regulariser == Recadam(gamma=100, t0=1)


def test_names_of_recipes(tmp_path):
    plain = Recipe(**LEAST)
    assert plain.fingerprint() == BEFORE
    none = Recipe(**LEAST, regulariser="none")
    assert (none.fingerprint(), none.effective()) == (BEFORE, plain.effective())
    assert "regulariser" not in plain.effective()
    (tmp_path / "past").mkdir()
    held = Recipe(**LEAST, regulariser={"kind": "ewc", "corpus": str(tmp_path / "past")})
    assert held.fingerprint() != BEFORE
    assert held.public()["regulariser"]["corpus"] == "past"
    assert held.effective()["regulariser"] == {"kind": "ewc", "strength": 1000.0, "fisher_examples": 200}
    again = tmp_path / "again.yaml"
    again.write_text(yaml.safe_dump(to_run_again(held.public())))
    assert load_recipe(again).regulariser == Ewc(kind="ewc", corpus="past")


# Runs -----------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("held")
    rows = [{"id": f"o{i}", "text": f"In the year {1900 + i} the mill at the river was sold."} for i in range(5)]
    (folder / "past.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder, make_tiny("llama", folder), write_corpus(folder / "corpus", chunks=6)


def away(place, out):
    """How far a run's weights are from the base's, and its record."""
    before, after = (load_file(Path(f) / "model.safetensors") for f in (place[1], out))
    return math.sqrt(sum(float(((after[n] - before[n]) ** 2).sum()) for n in after))


def held(place, name, **changes):
    folder, model, corpus = place
    out = folder / name
    record = train(write_recipe(folder / f"{name}.yaml", model, corpus, **changes), out=out).record
    return away(place, out), record


def test_a_run_stays_nearer_to_the_start(place, monkeypatch):
    """Two passes make an update, and the penalty's gradient goes in once for each."""
    calls, original = [], keep.Pull.add_gradients
    monkeypatch.setattr(keep.Pull, "add_gradients", lambda self: (calls.append(1), original(self))[1])
    free, _ = held(place, "free")
    assert not calls
    near, record = held(place, "l2", regulariser={"kind": "l2", "strength": 10.0})
    assert len(calls) == record["outcome"]["updates"] > 3
    pulled, _ = held(place, "recadam", regulariser={"kind": "recadam", "gamma": 500, "k": 0.5, "t0": 4})
    assert 0 < near < 0.8 * free
    assert 0 < pulled < 0.8 * free


def test_ewc_is_named_where_it_was_used(place):
    asked = {"kind": "ewc", "corpus": str(place[0] / "past.jsonl"), "fisher_examples": 9, "strength": 50.0}
    _, record = held(place, "ewc", regulariser=asked)
    assert (record["fisher"]["corpus"]["name"], record["fisher"]["examples"]) == ("past", 5)  # no more are there
    assert record["identity"]["fisher corpus"] == record["fisher"]["corpus"]["fingerprint"]
    assert str(place[0]) not in json.dumps(record)
    card = (place[0] / "ewc" / "README.md").read_text()
    assert "held near the base's by the regulariser `ewc` (strength 50, fisher_examples 9)." in card
    assert "measured on 5 texts of `past`" in card
    settings = dict(_settings(Run(**record)))
    assert settings["regulariser"] == "ewc (corpus past.jsonl, strength 50.0, fisher_examples 9)"
    dry = train(place[0] / "ewc.yaml", dry_run=True).estimate
    assert "regulariser ewc: 5 texts pass back one by one before each start of the run" in dry.notes
    plain = train(place[0] / "ewc.yaml", dry_run=True, overrides=["regulariser=none"]).estimate
    assert dry.gigabytes - plain.gigabytes == pytest.approx(8 * dry.trainable / 1e9)
    recadam = ["regulariser={kind: recadam, gamma: 10, k: 1, t0: 12}"]
    late = train(place[0] / "ewc.yaml", dry_run=True, overrides=recadam).estimate
    share = 1 / (1 + math.exp(12 - late.updates))
    assert (
        late.notes[-1]
        == f"regulariser recadam: the target's share λ(t) is {share:.3g} at the last update, {late.updates}"
    )


def test_sharded_weights_are_refused(place, monkeypatch):
    from kinject_trainer.trainer import BlockTrainer

    original = BlockTrainer._hold

    def under_fsdp(self, materials):
        self.is_fsdp_enabled = True
        original(self, materials)

    monkeypatch.setattr(BlockTrainer, "_hold", under_fsdp)
    with pytest.raises(ArgumentError, match="regulariser l2 needs whole weights in each process"):
        held(place, "sharded", regulariser={"kind": "l2", "strength": 1.0})
