"""Chromium for the tests of pages, and a context of its own for every visitor."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from helpers.pages_browser import CHROMIUM, WAIT, Opener


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        found = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture
def visit(browser: Any) -> Iterator[Opener]:
    contexts = []

    def visit(address: str, ready: str = ".kj table, .desk[data-at]", **options: Any) -> Any:
        context = browser.new_context(**options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(WAIT)
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.asked = asked
        page.goto(address)
        page.wait_for_selector(ready)
        return page

    yield visit
    for context in contexts:
        context.close()
