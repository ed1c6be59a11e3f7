"""Pairs of texts read a window at a time, each distinct text of a window once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor

from valuembed._utils.progress import track
from valuembed.execution import EncodeReport
from valuembed.models.multi_readout import MultiReadout


@dataclass(frozen=True)
class PairWindow:
    """Pairs of texts that are compared at one time.

    Attributes:
        rows: which of the pairs they are.
        texts: their texts, each once.
        first, second: of each pair, the positions of its two texts.
    """

    rows: list[int]
    texts: list[str]
    first: list[int]
    second: list[int]


def pair_windows(first: Sequence[str], second: Sequence[str], most: int) -> Iterator[PairWindow]:
    """Cut pairs into windows of about equally long texts, so that little padding is computed.

    Args:
        first, second: the two texts of each pair.
        most: distinct texts of a window; at least two are taken.
    """
    places: dict[str, int] = {}
    rows: list[int] = []

    def window() -> PairWindow:
        return PairWindow(rows, list(places), [places[first[i]] for i in rows], [places[second[i]] for i in rows])

    for row in sorted(range(len(first)), key=lambda row: -max(len(first[row]), len(second[row]))):
        new = {first[row], second[row]} - places.keys()
        if rows and len(places) + len(new) > most:
            yield window()
            places, rows = {}, []
        for text in (first[row], second[row]):
            places.setdefault(text, len(places))
        rows.append(row)
    if rows:
        yield window()


def read_pair_windows(
    readouts: MultiReadout, first: Sequence[str], second: Sequence[str], window_bytes: int, *, progress: bool
) -> Iterator[tuple[PairWindow, dict[str, Tensor], EncodeReport]]:
    """The vectors of pairs of texts, a window at a time; a text that stands in a window twice is computed once.

    Args:
        readouts: what to read.
        first, second: the two texts of each pair.
        window_bytes: size of the vectors of a window.
        progress: show a bar.

    Yields:
        The window, its texts' vectors by name ``[b, width]`` float32 on the model's device, and what was done.
    """
    most = window_bytes // (4 * sum(readouts.widths().values()))
    windows = list(pair_windows(first, second, most))
    total = len(readouts.groups()) * sum(len(window.texts) for window in windows)
    with track(progress, total=total, desc="Texts", unit="text") as bar:
        for window in windows:
            yield window, *readouts.tensors(window.texts, bar=bar)
