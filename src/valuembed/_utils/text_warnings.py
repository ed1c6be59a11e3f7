"""Warnings about the texts of a call: given to whoever called, unless a caller in between counts them for itself."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_held_back: ContextVar[bool] = ContextVar("valuembed_text_warnings_held_back", default=False)

_BETWEEN = ("sentence_transformers", "torch", "contextlib")


@contextmanager
def text_warnings_held_back() -> Iterator[None]:
    """Give none of :func:`warn_of_texts` within the block, on this thread: the filters of the process stay alone."""
    token = _held_back.set(True)
    try:
        yield
    finally:
        _held_back.reset(token)


def warn_of_texts(message: str, category: type[Warning], stacklevel: int) -> None:
    """Warn as ``warnings.warn`` does, with the levels counted from the caller of this."""
    if not _held_back.get():
        warnings.warn(message, category, stacklevel=stacklevel + 1)


def callers_level() -> int:
    """The ``stacklevel`` at which a warning points to the user's line, past this library and those between."""
    frame, level = sys._getframe(1), 1
    while frame.f_back and frame.f_globals.get("__name__", "").split(".")[0] in ("valuembed", *_BETWEEN):
        frame, level = frame.f_back, level + 1
    return level
