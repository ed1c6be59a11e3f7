"""Checkpoints whose weights come quantized: what they are computed in, and one precision for what is not quantized."""

from __future__ import annotations

from typing import Any

import torch
from transformers import PretrainedConfig, PreTrainedModel

from valuembed.backbone.checkpoints import quantization_method
from valuembed.errors import RecipeError

_COMPUTED = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def ask_to_dequantize(config: PretrainedConfig) -> None:
    """Note in a configuration that its weights are to be turned back into plain ones, whatever the machine has."""
    settings: Any = config.quantization_config
    if isinstance(settings, dict):
        config.quantization_config = {**settings, "dequantize": True}
    else:
        settings.dequantize = True


def holds_quantized(model: PreTrainedModel) -> bool:
    """Whether a loaded decoder holds weights that are no plain numbers."""
    return any(
        parameter.dtype not in _COMPUTED or type(parameter.data) is not torch.Tensor for parameter in model.parameters()
    )


def give_one_dtype(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Give what is not quantized the precision that was asked for.

    transformers turns quantized matrices into that precision and leaves embeddings and norms in the file's, so that the
    two cannot be multiplied. What a file holds in another precision than its embeddings stays as it is.

    Args:
        model: loaded from quantized weights.
        dtype: to compute in.

    Raises:
        RecipeError: quantized weights are kept, and compute in another precision.
    """
    held = model.dtype
    if held == dtype:
        return
    if holds_quantized(model):
        method = quantization_method(model.config.quantization_config)
        raise RecipeError(
            f"dtype={str(dtype).removeprefix('torch.')!r} is not possible: the checkpoint's weights are quantized "
            f"({method}) and computed in {str(held).removeprefix('torch.')}; leave dtype out"
        )
    for module in model.modules():
        for name, tensor in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
            if tensor.dtype == held:
                getattr(module, name).data = tensor.data.to(dtype)
    model.config.dtype = dtype
