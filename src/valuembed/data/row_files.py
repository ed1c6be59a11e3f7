"""The kinds of files whose rows are texts: each says where the text of a row is, and how rows are passed over."""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Iterator
from itertools import accumulate, islice
from pathlib import Path
from typing import Any, NamedTuple

from valuembed.data import tables
from valuembed.data.column_types import EXACT, NOTHING, json_type
from valuembed.data.compression import open_stream
from valuembed.data.tables import UNREADABLE
from valuembed.data.validation import check_text
from valuembed.errors import InputError

PARQUET = ".parquet"
_PARQUET_BATCH = 1024
_BATCH_BYTES = 64_000_000
"""A batch of Parquet has fewer rows where they are large, as rows with pictures are."""

BLANK = ("blank", "blank line")
"""Reasons of rows that hold nothing: a file of these alone is as good as empty."""

MOST_COLUMNS = 1000
"""Keys that JSON Lines may have as columns; when there are more, they are data."""


class InBatch(NamedTuple):
    """Where the values of a row stand that are kept of Parquet.

    Attributes:
        batch: a record batch; None where the file has none of the columns.
        at: the row's place in it.
        size: of a row, in bytes.
    """

    batch: Any
    at: int
    size: int


class RejectionError(Exception):
    """Why the row at hand is set aside."""


class RowFile:
    """An open file of one kind, and how to make something of its rows; this one holds a text a line.

    Args:
        path: of the file.
        columns: the text's, and the id's if there is one.
        keep: further columns, whose values go along with each row; a file need not have them.

    Attributes:
        rows: each with the number that a person gives it, as it is stored.
        keys: of JSON Lines, those found so far.
    """

    rows: Iterator[tuple[int, Any]]

    def __init__(self, path: Path, columns: list[str], keep: tuple[str, ...] = ()) -> None:
        self.path = path
        self.columns = columns
        self.keep = keep
        self.keys: dict[str, None] = {}
        self.stream = open_stream(path)
        self.size = path.stat().st_size
        self.rows = tables.numbered_lines(path, self.stream.file)

    def parse(self, row: Any) -> tuple[list[object], Any]:
        """What stands in the place of the text, and of the id if there is one; and the values that are kept.

        Values are a tuple, None where there is none; of Parquet, an :class:`InBatch`.
        """
        return [_decoded(row)], (None,) * len(self.keep)

    def column_types(self, most_bytes: int | None = None) -> list[tuple[str, Any]]:
        """All columns in order, with their Arrow types; it may read the file to its end.

        Args:
            most_bytes: of a file whose rows tell its columns, look at so much of the file, as it is stored; None is
                all.

        Raises:
            InputError: there are more of them than columns can be.
        """
        return []

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

    def parse(self, row: Any) -> tuple[list[object], Any]:
        record = _record(_decoded(row))
        if len(self.keys) < 50 or self.missing():
            self.keys.update(dict.fromkeys(record))
        if missing := [key for key in self.columns if key not in record]:
            raise RejectionError(f"no key {missing[0]!r}")
        return [record[key] for key in self.columns], tuple(record.get(key) for key in self.keep)

    def column_types(self, most_bytes: int | None = None) -> list[tuple[str, Any]]:
        import pyarrow as pa

        found: dict[str, str] = {}
        for _, line in self.rows:
            if most_bytes is not None and self.stream.position > most_bytes:
                break
            try:
                record = _record(_decoded(line))
            except RejectionError:
                continue
            if self.columns[0] in record:
                for key, value in record.items():
                    found[key] = json_type(value, found.get(key, NOTHING))
            if len(found) > MOST_COLUMNS:
                raise InputError(
                    f"input {self.path} has more than {MOST_COLUMNS:,} different keys, too many for columns; keep no "
                    "columns of it (--keep none, keep=[])"
                )
        return [(key, pa.type_for_alias(kind)) for key, kind in found.items()]

    def missing(self) -> list[str]:
        return [key for key in self.columns if key not in self.keys]


class _Csv(RowFile):
    """Records of CSV under a header."""

    def __init__(self, path: Path, columns: list[str], keep: tuple[str, ...] = ()) -> None:
        super().__init__(path, columns, keep)
        self.rows = tables.csv_records(path, self.stream.file, [columns])
        try:
            _, header = next(self.rows, (0, None))
            self.header = [] if header is None else list(header)
            self.at = [] if header is None else [tables.column_index(path, header, column) for column in columns]
            self.kept_at = [self.header.index(name) if name in self.header else None for name in keep]
        except BaseException:
            self.close()
            raise

    def parse(self, row: Any) -> tuple[list[object], Any]:
        if isinstance(row, str):
            raise RejectionError(row)
        if not row:
            raise RejectionError(BLANK[1])
        kept = tuple(None if at is None else row[at] for at in self.kept_at)
        return [_csv_cell(row[at]) for at in self.at], kept

    def column_types(self, most_bytes: int | None = None) -> list[tuple[str, Any]]:
        import pyarrow as pa

        return [(name, pa.string()) for name in self.header]


class _Parquet(RowFile):
    """Columns of Parquet. Row groups that are passed over are not read."""

    def __init__(self, path: Path, columns: list[str], keep: tuple[str, ...] = ()) -> None:
        self.path = path
        self.columns = columns
        self.keep = keep
        self.keys = {}
        self.file = tables.open_parquet(path)
        try:
            self.schema = self.file.schema_arrow
            for column in columns:
                tables.column_index(path, self.schema.names, column)
                tables.check_column_type(path, self.schema, column, whole_numbers=column != columns[0])
            self.kept_here = [name for name in keep if name in self.schema.names]
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
        names = list(dict.fromkeys([*self.columns, *self.kept_here]))
        rows = self._batch_size() if self.kept_here else _PARQUET_BATCH
        for batch in self.file.iter_batches(rows, row_groups=list(groups), columns=names):
            kept = batch.select(self.kept_here) if self.kept_here else None
            texts = zip(*(tables.parquet_cells(batch.column(name)) for name in self.columns), strict=True)
            size = kept.nbytes // max(1, kept.num_rows) if kept is not None else 0
            for at, cells in enumerate(texts):
                self.read += 1
                yield self.read, (cells, InBatch(kept, at, size) if self.keep else ())

    def _batch_size(self) -> int:
        groups = [self.file.metadata.row_group(group) for group in range(self.file.metadata.num_row_groups)]
        largest = max((group.total_byte_size // max(1, group.num_rows) for group in groups), default=0)
        return max(1, min(_PARQUET_BATCH, _BATCH_BYTES // max(1, largest)))

    def parse(self, row: Any) -> tuple[list[object], Any]:
        cells, kept = row
        return list(cells), kept

    def column_types(self, most_bytes: int | None = None) -> list[tuple[str, Any]]:
        import pyarrow as pa
        import pyarrow.types as kinds

        def plain(kind: Any) -> Any:
            # Dictionaries and views are ways to store values, which may differ from file to file.
            if kinds.is_dictionary(kind):
                return plain(kind.value_type)
            return pa.string() if kinds.is_string_view(kind) else pa.binary() if kinds.is_binary_view(kind) else kind

        return [(field.name, plain(field.type)) for field in self.schema]

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
        raise RejectionError(BLANK[1])
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
    if value is None or value != value:
        raise RejectionError("null, not a text" if value is None else "NaN, not a text")
    if reason := check_text(value, max_bytes):
        raise RejectionError(reason)
    assert isinstance(value, str)
    if not value.strip():
        raise RejectionError(BLANK[0])
    return value


def id_of(value: object, column: str) -> str:
    """The value as an id; a whole number may come as a float, which is how tables with gaps store them."""
    if isinstance(value, float) and value.is_integer() and abs(value) <= EXACT:
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        kind = "null" if value is None else "not valid UTF-8" if value is UNREADABLE else f"a {type(value).__name__}"
        raise RejectionError(f"id {column!r} is {kind}, not a string or a whole number")
    if reason := check_text(str(value)):
        raise RejectionError(f"id {column!r} is {reason}")
    return str(value)


KINDS: dict[str, type[RowFile]] = {
    ".txt": RowFile,
    ".jsonl": _JsonLines,
    ".ndjson": _JsonLines,
    ".csv": _Csv,
    ".tsv": _Csv,
    PARQUET: _Parquet,
}
"""By extension."""
