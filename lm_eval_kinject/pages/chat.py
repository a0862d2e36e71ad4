"""The page on which documents are asked.

What it is for: `chat` reads the documents that everybody is to see and gives the page, on which people bring their own.
What it does not do: reading and searching (shelf.py), asking (talk.py), HTML (turns.py).

The one idea: what a person has brought and asked is one `Visit`, which Gradio keeps for that person's open page and
nobody else's; all that is shared holds nothing of anybody's: the documents given at the start, and loaded models.
"""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from lm_eval_kinject.errors import ArgumentError, KinjectError
from lm_eval_kinject.pages.look import REPORT, escape
from lm_eval_kinject.pages.serve import gradio
from lm_eval_kinject.pages.shelf import KINDS, Limits, Paper, Searching, Tell, files_in, read_papers
from lm_eval_kinject.pages.talk import MOST_K, NO_MODEL, ORDERS, READER, How, Models, Turn, answer, label
from lm_eval_kinject.pages.turns import CSS, conversation, paper_list

__all__ = ["CSS", "Visit", "chat"]

_EVERY = 0.1  # seconds between two showings of an answer that is being written
_KEPT = 600  # seconds that an uploaded file lies in its folder, which nothing is served from


@dataclass
class Visit:
    """What one person has brought and asked.

    Attributes:
        own: the documents brought.
        left: names of documents that aren't to be asked.
        problems: why the last ones brought are not all there.
        turns: what was asked, in order.
        cache: where indexes of the own documents are kept, as long as the page is open.
    """

    own: list[Paper] = field(default_factory=list)
    left: set[str] = field(default_factory=set)
    problems: list[str] = field(default_factory=list)
    turns: list[Turn] = field(default_factory=list)
    cache: Path | None = None

    def asked(self, given: Sequence[Paper]) -> tuple[Paper, ...]:
        """The documents that a question goes to."""
        return tuple(paper for paper in [*given, *self.own] if paper.name not in self.left)

    def bring(self, files: Sequence[str], given: Sequence[Paper], limits: Limits, tell: Tell) -> list[Paper]:
        """Reads uploaded files; those that can't be had are this visit's problems.

        Returns:
            The new ones.
        """
        if self.cache is None:
            self.cache = Path(tempfile.mkdtemp(prefix="visit-", dir=_private_folder()))
        named = [(Path(file), Path(file).name) for file in files]
        beside = [*given, *self.own]
        papers, self.problems = read_papers(named, limits=limits, beside=beside, cache=self.cache, tell=tell)
        self.own += papers
        return papers

    def press(self, do: str, what: str) -> None:
        """Does what a pressed button says; of what isn't there nothing comes."""
        if do == "tick":
            self.left ^= {what}
        elif do == "remove":
            self.own = [paper for paper in self.own if paper.name != what]
            self.left -= {what}
        elif do == "open":
            number, rank = (int(word) if word.isdecimal() else 0 for word in [*what.split(), "", ""][:2])
            if number < len(self.turns) and 1 <= rank <= len(self.turns[number].sources):
                turn = self.turns[number]
                turn.opened = 0 if turn.opened == rank else rank

    def forget(self) -> None:
        """Removes what is on the disk of it."""
        if self.cache is not None:
            shutil.rmtree(self.cache, ignore_errors=True)


@lru_cache(maxsize=1)
def _private_folder() -> str:
    """A folder that only this account can read, until the process ends."""
    folder = tempfile.mkdtemp(prefix="kinject-chat-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def chat(
    places: Sequence[str | Path] = (),
    *,
    how: How | None = None,
    models: Sequence[str] = (),
    any_model: bool = False,
    limits: Limits | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Any:
    """The page.

    Args:
        places: documents, or folders of them, that everybody who opens the page can ask.
        how: the settings that it starts with; they can be changed on it.
        models: names that can be chosen beside its own, as `model_problem` knows them.
        any_model: whether one can type another model's name on the page; whoever can has this machine load it.
        limits: what one person may bring.
        say: hears what is being read, and what can't be.

    Returns:
        Gradio's Blocks, to be shown by `serve` with ``upload``.

    Raises:
        ArgumentError: a place isn't there, or a setting can't be used; all at once.
        KinjectError: gradio is missing, nothing can be read, or the retriever can't be loaded.
    """
    how, limits = how or How(), limits or Limits()
    paths = [Path(place).expanduser() for place in places]
    _check(paths, how, models)
    gr = gradio()
    os.environ["GRADIO_TEMP_DIR"] = _private_folder()  # its own choice is a folder that every account can read
    searching, asked = Searching(), Models()
    given = _given(paths, how, searching, say)
    page = _Page(given, searching, asked, limits, how, list(dict.fromkeys([how.model, *models, NO_MODEL, READER])))
    return page.build(gr, any_model)


def _check(paths: Sequence[Path], how: How, models: Sequence[str]) -> None:
    problems = [f"{path}: there is no such file or folder" for path in paths if not path.exists()]
    problems += how.problems() + [one for model in models for one in How(model=model).problems()]
    if problems:
        raise ArgumentError(problems, "kinject chat")


def _given(paths: Sequence[Path], how: How, searching: Searching, say: Callable[[str], None]) -> list[Paper]:
    """The documents of places, read and indexed; what can't be read is said, unless it is all."""
    files = [
        (file, file.relative_to(path).as_posix() if path.is_dir() else file.name)
        for path in paths
        for file in files_in(path)
    ]
    heard = [""]

    def tell(said: str, share: float) -> None:
        if said != heard[0]:
            heard[0] = said
            say(said)

    boundless = Limits(len(files) + 1, 1 << 20, 1 << 40)  # one's own, from one's own disk
    papers, problems = read_papers(files, limits=boundless, tell=tell)
    for problem in problems:
        say(problem)
    if files and not papers:
        raise ArgumentError(problems, "kinject chat")
    if papers:
        searching.prepare(papers, how.retriever, tell)
    return papers


@dataclass
class _Page:
    """What is behind the page: what everybody sees, and what happens when something is pressed."""

    given: list[Paper]
    searching: Searching
    models: Models
    limits: Limits
    how: How
    names: list[str]

    def build(self, gr: Any, any_model: bool) -> Any:
        """The page itself."""
        quiet: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden", "concurrency_limit": 8}
        html: dict[str, Any] = {"apply_default_css": False}
        with gr.Blocks(
            title="Ask documents", analytics_enabled=False, fill_width=True, delete_cache=(_KEPT, _KEPT)
        ) as page:
            visit = gr.State(Visit(), delete_callback=Visit.forget)
            gr.HTML(self._headline(), js_on_load=None, **html)
            with gr.Row():
                with gr.Column(scale=2, min_width=280):
                    drop = gr.File(label="Bring documents", file_count="multiple", height=140)
                    folder = gr.UploadButton("Bring a folder", file_count="directory", size="sm")
                    listed = gr.HTML(paper_list(self.given, [], [], []), js_on_load=REPORT, **html)
                with gr.Column(scale=5, min_width=280):
                    with gr.Row():
                        question = gr.Textbox(label="Question", max_lines=4, scale=5, min_width=200)
                        with gr.Column(scale=1, min_width=90):
                            go = gr.Button("Ask", variant="primary", size="sm")
                            stop = gr.Button("Stop", size="sm")
                    settings = self._settings(gr, any_model)
                    talk = gr.HTML(conversation([]), js_on_load=REPORT, **html)

            bring = self._bringing(gr)
            for one in (drop, folder):
                one.upload(bring, [visit, one], [listed, one], **{**quiet, "show_progress": "full"})
            for event in (question.submit, go.click):
                event(self.ask, [visit, question, *settings], [question, talk], **quiet)
            stop.click(self.stop, visit, None, **quiet)
            listed.click(_pressing(gr, self.show_papers), visit, listed, **quiet)
            talk.click(_pressing(gr, self.show_talk), visit, talk, **quiet)
        return page

    def _headline(self) -> str:
        kinds = ", ".join(
            kind.removeprefix(".").upper() for kind in KINDS if kind in (".pdf", ".docx", ".epub", ".html")
        )
        return (
            '<div class="kj"><h1>Ask documents</h1><p class="note">'
            f"{escape(kinds)}, Markdown and text, up to {self.limits.megabytes} MB each. What you bring is yours "
            "alone, and gone when this page is closed or loaded anew. Each question stands alone: say in it all that "
            "it is about.</p></div>"
        )

    def _settings(self, gr: Any, any_model: bool) -> list[Any]:
        retrievers = list(dict.fromkeys([self.how.retriever, "minilm", "bm25", "hybrid"]))
        orders = [(words, name) for name, (words, _) in ORDERS.items()]
        names: list[Any] = [(label(name), name) for name in self.names]
        typed = "Model (or type hf:MODEL, URL#NAME)" if any_model else "Model"
        with gr.Row():
            return [
                gr.Dropdown(retrievers, value=self.how.retriever, label="Retriever", min_width=120),
                gr.Dropdown(list(range(1, MOST_K + 1)), value=self.how.k, label="Passages (K)", min_width=120),
                gr.Dropdown(orders, value=self.how.order, label="Order", min_width=120),
                gr.Dropdown(
                    names, value=self.how.model, label=typed, allow_custom_value=any_model, scale=2, min_width=240
                ),
            ]

    # What happens

    def _bringing(self, gr: Any) -> Callable[..., tuple[str, None]]:
        bar = gr.Progress()

        def bring(visit: Visit, files: list[str] | None, progress: Any = bar) -> tuple[str, None]:
            def tell(said: str, share: float) -> None:
                progress(share, desc=said)

            new = visit.bring(files or [], self.given, self.limits, tell)
            try:
                self.searching.prepare(new, self.how.retriever, tell)
            except KinjectError as problem:
                visit.problems.append(str(problem))
            return self.show_papers(visit), None

        return bring

    def ask(
        self, visit: Visit, question: str, retriever: str, k: int, order: str, model: str
    ) -> Iterator[tuple[str, str]]:
        """Asks, and gives what the box for questions and the conversation are to hold, each time that it changes."""
        question, busy = question.strip(), bool(visit.turns and visit.turns[-1].doing)
        if not question or busy:
            if busy:
                gradio().Info("Wait for the answer, or stop it.")
            yield question, conversation(visit.turns)
            return
        turn = Turn(
            question, How(retriever, k, order, (model or NO_MODEL).strip()), visit.asked(self.given), doing="Searching"
        )
        visit.turns.append(turn)
        shown = 0.0
        for _ in answer(turn, self.searching, self.models):
            if time.monotonic() - shown > _EVERY:
                yield "", conversation(visit.turns)
                shown = time.monotonic()
        yield "", conversation(visit.turns)

    def stop(self, visit: Visit) -> None:
        """Ends the answer that is being written."""
        if visit.turns and visit.turns[-1].doing:
            visit.turns[-1].stopped = True

    def show_papers(self, visit: Visit) -> str:
        """The list of documents."""
        there = {paper.name for paper in [*self.given, *visit.own]}
        visit.left &= there
        return paper_list(self.given, visit.own, sorted(visit.left), visit.problems)

    def show_talk(self, visit: Visit) -> str:
        """The conversation."""
        return conversation(visit.turns)


def _pressing(gr: Any, show: Callable[[Visit], str]) -> Callable[..., str]:
    def press(visit: Visit, event: Any) -> str:
        visit.press(str(event._data.get("do")), str(event._data.get("what")))
        return show(visit)

    press.__annotations__["event"] = gr.EventData  # Gradio looks for it, and finds a text under `annotations`
    return press
