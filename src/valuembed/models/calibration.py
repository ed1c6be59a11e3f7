"""Calibration: a fixed linear map after the reader, fitted on unlabelled texts or taken from the language model head.

The vectors of a decoder share a large common part and differ most in a few directions, so that all cosines are high
and a few directions decide them. Taking the mean away, and scaling the directions to equal variance, mends that.

Letters: b texts, w width of the reader's vectors, m model width (the residual stream).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike
from safetensors import SafetensorError
from safetensors.torch import load_file
from sentence_transformers.base.modules import Module
from torch import Tensor, nn
from torch.nn.functional import normalize

from valuembed.backbone.checkpoints import CALIBRATION_FILE, CalibrationRecord
from valuembed.errors import CheckpointError, InputError, RecipeError
from valuembed.readout import centre
from valuembed.recipes import Recipe

FILTER = "filter"
"""The kind that needs no texts."""

DEFAULT_SHRINKAGE = 0.5
"""Ours: of 0.01 to 0.9 the best or as good for six readouts of three pretrained decoders (``benchmarks/beyond.md``)."""

_WEIGHTS_FILE = "model.safetensors"
_ROWS_AT_ONCE = 8192
_NO_VARIANCE, _NO_DIFFERENCE = 1e-12, 1e-6


class Projection(NamedTuple):
    """What a fit finds, float64: ``y = (x - mean) @ matrix``, mean ``[w]`` and matrix ``[w, size]``."""

    mean: Tensor
    matrix: Tensor

    def cut(self, size: int, *, middle: bool = False) -> Projection:
        """To the first columns of the matrix, or the middle ones."""
        first = (self.matrix.shape[1] - size) // 2 if middle else 0
        return Projection(self.mean, self.matrix[:, first : first + size])


def fit_centre(vectors: ArrayLike | Tensor, size: int | None = None) -> Projection:
    """Take the mean away.

    Args:
        vectors: ``[b, w]``.
        size: the first coordinates to keep. They are no better than others; it serves comparison.

    Raises:
        InputError: fewer than 2 vectors, vectors that are all the same, or numbers that are not finite.
        RecipeError: a size that is not from 1 to w.
    """
    x = _checked(vectors)
    return Projection(x.mean(dim=0), torch.eye(x.shape[1]).to(x)).cut(_checked_size(size, x.shape[1]))


def fit_pca(vectors: ArrayLike | Tensor, size: int | None = None) -> Projection:
    """Take the mean away, turn to the principal directions, keep those of the largest variance.

    At full size only the mean is gone: a turn changes no cosine.

    Args, raises: as in :func:`fit_centre`.
    """
    x = _checked(vectors)
    mean, covariance = _moments(x)
    return Projection(mean, _spectrum(covariance)[1]).cut(_checked_size(size, x.shape[1]))


def fit_whitening(
    vectors: ArrayLike | Tensor, shrinkage: float = DEFAULT_SHRINKAGE, size: int | None = None
) -> Projection:
    """Take the mean away, turn to the principal directions, scale each to variance 1.

    Directions are those of ``C' = (1 - s) C + s (trace(C) / w) I``, C the covariance with 1/b. C' has C's directions,
    and its least variance is s times the mean one: a direction in which the texts hardly vary is not blown up.

    Args:
        vectors: ``[b, w]``.
        shrinkage: s, from 0 to 1. At 1 nothing is scaled, and what is left is :func:`fit_pca`.
        size: directions to keep, by variance; None is all.

    Raises:
        InputError: as in :func:`fit_centre`; without shrinkage, vectors that vary in fewer directions than size too.
        RecipeError: a size that is not from 1 to w, or a shrinkage that is not from 0 to 1.
    """
    x = _checked(vectors)
    b, w = x.shape
    size = _checked_size(size, w)
    shrinkage = _checked_shrinkage(shrinkage)
    mean, covariance = _moments(x)
    variances, directions = _spectrum(covariance)
    rank = int((variances > _NO_VARIANCE * variances[0]).sum())
    if shrinkage == 0 and rank < size:
        raise InputError(
            f"{b} texts vary in {rank} of {w} directions, and whitening without shrinkage scales {size}; give more "
            f"texts, a shrinkage above 0 such as {DEFAULT_SHRINKAGE}, or a size of at most {rank}"
        )
    shrunk = (1 - shrinkage) * variances.clamp(min=0) + shrinkage * variances.sum() / w
    return Projection(mean, directions / shrunk.sqrt()).cut(size)


def fit_filter(lm_head: Tensor, size: int | None = None) -> Projection:
    """Keep the middle of the language model head's singular directions; nothing is fitted, and there is no mean.

    ``W_U = U s V^T``; an equal share of both ends of the spectrum is dropped (where their number is odd, one more of
    the small end: ours), and a vector is written in the directions of V that are left. At full size no cosine changes.

    Args:
        lm_head: ``W_U`` ``[vocabulary, m]``, any floating dtype. V comes from ``W_U^T W_U``, summed in float64.
        size: directions to keep; None is all m.

    Raises:
        InputError: numbers that are not finite.
        RecipeError: a size that is not from 1 to m.

    Source: EmbedFilter, arXiv 2606.07502.
    """
    m = lm_head.shape[1]
    size = _checked_size(size, m)
    gram = torch.zeros(m, m, dtype=torch.float64)
    for start in range(0, len(lm_head), _ROWS_AT_ONCE):
        rows = lm_head[start : start + _ROWS_AT_ONCE].to("cpu", torch.float64)
        gram += rows.T @ rows
    if not torch.isfinite(gram).all():
        raise InputError("the language model head holds numbers that are not finite; its weights are damaged")
    return Projection(torch.zeros(m, dtype=torch.float64), _spectrum(gram)[1]).cut(size, middle=True)


_FITS: dict[str, Callable[[Tensor, float, int | None], Projection]] = {
    "centre": lambda x, shrinkage, size: fit_centre(x, size),
    "whiten": fit_whitening,
    "pca": lambda x, shrinkage, size: fit_pca(x, size),
}

CALIBRATIONS: tuple[str, ...] = (*_FITS, FILTER)
"""What a calibration can be."""


def fit(
    kind: str, vectors: ArrayLike | Tensor, *, size: int | None = None, shrinkage: float = DEFAULT_SHRINKAGE
) -> Projection:
    """Fit a kind that needs texts, on vectors scaled to unit length as :class:`Calibration` does; errors as its own."""
    if kind not in _FITS:
        raise RecipeError(f"kind={kind!r} is not fitted on texts; legal: {', '.join(_FITS)}")
    return _FITS[kind](normalize(_checked(vectors), dim=-1), shrinkage, size)


def project(vectors: Tensor, mean: Tensor, matrix: Tensor) -> Tensor:
    """``(x / |x| - mean) @ matrix`` for vectors ``[b, w]``, in float32 also under autocast."""
    with torch.autocast(vectors.device.type, enabled=False):
        return centre(vectors, mean) @ matrix


def check_choices(kind: str, recipe: Recipe, width: int, size: int | None, shrinkage: float) -> None:
    """What can be known to be wrong before a text is embedded; width is that of the recipe's vectors.

    Raises:
        RecipeError: an unknown kind, a size or shrinkage out of range, or the filter for vectors of another space.
    """
    if kind not in CALIBRATIONS:
        raise RecipeError(f"kind={kind!r} is unknown; legal: {', '.join(CALIBRATIONS)}")
    if kind == FILTER and not is_of_the_stream(recipe):
        gives = "joins vectors of several spaces" if recipe.joined else "gives raw values"
        raise RecipeError(
            f"kind={kind!r} keeps directions of the language model head, which reads the residual stream, and method "
            f"{recipe.method!r} {gives}; take an aligned or a hidden one, or kind='whiten'"
        )
    _checked_size(size, width)
    _checked_shrinkage(shrinkage)


def is_of_the_stream(recipe: Recipe) -> bool:
    """Whether its vectors are of the residual stream, m wide; raw values can have that width too, by chance."""
    return not recipe.joined and (recipe.aligned or recipe.signal == "hidden")


class Calibration(Module):
    """A sentence-transformers module: ``y = (x / |x| - mean) @ matrix``, between the reader and ``Normalize``.

    The mean goes before the product, not into a bias: it may be a hundred times the rest, which a difference of large
    products would lose. Vectors are first scaled to unit length (ours), so that no few long ones decide the mean and
    the directions: one token can outweigh a whole text. Always float32, whatever the decoder is in.

    Args:
        projection: mean ``[w]`` and matrix ``[w, size]``.
        record: what it is.
    """

    # What saved models record as the place of this class.
    __module__ = "valuembed.modules"
    config_file_name = CALIBRATION_FILE
    mean: Tensor
    matrix: Tensor

    def __init__(self, projection: Projection, record: CalibrationRecord) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.record = record
        # Buffers, for training the decoder under a calibration must not undo it.
        self.register_buffer("mean", projection.mean.float().contiguous())
        self.register_buffer("matrix", projection.matrix.float().contiguous())

    def forward(self, features: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        """Replace ``sentence_embedding``."""
        features["sentence_embedding"] = project(features["sentence_embedding"], self.mean, self.matrix)
        return features

    def get_embedding_dimension(self) -> int:
        """Width of the vectors that come out."""
        return self.record.size

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Calibration:
        """Follow a model to its device, but not to its precision: sentence-transformers casts later modules."""
        for name, buffer in self._buffers.items():
            assert buffer is not None
            self._buffers[name] = buffer.to(fn(buffer).device)
        return self

    def get_config_dict(self) -> dict[str, Any]:
        """What is recorded beside the numbers."""
        return self.record.to_dict()

    def save(self, output_path: str, *args: Any, safe_serialization: bool = True, **kwargs: Any) -> None:
        """Write the record and the numbers."""
        if not safe_serialization:
            raise RecipeError("safe_serialization=False would write pickled weights; only safetensors are written")
        self.save_config(output_path)
        self.save_torch_weights(output_path)

    @classmethod
    def load(  # type: ignore[override]
        cls,
        model_name_or_path: str,
        subfolder: str = "",
        token: bool | str | None = None,
        cache_folder: str | None = None,
        revision: str | None = None,
        local_files_only: bool = False,
        **kwargs: Any,
    ) -> Calibration:
        """Load what :meth:`save` wrote; called by sentence-transformers.

        Raises:
            CheckpointError: files are missing or damaged, or do not fit each other.
        """
        hub: dict[str, Any] = {"subfolder": subfolder, "token": token, "cache_folder": cache_folder}
        hub |= {"revision": revision, "local_files_only": local_files_only}
        where = f"model {model_name_or_path!r}: its calibration {subfolder}"
        path = cls.load_file_path(model_name_or_path, filename=_WEIGHTS_FILE, **hub)
        if path is None:
            raise CheckpointError(f"{where} has no {_WEIGHTS_FILE}")
        try:
            record = CalibrationRecord.from_dict(cls.load_config(model_name_or_path, **hub))
            held = load_file(path)
        except (ValueError, TypeError, KeyError, OSError, SafetensorError) as error:
            raise CheckpointError(f"{where} is damaged: {error}") from error
        shapes = {name: list(tensor.shape) for name, tensor in sorted(held.items())}
        expected = {"matrix": [record.width, record.size], "mean": [record.width]}
        if shapes != expected:
            raise CheckpointError(f"{where} is damaged: it holds {shapes}, its record says {expected}")
        return cls(Projection(**held), record)

    def __repr__(self) -> str:
        return f"Calibration({self.record})"


def find_calibration(modules: Iterable[nn.Module]) -> Calibration | None:
    """The calibration among a model's modules."""
    return next((module for module in modules if isinstance(module, Calibration)), None)


def _checked(vectors: ArrayLike | Tensor) -> Tensor:
    x = vectors.to("cpu", torch.float64) if isinstance(vectors, Tensor) else torch.tensor(np.array(vectors, float))
    if x.dim() != 2 or len(x) < 2:
        raise InputError(f"a calibration is fitted on 2 vectors or more, [b, w]; got the shape {tuple(x.shape)}")
    bad = int((~torch.isfinite(x).all(dim=1)).sum())
    if bad:
        raise InputError(f"NaN or infinite numbers in {bad} of {len(x)} vectors; try dtype='float32'")
    if (x - x[0]).abs().max() <= _NO_DIFFERENCE * x.abs().max():
        raise InputError(f"all {len(x)} vectors are the same, and nothing can be fitted on them; give other texts")
    return x


def _checked_size(size: int | None, w: int) -> int:
    if size is None:
        return w
    if isinstance(size, bool) or not isinstance(size, int) or not 1 <= size <= w:
        raise RecipeError(f"size={size!r} has to be a whole number from 1 to {w}, the width of the vectors")
    return size


def _checked_shrinkage(shrinkage: float) -> float:
    if isinstance(shrinkage, bool) or not isinstance(shrinkage, (int, float)) or not 0 <= shrinkage <= 1:
        raise RecipeError(f"shrinkage={shrinkage!r} has to be a number from 0 to 1, such as {DEFAULT_SHRINKAGE}")
    return shrinkage


def _moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean ``[w]`` and covariance ``[w, w]`` with 1/b, of ``[b, w]``."""
    mean = x.mean(dim=0)
    x = x - mean
    return mean, x.T @ x / len(x)


def _spectrum(symmetric: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues from the largest, and their directions as columns, the largest entry of each positive."""
    values, directions = torch.linalg.eigh(symmetric)
    values, directions = values.flip(0), directions.flip(1)
    largest = directions.gather(0, directions.abs().argmax(dim=0, keepdim=True))
    return values, directions * largest.sign()
