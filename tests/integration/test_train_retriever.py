"""`kinject train` of a retriever, from recipe to a folder that `retriever=` takes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from helpers.tiny_encoders import make_sentence_transformer
from kinject_trainer.errors import TrainingError
from kinject_trainer.questions import Question
from kinject_trainer.retriever import train_retriever
from kinject_trainer.retriever.arguments import Journal
from kinject_trainer.retriever.contrast import prompts_of, train_pairs
from kinject_trainer.retriever.material import Material, Pair, make_pairs, open_material, open_measured
from kinject_trainer.retriever.plan import Contrastive, check_retriever
from kinject_trainer.retriever.recall import compare

from lm_eval_kinject.corpus import load_corpus, make_corpus
from lm_eval_kinject.corpus.sources.files import Source
from lm_eval_kinject.corpus.sources.newswire import READER_HELD_OUT_KINDS
from lm_eval_kinject.errors import CorpusError
from lm_eval_kinject.hub.content import collect
from lm_eval_kinject.plugin import tasks_dir
from lm_eval_kinject.records import Chunk, Query
from lm_eval_kinject.retrieval import make_retriever, trainable
from lm_eval_kinject.retrieval.encoders import KNOWN, load_encoder

NAMES = ("anna", "berg", "carl", "dora", "emil", "fred", "gina", "hugo")


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny one without dropout, so that its losses can be worked out."""
    folder = make_sentence_transformer(tmp_path_factory.mktemp("encoder"))
    config = json.loads((folder / "config.json").read_text())
    config |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture
def recipe(tmp_path: Path, encoder: Path) -> Path:
    """A recipe with both parts and a measurement, of half a second."""
    chunks = [{"id": f"c{i}", "text": f"{name} opened the mill on day {i}."} for i, name in enumerate(NAMES)]
    rows = [
        {"id": f"q{i}{w}", "question": f"{w} opened by {name}?", "answer": f"day {i}", "source_chunk": f"c{i}"}
        for i, name in enumerate(NAMES)
        for w in ("what was", "which mill was")
    ]
    for name, lines in (("chunks", chunks), ("dev", rows[:12]), ("asked", rows[12:])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    values = {
        "retriever": str(encoder),
        "corpus": str(tmp_path / "chunks.jsonl"),
        "questions": str(tmp_path / "dev.jsonl"),
        "mlm": {"batch": 4, "chunks": 6},
        "contrastive": {"batch": 4, "learning_rate": 1e-3},
        "measure": {"corpus": str(tmp_path / "chunks.jsonl"), "questions": str(tmp_path / "asked.jsonl")},
    }
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump(values))
    return file


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KINJECT_CACHE", str(tmp_path / "cache"))


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


def test_from_recipe_to_retriever_and_killed_in_between(recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    out = tmp_path / "run"
    said: list[str] = []
    done = train_retriever(recipe, out=out, say=said.append)
    told = [line.split(" ")[0] for line in said]
    assert [word for word in told if not word.endswith(":")] == ["asking", "training", "training", "asking"]
    assert [word for word in told if word.endswith(":")] == ["head:"] * 2 + ["mlm:"] * 2 + ["pairs:"] * 3
    assert {f.name for f in out.iterdir()} >= {"kinject.json", "README.md", "recipe.yaml", "log.jsonl", "modules.json"}
    assert not (out / "work").exists()

    # 6 chunks in batches of 4: 2 updates of the head, 2 of all; 12 pairs in batches of 4 in which no chunk comes twice
    assert {name: part["updates"] for name, part in done.record["training"].items()} == {
        "head": 2, "mlm": 2, "pairs": 3
    }  # fmt: skip
    assert (done.record["data"]["chunks"], done.record["data"]["pairs"]) == (6, 12)
    assert weights(out) != weights(Path(yaml.safe_load(recipe.read_text())["retriever"]))
    assert str(tmp_path) not in (out / "kinject.json").read_text() + (out / "README.md").read_text()

    # All of it may be published: what sentence-transformers reads, too.
    content = collect(out)
    content.check()
    assert content.left_out == ()
    assert {"modules.json", "1_Pooling/config.json"} <= set(content.files)

    # What recall says is what a search with the folder says.
    corpus = load_corpus(tmp_path / "chunks.jsonl")
    asked = [json.loads(line) for line in (tmp_path / "asked.jsonl").read_text().splitlines()]
    hits = make_retriever(str(out), corpus).search([Query(row["question"]) for row in asked], 1)
    first = sum(found[0].chunk.id == row["source_chunk"] for found, row in zip(hits, asked, strict=True))
    assert done.record["recall"]["after"]["recall@1"] == first / 4
    assert done.record["recall"]["questions"] == 4

    # Killed after the masked words, a run goes on from there and ends in the same bits; another recipe may not.
    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    again = tmp_path / "again"
    monkeypatch.setattr("kinject_trainer.retriever.contrast.train_pairs", killed)
    with pytest.raises(KeyboardInterrupt):
        train_retriever(recipe, out=again)
    monkeypatch.undo()
    with pytest.raises(TrainingError, match="unfinished run"):
        train_retriever(recipe, out=again)
    with pytest.raises(TrainingError, match="recipe differ"):
        train_retriever(recipe, out=again, resume=True, overrides=["seed=5"])
    monkeypatch.setattr("kinject_trainer.retriever.masked.train_masked", killed)
    assert train_retriever(recipe, out=again, resume=True).record["weights"] == done.record["weights"]
    assert train_retriever(recipe, out=again, resume=True).record["recall"] == done.record["recall"]
    with pytest.raises(TrainingError, match="finished result"):
        train_retriever(recipe, out=again)


def test_a_dry_run_counts_and_trains_nothing(recipe: Path, tmp_path: Path):
    lines = train_retriever(recipe, out=tmp_path / "run", dry_run=True).lines
    assert not (tmp_path / "run").exists()
    assert lines[1].split() == (
        "masked 6 chunks, 2 updates (before them, of a new head alone, 2)".split()
    )  # fmt: skip
    assert lines[2].startswith("pairs       12 with 1 hard negatives each, 3 updates")
    assert lines[3] == "recall      of 4 questions, 8 chunks, twice"


def test_a_foreign_folder_and_several_processes_are_refused(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    with pytest.raises(TrainingError, match="is not empty"):
        train_retriever(recipe, out=tmp_path)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(TrainingError, match="by one process"):
        train_retriever(recipe, out=tmp_path / "run")


# The loss -------------------------------------------------------------------------------------------------------------


def test_the_loss_is_dprs(encoder: Path):
    """−log of the right chunk's share among all chunks of the batch, hard negatives included; worked out by hand."""
    pairs = [
        Pair(f"who is {name}?", f"{name} opened it.", (f"{name} closed {number}.",))
        for number, name in enumerate(NAMES[:3])
    ]
    made, _ = trainable(str(encoder))
    vectors = {
        text: torch.tensor(made.encode([prompt + text], convert_to_numpy=True)[0], dtype=torch.float64)
        for pair in pairs
        for prompt, text in (("find: ", pair.question), ("text: ", pair.chunk), ("text: ", pair.negatives[0]))
    }
    chunks = torch.stack([vectors[p.chunk] for p in pairs] + [vectors[p.negatives[0]] for p in pairs])
    shares = [(0.1 * (chunks @ vectors[pair.question])).softmax(0) for pair in pairs]
    expected = -sum(float(share[number].log()) for number, share in enumerate(shares)) / 3
    recipe, _ = check_retriever(
        {"retriever": str(encoder), "corpus": "newswire-training", "contrastive": {"batch": 3, "scale": 0.1}}
    )
    assert recipe is not None
    journal = Journal()
    train_pairs(made, pairs, recipe, journal)
    assert [line["loss"] for line in journal.lines] == pytest.approx([expected], rel=1e-4)


def test_what_answers_a_question_is_no_negative_of_another(encoder: Path):
    """Two questions about one chunk: alone in their batches, where the loss is 0; together it would be about ln 2."""
    made, _ = trainable(str(encoder))
    recipe, _ = check_retriever(
        {"retriever": str(encoder), "corpus": "newswire-training", "contrastive": {"batch": 2, "hard_negatives": 0}}
    )
    assert recipe is not None
    journal = Journal()
    train_pairs(made, [Pair("who?", "the mill."), Pair("what?", "the mill.")], recipe, journal)
    assert journal.lines
    assert all(line["loss"] == pytest.approx(0, abs=1e-6) for line in journal.lines)


def test_prompts_are_those_of_embedding(encoder: Path):
    made, _ = trainable(str(encoder))
    assert prompts_of(made, ["question", "chunk", "negative_0"]) == {
        "question": "find: ", "chunk": "text: ", "negative_0": "text: "
    }  # fmt: skip
    made.prompts = {"query": "", "document": ""}
    assert prompts_of(made, ["question", "chunk"]) is None


def test_a_known_models_rules_go_with_it(encoder: Path, tmp_path: Path):
    """bge's prefix and pooling, written down by sentence-transformers, give the table's own vectors."""
    made, _ = trainable(f"bge:{encoder}")
    made.save_pretrained(str(tmp_path / "saved"), create_model_card=False)
    saved = load_encoder(str(tmp_path / "saved"), spec=None)
    known = load_encoder("bge", spec=KNOWN["bge"], model=str(encoder))
    chunks = [Chunk("a", "anna opened the mill."), Chunk("b", "emil closed it. " * 60)]
    assert np.abs(saved.encode_passages(chunks)[0] - known.encode_passages(chunks)[0]).max() < 1e-5
    questions = ["who opened it?", "what?"]
    assert np.abs(saved.encode_queries(questions) - known.encode_queries(questions)).max() < 1e-5


# Material -------------------------------------------------------------------------------------------------------------


def material(texts: list[str], questions: list[Question]) -> Material:
    corpus = make_corpus("c", Source(tuple(Chunk(f"c{i}", text) for i, text in enumerate(texts)), "made by a test"))
    return Material(corpus, questions, {})


def test_hard_negatives_are_bm25s_best_without_the_answer():
    texts = ["anna sold the mill for nine crowns", "anna sold the mill for nine pence", "anna sold a mill", "rain fell"]
    question = Question("q", "for what was the mill sold by anna", "nine", "c0")
    assert make_pairs(material(texts, [question]), Contrastive(), 0) == [Pair(question.text, texts[0], (texts[2],))]
    # All but the right one are wanted: the chunk with the answer comes last.
    found = make_pairs(material(texts, [question]), Contrastive(hard_negatives=3), 0)[0].negatives
    assert (found[0], found[-1]) == (texts[2], texts[1])
    with pytest.raises(CorpusError, match="only 3 chunks beside the right one"):
        make_pairs(material(texts, [question]), Contrastive(hard_negatives=4), 0)
    # A chunk with the right one's text answers, too.
    double = make_pairs(material([texts[0], texts[0], texts[2]], [question]), Contrastive(), 0)
    assert double[0].negatives == (texts[2],)


def test_the_newswires_two_worlds_share_no_kind_and_no_question():
    recipe, _ = check_retriever({"retriever": "minilm", "corpus": "newswire-training", "measure": "newswire-held-out"})
    assert recipe is not None
    trained = open_material(recipe)
    measured = open_measured(recipe, trained)
    assert measured is not None
    assert {chunk.meta["kind"] for chunk in measured.corpus.chunks} == set(READER_HELD_OUT_KINDS)
    assert not {chunk.meta["kind"] for chunk in trained.corpus.chunks} & set(READER_HELD_OUT_KINDS)
    assert (len(trained.questions), len(trained.corpus), len(measured.questions)) == (1600, 800, 130)
    assert not {q.text for q in trained.questions} & {q.text for q in measured.questions}


def test_test_questions_and_strange_chunks_are_refused(recipe: Path, tmp_path: Path):
    import pyarrow.parquet as pq

    bundled = pq.read_table(tasks_dir() / "current_events" / "data" / "test.parquet").to_pylist()[:2]
    lines = [{"question": row["question"], "answer": "a", "source_chunk": "c0"} for row in bundled]
    (tmp_path / "copied.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(CorpusError, match="2 of its 2 questions are test questions"):
        train_retriever(recipe, overrides=[f"questions={tmp_path / 'copied.jsonl'}"])
    (tmp_path / "strange.jsonl").write_text('{"question": "who?", "answer": "a", "source_chunk": "x9"}\n')
    with pytest.raises(CorpusError, match=r"1 of 1 questions have no `source_chunk`.*1 \(x9\)"):
        train_retriever(recipe, overrides=[f"questions={tmp_path / 'strange.jsonl'}"])
    (tmp_path / "broken.jsonl").write_text('{"question": "who?"}\n')
    for key in ("questions", "measure.questions"):
        with pytest.raises(CorpusError, match="row 1 has no `answer`"):
            train_retriever(recipe, overrides=[f"{key}={tmp_path / 'broken.jsonl'}"])
        with pytest.raises(CorpusError, match=f"{key} nowhere"):
            train_retriever(recipe, overrides=[f"{key}=nowhere"])
    with pytest.raises(CorpusError, match="4 of 4 questions that recall is to be measured on are trained on"):
        train_retriever(recipe, overrides=[f"questions={tmp_path / 'asked.jsonl'}"])


def test_recall_is_compared_in_pairs():
    # Found first before: 1 of 6 questions; after: 5. Each of its own chunk, four better and none worse: p = 2 · ½⁴.
    told = compare([1, 2, 0, 3, 0, 5], [1, 1, 1, 1, 1, 4], list("abcdef"))
    assert told["before"] == {"recall@1": 1 / 6, "recall@3": 3 / 6, "recall@5": 4 / 6}
    assert told["after"] == {"recall@1": 5 / 6, "recall@3": 5 / 6, "recall@5": 1.0}
    assert (told["better"], told["worse"], told["p"]) == (4, 0, 0.125)
