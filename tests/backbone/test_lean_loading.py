"""Nothing unneeded is read from disk, opened, asked of a hub, or held in memory: layers 14 to 20 of 28."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from saved_models import assert_close, assert_saved_alike
from watching import COMMIT, fake_hub, watch_reads

import valuembed
from valuembed.backbone.checkpoints.config import cut_config, read_config
from valuembed.backbone.checkpoints.location import locate
from valuembed.backbone.checkpoints.weight_files import find_weights, index_folder, is_needed
from valuembed.errors import CheckpointError
from valuembed.testing import tiny_checkpoint, tiny_config

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("traced_anew")]

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"


# Which tensors are needed


@pytest.mark.parametrize(
    ("tensor", "needed"),
    [
        ("model.layers.20.mlp.up_proj.weight", True),
        ("model.layers.21.mlp.up_proj.weight", False),
        ("layers.21.input_layernorm.weight", False),
        ("model.layers.2.mlp.experts.30.w1.weight", True),
        ("transformer.h.3.attn.c_attn.weight", True),
        ("transformer.h.30.attn.c_attn.weight", False),
        ("gpt_neox.layers.27.attention.dense.bias", False),
        ("model.decoder.layers.20.fc1.weight", True),
        ("model.language_model.layers.21.self_attn.q_proj.weight", False),
        ("language_model.model.layers.20.self_attn.q_proj.weight", True),
        ("model.embed_tokens.weight", True),
        ("transformer.wpe.weight", True),
        ("lm_head.weight", False),
        ("language_model.lm_head.weight", False),
        ("embed_out.weight", False),
        ("model.visual.blocks.0.attn.qkv.weight", False),
        ("vision_tower.vision_model.encoder.layers.0.mlp.fc1.weight", False),
        ("model.multi_modal_projector.linear_1.weight", False),
        ("model.audio_tower.layers.0.fc1.weight", False),
    ],
)
def test_what_a_decoder_of_21_layers_needs(tensor, needed):
    assert is_needed(tensor, 21) is needed


@pytest.mark.parametrize(
    ("tensor", "tail", "needed"),
    [
        ("model.norm.weight", ("norm",), False),
        ("norm.weight", ("norm",), False),
        ("model.norm.weight", (), True),
        ("model.layers.3.norm.weight", ("norm",), True),
        ("model.embed_norm.weight", ("norm",), True),
        ("transformer.ln_f.bias", ("ln_f",), False),
        ("model.decoder.final_layer_norm.weight", ("decoder.final_layer_norm",), False),
        ("model.decoder.embed_positions.weight", ("decoder.final_layer_norm",), True),
    ],
)
def test_what_runs_after_the_last_layer_is_not_needed(tensor, tail, needed):
    assert is_needed(tensor, 21, tail) is needed


def test_a_cut_config_cuts_every_list_that_has_one_entry_a_layer():
    config = tiny_config("llama4_text", num_hidden_layers=6)
    cut = cut_config(config, 4)
    assert cut.num_hidden_layers == 4
    assert cut.layer_types == config.layer_types[:4]
    assert cut.no_rope_layers == config.no_rope_layers[:4]
    assert len(config.layer_types) == config.num_hidden_layers == 6


def test_the_index_written_for_loading_names_needed_tensors_only(tmp_path):
    folder = tiny_checkpoint(tmp_path / "model", shards=4)
    with index_folder(find_weights(locate(folder), read_config(locate(folder)), 2, ("norm",))) as written:
        listed = json.loads((Path(written) / INDEX).read_text(encoding="utf-8"))["weight_map"]
        assert sorted(file.name for file in Path(written).iterdir()) == [INDEX]
    assert not Path(written).exists()
    layers = {int(match[1]) for name in listed if (match := re.search(r"layers\.(\d+)\.", name))}
    assert layers == {0, 1}
    assert listed.keys() & {"lm_head.weight", "model.norm.weight", "model.embed_tokens.weight"} == {
        "model.embed_tokens.weight"
    }
    assert {Path(file).parent for file in listed.values()} == {folder}


# Reads and requests


def by_layer(folder: Path, layers_per_shard: int = 4) -> set[str]:
    """Split the one weight file as big checkpoints are split, layer after layer; the names of its shards."""
    tensors = load_file(folder / SINGLE)
    (folder / SINGLE).unlink()
    parts: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        layer = re.search(r"layers\.(\d+)\.", name)
        place = int(layer[1]) // layers_per_shard if layer else 0 if "embed" in name else 99
        parts.setdefault(f"part-{place:02d}.safetensors", {})[name] = tensor
    for file, part in parts.items():
        save_file(part, folder / file, metadata={"format": "pt"})
    weight_map = {name: file for file, part in parts.items() for name in part}
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}), encoding="utf-8")
    return set(parts)


@pytest.fixture
def of_28_layers(tmp_path):
    return tiny_checkpoint(tmp_path / "deep", "qwen3", num_hidden_layers=28)


def expected_tensors(folder: Path) -> set[str]:
    """Names of what the first 21 layers hold, and the embedding; written down without the library's help."""
    files = folder.glob("*.safetensors")
    names = {name for file in files for name in load_file(file)}
    wanted = {name for name in names if name.startswith(tuple(f"model.layers.{layer}." for layer in range(21)))}
    return wanted | {"model.embed_tokens.weight"}


@pytest.mark.parametrize("layout", ["one file", "seven shards by name", "eight shards by layer"])
def test_only_the_tensors_of_layers_0_to_20_and_the_embedding_are_read(tmp_path, of_28_layers, layout, monkeypatch):
    folder = of_28_layers
    whole = valuembed.load(folder, layers="14:21").encode(["a text"])
    wanted = expected_tensors(folder)
    assert len(wanted) == 21 * 11 + 1
    if layout == "eight shards by layer":
        assert len(by_layer(folder)) == 8
        # Layers 24 to 27 and, last, the final norm and the head: two files that hold nothing needed.
        idle = {"part-06.safetensors", "part-99.safetensors"}
    elif layout == "seven shards by name":
        folder = tiny_checkpoint(tmp_path / "sharded", "qwen3", num_hidden_layers=28, shards=7)
        # In order of names layers 21 to 27 follow one another, and fill the fifth file.
        idle = {"model-00005-of-00007.safetensors"}
    else:
        idle = set()
    files = {file.name for file in folder.glob("*.safetensors")}
    assert idle < files
    reads = watch_reads(monkeypatch)
    model = valuembed.load(folder, layers="14:21")
    assert set(reads.tensors) == wanted
    assert len(reads.tensors) == len(wanted), "a tensor was read twice"
    assert set(reads.opened) == files - idle
    assert_close(model.encode(["a text"]), whole)


def test_reading_from_all_layers_reads_all_but_the_head(of_28_layers, monkeypatch):
    """The counter counts: with the whole decoder asked for, the final norm and layer 27 are read too."""
    reads = watch_reads(monkeypatch)
    valuembed.load(of_28_layers, "hidden_mean")
    assert len(reads.tensors) == 28 * 11 + 2
    assert {"model.norm.weight", "model.layers.27.mlp.up_proj.weight"} < set(reads.tensors)
    assert "lm_head.weight" not in reads.tensors


def test_a_hub_is_not_asked_for_shards_that_hold_nothing_needed(tmp_path, of_28_layers):
    folder = of_28_layers
    whole = valuembed.load(folder, layers="14:21").encode(["a text"])
    shards = by_layer(folder)
    for bait in ("README.md", "pytorch_model.bin", "generation_config.json", "model.onnx"):
        (folder / bait).write_text("{}", encoding="utf-8")
    with fake_hub("someone/tiny", folder) as hub:
        model = valuembed.load("someone/tiny", layers="14:21", cache_folder=str(tmp_path / "cache"))
    idle = {"part-06.safetensors", "part-99.safetensors"}
    assert {name for name in hub.asked if "safetensors" in name} == (shards - idle) | {INDEX, SINGLE}
    assert hub.sent == (shards - idle) | {INDEX, "config.json", "tokenizer.json", "tokenizer_config.json"}
    assert hub.asked.isdisjoint({"README.md", "pytorch_model.bin", "generation_config.json", "model.onnx"})
    assert hub.repos == {"someone/tiny"}
    assert_close(model.encode(["a text"]), whole)
    origin = model.reader.origin
    assert (origin.name, origin.fetchable, origin.revision) == ("someone/tiny", True, COMMIT)


def test_info_asks_a_hub_for_no_weights(tmp_path, of_28_layers):
    by_layer(of_28_layers)
    with fake_hub("someone/tiny", of_28_layers) as hub:
        found = valuembed.info("someone/tiny", layers="14:21", cache_folder=str(tmp_path / "cache"))
    assert found.kept_layers == 21
    assert hub.sent == {"config.json", "tokenizer.json", "tokenizer_config.json"}
    assert not [name for name in hub.asked if "safetensors" in name]


def test_what_was_fetched_once_is_read_again_without_a_hub(tmp_path, of_28_layers):
    by_layer(of_28_layers)
    cache = str(tmp_path / "cache")
    with fake_hub("someone/tiny", of_28_layers):
        first = valuembed.load("someone/tiny", layers="14:21", cache_folder=cache)
    with fake_hub("someone/tiny", tmp_path) as hub:
        again = valuembed.load("someone/tiny", layers="14:21", cache_folder=cache, local_files_only=True)
    assert hub.asked == set()
    assert_saved_alike(first, again, ["a text"])
    # Another choice of layers needs a shard that was never fetched.
    with pytest.raises(CheckpointError, match=r"^model 'someone/tiny': .*part-06.safetensors"):
        valuembed.load("someone/tiny", layers=[27], cache_folder=cache, local_files_only=True)


# Peak memory. Measured in a process of its own, where nothing that earlier tests freed can be used again, and as the
# kernel's own high-water mark of pages in use (VmHWM, set back before each load), which counts the pages of mapped
# weight files too, but only those that were touched: every weight of a loaded decoder is touched by encoding one text.
# `ru_maxrss` would not do: a child process inherits its parent's mark.
PEAK = """
import gc, json, sys, transformers
from pathlib import Path
import torch, valuembed
transformers.utils.logging.disable_progress_bar()

def kilobytes(field):
    return int(Path("/proc/self/status").read_text().split(field + ":")[1].split()[0])

def peak(**kwargs):
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")
    before = kilobytes("VmRSS")
    model = valuembed.load(sys.argv[1], **kwargs)
    model.encode(["a text"])
    held = sum(p.numel() * p.element_size() for p in model.reader.model.parameters())
    return {"grown": (kilobytes("VmHWM") - before) * 1024, "held": held}

valuembed.load(sys.argv[2]).encode(["a text"])
print(json.dumps({"cut": peak(layers="4:7"), "whole": peak(method="hidden_mean")}))
"""


@pytest.mark.process
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peak memory is read from Linux's /proc")
def test_peak_memory_is_that_of_the_layers_that_are_kept(tmp_path):
    folder = tiny_checkpoint(
        tmp_path / "big",
        "qwen3",
        num_hidden_layers=28,
        hidden_size=256,
        intermediate_size=512,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        shards=7,
    )
    small = tiny_checkpoint(tmp_path / "small")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PEAK, str(folder), str(small)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    cut, whole = (json.loads(done.stdout)[name] for name in ("cut", "whole"))
    left_out = whole["held"] - cut["held"]
    assert cut["held"] / whole["held"] == pytest.approx(7 / 28, abs=0.01)
    assert left_out > 40e6
    assert whole["grown"] > 0.95 * whole["held"], "the measure missed weights that are in use"
    assert cut["grown"] < cut["held"] + 0.4 * left_out, f"{cut=} {whole=}"
