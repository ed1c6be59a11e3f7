"""Texts as they are shown to people: on one line, and without what could steer a terminal."""

from __future__ import annotations

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
