"""lm-eval-kinject: score knowledge injection (retrieval, continued pretraining, both) with `lm_eval`.

Importing this package costs nothing: it holds the version and no more.
"""

__version__ = "0.1.0.dev0"
