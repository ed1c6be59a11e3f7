"""Rank correlation, of many columns at once."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from valuembed._utils.optional import require


def spearman(columns: NDArray[Any], wanted: NDArray[Any]) -> NDArray[np.float64]:
    """Spearman's rank correlation of many columns with one.

    Args:
        columns: ``[c, n]``.
        wanted: ``[n]``.

    Returns:
        ``[c]``, between -1 and 1; NaN for a column of equal numbers.
    """
    rank = require("scipy.stats", "eval").rankdata
    ranks, goal = rank(columns, axis=1), rank(wanted)
    ranks, goal = ranks - ranks.mean(axis=1, keepdims=True), goal - goal.mean()
    with np.errstate(invalid="ignore"):
        found: NDArray[np.float64] = ranks @ goal / np.sqrt((ranks**2).sum(axis=1) * (goal**2).sum())
    return found
