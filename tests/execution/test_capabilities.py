"""What is fast has to agree, up to the rounding of the decoder that it is made for."""

from __future__ import annotations

import pytest
import torch

from valuembed.backbone.plan import Plan
from valuembed.backbone.tracing import trace_architecture
from valuembed.execution.capabilities import (
    RELATIVE_ERRORS,
    beyond_rounding,
    read_probe,
    relative_error,
    rounding_error,
)
from valuembed.readout.hooks import install_attention_hooks
from valuembed.recipes.methods import METHODS
from valuembed.testing import tiny_config, tiny_decoder


def opened(layers, scale):
    """A decoder in bfloat16 with larger weights, and any plan of it."""
    decoder_spec = trace_architecture(tiny_config("qwen3", num_hidden_layers=layers))
    model = tiny_decoder("qwen3", num_hidden_layers=layers)
    with torch.no_grad():
        for weight in model.layers.parameters():
            if weight.dim() == 2:
                weight.mul_(scale)
    install_attention_hooks(model.to(torch.bfloat16), decoder_spec)
    return model, Plan(METHODS["va"], decoder_spec.value_layers[:-1], decoder_spec)


@pytest.mark.parametrize(("layers", "scale"), [(4, 1), (4, 3), (36, 1), (36, 3)])
def test_one_more_rounding_in_each_layer_is_about_what_the_precision_does(layers, scale):
    model, plan = opened(layers, scale)
    probe = read_probe(model, plan)
    measured = rounding_error(model, plan, probe)
    assert measured == rounding_error(model, plan, probe)
    assert torch.equal(read_probe(model, plan), probe)
    error = relative_error(read_probe(model.float(), plan), probe)
    assert error / 4 < measured < 4 * error


def test_a_deep_decoder_with_large_weights_rounds_more(monkeypatch):
    model, plan = opened(36, 3)
    probe = read_probe(model, plan)
    model.config._attn_implementation_internal = "valuembed_eager"
    other = read_probe(model, plan)
    # Two of transformers' own kernels are further apart than what suits most decoders, and still the same.
    assert RELATIVE_ERRORS[torch.bfloat16] < relative_error(probe, other) < 0.25
    assert beyond_rounding(model, plan, probe, other) is None
    # In a decoder whose layers do not round so, as far apart is too far.
    monkeypatch.setattr("valuembed.execution.capabilities.rounding_error", lambda *given: 0.01)
    assert beyond_rounding(model, plan, probe, other).startswith("off by 0.")


def test_what_is_wrong_is_so_whatever_the_rounding(monkeypatch):
    model, plan = opened(4, 1)
    probe = read_probe(model, plan)
    monkeypatch.setattr("valuembed.execution.capabilities.rounding_error", lambda *given: 10.0)
    assert beyond_rounding(model, plan, probe, probe.roll(1, dims=0)).startswith("off by 1.")
    assert beyond_rounding(model, plan, probe, 1.3 * probe) == "off by 0.3"
