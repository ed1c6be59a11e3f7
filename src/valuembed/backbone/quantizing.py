"""Weights of 8 bits where a precision asks for them: by torchao, or by our own layers where a CPU multiplies bytes."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedModel, TorchAoConfig

from valuembed._utils.cpu_features import fast_int8
from valuembed._utils.devices import CPU, default_device
from valuembed._utils.optional import require
from valuembed._utils.process_state import log_level
from valuembed.backbone.dtypes import QUANTIZED
from valuembed.backbone.loading import parse_dtype
from valuembed.backbone.model_kwargs import check_model_kwargs
from valuembed.errors import RecipeError


def split_dtype(
    dtype: str | torch.dtype | None, model_kwargs: dict[str, Any] | None, device: str | None = None
) -> tuple[torch.dtype | None, dict[str, Any]]:
    """What a precision means: that which is computed in, and arguments for ``from_pretrained``.

    Args:
        dtype: as in :func:`valuembed.load`.
        model_kwargs: to go with it.
        device: where the model will run; None is the device that a model is put on by itself.

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
        if computes_in_int8(dtype, given, device):
            return None, given
        return None, {**given, "quantization_config": _config(dtype)}
    return parse_dtype(dtype), given


def computes_in_int8(
    dtype: str | torch.dtype | None, model_kwargs: dict[str, Any] | None = None, device: str | None = None
) -> bool:
    """Whether a precision means that products are computed in int8: where it is asked for and the CPU is fast at it.

    Args:
        dtype, model_kwargs, device: as for :func:`split_dtype`.
    """
    if dtype != "int8" or (model_kwargs or {}).get("device_map") is not None:
        return False
    return (device or default_device()).partition(":")[0] == CPU and fast_int8()


def compute_dtype_asked(computed: torch.dtype | None, dtype: str | torch.dtype | None, device: str | None) -> str:
    """What :func:`compute_dtype_of` will say of a model that is loaded with a precision.

    Args:
        computed: the precision that it will compute in.
        dtype, device: as for :func:`split_dtype`.
    """
    if computes_in_int8(dtype, None, device):
        return compute_dtype_name(computed, products="int8")
    return compute_dtype_name(computed, [dtype] if isinstance(dtype, str) and dtype in QUANTIZED else [])


def compute_dtype_of(model: PreTrainedModel) -> str:
    """The precision that a decoder computes in, and that of its weights or products where it is another."""
    if has_int8_products(model):
        return compute_dtype_name(model.dtype, products="int8")
    kinds = {type(weight.data).__name__ for weight in model.parameters()} - {"Tensor", "Parameter"}
    kept = sorted({"Int8Tensor": "int8", "Float8Tensor": "fp8"}.get(kind, kind) for kind in kinds)
    return compute_dtype_name(model.dtype, kept)


def has_int8_products(model: PreTrainedModel) -> bool:
    """Whether a decoder computes products in int8."""
    return any(held.dtype == torch.int8 for held in model.buffers())


def compute_dtype_name(computed: torch.dtype | None, kept: Sequence[str] = (), products: str = "") -> str:
    """What is computed in, and what weights are kept or multiplied in where that is something else, as recorded."""
    name = str(computed).removeprefix("torch.")
    if products:
        return f"{name}, products in {products}"
    return f"{name}, weights as {', '.join(kept)}" if kept else name


def _config(dtype: str) -> TorchAoConfig:
    # It tells at length which of its kernels for other machines it cannot load.
    with log_level("torchao", logging.ERROR):
        quantization = require("torchao.quantization", "quantize")
    return TorchAoConfig(getattr(quantization, QUANTIZED[dtype])())
