"""Packed numbers of GGUF files as tensors, one after another and each piece by piece.

A type packs a block of numbers as small whole numbers with a scale, or with a scale and an offset; the larger blocks
have scales for every 16 or 32 numbers, which are packed themselves. Products and sums are in float32 and in the order
of llama.cpp's own code, so that they are equal to the bit.

Source: llama.cpp, ``ggml-common.h`` for the layouts and ``ggml-quants.c`` for their meaning.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from math import prod

import numpy as np
import torch
from torch import Tensor

from valuembed._utils.optional import require
from valuembed.backbone.checkpoints import GgufTensor
from valuembed.errors import CheckpointError

PIECE = 1 << 20
"""Numbers that are unpacked at once, at most: few enough to stay near the processor."""

_PLAIN = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F64": torch.float64}


def read_tensor(tensor: GgufTensor, dtype: torch.dtype, model: str) -> Tensor:
    """Read a tensor, unpacked into the precision that is computed in.

    Beside the outcome this takes memory for a piece, however large the tensor is.

    Args:
        tensor: where it lies.
        dtype: of the outcome.
        model: for errors.

    Raises:
        MissingExtraError: its type takes a package that is not installed.
        CheckpointError: the file ends before the tensor does.
    """
    kind = tensor.type
    out = torch.empty(tensor.shape, dtype=dtype)
    flat = out.view(-1)
    unpack = _unpacker(tensor)
    blocks = prod(tensor.shape) // kind.block
    step = max(1, PIECE // kind.block)
    held = bytearray(min(step, blocks) * kind.size)
    with open(tensor.path, "rb", buffering=0) as file:
        file.seek(tensor.offset)
        for first in range(0, blocks, step):
            many = min(step, blocks - first)
            view = memoryview(held)[: many * kind.size]
            _fill(file, view, tensor.path, model)
            packed = torch.frombuffer(held, dtype=torch.uint8, count=len(view)).view(many, kind.size)
            flat[first * kind.block : (first + many) * kind.block].copy_(unpack(packed).reshape(-1))
    return out


def _fill(file: io.RawIOBase, view: memoryview, path: str, model: str) -> None:
    while view:
        read = file.readinto(view)
        if not read:
            raise CheckpointError(
                f"model {model!r}: {os.path.basename(path)} became shorter while it was read; download it again"
            )
        view = view[read:]


def _unpacker(tensor: GgufTensor) -> Callable[[Tensor], Tensor]:
    kind = tensor.type
    if kind.is_plain:
        return lambda packed: packed.view(-1).view(_PLAIN[kind.name])
    if kind.needs_package:
        quants = require("gguf", "gguf")
        code = quants.GGMLQuantizationType(tensor.code)
        return lambda packed: torch.from_numpy(quants.dequantize(packed.numpy(), code))
    return _UNPACKERS[kind.name]


def _half(packed: Tensor, at: int) -> Tensor:
    """A scale of each of n blocks, ``[n, 1]``."""
    return packed[:, at : at + 2].view(torch.float16).float()


def _nibbles(packed: Tensor) -> Tensor:
    """Numbers of 4 bits, ``[n, 2 k]`` of ``[n, k]`` bytes: first the lower halves of all bytes, then the upper."""
    packed = packed.contiguous()
    return torch.cat([packed & 15, packed >> 4], dim=1)


def _fields(packed: Tensor, bits: int, mask: int) -> Tensor:
    """Numbers of a few bits, ``[n, 8 / bits, k]`` of ``[n, k]`` bytes: first the lowest bits of all bytes."""
    packed = packed.contiguous()
    return torch.stack([(packed >> shift) & mask for shift in range(0, 8, bits)], dim=1)


def _fifth_bits(packed: Tensor) -> Tensor:
    """A bit for each of 32 numbers, lowest first, as the 16 that it adds: ``[n, 32]`` of ``[n, 4]`` bytes."""
    bits = np.unpackbits(packed.contiguous().numpy(), axis=1, bitorder="little")
    return torch.from_numpy(bits) << 4


def _less(packed: Tensor, zero: int) -> Tensor:
    """Numbers of which ``zero`` stands for 0, as float32."""
    return (packed.view(torch.int8) - zero).float()


def _q4_0(packed: Tensor) -> Tensor:
    return _less(_nibbles(packed[:, 2:]), 8).mul_(_half(packed, 0))


def _q4_1(packed: Tensor) -> Tensor:
    return _nibbles(packed[:, 4:]).float().mul_(_half(packed, 0)).add_(_half(packed, 2))


def _q5_0(packed: Tensor) -> Tensor:
    return _less(_nibbles(packed[:, 6:]) | _fifth_bits(packed[:, 2:6]), 16).mul_(_half(packed, 0))


def _q5_1(packed: Tensor) -> Tensor:
    whole = _nibbles(packed[:, 8:]) | _fifth_bits(packed[:, 4:8])
    return whole.float().mul_(_half(packed, 0)).add_(_half(packed, 2))


def _q8_0(packed: Tensor) -> Tensor:
    return packed[:, 2:].contiguous().view(torch.int8).float().mul_(_half(packed, 0))


def _q2_k(packed: Tensor) -> Tensor:
    scales = packed[:, :16]
    scale = ((scales & 15) * _half(packed, 80)).unsqueeze(2)
    offset = ((scales >> 4) * _half(packed, 82)).unsqueeze(2)
    return _two_bits(packed[:, 16:80]).float().mul_(scale).sub_(offset)


def _q3_k(packed: Tensor) -> Tensor:
    # Of 16 scales of 6 bits, the lower 4 lie in 8 bytes and the upper 2 in the 4 bytes behind these.
    lower, upper = _nibbles(packed[:, 96:104]), _fields(packed[:, 104:108], 2, 3).flatten(1)
    scale = ((lower | (upper << 4)).view(torch.int8) - 32) * _half(packed, 108)
    # A bit that is not set takes 4 away.
    third = _fields(packed[:, :32], 1, 1).view(-1, 16, 16) << 2
    return _less(_two_bits(packed[:, 32:96]) | third, 4).mul_(scale.unsqueeze(2))


def _two_bits(packed: Tensor) -> Tensor:
    """256 numbers of 2 bits, ``[n, 16, 16]`` of ``[n, 64]`` bytes, which are taken in two halves."""
    return torch.cat([_fields(packed[:, :32], 2, 3), _fields(packed[:, 32:], 2, 3)], dim=1).view(-1, 16, 16)


def _q4_k(packed: Tensor) -> Tensor:
    scale, offset = _scales_and_offsets(packed)
    return _halves(packed[:, 16:144]).float().mul_(scale).sub_(offset)


def _q5_k(packed: Tensor) -> Tensor:
    scale, offset = _scales_and_offsets(packed)
    fifth = _fields(packed[:, 16:48], 1, 1) << 4
    return (_halves(packed[:, 48:176]) | fifth).float().mul_(scale).sub_(offset)


def _halves(packed: Tensor) -> Tensor:
    """256 numbers of 4 bits, ``[n, 8, 32]`` of ``[n, 128]`` bytes, which are taken in four runs of 32."""
    runs = packed.contiguous().view(-1, 4, 1, 32)
    return torch.cat([runs & 15, runs >> 4], dim=2).view(-1, 8, 32)


def _scales_and_offsets(packed: Tensor) -> tuple[Tensor, Tensor]:
    """What each of 8 runs of 32 is multiplied by, and what is taken away then, ``[n, 8, 1]`` each.

    Both are of 6 bits and lie in 12 bytes: four of each whole, and the upper 2 bits of the other four above those.
    """
    first, second, third = packed[:, 4:8], packed[:, 8:12], packed[:, 12:16]
    scale = torch.cat([first & 63, (third & 15) | ((first >> 6) << 4)], dim=1)
    offset = torch.cat([second & 63, (third >> 4) | ((second >> 6) << 4)], dim=1)
    return (scale * _half(packed, 0)).unsqueeze(2), (offset * _half(packed, 2)).unsqueeze(2)


def _q6_k(packed: Tensor) -> Tensor:
    lower = torch.cat([_nibbles(packed[:, :64]), _nibbles(packed[:, 64:128])], dim=1)
    upper = torch.cat([_fields(packed[:, 128:160], 2, 3), _fields(packed[:, 160:192], 2, 3)], dim=1).flatten(1)
    scale = packed[:, 192:208].view(torch.int8) * _half(packed, 208)
    return _less(lower | (upper << 4), 32).view(-1, 16, 16).mul_(scale.unsqueeze(2))


_UNPACKERS: dict[str, Callable[[Tensor], Tensor]] = {
    "Q4_0": _q4_0,
    "Q4_1": _q4_1,
    "Q5_0": _q5_0,
    "Q5_1": _q5_1,
    "Q8_0": _q8_0,
    "Q2_K": _q2_k,
    "Q3_K": _q3_k,
    "Q4_K": _q4_k,
    "Q5_K": _q5_k,
    "Q6_K": _q6_k,
}
"""By the type's name: float32, n blocks of ``[n, bytes]``; numbers of a block in order, in any shape."""
