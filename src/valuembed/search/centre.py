"""Centred search: the mean of what is searched is taken from query and rows, and what is left is compared.

Vectors of a decoder share a large common part, which says nothing of a text and decides most of a cosine. Whitened
search also scales down the directions in which rows differ most. Stored vectors stay as they are: both is done while
they are compared.

Letters: b rows, w numbers of a stored vector, r principal directions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

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

SHRINKAGE = 0.5
"""Of whitening; the best or as good on the development sets of three decoders (``benchmarks/beyond.md``)."""

MEAN = "mean"
"""Table of an index that holds it, in the row of this key, and the principal directions."""

SAMPLED = 50_000
"""Principal directions of an index are found on so many of its rows, spread evenly."""

WIDEST = 4096
"""Of wider vectors an index holds no principal directions, which take cubic time to find."""

_ROWS = "rows"
_DIRECTION = "direction"
_NO_VARIANCE = 1e-6

Centring = bool | Literal["whiten"] | None
"""What may be asked for: the mean taken away or not, ``"whiten"``, or None, which leaves it to :func:`by_default`."""


@dataclass(frozen=True)
class Centre:
    """What rows have in common: their mean and, for whitening, the directions in which they differ.

    Attributes:
        mean: ``[w]`` float32, of the vectors scaled to length 1.
        rows: how many they were.
        spread: ``[r, w]`` float32, principal directions, each times its standard deviation; None where rows are
            centred alone.
    """

    mean: NDArray[np.float32]
    rows: int
    spread: NDArray[np.float32] | None = None

    @classmethod
    def of(cls, batches: Iterable[NDArray[np.float32]], *, whiten: bool = False) -> Centre | None:
        """The centre of vectors ``[b, w]`` of length 1, in batches; None where there are none."""
        import numpy as np

        total: Any = 0.0
        squares: Any = 0.0
        rows = 0
        for vectors in batches:
            total = total + vectors.sum(axis=0, dtype=np.float64)
            squares = squares + vectors.T @ vectors if whiten else squares
            rows += len(vectors)
        if not rows:
            return None
        mean = total / rows
        spread = _spread(squares / rows - np.outer(mean, mean)) if whiten else None
        return cls(mean.astype(np.float32), rows, spread)

    @cached_property
    def _whitening(self) -> NDArray[np.float32] | None:
        """The symmetric matrix ``[w, w]`` that whitens, up to a factor; None where rows are centred alone.

        As :func:`valuembed.models.calibration.fit_whitening` it scales each direction by its shrunk variance.
        """
        import numpy as np

        if self.spread is None:
            return None
        variances = (self.spread**2).sum(axis=1, dtype=np.float64)
        directions = self.spread / np.sqrt(variances)[:, None]
        width = self.spread.shape[1]
        # Directions without variance keep what shrinkage gives them, which is taken as the unit.
        least = SHRINKAGE * variances.sum() / width
        factors = np.sqrt(least / ((1 - SHRINKAGE) * variances + least)) - 1
        matrix: NDArray[np.float32] = (np.eye(width) + (directions.T * factors) @ directions).astype(np.float32)
        return matrix

    def of_query(self, vector: NDArray[np.float32]) -> NDArray[np.float32]:
        """A query ``[w]`` of length 1 without the mean, whitened if rows are, of length 1 again."""
        changed: NDArray[np.float32] = self._changed(vector[None])[0]
        return changed

    def looked_up_by(self, query: NDArray[np.float32]) -> NDArray[np.float32]:
        """The direction ``[w]`` in which the rows lie that are nearest to what :meth:`of_query` gives."""
        return query if self._whitening is None else _unit((query @ self._whitening)[None])[0]

    def cosines(self, vectors: NDArray[np.float32], query: NDArray[np.float32]) -> NDArray[np.float32]:
        """Cosines ``[b]`` of vectors of length 1, changed alike, with what :meth:`of_query` gives."""
        scores: NDArray[np.float32] = self._changed(vectors) @ query
        return scores

    def _changed(self, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        left: NDArray[np.float32] = vectors - self.mean
        if self._whitening is not None:
            left = left @ self._whitening
        return _unit(left)


def _spread(covariance: Any) -> NDArray[np.float32]:
    """Principal directions ``[r, w]``, each times its standard deviation, of those in which there is any variance."""
    import numpy as np

    variances, directions = np.linalg.eigh(covariance)
    kept = variances > _NO_VARIANCE * max(variances[-1], 0.0)
    spread: NDArray[np.float32] = (directions[:, kept] * np.sqrt(variances[kept])).T.astype(np.float32)
    return spread


def _unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Vectors of length 1; one that is the mean itself has no direction, and is zero."""
    import numpy as np

    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    scaled: NDArray[np.float32] = vectors / np.maximum(norms, np.finfo(np.float32).tiny)
    return scaled


def check_centre(centre: Centring, vector_spec: VectorSpec, address: str) -> None:
    """Raise where a search cannot be centred.

    Raises:
        InputError: it is asked for in another way than :data:`Centring`, or of packed signs.
    """
    if not (centre is None or isinstance(centre, bool) or centre == "whiten"):
        raise InputError(f"centre={centre!r} is not known; give True, False, 'whiten', or None")
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
    centre: Centring, vector_spec: VectorSpec, rows: Callable[[], int], find: Callable[[], Centre | None]
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


def centre_of_files(files: EmbeddingFiles, *, whiten: bool = False) -> Centre | None:
    """The centre of all rows of files, from a look at each.

    Raises:
        InputError, ReadingError: as :func:`valuembed.search.nearest`.
    """
    vectors = (unit(batch.vectors, f"{file.path}, rows from {batch.first}") for file, batch in files.batches())
    return Centre.of(vectors, whiten=whiten)


def record_centre(address: str, rows: Table, vector_spec: VectorSpec, *, changed: bool) -> None:
    """Write down the centre of an index, from a look at all its rows; nothing of signs, or where there are no rows.

    Args:
        address: of the index.
        rows: of the index.
        vector_spec: of its vectors.
        changed: whether rows were written since the last time; without, it is done only where it was not.
    """
    import numpy as np
    import pyarrow as pa

    if vector_spec.precision == "binary":
        return
    known = recorded_centre(address)
    if not changed and known is not None and known.rows == rows.count() and _has_directions(address, known):
        return
    found = Centre.of(_vectors(rows, vector_spec))
    if found is None:
        return
    width = len(found.mean)
    keys, vectors = [MEAN], found.mean[None]
    if width <= WIDEST:
        # Of as many rows each time, whatever the rank, so that those of an earlier time are replaced.
        spread = np.zeros((width, width), np.float32)
        step = -(-found.rows // SAMPLED)
        sampled = Centre.of((some[::step] for some in _vectors(rows, vector_spec)), whiten=True)
        if sampled is not None and sampled.spread is not None:
            spread[: len(sampled.spread)] = sampled.spread
        keys += [f"{_DIRECTION} {at}" for at in range(width)]
        vectors = np.concatenate([vectors, spread])
    columns = {
        KEY: pa.array(keys),
        _ROWS: pa.array([found.rows] * len(keys), pa.int64()),
        EMBEDDING: pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), width),
    }
    written = pa.table(columns)
    is_new = not Table.is_at(address, MEAN)
    table = Table.create(address, MEAN, written.schema) if is_new else Table.open(address, MEAN)
    table.replace(written)
    table.tidy(fresh=is_new)


def _has_directions(address: str, known: Centre) -> bool:
    """Whether an index holds all that is written now; one of an earlier version holds the mean alone."""
    return len(known.mean) > WIDEST or Table.open(address, MEAN).count() > 1


def _vectors(rows: Table, vector_spec: VectorSpec) -> Iterator[NDArray[np.float32]]:
    """All vectors of an index, of length 1, some at a time."""
    for batch in rows.scan([EMBEDDING]):
        yield unit(stored_vectors(batch, vector_spec), "the index")


def recorded_centre(address: str, *, whiten: bool = False) -> Centre | None:
    """The centre that an index holds; None where it was made without one, or its making was interrupted.

    Args:
        address: of the index.
        whiten: with the principal directions, of which some indexes hold none.
    """
    import numpy as np

    if not Table.is_at(address, MEAN):
        return None
    mean: tuple[int, Any] | None = None
    spread: list[Any] = []
    for batch in Table.open(address, MEAN).scan([KEY, _ROWS, EMBEDDING], None if whiten else f"{KEY} = '{MEAN}'"):
        vectors = batch.column(EMBEDDING).flatten().to_numpy().reshape(batch.num_rows, -1)
        for key, rows, vector in zip(*(batch.column(at).to_pylist() for at in (0, 1)), vectors, strict=True):
            if key == MEAN:
                mean = rows, vector
            elif vector.any():
                spread.append(vector)
    if mean is None:
        return None
    return Centre(np.array(mean[1], np.float32), mean[0], np.array(spread, np.float32) if spread else None)


def stored_vectors(rows: Any, vector_spec: VectorSpec) -> NDArray[np.float32]:
    """The vectors ``[b, width]`` of rows of an index, an Arrow table or batch."""
    stored = rows.column(EMBEDDING)
    stored = stored.combine_chunks() if hasattr(stored, "combine_chunks") else stored
    numbers = stored.flatten().to_numpy(zero_copy_only=False).reshape(rows.num_rows, stored.type.list_size)
    found: NDArray[np.float32] = vector_spec.unpack(numbers)
    return found
