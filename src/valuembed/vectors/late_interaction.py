"""MaxSim: the score of two texts by the vectors of their tokens (late interaction, arXiv 2004.12832)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from valuembed._utils.text import counted
from valuembed.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

TOKENS_OF_QUERIES = 4096
"""Tokens of queries that are compared at a time."""

MOST_SCORES = 4_000_000
"""Scores of tokens that are in memory at a time."""


def maxsim(queries: Sequence[Any], documents: Sequence[Any], *, normalize: bool = True) -> NDArray[np.float32]:
    """Score each query against each document: the sum over the query's tokens of the best score among the document's.

    Args:
        queries: a texts, of each the vectors of its t tokens ``[t, width]``, as arrays or tensors: what
            ``encode(output_value="token_embeddings")`` gives.
        documents: b of them.
        normalize: bring each token's vector to length 1 first, so that scores of tokens are cosines.

    Returns:
        ``[a, b]`` float32; computed in float32.

    Raises:
        InputError: something that is no list of such vectors, or vectors of unequal width.
    """
    import numpy as np

    asked, held = _token_vectors(queries, "queries", normalize), _token_vectors(documents, "documents", normalize)
    _check_widths([*asked, *held])
    scores = np.empty((len(asked), len(held)), np.float32)
    for begin, end in _portions(list(map(len, asked)), TOKENS_OF_QUERIES):
        rows, starts = _joined(asked[begin:end])
        for first, last in _portions(list(map(len, held)), max(1, MOST_SCORES // len(rows))):
            others, places = _joined(held[first:last])
            best = np.maximum.reduceat(rows @ others.T, places, axis=1)
            scores[begin:end, first:last] = np.add.reduceat(best, starts, axis=0)
    return scores


def maxsim_pairwise(queries: Sequence[Any], documents: Sequence[Any], *, normalize: bool = True) -> NDArray[np.float32]:
    """As :func:`maxsim`, of each query with the document in its place: ``[b]``.

    Raises:
        InputError: as there, or there are not as many of both.
    """
    import numpy as np

    asked, held = _token_vectors(queries, "queries", normalize), _token_vectors(documents, "documents", normalize)
    if len(asked) != len(held):
        raise InputError(
            f"{counted(len(asked), 'query', 'queries')} for {counted(len(held), 'document')}; pairs need as many of "
            "both"
        )
    _check_widths([*asked, *held])
    pairs = zip(asked, held, strict=True)
    return np.array([(one @ other.T).max(axis=1).sum() for one, other in pairs], np.float32)


def _token_vectors(given: Sequence[Any], name: str, normalize: bool) -> list[NDArray[np.float32]]:
    import numpy as np

    if getattr(given, "ndim", None) == 2:
        raise InputError(f"{name} are one array of two dimensions; give a list with the vectors of each text's tokens")
    found = []
    for row, tokens in enumerate(given):
        # A tensor, on whatever device; torch itself is not needed.
        plain = tokens.detach().float().cpu().numpy() if hasattr(tokens, "detach") else tokens
        try:
            vectors = np.asarray(plain, np.float32)
        except (TypeError, ValueError):
            vectors = np.empty(0, np.float32)
        if vectors.ndim != 2 or not len(vectors):
            raise InputError(
                f"{name}: text {row} has token vectors of shape {vectors.shape}; give [tokens, width], at least one"
            )
        if normalize:
            lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
            vectors = vectors / np.maximum(lengths, np.finfo(np.float32).tiny)
        found.append(vectors)
    return found


def _check_widths(texts: Sequence[NDArray[np.float32]]) -> None:
    widths = sorted({tokens.shape[1] for tokens in texts})
    if len(widths) > 1:
        raise InputError(f"token vectors are {' and '.join(map(str, widths))} wide; those of one model have one width")


def _joined(texts: Sequence[NDArray[np.float32]]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The tokens of texts one after the other, and where those of each begin."""
    import numpy as np

    return np.concatenate(texts), np.cumsum([0, *map(len, texts[:-1])])


def _portions(lengths: Sequence[int], most: int) -> Iterator[tuple[int, int]]:
    """Runs of texts with so many tokens at most, or one text."""
    if not lengths:
        return
    first = tokens = 0
    for at, length in enumerate(lengths):
        if at > first and tokens + length > most:
            yield first, at
            first, tokens = at, 0
        tokens += length
    yield first, len(lengths)
