"""The check of paraphrases by a model: against transformers asked directly, and what it keeps of a writer's texts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from helpers.tiny_encoders import SENTENCES, make_cross_encoder
from helpers.writer_server import WriterServer

from lm_eval_kinject.errors import ArgumentError, ModelError
from lm_eval_kinject.questions.asking import Endpoint
from lm_eval_kinject.questions.entailment import INVENTED, LOST, Entailment
from lm_eval_kinject.questions.folder import QuestionSet
from lm_eval_kinject.questions.ledger import Asker
from lm_eval_kinject.questions.wordings import Settings, Wordings, write_wordings

LABELS = ("contradiction", "Entailment", "neutral")
TEXT = "The council of Dunmarrow opened a new library on 3 March after a storm had closed the harbor."
OTHERS = [
    "On 3 March a new library was opened by the council of Dunmarrow once the storm over the harbor had gone.",
    "After the storm that closed its harbor, Dunmarrow saw the council open a library that was new, on 3 March.",
]


def make_nli(folder: Path, *, labels: tuple[str, ...] = LABELS, sure_of: int | None = None, seed: int = 5) -> Path:
    """A random classifier with named labels; with ``sure_of`` it always says one of them."""
    import torch
    from transformers import BertForSequenceClassification

    make_cross_encoder(folder, labels=len(labels), seed=seed)
    if sure_of is not None:
        model = BertForSequenceClassification.from_pretrained(folder)
        with torch.no_grad():
            model.classifier.bias[sure_of] += 1000
        model.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    config["id2label"] = {str(n): label for n, label in enumerate(labels)}
    config["label2id"] = {label: n for n, label in enumerate(labels)}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_verdicts_are_those_of_the_models_likeliest_label(tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    folder = make_nli(tmp_path / "nli", seed=7)
    model, tokenizer = AutoModelForSequenceClassification.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    model.eval()

    def entails(premise: str, hypothesis: str) -> bool:
        with torch.inference_mode():
            logits = model(**tokenizer(premise, hypothesis, return_tensors="pt")).logits
        return int(logits.argmax()) == 1

    judge = Entailment(str(folder))
    seen = set()
    for premise in SENTENCES:
        for hypothesis in SENTENCES:
            forth, back = entails(premise, hypothesis), entails(hypothesis, premise)
            wanted = None if forth and back else LOST if forth else INVENTED
            assert judge.problem(premise, hypothesis) == wanted
            seen.add(wanted)
    assert seen == {None, LOST, INVENTED}  # else this would compare nothing
    assert judge.provenance()["model"]["folder"] == "nli"
    assert str(tmp_path) not in json.dumps(judge.provenance())


def test_what_is_too_long_is_not_judged(tmp_path: Path) -> None:
    judge = Entailment(str(make_nli(tmp_path / "nli", sure_of=0)))
    assert judge.problem(TEXT, OTHERS[0]) == INVENTED
    assert judge.problem(TEXT, OTHERS[0] * 12) is None
    assert judge.unjudged == 1


def paraphrased(tmp_path: Path, nli: Path) -> tuple[Wordings, list[str], list[str], dict[str, Any]]:
    file = tmp_path / "news.jsonl"
    file.write_text(json.dumps({"id": "c0", "text": TEXT}))
    there = QuestionSet.begin(tmp_path / "set", str(file))
    there.write("questions.jsonl", [{"id": "c0/q0", "question": "?", "choices": [], "answer": 0, "source_chunk": "c0"}])
    said: list[str] = []

    def script(system: str, user: str, seed: int) -> str:
        said.append(user)
        return json.dumps({"paraphrases": OTHERS})

    with WriterServer(script=script) as server, there.locked() as ledger:
        asker = Asker(Endpoint(server.url, first_wait=0.001), ledger)
        found = write_wordings(there, asker, Settings(count=2, tries=2, nli=str(nli)), lambda _: None)
    stage = json.loads((there.folder / "set.json").read_text())["stages"]["paraphrases"]
    return found, [row["text"] for row in there.read("paraphrases.jsonl")], said, stage


def test_paraphrases_that_are_entailed_are_kept(tmp_path: Path) -> None:
    found, texts, _, stage = paraphrased(tmp_path, make_nli(tmp_path / "nli", sure_of=1))
    assert texts == OTHERS
    assert found.problems == {}
    assert stage["settings"]["nli"]["model"]["folder"] == "nli"
    assert stage["settings"]["nli"]["unjudged"] == 0


def test_others_are_told_to_the_writer(tmp_path: Path) -> None:
    found, texts, said, _ = paraphrased(tmp_path, make_nli(tmp_path / "nli", sure_of=2))
    assert texts == []
    assert found.problems == {INVENTED: 4}
    assert "Mistakes" not in said[0]
    assert "each text must say nothing that the passage doesn't say" in said[1]


def test_models_that_tell_no_entailment(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no label called entailment \(its labels: bad, good\)"):
        Entailment(str(make_nli(tmp_path / "sentiment", labels=("bad", "good"))))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match=r"config\.json can't be read"):
        Entailment(str(tmp_path / "empty"))
    broken = make_nli(tmp_path / "broken")
    (broken / "model.safetensors").write_bytes(b"x" * 100)
    with pytest.raises(ModelError, match="can't be loaded by sentence-transformers"):
        Entailment(str(broken))
    with pytest.raises(ModelError, match="Without a network pass --nli the folder"):
        Entailment("me/none@abc")
    for settings in ({"style": "qa", "nli": "x"}, {"nli": " "}):
        with pytest.raises(ArgumentError, match="for paraphrases only"):
            Settings(**settings)  # type: ignore[arg-type]
