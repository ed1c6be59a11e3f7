"""Which attention kernel a decoder is loaded with: one that this machine can run."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from typing import Any

import torch
from transformers import PretrainedConfig
from transformers.utils import import_utils

from valuembed.errors import RecipeError

logger = logging.getLogger(__name__)

KERNELS = ("eager", "sdpa", "flash_attention_2", "flash_attention_3", "flash_attention_4", "flex_attention")
"""Attention kernels of transformers that values can be read with."""

_FLASH: Mapping[str, tuple[Callable[[], bool], str]] = {
    "flash_attention_2": (import_utils.is_flash_attn_2_available, "flash-attn"),
    "flash_attention_3": (import_utils.is_flash_attn_3_available, "flash-attn-3"),
    "flash_attention_4": (import_utils.is_flash_attn_4_available, "flash-attn-4"),
}
"""Kernels that need a package: what looks for it, and its name."""


def choose_kernel(config: PretrainedConfig, asked: Any, device: str | None) -> str | None:
    """The kernel to load a decoder with.

    A kernel that a checkpoint's configuration names is a wish of whoever made it: where it cannot run, another computes
    the same, and a line of the log says so. One that the user names has to run.

    Args:
        config: of the decoder.
        asked: ``attn_implementation`` as the user gives it; None leaves it to the configuration.
        device: where the decoder will run; None is the machine's own choice.

    Returns:
        Its name; None leaves it to transformers.

    Raises:
        RecipeError: the user's is unknown, or cannot run here.
    """
    if isinstance(asked, Mapping) and set(asked) == {""}:  # transformers' form for a model and its parts
        asked = asked[""]
    kernel: str | None = config._attn_implementation if asked is None else asked
    if kernel is None or (why := _why_not(kernel, device)) is None:
        return kernel
    if asked is None:
        logger.warning("the configuration asks for the attention kernel %r, which %s: using sdpa", kernel, why)
        return None
    usable = [name for name in KERNELS if _why_not(name, device) is None]
    near = get_close_matches(str(kernel), KERNELS, 1) if kernel not in KERNELS else []
    meant = f"did you mean {near[0]!r}? " if near else ""
    raise RecipeError(
        f"model_kwargs: attn_implementation={kernel!r} {why}; {meant}what can be used here: {', '.join(usable)}"
    )


def _why_not(kernel: Any, device: str | None) -> str | None:
    """Why a kernel cannot run, as the end of a sentence; None where nothing is known against it."""
    if not isinstance(kernel, str) or kernel not in KERNELS:
        return "is none that values can be read with"
    if kernel not in _FLASH:
        return None
    kind = torch.device(device).type if device else ("cuda" if torch.cuda.is_available() else "cpu")
    if kind == "cpu":
        return "does not run on a CPU"
    is_available, package = _FLASH[kernel]
    return None if is_available() else f"needs the package {package}, which is not installed"
