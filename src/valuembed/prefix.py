"""What a template puts in front of every text, computed once for all of them.

The keys and values of a constant beginning depend on nothing that follows, so texts behind it can attend to those of
one pass. This holds where a layer keeps keys and values and nothing else: not in layers with a recurrent state, nor
where windows drop tokens or rotary frequencies follow the longest text.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer, LinearAttentionCacheLayerMixin

from valuembed.batching import rope_groups
from valuembed.reader import DOOR

LEAST_TOKENS = 4
"""A shorter beginning is not worth the joining of its keys and values to every text's."""

KERNELS = ("eager", "sdpa")
"""Kernels that have been tried with queries that are fewer than keys."""


def why_not(model: PreTrainedModel) -> str | None:
    """Why a decoder's texts cannot share their beginning; None where they can."""
    # What transformers itself would keep for a layer tells what the layer is.
    kept = {type(layer) for layer in DynamicCache(config=model.config).layers}
    if any(issubclass(kind, LinearAttentionCacheLayerMixin) for kind in kept):
        return "it has layers that keep a state instead of keys and values"
    if kept - {DynamicLayer}:
        return "its attention has windows"
    # A decoder whose frequencies depend on the length tells lengths apart.
    if rope_groups(model)(1) != ():
        return "its rotary frequencies depend on the longest text"
    kernel = str(model.config._attn_implementation).removeprefix(DOOR)
    if kernel not in KERNELS:
        return f"the kernel {kernel} has not been tried for it"
    return None


class _Beginning(DynamicLayer):  # type: ignore[no-untyped-call]
    """Keys and values of one layer ``[1, g, p, d]`` that stand in front of any number of texts, and never grow.

    What a pass joins to them is gone with its layer, so memory is that of a pass without a cache.
    """

    def __init__(self, filled: Any) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.lazy_initialization(filled.keys, filled.values)
        self.keys = self._keys = filled.keys
        self.values = self._values = filled.values

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        rows = key_states.shape[0]
        return (
            torch.cat([self._keys.expand(rows, -1, -1, -1), key_states], dim=2),
            torch.cat([self._values.expand(rows, -1, -1, -1), value_states], dim=2),
        )


class SharedPrefixes:
    """The keys and values of constant beginnings, for one call: they hold as long as the weights do.

    Args:
        model: the decoder, for which :func:`why_not` gives None.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        self._known: dict[tuple[int, ...], DynamicCache] = {}

    def behind(self, ids: Sequence[int]) -> DynamicCache:
        """A cache that holds a beginning, for any number of texts; computed the first time that it is asked for.

        Args:
            ids: of the beginning.
        """
        beginning = tuple(ids)
        if beginning not in self._known:
            self._known[beginning] = self._compute(beginning)
        return self._known[beginning]

    def _compute(self, ids: tuple[int, ...]) -> DynamicCache:
        grown = DynamicCache()
        given = torch.tensor([ids], device=self._model.device)
        positions = torch.arange(len(ids), device=self._model.device)[None]
        # A single row, once: nothing to compile layers for.
        with torch.compiler.set_stance("force_eager"):
            self._model(input_ids=given, position_ids=positions, past_key_values=grown, use_cache=True)
        fixed = DynamicCache()
        fixed.layers = [_Beginning(layer) for layer in grown.layers]
        return fixed
