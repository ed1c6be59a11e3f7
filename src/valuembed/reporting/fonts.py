"""Which fonts can draw a figure's texts: those of any script that is installed, and a box for what none has."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from types import ModuleType

from valuembed._utils.optional import require
from valuembed._utils.text import counted, printable

BOX = "\N{WHITE SQUARE}"
"""Stands for a character that no font has."""

_PREFERRED = ("noto sans", "arial unicode", "hiragino", "pingfang", "dejavu")
_REGULAR = (400, "normal", "regular")
# TeX's fonts have letters where other characters belong; the last resort draws the name of a script for all of it.
_USELESS = ("cm", "Last Resort")


@dataclass(frozen=True)
class Lettering:
    """How some texts can be drawn.

    Attributes:
        families: font families that have their characters, the default one first.
        lacking: characters that no font has.
    """

    families: list[str]
    lacking: set[str] = field(default_factory=set)

    def drawn(self, text: str) -> str:
        """A text with a box for each character that no font has, on one line."""
        return "".join(BOX if char in self.lacking else char for char in printable(text))

    @property
    def note(self) -> str:
        """What to tell a reader of the figure; empty where every character is drawn."""
        if not self.lacking:
            return ""
        return f"{BOX} stands for {counted(len(self.lacking), 'character')} that no installed font has"


def lettering(texts: Iterable[str]) -> Lettering:
    """Find fonts for texts; the system's are looked through only if the default one lacks a character.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    manager = _manager()
    default = manager.FontProperties().get_family()
    wanted = {char for text in texts for char in printable(text)}
    lacking = wanted - _characters(manager.findfont(manager.FontProperties()))
    families = list(default)
    for name, path in _installed() if lacking else ():
        if found := lacking & _characters(path):
            families.append(name)
            lacking -= found
        if not lacking:
            break
    return Lettering(families, lacking)


def _manager() -> ModuleType:
    require("matplotlib", "plot")
    return require("matplotlib.font_manager", "plot")


def _installed() -> Iterator[tuple[str, str]]:
    """Upright fonts of normal weight, one a family: first the families that are made to have many scripts."""
    paths: dict[str, str] = {}
    for entry in _manager().fontManager.ttflist:
        if entry.style == "normal" and entry.weight in _REGULAR and not entry.name.startswith(_USELESS):
            paths.setdefault(entry.name, entry.fname)
    yield from sorted(paths.items(), key=lambda item: (not item[0].lower().startswith(_PREFERRED), item[0]))


@cache
def _characters(path: str) -> frozenset[str]:
    """Those that a font can draw at any size: none of one that cannot be read, or is made of pictures."""
    with suppress(OSError, RuntimeError):
        font = _manager().get_font(path)
        if font.scalable:
            return frozenset(map(chr, font.get_charmap()))
    return frozenset()
