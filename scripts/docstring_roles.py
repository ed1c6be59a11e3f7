"""For the pages made of docstrings: reStructuredText's roles, which Markdown would print as they stand."""

from __future__ import annotations

import re
from typing import Any

import griffe

ROLE = re.compile(r":(?:func|class|data|meth|mod|attr):`~?([^`]+)`")


def without_roles(text: str) -> str:
    """``:func:`load``` becomes code, as Markdown writes it."""
    return ROLE.sub(r"`\1`", text)


class PlainRoles(griffe.Extension):
    """Named in zensical.toml, and loaded by griffe."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Called for each function, class and attribute that is read."""
        if obj.docstring:
            obj.docstring.value = without_roles(obj.docstring.value)
