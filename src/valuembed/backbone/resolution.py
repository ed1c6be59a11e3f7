"""What a checkpoint and a recipe come to: the record of a saved folder, absolute layers, tokenizer and token limit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoTokenizer, PretrainedConfig, PreTrainedTokenizerBase

from valuembed._utils.text import counted
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
from valuembed.errors import CheckpointError, RecipeError
from valuembed.recipes import Recipe, preset_for

TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "tekken.json"),
    *("tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "vocab.json", "vocab.txt", "merges.txt"),
)
"""Files that a tokenizer is read from, as far as they are there."""

CHAT_TEMPLATE = "chat_template.jinja"
"""Where a tokenizer's chat template lies."""

NO_LIMIT = 1_000_000
"""Tokenizers write absurd lengths where they know no limit; from here on a number means none."""


@dataclass(frozen=True)
class Prepared:
    """Everything about a load that is known before any weights are read.

    Attributes:
        base: the checkpoint that holds the decoder's weights: the one asked for, or the base of its adapter.
        is_adapter: whether the checkpoint asked for is an adapter.
        config: of the decoder as ``base`` holds it.
        decoder_spec: its survey.
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


def load_tokenizer(checkpoint: Checkpoint) -> PreTrainedTokenizerBase:
    """The checkpoint's tokenizer.

    Raises:
        CheckpointError: it is missing or damaged.
    """
    for name in TOKENIZER_FILES if checkpoint.is_local else ():
        checkpoint.file(name)  # something else in a file's place is named here
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            checkpoint.location, trust_remote_code=checkpoint.trust_remote_code, **checkpoint.hub
        )
    except Exception as error:  # the tokenizers library raises bare Exceptions on damaged files
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise CheckpointError(f"model {checkpoint.name!r}: its tokenizer cannot be loaded: {reason}") from error
    # Where the files are missing, transformers makes an empty tokenizer for some families: all texts would be blank.
    special = {*tokenizer.all_special_tokens, *tokenizer.get_added_vocab()}
    if not tokenizer.get_vocab().keys() - special:
        raise CheckpointError(
            f"model {checkpoint.name!r}: its tokenizer cannot be loaded: it knows no words, as without its files "
            "(tokenizer.json and tokenizer_config.json)"
        )
    return tokenizer


def token_limit(asked: int | None, tokenizer: PreTrainedTokenizerBase, config: PretrainedConfig) -> int | None:
    """The longest sequence to feed: what was asked for, else the smaller of the tokenizer's and the model's limits.

    Raises:
        RecipeError: less than one token, or more positions than a model with learned positions has.
    """
    positions = getattr(config, "max_position_embeddings", None)
    if asked is None:
        limits = [
            limit
            for limit in (tokenizer.model_max_length, positions)
            if isinstance(limit, int) and 0 < limit < NO_LIMIT
        ]
        return min(limits, default=None)
    if isinstance(asked, bool) or not isinstance(asked, int):
        raise RecipeError(f"max_tokens={asked!r} has to be a whole number, or None for the model's own limit")
    if asked < 1:
        raise RecipeError(f"max_tokens={asked} has to be at least 1")
    if isinstance(positions, int) and asked > positions and not getattr(config, "rope_parameters", None):
        raise RecipeError(
            f"max_tokens={asked} is more than the {counted(positions, 'position')} that {config.model_type} has learned"
        )
    return asked
