"""Training by masked words: the encoder's own transformer with a head that says which word stands at a place.

What it is for: `train_masked` changes the encoder in place. What it does not do: it chooses no tokens (`mask.py`), and
keeps no head, which nobody asks when chunks are embedded.

The one idea: a sentence encoder has no such head, and a new one first learns by itself, with the encoder frozen.
Trained together from the start, the random head's gradients would undo what the encoder knows.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from transformers import AutoModelForMaskedLM, Trainer, set_seed

from kinject_trainer.errors import TrainingError
from kinject_trainer.retriever.arguments import Journal, common_arguments, silence
from kinject_trainer.retriever.mask import ExactMasking
from kinject_trainer.retriever.plan import RetrieverRecipe
from kinject_trainer.train import quietly
from lm_eval_kinject.retrieval.encoders import quiet

__all__ = ["train_masked"]


def train_masked(model: Any, texts: Sequence[str], recipe: RetrieverRecipe, journal: Journal) -> None:
    """Trains an encoder by masked words.

    Args:
        model: of sentence-transformers; the transformer in it is changed.
        texts: of chunks; each is cut at what the model reads.
        recipe: with ``mlm``.
        journal: is told each update.

    Raises:
        TrainingError: the model can't say words (no mask token, no such head for its architecture), or a loss is not a
            number.
    """
    how, tokenizer = recipe.mlm, model.tokenizer
    assert how is not None  # asked by the caller
    if getattr(tokenizer, "mask_token", None) is None:
        raise TrainingError(f"{recipe.retriever} has no mask token, so it can't be trained by masked words: mlm: none.")
    rows = tokenizer(list(texts), truncation=True, max_length=model.max_seq_length, return_special_tokens_mask=True)
    data = [{key: rows[key][number] for key in rows} for number in range(len(texts))]
    set_seed(recipe.seed)
    encoder = model[0].auto_model
    speaker, is_new = _with_head(encoder, recipe)
    masking = ExactMasking(tokenizer, mlm_probability=how.probability, seed=recipe.seed)
    train = partial(_train, speaker, data, masking, recipe)
    if is_new and how.head_epochs:
        speaker.base_model.requires_grad_(False)
        train(how.head_epochs, how.head_learning_rate, journal.part("head"))
        speaker.base_model.requires_grad_(True)
    train(how.epochs, how.learning_rate, journal.part("mlm"))
    learned = {name: weight.detach().cpu() for name, weight in speaker.base_model.state_dict().items()}
    left = encoder.cpu().load_state_dict(learned, strict=False)
    # A pooler isn't trained by masked words; anything else that doesn't fit would be silently left as it was.
    if strange := [name for name in (*left.missing_keys, *left.unexpected_keys) if "pooler" not in name]:
        raise TrainingError(f"{recipe.retriever} has another shape with a head ({strange[0]}, …): set mlm: none.")


def _with_head(encoder: Any, recipe: RetrieverRecipe) -> tuple[Any, bool]:
    """The encoder with a head on it, and whether the head, or a part of it, is new."""
    with tempfile.TemporaryDirectory() as folder, quiet():
        encoder.save_pretrained(Path(folder))
        try:
            speaker, loading = AutoModelForMaskedLM.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False, output_loading_info=True
            )
        except ValueError as problem:
            raise TrainingError(
                f"{recipe.retriever} is a {type(encoder).__name__}, for which transformers has no head that says "
                f"masked words: set mlm: none."
            ) from problem
    return speaker, bool(loading["missing_keys"])


def _train(
    speaker: Any, data: Any, masking: Any, recipe: RetrieverRecipe, epochs: float, rate: float, journal: Any
) -> None:
    assert recipe.mlm is not None  # asked by the caller
    with tempfile.TemporaryDirectory() as folder, quietly():
        arguments = common_arguments(recipe, Path(folder), recipe.mlm.batch, rate, epochs)
        trainer = Trainer(
            model=speaker,
            args=arguments,
            train_dataset=data,
            data_collator=masking,
            callbacks=[journal],
        )
        silence(trainer).train()
