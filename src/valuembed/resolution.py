"""What a checkpoint and a recipe come to: the record of a saved folder, absolute layers, tokenizer and token limit."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Any

from transformers import AutoTokenizer, PretrainedConfig, PreTrainedTokenizerBase

from valuembed.anatomy import Anatomy
from valuembed.checkpoint import Checkpoint
from valuembed.errors import CheckpointError, LayerError, RecipeError
from valuembed.layers import preset_for, resolve_layers
from valuembed.reader import Plan
from valuembed.recipes import Recipe

CONFIG_FILE = "valuembed_config.json"
"""What a saved folder records beside weights and tokenizer."""

NO_LIMIT = 1_000_000
"""Tokenizers write absurd lengths where they know no limit; from here on a number means none."""


@dataclass(frozen=True)
class Origin:
    """Where the layers of a loaded or saved decoder come from.

    Attributes:
        name: hub id, ``"bundled"``, or a folder's own name; never a path.
        revision: commit of the hub id, where known.
        num_layers: L of the whole decoder.
        fetchable: whether ``name`` is enough to load it again on another machine.
    """

    name: str
    revision: str | None
    num_layers: int
    fetchable: bool


def saved_config(checkpoint: Checkpoint) -> dict[str, Any] | None:
    """What :meth:`ValueTransformer.save` recorded, or None for a checkpoint of anyone else's."""
    path = checkpoint.file(CONFIG_FILE)
    if path is None:
        return None
    try:
        with open(path, encoding="utf-8") as file:
            saved: dict[str, Any] = json.load(file)
    except ValueError as error:
        raise CheckpointError(f"model {checkpoint.name!r}: {CONFIG_FILE} is damaged: {error}") from error
    return saved


def saved_tail(saved: dict[str, Any] | None) -> bool:
    """Whether a saved folder holds what runs after the last layer: only a recipe that reads it kept it."""
    return saved is not None and Recipe.from_dict(saved["recipe"]).reads_final_norm


def resolve_plan(
    recipe: Recipe, config: PretrainedConfig, anatomy: Anatomy, saved: dict[str, Any] | None = None
) -> Plan:
    """Turn a recipe's layers into absolute indices of one decoder.

    Args:
        recipe: layers in any form.
        config: of the decoder as the checkpoint holds it.
        anatomy: its survey.
        saved: what a folder saved by this library records.

    Raises:
        LayerError: layers that do not exist, hold no values or differ in width.
        CheckpointError: layers that a saved folder no longer holds, naming where they are.
    """
    origin = saved["origin"] if saved else None
    whole = origin["num_layers"] if origin else anatomy.num_layers
    cut = (
        f"it was saved with layers 0-{anatomy.num_layers - 1} of {whole}; load {origin['name']!r} instead"
        if origin
        else ""
    )
    if recipe.reads_final_norm:
        if origin and not saved_tail(saved):
            raise CheckpointError(f"this folder holds no final norm, which {recipe.method} reads: {cut}")
        return Plan(recipe, (), anatomy)
    legal = anatomy.value_layers if recipe.signal == "value" else tuple(range(anatomy.num_layers))
    try:
        layers = resolve_layers(recipe.layers, legal, whole, preset=preset_for(config))
    except LayerError as error:
        raise CheckpointError(f"{error}; {cut}") if origin and anatomy.num_layers < whole else error from None
    anatomy.width(layers, signal=recipe.signal, weights=recipe.weights, aligned=recipe.aligned)
    return Plan(replace(recipe, layers=layers), layers, anatomy)


def load_tokenizer(checkpoint: Checkpoint) -> PreTrainedTokenizerBase:
    """The checkpoint's tokenizer.

    Raises:
        CheckpointError: it is missing or damaged.
    """
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
    if asked < 1:
        raise RecipeError(f"max_tokens={asked} has to be at least 1")
    if isinstance(positions, int) and asked > positions and not getattr(config, "rope_parameters", None):
        raise RecipeError(
            f"max_tokens={asked} is more than the {positions} positions that {config.model_type} has learned"
        )
    return asked
