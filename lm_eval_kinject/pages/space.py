"""The folder of a Space that shows a leaderboard.

What it is for: `export_space` writes it. What it doesn't do: publish it, or copy results: a Space reads the data set of
submissions each time that it starts, so there is one place where results are.

The one idea: the Space runs the same page as ``kinject leaderboard``.
"""

from __future__ import annotations

from pathlib import Path

from lm_eval_kinject import __version__
from lm_eval_kinject.errors import ArgumentError
from lm_eval_kinject.hub.client import check_repo_id
from lm_eval_kinject.provenance import publish_folder

__all__ = ["export_space"]

_APP = '''"""A leaderboard of knowledge injection; see README.md."""

from lm_eval_kinject.pages.leaderboard import CSS, leaderboard
from lm_eval_kinject.pages.serve import serve

serve(leaderboard({place!r}), css=CSS, public=True)
'''

_README = """---
title: Knowledge injection
emoji: 📚
colorFrom: blue
colorTo: gray
sdk: gradio
sdk_version: {gradio}
app_file: app.py
pinned: false
datasets:
  - {repo}
---

# Knowledge injection: a leaderboard

Shows the results in the data set [{repo}](https://huggingface.co/datasets/{repo}), which `kinject submit --as dataset`
fills. Restart the Space to read new ones. Made with lm-eval-kinject {version}.
"""


def export_space(place: str, folder: Path) -> list[str]:
    """Writes a Space's folder: ``app.py``, ``requirements.txt`` and a card.

    Args:
        place: the data set, ``owner/name`` or ``owner/name@revision``; nothing is fetched.
        folder: where to; must not be there.

    Returns:
        What to do next, in lines.

    Raises:
        ArgumentError: listing what is wrong.
    """
    problems = []
    repo = place.partition("@")[0]
    if Path(place).expanduser().exists():
        problems.append(
            f"{place} is on this disk, and a Space reads submissions: send them first "
            f"(`kinject submit {place} --to OWNER/NAME --as dataset`), then export OWNER/NAME"
        )
    else:
        try:
            check_repo_id(repo)
        except ArgumentError as error:
            problems += error.problems
    if folder.exists():
        problems.append(f"{folder} is there already; name a new folder with --export")
    if problems:
        raise ArgumentError(problems, "kinject leaderboard --export")
    from importlib.metadata import PackageNotFoundError, version

    try:
        gradio = version("gradio")
    except PackageNotFoundError:
        gradio = "6.31.0"
    files = {
        "app.py": _APP.format(place=place),
        "requirements.txt": f"lm-eval-kinject[pages]=={__version__}\n",
        "README.md": _README.format(gradio=gradio, repo=repo, version=__version__),
    }
    with publish_folder(folder) as building:
        for name, text in files.items():
            (building / name).write_text(text, encoding="utf-8")
    unreleased = (
        f"(a version that the package index lacks, such as {__version__} may be, has to be named by the address of its "
        "source in requirements.txt)"
    )
    return [
        f"{folder}: {', '.join(files)}",
        f"publish it: kinject push {folder} --as space --to OWNER/SPACE",
        unreleased,
    ]
