"""The files that ``embed`` left, one or a folder of them, read batch by batch: on a disk or in an object store."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from valuembed.errors import InputError
from valuembed.vectors.provenance import CHUNK, EMBEDDING, END, FILE, ID, ROW, START, TEXT, VectorSpec

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

PLACES = (FILE, ROW, CHUNK, START, END)
"""Columns that say where a text stood; a single file has none of them, a folder's files have the first two at least."""

ROWS_PER_BATCH = 4096
SUFFIX = ".parquet"


@dataclass(frozen=True)
class StoredRows:
    """Some rows of a file.

    Attributes:
        first: number of the first of them in the file, from 0.
        rows: an Arrow record batch.
        vectors: float32 ``[b, width]``; of packed bits, 1 and -1.
    """

    first: int
    rows: Any
    vectors: NDArray[np.float32]


@dataclass(frozen=True)
class EmbeddingFile:
    """One Parquet file of embeddings.

    Attributes:
        name: the file's own name, without folders.
        path: where it is, as its file system names it.
        stamp: changes when the file does: its size and when it was written.
        filesystem: of pyarrow.
    """

    name: str
    path: str
    stamp: str
    filesystem: Any

    def vector_spec(self) -> VectorSpec:
        """Which model and recipe made its vectors.

        Raises:
            InputError: the file is no readable Parquet file, or does not say so.
        """
        with self._open() as file:
            return VectorSpec.from_metadata(self.path, file.schema_arrow.metadata)

    def schema(self, vector_spec: VectorSpec) -> Any:
        """The Arrow schema.

        Raises:
            InputError: a column is missing or holds something else, or another model or recipe made the vectors.
        """
        with self._open() as file:
            return self._checked(file.schema_arrow, vector_spec)

    def count(self) -> int:
        """How many rows it has, from its footer."""
        with self._open() as file:
            return int(file.metadata.num_rows)

    def batches(
        self, vector_spec: VectorSpec, *, rows_per_batch: int = ROWS_PER_BATCH, skip: int = 0
    ) -> Iterator[StoredRows]:
        """Its rows in order, with all columns that hold one value a row.

        Args:
            vector_spec: what its vectors have to be comparable with.
            rows_per_batch: at most so many at a time.
            skip: leave out so many rows at the beginning.

        Raises:
            InputError: the file is damaged, lacks a column, or another model or recipe made its vectors.
        """
        import pyarrow as pa

        with self._open() as file:
            schema = self._checked(file.schema_arrow, vector_spec)
            names = [field.name for field in schema if field.name == EMBEDDING or holds_one_value(field.type)]
            first = 0
            try:
                for rows in file.iter_batches(rows_per_batch, columns=names):
                    left_out = min(max(skip - first, 0), rows.num_rows)
                    first += left_out
                    rows = rows.slice(left_out)
                    if rows.num_rows:
                        yield StoredRows(first, rows, self._vectors(rows, first, vector_spec))
                    first += rows.num_rows
            except (pa.ArrowInvalid, OSError) as error:
                raise InputError(f"{self.path} is damaged after row {first}: {error}") from error

    def _checked(self, schema: Any, vector_spec: VectorSpec) -> Any:
        made = VectorSpec.from_metadata(self.path, schema.metadata)
        if differences := vector_spec.differences(made):
            raise InputError(
                f"{self.path} was made by {made}, not by {vector_spec}; their vectors cannot be compared: "
                f"{'; '.join(differences)}"
            )
        _check_columns(self.path, schema, vector_spec)
        return schema

    @contextmanager
    def _open(self) -> Iterator[Any]:
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            file = pq.ParquetFile(self.path, filesystem=self.filesystem)
        except (pa.ArrowInvalid, OSError) as error:
            raise InputError(f"{self.path} is no readable Parquet file: {error}") from error
        with file:
            yield file

    def _vectors(self, rows: Any, first: int, vector_spec: VectorSpec) -> NDArray[np.float32]:
        column = rows.column(EMBEDDING)
        flat = column.flatten()
        if len(flat) != rows.num_rows * column.type.list_size or flat.null_count:
            raise InputError(f"{self.path} is damaged: vectors are missing in rows from {first}")
        return vector_spec.unpack(flat.to_numpy().reshape(rows.num_rows, -1))


@dataclass(frozen=True)
class EmbeddingFiles:
    """All files at one address, by their names.

    Attributes:
        address: as it was given.
        name: of the file or the folder.
        location: the address in full, the same from wherever it is named.
        is_folder: whether it is a folder of files.
        files: at least one.
        vector_spec: which model and recipe made the vectors.
    """

    address: str
    name: str
    location: str
    is_folder: bool
    files: tuple[EmbeddingFile, ...]
    vector_spec: VectorSpec

    @classmethod
    def open(cls, address: str | Path) -> EmbeddingFiles:
        """Find the files; of the first one the footer is read, of the others nothing.

        Args:
            address: a file, or a folder of them, that ``valuembed embed`` wrote: a path, or an address of an object
                store that pyarrow knows, such as ``s3://bucket/folder``.

        Raises:
            InputError: there is nothing, or nothing of this library.
        """
        filesystem, path, location = _resolve(str(address))
        with _looking(address):
            found = filesystem.get_file_info(path)
            is_folder = found.type.name == "Directory"
            if found.type.name == "NotFound":
                raise InputError(f"{address} does not exist; give a file of embeddings, or a folder of them")
            infos = [found]
            if is_folder:
                from pyarrow.fs import FileSelector

                listed = filesystem.get_file_info(FileSelector(path))
                infos = [info for info in listed if info.is_file and _is_ours(info.base_name)]
        if not infos:
            raise InputError(
                f"{address} is a folder without {SUFFIX} files; give a file or a folder that 'valuembed embed' wrote"
            )
        files = tuple(
            EmbeddingFile(info.base_name, info.path, f"{info.size} bytes at {info.mtime_ns}", filesystem)
            for info in sorted(infos, key=lambda info: str(info.base_name))
        )
        name = location.rstrip("/").rpartition("/")[2]
        return cls(str(address), name, location, is_folder, files, files[0].vector_spec())

    def batches(self, *, rows_per_batch: int = ROWS_PER_BATCH) -> Iterator[tuple[EmbeddingFile, StoredRows]]:
        """The rows of all files, file after file; arguments and errors as in :meth:`EmbeddingFile.batches`."""
        for file in self.files:
            for batch in file.batches(self.vector_spec, rows_per_batch=rows_per_batch):
                yield file, batch


def holds_one_value(kind: Any) -> bool:
    """Whether a column of an Arrow type holds strings, numbers, times or the like: one value a row, and no bytes."""
    import pyarrow.types as kinds

    kind = kind.value_type if kinds.is_dictionary(kind) else kind
    checks = (kinds.is_string, kinds.is_large_string, kinds.is_string_view, kinds.is_primitive, kinds.is_decimal)
    return any(check(kind) for check in checks) and not kinds.is_null(kind)


def is_remote(address: str | Path) -> bool:
    """Whether an address is one of an object store, or otherwise no plain path."""
    return "://" in str(address)


def _check_columns(path: str, schema: Any, vector_spec: VectorSpec) -> None:
    if missing := [name for name in (ID, TEXT, EMBEDDING) if name not in schema.names]:
        raise InputError(f"{path} has no column {missing[0]!r}; its columns are {', '.join(schema.names)}")
    kind, expected = schema.field(EMBEDDING).type, vector_spec.vector_type
    if kind != expected:
        raise InputError(
            f"{path}: column {EMBEDDING!r} holds {kind}, expected a list of {expected.list_size} {expected.value_type}"
        )


def _resolve(address: str) -> tuple[Any, str, str]:
    """File system, path in it, and the address in full."""
    import pyarrow as pa
    from pyarrow.fs import FileSystem, LocalFileSystem

    if not is_remote(address):
        path = Path(address)
        return LocalFileSystem(), str(path), path.resolve().as_posix()
    try:
        filesystem, path = FileSystem.from_uri(address)
    except (pa.ArrowInvalid, OSError, ValueError) as error:
        raise InputError(f"cannot read {address}: {error}") from error
    # Options and keys in an address are no part of where something is, and are not to be written down.
    return filesystem, str(path), re.sub("//[^/@]*:[^/@]*@", "//", address.partition("?")[0])


@contextmanager
def _looking(address: str | Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(f"cannot read {address}: {error}") from error


def _is_ours(name: str) -> bool:
    return name.endswith(SUFFIX) and not name.startswith((".", "_"))
