"""The tables of a study's report.

What it is for: from a grid to what is printed; the paper's Tables 1, 2 and 3 in its own shape with its figures beside
ours, then everything that is needed to judge them. What it doesn't do: formats (`sheet`), choices (`lines`).

The one idea: every accuracy has its interval and N, every difference its test and, over its table, Holm's correction;
what may be chance is called that in words.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations, pairwise

from lm_eval_kinject.stats import (
    Interval,
    clustered_difference,
    clustered_mean,
    detectable_paired,
    detectable_unpaired,
    groups,
    scored,
    t_test,
    tally,
    wilson,
)
from lm_eval_kinject.study.lines import Comparison, Grid, Line, Setting, Sweep, adjusted, compare, share
from lm_eval_kinject.study.outcomes import Answered, CellOutcome
from lm_eval_kinject.study.published import load, lookup, paper_model, paper_task
from lm_eval_kinject.study.sheet import Gain, P, Score, Share, Table, Value, figure

__all__ = ["all_tables"]

PLACE = ("Task", "Model", "Shots", "Variant", "Retriever", "K")
TABLE_1 = {"Base": "base", "RAG": "rag", "FT": "ft-reg", "FT+RAG": "ft-reg+rag"}
TABLE_2 = {
    "Base": "base",
    "Base+RAG": "rag",
    "FT-reg": "ft-reg",
    "FT-par": "ft-par",
    "FT-reg+RAG": "ft-reg+rag",
    "FT-par+RAG": "ft-par+rag",
}
ORDERINGS = (
    ("RAG > base", "base", "rag"),
    ("FT-reg > base", "base", "ft-reg"),
    ("FT-par > FT-reg", "ft-reg", "ft-par"),
    ("RAG > FT-reg", "ft-reg", "rag"),
    ("RAG > FT-par", "ft-par", "rag"),
    ("RAG > FT-par+RAG", "ft-par+rag", "rag"),
)
"""What the paper found, as (claim, the lower method, the higher)."""

NOTES: dict[str, tuple[str, ...]] = {
    "table-2-current-events": (
        (
            "The paper's figures are for its own questions on current events, which aren't public; ours of that name "
            "are others, so orderings can be compared and accuracies can't."
        ),
    ),
    "table-1-mmlu": (
        (
            "FT is training on the chunks as they are (ft-reg). K of RAG is chosen on a validation split or on the "
            "other half of the questions, as each cell says; the paper's is the best on the test set."
        ),
    ),
    "table-3-k": (
        (
            "Chosen K: on a validation split, or cross-fitted: each half of the questions (whole chunks) is scored "
            "under the K that is best on the other half, so two K can stand there."
        ),
        (
            "Test-best K: the best on these very questions. It is too high by the luck of the best and isn't used "
            "elsewhere."
        ),
    ),
    "orderings": (
        (
            "Points: accuracy of the first less that of the second, on the same questions, with a 95 % interval in "
            "which questions about one chunk count as one draw. p: McNemar's exact test, questions taken one by one; "
            "p (Holm): the same with whole chunks, corrected for all rows of this table. An ordering holds if it is "
            "in the paper's direction, p (Holm) is below .05 and the interval doesn't reach 0."
        ),
    ),
    "paraphrases": (
        (
            "The slope is fitted to each question's answers and averaged, so that it is paired; interval and p are "
            "clustered by chunk (Student's t). The paper's curves rise at every step, for all of its three models."
        ),
    ),
    "pairs": (
        (
            "Points: second less first, 95 % interval clustered by chunk. p: McNemar's exact test; p (chunks): with "
            "whole chunks; p (Holm): that, corrected for all rows. Inside the noise: p (Holm) of .05 or more, or an "
            "interval with 0 in it. N: questions that both could be scored on."
        ),
    ),
    "ways": (
        (
            "Each retriever, or other way of using what was found, against the study's first one at the same K: "
            "points, p and result as in the table of pairs; p (Holm) over all rows here. Tokens a question: what the "
            "cell would forward alone, for all options together."
        ),
    ),
    "flips": (
        (
            "Kept: right both times; lost: right closed book only; gained: right with retrieval only. Some of what "
            "counts as known was guessed: of four options a guess is right in a quarter."
        ),
    ),
    "gold": ("Found, but not in the prompt: among the K retrieved, and dropped for room.",),
    "places": (
        (
            "Place 1 is the first in the prompt. Questions whose chunk is ranked high are easier in other ways too, "
            "so a fall over places isn't only the place's doing."
        ),
    ),
    "detectable": (
        (
            "With power .8 at .05, two-sided, for one comparison (Holm's correction asks for more). Worth: how many "
            "independent questions these are worth for this difference. Unpaired: had the two been asked different "
            "questions."
        ),
    ),
    "cells": (
        (
            "Ties: the best options had equal scores. Unscorable: no answer could be told; these are in no accuracy. "
            "Tokens a question: forwarded through the model, for all options together."
        ),
    ),
}
"""What stands under each table."""


def all_tables(grid: Grid) -> list[Table]:
    """Every table that the grid has data for, in the order of the report."""
    makers: tuple[Callable[[Grid], Table | None], ...] = (
        table_1,
        table_2,
        table_3,
        orderings,
        paraphrases,
        pairs,
        ways,
        flips,
        gold,
        places,
        detectable,
        cells,
    )
    return [table for make in makers if (table := make(grid)) is not None and table.rows]


# The paper's three ----------------------------------------------------------------------------------------------------


def table_1(grid: Grid) -> Table | None:
    """MMLU in the paper's shape: a row for each task and model, methods by number of examples in the columns."""
    settings = [s for s in grid.settings() if "mmlu" in s.task]
    shots = sorted({s.shots for s in settings})
    rows: list[tuple[Value, ...]] = []
    for task, model, rest in sorted({(s.task, s.model, s.rest) for s in settings}):
        here = {s.shots: s for s in settings if (s.task, s.model, s.rest) == (task, model, rest)}
        names = dict.fromkeys(r for s in here.values() for r in grid.retrievers(s))
        for retriever in names or [""]:
            found = {n: grid.lines(s, retriever) for n, s in here.items()}
            scores = [
                _score(found.get(n, {}).get(method), _table_1_figure(task, model, method, n))
                for n in shots
                for method in TABLE_1.values()
            ]
            rows.append((task, _model(model, rest), retriever or None, *scores))
    columns = [f"{title} {n}-shot" for n in shots for title in TABLE_1]
    return Table(
        "table-1-mmlu", "Table 1. MMLU", ("Task", "Model", "Retriever", *columns), tuple(rows), NOTES["table-1-mmlu"]
    )


def table_2(grid: Grid) -> Table | None:
    """All other tasks in the shape of the paper's table of current events."""
    rows: list[tuple[Value, ...]] = []
    for setting in (s for s in grid.settings() if "mmlu" not in s.task):
        for retriever in grid.retrievers(setting) or [""]:
            found = grid.lines(setting, retriever)
            scores = [
                _score(found.get(method), lookup("2", setting.task, setting.model, method))
                for method in TABLE_2.values()
            ]
            rows.append((setting.task, _model(setting.model, setting.rest), setting.shots, retriever or None, *scores))
    known = any(paper_task(str(row[0])) and paper_model(str(row[1])) for row in rows)
    return Table(
        "table-2-current-events",
        "Table 2. Current events and other tasks",
        ("Task", "Model", "Shots", "Retriever", *TABLE_2),
        tuple(rows),
        NOTES["table-2-current-events"] if known else (),
    )


def table_3(grid: Grid) -> Table | None:
    """Accuracy by number of chunks, with the chosen K and, under its own name, the best on the test set."""
    every = sorted({cell.whole("k") for cell in grid.cells})
    rows: list[tuple[Value, ...]] = []
    for setting in grid.settings():
        for variant in grid.variants(setting):
            for retriever in grid.retrievers(setting, controls=True):
                sweep = grid.sweep(setting, variant, retriever)
                chosen, best = sweep.chosen(), sweep.test_best()
                if chosen is None or best is None:
                    continue
                at = [_cell_score(sweep.cells.get(k), _sweep_figure(sweep, k)) for k in every]
                where = (setting.task, _model(setting.model, setting.rest), setting.shots, variant, retriever)
                rows.append((*where, *at, _score(chosen, None), _score(best, None)))
    if len(every) < 2:
        return None
    return Table(
        "table-3-k",
        "Table 3. Number of chunks (K)",
        (*PLACE[:5], *(f"K={k}" for k in every), "Chosen K", "Test-best K"),
        tuple(rows),
        NOTES["table-3-k"],
    )


def _table_1_figure(task: str, model: str, method: str, shots: int) -> float | None:
    return lookup("1", task, model, method.replace("ft-reg", "ft"), shots=shots)


def _sweep_figure(sweep: Sweep, k: int) -> float | None:
    if sweep.variant != "base" or sweep.retriever in ("oracle", "random"):
        return None
    s = sweep.setting
    return lookup("k-sweep", s.task, s.model, "rag", shots=s.shots, k=k)


# What differs ---------------------------------------------------------------------------------------------------------


def orderings(grid: Grid) -> Table | None:
    """The paper's orderings, each tested here, with a verdict in words."""
    asked: list[tuple[str, Comparison]] = []
    seen: set[tuple[str, Setting, str]] = set()
    for setting in grid.settings():
        for retriever in grid.retrievers(setting) or [""]:
            found = grid.lines(setting, retriever)
            for claim, low, high in ORDERINGS:
                with_retrieval = any("rag" in name for name in (low, high))
                key = (claim, setting, retriever if with_retrieval else "")
                made = compare(found[low], found[high]) if low in found and high in found else None
                if made is not None and key not in seen:
                    seen.add(key)
                    asked.append((claim, made))
    rows = [
        (
            claim,
            *_where(made),
            _used(made),
            Gain(made.gain),
            P(made.p),
            _holm(made),
            _paper_says(claim, made),
            verdict(made),
        )
        for (claim, _), made in zip(asked, adjusted([made for _, made in asked]), strict=True)
    ]
    return Table(
        "orderings",
        "The paper's orderings, tested",
        ("Paper", "Task", "Model", "Shots", "Retriever", "K", "Points", "p", "p (Holm)", "In the paper", "Here"),
        tuple(rows),
        NOTES["orderings"],
    )


def verdict(made: Comparison) -> str:
    """Whether the second line is above the first, in words."""
    p = made.p_clustered if made.p_holm is None else made.p_holm
    shown = f"p{'' if p < 0.0005 else '='}{P(p).text()}"
    if made.noise:
        return f"doesn't show: inside the noise, {shown}"
    return f"holds, {shown}" if made.gain.estimate > 0 else f"doesn't: the other way round, {shown}"


def _paper_says(claim: str, made: Comparison) -> str:
    """The two figures where the paper has this task and model, else in how many of its models the ordering holds."""
    low, high = next((low, high) for name, low, high in ORDERINGS if name == claim)
    s = made.first.setting
    if "mmlu" in s.task:
        pair = [_table_1_figure(s.task, s.model, method, s.shots) for method in (high, low)]
        lines = {(f.task, f.model, f.shots, f.method): f.value for f in load() if f.table == "1"}
        low, high = low.replace("ft-reg", "ft"), high.replace("ft-reg", "ft")
    else:
        pair = [lookup("2", s.task, s.model, method) for method in (high, low)]
        lines = {(f.task, f.model, f.shots, f.method): f.value for f in load() if f.table == "2"}
    above, below = pair
    if above is not None and below is not None:
        return f"{figure(above)} against {figure(below)}"
    both = [
        (value, lines[task, model, shots, low])
        for (task, model, shots, method), value in lines.items()
        if method == high and (task, model, shots, low) in lines
    ]
    return f"in {sum(a > b for a, b in both)} of {len(both)}" if both else "–"


def paraphrases(grid: Grid) -> Table | None:
    """Whether accuracy rises with the number of paraphrases trained on: the mean slope over questions."""
    found = []
    for setting in grid.settings():
        for family, by_number in paraphrase_cells(grid, setting).items():
            made = _slope(by_number)
            if made is not None:
                found.append((setting, family, by_number, *made))
    rows: list[tuple[Value, ...]] = []
    for setting, family, by_number, slope, p in found:
        scores = [share(by_number[number].answers).estimate for number in by_number]
        steps = [b > a for a, b in pairwise(scores)]
        curve = ", ".join(f"{n}: {figure(s)}" for n, s in zip(by_number, scores, strict=True))
        up = slope.low > 0 and p < 0.05
        down = slope.high < 0 and p < 0.05
        word = "holds" if up else "doesn't: the other way round" if down else "doesn't show: inside the noise"
        word += f", p{'' if p < 0.0005 else '='}{P(p).text()}; {sum(steps)} of {len(steps)} steps go up"
        where = (setting.task, _model(setting.model, setting.rest), setting.shots, family)
        rows.append((*where, curve, Gain(slope), P(p), word))
    return Table(
        "paraphrases",
        "Does accuracy rise with the number of paraphrases?",
        ("Task", "Model", "Shots", "Trained", "Accuracy by number", "Points a paraphrase", "p", "Here"),
        tuple(rows),
        NOTES["paraphrases"],
    )


def paraphrase_cells(grid: Grid, setting: Setting) -> dict[str, dict[int, CellOutcome]]:
    """Closed-book cells by number of paraphrases, for each family of variants (ft-reg and ft-par are one: ft)."""
    found: dict[str, dict[int, CellOutcome]] = {}
    for variant in grid.variants(setting):
        cell = grid.sweep(setting, variant, "").cells.get(0)
        name = variant.partition("×")[0]
        if cell is None or name == "base":
            continue
        number = cell.axes.get("paraphrases", 0 if "ft-reg" in name else None)
        if number is None and "ft-reg" in name:
            number = 0
        if number is not None:
            family = name.replace("ft-reg", "ft").replace("ft-par", "ft")
            found.setdefault(family, {}).setdefault(int(number), cell)
    return {family: dict(sorted(by.items())) for family, by in found.items() if len(by) > 1}


def _slope(by_number: dict[int, CellOutcome]) -> tuple[Interval, float] | None:
    """Mean over questions of the least-squares slope of right answers over the number of paraphrases."""
    middle = sum(by_number) / len(by_number)
    spread = sum((n - middle) ** 2 for n in by_number)
    answers = {n: {a.doc_id: a for a in cell.answers} for n, cell in by_number.items()}
    slopes, clusters = [], []
    for doc, first in answers[min(answers)].items():
        right = [found[doc].correct if doc in found else None for found in answers.values()]
        kept = [value for value in right if value is not None]
        if len(kept) == len(right):
            slopes.append(sum((n - middle) * value for n, value in zip(by_number, kept, strict=True)) / spread)
            clusters.append(first.cluster)
    if not slopes:
        return None
    return _mean(slopes, clusters), t_test(slopes, clusters)


def _mean(values: Sequence[float], clusters: Sequence[str]) -> Interval:
    return clustered_difference([0.0] * len(values), values, clusters)


def pairs(grid: Grid) -> Table | None:
    """Every pair of methods in every setting."""
    made = adjusted(all_pairs(grid))
    rows = [
        (
            *_where(c),
            c.first.name,
            c.second.name,
            _used(c),
            Gain(c.gain),
            P(c.p),
            P(c.p_clustered),
            _holm(c),
            "inside the noise" if c.noise else f"{(c.second if c.gain.estimate > 0 else c.first).name} is better",
            len(c.pairs.first),
        )
        for c in made
    ]
    return Table(
        "pairs",
        "Every pair of methods",
        (
            "Task",
            "Model",
            "Shots",
            "Retriever",
            "First",
            "Second",
            "K",
            "Points",
            "p",
            "p (chunks)",
            "p (Holm)",
            "Result",
            "N",
        ),
        tuple(rows),
        NOTES["pairs"],
    )


def all_pairs(grid: Grid) -> list[Comparison]:
    """Comparisons of all methods of a setting with one another, once each."""
    found: dict[tuple[object, ...], Comparison] = {}
    for setting in grid.settings():
        for retriever in grid.retrievers(setting) or [""]:
            for first, second in combinations(grid.lines(setting, retriever).values(), 2):
                key = (setting, first.name, second.name, first.retriever, second.retriever)
                made = None if key in found else compare(first, second)
                if made is not None:
                    found[key] = made
    return list(found.values())


def ways(grid: Grid) -> Table | None:
    """Every retriever against the reference, at the same K."""
    made: list[Comparison] = []
    tokens: list[Value] = []
    for setting in grid.settings():
        names = grid.retrievers(setting)
        reference = grid.reference if grid.reference in names else next(iter(names), "")
        for variant in grid.variants(setting):
            base = grid.sweep(setting, variant, reference)
            for name in names:
                sweep = base if name == reference else grid.sweep(setting, variant, name)
                for k in sorted(k for k in sweep.cells if k > 0 and name != reference):
                    first, second = base.at(k), sweep.at(k)
                    found = None if first is None or second is None else compare(first, second)
                    if found is not None:
                        made.append(found)
                        cell = sweep.cells[k]
                        tokens.append(Share(cell.tokens_forwarded / len(cell.answers), 0))
    rows = [
        (
            c.first.setting.task,
            _model(c.first.setting.model, c.first.setting.rest),
            c.first.setting.shots,
            c.second.name,
            c.second.retriever,
            int(c.second.k),
            _answers(c.second.answers),
            spent,
            c.first.retriever,
            Gain(c.gain),
            P(c.p),
            P(c.p_clustered),
            _holm(c),
            "inside the noise" if c.noise else "better" if c.gain.estimate > 0 else "worse",
        )
        for c, spent in zip(adjusted(made), tokens, strict=True)
    ]
    return Table(
        "ways",
        "Ways of retrieval against the first, at the same K",
        (
            "Task", "Model", "Shots", "Method", "Retriever", "K", "Accuracy", "Tokens a question", "Against", "Points",
            "p", "p (chunks)", "p (Holm)", "Result",
        ),
        tuple(rows),
        NOTES["ways"],
    )  # fmt: skip


def _holm(made: Comparison) -> P | None:
    return None if made.p_holm is None else P(made.p_holm)


def _where(made: Comparison) -> tuple[str, str, int, str | None]:
    s = made.first.setting
    names = dict.fromkeys(line.retriever for line in (made.first, made.second) if line.retriever != "none")
    return s.task, _model(s.model, s.rest), s.shots, ", ".join(names) or None


def _used(made: Comparison) -> str | None:
    found = dict.fromkeys(f"{line.k} ({line.how})" for line in (made.first, made.second) if line.k != "0")
    return ", ".join(found) or None


# What retrieval does to single questions ------------------------------------------------------------------------------


def flips(grid: Grid) -> Table | None:
    """What a model answered right closed book and got wrong with retrieval, and the other way round."""
    rows: list[tuple[Value, ...]] = []
    for setting in grid.settings():
        for variant in grid.variants(setting):
            closed = grid.closed(setting, variant)
            for retriever in grid.retrievers(setting, controls=True):
                line = grid.sweep(setting, variant, retriever).chosen()
                if closed is not None and line is not None:
                    where = (
                        setting.task,
                        _model(setting.model, setting.rest),
                        setting.shots,
                        variant,
                        retriever,
                        line.k,
                    )
                    rows.append((*where, *_flips(closed, line)))
    return Table(
        "flips",
        "Known closed book, and with retrieval",
        (*PLACE, "Kept", "Lost", "Gained", "Neither", "Lost of known", "Lost with the right chunk in the prompt"),
        tuple(rows),
        NOTES["flips"],
    )


def _flips(closed: Line, line: Line) -> tuple[Value, ...]:
    before = {a.doc_id: a for a in closed.answers}
    both = [(before[a.doc_id], a) for a in line.answers if a.doc_id in before]
    judged = [(b, a) for b, a in both if b.correct is not None and a.correct is not None]
    kept, lost, gained, neither = (
        [a for b, a in judged if (_right(b), _right(a)) == case]
        for case in ((True, True), (True, False), (False, True), (False, False))
    )
    known = len(kept) + len(lost)
    of_known: Value = None
    if known:
        of_known = Score(Interval(len(lost) / known, *wilson(len(lost) / known, known)), known)
    with_gold = sum(a.gold_place is not None for a in lost) if any(_knows_gold(a) for _, a in judged) else None
    return len(kept), len(lost), len(gained), len(neither), of_known, with_gold


def _right(answer: Answered) -> bool:
    return answer.correct is not None and answer.correct > 0.5


def gold(grid: Grid) -> Table | None:
    """Accuracy with the right chunk in the prompt and without, for every cell with retrieval."""
    rows: list[tuple[Value, ...]] = []
    for cell in _retrieved(grid):
        known = [a for a in cell.answers if _knows_gold(a)]
        if not known:
            continue
        there = [a for a in known if a.gold_place is not None]
        away = [a for a in known if a.gold_place is None]
        dropped = sum(a.gold_rank is not None and a.gold_rank <= cell.whole("k") for a in away)
        rows.append(
            (
                *_cell_where(grid, cell),
                len(known),
                Share(len(there) / len(known)),
                _answers(there),
                _answers(away),
                dropped,
            )
        )
    return Table(
        "gold",
        "The right chunk retrieved, or missed",
        (
            *PLACE,
            "Questions",
            "Share in the prompt",
            "Accuracy with it",
            "Accuracy without it",
            "Found, but not in the prompt",
        ),
        tuple(rows),
        NOTES["gold"],
    )


def places(grid: Grid) -> Table | None:
    """Accuracy by the place of the right chunk among those in the prompt."""
    cells_here = [
        c for c in _retrieved(grid) if any(a.gold_place is not None and a.prompt_places > 1 for a in c.answers)
    ]
    deepest = max((a.gold_place or 0 for c in cells_here for a in c.answers), default=0)
    rows: list[tuple[Value, ...]] = []
    for cell in cells_here:
        for size in sorted({a.prompt_places for a in cell.answers if a.gold_place is not None and a.prompt_places > 1}):
            at = [
                _answers([a for a in cell.answers if a.prompt_places == size and a.gold_place == place])
                for place in range(1, deepest + 1)
            ]
            rows.append((*_cell_where(grid, cell), size, *at))
    return Table(
        "places",
        "Accuracy by the place of the right chunk in the prompt",
        (*PLACE, "Chunks", *(f"Place {p}" for p in range(1, deepest + 1))),
        tuple(rows),
        NOTES["places"],
    )


# What could be seen, and everything -----------------------------------------------------------------------------------


def detectable(grid: Grid) -> Table | None:
    """The smallest differences that the study's questions could have shown."""
    rows: list[tuple[Value, ...]] = []
    for made in all_pairs(grid):
        if made.first.name != "base":
            continue
        differences = [b - a for a, b in zip(made.pairs.first, made.pairs.second, strict=True)]
        plain, clustered = clustered_mean(differences), clustered_mean(differences, made.pairs.clusters)
        asked = len(differences)
        worth = min(float(asked), asked * (plain.error / clustered.error) ** 2) if clustered.error > 0 else float(asked)
        base = sum(made.pairs.first) / asked
        rows.append(
            (
                *_where(made),
                f"base and {made.second.name}",
                asked,
                clustered.clusters,
                Share(worth, 0),
                Share(made.discordance),
                _points(detectable_paired(worth, made.discordance)),
                _points(detectable_unpaired(asked, base)),
            )
        )
    return Table(
        "detectable",
        "The smallest difference that could be seen",
        (
            "Task",
            "Model",
            "Shots",
            "Retriever",
            "Pair",
            "N",
            "Chunks",
            "Worth",
            "Answered differently",
            "Points, paired",
            "Points, unpaired",
        ),
        tuple(rows),
        NOTES["detectable"],
    )


def cells(grid: Grid) -> Table | None:
    """Every cell, with all that was counted."""
    recalls = sorted({name for cell in grid.cells for name in cell.recall})
    rows: list[tuple[Value, ...]] = []
    for cell in grid.cells:
        counts = tally([a.correct for a in cell.answers], [a.tied for a in cell.answers])
        chunks = len(set(groups([a.cluster for a in cell.answers], counts.asked).tolist()))
        per = Share(cell.tokens_forwarded / counts.asked, 0) if counts.asked and cell.tokens_forwarded else None
        found = [Share(cell.recall[name]) if name in cell.recall else None for name in recalls]
        rows.append(
            (
                *_cell_where(grid, cell),
                _answers(cell.answers, cell.published),
                counts.asked,
                chunks,
                counts.ties,
                counts.unscored,
                *found,
                per,
                Share(cell.context_tokens, 0),
                Share(cell.seconds, 1),
            )
        )
    return Table(
        "cells",
        "Every cell",
        (
            *PLACE,
            "Accuracy",
            "Questions",
            "Chunks",
            "Ties",
            "Unscorable",
            *recalls,
            "Tokens a question",
            "Context tokens",
            "Seconds",
        ),
        tuple(rows),
        NOTES["cells"],
    )


def _retrieved(grid: Grid) -> list[CellOutcome]:
    return [cell for cell in grid.cells if cell.whole("k") > 0]


def _cell_where(grid: Grid, cell: CellOutcome) -> tuple[Value, ...]:
    setting, k = grid.setting(cell), cell.whole("k")
    name = grid.retriever(cell) if k else None
    return setting.task, _model(setting.model, setting.rest), setting.shots, grid.variant(cell), name, k


def _knows_gold(answer: Answered) -> bool:
    return bool(answer.cluster) or answer.gold_rank is not None or answer.gold_place is not None


def _answers(answers: Sequence[Answered], published: float | None = None) -> Score | None:
    kept, _ = scored([a.correct for a in answers])
    return Score(share(answers), len(kept), published=published) if kept else None


def _cell_score(cell: CellOutcome | None, published: float | None) -> Score | None:
    return None if cell is None else _answers(cell.answers, published if cell.published is None else cell.published)


def _score(line: Line | None, published: float | None) -> Score | None:
    found = None if line is None else _answers(line.answers, published)
    if found is None or line is None or line.k == "0":
        return found
    return Score(found.interval, found.asked, f"K={line.k}, {line.how}", published)


def _points(effect: float | None) -> str:
    return "none" if effect is None else f"{100 * effect:.1f}"


def _model(model: str, rest: Sequence[tuple[str, str]]) -> str:
    more = ", ".join(f"{name}={value}" for name, value in rest)
    return f"{model} ({more})" if more else model
