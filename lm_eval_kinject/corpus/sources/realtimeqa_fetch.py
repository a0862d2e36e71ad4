"""Brings the weeks of a window from a Git repository at a pinned commit: ``https://…/realtimeqa_public@COMMIT``.

What it is for: ``--source URL@COMMIT`` in place of a clone. What it does not do: it takes no branch or tag, which would
name other texts tomorrow.

The one idea: git itself fetches one commit without history and only the files of the window's years, checks what it
got against the commit's hash, and needs no account.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from lm_eval_kinject.corpus.days import Window
from lm_eval_kinject.errors import CorpusError
from lm_eval_kinject.provenance import move_into_place

__all__ = ["fetch_weeks", "is_address"]

_ADDRESS = re.compile(r"(?P<url>(?:https|file)://\S+?)(?:@(?P<commit>[^@/]*))?")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_FIRST_YEAR, _LAST_YEAR = 2022, 2039


def is_address(source: str) -> bool:
    """Whether a source is a repository's address and no folder."""
    return source.startswith(("https://", "file://"))


def fetch_weeks(source: str, window: Window, folder: Path) -> Path:
    """Brings the files of a window's years below ``folder``, or finds them there.

    Args:
        source: ``URL@COMMIT`` with the whole hash, of 40 digits.
        window: whose years are fetched.
        folder: to which other fetches may have come too.

    Returns:
        The folder of this commit and these years.

    Raises:
        CorpusError: no whole hash, no git, or the repository can't be reached or has no such commit.
    """
    match = _ADDRESS.fullmatch(source)
    commit = match["commit"] if match else None
    if match is None or commit is None or not _COMMIT.fullmatch(commit):
        raise CorpusError(
            f"The source {source} names no commit: write URL@COMMIT with all 40 digits (`git ls-remote URL` says them)."
        )
    first = int(window.first[:4] or _FIRST_YEAR)
    years = [str(year) for year in range(first, int(window.last[:4] or _LAST_YEAR) + 1)]
    target = folder / f"{commit}-{years[0]}-{years[-1]}"
    if target.is_dir():
        return target
    git = shutil.which("git")
    if git is None:
        raise CorpusError(f"{source} is fetched with git, which isn't installed: install it, or give a folder.")
    folder.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(dir=folder, prefix=".fetching."))
    try:
        wanted = [f"/past/{year}/*_{kind}.jsonl" for year in years for kind in ("qa", "gcs")]
        for step in (
            ["init", "-q"],
            ["remote", "add", "origin", match["url"]],
            ["sparse-checkout", "set", "--no-cone", *wanted],
            ["fetch", "-q", "--depth=1", "--filter=blob:none", "origin", commit],
            ["checkout", "-q", "--detach", "FETCH_HEAD"],
        ):
            _run([git, *step], building, source)
        shutil.rmtree(building / ".git")
        move_into_place(building, target)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return target


def _run(command: list[str], folder: Path, source: str) -> None:
    environment = {**os.environ, "GIT_TERMINAL_PROMPT": "0"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["git failed"])[-1]
        raise CorpusError(f"{source} can't be fetched ({said}). Check address, commit and network, or give a folder.")
