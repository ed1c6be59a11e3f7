"""Files of embeddings as ``embed`` leaves them, without a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from fakes import FakeEncoder

from valuembed.vectors.provenance import VectorSpec


def write_embeddings(
    path: Path,
    texts: list[str],
    *,
    ids: list[Any] | None = None,
    file: str | None = None,
    first_row: int = 0,
    precision: str = "float32",
    dim: int | None = None,
    model: Any = None,
    **columns: Any,
) -> Path:
    """One file with the vectors that a model gives texts.

    Args:
        path: of the file.
        texts: one for each row.
        ids: of the rows; None numbers them.
        file: the file that they came from, as in a folder's files; None leaves file and row out.
        first_row: number of the first row in that file.
        precision: float32, float16, int8 or binary.
        dim: numbers of each vector that are kept; None is all.
        model: a FakeEncoder; None is one as it comes.
        columns: further ones.
    """
    model = model or FakeEncoder()
    vector_spec = VectorSpec.of(model, precision, dim)
    numbers = vector_spec.pack(model.encode(texts).reshape(len(texts), model.width))
    rows = range(first_row, first_row + len(texts))
    places = {"file": pa.array([file] * len(texts), pa.string()), "row": pa.array(rows, pa.int64())} if file else {}
    table = pa.table(
        {
            "id": pa.array(rows if ids is None else ids, pa.int64() if ids is None else pa.string()),
            **places,
            "text": pa.array(texts, pa.string()),
            "embedding": pa.FixedSizeListArray.from_arrays(
                pa.array(numbers.reshape(-1)), vector_spec.vector_type.list_size
            ),
            **columns,
        }
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table.replace_schema_metadata(vector_spec.to_metadata()), path)
    return path


def some_words(count: int, seed: int = 0) -> list[str]:
    """Different words of 12 letters."""
    letters = np.random.default_rng(seed).integers(97, 123, (count, 12))
    words = ["".join(map(chr, word)) for word in letters]
    assert len(set(words)) == count
    return words
