"""Vectors as points of a plane, for a map to look at."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from valuembed.errors import InputError


def project_2d(vectors: ArrayLike) -> NDArray[np.float64]:
    """Lay vectors flat: their coordinates along the two directions in which they differ most (PCA).

    Distances on the map are never larger than those of the vectors. Of a direction's two ends, the one is positive in
    which the point stands that is farthest out, so equal vectors give equal maps.

    Args:
        vectors: ``[b, width]``.

    Returns:
        ``[b, 2]`` float64, centred; zeros along a direction in which nothing differs, as with one vector or two.

    Raises:
        InputError: not ``[b, width]``, or a vector is not finite.
    """
    points = np.asarray(vectors, np.float64)
    if points.ndim != 2:
        raise InputError(f"vectors of shape {points.shape} cannot be mapped: [b, width] is wanted")
    if bad := np.flatnonzero(~np.isfinite(points).all(axis=1)).tolist():
        raise InputError(f"vector {bad[0]} (counted from 0) is not finite, so it has no place on a map")
    flat = np.zeros((len(points), 2))
    if not points.size:
        return flat
    points = points - points.mean(axis=0)
    # The smaller of the two products has all there is to know.
    if len(points) <= points.shape[1]:
        sizes, directions = np.linalg.eigh(points @ points.T)
        found = directions[:, ::-1] * np.sqrt(np.clip(sizes[::-1], 0, None))
    else:
        found = points @ np.linalg.eigh(points.T @ points)[1][:, ::-1]
    found = found[:, :2]
    # What rounding leaves along a direction is no difference.
    found = np.where(np.abs(found).max(axis=0) > 1e-7 * np.abs(points).max(), found, 0.0)
    farthest = found[np.abs(found).argmax(axis=0), range(found.shape[1])]
    flat[:, : found.shape[1]] = np.where(farthest < 0, -found, found)
    return flat
