"""Columns of the input that are kept beside the vectors: which they are, their types and names, and their values.

All files of a job share them, so that its shards have one schema: they are found out before the first row is embedded,
and a value that comes later and does not fit is kept as null, with a warning.
"""

from __future__ import annotations

import re
import warnings
from base64 import b64decode, b64encode
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from valuembed.data import (
    DEFAULT_TEXT_COLUMN,
    InBatch,
    RowReader,
    column_index,
    merged,
    no_column,
    to_array,
)
from valuembed.errors import InputError
from valuembed.vectors.provenance import CHUNK, EMBEDDING, END, FILE, ID, ROW, START, TEXT

KEY, PART, NUMBERED, SOURCE = "key", "part", "numbered", "source"
INDEX_COLUMNS = (KEY, PART, NUMBERED, SOURCE)
"""Columns that an index adds: what makes a row the same row, the number of the file it came from, whether its id is a
number, and the name of its source."""

RESERVED = (ID, TEXT, EMBEDDING, FILE, ROW, CHUNK, START, END, *INDEX_COLUMNS)
"""Names that files of embeddings and indexes have columns of their own by."""

PREFIX = "input_"
"""Stands before the name of a column that is kept under another than its own."""

LOOKED_AT = 1 << 24
"""Bytes of each JSON Lines file of a folder's inputs in which its keys and their types are looked for."""


@dataclass(frozen=True)
class KeptColumns:
    """Columns that are kept.

    Attributes:
        names: in the inputs.
        schema: of Arrow: under which names they are stored, and their types.
    """

    names: tuple[str, ...]
    schema: Any

    @classmethod
    def none(cls) -> KeptColumns:
        """Nothing is kept."""
        import pyarrow as pa

        return cls((), pa.schema([]))

    def to_record(self) -> dict[str, Any]:
        """As plain data for JSON."""
        return {"names": list(self.names), "schema": b64encode(self.schema.serialize().to_pybytes()).decode()}

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> KeptColumns:
        """What plain data records; a KeyError, TypeError or ValueError where it does not."""
        import pyarrow as pa

        schema = pa.ipc.read_schema(pa.py_buffer(b64decode(record["schema"], validate=True)))
        return cls(tuple(record["names"]), schema)

    def arrays(self, rows: Sequence[Any], where: str) -> list[Any]:
        """The values that rows carry, an Arrow array a column.

        Args:
            rows: what :class:`valuembed.data.Row` calls ``kept``, of at least one row, all of one file.
            where: the file and the rows, for warnings.
        """
        if not self.names:
            return []
        return self._of_batches(rows) if isinstance(rows[0], InBatch) else self._of_values(rows, where)

    def _of_values(self, rows: Sequence[tuple[object, ...]], where: str) -> list[Any]:
        arrays = []
        for at, field in enumerate(self.schema):
            array, unfit = to_array((row[at] for row in rows), field.type)
            arrays.append(array)
            if unfit is not None:
                warnings.warn(
                    f"{where}: column {self.names[at]!r} has values that are no {field.type}, which it holds by the "
                    "rows that were looked at first (or that are no Unicode); they are kept as null",
                    UserWarning,
                    stacklevel=2,
                )
        return arrays

    def _of_batches(self, rows: Sequence[InBatch]) -> list[Any]:
        import pyarrow as pa

        parts: list[list[Any]] = [[] for _ in self.names]
        for _, group in groupby(rows, key=lambda row: id(row.batch)):
            members = list(group)
            batch = members[0].batch
            count = len(members)
            places = pa.array([row.at for row in members], pa.int64())
            for part, name, field in zip(parts, self.names, self.schema, strict=True):
                if batch is None or name not in batch.schema.names:
                    part.append(pa.nulls(count, field.type))
                else:
                    # Not all that Parquet may hold can be taken from, but what it is cast to can.
                    part.append(_cast(batch.column(name), field.type).take(places))
        return [pa.concat_arrays(part) for part in parts]


def _cast(column: Any, kind: Any) -> Any:
    return column if column.type.equals(kind) else column.cast(kind, safe=False)


def find_columns(
    paths: Iterable[Path],
    text_column: str | None = None,
    id_column: str | None = None,
    keep: Sequence[str] | None = None,
    *,
    most_bytes: int | None = None,
) -> KeptColumns:
    """Find out which columns of files are kept, and what they hold.

    Args:
        paths: of the files, each checked.
        text_column, id_column: as :func:`valuembed.data.read_rows` takes them; they are stored in any case.
        keep: names of columns; None keeps all but those without a name, and "embedding".
        most_bytes: of JSON Lines, how much of each file is looked at; None is all.

    Raises:
        InputError: no file has such a column, one has it twice, or types or names do not go together.
    """
    import pyarrow as pa

    if keep is not None and not keep:
        return KeptColumns.none()
    own = _own(text_column, id_column)
    types: dict[str, tuple[Any, Path]] = {}
    seen: dict[str, None] = {}
    last = Path()
    for last in paths:
        found = _columns_of(last, text_column, id_column, most_bytes)
        seen.update(dict.fromkeys(name for name, _ in found))
        for name, kind in found:
            if name in own or not (name in keep if keep is not None else name and name != EMBEDDING):
                continue
            _check_name(last, [other for other, _ in found], name)
            before, where = types.get(name, (kind, last))
            together = merged(before, kind)
            if together is None:
                raise InputError(
                    f"column {name!r} holds {before} in {where} and {kind} in {last}, which cannot be one column; name "
                    "the columns to keep without it (--keep, keep=)"
                )
            types[name] = (together, where)
    if missing := [name for name in keep or () if name not in seen and name not in own]:
        raise no_column(last, missing[0], list(seen))
    chosen = list(types) if keep is None else [name for name in dict.fromkeys(keep) if name in types]
    stored: dict[str, str] = {}
    for name in chosen:
        if (other := stored.setdefault(stored_name(name), name)) != name:
            raise InputError(
                f"the columns {other!r} and {name!r} would both be kept as {stored_name(name)!r}; name the columns to "
                "keep without one of them (--keep, keep=)"
            )
    kinds = [pa.string() if pa.types.is_null(types[name][0]) else types[name][0] for name in chosen]
    return KeptColumns(tuple(chosen), pa.schema(list(zip(stored, kinds, strict=True))))


def check_further(
    kept: KeptColumns, paths: Iterable[Path], folder: Path, text_column: str | None, id_column: str | None
) -> None:
    """Compare further inputs of a job with the columns that it keeps; columns that it does not keep are warned of.

    Raises:
        InputError: a column holds something else in one of them.
    """
    own = _own(text_column, id_column)
    for path in paths:
        found = dict(_columns_of(path, text_column, id_column, LOOKED_AT))
        for name, field in zip(kept.names, kept.schema, strict=True):
            together = merged(field.type, found.get(name, field.type))
            if together is None or not together.equals(field.type):
                raise InputError(
                    f"input {path}: column {name!r} holds {found[name]}, and in {folder} it holds {field.type}; "
                    "convert it, or name another folder"
                )
        if others := [name for name in found if name and name not in (*kept.names, *own, EMBEDDING)]:
            listed = ", ".join(map(repr, others[:10])) + (", ..." if len(others) > 10 else "")
            warnings.warn(
                f"{path} has the columns {listed}, which {folder} does not keep: it was begun without them",
                UserWarning,
                stacklevel=2,
            )


def _own(text_column: str | None, id_column: str | None) -> list[str]:
    return [text_column or DEFAULT_TEXT_COLUMN, *([id_column] if id_column is not None else [])]


def _columns_of(
    path: Path, text_column: str | None, id_column: str | None, most_bytes: int | None
) -> list[tuple[str, Any]]:
    with RowReader(path, text_column, id_column) as reader:
        return reader.column_types(most_bytes)


def _check_name(path: Path, names: list[str], name: str) -> None:
    try:
        name.encode()
    except UnicodeEncodeError:
        raise InputError(
            f"input {path}: the column {name!r} has a name that is not valid UTF-8; it may be Latin-1: convert it to "
            "UTF-8 first, or name the columns to keep without it (--keep, keep=)"
        ) from None
    try:
        column_index(path, names, name)
    except InputError as error:
        raise InputError(f"{error}; name the columns to keep without it (--keep, keep=)") from error


def stored_name(name: str) -> str:
    """Under which name a column is kept: its own, unless we have a column of that name, or an index cannot hold it."""
    bare = re.sub(r"[.`\x00-\x1f]", "_", name)
    return f"{PREFIX}{bare}" if bare in RESERVED or bare.startswith("_") else bare
