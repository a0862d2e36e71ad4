"""The model card of an adapted retriever, from its record.

What it does not do: it praises nothing; what wasn't measured is said to be so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import yaml

__all__ = ["summary", "write_card"]

_PARTS = {"head": "masked words, head alone", "mlm": "masked words", "pairs": "pairs"}


def write_card(record: Mapping[str, Any], again: Mapping[str, Any]) -> str:
    """The card in Markdown with its front matter.

    Args:
        record: of a run (`kinject.json`).
        again: the recipe as it can be run again.
    """
    recipe, base = record["recipe"], record["base"]
    matter: dict[str, Any] = {
        "library_name": "sentence-transformers",
        "pipeline_tag": "sentence-similarity",
        "tags": ["sentence-transformers", "lm-eval-kinject", "retriever"],
    }
    if "repo" in base["identity"]:
        matter["base_model"] = base["identity"]["repo"]
    front = yaml.safe_dump(matter, sort_keys=True, allow_unicode=True)
    parts = [f"---\n{front}---\n", f"# {recipe['name']}\n", _what(record), _training(record), _measured(record)]
    return "\n".join([*parts, _use(), _recipe(record, again)])


def summary(record: Mapping[str, Any]) -> list[str]:
    """What came out, for people."""
    recall = record["recall"]
    if recall is None:
        return ["Recall was not measured: name measure in the recipe."]
    before, after = recall["before"]["recall@1"], recall["after"]["recall@1"]
    changed = f"{recall['better']} only after, {recall['worse']} only before; p = {recall['p']:.2g}"
    return [f"recall@1 of {recall['questions']:,} questions: {before:.3f} before, {after:.3f} after ({changed})"]


def _what(record: Mapping[str, Any]) -> str:
    corpus, data, base = record["corpus"], record["data"], record["base"]["name"]
    done = []
    if data["chunks"]:
        done.append(
            f"by masked words on {data['chunks']:,} chunks ({record['recipe']['mlm']['probability']:.0%} of each one's "
            f"tokens; 80 % of these masked, 10 % random, 10 % as they are)"
        )
    if data["pairs"]:
        hard = record["recipe"]["contrastive"]["hard_negatives"]
        beside = f" and {hard} hard negative{'s' if hard > 1 else ''} of BM25 for each" if hard else ""
        done.append(
            f"on {data['pairs']:,} pairs of question and chunk, against the other chunks of the batch{beside} (scale "
            f"{data['scale']:g})"
        )
    untested = " No question of a bundled test set is among those trained on." if data["pairs"] else ""
    return (
        f"The text encoder `{base}`, trained further {', then '.join(done)}, to find the chunk that answers a question "
        f"about texts like those of `{corpus['name']}`.{untested}\n\n"
        f"Corpus fingerprint `{corpus['fingerprint'][:16]}`, licence: {corpus.get('licence') or 'not stated'}.\n"
    )


def _training(record: Mapping[str, Any]) -> str:
    rows = [
        (_PARTS[part], f"{said['updates']:,}", f"{said['loss_first']:.4f}", f"{said['loss_last']:.4f}")
        for part, said in record["training"].items()
    ]
    table = _table(("", "updates", "loss, first tenth", "loss, last tenth"), rows)
    return f"## Training\n\n{table}\nLosses are nats: a masked token, or a question.\n"


def _measured(record: Mapping[str, Any]) -> str:
    recall, measured = record["recall"], record["measured"]
    if recall is None:
        return "## Recall\n\nNot measured.\n"
    rows = [(key, f"{recall['before'][key]:.3f}", f"{recall['after'][key]:.3f}") for key in recall["before"]]
    corpus = measured["corpus"]
    return (
        "## Recall\n\n"
        + _table(("", "before", "after"), rows)
        + f"\n{recall['questions']:,} questions about `{corpus['name']}` ({corpus['chunks']:,} chunks, "
        f"{corpus['source']}; fingerprint `{corpus['fingerprint'][:16]}`), none of them trained on. Found first only "
        f"after: {recall['better']}, only before: {recall['worse']}; McNemar's exact test over chunks, p = "
        f"{recall['p']:.2g}.\n"
    )


def _use() -> str:
    return (
        "## Use\n\nRUN is this folder.\n\n```\n"
        "lm_eval --model rag-hf --model_args retriever=RUN,k=3 --tasks current_events_cloze\n```\n\n"
        "```python\nfrom sentence_transformers import SentenceTransformer\n\n"
        'model = SentenceTransformer("RUN")\n```\n'
    )


def _recipe(record: Mapping[str, Any], again: Mapping[str, Any]) -> str:
    packages = record["environment"]["packages"]
    names = ("torch", "transformers", "sentence-transformers")
    versions = ", ".join(f"{name} {packages[name]}" for name in names if packages[name])
    said = f"Made with {versions}. `kinject.json` has fingerprints and every figure."
    return f"## Recipe\n\n{said}\n\n```yaml\n{yaml.safe_dump(dict(again), sort_keys=False, allow_unicode=True)}```\n"


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines) + "\n"
