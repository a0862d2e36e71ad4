"""The whole story of a knowledge adapter, told to whatever ``HF_ENDPOINT`` says; run by test_hub_story.py.

Push a base and a corpus → train on them → push the run → score it from a fresh cache with ``lm_eval`` → push the scores
→ open a pull request → submit results to a data set. Arguments: folder of a base model, folder with task and corpus,
scratch folder. It uses only what a user would, in a process of its own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kinject_trainer.command import train

from lm_eval_kinject.hub.adapters import add, verify
from lm_eval_kinject.hub.push import push_dataset, push_model, push_run
from lm_eval_kinject.hub.submit import submit_results, submit_scores

RECIPE = """\
model: me/reader
corpus: me/corpus
variant: ft-par
paraphrases: 2
method: lora
rank: 4
block_size: 16
epochs: 2
global_batch: 4
learning_rate: 1.0e-3
forgetting: false
validate_every: never
"""
PLAIN = """\
import sys
sys.modules["lm_eval_kinject"] = sys.modules["kinject_trainer"] = None  # as where they aren't installed
from peft import PeftModel
from transformers import AutoModelForCausalLM
model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("me/reader"), "me/reader-ft-par")
print("LOADED", sum("lora" in name for name, _ in model.named_parameters()))
"""


def score(tasks: Path, out: Path, home: Path, k: int) -> None:
    """lm_eval from the command line, with a cache of its own."""
    arguments = f"pretrained=me/reader,peft=me/reader-ft-par,corpus=me/corpus,retriever=bm25,k={k}"
    command = [
        sys.executable, "-m", "lm_eval_kinject", "--model", "rag-hf", "--model_args", arguments, "--include_path",
        str(tasks), "--tasks", "current_events_cloze", "--output_path", str(out), "--log_samples",
    ]  # fmt: skip
    run(command, {"HF_HOME": str(home)})


def run(command: list[str], more: dict[str, str]) -> str:
    """A process that must end well; returns what it printed."""
    done = subprocess.run(command, env={**os.environ, **more}, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{command[:4]} failed:\n{done.stdout[-2000:]}\n{done.stderr[-6000:]}")
    return done.stdout


def main() -> None:
    """Tells the story and prints what came of it, with the seconds of each chapter."""
    base, material, scratch = map(Path, sys.argv[1:4])
    said: list[str] = []
    seen: dict[str, Any] = {"seconds": {}}

    @contextmanager
    def chapter(name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        seen["seconds"][name] = round(time.perf_counter() - start, 1)

    with chapter("push base and data"):
        push_model(base, "me/reader", say=said.append)
        push_dataset(material / "corpus", "me/corpus", say=said.append)
        push_dataset(material / "tasks/current_events/data", "me/questions", say=said.append)
    with chapter("train"):
        (scratch / "reader-ft-par.yaml").write_text(RECIPE)
        made = train(scratch / "reader-ft-par.yaml", out=scratch / "run", say=said.append)
        assert made.folder is not None
    with chapter("push run"):
        seen["pushed"] = push_run(made.folder, "me/reader-ft-par", say=said.append).sent  # type: ignore[union-attr]
        seen["pushed again"] = push_run(made.folder, "me/reader-ft-par").sent  # type: ignore[union-attr]
    with chapter("score"):
        score(material / "tasks", scratch / "out", scratch / "fresh", k=2)
    with chapter("push scores"):
        submit_scores([scratch / "out"], "me/reader-ft-par", say=said.append)
    with chapter("pull request"):
        request = push_run(made.folder, "other/reader-ft-par", pull_request=True, say=said.append)
        seen["pull request"] = request.pull_request  # type: ignore[union-attr]
    with chapter("submit"):
        submit_results([scratch / "out"], "me/results", say=said.append)
        call = next(line for line in said if line.startswith("datasets.load_dataset"))
        program = f"import datasets; print('ROW', {call}[0]['results']['current_events_cloze']['acc,none'])"
        printed = run([sys.executable, "-c", program], {"HF_HOME": str(scratch / "fresh2")})
        seen["row"] = printed.split("ROW")[1].strip()
    with chapter("plain peft"):
        seen["plain"] = (
            run([sys.executable, "-c", PLAIN], {"HF_HOME": str(scratch / "fresh3")}).split("LOADED")[1].strip()
        )
    with chapter("register"):
        add("me/reader-ft-par", say=said.append)
        seen["verified"] = verify("reader-ft-par", say=said.append).repo
    seen["said"] = said
    print("SEEN " + json.dumps(seen))


if __name__ == "__main__":
    main()
