"""Scores out of lm_eval's results, their intervals, and the Hub's formats of them."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import yaml
from helpers.hub_run import make_results
from hub_server.validation import check_eval_results, check_eval_yaml
from huggingface_hub import parse_eval_result_entries

from lm_eval_kinject.errors import ArgumentError, PublishError
from lm_eval_kinject.hub.eval_results import (
    Results,
    Score,
    eval_results_files,
    eval_yaml,
    gaps,
    interval,
    latest,
    merge_scores,
    model_index,
    parse_benchmarks,
    read_results,
    scores_of,
)
from lm_eval_kinject.provenance import fingerprint

TASK = "current_events_cloze"


def score(tmp_path: Path, k: int = 3, **options: object) -> Score:
    file = make_results(tmp_path / f"k{k}{options}", model="me/reader", peft="me/a", k=k, **options)  # type: ignore[arg-type]
    return scores_of(read_results(file)[0])[0]


def test_what_is_read(tmp_path: Path) -> None:
    found = score(tmp_path)
    assert (found.task, found.metric, found.value, found.n, found.shots) == (TASK, "acc", 0.5, 8, 0)
    assert found.stderr == pytest.approx(math.sqrt(0.5 * 0.5 / 7))
    assert (found.subject, found.model, found.has_adapter, found.k) == ("me/a", "me/reader", True, 3)
    assert found.date == "2026-11-21T03:47:07Z"
    assert Score(**json.loads(json.dumps(asdict(found)))) == found


def test_filters_nans_and_aliases(tmp_path: Path) -> None:
    file = make_results(tmp_path, model="me/reader", peft=None, k=0)
    data = json.loads(file.read_text())
    data["results"][TASK] |= {"exact_match,strict": 0.25, "f1,none": float("nan"), "acc_stderr,none": "N/A"}
    file.write_text(json.dumps(data))
    found = scores_of(read_results(file)[0])
    assert [(s.metric, s.value, s.stderr) for s in found] == [("acc", 0.5, None), ("exact_match,strict", 0.25, None)]


def test_wilsons_interval(tmp_path: Path) -> None:
    # By hand for 4 of 8: centre (0.5 + z²/16) / (1 + z²/8) = 0.5, half z/(1 + z²/8) · √(1/32 + z²/256), z = 1.96.
    low, high = interval(score(tmp_path)) or (0.0, 0.0)
    z = 1.959964
    half = z / (1 + z * z / 8) * math.sqrt(1 / 32 + z * z / 256)
    assert (low, high) == pytest.approx((0.5 - half, 0.5 + half))
    assert (round(low, 3), round(high, 3)) == (0.215, 0.785)
    # The textbook's 0 of 10: from 0 to z²/(10 + z²).
    assert interval(replace(score(tmp_path), value=0.0, n=10)) == pytest.approx((0.0, z * z / (10 + z * z)))


def test_other_intervals(tmp_path: Path) -> None:
    one = replace(score(tmp_path), metric="perplexity", value=12.0, stderr=0.5)
    assert interval(one) == pytest.approx((12 - 0.979982, 12 + 0.979982))
    assert interval(replace(one, stderr=None)) is None
    assert interval(replace(one, metric="acc", value=0.5, n=None, stderr=None)) is None


def test_a_variant_is_its_setting(tmp_path: Path) -> None:
    one, other = score(tmp_path), score(tmp_path, acc=0.25)
    assert one.variant == other.variant, "the number isn't part of the setting"
    assert len({one.variant, score(tmp_path, k=0).variant, score(tmp_path, retriever="bge").variant}) == 3
    assert one.variant.startswith("k3-minilm-")
    assert score(tmp_path, retriever="org/My_Model").variant.startswith("k3-my-model-")


def altered(tmp_path: Path, **kinject: object) -> Results:
    file = make_results(tmp_path / fingerprint(kinject)[:16], model="me/reader", peft=None, k=3)
    data = json.loads(file.read_text())
    data["config"]["kinject"] |= kinject
    file.write_text(json.dumps(data))
    return read_results(file)[0]


def test_two_models_never_share_a_variant(tmp_path: Path) -> None:
    changes: list[dict[str, object]] = [
        {},
        {"tokenizer": {"name": "me/tok", "commit": "a" * 40}},
        {"tokenizer": {"name": "me/tok", "commit": "b" * 40}},
        *({"loading": one} for one in ({"dtype": "float16"}, {"load_in_4bit": True}, {"subfolder": "x"})),
    ]
    scores = [scores_of(altered(tmp_path, **change))[0] for change in changes]
    assert len({score.variant for score in scores}) == len(changes)
    assert "dtype=float16" in scores[3].notes
    (delta,) = scores_of(altered(tmp_path, delta={"name": "me/delta", "commit": "d" * 40}))
    assert (delta.subject, delta.subject_commit, delta.model) == ("me/delta", "d" * 40, "me/reader")


@pytest.mark.parametrize("part", ["delta", "tokenizer"])
def test_companions_without_a_commit_are_gaps(tmp_path: Path, part: str) -> None:
    (gap,) = gaps(altered(tmp_path, **{part: {"name": "t", "fingerprint": "f" * 64}}), samples=False)
    assert gap.startswith(f"kinject.{part}.commit: t has none")


def test_eval_results_files(tmp_path: Path) -> None:
    scores = [score(tmp_path), score(tmp_path, k=0)]
    files = eval_results_files(scores, {TASK: "cais/bench#cloze"}, source="https://example.org", user="me")
    assert len(files) == 2
    for path, data in files.items():
        assert path.startswith(f".eval_results/kinject_{TASK.replace('_', '-')}_k")
        assert check_eval_results(data.decode()) == []
        (entry,) = parse_eval_result_entries(yaml.safe_load(data))
        assert (entry.dataset_id, entry.task_id, entry.value) == ("cais/bench", "cloze", 0.5)
        assert entry.source_url == "https://example.org"
    assert any("retriever=minilm" in data.decode() and "corpus=current_events@40c3b8c940c3" in data.decode()
               for data in files.values())  # fmt: skip
    assert eval_results_files(scores, {}) == {}


def test_benchmarks_from_the_command_line() -> None:
    texts = ["a=me/x", "b=me/y#cloze", "a=me/x"]
    assert parse_benchmarks(texts, "kinject push") == {"a": "me/x", "b": "me/y#cloze"}
    with pytest.raises(ArgumentError) as caught:
        parse_benchmarks(["me/x", "a=x", "=me/x", "a=me/x#", "b=me/x", "b=me/y"], "kinject push")
    assert "5 problems in kinject push" in str(caught.value)
    assert "--benchmark names two for b; remove one" in str(caught.value)


def test_of_several_runs_the_latest_counts(tmp_path: Path) -> None:
    old, new = score(tmp_path, acc=0.25), score(tmp_path, acc=0.75, later=1)
    assert old.variant == new.variant
    for scores in ([old, new], [new, old]):
        assert latest(scores) == merge_scores(scores[:1], scores[1:]) == [new]
        (data,) = eval_results_files(scores, {TASK: "cais/bench#cloze"}).values()
        assert yaml.safe_load(data)[0]["value"] == 0.75


def test_model_index(tmp_path: Path) -> None:
    (entry,) = model_index([score(tmp_path)])
    assert (entry.dataset_type, entry.dataset_name, entry.metric_type) == (TASK, TASK, "accuracy")
    (hub,) = model_index([replace(score(tmp_path), dataset="cais/mmlu", config="anatomy")])
    assert (hub.dataset_type, hub.dataset_config) == ("cais/mmlu", "anatomy")


def test_eval_yaml() -> None:
    tasks = [{"id": "cloze", "config": "default", "split": "test"}]
    nothing, why = eval_yaml("n", "d", tasks, "lm-evaluation-harness")
    assert nothing is None
    assert "doesn't have lm-evaluation-harness" in why
    written, _ = eval_yaml("n", "d", tasks, "inspect-ai")
    assert written is not None
    assert check_eval_yaml(written.decode()) == []


def test_newer_scores_replace_older_ones_of_the_same_setting(tmp_path: Path) -> None:
    old, new, other = score(tmp_path), score(tmp_path, acc=0.75), score(tmp_path, k=0)
    assert merge_scores([old, other], [new]) == sorted([other, new], key=lambda s: s.variant)


def test_a_whole_result_has_no_gaps(tmp_path: Path) -> None:
    assert gaps(read_results(make_results(tmp_path, model="me/reader", peft="me/a", k=3))[0], samples=True) == []
    assert gaps(read_results(make_results(tmp_path / "0", model="me/reader", peft=None, k=0))[0], samples=True) == []


HUB_MODEL = {"repo": "me/encoder", "commit": "a" * 40}


@pytest.mark.parametrize(
    ("corpus", "text"),
    [
        ({"source": "bundled corpus of current_events"}, None),
        ({"source": "Hub dataset me/c", "revision": "a" * 40}, None),
        ({"source": "Hub dataset me/c", "revision": None}, r"kinject.corpora.c.revision: no commit of that data set"),
        ({"source": "files in c"}, "kinject.corpora.c: nobody else has it (files in c); push it"),
        ({}, "kinject.corpora.c: nobody else has it (its source is not said)"),
    ],
)
def test_a_corpus_that_nobody_else_has(tmp_path: Path, corpus: dict[str, str], text: str | None) -> None:
    found = gaps(altered(tmp_path, corpora=[{"name": "c", "fingerprint": "f" * 64, **corpus}]), samples=False)
    assert (found == []) if text is None else (len(found) == 1 and found[0].startswith(text))


@pytest.mark.parametrize(
    ("encoder", "local"),
    [
        (None, []),
        ({"query_model": {"package": "m", "version": "1"}, "passage_model": {"package": "m", "version": "1"}}, []),
        ({"query_model": HUB_MODEL, "passage_model": HUB_MODEL}, []),
        ({"query_model": HUB_MODEL, "passage_model": {"folder": "mine", "sha256": "f" * 64}}, ["mine"]),
    ],
)
def test_a_retriever_that_nobody_else_has(tmp_path: Path, encoder: object, local: list[str]) -> None:
    retriever = {"name": "r", "fingerprint": "f" * 64, **({"encoder": encoder} if encoder else {})}
    found = gaps(altered(tmp_path, retrievers=[retriever]), samples=False)
    assert found == [
        f"kinject.retrievers.r.encoder: {n} is on no Hub at a commit; push it and score with its Hub id" for n in local
    ]


def test_a_hybrids_part_and_a_reranker_that_nobody_else_has(tmp_path: Path) -> None:
    mine = {"folder": "mine", "sha256": "f" * 64}
    part = {"name": "bge:mine", "encoder": {"query_model": mine, "passage_model": mine}}
    hybrid = {"name": "hybrid:bge:mine", "fingerprint": "f" * 64, "parts": [part, {"name": "bm25"}]}
    advice = "is on no Hub at a commit; push it and score with its Hub id"
    found = gaps(altered(tmp_path, retrievers=[hybrid]), samples=False)
    assert found == [f"kinject.retrievers.hybrid:bge:mine.encoder: mine {advice}"]
    for model, said in ((HUB_MODEL, []), (mine, [f"kinject.pipeline.rerank.encoder: mine {advice}"])):
        pipeline = {"rerank": {"name": "cross-encoder", "model": model}}
        assert gaps(altered(tmp_path, pipeline=pipeline), samples=False) == said


def test_rerankers_and_probes_make_another_variant(tmp_path: Path) -> None:
    def variant(**pipeline: object) -> str:
        return scores_of(altered(tmp_path, pipeline=pipeline))[0].variant

    none = {"rerank": {"name": "none"}, "probe": {"name": "none"}}
    ranked = {
        "name": "cross-encoder",
        "rerank_from": 20,
        "model": HUB_MODEL,
        "device": "cpu",
        "pairs_cut": 0,
        "asked": "a",
    }
    assert variant(**none) == variant() == scores_of(altered(tmp_path))[0].variant
    other = {"device": "cuda", "pairs_cut": 3, "asked": "b"}
    assert variant(rerank=ranked) == variant(rerank={**ranked, **other}) != variant()
    found = {
        variant(rerank=ranked),
        variant(rerank={**ranked, "rerank_from": 50}),
        variant(),
        variant(probe={"name": "hard"}),
    }
    assert len(found) == 4


def test_what_is_no_results_file(tmp_path: Path) -> None:
    with pytest.raises(PublishError, match="There are no results at"):
        read_results(tmp_path)
    (tmp_path / "results_x.json").write_text("[]")
    with pytest.raises(PublishError, match="isn't a results file of lm_eval"):
        read_results(tmp_path)
