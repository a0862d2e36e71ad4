"""Training by pairs: a question's own chunk must be nearer to it than every other chunk of the batch.

What it is for: `train_pairs` changes the encoder in place. What it does not do: it looks for no negatives
(`material.py`).

The one idea: DPR's loss is sentence-transformers' `MultipleNegativesRankingLoss`, −log softmax of the right chunk's
similarity among those of all chunks of the batch, the other questions' hard negatives included. So what answers one
question of a batch must not stand in it once more: their sampler makes batches in which no text comes twice.

DPR takes plain dot products; here it is the model's own similarity, by which it is searched, times a scale: cosines lie
too close together for a softmax without one.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset

# Names of 5 and of 6, which calls `losses` and `training_args` old; until 5 is no longer taken.
from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.losses import MultipleNegativesRankingLoss
from sentence_transformers.training_args import BatchSamplers
from sentence_transformers.util import cos_sim, dot_score

from kinject_trainer.retriever.arguments import Journal, common_arguments, silence
from kinject_trainer.retriever.material import Pair
from kinject_trainer.retriever.plan import RetrieverRecipe
from kinject_trainer.train import quietly

__all__ = ["prompts_of", "scale_of", "train_pairs"]

_SCALE = {"cosine": 20.0, "dot": 1.0}
_PASSAGE = ("document", "passage", "corpus")
"""Names that a passage's prompt may have; the first there is counts, as for their `encode_document`."""


class _Trainer(SentenceTransformerTrainer):
    """Theirs, without what it gathers for a card of its own (`card.py` writes ours)."""

    def add_model_card_callback(self, default_args_dict: dict[str, Any]) -> None:
        """See sentence-transformers."""


def train_pairs(model: Any, pairs: Sequence[Pair], recipe: RetrieverRecipe, journal: Journal) -> None:
    """Trains an encoder by pairs.

    Args:
        model: of sentence-transformers; changed.
        pairs: each with as many hard negatives as the others.
        recipe: with ``contrastive``.
        journal: is told each update.

    Raises:
        TrainingError: a loss is not a number.
    """
    how = recipe.contrastive
    assert how is not None  # asked by the caller
    columns = {"question": [pair.question for pair in pairs], "chunk": [pair.chunk for pair in pairs]}
    for number in range(how.hard_negatives):
        columns[f"negative_{number}"] = [pair.negatives[number] for pair in pairs]
    loss = MultipleNegativesRankingLoss(
        model,
        scale=scale_of(model, how.scale),
        similarity_fct=cos_sim if model.similarity_fn_name == "cosine" else dot_score,
    )
    with tempfile.TemporaryDirectory() as folder, quietly():
        arguments = common_arguments(
            recipe,
            Path(folder),
            how.batch,
            how.learning_rate,
            how.epochs,
            SentenceTransformerTrainingArguments,
            batch_sampler=BatchSamplers.NO_DUPLICATES,
            prompts=prompts_of(model, columns),
        )
        trainer = _Trainer(
            model=model,
            args=arguments,
            train_dataset=Dataset.from_dict(columns),
            loss=loss,
            callbacks=[journal.part("pairs")],
        )
        silence(trainer).train()
    model.to("cpu")


def scale_of(model: Any, given: float | None) -> float:
    """What similarities are multiplied by: as given, else what is usual for the model's similarity."""
    return _SCALE[str(model.similarity_fn_name)] if given is None else given


def prompts_of(model: Any, columns: Sequence[str] | dict[str, Any]) -> dict[str, str] | None:
    """What the model puts before questions and chunks when it embeds them, for each column; None: nothing."""
    known = {key: text for key, text in (model.prompts or {}).items() if text}
    passage = next((known[key] for key in _PASSAGE if key in known), "")
    said = {column: known.get("query", "") if column == "question" else passage for column in columns}
    return {column: text for column, text in said.items() if text} or None
