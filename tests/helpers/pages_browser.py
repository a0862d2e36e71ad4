"""Pages in a real browser: what it takes, what they ask of other machines, and whom they keep out."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from typing import Any

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
WAIT = 120_000  # milliseconds, of a busy machine
NEEDS = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium (on Debian: apt-get install chromium)"),
]
Opener = Callable[..., Any]


def from_elsewhere(page: Any) -> set[str]:
    """Addresses that the page has asked, less those of this machine."""
    return {url for url in page.asked if "//127.0.0.1:" not in url and not url.startswith(("data:", "blob:"))}


def serious(page: Any) -> list[str]:
    """What axe-core finds that keeps people out (its impacts serious and critical), with the elements."""
    from axe_playwright_python.sync_playwright import Axe

    found = Axe().run(page).response
    assert len(found["passes"]) > 10  # it has looked
    return [
        f"{one['id']}: {node['html'][:200]}"
        for one in found["violations"]
        if one["impact"] in ("serious", "critical")
        for node in one["nodes"]
    ]
