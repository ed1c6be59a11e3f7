"""Centred search: the mean of what is searched is taken from query and rows, and what is left is compared.

Vectors of a decoder share a large common part, which says nothing of a text and decides most of a cosine. Stored
vectors stay as they are: the mean is taken away while they are compared.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from valuembed.errors import InputError
from valuembed.recipes import Recipe
from valuembed.search.results import unit
from valuembed.search.vector_store import Table
from valuembed.vectors import EMBEDDING, KEY, EmbeddingFiles, VectorSpec

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

LEAST_ROWS = 100
"""With fewer rows, the mean is too much theirs: each would lose a hundredth of itself and more (ours)."""

MEAN = "mean"
"""Table of an index that holds it."""

_ROWS = "rows"


@dataclass(frozen=True)
class Centre:
    """The mean of stored vectors.

    Attributes:
        mean: ``[width]`` float32, of the vectors scaled to length 1.
        rows: how many they were.
    """

    mean: NDArray[np.float32]
    rows: int

    @classmethod
    def of(cls, batches: Iterable[NDArray[np.float32]]) -> Centre | None:
        """The centre of vectors ``[b, width]`` of length 1, in batches; None where there are none."""
        import numpy as np

        total: Any = 0.0
        rows = 0
        for vectors in batches:
            total = total + vectors.sum(axis=0, dtype=np.float64)
            rows += len(vectors)
        return cls((total / rows).astype(np.float32), rows) if rows else None

    def of_query(self, vector: NDArray[np.float32]) -> NDArray[np.float32]:
        """A query ``[width]`` of length 1 without the mean, of length 1 again."""
        centred: NDArray[np.float32] = _unit(vector[None] - self.mean)[0]
        return centred

    def cosines(self, vectors: NDArray[np.float32], query: NDArray[np.float32]) -> NDArray[np.float32]:
        """Cosines ``[b]`` of vectors of length 1, without the mean, with what :meth:`of_query` gives."""
        scores: NDArray[np.float32] = _unit(vectors - self.mean) @ query
        return scores


def _unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Vectors of length 1; one that is the mean itself has no direction, and is zero."""
    import numpy as np

    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    scaled: NDArray[np.float32] = vectors / np.maximum(norms, np.finfo(np.float32).tiny)
    return scaled


def check_centre(centre: bool | None, vector_spec: VectorSpec, address: str) -> None:
    """Raise where a search cannot be centred.

    Raises:
        InputError: it is asked for, and the vectors are packed signs.
    """
    if centre and vector_spec.precision == "binary":
        raise InputError(f"{address} holds signs, from which no mean can be taken; leave centre out")


def by_default(vector_spec: VectorSpec) -> bool:
    """Whether vectors are centred unless it is said otherwise: those that a last token reads, and no others.

    By measuring (``benchmarks/beyond.md``): without the mean of the passages questions find more of them by AlignedWVA,
    and fewer where the means of a question's and of a passage's tokens are compared. Signs have no mean.
    """
    if vector_spec.precision == "binary":
        return False
    recipe = Recipe.from_dict(vector_spec.recipe)
    return all(part.weights == "last" for part in recipe.parts)


def wanted(
    centre: bool | None, vector_spec: VectorSpec, rows: Callable[[], int], find: Callable[[], Centre | None]
) -> Centre | None:
    """The centre that a search uses: where it is asked for; else :func:`by_default`, from :data:`LEAST_ROWS` rows on.

    Args:
        centre: what is asked for.
        vector_spec: of what is searched.
        rows: counts them; called where nothing is asked for.
        find: the centre of all rows; called where it is used.
    """
    if centre is None:
        centre = by_default(vector_spec) and rows() >= LEAST_ROWS
    return find() if centre else None


def centre_of_files(files: EmbeddingFiles) -> Centre | None:
    """The centre of all rows of files, from a look at each.

    Raises:
        InputError, ReadingError: as :func:`valuembed.search.nearest`.
    """
    return Centre.of(unit(batch.vectors, f"{file.path}, rows from {batch.first}") for file, batch in files.batches())


def record_centre(address: str, rows: Table, vector_spec: VectorSpec, *, changed: bool) -> None:
    """Write down the centre of an index, from a look at all its rows; nothing of signs, or where there are no rows.

    Args:
        address: of the index.
        rows: of the index.
        vector_spec: of its vectors.
        changed: whether rows were written since the last time; without, it is done only where it was not.
    """
    import pyarrow as pa

    if vector_spec.precision == "binary":
        return
    known = recorded_centre(address)
    if not changed and known is not None and known.rows == rows.count():
        return
    found = Centre.of(unit(stored_vectors(batch, vector_spec), "the index") for batch in rows.scan([EMBEDDING]))
    if found is None:
        return
    kind = pa.list_(pa.float32(), len(found.mean))
    schema = pa.schema([(KEY, pa.string()), (_ROWS, pa.int64()), (EMBEDDING, kind)])
    is_new = not Table.is_at(address, MEAN)
    table = Table.create(address, MEAN, schema) if is_new else Table.open(address, MEAN)
    row = {KEY: MEAN, _ROWS: found.rows, EMBEDDING: found.mean.tolist()}
    table.replace(pa.Table.from_pylist([row], schema=schema))
    table.tidy(fresh=is_new)


def recorded_centre(address: str) -> Centre | None:
    """The centre that an index holds; None where it was made without one, or its making was interrupted."""
    import numpy as np

    if not Table.is_at(address, MEAN):
        return None
    for batch in Table.open(address, MEAN).scan([_ROWS, EMBEDDING]):
        for row in batch.to_pylist():
            return Centre(np.array(row[EMBEDDING], np.float32), row[_ROWS])
    return None


def stored_vectors(rows: Any, vector_spec: VectorSpec) -> NDArray[np.float32]:
    """The vectors ``[b, width]`` of rows of an index, an Arrow table or batch."""
    stored = rows.column(EMBEDDING)
    stored = stored.combine_chunks() if hasattr(stored, "combine_chunks") else stored
    numbers = stored.flatten().to_numpy(zero_copy_only=False).reshape(rows.num_rows, stored.type.list_size)
    found: NDArray[np.float32] = vector_spec.unpack(numbers)
    return found
