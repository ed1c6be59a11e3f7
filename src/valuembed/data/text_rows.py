"""Read a file of texts row by row: plain text, JSON Lines, CSV or Parquet, never the whole file in memory.

A row that holds no usable text does not end the job: it comes out as :class:`Rejected` with its number and the reason.
What is wrong with the whole file (no such file, unknown kind, no such column, damage) is an error.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from valuembed.data import tables
from valuembed.data.column_types import EXACT
from valuembed.data.compression import COMPRESSIONS, compression, extension, open_stream
from valuembed.data.file_hints import JSON_ADVICE, head_of, hint
from valuembed.data.records import BLANK, FILE_KINDS, LINE, PARQUET, PLACE, Columns, Record, reading
from valuembed.data.tables import UNREADABLE
from valuembed.data.validation import MAX_TEXT_BYTES, check_file_name, check_text
from valuembed.errors import InputError

DEFAULT_TEXT_COLUMN = LINE
LINES_LOOKED_AT = 1000
"""Lines of a JSON Lines file in which its keys are looked for before any work is done."""


@dataclass(frozen=True)
class Row:
    """One text of a file.

    Attributes:
        id: the id column's value as a string; without an id column, the row's position counted from 0.
        text: the text as it stands in the file.
        kept: values of further columns: a tuple, None where there is none; of Parquet, an
            :class:`valuembed.data.InBatch`.
    """

    id: int | str
    text: str
    kept: Any = ()


@dataclass(frozen=True)
class Rejected:
    """One row that was set aside.

    Attributes:
        row: as a person counts: the line number from 1, for Parquet the row number from 1.
        reason: what is wrong with it.
    """

    row: int
    reason: str


def read_rows(
    path: str | Path, text_column: str | None = None, id_column: str | None = None
) -> Iterator[Row | Rejected]:
    """Stream the texts of a file.

    Args:
        path: ``.txt`` (UTF-8, one text a line), ``.jsonl`` or ``.ndjson`` (one object a line), ``.csv`` or ``.tsv``
            (with a header line; separated by comma, semicolon, tab or bar, whichever gives the header its columns),
            each of them also as ``.gz`` or ``.zst``, or ``.parquet``. Lines end in LF, CRLF or CR, and a UTF-8 byte
            order mark is understood.
        text_column: column, or JSON key, that holds the text; ``"text"`` when None. A ``.txt`` file has no columns.
        id_column: column, or JSON key, of strings or whole numbers that identify the rows.

    Yields:
        A :class:`Row` or a :class:`Rejected` for each row, in the file's order. Blank texts are rejected.

    Raises:
        InputError: the file is missing, unreadable, damaged or of an unknown kind, or has no such column. For JSON
            Lines the last is known, and raised, only when no line of the whole file has the key.
    """
    with RowReader(path, text_column, id_column) as reader:
        for _, _, row in reader.take():
            yield row
        reader.check_columns()


def check_input(path: str | Path, text_column: str | None = None, id_column: str | None = None) -> Path:
    """Raise what can be known about a file without reading it, or return its path.

    Raises:
        InputError: the file is missing, is a folder, is of an unknown kind, or has no columns but one was named.
    """
    check_file_name(path, "for texts in memory, call model.encode(texts)")
    path = Path(path)
    if path.is_dir():
        raise InputError(f"input {path} is a folder; give one file ({', '.join(FILE_KINDS)})")
    if not path.exists():
        raise InputError(f"input {path} does not exist")
    if not is_readable_kind(path):
        last = "".join(path.suffixes[-2:]) if compression(path) else path.suffix
        packed = " or ".join(COMPRESSIONS)
        advice = f"; {JSON_ADVICE}" if extension(path) == ".json" else ""
        raise InputError(
            f"input {path} has the unknown extension {last!r}; legal: {', '.join(FILE_KINDS)}; all but the last also "
            f"with {packed} behind it{advice}"
        )
    if extension(path) == ".txt" and (text_column or id_column):
        named = text_column or id_column
        raise InputError(f"input {path} is plain text, one text a line: it has no columns, so no column {named!r}")
    return path


def is_readable_kind(path: Path) -> bool:
    """Whether a file's name says that it is of a kind that is read."""
    kind = extension(path)
    return kind in FILE_KINDS and not (kind == PARQUET and compression(path))


@dataclass(frozen=True)
class Look:
    """What a look at the beginning of a file found.

    Attributes:
        path: of the file.
        rows: that were looked at.
        has_text: whether one of them can be used.
        ended: whether the file ended with them.
        first: the first row that cannot be used, for another reason than that it is blank.
    """

    path: Path
    rows: int
    has_text: bool
    ended: bool
    first: Rejected | None

    @property
    def is_empty(self) -> bool:
        """Whether the whole file was looked at and holds nothing, or nothing but blank rows."""
        return self.ended and not self.has_text and self.first is None

    def check(self) -> None:
        """Raise where the whole file was looked at and none of its rows can be used, though it is not empty.

        Raises:
            InputError: with the first reason, and what to do where that is known.
        """
        if self.ended and not self.has_text and self.first is not None:
            raise nothing_usable(self.path, self.rows, self.first)


def look_for_text(
    path: str | Path,
    text_column: str | None = None,
    id_column: str | None = None,
    *,
    most_rows: int | None = None,
    max_bytes: int = MAX_TEXT_BYTES,
) -> Look:
    """Read a file up to the first row that can be used, or to its end: worth doing before a model is loaded.

    Args:
        path, text_column, id_column: as :func:`read_rows`.
        most_rows: read no further than these; None is to the end.
        max_bytes: a text has to be shorter than this in UTF-8.

    Raises:
        InputError: as :func:`read_rows`; the columns are looked for in the rows that are read.
    """
    first = None
    with RowReader(path, text_column, id_column, max_bytes=max_bytes) as reader:
        for _, _, row in reader.take(most_rows):
            if isinstance(row, Row):
                return Look(reader.path, reader.read, True, False, None)
            if first is None and row.reason not in BLANK:
                first = row
        reader.check_columns()
        return Look(reader.path, reader.read, False, most_rows is None or reader.read < most_rows, first)


def nothing_usable(path: Path, rows: int, first: Rejected | None) -> InputError:
    """The error that no row of a file can be used.

    Args:
        path: of the file.
        rows: how many there are.
        first: the first that cannot be used for another reason than that it is blank; None where all are blank.
    """
    if not rows:
        header = " but a header" if extension(path) in (".csv", ".tsv") and head_of(path).strip() else ""
        return InputError(f"input {path} holds no rows: there is nothing in it{header}")
    if first is None:
        return InputError(
            f"input {path} holds no text: {'its one row is' if rows == 1 else f'all {rows:,} rows are'} blank"
        )
    where = "row" if extension(path) == PARQUET else "line"
    advice = None if extension(path) == PARQUET else hint(path, head_of(path), first.reason)
    return InputError(
        f"input {path}: {'its one row cannot be used' if rows == 1 else f'none of its {rows:,} rows can be used'}; the "
        f"first, in {where} {first.row}: {first.reason}{f'; {advice}' if advice else ''}"
    )


def count_rows(path: Path) -> int:
    """About how many rows a file has, for a progress bar: exact for Parquet, else the number of line ends."""
    if extension(path) == PARQUET:
        return int(tables.open_parquet(path).metadata.num_rows)
    with reading(path), open_stream(path) as stream:
        return tables.count_lines(stream.file)


class RowReader:
    """One pass over a file, in which rows are taken, or passed over without a look at what they hold.

    Args:
        path, text_column, id_column: as :func:`read_rows`.
        keep: further columns whose values rows carry.
        max_bytes: a text has to be shorter than this in UTF-8.

    Attributes:
        path: of the file.

    Raises:
        InputError: as :func:`read_rows`, here or while rows are taken.
    """

    def __init__(
        self,
        path: str | Path,
        text_column: str | None = None,
        id_column: str | None = None,
        *,
        keep: tuple[str, ...] = (),
        max_bytes: int = MAX_TEXT_BYTES,
    ) -> None:
        self.path = check_input(path, text_column, id_column)
        self.keep = keep
        self.max_bytes = max_bytes
        self.columns = [text_column or DEFAULT_TEXT_COLUMN, *([id_column] if id_column is not None else [])]
        wanted = Columns(tuple(self.columns[:1]), tuple(self.columns[1:]), keep=keep)
        with reading(self.path):
            self._file = FILE_KINDS[extension(self.path)](self.path, wanted, [self.columns])

    def __enter__(self) -> RowReader:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._file.close()

    @property
    def read(self) -> int:
        """How many rows were taken or passed over so far."""
        return self._file.read

    @property
    def share(self) -> float:
        """How much of the file is behind, from 0 to 1."""
        return self._file.share

    def take(self, count: int | None = None) -> Iterator[tuple[int, int, Row | Rejected]]:
        """The next rows; fewer at the end of the file.

        Args:
            count: how many; None is all.

        Yields:
            The row's position from 0, its number as a person counts (see :class:`Rejected`), and the row.
        """
        for line, record in self._file.take(count):
            index = self._file.read - 1
            try:
                yield index, line, self._row(index, record)
            except _RejectionError as reason:
                yield index, line, Rejected(line, str(reason))

    def _row(self, index: int, record: Record | str) -> Row:
        if isinstance(record, str):
            raise _RejectionError(record)
        if missing := [name for name in self.columns if name not in record]:
            raise _RejectionError(f"no key {missing[0]!r}")
        text, *ids = (record[name] for name in self.columns)
        checked = _text_of(text, self.max_bytes)
        kept = record[PLACE] if PLACE in record else tuple(map(record.get, self.keep))
        return Row(_id_of(ids[0], self.columns[1]) if ids else index, checked, kept)

    def skip(self, count: int) -> int:
        """Pass over the next rows; says how many there were, which is less at the end of the file."""
        return self._file.skip(count)

    def column_types(self, most_bytes: int | None = None) -> list[tuple[str, Any]]:
        """All columns of the file, see :meth:`valuembed.data.records.RecordReader.column_types`."""
        return self._file.column_types(self.columns[0], most_bytes)

    def check_columns(self) -> None:
        """Raise where keys were found in the lines taken so far, and a wanted one is not among them.

        Raises:
            InputError: with the keys that were found.
        """
        keys = self._file.keys
        if keys and (missing := [name for name in self.columns if name not in keys]):
            raise tables.no_column(self.path, missing[0], list(keys))


class _RejectionError(Exception):
    """Why the row at hand is set aside."""


def _text_of(value: object, max_bytes: int) -> str:
    """The value as a text that can be embedded."""
    if value is UNREADABLE:
        raise _RejectionError("not valid UTF-8")
    if value is None or value != value:
        raise _RejectionError("null, not a text" if value is None else "NaN, not a text")
    if reason := check_text(value, max_bytes):
        raise _RejectionError(reason)
    assert isinstance(value, str)
    if not value.strip():
        raise _RejectionError(BLANK[0])
    return value


def _id_of(value: object, column: str) -> str:
    """The value as an id; a whole number may come as a float, which is how tables with gaps store them."""
    if isinstance(value, float) and value.is_integer() and abs(value) <= EXACT:
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        kind = "null" if value is None else "not valid UTF-8" if value is UNREADABLE else f"a {type(value).__name__}"
        raise _RejectionError(f"id {column!r} is {kind}, not a string or a whole number")
    if reason := check_text(str(value)):
        raise _RejectionError(f"id {column!r} is {reason}")
    return str(value)
