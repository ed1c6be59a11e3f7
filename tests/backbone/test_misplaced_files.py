"""Files of a checkpoint that are something else than their names say, and folders without the files that are read."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import valuembed
from valuembed.backbone.checkpoints.location import locate
from valuembed.backbone.checkpoints.misplaced_files import find_fault, models_below
from valuembed.cli.main import app
from valuembed.errors import CheckpointError
from valuembed.testing import tiny_checkpoint

pytestmark = pytest.mark.slow

SINGLE = "model.safetensors"
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 100\n"
PAGE = b"\n<!DOCTYPE html><html><body>Sign in</body></html>"
FAULTS = {
    "pointer": (POINTER, "is a git-lfs pointer in place of the file; run `git lfs pull` in its folder"),
    "empty": (b"", "is empty (0 bytes); download it again"),
    "page": (PAGE, "is a web page in place of the file, as saved from a link that did not work; download it again"),
}


def refused(folder: Path, *parts: str) -> str:
    """Loading fails as a checkpoint's fault, in one line that says all of `parts`."""
    with pytest.raises(CheckpointError) as caught:
        valuembed.load(folder, "va", layers=[1])
    message = str(caught.value)
    lacking = [part for part in parts if part not in message]
    assert not lacking, f"{lacking} not in: {message}"
    assert "\n" not in message
    return message


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize(
    "file", [SINGLE, "config.json", "tokenizer.json", "tokenizer_config.json", "vocab.json", "tokenizer.model"]
)
def test_something_else_in_the_place_of_a_file_is_named(tmp_path, file, fault):
    folder = tiny_checkpoint(tmp_path / "model")
    content, message = FAULTS[fault]
    (folder / file).write_bytes(content)
    refused(folder, f"model {str(folder)!r}: {file} {message}")


@pytest.mark.parametrize("file", ["adapter_model.safetensors", "adapter_config.json"])
def test_a_pointer_in_the_place_of_an_adapter_is_named(tmp_path, file):
    folder = tiny_checkpoint(tmp_path / "model")
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA"}', encoding="utf-8")
    (folder / file).write_bytes(POINTER)
    refused(folder, f"{file} is a git-lfs pointer")


def test_a_pointer_among_shards_is_named_and_only_where_it_is_needed(tmp_path):
    folder = tiny_checkpoint(tmp_path / "model", shards=3)
    shards = json.loads((folder / f"{SINGLE}.index.json").read_text("utf-8"))["weight_map"]
    needed = {file for name, file in shards.items() if "layers.0." in name or "layers.1." in name or "embed" in name}
    (folder / sorted(needed)[0]).write_bytes(POINTER)
    refused(folder, f"{sorted(needed)[0]} is a git-lfs pointer")


def test_info_needs_no_weights_and_takes_a_folder_of_pointers(tmp_path):
    folder = tiny_checkpoint(tmp_path / "model")
    (folder / SINGLE).write_bytes(POINTER)
    assert valuembed.info(folder, "va").num_layers == 4


@pytest.mark.parametrize("file", [SINGLE, "config.json", "tokenizer.json"])
def test_a_link_to_nothing_is_named_with_what_it_points_to(tmp_path, file):
    folder = tiny_checkpoint(tmp_path / "model")
    (folder / file).unlink()
    (folder / file).symlink_to("../../blobs/0123")
    refused(folder, f"{file} is a link to '../../blobs/0123', which is not there; copy the file itself")


def test_a_link_that_leads_somewhere_is_followed(tmp_path):
    folder = tiny_checkpoint(tmp_path / "model")
    (folder / SINGLE).rename(tmp_path / "blob")
    (folder / SINGLE).symlink_to(tmp_path / "blob")
    assert valuembed.load(folder, "va", layers=[1]).encode(["a text"]).shape == (1, 16)


def test_what_cannot_be_judged_by_its_first_bytes_has_no_fault(tmp_path):
    (tmp_path / "file").write_bytes(b"{}")
    assert find_fault(str(tmp_path / "file")) is None
    assert find_fault(str(tmp_path)) is None
    assert find_fault(str(tmp_path / "none")) is None


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("model-00001-of-00001.safetensors", "the whole weights, without an index; rename it to model.safetensors"),
        (
            "model-00002-of-00003.safetensors",
            "a part of the weights, and their index model.safetensors.index.json is not here",
        ),
        ("model.fp16.safetensors", "a variant of the weights; rename it to model.safetensors to use it"),
        ("consolidated.safetensors", "weights in their maker's own layout; take the files"),
        ("consolidated.00.pth", "weights in their maker's own layout; take the files"),
        ("diffusion_pytorch_model.safetensors", "another kind of model; a decoder is needed"),
        ("tf_model.h5", "weights for TensorFlow or Flax; take a revision with safetensors"),
        ("flax_model.msgpack", "weights for TensorFlow or Flax"),
        (
            "model-Q4_K_M.gguf",
            "a model by itself; give the path of that file",
        ),
        ("model.safetensors.part", "an unfinished download; let it finish or download it again"),
        ("0123abcd.incomplete", "an unfinished download"),
        ("model.ckpt", "pickled weights, which can run code; convert them to safetensors"),
        ("weights.safetensors", "weights under another name; rename it to model.safetensors if it holds the whole"),
        ("adapter_model.safetensors", "an adapter's weights; adapter_config.json has to lie beside them"),
    ],
)
def test_what_lies_in_the_place_of_weights_is_named_with_what_to_do(tmp_path, name, says):
    folder = tiny_checkpoint(tmp_path / "model")
    (folder / SINGLE).rename(folder / name)
    (folder / "training_args.bin").touch()
    refused(folder, "holds no weights: neither model.safetensors nor model.safetensors.index.json", f"{name}: {says}")


def test_the_weights_of_training_on_several_machines_are_refused_by_name(tmp_path):
    """transformers takes them before `model.safetensors`, whose numbers may be others."""
    folder = tiny_checkpoint(tmp_path / "model")
    (folder / "shard-00001-model-00001-of-00001.safetensors").touch()
    refused(folder, "holds shard-00001-model-00001-of-00001.safetensors", "join them into one file, or move them away")


def test_a_folder_above_models_lists_them(tmp_path):
    below = [tmp_path / "models" / name for name in ("a", "b")]
    snapshot = tmp_path / "models--someone--tiny" / "snapshots" / "0123"
    for folder in (*below, snapshot):
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{}")
    listed = re.escape(f"these folders in it hold one: {str(below[0])!r}, {str(below[1])!r}")
    with pytest.raises(CheckpointError, match=listed):
        locate(tmp_path / "models")
    with pytest.raises(CheckpointError, match=re.escape(f"these folders in it hold one: {str(snapshot)!r}")):
        locate(tmp_path / "models--someone--tiny")
    assert models_below(str(tmp_path)) == []


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("https://huggingface.co/Qwen/Qwen3-0.6B", "give the hub id 'Qwen/Qwen3-0.6B'"),
        ("huggingface.co/Qwen/Qwen3-0.6B/tree/main", "give the hub id 'Qwen/Qwen3-0.6B'"),
        ("Qwen/Qwen3-0.6B/", "give a folder that exists, or the hub id 'Qwen/Qwen3-0.6B'"),
        ("qwen3:0.6b", "a name with a tag is Ollama's; give the path of its GGUF file (`ollama show --modelfile`"),
    ],
)
def test_a_name_that_is_nearly_a_hub_id_is_answered_with_it(name, says):
    with pytest.raises(CheckpointError, match=re.escape(f"no folder {name!r}; {says}")):
        locate(name)


def test_a_trailing_slash_changes_nothing(tmp_path):
    folder = tiny_checkpoint(tmp_path / "model")
    assert valuembed.load(f"{folder}{os.sep}", "va", layers=[1]).reader.origin.name == "model"


# Configurations


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"\xef\xbb\xbf{}", "config.json is no JSON: Unexpected UTF-8 BOM"),
        (b'{"model_type": "qwen3"} xx', "config.json is no JSON: Extra data"),
        (b"\x00" * 9, "config.json is no JSON: Expecting value"),
        (b"null", "config.json holds NoneType, not an object"),
        (b"{}", "model_type"),
    ],
)
def test_a_config_that_is_none_says_what_is_wrong_with_it(tmp_path, content, says):
    folder = tiny_checkpoint(tmp_path / "model")
    (folder / "config.json").write_bytes(content)
    refused(folder, "its configuration cannot be read", says)


def set_config(folder: Path, **settings: object) -> None:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(config | settings), encoding="utf-8")


@pytest.mark.parametrize("name", ["float7", "auto", "torch.bfloat16"])
def test_a_dtype_that_torch_does_not_know_is_named(tmp_path, name):
    folder = tiny_checkpoint(tmp_path / "model")
    set_config(folder, dtype=name)
    refused(folder, "config.json names a dtype that torch does not know", name, "legal are float32, bfloat16")


@pytest.mark.parametrize("name", ["float8_e4m3fn", "int8"])
def test_a_dtype_in_which_nothing_is_computed_asks_for_another(tmp_path, name):
    folder = tiny_checkpoint(tmp_path / "model")
    set_config(folder, dtype=name)
    refused(folder, f"config.json names the dtype {name!r}, in which nothing is computed; name one of float32")
    assert valuembed.load(folder, "va", layers=[1], dtype="float32").dtype == torch.float32


@pytest.mark.parametrize("dtype", [None, {}])
def test_without_a_dtype_the_weights_decide(tmp_path, dtype):
    folder = tiny_checkpoint(tmp_path / "model")
    set_config(folder, dtype=dtype)
    assert valuembed.load(folder, "va", layers=[1]).dtype == torch.float32


def test_a_damaged_generation_config_does_not_matter(tmp_path):
    folder = tiny_checkpoint(tmp_path / "model")
    (folder / "generation_config.json").write_text("{", encoding="utf-8")
    assert valuembed.load(folder, "va", layers=[1]).encode(["a text"]).shape == (1, 16)


# Tensors


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.int8, torch.bool])
def test_a_quantized_weight_without_a_word_on_how_is_refused(tmp_path, dtype):
    """Its numbers alone would be taken for the weights, without their scales."""
    folder = tiny_checkpoint(tmp_path / "model")
    weights = load_file(folder / SINGLE)
    name = "model.layers.1.self_attn.v_proj.weight"
    save_file(weights | {name: weights[name].to(dtype)}, folder / SINGLE, metadata={"format": "pt"})
    refused(folder, f"{name} in {SINGLE} is ", "quantized, and config.json has no quantization_config that says how")


def test_a_header_of_any_length_is_read(tmp_path):
    """The data of a file begins where its header ends, on any byte."""
    folder = tiny_checkpoint(tmp_path / "model")
    whole = (folder / SINGLE).read_bytes()
    length = int.from_bytes(whole[:8], "little")
    expected = valuembed.load(folder, "va", layers=[1]).encode(["a text"])
    for extra in (1, 3):
        header = whole[8 : 8 + length] + b" " * extra
        (folder / SINGLE).write_bytes(len(header).to_bytes(8, "little") + header + whole[8 + length :])
        assert abs(valuembed.load(folder, "va", layers=[1]).encode(["a text"]) - expected).max() < 1e-6


@pytest.mark.parametrize("prefix", ["", "model.", "language_model.model.", "model.language_model."])
def test_the_names_of_a_model_around_the_decoder_are_understood(tmp_path, prefix):
    folder = tiny_checkpoint(tmp_path / "model")
    expected = valuembed.load(folder, "va", layers=[1]).encode(["a text"])
    weights = {f"{prefix}{name.removeprefix('model.')}": tensor for name, tensor in load_file(folder / SINGLE).items()}
    save_file(weights, folder / SINGLE, metadata={"format": "pt"})
    assert abs(valuembed.load(folder, "va", layers=[1]).encode(["a text"]) - expected).max() < 1e-6


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod."])
def test_names_that_are_not_understood_are_shown(tmp_path, prefix):
    folder = tiny_checkpoint(tmp_path / "model")
    weights = {f"{prefix}{name}": tensor for name, tensor in load_file(folder / SINGLE).items()}
    save_file(weights, folder / SINGLE, metadata={"format": "pt"})
    refused(folder, "23 needed weights are not in the checkpoint: ", f"it holds {prefix}model.", "would be random")


# The command line


@pytest.mark.parametrize("command", [["info"], ["similarity", "a", "b"]])
def test_the_command_line_says_it_in_one_line(tmp_path, command):
    folder = tiny_checkpoint(tmp_path / "model")
    (folder / "config.json").write_bytes(POINTER)
    result = CliRunner().invoke(app, [*command, "--model", str(folder)])
    assert result.exit_code == 1
    assert "Traceback" not in result.output
    assert [line for line in result.stderr.splitlines() if line.startswith("error: ")] == [
        f"error: model {str(folder)!r}: config.json {find_fault(str(folder / 'config.json'))}"
    ]
