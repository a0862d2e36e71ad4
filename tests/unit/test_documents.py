"""People's own files as corpora: HTML, DOCX, PDF, EPUB, folders of everything; what can't be read; built to disk."""

from __future__ import annotations

import json
import logging
import os
import random
import resource
import shutil
import sys
from pathlib import Path

import pytest
from helpers.documents import SCAN, bomb, docx, epub, pdf

from lm_eval_kinject.cli import main
from lm_eval_kinject.corpus import Chunking, load_corpus
from lm_eval_kinject.corpus import build as build_module
from lm_eval_kinject.corpus.build import build_corpus
from lm_eval_kinject.corpus.corpus import find_source
from lm_eval_kinject.corpus.sources.files import read_path
from lm_eval_kinject.corpus.sources.left_out import LeftOut
from lm_eval_kinject.errors import CorpusError
from lm_eval_kinject.records import Document

TESSERACT = shutil.which("tesseract")

ARTICLE = (
    "<html><head><title>The tide mill</title><script>var secret = 'no text';</script><style>p {color: red}</style>"
    "</head><body><nav><a href='/'>Home</a> <a href='/a'>Archive</a></nav><article><h1>The tide mill</h1>"
    + "".join(
        f"<p>The mill at Harwick stood idle for {n} years before its wheel turned again, and people came to see it.</p>"
        for n in ("ten", "twenty", "thirty")
    )
    + "</article><footer>Privacy policy</footer></body></html>"
)


def texts(path: Path) -> list[Document]:
    return [item for item in read_path(path).items if isinstance(item, Document)]


@pytest.fixture(autouse=True)
def _no_tesseract(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    monkeypatch.setenv("PATH", str(tmp_path_factory.mktemp("bin")))


def install_tesseract(monkeypatch: pytest.MonkeyPatch, folder: Path, script: str) -> None:
    """A program of that name which is called as tesseract is: PICTURE, OUTPUT (to which .txt is added), options."""
    folder.mkdir()
    program = folder / "tesseract"
    program.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")


# PDF ------------------------------------------------------------------------------------------------------------------


def test_pdf_pages_are_kept_for_citations(tmp_path: Path) -> None:
    path = pdf(
        tmp_path / "r.pdf", "First page ends here.", "", "This sentence goes on", "overleaf. And ends.", title="T"
    )
    (document,) = texts(path)
    assert document.text == "First page ends here.\n\nThis sentence goes on\noverleaf. And ends."
    # Page 2 is empty: it starts where page 3 does.
    assert (document.id, document.title, document.pages) == ("r.pdf", "T", (0, 21, 23, 45))
    assert [document.text[start : start + 4] for start in document.pages] == ["Firs", "\n\nTh", "This", "over"]
    chunks = load_corpus(path, chunking=Chunking(4)).chunks
    assert [(c.text, c.meta) for c in chunks] == [
        ("First page ends here.", {"chars": [0, 21], "pages": [1, 1]}),
        ("This sentence goes on", {"chars": [23, 44], "pages": [3, 3]}),
        ("overleaf. And ends.", {"chars": [45, 64], "pages": [4, 4]}),
    ]


def test_a_title_that_a_program_made_up_is_none(tmp_path: Path) -> None:
    assert texts(pdf(tmp_path / "a.pdf", "x", title="Microsoft Word - draft"))[0].title == ""
    assert texts(pdf(tmp_path / "a.pdf", "x", title="report_v3.docx"))[0].title == ""


def test_scanned_pages_are_read_by_tesseract(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install_tesseract(monkeypatch, tmp_path / "bin", 'echo "Read  by $3 $4." > "$2.txt"')
    monkeypatch.setenv("KINJECT_OCR_LANGUAGE", "deu")
    (tmp_path / "in").mkdir()
    pdf(tmp_path / "in" / "s.pdf", "Written words are on this page.", SCAN)
    corpus = load_corpus(tmp_path / "in")
    assert [c.text for c in corpus.chunks] == ["Written words are on this page.\n\nRead by -l deu."]
    assert corpus.counts == {"documents": 1, "cut": 0, "files": 1, "left_out": 0, "pages_by_ocr": 1}


@pytest.mark.skipif(TESSERACT is None, reason="needs tesseract (on Debian: apt-get install tesseract-ocr)")
def test_a_scan_is_read_by_the_real_tesseract(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A page of text is made a picture, and the picture a page."""
    import fpdf
    import pypdfium2

    said = "The tide mill at Harwick stood idle for twenty years."
    written = pypdfium2.PdfDocument(pdf(tmp_path / "written.pdf", said))
    picture = written[0].render(scale=3).to_pil()
    made = fpdf.FPDF()
    made.add_page()
    made.image(picture, x=0, y=0, w=made.w)
    made.output(str(tmp_path / "scan.pdf"))
    assert TESSERACT is not None
    monkeypatch.setenv("PATH", f"{Path(TESSERACT).parent}:/usr/bin:/bin")
    (document,) = texts(tmp_path / "scan.pdf")
    assert " ".join(document.text.split()) == said


@pytest.mark.parametrize("script", [None, "exit 1"])
def test_scans_that_nobody_reads_are_named_by_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, script: str | None
) -> None:
    if script:
        install_tesseract(monkeypatch, tmp_path / "bin", script)
    path = pdf(tmp_path / "s.pdf", SCAN, SCAN, SCAN)
    with pytest.raises(CorpusError, match=r"s\.pdf has scanned pages \(1-3\): .*tesseract"):
        load_corpus(path)
    folder = tmp_path / "in"
    folder.mkdir()
    pdf(folder / "half.pdf", SCAN, "Only this page has any text.", SCAN, SCAN)
    source = read_path(folder)
    (document,) = source.items
    assert (document.text, document.pages) == ("Only this page has any text.", (0, 0, 28, 28))
    assert source.reading is not None
    (entry,) = source.reading.left_out
    assert (entry.name, entry.why) == ("half.pdf", "scanned")
    assert "(1, 3-4)" in entry.reason
    assert entry.reason.endswith("The other pages are read.")
    with caplog.at_level(logging.WARNING):
        alone = load_corpus(folder / "half.pdf")
    assert alone.counts == {"documents": 1, "cut": 0, "files": 1, "left_out": 1, "left_out_scanned": 1}
    assert "half.pdf has scanned pages (1, 3-4)" in caplog.text


# DOCX, EPUB, HTML -----------------------------------------------------------------------------------------------------


def test_docx_in_its_order(tmp_path: Path) -> None:
    path = docx(tmp_path / "w.docx", "# Costs", "In all.", [["what", "sum"], ["oak\nbeams", "12"]], "End.", title="T")
    (document,) = texts(path)
    assert document.text == "# Costs\n\nIn all.\n\nwhat | sum\noak beams | 12\n\nEnd."
    assert (document.id, document.title) == ("w.docx", "T")


def test_epub_chapters_in_reading_order(tmp_path: Path) -> None:
    chapters = {
        "b%20two.xhtml": None,
        "z.xhtml": "<h2>The <i>first</i></h2><p>It begins.</p><script>x()</script>",
        "a.xhtml": "<p>It ends.</p>",
        "blank.xhtml": " ",
    }
    source = read_path(epub(tmp_path / "b.epub", chapters).parent)
    made = list(source.items)
    assert [(d.id, d.title, d.text) for d in made] == [
        ("b.epub/OEBPS/z.xhtml", "A book: The first", "## The first\n\nIt begins."),
        ("b.epub/OEBPS/a.xhtml", "A book", "It ends."),
    ]
    assert source.reading is not None
    assert [(e.why, "b two.xhtml" in e.reason) for e in source.reading.left_out] == [("broken", True)]


def test_scrambled_fonts_are_no_copy_protection(tmp_path: Path) -> None:
    fonts = epub(tmp_path / "f.epub", {"a.xhtml": "Text."}, encrypted="http://www.idpf.org/2008/embedding")
    assert [d.text for d in texts(fonts)] == ["Text."]
    locked = epub(tmp_path / "l.epub", {"a.xhtml": "Text."}, encrypted="http://www.w3.org/2001/04/xmlenc#aes256-cbc")
    with pytest.raises(CorpusError, match=r"l\.epub is encrypted \(copy protection\)"):
        load_corpus(locked)


def test_html_is_its_main_text(tmp_path: Path) -> None:
    (tmp_path / "p.html").write_text(ARTICLE, encoding="utf-8")
    (document,) = texts(tmp_path / "p.html")
    assert document.title == "The tide mill"
    for years in ("ten", "twenty", "thirty"):
        assert f"stood idle for {years} years" in document.text
    for furniture in ("secret", "color", "Archive", "Privacy"):
        assert furniture not in document.text


def test_a_page_with_little_text_is_all_its_text(tmp_path: Path) -> None:
    page = "<html><head><meta charset='iso-8859-1'><title>n</title></head><body><div>Geöffnet</div></body></html>"
    (tmp_path / "p.htm").write_bytes(page.encode("iso-8859-1"))
    assert [d.text for d in texts(tmp_path / "p.htm")] == ["Geöffnet"]


# What can't be read ---------------------------------------------------------------------------------------------------


def test_archives_that_unfold_beyond_measure_are_refused_in_little_memory(tmp_path: Path) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    path = bomb(tmp_path / "b.docx", 100_000_000)
    made = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(CorpusError, match=r"b\.docx .* unfolds to more than .* bytes"):
        load_corpus(path)
    assert path.stat().st_size < 120_000
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - max(made, before) < 50_000  # KB


def test_an_archive_that_lies_about_its_size_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"l\.docx is broken"):
        load_corpus(bomb(tmp_path / "l.docx", 30_000_000, says=1000))


def test_one_file_that_needs_an_extra_says_which(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pypdfium2", None)
    with pytest.raises(CorpusError, match=r"without pypdfium2: run `pip install 'lm-eval-kinject\[files\]'`"):
        load_corpus(pdf(tmp_path / "a.pdf", "x"))


def mixed_folder(folder: Path) -> dict[str, str]:
    """Fifty files of all sorts; returns why those that can't be read can't."""
    (folder / "sub").mkdir(parents=True)
    for n in range(20):
        (folder / f"note{n:02}.txt").write_text(f"Note number {n}.", encoding="utf-8")
    for n in range(5):
        pdf(folder / "sub" / f"report{n}.pdf", f"Report {n}, page one.", "And page two.")
    for n in range(4):
        docx(folder / f"letter{n}.docx", f"Letter number {n}.")
        (folder / f"page{n}.html").write_text(ARTICLE.replace("ten", f"{n} and ten"), encoding="utf-8")
    epub(folder / "book.epub", {"a.xhtml": "<p>Once upon a time.</p>"})
    (folder / "wide.txt").write_bytes("Café".encode("utf-16"))
    (folder / "rows.csv").write_text("id,text\nr1,A row.\nr2,\n", encoding="utf-8")
    (folder / "rows.jsonl").write_text('{"id": "j1", "text": "Fine."}\n{"id": "j2", oops\n', encoding="utf-8")
    (folder / "long.txt").write_text("A sentence of five words. " * 60_000, encoding="utf-8")  # 1.5 MB, two parts

    pdf(folder / "scan.pdf", SCAN)
    pdf(folder / "secret.pdf", "x", password="pw")
    (folder / "broken.pdf").write_bytes((folder / "sub" / "report0.pdf").read_bytes()[:300])
    (folder / "empty.pdf").write_bytes(b"")
    pdf(folder / "blank.pdf", "")
    (folder / "latin.txt").write_bytes("Café".encode("latin-1"))
    (folder / "empty.txt").write_bytes(b"")
    (folder / "old.docx").write_bytes(bytes.fromhex("d0cf11e0a1b11ae1") + b"x" * 600)
    (folder / "torn.docx").write_bytes((folder / "letter0.docx").read_bytes()[:-200])
    bomb(folder / "bomb.epub")
    (folder / "table.csv").write_text("name,price\noak,12\n", encoding="utf-8")
    (folder / "photo.jpg").write_bytes(b"\xff\xd8")
    return {
        "photo.jpg": "unknown_kind", "blank.pdf": "empty", "bomb.epub": "too_large", "broken.pdf": "broken",
        "empty.pdf": "empty", "empty.txt": "empty", "latin.txt": "encoding", "old.docx": "password",
        "rows.csv": "rows", "rows.jsonl": "rows", "scan.pdf": "scanned", "secret.pdf": "password",
        "table.csv": "broken", "torn.docx": "broken",
    }  # fmt: skip


def test_a_folder_of_fifty_mixed_files(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    expected = mixed_folder(tmp_path / "in")
    assert sum(file.is_file() for file in (tmp_path / "in").rglob("*")) == 50
    with caplog.at_level(logging.WARNING):
        corpus = load_corpus(tmp_path / "in")
    _, source = find_source(tmp_path / "in")
    built = build_corpus("in", source, tmp_path / "out")
    assert {entry.name: entry.why for entry in built.left_out} == expected
    assert len(built.left_out) == len(expected)
    assert corpus.counts == {
        "documents": 38, "cut": 1, "files": 38, "left_out": 14, "left_out_broken": 3, "left_out_empty": 3,
        "left_out_encoding": 1, "left_out_password": 2, "left_out_rows": 2, "left_out_scanned": 1,
        "left_out_too_large": 1, "left_out_unknown_kind": 1,
    }  # fmt: skip
    assert "files of other kinds are left out: photo.jpg" in caplog.text
    assert "rows.jsonl, line 2: not valid JSON" in caplog.text
    by_document = {chunk.document_id for chunk in corpus.chunks}
    assert {
        "note19.txt",
        "sub/report4.pdf",
        "letter3.docx",
        "page3.html",
        "wide.txt",
        "r1",
        "j1",
        "long.txt",
    } < by_document
    assert sum(len(c.text.split()) for c in corpus.chunks if c.document_id == "long.txt") == 300_000

    loaded = load_corpus(tmp_path / "out")
    assert loaded.chunks == corpus.chunks
    assert loaded.fingerprint == corpus.fingerprint == built.fingerprint
    assert (loaded.counts, loaded.chunking) == (corpus.counts, corpus.chunking)
    assert loaded.source == corpus.source


def test_a_missing_library_is_a_reason_like_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.txt").write_text("Text.", encoding="utf-8")
    (tmp_path / "p.html").write_text(ARTICLE, encoding="utf-8")
    monkeypatch.setitem(sys.modules, "trafilatura", None)
    source = read_path(tmp_path)
    assert [d.id for d in source.items] == ["a.txt"]
    assert source.reading is not None
    assert [e.why for e in source.reading.left_out] == ["library"]


def test_a_folder_of_which_nothing_can_be_read_says_why(tmp_path: Path) -> None:
    pdf(tmp_path / "a.pdf", "x", password="pw")
    with pytest.raises(CorpusError, match=r"(?s)no readable file \(it holds a\.pdf\).*a\.pdf asks for a password"):
        load_corpus(tmp_path)


def test_documents_beside_parquet_are_read_too_unless_a_card_says_data_set(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"id": ["p"], "text": ["A row."]}), tmp_path / "t.parquet")
    (tmp_path / "a.txt").write_text("A file.", encoding="utf-8")
    assert [d.id for d in read_path(tmp_path).items] == ["a.txt", "p"]
    (tmp_path / "b.md").write_text("---\ntags: [note]\n---\nA note.", encoding="utf-8")
    assert [d.id for d in read_path(tmp_path).items] == ["a.txt", "b.md", "p"]
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n", encoding="utf-8")
    assert [d.id for d in read_path(tmp_path).items] == ["p"]


def test_many_bad_rows_are_a_few_lines_and_all_counted(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("Text.", encoding="utf-8")
    (tmp_path / "b.jsonl").write_text('{"text": "Row."}\n' + "{}\n" * 25, encoding="utf-8")
    corpus = load_corpus(tmp_path)
    assert [c.id for c in corpus.chunks] == ["a.txt", "b:1"]
    assert (corpus.counts["left_out"], corpus.counts["left_out_rows"]) == (25, 25)
    source = read_path(tmp_path)
    list(source.items)
    assert source.reading is not None
    assert [entry.count for entry in source.reading.left_out] == [1] * 10 + [15]
    assert "15 more rows" in source.reading.left_out[-1].reason


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    small_folder(tmp_path / "in")
    out = str(tmp_path / "out")
    argv = ["kinject", "corpus", "build", str(tmp_path / "in"), "-o", out, "--size", "20", "--overlap", "2"]
    for again in ("", " (was there)"):
        monkeypatch.setattr(sys, "argv", argv)
        with pytest.raises(SystemExit) as stopped:
            main()
        assert not stopped.value.code
        said, told = capsys.readouterr()
        assert f"21 chunks, fingerprint {load_corpus(out).fingerprint[:16]}{again}\n" in said
        assert "3 cut, 12 documents, 4 files, 4 left out, 3 left out empty, 1 left out rows" in said
        assert told.count("The corpus file 0.pdf is empty") == 1
        assert "left out (empty): The corpus file 0.pdf is empty" in told
    assert load_corpus(out).chunking == {"method": "sentences", "words": 20, "overlap": 2}


# Building -------------------------------------------------------------------------------------------------------------


def small_folder(folder: Path) -> Path:
    folder.mkdir()
    for n in range(3):
        (folder / f"{n}.txt").write_text(f"File {n}. " * 40, encoding="utf-8")
        (folder / f"{n}.pdf").write_bytes(b"")
    rows = [{"id": f"r{n}", "text": f"Row {n}.", "n": n, "mixed": n if n % 2 else str(n)} for n in range(9)]
    (folder / "1.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n{}\n", encoding="utf-8")
    return folder


def build(tmp_path: Path, out: str) -> build_module.Built:
    _, source = find_source(tmp_path / "in")
    return build_corpus("in", source, tmp_path / out, chunking=Chunking(20, 2), part=3)


def test_a_build_stopped_anywhere_goes_on_and_ends_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small_folder(tmp_path / "in")
    whole = build(tmp_path, "whole")
    assert whole.counts["left_out"] == 4
    calls = 0
    rename = os.replace

    class Killed(BaseException):
        pass

    def counted(old: object, new: object) -> None:
        nonlocal calls
        calls += 1
        if calls in stops:  # before the file has its name, or just after
            if rng.random() < 0.5:
                rename(old, new)  # type: ignore[arg-type]
            raise Killed
        rename(old, new)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "replace", counted)
    killed = 0
    for seed in range(12):
        rng = random.Random(seed)
        stops, calls = set(rng.sample(range(1, 30), 3)), 0
        while True:
            try:
                built = build(tmp_path, f"out{seed}")
                break
            except Killed:
                killed += 1
        assert (built.fingerprint, built.counts, built.left_out, built.chunks) == (
            whole.fingerprint, whole.counts, whole.left_out, whole.chunks
        )  # fmt: skip
        names = sorted(path.name for path in (tmp_path / f"out{seed}").iterdir())
        assert names == sorted(path.name for path in (tmp_path / "whole").iterdir())
        assert not (tmp_path / f"out{seed}.building").exists()
    assert killed >= 20
    assert load_corpus(tmp_path / "out3").fingerprint == whole.fingerprint


def test_a_stopped_build_does_not_cut_again_what_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small_folder(tmp_path / "in")
    whole = build(tmp_path, "whole")
    write = build_module._write_part
    written: list[int] = []

    def stop_at_third(*args: object) -> None:
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(len(args[1]))  # type: ignore[arg-type]
        write(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(build_module, "_write_part", stop_at_third)
    with pytest.raises(KeyboardInterrupt):
        build(tmp_path, "out")
    monkeypatch.setattr(build_module, "_write_part", lambda *args: (written.append(len(args[1])), write(*args)))
    assert build(tmp_path, "out").fingerprint == whole.fingerprint
    assert sum(written) == whole.chunks


def test_a_built_corpus_is_there_the_second_time_and_anew_when_its_files_change(tmp_path: Path) -> None:
    small_folder(tmp_path / "in")
    first = build(tmp_path, "out")
    again = build(tmp_path, "out")
    assert (first.already, again.already) == (False, True)
    assert (again.left_out, again.fingerprint) == (first.left_out, first.fingerprint)
    assert isinstance(again.left_out[0], LeftOut)
    (tmp_path / "in" / "new.txt").write_text("New.", encoding="utf-8")
    assert build(tmp_path, "out").chunks == first.chunks + 1


def test_a_corpus_that_was_changed_by_hand_is_refused(tmp_path: Path) -> None:
    small_folder(tmp_path / "in")
    build(tmp_path, "out")
    (tmp_path / "out" / "chunks-00001.parquet").unlink()
    with pytest.raises(CorpusError, match=r"not what its manifest\.json says, so it was damaged: build it again"):
        load_corpus(tmp_path / "out")


def test_nothing_of_anybody_else_is_overwritten(tmp_path: Path) -> None:
    small_folder(tmp_path / "in")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("x", encoding="utf-8")
    with pytest.raises(CorpusError, match="is no built corpus: give another folder"):
        build(tmp_path, "out")


def test_a_corpus_is_not_built_into_what_it_is_made_of(tmp_path: Path) -> None:
    small_folder(tmp_path / "in")
    with pytest.raises(CorpusError, match="in the folder that is read"):
        build(tmp_path, "in/out")
    _, source = find_source(tmp_path / "in" / "0.txt")  # beside a file is another matter
    assert build_corpus("0", source, tmp_path / "in" / "out").chunks == 1


def test_ids_twice_are_found_before_the_corpus_has_its_name(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("a", "b"):
        (folder / f"{name}.jsonl").write_text('{"id": "same", "text": "x"}\n', encoding="utf-8")
    with pytest.raises(CorpusError, match="has the id 'same' twice"):
        build(tmp_path, "out")
    assert not (tmp_path / "out").exists()
