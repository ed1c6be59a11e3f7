"""What is done to a text before it goes into a template: nothing, unless a recipe says so.

Published code for prompt-based methods tidies its sentences first, and results move by half a point with it. So it is
a choice that a recipe records, never a habit.
"""

from __future__ import annotations

from collections.abc import Callable


def _as_sentence(text: str) -> str:
    """A sentence that ends in a full stop and cannot close the template's quotation mark.

    As the public code of PromptEOL's successors does it (DySem, arXiv 2605.29751): strip; end with "." unless there is
    one of . ? " ' already; double quotes become single ones; a final question mark becomes a full stop.
    """
    text = text.strip()
    if not text:
        return text
    if text[-1] not in ".?\"'":
        text += "."
    text = text.replace('"', "'")
    return text[:-1] + "." if text[-1] == "?" else text


CLEANINGS: dict[str, Callable[[str], str]] = {"none": str, "sentence": _as_sentence}
"""Cleaning by name, for ``Recipe.cleaning``."""
