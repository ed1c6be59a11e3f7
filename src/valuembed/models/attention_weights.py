"""The weights with which the last token reads all tokens, layer by layer, through the same hooks as every signal.

Kernels keep their weights to themselves, and all rows of them would be ``[t, t]``. So what arrives at the attention
function is given once more to the family's own eager attention, with the last token's query alone: scaling, windows,
softcap and sinks are the family's, and only the one row ``[h, t]`` that is wanted is computed.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from valuembed._utils.torch_settings import default_device_and_precision
from valuembed.backbone import DecoderSpec, Plan
from valuembed.errors import UnsupportedModelError
from valuembed.readout import AttentionCall, PaddedLayout, Readout, SignalKey, expand_heads, find_kernel
from valuembed.recipes import Recipe

READABLE_KERNELS = ("eager", "sdpa")
"""Kernels whose mask has a row for each token; the others' say what a token sees in ways of their own."""


class WeightReading(Readout):
    """The last token's attention in one forward pass of one sequence.

    Args:
        model: the decoder, with attention hooks.
        decoder_spec: what it is made of.
        layers: whose attention is read; each has values.
        tokens: t, the length of the sequence.
    """

    def __init__(self, model: PreTrainedModel, decoder_spec: DecoderSpec, layers: Sequence[int], tokens: int) -> None:
        recipe = Recipe(signal="value", weights="last")
        plans = [Plan(recipe, (layer,), decoder_spec) for layer in layers]
        super().__init__(
            model, plans, PaddedLayout(last=torch.tensor([tokens - 1]), mask=torch.ones(1, tokens, dtype=torch.long))
        )

    def on_call(self, call: AttentionCall) -> None:
        """Take the last token's weights and the lengths of all values, before the kernel runs."""
        block = self._blocks.get(id(call.module))
        if block is None:
            return
        h, t = block.query_heads, self.layout.values_shape[1]
        self._expect(block.layer, "queries", call.query[..., 0], (1, h, t))
        self._expect(block.layer, "values", call.value, (1, block.value_heads, t, block.head_width))
        weights = last_row(call)
        self._expect(block.layer, "attention weights", weights, (1, h, 1, t))
        lengths = expand_heads(call.value.float().norm(dim=-1), h)
        self._add({SignalKey("value", "last", "none", block.layer): torch.stack((weights[0, :, 0], lengths[0]))})

    def on_kernel_output(self, module: nn.Module, output: Tensor) -> None:
        """Take nothing: what the kernel gives is the values, weighed."""


def last_row(call: AttentionCall) -> Tensor:
    """The attention weights of the last token, computed in float32.

    Args:
        call: an attention call for rows without padding.

    Returns:
        ``[b, h, 1, t]``. A head's weights add up to 1, or to less where the model has sinks, which take the rest.

    Raises:
        UnsupportedModelError: the kernel's mask cannot be read, or the family has no eager attention.
    """
    name = type(call.module).__name__
    if call.kernel not in READABLE_KERNELS:
        raise UnsupportedModelError(
            f"{name}: with the kernel {call.kernel} attention weights cannot be read; load with "
            'model_kwargs={"attn_implementation": "sdpa"} or "eager"'
        )
    try:
        eager = find_kernel("eager", call.module)
    except UnsupportedModelError as error:
        raise UnsupportedModelError(
            f"{name}: its attention weights cannot be read: its family has no eager attention, which alone tells them"
        ) from error
    query, key, value = (tensor.float() for tensor in (call.query[:, :, -1:], call.key, call.value))
    _, weights = eager(call.module, query, key, value, _mask_row(call.mask), **call.options)
    assert weights is not None
    return weights


def _mask_row(mask: Tensor | None) -> Tensor | None:
    """What the last token sees ``[b, 1 or h, 1, t]``, as eager attention wants it: numbers to add to the scores."""
    if mask is None:
        # No window is shorter than the text, and under causal attention the last token sees every other.
        return None
    row = mask[:, :, -1:]
    if row.dtype != torch.bool:
        return row.float()
    return torch.zeros_like(row, dtype=torch.float32).masked_fill(~row, torch.finfo(torch.float32).min)


@torch.inference_mode()
@default_device_and_precision()
def read_attention_weights(
    model: PreTrainedModel, decoder_spec: DecoderSpec, layers: Sequence[int], ids: Sequence[int]
) -> list[tuple[Tensor, Tensor]]:
    """Read how one sequence's last token weighs its tokens.

    Args:
        model: the decoder, with attention hooks, not in training mode.
        decoder_spec: what it is made of.
        layers: 0-based indices of layers that have values.
        ids: t token ids.

    Returns:
        For each layer, on the CPU: the attention weights ``[h, t]`` and the lengths of the values that they weigh
        ``[h, t]`` (of the value head that a query head reads), float32.

    Raises:
        ReadingError: a layer did not report exactly once, or with another shape than expected.
        UnsupportedModelError: as :func:`last_row`.
    """
    t = len(ids)
    readout = WeightReading(model, decoder_spec, layers, t)
    pairs = readout.run(
        input_ids=torch.tensor([ids], device=model.device), position_ids=torch.arange(t, device=model.device)[None]
    )
    return [(pair[0].cpu(), pair[1].cpu()) for pair in pairs]
