"""Precisions by name: which are computed in, which weights may be kept in, and which a device is fast in."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from valuembed._utils.cpu_features import fast_halves
from valuembed._utils.devices import CPU, default_device
from valuembed.errors import CheckpointError, RecipeError

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

COMPUTED = {"float32": 4, "bfloat16": 2, "float16": 2, "float64": 8}
"""Precisions that are computed in, and the bytes of a number in each."""

HALVES = ("float16", "bfloat16")

QUANTIZED = {"int8": "Int8WeightOnlyConfig", "fp8": "Float8WeightOnlyConfig"}
"""Precisions of weights alone, and what torchao calls them. The matrices of the layers are kept so, and multiplied in
the checkpoint's own precision; embeddings and norms stay as they are."""


def dtype_name(dtype: str | torch.dtype | None) -> str | None:
    """The name of a precision that is computed in; None and ``"auto"`` leave it to the checkpoint.

    Raises:
        RecipeError: an unknown name, or a type that weights are not held in.
    """
    if dtype is None or dtype == "auto":
        return None
    name = str(dtype).removeprefix("torch.")
    if name not in COMPUTED:
        raise RecipeError(f"dtype={dtype!r} is unknown; legal: auto, {', '.join([*COMPUTED, *QUANTIZED])}")
    return name


def check_held(name: str, model: str) -> None:
    """Raise where a configuration names a precision that nothing is computed in.

    Args:
        name: of the precision.
        model: for the error.

    Raises:
        CheckpointError: it names those that can be asked for in its place.
    """
    if name not in COMPUTED:
        raise CheckpointError(
            f"model {model!r}: config.json names the dtype {name!r}, in which nothing is computed; name one of "
            f"{', '.join(COMPUTED)} as dtype"
        )


def usable_name(name: str, device: str | None) -> str:
    """A checkpoint's precision, or float32 (with one log line) where the device computes it slowly or not at all."""
    if name not in HALVES or has_fast(name, device):
        return name
    logger.warning(
        "the checkpoint is in %s, for which %s has no fast arithmetic: computing in float32 (dtype= decides otherwise)",
        name,
        device or "this CPU",
    )
    return "float32"


def has_fast(name: str, device: str | None) -> bool:
    """Whether a device computes a half precision natively; None is the device that a model is put on by itself."""
    kind = (device or default_device()).partition(":")[0]
    if kind == CPU:
        return name in fast_halves()
    if kind == "cuda":
        import torch

        return name == "float16" or torch.cuda.is_bf16_supported(including_emulation=False)
    return True
