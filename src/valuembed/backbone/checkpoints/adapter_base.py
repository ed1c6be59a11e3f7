"""Whether a checkpoint is an adapter, and which checkpoint holds the weights under it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from valuembed.backbone.checkpoints.location import ADAPTER_CONFIG, BUNDLED, Checkpoint, locate
from valuembed.backbone.checkpoints.weight_files import INDEX_FILE, SINGLE_FILE
from valuembed.errors import CheckpointError

ADAPTER_FILE = "adapter_model.safetensors"


def holds_adapter(checkpoint: Checkpoint) -> bool:
    """Whether a checkpoint holds an adapter."""
    return checkpoint.file(ADAPTER_CONFIG) is not None


def base_of(checkpoint: Checkpoint, saved: dict[str, Any] | None) -> Checkpoint:
    """The checkpoint that holds the weights under an adapter.

    A folder saved from a local model holds them itself; else its record names a hub id and commit, or the bundled
    model; an adapter from elsewhere that has no weights beside it names its base, and the base's revision, in its own
    configuration.

    Raises:
        CheckpointError: the base is nowhere named, or is not where it should be.
    """
    if saved is not None:
        if not saved["origin"]["fetchable"]:
            return checkpoint
        name, revision = saved["origin"]["name"], saved["origin"]["revision"]
    else:
        # A configuration alone says nothing: training scripts leave one beside adapters too.
        if any(checkpoint.has(file) for file in (SINGLE_FILE, INDEX_FILE)):
            return checkpoint
        written = read_adapter_config(checkpoint)
        name, revision = written.get("base_model_name_or_path"), written.get("revision")
    if not name:
        raise CheckpointError(f"model {checkpoint.name!r} is an adapter that does not name its base model")
    hub = {key: value for key, value in checkpoint.hub.items() if key not in ("revision", "cache_dir")}
    try:
        return locate(
            name,
            revision=revision if name != BUNDLED else None,
            cache_folder=checkpoint.hub.get("cache_dir"),
            trust_remote_code=checkpoint.trust_remote_code,
            **hub,
        )
    except CheckpointError as error:
        raise CheckpointError(f"model {checkpoint.name!r} is an adapter, and its base is missing: {error}") from error


def read_adapter_config(checkpoint: Checkpoint) -> dict[str, Any]:
    """The configuration of an adapter.

    Raises:
        CheckpointError: it is damaged.
    """
    path = checkpoint.file(ADAPTER_CONFIG)
    assert path is not None
    try:
        written = json.loads(Path(path).read_text("utf-8"))
        if not isinstance(written, dict):
            raise TypeError(f"it holds {type(written).__name__}, not an object")
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"model {checkpoint.name!r}: {ADAPTER_CONFIG} is damaged: {error}") from error
    return written
