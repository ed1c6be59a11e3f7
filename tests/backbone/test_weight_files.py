"""Which weight files count where several lie side by side, and that loading writes nothing."""

from __future__ import annotations

import json
import re
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel
from watching import fake_hub, watch_reads

import valuembed
from valuembed.errors import CheckpointError
from valuembed.testing import tiny_checkpoint

pytestmark = pytest.mark.slow

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
SHARD = "model-00001-of-00003.safetensors"
TEXTS = ["a text", "another one"]


def vectors(folder: object, **kwargs: object) -> np.ndarray:
    return valuembed.load(folder, "va", layers=[1], **kwargs).encode(TEXTS)


@pytest.fixture
def old_and_new(tmp_path: Path) -> tuple[Path, Path]:
    """The shards and index of one model, and the single file of another, each in a folder of its own."""
    return tiny_checkpoint(tmp_path / "old", seed=1, shards=3), tiny_checkpoint(tmp_path / "new", seed=2)


def same_as_transformers(folder: Path) -> None:
    """The embeddings of tokens are those that transformers reads."""
    theirs = AutoModel.from_pretrained(folder).get_input_embeddings().weight
    ours = valuembed.load(folder, "va", layers=[1]).reader.model.get_input_embeddings().weight
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("gone", [False, True])
def test_the_single_file_counts_beside_a_stale_index(old_and_new, gone):
    old, new = old_and_new
    for file in old.glob("model*"):
        if not gone or file.name == INDEX:
            (new / file.name).write_bytes(file.read_bytes())
    expected = vectors(tiny_checkpoint(new.parent / "alone", seed=2))
    assert abs(vectors(new) - expected).max() < 1e-6
    same_as_transformers(new)


def test_a_damaged_single_file_is_not_passed_over_for_an_index(old_and_new):
    old, _ = old_and_new
    (old / SINGLE).write_bytes(b"not weights" * 9)
    with pytest.raises(CheckpointError, match=r"model\.safetensors is damaged"):
        vectors(old)


def test_a_hub_is_asked_in_the_same_order(tmp_path, old_and_new):
    old, new = old_and_new
    for file in old.glob("model*"):
        (new / file.name).write_bytes(file.read_bytes())
    expected = vectors(new)
    with fake_hub("someone/tiny", new) as hub:
        found = vectors("someone/tiny", cache_folder=str(tmp_path / "cache"))
    assert {name for name in hub.asked if "safetensors" in name} == {SINGLE}
    assert abs(found - expected).max() < 1e-6


@pytest.mark.parametrize("named", [SINGLE, INDEX])
def test_a_configuration_may_name_the_weights_itself(old_and_new, named):
    old, new = old_and_new
    for file in old.glob("model*"):
        (new / file.name).write_bytes(file.read_bytes())
    config = json.loads((new / "config.json").read_text(encoding="utf-8"))
    (new / "config.json").write_text(json.dumps(config | {"transformers_weights": named}), encoding="utf-8")
    same_as_transformers(new)
    for name in ("../other.safetensors", "weights.bin", 3):
        (new / "config.json").write_text(json.dumps(config | {"transformers_weights": name}), encoding="utf-8")
        with pytest.raises(CheckpointError, match=re.escape(f"config.json names {name!r}, which is no safetensors")):
            vectors(new)
    (new / "config.json").write_text(json.dumps(config | {"transformers_weights": "a.safetensors"}), encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"holds no weights: config.json names a\.safetensors"):
        vectors(new)


def test_an_index_of_files_that_are_not_there_is_refused_by_their_name(tmp_path):
    folder = tiny_checkpoint(tmp_path / "model", shards=3)
    for file in folder.glob("model-*"):
        file.unlink()
    with pytest.raises(CheckpointError, match=rf"weight file {SHARD} is missing; download it again"):
        vectors(folder)


def spoiled(folder: Path, spoil: float) -> str:
    """Write a needed tensor of the first shard into another one too, with a number added; the name of the tensor."""
    index = json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"]
    needed = [name for name in sorted(index) if ".layers.0." in name or ".layers.1." in name]
    name = next(name for name in needed if index[name] == SHARD)
    other = next(index[other] for other in needed if index[other] != SHARD)
    tensor = load_file(folder / SHARD)[name]
    save_file({**load_file(folder / other), name: tensor + spoil}, folder / other, metadata={"format": "pt"})
    return name


def test_one_tensor_in_two_shards_has_to_be_the_same(tmp_path):
    folder = tiny_checkpoint(tmp_path / "model", shards=3)
    expected = vectors(folder)
    spoiled(folder, 0.0)
    assert abs(vectors(folder) - expected).max() < 1e-6
    name = spoiled(folder, 1.0)
    with pytest.raises(CheckpointError, match=rf"{SHARD} and .* hold different numbers for {name}, so they are of two"):
        vectors(folder)


def test_a_tensor_that_an_index_forgets_is_read_where_it_lies(tmp_path):
    folder = tiny_checkpoint(tmp_path / "model", shards=3)
    expected = vectors(folder)
    index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
    del index["weight_map"]["model.layers.1.self_attn.v_proj.weight"]
    (folder / INDEX).write_text(json.dumps(index), encoding="utf-8")
    assert abs(vectors(folder) - expected).max() < 1e-6
    same_as_transformers(folder)


def test_a_shard_of_another_size_is_refused_by_the_weight(tmp_path):
    folder = tiny_checkpoint(tmp_path / "model", shards=3)
    other = tiny_checkpoint(tmp_path / "other", shards=3, intermediate_size=80)
    (folder / SHARD).write_bytes((other / SHARD).read_bytes())
    with pytest.raises(CheckpointError, match=r"weight layers\.0\.mlp.* has the shape \(.*80.*\) in the checkpoint"):
        vectors(folder)


# Temporary files


@pytest.fixture
def no_temporary_files(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise FileNotFoundError(2, "No usable temporary directory found in ['/tmp']")

    for name in ("mkdtemp", "mkstemp", "TemporaryDirectory", "NamedTemporaryFile", "TemporaryFile", "gettempdir"):
        monkeypatch.setattr(tempfile, name, refuse)


@pytest.mark.parametrize("shards", [None, 3])
def test_loading_writes_nothing(tmp_path, shards, monkeypatch, request):
    folder = tiny_checkpoint(tmp_path / "model", shards=shards)
    expected = vectors(folder)
    request.getfixturevalue("no_temporary_files")
    assert abs(vectors(folder) - expected).max() < 1e-6
    assert abs(vectors(folder, dtype="bfloat16") - expected).max() < 0.1


def test_what_is_shown_files_says_where_it_wanted_to_write_an_index(tmp_path, monkeypatch, no_temporary_files):
    folder = tiny_checkpoint(tmp_path / "model")
    monkeypatch.setenv("TMPDIR", "/nowhere")
    with pytest.raises(
        CheckpointError, match=r"TMPDIR is '/nowhere'\): .*No usable temporary.*; set TMPDIR to a folder"
    ):
        vectors(folder, model_kwargs={"device_map": "cpu"})


def test_a_device_map_gives_the_same_and_leaves_no_temporary_file(tmp_path, monkeypatch):
    folder = tiny_checkpoint(tmp_path / "model", shards=3)
    expected = vectors(folder)
    place = tmp_path / "temporary"
    place.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    reads = watch_reads(monkeypatch)
    assert abs(vectors(folder, model_kwargs={"device_map": {"": "cpu"}}) - expected).max() < 1e-6
    assert reads.opened
    assert list(place.iterdir()) == []
