"""The leaderboard's data: what becomes a row, what is left out, who is better, and the command of a row."""

from __future__ import annotations

import json
import os
import shlex
from dataclasses import replace
from pathlib import Path

import pytest
from helpers.pages_story import EVIL, LEFT_OUT, TASK, bits, sample, story, submission

from lm_eval_kinject.errors import ArgumentError
from lm_eval_kinject.hub.eval_results import read_results
from lm_eval_kinject.hub.fetch import Snapshot
from lm_eval_kinject.hub.submit import submitted_name
from lm_eval_kinject.pages import board as board_room
from lm_eval_kinject.pages.against import Versus, against
from lm_eval_kinject.pages.board import Board, Row, answers_for, read_board
from lm_eval_kinject.pages.command import command_of
from lm_eval_kinject.pages.leaderboard import pressed
from lm_eval_kinject.pages.space import export_space
from lm_eval_kinject.pages.tables import View, board_table, figures, left_out, row_details, shown


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KINJECT_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def board(tmp_path: Path) -> Board:
    return read_board(str(story(tmp_path / "results")))


def named(board: Board, folder: str) -> Row:
    return next(row for row in board.rows if row.file.startswith(f"{folder}/"))


def test_sound_results_become_rows_and_others_are_left_out_with_a_reason(board: Board) -> None:
    assert {row.file.split("/")[0] for row in board.rows} == {"base-k0", "base-k1", "base-k2", "edited-k0"}
    row = named(board, "base-k2")
    assert (row.task, row.metric, row.value, row.n, row.of, row.k, row.shots) == (TASK, "acc", 0.875, 8, 8, 2, 0)
    assert (row.subject, row.injection, row.retriever, row.cost) == ("me/base", "in the prompt", "minilm", 300.0)
    assert (named(board, "base-k0").injection, named(board, "base-k0").cost) == ("nowhere", 100.0)
    reasons = {one.place.split("/")[0]: one.reason for one in board.left_out}
    assert reasons.keys() == LEFT_OUT
    # √(.875 · .125 / 7) = .125 against √(.25 / 7) = .189.
    assert reasons["high-k0"].endswith("at most 0.1250, and it says 0.1890")
    assert reasons["link"] == "it is a link out of the folder, and isn't followed"


def test_samples_that_say_something_else_take_a_row_out(board: Board) -> None:
    gone = [board.check(row) for row in list(board.rows)]
    assert [one.reason for one in gone if one] == ["edited: it says acc 0.6250, and its samples have 0.5000"]
    assert {row.file.split("/")[0] for row in board.rows} == {"base-k0", "base-k1", "base-k2"}
    assert not board.unchecked()


def test_samples_that_lack_a_question_or_have_one_twice(tmp_path: Path) -> None:
    for name, rows in {"short": [0, 1, 2], "twice": [0, 1, 2, 2]}.items():
        file = submission(tmp_path / "r", name, k=0, right=bits("1100"))
        samples = next(file.parent.glob("samples_*"))
        samples.write_text("".join(json.dumps(sample(doc, 0, doc < 2)) + "\n" for doc in rows))
    board = read_board(str(tmp_path / "r"))
    found = {row.subject: board.check(row) for row in list(board.rows)}
    assert found["me/short"] is not None
    assert found["me/short"].reason == "it is said to be over 4 questions, and there are 3 samples"
    assert found["me/twice"] is not None
    assert found["me/twice"].reason == "its samples have a question twice"


def test_what_is_kept_in_the_cache_is_used_until_the_file_changes(tmp_path: Path, monkeypatch) -> None:
    folder = tmp_path / "r"
    file = submission(folder, "base", k=0, right=bits("1100"))
    first = read_board(str(folder))
    read: list[Path] = []
    real = board_room.rows_of
    monkeypatch.setattr(board_room, "rows_of", lambda file, *a, **b: (read.append(file), real(file, *a, **b))[1])
    assert read_board(str(folder)).rows == first.rows
    assert read == []
    os.utime(file, ns=(1, 1))
    assert read_board(str(folder)).rows == first.rows
    assert [one.name for one in read] == [file.name]


def test_a_data_sets_submissions_must_be_complete_and_in_their_place(tmp_path: Path) -> None:
    file = submission(tmp_path / "r", "base", k=1, right=bits("1100"))
    moved = read_board(str(tmp_path / "r"), strict=True)
    assert moved.rows == []
    name = submitted_name(read_results(file)[0])
    assert moved.left_out[0].reason == f"it was moved or edited: what it says belongs into {name}, and it is in base-k1"
    file.parent.rename(tmp_path / "r" / name)
    assert len(read_board(str(tmp_path / "r"), strict=True).rows) == 1
    there = tmp_path / "r" / name / file.name
    data = json.loads(there.read_text())
    del data["config"]["kinject"]["corpora"]
    there.write_text(json.dumps(data))
    (left,) = read_board(str(tmp_path / "r"), strict=True).left_out
    assert left.reason == "incomplete: kinject.corpora: which corpus was searched"


def test_a_data_set_is_read_from_the_hubs_cache_whose_files_are_links(tmp_path: Path, monkeypatch) -> None:
    file = submission(tmp_path / "r", "base", k=1, right=bits("1100"))
    name = submitted_name(read_results(file)[0])
    whole = tmp_path / "datasets--me--results"
    place = whole / "snapshots" / ("d" * 40) / name
    place.mkdir(parents=True)
    (whole / "blobs").mkdir()
    for number, one in enumerate(sorted(file.parent.iterdir())):
        one.rename(whole / "blobs" / str(number))
        (place / one.name).symlink_to(f"../../../blobs/{number}")
    fetched = Snapshot(place.parent, "me/results", "d" * 40)
    monkeypatch.setattr(board_room, "fetch_snapshot", lambda *_, **__: fetched)
    board = read_board("me/results@main")
    assert (board.place, board.strict, len(board.rows), board.left_out) == (f"me/results@{'d' * 40}", True, 1, [])
    assert board.check(board.rows[0]) is None
    assert not board.unchecked()


def test_of_one_setting_the_latest_counts(tmp_path: Path) -> None:
    submission(tmp_path / "r", "base", k=0, right=bits("1000"))
    submission(tmp_path / "r", "base", k=0, right=bits("1110"), later=1)
    found = read_board(str(tmp_path / "r"))
    assert [row.value for row in found.rows] == [0.75]
    assert found.superseded == 1


def test_a_place_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="no folder, nor OWNER/NAME"):
        read_board(str(tmp_path / "nowhere"))
    with pytest.raises(ArgumentError, match=r"holds no results_….json"):
        read_board(str(tmp_path))


def test_pairs_where_there_are_samples_and_totals_where_not(board: Board, tmp_path: Path) -> None:
    picked, better = named(board, "base-k0"), named(board, "base-k2")
    found = against(board.rows[:3], picked, lambda row: answers_for(board, row))[better.id]
    assert isinstance(found, Versus)
    # 00000011 against 11111011, chunks of two questions: leads 2, 2, 1, 0; all to one side: 2 / 2³.
    assert (found.paired, found.asked, found.gain.estimate, found.p) == (True, 8, 0.625, 0.25)
    # Holm over two: the other's leads are 2, 0, 0, 0, so its p is 1, and .25 is doubled.
    assert found.p_holm == 0.5
    alone = against([replace(better, sampled=False)], picked, lambda row: answers_for(board, row))[better.id]
    assert isinstance(alone, Versus)
    # Fisher for 2 of 8 and 7 of 8: of C(16, 8) = 12870 tables with 9 right, those of 1, 2 (and 7, 8) on one side.
    # Likely as C(9, a) · C(7, 8 − a): a = 1: 9, a = 2: 252, a = 7: 252, a = 8: 9.
    assert (alone.paired, alone.gain.estimate) == (False, 0.625)
    assert alone.p == pytest.approx((9 + 252 + 252 + 9) / 12870)


def test_what_cant_be_compared_says_why(board: Board) -> None:
    picked, other = named(board, "base-k0"), named(board, "base-k2")
    for changes, why in (
        ({"task": "another"}, "another task, version or metric"),
        ({"sampled": False, "n": 4}, "over other questions, and without samples of both"),
        ({"sampled": False, "value": 0.51}, "without samples, and its accuracy is no count of right answers"),
    ):
        one = replace(other, **changes)  # type: ignore[arg-type]
        assert against([one], picked, lambda row: answers_for(board, row)) == {one.id: why}
    file = next((board.root / "base-k2").glob("samples_*"))
    file.write_text(file.read_text().replace('"id": "q3"', '"id": "another"'))
    found = against([other], picked, lambda row: answers_for(board, row))
    assert found == {other.id: "its samples are of other questions"}


def test_order_and_filters(board: Board) -> None:
    def ks(view: View) -> list[int]:
        return [row.k for row in shown(board, view)]

    base = View(subjects=("me/base",))
    assert ks(base) == [2, 1, 0]  # .875, .5, .25
    assert ks(replace(base, sort="cost", down=False)) == [0, 1, 2]
    assert ks(replace(base, sort="retriever", down=False)) == [1, 2, 0], "what has no retriever comes last"
    assert ks(replace(base, sort="retriever", down=True)) == [1, 2, 0]
    assert ks(replace(base, ks=(1, 2))) == [2, 1]
    assert ks(replace(base, injections=("nowhere",))) == [0]
    assert ks(replace(base, task="another")) == []


def test_what_buttons_do(board: Board) -> None:
    row = named(board, "base-k0")
    view = pressed(board, View(), "sort", "cost")
    assert (view.sort, view.down) == ("cost", False)
    assert pressed(board, view, "sort", "cost").down
    assert pressed(board, pressed(board, view, "open", row.id), "open", row.id).opened == ""
    picked = pressed(board, view, "pick", row.id)
    # The edited one was found out when its samples were compared, and isn't compared.
    assert {key.split("/")[0] for key, one in picked.versus.items() if isinstance(one, Versus)} == {
        "base-k1",
        "base-k2",
    }
    assert [one.place.split("/")[0] for one in board.left_out if "#" in one.place] == ["edited-k0", "high-k0"]
    assert pressed(board, picked, "pick", "").versus == {}
    assert pressed(board, view, "pick", "not there").picked == ""
    assert pressed(board, view, "no such thing", "x") == view


def test_nothing_of_a_submission_is_html(tmp_path: Path) -> None:
    file = submission(tmp_path / "r", "base", k=1, right=bits("1100"), retriever=EVIL, loading={"dtype": EVIL})
    data = json.loads(file.read_text())
    data["config"]["kinject"]["model"]["name"] = EVIL
    file.write_text(json.dumps(data))
    (file.parent / "results_<b>.json").write_text("{}")
    board = read_board(str(tmp_path / "r"))
    (row,) = board.rows
    details = row_details(board, row, read_results(file)[0])
    whole = board_table(board, View(opened=row.id), details) + left_out(board)
    assert "&lt;script&gt;" in whole
    assert "<script" not in whole
    assert "<img" not in whole
    assert "<b>.json" not in whole


def test_the_command_of_a_result(tmp_path: Path) -> None:
    file = submission(tmp_path / "r", "base", k=1, right=bits("1100"))
    data = json.loads(file.read_text())
    data["config"] |= {"batch_size": 8, "limit": 4}
    file.write_text(json.dumps(data))
    pinned = "c" * 40  # what `make_results` says of a model of the Hub
    assert command_of(read_results(file)[0]) == (
        f"lm_eval --model rag-hf --model_args pretrained=me/base,k=1,revision={pinned} --tasks {TASK} --num_fewshot 0 "
        "--batch_size 8 --limit 4 --log_samples --output_path results"
    )
    data["config"]["model_args"] |= {"context_template": "{{ a }}, b; rm -rf ~"}
    file.write_text(json.dumps(data))
    words = shlex.split(command_of(read_results(file)[0]))
    assert json.loads(words[4]) == {**data["config"]["model_args"], "revision": pinned}


def test_figures_join_no_retrieval_with_each_retriever(board: Board) -> None:
    cost, k = figures([row for row in board.rows if row.subject == "me/base"])
    assert k.data is not None
    assert cost.data is not None
    assert k.data.csv().splitlines()[1:] == [
        '"me/base, minilm",0,0.25',
        '"me/base, minilm",1,0.5',
        '"me/base, minilm",2,0.875',
    ]
    assert [line.split(",")[-2] for line in cost.data.csv().splitlines()[1:]] == ["100", "200", "300"]


def test_the_folder_of_a_space(tmp_path: Path) -> None:
    lines = export_space("me/results", tmp_path / "space")
    assert {file.name for file in (tmp_path / "space").iterdir()} == {"app.py", "requirements.txt", "README.md"}
    app = (tmp_path / "space" / "app.py").read_text()
    compile(app, "app.py", "exec")
    assert "leaderboard('me/results')" in app
    assert "sdk: gradio" in (tmp_path / "space" / "README.md").read_text()
    assert f"kinject push {tmp_path / 'space'} --as space --to OWNER/SPACE" in "\n".join(lines)
    with pytest.raises(ArgumentError) as caught:
        export_space(str(tmp_path), tmp_path / "space")
    assert len(caught.value.problems) == 2, "both problems at once"


def hostile(folder: Path, kind: str) -> None:
    """A file that calls itself results and isn't fit to be read."""
    file = folder / "results_2026-11-21T00-00-01.json"
    if kind == "folder":
        file.mkdir()
    elif kind == "pipe":
        os.mkfifo(file)
    elif kind == "loop":
        file.symlink_to(file.name)
    elif kind == "huge":
        with file.open("wb") as handle:
            handle.truncate(9 << 20)
    else:
        acc: object = {"below": -0.5, "above": 1.5, "nan": float("nan"), "text": "0.5", "list": [0.5]}.get(kind, 0.5)
        data: object = {
            "results": {TASK: {"acc,none": acc}},
            "configs": {TASK: {}},
            "n-samples": {TASK: {"effective": 4}},
        }
        text = {"empty": "", "binary": "\x00\xff", "number": "3", "no n": json.dumps({**data, "n-samples": {}})}  # type: ignore[dict-item]
        file.write_text(text.get(kind) or ("" if kind == "empty" else json.dumps(data)))


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("folder", "it is no file"),
        ("pipe", "it is no file"),
        ("loop", "it is a link to nothing that can be read"),
        ("huge", "it has 9 MB; a results file has some kB"),
        ("empty", "results_2026-11-21T00-00-01.json is no JSON: it isn't a results file of lm_eval."),
        ("binary", "results_2026-11-21T00-00-01.json is no JSON: it isn't a results file of lm_eval."),
        (
            "number",
            "results_2026-11-21T00-00-01.json isn't a results file of lm_eval: it has no `results` and `configs`.",
        ),
        ("below", "its acc of -0.5 is outside 0 to 1"),
        ("above", "its acc of 1.5 is outside 0 to 1"),
        ("nan", "there is no task with a score in it"),
        ("text", "there is no task with a score in it"),
        ("list", "there is no task with a score in it"),
        ("no n", "it doesn't say how many questions it is over (n-samples)"),
    ],
)
def test_a_hostile_submission_costs_its_own_row_only(tmp_path: Path, kind: str, reason: str) -> None:
    submission(tmp_path / "r", "base", k=0, right=bits("1100"))
    (tmp_path / "r" / "evil").mkdir()
    hostile(tmp_path / "r" / "evil", kind)
    board = read_board(str(tmp_path / "r"))
    assert [row.subject for row in board.rows] == ["me/base"]
    assert [one.reason for one in board.left_out] == [reason]


@pytest.mark.parametrize(
    "line", ["[" * 100_000, "3", "{}", '{"doc_id": "x"}', '{"doc_id": 0, "doc": {}, "acc": NaN}', "\x00"]
)
def test_hostile_samples_take_their_row_out(tmp_path: Path, line: str) -> None:
    file = submission(tmp_path / "r", "base", k=0, right=bits("1100"))
    next(file.parent.glob("samples_*")).write_text(line + "\n")
    board = read_board(str(tmp_path / "r"))
    (gone,) = [board.check(row) for row in list(board.rows)]
    assert gone is not None
    assert gone.reason.startswith("its samples aren't as lm_eval writes them: ")
    assert board.rows == []
