"""Whether a wording means what its passage means, as a model of natural language inference sees it.

What it is for: `Entailment` asks a cross-encoder that the user names; paraphrases that it refuses are asked for again
(wordings.py). What it does not do: it is never asked by default, and it comes after the rules, which see numbers and
names better than such models do.

The one idea: two questions, as two things go wrong. A passage that doesn't entail its wording: something was invented.
A wording that doesn't entail its passage: something was lost.
"""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

from lm_eval_kinject.errors import ModelError
from lm_eval_kinject.hub.fetch import locate_model

__all__ = ["INVENTED", "LOST", "Entailment"]

INVENTED = "not entailed by the passage"
LOST = "doesn't entail the passage"

_ADVICE = "Without a network pass --nli the folder of a model, or leave it out."
_SUCH_AS = "pass one of natural language inference, such as cross-encoder/nli-deberta-v3-base"


class Entailment:
    """A cross-encoder that tells entailment from other relations.

    A pair is entailed if that is the likeliest of the model's labels. What is longer than the model reads isn't judged,
    as it would be judged by a part of itself; ``unjudged`` counts such wordings.

    Args:
        model: a Hub id with or without ``@revision``, or a folder.

    Raises:
        ModelError: it can't be reached or loaded, or has no label called entailment.
    """

    def __init__(self, model: str) -> None:
        path, self.identity = locate_model(model, error=ModelError, offline_advice=_ADVICE)
        self._label = _entailment_of(path, self.name)
        self._model = _load(path, self.name)
        self._lock = threading.Lock()
        self.unjudged = 0

    @property
    def name(self) -> str:
        """The model's name without a path."""
        return next(iter(self.identity.values()))

    def problem(self, passage: str, wording: str) -> str | None:
        """`INVENTED`, `LOST`, or None: each entails the other, or the two are too long to be judged."""
        import numpy as np

        pairs = [(passage, wording), (wording, passage)]
        with self._lock:  # chunks are worked on side by side
            if self._too_long(pairs):
                self.unjudged += 1
                return None
            scores = np.asarray(self._model.predict(pairs, batch_size=2, show_progress_bar=False))
        if not np.isfinite(scores).all():
            raise ModelError(f"--nli {self.name} gave a score that is no number; {_SUCH_AS}")
        forth, back = (scores.argmax(axis=1) == self._label).tolist()
        return None if forth and back else LOST if forth else INVENTED

    def _too_long(self, pairs: list[tuple[str, str]]) -> bool:
        limit = self._model.max_seq_length
        read = self._model.tokenizer([one for one, _ in pairs], [other for _, other in pairs])["input_ids"]
        return limit is not None and any(len(ids) > limit for ids in read)

    def provenance(self) -> dict[str, Any]:
        """The model's identity, and how many wordings it didn't judge."""
        return {"model": dict(self.identity), "unjudged": self.unjudged}


def _entailment_of(path: Path, name: str) -> int:
    """The number of the label, by its name: models put it in different places."""
    try:
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
        labels = {int(number): str(label) for number, label in (config.get("id2label") or {}).items()}
    except (OSError, ValueError, AttributeError) as problem:
        raise ModelError(f"--nli {name}: its config.json can't be read; pass a whole model. {_ADVICE}") from problem
    found = [number for number, label in labels.items() if label.lower() in ("entailment", "entails", "entailed")]
    if len(found) != 1:
        told = ", ".join(labels.values()) or "none"
        raise ModelError(f"--nli {name} has no label called entailment (its labels: {told}); {_SUCH_AS}")
    return found[0]


def _load(path: Path, name: str) -> Any:
    import torch

    from lm_eval_kinject.retrieval.encoders import first_line, quiet, unloadable

    try:
        import sentence_transformers

        with quiet():
            return sentence_transformers.CrossEncoder(
                str(path),
                device="cuda" if torch.cuda.is_available() else "cpu",
                activation_fn=torch.nn.Identity(),
                local_files_only=True,
                trust_remote_code=False,
            )
    except unloadable() as problem:
        raise ModelError(
            f"--nli {name} can't be loaded by sentence-transformers: {first_line(problem)}. Models that bring their "
            f"own code are refused. {_ADVICE}"
        ) from problem
