"""What retrieval asks of a model: every host answers it, and a host without weights is enough.

`Echo` is the smallest host there is: no transformers, no torch, words for tokens. What works on it works on an engine
or an endpoint.
"""

from __future__ import annotations

import math

import pytest
from helpers.completions_server import CompletionsServer
from helpers.local_tasks import chunk_text, question_text, write_corpus
from helpers.tiny_models import make_tiny
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM

from lm_eval_kinject.errors import ArgumentError
from lm_eval_kinject.models.host import Host
from lm_eval_kinject.models.rag import RagMixin
from lm_eval_kinject.models.rag_api import RagLocalCompletionsLM
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


@pytest.fixture(params=["rag-hf", "rag-local-completions", "words"])
def make(request, place, server):
    def make(**arguments):
        given = {"retriever": "bm25", "k": 1, "corpus": str(place / "corpus"), "placement": "start", **arguments}
        if request.param == "words":
            return RagWords(**given)
        if request.param == "rag-local-completions":
            own = {"model": "tiny", "tokenizer": make_tiny("llama", place / "models"), "base_url": server.url}
            return RagLocalCompletionsLM(**own, **given)
        return RagHFLM(pretrained=make_tiny("llama", place / "models"), device="cpu", **given)

    return make


def ask(i, kind="loglikelihood", second=" Abe Ash"):
    doc = {"question": question_text(i)}
    return Instance(kind, doc=doc, arguments=(f"Question: {question_text(i)}\nAnswer:", second), idx=0)


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
    request = ask(1)
    ((score, _),) = lm.loglikelihood([request])
    assert request.arguments[0].startswith("News from")
    assert chunk_text(1) in request.arguments[0]
    assert score < 0
    (text,) = lm.generate_until([ask(1, "generate_until", {"until": ["\n"], "max_gen_toks": 3})])
    assert isinstance(text, str)
    assert lm.get_model_info()["kinject"]["corpora"]


def test_variants_share_the_model_and_have_results_of_their_own(make):
    lm = make()
    none, two = lm.variant(k=0), lm.variant(retriever="bm25", k=2, corpus=lm._library.search.corpus, placement="start")
    request, plain = ask(1), ask(1)
    none.loglikelihood([plain])
    two.loglikelihood([request])
    assert plain.arguments == ask(1).arguments
    assert request.arguments[0].count("News from") == 2
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
