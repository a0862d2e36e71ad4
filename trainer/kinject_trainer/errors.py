"""What can stop a training, beside the errors of the plugin's own rooms."""

from __future__ import annotations

from lm_eval_kinject.errors import KinjectError


class TrainingError(KinjectError):
    """A training can't start, go on or be resumed; what was saved before is untouched, and the text says where."""
