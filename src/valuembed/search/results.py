"""What a search returns, and how its query becomes a vector."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from valuembed.data import check_text
from valuembed.errors import InputError, ReadingError
from valuembed.vectors import Encoder, VectorSpec

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

RRF_CONSTANT = 60
"""How slowly a place in a ranking loses weight; the value of the paper, near which little changes."""


@dataclass(frozen=True)
class Hit:
    """One text found.

    Attributes:
        rank: 1 is the best.
        score: cosine similarity with the query, from -1 to 1.
        id: the row's id; its number in the file, from 0, where it has no id of its own.
        text: the row's text.
        file: the file that the text came from, where that is recorded.
        row: its row in that file, where that is recorded.
        chunk: which piece of a long text this is, where texts were cut into pieces.
        start: offset of the piece's first character in the text.
        end: offset behind its last character.
        fused: of a hybrid search, what decided the rank, see :func:`fuse`.
        source: in an index, the name of the source that the row belongs to.
        key: in an index, what the row is known by there, for :meth:`valuembed.search.Index.vector_of`.
        more: what the row's further columns hold.
    """

    rank: int
    score: float
    id: int | str
    text: str
    file: str | None = None
    row: int | None = None
    chunk: int | None = None
    start: int | None = None
    end: int | None = None
    fused: float | None = None
    source: str | None = None
    key: str | None = field(default=None, compare=False)
    more: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON, without what is not known; of other types than JSON's, their text."""
        known = {name: value for name, value in vars(self).items() if value is not None and name != "more"}
        plain = (str, int, float, bool, type(None))
        more = {name: value if isinstance(value, plain) else str(value) for name, value in self.more.items()}
        return {**known, **({"more": more} if more else {})}


def check_query(query: str, k: int) -> None:
    """Raise an :class:`InputError` where there is nothing to look for."""
    if k < 1:
        raise InputError(f"k={k} has to be at least 1")
    if reason := check_text(query) or (None if query.strip() else "blank"):
        raise InputError(f"the query {query!r:.80} is {reason}")


def check_make(model: Encoder, recorded: VectorSpec, where: str) -> None:
    """Raise an :class:`InputError` where a model's vectors cannot be compared with those that are stored."""
    try:
        made = VectorSpec.of(model, recorded.precision, recorded.dim)
    except InputError:
        # The model's vectors are shorter than what is kept of others: the message then says so by their widths.
        made = VectorSpec.of(model, recorded.precision)
    if differences := recorded.differences(made):
        raise InputError(
            f"{where} was made by {recorded}; the query would be made by {made}. Their vectors cannot be compared: "
            f"{'; '.join(differences)}"
        )


def embed_query(model: Encoder, query: str, vector_spec: VectorSpec) -> NDArray[np.float32]:
    """The query as a float32 vector ``[width]`` of length 1, as wide as those that are stored."""
    import numpy as np

    encoded = np.asarray(model.encode_query([query], show_progress_bar=False), np.float32)
    vector: NDArray[np.float32] = unit(encoded[:, : vector_spec.width], "the query")[0]
    return vector


def unit(vectors: NDArray[np.float32], where: str) -> NDArray[np.float32]:
    """Vectors ``[b, width]`` scaled to length 1; a vector without a direction has no cosine.

    Raises:
        ReadingError: one of them is zero or not finite.
    """
    import numpy as np

    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    if not (np.isfinite(norms).all() and norms.all()):
        bad = int(np.flatnonzero(~np.isfinite(norms[:, 0]) | (norms[:, 0] == 0))[0])
        raise ReadingError(f"{where}: vector {bad} (counted from 0) is zero or not finite")
    scaled: NDArray[np.float32] = vectors / norms
    return scaled


def fuse(*rankings: Sequence[str]) -> dict[str, float]:
    """Reciprocal rank fusion (Cormack, Clarke, Buettcher, SIGIR 2009): one score from several rankings.

    Args:
        rankings: keys, best first.

    Returns:
        For each key the sum of ``1 / (60 + place)`` over the rankings that have it; places count from 1.
    """
    fused: dict[str, float] = {}
    for ranking in rankings:
        for place, key in enumerate(ranking, start=1):
            fused[key] = fused.get(key, 0.0) + 1 / (RRF_CONSTANT + place)
    return fused
