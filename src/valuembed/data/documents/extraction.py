"""What a reader takes out of a document: its text, and which heading, page and line each place of it belongs to."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field

_CONTROLS = re.compile(r"[\x00-\x08\x0b\x0e-\x1f\x7f\ufeff\ufffe\uffff]")
_SURROGATES = re.compile(r"[\ud800-\udfff]")


@dataclass(frozen=True)
class Heading:
    """A heading that stands in a text.

    Attributes:
        start, end: its characters in the text.
        level: from 1 for the outermost; numbers may be left out.
        title: what trails call it.
    """

    start: int
    end: int
    level: int
    title: str


@dataclass(frozen=True)
class Extraction:
    """The text of a document with its outline.

    Attributes:
        text: paragraphs are a blank line apart.
        title: of the document; None where it has none.
        headings: in the order of the text.
        lines: pairs of a character and the line of the file, from 1, that begins there; empty where a document has no
            lines that a person could look up.
        pages: pairs of a character and the page, from 1, that begins there; empty where there are no pages.
    """

    text: str
    title: str | None = None
    headings: Sequence[Heading] = ()
    lines: Sequence[tuple[int, int]] = ()
    pages: Sequence[tuple[int, int]] = ()

    def line(self, at: int) -> int | None:
        """The line of the file that a character stands in."""
        return _marked(self.lines, at)

    def page(self, at: int) -> int | None:
        """The page that a character stands on."""
        return _marked(self.pages, at)


def _marked(marks: Sequence[tuple[int, int]], at: int) -> int | None:
    place = bisect_right(marks, at, key=lambda mark: mark[0])
    return marks[max(0, place - 1)][1] if marks else None


@dataclass
class TextBuilder:
    """Puts the text of a document together, block by block.

    Attributes:
        title: of the document, where something says it; else that of the first heading of the highest rank.
    """

    title: str | None = None
    _parts: list[str] = field(default_factory=list)
    _length: int = 0
    _headings: list[Heading] = field(default_factory=list)
    _lines: list[tuple[int, int]] = field(default_factory=list)
    _pages: list[tuple[int, int]] = field(default_factory=list)

    @property
    def is_empty(self) -> bool:
        """Whether nothing was added yet."""
        return not self._length

    def page(self, number: int) -> None:
        """Begin a page: what is added next stands on it."""
        self._pages.append((self._length, number))

    def heading(self, level: int, title: str, line: int | None = None) -> None:
        """Add a heading; a blank one is left out.

        Args:
            level: its rank, from 1 for the highest.
            title: its text.
            line: of the file.
        """
        title = " ".join(cleaned(title).split())
        if title:
            start = self.block(title, line)
            self._headings.append(Heading(start, start + len(title), level, title))

    def block(self, text: str, line: int | None = None, *, gap: str = "\n\n", each_line: bool = True) -> int:
        """Add a paragraph, a list, a table or a piece of code; a blank one is left out.

        Args:
            text: of the block.
            line: of the file, in which it begins.
            gap: what sets it off from the block before it.
            each_line: whether each line of the text is one of the file too.

        Returns:
            The character at which it begins.
        """
        whole = cleaned(text)
        text = whole.strip("\n").rstrip()
        if not text.strip():
            return self._length
        if self._length:
            self._append(gap)
        start = self._length
        if line is not None:
            line += len(whole) - len(whole.lstrip("\n"))
            at = start
            for row in text.split("\n") if each_line else [text]:
                self._lines.append((at, line))
                at, line = at + len(row) + 1, line + 1
        self._append(text)
        return start

    def _append(self, text: str) -> None:
        self._parts.append(text)
        self._length += len(text)

    def done(self) -> Extraction:
        """The text with all that was noted of it."""
        title = self.title and " ".join(cleaned(self.title).split())
        if not title and self._headings:
            title = min(self._headings, key=lambda heading: heading.level).title
        return Extraction("".join(self._parts), title or None, self._headings, self._lines, self._pages)


def cleaned(text: str) -> str:
    """A text without characters that none should hold: controls and halves of pairs; lines end in a line feed."""
    text = text.replace("\r\n", "\n").replace("\r", "\n").replace("\f", "\n").replace("\xa0", " ").replace("\xad", "")
    return _SURROGATES.sub("\N{REPLACEMENT CHARACTER}", _CONTROLS.sub("", text))
