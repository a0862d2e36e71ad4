"""Submissions for the pages' tests: sound ones, hostile ones, and samples whose figures were worked out by hand."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from helpers.hub_run import make_results

TASK = "current_events_cloze"
EVIL = "<script>window.hacked = 1</script><img src=x onerror='window.hacked=1'> ${window.hacked=1} {{value}}"


def submission(
    root: Path, name: str, *, k: int, right: Sequence[bool], samples: bool = True, later: int = 0, **told: Any
) -> Path:
    """A result of eight questions, in a folder of its own; ``right`` is question by question.

    Returns:
        The results file.
    """
    acc = sum(right) / len(right)
    file = make_results(root / "made", model=f"me/{name}", peft=None, k=k, acc=acc, later=later)
    data = json.loads(file.read_text())
    n = len(right)
    data["results"][TASK]["acc_stderr,none"] = (acc * (1 - acc) / (n - 1)) ** 0.5
    data["n-samples"] = {TASK: {"original": n, "effective": n}}
    data["config"]["kinject"] |= {
        "scorer": {"together": {"distinct_tokens": 100 * (k + 1) * n}},
        "tasks": {TASK: {"questions": n}},
        **told,
    }
    target = root / f"{name}-k{k}"
    target.mkdir(parents=True, exist_ok=True)
    moment = file.stem.removeprefix("results_")
    for left in (root / "made").rglob("samples_*"):
        left.unlink()
    file.unlink()
    placed = target / file.name
    placed.write_text(json.dumps(data))
    if samples:
        rows = [sample(place, k, good) for place, good in enumerate(right)]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (target / f"samples_{TASK}_{moment}.jsonl").write_text(text)
    return placed


def sample(place: int, k: int, right: bool) -> dict[str, Any]:
    """Options of 2 nats' difference; the first is the right one. Chunk 0 is gold, and with K = 1 it isn't there."""
    trace = {
        "query": f"Question {place}?",
        "hits": [{"id": f"c{n}", "rank": rank, "score": 9.0 - rank} for rank, n in enumerate((1, 0)[:k], 1)],
        "used": [f"c{n}" for n in (1, 0)[:k]],
        "dropped": [],
        "dropped_count": 0,
        "truncated": None,
        "context_tokens": 10 * k,
        "gold": "c0",
    }
    prompt = "".join(f"{text}\n\n" for text in (EVIL, "The gold chunk.")[:k]) + f"Question {place}?\nAnswer:"
    options = ("right", f"wrong {EVIL}")
    third = [{"kinject": trace}] if k else []
    scores = (-1.0, -3.0) if right else (-3.0, -1.0)
    return {
        "doc_id": place,
        "doc": {"id": f"q{place}", "question": f"Question {place}?", "source_chunk": f"c{place // 2}"},
        "target": "0",
        "arguments": {
            f"gen_args_{n}": {f"arg_{m}": part for m, part in enumerate([prompt, f" {option}", *third])}
            for n, option in enumerate(options)
        },
        "resps": [[[str(score), "False"]] for score in scores],
        "filtered_resps": [[str(score), "False"] for score in scores],
        "filter": "none",
        "metrics": ["acc"],
        "acc": float(right),
    }


def bits(text: str) -> list[bool]:
    """``1101`` as right and wrong."""
    return [one == "1" for one in text]


def story(root: Path) -> Path:
    """A folder of three sound results and five that must be left out; see `LEFT_OUT`."""
    submission(root, "base", k=0, right=bits("00000011"))
    submission(root, "base", k=1, right=bits("11000011"))
    submission(root, "base", k=2, right=bits("11111011"))
    edited = submission(root, "edited", k=0, right=bits("11110000"))
    data = json.loads(edited.read_text())
    data["results"][TASK]["acc,none"] = 0.625  # its samples say .5, and the standard error fits
    data["results"][TASK]["acc_stderr,none"] = 0.1
    edited.write_text(json.dumps(data))
    high = submission(root, "high", k=0, right=bits("11110000"), samples=False)
    data = json.loads(high.read_text())
    data["results"][TASK]["acc,none"] = 0.875  # with a standard error that only .5 can have
    high.write_text(json.dumps(data))
    for name, text in {
        "deep": "[" * 100_000,
        "list": json.dumps({"results": {TASK: []}, "configs": [], "n-samples": 3}),
        "evil": json.dumps({"results": {TASK: {"acc,none": EVIL}}, "configs": {TASK: {}, "../../x": {}}}),
    }.items():
        (root / name).mkdir()
        (root / name / "results_2026-11-21T00-00-00.json").write_text(text)
    (root / "link").mkdir()
    (root / "link" / "results_2026-11-21T00-00-00.json").symlink_to("/etc/passwd")
    return root


LEFT_OUT = {"deep", "list", "evil", "link", "high-k0"}
"""What is left out of `story` before samples are read; afterwards ``edited-k0`` too."""
