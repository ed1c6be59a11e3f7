"""A map of stored vectors: a place on a plane for each, and the areas that lie together.

A few thousand rows, the landmarks, are placed by t-SNE, which keeps near what is near; every other row lies among the
landmarks that it is most similar to. All of it is the same for the same vectors in the same order.
"""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SEED = 0

LANDMARKS = 2500
"""Rows that t-SNE places: its time grows faster than their number."""

DIRECTIONS = 50
"""Of the vectors, so many directions are kept in which they differ most."""

FEWEST_FOR_TSNE = 12
"""Fewer rows lie where the two directions put them in which they differ most."""

PERPLEXITY = 30
ITERATIONS = 500
NEIGHBOURS = 5

MOST_STRETCH = 1.5
MOST_AREAS = 24
ROWS_PER_AREA = 8
"""A map has an area for so many rows, as far as there may be more."""

Progress = Callable[[float], None]


class Plane:
    """Places of vectors on a plane, learned from landmarks.

    Args:
        landmarks: ``[b, width]`` float32 of length 1.
        progress: told how much of the work is done, from 0 to 1.
    """

    def __init__(self, landmarks: NDArray[np.float32], progress: Progress = lambda done: None) -> None:
        import numpy as np

        self._mean = landmarks.mean(axis=0)
        self._directions = _main_directions(landmarks - self._mean)
        self.landmarks = self.reduced(landmarks)
        self.places = _placed(self.landmarks, progress)
        self._gap = float(np.median(_nearest(self.places, self.places, 2)[0][:, 1])) if len(landmarks) > 1 else 0.0

    def reduced(self, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        """Vectors ``[b, width]`` in the directions in which they differ most, of length 1: ``[b, p]``, p at most 50."""
        import numpy as np

        found = (vectors - self._mean) @ self._directions.T
        norms = np.linalg.norm(found, axis=1, keepdims=True)
        scaled: NDArray[np.float32] = (found / np.maximum(norms, np.finfo(np.float32).tiny)).astype(np.float32)
        return scaled

    def place(self, reduced: NDArray[np.float32], seed: int = SEED) -> NDArray[np.float32]:
        """Places ``[b, 2]`` of rows that are no landmarks, each among those that it is most similar to.

        Args:
            reduced: ``[b, p]``, as :meth:`reduced` gives them.
            seed: of the small distance that keeps rows with the same landmarks apart.
        """
        import numpy as np

        count = min(NEIGHBOURS, len(self.places))
        distances, near = _nearest(reduced, self.landmarks, count)
        places = self.places[near]
        beyond = distances**2 - distances[:, :1] ** 2
        weights = np.exp(-3 * beyond / np.maximum(beyond[:, -1:], 1e-9))
        # Landmarks that are far from the nearest one on the plane would pull a row into the void between them.
        away = np.linalg.norm(places - places[:, :1], axis=2)
        weights = weights * np.exp(-((away / max(6 * self._gap, 1e-9)) ** 2))
        mean = (places * weights[:, :, None]).sum(axis=1) / weights.sum(axis=1)[:, None]
        apart = np.random.default_rng(seed).normal(scale=0.3 * self._gap, size=mean.shape)
        found: NDArray[np.float32] = (mean + apart).astype(np.float32)
        return found


def find_areas(places: NDArray[np.float32], landmarks: int = LANDMARKS) -> NDArray[np.uint8]:
    """The area of each row ``[b]``, numbered from 0, the largest first: rows that lie together (Ward's linkage).

    Args:
        places: ``[b, 2]``, those of the landmarks first.
        landmarks: so many rows are grouped, and every other row goes with the one next to it.
    """
    import numpy as np
    from sklearn.cluster import AgglomerativeClustering

    grouped, rows = places[:landmarks], len(places)
    # Rows at one place are one area.
    wanted = min(MOST_AREAS, rows // ROWS_PER_AREA, len(np.unique(grouped, axis=0)))
    if wanted < 2:
        return np.zeros(rows, np.uint8)
    found = AgglomerativeClustering(wanted, linkage="ward").fit_predict(grouped)
    if rows > len(grouped):
        found = np.concatenate([found, found[_nearest(places[len(grouped) :], grouped, 1)[1][:, 0]]])
    ranks = np.empty(wanted, np.uint8)
    ranks[np.argsort(-np.bincount(found, minlength=wanted), kind="stable")] = np.arange(wanted)
    ranked: NDArray[np.uint8] = ranks[found]
    return ranked


def to_square(places: NDArray[np.float32]) -> NDArray[np.float32]:
    """Places ``[b, 2]`` moved and scaled so that they fill -1 to 1 along the longer axis.

    The shorter one is drawn out by half at most: t-SNE's distances compare nearby alone, and a plane that is filled
    shows more.
    """
    import numpy as np

    if not len(places):
        return places
    low, high = places.min(axis=0), places.max(axis=0)
    half = np.maximum((high - low) / 2, 1e-12)
    scale = np.minimum(half, half.max()) * np.maximum(1, half.max() / half / MOST_STRETCH)
    filled: NDArray[np.float32] = ((places - (low + high) / 2) / scale).astype(np.float32)
    return np.clip(filled, -1, 1)


def middle_of(places: NDArray[np.float32]) -> NDArray[np.float32]:
    """The place ``[2]`` around which rows of an area crowd: of an area in several pieces, within the largest."""
    import numpy as np

    middle = np.median(places, axis=0)
    for _ in range(5):
        distances = np.linalg.norm(places - middle, axis=1)
        near = distances <= np.median(distances)
        middle = places[near].mean(axis=0)
    found: NDArray[np.float32] = middle.astype(np.float32)
    return found


def _main_directions(centred: NDArray[np.float32]) -> NDArray[np.float32]:
    """Up to 50 directions ``[p, width]`` in which centred vectors ``[b, width]`` differ most."""
    import numpy as np

    rows, width = centred.shape
    count = min(DIRECTIONS, rows, width)
    if rows <= width:
        _, found = np.linalg.eigh((centred @ centred.T).astype(np.float64))
        found = centred.T.astype(np.float64) @ found[:, ::-1][:, :count]
        norms = np.linalg.norm(found, axis=0)
        # What rounding leaves along a direction is no difference.
        kept = norms > 1e-6 * max(float(norms.max(initial=0)), 1e-12)
        directions = np.where(kept, found / np.maximum(norms, 1e-300), 0.0)
    else:
        directions = np.linalg.eigh((centred.T @ centred).astype(np.float64))[1][:, ::-1][:, :count]
    # Of a direction's two ends, the one is positive in which it has its largest number.
    ends = directions[np.abs(directions).argmax(axis=0), range(directions.shape[1])]
    found_directions: NDArray[np.float32] = np.where(ends < 0, -directions, directions).T.astype(np.float32)
    return found_directions


def _placed(points: NDArray[np.float32], progress: Progress) -> NDArray[np.float32]:
    """Places ``[b, 2]`` of points ``[b, p]``."""
    import numpy as np

    flat = np.zeros((len(points), 2), np.float32)
    flat[:, : min(2, points.shape[1])] = points[:, :2]
    if len(points) < FEWEST_FOR_TSNE or not np.ptp(points, axis=0).any():
        return flat
    from sklearn.manifold import TSNE

    # Places that begin close together, and none at the same one, where they would stay.
    begin = flat / max(float(flat[:, 0].std()), 1e-6) * 1e-4
    begin += np.random.default_rng(SEED).normal(scale=1e-6, size=flat.shape).astype(np.float32)
    method = TSNE(
        2,
        perplexity=min(PERPLEXITY, (len(points) - 1) / 3),
        init=begin,
        max_iter=ITERATIONS,
        random_state=SEED,
        verbose=2,
    )
    with contextlib.redirect_stdout(_Iterations(progress)):
        found: NDArray[np.float32] = method.fit_transform(points).astype(np.float32)
    return found


class _Iterations(io.TextIOBase):
    """Takes what t-SNE prints, and tells how far it is."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def write(self, text: str) -> int:
        if found := re.search(r"Iteration (\d+)", text):
            self._progress(min(1.0, int(found[1]) / ITERATIONS))
        return len(text)


def _nearest(points: NDArray[Any], others: NDArray[Any], count: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Distances ``[b, count]`` of points to the nearest of others, nearest first, and the numbers of these."""
    from sklearn.neighbors import NearestNeighbors

    found: tuple[NDArray[Any], NDArray[Any]] = (
        NearestNeighbors(n_neighbors=count, algorithm="brute").fit(others).kneighbors(points)
    )
    return found


def batches_of(count: int, size: int) -> Iterator[slice]:
    """Consecutive slices of at most so many, that cover count."""
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))
