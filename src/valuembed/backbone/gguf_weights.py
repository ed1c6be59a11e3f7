"""The weights of a GGUF file under transformers' names, undone what llama.cpp's conversion does to them."""

from __future__ import annotations

import re

import torch
from torch import Tensor
from transformers import PretrainedConfig

from valuembed._utils.text import counted, printable, shortened
from valuembed.backbone.checkpoints import (
    GGUF_EMBEDDINGS,
    GGUF_HEAD,
    Checkpoint,
    GgufFile,
    GgufTensor,
    gguf_type_name,
    is_gguf_type,
    is_needed,
)
from valuembed.backbone.dequantizing import read_tensor
from valuembed.errors import CheckpointError, UnsupportedModelError

_OUTSIDE = {GGUF_EMBEDDINGS: "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight"}
_INSIDE = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_qkv": "self_attn.qkv_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_GEMMA = {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
"""Gemma's norms since its second generation, one before and one behind each half of a layer."""
_OWN = {"gemma2": _GEMMA, "gemma3": _GEMMA, "phi3": {"ffn_up": "mlp.gate_up_proj"}}
_LEFT_OUT = frozenset({"attn_rot_embd"})
"""What old files repeat in every layer, and settings say too."""

_LAYER = re.compile(r"blk\.(\d+)\.(.+)\.(\w+)")

_INTERLEAVED = frozenset({"llama", "mistral"})
"""Families whose queries and keys llama.cpp turns in pairs of neighbours, and transformers in two halves of a head."""
_ADDED_ONE = frozenset({"gemma", "gemma2", "gemma3"})
"""Families whose norms multiply by one more than their weight in transformers, and by their weight in llama.cpp."""


def find_gguf_weights(
    file: GgufFile, keep_layers: int, tail: tuple[str, ...] = ()
) -> dict[str, tuple[str, GgufTensor]]:
    """Find the tensors that a cut decoder needs.

    Args:
        file: what it says of itself.
        keep_layers: layers ``0 .. keep_layers - 1`` are needed.
        tail: paths of the modules after the last layer, where these are not needed.

    Returns:
        llama.cpp's name of the tensor and its place, by transformers' name.

    Raises:
        UnsupportedModelError: a layer holds something else than layers of its family do, or numbers of a type that is
            not read.
    """
    found: dict[str, tuple[str, GgufTensor]] = {}
    names = {**_INSIDE, **_OWN.get(file.architecture, {})}
    for name, tensor in file.tensors.items():
        target = _OUTSIDE.get(name)
        if (inside := _LAYER.fullmatch(name)) is not None:
            if int(inside[1]) >= keep_layers or inside[2] in _LEFT_OUT:
                continue
            if inside[2] not in names or inside[3] not in ("weight", "bias"):
                told = shortened(printable(f"{inside[2]}.{inside[3]}"), 60)
                raise UnsupportedModelError(
                    f"model {file.name!r}: its layers hold {told!r}, which those of {file.architecture} do not "
                    "have, so its numbers would be read wrongly; give the model that it was made from"
                )
            target = f"model.layers.{inside[1]}.{names[inside[2]]}.{inside[3]}"
        if target is None or not is_needed(target, keep_layers, tail):
            continue
        if not is_gguf_type(tensor.code):
            raise UnsupportedModelError(
                f"model {file.name!r}: {name} is of the type {gguf_type_name(tensor.code)}, which is not read; take a "
                "file of another quantization, such as Q4_K_M or Q8_0"
            )
        found[target] = name, tensor
    return found


def read_gguf_weights(
    checkpoint: Checkpoint, config: PretrainedConfig, found: dict[str, tuple[str, GgufTensor]], dtype: torch.dtype
) -> dict[str, Tensor]:
    """Unpack tensors into the precision that is computed in, one after the other.

    Args:
        checkpoint: the place.
        config: of the decoder.
        found: what :func:`find_gguf_weights` found.
        dtype: of the tensors.

    Returns:
        They, by transformers' name.

    Raises:
        MissingExtraError: a type takes a package that is not installed.
        CheckpointError: the file was changed meanwhile.
    """
    family = checkpoint.gguf_header().architecture
    return {
        target: _read(family, name, tensor, config, dtype, checkpoint.name) for target, (name, tensor) in found.items()
    }


def read_gguf_head(checkpoint: Checkpoint, config: PretrainedConfig) -> Tensor:
    """The weight of the language model head, and nothing else.

    Args:
        checkpoint: the place.
        config: of its decoder.

    Returns:
        ``[vocabulary, m]`` in the precision that the configuration names; where the head is tied to the input
        embeddings, these.

    Raises:
        CheckpointError: it holds no head.
        UnsupportedModelError: its numbers are of a type that is not read.
    """
    tensors = checkpoint.gguf_header().tensors
    name = GGUF_EMBEDDINGS if GGUF_HEAD not in tensors else GGUF_HEAD
    tensor = tensors[name]
    if not is_gguf_type(tensor.code):
        raise UnsupportedModelError(
            f"model {checkpoint.name!r}: {name} is of the type {gguf_type_name(tensor.code)}, which is not read; take "
            "a file of another quantization, such as Q4_K_M or Q8_0"
        )
    dtype = getattr(config, "dtype", None)
    return read_tensor(tensor, dtype if isinstance(dtype, torch.dtype) else torch.bfloat16, checkpoint.name)


def _read(
    family: str, name: str, tensor: GgufTensor, config: PretrainedConfig, dtype: torch.dtype, model: str
) -> Tensor:
    if family in _ADDED_ONE and name.endswith("norm.weight"):
        return (read_tensor(tensor, torch.float32, model) - 1).to(dtype)
    weight = read_tensor(tensor, dtype, model)
    if family not in _INTERLEAVED or (inside := _LAYER.fullmatch(name)) is None:
        return weight
    if inside[2] not in ("attn_q", "attn_k"):
        return weight
    heads = config.num_attention_heads if inside[2] == "attn_q" else config.num_key_value_heads
    if weight.shape[0] % (2 * heads):
        raise CheckpointError(
            f"model {model!r}: {name} has {counted(weight.shape[0], 'row')}, which are not those of "
            f"{counted(heads, 'head')}; download it again"
        )
    pairs = weight.view(heads, weight.shape[0] // heads // 2, 2, *weight.shape[1:])
    return pairs.transpose(1, 2).reshape(weight.shape)
