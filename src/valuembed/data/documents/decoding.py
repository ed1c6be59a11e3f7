"""Bytes of a file as text: by its byte order mark, what it declares, UTF-8, or by a guess."""

from __future__ import annotations

import codecs
import re

from valuembed._utils.optional import require
from valuembed.errors import DocumentError

_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)

_DECLARED = re.compile(
    rb"""(?:<meta[^>]{0,200}charset|<\?xml[^>]{0,200}encoding|^\W{0,6}.{0,30}coding)[=:]\s*["']?([-\w.]+)""", re.I
)

_SAMPLE = 100_000
"""Bytes that a guess is made from."""


def decoded(data: bytes, *, declares: bool = False) -> str:
    """Bytes as text.

    Args:
        data: of a file.
        declares: whether files of its kind say their encoding in their first lines, as HTML and Python do.

    Raises:
        DocumentError: they are no text.
        MissingExtraError: they are in an old encoding, and what guesses it is not installed.
    """
    for mark, name in _MARKS:
        if data.startswith(mark):
            return data.decode(name, errors="replace")
    try:
        text = data.decode()
    except UnicodeDecodeError:
        pass
    else:
        if "\0" not in text:
            return text
    if zeros := data.count(b"\0"):
        return _wide(data, zeros)
    if declares and (declared := _declared(data[:2048])):
        try:
            return data.decode(declared)
        except (UnicodeDecodeError, LookupError):
            pass
    return _guessed(data)


def _declared(head: bytes) -> str | None:
    found = _DECLARED.search(head)
    name = found[1].decode("ascii", errors="replace").lower() if found else None
    # Pages that say Latin-1 mean what browsers take it for.
    return "windows-1252" if name in ("iso-8859-1", "latin-1", "latin1", "us-ascii", "ascii") else name


def _wide(data: bytes, zeros: int) -> str:
    """Text in which NUL bytes stand: UTF-16 without a mark, or no text at all."""
    for name, at in (("utf-16-le", 1), ("utf-16-be", 0)):
        if data[at::2].count(0) > len(data) // 4 and data[1 - at :: 2].count(0) < len(data) // 100 + 1:
            return data.decode(name, errors="replace")
    place = data.index(0)
    raise DocumentError(f"no text: its byte {place:,} is NUL ({zeros:,} in all); it may be a program or packed data")


def _guessed(data: bytes) -> str:
    lines = data.splitlines(keepends=True)
    good = broken = 0
    for line in lines:
        if not line.isascii():
            try:
                line.decode()
            except UnicodeDecodeError:
                broken += 1
            else:
                good += 1
    if good and broken:
        # Two encodings in one file: each line by its own.
        return "".join(_line(line) for line in lines)
    guess = require("charset_normalizer", "documents").from_bytes(_sample(data)).best()
    if guess is None:
        raise DocumentError("no text in any known encoding; convert it to UTF-8, if it is one")
    return data.decode(guess.encoding, errors="replace")


def _sample(data: bytes) -> bytes:
    """A part of the bytes in which the first ones stand that are not ASCII."""
    first = next((at for at, byte in enumerate(data) if byte > 127), 0)
    start = max(0, data.rfind(b"\n", 0, max(0, first - _SAMPLE // 2)) + 1)
    return data[start : start + _SAMPLE]


def _line(line: bytes) -> str:
    try:
        return line.decode()
    except UnicodeDecodeError:
        return line.decode("windows-1252", errors="replace")
