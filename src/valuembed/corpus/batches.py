"""Rows gathered into calls of a model, and what comes back: a vector for each text, or the reason why there is none."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from valuembed._utils.text import counted, inflected
from valuembed._utils.text_warnings import text_warnings_held_back
from valuembed.data import InBatch, Rejected, Row
from valuembed.errors import NotFiniteError, ReadingError, TruncationWarning, UnknownTokenError
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
    """

    id: int | str
    row: int
    line: int
    text: str
    chunk: int
    start: int
    end: int
    kept: Any = ()


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
        return [CorpusText(row.id, index, line, row.text, 0, 0, len(row.text), row.kept)]
    chunks = enumerate(cutter.cut(row.text))
    return [
        CorpusText(row.id, index, line, chunk.text, number, chunk.start, chunk.end, row.kept)
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
    import numpy as np

    parts = list(_halving(model, texts, width))
    faults = {first + at: reason for first, part in parts for at, reason in part.faults.items()}
    if sum(reason == NOT_FINITE for reason in faults.values()) > MOST_FAULTS:
        raise _too_many(texts)
    return Encoded(
        np.concatenate([part.vectors for _, part in parts]),
        faults,
        sum(part.tokens for _, part in parts),
        sum(part.truncated for _, part in parts),
    )


def _halving(model: Encoder, texts: list[str], width: int) -> Iterator[tuple[int, Encoded]]:
    """Parts of a call that were embedded, each with the position of its first text."""
    import numpy as np

    waiting = [(0, len(texts))]
    failed: dict[int, str] = {}
    while waiting:
        first, last = waiting.pop()
        try:
            yield first, encode(model, texts[first:last], width)
        except NotFiniteError as error:
            if last - first > 1:
                middle = (first + last) // 2
                waiting += [(middle, last), (first, middle)]
                continue
            failed[first] = NOT_FINITE
            if len(failed) > MOST_FAULTS:
                raise _too_many(texts) from error
            yield first, Encoded(np.full((1, width), np.nan, np.float32), {0: NOT_FINITE}, 0, 0)


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
