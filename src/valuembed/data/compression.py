"""Files as streams of bytes, unpacked on the way where they are gzip or zstd."""

from __future__ import annotations

import gzip
import io
import warnings
import zlib
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from valuembed.errors import InputError

COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
"""Compression by the last extension, as Arrow names it."""

_BUFFER = 1 << 20

_MAGIC = {
    b"\x1f\x8b": "gzip",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"\xfd7zXZ": "xz",
    b"PK\x03\x04": "a zip archive, as .xlsx and .docx are",
}
_PARQUET = b"PAR1"
"""What a Parquet file begins and ends with; a text may begin so too."""

_SKIPPABLE = b"\x2a\x4d\x18"
"""The last three of the four bytes that a skippable frame of zstd begins with."""


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


def check_content(path: Path, expected: str | None) -> None:
    """Raise where the first bytes of a file show that its name says something else of it.

    Args:
        path: of the file.
        expected: a value of :data:`COMPRESSIONS`, "Parquet", or None for text.

    Raises:
        InputError: with what it is, and how to name it.
        OSError: it cannot be opened.
    """
    with path.open("rb", buffering=0) as file:
        head = file.read(8)
        file.seek(-min(4, file.seek(0, io.SEEK_END)), io.SEEK_END)
        tail = file.read(4)
    found = next((kind for magic, kind in _MAGIC.items() if head.startswith(magic)), None)
    if head[1:4] == _SKIPPABLE and head[0] & 0xF0 == 0x50:
        found = "zstd"
    if head[:4] == tail == _PARQUET:
        found = "Parquet"
    # A padded or damaged file is for its reader to tell of.
    if found == expected or not head.strip(b"\0") or (found is None and expected == "Parquet"):
        return
    if found is None:
        raise InputError(
            f"input {path} is no readable {path.suffix.lower()} file: it is not {expected}; if it is not packed at "
            f"all, rename it without {path.suffix}"
        )
    named = next((suffix for suffix, kind in COMPRESSIONS.items() if kind == found), None)
    if named and extension(path) != ".parquet":
        bare_name = path.stem if compression(path) else path.name
        advice = f"name it {bare_name}{named}"
    else:
        advice = "unpack, convert or rename it first"
    raise InputError(f"input {path} is {found}, which its name does not say; {advice}")


class _Gzip(io.RawIOBase):
    """The content of a gzip file as ``gunzip`` gives it.

    Members are joined, zeros behind the last are padding, and anything else behind it is ignored with a warning.
    """

    def __init__(self, stored: IO[bytes], path: Path) -> None:
        self._unpacked = gzip.GzipFile(fileobj=stored)
        self._path = path

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            data = self._unpacked.read1(len(buffer))
        except EOFError:
            raise OSError("Truncated compressed stream") from None
        except zlib.error as error:
            raise OSError(f"gzip decompress failed: {error}") from error
        except gzip.BadGzipFile as error:
            # Where a member begins, and not within one.
            if "Not a gzipped file" not in str(error) or not self._unpacked.tell():
                raise OSError(f"gzip decompress failed: {error}") from error
            warnings.warn(
                f"{self._path}: what stands behind the end of its gzip content is no gzip, and is ignored",
                UserWarning,
                stacklevel=2,
            )
            return 0
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self._unpacked.close()
        super().close()


def open_stream(path: Path) -> Stream:
    """Open a file to read its content from the beginning; several members or frames are read as one.

    Reading from it raises OSError where the compressed file is damaged or ends too early.

    Raises:
        InputError: it is packed in another way than its name says.
        OSError: it cannot be opened.
    """
    name = compression(path)
    check_content(path, name)
    stored = path.open("rb", buffering=0)
    if name is None:
        return Stream(io.BufferedReader(stored, _BUFFER), stored)
    if name == "gzip":
        return Stream(io.BufferedReader(_Gzip(stored, path), _BUFFER), stored)
    import pyarrow as pa

    unpacked = pa.CompressedInputStream(pa.PythonFile(stored, "r"), name)
    return Stream(io.BufferedReader(unpacked, _BUFFER), stored)
