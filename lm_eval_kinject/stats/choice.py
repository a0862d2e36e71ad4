"""Choosing the number of retrieved chunks without looking at the answers it is then judged by.

What it is for: a maximum over K on the test set is too high by the luck of the best one. `best_k` chooses on a
validation split; where there is none, `cross_fitted` chooses on one half and judges on the other. What it doesn't do:
it doesn't call the best K of the test set anything else; `best_k` on test answers is the *test-best K*, and callers say
so.

The one idea: the halves are made of whole clusters, since a chunk's second question would carry the luck of its first
into the half that judges.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lm_eval_kinject.stats.answers import groups, missing


@dataclass(frozen=True, slots=True)
class CrossFitted:
    """Answers under a K chosen without them.

    Args:
        answers: for each question, the answer under the K that the *other* half of the questions chose.
        chosen: the K that judged the first half, and the one that judged the second.
        in_second: for each question, whether it is in the second half.
    """

    answers: tuple[float | None, ...]
    chosen: tuple[int, int]
    in_second: tuple[bool, ...]


def best_k(means: Mapping[int, float]) -> int:
    """The K with the highest mean; of equal ones the smallest, as it costs least.

    Args:
        means: accuracy by K. Equal means as differently rounded sums (1e-12) count as equal.

    Raises:
        ValueError: there are none, or one is NaN.
    """
    if not means or any(missing(m) for m in means.values()):
        raise ValueError("choosing K needs a mean of answers for each K")
    top = max(means.values())
    return min(k for k, mean in means.items() if mean >= top - 1e-12)


def cross_fitted(
    answers: Mapping[int, Sequence[float | None]], clusters: Sequence[str] | None = None, *, seed: int = 0
) -> CrossFitted:
    """Chooses K on one half of the clusters and takes the other half's answers under it, and the other way round.

    Args:
        answers: by K, in the same order of questions. None and NaN are left out of a half's mean and passed on.
        clusters: the source chunk of each question (`groups`).
        seed: of the split; the same clusters in the same order are split alike for every variant.

    Raises:
        ValueError: nothing to choose from, lengths differ, fewer than two clusters, or a K without scored answers in a
            half.
    """
    lengths = {len(found) for found in answers.values()}
    if len(lengths) != 1:
        raise ValueError("choosing K needs the same questions under each K")
    (questions,) = lengths
    numbered = groups(clusters, questions)
    count = int(numbered.max()) + 1 if questions else 0
    if count < 2:
        raise ValueError("halves need questions from at least two chunks")
    second = np.zeros(count, dtype=bool)
    second[np.random.default_rng(seed).permutation(count)[: count // 2]] = True
    in_second = second[numbered]
    chosen = tuple(best_k({k: _mean(found, half) for k, found in answers.items()}) for half in (in_second, ~in_second))
    picked = (answers[chosen[int(late)]][place] for place, late in enumerate(in_second))
    return CrossFitted(tuple(picked), (chosen[0], chosen[1]), tuple(bool(late) for late in in_second))


def _mean(answers: Sequence[float | None], chosen: np.typing.NDArray[np.bool_]) -> float:
    kept = [a for a, use in zip(answers, chosen, strict=True) if use and a is not None and not missing(a)]
    return float(np.mean(kept)) if kept else float("nan")
