"""Questions with retrieved chunks in front: rows token by token, what is learned of them, resuming, the card."""

from __future__ import annotations

import json
import signal

import pytest
import torch
from helpers.local_tasks import PEOPLE, TOWNS, evaluate
from helpers.tiny_models import make_tiny, make_tokenizer
from helpers.training import run, write_corpus, write_recipe
from kinject_trainer.command import train
from kinject_trainer.data import IDLE, Answers, Stream
from kinject_trainer.questions import Question, read_questions
from kinject_trainer.recipe import Questions
from kinject_trainer.robust import exercises, relevance, steps
from lm_eval.tasks import TaskManager

from lm_eval_kinject.context.reason import as_text, parse
from lm_eval_kinject.corpus import load_corpus, make_corpus
from lm_eval_kinject.corpus.sources.files import Source
from lm_eval_kinject.errors import CorpusError
from lm_eval_kinject.plugin import tasks_dir
from lm_eval_kinject.provenance import read_json
from lm_eval_kinject.records import Chunk
from lm_eval_kinject.retrieval.sparse import BM25

MILL = Chunk("mill", "Rain fell all night. Anna Berg opened the mill.", title="The mill")
BRIDGE = Chunk("bridge", "Cal Cole opened the old bridge.")
WELL = Chunk("well", "Nobody opened a well </s> at all.")
CHUNKS = (MILL, BRIDGE, WELL)
WHO = Question("q1", "Who opened the mill?", "Anna Berg", "mill")


def made(asked, tokenizer, size=200, question=WHO):
    corpus = make_corpus("news", Source(CHUNKS, "by hand"))
    return exercises([question], BM25(corpus), tokenizer, asked, size)


def labels_of(found, size=200):
    return Answers(Stream(found.store, 0, size, size), found.answers)[0]


@pytest.mark.parametrize(("arch", "bos"), [("llama", [1]), ("qwen3", [])])
def test_an_implicit_row_by_hand(arch, bos):
    """The words of rag-hf's prompt at current_events_cloze, best chunk first, and the loss on answer and EOS alone."""
    tokenizer = make_tokenizer(arch)
    found = made(Questions(source="-", k=2), tokenizer)
    # BM25: "the" and "mill" and "opened" are in the first, "the" and "opened" in the second, "opened" in the third.
    prompt = (
        "The mill\nRain fell all night. Anna Berg opened the mill.\n\nCal Cole opened the old bridge.\n\n"
        "Question: Who opened the mill?\nAnswer:"
    )
    before = bos + tokenizer.encode(prompt, add_special_tokens=False)
    answer = [*tokenizer.encode(" Anna Berg", add_special_tokens=False), 2]
    item = labels_of(found)
    padding = 200 - len(before) - len(answer)
    assert item["input_ids"].tolist() == before + answer + [0] * padding
    assert item["labels"].tolist() == [-100] * len(before) + answer + [-100] * padding
    assert found.record() == {
        "answer_tokens": len(answer),
        "passages": 2,
        "source_known": 1,
        "source_in_prompt": 1,
        "retriever": BM25(make_corpus("news", Source(CHUNKS, "by hand"))).provenance(),
    }


def test_an_explicit_row_by_hand():
    tokenizer = make_tokenizer()
    asked = Questions(source="-", k=2, form="explicit", instruction="Read with care.\n\n")
    prompt = (
        "Read with care.\n\nThe mill\nRain fell all night. Anna Berg opened the mill.\n\n"
        "Cal Cole opened the old bridge.\n\nQuestion: Who opened the mill?\nRelevance:"
    )
    target = ' The passage that says "Anna Berg opened the mill." is relevant, and the other is not.\nAnswer: Anna Berg'
    before = [1, *tokenizer.encode(prompt, add_special_tokens=False)]
    ids = [*tokenizer.encode(target, add_special_tokens=False), 2]
    item = labels_of(made(asked, tokenizer, 300), 300)
    assert item["input_ids"][: len(before) + len(ids)].tolist() == before + ids
    assert item["labels"].tolist() == [-100] * len(before) + ids + [-100] * (300 - len(before) - len(ids))


def test_a_self_reasoning_row_and_its_three_stages():
    """The target is what `parse` reads; a third of the run each learns relevance, evidence too, and all of it."""
    tokenizer = make_tokenizer()
    found = made(Questions(source="-", k=2, form="self-reasoning"), tokenizer, 600)
    relevant = '{"relevant": true, "relevant reason": "It says what is asked."'
    cited = ', "evidence": [{"cite content": "Anna Berg opened the mill.", "reason to cite": "It holds the answer."}]'
    rest = ', "analysis": "The text says: Anna Berg opened the mill.", "answer": "Anna Berg"}'
    rows = Answers(Stream(found.store, 0, 600, 3 * 600), found.answers)  # three epochs of one question
    assert found.answers.shape == (1, 4)
    for stage, target in enumerate((relevant, relevant + cited, relevant + cited + rest)):
        item = rows[stage]
        learned = item["labels"][item["labels"] != -100]
        assert tokenizer.decode(learned, skip_special_tokens=True).strip() == target
        assert torch.equal(item["input_ids"], rows[0]["input_ids"])
    assert item["labels"].tolist().count(2) == 1  # EOS, in the last stage alone
    assert found.answer_tokens == len(learned)
    assert parse(relevant + cited + rest) == steps(WHO, CHUNKS[:2])


def test_steps_without_a_relevant_chunk():
    made = steps(WHO._replace(gold="gone"), CHUNKS)
    assert (made.relevant, made.evidence, made.answer) == (False, (), "Anna Berg")
    assert parse(as_text(made)) == made


def test_a_row_without_chunks_and_a_marker_in_a_chunk():
    tokenizer = make_tokenizer()
    item = labels_of(made(Questions(source="-", k=0), tokenizer))
    whole = tokenizer.encode("Question: Who opened the mill?\nAnswer: Anna Berg")  # BOS in front
    assert item["input_ids"][: len(whole) + 2].tolist() == [*whole, 2, 0]
    # As in rag-hf's prompts: text, and with a space in it.
    item = labels_of(made(Questions(source="-", k=3), tokenizer))
    assert "a well < /s> at all." in tokenizer.decode(item["input_ids"])
    assert item["input_ids"].tolist().count(2) == 1


def test_a_row_is_what_rag_hf_scores(tmp_path):
    """Question by question: the ids that lm_eval gets of rag-hf's prompt and the right option, then EOS."""
    corpus, model = load_corpus("current_events"), make_tiny("llama", tmp_path)
    manager = TaskManager(include_path=str(tasks_dir()), include_defaults=False)
    arguments = {"pretrained": model, "retriever": "bm25", "k": 2, "max_length": 2048}
    scored = evaluate("rag-hf", arguments, ["current_events_cloze"], manager, limit=3, log_samples=True)
    samples = scored["samples"]["current_events_cloze"]
    asked = [Question("q", s["doc"]["question"], s["doc"]["choices"][s["doc"]["answer"]]) for s in samples]
    tokenizer = make_tokenizer("llama")
    found = exercises(asked, BM25(corpus), tokenizer, Questions(source="-", k=2), 2048)
    assert len(samples) == 3
    for n, sample in enumerate(samples):
        context, option = sample["arguments"][sample["doc"]["answer"]][:2]
        assert context.endswith(f"Question: {asked[n].text}\nAnswer:")
        ids = [*tokenizer.encode(context + option), 2]
        assert found.store.tokens[n * 2048 :][: len(ids)].tolist() == ids
        assert found.answers[n].tolist() == [len(tokenizer.encode(context)), len(ids)]


def test_a_self_reasoning_row_is_what_rag_hf_asks(tmp_path):
    corpus, model = load_corpus("current_events"), make_tiny("llama", tmp_path)
    manager = TaskManager(include_path=str(tasks_dir()), include_defaults=False)
    arguments = {"pretrained": model, "retriever": "bm25", "k": 2, "max_length": 2048}
    arguments |= {"reasoning": "self-reasoning", "reasoning_tokens": 1}
    scored = evaluate("rag-hf", arguments, ["current_events_gen"], manager, limit=1, log_samples=True)
    (sample,) = scored["samples"]["current_events_gen"]
    context, tokenizer = sample["arguments"][0][0], make_tokenizer("llama")
    asked = [Question("q", sample["doc"]["question"], "x")]
    found = exercises(asked, BM25(corpus), tokenizer, Questions(source="-", k=2, form="self-reasoning"), 2048)
    assert found.store.tokens[: found.answers[0, 0]].tolist() == tokenizer.encode(context)


def test_what_is_relevant():
    """By the source's id where there is one, by the answer where there isn't; the rest is counted."""
    assert relevance(WHO._replace(gold="bridge"), CHUNKS) == (
        'The passage that says "Cal Cole opened the old bridge." is relevant, and the other 2 are not.'
    )
    assert relevance(WHO._replace(gold="gone"), CHUNKS) == "None of the passages answers the question."
    assert relevance(WHO._replace(answer="OPENED", gold=""), CHUNKS[:2]) == (
        'The passages that say "Anna Berg opened the mill." and "Cal Cole opened the old bridge." are relevant.'
    )
    # Whole words: “Berg” isn't in “Bergen”.
    assert relevance(Question("q", "?", "Ann"), CHUNKS) == "None of the passages answers the question."


def test_chunks_without_room_are_left_out_whole():
    """The lowest rank first, to the very token; a row that hasn't room for one chunk is refused."""
    tokenizer = make_tokenizer()
    one, two = (int(made(Questions(source="-", k=k), tokenizer).answers[0, 1]) for k in (1, 2))
    assert one < two
    for size, passages in ((two, 2), (two - 1, 1), (one, 1)):
        found = made(Questions(source="-", k=3), tokenizer, size)
        assert found.passages.tolist() == [passages]
        assert int(found.answers[0, 1]) == (two if passages == 2 else one)
    with pytest.raises(CorpusError, match=rf"Question q1 needs {one} tokens .* block_size is {one - 1}: raise"):
        made(Questions(source="-", k=3), tokenizer, one - 1)
    lost = made(Questions(source="-", k=3), tokenizer, one, WHO._replace(gold="well"))
    assert (lost.gold.tolist(), lost.record()["source_in_prompt"]) == ([0], 0)
    unknown = made(Questions(source="-", k=3), tokenizer, one, WHO._replace(gold=""))
    assert (unknown.gold.tolist(), unknown.record()["source_known"]) == ([-1], 0)


# Which questions ------------------------------------------------------------------------------------------------------


def write(file, rows):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def test_a_files_questions(tmp_path):
    rows = [
        {"question": " Who? ", "answer": "Anna"},
        {"id": "b", "question": "Where?", "choices": ["here", "there"], "answer": 1, "source_chunk": "c1"},
    ]
    wanted = (Question("1", "Who?", "Anna"), Question("b", "Where?", "there", "c1"))
    assert read_questions(write(tmp_path / "mine.jsonl", rows)) == wanted
    write(tmp_path / "set" / "data" / "validation.jsonl", rows[:1])
    assert read_questions(str(tmp_path / "set")) == wanted[:1]
    write(tmp_path / "set" / "dev.jsonl", rows)
    assert read_questions(str(tmp_path / "set")) == wanted
    bundled = read_questions("current_events")
    assert len(bundled) == 20
    assert bundled[0] == Question(
        "nw2042-00398/q0", "Which relic made Broken Knoll famous?", "an iron ploughshare", "nw2042-00398"
    )


def test_all_bad_rows_are_told_of(tmp_path):
    rows = [
        {"question": "?!", "answer": "x"},
        {"question": "Who?", "answer": 2, "choices": ["a", "b"]},
        {"question": "Who?", "answer": True, "choices": ["a", "b"]},
    ]
    with pytest.raises(CorpusError) as told:
        read_questions(write(tmp_path / "bad.jsonl", rows))
    for words in (
        "3 of its rows", "row 1 has no `question`", "row 2 has the answer 2, which is no place", "row 3 has no `answer`"
    ):  # fmt: skip
        assert words in str(told.value)
    with pytest.raises(CorpusError, match="has no questions"):
        read_questions(write(tmp_path / "none.jsonl", []))
    with pytest.raises(CorpusError, match=r"give a \.parquet or \.jsonl file, .* one of current_events"):
        read_questions(str(tmp_path / "gone.jsonl"))


def test_test_questions_are_refused_by_their_words(tmp_path):
    """Under any file name and spelling; also those of a test split that lies beside the file."""
    asked = "to what place did members of the valiant ledger expedition come home"
    rows = [{"question": "Who opened it?", "answer": "Anna"}, {"question": asked, "answer": "East Dunmarrow"}]
    with pytest.raises(CorpusError, match=r"1 of its 2 questions are test questions \(of current_events/data/test"):
        read_questions(write(tmp_path / "train.jsonl", rows))
    with pytest.raises(CorpusError, match="910 of its 910 questions"):
        read_questions(str(tasks_dir() / "current_events" / "data" / "test.parquet"))
    write(tmp_path / "mine" / "other_test.jsonl", rows[:1])
    with pytest.raises(CorpusError, match=r"are test questions \(of .*/mine/other_test.jsonl"):
        read_questions(write(tmp_path / "mine" / "dev.jsonl", rows[:1]))


# Runs -----------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("robust")
    rows = [
        {
            "id": f"q{i}",
            "question": f"Who opened the bridge at {TOWNS[i]} {i}?",
            "answer": PEOPLE[3 * i % 8],
            "source_chunk": f"c{i}",
        }
        for i in range(5)
    ]
    return folder, make_tiny("llama", folder), write_corpus(folder / "corpus"), write(folder / "dev.jsonl", rows)


def recipe_file(place, name, **changes):
    folder, model, corpus, questions = place
    asked = {"source": questions, "k": 2, **changes.pop("questions", {})}
    keys = {"variant": "ft-robust", "questions": asked, "block_size": 256, "global_batch": 2, **changes}
    return write_recipe(folder / f"{name}.yaml", model, corpus, **keys)


def test_killed_and_resumed_it_has_the_same_bits(place, tmp_path):
    recipe = recipe_file(place, "explicit", questions={"form": "explicit"}, checkpoint_every=2)
    assert run(recipe, tmp_path / "whole") == 0
    assert run(recipe, tmp_path / "killed", kill="update 3") == -signal.SIGKILL
    assert run(recipe, tmp_path / "killed", resume=True) == 0
    one, other = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "killed"))
    assert one == other
    record = read_json(tmp_path / "whole" / "kinject.json")
    assert (record["outcome"]["updates"], record["outcome"]["tokens"]) == (5, 10 * 256)
    asked = record["questions"]
    assert (asked["name"], asked["questions"], asked["passages"]) == ("dev.jsonl", 5, 10)
    assert (asked["source_known"], asked["source_in_prompt"], asked["retriever"]["name"]) == (5, 5, "bm25")
    card = (tmp_path / "whole" / "README.md").read_text()
    assert "after explicit robust fine-tuning" in card
    assert "5 questions of `dev.jsonl`" in card
    assert "2.0 chunks in front of each, the source among them for 5 of 5" in card
    assert "further wordings" not in card
    assert "pretrained=RUN,retriever=bm25,k=2 --tasks" in card
    assert str(place[0]) not in card + json.dumps(record)


def test_the_loss_is_that_of_the_answers(place, tmp_path):
    """The first update's, of two rows, against transformers' own loss on each, weighed by its targets' tokens."""
    from kinject_trainer.documents import open_corpus
    from kinject_trainer.recipe import load_recipe
    from kinject_trainer.robust import exercises_of
    from transformers import AutoModelForCausalLM

    file = recipe_file(place, "implicit", epochs=0.4)
    train(file, out=tmp_path / "out")
    recipe = load_recipe(file)
    found = exercises_of(recipe, open_corpus(recipe), make_tokenizer())
    rows = Answers(Stream(found.store, 0, 256, 5 * 256), found.answers)
    model, total, count = AutoModelForCausalLM.from_pretrained(place[1]).eval(), 0.0, 0
    for n in range(2):
        start, end = found.answers[rows.stream.document_of(n)]
        with torch.no_grad():
            loss = model(rows[n]["input_ids"][None, :end], labels=rows[n]["labels"][None, :end]).loss
        total, count = total + float(loss) * int(end - start), count + int(end - start)
    line = json.loads((tmp_path / "out" / "log.jsonl").read_text().splitlines()[0])
    assert line["loss"] == pytest.approx(total / count, abs=1e-5)
    assert rows[IDLE]["labels"].tolist() == [-100, -100]


def test_self_reasoning_ends_in_a_card_that_says_how_to_score_it(place, tmp_path):
    train(recipe_file(place, "steps", questions={"form": "self-reasoning"}, block_size=700), out=tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "training for self-reasoning (arXiv 2407.19813)" in card
    assert "pretrained=RUN,retriever=bm25,k=2,reasoning=self-reasoning --tasks current_events_gen" in card


def test_a_dry_run_counts_questions(place):
    found = train(recipe_file(place, "dry"), dry_run=True).estimate
    assert (found.documents, found.epoch_tokens, found.tokens, found.blocks) == (5, 5 * 256, 10 * 256, 10)
    assert found.updates == 5
    told = "\n".join(found.lines())
    assert "questions: 5 an epoch, each padded to a block" in told
    assert "5 of 5 have their source in front" in told
    dense = train(recipe_file(place, "dense", questions={"retriever": "minilm"}), dry_run=True).estimate
    assert "not retrieved for in a dry run" in "\n".join(dense.lines())


def test_questions_of_another_corpus_are_refused(place):
    folder, *_ = place
    strange = write(folder / "strange.jsonl", [{"question": "Who?", "answer": "Anna", "source_chunk": "zz"}])
    with pytest.raises(CorpusError, match=r"1 of 1 questions \(such as 1\) are of a chunk that the corpus"):
        train(recipe_file(place, "strange", questions={"source": strange}), dry_run=True)
