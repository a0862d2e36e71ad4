"""Finds the window of real news that ``--metadata`` names, and builds it where it isn't built yet.

lm_eval hands what stands in ``--metadata`` (and in ``--model_args``, and the YAML's own metadata) to this function as
keyword arguments. The mapping under ``kinject`` is the task's own, so that the corpus named in it is the one that
rag-hf finds declared.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
from datasets import Dataset, DatasetDict

from lm_eval_kinject.corpus.sources.realtimeqa import Window
from lm_eval_kinject.corpus.sources.realtimeqa_build import build_live
from lm_eval_kinject.corpus.sources.realtimeqa_fetch import fetch_weeks, is_address
from lm_eval_kinject.errors import ArgumentError
from lm_eval_kinject.log import log
from lm_eval_kinject.provenance import fingerprint
from lm_eval_kinject.retrieval import cache_dir

HOW = (
    'Pass --metadata \'{"folder": "FOLDER"}\' with a folder that `kinject corpus realtimeqa` wrote, or '
    '\'{"source": "CLONE", "from": "2023-08", "to": "2023-11"}\' with a clone of '
    "github.com/realtimeqa/realtimeqa_public, of which the window is built into the cache."
)


def live(**said: Any) -> DatasetDict:
    """The questions of the window; sets ``corpus`` in what the task declares."""
    folder = _folder(said)
    said["kinject"]["corpus"] = str(folder / "corpus")
    data = (folder / "data" / "test.parquet").read_bytes()
    table = pyarrow.parquet.read_table(pyarrow.BufferReader(data))
    # As in current_events: read here and named by content, so that nothing is copied into the datasets cache.
    return DatasetDict({"test": Dataset(table, fingerprint=hashlib.sha256(data).hexdigest()[:16])})


def _folder(said: dict[str, Any]) -> Path:
    given, source = said.get("folder"), said.get("source")
    if bool(given) == bool(source) or (given and (said.get("from") or said.get("to"))):
        raise ArgumentError(
            f"either `folder` alone or `source` with its window is needed. {HOW}", "current_events_live"
        )
    if given:
        folder = Path(str(given)).expanduser().resolve()
        if not (folder / "build.json").is_file():
            raise ArgumentError(f"folder={given} holds no finished build. {HOW}", "current_events_live")
        return folder
    window = Window.of(*(None if said.get(end) is None else str(said[end]) for end in ("from", "to")))
    fetched = cache_dir() / "realtimeqa" / "upstream"
    clone = fetch_weeks(str(source), window, fetched) if is_address(str(source)) else Path(str(source)).expanduser()
    clone = clone.resolve()
    name = f"{window.first}_{window.last}-{fingerprint(str(clone))[:12]}"
    return build_live(clone, cache_dir() / "realtimeqa" / name, window, say=log.info).folder
