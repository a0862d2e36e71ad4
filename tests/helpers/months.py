"""Tiny months for tests of sequences: a corpus each, with paraphrases and validation texts, and questions on it.

The one idea: chunks are numbered over all months, so ids and facts of one month are in no other.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from helpers.local_tasks import PEOPLE, TOWNS
from helpers.training import text

CHUNKS = 4  # a month
TURNS = (1, 0, 2, 5)  # options are these many places behind who did it


def write_lines(file: Path, rows: list[dict[str, Any]]) -> str:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(file)


def write_month(folder: Path, number: int, *, chunks: int = CHUNKS) -> dict[str, Any]:
    """Month ``number`` (from 0) as a sequence's file lists it."""
    mine = range(CHUNKS * number, CHUNKS * number + chunks)
    name = f"2026-{number + 1:02}"
    place = folder / name
    write_lines(place / "chunks.jsonl", [{"id": f"c{i}", "text": text(i, 0), "role": "source"} for i in mine])
    write_lines(place / "paraphrases.jsonl", [{"chunk": f"c{i}", "number": 1, "text": text(i, 1)} for i in mine])
    write_lines(place / "validation.jsonl", [{"chunk": f"c{i}", "number": 4, "text": text(i, 4)} for i in mine])
    asked = [
        {
            "question": f"Who opened the bridge at {TOWNS[i % 8]} {i}?",
            "choices": [PEOPLE[(3 * i + n) % 8] for n in TURNS],
        }
        | {"answer": TURNS.index(0)}
        for i in mine
    ]
    return {"month": name, "corpus": str(place), "questions": write_lines(folder / f"asked-{name}.jsonl", asked)}


def write_sequence(file: Path, model: str, months: list[dict[str, Any]], **changes: Any) -> Path:
    """A sequence whose months take well under a second each."""
    values = {
        "model": model,
        "variant": "ft-reg",
        "method": "full",
        "block_size": 16,
        "epochs": 2,
        "global_batch": 4,
        "micro_batch": 2,
        "learning_rate": 1e-3,
        "forgetting": False,
        "mode": "continued",
        "sequence": months,
        **changes,
    }
    file.write_text(yaml.safe_dump({k: v for k, v in values.items() if v is not None}), encoding="utf-8")
    return file
