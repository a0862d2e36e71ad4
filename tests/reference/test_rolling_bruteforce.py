"""Rolling text with retrieval against a plain loop over transformers: one forward pass a stretch, nothing shared.

The corpus is seven short reports, one of them of two chunks; the scored texts are all of them.
"""

from __future__ import annotations

import json

import pytest
import torch
from helpers.local_tasks import ROOT, evaluate
from helpers.tiny_models import make_tiny
from lm_eval.tasks import TaskManager
from transformers import AutoModelForCausalLM, AutoTokenizer

import lm_eval_kinject.models.rag_hf  # noqa: F401
from lm_eval_kinject.corpus import load_corpus
from lm_eval_kinject.errors import ArgumentError, ContextError
from lm_eval_kinject.records import Query
from lm_eval_kinject.retrieval import make_retriever
from lm_eval_kinject.retrieval.library import AsFound, Library, NoProbe, Search

TASK = "kinject_perplexity"
TOWNS = ("Arden", "Brill", "Corby", "Dover", "Eston", "Filey", "Goole")
REPORT = (
    "On a cold morning the bridge at {} was opened by the mayor, and the band of the fire brigade of {} played for "
    "more than {} people who had come on foot."
)


def report(i: int) -> str:
    return REPORT.format(TOWNS[i], TOWNS[(i + 3) % 7], 100 * i + 7)


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KINJECT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets")
    rows = [
        {"id": f"c{i}", "document_id": f"d{max(i, 1)}", "text": report(i), "date": f"2026-0{1 + i // 3}-1{i}"}
        for i in range(7)
    ]
    (tmp_path / "news.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def run(model, place, window=None, *, max_length=512, arch="llama", **arguments):
    said = {"corpus": "news.jsonl", **(window or {})}
    manager = TaskManager(include_defaults=False, include_path=str(ROOT / "tasks" / TASK), metadata=said)
    given = {"pretrained": make_tiny(arch, place / "models", max_length=max_length), **arguments}
    return evaluate(model, given, [TASK], manager, limit=None)


def log_likelihoods(result) -> list[float]:
    return [sample["resps"][0][0] for sample in sorted(result["samples"][TASK], key=lambda one: one["doc_id"])]


def expected(place, *, stride, query_tokens, k, arch, max_length):
    """The same numbers, one stretch after the other."""
    folder = make_tiny(arch, place / "models", max_length=max_length)
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder).eval()
    corpus = load_corpus("news.jsonl")
    retriever = make_retriever("bm25", corpus)
    prefix = tokenizer.bos_token_id
    sums = []
    for chunk in corpus.chunks:
        tokens, total = tokenizer.encode(chunk.text), 0.0
        for begin in range(0, len(tokens), stride):
            stretch, before, retrieved = tokens[begin : begin + stride], tokens[:begin], []
            if begin:
                asked = tokenizer.decode(before[-query_tokens:], skip_special_tokens=True).strip()
                hits = retriever.search([Query(asked)], len(corpus))[0]
                others = [hit.chunk.text for hit in hits if hit.chunk.document_id != chunk.document_id][:k]
                retrieved = tokenizer.encode("".join(f"{text}\n\n" for text in others), add_special_tokens=False)
                before = before[1:] if before[0] == prefix else before
            read = [prefix, *retrieved, *before, *stretch]
            with torch.no_grad():
                logits = model(torch.tensor([read[:-1]])).logits[0].double().log_softmax(-1)
            total += sum(logits[len(read) - 1 - len(stretch) + i, token].item() for i, token in enumerate(stretch))
        sums.append(total)
    return sums


@pytest.mark.parametrize(("arch", "scorer"), [("llama", "shared"), ("gpt2", "harness")])
def test_it_is_a_plain_loop(arch, scorer, place):
    asked = {"stride": 16, "query_tokens": 9, "k": 2}
    result = run("rag-hf", place, arch=arch, retriever="bm25", scorer=scorer, **asked)
    assert log_likelihoods(result) == pytest.approx(expected(place, **asked, arch=arch, max_length=512), abs=2e-3)
    words, bytes_ = (sum(count(report(i)) for i in range(7)) for count in (lambda t: len(t.split()), len))
    total = sum(log_likelihoods(result))
    figures = result["results"][TASK]
    assert figures["word_perplexity,none"] == pytest.approx(2.718281828459045 ** (-total / words))
    assert figures["bits_per_byte,none"] == pytest.approx(-total / bytes_ / 0.6931471805599453)


def test_a_text_never_finds_itself_nor_asks_with_what_is_scored(place):
    result = run("rag-hf", place, retriever="bm25", k=5, stride=20, query_tokens=8)
    corpus = load_corpus("news.jsonl")
    tokenizer = AutoTokenizer.from_pretrained(make_tiny("llama", place / "models", max_length=512))
    searches = 0
    for sample in result["samples"][TASK]:
        text, trace = sample["arguments"][0]
        tokens = tokenizer.encode(text)
        stretches = trace["kinject"]["stretches"]
        assert len(stretches) == (len(tokens) - 1) // 20
        for number, one in enumerate(stretches, start=1):
            assert one["query"] == tokenizer.decode(tokens[20 * number - 8 : 20 * number]).strip()
            assert len(one["hits"]) == 5
            assert [hit["rank"] for hit in one["hits"]] == [1, 2, 3, 4, 5]
            found = {corpus.by_id[hit["id"]].document_id for hit in one["hits"]}
            assert sample["doc"]["document"] not in found
        searches += len(stretches)
    said = result["config"]["kinject"]["tasks"][TASK]
    assert said["rolling"] == {"stride": 20, "query_tokens": 8, "searches": searches}
    assert (said["questions"], said["corpus"]) == (7, corpus.fingerprint)


def test_without_retrieval_it_is_hf_to_the_bit(place):
    theirs, ours = run("hf", place, max_length=48), run("rag-hf", place, max_length=48, k=0)  # two windows a text
    assert log_likelihoods(ours) == log_likelihoods(theirs)
    assert ours["results"][TASK] == theirs["results"][TASK]
    assert [s["arguments"] for s in ours["samples"][TASK]] == [s["arguments"] for s in theirs["samples"][TASK]]
    first = run("rag-hf", place, retriever="random", k=1, stride=256)  # one stretch: nothing is before it
    assert log_likelihoods(first) == pytest.approx(log_likelihoods(run("hf", place)), abs=1e-3)


@pytest.mark.parametrize("retriever", ["bm25", "random", "full"])
def test_what_a_query_leaves_out_is_not_found(retriever, place):
    """The others stand as in a longer list of which it is struck out; another query of the batch isn't touched."""
    more = 0 if retriever == "full" else 4

    def library(k):
        return Library(Search(retriever=retriever, k=k), AsFound(), NoProbe(), "cpu", "here", more=more)

    plain, without = Query("the bridge at Brill"), Query("the bridge at Brill", without="d1")
    found = library(3).find("news.jsonl", [plain, without])
    everything = library(7).find("news.jsonl", [plain])[plain]
    kept = [hit.chunk.id for hit in everything.prompt if hit.chunk.document_id != "d1"]
    assert len(kept) == 5
    assert [hit.chunk.id for hit in found[without].prompt] == (kept if retriever == "full" else kept[:3])
    assert [hit.rank for hit in found[without].prompt] == list(range(1, len(found[without].prompt) + 1))
    assert [hit.chunk.id for hit in found[without].more] == kept[:more]
    assert found[plain] == library(3).find("news.jsonl", [plain])[plain]


def test_in_a_small_window_retrieved_text_takes_half_at_most(place):
    result = run("rag-hf", place, retriever="bm25", k=3, max_length=64, stride=16)
    for sample in result["samples"][TASK]:
        for one in sample["arguments"][0][1]["kinject"]["stretches"]:
            assert 0 < one["context_tokens"] <= (64 - 1) // 2
    assert result["config"]["kinject"]["tasks"][TASK]["chunks_dropped"] > 0


def test_a_window_of_time(place):
    result = run("rag-hf", place, {"from": "2026-02", "to": "2026-02-14"}, k=0)
    assert [sample["doc"]["id"] for sample in result["samples"][TASK]] == ["c3", "c4"]
    with pytest.raises(ArgumentError, match="no text of 2027-01-01"):
        run("hf", place, {"from": "2027"})
    with pytest.raises(ArgumentError, match="`corpus` is needed"):
        run("hf", place, {"corpus": ""})
    dates = ("2026-01", "2026-02", "2026", "2026-02-03T10:00:00", "last week", None)
    rows = [{"id": f"x{i}", "text": f"Text {i}.", "date": date} for i, date in enumerate(dates)]
    (place / "loose.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = run("rag-hf", place, {"corpus": "loose.jsonl", "from": "2026-02", "to": "2026-02"}, k=0)
    days = [(sample["doc"]["id"], sample["doc"]["date"]) for sample in result["samples"][TASK]]
    assert days == [("x1", "2026-02-01"), ("x3", "2026-02-03")]
    (place / "bare.jsonl").write_text('{"id": "a", "text": "No date."}\n')
    with pytest.raises(ArgumentError, match="has 1 texts and no dates"):
        run("hf", place, {"corpus": "bare.jsonl", "from": "2026"})


def test_what_is_not_made_for_it_is_refused_at_once(place):
    with pytest.raises(ArgumentError) as caught:
        run("rag-hf", place, retriever="oracle", k=1, stride=300)
    assert len(caught.value.problems) == 2
    assert "retriever=oracle: a rolling text has no right chunk but itself" in str(caught.value)
    assert "stride=256 or less" in str(caught.value)
    for more, said in (
        ({"fusion": "rag-token"}, "pass fusion=concat"),
        ({"route": "random"}, "pass route=none"),
        ({"reasoning": "self-reasoning"}, "pass reasoning=none"),
    ):
        with pytest.raises(ArgumentError, match=said):
            run("rag-hf", place, retriever="bm25", k=2, **more)
    with pytest.raises(ArgumentError, match="decoder-only models"):
        run("rag-hf", place, arch="t5", retriever="bm25", k=2)


def test_the_same_text_under_another_name_stops_the_run(place):
    rows = [json.loads(line) for line in (place / "news.jsonl").read_text().splitlines()]
    rows.append({**rows[4], "id": "again", "document_id": "copy"})
    (place / "copies.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(ContextError, match=r"document 4 is d4 and again.*take them out"):
        run("rag-hf", place, retriever="bm25", k=2, corpus="copies.jsonl", stride=16)
