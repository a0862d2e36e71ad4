"""What a study measured, cell by cell: the records that its report is made from.

What it is for: whoever reads result files writes these, and tables and figures read nothing else. What it doesn't do:
it knows neither files nor lm_eval.

The one idea: a cell keeps every answer with the chunk that the question was made from, since all that a report says is
about pairs of answers and about chunks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = ["Answered", "Axis", "CellOutcome", "Kept"]

Axis = str | int | float | None


@dataclass(frozen=True, slots=True)
class Answered:
    """One question in one cell.

    Args:
        doc_id: the question's place in its task; the same question has the same in every cell.
        cluster: id of the chunk that it was made from; ``""`` where that isn't known.
        correct: 1 or 0 (a share where a metric gives one); None where it couldn't be scored.
        tied: whether the best options had equal scores.
        gold_rank: rank of that chunk among those retrieved, from 1; None where it wasn't retrieved.
        gold_place: its place among the chunks in the prompt, from 1 at the top; None where it isn't there.
        prompt_places: how many chunks are in the prompt.
    """

    doc_id: int
    cluster: str
    correct: float | None
    tied: bool
    gold_rank: int | None
    gold_place: int | None
    prompt_places: int


@dataclass(frozen=True, slots=True)
class Kept:
    """What a training left of what was known before it, from its own record.

    Args:
        before: recall of the old world before the first update, 0 to 1.
        after: the same after the last.
        held: what was done against forgetting: ``replay``, a regulariser's kind, both, or ``nothing``.
    """

    before: float
    after: float
    held: str


@dataclass(frozen=True, slots=True)
class CellOutcome:
    """One cell of the grid, scored.

    Args:
        axes: where the cell is: ``model``, ``variant`` (base, ft-reg, ft-par or any name), ``paraphrases`` (in
            training; None where that says nothing), ``retriever`` (none, minilm, oracle, …), ``k``, ``shots``,
            ``task``, ``placement``, ``seed``, and any other model argument. With k = 0 no retriever matters: the cell
            belongs to the sweep of every retriever. ``split`` = ``validation`` marks cells that K is chosen on; they're
            reported nowhere else.
        answers: one a question.
        tokens_forwarded: through the model, over all questions.
        context_tokens: tokens of retrieved text in the prompt, mean over questions.
        seconds: wall-clock time of scoring.
        recall: retrieval figures, such as ``recall@3`` and ``mrr``, 0 to 1.
        published: the paper's accuracy for this cell. None: the report looks it up by model and task.
        kept: of what was known before the training; None where nothing was trained here or that wasn't measured.
    """

    axes: Mapping[str, Axis]
    answers: tuple[Answered, ...]
    tokens_forwarded: int = 0
    context_tokens: float = 0.0
    seconds: float = 0.0
    recall: Mapping[str, float] = field(default_factory=dict)
    published: float | None = None
    kept: Kept | None = None

    def text(self, axis: str, default: str = "") -> str:
        """An axis as text; the default where it is missing or None."""
        value = self.axes.get(axis)
        return default if value is None else str(value)

    def whole(self, axis: str) -> int:
        """An axis that counts something (k, shots); 0 where it is missing or None."""
        value = self.axes.get(axis)
        return 0 if value is None else int(value)
