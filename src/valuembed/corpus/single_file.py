"""Embed a file: rows in, one Parquet file out, with nothing half-written and no row lost without a word."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from valuembed._utils.atomic import NewFile
from valuembed._utils.progress import track, watching_steps
from valuembed.corpus.batches import NOT_FINITE, NOT_STORED, EncodeBatch, Encoded, batched, encode, warn_of_truncation
from valuembed.data import Rejected, RowReader, check_input, count_rows, look_for_text, nothing_usable
from valuembed.errors import OutputError, ReadingError, ValuembedError
from valuembed.vectors import ID, LOOKED_AT, TEXT, Encoder, VectorSpec, VectorWriter, find_columns


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
        first_rejected: the first of the rows set aside; None where there is none.
    """

    rows: int
    embedded: int
    rejected: int
    truncated: int
    seconds: float
    tokens: int
    first_rejected: Rejected | None = None


def embed_file(
    model: Encoder,
    input: str | Path,
    output: str | Path,
    *,
    text_column: str | None = None,
    id_column: str | None = None,
    precision: str = "float32",
    dim: int | None = None,
    keep: Sequence[str] | None = None,
    overwrite: bool = False,
    rows_per_chunk: int = 2048,
    progress: bool = True,
) -> EmbedSummary:
    """Embed every text of a file as documents, into a Parquet file.

    The output has the columns ``id`` (string, or int64 counted from 0 without an id column), ``text``, those that are
    kept, and ``embedding`` (fixed-size list of float32, or of what the precision stores), in the input's order, and
    records the model and the recipe in its schema metadata. It appears under its name only when it is complete. Rows
    without a usable text are set aside in :func:`rejected_path`; where no row is usable, that is an error.

    Args:
        model: what :func:`valuembed.load` returns.
        input: see :func:`valuembed.data.read_rows`.
        output: a ``.parquet`` file to create; its folder has to exist.
        text_column: see :func:`valuembed.data.read_rows`.
        id_column: see :func:`valuembed.data.read_rows`.
        precision: how numbers are stored, see :data:`valuembed.vectors.PRECISIONS`.
        dim: keep so many numbers of each vector, which is scaled to length 1 again; None is all.
        keep: columns of the input to keep, see :mod:`valuembed.vectors.kept_columns`; None is all, and an empty list
            none.
        overwrite: replace the output when it exists; an earlier list of rejected rows goes with it.
        rows_per_chunk: texts given to the model at a time, and rows in a row group of the output.
        progress: show a progress bar on stderr if that is a terminal, else a line a minute.

    Raises:
        InputError: the input cannot be read (see :func:`valuembed.data.read_rows`), holds no usable text, or lacks a
            column.
        OutputError: the output exists, its folder is missing or not writable, or the disk is full.
        ReadingError: the model returned numbers that are not finite; the message names the rows.
    """
    if rows_per_chunk < 1:
        raise ValueError(f"rows_per_chunk={rows_per_chunk} has to be at least 1")
    source, target = check_files(
        input, output, text_column=text_column, id_column=id_column, keep=keep, overwrite=overwrite
    )
    start = time.perf_counter()
    embedded = rejected = truncated = tokens = 0
    first: Rejected | None = None
    columns = {ID: "string" if id_column else "int64", TEXT: "string"}
    kept = find_columns([source], text_column, id_column, keep)
    with NewFile(target) as vectors, NewFile(rejected_path(target)) as rejects:
        vector_spec = VectorSpec.of(model, precision, dim)
        # Every step of the model shows, however few texts it has.
        bar = track(progress, total=count_rows(source), unit=" rows", desc="embedding", miniters=1)
        with (
            bar,
            VectorWriter(vectors, vector_spec, columns, kept.schema) as writer,
            RowReader(source, text_column, id_column, keep=kept.names) as reader,
        ):
            for call in batched(reader.take(), rows_per_chunk):
                if call.texts:
                    with watching_steps(bar.update):
                        encoded = _encoded(model, vector_spec, call, source)
                    fine = [at for at, text in enumerate(call.texts) if text.row not in call.aside]
                    ids = [call.texts[at].id for at in fine]
                    texts = [call.texts[at].text for at in fine]
                    further = kept.arrays([call.texts[at].kept for at in fine], str(source))
                    writer.write({ID: ids, TEXT: texts}, vector_spec.pack(encoded.vectors[fine]), further)
                    truncated += encoded.truncated
                    tokens += encoded.tokens
                for _, row in sorted(call.aside.items()):
                    first = first or row
                    rejects.write(json.dumps({"row": row.row, "reason": row.reason}).encode() + b"\n")
                embedded += call.rows - len(call.aside)
                rejected += len(call.aside)
                bar.update(embedded + rejected - bar.n)
            reader.check_columns()
        if not embedded:
            raise nothing_usable(source, rejected, first)
        # Both are on the disk before either gets its name, and the list of rejected rows gets it first: an output that
        # is there has its list.
        vectors.seal()
        rejects.seal()
        if rejected:
            rejects.commit()
        else:
            rejected_path(target).unlink(missing_ok=True)
        vectors.commit()
    warn_of_truncation(truncated, embedded)
    seconds = time.perf_counter() - start
    return EmbedSummary(embedded + rejected, embedded, rejected, truncated, seconds, tokens, first)


def rejected_path(output: str | Path) -> Path:
    """Where the rows set aside are listed: ``OUTPUT.rejected.jsonl``, one ``{"row", "reason"}`` a line."""
    return Path(f"{output}.rejected.jsonl")


def check_files(
    input: str | Path,
    output: str | Path,
    *,
    text_column: str | None = None,
    id_column: str | None = None,
    keep: Sequence[str] | None = None,
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
    # Up to the first text: most files have it in their first row, and others should not wait for a model in vain.
    look = look_for_text(source, text_column, id_column)
    if not look.has_text:
        raise nothing_usable(source, look.rows, look.first)
    find_columns([source], text_column, id_column, keep, most_bytes=LOOKED_AT)
    return source, target


def _encoded(model: Encoder, vector_spec: VectorSpec, call: EncodeBatch, source: Path) -> Encoded:
    """Vectors of a call, checked; rows whose texts cannot be embedded are set aside in it."""
    import numpy as np

    ids = [text.id for text in call.texts]
    where = f"{source}, ids {ids[0]} to {ids[-1]}"
    try:
        encoded = encode(model, [text.text for text in call.texts], len(vector_spec.probe))
    except ValuembedError as error:
        raise type(error)(f"{where} (rows are counted from the first of these): {error}") from error
    fine: dict[str, Any] = {
        "is not finite": np.isfinite(encoded.vectors).all(axis=1),
        NOT_STORED: vector_spec.fits(encoded.vectors),
    }
    for at, reason in encoded.faults.items():
        if reason != NOT_FINITE:
            text = call.texts[at]
            call.aside[text.row] = Rejected(text.line, reason)
            for rows in fine.values():
                rows[at] = True
    for what, rows in fine.items():
        if not rows.all():
            wrong = [ids[at] for at in np.flatnonzero(~rows)[:10]]
            raise ReadingError(f"{where}: the embedding {what} for ids {', '.join(map(str, wrong))}")
    return encoded
