"""Reads the texts of a window of time from any corpus with dates, as `--metadata` names it.

lm_eval hands what stands in `--metadata` (and in `--model_args`, and the YAML's own metadata) to this function as
keyword arguments. The mapping under `kinject` is the task's own, so that the corpus named in it is the one that rag-hf
finds declared. What is scored is what the corpus holds: whole documents, or chunks where it was cut already.
"""

from __future__ import annotations

from typing import Any

import pyarrow
from datasets import Dataset, DatasetDict

from lm_eval_kinject.corpus.corpus import find_source
from lm_eval_kinject.corpus.days import Window
from lm_eval_kinject.errors import ArgumentError
from lm_eval_kinject.log import log
from lm_eval_kinject.provenance import fingerprint
from lm_eval_kinject.records import Document

WHERE = "kinject_perplexity"
HOW = 'Pass --metadata \'{"corpus": "FOLDER", "from": "2026-01", "to": "2026-03"}\'; the window may be left out.'


def dated(**said: Any) -> DatasetDict:
    """The texts of the window, in the corpus's order; sets ``corpus`` in what the task declares."""
    spec = said.get("corpus")
    if not isinstance(spec, str) or not spec.strip():
        raise ArgumentError(f"`corpus` is needed, whose texts are scored. {HOW}", WHERE)
    window = Window.of(*(None if said.get(end) is None else str(said[end]) for end in ("from", "to")))
    said["kinject"]["corpus"] = spec
    rows, undated = _rows(spec, window)
    if not rows:
        why = f"{undated} texts and no dates" if undated else f"no text of {window}"
        raise ArgumentError(f"the corpus {spec} has {why}. {HOW}", WHERE)
    if undated:
        log.warning("%s: %d texts of %s have no date and aren't scored.", WHERE, undated, spec)
    # As in current_events: named by content, so that nothing is copied into the datasets cache.
    return DatasetDict({"test": Dataset(pyarrow.Table.from_pylist(rows), fingerprint=fingerprint(rows)[:16])})


def _rows(spec: str, window: Window) -> tuple[list[dict[str, str]], int]:
    """The texts of a window, and how many have no date to tell by."""
    rows, undated = [], 0
    for item in find_source(spec)[1].items:
        if not item.text.strip():
            continue
        day = _day(item.date)
        if not day and window != Window():
            undated += 1
        elif window == Window() or day in window:
            name = item.id if isinstance(item, Document) else item.document_id or item.id
            rows.append({"id": item.id, "document": name, "date": day, "text": item.text})
    return rows, undated


def _day(said: str | None) -> str:
    """The day of a text, the first of its month or year where that is all there is; empty where it has no date."""
    try:
        return Window.of(said[:10], None).first if said else ""
    except ArgumentError:
        return ""
