"""Checkpoints whose weights come quantized: the same vectors as from the plain weights, in every precision."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import PretrainedConfig

import valuembed
from valuembed.backbone.checkpoints.quantized import is_dequantized, quantization_method
from valuembed.backbone.prequantized import give_one_dtype
from valuembed.errors import RecipeError
from valuembed.testing import tiny_checkpoint, tiny_decoder

pytestmark = pytest.mark.slow

BLOCK = 32
TEXTS = ["a text", "another one, longer"]
SETTINGS = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [BLOCK, BLOCK]}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A checkpoint with matrices in fp8 and a scale for each block, and its numbers written out in float32."""
    place = tmp_path_factory.mktemp("fp8")
    folder = tiny_checkpoint(
        place / "fp8",
        hidden_size=64,
        intermediate_size=96,
        head_dim=32,
        dtype=torch.bfloat16,
        tie_word_embeddings=False,
    )
    plain = place / "plain"
    shutil.copytree(folder, plain)
    quantized, dequantized = {}, {}
    for name, weight in load_file(folder / "model.safetensors").items():
        quantized[name], dequantized[name] = weight, weight.float()
        if weight.ndim == 2 and ".layers." in name:
            rows, columns = (size // BLOCK for size in weight.shape)
            blocks = weight.float().reshape(rows, BLOCK, columns, BLOCK)
            # The largest number of a block becomes 448, the largest of the type.
            scale = blocks.abs().amax(dim=(1, 3)) / 448
            short = (blocks / scale[:, None, :, None]).to(torch.float8_e4m3fn)
            quantized |= {name: short.reshape(weight.shape), f"{name}_scale_inv": scale}
            dequantized[name] = (short.float() * scale[:, None, :, None]).reshape(weight.shape)
    for where, weights, settings in (
        (folder, quantized, {"quantization_config": SETTINGS}),
        (plain, dequantized, {"dtype": "float32"}),
    ):
        save_file(weights, where / "model.safetensors", metadata={"format": "pt"})
        config = json.loads((where / "config.json").read_text(encoding="utf-8"))
        (where / "config.json").write_text(json.dumps(config | settings), encoding="utf-8")
    return folder, plain


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("dtype", [None, "float32", "bfloat16", "float16"])
def test_blockwise_fp8_gives_the_vectors_of_its_numbers(folders, dtype, fast, monkeypatch):
    folder, plain = folders
    monkeypatch.setattr("valuembed.backbone.dtypes.has_fast", lambda dtype, device: fast)
    computed = dtype or ("bfloat16" if fast else "float32")
    model = valuembed.load(folder, "va", dtype=dtype)
    assert {parameter.dtype for parameter in model.reader.model.parameters()} == {getattr(torch, computed)}
    expected = valuembed.load(plain, "va", dtype="float32").encode(TEXTS)
    assert abs(model.encode(TEXTS) - expected).max() < (1e-6 if computed == "float32" else 0.02)
    assert valuembed.info(folder, "va", dtype=dtype).dtype == computed


def test_what_is_saved_are_plain_weights(folders, tmp_path):
    model = valuembed.load(folders[0], "va", dtype="float32")
    model.save_pretrained(str(tmp_path))
    assert "quantization_config" not in json.loads((tmp_path / "config.json").read_text("utf-8"))
    again = valuembed.load(tmp_path)
    assert abs(again.encode(TEXTS) - model.encode(TEXTS)).max() < 1e-6


def test_a_precision_that_kept_quantized_weights_do_not_compute_in_is_refused():
    model = tiny_decoder("qwen3", dtype=torch.bfloat16)
    model.config.quantization_config = SETTINGS
    matrix = model.layers[0].self_attn.v_proj
    matrix.weight = torch.nn.Parameter(matrix.weight.to(torch.float8_e4m3fn), requires_grad=False)
    give_one_dtype(model, torch.bfloat16)
    with pytest.raises(
        RecipeError, match=r"dtype='float32' is not possible: .* quantized \(fp8\) and computed in bfloat16"
    ):
        give_one_dtype(model, torch.float32)


def test_what_a_file_holds_in_a_precision_of_its_own_stays():
    model = tiny_decoder("qwen3", dtype=torch.bfloat16)
    model.norm.weight.data = model.norm.weight.data.double()
    give_one_dtype(model, torch.float32)
    assert (model.norm.weight.dtype, model.dtype) == (torch.float64, torch.float32)


def test_what_is_turned_into_plain_weights_depends_on_the_device(monkeypatch):
    config = PretrainedConfig(quantization_config=SETTINGS)
    assert quantization_method(config.quantization_config) == "fp8"
    assert is_dequantized(config.quantization_config, "cpu")
    for capability, expected in (((8, 0), True), ((9, 0), False)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, found=capability: found)
        assert is_dequantized(config.quantization_config, "cuda") is expected
    for settings in (None, {}, {"quant_method": "gptq"}):
        assert not is_dequantized(settings, "cpu")
