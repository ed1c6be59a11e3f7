"""Weights of 8 bits, by torchao, where a precision asks for them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedModel, TorchAoConfig

from valuembed._utils.optional import require
from valuembed._utils.process_state import log_level
from valuembed.backbone.dtypes import QUANTIZED
from valuembed.backbone.loading import parse_dtype
from valuembed.backbone.model_kwargs import check_model_kwargs
from valuembed.errors import RecipeError


def split_dtype(
    dtype: str | torch.dtype | None, model_kwargs: dict[str, Any] | None
) -> tuple[torch.dtype | None, dict[str, Any]]:
    """What a precision means: that which is computed in, and arguments for ``from_pretrained``.

    Args:
        dtype: as in :func:`valuembed.load`.
        model_kwargs: to go with it.

    Raises:
        RecipeError: an unknown precision, or two ways to quantize.
        RecipeError, DeviceError, CheckpointError, UnsupportedModelError: arguments that mean nothing or cannot be used.
        MissingExtraError: torchao is not installed.
    """
    quantizes = isinstance(dtype, str) and dtype in QUANTIZED
    if quantizes and isinstance(model_kwargs, dict) and "quantization_config" in model_kwargs:
        raise RecipeError(f"dtype={dtype!r} and model_kwargs['quantization_config'] both quantize; give one of them")
    given = check_model_kwargs(model_kwargs)
    if isinstance(dtype, str) and quantizes:
        return None, {**given, "quantization_config": _config(dtype)}
    return parse_dtype(dtype), given


def compute_dtype_of(model: PreTrainedModel) -> str:
    """The precision that a decoder computes in, and that of its weights where it is another."""
    kinds = {type(weight.data).__name__ for weight in model.parameters()} - {"Tensor", "Parameter"}
    kept = sorted({"Int8Tensor": "int8", "Float8Tensor": "fp8"}.get(kind, kind) for kind in kinds)
    return compute_dtype_name(model.dtype, kept)


def compute_dtype_name(computed: torch.dtype | None, kept: Sequence[str] = ()) -> str:
    """What is computed in, and what the weights are kept in where that is something else, as it is recorded."""
    name = str(computed).removeprefix("torch.")
    return f"{name}, weights as {', '.join(kept)}" if kept else name


def _config(dtype: str) -> TorchAoConfig:
    # It tells at length which of its kernels for other machines it cannot load.
    with log_level("torchao", logging.ERROR):
        quantization = require("torchao.quantization", "quantize")
    return TorchAoConfig(getattr(quantization, QUANTIZED[dtype])())
