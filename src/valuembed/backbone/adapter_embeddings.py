"""Adapters trained on a resized embedding matrix: the decoder's is resized alike, where they hold what is new.

Whoever adds tokens resizes the matrix first, so that a base as it was published does not fit. An adapter holds the
whole matrix where it was saved with its embedding layers, or the rows of single tokens; what it does not hold would be
random, and is an error.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from valuembed.backbone.architecture import embedding_rows
from valuembed.backbone.checkpoints import Checkpoint
from valuembed.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

HELD = "_adapter_holds_embeddings"
"""Mark on a decoder whose embedding matrix came with its adapter, and has to be saved with it."""

_EMBEDDING = r"(?:^|\.)(?:embed_tokens|embed_in|wte|word_embeddings|tok_embeddings)"
_WHOLE = re.compile(rf"{_EMBEDDING}\.(?:(?:modules_to_save|original_module|base_layer|token_adapter)\.)*weight$")
_LORA = re.compile(rf"{_EMBEDDING}\.lora_embedding_A$")
_ONES_OWN = re.compile(r"\.(?:modules_to_save|original_module)\.")

_WAYS_OUT = (
    "where it was trained, save the adapter with save_embedding_layers=True, or merge it into its base and save the "
    "whole model"
)


def resize_embeddings(model: PreTrainedModel, weights: Mapping[str, Tensor], config: Any, where: str) -> None:
    """Give a decoder the embedding matrix that an adapter was trained on, its new rows still to be filled.

    Args:
        model: the decoder.
        weights: the adapter's, by the decoder's names.
        config: the adapter's.
        where: the adapter, as the beginning of a message.

    Raises:
        CheckpointError: the adapter does not hold the rows that the decoder lacks.
    """
    rows = embedding_rows(model)
    shapes = {name: tuple(weight.shape) for name, weight in weights.items()}
    size = _whole(shapes)
    if size is not None:
        setattr(model, HELD, True)
    else:
        trained_on = next((shape[1] for name, shape in shapes.items() if _LORA.search(name)), rows)
        if trained_on != rows:
            raise CheckpointError(
                f"{where} was trained on an embedding matrix of {trained_on:,} rows, and its base has {rows:,}; it "
                f"holds none: {_WAYS_OUT}"
            )
        tokens = _tokens(vars(config))
        size = max(rows, *(token + 1 for token in tokens)) if tokens else rows
        if lacking := sorted(set(range(rows, size)) - tokens):
            raise CheckpointError(
                f"{where} was trained on an embedding matrix of at least {size:,} rows, and its base has {rows:,}; of "
                f"the others it lacks {len(lacking):,}, the first that of token id {lacking[0]}: {_WAYS_OUT}"
            )
    if size != rows:
        # The rows that are new are the adapter's, whatever stands in them before it is there.
        model.resize_token_embeddings(size, mean_resizing=False)


def rows_with(checkpoint: Checkpoint, weights: str, settings: str) -> int | None:
    """How many rows an adapter's embedding matrix has, by its files alone; None where it leaves the base's as it is.

    Args:
        checkpoint: where the adapter is.
        weights, settings: names of its files.
    """
    from safetensors import SafetensorError, safe_open

    path, config = checkpoint.file(weights), checkpoint.file(settings)
    if path is None or config is None:
        return None
    try:
        with safe_open(path, framework="pt") as file:
            names = [name for name in file.keys() if _WHOLE.search(name)]  # noqa: SIM118 - it is no mapping
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in names}
        tokens = _tokens(json.loads(Path(config).read_text("utf-8")))
    except (SafetensorError, OSError, ValueError, AttributeError, TypeError):
        return None  # loading tells what is damaged
    return _whole(shapes) or max((token + 1 for token in tokens), default=None)


def matrix_with_adapter(model: PreTrainedModel) -> dict[str, Tensor]:
    """The embedding matrix that has to be saved beside an adapter, by the names of the adapter's file."""
    if not getattr(model, HELD, False):
        return {}
    return {
        f"base_model.model.{name}": tensor.contiguous()
        for name, tensor in model.state_dict().items()
        if _WHOLE.search(name) and not _ONES_OWN.search(name)
    }


def _whole(shapes: Mapping[str, tuple[int, ...]]) -> int | None:
    """Rows of the matrix among an adapter's weights."""
    return next((shape[0] for name, shape in shapes.items() if _WHOLE.search(name) and len(shape) == 2), None)


def _tokens(config: Mapping[str, Any]) -> set[int]:
    """Ids of the tokens whose rows an adapter holds by themselves."""
    given = config.get("trainable_token_indices") or config.get("token_indices") or []
    of_modules = given.values() if isinstance(given, Mapping) else [given]
    return {token for ids in of_modules for token in ids}
