"""What counts as a text that can be embedded: one check, used for a call's texts and for a file's rows."""

from __future__ import annotations

MAX_TEXT_BYTES = 1_000_000
"""A text has to be shorter than this in UTF-8: so far beyond any context, it is a whole file taken for one text."""


def check_text(text: object) -> str | None:
    """Why a text cannot be embedded, or None when it can.

    A blank text is a legal text: what it becomes is for the caller to decide.

    Args:
        text: whatever a user passed in place of a text.

    Returns:
        A phrase that completes "the text is ...", with the offending type, character or length.
    """
    if not isinstance(text, str):
        return f"not a string but {type(text).__name__}"
    try:
        size = len(text.encode())
    except UnicodeEncodeError as error:
        return f"not valid Unicode: lone surrogate U+{ord(text[error.start]):04X} at character {error.start}"
    if size >= MAX_TEXT_BYTES:
        return f"{size:,} bytes long; a text has to be shorter than {MAX_TEXT_BYTES:,} bytes"
    if (position := text.find("\0")) >= 0:
        return f"not text: NUL character at character {position}"
    return None
