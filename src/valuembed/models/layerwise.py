"""What comparing layers has in common: which can be read, pairs in windows, rank correlation, what made a figure."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from valuembed._utils.optional import require
from valuembed._utils.progress import track
from valuembed._utils.text import counted, inflected
from valuembed._utils.torch_settings import default_device_and_precision
from valuembed._utils.version import __version__
from valuembed.backbone import DecoderSpec, prepare
from valuembed.backbone.checkpoints import Origin, find_origin, hub_options, locate, saved_config
from valuembed.errors import LayerError, ReadingError, TruncationWarning
from valuembed.models.encoding import EncodeReport
from valuembed.models.multi_readout import MultiReadout
from valuembed.models.recipe_choice import DEFAULT_METHOD, resolve_for
from valuembed.models.value_reader import ValueReader
from valuembed.recipes import LayerSpec, Recipe, TemplateSpec, named_layers, preset_for, resolve_layers


@dataclass(frozen=True)
class CheckpointView:
    """What can be read from a checkpoint, known before any weights are read.

    Attributes:
        decoder_spec: of the decoder as the checkpoint holds it.
        origin: of the decoder as it was made; a folder that was saved cut holds only its first layers.
        has_final_norm: whether the hidden states after the final norm can be read.
        recipe: what was asked for; its layers are as they were given.
    """

    decoder_spec: DecoderSpec
    origin: Origin
    has_final_norm: bool
    recipe: Recipe

    def legal(self, recipe: Recipe) -> list[int]:
        """The layers that a recipe can read by themselves."""
        if recipe.signal == "hidden":
            return list(range(self.decoder_spec.num_layers))
        through = recipe.aligned and recipe.weights == "mean"
        return [block.layer for block in self.decoder_spec.blocks if block.projection or not through]

    def resolve(self, recipe: Recipe, layers: LayerSpec, preset: str | None = None) -> tuple[int, ...]:
        """Absolute layers of the decoder as it was made, by any of their names, for averaging.

        Raises:
            LayerError: the checkpoint does not hold all of them, or they cannot be averaged.
        """
        origin = self.origin
        among = origin.value_layers if recipe.signal == "value" else range(origin.num_layers)
        found = resolve_layers(layers, among, origin.num_layers, preset=preset)
        if gone := [layer for layer in found if layer >= self.decoder_spec.num_layers]:
            raise LayerError(
                f"{named_layers(gone)} {inflected(len(gone), 'is', 'are')} not in this folder, which was saved without "
                "them"
            )
        self.decoder_spec.width(found, signal=recipe.signal, weights=recipe.weights, aligned=recipe.aligned)
        return found


def inspect_checkpoint(
    model: str | os.PathLike[str],
    method: str | Recipe | Mapping[str, Any] = DEFAULT_METHOD,
    *,
    template: TemplateSpec | Mapping[str, TemplateSpec] = "auto",
    cleaning: str | None = None,
    **options: Any,
) -> CheckpointView:
    """Find out what can be read from a checkpoint.

    Args:
        model, method, template, cleaning: as in :func:`valuembed.load`.
        options: as in :meth:`valuembed.models.MultiReadout.load`.
    """
    checkpoint = locate(model, **hub_options(options))
    saved = saved_config(checkpoint)
    recipe = resolve_for(checkpoint, saved, method, None, template, cleaning)
    # The layers do not matter here, and those of a recipe might not exist in this decoder.
    found = prepare(checkpoint, Recipe(signal="hidden", weights="mean", layers=[0]), saved)
    cut = saved is not None and not found.is_adapter and not Recipe.from_dict(saved["recipe"]).reads_final_norm
    return CheckpointView(
        found.decoder_spec,
        find_origin(found.base, preset_for(found.config), found.decoder_spec, saved),
        not cut,
        recipe,
    )


@torch.inference_mode()
@default_device_and_precision()
def read_tensors(
    readouts: MultiReadout, texts: Sequence[str], bar: Any = None
) -> tuple[dict[str, Tensor], EncodeReport]:
    """The raw vectors of every recipe, left on the device where the model runs.

    Args:
        readouts: what to read.
        texts: b texts, known to be texts.
        bar: a progress bar, which moves on by a text for each group of recipes.

    Returns:
        By name ``[b, width]`` float32, and what was done.
    """
    reader = readouts.reader.eval()
    found: dict[str, Tensor] = {}
    tokens = reused = truncated = 0
    for group in readouts.groups():
        plans = [readouts.plans[name] for name in group]
        for batch in reader.batches(texts, None, None, plans[0].recipe):
            for name, vectors in zip(group, reader.read(batch.features, plans), strict=True):
                if name not in found:
                    found[name] = vectors.new_empty(len(texts), vectors.shape[1])
                found[name][batch.rows] = vectors
            tokens += batch.tokens
            reused += batch.reused
            truncated += batch.truncated
            if bar is not None:
                bar.update(len(batch.rows))
    blank = sum(not text.strip() for text in texts)
    return found, EncodeReport(len(texts), tokens, truncated, blank, reused)


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


def read_pairs(
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
            yield window, *read_tensors(readouts, window.texts, bar)


def spearman(columns: NDArray[Any], wanted: NDArray[Any]) -> NDArray[np.float64]:
    """Spearman's rank correlation of many columns with one.

    Args:
        columns: ``[c, n]``.
        wanted: ``[n]``.

    Returns:
        ``[c]``, between -1 and 1; NaN for a column of equal numbers.
    """
    rank = require("scipy.stats", "eval").rankdata
    ranks, goal = rank(columns, axis=1), rank(wanted)
    ranks, goal = ranks - ranks.mean(axis=1, keepdims=True), goal - goal.mean()
    with np.errstate(invalid="ignore"):
        found: NDArray[np.float64] = ranks @ goal / np.sqrt((ranks**2).sum(axis=1) * (goal**2).sum())
    return found


def described(reader: ValueReader) -> dict[str, Any]:
    """What gave figures, for their file: origin with its commit, precision, token limit, versions."""
    return {
        "origin": asdict(reader.origin),
        "dtype": str(reader.model.dtype).removeprefix("torch."),
        "max_tokens": reader.max_tokens,
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    """Of this library and torch."""
    return {"valuembed": __version__, "torch": torch.__version__}


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
