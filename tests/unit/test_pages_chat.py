"""Asking documents, without a browser: what is read, refused and found, what a model is asked, what is shown."""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Generator
from pathlib import Path

import pytest
from helpers.documents import SCAN, bomb, docx, epub, pdf
from helpers.writer_server import Fault, WriterServer

from lm_eval_kinject.corpus import load_corpus
from lm_eval_kinject.errors import ArgumentError, CorpusError, ModelError
from lm_eval_kinject.pages import talk
from lm_eval_kinject.pages.chat import Visit, chat
from lm_eval_kinject.pages.shelf import Limits, Paper, Searching, files_in, place_of, read_papers
from lm_eval_kinject.pages.talk import How, Models, Turn, answer, cited, label, model_problem
from lm_eval_kinject.pages.turns import conversation, paper_list
from lm_eval_kinject.plugin import assets_dir
from lm_eval_kinject.questions.asking import Endpoint, LocalModel, Request
from lm_eval_kinject.records import Query
from lm_eval_kinject.retrieval import make_retriever

EVIL = "<img src=x onerror=hacked=1>"


def read(*files: Path, limits: Limits | None = None, beside: tuple[Paper, ...] = ()) -> tuple[list[Paper], list[str]]:
    return read_papers([(file, file.name) for file in files], limits=limits or Limits(), beside=beside)


def text(path: Path, words: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(words, encoding="utf-8")
    return path


# Reading --------------------------------------------------------------------------------------------------------------


def test_what_is_wrong_with_one_file_costs_no_other(tmp_path: Path) -> None:
    broken = tmp_path / "broken.pdf"
    broken.write_bytes(b"%PDF-1.7\n1 0 obj\n<<")
    files = [
        text(tmp_path / "good.txt", "Words."), broken, bomb(tmp_path / "bomb.docx"),
        bomb(tmp_path / "liar.docx", 30_000_000, says=12), text(tmp_path / "run.exe", "MZ"),
        text(tmp_path / "empty.txt", ""), pdf(tmp_path / "locked.pdf", "secret", password="x"),
        text(tmp_path / "large.txt", "x" * ((1 << 20) + 1)), text(tmp_path / "last.md", "More words."),
    ]  # fmt: skip
    papers, problems = read(*files, limits=Limits(megabytes=1))
    assert [paper.name for paper in papers] == ["good.txt", "last.md"]
    starts = [
        "broken.pdf is broken", "bomb.docx (", "liar.docx is broken", "run.exe is none of the kinds", "empty.txt",
        "locked.pdf asks for a password", "large.txt has 1 MB, and 1 MB are the most",
    ]  # fmt: skip
    assert [problem.startswith(start) for problem, start in zip(problems, starts, strict=True)] == [True] * 7, problems


def test_two_of_one_name_and_one_brought_twice(tmp_path: Path) -> None:
    first, other = text(tmp_path / "a" / "notes.txt", "One."), text(tmp_path / "b" / "notes.txt", "Two.")
    papers, problems = read(first, other, first)
    assert [(paper.name, paper.corpus.chunks[0].id) for paper in papers] == [
        ("notes.txt", "notes.txt"), ("notes (2).txt", "notes (2).txt"),
    ]  # fmt: skip
    assert problems == ["notes.txt is there already."]


def test_how_much_one_person_may_bring(tmp_path: Path) -> None:
    files = [text(tmp_path / f"{n}.txt", f"{n}" * 10) for n in range(3)]
    papers, problems = read(*files, limits=Limits(files=2))
    assert (len(papers), problems) == (2, ["2.txt would be more than 2 documents: remove some first."])
    papers, problems = read(*files, limits=Limits(characters=20))
    assert (len(papers), problems) == (
        2, ["2.txt would be more than 20 characters of text in all: remove others first."],
    )  # fmt: skip


def test_a_folder_gives_its_documents_and_nothing_from_outside(tmp_path: Path) -> None:
    root = tmp_path / "folder"
    text(root / "b.txt", "B"), text(root / "sub" / "a.md", "A"), text(root / ".hidden.txt", "no")
    text(root / "table.csv", "id,text"), text(root / ".git" / "c.txt", "no"), text(tmp_path / "secret.txt", "no")
    (root / "link.txt").symlink_to(tmp_path / "secret.txt")
    assert [file.relative_to(root).as_posix() for file in files_in(root)] == ["b.txt", "sub/a.md"]
    (tmp_path / "none").mkdir()
    with pytest.raises(CorpusError, match="has no document: put files ending in"):
        files_in(tmp_path / "none")


def test_scans_are_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lm_eval_kinject.corpus.sources.documents._ocr", lambda page: "Read by tesseract, all of it.")
    (paper,), _ = read(pdf(tmp_path / "scan.pdf", "A page of text that is long enough.", SCAN))
    assert (paper.pages, paper.ocr) == (2, 1)
    assert "2 pages, 1 passage, 1 page read by OCR" in paper_list([], [paper], [], [])
    monkeypatch.setattr("lm_eval_kinject.corpus.sources.documents._ocr", lambda page: None)
    (paper,), _ = read(pdf(tmp_path / "scan.pdf", "A page of text that is long enough.", SCAN))
    assert len(paper.notes) == 1
    assert paper.notes[0].startswith("scan.pdf has scanned pages (2)")


# Finding --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("papers")
    about = {
        "bridge": "The mayor opened the bridge in March. Tolls are four crowns.",
        "ferry": "The ferry carried many passengers. Its captain kept a log.",
        "museum": "The museum shows the captain's log and an old toll house.",
    }
    for name, words in about.items():
        text(root / f"{name}.txt", words)
    return root


@pytest.fixture(scope="module")
def papers(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Paper]:
    files = [(file, file.name) for file in files_in(folder)]
    return read_papers(files, limits=Limits(), cache=tmp_path_factory.mktemp("cache"))[0]


@pytest.fixture(scope="module")
def searching() -> Searching:
    return Searching()


@pytest.mark.parametrize("name", ["minilm", "bm25", "hybrid"])
def test_papers_side_by_side_are_searched_as_one_corpus_is(
    name: str, papers: list[Paper], searching: Searching, folder: Path, tmp_path: Path
) -> None:
    question = "Who kept the captain's log?"
    whole = make_retriever(name, load_corpus(folder), cache=tmp_path)
    expected = [hit for hit in whole.search([Query(question)], 3)[0] if hit.score > 0]
    found = searching.search(papers, question, name, 9, lambda said, share: None)
    assert [hit.chunk.id for hit in found] == [hit.chunk.id for hit in expected]
    # Not to the bit: a batch of one and a batch of three are added up in different orders.
    assert [hit.score for hit in found] == pytest.approx([hit.score for hit in expected], abs=1e-6)
    some = searching.search(papers[:1], question, name, 9, lambda said, share: None)
    assert {hit.chunk.document_id for hit in some} <= {"bridge.txt"}


def test_a_paper_is_embedded_once(papers: list[Paper], searching: Searching) -> None:
    said: list[str] = []
    searching.prepare(papers, "minilm", lambda words, share: said.append(words))
    said.clear()
    searching.search(papers[1:], "What?", "minilm", 1, lambda words, share: said.append(words))
    assert said == []


def test_a_passage_stands_on_its_pages(tmp_path: Path) -> None:
    long = " ".join(f"Sentence number {n} stands here." for n in range(60))
    (paper,), _ = read(pdf(tmp_path / "two.pdf", "First page.", long))
    chunk = paper.corpus.chunks[-1]
    place = place_of([paper], chunk)
    document = paper.documents["two.pdf"]
    assert (place.label, place.passage, place.behind, place.ends) == ("two.pdf, page 2", chunk.text, "", True)
    assert place.before + place.passage == document.text[document.pages[1] :][-len(place.before + place.passage) :]
    assert "First page." not in place.before
    whole = text(tmp_path / "whole.txt", "All of it.")
    (paper,), _ = read(whole)
    place = place_of([paper], paper.corpus.chunks[0])
    assert (place.label, place.before, place.passage, place.behind) == ("whole.txt", "", "All of it.", "")
    book = epub(tmp_path / "book.epub", {"one.xhtml": "<p>Chapter one.</p>", "two.xhtml": "<p>Chapter two.</p>"})
    (paper,), _ = read(book)
    assert [place_of([paper], one).passage for one in paper.corpus.chunks] == ["Chapter one.", "Chapter two."]


# Asking ---------------------------------------------------------------------------------------------------------------


class Scripted:
    """A model that says what it is told to, and keeps what it was asked."""

    name = "scripted"

    def __init__(self, *pieces: str | Exception) -> None:
        self.pieces = pieces
        self.asked: list[Request] = []

    def stream(self, request: Request) -> Generator[str, None, None]:
        self.asked.append(request)
        for piece in self.pieces:
            if isinstance(piece, Exception):
                raise piece
            yield piece


@pytest.fixture
def ask(papers: list[Paper], searching: Searching, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Turn]:
    def ask(model: Scripted, question: str = "Who kept the captain's log?", **how: object) -> Turn:
        monkeypatch.setattr(talk.Models, "get", lambda self, spec: model)
        settings = {"retriever": "bm25", "k": 2, "model": "hf:scripted", **how}
        turn = Turn(question, How(**settings), tuple(papers))
        for _ in answer(turn, searching, Models()):
            pass
        return turn

    return ask


def test_passages_are_numbered_by_rank_whatever_their_order(ask: Callable[..., Turn]) -> None:
    model = Scripted("The captain [1]", ", it says [2].")
    turn = ask(model, order="reverse")
    assert turn.text == "The captain [1], it says [2]."
    assert [hit.chunk.id for hit in turn.sources] == ["ferry.txt", "museum.txt"]  # "kept" is in the first alone
    assert model.asked[0].user == (
        "[2] museum.txt\nThe museum shows the captain's log and an old toll house.\n\n"
        "[1] ferry.txt\nThe ferry carried many passengers. Its captain kept a log.\n\n"
        "Question: Who kept the captain's log?\nAnswer:"
    )
    assert (turn.doing, turn.problem, turn.absent) == ("", "", False)


def test_not_in_the_documents(ask: Callable[..., Turn]) -> None:
    turn = ask(Scripted("Unanswer", "able."))
    assert turn.absent
    assert "Not in the documents." in conversation([turn])
    assert "Unanswer" not in conversation([turn])
    nothing = ask(model := Scripted("made up"), question="Xylophone?")
    assert (nothing.absent, nothing.sources, model.asked) == (True, (), [])


def test_what_goes_wrong_is_said_beside_what_was_written(ask: Callable[..., Turn]) -> None:
    turn = ask(Scripted("The captain", ModelError("it broke off")))
    assert (turn.text, turn.problem, turn.doing) == ("The captain", "it broke off", "")
    assert ask(Scripted("x"), question="y" * 2001).problem.startswith("The question has 2,001 characters")
    set_wrong = ask(model := Scripted("x"), order="upside", k=None, retriever="oracle")
    assert set_wrong.problem == (
        "retriever oracle is a control of experiments: take one that searches, such as bm25; k=None: take 1 to 20; "
        "order upside: take one of relevance, reverse, sides"
    )
    assert model.asked == []


def test_stopped_in_the_middle(papers: list[Paper], searching: Searching, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(talk.Models, "get", lambda self, spec: Scripted("The ", "captain ", "kept ", "it."))
    turn = Turn("Who kept the log?", How("bm25", model="hf:x"), tuple(papers))
    for _ in answer(turn, searching, Models()):
        turn.stopped = turn.text.endswith("captain ")
    # The next piece was on its way already, and is the last.
    assert (turn.text, turn.absent) == ("The captain kept", False)
    assert "Stopped." in conversation([turn])


def test_without_a_document_nothing_is_asked(searching: Searching) -> None:
    turn = Turn("What?", How())
    assert list(answer(turn, searching, Models())) == []
    assert turn.problem.startswith("No document is chosen")


def test_citations() -> None:
    assert cited("A [1] b [2, 3]. C [9].", 3) == [("A ", (1,)), (" b ", (2, 3)), (". C [9].", ())]
    assert cited("[0] [12] [x]", 3) == [("[0] [12] [x]", ())]
    assert cited("", 3) == [("", ())]
    assert cited("End [1]", 1) == [("End ", (1,))]


def test_models_by_name(tmp_path: Path) -> None:
    good = ["none", "reader", "hf:owner/name", "http://localhost:11434/v1", "https://a.example/v1#llama3:8b"]
    assert [model_problem(spec) for spec in good] == [None] * 5
    assert all(model_problem(spec) for spec in ("", "hf:", "llama3", "http://", "ftp://a/b", "https://a b/v1"))
    assert label(f"hf:{tmp_path}") == tmp_path.name
    assert label("https://me:key@a.example/v1#llama3:8b") == "llama3:8b at a.example"


def test_all_that_is_wrong_at_once(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError) as caught:
        chat([tmp_path / "nowhere"], how=How("oracle", 0, "upside", "llama"), models=["gpt"])
    starts = [f"{tmp_path / 'nowhere'}: there is no such", "retriever oracle is a control", "k=0: take 1 to 20",
              "order upside", "model 'llama'", "model 'gpt'"]  # fmt: skip
    assert [one[: len(start)] for one, start in zip(caught.value.problems, starts, strict=True)] == starts


# Models that stream ---------------------------------------------------------------------------------------------------

ASKED = Request("You are asked.", "Who?", temperature=0.0, most_tokens=8)


def test_an_endpoint_streams() -> None:
    with WriterServer({1: Fault("cut"), 2: Fault("401")}, script=lambda *_: "one two three four") as server:
        writer = Endpoint(server.url, tries=1)
        assert list(writer.stream(ASKED)) == ["one ", "two ", "three ", "four"]
        assert server.seen[0]["stream"] is True
        assert server.seen[0]["messages"][1] == {"role": "user", "content": "Who?"}
        broken = writer.stream(ASKED)
        assert [next(broken), next(broken)] == ["one ", "two "]
        with pytest.raises(ModelError, match="gave no answer"):
            next(broken)
        with pytest.raises(ModelError, match="OPENAI_API_KEY"):
            list(writer.stream(ASKED))
    with pytest.raises(ModelError, match=r"gave no answer \(connections lost\).*See that it runs there"):
        Endpoint(server.url, tries=1)


@pytest.fixture(scope="module")
def reader() -> LocalModel:
    return LocalModel(str(assets_dir() / "reader"))


def test_a_local_model_streams_what_it_would_say(reader: LocalModel) -> None:
    asked = Request("", "In March the mayor of Harrow opened", temperature=0.0, most_tokens=12)
    pieces = list(reader.stream(asked))
    assert len(pieces) > 1
    assert "".join(pieces) == reader.ask(asked).text
    with pytest.raises(ModelError, match="doesn't fit the window"):
        list(reader.stream(Request("", "word " * 5000)))


def test_whoever_stops_reading_stops_the_writing(reader: LocalModel, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[int] = []
    forward = reader._model.forward
    monkeypatch.setattr(reader._model, "forward", lambda *a, **k: steps.append(1) or forward(*a, **k))
    pieces = reader.stream(Request("", "In March", temperature=0.0, most_tokens=3000))
    next(pieces)
    pieces.close()
    with reader._lock:  # free as soon as the writing has stopped
        assert len(steps) < 200


# What is shown --------------------------------------------------------------------------------------------------------


def test_nothing_of_a_document_or_an_answer_is_markup(tmp_path: Path, searching: Searching) -> None:
    path = docx(tmp_path / "evil.docx", f"The title is {EVIL} and the answer too.", title=EVIL)
    papers, problems = read_papers([(path, f"{EVIL}.docx"), (path, f"{EVIL}.exe")], limits=Limits())
    assert len(papers) == 1
    turn = Turn(EVIL, How("bm25"), tuple(papers), opened=1, text=f"It is {EVIL} [1] [1](javascript:hacked=1)")
    turn.sources = searching.search(papers, "title", "bm25", 1, lambda said, share: None)
    turn.how = How("bm25", model="hf:x")
    for shown in (conversation([turn]), paper_list([], papers, [], problems)):
        assert "<img" not in shown
        assert not re.search(r"<a[ >]", shown)
        assert html.escape(EVIL) in shown
    assert conversation([turn]).count(f"<mark>The title is {html.escape(EVIL)} and the answer too.</mark>") == 1


def test_a_visit_holds_what_is_pressed(papers: list[Paper], tmp_path: Path) -> None:
    visit, given = Visit(own=papers[1:]), papers[:1]
    visit.press("tick", "ferry.txt")
    assert [paper.name for paper in visit.asked(given)] == ["bridge.txt", "museum.txt"]
    visit.press("tick", "ferry.txt")
    visit.press("remove", "museum.txt")
    visit.press("remove", "bridge.txt")  # everybody's
    assert [paper.name for paper in visit.asked(given)] == ["bridge.txt", "ferry.txt"]
    visit.turns = [Turn("What?", How(), tuple(papers))]
    for wrong in ("0 1", "7 1", "-1 1", "", "0", "x y"):
        visit.press("open", wrong)
        assert visit.turns[0].opened == 0
    visit.cache = tmp_path / "mine"
    visit.cache.mkdir()
    visit.forget()
    assert not visit.cache.exists()
