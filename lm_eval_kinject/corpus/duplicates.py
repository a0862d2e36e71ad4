"""Finds texts that nearly repeat an earlier one, in one pass over any number of them.

What it is for: news is passed on from paper to paper, updated and printed again; a retriever would return five versions
of one passage. What it does not do: it finds no texts that say the same in other words, and it deletes nothing.

The one idea: two texts are alike as the sets of their runs of three words are (Jaccard). MinHash (Broder 1997)
estimates that from 512 bytes a text, and locality-sensitive hashing compares a text only with likely ones; both are the
library rensa's, with a fixed seed: the same texts in the same order give the same answers. The estimate's standard
error is about .04 at .8.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from lm_eval_kinject.errors import CorpusError

__all__ = ["ALIKE", "NearDuplicates"]

ALIKE = 0.8
"""Texts that share this part of their runs of three words, of all that either has, are near-duplicates."""

_RUN = 3
_PERMUTATIONS = 128
_SEED = 1
_WORD = re.compile(r"\w+")


class NearDuplicates:
    """Says of each text whether one that came before it, and was kept, is nearly the same.

    Args:
        alike: Jaccard similarity, above 0 and up to 1, from which on texts count as near-duplicates.

    Raises:
        CorpusError: the library isn't installed.
    """

    def __init__(self, alike: float = ALIKE) -> None:
        try:
            from rensa import RMinHashDeduplicator
        except ImportError as problem:
            raise CorpusError(
                "Near-duplicates are found by the library rensa, which isn't installed: "
                "`pip install 'lm-eval-kinject[corpus]'`."
            ) from problem
        self._kept = RMinHashDeduplicator(alike, _PERMUTATIONS, use_lsh=True, seed=_SEED)
        self._seen = 0

    def keep(self, texts: Iterable[str]) -> list[bool]:
        """Whether each text is unlike all that were kept before it; those that are, are kept.

        A text of fewer than three words is its own run.
        """
        pairs = []
        for text in texts:
            pairs.append((str(self._seen), _runs(text)))
            self._seen += 1
        return list(self._kept.add_pairs(pairs))


def _runs(text: str) -> list[str]:
    words = _WORD.findall(text.lower())
    if len(words) < _RUN:
        return [" ".join(words)]
    return list(map(" ".join, zip(*(words[i:] for i in range(_RUN)), strict=False)))
