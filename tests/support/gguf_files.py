"""GGUF files as llama.cpp's conversion writes them, from checkpoints in safetensors.

Names come from the package ``gguf``; what the conversion does to numbers is spelt out here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from valuembed.backbone.checkpoints.gguf_types import TYPES
from valuembed.testing import tiny_checkpoint

ARCHITECTURES = {
    "llama": "llama",
    "mistral": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "gemma": "gemma",
    "gemma2": "gemma2",
    "gemma3_text": "gemma3",
    "phi3": "phi3",
}
"""llama.cpp's name of a family, by transformers' model_type."""
OVERRIDES: dict[str, dict[str, Any]] = {
    # Windows in some layers alone, of which a file says nothing.
    "qwen2": {"use_sliding_window": False, "sliding_window": None, "layer_types": None},
    "llama": {"attention_bias": True},
}
WIDE = {"hidden_size": 256, "intermediate_size": 256, "num_attention_heads": 4, "num_key_value_heads": 2}
"""Settings of a decoder whose rows are whole blocks of every type."""
CODES = {kind.name: code for code, kind in TYPES.items()}
"""Codes of types, by their names."""
_GEMMA = ("gemma", "gemma2", "gemma3_text")


def tiny_gguf(folder: Path, family: str = "qwen3", kind: str = "F32", **given: Any) -> tuple[Path, Path]:
    """A tiny random decoder as a GGUF file, and as a folder of safetensors with the very same numbers in float32.

    Args:
        folder: for both.
        family: one of :data:`ARCHITECTURES`.
        kind: how its matrices are packed, a name of :data:`CODES`.
        given: settings of the file beside or in place of those that are written (``settings``), tensors (``tensors``),
            tensors in a part of it (``split``); anything else overrides the decoder's configuration.
    """
    settings, tensors = given.pop("settings", {}), given.pop("tensors", {})
    split, seed = given.pop("split", 0), given.pop("seed", 0)
    tokenizer = given.pop("tokenizer", "byte_level")
    # Its rows are whole blocks of 32.
    plain = tiny_checkpoint(
        folder / "plain",
        family,
        seed=seed,
        tokenizer=tokenizer,
        **{"intermediate_size": 64, **OVERRIDES.get(family, {}), **given},
    )
    file = folder / "model.gguf"
    write_gguf(file, plain, kind, settings=settings, tensors=tensors, split=split)
    return file, plain


def write_gguf(
    file: Path,
    plain: Path,
    kind: str = "F32",
    *,
    settings: Mapping[str, Any] | None = None,
    tensors: Mapping[str, np.ndarray] | None = None,
    split: int = 0,
) -> None:
    """Write a folder's decoder and tokenizer into a GGUF file, and what became of its numbers back into the folder."""
    config = json.loads((plain / "config.json").read_text())
    family = config["model_type"]
    architecture = ARCHITECTURES[family]
    writer = gguf.GGUFWriter(file, architecture, split_max_tensors=split)
    for key, value in {**_settings(config, architecture), **_words(plain), **(settings or {})}.items():
        if value is not None:
            _add(writer, key, value)
    weights = load_file(plain / "model.safetensors")
    names = gguf.get_tensor_name_map(_arch(architecture), config["num_hidden_layers"])
    kept = {}
    for name, weight in weights.items():
        module, _, suffix = name.rpartition(".")
        theirs = names.get_name(module)
        if theirs is None:
            assert name.startswith("lm_head"), name
            theirs = "output"
        numbers = _converted(weight.float().numpy(), theirs, family, config)
        packed, code = (numbers, None) if numbers.ndim == 1 else _packed(numbers, kind)
        writer.add_tensor(f"{theirs}.{suffix}", packed, raw_dtype=code)
        back = numbers if code is None else gguf.dequantize(packed, code).reshape(numbers.shape)
        kept[name] = torch.from_numpy(_undone(back, theirs, family, config)).contiguous()
    for name, numbers in (tensors or {}).items():
        writer.add_tensor(name, numbers)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    save_file(kept, plain / "model.safetensors", metadata={"format": "pt"})


def _arch(architecture: str) -> Any:
    return next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)


def _packed(numbers: np.ndarray, kind: str) -> tuple[np.ndarray, Any]:
    """Packed numbers; where nobody here can pack them, blocks drawn at random, whose scales are small."""
    code = gguf.GGMLQuantizationType(CODES[kind])
    if kind == "F32":
        return numbers, code
    try:
        return gguf.quantize(numbers, code), code
    except NotImplementedError:
        rows, width = numbers.shape
        return random_blocks(kind, rows * width // TYPES[code].block).reshape(rows, -1), code


SCALES = {"Q2_K": (80, 82), "Q3_K": (108,), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,), "IQ4_XS": (0,)}
"""Where the scales of a block lie, in types that the package cannot write."""


def random_blocks(kind: str, blocks: int) -> np.ndarray:
    """Blocks of random bytes ``[blocks, size]`` whose scales are small positive numbers."""
    draw = np.random.default_rng(0)
    made = draw.integers(0, 256, size=(blocks, TYPES[CODES[kind]].size), dtype=np.uint8)
    for at in SCALES[kind]:
        scales = (draw.random(blocks) * 1e-3).astype(np.float16)
        made[:, at : at + 2] = scales.view(np.uint8).reshape(-1, 2)
    return made


def _converted(numbers: np.ndarray, name: str, family: str, config: Mapping[str, Any]) -> np.ndarray:
    if family in _GEMMA and name.endswith("norm"):
        return numbers + np.float32(1)
    if heads := _turned(name, family, config):
        halves = numbers.reshape(heads, 2, numbers.shape[0] // heads // 2, *numbers.shape[1:])
        return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(numbers.shape))
    return numbers


def _undone(numbers: np.ndarray, name: str, family: str, config: Mapping[str, Any]) -> np.ndarray:
    if family in _GEMMA and name.endswith("norm"):
        return numbers - np.float32(1)
    if heads := _turned(name, family, config):
        # Row i of a head is there at 2 i in its first half, and at 2 i + 1 - width in its second.
        width = numbers.shape[0] // heads
        order = [head * width + at for head in range(heads) for half in (0, 1) for at in range(half, width, 2)]
        return numbers[order]
    return numbers


def _turned(name: str, family: str, config: Mapping[str, Any]) -> int:
    """Heads of a matrix whose rows the conversion of Llama and Mistral puts into another order, else 0."""
    if family not in ("llama", "mistral"):
        return 0
    if name.endswith("attn_q"):
        return int(config["num_attention_heads"])
    return int(config["num_key_value_heads"]) if name.endswith("attn_k") else 0


def _settings(config: Mapping[str, Any], architecture: str) -> dict[str, Any]:
    rope = config["rope_parameters"]
    rope = rope.get("full_attention", rope)
    width = config.get("head_dim")
    layers = config.get("layer_types") or []
    return {
        "general.name": "Mistral Tiny" if config["model_type"] == "mistral" else "Tiny",
        f"{architecture}.block_count": config["num_hidden_layers"],
        f"{architecture}.context_length": config["max_position_embeddings"],
        f"{architecture}.embedding_length": config["hidden_size"],
        f"{architecture}.feed_forward_length": config["intermediate_size"],
        f"{architecture}.attention.head_count": config["num_attention_heads"],
        f"{architecture}.attention.head_count_kv": config["num_key_value_heads"],
        f"{architecture}.attention.layer_norm_rms_epsilon": float(config["rms_norm_eps"]),
        f"{architecture}.attention.key_length": width,
        f"{architecture}.attention.value_length": width,
        f"{architecture}.attention.sliding_window": config.get("sliding_window"),
        f"{architecture}.attention.sliding_window_pattern": 2 if "sliding_attention" in layers else None,
        f"{architecture}.attn_logit_softcapping": config.get("attn_logit_softcapping"),
        f"{architecture}.rope.freq_base": float(rope["rope_theta"]),
    }


def _words(plain: Path) -> dict[str, Any]:
    tokenizer = AutoTokenizer.from_pretrained(plain)
    held = json.loads((plain / "tokenizer.json").read_text())
    tokens = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    special = {token["id"] for token in held["added_tokens"]}
    is_bytes = held["model"].get("byte_fallback")
    ids = {"bos": tokenizer.bos_token_id, "eos": tokenizer.eos_token_id, "padding": tokenizer.pad_token_id}
    made = {
        "model": "llama" if is_bytes else "gpt2",
        "pre": "default",
        "tokens": tokens,
        "token_type": [3 if number in special else 1 for number in range(len(tokens))],
        "merges": [" ".join(merge) for merge in held["model"]["merges"]] if not is_bytes else None,
        "scores": [-float(number) for number in range(len(tokens))] if is_bytes else None,
        "add_bos_token": tokenizer("a").input_ids[0] == tokenizer.bos_token_id,
        **{f"{name}_token_id": number for name, number in ids.items()},
    }
    template = tokenizer.chat_template
    return {f"tokenizer.ggml.{key}": value for key, value in made.items()} | {"tokenizer.chat_template": template}


def _add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    add = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
    (writer.add_array if isinstance(value, list) else add[type(value)])(key, value)
