"""`python -m lm_eval_kinject ARGS` is `lm_eval ARGS`, for environments in which Python reads no `.pth` files.

It adds our models and tasks and then gives way to lm_eval's own command; it has no options of its own.
"""

from __future__ import annotations

from lm_eval_kinject.plugin import register


def main() -> None:
    """Run lm_eval's command line with our models and tasks."""
    register()
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()


if __name__ == "__main__":
    main()
