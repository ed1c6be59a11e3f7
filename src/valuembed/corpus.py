"""Embed a file: rows in, one Parquet file out, with nothing half-written and no row lost without a word."""

from __future__ import annotations

import errno
import json
import os
import secrets
import time
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from valuembed.errors import OutputError, ReadingError, TruncationWarning, ValuembedError
from valuembed.rows import Rejected, Row, check_input, count_rows, read_rows
from valuembed.storage import EMBEDDING, ID, TEXT, Encoder, Make

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["EmbedSummary", "Rejected", "Row", "check_files", "embed_file", "read_rows", "rejected_path"]

CHUNK_CHARACTERS = 32_000_000
"""A chunk ends here even when it has fewer rows than asked for, so that long texts do not fill the memory."""


@dataclass(frozen=True)
class EmbedSummary:
    """What became of a file.

    Attributes:
        rows: rows read; ``rows == embedded + rejected``.
        embedded: rows in the output.
        rejected: rows set aside, listed with their reasons in :func:`rejected_path` when there are any.
        truncated: embedded texts of which only the beginning was read.
        seconds: time from the first row read to the file in place.
        tokens: tokens that were computed.
    """

    rows: int
    embedded: int
    rejected: int
    truncated: int
    seconds: float
    tokens: int


def embed_file(
    model: Encoder,
    input: str | Path,
    output: str | Path,
    *,
    text_column: str | None = None,
    id_column: str | None = None,
    overwrite: bool = False,
    rows_per_chunk: int = 2048,
    progress: bool = True,
) -> EmbedSummary:
    """Embed every text of a file as documents, into a Parquet file.

    The output has the columns ``id`` (string, or int64 counted from 0 without an id column), ``text`` and
    ``embedding`` (fixed-size list of float32), in the input's order, and records the model and the recipe in its
    schema metadata. It appears under its name only when it is complete. Rows without a usable text are set aside in
    :func:`rejected_path`. An input without rows is legal and gives an output without rows.

    Args:
        model: what :func:`valuembed.load` returns.
        input: see :func:`read_rows`.
        output: a ``.parquet`` file to create; its folder has to exist.
        text_column: see :func:`read_rows`.
        id_column: see :func:`read_rows`.
        overwrite: replace the output when it exists; an earlier list of rejected rows goes with it.
        rows_per_chunk: texts given to the model at a time, and rows in a row group of the output.
        progress: show a progress bar on stderr when that is a terminal.

    Raises:
        InputError: the input cannot be read (see :func:`read_rows`).
        OutputError: the output exists, its folder is missing or not writable, or the disk is full.
        ReadingError: the model returned numbers that are not finite; the message names the rows.
    """
    from tqdm.auto import tqdm

    if rows_per_chunk < 1:
        raise ValueError(f"rows_per_chunk={rows_per_chunk} has to be at least 1")
    source, target = check_files(input, output, text_column=text_column, id_column=id_column, overwrite=overwrite)
    start = time.perf_counter()
    embedded = rejected = truncated = tokens = 0
    with _NewFile(target) as vectors, _NewFile(rejected_path(target)) as rejects:
        writer = _Writer(vectors, Make.of(model), "string" if id_column else "int64")
        bar = tqdm(total=count_rows(source), unit=" rows", desc="embedding", disable=None if progress else True)
        with bar, writer:
            for chunk, aside in _chunks(read_rows(source, text_column, id_column), rows_per_chunk):
                for row in aside:
                    rejects.write(json.dumps({"row": row.row, "reason": row.reason}).encode() + b"\n")
                if chunk:
                    writer.write(chunk, _encode(model, chunk, source))
                    truncated += model.report.truncated if model.report else 0
                    tokens += model.report.tokens if model.report else 0
                embedded += len(chunk)
                rejected += len(aside)
                bar.update(len(chunk) + len(aside))
        # Both are on the disk before either gets its name, and the list of rejected rows gets it first: an output that
        # is there has its list.
        vectors.seal()
        rejects.seal()
        if rejected:
            rejects.commit()
        else:
            rejected_path(target).unlink(missing_ok=True)
        vectors.commit()
    if truncated:
        warnings.warn(
            f"{truncated} of {embedded} texts were too long and lost their ends", TruncationWarning, stacklevel=2
        )
    seconds = time.perf_counter() - start
    return EmbedSummary(embedded + rejected, embedded, rejected, truncated, seconds, tokens)


def rejected_path(output: str | Path) -> Path:
    """Where the rows set aside are listed: ``OUTPUT.rejected.jsonl``, one ``{"row", "reason"}`` a line."""
    return Path(f"{output}.rejected.jsonl")


def check_files(
    input: str | Path,
    output: str | Path,
    *,
    text_column: str | None = None,
    id_column: str | None = None,
    overwrite: bool = False,
) -> tuple[Path, Path]:
    """Raise what :func:`embed_file` would raise before it embeds a row: worth calling before a model is loaded.

    Returns:
        Input and output as paths.

    Raises:
        InputError: see :func:`embed_file`.
        OutputError: see :func:`embed_file`.
    """
    source = check_input(input, text_column, id_column)
    target = Path(output)
    if target.suffix.lower() != ".parquet":
        raise OutputError(f"output {target} has the extension {target.suffix!r}; the only format is .parquet")
    if target.is_dir():
        raise OutputError(f"output {target} is a folder; give the name of a file")
    if not target.parent.is_dir():
        raise OutputError(f"output {target}: folder {target.parent} does not exist; create it first")
    if target.exists():
        if target.samefile(source):
            raise OutputError(f"output {target} is the input; give another name")
        if not overwrite:
            raise OutputError(f"output {target} exists; give another name, or --overwrite (overwrite=True)")
    if not os.access(target.parent, os.W_OK | os.X_OK):
        raise OutputError(f"output {target}: folder {target.parent} is not writable")
    # The first row is enough to find out that a table lacks the column.
    next(iter(read_rows(source, text_column, id_column)), None)
    return source, target


def _chunks(rows: Iterable[Row | Rejected], size: int) -> Iterator[tuple[list[Row], list[Rejected]]]:
    """Rows to embed and rows to set aside, cut so that neither grows without end."""
    chunk: list[Row] = []
    aside: list[Rejected] = []
    characters = 0
    for row in rows:
        if isinstance(row, Row):
            chunk.append(row)
            characters += len(row.text)
        else:
            aside.append(row)
        if max(len(chunk), len(aside)) >= size or characters >= CHUNK_CHARACTERS:
            yield chunk, aside
            chunk, aside, characters = [], [], 0
    if chunk or aside:
        yield chunk, aside


def _encode(model: Encoder, chunk: list[Row], source: Path) -> NDArray[np.float32]:
    """Vectors ``[b, width]`` of a chunk, checked."""
    import numpy as np

    where = f"{source}, ids {chunk[0].id} to {chunk[-1].id}"
    try:
        with warnings.catch_warnings():
            # One warning for the file, at its end, instead of one for each chunk.
            warnings.simplefilter("ignore", TruncationWarning)
            vectors = np.asarray(
                model.encode_document([row.text for row in chunk], show_progress_bar=False), np.float32
            )
    except ValuembedError as error:
        raise type(error)(f"{where} (rows are counted from the first of these): {error}") from error
    finite = np.isfinite(vectors).all(axis=1)
    if not finite.all():
        ids = [chunk[index].id for index in np.flatnonzero(~finite)[:10]]
        raise ReadingError(f"{where}: the embedding is not finite for ids {', '.join(map(str, ids))}")
    return vectors


class _NewFile:
    """A file that is written beside its final name and takes the name only when it is committed."""

    def __init__(self, target: Path) -> None:
        self.target = target
        self.temporary = target.with_name(f".valuembed-{secrets.token_hex(6)}.tmp")

    def __enter__(self) -> _NewFile:
        try:
            self.file = self.temporary.open("xb")
        except OSError as error:
            raise self.error(error) from error
        return self

    def write(self, data: bytes) -> None:
        try:
            self.file.write(data)
        except OSError as error:
            raise self.error(error) from error

    def seal(self) -> None:
        """Bring everything to the disk: after a crash there is the whole file or none."""
        try:
            self.file.flush()
            os.fsync(self.file.fileno())
            self.file.close()
        except OSError as error:
            raise self.error(error) from error

    def commit(self) -> None:
        """Give the sealed file its name."""
        try:
            self.temporary.replace(self.target)
        except OSError as error:
            raise self.error(error) from error

    def discard(self) -> None:
        try:
            self.file.close()
        except OSError:
            # What could not be flushed belongs to a file that is removed here.
            pass
        finally:
            self.temporary.unlink(missing_ok=True)

    def error(self, error: OSError) -> OutputError:
        advice = "; free some space and run it again" if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
        return OutputError(f"cannot write {self.target}: {error.strerror or error}{advice}; nothing was left there")

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.discard()


class _Writer:
    """Row groups of embeddings into an open file."""

    def __init__(self, out: _NewFile, make: Make, id_type: str) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        self.out = out
        self.width = make.width
        vector = pa.list_(pa.float32(), make.width)
        fields = [(ID, pa.type_for_alias(id_type)), (TEXT, pa.string()), (EMBEDDING, vector)]
        self.schema = pa.schema(fields, metadata=make.to_metadata())
        # Float vectors gain nothing from dictionaries; texts and ids are compressed.
        try:
            self.parquet = pq.ParquetWriter(
                out.file, self.schema, compression="zstd", use_dictionary=False, write_statistics=[ID]
            )
        except OSError as error:
            raise out.error(error) from error

    def __enter__(self) -> _Writer:
        return self

    def write(self, chunk: list[Row], vectors: NDArray[Any]) -> None:
        import pyarrow as pa

        if vectors.shape != (len(chunk), self.width):
            raise ReadingError(f"the model returned vectors {vectors.shape}, expected {(len(chunk), self.width)}")
        flat = pa.array(vectors.reshape(-1), pa.float32())
        columns = [
            pa.array([row.id for row in chunk], self.schema.field(ID).type),
            pa.array([row.text for row in chunk], pa.string()),
            pa.FixedSizeListArray.from_arrays(flat, self.width),
        ]
        try:
            self.parquet.write_table(pa.Table.from_arrays(columns, schema=self.schema))
        except OSError as error:
            raise self.out.error(error) from error

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        try:
            self.parquet.close()
        except OSError as problem:
            # After a failed write closing fails as well; the first error is the one to report.
            if kind is None:
                raise self.out.error(problem) from problem
