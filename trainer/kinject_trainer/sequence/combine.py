"""The corpora of several months as one: what a model is retrained on, and what a merged adapter was trained on.

What it is for: `combine` writes a folder that `load_corpus` and recipes take like any other. What it does not do: it
changes no text and no id.

The one idea: a chunk's id means one text. Ids that two months share are refused and not renamed, for questions,
paraphrases and results name chunks by them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from kinject_trainer.documents import open_corpus, whole_corpus
from kinject_trainer.recipe import Recipe
from kinject_trainer.rows import raw_rows
from lm_eval_kinject.errors import CorpusError
from lm_eval_kinject.provenance import publish_folder
from lm_eval_kinject.questions.folder import Row
from lm_eval_kinject.questions.ledger import jsonl

__all__ = ["combine"]

_KEPT = ("id", "text", "title", "document_id", "position", "date")
_BESIDE = ("chunk", "number", "text")


def combine(recipes: Sequence[Recipe], months: Sequence[str], folder: Path) -> None:
    """Writes the corpora of some months as one, with the paraphrases and validation texts beside them.

    Args:
        recipes: of the months, in their order.
        months: their names, for errors.
        folder: where to; appears whole. One that is there is left as it is.

    Raises:
        CorpusError: two months share a chunk's id, or a corpus can't be read.
    """
    if folder.is_dir():
        return
    chunks: list[Row] = []
    beside: dict[str, list[Row]] = {"paraphrases": [], "validation": []}
    owners: dict[str, str] = {}
    for recipe, month in zip(recipes, months, strict=True):
        for chunk in whole_corpus(recipe).chunks:
            if chunk.id in owners:
                raise CorpusError(
                    f"The months {owners[chunk.id]} and {month} both have a chunk {chunk.id}: make ids unique over all "
                    f"months, for questions and paraphrases name chunks by them."
                )
            owners[chunk.id] = month
            chunks.append({**chunk.meta, **{name: getattr(chunk, name) for name in _KEPT}})
        for stem, file in open_corpus(recipe).beside().items():
            beside[stem] += [{key: row.get(key) for key in _BESIDE} for row in raw_rows(file)]
    with publish_folder(folder) as building:
        (building / "chunks.jsonl").write_bytes(jsonl(chunks))
        for stem, rows in beside.items():
            if rows:
                (building / f"{stem}.jsonl").write_bytes(jsonl(rows))
