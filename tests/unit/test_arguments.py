"""The arguments of rag-hf: what is accepted, and what each wrong one is told; no model is loaded here."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest

from lm_eval_kinject.context.compose import DEFAULT_TEMPLATE
from lm_eval_kinject.errors import ArgumentError
from lm_eval_kinject.models.arguments import ALL_SLOTS, argument_table, split
from lm_eval_kinject.stages import reference


@pytest.fixture(scope="module")
def hf_names():
    from lm_eval.models.huggingface import HFLM

    return set(inspect.signature(HFLM.__init__).parameters) - {"self", "kwargs"}


def problems_of(hf_names, **given):
    with pytest.raises(ArgumentError) as caught:
        split(given, hf_names)
    assert str(caught.value).startswith(f"{len(caught.value.problems)} problem")
    return caught.value.problems


def test_defaults(hf_names):
    parted = split({}, hf_names)
    assert parted.hf == {}
    rag = parted.rag
    search, compose = rag.pipeline.search, rag.pipeline.compose
    assert (search.retriever, rag.k, search.corpus, search.retriever_dtype) == ("minilm", 3, None, "float32")
    assert (rag.pipeline.query.query, compose.placement, compose.context_tokens) == ("question", "question", None)
    assert (rag.scorer, rag.adapter, compose.template) == ("shared", None, DEFAULT_TEMPLATE)
    assert rag.values()["order"] == "relevance"
    assert rag.values()["k"] == 3


def test_every_argument_of_hf_goes_to_hf(hf_names):
    given = dict.fromkeys(hf_names - {"delta", "tp_plan", "gptqmodel", "enable_thinking"}, "x") | {
        "backend": "causal", "truncation": True, "logits_cache": False, "max_length": 7, "device": "cpu",
        "dtype": "bfloat16", "softmax_dtype": "float32", "mixed_precision_dtype": "float16", "batch_size": "auto:4",
        "max_batch_size": 1, "trust_remote_code": 0, "use_fast_tokenizer": None, "add_bos_token": 1,
        "prefix_token_id": 0, "parallelize": False, "chat_template_args": {"a": 1},
    }  # fmt: skip
    assert given.keys() == hf_names - {"delta", "tp_plan", "gptqmodel", "enable_thinking"}
    assert split(given, hf_names).hf == given
    assert split({"delta": "a/b"}, hf_names).hf == {"delta": "a/b"}


def test_known_keywords_of_from_pretrained_go_to_hf(hf_names):
    given = {"attn_implementation": "eager", "load_in_4bit": True, "device_map": "auto", "rope_scaling": {"a": 1}}
    assert split(given, hf_names).hf == given


def test_model_kwargs_passes_on_what_is_not_known(hf_names):
    assert split({"model_kwargs": {"my_flag": 1}}, hf_names).hf == {"my_flag": 1}


def test_scorer_default_follows_k(hf_names):
    assert split({"k": 0}, hf_names).rag.scorer == "harness"
    assert split({"k": 1}, hf_names).rag.scorer == "shared"
    assert split({"k": 1, "scorer": "harness"}, hf_names).rag.scorer == "harness"


@pytest.mark.parametrize("none", ["none", None])  # lm_eval turns the word into None
def test_retriever_none_is_k_0(none, hf_names):
    assert split({"retriever": none}, hf_names).rag.k == 0
    assert split({"retriever": none, "k": 0}, hf_names).rag.k == 0


@pytest.mark.parametrize("value", ["relevance", "concat", "none", None])
def test_defaults_of_later_arguments_may_be_written_out(value, hf_names):
    name = {"relevance": "order", "concat": "fusion"}.get(value, "route")
    assert split({name: value}, hf_names).rag == split({}, hf_names).rag


def test_a_retriever_by_id_or_folder(hf_names, tmp_path):
    assert split({"retriever": "BAAI/bge-m3"}, hf_names).rag.pipeline.search.retriever == "BAAI/bge-m3"
    assert split({"retriever": str(tmp_path)}, hf_names).rag.pipeline.search.retriever == str(tmp_path)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"retreiver": "bm25"}, "retreiver= is unknown (did you mean retriever"),
        ({"K": 3}, "K= is unknown"),
        ({"pretrianed": "x"}, "did you mean pretrained"),
        ({"attn_implementaton": "sdpa"}, "did you mean attn_implementation"),
        ({"context_tokns": 5}, "did you mean context_tokens"),
        ({"completely_other": 1}, "model_kwargs of JSON model_args"),
        ({"k": -1}, "k=-1 must be a whole number of chunks, 0 or more"),
        ({"k": 2.5}, "k=2.5 must be a whole number"),
        ({"k": "three"}, "k=three must be a whole number"),
        ({"k": True}, "k=True must be a whole number"),
        ({"k": None}, "k=None must be a whole number"),
        ({"retriever": "minlm"}, "Did you mean minilm"),
        ({"retriever": "nonsense"}, "retriever=nonsense is unknown"),
        ({"retriever": "hybird"}, "Did you mean hybrid"),
        ({"retriever": "hybrid:minlm"}, "and minlm is none. Did you mean hybrid:minilm?"),
        ({"retriever": "hybrid:bm25"}, "hybrid joins bm25 with a retriever that embeds, and bm25 is none"),
        ({"retriever": "hybrid:oracle"}, "and oracle is none"),
        ({"retriever": "hybrid", "retriever_revision": "abc"}, "whose weights are on this machine"),
        ({"retriever": "none", "k": 3}, "retriever=none with k=3 contradict each other"),
        ({"retriever": None, "k": 1}, "retriever=none with k=1"),
        ({"retriever": "oracle", "index": "/"}, "index= has no meaning for retriever=oracle"),
        ({"retriever": "random", "retriever_revision": "abc"}, "a revision has no meaning for retriever=random"),
        ({"index": "/no/such/index"}, "there is no such folder"),
        ({"retriever_dtype": "float99"}, "retriever_dtype=float99 is unknown"),
        ({"retriever_seed": "x"}, "retriever_seed=x must be a whole number"),
        ({"placement": "end"}, "placement=end is unknown; pass question or start"),
        ({"placement": "questoin"}, "did you mean question"),
        ({"query": "/no/such/file.j2"}, "query=/no/such/file.j2: no such file"),
        ({"query": "{{ question"}, "not a Jinja template, line 1"),
        ({"query": 3}, "query=3 must be a name or a path"),
        ({"context_template": "/no/such.j2"}, "context_template=/no/such.j2: no such file"),
        ({"context_tokens": 0}, "context_tokens=0 must be a whole number of tokens, 1 or more"),
        ({"context_tokens": "many"}, "context_tokens=many"),
        ({"corpus": 3}, "corpus=3 must be a name or a path"),
        ({"scorer": "fast"}, "scorer=fast is unknown; pass shared or harness"),
        ({"order": "upwards"}, "order=upwards is unknown"),
        ({"route": "self-rout"}, "did you mean self-route?"),
        ({"route": "self-route", "k": 0}, "route=self-route with k=0: no text is retrieved"),
        ({"route": "self-route", "retriever": "none"}, "route=self-route with k=0: no text is retrieved"),
        ({"route": "self-route", "retriever": "full"}, "there is no more text to fall back on"),
        ({"route": "self-route", "retriever": "oracle"}, "pass route_context=articles, or another retriever"),
        ({"route": "self-route", "k": 3, "route_k": 3}, "route_k=3 is no more than the k=3 chunks"),
        ({"route": "self-route", "k": 20}, "route_k=20 is no more than the k=20 chunks"),
        (
            {"route": "self-route", "route_context": "articles", "filter": "date<2026"},
            "route_context=articles takes whole documents, which filter= can't hold back",
        ),
        ({"retriever": "bm25", "store": "hnsw"}, "store= has no meaning for retriever=bm25"),
        ({"store": "hnsw;nprobe=3"}, "nprobe=3 is no parameter of hnsw; it takes M, ef"),
        ({"filter": "date<soon"}, "date<soon names no date"),
        ({"retriever": "oracle", "filter": "source=x"}, "filter= has no meaning for retriever=oracle"),
        (
            {"route": "self-route", "route_context": "articles", "route_k": 9},
            "route_k= has no meaning for route_context",
        ),
        ({"route": "self-route", "fusion": "rag-token"}, "needs one prompt a question, and fusion=rag-token has one"),
        ({"route": "self-route", "probe": "hard"}, "route=self-route with probe=hard"),
        ({"route": "self-route", "route_by": "margin"}, "route_by=margin needs route_threshold="),
        ({"route": "self-route", "route_by": "margn"}, "route_by=margn is unknown (did you mean margin?)"),
        ({"route": "self-route", "route_by": "margin", "route_threshold": 0}, "route_threshold=0: a margin is never"),
        ({"route": "self-route", "route_by": "entropy", "route_threshold": 1}, "route_threshold=1: entropy is a share"),
        ({"route": "self-route", "route_by": "entropy", "route_threshold": -0.1}, "route_threshold=-0.1: entropy is"),
        ({"route": "self-route", "route_threshold": "high"}, "route_threshold=high must be a number"),
        ({"route": "self-route", "route_threshold": float("nan")}, "route_threshold=nan must be a number"),
        ({"route": "self-route", "route_both": 1}, "route_both=1 must be true or false"),
        ({"route": "self-route", "route_prompt": "/no/such.j2"}, "route_prompt=/no/such.j2: no such file"),
        ({"route": "self-route", "route_rate": 0.5}, "route_rate= has no meaning for route=self-route"),
        ({"route": "random", "route_rate": None}, "route_rate=None must be a number from 0 to 1"),
        ({"route": "random", "route_rate": 1.5}, "route_rate=1.5 must be a number from 0 to 1"),
        ({"route_k": 9}, "route_k= has no meaning for route=none; remove it, or pass route=self-route or route=random"),
        ({"reasoning": "self-reasoning", "k": 0}, "reasoning=self-reasoning with k=0: no text is retrieved"),
        ({"reasoning": "self-reasoning", "fusion": "rag-token"}, "needs one prompt a question, and fusion=rag-token"),
        ({"reasoning": "self-reasoning", "route": "self-route"}, "whether the text suffices, as route=self-route"),
        ({"reasoning": "self-reasoning", "reasoning_tokens": 0}, "reasoning_tokens=0 must be a whole number"),
        (
            {"rerank": "nne"},
            "rerank=nne is unknown (did you mean none?); pass rerank=none or mmr, or a cross-encoder's Hub id",
        ),
        ({"rerank": "mrm"}, "did you mean mmr?"),
        ({"rerank": "cross-encoder"}, "rerank=cross-encoder is unknown"),  # the open stage's name is no value
        ({"rerank": "/no/such/folder"}, "rerank=/no/such/folder is unknown"),
        ({"rerank": "tests/no-such-folder"}, "is unknown"),  # a path below a folder that is there, and no id
        ({"rerank": "a/b/c"}, "rerank=a/b/c is unknown"),
        ({"rerank": ""}, "rerank= is unknown"),
        (
            {"rerank_from": 50},
            "rerank_from= has no meaning for rerank=none; remove it, or pass rerank=MODEL or rerank=mmr",
        ),
        (
            {"rerank": "a/b", "mmr_lambda": 0.5},
            "mmr_lambda= has no meaning for rerank=MODEL; remove it, or pass rerank=mmr",
        ),
        ({"rerank": "a/b", "rerank_from": 2}, "k=3 chunks can't be chosen from rerank_from=2 hits; pass rerank_from=3"),
        ({"rerank": "a/b", "k": 21}, "k=21 chunks can't be chosen from rerank_from=20 hits; pass rerank_from=21"),
        ({"rerank": "mmr", "k": 21}, "k=21 chunks can't be chosen from rerank_from=20 hits"),
        ({"rerank": "a/b", "rerank_from": 0}, "rerank_from=0 must be a whole number of hits, 1 or more"),
        (
            {"rerank": "a/b", "retriever": "full"},
            "rerank=a/b has no meaning for retriever=full, which gives everything",
        ),
        ({"rerank": "a/b", "retriever": "oracle", "k": 1}, "retriever=oracle, which gives one chunk; remove it"),
        ({"rerank": "mmr", "retriever": "bm25"}, "rerank=mmr compares vectors, and retriever=bm25 has none"),
        ({"rerank": "mmr", "retriever": "random"}, "rerank=mmr compares vectors, and retriever=random has none"),
        ({"rerank": "mmr", "mmr_lambda": 1.5}, "mmr_lambda=1.5 must be a number from 0 to 1"),
        ({"rerank": "mmr", "mmr_lambda": "half"}, "mmr_lambda=half must be a number from 0 to 1"),
        ({"probe": "hrad"}, "probe=hrad is unknown (did you mean hard or random?); pass probe=none or"),
        (
            {"probe": "hard", "probe_place": 4},
            "probe_place=4 is behind the last of k=3 chunks; pass probe_place=3 or less",
        ),
        ({"probe": "random", "probe_place": 0}, "probe_place=0 must be a whole number of ranks, 1 or more"),
        (
            {"probe_place": 2},
            "probe_place= has no meaning for probe=none; remove it, or pass probe=hard or probe=random",
        ),
        ({"probe": "hard", "retriever": "oracle"}, "probe=hard has no meaning for retriever=oracle"),
        ({"probe": "random", "retriever": "full"}, "probe=random has no meaning for retriever=full"),
        ({"adapter": "mine", "peft": "me/x"}, "adapter= and peft= exclude each other"),
        ({"adapter": " "}, "must be a name"),
        ({"token": "hf_abc"}, "HF_TOKEN"),
        ({"use_auth_token": "hf_abc"}, "HF_TOKEN"),
        ({"model_kwargs": {"token": "hf_abc"}}, "HF_TOKEN"),
        ({"model_kwargs": 3}, "model_kwargs must be a dictionary"),
        ({"pretrained": "/no/such/model"}, "pretrained=/no/such/model: no such folder"),
        ({"peft": "./no/adapter"}, "peft=./no/adapter: no such folder"),
        ({"peft": "a/b", "delta": "c/d"}, "peft= and delta= exclude each other"),
        ({"parallelize": True, "tp_plan": "auto"}, "parallelize= and tp_plan="),
        ({"enable_thinking": True}, "think_end_token"),
        ({"dtype": "float99"}, "dtype=float99 is unknown (did you mean float"),
        ({"dtype": "bf16"}, "did you mean bfloat16?); pass auto, float32, float16 or bfloat16"),
        ({"dtype": "Tensor"}, "dtype=Tensor is unknown"),  # a name of torch's, but no dtype
        ({"dtype": 16}, "dtype=16 is unknown"),
        ({"dtype": "int8"}, "dtype=int8 holds no fractions"),
        ({"softmax_dtype": "auto"}, "softmax_dtype=auto is unknown; pass float32, float16 or bfloat16"),
        ({"mixed_precision_dtype": "half precision"}, "mixed_precision_dtype=half precision is unknown"),
        ({"bnb_4bit_compute_dtype": "bfloat"}, "bnb_4bit_compute_dtype=bfloat is unknown (did you mean bfloat16"),
        ({"batch_size": 0}, "batch_size=0 must be a whole number of requests, 1 or more"),
        ({"batch_size": -2.0}, "batch_size=-2 must be a whole number"),
        ({"batch_size": "-2"}, "batch_size=-2 must be a whole number"),
        ({"batch_size": 2.5}, "batch_size=2.5 must be a whole number"),
        ({"batch_size": True}, "batch_size=True must be a whole number"),
        ({"batch_size": None}, "batch_size=None must be a whole number"),
        ({"batch_size": "automatic"}, "batch_size=automatic must be"),
        ({"batch_size": "auto:"}, "auto:N with N above 0"),
        ({"batch_size": "auto:0"}, "auto:N with N above 0"),
        ({"batch_size": "auto:inf"}, "auto:N with N above 0"),
        ({"batch_size": "auto:two"}, "auto:N with N above 0"),
        ({"max_batch_size": 0}, "max_batch_size=0 must be a whole number (requests), 1 or more"),
        ({"max_length": 0}, "max_length=0 must be a whole number (tokens), 1 or more"),
        ({"max_length": -1.0}, "max_length=-1 must be"),
        ({"max_length": "long"}, "max_length=long must be"),
        ({"max_length": True}, "max_length=True must be"),
        ({"prefix_token_id": -1}, "prefix_token_id=-1 must be a whole number (a token's id), 0 or more"),
        ({"trust_remote_code": "no"}, "trust_remote_code=no must be True or False"),
        ({"parallelize": 2}, "parallelize=2 must be True or False"),
        ({"logits_cache": 0.0}, "logits_cache=0.0 must be True or False"),
        ({"load_in_4bit": "yes"}, "load_in_4bit=yes must be True or False"),
        ({"device": "cdua"}, "device=cdua is no device that torch knows (did you mean cuda"),
        ({"device": "cuda:x"}, "device=cuda:x is no device that torch knows"),
        ({"device": ""}, "device= is no device that torch knows"),
        ({"device": 1}, "device=1 must be a device's name; pass for example cpu or cuda:1"),
        ({"device": None, "pretrained": None}, "device=None must be a device's name"),
        ({"backend": "casual"}, "backend=casual is unknown (did you mean causal"),
        ({"chat_template_args": "x"}, "chat_template_args must be a dictionary"),
        ({"pretrained": 7}, "pretrained=7 must be a name or a path"),
        ({"peft": True}, "peft=True must be a name or a path"),
        ({"model_kwargs": {"dtype": "float99"}}, "dtype=float99 is unknown"),
    ],
)
def test_wrong_arguments(given, said, hf_names):
    found = problems_of(hf_names, **given)
    assert len(found) == 1
    assert said in found[0]


def test_values_of_hf_that_python_callers_pass(hf_names):
    """Objects instead of names; for a model that is loaded already `hf` doesn't look at the device."""
    import torch

    model = torch.nn.Linear(1, 1)
    for given in (
        {"dtype": torch.bfloat16, "softmax_dtype": torch.float32, "batch_size": 8, "device": "cuda:7"},
        {"dtype": "float8_e4m3fn", "batch_size": "8", "device": "mps"},
        {"pretrained": model, "device": None},
        {"pretrained": model, "tokenizer": object(), "device": torch.device("cpu")},
        {"batch_size": "auto", "max_length": None, "max_batch_size": None, "dtype": None, "trust_remote_code": None},
    ):
        assert split(given, hf_names).hf == given


@pytest.mark.parametrize(
    ("given", "world", "here", "refused"),
    [
        ({}, "", False, True),
        ({}, "", True, False),
        ({}, "2", False, False),  # each process is given its own
        ({"parallelize": True}, "", False, False),
    ],
)
def test_cuda_is_missed_before_the_model_is_loaded(given, world, here, refused, hf_names, monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: here)
    monkeypatch.setenv("WORLD_SIZE", world)
    given = {"device": "cuda", **given}
    if not refused:
        assert split(given, hf_names).hf == given
        return
    (problem,) = problems_of(hf_names, **given)
    assert problem == "device=cuda: torch finds no such device on this machine; pass device=cpu, or leave it out"


def test_what_is_wrong_for_us_and_for_hf_is_said_at_once(hf_names):
    found = problems_of(hf_names, k=-1, dtype="float99", device="cdua", batch_size=0, truncation="x", max_length=0)
    assert [problem.split("=")[0] for problem in found] == [
        "k", "truncation", "max_length", "dtype", "batch_size", "device",
    ]  # fmt: skip


def test_a_secret_is_not_repeated(hf_names):
    assert "hf_secret" not in str(problems_of(hf_names, token="hf_secret"))


def test_all_problems_at_once(hf_names):
    given = {"k": -1, "retriver": "bm25", "token": "t", "placement": "x", "temperature": 1, "scorer": "y"}
    found = problems_of(hf_names, **given)
    assert len(found) == 6
    assert all(any(f"{name}=" in problem for problem in found) for name in given)


def test_templates_are_read_and_checked(hf_names, tmp_path):
    good, broken, blind, query = (tmp_path / name for name in ("good.j2", "broken.j2", "blind.j2", "query.j2"))
    good.write_text("{% for c in chunks %}[{{ c.text }}]{% endfor %}")
    broken.write_text("one\n{% for c in %}")
    blind.write_text("no text")
    query.write_text("{{ question }} {{ subject }}")
    rag = split({"context_template": str(good), "query": str(query)}, hf_names).rag
    assert rag.pipeline.compose.template == good.read_text()
    assert (rag.pipeline.query.rule.mode, rag.pipeline.query.rule.source) == ("template", query.read_text())
    assert "line 2" in problems_of(hf_names, context_template=str(broken))[0]
    assert "never uses `chunks`" in problems_of(hf_names, context_template=str(blind))[0]


def test_templates_that_cant_be_read_or_name_unknown_filters(hf_names, tmp_path):
    latin, odd = tmp_path / "latin.j2", tmp_path / "odd.j2"
    latin.write_bytes("{{ chunks }} für".encode("latin-1"))
    odd.write_text("{{ chunks | shuot }}")
    for name in ("query", "context_template"):
        (problem,) = problems_of(hf_names, **{name: str(latin)})
        assert "not UTF-8 (byte 14); save the file as UTF-8" in problem
        (problem,) = problems_of(hf_names, **{name: str(odd)})
        assert "No filter named 'shuot'" in problem


def test_a_path_object_is_a_path(hf_names, tmp_path):
    assert split({"corpus": tmp_path}, hf_names).rag.pipeline.search.corpus == str(tmp_path)


def test_every_argument_has_a_line_in_the_docs():
    lines = reference(ALL_SLOTS)
    assert len({line.argument for line in lines}) == len(lines)
    assert all(len(line.about) > 10 for line in lines)
    page = Path(__file__).parents[2] / "docs" / "score.md"
    assert argument_table() in page.read_text(encoding="utf-8")


def test_what_looks_at_the_hits_again(hf_names, tmp_path):
    for model in ("cross-encoder/ms-marco-MiniLM-L6-v2", "a/b@" + "0" * 40, str(tmp_path)):
        rag = split({"rerank": model, "rerank_from": 50, "k": 50}, hf_names).rag
        assert (rag.pipeline.rerank.model, rag.pipeline.rerank.depth(3)) == (model, 50)
        assert rag.values()["rerank"] == model
    assert split({"rerank": tmp_path}, hf_names).rag.pipeline.rerank.model == str(tmp_path)
    assert split({"rerank": str(tmp_path)}, hf_names).rag.pipeline.provenance()["rerank"] == {
        "name": "cross-encoder", "asked": tmp_path.name, "rerank_from": 20,
    }  # fmt: skip
    mmr = split({"rerank": "mmr", "retriever": "hybrid", "mmr_lambda": 1}, hf_names).rag
    assert mmr.pipeline.provenance()["rerank"] == {"name": "mmr", "rerank_from": 20, "mmr_lambda": 1.0}
    assert mmr.values()["rerank"] == "mmr"
    for none in ("none", None):
        assert split({"rerank": none, "probe": none}, hf_names).rag == split({}, hf_names).rag
    for idle in ({"k": 0}, {"retriever": "none"}):  # nothing is retrieved, so nothing is refused
        split({"rerank": "mmr", "rerank_from": 1, "probe": "hard", "probe_place": 9, **idle}, hf_names)


def test_probes(hf_names):
    rag = split({"probe": "hard", "probe_place": 3}, hf_names).rag
    assert rag.pipeline.provenance()["probe"] == {"name": "hard", "probe_place": 3}
    assert (rag.pipeline.needs_gold, split({}, hf_names).rag.pipeline.needs_gold) == ("probe=hard", None)
    assert split({"retriever": "oracle"}, hf_names).rag.pipeline.needs_gold == "retriever=oracle"


def test_variants_of_one_slot_are_refused_for_another():
    given = {"order": "sides"}
    assert split(given, ()).rag.pipeline.order.name == "sides"
    assert split(given, ()).rag.values()["order"] == "sides"
