"""Rows gathered into calls of a model, and what comes back: a vector for each text, or the reason why there is none."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, groupby
from typing import TYPE_CHECKING, Any, cast

from valuembed._utils.text import counted, inflected
from valuembed._utils.text_warnings import text_warnings_held_back
from valuembed.data import InBatch, Rejected, Row
from valuembed.errors import InputError, NotFiniteError, ReadingError, TruncationWarning, UnknownTokenError
from valuembed.vectors import Encoder

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from valuembed.tokenization import Cutter

CALL_CHARACTERS = 32_000_000
CALL_BYTES = 512_000_000
"""A call ends here even when it has fewer texts than asked for, so that long texts, or bytes of columns that are kept
beside them, do not fill the memory."""

MOST_FAULTS = 16
"""Texts of a call that may have no finite vector; when there are more, the fault is not the texts'."""

NOT_FINITE = "its embedding is not finite (NaN or infinite)"
NOT_STORED = "has numbers that are too large for the precision, or nothing but zeros in the size that is kept"


@dataclass(frozen=True)
class CorpusText:
    """A text to embed.

    Attributes:
        id: of its row.
        row: position of its row in the file, from 0.
        line: number of its row as a person counts.
        text: the row's, or a chunk of it.
        chunk: which chunk, from 0.
        start, end: of the chunk in the row's text, in characters.
        kept: the row's values of further columns, see :class:`valuembed.data.Row`.
        document: the row's text, whole.
    """

    id: int | str
    row: int
    line: int
    text: str
    chunk: int
    start: int
    end: int
    kept: Any = ()
    document: str = ""


@dataclass
class EncodeBatch:
    """What is given to the model at once.

    Attributes:
        texts: of whole rows, in the file's order.
        aside: rows without a usable text, by their positions.
        rows: how many rows there are in both.
    """

    texts: list[CorpusText] = field(default_factory=list)
    aside: dict[int, Rejected] = field(default_factory=dict)
    rows: int = 0


@dataclass(frozen=True)
class Encoded:
    """What a model made of texts.

    Attributes:
        vectors: float32 ``[b, m]``; of no meaning for a text with a fault.
        faults: by position, why a text has no vector.
        tokens: that were computed.
        truncated: texts of which only the beginning was read.
    """

    vectors: NDArray[np.float32]
    faults: dict[int, str]
    tokens: int
    truncated: int


def batched(
    rows: Iterable[tuple[int, int, Row | Rejected]], size: int, cutter: Cutter | None = None
) -> Iterator[EncodeBatch]:
    """Gather rows into calls, so that none grows without end.

    Args:
        rows: as :meth:`valuembed.data.RowReader.take` gives them.
        size: texts, or rows set aside, of a call; the chunks of one row are never parted.
        cutter: cuts the texts into chunks.
    """
    call, characters, kept = EncodeBatch(), 0, 0
    for index, line, row in rows:
        call.rows += 1
        if isinstance(row, Row):
            call.texts += _texts(index, line, row, cutter)
            characters += len(row.text)
            kept += _size(row.kept)
        else:
            call.aside[index] = row
        if max(len(call.texts), len(call.aside)) >= size or characters >= CALL_CHARACTERS or kept >= CALL_BYTES:
            yield call
            call, characters, kept = EncodeBatch(), 0, 0
    if call.rows:
        yield call


def _size(kept: Any) -> int:
    """About how many bytes the values of a row take."""
    if isinstance(kept, InBatch):
        return kept.size
    return sum(len(value) for value in kept if isinstance(value, (str, list, dict)))


def _texts(index: int, line: int, row: Row, cutter: Cutter | None) -> list[CorpusText]:
    if cutter is None:
        return [CorpusText(row.id, index, line, row.text, 0, 0, len(row.text), row.kept, row.text)]
    chunks = enumerate(cutter.cut(row.text))
    return [
        CorpusText(row.id, index, line, chunk.text, number, chunk.start, chunk.end, row.kept, row.text)
        for number, chunk in chunks
    ]


def encode(model: Encoder, texts: list[str], width: int) -> Encoded:
    """Embed texts as documents, without a warning of its own for each call.

    Args:
        model: the model.
        texts: b texts, at least one.
        width: of a vector, as it has to be.

    Raises:
        NotFiniteError: the model itself says that a vector is not finite.
        ReadingError: the model returned something else.
        InputError: no text can be embedded, whichever it is.
    """
    import numpy as np

    try:
        # One warning for the job, at its end.
        with text_warnings_held_back():
            vectors = np.asarray(model.encode_document(texts, show_progress_bar=False), np.float32)
    except UnknownTokenError as error:
        if not error.reasons:
            raise
        return _without(error.reasons, model, texts, width)
    if vectors.shape != (len(texts), width):
        raise ReadingError(f"the model returned vectors {vectors.shape}, expected {(len(texts), width)}")
    faults = dict.fromkeys(np.flatnonzero(~np.isfinite(vectors).all(axis=1)).tolist(), NOT_FINITE)
    report = model.report
    return Encoded(vectors, faults, report.tokens if report else 0, report.truncated if report else 0)


def _without(reasons: Mapping[int, str], model: Encoder, texts: list[str], width: int) -> Encoded:
    """As :func:`encode`, for texts of which some cannot be embedded, and why."""
    import numpy as np

    vectors, faults = np.full((len(texts), width), np.nan, np.float32), dict(reasons)
    kept = [at for at in range(len(texts)) if at not in reasons]
    if not kept:
        return Encoded(vectors, faults, 0, 0)
    rest = encode(model, [texts[at] for at in kept], width)
    vectors[kept] = rest.vectors
    faults |= {kept[at]: reason for at, reason in rest.faults.items()}
    return Encoded(vectors, faults, rest.tokens, rest.truncated)


def encode_isolating_failures(model: Encoder, texts: list[str], width: int) -> Encoded:
    """As :func:`encode`; a text whose vector is not finite costs the others nothing: it is found by halving the call.

    Raises:
        NotFiniteError: too many texts have no finite vector, which speaks of the model.
        ReadingError: the model returned something else.
    """

    def read(first: int, last: int) -> Encoded:
        return encode(model, texts[first:last], width)

    return _isolated(texts, [1] * len(texts), read, width, NotFiniteError)


def encode_late(model: Encoder, texts: Sequence[CorpusText], width: int) -> Encoded:
    """As :func:`encode_isolating_failures`, of chunks that are read from one pass over their document.

    A document with a chunk that has no vector costs the others nothing, and has none at all.

    Args:
        model: the model.
        texts: chunks, those of a document one after the other.
        width: of a vector, as it has to be.
    """
    documents = [list(chunks) for _, chunks in groupby(texts, key=lambda text: text.row)]
    counts = list(map(len, documents))

    def read(first: int, last: int) -> Encoded:
        return _encode_documents(model, documents[first:last], width)

    return _isolated([chunks[0].document for chunks in documents], counts, read, width, NotFiniteError, InputError)


def _encode_documents(model: Encoder, documents: Sequence[Sequence[CorpusText]], width: int) -> Encoded:
    """The vectors of the chunks of documents; see :func:`encode`."""
    import numpy as np

    with text_warnings_held_back():
        # A cutter is made for models of this library alone, and those have parts.
        found = cast(Any, model).encode_parts(
            [chunks[0].document for chunks in documents],
            [[(chunk.start, chunk.end) for chunk in chunks] for chunks in documents],
            task="document",
            show_progress_bar=False,
        )
    vectors = np.concatenate([np.asarray(of_document.vectors, np.float32) for of_document in found])
    if vectors.shape != (sum(map(len, documents)), width):
        raise ReadingError(f"the model returned vectors {vectors.shape}, expected {(sum(map(len, documents)), width)}")
    return Encoded(vectors, {}, model.report.tokens if model.report else 0, 0)


def _isolated(
    texts: Sequence[str],
    counts: Sequence[int],
    read: Callable[[int, int], Encoded],
    width: int,
    *kinds: type[Exception],
) -> Encoded:
    """What is read of texts, each with so many vectors; one that fails in one of these ways is found by halving."""
    import numpy as np

    parts = list(_halving(texts, counts, read, width, kinds))
    starts = [0, *accumulate(counts)]
    faults = {starts[first] + at: reason for first, part in parts for at, reason in part.faults.items()}
    if sum(reason == NOT_FINITE for reason in faults.values()) > MOST_FAULTS * max(counts):
        raise _too_many(texts)
    return Encoded(
        np.concatenate([part.vectors for _, part in parts]),
        faults,
        sum(part.tokens for _, part in parts),
        sum(part.truncated for _, part in parts),
    )


def _halving(
    texts: Sequence[str],
    counts: Sequence[int],
    read: Callable[[int, int], Encoded],
    width: int,
    kinds: tuple[type[Exception], ...],
) -> Iterator[tuple[int, Encoded]]:
    """Parts of a call that were embedded, each with the position of its first text."""
    import numpy as np

    waiting = [(0, len(texts))]
    failed = 0
    while waiting:
        first, last = waiting.pop()
        try:
            yield first, read(first, last)
        except kinds as error:
            if last - first > 1:
                middle = (first + last) // 2
                waiting += [(middle, last), (first, middle)]
                continue
            failed += isinstance(error, NotFiniteError)
            if failed > MOST_FAULTS:
                raise _too_many(texts) from error
            reason = NOT_FINITE if isinstance(error, NotFiniteError) else _in_one_pass(error)
            missing = np.full((counts[first], width), np.nan, np.float32)
            yield first, Encoded(missing, dict.fromkeys(range(counts[first]), reason), 0, 0)


def _in_one_pass(error: Exception) -> str:
    """Why a document that was alone in its call has no vectors."""
    known = error.reasons.get(0) if isinstance(error, UnknownTokenError) else None
    return known or f"cannot be read in one pass: {str(error).removeprefix('text 0, ')}"


def _too_many(texts: Sequence[str]) -> NotFiniteError:
    return NotFiniteError(
        f"more than {MOST_FAULTS} of {len(texts):,} texts have no finite embedding: the weights are damaged or "
        "overflow in this precision, try --dtype float32"
    )


def warn_of_truncation(truncated: int, texts: int) -> None:
    """Warn whoever called the caller, once for all its calls of the model, where texts were cut."""
    if truncated:
        warnings.warn(
            f"{truncated} of {counted(texts, 'text')} "
            f"{inflected(truncated, 'was too long and lost its end', 'were too long and lost their ends')}",
            TruncationWarning,
            stacklevel=3,
        )
