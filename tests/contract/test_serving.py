"""rag-vllm and rag-sglang through lm_eval's classes, over stand-ins for the engines: rag-hf's prompts, scores, text."""

from __future__ import annotations

import importlib
import sys

import pytest
from helpers import engine_standins as standins
from helpers.local_tasks import chunk_text, copy_current_events, evaluate, question_text, task_manager, write_corpus
from helpers.tiny_models import make_tiny
from lm_eval.api.instance import Instance

from lm_eval_kinject.errors import ArgumentError, ModelError
from lm_eval_kinject.models.host import Host
from lm_eval_kinject.models.rag_hf import RagHFLM

KINDS = ("rag-vllm", "rag-sglang")


@pytest.fixture(scope="module", autouse=True)
def packages():
    with standins.installed():
        yield


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("serving")
    write_corpus(folder / "corpus")
    copy_current_events(folder / "ours")
    return folder


@pytest.fixture(scope="module")
def types(packages):
    from lm_eval_kinject.models.rag_sglang import RagSGLangLM
    from lm_eval_kinject.models.rag_vllm import RagVLLM

    return {"rag-vllm": RagVLLM, "rag-sglang": RagSGLangLM, "rag-hf": RagHFLM}


@pytest.fixture
def make(place, types):
    def make(kind, arch="qwen3", **given):
        ours = {"retriever": "bm25", "k": 2, "corpus": str(place / "corpus"), "placement": "start"}
        own = {"device": "cpu", "scorer": "harness"} if kind == "rag-hf" else {"batch_size": "auto"}
        return types[kind](pretrained=make_tiny(arch, place / "models"), **{**own, **ours, **given})

    return make


def ask(i, kind="loglikelihood", second=" Abe Ash"):
    doc = {"question": question_text(i)}
    return Instance(kind, doc=doc, arguments=(f"Question: {question_text(i)}\nAnswer:", second), idx=0)


def core(kind):
    return {"rag-vllm": standins.LLM, "rag-sglang": standins.Engine}[kind].made[-1].core


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("ours", [{}, {"fusion": "rag-token"}])
def test_prompts_and_scores_are_rag_hfs(make, kind, ours):
    here, there = [ask(2), ask(0), ask(1)], [ask(2), ask(0), ask(1)]
    lm = make(kind, **ours)
    assert isinstance(lm, Host)
    found, expected = lm.loglikelihood(here), make("rag-hf", **ours).loglikelihood(there)
    assert [r.arguments for r in here] == [r.arguments for r in there]
    assert chunk_text(1) in here[2].arguments[0]
    assert [score for score, _ in found] == pytest.approx([score for score, _ in expected], abs=1e-5)
    assert [flag for _, flag in found] == [flag for _, flag in expected]
    said = lm.get_model_info()["kinject"]
    assert (said["model"], said["scorer"]["used"]) == (make("rag-hf", k=0).identity()["model"], "harness")


@pytest.mark.parametrize(("arch", "more"), [("llama", {}), ("qwen3", {})])
def test_vllm_puts_a_bos_where_hf_does(make, arch, more):
    (found,), (expected,) = (make(kind, arch).loglikelihood([ask(1)]) for kind in ("rag-vllm", "rag-hf"))
    assert found[0] == pytest.approx(expected[0], abs=1e-5)
    assert (core("rag-vllm").seen[0][0] == 1) is (arch == "llama")


def test_sglang_puts_one_where_it_is_told(make):
    (found,) = make("rag-sglang", "llama", add_bos_token=True).loglikelihood([ask(1)])
    (expected,) = make("rag-hf", "llama").loglikelihood([ask(1)])
    assert found[0] == pytest.approx(expected[0], abs=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_generated_text_is_rag_hfs_whatever_else_is_in_the_batch(make, kind):
    (whole,) = make("rag-hf").generate_until([ask(2, "generate_until", {"until": ["\n"], "max_gen_toks": 5})])

    def requests():
        """The second is shorter, so lm_eval's class has it last, and its stop sequence is in the first one's answer."""
        other = ask(1, "generate_until", {"until": [whole[1]], "max_gen_toks": 4})
        other.arguments = ("Who?", other.args[1])
        return [ask(2, "generate_until", {"until": ["\n"], "max_gen_toks": 5}), other]

    found = make(kind).generate_until(requests())
    assert found == make("rag-hf").generate_until(requests())
    assert found[0] == whole
    assert len(whole) > 2


@pytest.mark.parametrize("kind", KINDS)
def test_prompts_come_in_the_order_of_their_tokens_and_answers_go_back(make, kind):
    lm = make(kind)
    requests = [ask(i, "generate_until", {"until": ["\n"], "max_gen_toks": 2}) for i in (3, 1, 2, 0, 1)]
    together = lm.generate_until(requests)
    seen = core(kind).seen
    assert len(seen) == 5
    assert seen == sorted(seen)
    assert seen != sorted(seen, key=len, reverse=True)
    assert together == [make(kind).generate_until([request])[0] for request in requests]
    assert len(set(together)) > 1


@pytest.mark.parametrize("kind", KINDS)
def test_the_window_has_room_for_what_is_scored_and_the_token_that_must_be_generated(make, kind):
    lm = make(kind, k=0)
    prompt, option = ask(0).args
    tokens = len(lm.tokenizer(prompt + option).input_ids)
    assert lm.room("loglikelihood", (prompt, option)) == lm.max_length - tokens - 1 == 2047 - tokens
    generated = lm.room("generate_until", (prompt, {"max_gen_toks": 10}))
    assert generated == 2048 - len(lm.tokenizer(prompt).input_ids) - 10
    tight = make(kind, max_model_len=60)  # chunks are left out until the prompt fits
    request = ask(0)
    tight.loglikelihood([request])
    assert tight.max_length == 60
    assert "News from" in request.arguments[0]
    assert len(core(kind).seen[0]) <= 59


@pytest.mark.parametrize("kind", KINDS)
def test_a_missing_number_is_an_error_and_no_score(make, kind, monkeypatch):
    lm = make(kind)
    whole = lm.model.one

    def short(*given):
        answer = whole(*given)
        rows = answer["meta_info"]["input_token_logprobs"] if kind == "rag-sglang" else answer.prompt_logprobs
        del rows[1]
        return answer

    monkeypatch.setattr(lm.model, "one", short)
    with pytest.raises(ModelError, match="log-probabilities for a prompt of"):
        lm.loglikelihood([ask(0)])


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_vllm_scores_a_lora_adapter_as_hf_does(make, place):
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    adapter, base = str(place / "lora"), make_tiny("qwen3", place / "models")
    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    get_peft_model(AutoModelForCausalLM.from_pretrained(base), config).save_pretrained(adapter)
    lm = make("rag-vllm", lora_local_path=adapter)
    with_it, without = lm.loglikelihood([ask(1)])[0][0], make("rag-vllm").loglikelihood([ask(1)])[0][0]
    hf = make("rag-hf", peft=adapter)
    assert with_it == pytest.approx(hf.loglikelihood([ask(1)])[0][0], abs=1e-5)
    assert abs(with_it - without) > 1e-2
    assert lm.identity()["peft"] == hf.identity()["peft"]
    assert lm.model.arguments == {"enable_prefix_caching": True, "enable_lora": True}
    with pytest.raises(ArgumentError, match="pass max_lora_rank=4"):
        make("rag-vllm", lora_local_path=adapter, max_lora_rank=2)
    with pytest.raises(ArgumentError, match="is no folder with a LoRA adapter"):
        make("rag-vllm", lora_local_path=base)


def test_arguments_all_at_once_and_before_anything(make, types):
    before = len(standins.LLM.made), len(standins.Engine.made)
    both = {"max_model_len": 9, "scorer": "shared", "adapter": "x", "corpus": "/no/such"}
    with pytest.raises(ArgumentError) as caught:
        make("rag-vllm", gpu_memory_utilisation=0.5, max_length=9, enable_thinking=True, **both)
    assert len(caught.value.problems) == 5
    assert "did you mean gpu_memory_utilization" in str(caught.value)
    with pytest.raises(ArgumentError) as caught:
        make("rag-sglang", context_length=9, device="cpu", **both)
    assert len(caught.value.problems) == 4
    with pytest.raises(ArgumentError, match="pretrained= is missing"):
        types["rag-vllm"](k=0)
    assert (len(standins.LLM.made), len(standins.Engine.made)) == before
    make("rag-sglang", k=0)
    assert standins.Engine.made[-1].arguments == {"trust_remote_code": False}


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_that_is_none_is_one_message(types, kind, tmp_path):
    with pytest.raises(ModelError, match=f"{kind} can't start with pretrained="):
        types[kind](pretrained=str(tmp_path), k=0)


def test_without_the_packages_it_says_what_installs_them(make, monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", None)
    for name in ("lm_eval.models.vllm_causallms", "lm_eval_kinject.models.rag_vllm"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    with pytest.raises(ModelError, match=r"pip install 'lm-eval-kinject\[vllm\]'"):
        importlib.import_module("lm_eval_kinject.models.rag_vllm")
    monkeypatch.delitem(sys.modules, "sglang")
    with pytest.raises(ArgumentError, match=r"pip install 'lm-eval-kinject\[sglang\]'"):
        make("rag-sglang")


@pytest.mark.parametrize(
    ("kind", "chat", "more"),
    [("rag-vllm", True, {}), ("rag-sglang", False, {"route": "self-route", "route_by": "unanswerable"})],
)
def test_under_lm_eval_tasks_have_rag_hfs_samples(place, types, kind, chat, more):
    folder = make_tiny("qwen3", place / "models")
    ours = {"pretrained": folder, "retriever": "bm25", "k": 1, "corpus": str(place / "corpus"), **more}
    tasks = ["current_events", "current_events_gen"]
    settings = {"limit": 2, "apply_chat_template": chat, "gen_kwargs": {"max_gen_toks": 4}}
    manager = task_manager(place / "ours")
    here = evaluate(kind, ours, tasks, manager, batch_size="auto", **{**settings, "device": "cuda"})
    there = evaluate("rag-hf", ours, tasks, manager, **settings)
    figures = here["config"]["kinject"]["tasks"]
    assert figures == there["config"]["kinject"]["tasks"]
    assert ("route" in figures["current_events"]) is bool(more)
    for task in tasks:
        for mine, theirs in zip(here["samples"][task], there["samples"][task], strict=True):
            assert [one[:2] for one in mine["arguments"]] == [one[:2] for one in theirs["arguments"]]
    texts = [[sample["resps"] for sample in found["samples"]["current_events_gen"]] for found in (here, there)]
    assert texts[0] == texts[1]
    numbers = [
        [float(one[0]) for sample in found["samples"]["current_events"] for (one,) in sample["resps"]]
        for found in (here, there)
    ]
    assert numbers[0] == pytest.approx(numbers[1], abs=1e-5)
