"""Does a change keep every sample of `rag-hf`, to the bit? Scores the same cells at another commit and here.

    python benchmarks/same_results.py --against COMMIT [--limit 200]

Each side runs in a process of its own, first the commit (checked out beside this tree), then the working tree, on the
same machine with the same libraries. Compared are the samples that lm_eval logs: the prompts that were scored, each
log-likelihood, the traces and the metrics. Exits with 1 and names the first samples that differ. What it doesn't
compare: provenance (which may gain fields) and times.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
CELLS: dict[str, dict[str, Any]] = {
    "k=0": {"args": {"k": 0}},
    "minilm, k=3": {"args": {"retriever": "minilm", "k": 3}},
    "oracle, k=1": {"args": {"retriever": "oracle", "k": 1}},
    "bm25, k=2, start": {"args": {"retriever": "bm25", "k": 2, "placement": "start"}},
    "random, k=2, lm_eval's path": {"args": {"retriever": "random", "k": 2, "scorer": "harness"}},
    "full": {"args": {"retriever": "full", "k": 1, "context_tokens": 400}},
    "minilm, k=3, 5-shot": {"args": {"retriever": "minilm", "k": 3}, "num_fewshot": 5},
    "chat template": {"args": {"retriever": "bm25", "k": 2}, "num_fewshot": 2, "chat": True},
    "adapter": {"args": {"adapter": "reader-ft-par-lora", "retriever": "bm25", "k": 3}},
}
TASKS = ("current_events", "current_events_cloze")
CHAT = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|> ' + m['content'] + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def samples(folder: Path, limit: int) -> None:
    """Scores all cells with whatever `lm_eval_kinject` is importable; a JSON file of samples each."""
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    import lm_eval_kinject
    from lm_eval_kinject.models.rag_hf import RagHFLM
    from lm_eval_kinject.plugin import assets_dir

    print("scoring with", lm_eval_kinject.__file__, flush=True)
    chatty = folder / "chatty"
    shutil.copytree(assets_dir() / "reader", chatty)
    (chatty / "chat_template.jinja").write_text(CHAT, encoding="utf-8")
    manager = TaskManager()
    for number, (name, cell) in enumerate(CELLS.items()):
        arguments = dict(cell["args"])
        if cell.get("chat"):
            arguments["pretrained"] = str(chatty)
        found = simple_evaluate(
            model=RagHFLM(**arguments, batch_size=8),
            tasks=list(TASKS),
            num_fewshot=cell.get("num_fewshot", 0),
            limit=limit,
            apply_chat_template=bool(cell.get("chat")),
            task_manager=manager,
            bootstrap_iters=0,
        )
        text = json.dumps({"name": name, "samples": found["samples"]}, default=str)
        (folder / f"{number:02}.json").write_text(text, encoding="utf-8")
        print("  scored", name, flush=True)


def differences(before: Path, after: Path) -> list[str]:
    """What differs between two folders of samples, a line each."""
    problems = []
    for file in sorted(before.glob("*.json")):
        then, now = (json.loads((side / file.name).read_text(encoding="utf-8")) for side in (before, after))
        for task in TASKS:
            one, other = (side["samples"][task] for side in (then, now))
            unequal = [a["doc_id"] for a, b in zip(one, other, strict=True) if a != b]
            print(f"{then['name']}, {task}: {len(one)} samples, {len(unequal)} differ")
            problems += [f"{then['name']}, {task}, document {doc}" for doc in unequal]
    return problems


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", help="the commit to compare with")
    parser.add_argument("--limit", type=int, default=200, help="questions a task (910 is all)")
    parser.add_argument("--keep", type=Path, help="folder for the samples of both sides; those of `before` are reused")
    parser.add_argument("--write", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.write:
        return samples(asked.write, asked.limit)
    if not asked.against:
        parser.error("--against COMMIT is needed")
    with tempfile.TemporaryDirectory() as scratch:
        place = asked.keep or Path(scratch)
        before, after, tree = place / "before", place / "after", Path(scratch) / "tree"
        if not before.is_dir():
            subprocess.run(["git", "worktree", "add", "--detach", tree, asked.against], cwd=ROOT, check=True)
            try:
                _run(tree, before, asked.limit)
            finally:
                subprocess.run(["git", "worktree", "remove", "--force", tree], cwd=ROOT, check=True)
        shutil.rmtree(after, ignore_errors=True)
        _run(ROOT, after, asked.limit)
        problems = differences(before, after)
    print("the same, to the bit" if not problems else "\n".join(["different:", *problems[:20]]))
    sys.exit(1 if problems else 0)


def _run(tree: Path, folder: Path, limit: int) -> None:
    folder.mkdir(parents=True)
    paths = os.pathsep.join([str(tree), str(tree / "trainer")])
    command = [sys.executable, __file__, "--write", str(folder), "--limit", str(limit)]
    subprocess.run(command, env={**os.environ, "PYTHONPATH": paths}, cwd=tree, check=True)


if __name__ == "__main__":
    main()
