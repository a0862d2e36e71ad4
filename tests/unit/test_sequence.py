"""Sequences: the file and its problems, the measures, questions, corpora put together."""

from __future__ import annotations

import pytest
from helpers.months import write_lines, write_month, write_sequence
from helpers.tiny_models import make_tokenizer
from kinject_trainer.documents import open_corpus
from kinject_trainer.sequence.ask import read_month
from kinject_trainer.sequence.combine import combine
from kinject_trainer.sequence.measures import averages, measure
from kinject_trainer.sequence.plan import Merge, is_sequence, load_sequence

from lm_eval_kinject.corpus import load_corpus
from lm_eval_kinject.errors import ArgumentError, CorpusError

MONTHS = [{"month": "2026-01", "corpus": "one"}, {"month": "2026-02", "corpus": "two", "questions": "asked"}]


def problems(file, *overrides):
    with pytest.raises(ArgumentError) as caught:
        load_sequence(file, overrides)
    return caught.value.problems


# The file -------------------------------------------------------------------------------------------------------------


def test_a_month_is_an_ordinary_recipe(tmp_path):
    file = write_sequence(tmp_path / "news.yaml", "reader", MONTHS, model_revision=None)
    assert is_sequence(file)
    found = load_sequence(file, ["epochs=3"])
    assert (found.name, found.mode, found.merge, found.combines) == ("news", "continued", None, False)
    first = found.recipe(0)
    assert (first.name, first.model, first.corpus, first.epochs) == ("news-2026-01", "reader", "one", 3)
    second = found.recipe(1, model="runs/news/months/news-2026-01")
    assert (second.name, second.corpus) == ("news-2026-02", "two")
    assert second.model == "runs/news/months/news-2026-01"


def test_what_a_month_before_is_not_takes_no_revision(tmp_path):
    months = [{**MONTHS[0], "corpus_revision": "abc", "paraphrases_file": "p.jsonl"}, MONTHS[1]]
    file = write_sequence(tmp_path / "s.yaml", "me/model", months, model_revision="main", mode="retrained")
    found = load_sequence(file)
    assert found.combines
    assert (found.recipe(0).corpus_revision, found.recipe(0).model_revision) == ("abc", "main")
    together = found.recipe(0, corpus="both")
    assert (together.corpus, together.corpus_revision, together.paraphrases_file) == ("both", None, None)
    assert found.recipe(1, model="before").model_revision is None


def test_the_reader_s_figures_are_not_taken_by_another_name(tmp_path):
    """General text and recall are chosen by the base's name; what goes on from a month has none of its own."""
    file = write_sequence(tmp_path / "s.yaml", "reader", MONTHS, forgetting=True)
    found = load_sequence(file)
    assert found.recipe(0).forgetting
    assert not found.recipe(1, model="before").forgetting
    named = load_sequence(file, ["general_text=some.txt"])
    assert named.recipe(1, model="before").forgetting


def test_merges_by_name_or_with_constants(tmp_path):
    how = {"mode": "adapter-a-month", "method": "lora"}
    assert load_sequence(write_sequence(tmp_path / "s.yaml", "reader", MONTHS, **how)).merge == Merge()
    named = load_sequence(write_sequence(tmp_path / "s.yaml", "reader", MONTHS, **how, merge="routed"))
    assert (named.merge, named.merges, named.combines) == (Merge(kind="routed"), False, False)
    constants = {"kind": "ties", "density": 0.2}
    merged = load_sequence(write_sequence(tmp_path / "s.yaml", "reader", MONTHS, **how, merge=constants))
    assert (merged.merge, merged.merges, merged.combines) == (Merge(kind="ties", density=0.2), True, True)


def test_every_problem_at_once(tmp_path):
    months = [
        {"month": "2026-02", "corpus": "one", "question": "asked"},
        {"month": "2026-01"},
    ]
    file = write_sequence(tmp_path / "s.yaml", "reader", months, corpus="all", mode="continue", rnak=3, epochs=-1)
    found = problems(file)
    assert [problem.split(": ")[0] for problem in found] == [
        "corpus", "mode", "sequence.0.question", "sequence.1.corpus", "epochs", "rnak",
    ]  # fmt: skip
    assert "did you mean questions?" in found[2]
    assert found[0] == "corpus: each month of the sequence has its own; put it there"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"method": "lora"}, "mode continued with method lora: it goes on with the weights themselves"),
        ({"mode": "adapter-a-month"}, "mode adapter-a-month with method full"),
        ({"mode": "retrained", "merge": "ties"}, "merge: has no meaning with mode retrained"),
        ({"mode": "adapter-a-month", "method": "rslora", "merge": "ties"}, "PEFT puts plain LoRA adapters together"),
        ({"mode": "adapter-a-month", "method": "lora", "merge": {"density": 0.5}}, "merge.density: has a meaning"),
        ({"mode": "adapter-a-month", "method": "lora", "merge": {"kind": "routed", "weight": 2}}, "merge.weight"),
        ({"mode": "adapter-a-month", "method": "lora", "merge": "tise"}, "merge.kind"),
        ({"mode": "retrained", "stream": True}, "stream: the months are put together"),
        ({"sequence": []}, "sequence: lists no month"),
        ({"sequence": [MONTHS[1], MONTHS[0]]}, "not in the order of their dates"),
        ({"sequence": [MONTHS[0], MONTHS[0]]}, "month 2026-01: stands twice"),
        ({"sequence": [{"month": "a/b", "corpus": "c"}]}, "month 'a/b': takes letters"),
        ({"sequence": [{"month": "base", "corpus": "c"}]}, "month base: is what the start is called"),
    ],
)
def test_what_does_not_go_together(tmp_path, changes, words):
    months = changes.pop("sequence", MONTHS)
    (found,) = problems(write_sequence(tmp_path / "s.yaml", "reader", months, **changes))
    assert words in found


def test_what_lists_no_months_is_no_sequence(tmp_path):
    (tmp_path / "plain.yaml").write_text("model: reader\n")
    (tmp_path / "broken.yaml").write_text("sequence: [")
    assert not any(is_sequence(tmp_path / name) for name in ("plain.yaml", "broken.yaml", "nowhere.yaml"))
    assert not is_sequence("reader-ft-par")


def test_the_command_takes_both(tmp_path, monkeypatch, capsys):
    from kinject_trainer import sequence

    from lm_eval_kinject.cli import training

    asked = []

    def run(path, **how):
        asked.append((path, how["dry_run"], how["resume"], how["overrides"]))
        return sequence.SequenceResult(None if how["dry_run"] else tmp_path / "out", ["average accuracy   0.500"])

    monkeypatch.setattr(sequence, "train_sequence", run)
    file = str(write_sequence(tmp_path / "s.yaml", "reader", MONTHS))
    training.train(file, dry_run=True)
    assert capsys.readouterr().out == "average accuracy   0.500\n"
    training.train(file, resume=True, overrides=["epochs=1"])
    said = capsys.readouterr().out
    assert said.startswith(f"{tmp_path / 'out'} is finished:")
    assert said.endswith("average accuracy   0.500\n")
    assert asked == [(file, True, False, ()), (file, False, True, ["epochs=1"])]


# Measures -------------------------------------------------------------------------------------------------------------


def test_measures_by_hand():
    """Average (.5 + .6 + .9) / 3; backward ((.5 − .8) + (.6 − .7)) / 2; forward ((.3 − .2) + (.4 − .3)) / 2."""
    matrix = [[0.25, 0.2, 0.3], [0.8, 0.3, 0.35], [0.6, 0.7, 0.4], [0.5, 0.6, 0.9]]
    found = measure(matrix)
    assert found.average_accuracy == pytest.approx(2.0 / 3)
    assert found.backward_transfer == pytest.approx(-0.2)
    assert found.forward_transfer == pytest.approx(0.1)
    assert averages(matrix) == pytest.approx([0.8, 0.65, 2.0 / 3])


def test_months_without_questions_are_left_out_of_sums_and_counts():
    matrix = [[0.25, None, 0.3], [0.8, None, 0.35], [0.6, None, 0.4], [0.5, None, 0.9]]
    found = measure(matrix)
    assert found.average_accuracy == pytest.approx(0.7)
    assert found.backward_transfer == pytest.approx(-0.3)
    assert found.forward_transfer == pytest.approx(0.1)
    assert averages(matrix) == pytest.approx([0.8, 0.6, 0.7])


def test_one_month_has_no_transfer():
    found = measure([[0.25], [0.75]])
    assert (found.average_accuracy, found.backward_transfer, found.forward_transfer) == (0.75, None, None)
    assert measure([[None], [None]]).average_accuracy is None


# Questions ------------------------------------------------------------------------------------------------------------

GOOD = {"question": "Who came?", "choices": ["Ann", "Bea"], "answer": 1}


def test_questions_are_tokenized_as_lm_eval_does(tmp_path):
    """Prompt as it is encoded by itself; an option is what it adds, space in front."""
    tokenizer = make_tokenizer()
    found = read_month(write_lines(tmp_path / "q.jsonl", [GOOD]))
    (question,) = found.encoded(tokenizer)
    assert tokenizer.decode(question.prompt) == "<s>Question: Who came?\nAnswer:"
    assert [tokenizer.decode(option) for option in question.options] == [" Ann", " Bea"]
    assert question.answer == 1


def test_questions_from_folders(tmp_path):
    file = read_month(write_lines(tmp_path / "q.jsonl", [GOOD]))
    write_lines(tmp_path / "task" / "data" / "test.jsonl", [GOOD])
    assert read_month(str(tmp_path / "task")) == file
    write_lines(tmp_path / "task" / "data" / "test.jsonl", [{**GOOD, "answer": 0}])
    assert read_month(str(tmp_path / "task")).fingerprint != file.fingerprint


def test_a_question_set_s_questions_are_those_that_stand(tmp_path):
    from lm_eval_kinject.questions.folder import QuestionSet, fingerprint_question

    corpus = write_lines(tmp_path / "c.jsonl", [{"id": "c0", "text": "Ann stayed and Bea came."}])
    there = QuestionSet.begin(tmp_path / "set", corpus)
    rows = [{**GOOD, "id": "q0"}, {**GOOD, "id": "q1", "question": "Who stayed?", "answer": 0}]
    there.write("questions.jsonl", rows)
    assert len(read_month(str(tmp_path / "set")).rows) == 2
    there.write("verdicts.jsonl", [{"id": "q0", "of": fingerprint_question(rows[0]), "flags": ["open"]}])
    assert [row[0] for row in read_month(str(tmp_path / "set")).rows] == ["Who stayed?"]


def test_questions_that_cannot_be_asked_are_all_named(tmp_path):
    wrong = [
        {**GOOD, "question": " "},
        {**GOOD, "choices": ["Ann"]},
        {**GOOD, "answer": 2},
        {**GOOD, "choices": ["A", "A"]},
    ]
    with pytest.raises(CorpusError) as caught:
        read_month(write_lines(tmp_path / "q.jsonl", [GOOD, *wrong]))
    said = str(caught.value)
    assert "4 of 5 can't be asked: row 2 has no `question`; row 3 has no `choices`, two texts or more; row 4" in said
    with pytest.raises(CorpusError, match="there are none"):
        read_month(write_lines(tmp_path / "empty.jsonl", []))
    with pytest.raises(CorpusError, match="no such question set, folder with a test split"):
        read_month(str(tmp_path / "nowhere"))


# Corpora --------------------------------------------------------------------------------------------------------------


def test_corpora_together_are_those_of_the_months_one_after_the_other(tmp_path):
    months = [write_month(tmp_path, number) for number in range(2)]
    planned = load_sequence(
        write_sequence(tmp_path / "s.yaml", "reader", months, mode="retrained", variant="ft-par", paraphrases=1)
    )
    combine([planned.recipe(0), planned.recipe(1)], ["a", "b"], tmp_path / "both")
    assert load_corpus(tmp_path / "both").chunks == tuple(
        chunk for month in months for chunk in load_corpus(month["corpus"]).chunks
    )
    together = open_corpus(planned.recipe(1, corpus=str(tmp_path / "both")))
    alone = [open_corpus(planned.recipe(number)) for number in range(2)]
    told = [[wording for wording in texts.training() if wording.number] for texts in alone]
    assert [wording for wording in together.training() if wording.number] == told[0] + told[1]
    assert sorted(together.validation()) == sorted(alone[0].validation() + alone[1].validation())


def test_an_id_of_two_months_is_refused(tmp_path):
    months = [write_month(tmp_path / "a", 0), write_month(tmp_path / "b", 0) | {"month": "2026-02"}]
    planned = load_sequence(write_sequence(tmp_path / "s.yaml", "reader", months, mode="retrained"))
    with pytest.raises(CorpusError, match="2026-01 and 2026-02 both have a chunk c0: make ids unique"):
        combine([planned.recipe(0), planned.recipe(1)], ["2026-01", "2026-02"], tmp_path / "both")
    assert not (tmp_path / "both").exists()
