"""current_events_gen from prompt to metric: plain and chat prompts, examples, passages, and what stops a model."""

from __future__ import annotations

import pytest
import torch
from helpers.local_tasks import (
    TOWNS,
    choices_of,
    chunk_text,
    copy_current_events,
    evaluate,
    prompts,
    question_text,
    task_manager,
    write_corpus,
)
from helpers.tiny_models import make_tiny
from lm_eval.models.huggingface import HFLM

import lm_eval_kinject.models.rag_hf  # noqa: F401

TASK = "current_events_gen"
METRICS = ("exact_match", "f1", "answer_in_text")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("open")
    write_corpus(folder / "corpus")
    copy_current_events(folder / "ours")
    return folder


@pytest.fixture
def run(place):
    def run(model="rag-hf", *, arch="llama", **settings):
        arguments = {"pretrained": make_tiny(arch, place / "models")}
        if model == "rag-hf":
            arguments |= {"corpus": str(place / "corpus"), "retriever": "oracle", "k": 1}
        return evaluate(model, arguments, [TASK], task_manager(place / "ours"), **{"limit": 2, **settings})

    return run


def test_a_plain_prompt_has_examples_the_passage_and_the_question(run):
    result = run(num_fewshot=2)
    for i, prompt in enumerate(prompts(result, TASK)):
        examples = "".join(f"Question: {question_text(n)}\nAnswer: {choices_of(n)[n % 4]}\n\n" for n in range(2))
        passage = f"{chunk_text(i)}\n\n"
        assert prompt.startswith(examples)
        assert prompt.endswith(f"{passage}Question: {question_text(i)}\nAnswer:")
    assert result["samples"][TASK][0]["arguments"][0][1] == {
        "until": ["\nQuestion:"],
        "max_gen_toks": 64,
        "do_sample": False,
        "temperature": 0.0,
    }


@pytest.mark.parametrize(("arch", "multiturn"), [("qwen3", True), ("gemma3", False)])
def test_a_chat_prompt_ends_in_the_models_turn(run, arch, multiturn):
    result = run(arch=arch, num_fewshot=1, apply_chat_template=True, fewshot_as_multiturn=multiturn)
    user, model, end = {
        "qwen3": ("<|im_start|>user\n", "<|im_start|>assistant\n", "<|im_end|>\n"),
        "gemma3": ("<start_of_turn>user\n", "<start_of_turn>model\n", "<end_of_turn>\n"),
    }[arch]
    example, question = f"Question: {question_text(0)}\nAnswer:", f"Question: {question_text(1)}\nAnswer:"
    between = f"{end}{model}{choices_of(0)[0]}{end}{user}" if multiturn else f" {choices_of(0)[0]}\n\n"
    prompt = prompts(result, TASK)[1]
    assert prompt.startswith("<s>" * (arch == "gemma3") + f"{user}{example}{between}News from Brill\n{chunk_text(1)}")
    assert prompt.endswith(f"\n\n{question}{end}{model}")


SCRIPTS = [
    (" {first} {last}\n\nQuestion: Who?\nAnswer: Nobody", (1.0, 1.0, 1.0)),
    ("\n\n{first} {last}\n\nThe passage says so.", (1.0, 1.0, 1.0)),  # as reasoning models begin, and go on
    ("\n\n**Answer:** the {first} {last} [1].\n", (1.0, 1.0, 1.0)),
    ("I read that it was {last}.\n\n{first} {last}", (0.0, 0.25, 1.0)),  # one word, of the six and of the two
    ("Who?\nQuestion: {first} {last}", (0.0, 0.0, 0.0)),  # what comes behind the next question is no answer
    ("", (0.0, 0.0, 0.0)),
]


@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize("model", ["hf", "rag-hf"])
def test_what_stops_it_and_what_counts(run, monkeypatch, model, chat):
    monkeypatch.setattr(HFLM, "_model_generate", writes)
    result = run(model, apply_chat_template=chat, limit=len(SCRIPTS))
    samples = sorted(result["samples"][TASK], key=lambda sample: sample["doc_id"])
    found = [tuple(sample[name] for name in METRICS) for sample in samples]
    assert found == [pytest.approx(expected) for _, expected in SCRIPTS]
    mean = [sum(column) / len(SCRIPTS) for column in zip(*(expected for _, expected in SCRIPTS), strict=True)]
    assert [result["results"][TASK][f"{name},none"] for name in METRICS] == pytest.approx(mean)


def writes(self, context, max_length, stop, **more):
    """Stands for the model's own generation: the asked question's script, as far as no stop sequence comes in it."""
    (ids,) = context.tolist()
    asked = self.tokenizer.decode(ids).rpartition("Question: ")[2]
    (i,) = (i for i in range(len(TOWNS)) if TOWNS[i] in asked)
    first, last = choices_of(i)[i % 4].split()
    text = SCRIPTS[i][0].format(first=first, last=last)
    for one in stop:
        text = text.split(one)[0] + (one if one in text else "")
    new = self.tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"].long()
    return torch.cat([context, new], dim=1)
