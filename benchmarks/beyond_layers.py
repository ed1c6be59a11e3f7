"""Criteria for layers that need no label: what unlabelled texts tell of each layer's vectors."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float32]


DROPPED = 5
"""Of so many words one is left out."""


def without_words(texts: Sequence[str]) -> list[str]:
    """Each text without a fifth of its words, at least one, drawn with a fixed seed."""
    drawn = random.Random(0)
    made = []
    for text in texts:
        words = text.split()
        gone = set(drawn.sample(range(len(words)), max(1, len(words) // DROPPED)))
        made.append(" ".join(word for at, word in enumerate(words) if at not in gone))
    return made


def halves(texts: Sequence[str]) -> tuple[list[str], list[str]]:
    """The first and the second half of each text's words."""
    words = [text.split() for text in texts]
    return [" ".join(of_text[: len(of_text) // 2]) for of_text in words], [
        " ".join(of_text[len(of_text) // 2 :]) for of_text in words
    ]


def criteria(
    layers: Mapping[int, Matrix],
    other: Matrix,
    dropped: Mapping[int, Matrix],
    first: Mapping[int, Matrix],
    second: Mapping[int, Matrix],
) -> dict[str, dict[int, float]]:
    """How each layer does by each criterion; more is better.

    Args:
        layers: by layer, vectors ``[b, width]`` of length 1 of the same texts.
        other: vectors of another readout of these texts.
        dropped: by layer, vectors of the texts that :func:`without_words` gives.
        first: by layer, vectors of the first halves.
        second: by layer, vectors of the second ones.
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
        "stability under dropped words": {
            layer: _found_again(dropped[layer], found) for layer, found in layers.items()
        },
        "segment matching: halves of a text": {layer: _found_again(first[layer], second[layer]) for layer in layers},
    }


def _found_again(queries: Matrix, texts: Matrix) -> float:
    """The mean reciprocal rank of each query's own text among all, both sides without the mean."""
    one, two = (side - side.mean(axis=0) for side in (queries, texts))
    one, two = (side / np.maximum(np.linalg.norm(side, axis=1, keepdims=True), 1e-12) for side in (one, two))
    cosines = one @ two.T
    places = (cosines > np.diag(cosines)[:, None]).sum(axis=1)
    return float((1 / (1 + places)).mean())


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
