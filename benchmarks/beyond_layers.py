"""Criteria for layers that need no label: what unlabelled texts tell of each layer's vectors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float32]


def criteria(layers: Mapping[int, Matrix], other: Matrix) -> dict[str, dict[int, float]]:
    """How each layer does by each criterion; more is better.

    Args:
        layers: by layer, vectors ``[b, width]`` of length 1 of the same texts.
        other: vectors of another readout of these texts.
    """
    raw = {layer: _pairs(vectors, centred=False) for layer, vectors in layers.items()}
    ranks = {layer: _ranks(_pairs(vectors)) for layer, vectors in layers.items()}
    mean, of_other = np.mean(list(ranks.values()), axis=0), _ranks(_pairs(other))
    return {
        "last layer": {layer: float(layer) for layer in layers},
        "isotropy: low mean cosine": {layer: -float(found.mean()) for layer, found in raw.items()},
        "effective rank of the covariance": {layer: _effective_rank(found) for layer, found in layers.items()},
        "intrinsic dimension (TwoNN)": {layer: _two_neighbours(found) for layer, found in layers.items()},
        "agreement with the other layers": {layer: _correlation(found, mean) for layer, found in ranks.items()},
        "agreement with AlignedWVA": {layer: _correlation(found, of_other) for layer, found in ranks.items()},
        "narrow cosines": {layer: -float(_pairs(found).std()) for layer, found in layers.items()},
    }


def _pairs(vectors: Matrix, centred: bool = True) -> Matrix:
    """Cosines of all pairs of texts."""
    vectors = vectors - vectors.mean(axis=0) if centred else vectors
    vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    cosines: Matrix = (vectors @ vectors.T)[np.triu_indices(len(vectors), 1)]
    return cosines


def _ranks(values: NDArray[Any]) -> Matrix:
    return values.argsort().argsort().astype(np.float32)


def _correlation(one: Matrix, other: Matrix) -> float:
    return float(np.corrcoef(one, other)[0, 1])


def _effective_rank(vectors: Matrix) -> float:
    """The exponential of the entropy of the covariance's spectrum (Roy, Vetterli, EUSIPCO 2007)."""
    spectrum = np.linalg.svd(vectors - vectors.mean(axis=0), compute_uv=False) ** 2
    shares = spectrum[spectrum > 0] / spectrum.sum()
    return float(np.exp(-(shares * np.log(shares)).sum()))


def _two_neighbours(vectors: Matrix) -> float:
    """Intrinsic dimension by the two nearest neighbours (Facco et al., 2017), of nine tenths of the ratios."""
    distances = np.sqrt(np.clip(2 - 2 * vectors @ vectors.T, 0, None))
    np.fill_diagonal(distances, np.inf)
    first, second = np.sort(distances, axis=1)[:, :2].T
    ratios = np.sort(second / np.maximum(first, 1e-9))
    ratios = ratios[ratios > 1][: int(0.9 * len(ratios))]
    return float(len(ratios) / np.log(ratios).sum()) if len(ratios) else 0.0
