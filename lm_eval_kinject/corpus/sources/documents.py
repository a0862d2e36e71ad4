"""Reads documents that people keep: HTML pages, Word files, PDF, e-books.

What it is for: each reader yields the Documents of one file: text, title, and for PDF where its pages start, so that
a chunk can be cited by its page. What it does not do: it keeps no layout, pictures, foot- or endnotes, comments or
tracked changes, and runs nothing that a file brings along.

The one idea: such files come from anywhere, so that a reader first bounds what a file may unfold to, and whatever a
library then raises means one thing: this file is broken, here is why, and the next one is read.
"""

from __future__ import annotations

import errno
import importlib
import math
import os
import posixpath
import re
import shutil
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from lm_eval_kinject.corpus.clean import squeeze, strip_html
from lm_eval_kinject.corpus.sources.left_out import Reading, UnreadableFile
from lm_eval_kinject.records import Document

__all__ = ["DOCUMENT_READERS", "read_document"]

LARGEST_HTML = 20_000_000
"""Bytes of an HTML file; what is longer is a dump, whose tree would take gigabytes."""

LARGEST_ARCHIVE = 500_000_000
"""Bytes that a DOCX or EPUB may unfold to."""

LARGEST_RATIO = 200
"""How much larger than packed it may get, from ten megabytes on; text shrinks to a third or a tenth."""

MOST_MEMBERS = 20_000
_BLOCK = 1 << 20
_OCR_PIXELS = 25e6  # an A4 page at 300 dpi has 9 million
_OCR_SECONDS = 180
_SCAN_LETTERS = 20  # a page with a picture and fewer letters than this is a scan; page numbers and stamps stay below
_OLE = bytes.fromhex("d0cf11e0a1b11ae1")  # how Word packs a document under a password (and wrote .doc)
_EXTRA = "pip install 'lm-eval-kinject[files]'"


def read_document(path: Path, name: str, reading: Reading) -> Iterator[Document]:
    """Documents of one HTML, DOCX, PDF or EPUB file.

    Args:
        path: the file.
        name: stands in messages, and is the Documents' id or the start of it.
        reading: told of pages and chapters that can't be read while the rest can.

    Raises:
        UnreadableFile: nothing of it can be read.
    """
    reader = DOCUMENT_READERS[path.suffix.lower()]
    if path.stat().st_size == 0:
        raise UnreadableFile("empty", f"The corpus file {name} is empty: give it text or remove it.")
    try:
        yield from reader(path, name, reading)
    except UnreadableFile:
        raise
    except OSError as problem:
        if problem.errno != errno.EINVAL:  # what an archive says that names places outside itself
            raise
        raise _broken(name, "it names places outside itself") from problem
    except Exception as problem:  # libraries raise what they like on a file that isn't what its name says
        raise _broken(name, str(problem) or type(problem).__name__) from problem


def _broken(name: str, why: str) -> UnreadableFile:
    first = " ".join(why.split())[:200]
    return UnreadableFile("broken", f"The corpus file {name} is broken ({first}): save it anew.")


def _locked(name: str) -> UnreadableFile:
    return UnreadableFile("password", f"The corpus file {name} asks for a password: save a copy without one.")


def _without_text(name: str) -> UnreadableFile:
    return UnreadableFile("empty", f"The corpus file {name} has no text: remove it.")


def _library(module: str, name: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as problem:
        text = f"The corpus file {name} can't be read without {problem.name or module}: run `{_EXTRA}`."
        raise UnreadableFile("library", text) from problem


# HTML -----------------------------------------------------------------------------------------------------------------


def _read_html(path: Path, name: str, reading: Reading) -> Iterator[Document]:
    """A page's main text, without menus, scripts and what else surrounds it; all its text where none stands out."""
    del reading
    trafilatura = _library("trafilatura", name)
    size = path.stat().st_size
    if size > LARGEST_HTML:
        raise UnreadableFile(
            "too_large",
            f"The corpus file {name} has {size:,} bytes, and HTML is read up to {LARGEST_HTML:,}: divide it.",
        )
    data = path.read_bytes()
    page = trafilatura.bare_extraction(data, include_comments=False, with_metadata=True)
    text = squeeze(page.text or "") if page is not None else ""
    text = text or _body_text(importlib.import_module("trafilatura.utils").decode_file(data))
    if not text:
        raise _without_text(name)
    title, day = (squeeze(page.title or ""), page.date) if page is not None else ("", None)
    yield Document(name, text, title=title, date=day or None, meta={"url": page.url} if page and page.url else {})


def _body_text(markup: str) -> str:
    """Text of a page's body; headings as lines that start with ``#``, so that sections can be told."""
    body = re.search(r"<body\b[^>]*>(.*)", markup, re.IGNORECASE | re.DOTALL)
    inside = re.sub(r"<\?.*?\?>", "", body[1] if body else markup, flags=re.DOTALL)
    return strip_html(
        re.sub(r"<h([1-6])\b[^>]*>\s*", lambda match: f"<p>{'#' * int(match[1])} ", inside, flags=re.IGNORECASE)
    )


# DOCX -----------------------------------------------------------------------------------------------------------------


def _read_docx(path: Path, name: str, reading: Reading) -> Iterator[Document]:
    """Paragraphs and tables in their order; a table's row is a line, its cells divided by bars."""
    del reading
    docx = _library("docx", name)
    with path.open("rb") as opened:
        if opened.read(8) == _OLE:
            raise _locked(name)
    _bounded_archive(path, name)
    document = docx.Document(str(path))
    parts = (_table(block) if hasattr(block, "rows") else _paragraph(block) for block in document.iter_inner_content())
    text = squeeze("\n\n".join(part for part in parts if part.strip()))
    if not text:
        raise _without_text(name)
    yield Document(name, text, title=squeeze(document.core_properties.title or ""))


def _paragraph(block: Any) -> str:
    style = str(getattr(block.style, "name", "") or "")
    level = re.fullmatch(r"(?:Heading (\d)|Title)", style)
    hashes = "#" * min(int(level[1] or 1), 6) + " " if level and block.text.strip() else ""
    return hashes + str(block.text)


def _table(block: Any) -> str:
    rows = []
    for row in block.rows:
        cells: dict[Any, str] = {cell._tc: squeeze(cell.text).replace("\n", " ") for cell in row.cells}  # joined: once
        rows.append(" | ".join(text for text in cells.values() if text))
    return "\n".join(row for row in rows if row)


def _bounded_archive(path: Path, name: str) -> None:
    """Unpacks an archive into nothing, to see that it is whole and what it unfolds to: its own directory may lie.

    Raises:
        UnreadableFile: it is no archive, damaged, or unfolds beyond all measure.
    """
    packed = path.stat().st_size
    most = min(LARGEST_ARCHIVE, max(packed * LARGEST_RATIO, 10_000_000))
    bomb = UnreadableFile(
        "too_large",
        f"The corpus file {name} ({packed:,} bytes) unfolds to more than {most:,} bytes or {MOST_MEMBERS:,} members, "
        f"as archives do that are made to fill a memory: it isn't read.",
    )
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            if len(members) > MOST_MEMBERS or sum(member.file_size for member in members) > most:
                raise bomb
            unfolded = 0
            for member in members:
                if member.flag_bits & 1:
                    raise _locked(name)
                with archive.open(member) as opened:
                    while block := opened.read(_BLOCK):
                        unfolded += len(block)
                        if unfolded > most:
                            raise bomb
    except zipfile.BadZipFile as problem:
        raise _broken(name, str(problem)) from problem


# EPUB -----------------------------------------------------------------------------------------------------------------

_FONT_SCRAMBLING = {"http://www.idpf.org/2008/embedding", "http://ns.adobe.com/pdf/enc#RC"}


def _read_epub(path: Path, name: str, reading: Reading) -> Iterator[Document]:
    """A Document a chapter, in the order in which the book is read: ids ``NAME/CHAPTER'S FILE``."""
    etree = _library("lxml.etree", name)
    _bounded_archive(path, name)
    with zipfile.ZipFile(path) as archive:
        parse = _xml_parser(etree, archive, name)
        _refuse_locked_book(archive, parse, name)
        container = parse("META-INF/container.xml")
        root = next(iter(container.xpath("//*[local-name()='rootfile']/@full-path")), None)
        if root is None:
            raise _broken(name, "its container names no package")
        package = parse(str(root))
        title = squeeze(" ".join(package.xpath("//*[local-name()='metadata']/*[local-name()='title'][1]/text()")))
        found = False
        for href in _spine(package):
            member = posixpath.normpath(posixpath.join(posixpath.dirname(str(root)), unquote(href)))
            try:
                text = _body_text(_decoded(archive.read(member)))
            except KeyError:
                reading.leave_out(
                    name, "broken", f"The corpus file {name} lacks its chapter {member}; others are read."
                )
                continue
            if text:
                found = True
                yield Document(f"{name}/{member}", text, title=_chapter_title(title, text))
        if not found:
            raise _without_text(name)


def _xml_parser(etree: Any, archive: zipfile.ZipFile, name: str) -> Callable[[str], Any]:
    def parse(member: str) -> Any:
        parser = etree.XMLParser(resolve_entities=False, no_network=True, recover=True)
        try:
            tree = etree.fromstring(archive.read(member), parser)
        except KeyError as problem:
            raise _broken(name, f"it has no {member}") from problem
        if tree is None:
            raise _broken(name, f"its {member} is no XML")
        return tree

    return parse


def _refuse_locked_book(archive: zipfile.ZipFile, parse: Callable[[str], Any], name: str) -> None:
    """Refuses a book whose chapters are encrypted; scrambled fonts are nobody's secret."""
    if "META-INF/encryption.xml" not in archive.namelist():
        return
    ways = set(parse("META-INF/encryption.xml").xpath("//*[local-name()='EncryptionMethod']/@Algorithm"))
    if ways - _FONT_SCRAMBLING:
        raise UnreadableFile(
            "password", f"The corpus file {name} is encrypted (copy protection): get the book without it."
        )


def _spine(package: Any) -> Iterator[str]:
    """Addresses of a book's chapters in reading order, without its table of contents."""
    items = {item.get("id"): item for item in package.xpath("//*[local-name()='manifest']/*[local-name()='item']")}
    for reference in package.xpath("//*[local-name()='spine']/*[local-name()='itemref']"):
        item = items.get(reference.get("idref"))
        if item is not None and item.get("href") and "nav" not in (item.get("properties") or "").split():
            yield item.get("href").partition("#")[0]


def _decoded(data: bytes) -> str:
    return data.decode("utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig", errors="replace")


def _chapter_title(book: str, text: str) -> str:
    heading = re.search(r"^#+ (.+)$", text, re.MULTILINE)
    return ": ".join(part for part in (book, heading[1] if heading else "") if part)


# PDF ------------------------------------------------------------------------------------------------------------------


def _read_pdf(path: Path, name: str, reading: Reading) -> Iterator[Document]:
    """One Document with its pages' offsets; the text of scanned pages by tesseract, where it is installed."""
    pdfium = _library("pypdfium2", name)
    try:
        pdf = pdfium.PdfDocument(path)
    except pdfium.PdfiumError as problem:
        if problem.err_code == pdfium.raw.FPDF_ERR_PASSWORD:
            raise _locked(name) from problem
        raise _broken(name, str(problem)) from problem
    try:
        title = _pdf_title(pdf)
        texts, scans, broken = _pages(pdf, pdfium, reading)
    finally:
        pdf.close()
    without = _pages_without_text(name, scans, broken)
    if not any(texts):
        raise without or _without_text(name)
    if without:
        reading.leave_out(name, without.why, f"{without} The other pages are read.")
    text, starts = _joined(texts)
    yield Document(name, text, title=title, pages=starts)


def _pages(pdf: Any, pdfium: Any, reading: Reading) -> tuple[list[str], list[int], list[int]]:
    """Each page's text, and the numbers of the pages that are scans nobody could read, and of broken ones."""
    texts: list[str] = []
    scans: list[int] = []
    broken: list[int] = []
    for number in range(len(pdf)):
        text = ""
        try:
            page = pdf[number]
            try:
                text = _page_text(page)
                if sum(map(str.isalnum, text)) < _SCAN_LETTERS and _has_picture(page, pdfium):
                    read = _ocr(page)
                    reading.pages_by_ocr += bool(read)
                    scans += [number + 1] * (read is None)
                    text = read or text
            finally:
                page.close()
        except pdfium.PdfiumError:
            broken.append(number + 1)
        texts.append(text)
    return texts, scans, broken


def _page_text(page: Any) -> str:
    textpage = page.get_textpage()
    try:
        text = textpage.get_text_bounded()
    finally:
        textpage.close()
    # PDFium marks the hyphen at a line's end of a divided word; the word is put together again.
    text = re.sub("[\x02\ufffe]\r?\n?", "", text)
    return squeeze(text.replace("\0", "").encode("utf-8", errors="ignore").decode("utf-8"))


def _has_picture(page: Any, pdfium: Any) -> bool:
    return any(True for _ in page.get_objects(filter=[pdfium.raw.FPDF_PAGEOBJ_IMAGE], max_depth=3))


def _ocr(page: Any) -> str | None:
    """What tesseract reads on the rendered page; None where it isn't there or doesn't come to an end."""
    if shutil.which("tesseract") is None:
        return None
    try:
        import pytesseract
    except ImportError:
        return None
    width, height = page.get_size()
    scale = min(300 / 72, math.sqrt(_OCR_PIXELS / max(width * height, 1)))
    image = page.render(scale=scale, grayscale=True).to_pil()
    try:
        language = os.environ.get("KINJECT_OCR_LANGUAGE", "eng")
        return squeeze(pytesseract.image_to_string(image, lang=language, timeout=_OCR_SECONDS))
    except (RuntimeError, OSError):  # TesseractError and its time limit are RuntimeErrors
        return None


def _pages_without_text(name: str, scans: list[int], broken: list[int]) -> UnreadableFile | None:
    if scans:
        how = (
            f"`{_EXTRA}` and tesseract (on Debian `apt install tesseract-ocr`) read them"
            if shutil.which("tesseract") is None
            else "tesseract can't read them (KINJECT_OCR_LANGUAGE names a language that it has, such as eng)"
        )
        return UnreadableFile("scanned", f"The corpus file {name} has scanned pages ({_numbers(scans)}): {how}.")
    if broken:
        return UnreadableFile("broken", f"The corpus file {name} has broken pages ({_numbers(broken)}): save it anew.")
    return None


def _numbers(pages: list[int]) -> str:
    """Page numbers as ranges: ``1-3, 7``; the first ten ranges."""
    ranges: list[list[int]] = []
    for page in pages:
        if ranges and page == ranges[-1][1] + 1:
            ranges[-1][1] = page
        else:
            ranges.append([page, page])
    said = [f"{first}-{last}" if last > first else str(first) for first, last in ranges[:10]]
    return ", ".join(said) + (", …" if len(ranges) > 10 else "")


def _joined(texts: list[str]) -> tuple[str, tuple[int, ...]]:
    """The pages as one text, and where each starts in it; a sentence that goes on overleaf stays one."""
    parts: list[str] = []
    starts = []
    length = 0
    for text in texts:
        if text and length:
            gap = "\n\n" if re.search(r"[.!?…:\"'”’)\]]$", parts[-1]) else "\n"
            parts.append(gap)
            length += len(gap)
        starts.append(length)
        if text:
            parts.append(text)
            length += len(text)
    return "".join(parts), tuple(starts)


def _pdf_title(pdf: Any) -> str:
    """The title that a PDF states, unless it is a file's name, as programs put there by themselves."""
    title = squeeze(pdf.get_metadata_value("Title") or "")
    made_up = re.search(r"^Microsoft \w+ - |^untitled|\.\w{2,5}$", title, re.IGNORECASE)
    return "" if made_up else title


DOCUMENT_READERS: dict[str, Callable[[Path, str, Reading], Iterator[Document]]] = {
    ".html": _read_html,
    ".htm": _read_html,
    ".xhtml": _read_html,
    ".docx": _read_docx,
    ".pdf": _read_pdf,
    ".epub": _read_epub,
}
"""Reader by file name ending."""
