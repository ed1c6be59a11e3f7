"""The packed layout: attention within the texts of one flat row, and which decoders it is right for.

The fast kernels run on CUDA in half precision. Elsewhere torch's own kernel is called for groups of texts.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from importlib.util import find_spec
from inspect import signature
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer, LinearAttentionCacheLayerMixin

from valuembed.backbone import DecoderSpec
from valuembed.readout.grouped_attention import grouped_attention
from valuembed.readout.layout import PackedLayout

WIDEST_HEAD = 256
"""Flash attention's kernels go no further."""

NEEDS = {"s_aux": "sinks", "softcap": "a softcap"}

_PACKABLE = (DynamicLayer, DynamicSlidingWindowLayer)

Kernel = Callable[[Tensor, Tensor, Tensor, PackedLayout, float | None], Tensor]
"""Queries ``[t, h, d]``, keys and values ``[k, g, d]``, layout, scale; gives ``[t, h, d]``."""


def attend(query: Tensor, key: Tensor, value: Tensor, layout: PackedLayout, scaling: float | None) -> Tensor:
    """Causal attention of each text to its beginning and its own tokens.

    Args:
        query: ``[1, h, t, d]``.
        key, value: ``[1, g, t, d]``; where texts share a beginning, its tokens are the first of the row.
        layout: where the texts are.
        scaling: of the scores; None is ``d ** -0.5``.

    Returns:
        ``[1, t, h, d]``.
    """
    queries, keys, values = (states[0].transpose(0, 1) for states in (query, key, value))
    kernel = fast_kernel(query.device.type, query.dtype)
    if kernel is None:
        return grouped_attention(queries, keys, values, layout.groups, scaling)[None]
    if (order := layout.key_order) is not None:
        keys, values = keys.index_select(0, order), values.index_select(0, order)
    return kernel(queries, keys, values, layout, scaling)[None]


@lru_cache
def fast_kernel(device: str, dtype: torch.dtype) -> Kernel | None:
    """Torch's kernel for texts of unequal length, else flash-attention's; None where neither can run."""
    if device != "cuda" or dtype not in (torch.bfloat16, torch.float16):
        return None
    if find_spec("torch.nn.attention.varlen") and torch.cuda.get_device_capability() >= (8, 0):
        from torch.nn.attention.varlen import varlen_attn

        if (kernel := torch_kernel(varlen_attn)) is not None:
            return kernel
    if not find_spec("flash_attn"):
        return None
    from flash_attn import flash_attn_varlen_func

    def flash_kernel(query: Tensor, key: Tensor, value: Tensor, layout: PackedLayout, scaling: float | None) -> Tensor:
        output: Tensor = flash_attn_varlen_func(
            query, key, value, layout.cu_seqlens_q, layout.cu_seqlens_k, max(layout.query_lengths),
            max(layout.key_lengths), softmax_scale=scaling, causal=True,
        )  # fmt: skip
        return output

    return flash_kernel


def torch_kernel(varlen_attn: Callable[..., Any]) -> Kernel | None:
    """Torch's own function as a kernel; None for a release whose function takes no scale, or no window.

    Args:
        varlen_attn: ``torch.nn.attention.varlen.varlen_attn``.
    """
    takes = signature(varlen_attn).parameters
    if not {"scale", "window_size"} <= set(takes):
        return None
    # Torch 2.11 has no such option: it shares key/value heads among query heads without being asked.
    asks = "enable_gqa" in takes

    def kernel(query: Tensor, key: Tensor, value: Tensor, layout: PackedLayout, scaling: float | None) -> Tensor:
        shared = {"enable_gqa": True} if asks and query.shape[1] != key.shape[1] else {}
        output: Tensor = varlen_attn(
            query.contiguous(), key.contiguous(), value.contiguous(), layout.cu_seqlens_q, layout.cu_seqlens_k,
            max(layout.query_lengths), max(layout.key_lengths), scale=scaling, window_size=(-1, 0), **shared,
        )  # fmt: skip
        return output

    return kernel


def unsupported_reason(model: PreTrainedModel, decoder_spec: DecoderSpec) -> str | None:
    """Why a decoder's texts cannot share one row, whatever the device; None where nothing is known against it."""
    kept = DynamicCache(config=model.config).layers
    if any(isinstance(layer, LinearAttentionCacheLayerMixin) for layer in kept):
        return "it has layers whose state would leak from text to text"
    if other := sorted({type(layer).__name__ for layer in kept if type(layer) not in _PACKABLE}):
        return f"its attention keeps more than keys and values ({', '.join(other)})"
    if needs := sorted({NEEDS[need] for block in decoder_spec.blocks for need in block.needs}):
        return f"no kernel of the packed layout has {' or '.join(needs)}"
    widths = {block.head_width for block in decoder_spec.blocks}
    if wrong := sorted(width for width in widths if width > WIDEST_HEAD or width % 8):
        return f"no kernel of the packed layout has heads of width {wrong[0]}"
    return None


def longest_text(model: PreTrainedModel) -> int | None:
    """Tokens up to which a text is inside every window of the attention; None where there are no windows."""
    layers = DynamicCache(config=model.config).layers
    return min((layer.sliding_window for layer in layers if isinstance(layer, DynamicSlidingWindowLayer)), default=None)
