"""Checkpoints that see images: their text decoder alone is loaded, and reads as it does inside the whole model."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from image_text import FAMILIES, TEXT, VISION
from reference import reference
from safetensors.torch import save_file
from saved_models import assert_saved_alike
from transformers import CONFIG_MAPPING, AutoModelForImageTextToText
from watching import watch_reads

import valuembed
from valuembed.testing import tiny_tokenizer

pytestmark = pytest.mark.slow

TEXTS = ["hello world", "a harbour at night, longer than the window of eight tokens", "x"]
METHODS = ("va", "aligned_va", "wva", "aligned_wva")
# Rows of the reference table that describe the text part.
TEXT_FAMILIES = {
    "gemma3": "gemma3_text",
    "idefics3": "llama",
    "llama4": "llama4_text",
    "llava": "llama",
    "mistral3": "mistral",
    "qwen2_5_vl": "qwen2",
    "qwen3_5": "qwen3_5_text",
    "qwen3_vl": "qwen3",
}


@pytest.fixture(scope="module", params=sorted(FAMILIES))
def saved(request, tmp_path_factory) -> tuple[str, torch.nn.Module, Path]:
    """A family, its whole model, and the folder that it was saved to."""
    family = request.param
    text, vision, whole = FAMILIES[family]
    config = CONFIG_MAPPING[family](text_config={**TEXT, **text}, vision_config={**VISION, **vision}, **whole)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForImageTextToText.from_config(config).eval()
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, 1.0 if parameter.ndim == 1 else 0.0, 0.15)
    folder = tmp_path_factory.mktemp(family)
    model.save_pretrained(folder)
    tiny_tokenizer("byte_level_bos").save_pretrained(folder)
    return family, model, folder


def text_part(model: Any) -> torch.nn.Module:
    """The decoder without its head, inside a model in which it is one of several parts."""
    found = [part for name, part in model.named_modules() if name.endswith(("language_model", "text_model"))]
    return getattr(found[0], "model", found[0])


def layers_of(family: str) -> list[int]:
    return [1] if family == "qwen3_5" else [1, 2]


@pytest.mark.parametrize("method", METHODS)
def test_values_are_those_of_the_decoder_inside_the_whole_model(saved, method):
    family, whole, folder = saved
    layers = layers_of(family)
    encoder = valuembed.load(folder, method, layers=layers, normalize=False, dtype="float32")
    features = encoder.reader.preprocess(TEXTS)
    ids, mask = features["input_ids"], features["attention_mask"]
    assert mask.sum(dim=1).max() > 8
    positions = torch.arange(ids.shape[1]).expand_as(ids)
    expected = reference(
        TEXT_FAMILIES[family], text_part(whole), ids, mask, positions, features["text_span"][:, 0], method, layers
    )
    got = torch.from_numpy(encoder.encode(TEXTS)).double()
    error = ((got - expected).norm(dim=1) / expected.norm(dim=1)).max().item()
    assert error < (1e-4 if family == "qwen3_5" else 1e-5), f"relative error {error:.2e}"


def test_the_text_decoder_alone_is_loaded_and_cut(saved):
    family, whole, folder = saved
    layers = layers_of(family)
    model = valuembed.load(folder, "va", layers=layers).reader.model
    assert type(model) is type(text_part(whole))
    assert model.config.num_hidden_layers == layers[-1] + 1
    stock = text_part(whole).state_dict()
    kept = {
        name: tensor
        for name, tensor in stock.items()
        if not name.startswith("norm.") and not name.startswith(tuple(f"layers.{i}." for i in range(layers[-1] + 1, 4)))
    }
    assert model.state_dict().keys() == kept.keys()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, kept[name]), name


def test_no_tensor_of_the_rest_is_read(saved, monkeypatch):
    family, _, folder = saved
    reads = watch_reads(monkeypatch)
    encoder = valuembed.load(folder, "va", layers=layers_of(family))
    assert reads.tensors
    others = ("visual", "vision", "projector", "connector", "lm_head", "merger", "patch_embed")
    assert [name for name in reads.tensors if any(other in name for other in others)] == []
    read = set(reads.tensors)
    assert len(read) == len(reads.tensors), "a tensor was read twice"
    assert len(read) >= len(encoder.reader.model.state_dict())


# As checkpoints were published by one release of transformers or another.
PREFIXES = ("language_model.model.", "model.language_model.", "model.text_model.", "language_model.", "model.", "")


# Names do not depend on the family; two of them stand for all.
@pytest.mark.parametrize("saved", ["gemma3", "qwen2_5_vl"], indirect=True)
@pytest.mark.parametrize("prefix", PREFIXES)
def test_the_decoder_is_found_under_every_name_it_was_published_under(saved, prefix, tmp_path):
    _, whole, folder = saved
    tensors = {f"{prefix}{name}": tensor.clone() for name, tensor in text_part(whole).state_dict().items()}
    tensors |= {f"{prefix.removesuffix('model.')}lm_head.weight": torch.zeros(512, 32)}
    tensors |= {name: torch.zeros(2, 2) for name in ("visual.blocks.0.attn.qkv.weight", "vision_tower.layers.0.w")}
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert_saved_alike(valuembed.load(folder, layers=[1, 2]), valuembed.load(tmp_path, layers=[1, 2]), TEXTS)


def test_saved_and_loaded_again_it_gives_the_same(saved, tmp_path):
    family, _, folder = saved
    encoder = valuembed.load(folder, layers=layers_of(family))
    encoder.save_pretrained(str(tmp_path))
    again = valuembed.load(tmp_path)
    assert_saved_alike(encoder, again, TEXTS)
    assert not [name for name in again.reader.model.state_dict() if "visual" in name or "vision" in name]


def test_info_speaks_of_the_text_decoder(saved):
    family, whole, folder = saved
    found = valuembed.info(folder, "va", layers=layers_of(family), dtype="float32")
    assert found.architecture == type(text_part(whole)).__name__
    assert (found.num_layers, found.kept_layers) == (4, layers_of(family)[-1] + 1)
    held = valuembed.load(folder, "va", layers=layers_of(family), dtype="float32").reader.model
    assert found.weight_bytes == sum(tensor.numel() * 4 for tensor in held.parameters())
    assert found.full_weight_bytes == sum(tensor.numel() * 4 for tensor in text_part(whole).parameters())
