"""This machine taken for another one: which precisions it is fast in, and where in its memory weights lie."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from valuembed.backbone import dtypes

BOUNDARY = 64
"""Bytes on whose multiples torch places what it allocates on a CPU."""
STEP = 8
"""Bytes on whose multiples safetensors places what it maps."""


def half_precision(patch: pytest.MonkeyPatch, *, fast: bool) -> None:
    """Say of the CPU that half precisions are fast on it, or that they are not."""
    patch.setattr(dtypes, "fast_halves", lambda: frozenset(dtypes.HALVES if fast else ()))


def shift_weights(patch: pytest.MonkeyPatch) -> None:
    """Let no load have its weights where the load before it had them, relative to the boundaries that kernels like."""
    loads = itertools.count(1)
    known = PreTrainedModel.from_pretrained.__func__  # type: ignore[attr-defined]

    def from_pretrained(model_class: type[PreTrainedModel], *args: Any, **kwargs: Any) -> Any:
        loaded = known(model_class, *args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        distance = next(loads) * STEP % BOUNDARY
        for tensor in itertools.chain(model.parameters(), model.buffers()):
            if type(tensor.data) is Tensor and tensor.device.type == "cpu":
                tensor.data = moved(tensor.data, distance)
        return loaded

    patch.setattr(PreTrainedModel, "from_pretrained", classmethod(from_pretrained))


def moved(tensor: Tensor, distance: int) -> Tensor:
    """Copy a tensor to memory that begins so many bytes behind a boundary."""
    held = tensor.numel() * tensor.element_size()
    room = torch.empty(held + BOUNDARY, dtype=torch.uint8)
    start = (distance - room.data_ptr()) % BOUNDARY
    return room[start : start + held].view(tensor.dtype).view(tensor.shape).copy_(tensor)
