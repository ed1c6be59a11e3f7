"""The process's standard streams, which may be missing, closed, full, or unable to hold a character."""

from __future__ import annotations

import io
import os
import sys
from contextlib import suppress

from valuembed.errors import OutputError


def stderr_is_open() -> bool:
    """Whether there is a stderr to write to: ``pythonw`` and services have none, and anybody may close it."""
    return sys.stderr is not None and not getattr(sys.stderr, "closed", False)


def is_watched() -> bool:
    """Whether stderr is a terminal, so that somebody sees a progress bar."""
    try:
        return stderr_is_open() and bool(sys.stderr.isatty())
    except (AttributeError, ValueError, OSError):
        return False


def can_hold(text: str) -> bool:
    """Whether stdout's encoding has every character of a text."""
    try:
        text.encode(getattr(sys.stdout, "encoding", None) or "utf-8")
    except UnicodeEncodeError:
        return False
    return True


def prepare() -> None:
    """Make the streams of a command fit for every text and every place they lead to; for the command line alone.

    Characters that an encoding does not have are written as escapes. Where stdout cannot be written any more, that is
    an :class:`OutputError`; notes that stderr cannot take are dropped.
    """
    _open_missing()
    for name, kind in (("stdout", _Results), ("stderr", _Notes)):
        given = getattr(sys, name)
        if isinstance(given, io.TextIOWrapper) and not isinstance(given, kind):
            made = kind(
                given.detach(),
                encoding=given.encoding,
                errors="backslashreplace",
                line_buffering=given.line_buffering,
                write_through=given.write_through,
            )
            setattr(sys, name, made)
            setattr(sys, f"__{name}__", made)


def give_up(number: int = 1) -> None:
    """Let what is still in the buffer of a stream go nowhere, so that nothing complains when the process ends."""
    with suppress(OSError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, number)
        os.close(nowhere)


def _open_missing() -> None:
    """Take the numbers of streams that were closed: a file that got one would receive what is printed."""
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number)
        except OSError:
            nowhere = os.open(os.devnull, os.O_RDWR)
            if nowhere != number:
                os.dup2(nowhere, number)
                os.close(nowhere)
        if getattr(sys, name) is None:
            stream = open(number, mode, encoding="utf-8", closefd=False)  # noqa: SIM115 - it lives as long as the process
            setattr(sys, name, stream)
            setattr(sys, f"__{name}__", stream)


class _Results(io.TextIOWrapper):
    """Stdout; a reader that has gone away is left to whoever runs the command."""

    def write(self, text: str) -> int:
        try:
            return super().write(text)
        except BrokenPipeError:
            raise
        except OSError as error:
            raise _unwritten(error) from error

    def flush(self) -> None:
        try:
            super().flush()
        except BrokenPipeError:
            raise
        except OSError as error:
            raise _unwritten(error) from error


class _Notes(io.TextIOWrapper):
    """Stderr; there is nobody to tell that it cannot be written."""

    def write(self, text: str) -> int:
        with suppress(OSError):
            return super().write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError):
            super().flush()


def _unwritten(error: OSError) -> OutputError:
    return OutputError(f"cannot write the results to stdout: {error.strerror or error}")
