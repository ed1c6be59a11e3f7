"""Texts through a reader: vectors in the order of the texts, checked, and one report a call."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import astuple, dataclass
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from valuembed._utils.progress import step_done
from valuembed._utils.streams import stderr_is_open
from valuembed._utils.text import counted, inflected
from valuembed._utils.text_warnings import warn_of_texts
from valuembed._utils.torch_settings import default_device_and_precision
from valuembed.errors import BlankTextWarning, NotFiniteError, TruncationWarning
from valuembed.execution import AsyncGather
from valuembed.models.value_reader import ValueReader

_BETWEEN = ("sentence_transformers", "torch", "contextlib")


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


def callers_level() -> int:
    """The ``stacklevel`` at which a warning points to the user's line, past this library and those between."""
    frame, level = sys._getframe(1), 1
    while frame.f_back and frame.f_globals.get("__name__", "").split(".")[0] in ("valuembed", *_BETWEEN):
        frame, level = frame.f_back, level + 1
    return level


def check_finite(vectors: Tensor, reader: ValueReader) -> None:
    """Raise where a vector of ``[b, width]`` is NaN or infinite.

    Raises:
        NotFiniteError: with the rows.
    """
    bad = (~torch.isfinite(vectors).all(dim=1)).nonzero().flatten().tolist()
    if bad:
        rows = ", ".join(map(str, bad[:10])) + (", ..." if len(bad) > 10 else "")
        raise NotFiniteError(
            f"the embedding of {counted(len(bad), 'text')} is not finite (NaN or infinite): "
            f"{inflected(len(bad), 'row')} {rows}; the weights are damaged or {reader.model.dtype} overflows in this "
            "model, try dtype='float32'"
        )


@torch.inference_mode()
@default_device_and_precision()
def encode_texts(
    reader: ValueReader,
    texts: list[str],
    finish: Callable[[dict[str, Any]], Tensor],
    *,
    prompt: str | None = None,
    task: str | None = None,
    target: str | torch.device = "cpu",
    show_progress_bar: bool = False,
) -> tuple[Tensor, EncodeReport]:
    """Read texts in steps of a token budget.

    Args:
        reader: of the decoder.
        texts: b texts, known to be texts.
        finish: from a step's features to its vectors as they are returned, ``[s, width]``.
        prompt, task: as in :meth:`ValueReader.tokenize_texts`, the task being the role.
        target: where the vectors are to be.
        show_progress_bar: on stderr.

    Returns:
        Vectors ``[b, width]``, and what was done to get them.
    """
    arrivals = AsyncGather(len(texts), target)
    tokens = truncated = reused = 0
    characters = [len(text) for text in texts]
    left, started = sum(characters), time.perf_counter()
    with tqdm(total=len(texts), desc="Texts", unit="text", disable=not (show_progress_bar and stderr_is_open())) as bar:
        for batch in reader.batches(texts, prompt, task):
            # The reader moves what it feeds: planned on the CPU, nothing waits for the device.
            arrivals.put(batch.rows, finish(batch.features))
            tokens += batch.tokens
            reused += batch.reused
            truncated += batch.truncated
            took, done = time.perf_counter() - started, sum(characters[row] for row in batch.rows)
            left, started = left - done, time.perf_counter()
            reader.has_taken(took, took * left / max(1, done))
            bar.update(len(batch.rows))
            step_done(len(batch.rows))
    blank = sum(not text.strip() for text in texts)
    return arrivals.all(), EncodeReport(len(texts), tokens, truncated, blank, reused)


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
