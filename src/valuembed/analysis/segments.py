"""Segment matching: long documents cut into consecutive segments, and the segment that follows found by its vector.

It asks of a vector whether it knows what comes next, and needs no labels: any long documents will do.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise, takewhile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from valuembed._utils.progress import track
from valuembed._utils.text import counted
from valuembed.data import BLANK, Rejected, Row, check_input, iter_texts, nothing_usable, read_rows
from valuembed.errors import InputError
from valuembed.tokenization import token_starts

TOKENS = 128
"""Tokens of a segment (ours)."""

SEGMENTS = 2000
"""Segments of a set (ours)."""

PER_DOCUMENT = 50
"""Segments taken from one document (ours): a single book would otherwise be the whole set."""

_BLOCK = 1 << 25


class Documents:
    """The texts of a file, one document a row, read as they are asked for.

    Args:
        path: a file as for :func:`valuembed.data.read_rows`.
        text_column: column, or JSON key, that holds the text; ``"text"`` when None.

    Attributes:
        read: documents given out so far.
        rejected: rows passed over so far, because they hold no usable text.

    Raises:
        InputError: as :func:`valuembed.data.read_rows`; or, once all is read, no row could be used.
    """

    def __init__(self, path: str | Path, text_column: str | None = None) -> None:
        self.path = check_input(path, text_column)
        self.text_column = text_column
        self.read = self.rejected = 0

    def __iter__(self) -> Iterator[str]:
        self.read = self.rejected = 0
        first: Rejected | None = None
        for row in read_rows(self.path, self.text_column):
            if isinstance(row, Row):
                self.read += 1
                yield row.text
            else:
                self.rejected += 1
                if first is None and row.reason not in BLANK:
                    first = row
        if not self.read:
            raise nothing_usable(self.path, self.rejected, first)


@dataclass(frozen=True)
class Segments:
    """Consecutive segments of documents, those of a document one after the other.

    Attributes:
        texts: n segments, slices of the documents as they stand.
        documents: ``[n]`` which document each is of, counted from 0 over the documents read.
        tokens: tokens of a segment in its document.
        read: documents read.
        too_short: those of them that were passed over because they have fewer than two segments.
    """

    texts: tuple[str, ...]
    documents: NDArray[np.int64]
    tokens: int
    read: int
    too_short: int

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def kept(self) -> int:
        """Documents that gave segments."""
        return len(np.unique(self.documents))

    def halves(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Indices of the segments of every other document, and of the rest: one half to choose on, one to score on.

        Raises:
            InputError: there is only one document, and no document may be in both.
        """
        if self.kept < 2:
            raise InputError("segments of one document cannot be halved by documents; give two documents or more")
        rank = np.unique(self.documents, return_inverse=True)[1]
        return np.flatnonzero(rank % 2 == 0), np.flatnonzero(rank % 2 == 1)


@dataclass(frozen=True)
class SegmentScore:
    """How well the segment that follows was found.

    Attributes:
        accuracy: share of queries whose next segment is the most similar of all candidates, 0 to 1.
        mrr: mean over the queries of 1 / rank of the next segment, 0 to 1.
        queries: segments that have a next one.
        candidates: for each query, all segments but itself.
    """

    accuracy: float
    mrr: float
    queries: int
    candidates: int


def cut(
    documents: Iterable[str],
    tokenizer: PreTrainedTokenizerBase,
    tokens: int = TOKENS,
    *,
    limit: int | None = None,
    per_document: int | None = PER_DOCUMENT,
    progress: bool = False,
) -> Segments:
    """Cut documents into consecutive segments of equally many tokens.

    A segment is a slice of the document, from the first character of its first token to that of the next segment's
    first, so nothing is decoded and nothing between two segments is lost. The shorter rest at a document's end is
    dropped, and so is everything from a blank segment on. Documents of fewer than two segments are passed over.
    Embedded as a text by itself a segment may have a token more or less, where its tokenizer merges differently.

    Args:
        documents: read in order, no further than needed.
        tokenizer: one that reports character offsets.
        tokens: of a segment.
        limit: of segments in all; the last document is shortened to it.
        per_document: of segments from the start of one document; None is all of them.
        progress: show a bar.

    Raises:
        InputError: no document has two segments, or a number that cannot be met.
    """
    for name, number, least in (("tokens", tokens, 1), ("limit", limit, 2), ("per_document", per_document, 2)):
        if number is not None and number < least:
            raise InputError(f"{name}={number} has to be at least {least}")
    texts: list[str] = []
    numbers: list[int] = []
    read = too_short = longest = 0
    with track(progress, total=limit, desc="Cutting documents", unit="segment") as bar:
        for number, document in enumerate(iter_texts(documents)):
            starts = token_starts(tokenizer, document)
            read, longest = read + 1, max(longest, len(starts))
            segments = _slices(document, starts, tokens)[:per_document]
            too_short += len(segments) < 2
            if limit is not None:
                segments = segments[: limit - len(texts)]
            if len(segments) >= 2:
                texts += segments
                numbers += [number] * len(segments)
                bar.update(len(segments))
            # A single segment more would have no neighbour.
            if limit is not None and len(texts) >= limit - 1:
                break
    if not texts:
        raise InputError(
            f"none of {counted(read, 'document')} has two segments of {counted(tokens, 'token')}: "
            f"{counted(2 * tokens, 'token')} are needed, the longest document has {longest}; give longer documents or "
            "ask for shorter segments"
        )
    return Segments(tuple(texts), np.array(numbers, np.int64), tokens, read, too_short)


def _slices(document: str, starts: Sequence[int], tokens: int) -> list[str]:
    """Whole segments of a document, up to the first blank one."""
    borders = [0, *starts[tokens::tokens]]
    if len(starts) % tokens == 0:
        borders.append(len(document))
    return list(takewhile(str.strip, (document[a:b] for a, b in pairwise(borders))))


def match(vectors: NDArray[np.float32], documents: Sequence[int] | NDArray[np.int64]) -> SegmentScore:
    """Find each segment's next one of the same document by cosine, among all other segments.

    The rank of the next segment is 1 + the number of other candidates that are at least as similar: a tie counts
    against it, so that vectors which are all alike find nothing.

    Args:
        vectors: ``[n, width]``, of any length; not changed.
        documents: ``[n]``, which document each segment is of; those of a document stand in order, one after the other.

    Raises:
        InputError: shapes that do not fit, or no segment that has a next one.
    """
    of = np.asarray(documents)
    if vectors.ndim != 2 or of.shape != vectors.shape[:1]:
        raise InputError(
            f"vectors of shape {vectors.shape} and documents of shape {of.shape}: [n, width] and [n] are wanted"
        )
    queries = np.flatnonzero(of[:-1] == of[1:])
    if not len(queries):
        raise InputError(f"none of {counted(len(of), 'segment')} is followed by another one of its document")
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit = np.asarray(vectors / np.where(lengths > 0, lengths, 1), np.float32)
    hits, reciprocal = 0, 0.0
    # Similarities to all candidates are held for so many queries at a time only.
    for rows in np.array_split(queries, -(-len(queries) * len(unit) // _BLOCK)):
        similar = unit[rows] @ unit.T
        each = np.arange(len(rows))
        wanted = similar[each, rows + 1]
        similar[each, rows] = -np.inf
        ranks = (similar >= wanted[:, None]).sum(axis=1)
        hits += int((ranks == 1).sum())
        reciprocal += float((1 / ranks).sum())
    count = len(queries)
    return SegmentScore(hits / count, reciprocal / count, count, len(of) - 1)
