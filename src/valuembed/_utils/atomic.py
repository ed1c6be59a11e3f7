"""A file that is written beside its name and takes the name only when it is complete."""

from __future__ import annotations

import errno
import os
import secrets
from pathlib import Path
from types import TracebackType

from valuembed.errors import OutputError


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
    """Raise where a new file would take the place of a device, a pipe or a socket.

    Raises:
        OutputError: with the path.
    """
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise OutputError(f"output {path} is a device or a pipe, and results take the place of a file; name a file")


class NewFile:
    """A file that is there whole or not at all: written, sealed, then committed; else it is gone when the block ends.

    Args:
        target: its name.
        temporary: its name until then, on the same file system, which nobody else may have; None is one beside it.

    Raises:
        OutputError: it cannot be written; every method raises it.
    """

    def __init__(self, target: Path, temporary: Path | None = None) -> None:
        self.target = target
        self.temporary = temporary or target.with_name(f".valuembed-{secrets.token_hex(6)}.tmp")

    def __enter__(self) -> NewFile:
        check_replaceable(self.target)
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

    def commit(self) -> None:
        """Give the sealed file its name."""
        try:
            self.temporary.replace(self.target)
        except OSError as error:
            raise self.error(error) from error

    def discard(self) -> None:
        """Remove what was not committed."""
        try:
            self.file.close()
        except OSError:
            # What could not be flushed belongs to a file that is removed here.
            pass
        finally:
            self.temporary.unlink(missing_ok=True)

    def error(self, error: OSError) -> OutputError:
        """What the system says, with the name of the file and what to do."""
        advice = "; free some space and run it again" if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
        return OutputError(f"cannot write {self.target}: {error.strerror or error}{advice}; nothing was left there")

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.discard()
