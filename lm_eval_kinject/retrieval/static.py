"""A transformer distilled into a table: a text's vector is the mean of its word pieces' vectors.

What it is for: ``retriever=static``, for corpora that a transformer would take days to embed: many times as
fast, at a price in recall. What it does not do: see the order of words, or tell one sense of a word from another.

The one idea is model2vec's: each word piece goes through the transformer once, alone; the vectors lose their common
directions (PCA to 256 dimensions) and frequent pieces most of their weight. The table is made once and kept; its bytes
are its name, as two machines needn't come to the same last bits.

    CACHE/static/KEY/    model.safetensors  tokenizer.json  config.json  manifest.json      (about 30 MB)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from lm_eval_kinject.errors import RetrievalError
from lm_eval_kinject.log import log
from lm_eval_kinject.plugin import cache_dir
from lm_eval_kinject.provenance import fingerprint, fingerprint_folder, publish_folder, read_json, write_json
from lm_eval_kinject.records import Chunk
from lm_eval_kinject.retrieval.encoders import Vectors, first_line, quiet, unloadable

__all__ = ["Static"]

DIMENSIONS = 256
"""Of the vectors; as many as the transformer has where it has fewer."""


class Static:
    """An encoder that looks up word pieces; see :class:`~lm_eval_kinject.retrieval.encoders.Encoder`.

    Args:
        name: as given by the user, for messages.
        teacher: folder of the transformer that is distilled.
        identity: of the transformer, path-free.

    Raises:
        RetrievalError: the transformer can't be distilled.
    """

    def __init__(self, name: str, teacher: Path, identity: Mapping[str, str]) -> None:
        from model2vec import StaticModel

        self.device = "cpu"
        self.queries_cut = 0
        folder, found = _distilled(name, teacher, identity)
        self._model = StaticModel.from_pretrained(folder, quantize_to="float32")
        model = {"distilled": dict(identity), "sha256": found}
        self.settings: dict[str, Any] = {
            "query_model": model,
            "passage_model": model,
            "passage_reads": "text",
            "pooling": "static",
            "similarity": "cosine",
            "max_tokens": None,
            "dtype": "float32",
        }

    def encode_queries(self, texts: Sequence[str]) -> Vectors:
        """Vectors of questions, shape (texts, dimension); of a text without a known word piece all zeros."""
        found: Vectors = self._model.encode(list(texts), max_length=None, use_multiprocessing=False)
        return np.ascontiguousarray(found, dtype=np.float32)

    def encode_passages(self, chunks: Sequence[Chunk]) -> tuple[Vectors, int]:
        """Vectors of chunks; none is ever too long."""
        return self.encode_queries([chunk.text for chunk in chunks]), 0

    def reads(self, chunk: Chunk) -> str:
        """The text alone."""
        return chunk.text


def _distilled(name: str, teacher: Path, identity: Mapping[str, str]) -> tuple[Path, str]:
    """The folder of the table, made unless it is there and whole, and the SHA-256 of its files."""
    settings = {"teacher": dict(identity), "dimensions": DIMENSIONS, "model2vec": metadata.version("model2vec")}
    folder = cache_dir() / "static" / fingerprint(settings)[:16]
    try:
        manifest = read_json(folder / "manifest.json")
        found = fingerprint_folder(folder, skip=("manifest.json",))
        if manifest == {"settings": settings, "sha256": found}:
            return folder, found
        log.warning("the distilled model %s is damaged: it is made anew", folder)
    except (OSError, ValueError):
        pass  # there is none
    model = _distil(name, teacher)
    try:
        with publish_folder(folder) as building:
            model.save_pretrained(building)
            (building / "README.md").unlink(missing_ok=True)  # it has the teacher's path
            found = fingerprint_folder(building)
            write_json(building / "manifest.json", {"settings": settings, "sha256": found})
    except OSError as problem:
        raise RetrievalError(
            f"retriever={name}: the distilled model can't be written to {folder}: {problem.strerror or problem}. Set "
            f"KINJECT_CACHE to a folder that can be written."
        ) from problem
    return folder, found


def _distil(name: str, teacher: Path) -> Any:
    from model2vec.distill import distill

    log.info("retriever=%s: a transformer is distilled, once, in about half a minute", name)
    try:
        with quiet():
            model = distill(str(teacher), device="cpu", pca_dims=DIMENSIONS, quantize_to="float32")
    except unloadable() as problem:
        raise RetrievalError(
            f"retriever={name}: the model {teacher.name} can't be distilled: {first_line(problem)}."
        ) from problem
    model.config["tokenizer_name"] = ""  # it is the teacher's path, and would be part of what the table is called
    return model
