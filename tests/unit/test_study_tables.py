"""Lines and tables of a study on cells small enough to be worked out by hand."""

from __future__ import annotations

import math

import pytest

from lm_eval_kinject.stats import Interval, cross_fitted, wilson
from lm_eval_kinject.study.lines import Comparison, Grid, Setting, adjusted, compare
from lm_eval_kinject.study.outcomes import Answered, Axis, CellOutcome
from lm_eval_kinject.study.sheet import Gain, P, Score, Share, Table, Value
from lm_eval_kinject.study.tables import all_tables, verdict

HERE = Setting("reader", "current_events", 0)


def cell(
    right: str,
    *,
    variant: str = "base",
    k: int = 0,
    retriever: str = "none",
    chunk: int = 2,
    gold: str = "",
    **more: Axis,
) -> CellOutcome:
    """A cell of answers written as ``1``, ``0`` and ``-`` (couldn't be scored), so many a chunk, ``!`` after a tie.

    ``gold`` has a place for each question: ``.`` for not in the prompt, ``x`` for retrieved first and dropped.
    """
    answers = []
    tied = [right[i + 1 : i + 2] == "!" for i, c in enumerate(right) if c != "!"]
    for doc, mark in enumerate(right.replace("!", "")):
        place = gold[doc] if gold else "."
        answers.append(
            Answered(
                doc_id=doc,
                cluster=f"chunk-{doc // chunk}",
                correct=None if mark == "-" else float(mark),
                tied=tied[doc],
                gold_rank=1 if place == "x" else None if place == "." else int(place),
                gold_place=None if place in ".x" else int(place),
                prompt_places=k,
            )
        )
    axes: dict[str, Axis] = {"model": "reader", "variant": variant, "retriever": retriever, "k": k, "shots": 0}
    return CellOutcome({**axes, "task": "current_events", **more}, tuple(answers), 10 * len(answers))


def table(cells: list[CellOutcome], name: str) -> Table:
    return next(t for t in all_tables(Grid(cells)) if t.name == name)


def column(found: Table, title: str) -> list[Value]:
    return [row[found.columns.index(title)] for row in found.rows]


# Lines ----------------------------------------------------------------------------------------------------------------


def test_k_0_belongs_to_the_sweep_of_every_retriever() -> None:
    cells = [cell("1000"), cell("1100", k=1, retriever="bm25"), cell("1110", k=2, retriever="minilm")]
    grid = Grid(cells)
    assert grid.settings() == [HERE]
    assert grid.retrievers(HERE) == ["bm25", "minilm"]
    assert list(grid.sweep(HERE, "base", "bm25").cells) == [0, 1]
    assert list(grid.sweep(HERE, "base", "minilm").cells) == [0, 2]


def test_controls_are_no_rag() -> None:
    cells = [cell("1000"), cell("1111", k=1, retriever="oracle"), cell("1100", k=1, retriever="minilm")]
    grid = Grid(cells)
    assert grid.retrievers(HERE) == ["minilm"]
    assert grid.retrievers(HERE, controls=True) == ["minilm", "oracle"]


def test_k_is_chosen_on_validation_where_there_is_some() -> None:
    cells = [
        cell("1111", k=1, retriever="minilm"),
        cell("0000", k=2, retriever="minilm"),
        cell("1000", k=1, retriever="minilm", split="validation"),
        cell("1100", k=2, retriever="minilm", split="validation"),
    ]
    sweep = Grid(cells).sweep(HERE, "base", "minilm")
    chosen, best = sweep.chosen(), sweep.test_best()
    assert chosen is not None
    assert best is not None
    assert (chosen.k, chosen.how, [a.correct for a in chosen.answers]) == ("2", "validation", [0.0] * 4)
    assert (best.k, best.how) == ("1", "test-best")
    assert [row[-2] for row in table(cells, "cells").rows] == [Share(0.0, 0)] * 2  # validation isn't reported


def test_k_is_cross_fitted_without_validation() -> None:
    by_k = {1: "11110000", 2: "00001111"}
    cells = [cell(right, k=k, retriever="minilm") for k, right in by_k.items()]
    chosen = Grid(cells).sweep(HERE, "base", "minilm").chosen()
    expected = cross_fitted(
        {k: [float(c) for c in right] for k, right in by_k.items()}, [f"chunk-{doc // 2}" for doc in range(8)]
    )
    assert chosen is not None
    assert [a.correct for a in chosen.answers] == list(expected.answers)
    assert [a.prompt_places for a in chosen.answers] == [expected.chosen[late] for late in expected.in_second]
    assert chosen.how == "cross-fitted"


def test_a_single_k_is_no_choice() -> None:
    chosen = Grid([cell("1000"), cell("1100", k=3, retriever="minilm")]).sweep(HERE, "base", "minilm").chosen()
    assert chosen is not None
    assert (chosen.name, chosen.k, chosen.how) == ("rag", "3", "only K")


def test_further_axes_make_settings_only_where_the_grid_varies_them() -> None:
    # The adapter's path goes with its variant; the seed is varied, but not for the base.
    cells = [
        cell("1000"),
        cell("1100", variant="ft-reg", peft="runs/a", seed=1),
        cell("1110", variant="ft-reg", peft="runs/a", seed=2),
    ]
    grid = Grid(cells)
    assert [s.rest for s in grid.settings()] == [(("seed", "1"),), (("seed", "2"),)]
    for setting in grid.settings():
        assert set(grid.lines(setting, "")) == {"base", "ft-reg"}


def test_placements_are_retrievers_of_their_own() -> None:
    cells = [cell("1000"), *(cell("1100", k=1, retriever="minilm", placement=p) for p in ("question", "start"))]
    assert Grid(cells).retrievers(HERE) == ["minilm (question)", "minilm (start)"]


def test_comparing_leaves_out_what_either_could_not_be_scored_on() -> None:
    cells = [cell("10-10"), cell("1101-", k=1, retriever="minilm")]
    lines = Grid(cells).lines(HERE, "minilm")
    made = compare(lines["base"], lines["rag"])
    assert made is not None
    assert (made.pairs.first, made.pairs.second, made.pairs.dropped) == ((1.0, 0.0, 1.0), (1.0, 1.0, 1.0), 2)


# Tables ---------------------------------------------------------------------------------------------------------------


def test_table_2() -> None:
    cells = [
        cell("1010", model="mistralai/Mistral-7B-v0.1", chunk=1),
        cell("1110", model="mistralai/Mistral-7B-v0.1", chunk=1, k=3, retriever="minilm"),
        cell("0000", model="mistralai/Mistral-7B-v0.1", chunk=1, variant="ft-reg"),
    ]
    found = table(cells, "table-2-current-events")
    (row,) = found.rows
    assert row[:4] == ("current_events", "mistralai/Mistral-7B-v0.1", 0, "minilm")
    base, rag, reg, par, reg_rag, par_rag = row[4:]
    assert isinstance(base, Score)
    assert isinstance(rag, Score)
    assert isinstance(reg, Score)
    assert (base.interval.estimate, base.asked, base.note, base.published) == (0.5, 4, "", 0.481)
    assert (base.interval.low, base.interval.high) == wilson(0.5, 4)
    assert (rag.interval.estimate, rag.note, rag.published) == (0.75, "K=3, only K", 0.875)
    assert (reg.interval.estimate, reg.published) == (0.0, 0.504)
    assert (par, reg_rag, par_rag) == (None, None, None)
    assert "other" in found.notes[0]


def test_table_1_has_the_papers_figures_where_task_and_model_match() -> None:
    mmlu: dict[str, Axis] = {"task": "kinject_mmlu_anatomy", "model": "microsoft/Orca-2-7b"}
    cells = [
        cell("10", **mmlu),
        cell("11", k=1, retriever="minilm", **mmlu),
        cell("10", variant="ft-reg", **{**mmlu, "shots": 5}),
    ]
    found = table(cells, "table-1-mmlu")
    (row,) = found.rows
    assert found.columns[3:] == tuple(f"{m} {n}-shot" for n in (0, 5) for m in ("Base", "RAG", "FT", "FT+RAG"))
    published = [v.published if isinstance(v, Score) else None for v in row[3:]]
    assert published == [0.607, 0.637, None, None, None, None, 0.593, None]


def test_table_3_names_the_test_best_as_such() -> None:
    cells = [cell("0" * 8), cell("1" * 4 + "0" * 4, k=1, retriever="minilm"), cell("1" * 8, k=2, retriever="minilm")]
    found = table(cells, "table-3-k")
    assert found.columns[5:] == ("K=0", "K=1", "K=2", "Chosen K", "Test-best K")
    scores = [v for v in found.rows[0][5:] if isinstance(v, Score)]
    assert [s.interval.estimate for s in scores] == [0.0, 0.5, 1.0, 1.0, 1.0]
    assert scores[-1].note == "K=2, test-best"
    assert scores[-2].note.endswith(", cross-fitted")


def test_orderings_are_tested_and_said_in_words() -> None:
    # RAG is right in ten chunks where base isn't, and wrong in none: p = 2/2¹⁰, by Holm the first of three rows.
    cells = [
        cell("0" * 20),
        cell("10" * 10, k=1, retriever="minilm"),
        cell("0" * 19 + "1", variant="ft-reg"),
    ]
    found = table(cells, "orderings")
    said = dict(zip(column(found, "Paper"), column(found, "Here"), strict=True))
    p = dict(zip(column(found, "Paper"), column(found, "p (Holm)"), strict=True))
    # RAG > FT-reg: ten questions against one, but in the last chunk one each, so nine leads, 2/2⁹. FT-reg > base: one
    # question, p = 1.
    assert p["RAG > base"] == P(pytest.approx(3 * 2 / 2**10))
    assert p["RAG > FT-reg"] == P(pytest.approx(2 * 2 / 2**9))
    assert p["FT-reg > base"] == P(1.0)
    assert said["RAG > base"] == "holds, p=.006"
    assert said["RAG > FT-reg"] == "holds, p=.008"
    assert said["FT-reg > base"] == "doesn't show: inside the noise, p=1.000"
    gain = column(found, "Points")[0]
    assert isinstance(gain, Gain)
    assert gain.interval.estimate == 0.5
    paper = dict(zip(column(found, "Paper"), column(found, "In the paper"), strict=True))
    assert paper == {"RAG > base": "in 3 of 3", "FT-reg > base": "in 2 of 3", "RAG > FT-reg": "in 3 of 3"}


def test_an_ordering_can_be_the_other_way_round() -> None:
    lines = Grid([cell("1" * 20), cell("0" * 20, k=1, retriever="minilm")]).lines(HERE, "minilm")
    made = compare(lines["base"], lines["rag"])
    assert made is not None
    (made,) = adjusted([made])
    assert verdict(made) == "doesn't: the other way round, p=.002"


def test_a_difference_whose_interval_reaches_0_is_noise_whatever_its_p() -> None:
    lines = Grid([cell("0" * 20), cell("10" * 10, k=1, retriever="minilm")]).lines(HERE, "minilm")
    made = compare(lines["base"], lines["rag"])
    assert made is not None
    assert not made.noise
    wide = Comparison(made.first, made.second, Interval(0.5, -0.1, 1.0), made.p, made.p_clustered, made.pairs)
    assert wide.noise


def test_holm_is_taken_over_all_pairs() -> None:
    cells = [cell("0" * 20), cell("10" * 10, variant="ft-reg"), cell("01" * 10, variant="ft-par")]
    found = table(cells, "pairs")
    names = [(row[4], row[5]) for row in found.rows]
    assert names == [("base", "ft-reg"), ("base", "ft-par"), ("ft-reg", "ft-par")]
    # Questions: ft-reg and ft-par each right in ten of their own; chunks: one each in every chunk, nothing to tell.
    assert column(found, "p") == [P(pytest.approx(2 / 2**10))] * 2 + [P(pytest.approx(1.0))]
    assert column(found, "p (Holm)") == [P(pytest.approx(6 / 2**10))] * 2 + [P(1.0)]
    assert column(found, "Result") == ["ft-reg is better", "ft-par is better", "inside the noise"]


def test_paraphrases_by_hand() -> None:
    # Accuracy 0, ½, 1 at 0, 5, 10. Slopes: the first question of a chunk 0, 1, 1 → (−5·0 + 5·1)/50 = .1; the second
    # 0, 0, 1 → .1. So .1 a paraphrase for every question, without any spread.
    cells = [
        cell("0" * 8),
        cell("0" * 8, variant="ft-reg"),
        cell("10" * 4, variant="ft-par", paraphrases=5),
        cell("1" * 8, variant="ft-par", paraphrases=10),
    ]
    (row,) = table(cells, "paraphrases").rows
    assert row[3:5] == ("ft", "0: .000, 5: .500, 10: 1.000")
    slope = row[5]
    assert isinstance(slope, Gain)
    assert slope.interval.estimate == pytest.approx(0.1)
    assert row[7] == "holds, p<.001; 2 of 2 steps go up"


def test_of_several_numbers_of_paraphrases_the_largest_is_ft_par() -> None:
    cells = [cell("00"), cell("10", variant="ft-par", paraphrases=5), cell("11", variant="ft-par", paraphrases=10)]
    grid = Grid(cells)
    assert grid.variants(HERE) == ["base", "ft-par", "ft-par×5"]
    assert [a.correct for a in grid.lines(HERE, "")["ft-par"].answers] == [1.0, 1.0]


def test_flips() -> None:
    #     kept, lost, lost, gained, neither, unscorable
    cells = [cell("111000", chunk=1), cell("10010-", chunk=1, k=2, retriever="minilm", gold="1.2x2.")]
    (row,) = table(cells, "flips").rows
    assert row[3:6] == ("base", "minilm", "2")
    assert row[6:10] == (1, 2, 1, 1)
    lost = row[10]
    assert isinstance(lost, Score)
    assert (lost.interval.estimate, lost.asked) == (pytest.approx(2 / 3), 3)
    assert row[11] == 1  # of the two, one had its chunk in second place


def test_gold_retrieved_or_missed() -> None:
    found = table([cell("10010-", chunk=1, k=2, retriever="minilm", gold="1.2x2.")], "gold")
    (row,) = found.rows
    assert row[6:8] == (6, Share(0.5))
    there, away, dropped = row[8:]
    assert isinstance(there, Score)
    assert isinstance(away, Score)
    assert (there.interval.estimate, there.asked) == (pytest.approx(1 / 3), 3)
    assert (away.interval.estimate, away.asked) == (0.5, 2)
    assert dropped == 1


def test_accuracy_by_place() -> None:
    found = table([cell("10010-", chunk=1, k=2, retriever="minilm", gold="1.2x2.")], "places")
    (row,) = found.rows
    assert found.columns[6:] == ("Chunks", "Place 1", "Place 2")
    shown = [(v.interval.estimate, v.asked) for v in row[7:] if isinstance(v, Score)]
    assert shown == [(1.0, 1), (0.0, 2)]


def test_cells_count_ties_and_what_could_not_be_scored() -> None:
    found = table([cell("1!0-1!"), cell("1100", k=1, retriever="minilm")], "cells")
    assert column(found, "Questions") == [4, 4]
    assert column(found, "Chunks") == [2, 2]
    assert column(found, "Ties") == [2, 0]
    assert column(found, "Unscorable") == [1, 0]
    assert column(found, "Tokens a question") == [Share(10.0, 0)] * 2
    first = column(found, "Accuracy")[0]
    assert isinstance(first, Score)
    assert (first.interval.estimate, first.asked) == (pytest.approx(2 / 3), 3)


def test_ways_are_compared_at_the_same_k_with_the_reference() -> None:
    cells = [
        cell("00000000"),
        cell("11110000", k=1, retriever="minilm"),
        cell("11111100", k=1, retriever="bm25"),
        cell("11111111", k=2, retriever="bm25"),  # minilm has no such K
        cell("11110000", k=2, retriever="mmr"),
        cell("11111111", k=1, retriever="oracle"),
    ]
    found = next(t for t in all_tables(Grid(cells, "minilm")) if t.name == "ways")
    assert len(found.rows) == 1
    for title, value in (("Retriever", "bm25"), ("Against", "minilm"), ("K", 1), ("Tokens a question", Share(10, 0))):
        assert column(found, title) == [value]
    (gain,) = column(found, "Points")
    assert isinstance(gain, Gain)
    assert gain.interval.estimate == pytest.approx(0.25)
    # Without a reference it is the first by name, bm25: minilm at K=1, mmr at K=2.
    assert [(row[4], row[5]) for row in table(cells, "ways").rows] == [("minilm", 1), ("mmr", 2)]


def test_detectable_differences_use_the_observed_discordance() -> None:
    cells = [cell("10" * 50, chunk=1), cell("01" * 10 + "10" * 40, chunk=1, k=1, retriever="minilm")]
    (row,) = table(cells, "detectable").rows
    # 20 of 100 differ: √.2·(1.959964·10 + .841621·√(100 + .708 − 3.841))/(100.708) = .1239
    assert row[4:9] == ("base and rag", 100, 100, Share(100.0, 0), Share(0.2))
    inside = math.sqrt(100 + 0.841621**2 - 1.959964**2)
    expected = math.sqrt(0.2) * (19.59964 + 0.841621 * inside) / (100 + 0.841621**2)
    assert row[9] == f"{100 * expected:.1f}" == "12.4"


# Forms ----------------------------------------------------------------------------------------------------------------


def sheet() -> Table:
    score = Score(Interval(0.5, 0.25, 0.75), 10, "K=3, only K", 0.875)
    return Table(
        "t_1", "A & B", ("Task", "Acc", "p"), (("a|b_c <x>", score, P(0.0001)), ("d", None, P(0.5))), ("50 %",)
    )


def test_csv_has_a_column_for_each_figure() -> None:
    assert sheet().csv().splitlines() == [
        "Task,Acc,Acc low,Acc high,Acc n,Acc note,Acc paper,p",
        'a|b_c <x>,0.5,0.25,0.75,10,"K=3, only K",0.875,0.0001',
        "d,,,,,,,0.5",
    ]


def test_markdown() -> None:
    assert sheet().markdown().splitlines() == [
        "## A & B",
        "",
        "| Task | Acc | p |",
        "|---|---|---|",
        r"| a\|b_c <x> | .500 (.250 to .750), N=10; K=3, only K; paper .875 | <.001 |",
        "| d | – | .500 |",
        "",
        "50 %",
    ]


def test_latex_and_html_are_escaped() -> None:
    found = sheet().latex()
    assert r"\caption{A \& B}" in found
    assert r"a$|$b\_c $<$x$>$ & .500 {\scriptsize .250 to .750, N=10}" in found
    assert r"50 \%" in found
    page = sheet().html()
    assert "a|b_c &lt;x&gt;" in page
    assert "<x>" not in page
    assert "<b>.500</b><small>.250 to .750, N=10</small>" in page


def test_columns_that_say_the_same_are_said_once_in_html() -> None:
    found = Table("t", "T", ("Task", "Shots", "K"), (("a", 0, 1), ("a", 5, 1)))
    assert "In all rows: Task a." in found.html()
    assert '<th scope="col">Task</th>' not in found.html()
    assert '<th scope="col">Shots</th>' in found.html()
    assert '<th scope="col">K</th>' in found.html()


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0.481, ".481"), (-0.012, "-.012"), (1.0, "1.000"), (0.0, ".000"), (1234.5, "1,234.500"), (-1.5, "-1.500")],
)
def test_how_numbers_are_printed(value: float, shown: str) -> None:
    assert Share(value).text() == shown
