"""Memory of a process that runs decoders on a CPU: what a step frees stays for the next one, and caches stay small.

glibc gives large blocks back to the kernel as soon as they are freed. A decoder frees some in every layer and asks for
as many again, and each page that comes back costs about as much as computing on it. oneDNN, which multiplies matrices
for torch, keeps what it has prepared for each shape; steps hardly ever repeat one, so that it would keep a thousand of
them for nothing, some hundred megabytes.
"""

from __future__ import annotations

import ctypes
import os
from typing import Any

MEGABYTE = 2**20
TRIM, TOP_PAD, MMAP = (-1, 512 * MEGABYTE), (-2, 64 * MEGABYTE), (-3, 64 * MEGABYTE)
"""Names and values of ``mallopt``: how much of what is free is kept; how much is asked for at once, which also keeps
the heaps of threads other than the first; blocks from which on each is mapped by itself, as activations seldom are."""

CAPACITIES = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")
"""What oneDNN, and torch's layer above it, look at before their first product, and never again."""
SHAPES = "64"
"""More than the layers of a step have, for all of which a shape is prepared once."""


def tune_memory() -> None:
    """Tune this process for decoders on a CPU, for as long as it runs; call it before torch computes anything.

    It sets :data:`CAPACITIES` in the environment, unless they are there, and calls :func:`keep_freed_memory`. The
    command line and the server do so for themselves; loading and encoding leave the process as it is.
    """
    for name in CAPACITIES:
        os.environ.setdefault(name, SHAPES)
    keep_freed_memory()


def keep_freed_memory() -> bool:
    """Tell glibc to keep what is freed, up to :data:`TRIM` bytes, for the rest of the process.

    Returns:
        Whether it did: not with another C library, nor where the environment has settings of the allocator already.
    """
    if any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ):
        return False
    library = _glibc()
    return library is not None and all(library.mallopt(name, value) for name, value in (TRIM, TOP_PAD, MMAP))


def release_freed_memory() -> None:
    """Give memory that is free back to the kernel, where glibc would keep it because later blocks lie behind it."""
    if (library := _glibc()) is not None:
        library.malloc_trim(0)


def _glibc() -> Any:
    """The process's C library; None where it is another one."""
    try:
        library = ctypes.CDLL(None)
        library.gnu_get_libc_version  # noqa: B018
    except (OSError, TypeError, AttributeError):
        return None
    return library
