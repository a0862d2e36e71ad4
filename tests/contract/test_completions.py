"""rag-local-completions against a server over a tiny model: rag-hf's prompts and scores; faults give no number."""

from __future__ import annotations

import pytest
import tiktoken
import torch
from helpers.completions_server import CompletionsServer
from helpers.local_tasks import chunk_text, copy_current_events, evaluate, question_text, task_manager, write_corpus
from helpers.tiny_models import make_tiny
from lm_eval.api.instance import Instance

from lm_eval_kinject.errors import ArgumentError, ModelError
from lm_eval_kinject.models.host import Host
from lm_eval_kinject.models.rag_api import RagLocalCompletionsLM, RagOpenAICompletionsLM
from lm_eval_kinject.models.rag_hf import RagHFLM


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("endpoint")
    write_corpus(folder / "corpus")
    make_tiny("qwen3", folder / "models")
    return folder


@pytest.fixture(scope="module")
def server(place):
    found = CompletionsServer(make_tiny("qwen3", place / "models"))
    yield found
    found.close()


@pytest.fixture
def make(place, server):
    server.faults.clear()
    ours = {"retriever": "bm25", "k": 2, "corpus": str(place / "corpus"), "placement": "start"}
    folder = make_tiny("qwen3", place / "models")

    def make(kind="api", **given):
        if kind == "hf":
            return RagHFLM(pretrained=folder, device="cpu", scorer="harness", **{**ours, **given})
        own = {"model": "tiny", "tokenizer": folder, "base_url": server.url, "max_retries": 2}
        return RagLocalCompletionsLM(**{**own, **ours, **given})

    return make


def ask(i, kind="loglikelihood", second=" Abe Ash"):
    doc = {"question": question_text(i)}
    return Instance(kind, doc=doc, arguments=(f"Question: {question_text(i)}\nAnswer:", second), idx=0)


@pytest.mark.parametrize(
    "more", [{}, {"batch_size": 2}, {"num_concurrent": 2}, {"tokenized_requests": False}, {"fusion": "rag-token"}]
)
def test_prompts_and_scores_are_rag_hfs(make, more):
    ours = {name: value for name, value in more.items() if name == "fusion"}
    here, there = [ask(0), ask(1), ask(2)], [ask(0), ask(1), ask(2)]
    lm = make(**more)
    assert isinstance(lm, Host)
    found, expected = lm.loglikelihood(here), make("hf", **ours).loglikelihood(there)
    assert [r.arguments for r in here] == [r.arguments for r in there]
    assert chunk_text(1) in here[1].arguments[0]
    assert [score for score, _ in found] == pytest.approx([score for score, _ in expected], abs=1e-5)
    assert [flag for _, flag in found] == [flag for _, flag in expected]
    said = lm.get_model_info()["kinject"]
    assert (said["model"]["name"], said["scorer"]["used"]) == ("tiny", "harness")


def test_generated_text_is_rag_hfs(make):
    gen = {"until": ["\n"], "max_gen_toks": 4}
    found = make().generate_until([ask(1, "generate_until", dict(gen))])
    assert found == make("hf").generate_until([ask(1, "generate_until", dict(gen))])


def test_a_fusion_generates_with_rag_hf_alone(make):
    with pytest.raises(ArgumentError, match="fusion=rag-token generates with decoder-only models of rag-hf alone"):
        make(fusion="rag-token").generate_until([ask(1, "generate_until", {"until": ["\n"], "max_gen_toks": 4})])


def test_a_passing_fault_is_tried_again(make, server):
    lm = make()
    right = lm.loglikelihood([ask(0)])
    for fault in (429, 500, "cut"):
        server.faults.append(fault)
        assert lm.loglikelihood([ask(0)]) == right
        assert not server.faults


@pytest.mark.parametrize("fault", ["short", "no_logprobs"])
def test_a_lasting_one_is_an_error_and_no_number(make, server, fault):
    lm = make()
    server.faults.append(fault)
    with pytest.raises(ModelError, match="doesn't give the log-probabilities"):
        lm.loglikelihood([ask(0)])


def test_what_the_server_cannot_is_known_before_the_corpus(make, server):
    server.faults.append("no_logprobs")
    with pytest.raises(ArgumentError, match="fusion=rag-token adds up log-probabilities"):
        make(corpus="/no/such", fusion="rag-token")
    server.faults.append("no_logprobs")
    with pytest.raises(ArgumentError, match="no log-probabilities"):
        make().loglikelihood([ask(0)])


def test_openais_own_counts_with_tiktoken_and_may_give_no_log_probabilities(place, server, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    single = {bytes([one]): one for one in range(256)}
    special = {"<|endoftext|>": 256}
    letters = tiktoken.Encoding("bytes", pat_str=r"(?s:.)", mergeable_ranks=single, special_tokens=special)
    monkeypatch.setattr("tiktoken.encoding_for_model", {"gpt-x": letters}.__getitem__)
    given = {"retriever": "bm25", "k": 1, "corpus": str(place / "corpus"), "placement": "start", "max_retries": 1}
    server.faults.clear()
    lm = RagOpenAICompletionsLM(model="gpt-x", base_url=server.url, **given)
    request = ask(1)
    ((score, _),) = lm.loglikelihood([request])
    prompt, option = (text.encode() for text in request.arguments[:2])
    logs = torch.log_softmax(server.model(torch.tensor([[*prompt, *option]])).logits[0], -1)
    assert chunk_text(1).encode() in prompt
    assert score == pytest.approx(sum(logs[len(prompt) + n - 1, one].item() for n, one in enumerate(option)), abs=1e-4)
    assert (lm.count("<|endoftext|>é", bare=True), lm.markers()) == (15, ("<|endoftext|>",))
    assert lm.get_model_info()["kinject"]["tokenizer"]["name"] == "tiktoken/bytes"
    server.faults.append(400)  # "Setting 'echo' and 'logprobs' at the same time is not supported for this model."
    newer = RagOpenAICompletionsLM(model="gpt-x", base_url=server.url, **given)
    with pytest.raises(ArgumentError, match=r"no log-probabilities of a prompt here.*current_events_gen"):
        newer.loglikelihood([ask(1)])
    (text,) = newer.generate_until([ask(1, "generate_until", {"until": ["\n"], "max_gen_toks": 2})])
    assert isinstance(text, str)
    with pytest.raises(ModelError, match="Pass tokenizer="):
        RagOpenAICompletionsLM(model="gpt-unknown", base_url=server.url, **given)
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(ArgumentError, match="set the environment variable OPENAI_API_KEY"):
        RagOpenAICompletionsLM(model="gpt-x", **given)


def test_arguments_all_at_once_and_before_anything(make):
    with pytest.raises(ArgumentError) as caught:
        make(model=None, base_url="localhost", scorer="shared", adapter="x", batchsize=2, corpus="/no/such")
    assert len(caught.value.problems) == 5
    with pytest.raises(ModelError, match="gave no usable answer"):
        make(base_url="http://127.0.0.1:9/v1/completions", corpus="/no/such")


def test_under_lm_eval_a_task_has_rag_hfs_samples(place, server):
    server.faults.clear()
    folder = make_tiny("qwen3", place / "models")
    if not (place / "ours").exists():
        copy_current_events(place / "ours")
    ours = {"retriever": "bm25", "k": 2, "corpus": str(place / "corpus")}
    own = {"model": "tiny", "tokenizer": folder, "base_url": server.url}
    manager = task_manager(place / "ours")
    here = evaluate("rag-local-completions", {**own, **ours}, ["current_events"], manager, limit=2)
    there = evaluate("rag-hf", {"pretrained": folder, **ours}, ["current_events"], manager, limit=2)
    assert here["config"]["kinject"]["tasks"] == there["config"]["kinject"]["tasks"]
    for mine, theirs in zip(here["samples"]["current_events"], there["samples"]["current_events"], strict=True):
        assert mine["arguments"] == theirs["arguments"]
        scores = [[float(one[0]) for (one,) in sample["resps"]] for sample in (mine, theirs)]
        assert scores[0] == pytest.approx(scores[1], abs=1e-5)
