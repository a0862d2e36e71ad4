"""Chat endpoints against a server over a tiny model: rag-hf's prompts and text; what is no answer is counted."""

from __future__ import annotations

import json
import logging

import pytest
from helpers.completions_server import CompletionsServer
from helpers.local_tasks import (
    TOWNS,
    chunk_text,
    copy_current_events,
    evaluate,
    prompts,
    question_text,
    task_manager,
    write_corpus,
)
from helpers.tiny_models import make_tiny
from lm_eval.api.instance import Instance
from lm_eval.models.api_models import JsonChatStr

from lm_eval_kinject.context.reason import Steps, as_text
from lm_eval_kinject.errors import ArgumentError, CorpusError, ModelError
from lm_eval_kinject.models.host import Host
from lm_eval_kinject.models.rag_api import RagLocalChatCompletionsLM, RagOpenAIChatCompletionsLM

KIND = "rag-local-chat-completions"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("chats")
    write_corpus(folder / "corpus")
    copy_current_events(folder / "ours")
    return folder


@pytest.fixture(scope="module")
def served(place):
    found = CompletionsServer(make_tiny("qwen3", place / "models"))
    yield found
    found.close()


@pytest.fixture
def server(served):
    served.faults.clear()
    served.seen.clear()
    return served


@pytest.fixture
def arguments(place, server):
    own = {"model": "tiny", "tokenizer": make_tiny("qwen3", place / "models"), "base_url": server.chat_url}
    ours = {"retriever": "bm25", "k": 1, "corpus": str(place / "corpus")}

    def arguments(**given):
        return {**own, "max_retries": 2, **ours, **given}

    return arguments


@pytest.fixture
def lm(arguments, server):
    """With its question in the beginning behind it."""
    made = RagLocalChatCompletionsLM(**arguments(placement="start"))
    server.seen.clear()
    return made


def ask(lm, i=1, **more):
    prompt = lm.apply_chat_template([{"role": "user", "content": question_text(i)}])
    settings = {"until": ["\n"], "max_gen_toks": 3, **more}
    return Instance("generate_until", doc={"question": question_text(i)}, arguments=(prompt, settings), idx=0)


def says(content, finish="stop", **message):
    return {"message": {"role": "assistant", "content": content, **message}, "finish_reason": finish}


@pytest.mark.parametrize("more", [{}, {"num_concurrent": 2}])
def test_under_lm_eval_a_chat_has_rag_hfs_prompts_and_text(place, arguments, server, more):
    settings = {"limit": 2, "num_fewshot": 1, "apply_chat_template": True, "fewshot_as_multiturn": True}
    settings |= {"gen_kwargs": {"max_gen_toks": 12}}
    manager, task = task_manager(place / "ours"), "current_events_gen"
    here = evaluate(KIND, arguments(**more), [task], manager, **settings)
    folder = make_tiny("qwen3", place / "models")
    ours = {name: arguments()[name] for name in ("retriever", "k", "corpus")}
    there = evaluate("rag-hf", {"pretrained": folder, **ours}, [task], manager, **settings)
    templated = [
        server.tokenizer.apply_chat_template(json.loads(prompt), tokenize=False, add_generation_prompt=True)
        for (prompt,) in prompts(here, task)
    ]
    assert templated == prompts(there, task)
    assert all(chunk_text(i) in prompt for i, prompt in enumerate(templated))
    texts = [[sample["resps"] for sample in found["samples"][task]] for found in (here, there)]
    assert texts[0] == texts[1]
    assert here["config"]["kinject"]["tasks"][task] == there["config"]["kinject"]["tasks"][task]
    assert here["config"]["chat_answers"] == {"cut short": 0, "refused": 0, "filtered": 0, "empty": 0}
    said = here["config"]["kinject"]
    assert (said["model"]["name"], said["tokenizer"]["name"]) == ("tiny", "qwen3-0-2048")


def test_tokens_of_messages_are_those_of_their_template(lm, server):
    prompt = lm.render([{"role": "user", "content": "one two"}], True)
    whole = server.tokenizer("<|im_start|>user\none two<|im_end|>\n<|im_start|>assistant\n", add_special_tokens=False)
    assert lm.count(prompt, bare=False) == len(whole.input_ids)
    assert lm.room("generate_until", (prompt, {"max_gen_toks": 10})) == 2047 - len(whole.input_ids) - 10
    assert isinstance(lm, Host)
    assert "<|im_end|>" in lm.markers()


def test_without_a_template_messages_are_counted_as_openai_says(lm, monkeypatch):
    monkeypatch.setattr(lm._counter, "chat_template", None)
    parts = [len(lm._counter(part, add_special_tokens=False).input_ids) for part in ("user", "one two", "system", "a")]
    messages = [{"role": "user", "content": "one two"}, {"role": "system", "content": "a"}]
    assert lm.count(lm.render(messages, True), bare=False) == sum(parts) + 3 * 3


def test_multiple_choice_is_refused_before_anything_is_asked_or_read(place, arguments, server):
    tasks = ["current_events_gen", "current_events"]
    with pytest.raises(ArgumentError, match=r"task current_events is scored by log-prob.*such as\s+current_events_gen"):
        evaluate(KIND, arguments(corpus="/no/such"), tasks, task_manager(place / "ours"), apply_chat_template=True)
    assert len(server.seen) == 1  # the one question in the beginning
    with pytest.raises(ArgumentError, match="no log-probabilities of a prompt here"):
        evaluate(KIND, arguments(corpus="/no/such", k=0), tasks[1:], task_manager(place / "ours"))
    lm = RagLocalChatCompletionsLM(**arguments())
    with pytest.raises(ArgumentError, match="it has no perplexity"):
        lm.loglikelihood_rolling([])
    with pytest.raises(ArgumentError, match="fusion=rag-token adds up log-probabilities"):
        lm.variant(k=2, fusion="rag-token", retriever="bm25")


def test_a_prompt_without_messages_or_corpus_is_refused_before_it_is_sent(place, arguments, server):
    manager = task_manager(place / "ours")
    with pytest.raises(ArgumentError, match="add --apply_chat_template"):
        evaluate(KIND, arguments(corpus="/no/such"), ["current_events_gen"], manager)
    with pytest.raises(CorpusError, match="/no/such"):
        evaluate(KIND, arguments(corpus="/no/such"), ["current_events_gen"], manager, apply_chat_template=True)
    assert len(server.seen) == 2


@pytest.mark.parametrize("concurrent", [1, 2])
def test_a_passing_fault_is_tried_again(arguments, server, concurrent):
    lm = RagLocalChatCompletionsLM(**arguments(num_concurrent=concurrent, placement="start"))
    right = lm.generate_until([ask(lm)])
    for fault in (429, 500, "cut", "no choices", says(None)):
        server.faults.append(fault)
        assert lm.generate_until([ask(lm)]) == right
        assert not server.faults


@pytest.mark.parametrize("fault", [429, "cut", "no choices"])
def test_a_lasting_one_is_one_message(lm, server, fault):
    server.faults += [fault, fault]
    with pytest.raises(ModelError, match=r"gave no usable answer|sent an answer without a text"):
        lm.generate_until([ask(lm)])
    assert (len(server.seen), server.faults) == (2, [])


def test_an_answer_that_is_none_is_counted_and_said(lm, server, caplog):
    server.faults += [
        says("Abe Ash"),
        says(None, refusal="I can't help with that."),
        says(None, "length", reasoning_content="Let me think"),
        says("", "content_filter"),
        says(""),
        says("Abe", "length"),  # long, and an answer
    ]
    with caplog.at_level(logging.WARNING, "lm_eval_kinject"):
        found = lm.generate_until([ask(lm, i) for i in range(6)])
    assert found == ["Abe Ash", "I can't help with that.", "", "", "", "Abe"]
    assert lm.get_model_info()["chat_answers"] == {"cut short": 1, "refused": 1, "filtered": 1, "empty": 1}
    assert lm.get_model_info()["chat_answers"] == {"cut short": 0, "refused": 0, "filtered": 0, "empty": 0}
    assert "1 of 6 answers were cut short: max_gen_toks was used up" in caplog.text


def test_thoughts_without_an_end_are_no_answer(arguments, server):
    lm = RagLocalChatCompletionsLM(**arguments(placement="start", think_end_token="</think>"))
    server.faults += [says("<think>Abe Ash?", "length"), says("<think>Bea?</think> Abe Ash", "length"), says("Abe")]
    assert lm.generate_until([ask(lm, i) for i in range(3)]) == ["", "Abe Ash", "Abe"]
    assert lm.get_model_info()["chat_answers"]["cut short"] == 1


def test_every_stop_sequence_counts(lm, server):
    server.faults.append(says("one two three four five"))
    assert lm.generate_until([ask(lm, until=["v", "w", "x", "y", " three"])]) == ["one t"]
    assert server.seen[0]["stop"] == ["v", "w", "x", "y"]


def test_openais_thinking_models_are_sent_no_stop_sequences_and_cut_by_them(arguments, server, monkeypatch, caplog):
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    lm = RagOpenAIChatCompletionsLM(**arguments(model="gpt-5", placement="start"))
    assert "at temperature 1 whatever the task says" in caplog.text
    assert lm.get_model_info()["kinject"]["sampling"] == {"temperature": 1}
    assert "sampling" not in RagOpenAIChatCompletionsLM(**arguments(model="gpt-4o", k=0)).identity()
    server.faults.append(says("Abe\nQuestion: Who?"))
    assert lm.generate_until([ask(lm)]) == ["Abe"]
    asked = server.seen[-1]
    assert (asked["temperature"], asked["max_completion_tokens"], "stop" in asked) == (1, 3, False)


def test_a_declined_question_is_asked_again_with_more(arguments, server):
    lm = RagLocalChatCompletionsLM(**arguments(placement="start", route="self-route", route_by="unanswerable"))
    server.faults += [says("Unanswerable."), says("Bea Birk")]
    server.seen.clear()
    request = ask(lm)
    assert lm.generate_until([request]) == ["Bea Birk"]
    short, long = (one["messages"][0]["content"] for one in server.seen)
    assert (short.count("News from"), long.count("News from")) == (1, len(TOWNS))
    assert isinstance(request.arguments[0], JsonChatStr)
    assert lm.get_model_info()["kinject"]["tasks"]["None"]["route"]["routed"] == 1


def test_written_steps_are_read(arguments, server):
    lm = RagLocalChatCompletionsLM(**arguments(placement="start", reasoning="self-reasoning"))
    server.faults += [says(f"```json\n{as_text(Steps(False, 'so', (), 'thus', 'Bea Birk'))}\n```"), says("Bea Birk")]
    server.seen.clear()
    assert lm.generate_until([ask(lm, 1), ask(lm, 2)]) == ["Bea Birk", ""]
    assert [(one["max_tokens"], one["stop"]) for one in server.seen] == [(512, []), (512, [])]


def test_arguments_all_at_once_and_before_anything(arguments, server, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(ArgumentError) as caught:
        RagLocalChatCompletionsLM(**arguments(model=None, base_url=server.url, scorer="shared", adapter="x"))
    assert len(caught.value.problems) == 4
    assert "must end in /chat/completions; correct it" in str(caught.value)
    with pytest.raises(ArgumentError, match="set the environment variable OPENAI_API_KEY"):
        RagOpenAIChatCompletionsLM(model="gpt-4o", tokenizer=arguments()["tokenizer"])
    with pytest.raises(ModelError, match="Pass tokenizer="):
        RagLocalChatCompletionsLM(**arguments(tokenizer=None))
    assert not server.seen


def test_nobody_there_is_found_before_the_corpus(arguments, server):
    with pytest.raises(ModelError, match="gave no usable answer"):
        RagLocalChatCompletionsLM(**arguments(base_url="http://127.0.0.1:9/v1/chat/completions"))
    server.faults.append(401)
    with pytest.raises(ModelError, match="OPENAI_API_KEY"):
        RagLocalChatCompletionsLM(**arguments())
