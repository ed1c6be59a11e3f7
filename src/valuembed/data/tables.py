"""What tables in files are made of: lines, records of CSV, columns of Parquet, each checked as it is read."""

from __future__ import annotations

import csv
import difflib
import io
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from valuembed._utils.text import counted
from valuembed.data.compression import check_content, extension
from valuembed.errors import InputError

MAX_LINE_BYTES = 64_000_000
"""A longer line is set aside unread: a text may sit in a row with much else, but not with this much."""


class _Unreadable:
    def __repr__(self) -> str:
        return "bytes that are no UTF-8"


UNREADABLE = _Unreadable()
"""Stands in place of a value whose bytes are no UTF-8."""


DELIMITERS = (",", ";", "\t", "|")
"""What may separate the columns of a table, in the order in which its header is tried."""


def numbered_lines(path: Path, file: IO[bytes]) -> Iterator[tuple[int, bytes | None]]:
    """Line numbers from 1 and lines with their ends (LF, CRLF or CR); None for a line that is too long to hold.

    Args:
        path: the file's name, for errors.
        file: the open file, or its content in memory.

    Raises:
        InputError: the file is UTF-16.
    """
    # Latin-1 gives a character for each byte, so that nothing but these three ends a line and no byte is lost.
    lines = io.TextIOWrapper(file, encoding="latin-1", newline="")
    try:
        yield from _numbered(path, lines)
    finally:
        # Let go of the file, which would be closed with it.
        if not file.closed:
            lines.detach()


def _numbered(path: Path, lines: io.TextIOWrapper) -> Iterator[tuple[int, bytes | None]]:
    number = 0
    while text := lines.readline(MAX_LINE_BYTES + 1):
        line = text.encode("latin-1")
        number += 1
        if number == 1:
            if line.startswith((b"\xff\xfe", b"\xfe\xff")):
                raise InputError(f"input {path} is UTF-16; convert it to UTF-8 first")
            line = line.removeprefix(b"\xef\xbb\xbf")
        if len(line) <= MAX_LINE_BYTES or line.endswith((b"\n", b"\r")):
            yield number, line
            continue
        while (rest := lines.readline(MAX_LINE_BYTES)) and not rest.endswith(("\n", "\r")):
            pass
        yield number, None


def count_lines(file: IO[bytes]) -> int:
    """How many line ends a file has: LF, CRLF or CR."""
    count, last = 0, b""
    for block in iter(lambda: file.read(1 << 20), b""):
        count += block.count(b"\n")
        if b"\r" in block or last == b"\r":
            # The line feed of a CRLF counts once, also where a block ends between the two.
            count += block.count(b"\r") - block.count(b"\r\n") - (last == b"\r" and block[:1] == b"\n")
        last = block[-1:]
    return count


def csv_records(path: Path, file: IO[bytes], columns: Sequence[Sequence[str]]) -> Iterator[tuple[int, list[str] | str]]:
    """The header of a table of text, then its rows, each with the line from 1 in which it begins.

    Columns are separated by the first of :data:`DELIMITERS` with which the header has the columns that are wanted; the
    tab comes first where the file is called ``.tsv``.

    Args:
        path: the file's name, for errors.
        file: the file, or its content in memory.
        columns: sets of columns, one of which is wanted.

    Yields:
        Line and fields: none for a blank line, else as many as the header has. Bytes that are no UTF-8 are lone
        surrogates in them. In place of the fields of a row that has others stands the reason, a string.

    Raises:
        InputError: the header cannot be read, or a line is too long to hold.
    """
    # Strict: a stray quote is an error of its row, instead of silently joining rows or dropping characters.
    lines = _csv_lines(path, file)
    begun: list[str] = []
    # Read loosely, to know only where the header ends: a quoted name may have several lines.
    try:
        with _long_fields:
            first = next(csv.reader(_noted(lines, begun)), None)
        if first is None:
            return
    except csv.Error as error:
        raise InputError(f"input {path} has no readable header line: {error}") from error
    delimiter, header = _header(path, begun, columns)
    yield 1, header
    reader = csv.reader(lines, strict=True, delimiter=delimiter)
    while True:
        line = reader.line_num + 1 + len(begun)
        try:
            with _long_fields:
                fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            last = reader.line_num + len(begun)
            open_quote = ": a quotation mark is opened and not closed" if "unexpected end" in str(error) else ""
            yield line, f"malformed CSV{f' up to line {last}' if last > line else ''}: {error}{open_quote}"
            continue
        ragged = fields and len(fields) != len(header)
        yield line, f"{counted(len(fields), 'field')} where the header has {len(header)}" if ragged else fields


class _LongFields:
    """While a record is read: fields up to :data:`MAX_LINE_BYTES` characters, which no program around us asked for.

    The module's own limit, 131,072 characters, would refuse texts that are legal here, and it can only be set for the
    whole process. The first reader raises it and the last one puts it back, whichever threads they are on.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._readers = 0
        self._before = 0

    def __enter__(self) -> None:
        with self._lock:
            if not self._readers:
                self._before = csv.field_size_limit()
                csv.field_size_limit(max(self._before, MAX_LINE_BYTES))
            self._readers += 1

    def __exit__(self, *ended: object) -> None:
        with self._lock:
            self._readers -= 1
            if not self._readers:
                csv.field_size_limit(self._before)


_long_fields = _LongFields()


def _noted(lines: Iterator[str], begun: list[str]) -> Iterator[str]:
    for line in lines:
        begun.append(line)
        yield line


def _header(path: Path, lines: list[str], columns: Sequence[Sequence[str]]) -> tuple[str, list[str]]:
    """What separates the columns, and their names; a comma where nothing gives the columns that are wanted."""
    for delimiter in "\t,;|" if extension(path) == ".tsv" else DELIMITERS:
        try:
            with _long_fields:
                found = next(csv.reader(lines, strict=True, delimiter=delimiter), [])
        except csv.Error:
            continue
        if any(set(wanted) <= set(found) for wanted in columns):
            return delimiter, found
    try:
        with _long_fields:
            return ",", next(csv.reader(lines, strict=True), [])
    except csv.Error as error:
        raise InputError(f"input {path} has no readable header line: {error}") from error


def _csv_lines(path: Path, file: IO[bytes]) -> Iterator[str]:
    for number, line in numbered_lines(path, file):
        if line is None:
            raise InputError(f"input {path}, line {number}: longer than {MAX_LINE_BYTES:,} bytes")
        yield line.decode(errors="surrogateescape")


def text_cell(value: str) -> object:
    """A field of CSV, or the mark of bytes that are no UTF-8."""
    try:
        value.isascii() or value.encode()
    except UnicodeEncodeError:
        return UNREADABLE
    return value


def column_index(path: Path, header: Sequence[str], column: str) -> int:
    """Where a column stands among those that a file has, or an :class:`InputError` if not exactly once."""
    if column not in header:
        raise no_column(path, column, header)
    if header.count(column) > 1:
        raise InputError(f"input {path} has {header.count(column)} columns {column!r}; which one is meant is unknown")
    return header.index(column)


def no_column(path: Path, column: str, columns: Sequence[str]) -> InputError:
    """The error that a file lacks a column, with those that it has, and what may have been meant."""
    shown = ", ".join(map(repr, columns[:20])) + (", ..." if len(columns) > 20 else "")
    message = f"input {path} has no column {column!r}; its columns are {shown or 'none'}"
    if any("\0" in name for name in columns):
        return InputError(f"{message}: it looks like UTF-16 without a byte order mark; convert it to UTF-8 first")
    if len(columns) == 1 and (found := [mark for mark in DELIMITERS[1:] if mark in columns[0]]):
        return InputError(f"{message}, which seems to be several separated by {found[0]!r}")
    if near := nearest_name(column, columns):
        blanks = ", blanks included" if near != near.strip() else ""
        return InputError(f"{message}; give the name as it stands there{blanks}: {near!r}")
    return InputError(message)


def nearest_name(name: str, names: Sequence[str]) -> str | None:
    """The name that was probably meant: the same but for case, blanks and quotes, else a similar one; or None."""

    def bare(one: str) -> str:
        return one.strip(" \t\r\n\"'\ufeff").casefold()

    alike = [one for one in names if bare(one) == bare(name)]
    alike += difflib.get_close_matches(name, names, 1, 0.7)
    return alike[0] if alike else None


def open_parquet(path: Path) -> Any:
    """A Parquet file, or an :class:`InputError` if it is none."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.ParquetFile(path)
    except (pa.ArrowInvalid, OSError) as error:
        if path.is_file() and path.stat().st_size:
            check_content(path, "Parquet")
        raise InputError(f"input {path} is no readable Parquet file: {error}") from error


def check_column_type(path: Path, schema: Any, column: str, *, whole_numbers: bool) -> None:
    """Raise an :class:`InputError` if a column of Parquet holds no strings (or, if they are allowed, whole numbers).

    Bytes count as strings, which some writers store so, and floats as whole numbers: each value is looked at later.
    """
    import pyarrow.types as kinds

    def fits(kind: Any) -> bool:
        kind = kind.value_type if kinds.is_dictionary(kind) else kind
        strings = (kinds.is_string, kinds.is_large_string, kinds.is_string_view)
        numbers = kinds.is_integer(kind) or kinds.is_floating(kind)
        return any(check(kind) for check in strings) or _is_bytes(kind) or (whole_numbers and numbers)

    kind = schema.field(column).type
    if fits(kind):
        return
    wanted = "strings or whole numbers" if whole_numbers else "text"
    legal = ", ".join(repr(field.name) for field in schema if fits(field.type)) or "none"
    advice = "; join or flatten its values into a column of strings first" if kinds.is_nested(kind) else ""
    raise InputError(f"input {path}: column {column!r} holds {kind}, not {wanted}; columns that do: {legal}{advice}")


def parquet_cells(column: Any) -> list[object]:
    """An Arrow column as Python values, bytes as the text in them, with a mark where they are no UTF-8."""
    try:
        cells = column.to_pylist()
    except UnicodeDecodeError:
        cells = [_cell(cell) for cell in column]
    return [_decoded(cell) if isinstance(cell, bytes) else cell for cell in cells]


def _is_bytes(kind: Any) -> bool:
    import pyarrow.types as kinds

    return any(check(kind) for check in (kinds.is_binary, kinds.is_large_binary, kinds.is_binary_view))


def _cell(cell: Any) -> object:
    try:
        return cell.as_py()
    except UnicodeDecodeError:
        return UNREADABLE


def _decoded(cell: bytes) -> object:
    try:
        return cell.decode()
    except UnicodeDecodeError:
        return UNREADABLE
