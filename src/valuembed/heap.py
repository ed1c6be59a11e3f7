"""Memory that a step frees on a CPU stays with the process, so that the next step finds it there.

glibc gives large blocks back to the kernel as soon as they are freed. A decoder frees some in every layer and asks for
as many again, and each page that comes back costs about as much as computing on it.
"""

from __future__ import annotations

import ctypes
import os
from functools import cache

MEGABYTE = 2**20
TRIM, TOP_PAD, MMAP = (-1, 512 * MEGABYTE), (-2, 64 * MEGABYTE), (-3, 64 * MEGABYTE)
"""Names and values of ``mallopt``: how much of what is free is kept; how much is asked for at once, which also keeps
the heaps of threads other than the first; blocks from which on each is mapped by itself, as activations seldom are."""


@cache
def keep_freed_memory() -> bool:
    """Tell glibc to keep what is freed, up to :data:`TRIM` bytes, for the rest of the process; once.

    Returns:
        Whether it did: not with another C library, nor where the environment has settings of the allocator already.
    """
    if any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ):
        return False
    try:
        library = ctypes.CDLL(None)
        library.gnu_get_libc_version  # noqa: B018
    except (OSError, TypeError, AttributeError):
        return False
    return all(library.mallopt(name, value) for name, value in (TRIM, TOP_PAD, MMAP))
