"""Records of files, a reader for each kind: plain text, JSON Lines, CSV and Parquet, never the whole file in memory.

A record comes out as its values by name, or as the reason why it cannot be used. What becomes of it then is for those
who read: texts to embed set it aside (:mod:`valuembed.data.text_rows`), data to score or train on end there.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import accumulate, islice
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, TypeAlias

from valuembed.data import tables
from valuembed.data.column_types import NOTHING, json_type
from valuembed.data.compression import compression, extension, open_stream
from valuembed.errors import InputError

PARQUET = ".parquet"
_PARQUET_BATCH = 1024
_BATCH_BYTES = 64_000_000
"""A batch of Parquet has fewer rows where they are large, as rows with pictures are."""

BLANK = ("blank", "blank line")
"""Reasons of rows that hold nothing: a file of these alone is as good as empty."""

MOST_COLUMNS = 1000
"""Keys that JSON Lines may have as columns; when there are more, they are data."""

LINE = "text"
"""The name of the one value of a line of plain text."""

PLACE = object()
"""Stands among the values of Parquet for those that are kept: an :class:`InBatch`."""

Record: TypeAlias = dict[Any, Any]


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


class Columns(NamedTuple):
    """Which values records have; of JSON Lines they have all.

    Attributes:
        texts: columns of strings.
        ids: columns of strings or whole numbers.
        rest: columns of anything.
        keep: further columns, whose values are handed on as they are; a file need not have them.
    """

    texts: tuple[str, ...] = ()
    ids: tuple[str, ...] = ()
    rest: tuple[str, ...] = ()
    keep: tuple[str, ...] = ()

    @property
    def needed(self) -> tuple[str, ...]:
        """Those that a file has to have."""
        return (*self.texts, *self.ids, *self.rest)


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn the system's refusals into an error that names the file."""
    try:
        yield
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error


_NONE = Columns()


class RecordReader:
    """One pass over a file, in which records are taken, or passed over without a look; this one reads a text a line.

    Args:
        path: of the file.
        columns: to read; or what tells them from the names that a table has.
        layouts: sets of columns, one of which is wanted: a table's header tells by them what separates its columns.

    Attributes:
        unit: what the number of a record counts.
        expected: what a line should have been.
        names: of the columns, where the file itself says them: a table that is empty does not, nor does JSON Lines.
        keys: of JSON Lines, those found so far.
        read: records that were taken or passed over so far.

    Raises:
        InputError: the file is none of its kind; a table has not each of the columns once, or Parquet holds something
            else in it; here or while records are taken.
        OSError: it cannot be opened.
    """

    unit = "line"
    expected = "a text a line"
    names: list[str] | None = None
    rows: Iterator[tuple[int, Any]]

    def __init__(
        self,
        path: Path,
        columns: Columns | Callable[[list[str]], Columns] = _NONE,
        layouts: Sequence[Sequence[str]] = (),
    ) -> None:
        self.path = path
        self.keys: dict[str, None] = {}
        self.read = 0
        with ExitStack() as stack:
            self._open(stack, layouts)
            if callable(columns):
                columns = Columns() if self.names is None else columns(self.names)
            self.columns = columns
            self._choose()
            self._opened = stack.pop_all()

    def _open(self, stack: ExitStack, layouts: Sequence[Sequence[str]]) -> None:
        self.stream = stack.enter_context(open_stream(self.path))
        self.size = self.path.stat().st_size
        self.rows = tables.numbered_lines(self.path, self.stream.file)

    def __enter__(self) -> RecordReader:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close it."""
        self._opened.close()

    def _choose(self) -> None:
        """Look for the columns in a table, before anything of it is read."""

    def take(self, count: int | None = None) -> Iterator[tuple[int, Record | str]]:
        """The next records, or as many: each with the number that a person gives it, or why it cannot be used."""
        with self._watched():
            for number, row in islice(self.rows, count):
                self.read += 1
                record: Record | str
                try:
                    record = self._record(row)
                except _UnusableError as reason:
                    record = str(reason)
                yield number, record

    def skip(self, count: int) -> int:
        """Pass over the next records; says how many there were, which is less at the end of the file."""
        with self._watched():
            skipped = self._skip(count)
        self.read += skipped
        return skipped

    def _skip(self, count: int) -> int:
        return sum(1 for _ in islice(self.rows, count))

    def _record(self, row: Any) -> Record:
        return {LINE: _decoded(row)}

    def column_types(self, text: str, most_bytes: int | None = None) -> list[tuple[str, Any]]:
        """All columns in order, with their Arrow types; it may read the file to its end.

        Args:
            text: the column of texts.
            most_bytes: of a file whose rows tell its columns, look at so much of the file, as it is stored; None is
                all.

        Raises:
            InputError: there are more of them than columns can be.
        """
        import pyarrow as pa

        return [(name, pa.string()) for name in self.names or ()]

    @property
    def share(self) -> float:
        """How much of the file is behind, from 0 to 1."""
        return min(1.0, self.stream.position / self.size) if self.size else 1.0

    @contextmanager
    def _watched(self) -> Iterator[None]:
        """Say of a file that can be damaged where it is."""
        import pyarrow as pa

        with reading(self.path):
            try:
                yield
            except (pa.ArrowInvalid, OSError) as error:
                if extension(self.path) != PARQUET and compression(self.path) is None:
                    raise
                raise InputError(f"input {self.path} is damaged after row {self.read}: {error}") from error


class _JsonLines(RecordReader):
    """One JSON object a line."""

    expected = "one JSON object a line"

    def _record(self, row: Any) -> Record:
        line = _decoded(row)
        if not line.strip():
            raise _UnusableError(BLANK[1])
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise _UnusableError(f"not valid JSON: {error}") from None
        if not isinstance(record, dict):
            raise _UnusableError(f"a JSON {type(record).__name__}, not an object with keys")
        if len(self.keys) < 50 or any(key not in self.keys for key in self.columns.needed):
            self.keys.update(dict.fromkeys(record))
        return record

    def column_types(self, text: str, most_bytes: int | None = None) -> list[tuple[str, Any]]:
        import pyarrow as pa

        found: dict[str, str] = {}
        for _, record in self.take():
            if most_bytes is not None and self.stream.position > most_bytes:
                break
            if isinstance(record, str) or text not in record:
                continue
            for key, value in record.items():
                found[key] = json_type(value, found.get(key, NOTHING))
            if len(found) > MOST_COLUMNS:
                raise InputError(
                    f"input {self.path} has more than {MOST_COLUMNS:,} different keys, too many for columns; keep no "
                    "columns of it (--keep none, keep=[])"
                )
        return [(key, pa.type_for_alias(kind)) for key, kind in found.items()]


class _Csv(RecordReader):
    """Records of CSV under a header."""

    expected = "a field for each column of the header"

    def _open(self, stack: ExitStack, layouts: Sequence[Sequence[str]]) -> None:
        super()._open(stack, layouts)
        self.rows = tables.csv_records(self.path, self.stream.file, layouts)
        with self._watched():
            _, header = next(self.rows, (0, None))
        self.names = None if header is None else list(header)

    def _choose(self) -> None:
        # A file with nothing in it has no columns, nor rows that would lack them.
        if self.names is not None:
            names, (*_, keep) = self.names, self.columns
            self.at = {name: tables.column_index(self.path, names, name) for name in self.columns.needed}
            self.kept_at = {name: names.index(name) for name in keep if name in names}

    def _record(self, row: Any) -> Record:
        if isinstance(row, str) or not row:
            raise _UnusableError(row or BLANK[1])
        kept = {name: row[at] for name, at in self.kept_at.items()}
        return kept | {name: tables.text_cell(row[at]) for name, at in self.at.items()}


class _Parquet(RecordReader):
    """Columns of Parquet. Row groups that are passed over are not read."""

    unit = "row"

    def _open(self, stack: ExitStack, layouts: Sequence[Sequence[str]]) -> None:
        self.file = stack.enter_context(tables.open_parquet(self.path))
        self.schema = self.file.schema_arrow
        self.names = list(self.schema.names)
        groups = self.file.metadata
        self.groups = [groups.row_group(group) for group in range(groups.num_row_groups)]
        self.starts = [0, *accumulate(group.num_rows for group in self.groups)]

    def _choose(self) -> None:
        texts, _, rest, keep = self.columns
        for name in self.columns.needed:
            tables.column_index(self.path, self.schema.names, name)
            if name not in rest:
                tables.check_column_type(self.path, self.schema, name, whole_numbers=name not in texts)
        self.kept = [name for name in keep if name in self.schema.names]
        self.rows = self._rows(0)

    def _rows(self, group: int) -> Iterator[tuple[int, Record]]:
        """Rows from the beginning of a row group on."""
        number = self.starts[group]
        names, kept = self.columns.needed, self.kept
        largest = max((group.total_byte_size // max(1, group.num_rows) for group in self.groups), default=0)
        rows = max(1, min(_PARQUET_BATCH, _BATCH_BYTES // max(1, largest))) if kept else _PARQUET_BATCH
        groups, columns = list(range(group, len(self.groups))), list(dict.fromkeys([*names, *kept]))
        for batch in self.file.iter_batches(rows, row_groups=groups, columns=columns):
            part = batch.select(kept) if kept else None
            size = part.nbytes // max(1, part.num_rows) if part is not None else 0
            cells = zip(*(tables.parquet_cells(batch.column(name)) for name in names), strict=True)
            for at, values in enumerate(cells):
                number += 1
                record: Record = dict(zip(names, values, strict=True))
                if self.columns.keep:
                    record[PLACE] = InBatch(part, at, size)
                yield number, record

    def _record(self, row: Any) -> Record:
        record: Record = row
        return record

    def column_types(self, text: str, most_bytes: int | None = None) -> list[tuple[str, Any]]:
        import pyarrow as pa
        import pyarrow.types as kinds

        def plain(kind: Any) -> Any:
            # Dictionaries and views are ways to store values, which may differ from file to file.
            if kinds.is_dictionary(kind):
                return plain(kind.value_type)
            return pa.string() if kinds.is_string_view(kind) else pa.binary() if kinds.is_binary_view(kind) else kind

        return [(field.name, plain(field.type)) for field in self.schema]

    def _skip(self, count: int) -> int:
        at, target = self.read, min(self.read + count, self.starts[-1])
        group = bisect_right(self.starts, target) - 1
        if self.starts[group] > at:
            at = self.starts[group]
            self.rows = self._rows(group)
        return at - self.read + super()._skip(target - at)

    @property
    def share(self) -> float:
        return self.read / self.starts[-1] if self.starts[-1] else 1.0


class _UnusableError(Exception):
    """Why a record cannot be used."""


def _decoded(line: bytes | None) -> str:
    """A line without its end."""
    if line is None:
        raise _UnusableError(f"a line of more than {tables.MAX_LINE_BYTES:,} bytes")
    try:
        return line.removesuffix(b"\n").removesuffix(b"\r").decode()
    except UnicodeDecodeError as error:
        raise _UnusableError(f"not valid UTF-8: byte 0x{line[error.start]:02x} at byte {error.start}") from None


FILE_KINDS: dict[str, type[RecordReader]] = {
    ".txt": RecordReader,
    ".jsonl": _JsonLines,
    ".ndjson": _JsonLines,
    ".csv": _Csv,
    ".tsv": _Csv,
    PARQUET: _Parquet,
}
"""By extension."""
