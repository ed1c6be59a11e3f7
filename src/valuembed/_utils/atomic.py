"""Files and folders that are written beside their name and take it only when they are complete."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import TypeVar

from safetensors import SafetensorError

from valuembed.errors import OutputError, ValuembedError

Self = TypeVar("Self", bound="Replacement")


def fresh_name(folder: Path, name: str) -> Path:
    """A temporary name of its own for whoever holds the lock on what is written; what earlier holders left is removed.

    Args:
        folder: where it is to be.
        name: of what is written, without characters that mean something in a pattern.

    Raises:
        OutputError: what was left cannot be removed.
    """
    try:
        for left in folder.glob(f"{name}.*.tmp"):
            left.unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(f"cannot write into {folder}: {error.strerror or error}") from error
    return folder / f"{name}.{secrets.token_hex(6)}.tmp"


def check_replaceable(path: Path) -> None:
    """Raise where something new must not take the place of what is there.

    Raises:
        OutputError: it is a device, a pipe or a socket, or the working folder or one that holds it: to whoever works
            there, a new one would not appear.
    """
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise OutputError(f"output {path} is a device or a pipe, and results take the place of a file; name a file")
    if path.is_dir() and path.resolve() in ((here := Path.cwd()), *here.parents):
        raise OutputError(
            f"output {path} is the working folder or holds it, and cannot be replaced; name one inside it"
        )


class Replacement:
    """What takes a name when it is complete: written under another, then committed; else gone when the block ends.

    A file replaces a file and a folder replaces a folder; whether it may is for the caller to ask.

    Args:
        target: its name.
        temporary: its name until then, on the same file system, which nobody else may have; None is one beside it.

    Raises:
        OutputError: it cannot be written; every method raises it.
    """

    def __init__(self, target: Path, temporary: Path | None = None) -> None:
        self.target = target
        # The ending says what is left after a crash, and keeps whoever looks for results from finding it.
        self.temporary = temporary or target.parent / f".valuembed-{secrets.token_hex(6)}.tmp"

    def __enter__(self: Self) -> Self:
        check_replaceable(self.target)
        return self

    def commit(self) -> None:
        """Give it its name."""
        try:
            if self.temporary.is_dir() and self.target.is_dir():
                shutil.rmtree(self.target)
            self.temporary.replace(self.target)
        except OSError as error:
            raise self.error(error) from error

    def error(self, error: OSError | SafetensorError) -> OutputError:
        """What went wrong, with the name of what is written and what to do."""
        number, reason = getattr(error, "errno", None), getattr(error, "strerror", None)
        advice = "; free some space and run it again" if number in (errno.ENOSPC, errno.EDQUOT) else ""
        left = "" if os.path.exists(self.target) else "; nothing was left there"
        return OutputError(f"cannot write {self.target}: {reason or error}{advice}{left}")

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        with suppress(OSError):
            shutil.rmtree(self.temporary) if self.temporary.is_dir() else self.temporary.unlink(missing_ok=True)


class NewFile(Replacement):
    """A file that is there whole or not at all: written, sealed, then committed; else it is gone when the block ends.

    Args:
        target, temporary: see :class:`Replacement`.

    Raises:
        OutputError: it cannot be written; every method raises it.
    """

    def __enter__(self) -> NewFile:
        super().__enter__()
        try:
            self.file = self.temporary.open("xb")
        except OSError as error:
            raise self.error(error) from error
        return self

    def write(self, data: bytes) -> None:
        """Append to it."""
        try:
            self.file.write(data)
        except OSError as error:
            raise self.error(error) from error

    def seal(self) -> None:
        """Bring everything to the disk: after a crash there is the whole file or none."""
        try:
            self.file.flush()
            os.fsync(self.file.fileno())
            self.file.close()
        except OSError as error:
            raise self.error(error) from error

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        # What could not be flushed belongs to a file that is removed.
        with suppress(OSError):
            self.file.close()
        super().__exit__(kind, error, at)


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Where to write a file or a folder that takes its name when the block ends well, and is gone when it does not.

    Raises:
        OutputError: it cannot be written there.
    """
    with Replacement(Path(path)) as new:
        try:
            yield new.temporary
        except ValuembedError:
            # Some of them are OSErrors too, and say more than a name.
            raise
        # Weights that find the disk full are an error of safetensors without a number.
        except (OSError, SafetensorError) as error:
            raise new.error(error) from error
        new.commit()


def replace_text(path: str | os.PathLike[str], text: str, temporary: Path | None = None) -> None:
    """Write a text file (UTF-8), which is there only when it is complete.

    Args:
        path: its name.
        text: its content.
        temporary: see :class:`Replacement`.

    Raises:
        OutputError: it cannot be written there.
    """
    with NewFile(Path(path), temporary) as new:
        new.write(text.encode())
        new.seal()
        new.commit()
