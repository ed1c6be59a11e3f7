"""Signals at chosen positions: what the stock model computes there, and nothing kept beside it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from once import traced
from reference import blocks, doubled
from torch import Tensor, nn

from valuembed.analysis.token_signals import AT_TOKEN, OF_PREFIX, TokenReadout, TokenSignal, read_tokens, running_mean
from valuembed.backbone.architecture import DecoderSpec
from valuembed.backbone.tracing import trace_architecture
from valuembed.errors import ReadingError
from valuembed.readout.hooks import install_attention_hooks
from valuembed.readout.layout import PaddedLayout
from valuembed.testing import tiny_config, tiny_decoder
from valuembed.tokenization.tokenizer import TokenSequence

pytestmark = pytest.mark.slow

# Grouped heads, a fused projection, windows, sinks, a hybrid, values of their own width.
FAMILIES = ["llama", "gpt2", "gemma3_text", "gpt_oss", "lfm2", "deepseek_v3", "opt"]
LENGTHS = (21, 5, 12)
POSITIONS = [[1, 7, 20], [2, 3], [11]]


def opened(architecture: str, **overrides: Any) -> tuple[nn.Module, DecoderSpec]:
    decoder_spec = trace_architecture(tiny_config(architecture, **overrides)) if overrides else traced(architecture)
    model = tiny_decoder(architecture, **overrides)
    install_attention_hooks(model, decoder_spec)
    return model, decoder_spec


def some_rows() -> list[TokenSequence]:
    """Texts whose first token is a BOS, which no mean covers."""
    generator = torch.Generator().manual_seed(4)
    drawn = [torch.randint(5, 500, (length,), generator=generator).tolist() for length in LENGTHS]
    return [TokenSequence(ids, (1, len(ids))) for ids in drawn]


def read(
    model: Any, decoder_spec: DecoderSpec, layers: Any, rows: Any, positions: Any, **options: Any
) -> dict[Any, Tensor]:
    """All signals in the order of the texts, ``[p, width]``."""
    found: dict[Any, dict[int, Tensor]] = {}
    for step, signals in read_tokens(model, decoder_spec, layers, rows, positions, **options):
        for signal, vectors in signals.items():
            counts = [len(positions[row]) for row in step]
            found.setdefault(signal, {}).update(zip(step, vectors.split(counts), strict=True))
    return {signal: torch.cat([of[row] for row in range(len(rows))]) for signal, of in found.items()}


def test_running_mean_by_hand() -> None:
    # The first token does not count: zero, then 2, (2 + 6) / 2, and a last one that is padding changes nothing.
    signal = torch.tensor([[[9.0], [2.0], [6.0], [1e4]]])
    mask = torch.tensor([[False, True, True, False]])
    assert running_mean(signal, mask).flatten().tolist() == [0, 2, 4, 4]
    assert running_mean(signal.bfloat16(), mask).dtype == torch.float32


@pytest.mark.parametrize("architecture", FAMILIES)
def test_values_are_those_of_the_stock_model(architecture: str) -> None:
    model, decoder_spec = opened(architecture)
    rows = some_rows()
    layers = list(decoder_spec.value_layers)
    got = read(model, decoder_spec, layers, rows, POSITIONS)
    assert {signal.layer for signal in got if signal.signal == "value"} == set(layers)
    with doubled(tiny_decoder(architecture)) as stock:
        found = [blocks(architecture, stock, torch.tensor(r.ids), torch.arange(len(r.ids)), layers) for r in rows]
    for place, layer in enumerate(layers):
        values = [of_row[place].values.flatten(1) for of_row in found]
        at = torch.cat([v[positions] for v, positions in zip(values, POSITIONS, strict=True)])
        prefix = torch.stack(
            [v[1 : n + 1].mean(dim=0) for v, positions in zip(values, POSITIONS, strict=True) for n in positions]
        )
        torch.testing.assert_close(got[TokenSignal("value", AT_TOKEN, layer)].double(), at, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(got[TokenSignal("value", OF_PREFIX, layer)].double(), prefix, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("architecture", FAMILIES)
def test_hidden_states_are_those_of_the_stock_model(architecture: str) -> None:
    model, decoder_spec = opened(architecture)
    rows = some_rows()
    last = decoder_spec.num_layers - 1
    got = read(model, decoder_spec, [0, last - 1, None], rows, POSITIONS)
    stock = tiny_decoder(architecture, attn_implementation="eager")
    for row, positions in enumerate(POSITIONS):
        with torch.no_grad():
            states = stock(input_ids=torch.tensor([rows[row].ids]), output_hidden_states=True).hidden_states
        start = sum(map(len, POSITIONS[:row]))
        # states[0] is the embedding; the last one comes after the final norm.
        for layer, place in ((0, 1), (last - 1, last), (None, last + 1)):
            expected = states[place][0]
            at = got[TokenSignal("hidden", AT_TOKEN, layer)][start : start + len(positions)]
            prefix = got[TokenSignal("hidden", OF_PREFIX, layer)][start : start + len(positions)]
            torch.testing.assert_close(at, expected[positions], rtol=1e-4, atol=1e-5)
            means = torch.stack([expected[1 : n + 1].mean(dim=0) for n in positions])
            torch.testing.assert_close(prefix, means, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("architecture", ["mistral", "qwen3"])
def test_a_text_alone_is_the_text_in_any_step(architecture: str) -> None:
    model, decoder_spec = opened(architecture)
    rows = some_rows()
    together = read(model, decoder_spec, [0, 3, None], rows, POSITIONS)
    apart = read(model, decoder_spec, [0, 3, None], rows, POSITIONS, tokens_per_step=1)
    assert together.keys() == apart.keys()
    for signal, vectors in together.items():
        torch.testing.assert_close(vectors, apart[signal], rtol=1e-4, atol=1e-5)


def test_a_longer_text_does_not_change_the_frequencies_of_a_shorter_one() -> None:
    dynamic = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}
    model, decoder_spec = opened("llama", max_position_embeddings=8, rope_parameters=dynamic)
    together = read(model, decoder_spec, [0, 3], some_rows(), POSITIONS)
    signal = TokenSignal("hidden", AT_TOKEN, 3)
    fresh, _ = opened("llama", max_position_embeddings=8, rope_parameters=dynamic)
    # 12 tokens are more than 8, where the frequencies begin to follow the length, and come after a text of 21.
    alone = read(fresh, decoder_spec, [0, 3], some_rows()[2:], POSITIONS[2:])
    torch.testing.assert_close(together[signal][5:], alone[signal], rtol=1e-4, atol=1e-5)


def test_a_text_without_chosen_positions_gives_none() -> None:
    model, decoder_spec = opened("llama")
    got = read(model, decoder_spec, [1], some_rows(), [[], [2], []])
    assert {tuple(vectors.shape) for vectors in got.values()} == {(1, 16), (1, 32)}


def test_signals_are_reduced_while_their_layer_runs() -> None:
    model, decoder_spec = opened("llama")
    running = []
    for number, layer in enumerate(model.layers):
        layer.register_forward_pre_hook(lambda *_, number=number: running.append(number))
    seen = []

    def reduce(signal: TokenSignal, vectors: Tensor) -> Tensor:
        assert vectors.dtype == torch.float32
        seen.append((signal.signal, signal.extent, signal.layer, running[-1], tuple(vectors.shape)))
        return vectors[:, :3]

    got = read(model, decoder_spec, [0, 2], some_rows()[:1], [[4, 5]], reduce=reduce)
    # The values (g*d = 16) of a layer come before its hidden state (m = 32), each at once, and layer 3 never runs.
    assert seen == [
        (signal, extent, layer, layer, (2, width))
        for layer in (0, 2)
        for signal, width in (("value", 16), ("hidden", 32))
        for extent in (AT_TOKEN, OF_PREFIX)
    ]
    assert running == [0, 1, 2]
    assert {tuple(vectors.shape) for vectors in got.values()} == {(2, 3)}


def test_half_precision_gives_float32() -> None:
    decoder_spec = trace_architecture(tiny_config("llama"))
    model = tiny_decoder("llama", dtype=torch.bfloat16)
    install_attention_hooks(model, decoder_spec)
    got = read(model, decoder_spec, [0, None], some_rows(), POSITIONS)
    assert {vectors.dtype for vectors in got.values()} == {torch.float32}


def test_a_model_changed_after_loading_is_noticed() -> None:
    model, decoder_spec = opened("llama")
    model.set_attn_implementation("sdpa")
    with pytest.raises(ReadingError, match=r"of layers 1-2 each has to report once .* layers 1-2 reported \[0\] times"):
        read(model, decoder_spec, [1, 2], some_rows(), POSITIONS)


@torch.no_grad()
def test_a_shape_that_was_not_expected_is_noticed() -> None:
    model, decoder_spec = opened("llama")
    mask = torch.ones(1, 6, dtype=torch.bool)
    readout = TokenReadout(model, decoder_spec, [1], PaddedLayout(torch.tensor([5]), mask), mask)
    message = r"LlamaModel, layer 1: values of shape \(1, 2, 6, 8\) expected, got \(1, 2, 5, 8\)"
    with pytest.raises(ReadingError, match=message):
        readout.signals(input_ids=torch.tensor([[5, 6, 7, 8, 9]]))
