"""Writing, paraphrasing and reviewing questions; the result is an lm_eval task folder."""
