"""Reads the Parquet files beside this one, wherever lm_eval was started and wherever this folder was installed.

lm_eval hands `data_files` to `datasets.load_dataset`, for which a relative path starts at the working directory. Here
it starts at this folder; and as a few hundred rows fit into memory, nothing is copied into the datasets cache, where an
older edition under the same path could be found again.

Of dated questions (`kinject corpus newswire --months`) a window can be asked alone: `--metadata '{"from": "2026-02",
"to": "2026-03"}'`.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
from datasets import Dataset, DatasetDict
from lm_eval.api.task import ConfigurableTask

from lm_eval_kinject.corpus.sources.realtimeqa import Window
from lm_eval_kinject.errors import ArgumentError

FOLDER = Path(__file__).resolve().parent


class BundledTask(ConfigurableTask):
    """A task of lm_eval in every respect but where its rows come from."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__(config={key: value for key, value in config.items() if key != "class"})

    def download(self, dataset_kwargs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        files = (dataset_kwargs or {})["data_files"]
        said = self.config.metadata or {}
        window = Window.of(*(None if said.get(end) is None else str(said[end]) for end in ("from", "to")))
        self.dataset = DatasetDict({split: _read(FOLDER / file, window) for split, file in files.items()})


def _read(file: Path, window: Window) -> Dataset:
    data = file.read_bytes()
    table = pyarrow.parquet.read_table(pyarrow.BufferReader(data))
    named = hashlib.sha256(data)
    if window != Window():
        if "date" not in table.column_names:
            raise ArgumentError(f"{file.name} has no dates: leave `from` and `to` out of --metadata", "the questions")
        table = table.filter([day in window for day in table["date"].to_pylist()])
        if not len(table):
            raise ArgumentError(f"{file.name} has no questions of {window}: name another window", "the questions")
        named.update(str(window).encode())
    # Left to itself, datasets names a table by pickling it, which fails where libraries lie outside site-packages.
    return Dataset(table, fingerprint=named.hexdigest()[:16])
