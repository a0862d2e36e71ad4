"""The tasks as they are shipped: from any folder, with their own corpus, and without touching the datasets cache."""

from __future__ import annotations

import json

import pytest
from helpers.local_tasks import ROOT, evaluate, prompts
from helpers.tiny_models import make_tiny
from lm_eval.tasks import TaskManager

import lm_eval_kinject.models.rag_hf  # noqa: F401
from lm_eval_kinject.corpus import load_corpus

TASKS = ("current_events", "current_events_cloze", "current_events_gen")
PINS = json.loads((ROOT / "tests" / "gold" / "lab.json").read_text())  # `make lab` writes it


@pytest.fixture
def manager(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    return TaskManager(include_defaults=False, include_path=str(ROOT / "tasks"))


def test_questions_name_chunks_of_the_corpus(manager, tmp_path):
    corpus = load_corpus("current_events", tasks_dir=ROOT / "tasks")
    tasks = manager.load(list(TASKS))["tasks"]
    for task in tasks.values():
        assert len(task.eval_docs) == 910
        assert {doc["source_chunk"] for doc in task.eval_docs} <= set(corpus.by_id)
        assert all(len(doc["choices"]) == 4 and 0 <= doc["answer"] < 4 for doc in task.eval_docs)
        shown = {doc["source_chunk"] for doc in task.fewshot_docs()}
        assert not shown & {doc["source_chunk"] for doc in task.eval_docs}
    assert not (tmp_path / "cache").exists()


def test_they_run_with_their_own_corpus(manager, tmp_path):
    arguments = {"pretrained": make_tiny("llama", tmp_path / "models", max_length=8192), "retriever": "oracle", "k": 1}
    result = evaluate("rag-hf", arguments, TASKS, manager, limit=3, num_fewshot=2)
    corpus = load_corpus("current_events", tasks_dir=ROOT / "tasks")
    for task in TASKS:
        for sample, prompt in zip(result["samples"][task], prompts(result, task), strict=True):
            chunk = corpus.by_id[sample["doc"]["source_chunk"]].text
            shown, text, question = prompt.rpartition(chunk + "\n\n")
            assert text
            assert sample["doc"]["question"] in question
            assert shown.count("Answer:") == 2
        figures = result["config"]["kinject"]["tasks"][task]
        assert (figures["recall@1"], figures["mrr"], figures["corpus"]) == (1.0, 1.0, corpus.fingerprint)
    said = result["config"]["kinject"]["corpora"][0]
    assert (said["revision"], said["licence"]) == (PINS["revision"], "cc0-1.0")


def test_the_packages_own_adapters_are_one_word(manager, tmp_path, monkeypatch):
    """Both were trained on the questions' chunks; only the one that read them in other wordings answers."""
    monkeypatch.setenv("KINJECT_CACHE", str(tmp_path / "kinject"))
    accuracy = {}
    for name in ("reader-ft-reg-lora", "reader-ft-par-lora"):
        result = evaluate("rag-hf", {"adapter": name, "k": 0}, ["current_events_cloze"], manager, limit=100)
        said = result["config"]["kinject"]
        assert (said["adapter"], said["model"]["name"]) == (name, "reader")
        accuracy[name] = result["results"]["current_events_cloze"]["acc,none"]
    assert accuracy["reader-ft-par-lora"] > accuracy["reader-ft-reg-lora"] + 0.1


def test_kinject_mmlu_is_two_groups_of_five(manager):
    assert manager.all_groups == ["kinject_mmlu", "kinject_mmlu_cloze"]
    ours = [name for name in manager.all_subtasks if name.startswith("kinject_mmlu_")]
    assert len(ours) == 10
