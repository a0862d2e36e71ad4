"""From cells of a grid to what is compared: settings, sweeps over K, one K for each, and pairs of methods.

What it is for: tables and figures ask here which answers stand for "base + RAG" on a task, and how two methods differ.
What it doesn't do: it formats nothing.

The one idea: a *line* is one method's answers to one task's questions. A model alone has one; with retrieval it has a
sweep over K, and the line takes its K from a validation split or, without one, from the other half of the questions, so
that comparing lines isn't comparing the luck of the best K. The best K of the test set makes a line of that name only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from lm_eval_kinject.stats import (
    Interval,
    Paired,
    best_k,
    clustered_accuracy,
    clustered_difference,
    cross_fitted,
    holm,
    mcnemar,
    paired,
    scored,
)
from lm_eval_kinject.study.outcomes import Answered, Axis, CellOutcome

__all__ = [
    "CONTROLS",
    "Comparison",
    "Grid",
    "Line",
    "Setting",
    "Sweep",
    "adjusted",
    "compare",
    "share",
]

CONTROLS = ("oracle", "random", "full")
"""Retrievers that are there to compare with; none of them is "RAG" in a table of methods."""

_MAIN = ("model", "variant", "paraphrases", "retriever", "k", "shots", "task", "placement", "split")
_KNOWN = ("base", "ft-reg", "ft-par")


@dataclass(frozen=True, slots=True, order=True)
class Setting:
    """What two methods must have in common to be compared; ``rest`` holds further axes that the grid varies."""

    model: str
    task: str
    shots: int
    rest: tuple[tuple[str, str], ...] = ()

    def more(self) -> str:
        """The further axes, as ``seed=1``; empty where there are none."""
        return ", ".join(f"{name}={value}" for name, value in self.rest)

    def label(self) -> str:
        """All of it, for a heading."""
        parts = [self.model.rsplit("/", 1)[-1], self.task, f"{self.shots}-shot", self.more()]
        return ", ".join(part for part in parts if part)


@dataclass(frozen=True, slots=True)
class Line:
    """One method's answers.

    Args:
        name: ``base``, ``rag`` (base with retrieval), ``ft-par``, ``ft-par+rag``, and so on for any variant.
        k: ``0``, ``3``, or ``3/5`` where each half of the questions has a K of its own.
        how: where that K comes from: ``closed book``, ``validation``, ``cross-fitted``, ``only K``, ``given``,
            ``test-best``.
    """

    name: str
    setting: Setting
    retriever: str
    k: str
    how: str
    answers: tuple[Answered, ...]


@dataclass(frozen=True, slots=True)
class Sweep:
    """The cells of one variant and one retriever by K, K = 0 with them where the grid has it."""

    variant: str
    setting: Setting
    retriever: str
    cells: Mapping[int, CellOutcome]
    validation: Mapping[int, CellOutcome]

    @property
    def name(self) -> str:
        """The method's name with retrieval."""
        return "rag" if self.variant == "base" else f"{self.variant}+rag"

    def chosen(self, seed: int = 0) -> Line | None:
        """The line under a K of at least 1 that was chosen without these answers; None without such K."""
        cells = {k: cell for k, cell in self.cells.items() if k > 0}
        if not cells:
            return None
        tried = {k: cell for k, cell in self.validation.items() if k in cells}
        if len(tried) > 1:
            return self._at(best_k({k: share(cell.answers).estimate for k, cell in tried.items()}), "validation")
        if len(cells) == 1:
            return self._at(min(cells), "only K")
        return self._cross_fitted(cells, seed)

    def at(self, k: int) -> Line | None:
        """The line under a K of one's own, None where the grid doesn't have it."""
        return self._at(k, "given") if k in self.cells else None

    def test_best(self) -> Line | None:
        """The line under the K that is best on these very answers; too good by the luck of the best."""
        cells = {k: cell for k, cell in self.cells.items() if k > 0}
        if not cells:
            return None
        return self._at(best_k({k: share(cell.answers).estimate for k, cell in cells.items()}), "test-best")

    def _at(self, k: int, how: str) -> Line:
        return Line(self.name, self.setting, self.retriever, str(k), how, _sorted(self.cells[k].answers))

    def _cross_fitted(self, cells: Mapping[int, CellOutcome], seed: int) -> Line:
        by_doc = {k: {a.doc_id: a for a in cell.answers} for k, cell in cells.items()}
        docs = sorted(set.intersection(*(set(found) for found in by_doc.values())))
        first = by_doc[min(cells)]
        clusters = [first[doc].cluster for doc in docs]
        correct = {k: [found[doc].correct for doc in docs] for k, found in by_doc.items()}
        found = cross_fitted(correct, clusters, seed=seed)
        answers = tuple(by_doc[found.chosen[int(late)]][doc] for doc, late in zip(docs, found.in_second, strict=True))
        low, high = sorted(found.chosen)
        k = str(low) if low == high else f"{low}/{high}"
        return Line(self.name, self.setting, self.retriever, k, "cross-fitted", answers)


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two lines on the same questions.

    Args:
        gain: accuracy of the second less that of the first, with its clustered interval.
        p: McNemar's exact p-value, questions taken as independent.
        p_clustered: the same with chunks; it is what `holm` is taken over, and equal to ``p`` with a question a chunk.
        p_holm: ``p_clustered`` adjusted for the table it stands in; None before that.
        pairs: the answers that both could be scored on.
    """

    first: Line
    second: Line
    gain: Interval
    p: float
    p_clustered: float
    pairs: Paired
    p_holm: float | None = None

    @property
    def noise(self) -> bool:
        """Whether the difference may be chance: by Holm's p-value, or because its interval has 0 in it."""
        p = self.p_clustered if self.p_holm is None else self.p_holm
        return p >= 0.05 or self.gain.low <= 0 <= self.gain.high

    @property
    def discordance(self) -> float:
        """The share of questions that the two answer differently."""
        different = sum(a != b for a, b in zip(self.pairs.first, self.pairs.second, strict=True))
        return different / len(self.pairs.first)


class Grid:
    """All cells, found by what they are for.

    Args:
        outcomes: the cells.
        reference: the retriever that others are compared with at the same K; default: the first by name.
    """

    def __init__(self, outcomes: Sequence[CellOutcome], reference: str = "") -> None:
        self.reference = reference
        self.cells = [cell for cell in outcomes if cell.text("split", "test") != "validation"]
        self._validation = [cell for cell in outcomes if cell.text("split", "test") == "validation"]
        self._free = _free_axes(outcomes)
        self._most = _most_paraphrases(outcomes)
        self._placements: dict[str, set[str]] = {}
        for cell in self.cells:
            if cell.whole("k") > 0:
                self._placements.setdefault(cell.text("retriever", "none"), set()).add(cell.text("placement"))
        self._found: dict[tuple[Setting, bool], list[CellOutcome]] = {}

    def settings(self) -> list[Setting]:
        """Every setting, in order; one whose further axes are empty only where no fuller one takes in its cells."""
        found = {self.setting(cell) for cell in self.cells}
        fuller = {(s.model, s.task, s.shots) for s in found if all(value for _, value in s.rest)}
        return sorted(s for s in found if (s.model, s.task, s.shots) not in fuller or all(value for _, value in s.rest))

    def setting(self, cell: CellOutcome) -> Setting:
        """A cell's own setting."""
        rest = tuple((axis, cell.text(axis)) for axis in self._free)
        return Setting(cell.text("model", "model"), cell.text("task", "task"), cell.whole("shots"), rest)

    def variant(self, cell: CellOutcome) -> str:
        """The variant's name; with its number of paraphrases where the grid has it with more of them, too."""
        name = cell.text("variant", "base")
        number = cell.axes.get("paraphrases")
        if number is None or number == self._most.get((cell.text("model", "model"), name)):
            return name
        return f"{name}×{number}"

    def variants(self, setting: Setting) -> list[str]:
        """Names of all variants in a setting: base, ft-reg, ft-par, then the others."""
        found = dict.fromkeys(self.variant(cell) for cell in self.within(setting))
        return sorted(found, key=lambda name: (_KNOWN.index(name) if name in _KNOWN else len(_KNOWN), name))

    def retrievers(self, setting: Setting, *, controls: bool = False) -> list[str]:
        """Names of the retrievers with K of at least 1, controls last if wanted."""
        found = dict.fromkeys(self.retriever(c) for c in self.within(setting) if c.whole("k") > 0)
        kept = [name for name in found if controls or _kind(name) not in CONTROLS]
        return sorted(kept, key=lambda name: (_kind(name) in CONTROLS, name))

    def retriever(self, cell: CellOutcome) -> str:
        """The retriever's name, with where its chunks are put if the grid varies that."""
        name = cell.text("retriever", "none")
        return f"{name} ({cell.text('placement')})" if len(self._placements.get(name, ())) > 1 else name

    def sweep(self, setting: Setting, variant: str, retriever: str) -> Sweep:
        """The cells of a variant and a retriever by K; empty where there are none."""

        def by_k(*, validation: bool) -> dict[int, CellOutcome]:
            kept = [
                c
                for c in self.within(setting, validation=validation)
                if self.variant(c) == variant and (c.whole("k") == 0 or self.retriever(c) == retriever)
            ]
            found: dict[int, CellOutcome] = {}
            for cell in kept:
                found.setdefault(cell.whole("k"), cell)
            return dict(sorted(found.items()))

        return Sweep(variant, setting, retriever, by_k(validation=False), by_k(validation=True))

    def closed(self, setting: Setting, variant: str) -> Line | None:
        """A variant without retrieval."""
        cell = self.sweep(setting, variant, "").cells.get(0)
        if cell is None:
            return None
        return Line(variant, setting, "none", "0", "closed book", _sorted(cell.answers))

    def lines(self, setting: Setting, retriever: str) -> dict[str, Line]:
        """Every method in a setting by name: each variant closed book, and with this retriever at its chosen K.

        Of a variant with several numbers of paraphrases it is the one with most.
        """
        found: dict[str, Line] = {}
        for variant in (name for name in self.variants(setting) if "×" not in name):
            closed = self.closed(setting, variant)
            sweep = self.sweep(setting, variant, retriever)
            for line in (closed, sweep.chosen() if retriever else None):
                if line is not None:
                    found[line.name] = line
        return found

    def within(self, setting: Setting, *, validation: bool = False) -> list[CellOutcome]:
        """Cells of a setting; one that leaves a further axis open, or is the only of its kind, is in every setting."""
        if (setting, validation) in self._found:
            return self._found[setting, validation]
        near = [c for c in (self._validation if validation else self.cells) if _key(self.setting(c)) == _key(setting)]
        kinds: dict[tuple[Axis, ...], list[CellOutcome]] = {}
        for cell in near:
            kinds.setdefault(tuple(cell.axes.get(axis) for axis in _MAIN), []).append(cell)
        found = []
        for same in kinds.values():
            exact = [c for c in same if self.setting(c).rest == setting.rest]
            open_ones = [c for c in same if _agree(self.setting(c).rest, setting.rest)]
            found += (exact or open_ones or (same if len(same) == 1 else []))[:1]
        self._found[setting, validation] = found
        return found


def share(answers: Sequence[Answered]) -> Interval:
    """Accuracy over what could be scored, with its clustered interval.

    Raises:
        ValueError: nothing could be scored.
    """
    return clustered_accuracy(*scored([a.correct for a in answers], [a.cluster for a in answers]))


def compare(first: Line, second: Line) -> Comparison | None:
    """Two lines on the questions that both were asked and could be scored on; None without any."""
    one, other = ({a.doc_id: a for a in line.answers} for line in (first, second))
    docs = [doc for doc in one if doc in other]
    # A line may not know its chunks (another task's file); then the other's do.
    clusters = [one[doc].cluster or other[doc].cluster for doc in docs]
    pairs = paired([one[doc].correct for doc in docs], [other[doc].correct for doc in docs], clusters)
    if not pairs.first:
        return None
    gain = clustered_difference(pairs.first, pairs.second, pairs.clusters)
    p, p_clustered = (mcnemar(pairs.first, pairs.second, c) for c in (None, pairs.clusters))
    return Comparison(first, second, gain, p, p_clustered, pairs)


def adjusted(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """The comparisons of one table, with Holm's p-values over all of them."""
    found = holm([c.p_clustered for c in comparisons])
    return [replace(c, p_holm=p) for c, p in zip(comparisons, found, strict=True)]


def _sorted(answers: Sequence[Answered]) -> tuple[Answered, ...]:
    return tuple(sorted(answers, key=lambda a: a.doc_id))


def _key(setting: Setting) -> tuple[str, str, int]:
    return setting.model, setting.task, setting.shots


def _kind(retriever: str) -> str:
    return retriever.partition(" ")[0]


def _agree(rest: tuple[tuple[str, str], ...], wanted: tuple[tuple[str, str], ...]) -> bool:
    return all(not value or value == dict(wanted)[axis] for axis, value in rest)


def _free_axes(outcomes: Sequence[CellOutcome]) -> tuple[str, ...]:
    """Further axes in which cells differ that are otherwise the same: only these make settings of their own.

    The others go with a variant or a retriever (an adapter's path, an index) and mustn't keep it from being compared.
    """
    kinds: dict[tuple[Axis, ...], list[CellOutcome]] = {}
    for cell in outcomes:
        kinds.setdefault(tuple(cell.axes.get(axis) for axis in _MAIN), []).append(cell)
    further = sorted({axis for cell in outcomes for axis in cell.axes} - set(_MAIN))
    return tuple(axis for axis in further if any(len({c.axes.get(axis) for c in same}) > 1 for same in kinds.values()))


def _most_paraphrases(outcomes: Sequence[CellOutcome]) -> dict[tuple[str, str], Axis]:
    most: dict[tuple[str, str], int] = {}
    for cell in outcomes:
        if cell.axes.get("paraphrases") is not None:
            key = cell.text("model", "model"), cell.text("variant", "base")
            most[key] = max(most.get(key, 0), cell.whole("paraphrases"))
    return dict(most)
