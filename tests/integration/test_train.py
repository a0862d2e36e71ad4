"""``train`` from recipe to result: what is in the folder, who can load it, what goes wrong and how it is said."""

from __future__ import annotations

import errno
import importlib.util
import json
import math
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers.local_tasks import copy_current_events, evaluate, task_manager
from helpers.tiny_models import make_tiny, make_tokenizer
from helpers.training import read_lines, text, write_corpus, write_recipe
from kinject_trainer import checkpoints, command, trainer, tune
from kinject_trainer.base import Base, load_model
from kinject_trainer.card import write_card
from kinject_trainer.data import encoder
from kinject_trainer.errors import TrainingError
from kinject_trainer.recipe import Recipe, load_recipe, untested
from safetensors.torch import load_file

import lm_eval_kinject.models.rag_hf  # noqa: F401
from lm_eval_kinject.cli import training as cli
from lm_eval_kinject.errors import ArgumentError, CorpusError, ModelError
from lm_eval_kinject.provenance import fingerprint_folder, read_json

GENERAL = "Rain fell on the hills, and the river rose by the width of a hand. " * 6


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("train")
    (folder / "general.txt").write_text(GENERAL)
    return folder, make_tiny("llama", folder), write_corpus(folder / "corpus", chunks=6, validation=3)


def recipe_of(place, name, **changes):
    folder, model, corpus = place
    return write_recipe(folder / f"{name}.yaml", model, corpus, **changes)


def hopeless(monkeypatch, *rates):
    """Makes training at some rates end at update 2: no rate that a recipe may have breaks so small a model."""
    original = trainer.BlockTrainer.training_step

    def training_step(self, model, inputs, num_items_in_batch=None):
        loss = original(self, model, inputs, num_items_in_batch)
        if self.args.learning_rate in rates and self.state.global_step == 1:
            self.watch.loss_is_number = False
        return loss

    monkeypatch.setattr(trainer.BlockTrainer, "training_step", training_step)


@pytest.fixture(scope="module")
def searched(place):
    """An FT-par LoRA run with a search over three rates, one of them hopeless."""
    folder = place[0]
    with pytest.MonkeyPatch.context() as monkeypatch:
        hopeless(monkeypatch, 10.0)
        return search_in(place, folder)


def search_in(place, folder):
    said = []
    recipe = recipe_of(
        place,
        "searched",
        variant="ft-par",
        paraphrases=2,
        method="lora",
        rank=4,
        learning_rate={"rates": [1e-5, 3e-2, 10.0]},
        forgetting=True,
        general_text=str(folder / "general.txt"),
    )
    return command.train(recipe, out=folder / "run", say=said.append), said


def lines(text):
    return " ".join(text.split())


# The result -----------------------------------------------------------------------------------------------------------


def test_folder_holds_what_it_should_and_nothing_else(searched):
    folder = searched[0].folder
    assert {f.name for f in folder.iterdir()} == {
        "README.md", "adapter_config.json", "adapter_model.safetensors", "kinject.json", "log.jsonl", "loss.png",
        "recipe.yaml", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "trials", "trials.json",
    }  # fmt: skip
    assert (folder / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert str(folder.parent) not in (folder / "adapter_config.json").read_text()


def test_search_picks_by_validation_loss_and_records_all(searched):
    result, said = searched
    trials = read_json(result.folder / "trials.json")
    assert [t["learning_rate"] for t in trials] == [1e-5, 3e-2, 10.0]
    found = [t["outcome"]["validation_loss"] if t["outcome"] else None for t in trials]
    assert found[2] is None
    assert trials[2]["stopped"] == "the loss is not a number at update 2"
    assert found[1] < found[0] < trials[0]["outcome"]["validation_loss_before"]
    assert result.record["outcome"]["learning_rate"] == 3e-2
    assert len(list((result.folder / "trials").iterdir())) == 3
    assert "trial 2 of 3: learning rate 0.03" in said


def test_log(searched):
    result, _ = searched
    log = read_lines(result.folder / "log.jsonl")
    data = result.record["data"]
    losses = [e for e in log if "loss" in e]
    assert [e["update"] for e in losses] == list(range(1, 1 + result.record["outcome"]["updates"]))
    assert losses[-1]["tokens"] == data["tokens"] == 2 * data["epoch_tokens"]
    assert losses[-1]["epoch"] == 2.0
    assert all(e["tokens_per_second"] > 0 for e in losses)
    validated = [(e["update"], e["epoch"]) for e in log if "validation_loss" in e]
    # Before the first update, after the first that goes beyond each epoch, at the end.
    assert validated[0] == (0, 0.0)
    assert [math.floor(epoch) for _, epoch in validated[1:]] == [1, 2]
    assert validated[-1][0] == losses[-1]["update"]


def test_the_last_epochs_loss_is_a_mean_over_its_tokens(searched):
    """Worked out anew from the log: an update's predicted tokens are those of its blocks less one a block."""
    result, _ = searched
    data, size, batch = result.record["data"], 16, 4
    losses = [e for e in read_lines(result.folder / "log.jsonl") if "loss" in e]
    total, count, before = 0.0, 0.0, 0
    for entry in losses:
        blocks = 1 if entry is losses[-1] else min(batch, (data["tokens"] - before) // size)
        inside = min(entry["tokens"], data["tokens"]) - max(before, data["epoch_tokens"])
        weight = max(0, inside) / (entry["tokens"] - before) * (entry["tokens"] - before - blocks)
        total, count, before = total + weight * entry["loss"], count + weight, entry["tokens"]
    assert data["tokens_of_the_last_block"] < size  # so the last update is that of a short block
    outcome = result.record["outcome"]
    assert outcome["train_loss_last_epoch"] == pytest.approx(total / count, abs=1e-6)
    assert outcome["train_loss"] == losses[-1]["loss"] != outcome["train_loss_last_epoch"]
    card = (result.folder / "README.md").read_text()
    assert f"| training loss, last epoch | {outcome['train_loss_last_epoch']:.4f} |" in card


def test_a_single_token_left_over_makes_no_update(place, tmp_path):
    """There is nothing before it to predict it from: an update on it would move the weights by momentum alone."""
    encode = encoder(make_tokenizer())
    epoch = sum(len(encode(text(i, 0))) for i in range(6))
    tokens = 16 * 9 + 1
    result = command.train(recipe_of(place, "one", epochs=tokens / epoch), out=tmp_path / "run")
    log = [e for e in read_lines(tmp_path / "run" / "log.jsonl") if "loss" in e]
    assert (result.record["data"]["tokens"], result.record["data"]["tokens_of_the_last_block"]) == (tokens, 1)
    assert len(log) == result.record["outcome"]["updates"] == 3  # of 4, 4 and 1 blocks
    assert result.record["outcome"]["tokens"] == log[-1]["tokens"] == tokens - 1
    assert all(e["loss"] > 0 for e in log)


def test_record(searched, place):
    result, _ = searched
    record = read_json(result.folder / "kinject.json")
    assert record == json.loads(json.dumps(result.record))
    assert record["paraphrases"] == 2
    assert record["data"]["documents"] == 3 * record["data"]["chunks"] == 18
    assert record["base"]["identity"] == fingerprint_folder(place[1])
    assert (
        record["corpus"]["fingerprint"]
        == command.open_corpus(command.load_recipe(place[0] / "searched.yaml")).provenance["fingerprint"]
    )
    assert set(record["environment"]["packages"]) >= {"torch", "transformers", "peft"}
    before, after = record["outcome"]["before"], record["outcome"]["after"]
    assert before["recall"] is None  # not the reader
    assert before["perplexity"] != after["perplexity"]
    for name in ("kinject.json", "README.md", "recipe.yaml", "adapter_config.json"):
        assert str(place[0]) not in (result.folder / name).read_text()  # fit to publish


def test_forgetting_is_the_perplexity_of_the_general_text(searched, place):
    """Worked out anew: mean over the predicted tokens of the text's whole blocks, of the base and of the result."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(place[1])
    ids = [1, *tokenizer.encode(GENERAL, add_special_tokens=False), 2]
    rows = torch.tensor([ids[i : i + 16] for i in range(0, len(ids) - 15, 16)])
    model = load_model(Base("m", Path(place[1]), ""), Recipe(model="m", corpus="c", variant="ft-reg")).eval()
    with torch.no_grad():
        scores = model(rows).logits[:, :-1].log_softmax(-1).gather(-1, rows[:, 1:, None])
    assert searched[0].record["outcome"]["before"]["perplexity"] == pytest.approx(
        float((-scores.mean()).exp()), rel=1e-5
    )


def test_card(searched):
    card = (searched[0].folder / "README.md").read_text()
    outcome = searched[0].record["outcome"]
    assert card.startswith("---\nlibrary_name: peft\n")
    for figure in (outcome["validation_loss"], outcome["before"]["perplexity"], outcome["after"]["perplexity"]):
        assert f"{figure:.4f}" in card
    assert "| 10 | the loss is not a number at update 2 |" in card
    assert "2 paraphrases" in card


def test_the_card_of_a_loftq_adapter_says_whose_it_is(searched):
    record = searched[0].record
    assert "doesn't belong to the base" not in write_card(record)
    other = {**record, "recipe": {**record["recipe"], "method": "loftq"}}
    assert "**This adapter doesn't belong to the base as published.**" in write_card(other)
    recipe = Recipe(model="m", corpus="c", variant="ft-reg", method="loftq")
    assert "base weights rounded to 4 bits" in untested(recipe)


def test_plain_peft_and_lm_eval_load_it(searched, place, tmp_path, monkeypatch):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    folder = str(searched[0].folder)
    base = AutoModelForCausalLM.from_pretrained(place[1])
    ids = torch.arange(5, 30)[None]
    with torch.no_grad():
        plain = base(ids).logits.clone()
        adapted = PeftModel.from_pretrained(base, folder)(ids).logits
    assert float((plain - adapted).abs().max()) > 0.01
    copy_current_events(tmp_path / "tasks")
    monkeypatch.chdir(tmp_path)
    scores = {}
    for model, more in (("hf", {}), ("rag-hf", {"k": 0})):
        arguments = {"pretrained": place[1], "peft": folder, **more}
        result = evaluate(model, arguments, ["current_events_cloze"], task_manager(tmp_path / "tasks"), limit=3)
        scores[model] = [s["resps"] for s in result["samples"]["current_events_cloze"]]
    assert scores["hf"] == scores["rag-hf"]


def test_without_validation_texts_no_loss_is_made_up(place, tmp_path):
    corpus = write_corpus(tmp_path / "bare", chunks=6, validation=0)
    rows = [{"chunk": "elsewhere", "number": 1, "text": "A text of a chunk that nobody trains on."}]
    (tmp_path / "foreign.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    keys = {"validation_file": str(tmp_path / "foreign.jsonl"), "epochs": 1}
    with pytest.raises(CorpusError, match="has no text of a chunk that is trained on"):
        command.train(
            write_recipe(tmp_path / "s.yaml", place[1], corpus, learning_rate={"rates": [1e-4, 1e-3]}, **keys),
            out=tmp_path / "search",
        )
    made = command.train(write_recipe(tmp_path / "r.yaml", place[1], corpus, **keys), out=tmp_path / "run")
    assert made.record["outcome"]["validation_loss"] is None
    assert not [e for e in read_lines(tmp_path / "run" / "log.jsonl") if "validation_loss" in e]


def test_full_result_is_a_plain_transformers_folder(place, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    keys = {"save_precision": "bf16", "precision": "bf16", "learning_rate": 1e-2}
    result = command.train(recipe_of(place, "full", **keys), out=tmp_path / "run")
    model = AutoModelForCausalLM.from_pretrained(result.folder, dtype="auto")
    assert model.dtype == torch.bfloat16
    assert model.config.use_cache
    assert len(AutoTokenizer.from_pretrained(result.folder)) == model.config.vocab_size
    assert not list(result.folder.glob("*.bin"))  # nothing pickled
    assert "library_name: transformers" in (result.folder / "README.md").read_text()
    outcome = result.record["outcome"]
    assert outcome["validation_loss"] < outcome["validation_loss_before"] - 0.5


def test_full_fine_tuning_of_some_modules_leaves_the_others(place, tmp_path):
    folder, model, corpus = place
    recipe = write_recipe(folder / "some.yaml", model, corpus, epochs=1, targets=["up_proj", "down_proj"])
    made = command.train(recipe, out=tmp_path / "run")
    before, after = (load_file(Path(path) / "model.safetensors") for path in (model, tmp_path / "run"))
    changed = {name for name in before if not torch.equal(before[name].float(), after[name].float())}
    assert changed == {name for name in before if ".up_proj." in name or ".down_proj." in name}
    assert made.record["outcome"]["trainable_parameters"] == sum(before[name].numel() for name in changed)
    again = load_recipe(tmp_path / "run" / "recipe.yaml")
    assert again.targets == ("up_proj", "down_proj")
    with pytest.raises(ModelError, match=r"no linear module named gate. It has: .*, up_proj"):
        command.train(write_recipe(folder / "none.yaml", model, corpus, targets=["gate"]), out=tmp_path / "none")


def test_the_benchmark_trains_as_the_command_does(monkeypatch):
    """With the same callbacks, and with arguments that are those of the other contender wherever both have them."""
    spec = importlib.util.spec_from_file_location("benchmark", Path(__file__).parents[2] / "benchmarks" / "training.py")
    benchmark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    case = SimpleNamespace(
        contender="ours", model="tiny", vocabulary=64, batch=4, micro=2, updates=2, precision="fp32", threads=0
    )
    case.device = "cuda" if torch.cuda.is_available() else "cpu"
    made, original = [], benchmark.ours
    monkeypatch.setattr(benchmark, "ours", lambda *args: made.append(original(*args)) or made[0])
    found = benchmark.run_one(case)
    assert 3 < found["loss"] < 5  # ln 64 is 4.2
    kinds = {type(callback).__name__ for callback in made[0].callback_handler.callbacks}
    assert kinds >= {"Conductor", "Watch", "_Start"}
    theirs = benchmark.arguments_of(case, "x")
    ours = {key: getattr(made[0].args, key) for key in theirs if key not in ("output_dir", "lr_scheduler_type")}
    assert ours == {key: theirs[key] for key in ours}  # the schedule is ours, and constant too
    rates = [entry["learning_rate"] for entry in made[0].state.log_history if "learning_rate" in entry]
    assert rates == [1e-4, 1e-4]


def test_dora_is_passed_through_and_said_to_be_untested(place, tmp_path):
    said = []
    recipe = recipe_of(place, "dora", method="dora", rank=2, epochs=0.5)
    command.train(recipe, out=tmp_path / "run", say=said.append)
    assert read_json(tmp_path / "run" / "adapter_config.json")["use_dora"]
    assert any("tests don't run it" in text for text in said)


def test_a_finished_run_is_not_made_again(searched, place):
    result, _ = searched
    stamp = (result.folder / "kinject.json").stat().st_mtime_ns
    again = command.train(place[0] / "searched.yaml", out=result.folder, resume=True)
    assert again.already
    assert again.record == read_json(result.folder / "kinject.json")
    with pytest.raises(TrainingError, match="holds a finished result"):
        command.train(place[0] / "searched.yaml", out=result.folder)
    with pytest.raises(TrainingError, match="finished result of another run"):
        command.train(place[0] / "searched.yaml", out=result.folder, resume=True, overrides=["seed=9"])
    assert (result.folder / "kinject.json").stat().st_mtime_ns == stamp


def test_what_a_kill_after_the_record_leaves_is_cleaned_up(place, tmp_path):
    recipe = recipe_of(place, "left")
    command.train(recipe, out=tmp_path / "run")
    (tmp_path / "run" / "work" / "run").mkdir(parents=True)
    (tmp_path / "run" / "work" / "run" / "half.safetensors").write_bytes(b"1234")
    assert command.train(recipe, out=tmp_path / "run", resume=True).already
    assert not (tmp_path / "run" / "work").exists()
    assert (tmp_path / "run" / "model.safetensors").is_file()


def test_seconds_are_those_of_all_processes(place, tmp_path, monkeypatch):
    recipe = recipe_of(place, "seconds", checkpoint_every=2)
    breaking(monkeypatch, 4, math.nan)
    with pytest.raises(TrainingError):
        command.train(recipe, out=tmp_path / "run")
    (checkpoint,) = checkpoints.complete(tmp_path / "run" / "work" / "run")
    assert checkpoint.seconds > 0
    manifest = checkpoint.folder / "kinject_checkpoint.json"
    manifest.write_text(json.dumps({**read_json(manifest), "seconds": 1000.0}))
    outcome = command.train(recipe, out=tmp_path / "run", resume=True).record["outcome"]
    assert 1000 < outcome["seconds"] < 1100


def test_a_foreign_folder_is_left_alone(place, tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(TrainingError, match=r"is not empty \(it holds thesis.tex\)"):
        command.train(recipe_of(place, "foreign"), out=tmp_path)
    assert [f.name for f in tmp_path.iterdir()] == ["thesis.tex"]


# What goes wrong ------------------------------------------------------------------------------------------------------


def broken(place, tmp_path, **changes):
    _, model, corpus = place
    keys = {"model": model, "corpus": corpus, **changes}
    recipe = write_recipe(tmp_path / "broken.yaml", keys.pop("model"), keys.pop("corpus"), **keys)
    return lambda: command.train(recipe, out=tmp_path / "run")


def test_missing_and_empty_corpora(place, tmp_path):
    with pytest.raises(CorpusError, match="There is no corpus"):
        broken(place, tmp_path, corpus=str(tmp_path / "nowhere"))()
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(CorpusError, match="empty"):
        broken(place, tmp_path, corpus=str(tmp_path / "empty.jsonl"))()
    assert not (tmp_path / "run").exists()


def test_wrong_revisions(place, tmp_path):
    with pytest.raises(ModelError, match="is not of revision 'deadbeef01'"):
        broken(place, tmp_path, model_revision="deadbeef01")()
    with pytest.raises(CorpusError, match="is not of revision 'deadbeef01'"):
        broken(place, tmp_path, corpus_revision="deadbeef01")()
    good = fingerprint_folder(place[1])[:10]
    assert broken(place, tmp_path, model_revision=good, epochs=0.5)().folder == tmp_path / "run"


def test_models_that_do_not_fit(place, tmp_path):
    with pytest.raises(ModelError, match="There is no model folder"):
        broken(place, tmp_path, model=str(tmp_path / "nowhere"))()
    with pytest.raises(ModelError, match="longer than the context"):
        broken(place, tmp_path, block_size=4096)()
    with pytest.raises(ModelError, match=r"no linear module named c_attn\. It has: down_proj"):
        broken(place, tmp_path, method="lora", targets=["c_attn"])()
    other = tmp_path / "other"
    shutil.copytree(place[1], other)
    text = (other / "tokenizer.json").read_text()
    made = json.loads(text)
    made["added_tokens"].append({**made["added_tokens"][-1], "id": 9999, "content": "<|extra|>"})
    (other / "tokenizer.json").write_text(json.dumps(made))
    with pytest.raises(ModelError, match=r"ids go up to 503, and the model has 503 embeddings"):
        broken(place, tmp_path, model=str(other))()
    assert not (tmp_path / "run").exists()


def test_a_loss_that_is_no_number(place, tmp_path, monkeypatch):
    """It stops at its update, and the checkpoint before it still works."""
    original = trainer.next_token_loss
    calls = []

    def poisoned(outputs, labels, num_items_in_batch=None):
        calls.append(0)
        loss = original(outputs, labels, num_items_in_batch)
        return loss * math.nan if len(calls) > 8 else loss  # two passes an update: the fifth update

    monkeypatch.setattr(trainer, "next_token_loss", poisoned)
    recipe = recipe_of(place, "nan", checkpoint_every=2)
    with pytest.raises(TrainingError) as caught:
        command.train(recipe, out=tmp_path / "run")
    said = lines(str(caught.value))
    assert "the loss is not a number at update 5" in said
    assert "The last good checkpoint, of update 4, is kept" in said
    monkeypatch.undo()
    command.train(recipe, out=tmp_path / "run", resume=True)
    command.train(recipe, out=tmp_path / "whole")
    one, two = ((tmp_path / n / "model.safetensors").read_bytes() for n in ("run", "whole"))
    assert one == two


def test_a_gradient_that_is_no_number_never_reaches_the_weights(place, tmp_path, monkeypatch):
    original = trainer.BlockTrainer.training_step

    def poisoned(self, model, inputs, num_items_in_batch=None):
        loss = original(self, model, inputs, num_items_in_batch)
        if self.state.global_step == 2:
            next(p for p in model.parameters() if p.grad is not None).grad[0] = math.inf
        return loss

    monkeypatch.setattr(trainer.BlockTrainer, "training_step", poisoned)
    with pytest.raises(TrainingError, match=r"a gradient is not a number at update 3\. There is no checkpoint yet"):
        command.train(recipe_of(place, "inf", checkpoint_every="never", max_grad_norm=0), out=tmp_path / "run")


def with_a_weight_of_nan(model, folder):
    """A copy of a model that predicts nothing but NaN."""
    loaded = load_model(Base("m", Path(model), ""), Recipe(model="m", corpus="c", variant="ft-reg", method="full"))
    with torch.no_grad():
        loaded.get_output_embeddings().weight[7] = math.nan
    shutil.copytree(model, folder)
    loaded.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({}, "the validation loss"),
        ({"learning_rate": {"rates": [1e-4, 1e-3]}}, "the validation loss"),  # no rate mends it
        ({"forgetting": True}, "the perplexity of general text"),
        ({"validate_every": "never", "validation_file": "none"}, "the loss"),
    ],
)
def test_a_base_that_predicts_no_numbers(place, tmp_path, changes, what):
    model = with_a_weight_of_nan(place[1], tmp_path / "nan")
    if "validation_file" in changes:
        rows = [{"chunk": "elsewhere", "number": 1, "text": "A text of a chunk that nobody trains on."}]
        (tmp_path / "foreign.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        changes = {**changes, "validation_file": str(tmp_path / "foreign.jsonl")}
    keys = {"general_text": str(place[0] / "general.txt"), **changes}
    with pytest.raises(TrainingError, match=f"predicts no numbers: {what} is not a number before the first update"):
        broken(place, tmp_path, model=model, **keys)()


def breaking(monkeypatch, update, value):
    """Makes an update leave a weight of some value; returns the updates at which it has."""
    original, done = trainer.Conductor.on_step_end, []

    def on_step_end(self, args, state, control, model=None, **kwargs):
        if state.global_step == (update or state.max_steps) and not done:
            done.append(state.global_step)
            with torch.no_grad():
                next(p for p in model.parameters() if p.requires_grad).fill_(value)
        return original(self, args, state, control, model=model, **kwargs)

    monkeypatch.setattr(trainer.Conductor, "on_step_end", on_step_end)
    return done


@pytest.mark.parametrize("update", [4, None], ids=["before a checkpoint", "the last"])
def test_an_update_that_breaks_the_weights(place, tmp_path, monkeypatch, update):
    """Neither a checkpoint nor a result is made of them, and from the checkpoint before the run goes on."""
    done = breaking(monkeypatch, update, math.nan)
    recipe = recipe_of(place, "weights", checkpoint_every=2)
    with pytest.raises(TrainingError) as caught:
        command.train(recipe, out=tmp_path / "run")
    said, kept = lines(str(caught.value)), 2 if update else (done[0] - 1) // 2 * 2
    assert f"a weight is not a number at update {done[0]}" in said
    assert f"The last good checkpoint, of update {kept}, is kept" in said
    assert command.train(recipe, out=tmp_path / "run", resume=True).record["outcome"]["updates"] >= done[0]


def test_a_last_update_that_breaks_the_figures(place, tmp_path, monkeypatch):
    """Weights that are still numbers, and too large to predict with."""
    done = breaking(monkeypatch, None, 1e38)
    (tmp_path / "one.txt").write_text(GENERAL)
    recipe = recipe_of(place, "figures", learning_rate={"rates": [1e-4, 1e-3]}, method="lora", rank=2)
    result = command.train(recipe, out=tmp_path / "run")
    first, second = result.record["trials"]
    assert first["stopped"] == f"the validation loss is not a number at update {done[0]}"  # and the other goes on
    assert second["outcome"]["validation_loss"] == result.record["outcome"]["validation_loss"]
    monkeypatch.setattr(trainer.BlockTrainer, "evaluate", lambda self, **_: {})
    done.clear()
    keys = {"method": "lora", "rank": 2, "forgetting": True, "general_text": str(tmp_path / "one.txt")}
    with pytest.raises(TrainingError, match="the perplexity of general text is not a number at update"):
        command.train(recipe_of(place, "perplexity", **keys), out=tmp_path / "other")


def test_all_processes_stop_at_what_one_has_seen(monkeypatch):
    """What this process has itself is a number; another one tells it of a loss that isn't."""
    told = []
    monkeypatch.setattr(trainer, "anywhere", lambda found, device: told.append(found) or [True, False])
    state, args = SimpleNamespace(global_step=2), SimpleNamespace(device="cpu")
    with pytest.raises(trainer.NotANumber, match="the loss is not a number at update 3"):
        trainer.Watch().on_pre_optimizer_step(args, state, None, model=torch.nn.Linear(2, 2))
    assert told == [[False, False]]


@pytest.mark.parametrize(
    "trouble",
    [OSError(errno.ENOSPC, "No space left on device"), RuntimeError("PytorchStreamWriter failed writing file data/0")],
    ids=["file", "torch"],
)
def test_full_disk_while_writing_a_checkpoint(place, tmp_path, monkeypatch, trouble):
    original = torch.save

    def full(value, file, *args, **kwargs):
        if "checkpoint-4" in str(file) and str(file).endswith("optimizer.pt"):
            Path(file).write_bytes(b"half")
            raise trouble
        return original(value, file, *args, **kwargs)

    monkeypatch.setattr(torch, "save", full)
    recipe = recipe_of(place, "disk", checkpoint_every=2)
    with pytest.raises(TrainingError, match=r"The disk is full\. The last good checkpoint, of update 2, is kept"):
        command.train(recipe, out=tmp_path / "run")
    assert [c.updates for c in checkpoints.complete(tmp_path / "run" / "work" / "run")] == [2]
    assert not (tmp_path / "run" / "work" / "run" / "checkpoint-4").exists()  # its bytes are free again


def test_full_disk_while_writing_tokens(place, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(command, "build_store", full)
    with pytest.raises(TrainingError, match=r"The disk of .* is full\. What was trained before is kept"):
        command.train(recipe_of(place, "tokens"), out=tmp_path / "run")


def test_what_a_run_has_written_needs_no_more_room(tmp_path):
    for name in ("run/checkpoint-4/optimizer.pt", "rate-1/result/model.safetensors", "tokens/tokens.bin"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_bytes(b"1234")
    assert command._written_before(tmp_path) == 8


@pytest.mark.parametrize(
    ("method", "base", "named"),
    [
        ("full", "owner/name", "pretrained=run,"),
        ("lora", "reader", "peft=run,"),
        ("lora", "owner/name", "pretrained=owner/name,peft=run,"),
        ("lora", "folder", "pretrained=BASE,peft=run,"),
    ],
)
def test_the_command_that_scores_names_the_base(monkeypatch, capsys, method, base, named):
    record = {"recipe": {"method": method}, "base": {"name": base}}
    monkeypatch.setattr(command, "train", lambda *_, **__: command.Result(Path("run"), None, record))
    cli.train("recipe")
    assert f"--model_args {named}k=0" in capsys.readouterr().out


def test_a_disk_without_room_is_found_before_training(place, tmp_path, monkeypatch):
    usage = shutil._ntuple_diskusage(10**9, 10**9, 1000)
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    with pytest.raises(TrainingError, match=r"GB free and the run needs about"):
        command.train(recipe_of(place, "room"), out=tmp_path / "run")


def test_all_rates_of_a_search_fail(place, tmp_path, monkeypatch):
    hopeless(monkeypatch, 9.0, 10.0)
    rates = {"rates": [9.0, 10.0]}
    recipe = recipe_of(place, "hopeless", learning_rate=rates, epochs=1, checkpoint_every=1)
    with pytest.raises(TrainingError, match=r"None of the 2 learning rates"):
        command.train(recipe, out=tmp_path / "run")
    trials = read_json(tmp_path / "run" / "trials.json")
    assert len(trials) == 2
    # They are settled: their checkpoints are gone, and a resumed search doesn't try them again.
    assert not list((tmp_path / "run").rglob("checkpoint-*"))
    monkeypatch.setattr(tune, "run_training", lambda *args: pytest.fail("trained again"))
    with pytest.raises(TrainingError, match=r"None of the 2 learning rates"):
        command.train(recipe, out=tmp_path / "run", resume=True)
    assert read_json(tmp_path / "run" / "trials.json") == trials


def test_values_that_transformers_refuses(place, tmp_path):
    with pytest.raises(ArgumentError, match="transformers refuses the arguments under trainer"):
        command.train(recipe_of(place, "optim", trainer={"optim": "no such optimizer"}), out=tmp_path / "run")


def test_problems_of_the_recipe_come_first(place, tmp_path):
    with pytest.raises(ArgumentError, match="2 problems"):
        broken(place, tmp_path, epochs=0, rnak=3)()
