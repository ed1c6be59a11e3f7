"""Locks of the operating system on files: held by one process at a time, and gone when it dies.

A lock file that lies there means nothing; only whether a process holds the lock on it does. Between machines the locks
hold on a file system that passes them on: NFS from version 4 (on Linux, also version 3 with its lock service), Lustre
mounted with ``flock``, GPFS. Where the file system has none, an error says so: filelock's ``FileLock`` would go over to
files whose being there means something, which is why its lock on an open file is taken here.
"""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from filelock import lock_descriptor

from valuembed.errors import OutputError

_NOT_THERE = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


class Lock:
    """A lock on a file, which is made for it. As a block it waits for the lock.

    Args:
        path: the file; its folder has to exist.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._held: int | None = None

    def acquire(self, *, wait: bool = False) -> bool:
        """Take the lock, or say that another has it.

        Raises:
            OutputError: the file cannot be made, or the file system has no locks.
        """
        while True:
            try:
                file = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
            except OSError as error:
                raise OutputError(f"cannot write {self.path}: {error.strerror}") from error
            try:
                if not lock_descriptor(file, blocking=wait):
                    return False
                if self._is_still(file):
                    self._held, file = file, -1
                    return True
            except OSError as error:
                advice = ""
                if error.errno in _NOT_THERE:
                    advice = "; its file system has no locks, by which processes keep out of each other's way: name a "
                    advice += "folder on one that has"
                raise OutputError(f"cannot lock {self.path}: {error.strerror}{advice}") from error
            finally:
                if file >= 0:
                    os.close(file)

    def _is_still(self, file: int) -> bool:
        """Whether the locked file is the one under the name: its last holder may have removed that."""
        try:
            return os.path.samestat(os.fstat(file), self.path.stat())
        except FileNotFoundError:
            return False

    def release(self, *, remove: bool = False) -> None:
        """Give the lock back.

        Args:
            remove: remove the file too, because what was locked is done.
        """
        if self._held is not None:
            if remove and os.name != "nt":
                self._remove()
            os.close(self._held)
            self._held = None
            # Windows removes no file that somebody has open, us or the next holder.
            if remove and os.name == "nt":
                self._remove()

    def _remove(self) -> None:
        with suppress(OSError):
            self.path.unlink()

    def __enter__(self) -> Lock:
        self.acquire(wait=True)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.release()
