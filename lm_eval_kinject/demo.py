"""`make demo`: the product in some minutes on a laptop, with no network, GPU or account.

It scores the embedded reader on the bundled events four times (closed book, with retrieval, with the right chunk, and
closed book after training on the chunks and their paraphrases) by lm_eval's own evaluator, prints lm_eval's table for
each and one line that reads them. It is no benchmark of anything but that the parts work together.
"""

from __future__ import annotations

import argparse
import sys
import time
from typing import Any

from lm_eval_kinject.errors import KinjectError
from lm_eval_kinject.plugin import register, tasks_dir

TASK = "current_events_cloze"
VARIANTS = {
    "closed book": "k=0",
    "minilm, k=3": "retriever=minilm,k=3",
    "oracle": "retriever=oracle,k=1",
    "trained, closed book": "adapter=reader-ft-par-lora,k=0",
}


def evaluate(model_args: str, questions: int, manager: Any) -> dict[str, Any]:
    """lm_eval's results for one variant on the first ``questions`` questions."""
    import lm_eval

    results = lm_eval.simple_evaluate(
        model="rag-hf",
        model_args=model_args,
        tasks=[TASK],
        task_manager=manager,
        limit=questions,
        batch_size=4,
        bootstrap_iters=1,  # more than none, for lm_eval to print standard errors; that of a mean isn't resampled
        log_samples=True,
    )
    if results is None:  # a helper process of a distributed launch
        raise KinjectError("the demo runs in one process; start it without a launcher")
    return dict(results)


def reading(answers: dict[str, list[float]], recall: float) -> str:
    """One line that says what the four accuracies mean."""
    from lm_eval_kinject.stats import accuracy

    closed, found, given, trained = (answers[name] for name in VARIANTS)
    return (
        f"Closed book {accuracy(closed).percent()}, where chance is 25 %. Into the prompt, with minilm and k=3: "
        f"{accuracy(found).percent()}, {gain(closed, found)}; what it still lacks of the right chunk's "
        f"{accuracy(given).percent()} is finding (recall@3 = {recall:.3f}) or telling chunks apart. Into the weights, "
        f"with ten paraphrases of each chunk: {accuracy(trained).percent()}, {gain(closed, trained)}."
    )


def gain(before: list[float], after: list[float]) -> str:
    """What one variant adds to another on the same questions, and whether that is more than noise."""
    from lm_eval_kinject.stats import mcnemar, paired_difference

    points, p = paired_difference(before, after), mcnemar(before, after)
    shown = f"{100 * points.estimate:+.1f} points ({100 * points.low:+.1f} to {100 * points.high:+.1f}, paired; "
    return shown + (f"McNemar p = {p:.2g})" if p < 0.05 else f"no more than noise: McNemar p = {p:.2g})")


def main() -> int:
    """Run the demo; 1 where something is missing."""
    parser = argparse.ArgumentParser(description="score the embedded reader with and without retrieval")
    parser.add_argument("--questions", type=int, default=200, help="questions of each variant (200)")
    questions: int = parser.parse_args().questions
    print("== loading lm_eval", flush=True)
    register()
    from lm_eval.tasks import TaskManager
    from lm_eval.utils import make_table

    manager = TaskManager(include_path=str(tasks_dir()), include_defaults=False)
    answers: dict[str, list[float]] = {}
    recall = 0.0
    began = time.perf_counter()
    for number, (name, model_args) in enumerate(VARIANTS.items(), 1):
        print(
            f"\n== [{number}/{len(VARIANTS)}] {name}\n"
            f"   lm_eval --model rag-hf --model_args {model_args} --tasks {TASK} --limit {questions}",
            flush=True,
        )
        try:
            results = evaluate(model_args, questions, manager)
        except KinjectError as error:
            print(error, file=sys.stderr)
            return 1
        answers[name] = [float(sample["acc"]) for sample in results["samples"][TASK]]
        figures = results["config"]["kinject"].get("tasks", {}).get(TASK, {})
        if name.startswith("minilm"):
            recall = figures["recall@3"]
        print(make_table(results), flush=True)
    print(f"{questions} questions, {len(VARIANTS)} variants: {time.perf_counter() - began:.0f} s\n")
    print(reading(answers, recall))
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print("stopped; the index that was begun is gone on with the next time", file=sys.stderr)
        sys.exit(130)
