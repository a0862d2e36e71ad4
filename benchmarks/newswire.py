"""The bundled edition measured: what guessing earns, and how different the paraphrases of a chunk are.

What it is for: the figures in docs/log.md. What it does not do: judge (tests/unit/test_newswire.py holds the bounds).

    python benchmarks/newswire.py
"""

from __future__ import annotations

import itertools
import json
import random
import re
import statistics
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence

import pyarrow.parquet as pq

from lm_eval_kinject.plugin import tasks_dir

FOLDER = tasks_dir() / "current_events"


def main() -> None:
    wordings = _wordings()
    texts = [[_words(text) for text in texts] for texts in wordings.values()]
    print(f"{len(texts)} source chunks, {len(texts[0])} wordings of each")
    print("all wordings of a chunk differ:", all(len(set(map(tuple, one))) == len(one) for one in texts))
    for n in (1, 2, 3):
        print(f"distinct-{n}: {statistics.mean(_distinct(one, n) for one in texts):.3f}")
    for n, unit in ((1, "words"), (2, "pairs of words")):
        print(f"{unit} that two wordings share (Jaccard): {statistics.mean(_overlaps(texts, n)):.3f}")
    for name, share in _guessers().items():
        print(f"guessing {name}: {100 * share:.1f} %")


def _wordings() -> Mapping[str, list[str]]:
    """Chunk id -> the original and its paraphrases, of source chunks."""
    wordings = defaultdict(list)
    for row in pq.read_table(FOLDER / "corpus" / "chunks.parquet").to_pylist():
        if row["role"] == "source":
            wordings[row["id"]].append(row["text"])
    for row in pq.read_table(FOLDER / "corpus" / "paraphrases.parquet").to_pylist():
        wordings[row["chunk"]].append(row["text"])
    return wordings


def _words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9']+", text.lower())


def _ngrams(words: Sequence[str], n: int) -> list[tuple[str, ...]]:
    return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]


def _distinct(wordings: Sequence[Sequence[str]], n: int) -> float:
    """Distinct-n (Li et al., arXiv 1510.03055) over the wordings of one chunk."""
    found = [gram for words in wordings for gram in _ngrams(words, n)]
    return len(set(found)) / len(found)


def _overlaps(texts: Sequence[Sequence[Sequence[str]]], n: int) -> list[float]:
    pairs = (pair for one in texts for pair in itertools.combinations([set(_ngrams(w, n)) for w in one], 2))
    return [len(a & b) / len(a | b) for a, b in pairs]


def _guessers() -> Mapping[str, float]:
    """How often who looks at the options only, or counts in the corpus, would be right."""
    questions = pq.read_table(FOLDER / "data" / "test.parquet").to_pylist()
    rows = pq.read_table(FOLDER / "corpus" / "chunks.parquet").to_pylist()
    everywhere, asked = (
        Counter(value for row in rows if row["role"] in roles for value in json.loads(row["facts"]).values())
        for roles in (("source", "background", "few-shot"), ("source",))
    )
    keys: dict[str, Callable[[str], float]] = {
        "the longest option": len,
        "the shortest": lambda choice: -len(choice),
        "the most frequent in the corpus": lambda choice: everywhere[choice],
        "the rarest in the corpus": lambda choice: -everywhere[choice],
        "the most frequent in source chunks": lambda choice: asked[choice],
    }
    shares = {f"always {letter}": _share(questions, [i] * len(questions)) for i, letter in enumerate("ABCD")}
    rng = random.Random(0)  # between equals
    for name, key in keys.items():
        guesses = [max(range(4), key=lambda i: (key(q["choices"][i]), rng.random())) for q in questions]
        shares[name] = _share(questions, guesses)
    return shares


def _share(questions: Sequence[Mapping[str, int]], guesses: Sequence[int]) -> float:
    return statistics.mean(q["answer"] == guess for q, guess in zip(questions, guesses, strict=True))


if __name__ == "__main__":
    main()
