"""The pages in a real browser: load, filter, sort, open, compare, keys, hostile texts, and what must not be served.

Skipped, with the reason, where gradio, playwright or Chromium is missing (on Debian: ``apt-get install chromium``).
"""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers.pages_browser import NEEDS, Opener, from_elsewhere, serious
from helpers.pages_story import EVIL, bits, story, submission
from helpers.review_story import COSTS, reviewable

pytest.importorskip("gradio", reason="needs gradio: pip install 'lm-eval-kinject[pages]'")
pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install playwright")

pytestmark = NEEDS


@pytest.fixture(scope="module")
def sites(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Addresses of a leaderboard, a page of samples and two reviewers' desks, all of folders with hostile texts."""
    from lm_eval_kinject.pages import leaderboard, review, serve, show
    from lm_eval_kinject.pages.desk import Desk

    root = tmp_path_factory.mktemp("pages")
    (root / "secret.txt").write_text("not to be served")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KINJECT_CACHE", str(root / "cache"))
        patch.setenv("GRADIO_ALLOWED_PATHS", str(root))
        patch.setenv("GRADIO_SERVER_NAME", "0.0.0.0")
        folder = story(root / "results")
        two = [submission(root / "two", "base", k=k, right=bits(b)) for k, b in ((1, "1100"), (2, "1010"))]
        there = reviewable(root / "review")
        pages = {"board": leaderboard.leaderboard(str(folder)), "samples": show.show(two)}
        pages |= {name: review.review(Desk(there, name), look=name == "ann") for name in ("ann", "bob")}
        css = {"board": leaderboard.CSS, "samples": show.CSS, "ann": review.CSS, "bob": review.CSS}
        found = {name: serve.serve(page, css=css[name], wait=False) for name, page in pages.items()}
        places = {"secret": root / "secret.txt", "results": two[0], "set": there.folder}
        yield {**found, **{name: str(place) for name, place in places.items()}}
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


# Reviewing ------------------------------------------------------------------------------------------------------------


def at(page: Any, name: str, show: str = "all") -> None:
    page.wait_for_selector(f'.desk[data-at="{name}"][data-show="{show}"]')


def kept(sites: dict[str, str]) -> list[tuple[str, ...]]:
    file = Path(sites["set"]) / "reviews.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []
    return [(row["reviewer"], row["id"], row["action"], row["reason"]) for row in rows]


@pytest.fixture
def no_reviews(sites: dict[str, str]) -> None:
    (Path(sites["set"]) / "reviews.jsonl").unlink(missing_ok=True)


@pytest.mark.usefixtures("no_reviews")
def test_a_review_by_keys_alone(visit: Opener, sites: dict[str, str]) -> None:
    page = visit(sites["ann"])
    keys = page.keyboard
    at(page, "q0")
    assert page.locator(".passage mark").all_inner_texts() == ["Abe Ash"]
    keys.press("?")
    page.get_by_role("dialog", name="Keys").wait_for()
    keys.press("a")  # means nothing there
    keys.press("Escape")
    page.get_by_role("dialog").wait_for(state="hidden")
    assert kept(sites) == []

    keys.press("a")
    at(page, "q1")
    assert kept(sites) == [("ann", "q0", "accept", "")]
    page.get_by_text("answered right without the passage").wait_for()

    keys.press("e")
    keys.press("Control+A")
    keys.type("What does the passage say a bridge in Arden was?")
    keys.press("Control+Enter")
    page.get_by_text("speaks of the passage").wait_for()
    assert page.locator("textarea[name=question]").input_value() == "What does the passage say a bridge in Arden was?"
    assert len(kept(sites)) == 1
    keys.press("Control+A")
    keys.type("How much did Arden pay for a bridge?")
    keys.press("Tab")  # to the dot of the right option
    keys.press("ArrowDown")
    keys.press("ArrowUp")
    keys.press("Control+Enter")
    at(page, "q2")
    assert kept(sites)[1:] == [("ann", "q1", "edit", "")]
    edited = json.loads((Path(sites["set"]) / "reviews.jsonl").read_text().splitlines()[1])
    assert edited["question"] == "How much did Arden pay for a bridge?"
    assert (edited["choices"], edited["answer"]) == (COSTS, 0)

    keys.press("r")
    keys.press("2")
    at(page, "q3")
    keys.press("r")
    for _ in range(6):
        keys.press("Tab")
    keys.type("ann has a reason")  # no a, n or r of these is a key
    keys.press("Enter")
    at(page, "q4")
    assert kept(sites)[2:] == [
        ("ann", "q2", "reject", "more than one option is right"),
        ("ann", "q3", "reject", "ann has a reason"),
    ]
    keys.press("r")
    keys.press("Enter")  # the first reason has the focus
    at(page, "q5")
    keys.press("k")
    at(page, "q4")
    page.get_by_text("✗ rejected").wait_for()
    keys.press("a")
    at(page, "q5")
    for name in ("q4", "q3"):
        keys.press("k")
        at(page, name)
    assert kept(sites)[4:] == [("ann", "q4", "reject", "the answer is wrong"), ("ann", "q4", "accept", "")]
    keys.press("n")
    at(page, "q5")
    assert page.locator("progress").get_attribute("value") == "5"
    assert page.evaluate("window.hacked") is None


@pytest.mark.usefixtures("no_reviews")
def test_a_review_loaded_again_is_where_it_was(visit: Opener, sites: dict[str, str]) -> None:
    page = visit(sites["ann"])
    at(page, "q0")
    page.keyboard.press("f")
    at(page, "q0", "unreviewed")
    page.keyboard.press("f")
    at(page, "q1", "flagged")  # q0 has no flag
    page.keyboard.press("j")
    at(page, "q4", "flagged")
    page.keyboard.press("j")
    page.get_by_text("This was the last one.").wait_for()
    page.reload()
    at(page, "q4", "flagged")
    page.keyboard.press("r")
    page.keyboard.press("3")
    at(page, "q1", "flagged")
    page.reload()
    at(page, "q1", "flagged")
    page.keyboard.press("F")
    at(page, "q1", "unreviewed")
    page.get_by_text("1 of 8 decided").wait_for()
    fresh = visit(sites["ann"])
    at(fresh, "q0")  # the first that isn't decided


@pytest.mark.usefixtures("no_reviews")
def test_two_reviewers_and_two_windows(visit: Opener, sites: dict[str, str]) -> None:
    ann, again, bob = visit(sites["ann"]), visit(sites["ann"]), visit(sites["bob"])
    for page in (ann, again, bob):
        at(page, "q0")
    bob.keyboard.press("r")
    bob.keyboard.press("6")
    at(bob, "q1")
    ann.keyboard.press("j")
    at(ann, "q1")
    ann.keyboard.press("k")
    at(ann, "q0")
    ann.get_by_text("1 other decision, told when you have made yours").wait_for()
    assert ann.get_by_text("dull or trivial").count() == 1  # the reason to pick, not bob's
    ann.keyboard.press("a")
    at(ann, "q1")
    for page in (ann, bob, again):  # all three at once; the third is still at q0
        page.keyboard.press("a")
    at(ann, "q2")
    at(bob, "q2")
    at(again, "q1")
    assert sorted(kept(sites)) == [
        ("ann", "q0", "accept", ""), ("ann", "q1", "accept", ""), ("bob", "q0", "reject", "dull or trivial"),
        ("bob", "q1", "accept", ""),
    ]  # fmt: skip
    for name, show in (("q2", "unreviewed"), ("q4", "flagged"), ("q0", "disagreed")):
        ann.keyboard.press("f")
        at(ann, name, show)
    ann.get_by_text("bob: reject: dull or trivial").wait_for()


@pytest.mark.usefixtures("no_reviews")
def test_hostile_words_in_a_review(visit: Opener, sites: dict[str, str]) -> None:
    page = visit(f"{sites['ann']}#at=q7&show=<b>")
    at(page, "q7")
    assert EVIL in page.locator("h2.asked").inner_text()
    page.keyboard.press("e")
    assert EVIL in page.locator("textarea[name=question]").input_value()
    assert page.evaluate("window.hacked") is None
    assert {url for url in page.asked if "//127.0.0.1:" not in url and not url.startswith("data:")} == set()


@pytest.mark.parametrize("site", ["board", "samples", "bob"])
def test_narrow_and_dark(visit: Opener, sites: dict[str, str], site: str) -> None:
    page = visit(sites[site], viewport={"width": 400, "height": 800}, color_scheme="dark")
    assert page.evaluate("document.documentElement.scrollWidth") <= 400
    dark = "getComputedStyle(document.querySelector('.kj')).color"
    assert page.evaluate(dark) == "rgb(232, 232, 230)"  # --ink in the dark
    assert page.evaluate("[...document.querySelectorAll('.kj button')].every(b => b.innerText.trim())") is True


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("site", ["board", "samples", "ann"])
def test_nobody_is_kept_out(visit: Opener, sites: dict[str, str], site: str, scheme: str) -> None:
    pytest.importorskip("axe_playwright_python", reason="needs axe-core: pip install axe-playwright-python")
    page = visit(sites[site], color_scheme=scheme)
    assert serious(page) == []


def test_no_file_is_served_and_none_is_taken(sites: dict[str, str]) -> None:
    for site in ("board", "samples", "ann"):
        assert sites[site].startswith("http://127.0.0.1:")
        there = f"{sites['set']}/questions.jsonl"
        for path in (sites["secret"], sites["results"], there, "/etc/passwd", "../secret.txt"):
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
