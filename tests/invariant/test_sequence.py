"""Sequences: what each mode is equal to, what a merge adds, what is asked when, and that a kill changes no bit."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path

import pytest
import torch
from helpers.months import write_month, write_sequence
from helpers.tiny_models import make_tiny
from helpers.training import read_lines, run, write_recipe
from kinject_trainer.base import find_base
from kinject_trainer.command import train
from kinject_trainer.errors import TrainingError
from kinject_trainer.recipe import Recipe
from kinject_trainer.sequence import train_sequence
from kinject_trainer.sequence.merge import MergedFrom, merge
from kinject_trainer.sequence.plan import Merge
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from lm_eval_kinject.errors import CorpusError
from lm_eval_kinject.hub.cards import CardFacts, read_run, render_card
from lm_eval_kinject.hub.content import collect
from lm_eval_kinject.provenance import read_json

ADAPTERS = {"mode": "adapter-a-month", "method": "lora", "rank": 2, "alpha": 6, "learning_rate": 0.02}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sequence")
    return folder, make_tiny("llama", folder), [write_month(folder, number) for number in range(3)]


def sequence_of(place, stem, months=3, **changes):
    folder, model, listed = place
    return write_sequence(folder / f"{stem}.yaml", model, listed[:months], **changes)


def weights(folder):
    return load_file(next(folder.glob("*.safetensors")))


def same(one, other):
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)


@pytest.fixture(scope="module")
def stacked(place):
    done = train_sequence(sequence_of(place, "stacked", **ADAPTERS, merge="stacked"), out=place[0] / "stacked")
    return done.folder, done.record


# What a mode is equal to ----------------------------------------------------------------------------------------------


def test_continued_is_each_month_trained_on_the_one_before(place, tmp_path):
    _, model, months = place
    done = train_sequence(sequence_of(place, "on", 2), out=tmp_path / "on")
    first = train(write_recipe(tmp_path / "1.yaml", model, months[0]["corpus"]), out=tmp_path / "first")
    assert first.folder is not None
    second = write_recipe(tmp_path / "2.yaml", str(first.folder), months[1]["corpus"])
    train(second, out=tmp_path / "second")
    same(weights(done.folder / "months" / "on-2026-01"), weights(tmp_path / "first"))
    same(weights(done.folder / "months" / "on-2026-02"), weights(tmp_path / "second"))
    assert read_json(done.folder / "months" / "on-2026-02" / "kinject.json")["base"]["name"] == "on-2026-01"


def test_retrained_is_the_base_trained_on_all_months_so_far(place, tmp_path):
    model = place[1]
    done = train_sequence(sequence_of(place, "anew", 2, mode="retrained"), out=tmp_path / "anew")
    both = done.folder / "corpora" / "through-2026-02"
    plain = train(write_recipe(tmp_path / "1.yaml", model, str(both)), out=tmp_path / "plain")
    same(weights(done.folder / "months" / "anew-2026-02"), weights(plain.folder))
    assert plain.record["data"]["chunks"] == 8
    assert read_json(done.folder / "months" / "anew-2026-02" / "kinject.json")["base"]["name"] == "llama-0-2048"


def test_an_adapter_a_month_is_each_trained_alone(place, stacked, tmp_path):
    _, model, months = place
    keys = {key: value for key, value in ADAPTERS.items() if key != "mode"}
    alone = train(write_recipe(tmp_path / "2.yaml", model, months[1]["corpus"], **keys), out=tmp_path / "second")
    same(weights(stacked[0] / "months" / "stacked-2026-02"), weights(alone.folder))


# Merging --------------------------------------------------------------------------------------------------------------


def added(folder):
    """Module -> what an adapter adds to its weight: alpha / rank · B A."""
    settings, there = read_json(folder / "adapter_config.json"), weights(folder)
    scale = settings["lora_alpha"] / settings["r"]
    stems = {key.removesuffix(".lora_A.weight") for key in there if key.endswith(".lora_A.weight")}
    return {stem: scale * there[f"{stem}.lora_B.weight"] @ there[f"{stem}.lora_A.weight"] for stem in stems}


def test_stacked_adapters_add_what_they_add_one_by_one(stacked):
    folder, _ = stacked
    months = [added(folder / "months" / f"stacked-2026-0{number}") for number in (1, 2, 3)]
    for upto in (1, 2, 3):
        merged = folder / "merged" / f"stacked-2026-0{upto}"
        assert read_json(merged / "adapter_config.json")["r"] == 2 * upto
        found = added(merged)
        assert len(found) == 14  # seven linear layers in each of two blocks
        for stem, sum_of_it in found.items():
            torch.testing.assert_close(sum_of_it, sum(month[stem] for month in months[:upto]), atol=1e-6, rtol=1e-5)


def merged_from(stacked, model, into, kind, **constants):
    """The first two months of the stacked sequence, which were trained once, merged in another way."""
    runs = [stacked[0] / "months" / f"stacked-2026-0{number}" for number in (1, 2)]
    base = find_base(Recipe(model=model, corpus="?", variant="ft-reg"))
    corpus = {"name": "both", "fingerprint": "0" * 64}
    how = Merge(kind=kind, **constants)
    merge(MergedFrom("mine", base, ("2026-01", "2026-02"), runs, corpus, how, seed=5), into)
    return [weights(run) for run in runs], weights(into)


def test_weighted_is_pefts_linear_by_hand(place, stacked, tmp_path):
    """A = Σ √(w·alpha/rank) A_i, and so B, with w = 1/2 of two months; alpha/rank is 3 for each, then 1."""
    (one, two), found = merged_from(stacked, place[1], tmp_path / "mean", "weighted")
    for key in found:
        torch.testing.assert_close(found[key], (0.5 * 3) ** 0.5 * (one[key] + two[key]))
    assert read_json(tmp_path / "mean" / "kinject.json")["merged"]["weight"] == 0.5


def ties(matrices, density, weight):
    """TIES: the largest of each, the sign of their sum, the mean of those that have it, each times the weight."""
    trimmed = []
    for matrix in matrices:
        least = matrix.abs().flatten().sort(descending=True).values[int(density * matrix.numel()) - 1]
        trimmed.append(torch.where(matrix.abs() >= least, matrix, 0.0) * weight)
    sign = torch.where(sum(trimmed) >= 0, 1.0, -1.0)
    agreeing = [torch.where(matrix.sign() == sign, matrix, 0.0) for matrix in trimmed]
    count = sum((matrix.sign() == sign).float() for matrix in trimmed)
    return sum(agreeing) / count.clamp(min=1)


def test_ties_by_hand(place, stacked, tmp_path):
    (one, two), found = merged_from(stacked, place[1], tmp_path / "ties", "ties", density=0.25)
    for key in found:
        torch.testing.assert_close(found[key], ties([one[key], two[key]], 0.25, 3**0.5))


def test_dare_drops_by_the_seed(place, stacked, tmp_path):
    """With a density of 1 nothing is dropped: it is TIES of all; else the seed says what."""
    (one, two), found = merged_from(stacked, place[1], tmp_path / "all", "dare_ties", density=1.0)
    for key in found:
        torch.testing.assert_close(found[key], ties([one[key], two[key]], 1.0, 3**0.5))
    _, first = merged_from(stacked, place[1], tmp_path / "first", "dare_ties", density=0.25)
    torch.rand(3)
    _, second = merged_from(stacked, place[1], tmp_path / "second", "dare_ties", density=0.25)
    same(first, second)
    kept = sum(float((value != 0).float().mean()) for value in first.values()) / len(first)
    assert 0.25 < kept < 0.45  # 1 − .75² of both, less what has the wrong sign


def test_a_merged_run_is_one_that_can_be_published(stacked):
    merged = stacked[0] / "merged" / "stacked-2026-03"
    found = read_run(merged)
    assert (found.is_adapter, found.recipe.rank, found.corpus.name) == (True, 6, "through-2026-03")
    card = render_card(found, CardFacts(repo_id="me/merged", base="me/base", base_revision="0" * 40))
    assert (
        "PEFT's `cat` from adapters that were trained one by one, each on a part of the corpus: 2026-01, 2026-02"
        in card
    )
    content = collect(merged)
    content.check()
    assert {"adapter_model.safetensors", "adapter_config.json", "kinject.json", "tokenizer.json"} <= set(content.files)
    assert "training_args.bin" not in content.files


# What is asked --------------------------------------------------------------------------------------------------------


def by_hand(folder, model, month):
    """Accuracy on a month's questions, an option at a time, without padding; the adapter's weights added by hand."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    net = AutoModelForCausalLM.from_pretrained(model)
    with torch.no_grad():
        for stem, more in (added(folder) if folder else {}).items():
            net.get_submodule(stem.removeprefix("base_model.model.")).weight += more
    right = []
    for asked in read_lines(Path(month["questions"])):
        scores = []
        for choice in asked["choices"]:
            prompt = tokenizer.encode(f"Question: {asked['question']}\nAnswer:")
            ids = torch.tensor([tokenizer.encode(f"Question: {asked['question']}\nAnswer: {choice}")])
            with torch.no_grad():
                logs = net(ids).logits[0, :-1].log_softmax(-1)
            scores.append(float(logs.gather(-1, ids[0, 1:, None])[len(prompt) - 1 :].sum()))
        right.append(scores.index(max(scores)) == asked["answer"])
    return sum(right) / len(right)


def test_the_matrix_is_what_each_model_answers(place, stacked):
    folder, record = stacked
    _, model, months = place
    models = [None, *(folder / "merged" / f"stacked-2026-0{number}" for number in (1, 2, 3))]
    assert record["accuracy"] == [[by_hand(of, model, month) for month in months] for of in models]
    assert len({tuple(row) for row in record["accuracy"]}) > 1  # something was learned, or the test could not fail
    assert record["averages"][2] == pytest.approx(sum(record["accuracy"][3]) / 3)


def test_routed_questions_go_to_the_adapter_of_their_month(place, stacked, tmp_path):
    """The months' runs are those of the stacked sequence, which are there and not trained again."""
    _, model, months = place
    shutil.copytree(stacked[0] / "months", tmp_path / "routed" / "months")
    file = sequence_of(place, "routed", name="stacked", **ADAPTERS, merge="routed")
    done = train_sequence(file, out=tmp_path / "routed")
    alone = [stacked[0] / "months" / f"stacked-2026-0{number}" for number in (1, 2, 3)]
    assert [(tmp_path / "routed" / "months" / run.name / "kinject.json").read_bytes() for run in alone] == [
        (run / "kinject.json").read_bytes() for run in alone
    ]
    own = [[by_hand(of, model, month) for month in months] for of in (None, *alone)]
    base, one, two, three = own
    assert done.record["accuracy"] == [base, one, [one[0], two[1], two[2]], [one[0], two[1], three[2]]]
    assert done.record["measures"]["backward_transfer"] == 0
    assert not (done.folder / "merged").exists()


def test_what_was_known_before_is_measured_after_each_month(place, tmp_path):
    (tmp_path / "general.txt").write_text("Rain fell on the hills, and the river rose by the width of a hand. " * 6)
    how = {"forgetting": True, "general_text": str(tmp_path / "general.txt"), "epochs": 1}
    done = train_sequence(sequence_of(place, "known", 2, **how), out=tmp_path / "known")
    first, second = (
        read_json(done.folder / "months" / f"known-2026-0{number}" / "kinject.json")["outcome"] for number in (1, 2)
    )
    found = [one["perplexity"] for one in done.record["forgetting"]]
    assert found == pytest.approx([first["before"]["perplexity"], *(o["after"]["perplexity"] for o in (first, second))])
    assert second["before"]["perplexity"] == pytest.approx(first["after"]["perplexity"])
    assert "general.txt" in (done.folder / "README.md").read_text()


def test_the_report_says_it_all(stacked):
    folder, record = stacked
    said = (folder / "README.md").read_text()
    cells = " | ".join(f"{value:.3f}" for value in record["accuracy"][3])
    assert f"| 2026-03 | {cells} | {record['averages'][2]:.3f} |" in said
    assert f"| backward transfer | {record['measures']['backward_transfer']:+.3f} |" in said
    assert "| 2026-02 | `merged/stacked-2026-02` | 2026-02 |" in said
    assert (folder / "accuracy.png").read_bytes().startswith(b"\x89PNG")


# Stopping and going on ------------------------------------------------------------------------------------------------


def everything(folder):
    """Weights, answers and record, as bytes; times are in the months' own records alone."""
    kept = ("sequence.json", "adapter_model.safetensors", "model.safetensors")
    files = [f for f in folder.rglob("*") if f.is_file() and (f.name in kept or f.parent.name == "answers")]
    return {f.relative_to(folder).as_posix(): f.read_bytes() for f in files}


def test_killed_anywhere_it_ends_in_the_same_bits(place, tmp_path):
    """Before a month's answers, inside the next month, and when all is done but the record."""
    file = sequence_of(place, "killed", 2, **ADAPTERS, merge="dare_ties", checkpoint_every=2, epochs=1)
    assert run(file, tmp_path / "whole", patience=300) == 0
    deaths = ("before the answers of 2026-01", "update 3", "before the sequence's record")
    for number, death in enumerate(deaths):
        code = run(file, tmp_path / "killed", kill=death, resume=number > 0, patience=300)
        assert code == -signal.SIGKILL, death
        assert not (tmp_path / "killed" / "sequence.json").exists()
    with pytest.raises(TrainingError, match="unfinished sequence: go on with --resume"):
        train_sequence(file, out=tmp_path / "killed")
    assert run(file, tmp_path / "killed", resume=True, patience=300) == 0
    found = everything(tmp_path / "killed")
    assert found == everything(tmp_path / "whole")
    assert len(found) == 1 + 3 + 2 + 2  # record, answers, months, merged
    assert not (tmp_path / "killed" / "work").exists()


def test_a_finished_or_another_sequence_is_told_apart(place, stacked, tmp_path):
    folder, record = stacked
    file = sequence_of(place, "stacked", **ADAPTERS, merge="stacked")
    with pytest.raises(TrainingError, match="holds a finished sequence"):
        train_sequence(file, out=folder)
    assert train_sequence(file, out=folder, resume=True).record == record
    with pytest.raises(TrainingError, match="holds another finished sequence"):
        train_sequence(file, out=folder, resume=True, overrides=["rank=3"])
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(TrainingError, match="not empty"):
        train_sequence(file, out=tmp_path)


def test_what_is_wrong_with_any_month_is_said_before_the_first_is_trained(place, tmp_path):
    _, model, months = place
    broken = [months[0] | {"questions": str(tmp_path / "none")}, months[1], {"month": "2026-03", "corpus": "./nowhere"}]
    file = write_sequence(tmp_path / "s.yaml", model, broken)
    with pytest.raises(CorpusError) as caught:
        train_sequence(file, out=tmp_path / "out")
    said = str(caught.value)
    assert "  - 2026-01: questions" in said
    assert "  - 2026-03: " in said
    assert not (tmp_path / "out").exists()


def test_a_dry_run_sums_tokens_up(place, tmp_path):
    """Retrained on one month, then on two: of T tokens a month and epoch, 2 T, then 4 T."""
    done = train_sequence(sequence_of(place, "plan", 2, mode="retrained"), dry_run=True)
    assert done.folder is None
    lines = {line.split()[0]: line for line in done.lines}
    tokens = [int(lines[month].split()[1].replace(",", "")) for month in ("2026-01", "2026-02")]
    alone = train_sequence(sequence_of(place, "plan", 2), dry_run=True)
    each = [int(line.split()[1].replace(",", "")) for line in alone.lines[:2]]
    assert tokens == [each[0], each[0] + each[1]]
    assert f"{sum(tokens):,} tokens, roughly" in lines["in"]
    assert "8, asked of the base and again after each month" in lines["questions"]
