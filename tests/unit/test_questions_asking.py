"""Asking: endpoints with faults, forms that servers don't take, the ledger, and what a reply is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers.writer_server import Fault, Kind, WriterServer

from lm_eval_kinject.errors import ArgumentError, CorpusError, ModelError
from lm_eval_kinject.questions.answers import Unusable, read_list, read_object, read_text
from lm_eval_kinject.questions.asking import Endpoint, Finish, Reply, Request, open_writer, tokens_in
from lm_eval_kinject.questions.ledger import Asker, Expected, Ledger, Prices, Spent

SCHEMA = {"type": "object"}
ASKED = Request("You are asked a question with four options.", "Who?", SCHEMA, seed=3)
RIGHT = Reply('{"right": ["A"]}', "stop", 9, 2, metered=True)  # 8 words of system text, 1 of the user's


def endpoint(server: WriterServer) -> Endpoint:
    return Endpoint(server.url, first_wait=0.001)


@pytest.mark.parametrize(
    ("kind", "counted"),
    [
        ("429", "rate limits"), ("500", "server errors"), ("cut", "connections lost"),
        ("cut before", "connections lost"), ("page", "no completion in the answer"),
    ],
)  # fmt: skip
def test_what_passes_is_tried_again_and_counted(kind: Kind, counted: str) -> None:
    with WriterServer({0: Fault(kind), 1: Fault(kind)}) as server:
        writer = endpoint(server)
        assert writer.ask(ASKED) == RIGHT
        assert writer.faults == {counted: 2}
        assert len(server.seen) == 3


def test_what_does_not_pass_is_one_message() -> None:
    with WriterServer({0: Fault("401")}) as server:
        with pytest.raises(ModelError, match="OPENAI_API_KEY"):
            endpoint(server).ask(ASKED)
        assert len(server.seen) == 1
    with WriterServer({n: Fault("500") for n in range(9)}) as server:
        with pytest.raises(ModelError, match=r"no answer in 8 tries \(server errors\)"):
            endpoint(server).ask(ASKED)
        assert len(server.seen) == 8


def test_a_server_without_schemas_is_asked_for_plain_json_from_then_on() -> None:
    with WriterServer(refuses_schema=True) as server:
        writer = endpoint(server)
        assert [writer.ask(ASKED), writer.ask(ASKED)] == [RIGHT, RIGHT]
        forms = [body["response_format"]["type"] for body in server.seen]
        assert forms == ["json_schema", "json_object", "json_object"]


@pytest.mark.parametrize(
    ("said", "sent", "left"),
    [
        ("Unsupported parameter: 'max_tokens'", {"max_tokens"}, {"max_completion_tokens", "seed", "temperature"}),
        ("'temperature' does not support 0.7", {"temperature"}, {"max_tokens", "seed"}),
        ("unknown field seed", {"seed"}, {"max_tokens", "temperature"}),
    ],
)
def test_parameters_that_a_server_does_not_know_are_left_out(said: str, sent: set[str], left: set[str]) -> None:
    from lm_eval_kinject.questions.asking import _Form

    plainer = _Form().plainer(said, _Form().arguments(ASKED))
    assert plainer is not None
    assert set(plainer.arguments(ASKED)) == {"messages", "response_format", *left}


def test_what_is_sent() -> None:
    with WriterServer() as server:
        endpoint(server).ask(ASKED)
        assert server.seen[0] == {
            "model": "scripted",
            "messages": [{"role": "system", "content": ASKED.system}, {"role": "user", "content": "Who?"}],
            "temperature": 0.7,
            "seed": 3,
            "max_tokens": 2048,
            "response_format": {
                "type": "json_schema", "json_schema": {"name": "answer", "strict": True, "schema": SCHEMA}
            },
        }  # fmt: skip


def test_tokens_are_estimated_where_the_server_counts_none() -> None:
    with WriterServer({0: Fault("no usage")}) as server:
        found = endpoint(server).ask(ASKED)
        read = len(ASKED.system) + len(ASKED.user)
        assert (found.prompt_tokens, found.completion_tokens, found.metered) == (-(-read // 4), 4, False)
        assert tokens_in("") == 0


def test_a_server_with_several_models_has_one_named() -> None:
    with WriterServer(models=("small", "large")) as server:
        with pytest.raises(ModelError, match=r"--model: it lists small, large"):
            open_writer(server.url)
        assert open_writer(server.url, model="large").name == "large"


def test_writers_that_are_none() -> None:
    with pytest.raises(ArgumentError, match="neither an endpoint's address"):
        open_writer("gpt-4")
    with pytest.raises(ArgumentError, match="names its model itself"):
        open_writer("hf:some/model", model="other")


# The ledger -----------------------------------------------------------------------------------------------------------


def test_an_answer_is_paid_for_once_and_a_torn_line_is_taken_away(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    with WriterServer() as server:
        asker = Asker(endpoint(server), Ledger(path))
        assert asker.ask(ASKED, "c0") == asker.ask(ASKED, "c0") == RIGHT
        assert asker.spent == Spent(paid=1, kept=1, read=9, written=2, unmetered=0)
        asker.ledger.close()
        whole = path.read_bytes()
        path.write_bytes(whole + whole[:40])
        again = Asker(endpoint(server), Ledger(path))
        assert path.read_bytes() == whole
        assert again.ask(ASKED, "c0") == RIGHT
        assert len(server.seen) == 1
        other = Request(ASKED.system, ASKED.user, SCHEMA, seed=4)
        estimate = again.estimate([Expected(ASKED, 50), Expected(other, 50)])
        assert (estimate.paid, estimate.kept, estimate.written) == (1, 1, 50)
        assert Prices(2.0, 8.0).of(1_000_000, 500_000) == 6.0


def test_a_damaged_line_in_the_middle_is_named(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    path.write_text('{"key": "a"\n{}\n')
    with pytest.raises(CorpusError, match=r"answers.jsonl, line 1, is damaged"):
        Ledger(path)


# Replies --------------------------------------------------------------------------------------------------------------


def said(text: str, finish: Finish = "stop") -> Reply:
    return Reply(text, finish, 0, 0, metered=True)


@pytest.mark.parametrize(
    "text",
    ['{"a": [1]}', '```json\n{"a": [1]}\n```', 'Here you are: {"a": [1]} Good luck!', '<think>{"b"</think>{"a": [1]}'],
)
def test_an_object_is_found_where_it_stands(text: str) -> None:
    assert read_object(said(text)) == {"a": [1]}
    assert read_list(said(text), "a") == [1]


@pytest.mark.parametrize(
    ("reply", "problem"),
    [
        (said('{"a": [1'), "junk JSON"),
        (said('{"a": {"a": [1]}'), "junk JSON"),
        (said("[1, 2]"), "junk JSON"),
        (said('{"a": [1', "length"), "cut off"),
        (said("I'm sorry, but I can't do that."), "refusal"),
        (said('{"a": [1]}', "refusal"), "refusal"),
        (said(json.dumps({"b": []})), "junk JSON"),
        (said(""), "empty answer"),
    ],
)
def test_what_cannot_be_used_has_a_name(reply: Reply, problem: str) -> None:
    with pytest.raises(Unusable, match=problem):
        read_list(reply, "a")


def test_free_text() -> None:
    assert read_text(said("  A tale. ")) == "A tale."
    with pytest.raises(Unusable, match="cut off"):
        read_text(said("A tal", "length"))
