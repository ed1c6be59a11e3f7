"""Read PDF: lines become paragraphs again, running titles go, bookmarks or large letters are headings."""

from __future__ import annotations

import ctypes
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from threading import Lock
from typing import Any

from valuembed._utils.optional import require
from valuembed._utils.text import counted
from valuembed.data.documents.extraction import Extraction, TextBuilder
from valuembed.errors import DocumentError

_PDFIUM = Lock()
"""PDFium takes one call at a time."""

_HYPHEN = "\ufffe"
"""Stands where PDFium joined the two parts of a word that a line's end divides."""

_NUMBER = re.compile(r"[-\u2013\u2014\s]*(?:page\s+)?(?:\d+|[ivxlc]+)(?:\s*(?:/|of)\s*\d+)?[-\u2013\u2014\s]*", re.I)
_BULLET = re.compile(r"[\u2022\u2023\u25aa\u25cf\u25e6\u2219*\u2013-]\s|\(?\d{1,2}[.)]\s|\(?[a-z]\)\s")
_DOTS = re.compile(r"(?:\s?\.){4,}\s*|(?:\s?\u2026){2,}\s*")
_PARTED = re.compile(rf"(\w+){_HYPHEN}(\w+)")
_BAD_TITLE = re.compile(
    r"\.(docx?|tex|dvi|indd|pptx?|xlsx?|rtf|fm|qxd|ps)$|^untitled|^microsoft (word|powerpoint)|^\W*$", re.I
)
_MONO = re.compile(r"mono|courier|typewriter|tt\d|cmtt|consol|menlo|code", re.I)
_LONGEST_HEADING = 150
_LARGER = 1.12
"""A heading's letters are larger than the text's by this factor at least."""

_RUNNING = 3
"""A line that stands in one place of so many pages is a running title."""


@dataclass
class _Line:
    text: str
    x: float
    y: float
    size: float
    is_mono: bool


def read_pdf(data: bytes) -> Extraction:
    """The text of a PDF, page by page.

    Args:
        data: of the file.

    Raises:
        DocumentError: it is locked by a password, damaged, or has no text.
        MissingExtraError: ``pypdfium2`` is not installed.
    """
    pdfium = require("pypdfium2", "documents")
    with _PDFIUM:
        try:
            document = pdfium.PdfDocument(data)
        except pdfium.PdfiumError as error:
            if "password" in str(error).lower():
                raise DocumentError("locked by a password; save it without one first, as qpdf --decrypt does") from None
            raise DocumentError(f"PDFium cannot read it ({error}); it is damaged, or no PDF") from None
        try:
            pages = [_lines(document[number], pdfium.raw) for number in range(len(document))]
            title = document.get_metadata_dict().get("Title") or ""
            bookmarks = list(_bookmarks(document))
        finally:
            document.close()
    if not any(pages):
        raise DocumentError(
            f"no text in its {counted(len(pages), 'page')}, only pictures; make text of them by OCR first (ocrmypdf)"
        )
    _drop_running(pages)
    builder = TextBuilder(None if _BAD_TITLE.search(title.strip()) else title)
    _Pages(builder, pages, bookmarks).read()
    return builder.done()


def _lines(page: Any, raw: Any) -> list[_Line]:
    """The lines of a page, in the order in which they stand in the file."""
    shown = page.get_textpage()
    try:
        at, found = 0, []
        x, y = ctypes.c_double(), ctypes.c_double()
        flags, name = ctypes.c_int(), ctypes.create_string_buffer(128)
        for text in shown.get_text_range(errors="replace").split("\r\n"):
            first = at + len(text) - len(text.lstrip())
            at += len(text) + 2
            if not text.strip():
                continue
            char = raw.FPDFText_GetCharIndexFromTextIndex(shown, first)
            raw.FPDFText_GetCharOrigin(shown, char, x, y)
            _, bottom, _, top = shown.get_charbox(max(char, 0), loose=True)
            last = raw.FPDFText_GetCharIndexFromTextIndex(shown, first + len(text.strip()) - 1)
            is_mono = all(
                0 < raw.FPDFText_GetFontInfo(shown, place, name, 128, flags) <= 128
                and _MONO.search(name.value.decode("latin-1"))
                for place in (char, last)
            )
            found.append(_Line(text.strip(), x.value, y.value, round(top - bottom, 1), is_mono))
        return found
    finally:
        shown.close()
        page.close()


def _bookmarks(document: Any) -> Iterator[tuple[int, str, int]]:
    """Level from 1, title and page from 0 of what the outline of a document names."""
    for mark in document.get_toc():
        target = mark.get_dest()
        page = None if target is None else target.get_index()
        title = " ".join((mark.get_title() or "").split())
        if page is not None and title:
            yield mark.level + 1, title, page


def _drop_running(pages: list[list[_Line]]) -> None:
    """Take away what is repeated at the top or the bottom of pages, and page numbers."""

    def places(lines: list[_Line]) -> list[_Line]:
        heights = sorted(lines, key=lambda line: line.y)
        return heights[:2] + heights[-2:] if len(heights) > 4 else heights

    def key(line: _Line) -> tuple[str, int]:
        return re.sub(r"\d+|\b[ivxlc]+\b", "#", line.text.lower()), round(line.y)

    seen = Counter(place for lines in pages for place in {key(line) for line in places(lines)})
    for lines in pages:
        for line in places(lines):
            if line in lines and (seen[key(line)] >= _RUNNING or (len(pages) > 1 and _NUMBER.fullmatch(line.text))):
                lines.remove(line)


class _Pages:
    """Puts lines together to paragraphs."""

    def __init__(
        self, builder: TextBuilder, pages: list[list[_Line]], bookmarks: Sequence[tuple[int, str, int]]
    ) -> None:
        self.builder, self.pages = builder, pages
        sizes: Counter[float] = Counter()
        words: Counter[str] = Counter()
        for lines in pages:
            for line in lines:
                sizes[line.size] += len(line.text)
                words.update(re.findall(r"\w+(?:-\w+)*", line.text.lower()))
        self.words = words
        self.body = sizes.most_common(1)[0][0] if sizes else 0.0
        larger = sorted((size for size in sizes if size > self.body * _LARGER), reverse=True)
        self.levels = {size: min(place, 4) for place, size in enumerate(larger, 1)}
        self.marks: dict[int, list[tuple[int, str]]] = {}
        for level, title, page in bookmarks:
            self.marks.setdefault(page, []).append((level, title))
        gaps = [a.y - b.y for lines in pages for a, b in pairwise(lines) if 0 < a.y - b.y < 3 * max(1.0, a.size)]
        self.leading = median(gaps) if gaps else self.body * 1.2

    def read(self) -> None:
        for number, lines in enumerate(self.pages):
            if not lines:
                continue
            self.builder.page(number + 1)
            at = 0
            marks = self.marks.get(number, [])
            while at < len(lines):
                level, used, title = self._heading(lines, at, marks)
                if used:
                    self.builder.heading(level, title)
                    at += used
                else:
                    end = at + 1
                    while end < len(lines) and self._goes_on(lines, end) and not self._heading(lines, end, marks)[1]:
                        end += 1
                    self.builder.block(self._joined(lines[at:end]))
                    at = end

    def _heading(self, lines: list[_Line], at: int, marks: list[tuple[int, str]]) -> tuple[int, int, str]:
        """Level, number of lines and text of the heading that begins at a line; no lines for none."""
        line = lines[at]
        if self.marks:
            for level, title in marks:
                for used in (1, 2, 3):
                    text = " ".join(each.text for each in lines[at : at + used])
                    if _bare(text) == _bare(title) and not _DOTS.search(text):
                        return level, used, text.replace(_HYPHEN, "")
            return 0, 0, ""
        if line.size not in self.levels or line.text[0].islower() or not any(map(str.isalpha, line.text)):
            return 0, 0, ""
        used = 1
        while at + used < len(lines) and lines[at + used].size == line.size and used < 4:
            used += 1
        text = " ".join(each.text for each in lines[at : at + used]).replace(_HYPHEN, "")
        if len(text) > _LONGEST_HEADING or text.endswith((".", ",", ";")):
            return 0, 0, ""
        return self.levels[line.size], used, text

    def _goes_on(self, lines: list[_Line], at: int) -> bool:
        """Whether a line belongs to the paragraph of the line before it."""
        before, line = lines[at - 1 : at + 1]
        gap = before.y - line.y
        if line.is_mono != before.is_mono or abs(line.size - before.size) > 0.15 * max(before.size, 1):
            return abs(gap) < 2
        if gap < -2 or gap > 1.3 * self.leading:
            # A new column, or a blank line; a sentence goes on in the next column.
            return gap < -2 and not re.search(r"[.:!?]\W*$", before.text) and line.text[:1].islower()
        if line.is_mono:
            return True
        if _BULLET.match(line.text) and gap > 2:
            return False
        return not (line.x - before.x > 8 and line.x - before.x < 40 and re.search(r"[.:!?]\W*$", before.text))

    def _joined(self, lines: list[_Line]) -> str:
        if all(line.is_mono for line in lines):
            left = min(line.x for line in lines)
            return "\n".join(
                " " * max(0, min(40, round((line.x - left) / max(1.0, line.size * 0.45))))
                + line.text.replace(_HYPHEN, "-")
                for line in lines
            )
        text = lines[0].text
        for line in lines[1:]:
            parted = re.search(r"\w-$", text) and line.text[:1].islower()
            text = text[:-1] + _HYPHEN + line.text if parted else f"{text} {line.text}"
        return _DOTS.sub(" \N{HORIZONTAL ELLIPSIS} ", _PARTED.sub(self._whole, text)).replace(_HYPHEN, "-")

    def _whole(self, found: re.Match[str]) -> str:
        """A word that was divided: with its hyphen where the document writes it so elsewhere."""
        first, second = found[1], found[2]
        with_hyphen = self.words[f"{first}-{second}".lower()] > self.words[f"{first}{second}".lower()]
        return f"{first}-{second}" if with_hyphen or second[:1].isupper() else first + second


def _bare(text: str) -> str:
    """A heading without its number, for comparison."""
    return re.sub(
        r"\W+", "", re.sub(r"^(?:chapter|appendix|part)?\s*(?:\d+|[A-Z])?(?:\.\d+)*[.:\s]", "", text, flags=re.I)
    ).lower()
