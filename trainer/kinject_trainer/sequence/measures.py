"""What the answers of a sequence come to: average accuracy, backward and forward transfer.

What it is for: `measure` works them out from the matrix of accuracies. What it does not do: it asks nothing.

The one idea: R[i][j] is the accuracy on month j's questions after month i; all three are means over parts of it, as
Lopez-Paz & Ranzato define them (arXiv 1706.08840, section 2). With T months::

    average accuracy   (1 / T)       Σ_{j=1…T}     R[T][j]
    backward transfer  (1 / (T − 1)) Σ_{j=1…T−1}   R[T][j] − R[j][j]
    forward transfer   (1 / (T − 1)) Σ_{j=2…T}     R[j−1][j] − b[j]

Two things differ here. b[j] is the accuracy of the base before the first month, theirs that of a random start: a base
that answers well by itself is not credited with transfer. And months without questions are left out of sums and counts.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

__all__ = ["Matrix", "Measures", "averages", "measure"]

Matrix = Sequence[Sequence[float | None]]
"""Accuracies, 0 to 1: row 0 is the base's, row i that after month i; a column a month, None where nothing is asked."""


@dataclass(frozen=True)
class Measures:
    """Of a whole sequence; None where no month has a part in it.

    Attributes:
        average_accuracy: at the end, 0 to 1.
        backward_transfer: −1 to 1; below 0, what was known is forgotten.
        forward_transfer: −1 to 1; above 0, earlier months help with one not yet read about.
    """

    average_accuracy: float | None
    backward_transfer: float | None
    forward_transfer: float | None

    def plain(self) -> dict[str, float | None]:
        """As JSON can hold it."""
        return asdict(self)


def measure(matrix: Matrix) -> Measures:
    """The three measures.

    Args:
        matrix: months + 1 rows of months columns each.
    """
    base, last, months = matrix[0], matrix[-1], range(len(matrix) - 1)
    return Measures(
        average_accuracy=_mean(last),
        backward_transfer=_mean(_less(last[j], matrix[j + 1][j]) for j in months[:-1]),
        forward_transfer=_mean(_less(matrix[j][j], base[j]) for j in months[1:]),
    )


def averages(matrix: Matrix) -> list[float | None]:
    """After each month, the mean accuracy over the months up to it."""
    return [_mean(matrix[i][:i]) for i in range(1, len(matrix))]


def _less(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else one - other


def _mean(values: Iterable[float | None]) -> float | None:
    there = [value for value in values if value is not None]
    return sum(there) / len(there) if there else None
