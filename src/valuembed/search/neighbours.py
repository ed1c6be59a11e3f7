"""Rows of an index by their keys, and the rows around one."""

from __future__ import annotations

from typing import Any

from valuembed.errors import UnknownRowError
from valuembed.search.index_rows import hit_columns, to_hits
from valuembed.search.results import Hit
from valuembed.search.vector_store import Table, in_sql
from valuembed.vectors import CHUNK, FILE, KEY, ROW, SOURCE


def row_of(rows: Table, key: str, columns: list[str], called: str) -> Any:
    """The row with a key, as an Arrow record batch.

    Args:
        rows: of an index.
        key: of the row.
        columns: what to return of it.
        called: what the message calls the index.

    Raises:
        UnknownRowError: no row has it.
    """
    for found in rows.scan(columns, f"{KEY} = {in_sql(key)}"):
        if found.num_rows:
            return found
    raise UnknownRowError(f"{called} has no row with the key {key!r:.200}; give the key of a hit")


def rows_around(rows: Table, key: str, before: int, after: int, called: str) -> list[Hit]:
    """A row with those around it; see :meth:`valuembed.search.Index.around`."""
    import pyarrow as pa

    at = row_of(rows, key, [SOURCE, FILE, ROW, CHUNK], called).to_pylist()[0]
    is_piece = at[CHUNK] is not None
    place = CHUNK if is_piece else ROW
    if at[place] is None:
        # Nothing says where it stood.
        where = f"{KEY} = {in_sql(key)}"
    else:
        same = {SOURCE: at[SOURCE], FILE: at[FILE], **({ROW: at[ROW]} if is_piece else {CHUNK: None})}
        wanted = [_equal(name, value) for name, value in same.items()]
        where = " AND ".join([*wanted, f"{place} BETWEEN {at[place] - before} AND {at[place] + after}"])
    batches = list(rows.scan(hit_columns(rows.schema), where))
    table = pa.Table.from_batches(batches).sort_by(place)
    return to_hits(table, [0.0] * table.num_rows)


def _equal(name: str, value: Any) -> str:
    if value is None:
        return f"{name} IS NULL"
    return f"{name} = {in_sql(value) if isinstance(value, str) else value}"


def rows_with(rows: Table, keys: list[str]) -> list[Hit | None]:
    """The rows with these keys, in this order, with a score of 1; None for one that is not there.

    Args:
        rows: of an index.
        keys: of the rows.
    """
    found: dict[str, Hit] = {}
    if keys:
        for some in rows.scan(hit_columns(rows.schema), f"{KEY} IN ({', '.join(map(in_sql, keys))})"):
            found.update((hit.key or "", hit) for hit in to_hits(some, [1.0] * some.num_rows))
    return [found.get(key) for key in keys]
