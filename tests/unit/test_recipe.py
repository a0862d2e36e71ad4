"""Recipes: the paper's defaults, every problem at once, overrides."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from kinject_trainer.recipe import Recipe, Search, load_recipe, recipes_dir, to_run_again
from kinject_trainer.retriever import is_retriever

from lm_eval_kinject.errors import ArgumentError
from lm_eval_kinject.provenance import read_json

LEAST = {"model": "reader", "corpus": "current_events", "variant": "ft-par"}


def write(tmp_path, **keys):
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump(keys))
    return file


def problems(file, *overrides):
    with pytest.raises(ArgumentError) as caught:
        load_recipe(file, overrides)
    return caught.value.problems


def test_defaults_are_the_papers(tmp_path):
    recipe = load_recipe(write(tmp_path, **LEAST))
    assert recipe.name == "mine"
    assert (recipe.block_size, recipe.epochs, recipe.global_batch, recipe.wordings) == (256, 5, 64, 10)
    assert recipe.rates == (1e-6, 2.66e-6, 7.07e-6, 1.88e-5, 5e-5)  # 1e-6 · 50^(i/4)
    assert recipe.chunks == "source"


def test_every_problem_at_once(tmp_path):
    file = write(
        tmp_path,
        model="reader",
        model_revision="abc",
        variant="ft-reg",
        paraphrases=4,
        method="full",
        rnak=4,
        rank=8,
        epochs=-1,
        global_batch=10,
        micro_batch=4,
        learning_rate={"low": 1e-4, "high": 1e-5},
        trainer={"optm": "adafactor", "max_steps": 4},
    )
    found = {problem.split(":")[0].split(" ")[0]: problem for problem in problems(file)}
    assert set(found) == {
        "corpus", "rnak", "epochs", "paraphrases", "rank", "model_revision", "global_batch", "learning_rate",
        "trainer.optm", "trainer.max_steps",
    }  # fmt: skip
    assert "did you mean rank?" in found["rnak"]
    assert "did you mean optim?" in found["trainer.optm"]
    assert "greater than 0" in found["epochs"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"block_size": 4}, "greater than or equal to 8"),
        ({"paraphrases": -1}, "greater than or equal to 0"),
        ({"method": "lra"}, "lora"),
        ({"dropout": 1.0}, "less than 1"),
        ({"warm_up": 1.0}, "less than 1"),
        ({"learning_rate": 0}, "a number above 0 and up to 10"),
        ({"learning_rate": float("nan")}, "learning_rate"),
        ({"learning_rate": {"rates": [1e-3, 1e-3]}}, "twice"),
        ({"learning_rate": {"rates": [1e-3], "low": 1e-4}}, "either"),
        ({"learning_rate": {}, "validate_every": "never"}, "needs the validation loss"),
        ({"equal_updates_to_paraphrases": 10}, "must be more than the 10"),
        ({"checkpoint_every": 0}, "1 or more"),
        ({"global_batch": 6, "processes": 4}, "not a multiple of 4 processes"),
        ({"peft": {"r": 4}}, "recipe's own keys"),
        ({"trainer": {"disable_tqdm": False}}, "recipe's own keys"),
        ({"trainer": {"save_only_model": True}}, "recipe's own keys"),  # a checkpoint without moments resumes nothing
        ({"trainer": {"lr_scheduler_kwargs": {}}}, "recipe's own keys"),
        ({"peft": {"lora_biass": True}}, "did you mean lora_bias?"),
        ({"method": "qlora"}, "bf16"),
        ({"learning_rate": {"high": 11}}, "learning_rate.high: 11: input should be less than or equal to 10"),
        ({"learning_rate": {"rates": [1e-3, 1e30]}}, "input should be less than or equal to 10"),
        ({"betas": [0.9]}, "betas: must be a list of two numbers"),
        ({"learning_rate": "fast"}, "learning_rate: must be a number above 0 and up to 10, or a search"),
        ({"learning_rate": {"low": -1}}, "learning_rate.low: -1: input should be greater than 0"),
        ({"learning_rate": {"hi": 1}}, "learning_rate.hi: no such key; did you mean high?"),
        ({"targets": "q_proj"}, "targets: must be `all-linear` or a list"),
        ({"checkpoint_every": True}, "checkpoint_every: must be a whole number of updates"),
        ({"cartridge": {}}, "cartridge: has a meaning with method cartridge alone"),
        ({"method": "cartridge", "rank": 8}, "rank: has no meaning with method cartridge"),
        ({"method": "cartridge", "targets": ["q_proj"]}, "targets: has no meaning with method cartridge"),
        ({"method": "full", "targets": "all-linear"}, "targets: has no meaning with method full"),
        ({"targets": []}, "targets: an empty list names no module"),
        (
            {"method": "cartridge", "cartridge": {"tokens": 4, "frozen": 4}},
            "cartridge.frozen 4: nothing is trained of 4",
        ),
        ({"method": "cartridge", "cartridge": {"token": 4}}, "cartridge.token: no such key; did you mean tokens?"),
        ({"method": "cartridge", "cartridge": 64}, "cartridge: "),
        ({"method": "cartridge", "gradient_checkpointing": True}, "throws the cache away"),
        ({"method": "cartridge", "stream": True}, "stream with a cartridge that is distilled"),
        ({"method": "cartridge", "replay": {"corpus": "newswire-older"}}, "replay with a cartridge"),
        ({"method": "cartridge", "cartridge": {"objective": "next-token", "lessons": 3}}, "cartridge.lessons: are of"),
        ({"method": "cartridge", "regulariser": "recadam"}, "regulariser recadam with method cartridge"),
        ({"validate_every": "day"}, "validate_every: must be a whole number of updates"),
    ],
)
def test_one_problem(tmp_path, changes, words):
    assert any(words in problem for problem in problems(write(tmp_path, **{**LEAST, **changes})))


def test_missing_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    file = write(tmp_path, **LEAST, method="qlora", precision="bf16")
    assert problems(file) == ("method qlora needs bitsandbytes: run `pip install bitsandbytes`",)
    file = write(tmp_path, **LEAST, method="loftq")  # peft.utils.loftq_utils rounds with it, LoraConfig asks for scipy
    assert [problem.split(":")[0] for problem in problems(file)] == [
        "method loftq needs bitsandbytes",
        "method loftq needs scipy",
    ]


@pytest.mark.parametrize("key", ["hub_token", "push_to_hub", "hub_model_id", "hub_always_push", "hub_private_repo"])
def test_a_run_publishes_nothing_by_itself(tmp_path, key):
    (problem,) = problems(write(tmp_path, **LEAST, trainer={key: "x"}))
    assert problem == f"trainer.{key}: a run publishes nothing by itself; remove it, and use `kinject push` after"


TOKEN = "hf_" + "Ab3" * 11


@pytest.mark.parametrize(
    ("changes", "overrides", "place"),
    [
        ({"trainer": {"hub_token": TOKEN}}, (), "trainer.hub_token"),
        ({"trainer": {"run_name": f"of {TOKEN}"}}, (), "trainer.run_name"),
        ({"trainer": {"report_to": [TOKEN]}}, (), "trainer.report_to"),
        ({"corpus": f"https://user:{TOKEN}@huggingface.co/datasets/a/b"}, (), "corpus"),
        ({"epochs": TOKEN}, (), "epochs"),  # whose message would repeat the value
        ({"peft": {TOKEN: 1}}, (), "peft"),
        ({}, (f"model_revision={TOKEN}",), "model_revision"),
    ],
)
def test_a_token_in_a_recipe_is_refused_and_not_repeated(tmp_path, changes, overrides, place):
    found = problems(write(tmp_path, **{**LEAST, **changes}), *overrides)
    assert any(p.startswith(f"{place}: looks like a Hub token") and "HF_TOKEN" in p for p in found)
    assert not any(TOKEN in problem for problem in found)


def test_a_token_is_not_repeated_where_nothing_can_be_read(tmp_path):
    broken = tmp_path / "broken.yaml"
    broken.write_text(f"model: [{TOKEN}\ncorpus: }}")
    with pytest.raises(ArgumentError) as caught:
        load_recipe(broken)
    assert TOKEN not in str(caught.value)
    assert TOKEN not in problems(write(tmp_path, **LEAST), TOKEN)[0]


def test_overrides_win_and_reach_inside(tmp_path):
    file = write(tmp_path, **LEAST, learning_rate={"low": 1e-5, "high": 1e-4})
    recipe = load_recipe(file, ["paraphrases=5", "learning_rate.trials=2", "name=other", "targets=[q_proj, v_proj]"])
    assert (recipe.wordings, recipe.name, recipe.targets) == (5, "other", ("q_proj", "v_proj"))
    assert recipe.rates == (1e-5, 1e-4)
    assert load_recipe(file, ["learning_rate=1e-3"]).rates == (1e-3,)  # YAML 1.1 reads 1e-3 as a string
    assert problems(file, "paraphrases", "epoch=2") == (
        "--set 'paraphrases' is not key=value",
        "epoch: no such key; did you mean epochs?",
    )


def test_files_that_are_no_recipes(tmp_path):
    twice = tmp_path / "twice.yaml"
    twice.write_text("model: reader\nmodel: other\n")
    assert "model stands twice" in problems(twice)[0]
    broken = tmp_path / "broken.yaml"
    broken.write_text("model: [reader\n")
    assert "can't be read as YAML" in problems(broken)[0]
    lines = tmp_path / "list.yaml"
    lines.write_text("- model\n")
    assert "not `key: value` lines" in problems(lines)[0]
    assert "reader-ft-par.yaml" in problems(tmp_path / "nowhere.yaml")[0]


def test_bundled_recipes_are_good_and_differ_where_they_say():
    files = [file for file in recipes_dir().rglob("*.yaml") if file.name != "fsdp.yaml" and not is_retriever(file)]
    names = [file.relative_to(recipes_dir()) for file in files]
    recipes = {str(name): load_recipe(name) for name in names}
    assert {"reader-ft-reg.yaml", "reader-ft-par.yaml", "paper/mistral-7b.yaml"} <= set(recipes)
    reg, par = recipes["reader-ft-reg.yaml"].plain(), recipes["reader-ft-par.yaml"].plain()
    assert {k for k in reg if reg[k] != par[k]} == {"name", "variant", "paraphrases"}
    equal = recipes["reader-ft-reg-equal-updates.yaml"].plain()
    assert {k for k in reg if reg[k] != equal[k]} == {"name", "equal_updates_to_paraphrases"}
    for name in ("mistral-7b", "llama-2-7b", "orca-2-7b"):
        paper = recipes[f"paper/{name}.yaml"]
        assert (paper.block_size, paper.epochs, paper.global_batch, paper.processes) == (256, 5, 64, 4)
        assert (paper.rates[0], paper.rates[-1]) == (1e-6, 5e-5)


def test_fingerprint_is_of_what_has_an_effect():
    recipe = Recipe(**LEAST)
    same = recipe.model_copy(update={"checkpoint_every": 3, "micro_batch": 1, "name": "x"})
    assert same.fingerprint() == recipe.fingerprint()
    for change in ({"seed": 1}, {"paraphrases": 9}, {"learning_rate": Search(rates=(1e-3,))}, {"block_size": 128}):
        assert recipe.model_copy(update=change).fingerprint() != recipe.fingerprint()


def test_a_cartridge_has_one_name_however_it_is_said():
    plain = Recipe(**LEAST, method="cartridge")
    said = Recipe(**LEAST, method="cartridge", cartridge={"tokens": 128, "lessons": 5})
    assert plain.fingerprint() == said.fingerprint() != Recipe(**LEAST).fingerprint()
    assert plain.effective() == said.effective()
    assert said.model_copy(update={"cartridge": None}).fingerprint() == said.fingerprint()
    longer = Recipe(**LEAST, method="cartridge", cartridge={"tokens": 129})
    assert longer.fingerprint() != plain.fingerprint()
    assert "cartridge" not in Recipe(**LEAST).effective()
    text = Recipe(**LEAST, method="cartridge", cartridge={"objective": "next-token"}, stream=True)
    assert not text.distils
    assert plain.distils


ASKED = {
    "model": "reader",
    "corpus": "current_events",
    "variant": "ft-robust",
    "questions": {"source": "current_events"},
    "learning_rate": 1e-5,
}


def test_questions_and_what_cannot_be_with_them(tmp_path):
    """All of it at once; and a broken value hides nothing and brings no false complaint."""
    assert load_recipe(write(tmp_path, **ASKED)).by_rows
    bad = {
        **ASKED,
        "questions": {"source": "current_events", "form": "explicit", "k": 0, "retriever": "bm26"},
        "method": "cartridge",
        "replay": {"corpus": "newswire-older"},
        "stream": True,
        "chunks": "all",
        "paraphrases": 3,
        "learning_rate": {"trials": 2},
    }
    found = problems(write(tmp_path, **bad))
    for words in (
        "questions.retriever: ", "questions.form explicit: there are no chunks to judge", "replay with variant",
        "method cartridge with variant", "stream with variant", "chunks all with variant",
        "paraphrases 3 with variant ft-robust", "learning_rate: a search goes by the loss on texts",
    ):  # fmt: skip
        assert sum(words in problem for problem in found) == 1, words
    (problem,) = problems(write(tmp_path, **{**ASKED, "questions": {"source": "x", "from": "implicit"}}))
    assert problem == "questions.from: no such key; did you mean form?"
    (problem,) = problems(write(tmp_path, **{**ASKED, "questions": {}}))
    assert problem.startswith("questions.source: missing; give a bundled question set")
    (problem,) = problems(write(tmp_path, **{**ASKED, "questions": 5}))
    assert problem.startswith("questions: must be what is asked and how")
    (problem,) = problems(write(tmp_path, **{**ASKED, "variant": "ft-robst"}))
    assert problem.startswith("variant: 'ft-robst'")
    (problem,) = problems(write(tmp_path, **{**ASKED, "variant": "ft-par"}))
    assert problem == "questions with variant ft-par: say ft-robust, or remove questions"
    (problem,) = problems(write(tmp_path, **{k: v for k, v in ASKED.items() if k != "questions"}))
    assert problem.startswith("questions: missing, and variant ft-robust trains on them")


def test_what_is_asked_names_a_recipe_and_a_published_one_names_no_path(tmp_path):
    (tmp_path / "mine.jsonl").write_text("")
    recipe = Recipe(**ASKED)
    for change in ({"k": 4}, {"form": "explicit"}, {"retriever": "minilm"}, {"instruction": "Read."}):
        other = recipe.model_copy(update={"questions": recipe.questions.model_copy(update=change)})
        assert other.fingerprint() != recipe.fingerprint()
        assert other.effective() != recipe.effective()
    mine = Recipe(**{**ASKED, "questions": {"source": f"{tmp_path}/mine.jsonl"}})
    assert mine.public()["questions"]["source"] == "mine.jsonl"
    assert mine.effective() == recipe.effective()  # the questions have a fingerprint of their own
    assert "questions" not in Recipe(**LEAST).effective()


def test_equal_recipes_have_equal_fingerprints():
    """However they say it: ft-reg is ft-par without paraphrases, and ten of them are the default."""
    reg = Recipe(**{**LEAST, "variant": "ft-reg"})
    for same in ({"paraphrases": 0}, {"variant": "ft-par", "paraphrases": 0}, {"data_seed": 0}):
        other = reg.model_copy(update=same)
        assert other.fingerprint() == reg.fingerprint()
        assert other.effective() == reg.effective()
    par = Recipe(**LEAST)
    assert par.model_copy(update={"paraphrases": 10}).fingerprint() == par.fingerprint() != reg.fingerprint()
    assert par.model_copy(update={"data_seed": 1}).fingerprint() != par.fingerprint()


@pytest.mark.parametrize(
    "changes",
    [
        {"method": "full"},
        {"method": "cartridge"},
        {"variant": "ft-robust", "questions": {"source": "current_events"}, "learning_rate": 1e-5},
        {"learning_rate": {"rates": [1e-4, 1e-3]}},
        {"learning_rate": {"trials": 2}},
        {},
    ],
    ids=["full", "cartridge", "robust", "rates", "range", "defaults"],
)
def test_a_published_recipe_can_be_run_again(tmp_path, changes):
    recipe = load_recipe(write(tmp_path, **{**LEAST, **changes}))
    again = tmp_path / "recipe.yaml"
    again.write_text(yaml.safe_dump(to_run_again(recipe.public()), sort_keys=False))
    assert load_recipe(again) == recipe


def test_a_published_recipe_names_no_folder_of_this_disk(tmp_path):
    (tmp_path / "home" / "news").mkdir(parents=True)
    for kind in ("", "realtimeqa:"):
        given = f"{kind}{tmp_path}/home/news"
        made = Recipe(**{**LEAST, "corpus": given, "replay": {"corpus": given}}).public()
        assert made["corpus"] == made["replay"]["corpus"] == f"{kind}news"
    hub = {"corpus": "owner/news@main", "replay": {"corpus": "newswire-older"}}
    made = Recipe(**{**LEAST, **hub}).public()
    assert (made["corpus"], made["replay"]["corpus"]) == ("owner/news@main", "newswire-older")


ADAPTERS = Path(__file__).parents[2] / "adapters"


@pytest.mark.parametrize("name", ["reader-ft-par-lora", "reader-ft-reg-lora"])
def test_a_bundled_adapter_is_of_the_recipe_of_its_name(name):
    record = yaml.safe_load((ADAPTERS / f"{name}.yaml").read_text())
    run = read_json(ADAPTERS / name / "kinject.json")
    assert record["recipe"] == run["recipe_fingerprint"] == load_recipe(name).fingerprint()


@pytest.mark.parametrize(
    ("batch", "micro", "processes", "expected"),
    [(64, None, 1, (8, 8)), (64, 16, 2, (16, 2)), (6, None, 1, (6, 1)), (14, None, 2, (7, 1)), (22, None, 2, (1, 11))],
)
def test_accumulation(batch, micro, processes, expected):
    recipe = Recipe(**LEAST, global_batch=batch, micro_batch=micro)
    assert recipe.accumulation(processes) == expected


def test_batch_that_the_processes_at_hand_cannot_share():
    with pytest.raises(ArgumentError, match="shared by 3 processes"):
        Recipe(**LEAST).accumulation(3)
    with pytest.raises(ArgumentError, match="micro_batch 6"):
        Recipe(**LEAST, micro_batch=6).accumulation(1)
