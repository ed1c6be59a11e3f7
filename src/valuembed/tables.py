"""What tables in files are made of: lines, records of CSV, columns of Parquet, each checked as it is read."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from valuembed.errors import InputError
from valuembed.printable import counted

MAX_LINE_BYTES = 64_000_000
"""A longer line is set aside unread: a text may sit in a row with much else, but not with this much."""

UNREADABLE = object()
"""Stands in place of a value whose bytes are no UTF-8."""


def numbered_lines(path: Path, file: IO[bytes]) -> Iterator[tuple[int, bytes | None]]:
    """Line numbers from 1 and lines with their ends; None for a line that is too long to hold.

    Args:
        path: the file's name, for errors.
        file: the open file, or its content in memory.

    Raises:
        InputError: the file is UTF-16.
    """
    number = 0
    while line := file.readline(MAX_LINE_BYTES + 1):
        number += 1
        if number == 1:
            if line.startswith((b"\xff\xfe", b"\xfe\xff")):
                raise InputError(f"input {path} is UTF-16; convert it to UTF-8 first")
            line = line.removeprefix(b"\xef\xbb\xbf")
        if len(line) <= MAX_LINE_BYTES or line.endswith(b"\n"):
            yield number, line
            continue
        while (rest := file.readline(MAX_LINE_BYTES)) and not rest.endswith(b"\n"):
            pass
        yield number, None


def csv_records(path: Path, file: IO[bytes]) -> Iterator[tuple[int, list[str] | str]]:
    """The header of a CSV file, then its rows, each with the line from 1 in which it begins.

    Args:
        path: the file's name, for errors.
        file: the file, or its content in memory.

    Yields:
        Line and fields: none for a blank line, else as many as the header has. Bytes that are no UTF-8 are lone
        surrogates in them. In place of the fields of a row that has others stands the reason, a string.

    Raises:
        InputError: the header cannot be read, or a line is too long to hold.
    """
    # The module's own limit, 131,072 characters, would refuse texts that are legal here; it can only be set for all.
    csv.field_size_limit(max(csv.field_size_limit(), MAX_LINE_BYTES))
    # Strict: a stray quote is an error of its row, instead of silently joining rows or dropping characters.
    reader = csv.reader(_csv_lines(path, file), strict=True)
    try:
        header = next(reader, None)
    except csv.Error as error:
        raise InputError(f"input {path} has no readable header line: {error}") from error
    if header is None:
        return
    yield 1, header
    while True:
        line = reader.line_num + 1
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            lines = f"up to line {reader.line_num}" if reader.line_num > line else ""
            yield line, f"malformed CSV {lines}: {error}".replace(" :", ":")
            continue
        ragged = fields and len(fields) != len(header)
        yield line, f"{counted(len(fields), 'field')} where the header has {len(header)}" if ragged else fields


def _csv_lines(path: Path, file: IO[bytes]) -> Iterator[str]:
    for number, line in numbered_lines(path, file):
        if line is None:
            raise InputError(f"input {path}, line {number}: longer than {MAX_LINE_BYTES:,} bytes")
        yield line.decode(errors="surrogateescape")


def column_index(path: Path, header: Sequence[str], column: str) -> int:
    """Where a column stands among those that a file has, or an :class:`InputError` if not exactly once."""
    if column not in header:
        raise no_column(path, column, header)
    if header.count(column) > 1:
        raise InputError(f"input {path} has {header.count(column)} columns {column!r}; which one is meant is unknown")
    return header.index(column)


def no_column(path: Path, column: str, columns: Sequence[str]) -> InputError:
    """The error that a file lacks a column, with those that it has."""
    shown = ", ".join(map(repr, columns[:20])) + (", ..." if len(columns) > 20 else "")
    return InputError(f"input {path} has no column {column!r}; its columns are {shown or 'none'}")


def open_parquet(path: Path, content: bytes | None = None) -> Any:
    """A Parquet file, from its content if that is in memory, or an :class:`InputError` if it is none."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.ParquetFile(path if content is None else pa.BufferReader(content))
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(f"input {path} is no readable Parquet file: {error}") from error


def check_column_type(path: Path, schema: Any, column: str, *, whole_numbers: bool) -> None:
    """Raise an :class:`InputError` if a column of Parquet holds no strings (or, if they are allowed, whole numbers)."""
    import pyarrow.types as kinds

    def fits(kind: Any) -> bool:
        kind = kind.value_type if kinds.is_dictionary(kind) else kind
        strings = (kinds.is_string, kinds.is_large_string, kinds.is_string_view)
        return any(check(kind) for check in strings) or (whole_numbers and kinds.is_integer(kind))

    if not fits(schema.field(column).type):
        wanted = "strings or whole numbers" if whole_numbers else "text"
        legal = ", ".join(repr(field.name) for field in schema if fits(field.type)) or "none"
        raise InputError(
            f"input {path}: column {column!r} holds {schema.field(column).type}, not {wanted}; columns that do: {legal}"
        )


def parquet_cells(column: Any) -> list[object]:
    """An Arrow column as Python values, with a mark where the bytes are no UTF-8."""
    try:
        return list(column.to_pylist())
    except UnicodeDecodeError:
        return [_cell(cell) for cell in column]


def _cell(cell: Any) -> object:
    try:
        return cell.as_py()
    except UnicodeDecodeError:
        return UNREADABLE
