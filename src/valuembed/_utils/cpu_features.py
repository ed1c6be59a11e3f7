"""Which half precisions this CPU multiplies natively, and whether it does so with bytes."""

from __future__ import annotations

import platform
from functools import cache
from pathlib import Path

_FLAGS = Path("/proc/cpuinfo")
_FOR_BFLOAT16 = ({"avx512_bf16"}, {"amx_tile"})
_FOR_FLOAT16 = ({"amx_fp16"},)
_FOR_PRODUCTS = {"avx512bw", "avx512vl", "avx512dq"}
"""What oneDNN wants of a CPU before it multiplies in bfloat16 at all."""
_FOR_BYTES = ({"avx512_vnni", *_FOR_PRODUCTS}, {"avx_vnni"})
"""Instructions that add up products of bytes in 32 bits; older ones saturate in 16."""


@cache
def fast_halves() -> frozenset[str]:
    """The half precisions, of ``"bfloat16"`` and ``"float16"``, that this CPU has fast arithmetic for.

    On Linux the kernel tells, so that torch need not be imported for it; elsewhere torch does.
    """
    flags = _cpu_flags()
    if flags is None:
        return _as_torch_tells()
    bfloat16 = flags >= _FOR_PRODUCTS and any(flags >= wanted for wanted in _FOR_BFLOAT16)
    float16 = any(flags >= wanted for wanted in _FOR_FLOAT16)
    return frozenset(name for name, fast in (("bfloat16", bfloat16), ("float16", float16)) if fast)


@cache
def fast_int8() -> bool:
    """Whether this CPU has instructions for products of bytes, which are several times as fast as those of float32."""
    flags = _cpu_flags()
    if flags is None:
        import torch

        return bool(torch.cpu._is_vnni_supported())
    return any(flags >= wanted for wanted in _FOR_BYTES)


def _cpu_flags() -> set[str] | None:
    """What the kernel says that the CPU can do; None where it is not asked like that."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return None
    try:
        lines = _FLAGS.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return None
    return next((set(line.partition(":")[2].split()) for line in lines if line.startswith("flags")), None)


def _as_torch_tells() -> frozenset[str]:
    import torch

    bfloat16 = bool(torch.ops.mkldnn._is_mkldnn_bf16_supported()) and bool(
        torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    )
    float16 = bool(torch.cpu._is_amx_fp16_supported())
    return frozenset(name for name, fast in (("bfloat16", bfloat16), ("float16", float16)) if fast)
