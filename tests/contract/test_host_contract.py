"""What retrieval asks of a model: every host answers it, and a host without weights is enough.

`Echo` is the smallest host there is: no transformers, no torch, words for tokens. What works on it works on an engine
or an endpoint.
"""

from __future__ import annotations

import json
import math

import pytest
from helpers import engine_standins
from helpers.completions_server import CompletionsServer
from helpers.local_tasks import (
    TOWNS,
    chunk_text,
    copy_current_events,
    evaluate,
    question_text,
    task_manager,
    write_corpus,
)
from helpers.tiny_models import make_tiny
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.api.registry import get_model

from lm_eval_kinject.context.reason import INSTRUCTION, Evidence, Steps, as_text
from lm_eval_kinject.errors import ArgumentError
from lm_eval_kinject.models.host import Host
from lm_eval_kinject.models.rag import RagMixin
from lm_eval_kinject.models.rag_api import RagLocalChatCompletionsLM, RagLocalCompletionsLM
from lm_eval_kinject.models.rag_hf import RagHFLM


class Words(LM):
    """A model of lm_eval's bare interface: a word is the likelier the more often the prompt has it."""

    def __init__(self, pretrained="words", window=100):
        super().__init__()
        self.window = window

    def loglikelihood(self, requests, disable_tqdm=False):
        return [(math.log((1 + r.args[0].count(r.args[1].strip())) / 100), False) for r in requests]

    def generate_until(self, requests, disable_tqdm=False):
        return [r.args[0].split()[-1] for r in requests]

    def loglikelihood_rolling(self, requests, disable_tqdm=False):
        return [0.0 for _ in requests]

    def get_model_info(self):
        return {}


class Echo:
    """The host of `Words`."""

    gives_log_probs = True

    def load(self, rag, arguments, usual):
        super().__init__(**arguments)
        self.max_length = self.window

    def markers(self):
        return ("</s>",)

    def bos(self):
        return ""

    def count(self, text, *, bare):
        return len(text.split())

    def room(self, request_type, arguments):
        return self.max_length - len(" ".join(map(str, arguments[:2])).split())

    def render(self, messages, generation_prompt):
        return "\n".join(message["content"] for message in messages)

    def identity(self):
        return {"model": {"name": "words", "fingerprint": "none"}}

    def encoder_device(self):
        return "cpu"

    def prefix_scorer(self):
        return None

    def gather(self, value):
        return [value]


class RagWords(RagMixin, Echo, Words):
    """Takes the arguments of `Words` and ours."""

    host_class = Words


class Silent(RagWords):
    """An endpoint without log-probabilities."""

    gives_log_probs = False


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hosts")
    write_corpus(folder / "corpus")
    return folder


@pytest.fixture(scope="module")
def server(place):
    found = CompletionsServer(make_tiny("llama", place / "models"))
    yield found
    found.close()


KINDS = ("rag-hf", "rag-local-completions", "rag-local-chat-completions", "rag-vllm", "rag-sglang", "words")


@pytest.fixture(params=KINDS)
def make(request, place, server):
    with engine_standins.installed():
        yield maker(request, place, server)


def maker(request, place, server):
    def make(**arguments):
        given = {"retriever": "bm25", "k": 1, "corpus": str(place / "corpus"), "placement": "start", **arguments}
        if request.param == "words":
            return RagWords(**given)
        if request.param == "rag-local-completions":
            own = {"model": "tiny", "tokenizer": make_tiny("llama", place / "models"), "base_url": server.url}
            return RagLocalCompletionsLM(**own, **given)
        if request.param == "rag-local-chat-completions":
            own = {"model": "tiny", "tokenizer": make_tiny("llama", place / "models"), "base_url": server.chat_url}
            return RagLocalChatCompletionsLM(**own, **given)
        if request.param in ("rag-vllm", "rag-sglang"):
            return get_model(request.param)(pretrained=make_tiny("llama", place / "models"), **given)
        return RagHFLM(pretrained=make_tiny("llama", place / "models"), device="cpu", **given)

    return make


def ask(i, kind="loglikelihood", second=" Abe Ash"):
    doc = {"question": question_text(i)}
    return Instance(kind, doc=doc, arguments=(f"Question: {question_text(i)}\nAnswer:", second), idx=0)


def write(lm, i):
    """A question of open answer, as this model takes it."""
    request = ask(i, "generate_until", {"until": ["\n"], "max_gen_toks": 3})
    if lm.needs_messages:
        prompt = lm.apply_chat_template([{"role": "user", "content": request.args[0]}])
        request.arguments = (prompt, request.args[1])
    return request


def test_it_is_a_host(make):
    lm = make()
    assert isinstance(lm, Host)
    assert isinstance(lm.max_length, int)
    assert lm.gather("x") == ["x"]
    assert all(isinstance(marker, str) for marker in lm.markers())


def test_counting_and_room_agree(make):
    lm = make(k=0)
    assert lm.count("one two three", bare=True) >= 1
    assert lm.count("one two three", bare=True) <= lm.count("one two three", bare=False)
    whole = lm.room("loglikelihood", ("one two", " three"))
    more = lm.count("one two one two", bare=False) - lm.count("one two", bare=False)
    assert whole - lm.room("loglikelihood", ("one two one two", " three")) == more > 0
    assert whole < lm.max_length


def test_it_names_the_model(make):
    model = make(k=0).identity()["model"]
    assert model["name"]
    assert model.get("commit") or model.get("fingerprint")


def test_retrieved_text_reaches_the_model(make):
    lm = make()
    if lm.gives_log_probs:
        request = ask(1)
        ((score, _),) = lm.loglikelihood([request])
        assert request.arguments[0].startswith("News from")
        assert chunk_text(1) in request.arguments[0]
        assert score < 0
    request = write(lm, 1)
    (text,) = lm.generate_until([request])
    assert isinstance(text, str)
    assert chunk_text(1) in str(request.arguments[0])
    assert lm.get_model_info()["kinject"]["corpora"]


def test_variants_share_the_model_and_have_results_of_their_own(make):
    lm = make()
    none, two = lm.variant(k=0), lm.variant(retriever="bm25", k=2, corpus=lm._library.search.corpus, placement="start")
    request, plain = write(two, 1), write(none, 1)
    none.generate_until([plain])
    two.generate_until([request])
    assert plain.arguments == write(none, 1).arguments
    assert str(request.arguments[0]).count("News from") == 2
    assert two.get_model_info()["kinject"]["k"] == 2
    assert two._library.shelf is lm._library.shelf
    assert not lm._library.retrievers  # what a variant used isn't another's
    with pytest.raises(ArgumentError, match="device= is unknown"):
        lm.variant(device="cpu")


def test_arguments_are_checked_for_every_host(place):
    assert RagWords(window=50, k=0).max_length == 50
    with pytest.raises(ArgumentError, match=r"windw= is unknown \(did you mean window"):
        RagWords(windw=50)


def test_without_log_probabilities_multiple_choice_is_refused(place):
    lm = Silent(retriever="bm25", k=1, corpus=str(place / "corpus"), placement="start")
    with pytest.raises(ArgumentError, match="no log-probabilities"):
        lm.loglikelihood([ask(0)])
    assert lm.generate_until([ask(0, "generate_until", {"until": []})])


class Writer(Words):
    """Writes what the script has for the town that its prompt asks of, and keeps what it was asked."""

    def generate_until(self, requests, disable_tqdm=False):
        self.asked += [request.args for request in requests]
        return [self.script[r.args[0].rsplit(" at ", 1)[1].split("?")[0]] for r in requests]


class RagScripted(RagMixin, Echo, Writer):
    host_class = Words


def reasoned(answer, *cited):
    return as_text(Steps(bool(cited), "so", tuple(Evidence(one, "why") for one in cited), "thus", answer))


@pytest.fixture
def scripted(place, monkeypatch):
    def scripted(**arguments):
        lm = RagScripted(
            retriever="bm25", corpus=str(place / "corpus"), reasoning="self-reasoning", window=400, **arguments
        )
        lm.asked = []
        lm.script = {
            "Arden": reasoned("Abe Ash", chunk_text(0)),
            "Brill": "Cal Cole",  # right, and no trajectory
            "Corby": reasoned("Nobody", chunk_text(2), "The bridge is made of cheese."),
            "Dover": f"```json\n{reasoned('Gus Gale')}\n```",
        }
        return lm

    monkeypatch.setenv("KINJECT_CACHE", str(place / "kinject"))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", place / "cache")
    return scripted


def test_reasoning_hands_on_the_final_answer_alone(place, scripted):
    folder = copy_current_events(place / "ours")
    task = {
        "include": "_common_yaml", "task": "reasoned_events", "output_type": "generate_until",
        "doc_to_text": "Question: {{question}}\nAnswer:", "doc_to_target": "{{choices[answer]}}",
        "generation_kwargs": {"until": ["\n"], "max_gen_toks": 8},
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    }  # fmt: skip
    (folder / "reasoned_events.yaml").write_text(json.dumps(task))
    lm = scripted(k=1, reasoning_tokens=200)
    result = evaluate(lm, None, ["reasoned_events"], task_manager(place / "ours"), limit=4)
    rows = sorted(result["samples"]["reasoned_events"], key=lambda row: row["doc_id"])
    assert [row["resps"] for row in rows] == [[["Abe Ash"]], [[""]], [["Nobody"]], [["Gus Gale"]]]
    assert [row["exact_match"] for row in rows] == [1.0, 0.0, 0.0, 1.0]
    for i, (prompt, settings) in enumerate(lm.asked):
        assert prompt == f"News from {TOWNS[i]}\n{chunk_text(i)}\n\n{INSTRUCTION}Question: {question_text(i)}\nAnswer:"
        assert (settings["until"], settings["max_gen_toks"]) == ([], 200)
    notes = [row["arguments"][0][2]["kinject"]["reasoning"] for row in rows]
    assert notes[1] == {"written": "Cal Cole", "malformed": "not one JSON object"}
    assert notes[2]["evidence"][1] == {"content": "The bridge is made of cheese.", "reason": "why"}
    assert result["config"]["kinject"]["tasks"]["reasoned_events"]["reasoning"] == {
        "questions": 4, "malformed": 1, "malformed_by": {"not one JSON object": 1}, "relevant": 2, "citations": 3,
        "citations_in_prompt": 2 / 3, "citation_recall": 2 / 4, "citation_precision": 2 / 3,
    }  # fmt: skip
    assert result["config"]["kinject"]["pipeline"]["reasoning"]["instruction"] == INSTRUCTION


def test_reasoning_keeps_room_for_the_steps(scripted):
    lm = scripted(k=1, placement="start")
    rooms = []
    lm.room = lambda kind, arguments: rooms.append(arguments[1]["max_gen_toks"]) or 300
    request = ask(0, "generate_until", {"until": ["\n"], "max_gen_toks": 3})
    # one that comes twice counts once, and each time its answer is the final one
    assert lm.generate_until([request, request]) == ["Abe Ash", "Abe Ash"]
    assert rooms == [512]
    figures = lm.get_model_info()["kinject"]["tasks"]["None"]["reasoning"]
    assert (figures["questions"], figures["citations_in_prompt"]) == (1, 1.0)
    assert figures["citation_recall"] is figures["citation_precision"] is None  # there is no source chunk named


def test_reasoning_refuses_multiple_choice(scripted):
    lm = scripted(k=1, placement="start")
    request = ask(0)
    with pytest.raises(ArgumentError, match=r"this task scores given options; run a task of open answers"):
        lm.loglikelihood([request])
    assert request.arguments == ask(0).arguments
