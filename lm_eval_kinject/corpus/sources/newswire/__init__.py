"""The newswire: a seeded generator of fictional news, with paraphrases and four-option questions.

Events that never happened lie past every model's cut-off, so no model can have seen them. `kinds/*.yaml` hold the
language (see docs/newswire-kinds.md), `kind.py` reads them, `names.py` composes names, `world.py` draws events,
`realise.py` turns an event into text, `ask.py` into questions, `multihop.py` adds what follows from an event and
questions about that, `edition.py` puts a whole data set together, `months.py` makes dated months, and `lint.py` is the
editor who reads a new kind file.
"""

from lm_eval_kinject.corpus.sources.newswire.edition import Edition, EditionSize, make_edition, size_for, write_edition
from lm_eval_kinject.corpus.sources.newswire.kind import (
    DEFAULT_EDITION,
    EDITIONS,
    READER_HELD_OUT_KINDS,
    Kind,
    load_kinds,
)
from lm_eval_kinject.corpus.sources.newswire.months import make_months
from lm_eval_kinject.corpus.sources.newswire.world import Event, World

__all__ = [
    "DEFAULT_EDITION",
    "EDITIONS",
    "READER_HELD_OUT_KINDS",
    "Edition",
    "EditionSize",
    "Event",
    "Kind",
    "World",
    "load_kinds",
    "make_edition",
    "make_months",
    "size_for",
    "write_edition",
]
