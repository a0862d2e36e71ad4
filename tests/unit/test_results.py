"""Figures of a run, worked out by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
from lm_eval.api.instance import Instance

from lm_eval_kinject.errors import ProvenanceError
from lm_eval_kinject.models.prompts import Written
from lm_eval_kinject.models.results import (
    Figure,
    check_complete,
    figure_of,
    figures,
    loading,
    model_identity,
    ties,
)
from lm_eval_kinject.records import Chunk, Hit, Trace


def figure(doc_id, rank, *, task="t", gold=True, used=True, dropped=0, truncated=False, tokens=10):
    return Figure(task, doc_id, "f", gold, rank, used, dropped, truncated, tokens)


def test_recall_and_mrr():
    """Ranks 1, 2, 4 and not found: by hand."""
    found = figures([figure(0, 1), figure(1, 2), figure(2, 4, used=False), figure(3, None, used=False)], 2)["t"]
    assert [found[f"recall@{n}"] for n in (1, 2, 3, 5)] == [0.25, 0.5, 0.5, 0.75]
    assert found["mrr"] == pytest.approx((1 + 1 / 2 + 1 / 4) / 4)
    assert found["gold_in_prompt"] == 0.5
    assert found["mrr_depth"] == 5


def test_figures_before_and_after_reranking():
    """Ranks 1, 3 and 20 after, 2, 20 and not found before: by hand; 20 hits were ranked again."""
    ranks = [(1, 2), (3, 20), (20, None)]
    of = [replace(figure(n, after), retrieved_rank=before) for n, (after, before) in enumerate(ranks)]
    found = figures(of, 2, reranked=20)["t"]
    assert [found[f"recall@{n}"] for n in (1, 2, 3, 5)] == pytest.approx([1 / 3, 1 / 3, 2 / 3, 2 / 3])
    assert [found[f"retrieved_recall@{n}"] for n in (1, 2, 3, 5)] == pytest.approx([0, 1 / 3, 1 / 3, 1 / 3])
    assert found["mrr"] == pytest.approx((1 + 1 / 3 + 1 / 20) / 3)
    assert found["retrieved_mrr"] == pytest.approx((1 / 2 + 1 / 20) / 3)
    assert found["mrr_depth"] == 20
    assert not any(name.startswith("retrieved") for name in figures(of, 2)["t"])


def test_questions_without_gold_do_not_count_as_misses():
    found = figures([figure(0, 1), figure(1, None, gold=False)], 3)["t"]
    assert (found["questions"], found["questions_with_gold"], found["recall@1"]) == (2, 1, 1.0)
    assert "recall@1" not in figures([figure(0, None, gold=False)], 3)["t"]


def written(gold, found, used):
    hits = tuple(Hit(Chunk(chunk, ""), 1 / rank, rank) for rank, chunk in enumerate(found, 1))
    return Written(None, (), Trace("q", hits[:2], tuple(used), (), None, 10, gold), hits, "f", hits, ())


@pytest.mark.parametrize(
    ("gold", "found", "used", "rank", "is_used"),
    [
        ("a", "bac", "ba", 2, True),
        ("a", "bca", "bc", 3, False),
        ("d", "abc", "ab", None, False),
        (("a", "c"), "abc", "ab", 3, False),
        (("c", "a"), "abc", "ca", 3, True),
        (("a", "d"), "abc", "ab", None, False),
        (("a",), "ab", "ab", 1, True),
    ],
)
def test_of_several_gold_chunks_all_must_be_there(gold, found, used, rank, is_used):
    asked = Instance("loglikelihood", {}, ("c", "x"), 0, metadata=("t", 4, 1))
    expected = replace(figure(4, rank, used=is_used), retrieved_rank=rank)
    assert figure_of(asked, written(gold, found, used)) == expected
    none = figure_of(asked, written(None, found, used))
    assert (none.has_gold, none.gold_rank, none.gold_used) == (False, None, False)


def test_budget():
    found = figures([figure(0, 1, dropped=2, tokens=10), figure(1, 1, truncated=True, tokens=20)], 3)["t"]
    assert (found["chunks_dropped"], found["questions_with_dropped_chunks"], found["chunks_truncated"]) == (2, 1, 1)
    assert found["mean_context_tokens"] == 15


def test_tasks_apart_and_no_rank_without_ranking():
    found = figures([figure(0, 1, task="a"), figure(0, 9, task="b")], 3, ranked=False)
    assert list(found) == ["a", "b"]
    assert "recall@1" not in found["a"]
    assert found["a"]["gold_in_prompt"] == 1.0


def options(doc_id, contexts):
    return [
        Instance("loglikelihood", {}, (context, "x"), idx, metadata=("t", doc_id, 1))
        for idx, context in enumerate(contexts)
    ]


def test_ties():
    requests = [*options(0, ["c"] * 3), *options(1, ["c"] * 3), *options(2, ["c"]), *options(3, ["c", "c", ""])]
    answers = [(s, False) for s in (-1.0, -1.0, -2.0, -1.0, -2.0, -2.0, -1.0, -3.0, -4.0, -3.0)]
    assert ties(requests, answers) == {("t", 0): True, ("t", 1): False, ("t", 3): False}


def test_a_request_that_comes_twice_is_no_tie():
    requests = options(0, ["c", "c"])
    assert ties([*requests, *requests], [(s, False) for s in (-1.0, -2.0, -1.0, -2.0)]) == {("t", 0): False}


COMPLETE = {
    "model": {"name": "m", "commit": "c"},
    "prompt": {"query": "question", "placement": "start", "order": "o", "fusion": "f", "context_template": "t"},
    "corpora": [{"name": "c", "fingerprint": "f", "chunking": {"method": "as given"}}],
    "retrievers": [{"name": "r", "fingerprint": "f"}],
    "seeds": {"retriever": 0},
    "environment": {"python": "3", "packages": {"torch": "2"}},
}


@pytest.mark.parametrize(
    ("change", "missing"),
    [
        ({"model": {"name": "m", "commit": None}}, r"model\.commit \(of m\)"),
        ({"peft": {"name": "p", "commit": None}}, r"peft\.commit \(of p\)"),
        ({"delta": {"name": "d", "commit": None}}, r"delta\.commit \(of d\)"),
        ({"tokenizer": {"name": "t", "commit": None}}, r"tokenizer\.commit \(of t\)"),
        ({"corpora": []}, "corpora"),
        ({"corpora": [{"name": "c", "fingerprint": "f"}]}, r"corpora\.c\.chunking"),
        ({"retrievers": [{"name": "r"}]}, r"retrievers\.r\.fingerprint"),
        ({"seeds": {}}, r"seeds\.retriever"),
        ({"prompt": {}}, r"prompt\.query, prompt\.placement"),
        ({"environment": {}}, r"environment\.python"),
    ],
)
def test_what_is_missing_is_named(change, missing):
    check_complete(COMPLETE, retrieves=True)
    with pytest.raises(ProvenanceError, match=missing):
        check_complete({**COMPLETE, **change}, retrieves=True)


def test_without_retrieval_the_model_must_be_named_too():
    bare = {"k": 0, **{part: COMPLETE[part] for part in ("model", "environment")}}
    check_complete(bare, retrieves=False)
    for part in ("model", "peft", "delta", "tokenizer"):
        with pytest.raises(ProvenanceError, match=rf"couldn't name {part}\.commit \(of x\)"):
            check_complete({**bare, part: {"name": "x", "commit": None}}, retrieves=False)


def test_how_the_weights_are_read():
    given = {
        "pretrained": "a/b", "device": "cpu", "batch_size": 4, "dtype": "float16", "subfolder": "",
        "gguf_file": "q4.gguf", "load_in_4bit": True, "quantization_config": object(),
        "config": "/home/ann/config.json", "truncation": False,
    }  # fmt: skip
    assert loading(given, {"dtype": "auto", "subfolder": "", "truncation": False}) == {
        "config": "config.json", "dtype": "float16", "gguf_file": "q4.gguf", "load_in_4bit": True,
        "quantization_config": "object",
    }  # fmt: skip


def test_a_folder_is_named_by_its_content(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    for folder in (one, two):
        folder.mkdir()
        (folder / "config.json").write_text("{}")
        (folder / "model.safetensors").write_bytes(b"abc")
    assert model_identity(str(one), commit=None, revision="main")["name"] == "one"
    prints = [model_identity(str(f), commit=None, revision="main")["fingerprint"] for f in (one, two)]
    assert prints[0] == prints[1]
    (two / "model.safetensors").write_bytes(b"abd")
    assert model_identity(str(two), commit=None, revision="main")["fingerprint"] != prints[0]


def test_large_files_are_sampled(tmp_path, monkeypatch):
    monkeypatch.setattr("lm_eval_kinject.models.results._WHOLE", 10)
    monkeypatch.setattr("lm_eval_kinject.models.results._EDGE", 4)
    (tmp_path / "model.safetensors").write_bytes(b"0123456789abcdef")
    first = model_identity(str(tmp_path), commit=None, revision=None)
    assert "sizes, first and last MiB" in first["method"]
    (tmp_path / "model.safetensors").write_bytes(b"0123456789abcdeX")
    assert model_identity(str(tmp_path), commit=None, revision=None)["fingerprint"] != first["fingerprint"]


def test_a_hub_model_is_named_by_its_commit():
    said = model_identity("owner/name", commit="abc", revision="main")
    assert said == {"name": "owner/name", "revision": "main", "commit": "abc"}
    assert model_identity("nobody/nothing", commit=None, revision=None)["commit"] is None


def test_an_object_is_named_by_its_class():
    assert model_identity(object(), commit=None, revision=None)["name"] == "object"
