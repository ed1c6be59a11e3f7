"""Read DOCX: its paragraphs, lists, tables and notes in their order, with headings."""

from __future__ import annotations

import io
import re
import zipfile
from xml.etree import ElementTree

from valuembed._utils.optional import require
from valuembed.data.documents.extraction import Extraction
from valuembed.data.documents.html import read_html
from valuembed.errors import DocumentError

LARGEST = 200_000_000
"""Bytes of its parts together, unpacked; pictures do not count, they are not unpacked."""

_LARGEST_PART = 50_000_000
_STYLES = """
p[style-name='Title'] => h1:fresh
p[style-name='Subtitle'] => p:fresh
p[style-name='Source Code'] => pre:separator('\\n')
"""
_TITLE = "{http://purl.org/dc/elements/1.1/}title"
_OLD = b"\xd0\xcf\x11\xe0"


def read_word(data: bytes) -> Extraction:
    """The text of a DOCX file; its properties name the title, else its first heading does.

    What changes that are tracked take away is left out, what they add is read.

    Args:
        data: of the file.

    Raises:
        DocumentError: it is damaged, locked, too large unpacked, or no DOCX.
        MissingExtraError: ``mammoth`` or ``selectolax`` is not installed.
    """
    mammoth = require("mammoth", "documents")
    if data.startswith(_OLD):
        raise DocumentError("locked by a password, or of the older kind .doc; save it as .docx without a password")
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as packed:
            _check(packed)
            title = _title(packed)
    except (zipfile.BadZipFile, NotImplementedError, EOFError) as error:
        raise DocumentError(f"no readable .docx file ({error}); it is damaged, or something else") from None
    # Pictures are left out before they are opened: one that is only linked to would be looked for where it says.
    options = {"style_map": _STYLES, "convert_image": lambda image: [], "external_file_access": False}
    page = mammoth.convert_to_html(io.BytesIO(data), **options).value
    found = read_html(re.sub(r'<a (?:id|href)="#?[^"]*(?:footnote|endnote)-ref[^"]*"[^>]*>.{0,8}</a>', "", page))
    return Extraction(found.text, title or found.title, found.headings)


def _check(packed: zipfile.ZipFile) -> None:
    parts = [part for part in packed.infolist() if part.filename.endswith((".xml", ".rels"))]
    largest = max(parts, key=lambda part: part.file_size, default=None)
    total = sum(part.file_size for part in parts)
    if largest is not None and (largest.file_size > _LARGEST_PART or total > LARGEST):
        raise DocumentError(
            f"unpacked, its parts have {total / 1e6:,.0f} MB, more than is read ({_LARGEST_PART / 1e6:,.0f} MB in one "
            f"part, {LARGEST / 1e6:,.0f} MB in all)"
        )
    if any(b"<!DOCTYPE" in packed.open(part).read(2000) for part in parts):
        raise DocumentError("its XML declares entities, which no .docx file needs; save it anew in a word processor")
    if "word/document.xml" not in packed.namelist() and not any("document" in part.filename for part in parts):
        raise DocumentError("a zip archive without a text document in it; is it .docx at all?")


def _title(packed: zipfile.ZipFile) -> str | None:
    """What its properties call it."""
    try:
        title = ElementTree.fromstring(packed.read("docProps/core.xml")).findtext(_TITLE)
    except (KeyError, ElementTree.ParseError):
        return None
    return " ".join((title or "").split()) or None
