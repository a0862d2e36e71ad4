"""Exact log-likelihoods with shared prefixes: what lm_eval's own path returns, for less work."""
