"""What a template puts in front of every text, computed once for all of them.

The keys and values of a constant beginning depend on nothing that follows, so texts behind it can attend to those of
one pass: they are put in front of each text's own in the attention function that all layers call, and no family's cache
is used. This holds where a layer looks at keys and values and nothing else: not in layers with a recurrent state, nor
where windows hide tokens or rotary frequencies follow the longest text.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer, LinearAttentionCacheLayerMixin

from valuembed.backbone import DecoderSpec, Plan
from valuembed.execution.scheduler import rope_groups
from valuembed.readout import ATTENTION_PREFIX, AttentionCall, PaddedLayout, PrefixKV, Readout
from valuembed.recipes import Recipe

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
    kernel = str(model.config._attn_implementation).removeprefix(ATTENTION_PREFIX)
    if kernel not in KERNELS:
        return f"the kernel {kernel} has not been tried for it"
    return None


class PrefixCache:
    """The keys and values of constant beginnings, for one call: they hold as long as the weights do.

    Args:
        model: the decoder, for which :func:`why_not` gives None.
        decoder_spec: its anatomy.
    """

    def __init__(self, model: PreTrainedModel, decoder_spec: DecoderSpec) -> None:
        self._model = model
        self._anatomy = decoder_spec
        self._known: dict[tuple[int, ...], PrefixKV] = {}

    def behind(self, ids: Sequence[int]) -> PrefixKV:
        """Keys and values of a beginning, for any number of texts; computed the first time that it is asked for.

        Args:
            ids: of the beginning.
        """
        prefix = tuple(ids)
        if prefix not in self._known:
            self._known[prefix] = self._compute(prefix)
        return self._known[prefix]

    def _compute(self, ids: tuple[int, ...]) -> PrefixKV:
        given = torch.tensor([ids], device=self._model.device)
        positions = torch.arange(len(ids), device=self._model.device)[None]
        autosave = _Keeping(self._model, self._anatomy, len(ids))
        autosave.run(input_ids=given, position_ids=positions)
        return autosave.kept


class _Keeping(Readout):
    """Keeps the keys and values of one row of p tokens."""

    def __init__(self, model: PreTrainedModel, decoder_spec: DecoderSpec, tokens: int) -> None:
        whole = Plan(Recipe(signal="hidden", weights="last"), (), decoder_spec)
        last = torch.tensor([tokens - 1], device=model.device)
        mask = torch.ones(1, tokens, dtype=torch.long, device=model.device)
        super().__init__(model, [whole], PaddedLayout(last, mask))
        self.kept = PrefixKV(tokens)

    def on_call(self, call: AttentionCall) -> None:
        self.kept.keep(call.module, call.key, call.value)
