"""The pages in a real browser: load, filter, sort, open, compare, keys, hostile texts, and what must not be served.

Skipped, with the reason, where gradio, playwright or Chromium is missing (on Debian: ``apt-get install chromium``).
"""

from __future__ import annotations

import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers.pages_browser import NEEDS, Opener, from_elsewhere, serious
from helpers.pages_story import EVIL, bits, story, submission

pytest.importorskip("gradio", reason="needs gradio: pip install 'lm-eval-kinject[pages]'")
pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install playwright")

pytestmark = NEEDS


@pytest.fixture(scope="module")
def sites(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Addresses of a leaderboard and of a page of samples, both of a folder with hostile texts."""
    from lm_eval_kinject.pages import leaderboard, serve, show

    root = tmp_path_factory.mktemp("pages")
    (root / "secret.txt").write_text("not to be served")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KINJECT_CACHE", str(root / "cache"))
        patch.setenv("GRADIO_ALLOWED_PATHS", str(root))
        patch.setenv("GRADIO_SERVER_NAME", "0.0.0.0")
        folder = story(root / "results")
        two = [submission(root / "two", "base", k=k, right=bits(b)) for k, b in ((1, "1100"), (2, "1010"))]
        pages = {"board": leaderboard.leaderboard(str(folder)), "samples": show.show(two)}
        css = {"board": leaderboard.CSS, "samples": show.CSS}
        found = {name: serve.serve(page, css=css[name], wait=False) for name, page in pages.items()}
        yield {**found, "secret": str(root / "secret.txt"), "results": str(two[0])}
        for page in pages.values():
            page.close(verbose=False)


def names(page: Any) -> list[str]:
    return [str(text) for text in page.locator(".board tbody th.name button").all_inner_texts()]


def column(page: Any, number: int) -> list[str]:
    return [str(text).split()[0] for text in page.locator(f".board tbody td:nth-child({number})").all_inner_texts()]


def test_the_leaderboard(visit: Opener, sites: dict[str, str]) -> None:
    page = visit(sites["board"])
    # The edited one goes as soon as its samples were compared.
    page.get_by_text("3 of 3 rows").wait_for()
    assert names(page) == ["me/base"] * 3
    assert column(page, 2) == ["87.5", "50.0", "25.0"]
    page.get_by_role("button", name="Accuracy").click()
    page.locator("th[aria-sort=ascending]").wait_for()
    assert column(page, 2) == ["25.0", "50.0", "87.5"]
    first = page.locator(".board tbody th.name button").first
    first.focus()
    page.keyboard.press("Enter")
    page.get_by_text("lm_eval --model rag-hf --model_args pretrained=me/base,k=0").wait_for()
    assert first.get_attribute("aria-expanded") == "true"
    page.get_by_role("button", name="Compare all rows with this one").click()
    page.locator("tr.picked").wait_for()
    assert column(page, 3) == ["–", "+25.0", "+62.5"]
    page.get_by_label("Knowledge").click()
    page.get_by_role("option", name="in the prompt").click()
    page.get_by_text("2 of 3 rows").wait_for()
    page.get_by_role("tab", name="Figures").click()
    page.get_by_role("img", name="Accuracy against K").wait_for()
    page.get_by_role("tab", name="Left out").click()
    page.get_by_text("edited: it says acc 0.6250, and its samples have 0.5000").wait_for()
    assert page.evaluate("window.hacked") is None
    assert from_elsewhere(page) == set()
    page.reload()
    page.get_by_text("3 of 3 rows").wait_for()


def test_the_samples(visit: Opener, sites: dict[str, str]) -> None:
    page = visit(sites["samples"])
    page.get_by_role("heading", name="Question 0?").wait_for()
    page.keyboard.press("j")
    page.get_by_role("heading", name="Question 1?").wait_for()
    page.get_by_text("document 1. Right in the first only.").wait_for()
    page.keyboard.press("k")
    page.get_by_role("heading", name="Question 0?").wait_for()
    assert EVIL in page.locator("pre").first.inner_text()  # shown as it is, and not run
    assert page.evaluate("window.hacked") is None
    page.get_by_label("Samples").click()
    page.get_by_role("option", name="Right in the second only").click()
    page.get_by_role("heading", name="Question 2?").wait_for()
    assert page.locator(".questions li").count() == 1
    page.get_by_label("Question holds").fill("j")  # typing isn't a key press
    page.get_by_text("No sample passes these filters.").wait_for()


@pytest.mark.parametrize("site", ["board", "samples"])
def test_narrow_and_dark(visit: Opener, sites: dict[str, str], site: str) -> None:
    page = visit(sites[site], viewport={"width": 400, "height": 800}, color_scheme="dark")
    assert page.evaluate("document.documentElement.scrollWidth") <= 400
    dark = "getComputedStyle(document.querySelector('.kj')).color"
    assert page.evaluate(dark) == "rgb(232, 232, 230)"  # --ink in the dark
    assert page.evaluate("[...document.querySelectorAll('.kj button')].every(b => b.innerText.trim())") is True


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("site", ["board", "samples"])
def test_nobody_is_kept_out(visit: Opener, sites: dict[str, str], site: str, scheme: str) -> None:
    pytest.importorskip("axe_playwright_python", reason="needs axe-core: pip install axe-playwright-python")
    page = visit(sites[site], color_scheme=scheme)
    assert serious(page) == []


def test_no_file_is_served_and_none_is_taken(sites: dict[str, str]) -> None:
    for site in ("board", "samples"):
        assert sites[site].startswith("http://127.0.0.1:")
        for path in (sites["secret"], sites["results"], "/etc/passwd", "../secret.txt"):
            with pytest.raises(urllib.error.HTTPError) as caught:
                urllib.request.urlopen(f"{sites[site]}gradio_api/file={path}")
            assert caught.value.code in (403, 404)
            caught.value.close()
        head = b"--b\r\nContent-Disposition: form-data; name=files; filename=big.txt\r\n\r\n"
        sent = urllib.request.Request(
            f"{sites[site]}gradio_api/upload",
            head + b"x" * 5000 + b"\r\n--b--\r\n",
            {"Content-Type": "multipart/form-data; boundary=b"},
        )
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(sent)
        assert caught.value.code == 413
        caught.value.close()


def test_a_port_that_is_taken(sites: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lm_eval_kinject.errors import KinjectError
    from lm_eval_kinject.pages.serve import serve
    from lm_eval_kinject.pages.show import show

    file = submission(tmp_path, "base", k=1, right=bits("1100"))
    port = int(sites["board"].rstrip("/").rsplit(":", 1)[1])
    with pytest.raises(KinjectError, match=f"port {port} is taken"):
        serve(show([file]), port=port, wait=False)
