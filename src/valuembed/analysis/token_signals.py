"""Signals token by token, at chosen positions only: what a probe of single tokens looks at.

Everything else of a reading stays as it is: the same hooks, each layer held to report exactly once. What
is not chosen is gone before the next layer runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from valuembed.backbone import DecoderSpec, Plan
from valuembed.execution import TOKENS_PER_STEP, Executor
from valuembed.readout import PaddedLayout, Readout, SignalKey
from valuembed.recipes import Recipe, Signal
from valuembed.tokenization import TokenSequence

AT_TOKEN = "at the token"
OF_PREFIX = "mean of the prefix"


@dataclass(frozen=True)
class TokenSignal:
    """One signal that every position has.

    Attributes:
        signal: ``"value"``, the values ``v[l, :, n]`` of all heads, g*d wide; ``"hidden"``, the residual stream, m
            wide.
        extent: :data:`AT_TOKEN`, of token n; :data:`OF_PREFIX`, the mean over the text's own tokens up to n.
        layer: 0-based index; None is the stream after the last layer and the final norm.
    """

    signal: Signal
    extent: str
    layer: int | None


Reduce = Callable[[TokenSignal, Tensor], Tensor]
"""What is done to ``[p, width]`` float32 at once, while its layer runs; its result is kept."""


def running_mean(signal: Tensor, mask: Tensor) -> Tensor:
    """Mean over the tokens up to each token.

    Args:
        signal: ``[b, t, width]``.
        mask: ``[b, t]``, the tokens that count; zero where none has come yet.

    Returns:
        ``[b, t, width]`` in float32.
    """
    weights = mask.to(device=signal.device, dtype=torch.float32)
    counts = weights.cumsum(dim=1).clamp(min=1)
    return (signal.float() * weights[..., None]).cumsum(dim=1) / counts[..., None]


class TokenReadout(Readout):
    """The signals of one forward pass at chosen positions.

    Args:
        model: the decoder.
        decoder_spec: what it is made of.
        layers: whose values (where they have any) and hidden states are read; None is the final norm's output.
        layout: of the texts, whose spans the prefixes cover.
        chosen: ``[b, t]`` bool, p positions.
        reduce: applied to each signal as it appears.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        decoder_spec: DecoderSpec,
        layers: Sequence[int | None],
        layout: PaddedLayout,
        chosen: Tensor,
        reduce: Reduce | None = None,
    ) -> None:
        self.wanted: list[tuple[Signal, int | None]] = [
            *(("value", layer) for layer in layers if layer in decoder_spec.value_layers),
            *(("hidden", layer) for layer in layers),
        ]
        plans = [
            Plan(Recipe(signal=signal, weights="mean"), () if layer is None else (layer,), decoder_spec)
            for signal, layer in self.wanted
        ]
        super().__init__(model, plans, layout)
        self.mask = layout.mask
        self.chosen = chosen
        self.reduce = reduce or (lambda signal, vectors: vectors)

    def signals(self, **inputs: Any) -> dict[TokenSignal, Tensor]:
        """Run the decoder as far as needed.

        Args:
            inputs: keyword arguments of the decoder's forward.

        Returns:
            For each signal ``[p, width]`` float32 as reduced, positions row by row.

        Raises:
            ReadingError: a layer did not report exactly once, or with another shape than expected.
        """
        found = {}
        for (signal, layer), pair in zip(self.wanted, self.run(**inputs), strict=True):
            for extent, vectors in zip((AT_TOKEN, OF_PREFIX), pair, strict=True):
                found[TokenSignal(signal, extent, layer)] = vectors
        return found

    def on_values(self, module: nn.Module, value: Tensor) -> None:
        """Take ``value [b, g, t, d]`` of an attention call, before the kernel runs."""
        block = self._blocks.get(id(module))
        if block is None:
            return
        rows, tokens = self.mask.shape
        self._expect(block.layer, "values", value, (rows, block.value_heads, tokens, block.head_width))
        self._take("value", block.layer, value.transpose(1, 2).flatten(2))

    def _on_hidden(self, layer: int | None, states: Tensor) -> None:
        """Take the residual stream ``[b, t, m]`` after a decoder layer, or at the end after the final norm."""
        self._expect(layer, "hidden states", states, (*self.mask.shape, self.decoder_spec.model_width))
        self._take("hidden", layer, states)

    def _take(self, signal: Signal, layer: int | None, states: Tensor) -> None:
        """Keep the chosen positions of ``[b, t, width]``, at the token and over the prefix, as ``[2, p, width]``."""
        chosen = self.chosen.to(states.device)
        pair = (states[chosen].float(), running_mean(states, self.mask)[chosen])
        reduced = [
            self.reduce(TokenSignal(signal, extent, layer), vectors)
            for extent, vectors in zip((AT_TOKEN, OF_PREFIX), pair, strict=True)
        ]
        self._add({SignalKey(signal, "mean", "none", layer): torch.stack(reduced)})


@torch.inference_mode()
def read_tokens(
    model: PreTrainedModel,
    decoder_spec: DecoderSpec,
    layers: Sequence[int | None],
    rows: Sequence[TokenSequence],
    positions: Sequence[Sequence[int]],
    reduce: Reduce | None = None,
    tokens_per_step: int = TOKENS_PER_STEP,
) -> Iterator[tuple[list[int], dict[TokenSignal, Tensor]]]:
    """Read chosen positions of tokenized texts, step by step.

    Args:
        model: the decoder, with attention hooks.
        decoder_spec: what it is made of.
        layers: 0-based indices; None is the final norm's output.
        rows: b texts.
        positions: for each of them, increasing positions in its ids, none before its span.
        reduce: applied to each signal as it appears; see :data:`Reduce`.
        tokens_per_step: budget of a step.

    Yields:
        Which texts, and for each signal ``[p, width]`` float32: their positions, text by text.
    """
    executor = Executor(model, Plan(Recipe(signal="hidden", weights="mean"), (), decoder_spec))
    executor.tokens_per_step = tokens_per_step
    for batch in executor.schedule([(row,) for row in rows]):
        (step,) = batch.steps
        layout, inputs = executor.lay_out(step)
        assert isinstance(layout, PaddedLayout)
        chosen = torch.zeros(layout.values_shape, dtype=torch.bool)
        for row, index in enumerate(batch.rows):
            chosen[row, list(positions[index])] = True
        readout = TokenReadout(model, decoder_spec, layers, layout, chosen.to(model.device), reduce)
        yield batch.rows, readout.signals(**inputs)
