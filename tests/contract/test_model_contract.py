"""What every model type of ours must do, whichever class of lm_eval it is mixed into.

A new type is one line in `TYPES`. The Instances here are made by hand, without a task, as any caller may. vLLM and
SGLang are stand-ins (`helpers.engine_standins`); endpoints, which need a server, are in test_completions and test_chat.
"""

from __future__ import annotations

import inspect
import json

import pytest
from helpers import engine_standins
from helpers.local_tasks import chunk_text, question_text, write_corpus
from helpers.tiny_models import make_tiny
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM, CachingLM
from lm_eval.api.registry import get_model

from lm_eval_kinject.errors import ArgumentError, ContextError, KinjectError
from lm_eval_kinject.models.arguments import ALL_SLOTS
from lm_eval_kinject.models.rag_hf import RagHFLM
from lm_eval_kinject.stages import known_arguments

with engine_standins.installed():
    from lm_eval_kinject.models.rag_sglang import RagSGLangLM
    from lm_eval_kinject.models.rag_vllm import RagVLLM

TYPES = {"rag-hf": RagHFLM, "rag-vllm": RagVLLM, "rag-sglang": RagSGLangLM}
OWN = {"rag-hf": {"device": "cpu"}, "rag-vllm": {}, "rag-sglang": {}}


@pytest.fixture(scope="module", autouse=True)
def packages():
    with engine_standins.installed():
        yield


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("contract")
    write_corpus(folder / "corpus")
    return folder


@pytest.fixture(params=TYPES)
def make(request, place):
    def make(**arguments):
        given = {
            "pretrained": make_tiny("llama", place / "models"),
            "retriever": "bm25",
            "k": 1,
            "corpus": str(place / "corpus"),
            "placement": "start",
            **OWN[request.param],
            **arguments,
        }
        return TYPES[request.param](**given)

    make.kind = request.param
    return make


def ask(i, kind="loglikelihood", second=" Abe Ash", **doc):
    doc = {"question": question_text(i), **doc}
    return Instance(kind, doc=doc, arguments=(f"Question: {question_text(i)}\nAnswer:", second), idx=0)


@pytest.mark.parametrize(("name", "cls"), TYPES.items())
def test_registered(name, cls):
    assert get_model(name) is cls
    assert issubclass(cls, LM)
    assert issubclass(cls, cls.host_class)
    assert cls.__doc__


@pytest.mark.parametrize("cls", TYPES.values())
def test_takes_lm_evals_two_ways_of_arguments(cls, place):
    tiny = make_tiny("llama", place / "models")
    one = cls.create_from_arg_string(f"pretrained={tiny},k=0,dtype=float32", {"batch_size": 2, "device": None})
    two = cls.create_from_arg_obj({"pretrained": tiny, "k": 0, "dtype": "float32"}, {"batch_size": 2})
    for lm in (one, two):
        assert (lm.rag.k, lm.batch_size) == (0, 2)
        assert cls is not RagHFLM or str(lm.model.dtype) == "torch.float32"


@pytest.mark.parametrize("cls", TYPES.values())
def test_no_argument_of_ours_hides_one_of_the_hosts(cls):
    host = set(inspect.signature(cls.host_class.__init__).parameters)
    assert not host & known_arguments(ALL_SLOTS)


def test_text_goes_in_and_answers_keep_their_order(make):
    lm = make()
    requests = [ask(i) for i in (3, 0, 2)]
    scores = lm.loglikelihood(requests)
    assert [chunk_text(i) in r.arguments[0] for i, r in zip((3, 0, 2), requests, strict=True)] == [True] * 3
    assert all(isinstance(score, float) and isinstance(greedy, bool) for score, greedy in scores)
    alone = [make().loglikelihood([ask(i)])[0] for i in (3, 0, 2)]
    assert [s for s, _ in scores] == pytest.approx([s for s, _ in alone], abs=1e-4)


def test_generation(make):
    request = ask(1, "generate_until", {"until": ["\n"], "max_gen_toks": 3})
    (text,) = make().generate_until([request])
    assert isinstance(text, str)
    assert chunk_text(1) in request.arguments[0]
    assert request.arguments[1] == {"until": ["\n"], "max_gen_toks": 3}


def test_text_changes_the_answer_and_k_0_does_not(make, place):
    with_text, without = make().loglikelihood([ask(0)])[0], make(k=0).loglikelihood([ask(0)])[0]
    host = TYPES[make.kind].host_class(pretrained=make_tiny("llama", place / "models"), **OWN[make.kind])
    assert without == host.loglikelihood([ask(0)])[0]
    assert with_text != without


def test_k_0_leaves_requests_untouched(make):
    request = ask(0)
    before = dict(vars(request))
    make(k=0).loglikelihood([request])
    assert vars(request) == before


def test_an_empty_context_stays_empty(make):
    request = Instance("loglikelihood", doc={}, arguments=("", " Abe Ash"), idx=0)
    make().loglikelihood([request])
    assert request.arguments == ("", " Abe Ash")


def test_the_trace_is_plain(make):
    request = ask(0)
    make().loglikelihood([request])
    trace = json.loads(json.dumps(request.arguments[2]))["kinject"]
    assert trace["used"] == ["c0"]
    assert set(trace) == {
        "query", "hits", "used", "dropped", "dropped_count", "truncated", "context_tokens", "gold"
    }  # fmt: skip


def test_info_is_plain_and_names_everything(make):
    lm = make()
    lm.loglikelihood([ask(0)])
    said = json.loads(json.dumps(lm.get_model_info(), default=str))["kinject"]
    assert {"k", "model", "scorer", "retriever", "retrievers", "corpora", "prompt", "seeds", "environment"} <= set(said)
    assert said["tasks"]
    assert said["seconds"]


def test_nothing_is_scored_with_nothing_to_score(make):
    assert make().loglikelihood([]) == []


def test_questions_that_cannot_be_placed_are_refused(make):
    with pytest.raises(ContextError, match=r"a request without a task.*placement=start"):
        make(placement="question").loglikelihood([ask(0)])


def test_the_answer_cache_is_for_k_0(make, tmp_path):
    with pytest.raises(ArgumentError, match="--use_cache"):
        CachingLM(make(), str(tmp_path / "a.db"))
    lm = CachingLM(make(k=0), str(tmp_path / "b.db"))
    assert lm.loglikelihood([ask(0)]) == [tuple(answer) for answer in lm.loglikelihood([ask(0)])]


def test_errors_are_ours_and_say_what_to_do(make):
    for wrong in ({"k": -1}, {"corpus": "/no/such"}, {"k": 99}, {"retriever": "nonesuch"}, {"token": "x"}):
        with pytest.raises(KinjectError) as caught:
            make(**wrong)
        assert len(str(caught.value)) > 40
