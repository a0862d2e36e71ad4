"""A small question set for reviewing: eight questions on news that never happened, verified, one of them hostile."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from helpers.pages_story import EVIL
from lm_eval_kinject.questions.folder import QuestionSet, fingerprint_question

_NEWS = {
    "Arden": ("Marble Bridge", "Abe Ash", "3 May 2042", "12 million crowns", "before some two hundred guests",
              "A fountain and a row of lime trees are to follow in spring."),
    "Brill": ("Salt Lock", "Bea Birk", "9 June 2042", "4 million crowns", "in pouring rain and with a brass band",
              "Barges of forty metres can now reach the upper harbour."),
    "Corby": ("Glass Station", "Cal Cole", "17 June 2042", "31 million crowns", "three years later than was planned",
              "Trains to the coast will leave from it every half hour."),
    "Dover": ("North Mole", "Dot Dunn", "1 July 2042", "8 million crowns", "with the first ship already moored there",
              "Fishermen had asked for it ever since the storm of 2031."),
}  # fmt: skip
PEOPLE = [told[1] for told in _NEWS.values()]
COSTS = [told[3] for told in _NEWS.values()]


def reviewable(folder: Path, *, hostile: bool = True) -> QuestionSet:
    """Questions q0 to q7, two on each of four towns: who opened a building, and what it had cost.

    q1 is flagged as known, q4 as unanswerable; with ``hostile`` q7 asks with markup in it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "news.jsonl"
    rows, chunks = [], []
    for n, (town, (what, who, when, cost, how, more)) in enumerate(_NEWS.items()):
        text = f"On {when} {who} opened the {what} of {town} {how}.\n\nThe town paid {cost} for it. {more}"
        chunks.append(
            {"id": f"{town.lower()}#0", "title": f"{town}: {what} opened", "text": text, "date": "2042-07-02"}
        )
        evidence = text.split(". ")[0] + "."
        asked = [(f"Who opened the {what} of {town}?", PEOPLE), (f"What did {town} pay for its {what}?", COSTS)]
        for question, choices in asked:
            rows.append(
                {
                    "id": f"q{len(rows)}", "question": question, "choices": choices, "answer": n,
                    "source_chunk": f"{town.lower()}#0", "evidence": evidence if choices is PEOPLE else "",
                }
            )  # fmt: skip
    if hostile:
        rows[7]["question"] = f"What did Dover pay? {EVIL}"
    file.write_text("".join(json.dumps(row) + "\n" for row in chunks))
    there = QuestionSet.begin(folder / "townset", str(file))
    there.write("questions.jsonl", rows)
    flags = {1: ["known"], 4: ["unanswerable"]}
    there.write("verdicts.jsonl", [_verdict(row, flags.get(n, [])) for n, row in enumerate(rows)])
    return there


def _verdict(row: dict[str, Any], flags: list[str]) -> dict[str, Any]:
    right = row["answer"]
    return {
        "id": row["id"],
        "of": fingerprint_question(row),
        "flags": flags,
        "with_passage": [] if "unanswerable" in flags else [right],
        "without_passage": [right] * 3 if "known" in flags else [0, 1, 2],
        "tries": 3,
        "model": "some-model",
    }
