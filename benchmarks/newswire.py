"""The bundled edition measured: what guessing earns, what a chunk gives away by type, how different paraphrases are.

What it is for: the figures in docs/log.md. What it does not do: judge (tests/unit/test_newswire.py holds the bounds).

    python benchmarks/newswire.py
"""

from __future__ import annotations

import statistics

import pyarrow.parquet as pq

from lm_eval_kinject.corpus.sources.newswire import load_kinds
from lm_eval_kinject.corpus.sources.newswire.measure import (
    distinct_n,
    given_away_by_type,
    guessers,
    mean_overlap,
    wordings_by_chunk,
)
from lm_eval_kinject.plugin import tasks_dir

FOLDER = tasks_dir() / "current_events"


def main() -> None:
    questions, chunks, paraphrases = (
        pq.read_table(FOLDER / name).to_pylist()
        for name in ("data/test.parquet", "corpus/chunks.parquet", "corpus/paraphrases.parquet")
    )
    wordings = list(wordings_by_chunk(chunks, paraphrases).values())
    print(f"{len(wordings)} source chunks, {len(wordings[0])} wordings of each")
    print("all wordings of a chunk differ:", all(len(set(map(tuple, one))) == len(one) for one in wordings))
    for n in (1, 2, 3):
        print(f"distinct-{n}: {statistics.mean(distinct_n(one, n) for one in wordings):.3f}")
    for n, unit in ((1, "words"), (2, "pairs of words")):
        print(
            f"{unit} that two wordings share (Jaccard): {statistics.mean(mean_overlap(one, n) for one in wordings):.3f}"
        )
    for name, share in guessers(questions, chunks).items():
        print(f"guessing {name}: {100 * share:.1f} %")
    print("\nWith the right chunk at hand, by the type of value that is asked for")
    print("values: of that type in the chunk, mean; guessed: right with one of them at random; only one: there is no")
    print("other; rivalled: a wrong option is from the same chunk")
    print(f"{'type':<10}{'questions':>10}{'values':>10}{'guessed':>10}{'only one':>10}{'rivalled':>10}")
    for name, of in given_away_by_type(questions, chunks, load_kinds()).items():
        shares = "".join(f"{100 * share:>8.1f} %" for share in (of.guessed, of.alone, of.rivalled))
        print(f"{name:<10}{of.questions:>10}{of.candidates:>10.2f}{shares}")


if __name__ == "__main__":
    main()
