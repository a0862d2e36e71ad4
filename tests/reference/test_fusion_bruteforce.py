"""Marginalised answers against the model itself: one forward a document, log-softmax, and the formulas written out."""

from __future__ import annotations

import math

import pytest
import torch
from helpers.local_tasks import copy_current_events, evaluate, task_manager, write_corpus
from helpers.tiny_models import make_tiny
from transformers import AutoModelForCausalLM, AutoTokenizer

TEMPERATURE = 2.0


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fusion")
    write_corpus(folder / "corpus")
    copy_current_events(folder / "ours")
    return folder


@pytest.fixture
def run(place, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", place / "datasets")

    def run(task="current_events_cloze", **arguments):
        given = {
            "pretrained": make_tiny("llama", place / "models"),
            "corpus": str(place / "corpus"),
            "retriever": "bm25",
            "k": 3,
            **arguments,
        }
        return evaluate("rag-hf", given, [task], task_manager(place / "ours"), limit=3)

    return run


def scores_of(result, task="current_events_cloze"):
    rows = sorted(result["samples"][task], key=lambda row: row["doc_id"])
    return [[response[0][0] for response in row["resps"]] for row in rows]


def brute_force(place, row, fusion):
    """What the formulas say of the options of one sample, from the model's logits alone."""
    folder = make_tiny("llama", place / "models")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    _, option, more = row["arguments"][0]
    trace = more["kinject"]
    question = row["arguments"][0][0].removeprefix(trace["contexts"][0])
    prior = torch.log_softmax(torch.tensor([hit["score"] for hit in trace["hits"]]) / TEMPERATURE, dim=0)
    found = []
    for _, option, _ in row["arguments"]:
        each = []
        for context in trace["contexts"]:
            before = tokenizer(context + question)["input_ids"]
            whole = tokenizer(context + question + option)["input_ids"]
            with torch.no_grad():
                logits = model(torch.tensor([whole])).logits[0].float().log_softmax(-1)
            each.append([logits[place - 1, whole[place]].item() for place in range(len(before), len(whole))])
        table = torch.tensor(each, dtype=torch.float64)
        if fusion == "rag-sequence":
            found.append(torch.logsumexp(prior + table.sum(1), 0).item())
        else:
            found.append(torch.logsumexp(prior[:, None] + table, 0).sum().item())
    return found


@pytest.mark.parametrize("scorer", ["shared", "harness"])
@pytest.mark.parametrize("fusion", ["rag-sequence", "rag-token"])
def test_answers_are_the_formulas(run, place, fusion, scorer):
    result = run(fusion=fusion, temperature=TEMPERATURE, scorer=scorer)
    rows = sorted(result["samples"]["current_events_cloze"], key=lambda row: row["doc_id"])
    for row, scores in zip(rows, scores_of(result), strict=True):
        assert scores == pytest.approx(brute_force(place, row, fusion), abs=1e-4)
        assert len(row["arguments"][0][2]["kinject"]["contexts"]) == 3
    said = result["config"]["kinject"]
    how = {"decoding": "thorough"} if fusion == "rag-sequence" else {}
    assert said["pipeline"]["fusion"] == {"name": fusion, "temperature": TEMPERATURE, **how}
    assert said["prompt"]["fusion"] == fusion


def test_one_document_is_plain_retrieval(run):
    plain = scores_of(run(k=1))
    for fusion in ("rag-sequence", "rag-token"):
        for one, other in zip(scores_of(run(k=1, fusion=fusion)), plain, strict=True):
            assert one == pytest.approx(other, abs=1e-5)


def test_letters_cannot_tell_the_two_apart(run):
    one, other = (
        scores_of(run("current_events", fusion=name), "current_events") for name in ("rag-sequence", "rag-token")
    )
    for a, b in zip(one, other, strict=True):
        assert a == pytest.approx(b, abs=1e-6)


def test_texts_can(run):
    one, other = (scores_of(run(fusion=name)) for name in ("rag-sequence", "rag-token"))
    assert (
        max(abs(a - b) for left, right in zip(one, other, strict=True) for a, b in zip(left, right, strict=True)) > 1e-3
    )


def test_the_shared_scorer_forwards_each_distinct_token_once(place, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", place / "datasets")
    from lm_eval_kinject.models.rag_hf import RagHFLM

    lm = RagHFLM(
        pretrained=make_tiny("llama", place / "models"),
        corpus=str(place / "corpus"),
        retriever="bm25",
        k=4,
        fusion="rag-token",
        device="cpu",
    )
    lm._shared_scorer()._always = True
    evaluate(lm, None, ["current_events_cloze"], task_manager(place / "ours"), limit=4)
    stats = lm._shared_scorer().stats
    assert stats.path == "shared"
    assert stats.forwarded_tokens <= 1.05 * stats.distinct_tokens
    assert math.isfinite(stats.largest_difference)
