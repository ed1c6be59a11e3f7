"""The cut decoder is the full one, in the precision and on the devices that were asked for."""

from __future__ import annotations

import json
import logging
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from once import EVERY_FAMILY, traced
from saved_models import assert_close, assert_saved_alike
from torch import Tensor, nn
from transformers import AutoModel

import valuembed
from valuembed.backbone import dtypes
from valuembed.backbone.architecture import DecoderSpec
from valuembed.backbone.checkpoints.config import read_config
from valuembed.backbone.checkpoints.location import locate
from valuembed.backbone.loading import load_decoder
from valuembed.backbone.plan import Plan
from valuembed.backbone.tracing import trace_architecture
from valuembed.errors import MissingExtraError
from valuembed.readout.hooks import install_attention_hooks
from valuembed.readout.layout import PaddedLayout
from valuembed.readout.readout import Readout
from valuembed.recipes.methods import METHODS
from valuembed.recipes.recipe import Recipe
from valuembed.testing import tiny_checkpoint

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("traced_anew")]

VALUE_METHODS = ("va", "aligned_va", "wva", "aligned_wva")
TEXTS = ["a text", "another, longer text about the harbour", "?"]


# Cut = full


def read(model: nn.Module, recipes: list[Recipe], layers: tuple[int, ...], decoder_spec: DecoderSpec) -> list[Tensor]:
    """Vectors, by recipe, of three rows of 20, 11 and 5 tokens, longer and shorter than a sliding window."""
    lengths = torch.tensor([20, 11, 5])
    ids = torch.randint(5, 500, (3, 20), generator=torch.Generator().manual_seed(0))
    mask = torch.arange(20) < lengths[:, None]
    with torch.no_grad():
        plans = [Plan(replace(recipe, layers=layers), layers, decoder_spec) for recipe in recipes]
        readout = Readout(model, plans, PaddedLayout(lengths - 1, mask))
        return readout.run(input_ids=ids, position_ids=torch.arange(20).expand(3, 20))


@pytest.mark.parametrize("architecture", EVERY_FAMILY)
def test_the_cut_decoder_is_the_full_one(architecture, tmp_path):
    # transformers has no mistral4 with a head.
    folder = tiny_checkpoint(tmp_path, architecture, lm_head=architecture != "mistral4")
    checkpoint = locate(folder)
    config = read_config(checkpoint)
    decoder_spec = traced(architecture)
    values = decoder_spec.value_layers
    last = values[-2] if len(values) > 1 else values[-1]
    layers = tuple(layer for layer in values if layer <= last)
    full = AutoModel.from_pretrained(folder)
    cut = load_decoder(checkpoint, config, decoder_spec, keep_layers=last + 1, keep_tail=False)
    assert type(cut) is type(full) is decoder_spec.model_class
    assert len(cut.get_submodule(decoder_spec.layers_path)) == last + 1 < decoder_spec.num_layers
    weights = full.state_dict()
    assert all(torch.equal(weight, weights[name]) for name, weight in cut.state_dict().items())
    assert install_attention_hooks(full, decoder_spec) == install_attention_hooks(cut, decoder_spec)
    recipes = [METHODS[method] for method in VALUE_METHODS]
    for got, expected in zip(*(read(model, recipes, layers, decoder_spec) for model in (cut, full)), strict=True):
        assert expected.std() > 1e-3
        assert_close(got, expected)


@pytest.mark.parametrize("architecture", ["qwen3", "gemma3_text", "gpt_neox", "lfm2"])
def test_hidden_states_of_a_cut_decoder_too(architecture, tmp_path):
    folder = tiny_checkpoint(tmp_path, architecture)
    checkpoint = locate(folder)
    config = read_config(checkpoint)
    decoder_spec = trace_architecture(config)
    full = AutoModel.from_pretrained(folder)
    install_attention_hooks(full, decoder_spec)
    cut = load_decoder(checkpoint, config, decoder_spec, keep_layers=3, keep_tail=False)
    install_attention_hooks(cut, decoder_spec)
    (got,), (expected,) = (read(model, [METHODS["hidden_mean"]], (1, 2), decoder_spec) for model in (cut, full))
    assert_close(got, expected)


@pytest.mark.parametrize(
    ("method", "idle"),
    [
        ("va", {"self_attn.o_proj", "mlp.up_proj", "post_attention_layernorm"}),
        ("aligned_va", {"mlp.up_proj", "post_attention_layernorm"}),
        ("wva", {"self_attn.o_proj", "mlp.up_proj", "post_attention_layernorm"}),
        ("aligned_wva", {"mlp.up_proj", "post_attention_layernorm"}),
    ],
)
def test_the_last_layer_stops_as_soon_as_it_has_given_its_signal(method, idle, tmp_path):
    model = valuembed.load(tiny_checkpoint(tmp_path), method, layers=[1, 2])
    ran: set[str] = set()
    for name, module in model.reader.model.named_modules():
        module.register_forward_hook(lambda module, args, output, name=name: ran.add(name))
    model.encode(["a text"])
    in_layer = {
        layer: {name.removeprefix(f"layers.{layer}.") for name in ran if name.startswith(f"layers.{layer}.")}
        for layer in range(3)
    }
    assert in_layer[1] == in_layer[0] > idle
    assert "self_attn.v_proj" in in_layer[2]
    assert in_layer[2].isdisjoint(idle)


@pytest.mark.parametrize("method", ["va", "aligned_wva"])
def test_a_cut_decoder_holds_its_layers_and_the_embedding_alone(method, tmp_path):
    folder = tiny_checkpoint(tmp_path)
    model = valuembed.load(folder, method, layers=[0, 2]).reader.model
    held = {name.rpartition(".layers")[2] for name in model.state_dict()}
    assert {name.split(".")[1] for name in held if name.startswith("layers.")} == {"0", "1", "2"}
    assert {name for name in held if not name.startswith("layers.")} == {"embed_tokens.weight"}
    assert model.config.num_hidden_layers == 3
    assert model.config.name_or_path == folder.name
    assert not model.training


def test_a_recipe_that_reads_the_final_norm_keeps_it(tmp_path):
    model = valuembed.load(tiny_checkpoint(tmp_path), "hidden_last").reader.model
    assert {"norm.weight", "layers.3.mlp.up_proj.weight"} < set(model.state_dict())


# Precision


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "valuembed.backbone.dtypes"]


HALVES = [torch.bfloat16, torch.float16]


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


@pytest.mark.parametrize("dtype", HALVES)
def test_half_precision_without_fast_support_becomes_float32_with_one_log_line(dtype, tmp_path, monkeypatch, caplog):
    folder = tiny_checkpoint(tmp_path, dtype=dtype)
    monkeypatch.setattr(dtypes, "has_fast", lambda *_: False)
    with caplog.at_level(logging.INFO, logger="valuembed"):
        model = valuembed.load(folder, layers=[1, 2], device="cpu")
    assert said(caplog) == [
        f"the checkpoint is in {name_of(dtype)}, for which cpu has no fast arithmetic: computing in float32 "
        "(dtype= decides otherwise)"
    ]
    assert {parameter.dtype for parameter in model.reader.model.parameters()} == {torch.float32}
    assert model.reader.model.config.dtype == torch.float32
    assert valuembed.info(folder, device="cpu").dtype == "float32"
    model.save_pretrained(str(tmp_path / "saved"))
    assert json.loads((tmp_path / "saved" / "valuembed_config.json").read_text())["dtype"] == "float32"


@pytest.mark.parametrize("dtype", HALVES)
def test_half_precision_with_fast_support_stays(dtype, tmp_path, monkeypatch, caplog):
    folder = tiny_checkpoint(tmp_path, dtype=dtype)
    monkeypatch.setattr(dtypes, "has_fast", lambda *_: True)
    with caplog.at_level(logging.INFO, logger="valuembed"):
        model = valuembed.load(folder, layers=[1, 2], device="cpu")
    assert said(caplog) == []
    assert {parameter.dtype for parameter in model.reader.model.parameters()} == {dtype}
    assert valuembed.info(folder, device="cpu").dtype == name_of(dtype)
    assert model.encode(TEXTS).dtype == np.float32
    model.save_pretrained(str(tmp_path / "saved"))
    assert json.loads((tmp_path / "saved" / "valuembed_config.json").read_text())["dtype"] == name_of(dtype)


@pytest.mark.parametrize("asked", ["float32", "bfloat16", torch.float16, "float64"])
@pytest.mark.parametrize("held", [torch.float32, torch.bfloat16])
def test_an_explicit_dtype_wins_and_nothing_is_said(asked, held, tmp_path, monkeypatch, caplog):
    folder = tiny_checkpoint(tmp_path, dtype=held)
    monkeypatch.setattr(dtypes, "has_fast", lambda *_: False)
    with caplog.at_level(logging.INFO, logger="valuembed"):
        model = valuembed.load(folder, "va", layers=[1, 2], dtype=asked)
    expected = getattr(torch, asked) if isinstance(asked, str) else asked
    assert {parameter.dtype for parameter in model.reader.model.parameters()} == {expected}
    assert said(caplog) == []
    vectors = model.encode(TEXTS)
    assert vectors.dtype == np.float32
    exact = valuembed.load(folder, "va", layers=[1, 2], dtype="float64").encode(TEXTS)
    assert (vectors * exact).sum(axis=1).min() > 0.999


def test_a_config_that_names_no_dtype_gives_the_same(tmp_path, monkeypatch, caplog):
    named = tiny_checkpoint(tmp_path / "named", dtype=torch.bfloat16)
    unnamed = tiny_checkpoint(tmp_path / "unnamed", dtype=torch.bfloat16)
    config = json.loads((unnamed / "config.json").read_text())
    assert config.pop("dtype") == "bfloat16"
    (unnamed / "config.json").write_text(json.dumps(config))
    for fast, dtype in ((False, torch.float32), (True, torch.bfloat16)):
        monkeypatch.setattr(dtypes, "has_fast", lambda *_, fast=fast: fast)
        caplog.clear()
        one, other = (valuembed.load(folder, layers=[1, 2], device="cpu") for folder in (named, unnamed))
        assert one.reader.model.dtype == other.reader.model.dtype == dtype
        assert len(said(caplog)) == (0 if fast else 2)
        assert_saved_alike(one, other, TEXTS)


def test_an_unknown_dtype_is_refused(tmp_path):
    message = r"^dtype='int3' is unknown; legal: auto, float32, bfloat16, float16, float64, int8, fp8$"
    with pytest.raises(valuembed.errors.RecipeError, match=message):
        valuembed.load(tiny_checkpoint(tmp_path), dtype="int3")


# Devices


@pytest.mark.parametrize("method", VALUE_METHODS)
def test_a_device_map_with_everything_on_one_device_gives_the_same(method, tmp_path):
    folder = tiny_checkpoint(tmp_path)
    plain = valuembed.load(folder, method, layers=[1, 2], device="cpu").encode(TEXTS)
    mapped = valuembed.load(folder, method, layers=[1, 2], model_kwargs={"device_map": {"": "cpu"}})
    assert_close(mapped.encode(TEXTS), plain)


@pytest.mark.parametrize("prefix", ["model", "model.language_model", "language_model.model"])
def test_a_device_map_may_use_the_names_of_the_model_around_the_decoder(prefix, tmp_path):
    folder = tiny_checkpoint(tmp_path)
    places = {"lm_head": "cpu", f"{prefix}.embed_tokens": "cpu", f"{prefix}.rotary_emb": "cpu"}
    layers = {f"{prefix}.layers.{layer}": "cpu" for layer in range(4)}
    mapped = valuembed.load(folder, layers=[1, 2], model_kwargs={"device_map": places | layers})
    plain = valuembed.load(folder, layers=[1, 2], device="cpu").encode(TEXTS)
    assert_close(mapped.encode(TEXTS), plain)


def test_a_device_map_needs_accelerate(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(MissingExtraError, match=r'accelerate is not installed; run: pip install .*\[train\]"'):
        valuembed.load(tiny_checkpoint(tmp_path), model_kwargs={"device_map": "auto"})


@pytest.mark.parametrize("device_map", ["cpu", "auto", "sequential"])
def test_device_maps_by_name(device_map, tmp_path):
    folder = tiny_checkpoint(tmp_path)
    plain = valuembed.load(folder, layers=[1, 2], device="cpu").encode(TEXTS)
    mapped = valuembed.load(folder, layers=[1, 2], model_kwargs={"device_map": device_map})
    assert_close(mapped.encode(TEXTS), plain)


@pytest.mark.parametrize("method", [*VALUE_METHODS, "hidden_mean"])
def test_layers_that_are_not_all_in_one_place_give_the_same(method, tmp_path):
    """Layer 2 stays on disk until it runs: the one split that can be tried without a second device."""
    folder = tiny_checkpoint(tmp_path / "model", shards=3)
    layers = [1, 2] if method != "hidden_mean" else None
    plain = valuembed.load(folder, method, layers=layers, device="cpu").encode(TEXTS)
    places = {"embed_tokens": "cpu", "layers.0": "cpu", "layers.1": "cpu", "layers.2": "disk", "layers.3": "cpu"}
    # Drawn up for the whole model: where it is cut, layer 3 and the norm are not there, and that is no reason to warn.
    rest = {"rotary_emb": "cpu", "norm": "cpu", "lm_head": "cpu"}
    mapped = valuembed.load(
        folder,
        method,
        layers=layers,
        model_kwargs={"device_map": places | rest, "offload_folder": str(tmp_path / "offloaded")},
    )
    on_disk = {name for name, tensor in mapped.reader.model.named_parameters() if tensor.is_meta}
    assert on_disk
    assert all(name.startswith("layers.2.") for name in on_disk)
    assert_close(mapped.encode(TEXTS), plain)


def test_where_the_decoder_is_built_leaves_no_folder_behind(tmp_path, monkeypatch):
    import tempfile

    folder = tiny_checkpoint(tmp_path / "model", shards=3)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    Path(tempfile.tempdir).mkdir()
    valuembed.load(folder, layers=[1, 2])
    assert list(Path(tempfile.tempdir).iterdir()) == []
