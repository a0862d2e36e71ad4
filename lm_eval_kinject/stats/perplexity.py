"""Perplexity of texts, and how much higher it is than a control's, with bootstrap intervals over documents.

What it is for: the curve of *Mind the Gap* (Lazaridou et al. 2021, arXiv 2102.01951): a model trained up to some month
against a control of the same size whose training texts are from the months that are tested, too. What it doesn't do: it
reads no results (`study.months`), and can't tell whether two models are of one size.

The one idea: what counts as a draw is the document, since the words of one are alike; both models read the same
documents, so they are drawn in pairs. Perplexities are e^(−Σ log-likelihood / Σ words), whole texts together, as
lm_eval's ``word_perplexity``; with bytes in the place of words it is byte perplexity, and its increase another number.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from lm_eval_kinject.stats.answers import numbers
from lm_eval_kinject.stats.intervals import Interval

_CELLS = 4_000_000  # of the matrix of draws that is held at once


def perplexity(log_likelihoods: Sequence[float], words: Sequence[float]) -> float:
    """Perplexity a word of several texts together, 1 or more.

    Args:
        log_likelihoods: of each whole text, in nats.
        words: of each text, or bytes.

    Raises:
        ValueError: there are no texts, or one couldn't be scored or has no words.
    """
    scores, sizes = _texts(log_likelihoods, words)
    return math.exp(-float(scores.sum() / sizes.sum()))


def relative_increase(
    control: Sequence[float],
    other: Sequence[float],
    words: Sequence[float],
    *,
    resamples: int = 10_000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """How much higher another model's perplexity is than the control's, as a share of it: .063 is 6.3 % more.

    With P = e^(−Σ log-likelihood / Σ words) it is P(other) / P(control) − 1 = e^(Σ (control − other) / Σ words) − 1;
    its percentile bootstrap interval draws documents, each with both its scores.

    Args:
        control: log-likelihood of each document, in nats, under the model that saw the period.
        other: the same under the model that didn't.
        words: of each document, or bytes.
        resamples: draws of as many documents as there are.
        seed: of the draws.
        level: of the interval, in 0..1.

    Raises:
        ValueError: the two did not read the same number of documents, or none, or one couldn't be scored.
    """
    if len(control) != len(other):
        raise ValueError(f"both must have read the same documents; these are {len(control)} and {len(other)}")
    above, sizes = _texts(control, words)
    gaps = above - numbers(other)
    increase = math.expm1(float(gaps.sum() / sizes.sum()))
    drawn = np.expm1(_drawn_ratios(gaps, sizes, resamples, seed))
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return Interval(increase, float(low), float(high), level)


def _drawn_ratios(
    gaps: npt.NDArray[np.float64], sizes: npt.NDArray[np.float64], resamples: int, seed: int
) -> npt.NDArray[np.float64]:
    """Σ gaps / Σ sizes of each draw, shape (resamples,); a draw is how often each document is in it."""
    rng, count = np.random.default_rng(seed), len(gaps)
    chances = np.full(count, 1 / count)
    found, left = [], resamples
    while left:
        block = min(left, max(1, _CELLS // count))
        times = rng.multinomial(count, chances, size=block)
        found.append((times @ gaps) / (times @ sizes))
        left -= block
    return np.concatenate(found)


def _texts(
    log_likelihoods: Sequence[float], words: Sequence[float]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    scores, sizes = numbers(log_likelihoods), numbers(words)
    if not len(scores):
        raise ValueError("no texts to take a perplexity of")
    if len(scores) != len(sizes) or not (sizes > 0).all():
        raise ValueError(f"{len(scores)} texts need as many numbers of words, above 0; these are {len(sizes)}")
    return scores, sizes
