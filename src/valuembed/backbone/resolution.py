"""What a checkpoint and a recipe come to: the record of a saved folder, absolute layers, tokenizer and token limit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers import PretrainedConfig

from valuembed.backbone.architecture import DecoderSpec
from valuembed.backbone.checkpoints import (
    Checkpoint,
    base_of,
    check_held_layers,
    holds_adapter,
    is_dequantized,
    quantization_method,
    read_config,
)
from valuembed.backbone.dtypes import check_held
from valuembed.backbone.loading import checkpoint_dtype, parse_dtype, usable_dtype
from valuembed.backbone.plan import Plan, resolve_plan
from valuembed.backbone.tracing import trace_architecture
from valuembed.recipes import Recipe, preset_for


@dataclass(frozen=True)
class Prepared:
    """Everything about a load that is known before any weights are read.

    Attributes:
        base: the checkpoint that holds the decoder's weights: the one asked for, or the base of its adapter.
        is_adapter: whether the checkpoint asked for is an adapter.
        config: of the decoder as ``base`` holds it.
        decoder_spec: what it is made of.
        plan: what is read, in absolute layers.
        dtype: of the weights; None where only the weights know, or their quantization.
    """

    base: Checkpoint
    is_adapter: bool
    config: PretrainedConfig
    decoder_spec: DecoderSpec
    plan: Plan
    dtype: torch.dtype | None


def prepare(
    checkpoint: Checkpoint,
    recipe: Recipe,
    saved: dict[str, Any] | None,
    dtype: torch.dtype | None = None,
    device: str | None = None,
) -> Prepared:
    """Find out what a recipe needs from a checkpoint: the same for loading it and for telling about it.

    Args:
        checkpoint: where the model is.
        recipe: layers in any form.
        saved: what :func:`saved_config` says of the checkpoint.
        dtype: what is asked for; None is the recorded or the checkpoint's own, where the device is fast in it.
        device: where the model will run.
    """
    is_adapter = holds_adapter(checkpoint)
    base = base_of(checkpoint, saved) if is_adapter else checkpoint
    config = read_config(base)
    if saved and base is checkpoint:
        check_held_layers(checkpoint, saved, config.num_hidden_layers)
    decoder_spec = trace_architecture(config, trust_remote_code=base.trust_remote_code)
    plan = resolve_plan(recipe, preset_for(config), decoder_spec, saved if base is checkpoint else None)
    held_in = parse_dtype(saved["dtype"]) if saved else checkpoint_dtype(config)
    settings = getattr(config, "quantization_config", None)
    if dtype is None and held_in is not None:
        check_held(str(held_in).removeprefix("torch."), base.name)
    if dtype is None and (quantization_method(settings) is None or is_dequantized(settings, device)):
        dtype = usable_dtype(held_in, device)
    return Prepared(base, is_adapter, config, decoder_spec, plan, dtype)
