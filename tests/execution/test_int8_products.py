"""Products in int8: what a map computes by hand, which maps of a decoder become one, and what it does to vectors."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from some_texts import some_texts
from torch import nn

import valuembed
from valuembed.errors import OutputError, RecipeError, UnsupportedModelError
from valuembed.execution import Int8Linear, use_int8_products
from valuembed.execution.int8_products import round_rows
from valuembed.testing import tiny_checkpoint

TEXTS = some_texts(40)


@pytest.fixture(autouse=True)
def fast_bytes(monkeypatch):
    """Any CPU computes in int8, if not at speed."""
    monkeypatch.setattr("valuembed.backbone.quantizing.fast_int8", lambda: True)


def linear(weight, bias=None):
    made = nn.Linear(len(weight[0]), len(weight), bias=bias is not None)
    made.weight.data = torch.tensor(weight, dtype=torch.float32)
    if bias is not None:
        made.bias.data = torch.tensor(bias, dtype=torch.float32)
    return made


class TestRounding:
    def test_by_hand(self):
        rows, steps = round_rows(torch.tensor([[1.27, -0.634, 0.004], [0.0, 0.0, 0.0], [-254.0, 3.0, 1.0]]))
        # Steps of a hundredth, of nothing, of two: 3 / 2 and 1 / 2 are halves, which go to the even number.
        assert rows.tolist() == [[127, -63, 0], [0, 0, 0], [-127, 2, 0]]
        torch.testing.assert_close(steps[:, 0], torch.tensor([0.01, 0.0, 2.0]), atol=1e-9, rtol=1e-6)

    def test_what_is_not_finite_stays_so(self):
        states = torch.ones(2, 32)
        states[0, 3] = float("nan")
        found = Int8Linear(nn.Linear(32, 16))(states)
        assert found[0].isnan().all()
        assert found[1].isfinite().all()


class TestMap:
    def test_by_hand(self):
        # Everything is a whole number of steps, so that nothing is lost: 127 * 127 + 2 * 1 and so on.
        made = Int8Linear(linear([[127.0, 1.0], [0.0, -254.0]], [0.5, 1.0]))
        assert made.weight.tolist() == [[127, 1], [0, -127]]
        assert made.steps.tolist() == [1.0, 2.0]
        torch.testing.assert_close(made(torch.tensor([[127.0, 2.0]])), torch.tensor([[16131.5, -507.0]]))

    def test_smoothing_changes_no_product(self):
        # The large channel is 100 times as large in the states, and as many times as small in the weights.
        plain = linear([[1.0, 1.0], [1.0, -1.0]])
        states = torch.tensor([[100.0, 0.3]])
        exact = plain(states)
        smoothed = Int8Linear(plain, torch.tensor([0.1, 10.0]))(states)
        assert (smoothed - exact).norm() < (Int8Linear(plain)(states) - exact).norm() / 2

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_is_near_the_map_in_its_dtype(self, dtype):
        torch.manual_seed(0)
        plain, states = nn.Linear(64, 48).to(dtype), torch.randn(3, 5, 64).to(dtype)
        found = Int8Linear(plain)(states)
        assert found.shape == (3, 5, 48)
        assert found.dtype == dtype
        exact = plain(states).float()
        assert (found.float() - exact).norm() < 0.02 * exact.norm()

    def test_a_text_alone_is_as_among_others(self):
        torch.manual_seed(0)
        made, states = Int8Linear(nn.Linear(64, 48)), torch.randn(7, 64)
        together = made(states)
        alone = torch.cat([made(row[None]) for row in states])
        torch.testing.assert_close(alone, together, rtol=0, atol=0)

    def test_gradients_reach_the_input(self):
        plain = nn.Linear(32, 16)
        states = torch.randn(2, 32, requires_grad=True)
        Int8Linear(plain, torch.full((32,), 2.0))(states).sum().backward()
        torch.testing.assert_close(states.grad, plain.weight.sum(dim=0).expand(2, 32), atol=0.05, rtol=0.05)

    def test_maps_of_the_same_states_round_them_once(self, monkeypatch):
        rounded = []

        def counted(states):
            rounded.append(states)
            return round_rows(states)

        maps = [nn.Linear(32, 32) for _ in range(3)]
        made = [Int8Linear(one, None, place, 3) for place, one in enumerate(maps)]
        monkeypatch.setattr("valuembed.execution.int8_products.round_rows", counted)
        states = torch.randn(4, 32)
        with torch.no_grad():
            together = [one(states) for one in made]
            assert len(rounded) == 1
            # What a pass that was broken off left behind is nothing that others take.
            made[0](torch.zeros(4, 32))
            again = [one(states) for one in reversed(made)][::-1]
        for one, other, plain in zip(together, again, maps, strict=True):
            assert torch.equal(one, other)
            assert (one - plain(states)).norm() < 0.02 * plain(states).norm()


class TestDecoder:
    def test_maps_of_one_input_are_found(self):
        model = valuembed.load("bundled", "va", dtype="int8", device="cpu")
        layer = model.reader.model.layers[0]
        assert isinstance(layer.self_attn.q_proj, Int8Linear)
        same = [layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj]
        assert all(torch.equal(one.smoothing, other.smoothing) for one, other in pairwise(same))
        assert not torch.equal(layer.mlp.gate_proj.smoothing, layer.self_attn.q_proj.smoothing)
        assert torch.equal(layer.mlp.gate_proj.smoothing, layer.mlp.up_proj.smoothing)
        assert layer.mlp.down_proj.smoothing.log().mean().abs() < 1e-4
        assert model.compute_dtype.endswith(", products in int8")
        assert type(model.reader.model.embed_tokens) is nn.Embedding

    def test_what_no_text_reaches_is_not_smoothed(self):
        # VA reads the values of the last layer that is kept, and nothing behind them runs.
        last = valuembed.load("bundled", "va", dtype="int8", device="cpu").reader.model.layers[-1]
        assert last.self_attn.v_proj.smoothing is not None
        assert last.mlp.down_proj.smoothing is None

    def test_narrow_maps_and_adapters_stay(self):
        layers = nn.ModuleDict({"lora_A": nn.Linear(64, 64), "gate": nn.Linear(64, 8), "whole": nn.Linear(64, 64)})
        use_int8_products(layers, lambda: layers["whole"](torch.randn(3, 64)))
        assert [type(one) for one in layers.values()] == [nn.Linear, nn.Linear, Int8Linear]

    @pytest.mark.parametrize("method", ["va", "aligned_va", "wva", "aligned_wva", "meta_eol"])
    def test_vectors_are_nearly_those_of_float32(self, method):
        whole = valuembed.load("bundled", method, device="cpu").encode(TEXTS)
        rounded = valuembed.load("bundled", method, dtype="int8", device="cpu").encode(TEXTS)
        cosines = (whole * rounded).sum(axis=1)
        assert cosines.min() > 0.99
        # Not the same by mistake.
        assert cosines.max() < 1 - 1e-7

    @pytest.mark.parametrize("architecture", ["gemma3_text", "mixtral", "phi3"])
    def test_families(self, architecture, tmp_path):
        folder = tiny_checkpoint(tmp_path, architecture)
        whole = valuembed.load(folder, "va", device="cpu").encode(TEXTS)
        rounded = valuembed.load(folder, "va", dtype="int8", device="cpu").encode(TEXTS)
        assert (whole * rounded).sum(axis=1).min() > 0.98

    def test_a_decoder_without_linear_maps(self, tmp_path):
        with pytest.raises(UnsupportedModelError, match="the layers of GPT2Model have no linear maps that could be"):
            valuembed.load(tiny_checkpoint(tmp_path, "gpt2"), "va", dtype="int8", device="cpu")

    def test_batches_do_not_matter(self):
        model = valuembed.load("bundled", "aligned_wva", dtype="int8", device="cpu")
        together = model.encode(TEXTS)
        alone = np.stack([model.encode(text) for text in TEXTS])
        # A rounding that falls to the other side moves a vector by as much as rounding itself does.
        assert (together * alone).sum(axis=1).min() > 0.99

    def test_it_is_not_saved(self, tmp_path):
        model = valuembed.load("bundled", "va", dtype="int8", device="cpu")
        with pytest.raises(OutputError, match="computes its products in int8 is not saved; load it without dtype='int"):
            model.save(str(tmp_path / "saved"))

    def test_a_saved_folder_is_loaded_so(self, tmp_path):
        valuembed.load("bundled", "va", device="cpu").save(str(tmp_path / "saved"))
        assert valuembed.load(tmp_path / "saved", dtype="int8", device="cpu").compute_dtype.endswith("int8")

    def test_it_is_not_trained(self, tmp_path):
        with pytest.raises(RecipeError, match="rounds what is computed, which has no gradient; train in float32"):
            valuembed.train("bundled", "no-pairs.jsonl", output=tmp_path / "out", dtype="int8", device="cpu")

    def test_quantized_weights_are_refused(self, monkeypatch):
        monkeypatch.setattr("valuembed.models.value_reader.holds_quantized", lambda model: True)
        with pytest.raises(UnsupportedModelError, match="'bundled' is quantized already, and dtype='int8' would round"):
            valuembed.load("bundled", "va", dtype="int8", device="cpu")
