"""What one call did, and what is wrong with its vectors, in words."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import astuple, dataclass

import torch
from torch import Tensor

from valuembed._utils.text import counted, inflected
from valuembed._utils.text_warnings import callers_level, warn_of_texts
from valuembed.errors import BlankTextWarning, NotFiniteError, TruncationWarning


@dataclass(frozen=True)
class EncodeReport:
    """What one ``encode`` call did.

    Attributes:
        texts: how many texts came in.
        tokens: tokens of the sequences that were fed, templates included.
        truncated: texts that lost tokens of their end.
        blank: texts without a visible character.
        reused: of the tokens, those of a template's constant beginning, which was computed once for all texts.
    """

    texts: int
    tokens: int
    truncated: int
    blank: int
    reused: int = 0

    @classmethod
    def total(cls, reports: Iterable[EncodeReport]) -> EncodeReport:
        """One report for the parts of a call."""
        return cls(*(sum(counts) for counts in zip(*(astuple(report) for report in reports), strict=True)))


def not_finite_error(vectors: Tensor, dtype: torch.dtype) -> NotFiniteError:
    """The error for vectors ``[b, width]`` some of which are NaN or infinite, with their rows.

    Args:
        vectors: all of a call.
        dtype: that the decoder computes in.
    """
    bad = (~torch.isfinite(vectors).all(dim=1)).nonzero().flatten().tolist()
    rows = ", ".join(map(str, bad[:10])) + (", ..." if len(bad) > 10 else "")
    return NotFiniteError(
        f"the embedding of {counted(len(bad), 'text')} is not finite (NaN or infinite): "
        f"{inflected(len(bad), 'row')} {rows}; the weights are damaged or {dtype} overflows in this "
        "model, try dtype='float32'"
    )


def warn_of(report: EncodeReport, max_tokens: int | None) -> None:
    """Warn of texts that were cut or are blank, once a call."""
    if report.truncated:
        warn_of_texts(
            f"{report.truncated} of {counted(report.texts, 'text')} {inflected(report.truncated, 'was', 'were')} "
            f"cut to fit max_tokens={max_tokens} (prompt and template included); model.report counts "
            "them",
            TruncationWarning,
            callers_level(),
        )
    if report.blank:
        warn_of_texts(
            f"{report.blank} of {counted(report.texts, 'text')} "
            f"{inflected(report.blank, 'is blank and was', 'are blank and were')} embedded as the template around "
            "nothing",
            BlankTextWarning,
            callers_level(),
        )
