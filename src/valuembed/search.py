"""Compare texts: a similarity matrix, and exact search over a file of embeddings. NumPy only, no index."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from valuembed.errors import InputError, ReadingError
from valuembed.inputs import check_text
from valuembed.storage import EMBEDDING, ID, TEXT, Encoder, Make

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

ROWS_PER_BATCH = 4096


@dataclass(frozen=True)
class Hit:
    """One text found.

    Attributes:
        rank: 1 is the best.
        score: cosine similarity with the query, from -1 to 1.
        id: the row's id in the file.
        text: the row's text.
    """

    rank: int
    score: float
    id: int | str
    text: str


def search(model: Encoder, query: str, path: str | Path, k: int = 10) -> list[Hit]:
    """Find the k texts of a file that are most similar to a query: exact cosine over every row, batch by batch.

    Args:
        model: what :func:`valuembed.load` returns, loaded as it was when the file was written.
        query: encoded with ``encode_query``.
        path: a file that :func:`valuembed.corpus.embed_file` wrote.
        k: how many to return; fewer when the file has fewer rows.

    Returns:
        Hits, best first; of equal scores the earlier row comes first.

    Raises:
        InputError: the query cannot be embedded, the file is not readable or damaged, or another model or recipe
            made its vectors.
    """
    import numpy as np

    if k < 1:
        raise InputError(f"k={k} has to be at least 1")
    if reason := check_text(query) or (None if query.strip() else "blank"):
        raise InputError(f"the query {query!r:.80} is {reason}")
    recorded, made = read_make(path), Make.of(model)
    if differences := recorded.differences(made):
        raise InputError(
            f"{path} was made by {recorded}; the query would be made by {made}. Their vectors cannot be compared: "
            f"{'; '.join(differences)}"
        )
    vector = _unit(np.asarray(model.encode_query([query], show_progress_bar=False), np.float32), "the query")[0]
    best: list[tuple[float, int, int | str, str]] = []
    for first, batch, vectors in _batches(Path(path), recorded.width):
        scores = _unit(vectors, f"{path}, rows from {first}") @ vector
        # Only rows that can still enter the best k are turned into Python objects.
        for at in np.argsort(-scores, kind="stable")[:k].tolist():
            entry = (float(scores[at]), -(first + at))
            if len(best) == k and entry <= best[0][:2]:
                break
            hit = (*entry, batch.column(ID)[at].as_py(), batch.column(TEXT)[at].as_py())
            (heapq.heappush if len(best) < k else heapq.heapreplace)(best, hit)
    best.sort(reverse=True)
    return [Hit(rank, score, id, text) for rank, (score, _, id, text) in enumerate(best, start=1)]


def similarity_matrix(model: Encoder, texts: Sequence[str]) -> NDArray[np.float32]:
    """Cosine similarity of every text with every other.

    Args:
        model: what :func:`valuembed.load` returns.
        texts: b texts.

    Returns:
        float32 ``[b, b]``, symmetric, with ones on the diagonal up to rounding.
    """
    import numpy as np

    if not texts:
        return np.zeros((0, 0), np.float32)
    vectors = _unit(np.asarray(model.encode(list(texts), show_progress_bar=False), np.float32), "the texts")
    matrix: NDArray[np.float32] = vectors @ vectors.T
    return matrix


def read_make(path: str | Path) -> Make:
    """Which model and recipe made the vectors of a file; reads its footer only.

    Raises:
        InputError: the file is missing, not readable, or not of this library.
    """
    with _open(Path(path)) as file:
        return Make.from_metadata(Path(path), file.schema_arrow.metadata)


def _open(path: Path) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not path.is_file():
        raise InputError(f"{path} {'is a folder' if path.is_dir() else 'does not exist'}; give a file of embeddings")
    try:
        file = pq.ParquetFile(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(f"{path} is no readable Parquet file: {error}") from error
    return file


def _batches(path: Path, width: int) -> Any:
    """Number of the first row, the Arrow batch, and its vectors ``[rows, width]``."""
    import pyarrow as pa

    with _open(path) as file:
        first = 0
        schema = file.schema_arrow
        if missing := [name for name in (ID, TEXT, EMBEDDING) if name not in schema.names]:
            raise InputError(f"{path} has no column {missing[0]!r}; its columns are {', '.join(schema.names)}")
        if schema.field(EMBEDDING).type != pa.list_(pa.float32(), width):
            kind = schema.field(EMBEDDING).type
            raise InputError(f"{path}: column {EMBEDDING!r} holds {kind}, expected a list of {width} float32")
        try:
            for batch in file.iter_batches(ROWS_PER_BATCH, columns=[ID, TEXT, EMBEDDING]):
                if batch.num_rows == 0:
                    continue
                flat = batch.column(EMBEDDING).flatten()
                if len(flat) != batch.num_rows * width or flat.null_count:
                    raise InputError(f"{path} is damaged: vectors are missing in rows from {first}")
                yield first, batch, flat.to_numpy().reshape(-1, width)
                first += batch.num_rows
        except (pa.ArrowInvalid, OSError) as error:
            raise InputError(f"{path} is damaged after row {first}: {error}") from error


def _unit(vectors: NDArray[np.float32], where: str) -> NDArray[np.float32]:
    """Vectors ``[b, width]`` scaled to length 1; a vector without a direction has no cosine."""
    import numpy as np

    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    if not (np.isfinite(norms).all() and norms.all()):
        bad = int(np.flatnonzero(~np.isfinite(norms[:, 0]) | (norms[:, 0] == 0))[0])
        raise ReadingError(f"{where}: vector {bad} (counted from 0) is zero or not finite")
    unit: NDArray[np.float32] = vectors / norms
    return unit
