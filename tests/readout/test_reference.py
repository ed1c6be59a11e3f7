"""The reference judges the library, so it is judged first: against the stock blocks' own output, in float64."""

from __future__ import annotations

import pytest
import torch
from once import EVERY_FAMILY
from reference import FAMILIES, aligned_wva, blocks, doubled, projected_wva, reference, wva

from valuembed.testing import ARCHITECTURES, tiny_decoder


def layers_with_values(model: torch.nn.Module, architecture: str) -> list[int]:
    source = FAMILIES[architecture].attention + "." + FAMILIES[architecture].source
    modules = dict(model.named_modules())
    return [layer for layer in range(model.config.num_hidden_layers) if source.format(layer) in modules]


def test_every_architecture_has_a_row():
    assert sorted(FAMILIES) == list(ARCHITECTURES)


@pytest.mark.parametrize("architecture", EVERY_FAMILY)
def test_values_weights_and_projection_give_the_stock_output(architecture):
    """Longer than the windows; every layer that has values."""
    model = tiny_decoder(architecture, seed=1)
    ids = torch.randint(3, 500, (21,), generator=torch.Generator().manual_seed(2))
    layers = layers_with_values(model, architecture)
    assert len(layers) >= 2
    with doubled(model) as stock:
        found = blocks(architecture, stock, ids, torch.arange(21), layers)
        family = FAMILIES[architecture]
        for layer, block in zip(layers, found, strict=True):
            assert block.weights.dtype == block.values.dtype == torch.float64
            assert block.weights.sum(-1).max() < 1 + 1e-12
            for formula, stocks in ((projected_wva, block.output), (aligned_wva, block.added)):
                error = (formula(block, family, slice(0, 21)) - stocks).abs().max() / stocks.abs().max()
                assert error < 1e-10, f"layer {layer}: relative error {error:.1e}"
            # The check means something: neither the values nor the outputs are near zero.
            assert block.output.abs().max() > 0.05
            assert wva(block, family, slice(0, 21)).abs().max() > 0.05


# Numbers by hand. One token id per axis: embedding i is 2 on axis i, so its mean square is 1 and the norm (eps 0,
# weight 1) leaves it alone. Queries are 0, so the last token weighs all three tokens with 1/3.
#
#   value head 0 = [[1, 2, 3, 0], [0, 1, 2, 0]] @ x:  token 0 -> (2, 0), token 1 -> (4, 2), token 2 -> (6, 4)
#   value head 1 = [[0, 0, 3, 0], [3, 0, 0, 0]] @ x:  token 0 -> (0, 6), token 1 -> (0, 0), token 2 -> (6, 0)
#
# The text is tokens 1 and 2 (token 0 is a template's), so
#   mean of head 0 = (5, 3), mean of head 1 = (3, 0); weighted: head 0 = (4, 2), head 1 = (2, 2).
#
# W_O = [[1, 0, 0, 0], [0, 1, 1, 0], [0, 0, 0, 2], [1, 1, 1, 1]], bias (1, 0, 0, -1):
#   g = h, mean:     W_O (5, 3, 3, 0) = (5, 6, 0, 11), with bias (6, 6, 0, 10)
#   g = h, weighted: W_O (4, 2, 2, 2) = (4, 4, 4, 10), with bias (5, 4, 4, 9)
#   g < h, mean:     W_O (5, 3, 5, 3) = (5, 8, 6, 16), with bias (6, 8, 6, 15)
#   g < h, weighted: W_O (4, 2, 4, 2) = (4, 6, 4, 12), with bias (5, 6, 4, 11)
BY_HAND = {
    (2, "va"): [5, 3, 3, 0],
    (2, "aligned_va"): [6, 6, 0, 10],
    (2, "wva"): [4, 2, 2, 2],
    (2, "aligned_wva"): [5, 4, 4, 9],
    (1, "va"): [5, 3],
    (1, "aligned_va"): [6, 8, 6, 15],
    (1, "wva"): [4, 2, 4, 2],
    (1, "aligned_wva"): [5, 6, 4, 11],
}


@pytest.mark.parametrize("padding", ["none", "left", "right"])
@pytest.mark.parametrize(("value_heads", "method"), BY_HAND)
def test_numbers_by_hand(value_heads, method, padding):
    model = tiny_decoder(
        "llama",
        hidden_size=4,
        num_attention_heads=2,
        num_key_value_heads=value_heads,
        head_dim=2,
        vocab_size=8,
        rms_norm_eps=0.0,
    )
    attention = model.layers[0].self_attn
    with torch.no_grad():
        model.embed_tokens.weight[:4] = 2 * torch.eye(4)
        model.layers[0].input_layernorm.weight.fill_(1)
        for parameter in (*attention.q_proj.parameters(), attention.v_proj.bias):
            parameter.zero_()
        rows = torch.tensor([[1, 2, 3, 0], [0, 1, 2, 0], [0, 0, 3, 0], [3, 0, 0, 0]])
        attention.v_proj.weight.copy_(rows[: 2 * value_heads])
        attention.o_proj.weight.copy_(torch.tensor([[1, 0, 0, 0], [0, 1, 1, 0], [0, 0, 0, 2], [1, 1, 1, 1]]))
        attention.o_proj.bias.copy_(torch.tensor([1, 0, 0, -1]))
    before, after = {"none": (0, 0), "left": (2, 0), "right": (0, 2)}[padding]
    poison = 7
    vector = reference(
        "llama",
        model,
        torch.tensor([[poison] * before + [0, 1, 2] + [poison] * after]),
        torch.tensor([[0] * before + [1, 1, 1] + [0] * after]),
        torch.tensor([[0] * before + [0, 1, 2] + [0] * after]),
        torch.tensor([[before + 1, before + 3]]),
        method,
        [0],
    )
    assert vector.dtype == torch.float64
    assert vector.tolist() == [pytest.approx(BY_HAND[value_heads, method], abs=1e-12)]


def test_several_layers_are_averaged_and_rows_are_independent():
    model = tiny_decoder("gemma2")
    ids = torch.arange(3, 35).reshape(2, 16)
    mask = torch.ones_like(ids)
    mask[1, 10:] = 0
    positions = torch.arange(16).expand(2, 16)
    span = torch.tensor([[2, 14], [3, 9]])
    for method in ("va", "aligned_va", "wva", "aligned_wva"):
        each = [reference("gemma2", model, ids, mask, positions, span, method, [layer]) for layer in (0, 3)]
        both = reference("gemma2", model, ids, mask, positions, span, method, [0, 3])
        assert torch.allclose(both, (each[0] + each[1]) / 2, rtol=1e-14, atol=0)
        alone = reference("gemma2", model, ids[1:, :10], mask[1:, :10], positions[1:, :10], span[1:], method, [0, 3])
        assert torch.equal(both[1:], alone)
