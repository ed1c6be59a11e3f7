"""For the reference pages: what our docstrings say in ways that griffe or Markdown would not understand."""

from __future__ import annotations

import re
from typing import Any

import griffe

ROLE = re.compile(r":(?:func|class|data|meth|mod|attr):`~?([^`]+)`")
# In a section of arguments, attributes or errors: an entry for several names, with the lines that go on below it.
SHARED = re.compile(r"^( +)(\w+(?:,\s+\w+)+):\s+(.*(?:\n\1 +.*)*)", re.MULTILINE)
FEW = 4
TREE = re.compile(r"^\w+\n(?:[├└│].*(?:\n|$))+", re.MULTILINE)


def readable(text: str) -> str:
    """``:func:`load``` as code, a drawn tree as a block, and an entry for a few names as one for each."""
    text = TREE.sub(lambda tree: re.sub(r"^(?=.)", "    ", tree[0], flags=re.MULTILINE), text)
    return SHARED.sub(one_for_each, ROLE.sub(r"`\1`", text))


def one_for_each(entry: re.Match[str]) -> str:
    """An entry for several names as several entries; a long row of names stays one, on one line."""
    indent, names, meaning = entry[1], re.split(r",\s+", entry[2]), entry[3]
    if len(names) > FEW:
        names = [", ".join(names)]
    return "\n".join(f"{indent}{name}: {meaning}" for name in names)


class Readable(griffe.Extension):
    """Named in zensical.toml, and loaded by griffe."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Called for each function, class and attribute that is read."""
        if obj.docstring:
            obj.docstring.value = readable(obj.docstring.value)
