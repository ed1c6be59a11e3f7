"""Values that a decoder left in its key-value cache: which tokens each layer still holds, and their means.

The cache is only looked at: nothing is moved, cropped or written.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicLayer, EncoderDecoderCache, StaticLayer

from valuembed._utils.text import counted, inflected
from valuembed.backbone import AttentionBlock, Plan
from valuembed.errors import InputError
from valuembed.readout import pooling
from valuembed.readout.alignment import align_projected, project_values
from valuembed.recipes import named_layers

LEGAL = "DynamicCache, StaticCache, QuantizedCache, or a tuple with keys and values of each layer"


@dataclass(frozen=True)
class HeldValues:
    """What one layer of a cache still holds.

    Attributes:
        values: ``[b, g, k, d]`` of k tokens, the last ones that the layer has seen.
        seen: t, how many tokens it has seen.
    """

    values: Tensor
    seen: int

    @property
    def first(self) -> int:
        """The first token that is still there: 0 where none is gone."""
        return self.seen - self.values.shape[2]


class CachedValues:
    """The values in a cache, checked against the decoder that is said to have filled it.

    Args:
        cache: as transformers' decoders fill it.
        blocks: the decoder's attention blocks with values, by layer.
        depths: how many layers the decoder may have: whole, or cut.
        architecture: its name, for errors.

    Raises:
        InputError: it is no cache, is empty, or belongs to another decoder.
    """

    def __init__(
        self, cache: Any, blocks: Mapping[int, AttentionBlock], depths: Sequence[int], architecture: str
    ) -> None:
        self._layers = _layers_of(cache)
        self._blocks = blocks
        self._architecture = architecture
        self._held: dict[int, HeldValues] = {}
        if not self._layers:
            raise InputError(_EMPTY)
        if len(self._layers) not in depths:
            raise InputError(
                f"the cache has {counted(len(self._layers), 'layer')}, and {architecture} has "
                f"{' or '.join(map(str, sorted(set(depths))))}: it was filled by another model"
            )
        if getattr(cache, "offloading", False) and torch.cuda.is_available():
            # Layers travel between the GPU and the CPU beside the computation.
            torch.cuda.synchronize()

    def held(self, layer: int) -> HeldValues:
        """What a layer holds, in the shape that the decoder's attention has there.

        Args:
            layer: 0-based index.

        Raises:
            InputError: it holds no values, or values of another shape.
        """
        if layer >= len(self._layers):
            raise InputError(
                f"layer {layer} is asked for, and the cache was filled by {self._architecture} cut to its first "
                f"{counted(len(self._layers), 'layer')}; give the cache of the whole model, or layers that it has"
            )
        if layer not in self._held:
            found = _held_by(self._layers[layer], layer)
            block = self._blocks[layer]
            shape = (found.values.shape[1], found.values.shape[3])
            if shape != (block.value_heads, block.head_width):
                raise InputError(
                    f"the cache holds {shape[0]} value heads of width {shape[1]} in layer {layer}, and "
                    f"{self._architecture} has {block.value_heads} of width {block.head_width} there: it was filled by "
                    "another model"
                )
            self._held[layer] = found
        return self._held[layer]

    def check_kept(self, layers: Sequence[int], first: int) -> None:
        """Check that no token from ``first`` on has left the windows of some layers.

        Args:
            layers: that are to be read.
            first: the first token that is.

        Raises:
            InputError: it names the layers that have lost tokens, and those that have not.
        """
        gone = [layer for layer in layers if self.held(layer).first > first]
        if not gone:
            return
        whole = [layer for layer in self._blocks if layer < len(self._layers) and self.held(layer).first == 0]
        seen, start = self.held(gone[0]).seen, max(self.held(layer).first for layer in gone)
        raise InputError(
            f"the cache has lost tokens from {first} on in {named_layers(gone)} (a sliding window): of "
            f"{counted(seen, 'token')} the last {seen - start} are there; choose "
            + (f"among {named_layers(whole)}, which {inflected(len(whole), 'has', 'have')} all, or " if whole else "")
            + f"a span from {start} on, or read the cache before the window is full"
        )


def mean_of_cached(model: nn.Module, plan: Plan, values: CachedValues, mask: Tensor, rows: Sequence[int]) -> Tensor:
    """Mean over tokens and layers of the values in a cache.

    Args:
        model: the decoder, for the projections of aligned values.
        plan: of a recipe that reads means of values.
        values: in the cache.
        mask: ``[b, t]`` bool, the tokens that count; at least one a row.
        rows: which rows of the cache, b of them.

    Returns:
        ``[b, width]`` float32, on the device of the first layer's values.

    Raises:
        InputError: tokens that count are gone from a layer.
    """
    columns = mask.any(dim=0).nonzero().flatten()
    start, end = int(columns[0]), int(columns[-1]) + 1
    values.check_kept(plan.layers, start)
    total: Tensor | None = None
    for layer in plan.layers:
        held = values.held(layer)
        signal = held.values[:, :, start - held.first : end - held.first]
        if list(rows) != list(range(len(signal))):
            signal = signal[list(rows)]
        vector = _reduced(model, plan, layer, pooling.mean_over_tokens(signal, mask[:, start:end]), signal.dtype)
        total = vector if total is None else total + vector.to(total.device)
    assert total is not None
    return total / len(plan.layers)


def _reduced(model: nn.Module, plan: Plan, layer: int, mean: Tensor, dtype: torch.dtype) -> Tensor:
    """``[b, width]`` of the mean ``[b, g, d]`` of one layer's values."""
    if not plan.recipe.aligned:
        return mean.flatten(1)
    block = plan.decoder_spec.block(layer)
    # An offloaded layer's values lie on another device than the weights; offloaded weights fetch what they take.
    place = next(model.get_submodule(block.path).parameters(), mean).device
    projected = project_values(model, block, mean if place.type == "meta" else mean.to(place), dtype)
    return align_projected(model, block, projected, plan.recipe.alignment)


_EMPTY = "the cache is empty: run the decoder with it first, then read it"


def _layers_of(cache: Any) -> Sequence[Any]:
    if isinstance(cache, EncoderDecoderCache):
        raise InputError(
            "the cache is an EncoderDecoderCache, of an encoder with a decoder that reads it; give the cache of a "
            "decoder-only model"
        )
    if isinstance(cache, Cache):
        return cache.layers
    if isinstance(cache, (tuple, list)) and all(isinstance(one, (tuple, list)) and len(one) >= 2 for one in cache):
        return cache
    raise InputError(
        f"past_key_values is of the type {type(cache).__name__}; give the cache that the decoder returned: {LEGAL}"
    )


def _held_by(layer: Any, number: int) -> HeldValues:
    kind = type(layer)
    if isinstance(layer, (tuple, list)):
        values, seen = layer[1], None
        if not isinstance(values, Tensor) or values.dim() != 4:
            raise InputError(
                f"layer {number} of the cache is no pair of tensors [b, g, t, d]; give the cache that the decoder "
                f"returned: {LEGAL}"
            )
    elif not isinstance(layer, CacheLayerMixin) or getattr(layer, "_layer_type", None) is not None:
        # The second are kinds of one family's own, which keep values that are compressed or shared.
        raise InputError(f"layer {number} of the cache is a {kind.__name__}, which does not keep each token's values")
    elif not layer.is_initialized:
        raise InputError(_EMPTY)
    elif hasattr(layer, "_quantized_values"):
        values, seen = _dequantized(layer, number), int(layer.get_seq_length())
    elif isinstance(layer, StaticLayer):
        seen = int(layer.get_seq_length())
        values = layer.values if layer.values is None else layer.values[:, :, :seen]
    elif isinstance(layer, DynamicLayer):
        values, seen = layer.values, int(layer.get_seq_length())
    else:
        raise InputError(f"layer {number} of the cache is a {kind.__name__}, which cannot be read; legal: {LEGAL}")
    if values is None or values.numel() == 0:
        raise InputError(_EMPTY)
    return HeldValues(values, values.shape[2] if seen is None else seen)


def _dequantized(layer: Any, number: int) -> Tensor:
    """All values ``[b, g, t, d]`` of a quantized layer: those in few bits, then those that wait to become so."""
    if layer._quantized_values is None:
        raise InputError(_EMPTY)
    try:
        values: Tensor = layer._dequantize(layer._quantized_values)
    except ImportError as error:
        raise InputError(
            f"layer {number} of the cache is a {type(layer).__name__}, whose package is not installed: {error}"
        ) from error
    # Of a beam search: the rows that were chosen last.
    if (chosen := getattr(layer, "_pending_beam_idx", None)) is not None:
        values = values.index_select(0, chosen.to(values.device))
    waiting = layer.values
    return values if waiting is None or waiting.numel() == 0 else torch.cat([values, waiting], dim=2)
