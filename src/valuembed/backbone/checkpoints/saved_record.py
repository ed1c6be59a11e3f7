"""What a folder saved by this library records beside weights and tokenizer."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from valuembed.backbone import DecoderSpec
from valuembed.backbone.checkpoints.location import BUNDLED, Checkpoint
from valuembed.backbone.checkpoints.sentence_transformers_folder import MODULES_FILE, saved_settings
from valuembed.errors import CheckpointError
from valuembed.recipes import Recipe

CONFIG_FILE = "valuembed_config.json"

TRANSFORMER_TYPE = "valuembed.modules.ValueTransformer"
EARLY_TRANSFORMER_TYPE = "valuembed.module.ValueTransformer"
"""In modules.json of a saved model, and of one that was saved before the package had rooms."""


@dataclass(frozen=True)
class Origin:
    """Where the layers of a loaded or saved decoder come from.

    Attributes:
        name: hub id, ``"bundled"``, or a folder's own name; never a path.
        revision: commit of the hub id, where known.
        num_layers: L of the whole decoder.
        value_layers: those of the whole decoder that hold values.
        preset: name of the preset made for this backbone, or None.
        fetchable: whether ``name`` is enough to load it again on another machine.
    """

    name: str
    revision: str | None
    num_layers: int
    value_layers: tuple[int, ...]
    preset: str | None
    fetchable: bool


def find_origin(
    checkpoint: Checkpoint, preset: str | None, decoder_spec: DecoderSpec, saved: dict[str, Any] | None
) -> Origin:
    """The origin that a saved folder records, or the checkpoint itself."""
    if saved is not None:
        return Origin(**{**saved["origin"], "value_layers": tuple(saved["origin"]["value_layers"])})
    return Origin(
        name=checkpoint.public_name,
        revision=checkpoint.commit,
        num_layers=decoder_spec.num_layers,
        value_layers=decoder_spec.value_layers,
        preset=preset,
        fetchable=checkpoint.name == BUNDLED or not checkpoint.is_local,
    )


def saved_config(checkpoint: Checkpoint) -> dict[str, Any] | None:
    """What :meth:`ValueTransformer.save` recorded, or None for a checkpoint of anyone else's.

    Raises:
        CheckpointError: the record is damaged, or was written by a version that records other things.
    """
    path = checkpoint.file(CONFIG_FILE)
    if path is None:
        return None
    try:
        with open(path, encoding="utf-8") as file:
            saved: dict[str, Any] = json.load(file)
        Recipe.from_dict(saved["recipe"])
        Origin(**saved["origin"])
        if not isinstance(saved["dtype"], str) or not isinstance(saved["max_tokens"], int | None):
            raise TypeError("dtype has to be a name and max_tokens a number or null")
    except (ValueError, KeyError, TypeError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise CheckpointError(f"model {checkpoint.name!r}: {CONFIG_FILE} cannot be used: {reason}") from error
    if (kind := saved_settings(checkpoint).first or "").startswith("sentence_transformers."):
        raise CheckpointError(f"{_written_over(checkpoint)}: {MODULES_FILE} names {kind} as its first module")
    return saved


def check_held_layers(checkpoint: Checkpoint, saved: dict[str, Any], num_layers: int) -> None:
    """Raise where a record is of an earlier save than the weights beside it.

    Args:
        checkpoint: the folder.
        saved: its record.
        num_layers: of the decoder that its configuration describes.

    Raises:
        CheckpointError: the two differ.
    """
    if saved.get("held_layers", num_layers) != num_layers:
        raise CheckpointError(
            f"{_written_over(checkpoint)}: it records {saved['held_layers']} layers, and config.json {num_layers}"
        )


def _written_over(checkpoint: Checkpoint) -> str:
    return (
        f"model {checkpoint.name!r}: {CONFIG_FILE} is of an earlier save; delete it to read the model that lies there "
        "now, or save again into an empty folder"
    )
