"""The kinds of files whose rows are texts: each says where the text of a row is, and how rows are passed over."""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Iterator
from itertools import accumulate, islice
from pathlib import Path
from typing import Any

from valuembed import tables
from valuembed.compressed import open_stream
from valuembed.inputs import check_text
from valuembed.tables import UNREADABLE

PARQUET = ".parquet"
_PARQUET_BATCH = 1024


class RejectionError(Exception):
    """Why the row at hand is set aside."""


class RowFile:
    """An open file of one kind, and how to make something of its rows; this one holds a text a line.

    Args:
        path: of the file.
        columns: the text's, and the id's if there is one.

    Attributes:
        rows: each with the number that a person gives it, as it is stored.
        keys: of JSON Lines, those found so far.
    """

    rows: Iterator[tuple[int, Any]]

    def __init__(self, path: Path, columns: list[str]) -> None:
        self.columns = columns
        self.keys: dict[str, None] = {}
        self.stream = open_stream(path)
        self.size = path.stat().st_size
        self.rows = tables.numbered_lines(path, self.stream.file)

    def parse(self, row: Any) -> list[object]:
        """What stands in the place of the text, and of the id if there is one."""
        return [_decoded(row)]

    def missing(self) -> list[str]:
        """Columns that were not found so far."""
        return []

    def skip(self, count: int) -> int:
        """Pass over rows; says how many there were."""
        return sum(1 for _ in islice(self.rows, count))

    def share(self) -> float:
        """How much of the file is behind, from 0 to 1."""
        return min(1.0, self.stream.position / self.size) if self.size else 1.0

    def close(self) -> None:
        """Close it."""
        self.stream.close()


class _JsonLines(RowFile):
    """One JSON object a line."""

    def parse(self, row: Any) -> list[object]:
        record = _record(_decoded(row))
        if len(self.keys) < 50 or self.missing():
            self.keys.update(dict.fromkeys(record))
        if missing := [key for key in self.columns if key not in record]:
            raise RejectionError(f"no key {missing[0]!r}")
        return [record[key] for key in self.columns]

    def missing(self) -> list[str]:
        return [key for key in self.columns if key not in self.keys]


class _Csv(RowFile):
    """Records of CSV under a header."""

    def __init__(self, path: Path, columns: list[str]) -> None:
        super().__init__(path, columns)
        self.rows = tables.csv_records(path, self.stream.file)
        try:
            _, header = next(self.rows, (0, None))
            self.at = [] if header is None else [tables.column_index(path, header, column) for column in columns]
        except BaseException:
            self.close()
            raise

    def parse(self, row: Any) -> list[object]:
        if isinstance(row, str):
            raise RejectionError(row)
        if not row:
            raise RejectionError("blank line")
        return [_csv_cell(row[at]) for at in self.at]


class _Parquet(RowFile):
    """Columns of Parquet. Row groups that are passed over are not read."""

    def __init__(self, path: Path, columns: list[str]) -> None:
        self.columns = columns
        self.keys = {}
        self.file = tables.open_parquet(path)
        try:
            schema = self.file.schema_arrow
            for column in columns:
                tables.column_index(path, schema.names, column)
                tables.check_column_type(path, schema, column, whole_numbers=column != columns[0])
        except BaseException:
            self.close()
            raise
        groups = self.file.metadata
        self.starts = [0, *accumulate(groups.row_group(group).num_rows for group in range(groups.num_row_groups))]
        self.read = 0
        self.rows = self._rows(0)

    def _rows(self, group: int) -> Iterator[tuple[int, Any]]:
        """Rows from the beginning of a row group on."""
        groups = range(group, len(self.starts) - 1)
        for batch in self.file.iter_batches(_PARQUET_BATCH, row_groups=list(groups), columns=self.columns):
            for cells in zip(*(tables.parquet_cells(batch.column(name)) for name in self.columns), strict=True):
                self.read += 1
                yield self.read, cells

    def parse(self, row: Any) -> list[object]:
        return list(row)

    def skip(self, count: int) -> int:
        before, target = self.read, min(self.read + count, self.starts[-1])
        group = bisect_right(self.starts, target) - 1
        if self.starts[group] > self.read:
            self.read = self.starts[group]
            self.rows = self._rows(group)
        super().skip(target - self.read)
        return self.read - before

    def share(self) -> float:
        return self.read / self.starts[-1] if self.starts[-1] else 1.0

    def close(self) -> None:
        self.file.close()


def _decoded(line: bytes | None) -> str:
    """A line without its end."""
    if line is None:
        raise RejectionError(f"a line of more than {tables.MAX_LINE_BYTES:,} bytes")
    try:
        return line.removesuffix(b"\n").removesuffix(b"\r").decode()
    except UnicodeDecodeError as error:
        raise RejectionError(f"not valid UTF-8: byte 0x{line[error.start]:02x} at byte {error.start}") from None


def _record(line: str) -> dict[str, Any]:
    if not line.strip():
        raise RejectionError("blank line")
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise RejectionError(f"not valid JSON: {error}") from None
    if not isinstance(record, dict):
        raise RejectionError(f"a JSON {type(record).__name__}, not an object with keys")
    return record


def _csv_cell(value: str) -> object:
    """The cell, or the mark of bytes that were no UTF-8 (they were decoded to lone surrogates)."""
    return UNREADABLE if any("\udc80" <= char <= "\udcff" for char in value) else value


def text_of(value: object, max_bytes: int) -> str:
    """The value as a text that can be embedded."""
    if value is UNREADABLE:
        raise RejectionError("not valid UTF-8")
    if value is None:
        raise RejectionError("null, not a text")
    if reason := check_text(value, max_bytes):
        raise RejectionError(reason)
    assert isinstance(value, str)
    if not value.strip():
        raise RejectionError("blank")
    return value


def id_of(value: object, column: str) -> str:
    """The value as an id."""
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        kind = "null" if value is None else "not valid UTF-8" if value is UNREADABLE else f"a {type(value).__name__}"
        raise RejectionError(f"id {column!r} is {kind}, not a string or a whole number")
    if reason := check_text(str(value)):
        raise RejectionError(f"id {column!r} is {reason}")
    return str(value)


KINDS: dict[str, type[RowFile]] = {".txt": RowFile, ".jsonl": _JsonLines, ".csv": _Csv, PARQUET: _Parquet}
"""By extension."""
