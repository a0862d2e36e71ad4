"""How well the reader reads and recalls, measured while it trains.

A probe counts answers whose every token is the model's first choice (teacher-forced), which is stricter than picking
the best of four options, and costs one forward a row. Reading is probed on a world that it never trains on: with the
wordings it knows, with held-out phrasings only, and on held-out kinds.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from functools import lru_cache

import torch
from transformers import PreTrainedModel

from kinject_trainer.reader.mixture import (
    PROBE_EVENTS,
    PROBE_SEED,
    Mixture,
    ReadingShape,
    Row,
    collate,
    training_kinds,
)
from lm_eval_kinject.corpus.sources.newswire.kind import READER_HELD_OUT_KINDS, load_kinds
from lm_eval_kinject.corpus.sources.newswire.world import World

_ROWS = 24


@lru_cache(maxsize=2)
def probe_worlds(edition: int = 1) -> Mapping[str, World]:
    """The three worlds to read about: known wordings, held-out phrasings, held-out kinds."""
    kinds = load_kinds(edition=edition)
    held = [k for k in kinds if k.kind in READER_HELD_OUT_KINDS]
    unseen = [k.held_out_only() for k in kinds if k.kind not in READER_HELD_OUT_KINDS]
    sets = {"known wordings": training_kinds(edition), "held-out phrasings": unseen, "held-out kinds": held}
    return {name: World(PROBE_SEED, kinds, PROBE_EVENTS, "reader") for name, kinds in sets.items()}


def probe(model: PreTrainedModel, mixture: Mixture) -> dict[str, float]:
    """Share of answers got right, by name of the probe."""
    writers: dict[str, Callable[[random.Random], Row]] = {}
    for name, world in probe_worlds(mixture.edition).items():
        for letters, k in ((False, 3), (True, 3), *([(False, 1)] if name == "known wordings" else [])):
            shape = ReadingShape(k, 5, letters)
            key = f"{'letters' if letters else 'cloze'}, k={k}, {name}"
            writers[key] = lambda rng, world=world, shape=shape: mixture.reading_row(world, shape, rng)  # type: ignore[misc]
    writers["recall, trained questions"] = lambda rng: mixture.closed_book_row(rng, 512)
    writers["recall, stated only"] = lambda rng: mixture.closed_book_row(rng, 512, asked=False)
    return {
        name: _accuracy(model, [write(random.Random(f"{name}{i}")) for i in range(_ROWS)], mixture)
        for name, write in writers.items()
    }


@torch.no_grad()
def _accuracy(model: PreTrainedModel, rows: list[Row], mixture: Mixture) -> float:
    right = total = 0
    model.eval()
    for start in range(0, len(rows), 8):
        part = rows[start : start + 8]
        ids, _ = collate(part, mixture.tokenizer.pad_token_id)
        with torch.autocast(model.device.type, dtype=torch.bfloat16):
            best = model(input_ids=ids.to(model.device), use_cache=False).logits.argmax(-1).cpu()
        for row, guesses, truth in zip(part, best, ids, strict=True):
            for first, last in row.spans:
                right += bool((guesses[first - 1 : last - 1] == truth[first:last]).all())
                total += 1
    model.train()
    return right / max(1, total)
