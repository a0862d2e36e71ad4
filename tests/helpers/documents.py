"""Files as people keep them, sound and otherwise, made on the spot: PDF, DOCX, EPUB, HTML, archives that unfold."""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

SCAN = None
"""A page of `pdf` that is a picture."""


def pdf(path: Path, *pages: str | None, title: str = "", password: str = "") -> Path:
    """A PDF with a text a page; ``SCAN`` is a page with a picture and no text, ``""`` an empty one."""
    from fpdf import FPDF

    made = FPDF()
    made.set_compression(False)
    if title:
        made.set_title(title)
    if password:
        made.set_encryption(owner_password=f"{password}-owner", user_password=password)
    for page in pages:
        made.add_page()
        made.set_font("Helvetica", size=12)
        if page is SCAN:
            made.image(Image.new("L", (60, 80), 128), w=100)
        elif page:
            made.multi_cell(0, text=page)
    path.write_bytes(bytes(made.output()))
    return path


def docx(path: Path, *blocks: str | Sequence[Sequence[str]], title: str = "") -> Path:
    """A Word file: ``# …`` is a heading of the first level, a list of rows a table, other text a paragraph."""
    from docx import Document

    made = Document()
    made.core_properties.title = title
    for block in blocks:
        if not isinstance(block, str):
            table = made.add_table(len(block), len(block[0]))
            for row, cells in zip(table.rows, block, strict=True):
                for cell, text in zip(row.cells, cells, strict=True):
                    cell.text = text
        elif block.startswith("# "):
            made.add_heading(block[2:], level=1)
        else:
            made.add_paragraph(block)
    made.save(str(path))
    return path


def epub(path: Path, chapters: dict[str, str | None], *, title: str = "A book", encrypted: str = "") -> Path:
    """An e-book: chapter file -> its body; a chapter that is None is named and not there."""
    order = list(chapters)
    manifest = "".join(f'<item id="i{n}" href="{name}" media-type="x"/>' for n, name in enumerate(order))
    spine = "".join(f'<itemref idref="i{n}"/>' for n in range(len(order)))
    opf = (
        '<package xmlns="http://www.idpf.org/2007/opf"><metadata xmlns:dc="http://purl.org/dc/elements/1.1/">'
        f"<dc:title>{title}</dc:title></metadata>"
        f'<manifest><item id="toc" href="toc.xhtml" properties="nav"/>{manifest}</manifest>'
        f'<spine><itemref idref="toc"/>{spine}</spine></package>'
    )
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("mimetype", "application/epub+zip")
        archive.writestr(
            "META-INF/container.xml",
            '<container xmlns="urn:oasis:names:tc:opendocument:xmlns:container"><rootfiles>'
            '<rootfile full-path="OEBPS/book.opf"/></rootfiles></container>',
        )
        archive.writestr("OEBPS/book.opf", opf)
        archive.writestr("OEBPS/toc.xhtml", "<html><body>Table of contents</body></html>")
        if encrypted:
            archive.writestr("META-INF/encryption.xml", f'<e><EncryptionMethod xmlns="x" Algorithm="{encrypted}"/></e>')
        for name, body in chapters.items():
            if body is not None:
                page = f'<?xml version="1.0"?><html><head><title>T</title></head><body>{body}</body></html>'
                archive.writestr(f"OEBPS/{name}", page)
    return path


def bomb(path: Path, size: int = 30_000_000, *, says: int | None = None) -> Path:
    """An archive of one member of zeros; ``says`` is the size that its directory and its header lie about."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("word/document.xml", b"\0" * size)
    data = packed.getvalue()
    if says is not None:
        data = data.replace(struct.pack("<I", size), struct.pack("<I", says))
    path.write_bytes(data)
    return path
