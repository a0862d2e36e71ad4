"""Intervals and paired tests for accuracies: what it takes to say that one variant beats another.

What it is for: anyone above (the demo, a study, the Hub, a benchmark) who prints an accuracy or a difference. What it
doesn't do: it reads no results and draws nothing; it knows answers, and which of them come from the same chunk.

The one idea: variants answer the same questions, so differences are tested in pairs, and two questions about one chunk
are not two independent ones, so intervals and tests take ``clusters``. An answer is a share in 0..1, almost always 0 or
1; one that couldn't be scored is None (or NaN) and has to be left out by name (`scored`, `paired`), never by accident.
"""

import importlib.util

from lm_eval_kinject.errors import KinjectError

if importlib.util.find_spec("scipy") is None:
    raise KinjectError("Statistics need scipy, which isn't installed: pip install 'lm-eval-kinject[study]'")

from lm_eval_kinject.stats.agreement import cohen_kappa
from lm_eval_kinject.stats.answers import Paired, Tally, groups, paired, scored, tally
from lm_eval_kinject.stats.choice import CrossFitted, best_k, cross_fitted
from lm_eval_kinject.stats.intervals import (
    Interval,
    accuracy,
    clustered_accuracy,
    clustered_difference,
    clustered_mean,
    paired_difference,
    signed,
    unpaired_difference,
    wilson,
)
from lm_eval_kinject.stats.perplexity import perplexity, relative_increase
from lm_eval_kinject.stats.power import detectable_paired, detectable_unpaired
from lm_eval_kinject.stats.significance import fisher, holm, mcnemar, t_test

__all__ = [
    "Interval",
    "signed",
    "accuracy",
    "clustered_accuracy",
    "wilson",
    "clustered_mean",
    "paired_difference",
    "clustered_difference",
    "unpaired_difference",
    "mcnemar",
    "fisher",
    "t_test",
    "holm",
    "detectable_paired",
    "detectable_unpaired",
    "perplexity",
    "relative_increase",
    "best_k",
    "cross_fitted",
    "CrossFitted",
    "Tally",
    "tally",
    "scored",
    "Paired",
    "paired",
    "groups",
    "cohen_kappa",
]
