"""What a verb says of the model behind its figures, and of texts and vectors that spoil them."""

from __future__ import annotations

import warnings
from dataclasses import asdict
from typing import Any

from valuembed._utils.text import counted, inflected
from valuembed._utils.version import versions
from valuembed.errors import ReadingError, TruncationWarning
from valuembed.execution import EncodeReport
from valuembed.models.value_reader import ValueReader


def described(reader: ValueReader) -> dict[str, Any]:
    """What gave figures, for their file: origin with its commit, precision, token limit, versions."""
    return {
        "origin": asdict(reader.origin),
        "dtype": str(reader.model.dtype).removeprefix("torch."),
        "max_tokens": reader.max_tokens,
        "versions": versions("torch"),
    }


def not_finite(what: str, reader: ValueReader) -> ReadingError:
    """The error for vectors that hold NaN or infinity."""
    return ReadingError(
        f"{what}: some vectors are not finite (NaN or infinite); the weights are damaged or {reader.model.dtype} "
        "overflows in this model, try dtype='float32'"
    )


def warn_truncated(report: EncodeReport, reader: ValueReader) -> None:
    """Warn where texts lost their ends."""
    if report.truncated:
        warnings.warn(
            f"{report.truncated} of {counted(report.texts, 'text')} {inflected(report.truncated, 'was', 'were')} cut "
            f"to fit max_tokens={reader.max_tokens} (template included)",
            TruncationWarning,
            stacklevel=3,
        )
