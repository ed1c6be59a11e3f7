"""Adapters (peft) beside a cut decoder: finding, attaching and saving them so that a folder stands on its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedModel

from valuembed.checkpoint import ADAPTER_CONFIG, BUNDLED, Checkpoint, locate
from valuembed.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor


def find(checkpoint: Checkpoint) -> bool:
    """Whether a checkpoint holds an adapter."""
    return checkpoint.file(ADAPTER_CONFIG) is not None


def base_of(checkpoint: Checkpoint, saved: dict[str, Any] | None) -> Checkpoint:
    """The checkpoint that holds the weights under an adapter.

    A folder saved from a local model holds them itself; else its record names a hub id and commit, or the bundled
    model; an adapter from elsewhere names its base in its own configuration.

    Raises:
        CheckpointError: the base is nowhere named.
    """
    if checkpoint.file("config.json") and (saved is None or not saved["origin"]["fetchable"]):
        return checkpoint
    if saved is not None:
        name, revision = saved["origin"]["name"], saved["origin"]["revision"]
    else:
        path = checkpoint.file(ADAPTER_CONFIG)
        assert path is not None
        with open(path, encoding="utf-8") as file:
            name, revision = json.load(file).get("base_model_name_or_path"), None
    if not name:
        raise CheckpointError(f"model {checkpoint.name!r} is an adapter that does not name its base model")
    hub = {key: value for key, value in checkpoint.hub.items() if key not in ("revision", "cache_dir")}
    return locate(
        name,
        revision=revision if name != BUNDLED else None,
        cache_folder=checkpoint.hub.get("cache_dir"),
        trust_remote_code=checkpoint.trust_remote_code,
        **hub,
    )


def attach(model: PreTrainedModel, checkpoint: Checkpoint) -> None:
    """Load an adapter's weights onto a decoder.

    Raises:
        MissingExtraError: peft is not installed.
    """
    from valuembed.extras import require

    require("peft", "train")
    model.load_adapter(checkpoint.location)
    model.train(False)


def save(model: PreTrainedModel, folder: str, *, base_name: str, with_base: bool) -> None:
    """Write a decoder, and its adapters where it has any.

    Args:
        model: with or without adapters.
        folder: where to.
        base_name: hub id of the decoder, or ``"bundled"``.
        with_base: also write the weights under the adapters, so that the folder needs nothing else.
    """
    if not getattr(model, "_hf_peft_config_loaded", False):
        model.save_pretrained(folder)
        return
    for config in model.peft_config.values():
        # peft would ask a hub about a base that is named; it is named afterwards, in the file.
        config.base_model_name_or_path = None
    if with_base:
        # transformers writes either the adapter or the model; here the model comes first, under its plain names.
        model._hf_peft_config_loaded = False
        try:
            model.save_pretrained(folder, state_dict=_base_weights(model))
        finally:
            model._hf_peft_config_loaded = True
    model.save_pretrained(folder)
    model.config.save_pretrained(folder)
    path = Path(folder) / ADAPTER_CONFIG
    # A path of this machine would mean nothing elsewhere, so a base that lies in the same folder has no name.
    named = {**json.loads(path.read_text("utf-8")), "base_model_name_or_path": None if with_base else base_name}
    path.write_text(json.dumps(named, indent=2), "utf-8")


def _base_weights(model: PreTrainedModel) -> dict[str, Tensor]:
    from peft import PeftType
    from peft.mapping import PEFT_TYPE_TO_PREFIX_MAPPING

    prefixes = {PEFT_TYPE_TO_PREFIX_MAPPING[PeftType(config.peft_type)] for config in model.peft_config.values()}
    return {
        name.replace(".base_layer.", "."): tensor
        for name, tensor in model.state_dict().items()
        if not any(prefix in name for prefix in prefixes)
    }
