"""Exporting: splits, tables, tasks and card, from a set written down by hand; and what else needs a model loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml
from helpers.hub_fixture import local_hub
from helpers.local_tasks import ROOT, evaluate, prompts
from helpers.tiny_models import make_tiny
from lm_eval.tasks import TaskManager

import lm_eval_kinject.models.rag_hf  # noqa: F401
from lm_eval_kinject.corpus import load_corpus
from lm_eval_kinject.errors import ArgumentError, CorpusError, ModelError
from lm_eval_kinject.hub.push import push_dataset
from lm_eval_kinject.questions.asking import Request, open_writer
from lm_eval_kinject.questions.check import check_folder
from lm_eval_kinject.questions.export import Settings, export_set, split_by_document
from lm_eval_kinject.questions.folder import QuestionSet, fingerprint_question

TOWNS = "Arden Brill Corby Dover Eston Filey Goole Hythe Ilkley Jarrow".split()
PEOPLE = ["Abe Ash", "Bea Birk", "Cal Cole", "Dot Dunn"]


@pytest.fixture
def there(tmp_path: Path) -> QuestionSet:
    """Ten documents of two chunks, a question on each of the first chunks; two paraphrases of each chunk."""
    file = tmp_path / "news.jsonl"
    chunks = [
        {
            "id": f"d{n}#{part}",
            "document_id": f"d{n}",
            "position": part,
            "title": f"News from {town}",
            "text": f"The bridge at {town} was opened by {PEOPLE[n % 4]}." if not part else f"It rained in {town}.",
            **({"date": f"2042-05-{n + 1:02}"} if n else {}),
        }
        for n, town in enumerate(TOWNS)
        for part in (0, 1)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in chunks))
    there = QuestionSet.begin(tmp_path / "set", str(file))
    rows = [
        {
            "id": f"d{n}#0/q0",
            "question": f"Who opened the bridge at {town}?",
            "choices": PEOPLE,
            "answer": n % 4,
            "source_chunk": f"d{n}#0",
            "evidence": "",
        }
        for n, town in enumerate(TOWNS)
    ]
    there.write("questions.jsonl", rows)
    wordings = [{"chunk": c["id"], "number": k, "text": f"{k}: {c['text']}"} for c in chunks for k in (1, 2)]
    there.write("paraphrases.jsonl", wordings)
    settings = {"asked": 4, "kept": 2}
    there.record("write", {"writer": "scripted", "settings": settings, "chunks": 20, "questions": 10})
    return QuestionSet.open(there.folder)


def table(folder: Path, name: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = pq.read_table(folder / name).to_pylist()
    return found


def test_the_folder(there: QuestionSet, tmp_path: Path) -> None:
    flagged = there.questions()[4]
    there.write("verdicts.jsonl", [{"id": flagged["id"], "of": fingerprint_question(flagged), "flags": ["known"]}])
    done = export_set(there, tmp_path / "out", Settings("bridges", subject="bridges", few_shot=2, validation=0.3))
    assert done.tasks == ("bridges", "bridges_cloze", "bridges_gen")
    assert done.questions == {"test": 4, "validation": 3, "dev": 2}  # nine stand
    assert done.settled.dropped == {"known": 1}
    splits = {split: table(tmp_path / "out", f"data/{split}.parquet") for split in done.questions}
    asked = [row["id"] for rows in splits.values() for row in rows]
    assert sorted(asked) == sorted(f"d{n}#0/q0" for n in range(10) if n != 4)
    assert list(splits["test"][0]) == ["id", "question", "choices", "answer", "source_chunk", "evidence"]

    chunks = table(tmp_path / "out", "corpus/chunks.parquet")
    assert [chunk["id"] for chunk in chunks] == [f"d{n}#{part}" for n in range(10) for part in (0, 1)]
    roles = {chunk["id"]: chunk["role"] for chunk in chunks}
    few = {row["source_chunk"] for row in splits["dev"]}
    sources = {row["source_chunk"] for split in ("test", "validation") for row in splits[split]}
    assert {name for name, role in roles.items() if role == "few-shot"} == few
    assert {name for name, role in roles.items() if role == "source"} == sources
    paraphrases = table(tmp_path / "out", "corpus/paraphrases.parquet")
    assert [(row["chunk"], row["number"]) for row in paraphrases] == [(c, k) for c in sorted(sources) for k in (1, 2)]
    corpus = load_corpus(tmp_path / "out" / "corpus")
    assert [chunk.text for chunk in corpus.chunks] == [chunk.text for chunk in there.corpus.chunks]


def test_the_card(there: QuestionSet, tmp_path: Path) -> None:
    export_set(there, tmp_path / "out", Settings("bridges", few_shot=2, validation=0.3))
    _, front, page = (tmp_path / "out" / "README.md").read_text().split("---\n", 2)
    card = yaml.safe_load(front)
    assert card["pretty_name"] == "bridges"
    assert "license" not in card
    configs = {one["config_name"]: {f["split"]: f["path"] for f in one["data_files"]} for one in card["configs"]}
    assert configs == {
        "data": {split: f"data/{split}.parquet" for split in ("dev", "test", "validation")},
        "chunks": {"train": "corpus/chunks.parquet"},
        "paraphrases": {"train": "corpus/paraphrases.parquet"},
    }
    for line in (
        "| `data/test.parquet` | 5 | the questions that are scored |",
        "- window: 2042-05-02 to 2042-05-10, of 9 of 10 source chunks",
        "- licence of the texts: not stated",
        "- written by scripted: 4 questions a chunk on 20 chunks",
        "- not verified",
        "- 10 questions were neither verified nor reviewed.",
        "- No person has looked at these questions.",
    ):
        assert line in page.splitlines()
    assert str(tmp_path) not in page


def test_the_card_states_the_licence_of_the_texts(there: QuestionSet, tmp_path: Path) -> None:
    def licensed(licence: str) -> tuple[dict[str, Any], str]:
        folder = tmp_path / licence[:4]
        (folder / "news").mkdir(parents=True)
        (folder / "news" / "README.md").write_text(f"---\nlicense: {licence}\n---\n")
        text = (there.folder / "chunks.jsonl").read_text()
        (folder / "news" / "chunks.jsonl").write_text(text)
        other = QuestionSet.begin(folder / "set", str(folder / "news"))
        other.write("questions.jsonl", there.questions())
        other.record("write", there.manifest["stages"]["write"])
        export_set(QuestionSet.open(folder / "set"), folder / "out", Settings("bridges"))
        _, front, page = (folder / "out" / "README.md").read_text().split("---\n", 2)
        return yaml.safe_load(front), page

    card, page = licensed("CC-BY-4.0")
    assert card["license"] == "cc-by-4.0"
    assert "- licence of the texts: CC-BY-4.0" in page
    assert "states no licence" not in page
    card, _ = licensed("Ours alone (see the door)")
    assert (card["license"], card["license_name"]) == ("other", "ours-alone-see-the-door")


def test_it_is_scored_where_it_lies(there: QuestionSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KINJECT_CACHE", str(tmp_path / "cache"))
    export_set(there, tmp_path / "out", Settings("bridges", subject="bridges", few_shot=2, validation=0.3))
    tasks = ["bridges", "bridges_cloze", "bridges_gen"]
    manager = TaskManager(include_defaults=False, include_path=[str(tmp_path / "out"), str(ROOT / "tasks")])
    result = evaluate("rag-hf", {"retriever": "oracle", "k": 1}, tasks, manager, num_fewshot=1, limit=2)
    examples = table(tmp_path / "out", "data/dev.parquet")
    for task in tasks:
        assert result["n-samples"][task]["original"] == 5
        assert result["config"]["kinject"]["tasks"][task]["gold_in_prompt"] == 1.0
        for sample, prompt in zip(result["samples"][task], prompts(result, task), strict=True):
            town = sample["doc"]["question"].removesuffix("?").split()[-1]
            assert f"The bridge at {town} was opened by" in prompt
            assert examples[0]["question"] in prompt
    assert set(result["results"]["bridges_gen"]) >= {"exact_match,none", "f1,none", "answer_in_text,none"}
    assert prompts(result, "bridges")[0].startswith(
        "The following are multiple choice questions (with answers) about bridges.\n\n"
    )


def test_it_is_pushed_and_read_back(there: QuestionSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from datasets import load_dataset

    export_set(there, tmp_path / "out", Settings("bridges", few_shot=2, validation=0.3))
    with local_hub(monkeypatch, tmp_path / "home") as hub:
        push_dataset(tmp_path / "out", "me/bridges")
        files = hub.store.files("me/bridges", kind="dataset")
    pulled = tmp_path / "pulled"
    for name, data in files.items():
        (pulled / name).parent.mkdir(parents=True, exist_ok=True)
        (pulled / name).write_bytes(data)
    cache = str(tmp_path / "datasets")
    assert load_dataset(str(pulled), "data", split="test", cache_dir=cache).to_list() == table(
        tmp_path / "out", "data/test.parquet"
    )
    chunks = load_dataset(str(pulled), "chunks", split="train", cache_dir=cache)
    assert len(chunks) == 20


def test_splits_share_no_document(there: QuestionSet) -> None:
    rows = [{"id": f"q{n}", "source_chunk": f"d{n % 10}#{n // 10}"} for n in range(20)]
    found = split_by_document(rows, there.corpus.by_id, Settings("x", few_shot=3, validation=0.2))
    documents = [{row["source_chunk"][:2] for row in part} for part in (found.dev, found.validation, found.test)]
    assert [len(part) for part in documents] == [2, 2, 6]  # two questions a document: 3 need two of them
    assert len(set.union(*documents)) == 10
    assert split_by_document(rows, there.corpus.by_id, Settings("x", seed=2)) != split_by_document(
        rows, there.corpus.by_id, Settings("x")
    )
    with pytest.raises(CorpusError, match="leave none to test"):
        split_by_document(rows[:2], there.corpus.by_id, Settings("x", few_shot=5))


def test_a_set_of_which_nothing_stands(there: QuestionSet, tmp_path: Path) -> None:
    rows = there.questions()
    there.write("verdicts.jsonl", [{"id": r["id"], "of": fingerprint_question(r), "flags": ["known"]} for r in rows])
    with pytest.raises(CorpusError, match=r"No question of .* stands \(known 10\)"):
        export_set(there, tmp_path / "out", Settings("x"))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    with pytest.raises(CorpusError, match="is there already"):
        export_set(there, tmp_path / "out", Settings("x"))
    assert (tmp_path / "out" / "mine.txt").read_text() == "mine"


def test_settings_that_make_no_task() -> None:
    with pytest.raises(ArgumentError) as error:
        Settings("My Bench", subject='a "b"', few_shot=0, validation=0.6)
    assert len(error.value.problems) == 4
    with pytest.raises(ArgumentError, match="that of a bundled task"):
        Settings("current_events")


def test_a_model_is_asked_closed_book(there: QuestionSet, tmp_path: Path) -> None:
    export_set(there, tmp_path / "out", Settings("bridges", few_shot=2, validation=0.3))
    found = check_folder(str(tmp_path / "out"), closed_book="reader", limit=3)[-1]
    assert (found.what, found.of, found.chance) == ("reader answers bridges_cloze closed-book", 3, 0.25)
    assert not found.fault  # with three questions nothing is above chance for certain
    assert 0 <= found.count <= 3


def test_a_model_on_this_machine_writes(tmp_path: Path) -> None:
    folder = make_tiny("llama", tmp_path / "model")
    writer = open_writer(f"hf:{folder}")
    request = Request("You write.", "Write.", seed=3, most_tokens=5)
    first = writer.ask(request)
    assert first == writer.ask(request)  # the seed decides
    assert first.metered
    assert 1 <= first.completion_tokens <= 5
    assert (first.finish == "length") is (first.completion_tokens == 5)
    assert writer.name.startswith("hf:")
    assert str(tmp_path) not in writer.name
    with pytest.raises(ModelError, match="doesn't fit the window"):
        writer.ask(Request("You write.", "word " * 3000))
    with pytest.raises(ModelError, match="can't be loaded"):
        open_writer(f"hf:{tmp_path / 'nothing'}")
