"""Self-Route under lm_eval: each answer is the one that plain retrieval gives with the context it was routed to."""

from __future__ import annotations

import json

import pytest
from helpers.local_tasks import (
    TOWNS,
    choices_of,
    chunk_text,
    copy_current_events,
    evaluate,
    question_text,
    task_manager,
    write_corpus,
)
from helpers.tiny_models import make_tiny
from lm_eval.api.model import LM
from lm_eval.loggers import EvaluationTracker

from lm_eval_kinject.errors import ArgumentError
from lm_eval_kinject.models.rag import RagMixin
from lm_eval_kinject.models.rag_hf import RagHFLM
from lm_eval_kinject.models.together import Job, OnePass
from lm_eval_kinject.study.threshold import read_questions

PERMISSION = "Answer from the text above alone. If it doesn't say, answer {}.\n\n"


class Reader(LM):
    """Answers with the person that its prompt names for the town; declines where it may and there is none."""

    def __init__(self, pretrained="reader"):
        super().__init__()

    def _read(self, prompt):
        town = prompt.rsplit(" at ", 1)[1].split("?")[0]
        said = [line for line in prompt.splitlines() if line.startswith(f"The bridge at {town} was opened by ")]
        if said:
            return said[0].rsplit(" by ", 1)[1].rstrip(".")
        return "Unanswerable." if "answer unanswerable" in prompt else "Nobody"

    def generate_until(self, requests, disable_tqdm=False):
        return [self._read(r.args[0]) for r in requests]

    def loglikelihood(self, requests, disable_tqdm=False):
        raise NotImplementedError

    def loglikelihood_rolling(self, requests, disable_tqdm=False):
        raise NotImplementedError

    def get_model_info(self):
        return {}


class Host:
    """The host of `Reader`: words for tokens."""

    gives_log_probs = False
    max_length = 1000

    def load(self, rag, arguments, usual):
        super().__init__(**arguments)

    def markers(self):
        return ()

    def bos(self):
        return ""

    def count(self, text, *, bare):
        return len(text.split())

    def room(self, request_type, arguments):
        return self.max_length - len(arguments[0].split())

    def render(self, messages, generation_prompt):
        return "\n".join(message["content"] for message in messages)

    def identity(self):
        return {"model": {"name": "reader", "fingerprint": "none"}}

    def encoder_device(self):
        return "cpu"

    def prefix_scorer(self):
        return None

    def gather(self, value):
        return [value]


class RagReader(RagMixin, Host, Reader):
    host_class = Reader


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("route")
    write_corpus(folder / "corpus")
    copy_current_events(folder / "ours")
    task = {
        "include": "_common_yaml", "task": "open_events", "output_type": "generate_until",
        "doc_to_text": "Question: {{question}}\nAnswer:", "doc_to_target": "{{choices[answer]}}",
        "generation_kwargs": {"until": ["\n"], "max_gen_toks": 8},
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    }  # fmt: skip
    (folder / "ours" / "current_events" / "open_events.yaml").write_text(json.dumps(task))
    return folder


@pytest.fixture(scope="module")
def loaded(place):
    """Without retrieval; each run is a variant of it."""
    return RagHFLM(pretrained=make_tiny("llama", place / "models"), k=0, device="cpu")


@pytest.fixture
def run(place, loaded, monkeypatch):
    monkeypatch.setenv("KINJECT_CACHE", str(place / "kinject"))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", place / "cache")

    def run(task="current_events_cloze", lm=None, limit=4, **arguments):
        given = {"corpus": str(place / "corpus"), "retriever": "bm25", "k": 1, **arguments}
        manager = task_manager(place / "ours")
        if lm is not None:
            return evaluate(lm(**given), None, [task], manager, limit=limit)
        return evaluate(loaded.variant(scorer="harness", **given), None, [task], manager, limit=limit)

    return run


def rows_of(result, task="current_events_cloze"):
    return sorted(result["samples"][task], key=lambda row: row["doc_id"])


def scores_of(row):
    return [response[0][0] for response in row["resps"]]


def test_answers_are_those_of_either_context(run):
    short, long = rows_of(run(k=1)), rows_of(run(k=5))
    margins = [sorted(scores_of(row))[-1] - sorted(scores_of(row))[-2] for row in short]
    threshold = (sorted(margins)[1] + sorted(margins)[2]) / 2
    result = run(k=1, route="self-route", route_k=5, route_by="margin", route_threshold=threshold, route_both=True)
    routed = []
    for row, one, other, lead in zip(rows_of(result), short, long, margins, strict=True):
        note = row["arguments"][0][2]["kinject"]["route"]
        routed.append(note["routed"])
        assert note["routed"] is (lead < threshold)
        assert note["value"] == pytest.approx(lead, abs=1e-4)
        assert scores_of(row) == pytest.approx(scores_of(other if note["routed"] else one), abs=1e-4)
        assert row["arguments"][0][0] == (other if note["routed"] else one)["arguments"][0][0]
        assert note["scores"] == {"short": one["acc"], "long": other["acc"]}
        assert len(note["used"]) == 5
    assert sorted(routed) == [False, False, True, True]
    figures = result["config"]["kinject"]["tasks"]["current_events_cloze"]
    assert figures["route"]["answerable_share"] == 0.5
    assert figures["route"]["short_accuracy"] == sum(row["acc"] for row in short) / 4
    assert figures["route"]["long_accuracy"] == sum(row["acc"] for row in long) / 4
    assert figures["mrr_depth"] == 5
    assert result["config"]["kinject"]["pipeline"]["route"]["route_threshold"] == threshold


@pytest.mark.parametrize(("task", "marker"), [("current_events", "E"), ("current_events_cloze", "unanswerable")])
def test_the_marker_is_one_more_option_behind_the_permission(run, task, marker):
    everything = run(task, route="self-route", route_k=4, route_threshold=-1000.0)
    nothing = run(task, route="self-route", route_k=4, route_threshold=1000.0)
    long = rows_of(run(task, k=4), task)
    for away, kept, plain in zip(rows_of(everything, task), rows_of(nothing, task), long, strict=True):
        assert scores_of(away) == pytest.approx(scores_of(plain), abs=1e-4)
        assert away["arguments"][0][0] == plain["arguments"][0][0]
        assert PERMISSION.format(marker) in kept["arguments"][0][0]
        i = kept["doc_id"]
        assert f"News from {TOWNS[i]}\n{chunk_text(i)}\n\n{PERMISSION.format(marker)}" in kept["arguments"][0][0]
        assert "scores" not in kept["arguments"][0][2]["kinject"]["route"]
    assert everything["config"]["kinject"]["tasks"][task]["route"]["answerable_share"] == 0.0
    figures = nothing["config"]["kinject"]["tasks"][task]["route"]
    assert figures["token_share"] == pytest.approx(figures["mean_short_tokens"] / figures["mean_long_tokens"])


def test_the_lot_takes_its_share(run):
    short, long = rows_of(run(k=1)), rows_of(run(k=4))
    result = run(route="random", route_rate=0.5, route_k=4)
    routed = [row["arguments"][0][2]["kinject"]["route"]["routed"] for row in rows_of(result)]
    assert sum(routed) == 2
    for row, one, other, away in zip(rows_of(result), short, long, routed, strict=True):
        assert scores_of(row) == pytest.approx(scores_of(other if away else one), abs=1e-4)


def test_open_answers_that_decline_get_the_long_context(run):
    # chunks by lot: the right one is seldom in the short context; all eight are in the long one
    given = {"lm": RagReader, "retriever": "random", "retriever_seed": 5, "k": 2, "limit": 8}
    plain = rows_of(run("open_events", **given), "open_events")
    result = run("open_events", route="self-route", route_k=8, route_both=True, **given)
    there = [row["arguments"][0][2]["kinject"]["gold"] in row["arguments"][0][2]["kinject"]["used"] for row in plain]
    assert 0 < sum(there) < 8
    for row, without, found in zip(rows_of(result, "open_events"), plain, there, strict=True):
        i, note = row["doc_id"], row["arguments"][0][2]["kinject"]["route"]
        assert note["routed"] is not found
        assert row["resps"] == [[choices_of(i)[i % 4]]]
        assert without["resps"] == [[choices_of(i)[i % 4] if found else "Nobody"]]
        assert note["short"] == [choices_of(i)[i % 4] if found else "Unanswerable."]
        assert note["scores"] == {"short": float(found), "long": 1.0}
        prompt = row["arguments"][0][0]
        assert (PERMISSION.format("unanswerable") in prompt) is found
        assert prompt.endswith(f"\n\nQuestion: {question_text(i)}\nAnswer:")
    figures = result["config"]["kinject"]["tasks"]["open_events"]["route"]
    assert figures["answerable_share"] == sum(there) / 8
    assert (figures["short_accuracy"], figures["long_accuracy"]) == (sum(there) / 8, 1.0)
    assert (figures["false_answerable"], figures["false_unanswerable"]) == (0.0, 0.0)


def test_what_cannot_be_is_refused(run, monkeypatch):
    with pytest.raises(ArgumentError, match=r"route_by=margin compares options, and this task generates"):
        run("open_events", lm=RagReader, route="self-route", route_by="margin", route_threshold=1.0, route_k=4)
    monkeypatch.setattr(Host, "load", lambda *arguments: pytest.fail("a model is loaded"))
    with pytest.raises(ArgumentError, match="all 8 chunks of the corpus corpus are in the first prompt"):
        run("open_events", lm=RagReader, route="self-route", k=8)


def test_in_one_pass_with_others_it_asks_twice(place, loaded, run):
    given = {"corpus": str(place / "corpus"), "retriever": "bm25", "k": 1, "route_k": 4}
    one_pass = OnePass(loaded._shared_scorer())
    jobs, manager = [], task_manager(place / "ours")
    for cell in (
        {"route": "self-route"},
        {"route": "random", "route_rate": 0.25},
        {"route": "random", "route_rate": 0},
    ):
        lm = loaded.variant(**given, **cell)
        lm._pass = one_pass
        jobs.append((cell, Job(lambda lm=lm: evaluate(lm, None, ["current_events_cloze"], manager))))
    one_pass.run([job for _, job in jobs])
    for cell, job in jobs:
        assert job.error is None
        for row, alone in zip(rows_of(job.result), rows_of(run(route_k=4, **cell)), strict=True):
            assert scores_of(row) == pytest.approx(scores_of(alone), abs=1e-4)
            assert row["arguments"][0][0] == alone["arguments"][0][0]
        told = job.result["config"]["kinject"]
        assert told["seconds"]["scoring"] > 0
        assert told["scorer"]["together"]["evaluations"] == 3


@pytest.mark.usefixtures("run")  # for its caches
def test_a_threshold_is_fitted_from_what_lm_eval_writes(place, loaded, tmp_path):
    given = {"corpus": str(place / "corpus"), "retriever": "bm25", "k": 1, "route_k": 4}
    lm = loaded.variant(**given, route="self-route", route_by="entropy", route_both=True)
    tracker = EvaluationTracker(output_path=str(tmp_path))
    task = "current_events_cloze"
    options = {"evaluation_tracker": tracker, "log_samples": True}
    result = evaluate(lm, None, [task], task_manager(place / "ours"), **options)
    notes = [row["arguments"][0][2]["kinject"]["route"] for row in rows_of(result)]
    samples = result.pop("samples")
    tracker.save_results_aggregated(results=result, samples=samples)
    tracker.save_results_samples(task_name=task, samples=samples[task])
    (written,) = tmp_path.rglob("results_*.json")
    with pytest.raises(ArgumentError, match="its questions are the test split of current_events_cloze"):
        read_questions(written)
    by, questions = read_questions(written, validation=True)
    assert by == "entropy"
    assert [one.value for one in questions] == pytest.approx([note["value"] for note in notes])
    assert [one.long_tokens for one in questions] == [note["long_tokens"] for note in notes]
    assert not any(note["routed"] for note in notes)  # there is no threshold yet


def test_articles_are_read_whole(tmp_path, run):
    # two articles of 360 words, each cut into two chunks; the bridge is in the second chunk of one of them
    filler = " ".join(f"Item {n} was noted there by the council." for n in range(45))
    (tmp_path / "a.txt").write_text(f"{filler} {chunk_text(0)} {filler}"[: len(filler) * 2])
    (tmp_path / "b.txt").write_text(filler.replace("council", "harbour"))
    result = run(corpus=str(tmp_path), route="random", route_rate=1.0, route_context="articles", limit=1)
    (row,) = rows_of(result)
    note = row["arguments"][0][2]["kinject"]["route"]
    found = row["arguments"][0][2]["kinject"]["used"]
    assert len(found) == 1
    assert len(note["used"]) > 1
    assert len({name.split("#")[0] for name in (*found, *note["used"])}) == 1
    assert note["used"] == sorted(note["used"])
    prompt = row["arguments"][0][0]
    assert prompt.index("Item 0 ") < prompt.index(chunk_text(0)) < prompt.index("Question: ")
    assert "harbour" not in prompt
    with pytest.raises(ArgumentError, match="a document of its own; pass route_context=chunks"):
        run(route="random", route_context="articles", limit=1)
