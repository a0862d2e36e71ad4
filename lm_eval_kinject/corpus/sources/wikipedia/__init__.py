"""Wikipedia: articles of a category tree, of a subject's hub pages or of a dump, as clean sections."""

from __future__ import annotations

from lm_eval_kinject.corpus.sources.wikipedia.api import Api
from lm_eval_kinject.corpus.sources.wikipedia.dump import Dump
from lm_eval_kinject.corpus.sources.wikipedia.fetch import Pages
from lm_eval_kinject.corpus.sources.wikipedia.make import corpus_folder, find_built, make_wikipedia, read_revisions
from lm_eval_kinject.corpus.sources.wikipedia.spec import (
    Selection,
    bundled_selections,
    chosen_selection,
    read_selection,
)

__all__ = [
    "Api", "Dump", "Pages", "Selection", "bundled_selections", "chosen_selection", "corpus_folder", "find_built",
    "make_wikipedia", "read_revisions", "read_selection",
]  # fmt: skip
