"""What a checkpoint and a recipe come to: the record of a saved folder, absolute layers, tokenizer and token limit."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import AutoTokenizer, PretrainedConfig, PreTrainedTokenizerBase

from valuembed import adapters
from valuembed.anatomy import Anatomy, survey
from valuembed.checkpoint import BUNDLED, Checkpoint
from valuembed.decoder import DTYPES, checkpoint_dtype, parse_dtype, usable_dtype
from valuembed.decoder_config import read_config
from valuembed.errors import CheckpointError, RecipeError
from valuembed.layers import describe, preset_for, resolve_layers
from valuembed.prequantized import is_dequantized, quantization_method
from valuembed.reader import Plan
from valuembed.recipes import Recipe
from valuembed.saved_settings import MODULES_FILE, saved_settings

CONFIG_FILE = "valuembed_config.json"
"""What a saved folder records beside weights and tokenizer."""

TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "tekken.json"),
    *("tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "vocab.json", "vocab.txt", "merges.txt"),
)
"""Files that a tokenizer is read from, as far as they are there."""

CHAT_TEMPLATE = "chat_template.jinja"
"""Where a tokenizer's chat template lies."""

NO_LIMIT = 1_000_000
"""Tokenizers write absurd lengths where they know no limit; from here on a number means none."""

HUB_OPTIONS = ("revision", "token", "cache_folder", "local_files_only", "trust_remote_code")
"""Options of a load that say where its files come from: those of :func:`valuembed.checkpoint.locate`."""


def hub_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Those of :data:`HUB_OPTIONS` that are among the options of a load."""
    return {name: options[name] for name in HUB_OPTIONS if name in options}


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
    checkpoint: Checkpoint, config: PretrainedConfig, anatomy: Anatomy, saved: dict[str, Any] | None
) -> Origin:
    """The origin that a saved folder records, or the checkpoint itself."""
    if saved is not None:
        return Origin(**{**saved["origin"], "value_layers": tuple(saved["origin"]["value_layers"])})
    return Origin(
        name=checkpoint.public_name,
        revision=checkpoint.commit,
        num_layers=anatomy.num_layers,
        value_layers=anatomy.value_layers,
        preset=preset_for(config),
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


def _written_over(checkpoint: Checkpoint) -> str:
    return (
        f"model {checkpoint.name!r}: {CONFIG_FILE} is of an earlier save; delete it to read the model that lies there "
        "now, or save again into an empty folder"
    )


def resolve_plan(
    recipe: Recipe, config: PretrainedConfig, anatomy: Anatomy, saved: dict[str, Any] | None = None
) -> Plan:
    """Turn a recipe's layers into absolute indices of one decoder.

    Layers are those of the whole decoder, also where a saved folder holds only its first ones: "half" means the same
    layers in a folder as in its source, or is an error.

    Args:
        recipe: layers in any form.
        config: of the decoder as the checkpoint holds it.
        anatomy: its survey.
        saved: what a folder saved by this library records, where the decoder's weights are that folder's.

    Raises:
        LayerError: layers that do not exist, hold no values or differ in width.
        CheckpointError: layers that a saved folder no longer holds, naming where they are.
    """
    whole = saved["origin"] if saved else None
    num_layers = whole["num_layers"] if whole else anatomy.num_layers
    gone = f"this folder was saved with layers 0-{anatomy.num_layers - 1} of {num_layers}"
    if recipe.reads_final_norm:
        if saved and not Recipe.from_dict(saved["recipe"]).reads_final_norm:
            raise CheckpointError(
                f"{gone} and without the final norm, which {recipe.method} reads; load {saved['origin']['name']!r}"
            )
        return Plan(recipe, (), anatomy)
    values = tuple(whole["value_layers"]) if whole else anatomy.value_layers
    preset = whole["preset"] if whole else preset_for(config)
    legal = values if recipe.signal == "value" else tuple(range(num_layers))
    asked = recipe.layers
    layers = resolve_layers(asked, legal, num_layers, preset=preset)
    if whole and (missing := [layer for layer in layers if layer >= anatomy.num_layers]):
        given = list(asked) if isinstance(asked, tuple) else asked
        raise CheckpointError(
            f"layers={given!r} means layers {describe(layers)}, of which {describe(missing)} are not here: {gone}; "
            f"load {whole['name']!r} instead"
        )
    anatomy.width(layers, signal=recipe.signal, weights=recipe.weights, aligned=recipe.aligned)
    return Plan(replace(recipe, layers=layers), layers, anatomy)


@dataclass(frozen=True)
class Prepared:
    """Everything about a load that is known before any weights are read.

    Attributes:
        base: the checkpoint that holds the decoder's weights: the one asked for, or the base of its adapter.
        is_adapter: whether the checkpoint asked for is an adapter.
        config: of the decoder as ``base`` holds it.
        anatomy: its survey.
        plan: what is read, in absolute layers.
        dtype: of the weights; None where only the weights know, or their quantization.
    """

    base: Checkpoint
    is_adapter: bool
    config: PretrainedConfig
    anatomy: Anatomy
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
    is_adapter = adapters.find(checkpoint)
    base = adapters.base_of(checkpoint, saved) if is_adapter else checkpoint
    config = read_config(base)
    if saved and base is checkpoint and saved.get("held_layers", config.num_hidden_layers) != config.num_hidden_layers:
        raise CheckpointError(
            f"{_written_over(checkpoint)}: it records {saved['held_layers']} layers, and config.json "
            f"{config.num_hidden_layers}"
        )
    anatomy = survey(config, trust_remote_code=base.trust_remote_code)
    plan = resolve_plan(recipe, config, anatomy, saved if base is checkpoint else None)
    held_in = parse_dtype(saved["dtype"]) if saved else checkpoint_dtype(config)
    if dtype is None and held_in not in (None, *DTYPES.values()):
        raise CheckpointError(
            f"model {base.name!r}: config.json names the dtype {held_in!r}, in which nothing is computed; name one of "
            f"{', '.join(DTYPES)} as dtype"
        )
    if dtype is None and (quantization_method(config) is None or is_dequantized(config, device)):
        dtype = usable_dtype(held_in, device)
    return Prepared(base, is_adapter, config, anatomy, plan, dtype)


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
            f"max_tokens={asked} is more than the {positions} positions that {config.model_type} has learned"
        )
    return asked
