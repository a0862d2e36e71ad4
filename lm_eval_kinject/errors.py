"""The few exception types of this package.

Every message says what was wrong, where, and what to do about it. Libraries raise these; only `cli/` (and, under
`lm_eval`, which catches nothing, `models/ending.py`) shows them to a person.
"""

from __future__ import annotations

from collections.abc import Sequence


class KinjectError(Exception):
    """Base of every error that a user can mend; its text is complete and fit to print alone."""


class ArgumentError(KinjectError, ValueError):
    """One or more arguments can't be used; lists all problems at once.

    Args:
        problems: one sentence a problem, each ending with what to do.
        where: what the arguments belong to, for the headline (for example ``--model_args of rag-hf``).
    """

    def __init__(self, problems: str | Sequence[str], where: str = "arguments") -> None:
        self.problems = (problems,) if isinstance(problems, str) else tuple(problems)
        head = f"{len(self.problems)} problem{'s' if len(self.problems) > 1 else ''} in {where}:"
        super().__init__("\n".join([head, *(f"  - {p}" for p in self.problems)]))


class CorpusError(KinjectError):
    """A corpus or question set is missing, empty or malformed."""


class IndexStoreError(KinjectError):
    """An index on disk is damaged, foreign, or can't be built."""


class RetrievalError(KinjectError):
    """A retriever can't be loaded or can't answer."""


class ContextError(KinjectError):
    """The prompt can't be composed: no room, no question, no gold chunk."""


class ModelError(KinjectError):
    """A language model or adapter can't be reached or doesn't fit."""


class ProvenanceError(KinjectError):
    """What a result must name is missing, so scoring doesn't start."""


class HubError(KinjectError):
    """The Hub can't be reached, refuses, or holds something else than it must; what was there before is untouched."""


class PublishError(KinjectError):
    """Something may not be published as it is (a pickle, a local path, a secret, a gap in the provenance)."""
