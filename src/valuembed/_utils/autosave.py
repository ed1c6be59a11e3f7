"""Long work that ends early, by an error or by Ctrl-C, keeps what is finished."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from valuembed._utils.text import counted

EVERY = 30.0
"""Seconds between two writings of what is finished: for work that is killed, which nothing can catch."""


@contextmanager
def autosave(write: Callable[[], object], every: float = EVERY) -> Iterator[Callable[[], None]]:
    """Write what is finished now and then, and when the block ends early; a block that ends well writes for itself.

    Args:
        write: writes what is finished, marked as incomplete; asked at any time, also before anything is.
        every: seconds between two writings.

    Yields:
        What the block calls after each part of the work.
    """
    last = time.monotonic()

    def finished() -> None:
        nonlocal last
        if time.monotonic() - last >= every:
            write()
            last = time.monotonic()

    try:
        yield finished
    except BaseException:
        # What ended the work is to be told, whether or not its results can be written.
        with suppress(Exception):
            write()
        raise


def incomplete(done: int, total: int, part: str, parts: str | None = None) -> str:
    """How much of the work is in a result that was ended early, for people."""
    return f"Incomplete: ended after {done:,} of {counted(total, part, parts)}"
