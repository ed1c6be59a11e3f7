"""Weights of 8 bits: what they are called, and, where torchao is installed, what they do to vectors."""

from __future__ import annotations

from importlib.util import find_spec

import numpy as np
import pytest
import torch
from some_texts import some_texts
from torch import nn

import valuembed
from valuembed.backbone.quantizing import compute_dtype_asked, compute_dtype_of, computes_in_int8, split_dtype
from valuembed.errors import MissingExtraError, RecipeError

TEXTS = some_texts(40)
TORCHAO = pytest.mark.skipif(find_spec("torchao") is None, reason="torchao is not installed")


@pytest.fixture(autouse=True)
def slow_bytes(monkeypatch):
    """The CPU is not fast at products of bytes, so that torchao keeps the weights."""
    monkeypatch.setattr("valuembed.backbone.quantizing.fast_int8", lambda: False)


class TestNames:
    @pytest.mark.parametrize("dtype", [None, "auto", "bfloat16", torch.float16])
    def test_what_is_computed_in_is_passed_on(self, dtype):
        named = {"bfloat16": torch.bfloat16, torch.float16: torch.float16}
        assert split_dtype(dtype, {"device_map": "cpu"}) == (named.get(dtype), {"device_map": "cpu"})

    @pytest.mark.parametrize(
        ("dtype", "device", "fast", "placed", "wanted"),
        [
            ("int8", "cpu", True, None, True),
            ("int8", "cpu", False, None, False),
            ("int8", "cuda:0", True, None, False),
            ("int8", "cpu", True, "auto", False),
            ("fp8", "cpu", True, None, False),
            (None, "cpu", True, None, False),
            ("bfloat16", None, True, None, False),
        ],
    )
    def test_where_products_are_in_int8(self, dtype, device, fast, placed, wanted, monkeypatch):
        monkeypatch.setattr("valuembed.backbone.quantizing.fast_int8", lambda: fast)
        assert computes_in_int8(dtype, {"device_map": placed}, device) is wanted
        if wanted:
            assert split_dtype(dtype, {"attn_implementation": "eager"}, device) == (
                None,
                {"attn_implementation": "eager"},
            )

    def test_what_is_asked_for_is_what_a_model_says(self, folder, monkeypatch):
        monkeypatch.setattr("valuembed.backbone.quantizing.fast_int8", lambda: True)
        for dtype in (None, "bfloat16", "int8"):
            model = valuembed.load(folder, "va", dtype=dtype, device="cpu")
            assert compute_dtype_asked(model.reader.model.dtype, dtype, "cpu") == model.compute_dtype

    def test_two_ways_at_once(self):
        with pytest.raises(RecipeError, match=r"dtype='int8' and model_kwargs\['quantization_config'\] both quantize"):
            split_dtype("int8", {"quantization_config": object()})

    def test_without_torchao(self, monkeypatch):
        def missing(name):
            raise ModuleNotFoundError("No module named 'torchao'", name="torchao")

        monkeypatch.setattr("valuembed._utils.optional.import_module", missing)
        with pytest.raises(MissingExtraError, match=r'torchao is not installed; run: pip install .*\[quantize\]"'):
            valuembed.load("bundled", dtype="int8")

    def test_the_precision_of_a_model(self, folder):
        model = valuembed.load(folder, "va", dtype="bfloat16")
        assert model.compute_dtype == "bfloat16"

        class Packed(torch.Tensor):
            pass

        layer = model.reader.model.layers[0].mlp
        layer.up_proj.weight = nn.Parameter(layer.up_proj.weight.detach().as_subclass(Packed))
        assert compute_dtype_of(model.reader.model) == "bfloat16, weights as Packed"


@TORCHAO
@pytest.mark.parametrize(("dtype", "least"), [("int8", 0.999), ("fp8", 0.99)])
class TestVectors:
    @pytest.mark.parametrize("method", ["va", "aligned_va", "wva", "aligned_wva", "meta_eol"])
    def test_are_nearly_those_of_the_whole_weights(self, dtype, least, method):
        whole = valuembed.load("bundled", method, dtype="float32").encode(TEXTS)
        cosines = (valuembed.load("bundled", method, dtype=dtype).encode(TEXTS) * whole).sum(axis=1)
        assert cosines.min() > least
        # Nor are they the same, which would be weights left as they were.
        assert cosines.max() < 1 - 1e-7

    def test_only_matrices_of_layers(self, dtype, least):
        model = valuembed.load("bundled", "va", dtype=dtype)
        decoder = model.reader.model
        assert model.compute_dtype.endswith(f", weights as {dtype}")
        assert type(decoder.embed_tokens.weight.data) is torch.Tensor
        assert {type(layer.self_attn.v_proj.weight.data).__name__ for layer in decoder.layers} <= {
            "Int8Tensor",
            "Float8Tensor",
        }

    def test_a_saved_model_is_the_same(self, dtype, least, tmp_path):
        model = valuembed.load("bundled", "va", dtype=dtype)
        model.save(str(tmp_path / "saved"))
        again = valuembed.load(tmp_path / "saved")
        assert again.compute_dtype == model.compute_dtype
        np.testing.assert_allclose(again.encode(TEXTS), model.encode(TEXTS), atol=1e-6)

    def test_compiled_layers(self, dtype, least):
        vectors = valuembed.load("bundled", "va", dtype=dtype).encode(TEXTS)
        compiled = valuembed.load("bundled", "va", dtype=dtype, compile=True)
        assert (compiled.encode(TEXTS) * vectors).sum(axis=1).min() > 0.999
