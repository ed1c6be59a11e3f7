"""What a model is, as a short string: for results that must not outlive the weights or the recipe that gave them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import nn

from valuembed._utils.version import __version__
from valuembed.backbone.checkpoints import BUNDLED, Checkpoint, base_of, holds_adapter, saved_config
from valuembed.errors import CheckpointError
from valuembed.recipes import Recipe

DECIDING = frozenset({".json", ".jinja", ".model", ".py", ".safetensors", ".txt"})
"""Kinds of files that decide a vector: configuration, weights, tokenizer, code."""


def content_digest(checkpoint: Checkpoint) -> str:
    """What a checkpoint holds: a hub id with its commit, or a hash over files; for an adapter, its base too.

    A folder or a GGUF file is read whole, at a second or so for each gigabyte, and its weights are not loaded.

    Raises:
        CheckpointError: nothing says which commit of a hub id this is.
    """
    if checkpoint.is_local or checkpoint.name == BUNDLED:
        parts = [_hash_files(_deciding(checkpoint))]
    elif commit := checkpoint.commit:
        parts = [f"{checkpoint.name}@{commit}"]
    else:
        raise CheckpointError(
            f"model {checkpoint.name!r}: its commit is not known, so its results cannot be told from those of another "
            "revision; download it to a folder and name that, or keep no results"
        )
    # Some adapters have their base beside them, which is counted then.
    if holds_adapter(checkpoint) and (base := base_of(checkpoint, saved_config(checkpoint))) is not checkpoint:
        parts.append(content_digest(base))
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def fingerprint(content: str, recipe: Recipe, **settings: Any) -> str:
    """16 hex digits that change with everything that decides a vector.

    Args:
        content: what :func:`content_digest` gives.
        recipe: with absolute layers; the name of its method decides nothing and does not count.
        settings: plain data, such as precision, token limit and instructions.
    """
    made = {"content": content, "recipe": recipe.choices(), "version": __version__, **settings}
    return hashlib.sha256(json.dumps(made, sort_keys=True).encode()).hexdigest()[:16]


def tensors_digest(module: nn.Module) -> str:
    """The numbers that a module holds, with their names, shapes and dtypes, as 64 hex digits."""
    return hashlib.sha256(save({name: tensor.contiguous() for name, tensor in module.state_dict().items()})).hexdigest()


def _deciding(checkpoint: Checkpoint) -> dict[str, Path]:
    """The files that decide a vector, by their names: those of a folder, or of the GGUF file alone."""
    folder = Path(checkpoint.location)
    if checkpoint.gguf is not None:
        # What a file is called decides nothing.
        return {f"{at}.gguf": Path(path) for at, path in enumerate(checkpoint.gguf_header().paths)}
    found = {path.relative_to(folder): path for path in sorted(folder.rglob("*"))}
    return {
        inside.as_posix(): path
        for inside, path in found.items()
        if path.suffix in DECIDING and path.is_file() and not any(part.startswith(".") for part in inside.parts)
    }


def _hash_files(files: dict[str, Path]) -> str:
    """Names and contents of files."""
    total = hashlib.sha256()
    for name, path in files.items():
        with path.open("rb") as file:
            digest = hashlib.sha256()
            while block := file.read(1 << 24):
                digest.update(block)
        total.update(f"{name} {digest.hexdigest()}\n".encode())
    return total.hexdigest()
