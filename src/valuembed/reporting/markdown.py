"""Tables in Markdown, for the reports that verbs write."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

_RULES = {"l": ":--", "r": "--:", "-": "---"}


def table(head: Sequence[str], rows: Iterable[Sequence[str]], align: str) -> list[str]:
    """Draw a table as lines of Markdown.

    Args:
        head: what stands above each column.
        rows: cells; those that a row lacks at its end are empty.
        align: a letter a column: ``l`` left, ``r`` right, ``-`` as the viewer has it; the last one goes for all columns
            that are left.
    """
    align = align.ljust(len(head), align[-1])
    lines = [_row(head), f"|{'|'.join(_RULES[letter] for letter in align[: len(head)])}|"]
    return [*lines, *(_row(cells) + " |" * (len(head) - len(cells)) for cells in rows)]


def cell(text: str) -> str:
    """A text on one line that ends no cell."""
    return re.sub(r"\s*[\r\n]\s*", " ", text.strip()).replace("|", "\\|")


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(map(cell, cells))} |"
