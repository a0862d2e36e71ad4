"""The whole story of a knowledge adapter with the real reader, corpus and questions, against the tests' own Hub.

What it is for: how long it takes from a base model to a submitted score, chapter by chapter. What it does not do: touch
the real Hub (the tests' server stands in for it).

    python benchmarks/story.py
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from helpers.hub_fixture import TOKEN  # noqa: E402
from helpers.hub_story import Story, tell  # noqa: E402

from lm_eval_kinject.plugin import assets_dir, tasks_dir  # noqa: E402

RECIPE = """\
variant: ft-par
paraphrases: 2
method: lora
rank: 32
alpha: 64
epochs: 2
global_batch: 16
learning_rate: 3.0e-3
warm_up: 0.05
precision: bf16
"""


def main() -> None:
    events = tasks_dir() / "current_events"
    with tempfile.TemporaryDirectory() as scratch:
        story = Story(
            base=str(assets_dir() / "reader"),
            corpus=str(events / "corpus"),
            questions=str(events / "data"),
            tasks=None,
            recipe=RECIPE,
            retrieval="retriever=minilm,k=3",
            scratch=scratch,
        )
        told = tell(story, {}, timeout=1800)
    assert TOKEN not in told.printed
    for chapter, seconds in told.seen["seconds"].items():
        print(f"{chapter:20} {seconds:6.1f} s")
    print(f"{'in all':20} {sum(told.seen['seconds'].values()):6.1f} s")
    print(f"accuracy that datasets.load_dataset reads back: {float(told.seen['row']):.3f}")
    print(f"LoRA tensors that plain peft loads: {told.seen['plain']}")
    print(told.store.files("me/reader-ft-par")["README.md"].decode())


if __name__ == "__main__":
    main()
