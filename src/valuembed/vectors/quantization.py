"""How the numbers of a stored vector are kept: whole, halved, as small integers, or as signs; shortened or not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from valuembed.errors import InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Precision:
    """One way to keep numbers.

    Attributes:
        stored: the type of what is stored, as Arrow and NumPy name it.
        bits: a number takes.
    """

    stored: str
    bits: int


PRECISIONS = {
    "float32": Precision("float32", 32),
    "float16": Precision("float16", 16),
    "int8": Precision("int8", 8),
    "binary": Precision("uint8", 1),
}
"""``int8`` scales each vector so that its largest number becomes 127 or -127, and the scale is not kept: a cosine does
not depend on it (ours). ``binary`` is a bit a number, 1 where it is above zero, packed eight to a byte from the highest
bit on, as ``ubinary`` of sentence-transformers."""


def check_precision(precision: str) -> str:
    """The name of a precision, or an :class:`InputError` that lists the legal ones."""
    if precision not in PRECISIONS:
        raise InputError(f"precision {precision!r} is unknown; legal: {', '.join(PRECISIONS)}")
    return precision


def stored_width(precision: str, width: int) -> int:
    """How many numbers of the stored type a vector of a width takes."""
    return -(-width * PRECISIONS[precision].bits // (8 * _bytes(precision)))


def _bytes(precision: str) -> int:
    return -(-PRECISIONS[precision].bits // 8)


def shorten(vectors: NDArray[Any], dim: int) -> NDArray[Any]:
    """The first numbers of each vector, scaled to length 1.

    Args:
        vectors: float32 ``[b, width]``.
        dim: how many numbers to keep.

    Returns:
        float32 ``[b, dim]``; not a number where nothing but zeros is left, which has no direction.
    """
    import numpy as np

    kept = vectors[:, :dim]
    with np.errstate(invalid="ignore"):
        shortened: NDArray[Any] = kept / np.linalg.norm(kept, axis=1, keepdims=True)
    return shortened


def pack(vectors: NDArray[Any], precision: str) -> NDArray[Any]:
    """Vectors as they are stored.

    Args:
        vectors: float32 ``[b, width]``, finite.
        precision: a name of :data:`PRECISIONS`.

    Returns:
        ``[b, stored_width]`` of the stored type; float16 is infinite where a number is too large for it.
    """
    import numpy as np

    if precision == "binary":
        return np.packbits(vectors > 0, axis=1)
    if precision == "int8":
        largest = np.abs(vectors).max(axis=1, keepdims=True, initial=0)
        scaled: NDArray[Any] = np.rint(vectors * (127 / np.where(largest > 0, largest, 1)))
        return scaled.astype(np.int8)
    with np.errstate(over="ignore"):
        return vectors.astype(PRECISIONS[precision].stored)


def unpack(stored: NDArray[Any], precision: str, width: int) -> NDArray[Any]:
    """Stored vectors as numbers to compute with. Their lengths mean nothing: they are for cosines.

    Args:
        stored: ``[b, stored_width]``, as :func:`pack` gives them.
        precision: a name of :data:`PRECISIONS`.
        width: of a vector.

    Returns:
        float32 ``[b, width]``; 1 and -1 for bits.
    """
    import numpy as np

    if precision == "binary":
        bits = np.unpackbits(stored, axis=1, count=width)
        return bits.astype(np.float32) * 2 - 1
    return stored.astype(np.float32)
