"""What counts as a text that can be embedded: one check, used for a call's texts and for a file's rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from valuembed.errors import InputError
from valuembed.printable import counted

MAX_TEXT_BYTES = 1_000_000
"""A text has to be shorter than this in UTF-8: so far beyond any context, it is a whole file taken for one text."""


def check_text(text: object, max_bytes: int = MAX_TEXT_BYTES) -> str | None:
    """Why a text cannot be embedded, or None when it can.

    A blank text is a legal text: what it becomes is for the caller to decide.

    Args:
        text: whatever a user passed in place of a text.
        max_bytes: it has to be shorter than this in UTF-8.

    Returns:
        A phrase that completes "the text is ...", with the offending type, character or length.
    """
    if not isinstance(text, str):
        return f"not a string but {type(text).__name__}"
    try:
        size = len(text.encode())
    except UnicodeEncodeError as error:
        return f"not valid Unicode: lone surrogate U+{ord(text[error.start]):04X} at character {error.start}"
    if size >= max_bytes:
        return f"{counted(size, 'byte')} long; a text has to be shorter than {max_bytes:,} bytes"
    if (position := text.find("\0")) >= 0:
        return f"not text: NUL character at character {position}"
    return None


def check_texts(texts: Sequence[Any]) -> None:
    """Raise on the first things that are no texts, naming their rows.

    Raises:
        InputError: with up to five rows and the reason for each.
    """
    wrong = [(row, reason) for row, text in enumerate(texts) if (reason := check_text(text))]
    if wrong:
        listed = "; ".join(f"row {row} is {reason}" for row, reason in wrong[:5])
        more = f"; and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise InputError(f"{len(wrong)} of {counted(len(texts), 'text')} cannot be embedded: {listed}{more}")


def check_prompt(prompt: str | None) -> None:
    """Raise on an instruction that is no text.

    Raises:
        InputError: with the reason.
    """
    if reason := check_text(prompt or ""):
        raise InputError(f"prompt {prompt!r} cannot be embedded: it is {reason}")
