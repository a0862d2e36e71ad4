"""`kinject train` of a sequence: month after month, and after each the questions of all.

What it is for: `train_sequence` has each month trained (`command.train`), adapters merged, questions asked, and the
result written. What it does not do: it trains nothing itself.

The one idea: every step leaves a file or folder that says what it was made from and appears whole, and a step whose
result is there isn't made again. So a sequence that was killed goes on where it was, inside a month as runs do, and
ends in the same bits. Times are in the months' own records; ``sequence.json`` holds none.

    sequence.json, README.md, accuracy.png                    the record is written last: until then it isn't finished
    months/NAME-MONTH/                                        a run, as any other
    merged/NAME-MONTH/                                        the adapters up to that month as one
    corpora/through-MONTH/                                    the corpora up to that month as one
    answers/base.json, answers/MONTH.json                     right or wrong, question by question
    work/                                                     whose folder this is; removed at the end
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import accelerate

from kinject_trainer.base import Base, find_base, load_tokenizer
from kinject_trainer.checkpoints import claim, earlier_record, refuse_another, refuse_foreign
from kinject_trainer.command import RECORD, Say, train
from kinject_trainer.documents import Texts, open_corpus
from kinject_trainer.errors import TrainingError
from kinject_trainer.estimate import Estimate, estimate
from kinject_trainer.failures import told_of_a_full_disk
from kinject_trainer.forgetting import Figures, Gauge, Question, make_gauge
from kinject_trainer.processes import on_cpu
from kinject_trainer.recipe import Recipe
from kinject_trainer.sequence.ask import Answers, MonthQuestions, Weights, ask, read_month
from kinject_trainer.sequence.combine import combine
from kinject_trainer.sequence.measures import averages, measure
from kinject_trainer.sequence.merge import MergedFrom, merge
from kinject_trainer.sequence.plan import MonthSequence, load_sequence
from kinject_trainer.sequence.report import draw_matrix, markdown
from kinject_trainer.train import quietly
from lm_eval_kinject.errors import CorpusError, KinjectError
from lm_eval_kinject.log import duration
from lm_eval_kinject.provenance import atomic_write, environment, read_json, write_json

__all__ = ["SequenceResult", "train_sequence"]

SEQUENCE = "sequence.json"
_WORK, _CLAIM = "work", "work/run.json"
_OURS = (SEQUENCE, "README.md", "accuracy.png", "months", "merged", "corpora", "answers", _WORK)


@dataclass(frozen=True)
class SequenceResult:
    """What `train_sequence` did.

    Attributes:
        folder: of the result; None after a dry run.
        lines: for people: of a dry run what it would take, else what came out.
        record: what `sequence.json` holds; empty after a dry run.
    """

    folder: Path | None
    lines: Sequence[str]
    record: Mapping[str, Any] = field(default_factory=dict)


def train_sequence(
    path: str | os.PathLike[str],
    *,
    out: Path | None = None,
    resume: bool = False,
    dry_run: bool = False,
    overrides: Sequence[str] = (),
    say: Say = lambda text: None,
) -> SequenceResult:
    """Runs a sequence.

    Args:
        path: its YAML file.
        out: folder of the result; default ``runs/NAME``.
        resume: go on with the unfinished sequence in ``out``; starts one where there is none.
        dry_run: work out tokens and times, and do nothing else.
        overrides: ``key=value`` over the file's values.
        say: told, in one line each, what a user should know.

    Raises:
        KinjectError: everything that a user can mend; what was done before stays.
    """
    planned = load_sequence(path, overrides)
    texts, questions = _open(planned)
    if dry_run:
        return SequenceResult(None, _forecast(planned, questions))
    folder = (out or Path("runs") / planned.name).expanduser()
    state = accelerate.PartialState(cpu=on_cpu())
    planned.recipe(0).accumulation(state.num_processes)  # refuses a batch that can't be shared
    earlier = _look_at(folder, resume)
    state.wait_for_everyone()  # nobody writes before everybody has looked
    base = find_base(planned.recipe(0))
    identity = _identity(planned, base, texts, questions)
    if earlier is not None:
        if earlier["identity"] != identity:
            raise TrainingError(f"{folder} holds another finished sequence: choose another folder with --out.")
        if state.is_main_process:
            shutil.rmtree(folder / _WORK, ignore_errors=True)  # left by a kill right after the record
        return SequenceResult(folder, _summary(earlier), earlier)
    if resume:
        refuse_another(folder / _WORK, identity)
        state.wait_for_everyone()
    if state.is_main_process:
        (folder / _WORK).mkdir(parents=True, exist_ok=True)
        claim(folder / _WORK, identity)
    tell: Say = say if state.is_main_process else (lambda text: None)
    with told_of_a_full_disk(folder), quietly():
        record = _Run(planned, folder, base, texts, questions, identity, state, tell).all()
    return SequenceResult(folder, _summary(record), record)


def _open(planned: MonthSequence) -> tuple[list[Texts], dict[str, MonthQuestions]]:
    """Every month's texts and questions, looked through before anything is trained.

    Raises:
        CorpusError: with what is wrong with any month.
    """
    texts: list[Texts] = []
    questions: dict[str, MonthQuestions] = {}
    problems: list[str] = []
    for number, month in enumerate(planned.months):
        try:
            there = open_corpus(planned.recipe(number))
            for _ in there.training():  # says which wordings are missing
                pass
            texts.append(there)
        except KinjectError as problem:
            problems.append(f"{month.month}: {problem}")
        try:
            if month.questions is not None:
                questions[month.month] = read_month(month.questions)
        except KinjectError as problem:
            problems.append(f"{month.month}: {problem}")
    if problems:
        raise CorpusError("\n".join([f"The sequence {planned.name} can't start:", *(f"  - {p}" for p in problems)]))
    return texts, questions


def _identity(
    planned: MonthSequence, base: Base, texts: Sequence[Texts], questions: Mapping[str, MonthQuestions]
) -> dict[str, Any]:
    """What the sequence is: equal for whoever may go on with it. Corpora by their content, wherever they lie."""
    first = planned.recipe(0)
    kept = ("fingerprint", "paraphrases", "validation")
    return {
        "mode": planned.mode,
        "merge": None if planned.merge is None else planned.merge.model_dump(mode="json"),
        "base model": base.identity,
        "recipe": first.effective(),
        "forgetting": first.forgetting,
        "months": [month.month for month in planned.months],
        "corpora": [{key: there.provenance.get(key) for key in kept} for there in texts],
        "questions": {month: asked.fingerprint for month, asked in questions.items()},
    }


def _look_at(folder: Path, resume: bool) -> Mapping[str, Any] | None:
    """The record of a finished sequence in the folder, or None.

    Raises:
        TrainingError: a sequence is there and ``resume`` wasn't asked for, or something that isn't ours.
    """
    begun = (folder / _CLAIM).is_file()
    found = earlier_record(folder / SEQUENCE, begun=begun, resume=resume, words=("sequence", "sequence"))
    if found is None and not begun:
        refuse_foreign(folder, _OURS)
    return found


# A dry run ------------------------------------------------------------------------------------------------------------


def _forecast(planned: MonthSequence, questions: Mapping[str, MonthQuestions]) -> list[str]:
    """Each month's tokens, updates and time, and their sums."""
    months = [month.month for month in planned.months]
    with tempfile.TemporaryDirectory() as place:
        made = [_estimated(planned, number, Path(place)) for number in range(len(months))]
    tokens = sum(one.tokens * one.trials for one in made)
    seconds = sum(one.seconds * one.trials for one in made)
    about = "about " if any(one.tokens_estimated for one in made) else ""
    asked = sum(len(one.rows) for one in questions.values())
    width = max(len("parameters"), *map(len, months)) + 2
    last = made[-1]
    notes = dict.fromkeys(note for one in made for note in one.notes)
    rows = [
        (month, f"{about}{one.tokens:,} tokens, {about}{one.updates:,} updates{_trials(one)}, {_time(one)}")
        for month, one in zip(months, made, strict=True)
    ]
    rows += [
        ("in all", f"{about}{tokens:,} tokens, roughly {duration(seconds)} (estimated: {last.seconds_from})"),
        ("questions", f"{asked:,}, asked of the base and again after each month; not in the times"),
        ("parameters", f"{last.trainable:,} trainable of {last.parameters:,} in each month"),
        ("memory", f"roughly {last.gigabytes:.1f} GB a process (estimated: {last.gigabytes_from})"),
        *(("note", note) for note in notes),
    ]
    return [f"{name:<{width}} {said}" for name, said in rows]


def _trials(one: Estimate) -> str:
    return f" in each of {one.trials} trials" if one.trials > 1 else ""


def _time(one: Estimate) -> str:
    return f"roughly {duration(one.seconds * one.trials)}"


def _estimated(planned: MonthSequence, number: int, place: Path) -> Estimate:
    """A month's dry run, on the base: a month before has its shape."""
    corpus = None
    if planned.mode == "retrained":
        corpus = str(place / planned.months[number].month)
        _combined(planned, number, Path(corpus))
    recipe = planned.recipe(number, corpus=corpus)
    return estimate(recipe, open_corpus(recipe))


def _combined(planned: MonthSequence, number: int, folder: Path) -> None:
    """The corpora up to a month, as one."""
    upto = range(number + 1)
    combine([planned.recipe(n) for n in upto], [planned.months[n].month for n in upto], folder)


# The real thing -------------------------------------------------------------------------------------------------------


@dataclass
class _Run:
    """One sequence in its folder."""

    planned: MonthSequence
    folder: Path
    base: Base
    texts: Sequence[Texts]
    questions: Mapping[str, MonthQuestions]
    identity: Mapping[str, Any]
    state: Any
    say: Say

    def all(self) -> dict[str, Any]:
        """Everything that isn't there yet; returns the record."""
        months = self.planned.months
        if self.planned.combines:
            for number in range(len(months)):
                self._alone(partial(_combined, self.planned, number, self._corpus(number)))
        if not self.questions:
            self.say("no month has questions: nothing is asked")
        gauge, asked = self._measured()
        answers = [self._asked("base", Weights(self.base.folder, None, self.base.identity), asked, gauge)]
        for number, month in enumerate(months):
            self.say(f"{month.month}, {number + 1} of {len(months)}")
            train(self._recipe(number), out=self._run(number), resume=True, say=self.say)
            if self.planned.merges:
                self._alone(partial(self._merge, number))
            answers.append(self._asked(month.month, self._weights(number), asked, gauge))
        record = self._record(answers, gauge)
        self._alone(partial(self._write, record))
        return record

    def _alone(self, step: Callable[[], None]) -> None:
        """A step of the main process, while the others wait."""
        if self.state.is_main_process:
            step()
        self.state.wait_for_everyone()

    def _run(self, number: int) -> Path:
        return self.folder / "months" / self.planned.named(number)

    def _corpus(self, number: int) -> Path:
        return self.folder / "corpora" / f"through-{self.planned.months[number].month}"

    def _answering(self, number: int) -> Path:
        """The folder of the model that answers after a month."""
        return self.folder / "merged" / self.planned.named(number) if self.planned.merges else self._run(number)

    def _recipe(self, number: int) -> Recipe:
        mode = self.planned.mode
        model = str(self._run(number - 1)) if mode == "continued" and number else None
        return self.planned.recipe(
            number, model=model, corpus=str(self._corpus(number)) if mode == "retrained" else None
        )

    def _weights(self, number: int) -> Weights:
        folder = self._answering(number)
        found = read_json(folder / RECORD)["weights"]
        if self.planned.recipe(0).method == "full":
            return Weights(folder, None, found)
        return Weights(self.base.folder, folder, found)

    def _merge(self, number: int) -> None:
        upto = range(number + 1)
        how = self.planned.merge
        assert how is not None  # asked by the caller
        made_of = MergedFrom(
            name=self.planned.named(number),
            base=self.base,
            months=[self.planned.months[n].month for n in upto],
            runs=[self._run(n) for n in upto],
            corpus=open_corpus(self.planned.recipe(number, corpus=str(self._corpus(number)))).provenance,
            how=how,
            seed=self.planned.recipe(0).seed,
        )
        merge(made_of, self._answering(number))

    def _measured(self) -> tuple[Gauge | None, dict[str, list[Question]]]:
        """What is asked after each month: about the old world, and about the months."""
        recipe = self.planned.recipe(0)
        tokenizer = load_tokenizer(self.base)
        gauge = make_gauge(recipe, tokenizer, recipe.accumulation(self.state.num_processes)[0])
        return gauge, {month: asked.encoded(tokenizer) for month, asked in self.questions.items()}

    def _asked(
        self, name: str, weights: Weights, asked: Mapping[str, Sequence[Question]], gauge: Gauge | None
    ) -> Answers:
        """A model's answers, from the disk where it gave them before."""
        file = self.folder / "answers" / f"{name}.json"
        of = {"weights": weights.fingerprint, "questions": {m: self.questions[m].fingerprint for m in asked}}
        found = read_json(file) if file.is_file() else None
        self.state.wait_for_everyone()  # nobody writes before everybody has looked
        if found is not None and found["of"] == of:
            return Answers(found["right"], Figures(**found["figures"]) if found["figures"] else None)
        made = ask(weights, asked, gauge, accelerate.Accelerator(cpu=on_cpu()))
        figures = None if made.figures is None else made.figures.plain()
        plain = {"of": of, "right": {m: list(right) for m, right in made.right.items()}, "figures": figures}
        self._alone(partial(_put, file, plain))
        return made

    def _record(self, answers: Sequence[Answers], gauge: Gauge | None) -> dict[str, Any]:
        months = [month.month for month in self.planned.months]
        matrix = [[self._answer(answers, i, j) for j in range(len(months))] for i in range(len(answers))]
        routed = self.planned.merge is not None and self.planned.merge.kind == "routed"
        figures = [answers[0 if routed else i].figures for i in range(len(answers))]
        recipe = self.planned.recipe(0).public()
        return {
            "name": self.planned.name,
            "mode": self.planned.mode,
            "merge": None if self.planned.merge is None else self.planned.merge.model_dump(mode="json"),
            "base": {"name": self.base.public_name, "identity": self.base.identity},
            "months": [self._month(number) for number in range(len(months))],
            "accuracy": matrix,
            "averages": averages(matrix),
            "measures": measure(matrix).plain(),
            "forgetting": [None if one is None else one.plain() for one in figures],
            "general_text": None if gauge is None else gauge.text,
            "recipe": {key: value for key, value in recipe.items() if key not in ("name", "corpus", "corpus_revision")},
            "identity": dict(self.identity),
            "environment": environment(),
        }

    def _answer(self, answers: Sequence[Answers], after: int, about: int) -> float | None:
        """R[after][about]: row 0 is the base's; where questions are routed, by the newest adapter not after them."""
        routed = self.planned.merge is not None and self.planned.merge.kind == "routed"
        by = min(after, about + 1) if routed else after
        return answers[by].accuracy(self.planned.months[about].month)

    def _month(self, number: int) -> dict[str, Any]:
        month, asked = self.planned.months[number], self.questions.get(self.planned.months[number].month)
        folder = self._answering(number)
        return {
            "month": month.month,
            "run": folder.relative_to(self.folder).as_posix(),
            "weights": read_json(folder / RECORD)["weights"],
            "corpus": dict(self.texts[number].provenance),
            "questions": 0 if asked is None else len(asked.rows),
        }

    def _write(self, record: Mapping[str, Any]) -> None:
        if any(month["questions"] for month in record["months"]) and not draw_matrix(
            record, self.folder / "accuracy.png"
        ):
            self.say(
                "no picture of the accuracies: matplotlib is not installed (pip install 'lm-eval-kinject[trainer]')"
            )
        with atomic_write(self.folder / "README.md", "w") as handle:
            handle.write(markdown(record))
        write_json(self.folder / SEQUENCE, record)
        shutil.rmtree(self.folder / _WORK, ignore_errors=True)


def _put(file: Path, value: Mapping[str, Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    write_json(file, value)


def _summary(record: Mapping[str, Any]) -> list[str]:
    """What came out, for the command line."""
    said = {key: "not measured" if value is None else f"{value:.3f}" for key, value in record["measures"].items()}
    return [
        f"average accuracy   {said['average_accuracy']}",
        f"backward transfer  {said['backward_transfer']}",
        f"forward transfer   {said['forward_transfer']}",
    ]
