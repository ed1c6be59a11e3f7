"""Read a file of texts row by row: plain text, JSON Lines, CSV or Parquet, never the whole file in memory.

A row that holds no usable text does not end the job: it comes out as :class:`Rejected` with its number and the reason.
What is wrong with the whole file (no such file, unknown kind, no such column, damage) is an error.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any

from valuembed.data import tables
from valuembed.data.compression import COMPRESSIONS, compression, extension, open_stream
from valuembed.data.file_hints import JSON_ADVICE, head_of, hint
from valuembed.data.row_files import BLANK, KINDS, PARQUET, RejectionError, id_of, text_of
from valuembed.data.validation import MAX_TEXT_BYTES, check_file_name
from valuembed.errors import InputError

DEFAULT_TEXT_COLUMN = "text"
LINES_LOOKED_AT = 1000
"""Lines of a JSON Lines file in which its keys are looked for before any work is done."""


@dataclass(frozen=True)
class Row:
    """One text of a file.

    Attributes:
        id: the id column's value as a string; without an id column, the row's position counted from 0.
        text: the text as it stands in the file.
        kept: values of further columns, as :meth:`valuembed.data.row_files.RowFile.parse` gives them.
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
        raise InputError(f"input {path} is a folder; give one file ({', '.join(KINDS)})")
    if not path.exists():
        raise InputError(f"input {path} does not exist")
    if not is_readable_kind(path):
        last = "".join(path.suffixes[-2:]) if compression(path) else path.suffix
        packed = " or ".join(COMPRESSIONS)
        advice = f"; {JSON_ADVICE}" if extension(path) == ".json" else ""
        raise InputError(
            f"input {path} has the unknown extension {last!r}; legal: {', '.join(KINDS)}; all but the last also with "
            f"{packed} behind it{advice}"
        )
    if extension(path) == ".txt" and (text_column or id_column):
        named = text_column or id_column
        raise InputError(f"input {path} is plain text, one text a line: it has no columns, so no column {named!r}")
    return path


def is_readable_kind(path: Path) -> bool:
    """Whether a file's name says that it is of a kind that is read."""
    kind = extension(path)
    return kind in KINDS and not (kind == PARQUET and compression(path))


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


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn the system's refusals into an error that names the file."""
    try:
        yield
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error


class RowReader:
    """One pass over a file, in which rows are taken, or passed over without a look at what they hold.

    Args:
        path, text_column, id_column: as :func:`read_rows`.
        keep: further columns whose values rows carry.
        max_bytes: a text has to be shorter than this in UTF-8.

    Attributes:
        path: of the file.
        read: rows that were taken or passed over so far.

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
        self.id_column = id_column
        self.max_bytes = max_bytes
        self.read = 0
        columns = [text_column or DEFAULT_TEXT_COLUMN, *([id_column] if id_column is not None else [])]
        with reading(self.path):
            self._file = KINDS[extension(self.path)](self.path, columns, keep)

    def __enter__(self) -> RowReader:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._file.close()

    @property
    def share(self) -> float:
        """How much of the file is behind, from 0 to 1."""
        return self._file.share()

    def take(self, count: int | None = None) -> Iterator[tuple[int, int, Row | Rejected]]:
        """The next rows; fewer at the end of the file.

        Args:
            count: how many; None is all.

        Yields:
            The row's position from 0, its number as a person counts (see :class:`Rejected`), and the row.
        """
        for line, content in self._next(count):
            index = self.read
            self.read += 1
            try:
                (text, *ids), kept = self._file.parse(content)
                checked = text_of(text, self.max_bytes)
                yield index, line, Row(id_of(ids[0], str(self.id_column)) if ids else index, checked, kept)
            except RejectionError as reason:
                yield index, line, Rejected(line, str(reason))

    def skip(self, count: int) -> int:
        """Pass over the next rows; says how many there were, which is less at the end of the file."""
        with self._watched():
            skipped = self._file.skip(count)
        self.read += skipped
        return skipped

    def check_columns(self) -> None:
        """Raise where keys were found in the lines taken so far, and a wanted one is not among them.

        Raises:
            InputError: with the keys that were found.
        """
        if self._file.keys and (missing := self._file.missing()):
            raise tables.no_column(self.path, missing[0], list(self._file.keys))

    def _next(self, count: int | None) -> Iterator[tuple[int, Any]]:
        with self._watched():
            yield from islice(self._file.rows, count)

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
