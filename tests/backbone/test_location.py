"""Where models come from: what is refused and how it is said, and that nothing unneeded is asked for."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
import transformers.dynamic_module_utils
from safetensors.torch import load_file, save_file
from saved_models import assert_same_vectors, assert_saved_alike
from transformers import CONFIG_MAPPING
from watching import fake_hub, watch_reads

import valuembed
from valuembed.backbone.checkpoints.config import read_config
from valuembed.backbone.checkpoints.location import BUNDLED, locate
from valuembed.backbone.tracing import trace_architecture
from valuembed.errors import CheckpointError, UnsupportedModelError
from valuembed.testing import tiny_checkpoint

pytestmark = pytest.mark.slow

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"


def load(folder: Path, layers: object = (1, 2), method: str = "va", **kwargs: object) -> valuembed.ValueEncoder:
    return valuembed.load(folder, method, layers=list(layers), **kwargs)


def refused(folder: Path, *parts: str, **kwargs: object) -> None:
    """Loading fails as a checkpoint's fault, and the message says all of `parts`."""
    with pytest.raises(CheckpointError) as caught:
        load(folder, **kwargs)
    lacking = [part for part in (str(folder), *parts) if part not in str(caught.value)]
    assert not lacking, f"{lacking} not in: {caught.value}"


# What a name means


def test_a_folder_that_is_no_model_is_refused_with_what_it_holds(tmp_path):
    with pytest.raises(CheckpointError, match=r"holds no model: neither config.json nor adapter_config.json .*nothing"):
        locate(tmp_path)
    for name in ("notes.txt", "data.csv"):
        (tmp_path / name).touch()
    with pytest.raises(CheckpointError, match=re.escape(f"folder {str(tmp_path)!r} holds no model")) as caught:
        locate(tmp_path)
    assert "(it holds data.csv, notes.txt)" in str(caught.value)


def test_a_file_in_place_of_its_folder_is_refused(tmp_path):
    folder = tiny_checkpoint(tmp_path / "model")
    file = folder / SINGLE
    message = re.escape(
        f"{str(file)!r} is a file and no GGUF file; give the folder that holds it ({folder}), a GGUF file, a hub id, "
        "or 'bundled'"
    )
    with pytest.raises(CheckpointError, match=message):
        valuembed.load(file)


@pytest.mark.parametrize("name", ["/no/such/folder", "./missing", "../missing", "~/missing", "a/b/c", "", "  "])
def test_a_path_that_does_not_exist_is_refused_without_asking_a_hub(name, tmp_path):
    message = re.escape(
        f"no folder {name!r}; give a folder that exists, a hub id such as Qwen/Qwen3-0.6B, or 'bundled'"
    )
    with fake_hub("someone/tiny", tmp_path) as hub, pytest.raises(CheckpointError, match=message):
        valuembed.load(name)
    assert hub.asked == set()


def test_what_is_recorded_of_a_place_is_never_a_path(tmp_path):
    folder = tiny_checkpoint(tmp_path / "private" / "model")
    assert locate(folder).public_name == "model"
    assert locate(f"{folder}/").public_name == "model"
    assert locate("someone/tiny").public_name == "someone/tiny"
    assert locate(BUNDLED).public_name == "bundled"
    assert str(tmp_path) not in repr(load(folder))


def test_the_bundled_model_is_found_whatever_the_working_folder_holds(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bundled").mkdir()
    found = locate("bundled")
    assert Path(found.location) == Path(valuembed.__file__).parent / "backbone" / "bundled"


# Configurations


def test_a_damaged_config_is_refused(tmp_path):
    folder = tiny_checkpoint(tmp_path / "model")
    (folder / "config.json").write_text('{"model_type": "qwen3",', encoding="utf-8")
    refused(folder, "its configuration cannot be read", "config.json")


@pytest.mark.parametrize("wrong", [{"hidden_size": "wide"}, {"num_hidden_layers": [4]}, {"layer_types": "full"}])
def test_a_config_with_a_setting_of_the_wrong_kind_is_refused(tmp_path, wrong):
    folder = tiny_checkpoint(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(config | wrong), encoding="utf-8")
    refused(folder, "its configuration cannot be read", next(iter(wrong)))


def test_an_unknown_model_type_without_code_is_refused_by_name(tmp_path):
    folder = tiny_checkpoint(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "nobodys"}), encoding="utf-8")
    refused(folder, "its configuration cannot be read", "nobodys")


@pytest.mark.parametrize("family", ["t5", "bart", "t5gemma"])
def test_encoder_decoders_are_refused(tmp_path, family):
    CONFIG_MAPPING[family]().save_pretrained(tmp_path)
    with pytest.raises(CheckpointError) as caught:
        read_config(locate(tmp_path))
    assert str(caught.value) == f"model {str(tmp_path)!r} ({family}) is an encoder-decoder; a decoder is needed"


def test_text_decoders_without_a_class_of_their_own_are_refused_by_name(tmp_path):
    CONFIG_MAPPING["mllama"]().save_pretrained(tmp_path)
    config = read_config(locate(tmp_path))
    with pytest.raises(UnsupportedModelError, match=r"^mllama_text_model: transformers has no class for this text"):
        trace_architecture(config)


# Code that comes with a checkpoint

CONFIGURATION = """
from pathlib import Path
from transformers import Qwen3Config
Path({ran!r}).touch()
class OwnConfig(Qwen3Config):
    model_type = "own"
"""
MODELING = """
from transformers import Qwen3Model
from .configuration_own import OwnConfig
class OwnModel(Qwen3Model):
    config_class = OwnConfig
"""


@pytest.fixture
def wants_code(tmp_path, monkeypatch):
    """A checkpoint with its own configuration and model class, and the file that its code leaves behind."""
    monkeypatch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    folder, ran = tiny_checkpoint(tmp_path / "model"), tmp_path / "ran"
    (folder / "configuration_own.py").write_text(CONFIGURATION.format(ran=str(ran)), encoding="utf-8")
    (folder / "modeling_own.py").write_text(MODELING, encoding="utf-8")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    own = {"AutoConfig": "configuration_own.OwnConfig", "AutoModel": "modeling_own.OwnModel"}
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "own", "auto_map": own}), encoding="utf-8")
    return folder, ran


def test_a_checkpoint_that_wants_its_own_code_is_refused_and_the_code_not_run(wants_code):
    folder, ran = wants_code
    refused(
        folder, "wants to run code of its own; read that code, and if you trust it load with trust_remote_code=True"
    )
    assert not ran.exists()


def test_its_code_runs_when_asked(wants_code, tmp_path):
    folder, ran = wants_code
    own = load(folder, trust_remote_code=True)
    assert ran.exists()
    assert type(own.reader.model).__name__ == "OwnModel"
    stock = load(tiny_checkpoint(tmp_path / "stock"))
    assert_same_vectors(own, stock, ["a text"])


def test_code_beside_a_family_that_transformers_knows_is_not_run(wants_code):
    folder, ran = wants_code
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "qwen3"}), encoding="utf-8")
    assert type(load(folder).reader.model).__name__ == "Qwen3Model"
    assert not ran.exists()


# Weights that are missing, damaged or refused


def test_no_weights_at_all(tmp_path):
    folder = tiny_checkpoint(tmp_path / "model")
    (folder / SINGLE).unlink()
    refused(folder, f"holds no weights: neither {SINGLE} nor {INDEX}")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "pytorch_model.bin.index.json"])
def test_pickled_weights_are_not_read(tmp_path, name):
    folder = tiny_checkpoint(tmp_path / "model")
    tensors = load_file(folder / SINGLE)
    (folder / SINGLE).unlink()
    torch.save(tensors, folder / name)
    refused(folder, f"holds {name} only: pickled weights can run code, so only safetensors are read; convert it")


def test_other_weight_formats_cannot_be_asked_for(tmp_path):
    folder = tiny_checkpoint(tmp_path / "model")
    with pytest.raises(
        CheckpointError, match=r"^only safetensors weights are read of a folder or repository; drop use_"
    ):
        load(folder, model_kwargs={"use_safetensors": False})
    with pytest.raises(
        CheckpointError, match=r"gguf_file names a file beside a model; give the file itself as the mod"
    ):
        load(folder, model_kwargs={"gguf_file": "x", "use_safetensors": True})


@pytest.mark.parametrize("name", ["revision", "token", "subfolder", "variant", "key_mapping", "state_dict", "config"])
def test_arguments_that_would_be_ignored_or_overruled_are_refused(tmp_path, name):
    folder = tiny_checkpoint(tmp_path / "model")
    with pytest.raises(CheckpointError, match=rf"^model_kwargs cannot hold {name}: .*load\(\) .*takes revision, token"):
        load(folder, model_kwargs={name: None, "use_safetensors": True})


def test_asking_for_safetensors_is_legal(tmp_path):
    folder = tiny_checkpoint(tmp_path / "model")
    same = load(folder, model_kwargs={"use_safetensors": True})
    assert_saved_alike(load(folder), same, ["a text"])


def test_a_tensor_that_is_not_in_the_file_is_named(tmp_path):
    folder = tiny_checkpoint(tmp_path / "model")
    tensors = load_file(folder / SINGLE)
    del tensors["model.layers.1.self_attn.v_proj.weight"]
    save_file(tensors, folder / SINGLE, metadata={"format": "pt"})
    refused(folder, "1 needed weight is not in the checkpoint: layers.1.self_attn.v_proj.weight; it would be random")


def test_many_missing_tensors_are_counted(tmp_path):
    folder = tiny_checkpoint(tmp_path / "model")
    tensors = {name: tensor for name, tensor in load_file(folder / SINGLE).items() if ".layers.1." not in name}
    save_file(tensors, folder / SINGLE, metadata={"format": "pt"})
    refused(folder, "11 needed weights are not in the checkpoint: layers.1.", " and 6 more; they would be random")


def test_tensors_that_no_chosen_layer_needs_may_be_missing(tmp_path):
    folder = tiny_checkpoint(tmp_path / "model")
    whole = load(folder, [0])
    needed = {
        name: tensor
        for name, tensor in load_file(folder / SINGLE).items()
        if ".layers.0." in name or "embed_tokens" in name
    }
    save_file(needed, folder / SINGLE, metadata={"format": "pt"})
    assert_saved_alike(whole, load(folder, [0]), ["a text"])


def test_a_tensor_of_another_shape_is_refused_by_name(tmp_path):
    folder = tiny_checkpoint(tmp_path / "model")
    tensors = load_file(folder / SINGLE)
    name = "model.layers.1.self_attn.v_proj.weight"
    tensors[name] = tensors[name][:, :-1].contiguous()
    save_file(tensors, folder / SINGLE, metadata={"format": "pt"})
    refused(folder, "layers.1.self_attn.v_proj.weight has the shape (16, 31) in the checkpoint", "asks for (16, 32)")


@pytest.mark.parametrize("damage", ["truncated", "half a header", "rubbish"])
@pytest.mark.parametrize("shards", [None, 3])
def test_a_damaged_weight_file_is_refused_by_name(tmp_path, shards, damage):
    folder = tiny_checkpoint(tmp_path / "model", shards=shards)
    file = folder / (SINGLE if shards is None else "model-00001-of-00003.safetensors")
    whole = file.read_bytes()
    file.write_bytes({"truncated": whole[:-1], "half a header": whole[:50], "rubbish": b"not a model" * 99}[damage])
    refused(folder, file.name, "is damaged", "download it again")


def test_a_missing_shard_is_named(tmp_path):
    folder = tiny_checkpoint(tmp_path / "model", shards=3)
    (folder / "model-00001-of-00003.safetensors").unlink()
    refused(folder, "weight file model-00001-of-00003.safetensors is missing")


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        "null",
        "{}",
        '{"weight_map": []}',
        '{"weight_map": null}',
        '{"weight_map": {"model.embed_tokens.weight": 3}}',
        '{"weight_map": {"model.embed_tokens.weight": null}}',
    ],
)
def test_a_damaged_index_is_refused(tmp_path, text):
    folder = tiny_checkpoint(tmp_path / "model", shards=3)
    (folder / INDEX).write_text(text, encoding="utf-8")
    refused(folder, f"{INDEX} is damaged")


def test_an_index_that_is_not_utf8_is_refused(tmp_path):
    folder = tiny_checkpoint(tmp_path / "model", shards=3)
    (folder / INDEX).write_bytes(b'\xff\xfe{"weight_map"')
    refused(folder, f"{INDEX} is damaged")


def test_an_index_without_a_needed_tensor_is_refused(tmp_path):
    folder = tiny_checkpoint(tmp_path / "model", shards=3)
    (folder / INDEX).write_text(json.dumps({"weight_map": {}}), encoding="utf-8")
    refused(folder, INDEX, "names none of the weights that are needed")


@pytest.mark.parametrize("outside", ["../secret.safetensors", "{parent}/secret.safetensors", "sub/secret.safetensors"])
def test_an_index_may_not_name_files_outside_its_folder(tmp_path, outside, monkeypatch):
    folder = tiny_checkpoint(tmp_path / "model", shards=3)
    (folder / "sub").mkdir()
    shard = "model-00001-of-00003.safetensors"
    for place in (tmp_path, folder / "sub"):
        (place / "secret.safetensors").write_bytes((folder / shard).read_bytes())
    outside = outside.format(parent=tmp_path)
    index = (folder / INDEX).read_text(encoding="utf-8").replace(shard, outside)
    (folder / INDEX).write_text(index, encoding="utf-8")
    reads = watch_reads(monkeypatch)
    refused(folder, f"{INDEX} names {outside!r}, which is no safetensors file beside it")
    assert reads.opened == []


def test_an_index_may_not_name_another_kind_of_file(tmp_path):
    folder = tiny_checkpoint(tmp_path / "model", shards=3)
    index = (folder / INDEX).read_text(encoding="utf-8").replace("model-00001-of-00003.safetensors", "model.bin")
    (folder / INDEX).write_text(index, encoding="utf-8")
    (folder / "model.bin").touch()
    refused(folder, f"{INDEX} names 'model.bin', which is no safetensors file beside it")


# What a hub answers


def test_an_id_that_the_hub_does_not_know_is_refused_by_name(tmp_path):
    with (
        fake_hub("someone/tiny", tmp_path / "model") as hub,
        pytest.raises(CheckpointError, match=r"^model 'someone/else'.*not a valid model identifier"),
    ):
        valuembed.load("someone/else", cache_folder=str(tmp_path / "cache"))
    assert hub.repos == {"someone/else"}
    assert hub.sent == set()


def test_an_id_that_is_not_in_the_cache_is_refused_offline(tmp_path):
    with pytest.raises(CheckpointError, match=r"^model 'someone/tiny': .*config.*cannot be"):
        valuembed.load("someone/tiny", cache_folder=str(tmp_path), local_files_only=True)


def test_a_hub_without_safetensors_is_asked_for_no_pickled_weights(tmp_path):
    folder = tiny_checkpoint(tmp_path / "model")
    (folder / SINGLE).rename(folder / "pytorch_model.bin")
    with (
        fake_hub("someone/tiny", tmp_path / "model") as hub,
        pytest.raises(CheckpointError, match=r"^model 'someone/tiny' holds pytorch_model.bin only: pickled weights"),
    ):
        valuembed.load("someone/tiny", cache_folder=str(tmp_path / "cache"))
    assert "pytorch_model.bin" not in hub.sent


# Tokenizers


def test_code_that_comes_with_a_tokenizer_is_not_run(tmp_path):
    folder, ran = tiny_checkpoint(tmp_path / "model"), tmp_path / "ran"
    (folder / "tokenization_own.py").write_text(f"from pathlib import Path\nPath({str(ran)!r}).touch()\n")
    config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    config |= {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": [None, "tokenization_own.Own"]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    # What the tokenizers library can read by itself is used; only where the code is all there is, loading fails.
    load(folder)
    assert not ran.exists()
    (folder / "tokenizer.json").unlink()
    refused(folder, "its tokenizer cannot be loaded")
    assert not ran.exists()


@pytest.mark.parametrize("text", ["{", "[]", '{"version": "1.0", "model": {"type": "none"}}'])
def test_a_damaged_tokenizer_is_refused(tmp_path, text):
    folder = tiny_checkpoint(tmp_path / "model")
    (folder / "tokenizer.json").write_text(text, encoding="utf-8")
    refused(folder, "its tokenizer cannot be loaded")


@pytest.mark.parametrize("family", ["qwen3", "gpt2", "gemma3_text", "opt", "llama"])
def test_a_folder_without_a_tokenizer_is_refused(tmp_path, family):
    """For the first four, transformers makes a tokenizer without words, to which every text is blank."""
    folder = tiny_checkpoint(tmp_path / "model", family)
    for file in folder.glob("tokenizer*"):
        file.unlink()
    refused(folder, "its tokenizer cannot be loaded")
