"""The texts of a figure: titles in as many lines as its width asks for, labels broken, nothing taken for a formula."""

from __future__ import annotations

import re
from collections.abc import Sequence
from textwrap import wrap
from typing import TYPE_CHECKING, Any
from unicodedata import east_asian_width

from valuembed._utils.text import shortened
from valuembed.reporting.fonts import Lettering

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PLAIN: dict[str, Any] = {"parse_math": False}
"""For every text of a figure: names, files and templates may hold two ``$``, which are no formula."""

LEGEND = 28
"""Letters on a line of a legend."""

_BESIDE = 44
_LETTERS = 110
"""Letters of Latin width that stand on an inch in a font of one point."""


def letters_on(inches: float, size: float) -> int:
    """How many letters of Latin width fit on a length in a font of some points."""
    return max(1, int(inches * _LETTERS / size))


def broken(text: str, letters: int) -> list[str]:
    """A text in lines of at most so many letters of Latin width; its own lines stay, names break behind their signs.

    Args:
        text: any text.
        letters: at most so many on a line.
    """
    width = letters // _factor(text)
    # A name has no blanks: it may break behind the signs that part it.
    spaced = re.sub(r"(?<=[^\s\d])([/_.:@,-])(?=\w)", "\\1\u200b", text)
    lines = []
    for line in spaced.splitlines():
        pieces = re.findall(r"[^\s\u200b]+\u200b?|\s+", line)
        at = ""
        for piece in pieces:
            bare = piece.replace("\u200b", "")
            if at and len(at.rstrip() + bare if bare.isspace() else at + bare) > width and not bare.isspace():
                lines.append(at.rstrip())
                at = ""
            at += bare if at or not bare.isspace() else ""
            while len(at.rstrip()) > width:
                lines.append(at[:width])
                at = at[width:]
        lines.append(at.rstrip())
    return lines


def wrapped(text: str, letters: Lettering, lines: int) -> tuple[str, int]:
    """A text in lines of at most 44 letters of Latin width, cut where it is longer, and the widest of its lines."""
    factor = _factor(text)
    drawn, width = letters.drawn(" ".join(text.split())), _BESIDE // factor
    ellipsis = "\N{HORIZONTAL ELLIPSIS}"
    cut = wrap(drawn, width, max_lines=lines, placeholder=ellipsis) if lines > 1 else [shortened(drawn, width)]
    return "\n".join(cut), factor * max(map(len, cut), default=0)


def _factor(text: str) -> int:
    # Letters of some scripts are twice as wide.
    return 2 if sum(east_asian_width(char) in "WF" for char in text) > len(text) / 2 else 1


def title_above(figure: Figure, title: str) -> None:
    """A title above everything, in as many lines as the figure's width asks for."""
    lines = broken(title, letters_on(figure.get_figwidth() - 0.4, 11))
    figure.suptitle("\n".join(lines), fontsize=11, **PLAIN)


def note_below(figure: Figure, text: str) -> None:
    """A note below everything, in as many lines as the figure's width asks for."""
    if text:
        lines = broken(text, letters_on(figure.get_figwidth() - 0.4, 8))
        figure.supxlabel("\n".join(lines), fontsize=8, color="0.4", **PLAIN)


def name_groups(axes: Axes, names: Sequence[str], room: float) -> None:
    """Names below the groups, each with so many inches: in lines where that is enough, else slanted."""
    fit = letters_on(room, 10)
    lines = [broken(name, fit) for name in names]
    # Broken within a word, or into a column of scraps, a name is hard to read.
    even = all(len(of_name) <= 3 and (fit >= 8 or len(of_name) == 1) for of_name in lines)
    if even:
        axes.set_xticks(range(len(names)), ["\n".join(of_name) for of_name in lines], **PLAIN)
        return
    axes.set_xticks(range(len(names)), ["\n".join(broken(name, 40)) for name in names], **PLAIN)
    for label in axes.get_xticklabels():
        label.set(rotation=30, ha="right", rotation_mode="anchor")


def legend_width(names: Sequence[str]) -> float:
    """About how many inches a legend of these names takes beside a figure; one name gets none."""
    longest = max((len(line) for name in names for line in broken(name, LEGEND)), default=0)
    return 0.6 + 0.075 * longest if len(names) > 1 else 0.0
