"""The rows of an index: what is taken from a file of embeddings, what is added, and what makes a row the same row."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from valuembed.errors import InputError
from valuembed.search.centre import Centre, stored_vectors
from valuembed.search.results import Hit, unit
from valuembed.vectors import (
    CHUNK,
    EMBEDDING,
    END,
    FILE,
    ID,
    INDEX_COLUMNS,
    KEY,
    NUMBERED,
    PART,
    PLACES,
    ROW,
    SOURCE,
    START,
    TEXT,
    StoredRows,
    VectorSpec,
    holds_one_value,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


_HIDDEN = (KEY, PART, NUMBERED, EMBEDDING)


def row_schema(file: Any, vector_spec: VectorSpec) -> Any:
    """The Arrow schema of an index whose first file has this one.

    Floats keep their precision, int8 becomes float16, which holds it exactly, and packed signs stay packed.
    """
    import pyarrow as pa

    stored = file.field(EMBEDDING).type
    number = pa.float16() if stored.value_type == pa.int8() else stored.value_type
    fields = {
        KEY: pa.string(),
        PART: pa.int32(),
        NUMBERED: pa.bool_(),
        SOURCE: pa.string(),
        ID: pa.string(),
        FILE: pa.string(),
        ROW: pa.int64(),
        CHUNK: pa.int32(),
        START: pa.int32(),
        END: pa.int32(),
        TEXT: pa.string(),
        EMBEDDING: pa.list_(number, stored.list_size),
    }
    return pa.schema(
        [*(pa.field(*field) for field in fields.items()), *further_fields(file)], vector_spec.to_metadata()
    )


def further_fields(file: Any) -> list[Any]:
    """Columns of a file beyond those that ``embed`` writes, as far as an index can hold them: one value a row.

    Raises:
        InputError: one of them has the name of a column that the index adds.
    """
    import pyarrow as pa
    import pyarrow.types as kinds

    found = []
    for column in file:
        kind = column.type.value_type if kinds.is_dictionary(column.type) else column.type
        is_text = kinds.is_string(kind) or kinds.is_large_string(kind) or kinds.is_string_view(kind)
        if column.name in (ID, TEXT, EMBEDDING, *PLACES) or not holds_one_value(column.type):
            continue
        if column.name in INDEX_COLUMNS or column.name.startswith("_"):
            raise InputError(
                f"a file has the column {column.name!r}; {', '.join(INDEX_COLUMNS)} and names that begin with _ belong "
                "to the index, so give that column another name"
            )
        found.append(pa.field(column.name, pa.string() if is_text else kind))
    return found


def filter_columns(schema: Any) -> dict[str, str]:
    """The columns that a filter can use, with their types."""
    return {field.name: str(field.type) for field in schema if field.name not in _HIDDEN}


def has_unique_keys(file: Any) -> bool:
    """Whether no two rows of a file with this schema can have one key: not so for ids that people gave."""
    import pyarrow.types as kinds

    return ROW in file.names or kinds.is_integer(file.field(ID).type)


def to_rows(batch: StoredRows, schema: Any, *, source: str, part: int, file: str, where: str) -> Any:
    """Rows of an index.

    The key says where a row stood: its source, the file, the number in it, and the chunk; the id takes the number's
    place in files that do not tell the number.

    Args:
        batch: rows of a file.
        schema: of the index.
        source: the name that the rows are known under.
        part: number of the file they come from.
        file: stands for the file's name where the rows do not tell from which they are.
        where: for messages.

    Returns:
        An Arrow table.

    Raises:
        ReadingError: a vector is zero or not finite, and would have no cosine.
    """
    import pyarrow as pa
    import pyarrow.types as kinds

    count = batch.rows.num_rows
    given = {name: batch.rows.column(name) for name in batch.rows.schema.names}
    numbered = kinds.is_integer(given[ID].type)
    columns = {
        NUMBERED: pa.repeat(numbered, count),
        PART: pa.repeat(pa.scalar(part, pa.int32()), count),
        SOURCE: pa.repeat(source, count),
        FILE: pa.repeat(file, count) if file else pa.nulls(count, pa.string()),
        ROW: given[ID] if numbered else pa.nulls(count, pa.int64()),
        **given,
    }
    columns[KEY] = _keys(columns, number=given.get(ROW, given[ID]))
    unit(batch.vectors, where)
    kind = schema.field(EMBEDDING).type
    if given[EMBEDDING].type != kind:
        numbers = batch.vectors.astype(kind.value_type.to_pandas_dtype())
        columns[EMBEDDING] = pa.FixedSizeListArray.from_arrays(pa.array(numbers.reshape(-1)), kind.list_size)
    return pa.table(
        [columns[name].cast(kind) if name in columns else pa.nulls(count, kind) for name, kind in _types(schema)],
        schema=schema,
    )


def last_of_each_key(rows: Any) -> Any:
    """An Arrow table of rows without those whose key comes again further down."""
    import numpy as np

    backwards = np.asarray(rows.column(KEY).to_pylist()[::-1], dtype=object)
    at = np.unique(backwards, return_index=True)[1]
    return rows if len(at) == rows.num_rows else rows.take(np.sort(rows.num_rows - 1 - at))


def hit_columns(schema: Any) -> list[str]:
    """The columns that :func:`to_hits` needs."""
    return [name for name in schema.names if name != PART]


def cosines(
    rows: Any, vector: NDArray[np.float32], vector_spec: VectorSpec, centre: Centre | None = None
) -> NDArray[np.float32]:
    """Cosine of stored vectors with one of length 1, ``[b]``; of packed signs, that of 1 and -1.

    Args:
        rows: an Arrow table.
        vector: ``[width]``.
        vector_spec: of what is stored.
        centre: what is taken from the stored vectors first, and was taken from the other.
    """
    vectors = unit(stored_vectors(rows, vector_spec), "the index")
    scores: NDArray[np.float32] = vectors @ vector if centre is None else centre.cosines(vectors, vector)
    return scores


def to_hits(rows: Any, scores: list[float], fused: list[float] | None = None) -> list[Hit]:
    """Rows of an index, best first, as hits.

    Args:
        rows: an Arrow table with the columns of :func:`hit_columns`.
        scores: cosine of each with the query.
        fused: of a hybrid search, what decided the rank of each.
    """
    hits = []
    for at, row in enumerate(rows.drop_columns([EMBEDDING]).to_pylist()):
        own = {name: row.pop(name) for name in (TEXT, SOURCE, KEY, *PLACES)}
        id = int(row[ID]) if row[NUMBERED] else row[ID]
        more = {name: value for name, value in row.items() if name not in (ID, NUMBERED)}
        hits.append(Hit(at + 1, scores[at], id, fused=fused[at] if fused else None, more=more, **own))
    return hits


def _keys(columns: dict[str, Any], number: Any) -> Any:
    """Lengths in front of names keep two rows from having one key by way of what stands in a name."""
    import pyarrow as pa
    import pyarrow.compute as pc

    def text(column: Any) -> Any:
        return column.cast(pa.string())

    def counted(column: Any) -> list[Any]:
        return [text(pc.utf8_length(column)), text(column)]

    parts = [*counted(columns[SOURCE]), text(columns.get(CHUNK, pa.nulls(len(number), pa.int32())))]
    parts += [*counted(text(columns[FILE])), text(number)]
    return pc.binary_join_element_wise(*parts, ":", null_handling="replace", null_replacement="")


def _types(schema: Any) -> list[tuple[str, Any]]:
    return [(field.name, field.type) for field in schema]
