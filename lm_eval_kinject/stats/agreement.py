"""How far two people who judge the same things agree beyond chance.

What it is for: `cohen_kappa`, of labels that have no order. What it doesn't do: more than two judges at a time, or
weights for near misses.

The one idea: two who throw dice agree now and then; kappa is the share of the rest on which they agree.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence


def cohen_kappa(first: Sequence[str], second: Sequence[str]) -> float:
    """Cohen's kappa (Cohen 1960): (p_o - p_e) / (1 - p_e).

    p_o is the share of things with the same label from both, p_e what it would be if each gave as many of each label,
    but to things drawn at random.

    Returns:
        At most 1; 0 is chance, below it they agree less often. NaN where chance alone would always agree (both gave
        one and the same label to all), so that agreement says nothing.

    Raises:
        ValueError: the two did not judge the same number of things, or none.
    """
    if not first or len(first) != len(second):
        raise ValueError(f"{len(first)} labels and {len(second)}: kappa compares equally many, at least one")
    n = len(first)
    agreed = sum(one == other for one, other in zip(first, second, strict=True))
    mine, theirs = Counter(first), Counter(second)
    by_chance = sum(count * theirs[label] for label, count in mine.items())  # times n squared: whole numbers are exact
    return math.nan if by_chance == n * n else (agreed * n - by_chance) / (n * n - by_chance)
