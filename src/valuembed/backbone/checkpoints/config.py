"""The configuration of a checkpoint's text decoder, whole or cut to its first layers."""

from __future__ import annotations

import json
from copy import deepcopy
from types import NoneType

import torch
from transformers import AutoConfig, PretrainedConfig, __version__

from valuembed.backbone.checkpoints.gguf_config import read_gguf_config
from valuembed.backbone.checkpoints.location import Checkpoint
from valuembed.errors import CheckpointError


def read_config(checkpoint: Checkpoint) -> PretrainedConfig:
    """The configuration of the text decoder; an image-text checkpoint gives that part of it alone.

    Raises:
        CheckpointError: no readable configuration, or one that wants to run code of its own without leave.
        UnsupportedModelError: a GGUF file of a family that is not read.
    """
    if checkpoint.gguf is not None:
        settings = read_gguf_config(checkpoint.gguf_header())
        try:
            made: PretrainedConfig = AutoConfig.for_model(**settings)
        except Exception as error:  # families check their configurations each in their own way
            raise CheckpointError(
                f"model {checkpoint.name!r}: its settings are damaged: {_reason(error)}; download it again"
            ) from error
        return made
    if checkpoint.is_local:
        checkpoint.file("config.json")  # something else in its place is named here
    try:
        config = AutoConfig.from_pretrained(
            checkpoint.location, trust_remote_code=checkpoint.trust_remote_code, **checkpoint.hub
        )
    except Exception as error:  # families read their configurations each in their own way
        if isinstance(error, AttributeError) and "torch" in str(error):
            raise CheckpointError(
                f"model {checkpoint.name!r}: config.json names a dtype that torch does not know ({error}); legal are "
                "float32, bfloat16 and float16"
            ) from error
        if "trust_remote_code" in str(error):
            raise CheckpointError(
                f"model {checkpoint.name!r} wants to run code of its own; read that code, and if you trust it load "
                "with trust_remote_code=True"
            ) from error
        if "does not recognize this architecture" in str(error):
            raise CheckpointError(
                f"model {checkpoint.name!r}: its configuration cannot be read: transformers {__version__} does not "
                f"know its model_type{_named_type(checkpoint)}; a newer transformers may know it, or code that comes "
                "with it (trust_remote_code)"
            ) from error
        reason = _fault(checkpoint) or _reason(error)
        nowhere = "" if checkpoint.is_local else " (and there is no folder of that name)"
        if "gguf" in checkpoint.location.lower() and not checkpoint.is_local:
            nowhere += f"; a GGUF file of a repository is named behind it: {checkpoint.location}:NAME.gguf"
        raise CheckpointError(
            f"model {checkpoint.name!r}: its configuration cannot be read: {reason}{nowhere}"
        ) from error
    if not isinstance(dtype := getattr(config, "dtype", None), (str, dict, torch.dtype, NoneType)):
        raise CheckpointError(
            f"model {checkpoint.name!r}: its configuration names the precision {dtype!r}, which is none"
        )
    text_config: PretrainedConfig = config.get_text_config(decoder=True)
    if text_config is not config:
        for inherited in ("quantization_config", "dtype", "auto_map", "transformers_weights"):
            if getattr(text_config, inherited, None) is None and getattr(config, inherited, None) is not None:
                setattr(text_config, inherited, getattr(config, inherited))
        # The head belongs to the whole model, and so does the word on whether it is the input embeddings again.
        text_config.tie_word_embeddings = getattr(config, "tie_word_embeddings", False)
    if any(getattr(part, "is_encoder_decoder", False) for part in (config, text_config)):
        raise CheckpointError(
            f"model {checkpoint.name!r} ({config.model_type}) is an encoder-decoder; a decoder is needed"
        )
    return text_config


def _fault(checkpoint: Checkpoint) -> str | None:
    """Why a folder's configuration is no JSON object, in a decoder's own words; None where it is one."""
    path = checkpoint.file("config.json") if checkpoint.is_local else None
    if path is None:
        return None
    try:
        with open(path, encoding="utf-8") as file:
            held = json.load(file)
    except ValueError as error:
        return f"config.json is no JSON: {error}"
    return None if isinstance(held, dict) else f"config.json holds {type(held).__name__}, not an object"


def _named_type(checkpoint: Checkpoint) -> str:
    """The model_type of a configuration, behind a blank; empty where it cannot be told."""
    path = checkpoint.file("config.json")
    if path is None:
        return ""
    with open(path, encoding="utf-8") as file:
        return f" {json.load(file).get('model_type')!r:.80}"


def _reason(error: BaseException) -> str:
    """Type and first lines of an error: a check of fields names the field in one line and says why in the next."""
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
    return f"{type(error).__name__}: {' '.join(lines[: 3 if lines[0].endswith(':') else 1])}" if lines else repr(error)


def cut_config(config: PretrainedConfig, num_layers: int) -> PretrainedConfig:
    """A copy of a configuration that describes the first ``num_layers`` layers only.

    Every per-layer list is cut too: without that the copy loads, and then cannot be saved.
    """
    whole = config.num_hidden_layers
    cut = deepcopy(config)
    per_layer = {
        name: list(value)[:num_layers]
        for name, value in vars(config).items()
        if isinstance(value, (list, tuple)) and len(value) == whole and ("layer" in name or "block" in name)
    }
    for name, value in {"num_hidden_layers": num_layers, **per_layer}.items():
        setattr(cut, name, value)
    if getattr(cut, "transformers_weights", None) is not None:
        cut.transformers_weights = None  # the name of the file that was read means nothing for what is kept
    return cut
