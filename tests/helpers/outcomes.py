"""Synthetic outcomes of a study: made-up answers with known chances, for tests of tables, figures and the page.

A question is easy or hard by its chunk, so that questions about one chunk are alike; a method adds to the chance of a
right answer. The same seed gives the same cells.
"""

from __future__ import annotations

import random

from lm_eval_kinject.study.outcomes import Answered, Axis, CellOutcome

CHANCES = {"base": 0.33, "ft-reg": 0.36, "ft-par": 0.50}
FOUND = {
    "minilm": (0.75, 0.83, 0.88, 0.90, 0.92),
    "bm25": (0.80, 0.88, 0.92, 0.94, 0.95),
    "oracle": (1.0,) * 5,
    "random": (0.0,) * 5,
}


def synthetic(
    *,
    model: str = "reader",
    tasks: tuple[str, ...] = ("current_events",),
    shots: tuple[int, ...] = (0,),
    questions: int = 200,
    retrievers: tuple[str, ...] = ("minilm", "oracle", "random"),
    ks: tuple[int, ...] = (0, 1, 2, 3, 4, 5),
    paraphrases: tuple[int, ...] = (2, 5, 10),
    seed: int = 0,
) -> list[CellOutcome]:
    """All cells of a grid: base, ft-reg and ft-par closed book and with every retriever at every K."""
    cells = []
    for task in tasks:
        for shot in shots:
            variants: list[tuple[str, int | None]] = [
                ("base", None),
                ("ft-reg", 0),
                *(("ft-par", n) for n in paraphrases),
            ]
            for variant, number in variants:
                for retriever in ("none", *retrievers):
                    for k in ks:
                        wanted = k == 0 if retriever == "none" else k > 0 and (retriever != "oracle" or k == 1)
                        few = number in (None, 0, max(paraphrases, default=0))
                        if wanted and (few or k == 0):
                            axes: dict[str, Axis] = {
                                "model": model, "variant": variant, "paraphrases": number, "retriever": retriever,
                                "k": k, "shots": shot, "task": task, "placement": "question", "seed": 1234,
                            }  # fmt: skip
                            cells.append(_cell(axes, questions, seed))
    return cells


def _cell(axes: dict[str, Axis], questions: int, seed: int) -> CellOutcome:
    rng = random.Random(f"{seed} {sorted((k, str(v)) for k, v in axes.items())}")
    of_chunks = random.Random(f"{seed} {axes['task']}")
    ease = [of_chunks.gauss(0, 0.15) for _ in range((questions + 1) // 2)]
    variant, k, retriever = str(axes["variant"]), int(axes["k"] or 0), str(axes["retriever"])
    chance = CHANCES[variant] + (0.01 * int(axes["paraphrases"] or 0) if variant == "ft-par" else 0)
    # A trained model reads worse.
    reads = {"base": 0.85, "ft-reg": 0.75, "ft-par": 0.78}[variant] - 0.015 * max(0, k - 3)
    answers = []
    for doc in range(questions):
        rank = place = None
        if k:
            rank = rng.randint(1, k) if rng.random() < FOUND[retriever][k - 1] else None
            place = rank if rank is None or rng.random() > 0.02 else None
        right = rng.random() < (reads if place else chance) + ease[doc // 2]
        lost = rng.random() < 0.005
        answers.append(
            Answered(doc, f"chunk-{doc // 2}", None if lost else float(right), rng.random() < 0.01, rank, place, k)
        )
    recall = {f"recall@{k}": sum(a.gold_rank is not None for a in answers) / questions} if k else {}
    tokens = questions * (90 + 260 * k + 150 * int(axes["shots"] or 0))
    return CellOutcome(axes, tuple(answers), tokens, 260.0 * k, 12.5 + 30 * k, recall)


def curves() -> dict[str, list[tuple[float, float, float]]]:
    """Training losses of two variants with a step down at each epoch's end."""
    found = {}
    for number, variant in enumerate(("ft-reg", "ft-par")):
        rng = random.Random(number)
        found[variant] = [
            (float(u), u / 20, 3.2 - 0.45 * (u // 20) - 0.004 * (u % 20) + rng.gauss(0, 0.03)) for u in range(1, 101)
        ]
    return found
