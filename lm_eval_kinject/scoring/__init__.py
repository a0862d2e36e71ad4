"""Exact log-likelihoods with shared prefixes: what lm_eval's own path returns, for less work."""

from lm_eval_kinject.scoring.forward import Budget
from lm_eval_kinject.scoring.scorer import ScoringStats, SharedPrefixScorer
from lm_eval_kinject.scoring.support import reason_unsupported

__all__ = ["SharedPrefixScorer", "ScoringStats", "Budget", "reason_unsupported"]
