"""Perplexity by month of two models: one trained up to some month, and a control that saw the months which are tested.

What it is for: `compare` reads two results of `kinject_perplexity` (lm_eval's JSON with its samples) and says, month by
month, how much higher the one's perplexity is (`stats.perplexity`); `table` puts that into lines. What it does not do:
it trains and scores nothing, and takes the caller's word for which model saw what.

The one idea: both results must be of the very same texts, which their samples tell, so that nothing but the models
differs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lm_eval_kinject.errors import ArgumentError
from lm_eval_kinject.stats import Interval, perplexity, relative_increase
from lm_eval_kinject.study.load import doctored, read_samples, result_file

__all__ = ["ALL", "Month", "compare", "rows", "table"]

ALL = "all"
_METRIC = "word_perplexity"
_MONTH = len("2026-01")
_SHOWN = 3


@dataclass(frozen=True, slots=True)
class Month:
    """What was measured on the texts of a month (``YYYY-MM``), or of `ALL` of them.

    Perplexities are a word's; ``increase`` is that of the other model over the control's, as a share of it.
    """

    name: str
    documents: int
    control: float
    other: float
    increase: Interval


@dataclass(frozen=True, slots=True)
class _Text:
    month: str
    content: str
    log_likelihood: float
    words: float


def compare(other: Path, control: Path, *, seed: int = 0) -> list[Month]:
    """Each month in order of time, and all together last.

    Args:
        other: a results JSON of the model that was trained up to some month, or its folder; samples beside it.
        control: the same of the model that saw the months, too.
        seed: of the bootstrap.

    Raises:
        ArgumentError: a result has no dated rolling texts, was changed, or the two are of different texts; all problems
            at once.
    """
    problems: list[str] = []
    ours, theirs = (_read(results, problems) for results in (other, control))
    if not problems:
        problems += _differences(ours, theirs)
    if problems:
        raise ArgumentError(problems, "the results")
    names = sorted({text.month for text in ours.values()})
    groups = {name: [key for key, text in ours.items() if text.month == name] for name in names}
    return [_month(name, keys, ours, theirs, seed) for name, keys in {**groups, ALL: list(ours)}.items()]


def table(months: Sequence[Month]) -> list[str]:
    """The comparison for people, a line a month."""
    lines = [f"{'month':8} {'texts':>6} {'control':>9} {'other':>9}  increase (95 %)"]
    for one in months:
        line = f"{one.name:8} {one.documents:6,} {one.control:9.2f} {one.other:9.2f}  {one.increase.percent()}"
        lines.append(line)
    return lines


def _read(results: Path, problems: list[str]) -> dict[str, _Text]:
    """The texts of a result by task and id; what is wrong goes to ``problems``."""
    file = result_file(results) if results.is_dir() else results
    if not file.is_file():
        problems.append(f"{results}: no such file; pass a results_….json of lm_eval, its samples beside it")
        return {}
    problems += [f"{results}: {change}; score it again" for change in doctored(file)]
    found = {}
    for task, rows in read_samples(file).items():
        for row in rows:
            if _METRIC in row:
                doc = row["doc"]
                log_likelihood, words = row[_METRIC]
                month = str(doc.get("date") or "")[:_MONTH]
                key = f"{task}/{doc.get('id', row['doc_id'])}"
                found[key] = _Text(month, str(row["doc_hash"]), float(log_likelihood), float(words))
    if not found:
        problems.append(f"{results} has no rolling texts; score kinject_perplexity with --log_samples")
    undated = [key for key, text in found.items() if len(text.month) < _MONTH]
    if undated:
        problems.append(f"{results} has {len(undated)} texts without a month, the first {undated[0]}; name a window")
    return found


def _differences(ours: Mapping[str, _Text], theirs: Mapping[str, _Text]) -> list[str]:
    odd = sorted(ours.keys() ^ theirs.keys())
    odd += sorted(key for key in ours.keys() & theirs.keys() if ours[key].content != theirs[key].content)
    if not odd:
        return []
    shown = ", ".join(odd[:_SHOWN])
    return [f"{len(odd)} texts are in one of the two only, or not the same ({shown}); score both on the same window"]


def _month(name: str, keys: Sequence[str], ours: Mapping[str, _Text], theirs: Mapping[str, _Text], seed: int) -> Month:
    words = [ours[key].words for key in keys]
    other, control = ([texts[key].log_likelihood for key in keys] for texts in (ours, theirs))
    increase = relative_increase(control, other, words, seed=seed)
    return Month(name, len(keys), perplexity(control, words), perplexity(other, words), increase)


def rows(months: Sequence[Month]) -> list[dict[str, Any]]:
    """The comparison as rows, for a file: perplexities a word, the increase and its interval as shares."""
    return [
        {
            "month": one.name,
            "documents": one.documents,
            "control": one.control,
            "other": one.other,
            "increase": one.increase.estimate,
            "low": one.increase.low,
            "high": one.increase.high,
        }
        for one in months
    ]
