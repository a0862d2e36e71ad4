"""Evaluations scored in one pass: each one's results are those that it has alone."""

from __future__ import annotations

import random

import pytest
from helpers.local_tasks import copy_current_events, task_manager, write_corpus
from helpers.tiny_models import make_tiny
from lm_eval import simple_evaluate

from lm_eval_kinject.models.rag_hf import RagHFLM
from lm_eval_kinject.models.together import Encodings, Job, OnePass

CELLS = [{"k": 0}, {"k": 1}, {"k": 3}, {"k": 3, "order": "reverse"}, {"k": 1, "retriever": "oracle"}]
TASKS = ["current_events", "current_events_cloze"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("together")
    write_corpus(folder / "corpus")
    copy_current_events(folder / "ours")
    return folder


@pytest.fixture(scope="module")
def setting(place):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KINJECT_CACHE", str(place / "cache"))
        patch.setattr("datasets.config.HF_DATASETS_CACHE", place / "datasets")
        common = {"corpus": str(place / "corpus"), "retriever": "bm25"}
        model = make_tiny("llama", place / "models", max_length=2048)
        yield common, model, task_manager(place / "ours")


def evaluation(lm, manager, **options):
    given = {"tasks": TASKS, "limit": 4, "num_fewshot": 1, "bootstrap_iters": 0, **options}
    return simple_evaluate(model=lm, task_manager=manager, **given)


@pytest.fixture(scope="module")
def both(setting):
    """Results of the cells in one pass, and one by one."""
    common, model, manager = setting
    loaded = RagHFLM(pretrained=model, device="cpu", **common)
    loaded._shared_scorer()._always = True
    one_pass = OnePass(loaded._shared_scorer())
    jobs = []
    for cell in CELLS:
        lm = loaded.variant(**{**common, **cell})
        lm._pass = one_pass
        jobs.append(Job(lambda lm=lm: evaluation(lm, manager)))
    one_pass.run(jobs)
    assert [job.error for job in jobs] == [None] * len(CELLS)
    stats = loaded._shared_scorer().stats
    alone = [evaluation(RagHFLM(pretrained=model, device="cpu", **{**common, **cell}), manager) for cell in CELLS]
    return [job.result for job in jobs], alone, stats


def test_samples_are_those_of_separate_runs(both):
    for together, alone in zip(*both[:2], strict=True):
        assert together["results"] == alone["results"]
        assert together["samples"].keys() == alone["samples"].keys()
        for task in TASKS:
            for one, other in zip(together["samples"][task], alone["samples"][task], strict=True):
                scores, others = ([r[0][0] for r in sample["resps"]] for sample in (one, other))
                assert scores == pytest.approx(others, abs=1e-4)
                assert [r[0][1] for r in one["resps"]] == [r[0][1] for r in other["resps"]]
                kept = {k: v for k, v in one.items() if k not in ("resps", "filtered_resps")}
                assert kept == {k: v for k, v in other.items() if k not in ("resps", "filtered_resps")}


def test_each_result_says_what_it_was_made_from(both):
    for cell, together, alone in zip(CELLS, *both[:2], strict=True):
        one, other = together["config"]["kinject"], alone["config"]["kinject"]
        assert one["scorer"]["together"]["evaluations"] == len(CELLS)
        assert one["scorer"]["together"]["distinct_tokens"] > 0
        for said in ("model", "k", "prompt", "pipeline", "corpora", "retrievers", "tasks"):
            assert one.get(said) == other.get(said), said
        assert one["k"] == cell["k"]
        assert set(one["seconds"]) - set(other["seconds"]) == set()


def test_the_pass_forwards_each_distinct_token_once(both, setting):
    parts = [r["config"]["kinject"]["scorer"]["together"]["distinct_tokens"] for r in both[0]]
    stats = both[2]
    assert stats.path == "shared"
    assert stats.forwarded_tokens == stats.distinct_tokens
    assert max(parts) < stats.distinct_tokens < sum(parts)
    # the chunks of K = 1 and 3 and of nothing else stand in front of the same questions: K = 3 pays for most of it
    assert parts[0] < parts[1] < parts[2]


def test_a_failing_evaluation_leaves_the_others_alone(setting):
    common, model, manager = setting
    loaded = RagHFLM(pretrained=model, device="cpu", **common)
    one_pass = OnePass(loaded._shared_scorer())

    def job(**cell):
        lm = loaded.variant(**{**common, **cell})
        lm._pass = one_pass
        return Job(lambda: evaluation(lm, manager, limit=2))

    broken = Job(lambda: 1 // 0)
    jobs = [job(k=0), broken, job(k=1), job(k=999), job(k=2)]
    one_pass.run(jobs)
    assert isinstance(broken.error, ZeroDivisionError)
    assert "k=999" in str(jobs[3].error)
    assert [j.result is not None for j in jobs] == [True, False, True, False, True]


def test_a_failing_scorer_ends_all(setting, monkeypatch):
    common, model, manager = setting
    loaded = RagHFLM(pretrained=model, device="cpu", **common)
    scorer = loaded._shared_scorer()
    one_pass = OnePass(scorer)
    lm = loaded.variant(**common, k=1)
    lm._pass = one_pass
    monkeypatch.setattr(scorer, "loglikelihood", lambda requests, disable_tqdm: 1 // 0)
    jobs = [Job(lambda: evaluation(lm, manager, limit=1)), Job(lambda: "done")]
    with pytest.raises(ZeroDivisionError):
        one_pass.run(jobs)
    assert isinstance(jobs[0].error, ZeroDivisionError)
    assert jobs[1].result == "done"


def test_random_generators_are_kept_apart(setting):
    loaded = RagHFLM(pretrained=setting[1], device="cpu", **setting[0])
    one_pass = OnePass(loaded._shared_scorer())
    drawn = {}

    def job(seed):
        def run():
            random.seed(seed)
            first = random.random()
            one_pass.answers([(("a", "b"), [5, 6], [7])])
            drawn[seed] = (first, random.random())

        return Job(run)

    one_pass.run([job(1), job(2)])
    for seed in (1, 2):
        generator = random.Random(seed)
        assert drawn[seed] == (generator.random(), generator.random())


def test_encodings_are_asked_once_and_bounded():
    asked = []

    def encode(context, continuation):
        asked.append((context, continuation))
        return list(map(ord, context)), list(map(ord, continuation))

    kept = Encodings(most=6)
    assert kept.get(encode, "abc", "d") == ([97, 98, 99], [100])
    assert kept.get(encode, "abc", "e") == ([97, 98, 99], [101])
    assert kept.get(encode, "abc", "d") == ([97, 98, 99], [100])
    assert asked == [("abc", "d"), ("abc", "e")]
    assert kept.held == 5  # the context once
    kept.get(encode, "xy", "z")  # over the bound: forgotten, and this one kept
    assert kept.get(encode, "abc", "d") == ([97, 98, 99], [100])
    assert asked[2:] == [("xy", "z"), ("abc", "d")]
