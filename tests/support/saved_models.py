"""Two loads of a model: what of them is the same to the bit, and how far apart their vectors may be.

Weights, recipe and prompts of two loads are equal. Their vectors are so only up to rounding: a weight file is mapped,
its header decides where in memory each tensor lies, and kernels sum in another order where an operand is not aligned.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from valuembed.models.encoder import ValueEncoder

TOLERANCE = 1e-6
"""Between numbers of the size of 1 that were computed in float32."""
TOLERANCES: dict[torch.dtype | None, float] = {torch.bfloat16: 2e-2, torch.float16: 2e-3}
"""The same for precisions whose last place is coarser: what rounding moved is rounded up or down in each layer."""
WHITENED = 1e-5
"""The same behind a calibration, which divides by deviations that may be small."""
ADAPTER = re.compile(r"(\.(?:lora_\w+|modules_to_save|trainable_tokens_\w+))\.[^.]+")
"""A weight that an adapter brings, with the adapter's name, which a folder does not record."""
AROUND = re.compile(r"\b(?:base_model\.model|base_layer|token_adapter)\.")
"""What peft puts between a module and a weight, and leaves there when the adapter is gone."""


def assert_close(
    found: ArrayLike, expected: ArrayLike, *, dtype: torch.dtype | None = None, tolerance: float = TOLERANCE
) -> None:
    """Hold vectors of two loads against each other, in units of the largest number where that is above 1."""
    one, other = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    assert one.shape == other.shape
    allowed = max(tolerance, TOLERANCES.get(dtype, 0.0)) * max(1.0, float(np.abs(other).max(initial=0.0)))
    furthest = float(np.abs(one - other).max(initial=0.0))
    assert furthest <= allowed, f"vectors differ by up to {furthest:.2e}, and may by {allowed:.2e}"


def assert_same_vectors(one: Any, other: Any, texts: Sequence[str], *, tolerance: float = TOLERANCE) -> None:
    """Hold two models against each other by their vectors alone: they need not be a `ValueEncoder`, nor hold the same.

    Args:
        one, other: models with `encode`, which compute in one precision.
        texts: to be embedded by both.
        tolerance: in float32; larger where something after the decoder makes differences larger.
    """
    assert one.dtype == other.dtype
    assert_close(one.encode(list(texts)), other.encode(list(texts)), dtype=one.dtype, tolerance=tolerance)


def held(model: torch.nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by the name they have whether peft stands around them or not, and by whatever name."""
    return {ADAPTER.sub(r"\1", AROUND.sub("", name)): tensor for name, tensor in model.state_dict().items()}


def assert_same_weights(one: torch.nn.Module, other: torch.nn.Module) -> None:
    """Hold the parameters and buffers of two models against each other: names, precision and every bit."""
    weights, others = held(one), held(other)
    assert weights
    assert weights.keys() == others.keys()
    for name, weight in weights.items():
        assert weight.dtype == others[name].dtype, name
        assert torch.equal(weight, others[name]), name


def assert_saved_alike(
    model: ValueEncoder, again: ValueEncoder, texts: Sequence[str], *, tolerance: float = TOLERANCE
) -> None:
    """Hold a model against another load of it, mostly from a folder it was saved in: what is recorded, and vectors."""
    assert_same_weights(model, again)
    assert [type(module) for module in again] == [type(module) for module in model]
    assert again.recipe == model.recipe
    assert again.reader.plan.recipe == model.reader.plan.recipe
    assert again.reader.plan.layers == model.reader.plan.layers
    assert again.get_embedding_dimension() == model.get_embedding_dimension()
    assert again.prompts == model.prompts
    assert again.default_prompt_name == model.default_prompt_name
    assert again.max_seq_length == model.max_seq_length
    assert_same_vectors(again, model, texts, tolerance=tolerance)
