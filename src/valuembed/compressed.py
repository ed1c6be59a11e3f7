"""Files as streams of bytes, unpacked on the way where they are gzip or zstd."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO

COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
"""Compression by the last extension, as Arrow names it."""

_BUFFER = 1 << 20


def compression(path: Path) -> str | None:
    """How a file is compressed, by its name; None when it is not."""
    return COMPRESSIONS.get(path.suffix.lower())


def extension(path: Path) -> str:
    """The extension that says what a file holds, in lower case: ``.jsonl`` of ``a.jsonl`` and of ``a.jsonl.gz``."""
    return (Path(path.stem) if compression(path) else path).suffix.lower()


@dataclass(frozen=True)
class Stream:
    """An open file.

    Attributes:
        file: its content, unpacked.
        stored: the file as it lies on the disk.
    """

    file: IO[bytes]
    stored: IO[bytes]

    @property
    def position(self) -> int:
        """How many bytes of the stored file have been read; a buffer's length ahead of what came out."""
        return self.stored.tell()

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close it."""
        self.file.close()
        self.stored.close()


def open_stream(path: Path) -> Stream:
    """Open a file to read its content from the beginning; several members or frames are read as one.

    Reading from it raises OSError where the compressed file is damaged or ends too early.

    Raises:
        OSError: it cannot be opened.
    """
    stored = path.open("rb", buffering=0)
    name = compression(path)
    if name is None:
        return Stream(io.BufferedReader(stored, _BUFFER), stored)
    import pyarrow as pa

    unpacked = pa.CompressedInputStream(pa.PythonFile(stored, "r"), name)
    return Stream(io.BufferedReader(unpacked, _BUFFER), stored)
