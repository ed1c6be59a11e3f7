"""Texts and their vectors into an open Parquet file, row group by row group."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

from valuembed._utils.atomic import NewFile
from valuembed.vectors.provenance import EMBEDDING, ID, TEXT, VectorSpec

if TYPE_CHECKING:
    from numpy.typing import NDArray


class VectorWriter:
    """Writes a Parquet file; as a block, it completes the file when the block ends.

    Args:
        out: the open file.
        vector_spec: what made the vectors, and how they are stored.
        columns: of the file in order, with their Arrow types by name; the vectors come last.
        kept: Arrow schema of the columns of the input that come between these and the vectors.

    Raises:
        OutputError: it cannot be written; every method raises it.
    """

    def __init__(self, out: NewFile, vector_spec: VectorSpec, columns: Mapping[str, str], kept: Any = ()) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        self.out = out
        self.vector_spec = vector_spec
        fields = [(name, pa.type_for_alias(kind)) for name, kind in columns.items()]
        self.schema = pa.schema(
            [*fields, *kept, (EMBEDDING, vector_spec.vector_type)], metadata=vector_spec.to_metadata()
        )
        # Vectors, texts and ids gain nothing from dictionaries; a column that says the same in every row does.
        repeated = [name for name in columns if name not in (ID, TEXT) and columns[name] == "string"]
        repeated += [field.name for field in kept if not pa.types.is_nested(field.type)]
        try:
            self.parquet = pq.ParquetWriter(
                out.file, self.schema, compression="zstd", use_dictionary=repeated, write_statistics=[ID]
            )
        except OSError as error:
            raise out.error(error) from error

    def __enter__(self) -> VectorWriter:
        return self

    def write(self, columns: Mapping[str, Sequence[Any]], stored: NDArray[Any], kept: Sequence[Any] = ()) -> None:
        """Append a row group.

        Args:
            columns: b values of each column.
            kept: an Arrow array of b values for each column that is kept.
            stored: ``[b, stored width]``, as :meth:`Make.pack` gives them.
        """
        import pyarrow as pa

        kind = self.vector_spec.vector_type
        own = [field for field in self.schema if field.name in columns]
        arrays = [*(pa.array(columns[field.name], field.type) for field in own), *kept]
        arrays.append(pa.FixedSizeListArray.from_arrays(pa.array(stored.reshape(-1), kind.value_type), type=kind))
        try:
            self.parquet.write_table(pa.Table.from_arrays(arrays, schema=self.schema))
        except OSError as error:
            raise self.out.error(error) from error

    def note(self, notes: Mapping[bytes, bytes]) -> None:
        """Add to the file's metadata what is known only when its rows are written."""
        self.parquet.add_key_value_metadata(dict(notes))

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        try:
            self.parquet.close()
        except OSError as problem:
            # After a failed write closing fails as well; the first error is the one to report.
            if kind is None:
                raise self.out.error(problem) from problem
