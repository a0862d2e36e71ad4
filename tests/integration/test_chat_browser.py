"""Asking documents in a real browser: bring, ask, look passages up, load anew, two people at once, hostile files.

Skipped, with the reason, where gradio, playwright or Chromium is missing; scans where tesseract is.
"""

from __future__ import annotations

import shutil
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers.documents import bomb, pdf
from helpers.pages_browser import NEEDS, Opener, from_elsewhere, serious
from helpers.writer_server import WriterServer

pytest.importorskip("gradio", reason="needs gradio: pip install 'lm-eval-kinject[pages]'")
pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install playwright")
pytestmark = NEEDS

EVIL = "<img src=x onerror=window.hacked=1>"
READY = ".kj.papers li"
BRIDGE = (
    "The Harrow bridge was opened on 3 March by the mayor, Anna Velk. It is 412 metres long.",
    "The bridge cost 96 million crowns. " + "A third was paid by the province, as the council had asked. " * 16,
)


def script(system: str, user: str, seed: int) -> str:
    """Names the passage that it takes its words from; knows one answer only, and says something hostile with it."""
    if "Who opened" not in user:
        return "Unanswerable."
    number = next(part for part in user.split("[")[1:] if "Anna Velk" in part).partition("]")[0]
    return f"Anna Velk opened it [{number}]. {EVIL} [99]"


@pytest.fixture(scope="module")
def server() -> Iterator[WriterServer]:
    import openai  # noqa: F401 - here, and not while the page waits for the first answer

    with WriterServer(script=script) as running:
        yield running


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, server: WriterServer) -> Iterator[str]:
    from lm_eval_kinject.pages import chat, serve
    from lm_eval_kinject.pages.shelf import Limits
    from lm_eval_kinject.pages.talk import How

    root = tmp_path_factory.mktemp("chat")
    (root / "given.txt").write_text(f"The ferry ran for 118 years. {EVIL}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KINJECT_CACHE", str(root / "cache"))
        patch.setenv("GRADIO_ALLOWED_PATHS", str(root))
        how = How(retriever="bm25", model=f"{server.url}#scripted")
        page = chat.chat([root], how=how, any_model=True, limits=Limits(megabytes=1))
        yield serve.serve(page, css=chat.CSS, upload=1, wait=False)
        page.close(verbose=False)


def bring(page: Any, *files: Path) -> None:
    page.locator("input[type=file]").first.set_input_files([str(file) for file in files])


def ask(page: Any, question: str) -> None:
    page.get_by_label("Question").fill(question)
    page.get_by_role("button", name="Ask").click()


def test_bring_ask_and_look_it_up(visit: Opener, site: str, server: WriterServer, tmp_path: Path) -> None:
    page = visit(site, READY)
    bring(page, pdf(tmp_path / "bridge.pdf", *BRIDGE))
    page.get_by_text("2 of 2 documents are asked").wait_for()
    page.get_by_text("2 pages, 2 passages").wait_for()
    server.gate = threading.Event()
    ask(page, "Who opened the bridge?")
    page.locator(".answer", has_text="Anna").wait_for()  # the first word, before the second is there
    assert page.locator(".answer").inner_text().strip() == "Anna"
    assert page.locator(".talk").get_attribute("aria-busy") == "true"
    server.gate.set()
    server.gate = None
    page.locator(".talk[aria-busy=false]").wait_for()
    said = page.locator(".answer").inner_text()
    assert "".join(said.split()) == "".join(f"Anna Velk opened it passage 1. {EVIL} [99]".split())
    cite = page.locator(".answer button")
    assert cite.count() == 1
    cite.focus()
    page.keyboard.press("Enter")
    page.get_by_role("region", name="Passage 1: bridge.pdf, page").wait_for()
    assert page.locator(".page mark").inner_text().startswith(BRIDGE[0])
    assert page.evaluate("document.activeElement.matches('.answer button[aria-expanded=true]')") is True
    ask(page, "What is the price of fish?")
    page.get_by_text("Not in the documents.").wait_for()
    page.get_by_role("checkbox", name="bridge.pdf").click()
    page.get_by_text("1 of 2 documents are asked").wait_for()
    ask(page, "Xylophones?")
    page.get_by_text("No passage has a word of it.").wait_for()
    assert page.evaluate("window.hacked") is None
    assert from_elsewhere(page) == set()
    page.reload()
    page.get_by_text("1 of 1 documents are asked").wait_for()
    assert page.locator(".talk article").count() == 0


def test_two_people_do_not_see_each_others_files(visit: Opener, site: str, tmp_path: Path) -> None:
    one, other = visit(site, READY), visit(site, READY)
    bring(one, pdf(tmp_path / "mine.pdf", "The secret word is xylophone."))
    one.get_by_text("2 of 2 documents are asked").wait_for()
    bring(other, pdf(tmp_path / "theirs.pdf", "Nothing of interest."))
    other.get_by_text("2 of 2 documents are asked").wait_for()
    for page in (one, other):
        ask(page, "The secret xylophone?")
        page.locator(".talk[aria-busy=false] article").wait_for()
    assert "mine.pdf" in one.locator(".talk").inner_text()
    for words in ("mine.pdf", "xylophone."):
        assert words not in other.locator("body").inner_text()
    other.get_by_role("button", name="Remove theirs.pdf").click()
    other.get_by_text("1 of 1 documents are asked").wait_for()
    assert one.get_by_text("2 of 2 documents are asked").count() == 1


def test_files_that_cannot_be_taken_are_said(visit: Opener, site: str, tmp_path: Path) -> None:
    page = visit(site, READY)
    broken, large = tmp_path / "broken.pdf", tmp_path / "large.txt"
    broken.write_bytes(b"%PDF-1.7\n1 0 obj\n<<")
    large.write_bytes(b"x" * 1_500_000)
    bring(page, bomb(tmp_path / "bomb.docx"), broken, pdf(tmp_path / "title.pdf", "Words.", title=EVIL))
    page.get_by_text("2 of 2 documents are asked").wait_for()  # the good one is there
    said = page.get_by_role("alert").inner_text()
    assert "bomb.docx (" in said
    assert "unfolds to more than" in said
    assert "broken.pdf is broken" in said
    (tmp_path / "folder" / "sub").mkdir(parents=True)
    (tmp_path / "folder" / "sub" / "more.txt").write_text("More words.")
    (tmp_path / "folder" / "run.exe").write_text("MZ")
    page.locator("input[type=file]").nth(1).set_input_files(tmp_path / "folder")
    page.get_by_text("3 of 3 documents are asked").wait_for()
    assert page.get_by_role("alert").inner_text().startswith("run.exe is none of the kinds that can be asked")
    bring(page, large)
    page.get_by_text("exceed the maximum allowed size").wait_for()
    assert page.evaluate("window.hacked") is None


def test_no_file_is_served_not_even_an_uploaded_one(site: str, tmp_path: Path) -> None:
    def post(name: str, data: bytes, **headers: str) -> str:
        head = f'--b\r\nContent-Disposition: form-data; name=files; filename="{name}"\r\n\r\n'.encode()
        kind = {"Content-Type": "multipart/form-data; boundary=b", **headers}
        body = head + data + b"\r\n--b--\r\n"
        return str(
            urllib.request.urlopen(urllib.request.Request(f"{site}gradio_api/upload", body, kind)).read(), "utf8"
        )

    uploaded = post("../../../tmp/evil.txt", b"mine").strip('[]"\n')
    assert Path(uploaded).read_bytes() == b"mine"
    assert (Path(uploaded).name, ".." in Path(uploaded).parts) == ("evil.txt", False)
    assert oct(Path(uploaded).parents[1].stat().st_mode)[-3:] == "700"
    for path in (uploaded, "/etc/passwd", "../given.txt", str(Path(__file__))):
        for address in (f"file={path}", f"file%3D{path}", f"file/{path}", f"proxy={path}"):
            with pytest.raises(urllib.error.HTTPError) as caught:
                urllib.request.urlopen(f"{site}gradio_api/{address}")
            assert caught.value.code in (403, 404)
            caught.value.close()
    with pytest.raises(urllib.error.HTTPError) as caught:
        post("big.txt", b"x" * 1_500_000)
    assert caught.value.code == 413
    caught.value.close()


@pytest.mark.skipif(
    shutil.which("tesseract") is None, reason="needs tesseract (on Debian: apt-get install tesseract-ocr)"
)
def test_a_scan_is_read(visit: Opener, site: str, tmp_path: Path) -> None:
    from PIL import Image, ImageDraw, ImageFont

    picture = Image.new("L", (1000, 300), 255)
    ImageDraw.Draw(picture).text((40, 100), "The tower fell in winter.", font=ImageFont.load_default(60))
    picture.save(tmp_path / "scan.pdf")
    page = visit(site, READY)
    bring(page, tmp_path / "scan.pdf")
    page.get_by_text("1 page, 1 passage, 1 page read by OCR").wait_for()
    ask(page, "The tower?")
    page.locator(".talk[aria-busy=false] ol button").first.click()
    page.locator(".page mark", has_text="The tower fell in winter.").wait_for()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_narrow_and_nobody_is_kept_out(visit: Opener, site: str, scheme: str) -> None:
    pytest.importorskip("axe_playwright_python", reason="needs axe-core: pip install axe-playwright-python")
    page = visit(site, READY, viewport={"width": 400, "height": 800}, color_scheme=scheme)
    ask(page, "Who opened the ferry, which ran for 118 years?")
    page.locator(".talk[aria-busy=false] ol button").first.click()
    page.locator(".page mark").wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") <= 400
    ink = {"light": "rgb(26, 26, 26)", "dark": "rgb(232, 232, 230)"}[scheme]
    assert page.evaluate("getComputedStyle(document.querySelector('.kj')).color") == ink
    assert serious(page) == []
