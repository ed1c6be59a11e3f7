"""GGUF files that cannot be read: each in one line that names the file, what is wrong, and what to do."""

from __future__ import annotations

import os
import re
import struct
from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf_files import tiny_gguf

import valuembed
from valuembed.backbone.checkpoints import locate, read_config
from valuembed.errors import CheckpointError, MissingExtraError, UnsupportedModelError

pytestmark = pytest.mark.slow


def refused(model, *says, error=CheckpointError, **options):
    """The line that a load is refused with, after making sure that it says what it should."""
    with pytest.raises(error) as raised:
        valuembed.load(model, **options)
    told = str(raised.value)
    assert "\n" not in told
    assert [part for part in says if part not in told] == [], told
    return told


def header(*settings: tuple[str, int, bytes], tensors: bytes = b"", count: int = 0, version: int = 3) -> bytes:
    """The bytes of a file: settings by name, code of the type and bytes of the value."""
    made = b"GGUF" + struct.pack("<IQQ", version, count, len(settings))
    for name, kind, value in settings:
        made += text(name) + struct.pack("<I", kind) + value
    return made + tensors


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


FAMILY = ("general.architecture", 8, text("qwen3"))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "model.gguf is empty (0 bytes); download it again"),
        (b"GGUF", "model.gguf is cut: it ends after 4 bytes, before what it announces; download it again"),
        (b"GGUF\3\0\0\0", "is cut: it ends after 8 bytes"),
        (b"GGML" * 9, "is no GGUF file: it begins with b'GGML'; give a GGUF file, or a folder"),
        (b"PK\3\4" * 9, "is no GGUF file: it begins with b'PK\\x03\\x04'"),
        (header(version=1), "is GGUF of version 1, and versions 2 and 3 are read; download a newer file"),
        (header(version=9), "is GGUF of version 9, and versions 2 and 3 are read"),
        (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "is big-endian, and only little-endian GGUF files are read; convert"),
        (
            b"GGUF" + struct.pack("<IQQ", 3, 10**12, 0),
            "is cut or damaged: it ends after 24 bytes and announces 1,000,000,000,000 tensors; d",
        ),
        (header(("a", 99, b"")), "is damaged: its setting a is of the unknown type 99; download it again"),
        (header(("a", 8, struct.pack("<Q", 10**6))), "is cut: it ends after"),
        (header(("a", 9, struct.pack("<IQ", 8, 10**6))), "is cut: it ends after"),
        (header(("a", 9, struct.pack("<IQ", 8, 2) + text("b"))), "is cut: it ends after"),
        (header(("a", 9, struct.pack("<IQ", 4, 9))), "is cut: it ends after"),
        (header(("a", 9, struct.pack("<IQ", 9, 1) + b"\0" * 20)), "is damaged: its setting a is of the unknown type 9"),
        (header(FAMILY, count=1, tensors=text("x") + struct.pack("<I", 7)), "its tensor x has 7 dimensions"),
        (
            header(FAMILY, count=1, tensors=text("x") + struct.pack("<IQIQ", 1, 31, 2, 0)),
            "is damaged: its tensor x of shape (31,) is no whole number of Q4_0's blocks of 32",
        ),
        (
            header(FAMILY, count=1, tensors=text("x") + struct.pack("<IQIQ", 1, 32, 2, 0)),
            "1 tensor of 1 should lie behind that (x); download it again",
        ),
        (header(("general.alignment", 4, struct.pack("<I", 0)), FAMILY), "is damaged: general.alignment is 0"),
        (header(), "does not say of which family it is (general.architecture)"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "is a git-lfs pointer in place of the file"),
        (b"<!doctype html><html>", "is a web page in place of the file"),
    ],
)
def test_a_file_that_is_damaged_or_something_else_is_told_in_one_line(tmp_path, content, says):
    (tmp_path / "model.gguf").write_bytes(content)
    refused(tmp_path / "model.gguf", says)


def test_a_file_that_is_cut_anywhere_is_told_so(tmp_path):
    file, _ = tiny_gguf(tmp_path)
    content = file.read_bytes()
    # In the settings, in the table of tensors, and in the tensors.
    for size in (*range(24, 20_000, 1_777), len(content) // 2, len(content) - 1):
        file.write_bytes(content[:size])
        refused(file, "model.gguf is cut", f"it ends after {size:,} bytes", "download it again")


def test_a_file_that_cannot_be_opened_is_told_so(tmp_path):
    file, _ = tiny_gguf(tmp_path)
    file.chmod(0)
    if os.access(file, os.R_OK):
        pytest.skip("this user may read every file")
    refused(file, "cannot be opened: Permission denied")


def test_another_file_is_no_model(tmp_path):
    (tmp_path / "notes.txt").write_text("notes")
    refused(tmp_path / "notes.txt", "is a file and no GGUF file; give the folder that holds it", "a hub id")


@pytest.mark.parametrize("name", ["missing.gguf", "models/missing.gguf", "/no/such/missing.GGUF"])
def test_a_file_that_is_not_there_is_not_sought_on_a_hub(name):
    with pytest.raises(
        CheckpointError, match=rf"^no file '{name}'; give the path of a GGUF file that exists, or a hub"
    ):
        locate(name)


def test_a_folder_with_several_files_lists_them(tmp_path):
    file, _ = tiny_gguf(tmp_path / "made")
    folder = tmp_path / "downloaded"
    folder.mkdir()
    for name in ("a-Q4_K_M.gguf", "a-Q8_0.gguf"):
        (folder / name).write_bytes(file.read_bytes())
    refused(folder, "holds several GGUF files (a-Q4_K_M.gguf, a-Q8_0.gguf); give one of them, such as")


def test_a_missing_part_is_named(tmp_path):
    tiny_gguf(tmp_path, split=12)
    parts = sorted(tmp_path.glob("model-*.gguf"))
    parts[1].unlink()
    told = f"is split into {len(parts)} files, and not all are there: {parts[1].name}; download them into the same"
    refused(parts[0], told)
    refused(parts[2], told)


def test_parts_of_two_models_are_not_mixed(tmp_path):
    tiny_gguf(tmp_path, split=12)
    parts = sorted(tmp_path.glob("model-*.gguf"))
    parts[1].write_bytes(parts[2].read_bytes())
    refused(parts[0], f"{parts[1].name} says that it is part 3 of {len(parts)}; give the parts the names")
    (tmp_path / "whole").mkdir()
    whole, _ = tiny_gguf(tmp_path / "whole", settings={"split.tensors.count": 99})
    refused(whole, "its parts hold 47 tensors and should hold 99, so they are not of one model")


@pytest.mark.parametrize(
    ("family", "says"),
    [
        *((name, "it is an encoder, and a decoder is needed") for name in ("bert", "nomic-bert", "t5encoder")),
        ("gemma-embedding", "it is an encoder, and a decoder is needed"),
        ("clip", "it holds an image encoder alone; give the file of the language model"),
        ("flux", "it makes images or films; give the file of a language model"),
        ("mamba", "it has no attention whose values could be read"),
        ("deepseek2", "its attention compresses keys and values together (MLA), so that its values cannot be read"),
        (
            "brandnew\n",
            "GGUF files are read of llama, mistral, qwen2, qwen3, gemma, gemma2, gemma3, phi3; give the mod",
        ),
    ],
)
def test_a_family_that_is_not_read_is_named(tmp_path, family, says):
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", family)
    writer.add_tensor("x", np.zeros(32, dtype=np.float32))
    finished(writer)
    refused(tmp_path / "model.gguf", f"is of the family {family.strip()!r}"[:-2], says, error=UnsupportedModelError)


def finished(writer: gguf.GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"qwen3.expert_count": 8}, "its layers have 8 experts, and mixtures of experts are not read from GGUF files"),
        ({"qwen3.attention.value_length": 12}, "its value heads are 12 wide and its keys 8, which is not read"),
        ({"qwen3.rope.dimension_count": 4}, "positions turn 4 of the 8 numbers of a head"),
        ({"qwen3.rope.scaling.type": "longrope"}, "it stretches positions by 'longrope', and linear and yarn are read"),
        ({"tokenizer.ggml.model": "rwkv"}, "its tokenizer is of the kind 'rwkv', and 'gpt2' and 'llama' are read"),
        ({"tokenizer.ggml.pre": "viking"}, "its tokenizer cuts texts as 'viking' does, which is not read from GGUF"),
    ],
)
def test_a_choice_that_is_not_read_is_named(tmp_path, settings, says):
    file, _ = tiny_gguf(tmp_path, settings=settings)
    refused(file, says, "give the model that it was made from", error=UnsupportedModelError)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"qwen3.block_count": None}, "its setting qwen3.block_count is missing"),
        ({"qwen3.attention.head_count": [4, 2]}, "its setting qwen3.attention.head_count is [4, 2], and one number"),
        ({"qwen3.embedding_length": 64}, "token_embd.weight is 32 wide and its settings say 64; download it again"),
        ({"qwen3.rope.freq_base": "many"}, "its settings are damaged: ValueError: could not convert string to float"),
        ({"qwen3.rope.scaling.type": "yarn"}, "its settings are damaged: TypeError:"),
        ({"qwen3.attention.head_count_kv": 3}, "k_proj.weight has the shape (16, 32) in the checkpoint, but"),
        ({"tokenizer.ggml.tokens": None}, "its tokenizer cannot be loaded: the file holds no vocabulary"),
        ({"tokenizer.ggml.merges": None}, "its tokenizer cannot be loaded: the file holds no merges; convert it anew"),
        ({"tokenizer.ggml.merges": ["zz zz"]}, "its tokenizer cannot be loaded:"),
        ({"tokenizer.ggml.token_type": [1]}, "tokenizer.ggml.token_type is not a number for each of"),
    ],
)
def test_a_setting_that_means_nothing_is_named(tmp_path, settings, says):
    file, _ = tiny_gguf(tmp_path, settings=settings)
    refused(file, says)


def test_divisors_of_frequencies_that_are_not_llama_3s_are_refused(tmp_path):
    tensors = {"rope_freqs.weight": np.array([1, 2, 3, 4], dtype=np.float32)}
    file, _ = tiny_gguf(tmp_path, "llama", tensors=tensors)
    refused(file, "its rope_freqs.weight stretches positions in another way", error=UnsupportedModelError)
    file, _ = tiny_gguf(tmp_path / "half", "llama", tensors={"rope_freqs.weight": np.ones(4, dtype=np.float16)})
    refused(file, "rope_freqs.weight is of type F16, and F32 is read")


def test_numbers_of_an_unread_type_are_named_unless_they_are_not_needed(tmp_path):
    file, _ = tiny_gguf(tmp_path)
    wrongly_typed(file, b"blk.3.attn_q.weight", 39)
    assert valuembed.load(file, layers=[2]).encode(["a text"]).shape == (1, 32)
    refused(
        file,
        "blk.3.attn_q.weight is of the type MXFP4, which is not read; take a file of another quantization",
        error=UnsupportedModelError,
        layers=[3],
    )
    wrongly_typed(file, b"blk.1.attn_q.weight", 77)
    refused(file, "blk.1.attn_q.weight is of the type number 77", error=UnsupportedModelError, layers=[1])


def wrongly_typed(file: Path, name: bytes, code: int) -> None:
    """Write another type behind the two dimensions of a tensor."""
    content = bytearray(file.read_bytes())
    at = content.index(name) + len(name) + 4 + 16
    content[at : at + 4] = struct.pack("<I", code)
    file.write_bytes(content)


def test_types_of_the_package_need_it(tmp_path, monkeypatch):
    file, _ = tiny_gguf(tmp_path)
    # IQ4_NL takes less room than the single precision that is there.
    wrongly_typed(file, b"blk.0.attn_q.weight", 20)
    monkeypatch.setitem(__import__("sys").modules, "gguf", None)
    refused(file, "gguf is not installed; run: pip install", "[gguf]", error=MissingExtraError)


@pytest.mark.parametrize("name", ["attn_sub_norm.weight", "attn_q.scale"])
def test_a_layer_with_more_than_its_family_has_is_refused(tmp_path, name):
    file, _ = tiny_gguf(tmp_path, tensors={f"blk.0.{name}": np.ones(32, dtype=np.float32)})
    refused(file, f"its layers hold {name!r}, which those of qwen3 do not have", error=UnsupportedModelError)


def test_a_missing_weight_is_named(tmp_path):
    file, _ = tiny_gguf(tmp_path)
    content = file.read_bytes()
    file.write_bytes(content.replace(b"blk.1.attn_v.weight", b"xyz.1.attn_v.weight"))
    refused(file, "1 needed weight is not in the checkpoint: layers.1.self_attn.v_proj.weight; it would be random")


def test_an_image_encoder_or_adapter_of_a_read_family_is_no_whole_model(tmp_path):
    file, _ = tiny_gguf(tmp_path)
    file.write_bytes(file.read_bytes().replace(b"token_embd.weight", b"token_xxxx.weight"))
    refused(file, "holds no token_embd.weight, so it is no whole model (an adapter, a part or an image encoder)")


def test_a_device_map_is_refused_by_name(tmp_path):
    file, _ = tiny_gguf(tmp_path)
    refused(
        file,
        "a device_map spreads weights of safetensors files, not of GGUF files; load it without, save it to a folder",
        error=UnsupportedModelError,
        model_kwargs={"device_map": "cpu"},
    )


def test_a_repository_of_gguf_files_says_how_to_name_one(tmp_path):
    with pytest.raises(CheckpointError, match=re.escape("is named behind it: someone/tiny-GGUF:NAME.gguf")):
        read_config(locate("someone/tiny-GGUF", cache_folder=str(tmp_path), local_files_only=True))
    with pytest.raises(CheckpointError, match=r"missing\.gguf"):
        read_config(locate("someone/tiny-GGUF:missing.gguf", cache_folder=str(tmp_path), local_files_only=True))
