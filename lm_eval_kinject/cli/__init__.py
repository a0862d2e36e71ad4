"""The `kinject` command: everything but scoring, which is `lm_eval`'s.

This is the only room that prints or exits (`demo.py` beside it does too). Each command is a thin shell around a
function of one of the rooms, imported when the command runs, so that `kinject --help` is quick.
"""

from __future__ import annotations

from lm_eval_kinject.cli.shell import app, main

# They register their commands, which --help lists in this order.
# isort: off
from lm_eval_kinject.cli import corpora, questions, training, studies, pages, hub  # noqa: F401
# isort: on

__all__ = ["app", "main"]
