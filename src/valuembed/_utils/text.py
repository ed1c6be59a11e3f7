"""Texts as they are shown to people: on one line, without what could steer a terminal; numbers with their nouns."""

from __future__ import annotations

from math import floor, log10

# Joiners belong to the spelling of many languages, and to emoji.
_KEPT = "\u200c\u200d"
_SIGNS = {"\n": "\N{DOWNWARDS ARROW WITH CORNER LEFTWARDS}", "\t": "\N{RIGHTWARDS ARROW TO BAR}"}


def printable(text: str) -> str:
    """A text without line breaks and control characters, each of which becomes one visible character."""
    return "".join(_printable(char) for char in text)


def _printable(char: str) -> str:
    if char.isprintable() or char in _KEPT:
        return char
    return _SIGNS.get(char, "\N{REPLACEMENT CHARACTER}")


def shortened(text: str, limit: int) -> str:
    """A text of at most ``limit`` characters; an ellipsis stands for what is left out."""
    return text if len(text) <= limit else text[: limit - 1] + "\N{HORIZONTAL ELLIPSIS}"


def inflected(count: float, one: str, many: str | None = None) -> str:
    """The form of a noun or a verb that goes with a number.

    Args:
        count: the number that the word stands behind.
        one: the form for exactly 1.
        many: the form for every other number; None is ``one`` with an s.
    """
    return one if count == 1 else f"{one}s" if many is None else many


def counted(count: int, one: str, many: str | None = None) -> str:
    """A number with its noun in the form that goes with it, such as ``1 row`` or ``2,048 rows``."""
    return f"{count:,} {inflected(count, one, many)}"


def decimals(low: float, high: float) -> int:
    """How many decimals tell numbers between two bounds apart: 2, and up to 5 where they lie close together."""
    spread = high - low
    return 2 if not spread > 0 else min(5, max(2, 1 - floor(log10(spread))))
