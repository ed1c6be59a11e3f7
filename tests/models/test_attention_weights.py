"""The last token's weights: those of the stock model in float64, for every family, and what they make of the values."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from once import EVERY_FAMILY, traced
from reference import blocks, doubled, grouped
from torch import Tensor, nn

from valuembed.analysis.token_signals import AT_TOKEN, TokenSignal, read_tokens
from valuembed.backbone.architecture import DecoderSpec
from valuembed.backbone.plan import Plan
from valuembed.backbone.tracing import trace_architecture
from valuembed.errors import ReadingError, UnsupportedModelError
from valuembed.models.attention_weights import last_row, read_attention_weights
from valuembed.readout.hooks import install_attention_hooks
from valuembed.readout.layout import PaddedLayout
from valuembed.readout.readout import AttentionCall, Readout
from valuembed.recipes.methods import METHODS
from valuembed.testing import HYBRIDS, tiny_config, tiny_decoder
from valuembed.tokenization.tokenizer import TokenSequence

# Longer than the sliding windows of 8 tokens.
T = 21


def opened(architecture: str, **options: Any) -> tuple[nn.Module, DecoderSpec]:
    overrides = {name: value for name, value in options.items() if name != "attn_implementation"}
    decoder_spec = trace_architecture(tiny_config(architecture, **overrides)) if overrides else traced(architecture)
    model = tiny_decoder(architecture, **options)
    install_attention_hooks(model, decoder_spec)
    return model, decoder_spec


def some_ids(length: int = T) -> list[int]:
    return torch.randint(5, 500, (length,), generator=torch.Generator().manual_seed(3)).tolist()


@torch.no_grad()
@pytest.mark.parametrize("architecture", EVERY_FAMILY)
def test_weights_are_those_of_the_stock_model_and_make_wva_of_the_values(architecture: str) -> None:
    model, decoder_spec = opened(architecture)
    layers, ids = list(decoder_spec.value_layers), some_ids()
    found = read_attention_weights(model, decoder_spec, layers, ids)
    with doubled(tiny_decoder(architecture)) as stock:
        expected = blocks(architecture, stock, torch.tensor(ids), torch.arange(T), layers)
    tolerance = 1e-4 if architecture in HYBRIDS else 1e-5
    for (weights, lengths), block in zip(found, expected, strict=True):
        assert weights.dtype == lengths.dtype == torch.float32
        torch.testing.assert_close(weights.double(), block.weights, rtol=0, atol=tolerance)
        norms = grouped(block.values, len(weights)).norm(dim=-1).T
        torch.testing.assert_close(lengths.double(), norms, rtol=10 * tolerance, atol=tolerance)

    ((_, values),) = read_tokens(model, decoder_spec, layers, [TokenSequence(ids, (0, T))], [range(T)])
    for layer, (weights, _) in zip(layers, found, strict=True):
        block = decoder_spec.block(layer)
        per_head = values[TokenSignal("value", AT_TOKEN, layer)].unflatten(1, (block.value_heads, -1))
        summed = torch.einsum("ht,thd->hd", weights, grouped(per_head, block.query_heads))
        plan = Plan(METHODS["wva"], (layer,), decoder_spec)
        readout = Readout(model, [plan], PaddedLayout(last=torch.tensor([T - 1]), mask=torch.ones(1, T)))
        (wva,) = readout.run(input_ids=torch.tensor([ids]), position_ids=torch.arange(T)[None])
        torch.testing.assert_close(summed.flatten()[None], wva, rtol=1e-4, atol=1e-5)


def call(mask: Tensor | None = None, kernel: str = "sdpa", module: nn.Module | None = None) -> AttentionCall:
    """Two query heads on one value head, three tokens, d = 2; earlier tokens' queries would show in any mix-up."""
    query = torch.full((1, 2, 3, 2), 9.0)
    query[0, :, -1] = torch.tensor([[math.log(2), 0.0], [0.0, math.log(6)]])
    key = torch.tensor([[[[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]]]])
    value = torch.tensor([[[[4.0, 0.0], [0.0, 8.0], [8.0, 4.0]]]])
    module = module or tiny_decoder("llama").layers[0].self_attn
    return AttentionCall(kernel, module, query, key, value, mask, {"scaling": 1.0, "dropout": 0.0})


def test_numbers_by_hand() -> None:
    # Scores of head 0: log 2, 0, 0, so its weights are 2, 1 and 1 of 4; of head 1: 0, log 6, 0, so 1, 6 and 1 of 8.
    weights = last_row(call())
    expected = [[2 / 4, 1 / 4, 1 / 4], [1 / 8, 6 / 8, 1 / 8]]
    torch.testing.assert_close(weights, torch.tensor([expected])[:, :, None])
    # And with the values: 2/4 (4, 0) + 1/4 (0, 8) + 1/4 (8, 4) = (4, 3); 1/8 (4, 0) + 6/8 (0, 8) + 1/8 (8, 4).
    mixed = weights[0, :, 0] @ call().value[0, 0]
    torch.testing.assert_close(mixed, torch.tensor([[4.0, 3.0], [1.5, 6.5]]))


@pytest.mark.parametrize("kind", ["seen or not", "numbers to add"])
def test_a_mask_by_hand(kind: str) -> None:
    # The last token sees the last two: 1 and 1 of 2, and 6 and 1 of 7. The other rows of the mask mean nothing here.
    seen = torch.tensor([[[[True, False, False], [True, False, True], [False, True, True]]]])
    mask = seen if kind == "seen or not" else torch.zeros(seen.shape).masked_fill(~seen, float("-inf"))
    expected = [[0, 1 / 2, 1 / 2], [0, 6 / 7, 1 / 7]]
    torch.testing.assert_close(last_row(call(mask)), torch.tensor([expected])[:, :, None])


def test_sinks_take_what_is_missing() -> None:
    module = tiny_decoder("gpt_oss").layers[0].self_attn
    with torch.no_grad():
        # A fourth score for each head: log 4 beside 2, 1, 1, and log 2 beside 1, 6, 1.
        module.sinks = nn.Parameter(torch.tensor([math.log(4), math.log(2)]))
        weights = last_row(call(module=module, kernel="eager"))
    expected = [[2 / 8, 1 / 8, 1 / 8], [1 / 10, 6 / 10, 1 / 10]]
    torch.testing.assert_close(weights, torch.tensor([expected])[:, :, None])


@pytest.mark.parametrize("architecture", ["qwen3", "mistral", "gemma3_text"])
def test_kernels_agree(architecture: str) -> None:
    rows = []
    for kernel in ("eager", "sdpa"):
        model, decoder_spec = opened(architecture, attn_implementation=kernel)
        rows.append(read_attention_weights(model, decoder_spec, [0, 1, 3], some_ids()))
    for (eager, _), (sdpa, _) in zip(*rows, strict=True):
        torch.testing.assert_close(eager, sdpa, rtol=1e-4, atol=1e-6)


def test_half_precision_gives_float32_that_adds_up() -> None:
    decoder_spec = trace_architecture(tiny_config("llama"))
    model = tiny_decoder("llama", dtype=torch.bfloat16)
    install_attention_hooks(model, decoder_spec)
    for weights, lengths in read_attention_weights(model, decoder_spec, [0, 3], some_ids()):
        assert weights.dtype == lengths.dtype == torch.float32
        torch.testing.assert_close(weights.sum(dim=-1), torch.ones(4), rtol=0, atol=1e-6)


def test_a_longer_sequence_before_changes_nothing() -> None:
    dynamic = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}
    options = {"max_position_embeddings": 8, "rope_parameters": dynamic}
    model, decoder_spec = opened("llama", **options)
    read_attention_weights(model, decoder_spec, [3], some_ids(40))
    ((after, _),) = read_attention_weights(model, decoder_spec, [3], some_ids())
    ((alone, _),) = read_attention_weights(*opened("llama", **options), [3], some_ids())
    torch.testing.assert_close(after, alone, rtol=0, atol=1e-6)


def test_the_pass_ends_with_the_last_layer_that_is_read() -> None:
    model, decoder_spec = opened("qwen3")
    ran = []
    for number, layer in enumerate(model.layers):
        layer.self_attn.o_proj.register_forward_hook(lambda *_, number=number: ran.append(number))
    read_attention_weights(model, decoder_spec, [0, 2], some_ids())
    # The kernel of layer 2 has nothing left to do.
    assert ran == [0, 1]


@pytest.mark.parametrize("kernel", ["flash_attention_2", "flex_attention"])
def test_a_kernel_whose_mask_cannot_be_read_is_refused(kernel: str) -> None:
    message = rf"^LlamaAttention: with the kernel {kernel} attention weights cannot be read; load with model_kwargs="
    with pytest.raises(UnsupportedModelError, match=message):
        last_row(call(kernel=kernel))


def test_a_family_without_eager_attention_is_refused() -> None:
    message = "^Linear: its attention weights cannot be read: its family has no eager attention"
    with pytest.raises(UnsupportedModelError, match=message):
        last_row(call(module=nn.Linear(1, 1)))


def test_a_model_changed_after_loading_is_noticed() -> None:
    model, decoder_spec = opened("llama")
    model.set_attn_implementation("sdpa")
    with pytest.raises(ReadingError, match=r"of layers 1-2 each has to report once .* layers 1-2 reported \[0\] times"):
        read_attention_weights(model, decoder_spec, [1, 2], some_ids())
