"""Checks of what a call is given, and what a verb says of its model, and of texts and vectors that spoil figures."""

from __future__ import annotations

import warnings
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch import Tensor

from valuembed._utils.text import counted, inflected
from valuembed._utils.version import versions
from valuembed.errors import InputError, ReadingError, TruncationWarning
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


def _as_tensor(vectors: Any) -> Tensor:
    """A tensor of vectors that came as a tensor, an array, a list of either, or a list of numbers."""
    if isinstance(vectors, Tensor):
        return vectors
    listed = isinstance(vectors, (list, tuple)) and len(vectors) > 0
    try:
        if listed and isinstance(vectors[0], Tensor):
            return torch.stack(list(vectors))
        has_dtype = isinstance(vectors, np.ndarray) or (listed and isinstance(vectors[0], np.ndarray))
        return torch.tensor(np.asarray(vectors, None if has_dtype else np.float32))
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(
            f"similarity() compares vectors of one width, and cannot read {vectors!r:.80} as such; encode texts first"
        ) from error


def processing_refused() -> InputError:
    """The error for a call that says how its texts are to be tokenized."""
    return InputError("processing_kwargs cannot be used: texts are cut by max_tokens, see load()")


def comparable(width: int, *given: Any) -> list[Tensor]:
    """Vectors as tensors of one floating dtype.

    Args:
        width: of the model's vectors.
        given: two arrays, tensors or lists of vectors.

    Raises:
        InputError: they are no vectors, or packed bits.
    """
    found = [_as_tensor(vectors) for vectors in given]
    for tensor in found:
        if tensor.dtype in (torch.int8, torch.uint8) and tensor.shape[-1] == -(-width // 8) < width:
            raise InputError(
                f"similarity() cannot compare packed bits: vectors of {tensor.shape[-1]} bytes hold {width} "
                "bits; count the bits that differ, or encode with precision='float32' or 'int8'"
            )
    floating = [tensor if tensor.is_floating_point() else tensor.float() for tensor in found]
    dtype = torch.promote_types(floating[0].dtype, floating[1].dtype)
    return [tensor.to(dtype) for tensor in floating]


def no_rows(result: Any, width: int, precision: str | None) -> Any:
    """What a call for no texts returns, with the width that rows would have had.

    Args:
        result: what sentence-transformers returns.
        width: of a row, in numbers.
        precision: that was asked for.
    """
    kinds = {"int8": np.int8, "uint8": np.uint8, "binary": np.int8, "ubinary": np.uint8}
    if precision in ("binary", "ubinary"):
        width = -(-width // 8)
    if isinstance(result, np.ndarray):
        return np.zeros((0, width), dtype=kinds.get(precision or "", np.float32))
    if isinstance(result, Tensor):
        return torch.zeros(0, width, dtype=torch.float32, device=result.device)
    return result
