"""Warnings about the texts of a call: given to whoever called, unless a caller in between counts them for itself."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_held_back: ContextVar[bool] = ContextVar("valuembed_text_warnings_held_back", default=False)


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
