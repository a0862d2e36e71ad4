"""With k=0, rag-hf is lm_eval's hf: the same log-likelihoods and generations, bit for bit.

Both run the same task files on the same random models; nothing is compared with a tolerance.
"""

from __future__ import annotations

import pytest
from helpers.local_tasks import SUBJECTS, copy_current_events, evaluate, prompts, task_manager, write_foreign
from helpers.tiny_models import make_tiny

import lm_eval_kinject.models.rag_hf  # noqa: F401

TASKS = [
    "current_events",
    "current_events_cloze",
    "kinject_mmlu_anatomy",
    "kinject_mmlu_anatomy_cloze",
    "arc_easy",
    "mmlu_anatomy",
    "triviaqa",
]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("k0")
    write_foreign(folder)
    copy_current_events(folder / "ours")
    return folder


@pytest.fixture(autouse=True)
def _inside(place, monkeypatch):
    monkeypatch.chdir(place)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", place / "cache")


def run(model, arch, place, tasks, **more):
    arguments = {"pretrained": make_tiny(arch, place / "models"), "batch_size": 4}
    if model == "rag-hf":
        arguments["k"] = 0
    settings = {"gen_kwargs": {"max_gen_toks": 8}, "limit": 3, **more}
    return evaluate(model, arguments, tasks, task_manager(place / "ours"), **settings)


def answers(result, task):
    return [(s["arguments"], s["resps"], s["filtered_resps"]) for s in result["samples"][task]]


@pytest.mark.parametrize("arch", ["llama", "mistral", "gemma3", "gpt2", "t5"])
def test_same_bits_as_hf(arch, place):
    theirs, ours = (run(model, arch, place, TASKS) for model in ("hf", "rag-hf"))
    for task in TASKS:
        assert answers(ours, task) == answers(theirs, task), task
        assert ours["results"][task] == theirs["results"][task]
    assert ours["config"]["kinject"]["k"] == 0
    scores = {r[0][0] for t in TASKS[:-1] for s in ours["samples"][t] for r in s["resps"]}
    assert len(scores) > 20  # the random model does tell requests apart


def test_same_bits_with_few_shot_and_chat_template(place):
    options = {"num_fewshot": 2, "apply_chat_template": True, "fewshot_as_multiturn": True}
    theirs, ours = (run(model, "gemma3", place, ["current_events"], **options) for model in ("hf", "rag-hf"))
    assert answers(ours, "current_events") == answers(theirs, "current_events")


@pytest.mark.parametrize("shots", [0, 5])
def test_kinject_mmlu_letters_are_lm_evals_mmlu(shots, place):
    ours = run("rag-hf", "llama", place, ["kinject_mmlu"], num_fewshot=shots)
    theirs = run("hf", "llama", place, [f"mmlu_{subject}" for subject in SUBJECTS], num_fewshot=shots)
    for subject in SUBJECTS:
        assert answers(ours, f"kinject_mmlu_{subject}") == answers(theirs, f"mmlu_{subject}")
        assert (
            ours["results"][f"kinject_mmlu_{subject}"]["acc,none"] == theirs["results"][f"mmlu_{subject}"]["acc,none"]
        )
    first = prompts(ours, "kinject_mmlu_college_biology")[0]
    assert first.startswith("The following are multiple choice questions (with answers) about college biology.\n\nWho")
    assert first.count("Answer:") == shots + 1
    assert "kinject_mmlu" in ours["groups"]
