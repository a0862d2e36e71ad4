"""A finished run of the trainer, as publishing sees it: ``kinject.json``, read once and given names.

What it is for: `read_run` finds in a run's ``kinject.json`` what a card, a record and a verification need. What it does
not do: it writes nothing and loads no weights.

The one idea: the file's layout is known here and nowhere else in this room. What it holds (all parts plain JSON):

    recipe, recipe_fingerprint  every key of the recipe, defaults included
    base                        name, and identity: a Hub commit (40 digits) or a folder's fingerprint (64)
    corpus                      as `Corpus.provenance` gives it: name, fingerprint, chunks, licence, revision, …
    outcome                     learning_rate, updates, tokens, losses, forgetting before and after, parameters
    environment                 versions and processor
    published                   added on the Hub: base, corpus and so on by their public names; digests of files
    scores                      added on the Hub: what `Score.plain` gives, one a number
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lm_eval_kinject.errors import PublishError
from lm_eval_kinject.provenance import fingerprint

__all__ = ["BUNDLED_CORPUS", "FILE", "HUB_CORPUS", "Run", "parse_run", "read_run"]

FILE = "kinject.json"
HUB_CORPUS, BUNDLED_CORPUS = "Hub dataset ", "bundled corpus "
"""How the source of a corpus starts that others can get; the rest is a name."""


@dataclass(frozen=True)
class Run:
    """What a run says about itself; ``data`` is all of it."""

    data: Mapping[str, Any]

    @property
    def recipe(self) -> Mapping[str, Any]:
        """Every key of the recipe."""
        return self._part("recipe")

    @property
    def recipe_fingerprint(self) -> str:
        """Of the recipe."""
        return str(self.data.get("recipe_fingerprint") or fingerprint(self.recipe))

    @property
    def base(self) -> Mapping[str, Any]:
        """The base model: ``name``, and ``commit`` (of the Hub) or ``fingerprint`` (of a folder)."""
        found = self._part("base")
        identity = str(found.get("identity") or "")
        is_commit = re.fullmatch(r"[0-9a-f]{40}", identity) is not None
        return {"name": found.get("name"), ("commit" if is_commit else "fingerprint"): identity}

    @property
    def base_is_local(self) -> bool:
        """Whether the base was a folder (the embedded reader is one), as against a Hub repository at a commit."""
        return "commit" not in self.base

    @property
    def base_names(self) -> tuple[str, ...]:
        """Names under which results speak of the base: its own, and in a published run the one at training time."""
        found = self._part("base")
        before = found.get("trained_on")
        names = [found.get("name"), before.get("name") if isinstance(before, Mapping) else None]
        return tuple(str(name) for name in names if name)

    @property
    def corpus(self) -> Mapping[str, Any]:
        """The corpus: name, fingerprint, licence and so on."""
        return self._part("corpus")

    @property
    def corpus_is_local(self) -> bool:
        """Whether the corpus lay on the trainer's disk, as against on the Hub or in this package."""
        return not str(self.corpus.get("source") or "").startswith((HUB_CORPUS, BUNDLED_CORPUS))

    @property
    def outcome(self) -> Mapping[str, Any]:
        """Losses, figures of forgetting, counts."""
        return self._part("outcome")

    @property
    def scores(self) -> list[Mapping[str, Any]]:
        """Scores that were added on the Hub."""
        return list(self.data.get("scores") or ())

    @property
    def published(self) -> Mapping[str, Any]:
        """Public names that were added on the Hub."""
        return self._part("published")

    @property
    def files(self) -> Mapping[str, str]:
        """Path -> sha256 of weights, settings and tokenizer, added on the Hub."""
        return dict(self.published.get("files") or {})

    @property
    def is_adapter(self) -> bool:
        """Whether the weights are an adapter, as against a whole model."""
        return self.recipe.get("method") != "full"

    def _part(self, name: str) -> Mapping[str, Any]:
        found = self.data.get(name)
        return found if isinstance(found, Mapping) else {}


def read_run(folder: str | Path) -> Run:
    """Reads the ``kinject.json`` of a folder.

    Raises:
        PublishError: there is none, or it says too little.
    """
    file = Path(folder).expanduser() / FILE
    if not file.is_file():
        raise PublishError(
            f"The folder {file.parent.name} has no {FILE}: it isn't the result of a finished `kinject train`. A base "
            "model or a question set is pushed with --as model or --as dataset."
        )
    return parse_run(file.read_bytes(), where=f"{file.parent.name}/{FILE}")


def parse_run(content: bytes, where: str = FILE) -> Run:
    """The same from bytes."""
    try:
        data = json.loads(content)
    except ValueError as problem:
        raise PublishError(f"{where} is no JSON: train again, or get the file back.") from problem
    run = Run(data if isinstance(data, dict) else {})
    required = {
        "recipe": run.recipe,
        "recipe.method": run.recipe.get("method"),
        "recipe.variant": run.recipe.get("variant"),
        "base.name": run.base.get("name"),
        "base.identity": run.base.get("commit") or run.base.get("fingerprint"),
        "corpus.name": run.corpus.get("name"),
        "corpus.fingerprint": run.corpus.get("fingerprint"),
        "environment": run.data.get("environment"),
    }
    missing = [name for name, value in required.items() if not value]
    if missing:
        raise PublishError(f"{where} doesn't say {', '.join(missing)}: a card and a rerun need it. Train again.")
    return run
