"""Every family in the table against the independent float64 reference: methods x padding side x template."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from once import EVERY_FAMILY, traced
from reference import FAMILIES, references
from torch import Tensor

from valuembed.backbone.plan import Plan, resolve_plan
from valuembed.backbone.tracing import trace_architecture
from valuembed.errors import UnsupportedModelError
from valuembed.readout.hooks import install_attention_hooks
from valuembed.readout.layout import PaddedLayout
from valuembed.readout.readout import Readout
from valuembed.recipes.methods import METHODS
from valuembed.testing import ARCHITECTURES, HYBRIDS, tiny_config, tiny_decoder

VALUE_RECIPES = {
    **{method: METHODS[method] for method in ("va", "aligned_va", "wva", "aligned_wva")},
    "normed_va": replace(METHODS["aligned_va"], alignment="residual"),
    "projected_wva": replace(METHODS["aligned_wva"], alignment="projection"),
}
# Longer than the sliding windows of 8 tokens, about one window, shorter than one.
LENGTHS = torch.tensor([21, 9, 4])
# Without template the text is the whole sequence; with one it starts later and ends earlier.
SPANS = {
    "none": torch.tensor([[0, 21], [0, 9], [0, 4]]),
    "template": torch.tensor([[3, 17], [2, 8], [1, 3]]),
}
# Stock llama4 numbers its attention temperature by place in the padded row, so that left padding alone changes its
# output; with the temperature constant the two sides have to agree.
LEFT_PADDED_OVERRIDES = {"llama4_text": {"attn_temperature_tuning": False}}


def _batch(side: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Ids, mask and positions ``[3, 21]`` and how far each row is shifted ``[3]``; the padding is a real token."""
    generator = torch.Generator().manual_seed(7)
    ids = torch.full((3, 21), 17)
    mask = torch.zeros(3, 21, dtype=torch.long)
    shift = (21 - LENGTHS) * (side == "left")
    for row, (length, first) in enumerate(zip(LENGTHS.tolist(), shift.tolist(), strict=True)):
        ids[row, first : first + length] = torch.randint(5, 500, (length,), generator=generator)
        mask[row, first : first + length] = 1
    return ids, mask, (mask.cumsum(1) - 1).clamp(min=0), shift


@pytest.mark.parametrize("architecture", EVERY_FAMILY)
def test_value_methods_equal_the_float64_reference(architecture: str) -> None:
    # The stock model's own passes are over texts without padding: where they are the same, both sides have them.
    if architecture in LEFT_PADDED_OVERRIDES:
        _compare(architecture, ["right"])
        _compare(architecture, ["left"], **LEFT_PADDED_OVERRIDES[architecture])
    else:
        _compare(architecture, ["left", "right"])


def _compare(architecture: str, sides: list[str], **overrides: Any) -> None:
    decoder_spec = trace_architecture(tiny_config(architecture, **overrides)) if overrides else traced(architecture)
    model = tiny_decoder(architecture, **overrides)
    install_attention_hooks(model, decoder_spec)
    layers = decoder_spec.value_layers[:-1] if len(decoder_spec.value_layers) > 1 else decoder_spec.value_layers
    within = torch.arange(21)
    tolerance = 1e-4 if architecture in HYBRIDS else 1e-5
    plans = [Plan(recipe, layers, decoder_spec) for recipe in VALUE_RECIPES.values()]
    expected = None
    for side in sides:
        ids, mask, positions, shift = _batch(side)
        spans = [span + shift[:, None] for span in SPANS.values()]
        # Nor do those passes depend on where in its sequence the text is.
        expected = expected or references(architecture, model, ids, mask, positions, spans, VALUE_RECIPES, layers)
        for number, (template, span) in enumerate(zip(SPANS, spans, strict=True)):
            span_mask = (within >= span[:, :1]) & (within < span[:, 1:])
            with torch.no_grad():
                # In one pass, as their signals are shared; test_hooks shows that each alone is the same.
                vectors = Readout(model, plans, PaddedLayout(shift + LENGTHS - 1, span_mask)).run(
                    input_ids=ids, attention_mask=mask, position_ids=positions
                )
            for method, got in zip(VALUE_RECIPES, vectors, strict=True):
                right = expected[number, method]
                error = ((got.double() - right).norm(dim=1) / right.norm(dim=1)).max().item()
                assert error < tolerance, f"{architecture} {method} {side} {template}: relative error {error:.2e}"


@pytest.mark.parametrize("architecture", EVERY_FAMILY)
def test_the_norm_between_block_and_residual_stream_is_found_where_the_reference_has_one(architecture: str) -> None:
    family = FAMILIES[architecture]
    for block in traced(architecture).blocks:
        layer = family.attention.format(block.layer).rpartition(".")[0]
        assert block.norm == (f"{layer}.{family.norm}" if family.norm else None)


def test_a_loaded_recipe_names_the_norm_only_where_there_is_one() -> None:
    for architecture, alignment in (("llama", "projection"), ("olmo2", "residual")):
        plan = resolve_plan(METHODS["aligned_wva"], None, traced(architecture))
        assert plan.recipe.alignment == alignment


def test_at_least_forty_families_with_every_kind_of_attention() -> None:
    assert len(ARCHITECTURES) >= 40
    assert {"gpt_oss", "gemma2", "mistral", "qwen3_moe", "deepseek_v3", "lfm2", "gpt2"} <= set(ARCHITECTURES)


@pytest.mark.parametrize("architecture", ["bloom", "mpt", "gptj", "xglm", "falcon"])
def test_families_without_the_registry_are_refused_by_name(architecture: str) -> None:
    from transformers import CONFIG_MAPPING

    config = CONFIG_MAPPING[architecture]()
    message = rf"^{architecture}: its attention values cannot be read: .* AttentionInterface.*choose another decoder"
    with pytest.raises(UnsupportedModelError, match=message):
        trace_architecture(config)


def test_two_attention_calls_in_a_layer_are_refused() -> None:
    from transformers import DiffLlamaConfig

    config = DiffLlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    with pytest.raises(UnsupportedModelError, match=r"^diffllama: layers 0-1 compute attention more than once"):
        trace_architecture(config)


def test_layers_that_share_keys_and_values_are_refused() -> None:
    from transformers import CONFIG_MAPPING

    config = CONFIG_MAPPING["gemma3n_text"]()
    assert config.num_kv_shared_layers == 15
    with pytest.raises(UnsupportedModelError, match="the last 15 layers reuse the keys and values"):
        trace_architecture(config)
