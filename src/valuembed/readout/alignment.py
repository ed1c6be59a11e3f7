"""The way of mean values to the residual stream: through W_O, and through the norm after the block."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from valuembed.backbone import AttentionBlock
from valuembed.readout import pooling


def project_values(model: nn.Module, block: AttentionBlock, mean: Tensor, dtype: torch.dtype) -> Tensor:
    """Project ``mean [b, g, d]`` by ``W_O @ expand(mean)`` with the projection's bias.

    Args:
        model: the decoder; its own module projects, so that adapters on it count.
        block: with a projection.
        mean: of the values, in float32.
        dtype: that the decoder computes in.

    Returns:
        ``[b, m]`` as the module gives it.
    """
    assert block.projection is not None
    projection = model.get_submodule(block.projection)
    expanded = pooling.expand_heads(mean, block.query_heads).flatten(1)
    return projection(expanded.to(dtype))  # type: ignore[no-any-return]


def align_projected(model: nn.Module, block: AttentionBlock, projected: Tensor, alignment: str) -> Tensor:
    """Align ``[b, m]`` of what left the projection: as it is, or through the norm after the block.

    The norm takes each token by itself, so that these rows come out of it as they do in the layer.

    Args:
        model: the decoder.
        block: the attention block.
        projected: its output, or what :func:`project_values` gives.
        alignment: as in a recipe, and not ``"none"``.

    Returns:
        ``[b, m]`` float32.
    """
    if alignment == "residual" and block.norm is not None:
        projected = model.get_submodule(block.norm)(projected)
    return projected.float()
