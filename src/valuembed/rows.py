"""Read a file of texts row by row: plain text, JSON Lines, CSV or Parquet, never the whole file in memory.

A row that holds no usable text does not end the job: it comes out as :class:`Rejected` with its number and the reason.
What is wrong with the whole file (no such file, unknown kind, no such column) is an error.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from valuembed.errors import InputError
from valuembed.inputs import check_text

DEFAULT_TEXT_COLUMN = "text"
MAX_LINE_BYTES = 64_000_000
"""A longer line is set aside unread: a text may sit in a row with much else, but not with this much."""

_PARQUET_BATCH = 1024
UNREADABLE = object()
"""Stands in place of a value whose bytes are no UTF-8."""


@dataclass(frozen=True)
class Row:
    """One text of a file.

    Attributes:
        id: the id column's value as a string; without an id column, the row's position counted from 0.
        text: the text as it stands in the file.
    """

    id: int | str
    text: str


@dataclass(frozen=True)
class Rejected:
    """One row that was set aside.

    Attributes:
        row: as a person counts: the line number from 1, for Parquet the row number from 1.
        reason: what is wrong with it.
    """

    row: int
    reason: str


class _RejectionError(Exception):
    """Why the row at hand is set aside."""


def read_rows(
    path: str | Path, text_column: str | None = None, id_column: str | None = None
) -> Iterator[Row | Rejected]:
    """Stream the texts of a file.

    Args:
        path: ``.txt`` (UTF-8, one text a line), ``.jsonl`` (one object a line), ``.csv`` (comma, with a header line) or
            ``.parquet``. CRLF and a UTF-8 byte order mark are understood.
        text_column: column, or JSON key, that holds the text; ``"text"`` when None. A ``.txt`` file has no columns.
        id_column: column, or JSON key, of strings or whole numbers that identify the rows.

    Yields:
        A :class:`Row` or a :class:`Rejected` for each row, in the file's order. Blank texts are rejected.

    Raises:
        InputError: the file is missing, unreadable or of an unknown kind, or has no such column. For JSON Lines
            the last is known, and raised, only when no line of the whole file has the key.
    """
    path = check_input(path, text_column, id_column)
    with _reading(path):
        yield from _KINDS[path.suffix.lower()](path, text_column or DEFAULT_TEXT_COLUMN, id_column)


def check_input(path: str | Path, text_column: str | None = None, id_column: str | None = None) -> Path:
    """Raise what can be known about a file without reading it, or return its path.

    Raises:
        InputError: the file is missing, is a folder, is of an unknown kind, or has no columns but one was named.
    """
    path = Path(path)
    if path.is_dir():
        raise InputError(f"input {path} is a folder; give one file ({', '.join(_KINDS)})")
    if not path.exists():
        raise InputError(f"input {path} does not exist")
    if path.suffix.lower() not in _KINDS:
        raise InputError(f"input {path} has the unknown extension {path.suffix!r}; legal: {', '.join(_KINDS)}")
    if path.suffix.lower() == ".txt" and (text_column or id_column):
        named = text_column or id_column
        raise InputError(f"input {path} is plain text, one text a line: it has no columns, so no column {named!r}")
    return path


def count_rows(path: Path) -> int:
    """About how many rows a file has, for a progress bar: exact for Parquet, else the number of line ends."""
    if path.suffix.lower() == ".parquet":
        return int(open_parquet(path).metadata.num_rows)
    with _reading(path), path.open("rb") as file:
        return sum(block.count(b"\n") for block in iter(lambda: file.read(1 << 20), b""))


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn the system's refusals into an error that names the file."""
    try:
        yield
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error


def _text(value: object) -> str:
    """The value as a text that can be embedded."""
    if value is UNREADABLE:
        raise _RejectionError("not valid UTF-8")
    if value is None:
        raise _RejectionError("null, not a text")
    if reason := check_text(value):
        raise _RejectionError(reason)
    assert isinstance(value, str)
    if not value.strip():
        raise _RejectionError("blank")
    return value


def _id(value: object, column: str) -> str:
    """The value as an id."""
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        kind = "null" if value is None else "not valid UTF-8" if value is UNREADABLE else f"a {type(value).__name__}"
        raise _RejectionError(f"id {column!r} is {kind}, not a string or a whole number")
    if reason := check_text(str(value)):
        raise _RejectionError(f"id {column!r} is {reason}")
    return str(value)


def _lines(path: Path) -> Iterator[tuple[int, bytes | None]]:
    """Line numbers from 1 and lines with their ends; None for a line that is too long to hold."""
    with path.open("rb") as file:
        yield from _lines_of(path, file)


def _lines_of(path: Path, file: IO[bytes]) -> Iterator[tuple[int, bytes | None]]:
    """The same, of a file that is open, or of its content in memory."""
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


def _decoded(line: bytes | None) -> str:
    """A line without its end."""
    if line is None:
        raise _RejectionError(f"a line of more than {MAX_LINE_BYTES:,} bytes")
    try:
        return line.removesuffix(b"\n").removesuffix(b"\r").decode()
    except UnicodeDecodeError as error:
        raise _RejectionError(f"not valid UTF-8: byte 0x{line[error.start]:02x} at byte {error.start}") from None


def _txt_rows(path: Path, text_column: str, id_column: str | None) -> Iterator[Row | Rejected]:
    for number, line in _lines(path):
        try:
            yield Row(number - 1, _text(_decoded(line)))
        except _RejectionError as reason:
            yield Rejected(number, str(reason))


def _jsonl_rows(path: Path, text_column: str, id_column: str | None) -> Iterator[Row | Rejected]:
    wanted = [text_column] if id_column is None else [text_column, id_column]
    keys: dict[str, None] = {}
    for number, line in _lines(path):
        try:
            record = _record(_decoded(line))
            if len(keys) < 50 or not keys.keys() >= set(wanted):
                keys.update(dict.fromkeys(record))
            if missing := [key for key in wanted if key not in record]:
                raise _RejectionError(f"no key {missing[0]!r}")
            text = _text(record[text_column])
            yield Row(number - 1 if id_column is None else _id(record[id_column], id_column), text)
        except _RejectionError as reason:
            yield Rejected(number, str(reason))
    if keys and (missing := [key for key in wanted if key not in keys]):
        raise _no_column(path, missing[0], list(keys))


def _record(line: str) -> dict[str, Any]:
    if not line.strip():
        raise _RejectionError("blank line")
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise _RejectionError(f"not valid JSON: {error}") from None
    if not isinstance(record, dict):
        raise _RejectionError(f"a JSON {type(record).__name__}, not an object with keys")
    return record


def _csv_rows(path: Path, text_column: str, id_column: str | None) -> Iterator[Row | Rejected]:
    with path.open("rb") as file:
        records = csv_records(path, file)
        _, header = next(records, (0, None))
        if header is None:
            return
        text_at = column_index(path, header, text_column)
        id_at = None if id_column is None else column_index(path, header, id_column)
        for index, (line, fields) in enumerate(records):
            try:
                if isinstance(fields, str):
                    raise _RejectionError(fields)
                if not fields:
                    raise _RejectionError("blank line")
                text = _text(_csv_cell(fields[text_at]))
                yield Row(index if id_at is None else _id(_csv_cell(fields[id_at]), header[id_at]), text)
            except _RejectionError as reason:
                yield Rejected(line, str(reason))


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
        yield line, f"{len(fields)} fields where the header has {len(header)}" if ragged else fields


def _csv_lines(path: Path, file: IO[bytes]) -> Iterator[str]:
    for number, line in _lines_of(path, file):
        if line is None:
            raise InputError(f"input {path}, line {number}: longer than {MAX_LINE_BYTES:,} bytes")
        yield line.decode(errors="surrogateescape")


def _csv_cell(value: str) -> object:
    """The cell, or the mark of bytes that were no UTF-8 (they were decoded to lone surrogates)."""
    return UNREADABLE if any("\udc80" <= char <= "\udcff" for char in value) else value


def column_index(path: Path, header: Sequence[str], column: str) -> int:
    """Where a column stands among those that a file has, or an :class:`InputError` if not exactly once."""
    if column not in header:
        raise _no_column(path, column, header)
    if header.count(column) > 1:
        raise InputError(f"input {path} has {header.count(column)} columns {column!r}; which one is meant is unknown")
    return header.index(column)


def _no_column(path: Path, column: str, columns: Sequence[str]) -> InputError:
    shown = ", ".join(map(repr, columns[:20])) + (", ..." if len(columns) > 20 else "")
    return InputError(f"input {path} has no column {column!r}; its columns are {shown or 'none'}")


def _parquet_rows(path: Path, text_column: str, id_column: str | None) -> Iterator[Row | Rejected]:
    import pyarrow as pa

    file = open_parquet(path)
    with file:
        columns = [text_column] if id_column is None else [text_column, id_column]
        for column in columns:
            column_index(path, file.schema_arrow.names, column)
            check_column_type(path, file.schema_arrow, column, whole_numbers=column != text_column)
        number = 0
        try:
            for batch in file.iter_batches(_PARQUET_BATCH, columns=columns):
                texts = parquet_cells(batch.column(text_column))
                ids = None if id_column is None else parquet_cells(batch.column(id_column))
                for at, text in enumerate(texts):
                    number += 1
                    try:
                        text = _text(text)
                        yield Row(number - 1 if ids is None else _id(ids[at], str(id_column)), text)
                    except _RejectionError as reason:
                        yield Rejected(number, str(reason))
        except (pa.ArrowInvalid, OSError) as error:
            raise InputError(f"input {path} is damaged after row {number}: {error}") from error


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


_KINDS: dict[str, Callable[[Path, str, str | None], Iterator[Row | Rejected]]] = {
    ".txt": _txt_rows,
    ".jsonl": _jsonl_rows,
    ".csv": _csv_rows,
    ".parquet": _parquet_rows,
}
