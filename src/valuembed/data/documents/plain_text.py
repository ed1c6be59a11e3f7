"""Read plain text and reStructuredText: paragraphs as they stand, underlined lines as headings."""

from __future__ import annotations

import re

from valuembed.data.documents.extraction import Extraction, TextBuilder

_UNDERLINE = re.compile(r"([=\-~^\"'`#*+:._])\1{2,}\s*$")
_COMMENT = re.compile(r"\.\. (?!\[)(?!.*::)|\.\.$")
"""Begins a comment or a target of reStructuredText; what is neither has two colons or is a footnote."""

_CAPITALS = re.compile(r"[A-Z0-9][A-Z0-9 ,./&()'\-]{2,60}$")


def read_plain(text: str) -> Extraction:
    """The text of a plain file, in which headings are underlined or, above what is indented, in capitals."""
    return _read(text, capitals=True)


def read_rst(text: str) -> Extraction:
    """The text of reStructuredText, without comments."""
    return _read(text, capitals=False)


def _read(text: str, capitals: bool) -> Extraction:
    lines = text.replace("\r\n", "\n").replace("\r", "\n").replace("\f", "\n").split("\n")
    builder = TextBuilder()
    ranks: list[str] = []
    block: list[str] = []
    begun = at = 0

    def flush() -> None:
        nonlocal block
        if capitals or not block or not _COMMENT.match(block[0]):
            builder.block("\n".join(block), begun + 1)
        block = []

    while at < len(lines):
        title, used, style = _heading(lines, at, bool(block and block[-1].strip()), capitals)
        if title is None:
            if not lines[at].strip():
                flush()
            else:
                if not block:
                    begun = at
                block.append(lines[at].rstrip())
            at += 1
            continue
        flush()
        if style not in ranks:
            ranks.append(style)
        builder.heading(ranks.index(style) + 1, title, at + 1 + (used == 3))
        at += used
    flush()
    return builder.done()


def _heading(lines: list[str], at: int, inside: bool, capitals: bool) -> tuple[str | None, int, str]:
    """The heading that begins at a line, how many lines it takes, and its style; None for no heading."""
    here = lines[at].rstrip()
    below = lines[at + 1].rstrip() if at + 1 < len(lines) else ""
    if not here or inside:
        return None, 0, ""
    over = _UNDERLINE.match(here)
    if over and below.strip() and at + 2 < len(lines) and not _UNDERLINE.match(below):
        under = _UNDERLINE.match(lines[at + 2].rstrip())
        if under and under[1] == over[1] and len(here) >= len(below.strip()):
            return below.strip(), 3, over[1] * 2
    under = _UNDERLINE.match(below)
    if under and not over and not here[0].isspace() and len(below) >= 0.6 * len(here):
        return here.strip(), 2, under[1]
    if capitals and _CAPITALS.match(here) and (below[:1].isspace() or not below) and here.upper() == here:
        following = next((line for line in lines[at + 1 : at + 4] if line.strip()), "")
        if following[:1].isspace():
            return here.strip(), 1, "capitals"
    return None, 0, ""
