"""``python -m lm_eval_kinject.cli`` is `kinject`."""

from lm_eval_kinject.cli import main

main()
