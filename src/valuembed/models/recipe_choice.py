"""Which recipe is asked for: a method by name, or what a saved folder was saved with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from valuembed.backbone.checkpoints import (
    CalibrationRecord,
    Checkpoint,
    base_of,
    check_recipe,
    holds_adapter,
    read_record,
)
from valuembed.errors import RecipeError
from valuembed.recipes import LayerSpec, Recipe, TemplateSpec, check_purpose, resolve_recipe
from valuembed.tokenization import expand_chat, names_chat


class _Default(str):
    """A default that can be told from the same word written by a user.

    A folder saved by this library carries its recipe; only a method that was really asked for replaces it.
    """


DEFAULT_METHOD = _Default("aligned_wva")


def method_for(
    purpose: str | None, method: str | Recipe | Mapping[str, Any] = DEFAULT_METHOD
) -> str | Recipe | Mapping[str, Any]:
    """The method that a purpose stands for; without a purpose the method itself.

    Raises:
        RecipeError: the purpose is unknown, or a method is given beside it.
    """
    if purpose is None:
        return method
    if not isinstance(method, _Default):
        raise RecipeError(f"purpose={purpose!r} stands for a method, and one is given too; give one")
    return check_purpose(purpose)


def resolve_for(
    checkpoint: Checkpoint,
    saved: dict[str, Any] | None,
    method: str | Recipe | Mapping[str, Any] = DEFAULT_METHOD,
    layers: LayerSpec = None,
    template: TemplateSpec | Mapping[str, TemplateSpec] = "auto",
    cleaning: str | None = None,
) -> Recipe:
    """The recipe that is asked for: a saved folder's own unless a method is named, chat templates spelt out.

    Args:
        checkpoint: where the model is.
        saved: what :func:`valuembed.backbone.checkpoints.saved_config` says of it.
        method, layers, template, cleaning: as in :func:`valuembed.load`.
    """
    if saved is not None and isinstance(method, _Default):
        method = Recipe.from_dict(saved["recipe"])
    if names_chat(template):
        from valuembed.tokenization import load_tokenizer

        has_tokenizer = checkpoint.file("tokenizer_config.json") or not holds_adapter(checkpoint)
        template = expand_chat(template, load_tokenizer(checkpoint if has_tokenizer else base_of(checkpoint, saved)))
    return resolve_recipe(method, layers, template, cleaning)


def calibration_of(checkpoint: Checkpoint, saved: dict[str, Any] | None, recipe: Recipe) -> CalibrationRecord | None:
    """How a saved folder was calibrated; None where it was not.

    Args:
        checkpoint: where the model is.
        saved: what :func:`valuembed.backbone.checkpoints.saved_config` says of it.
        recipe: that is asked for, its layers absolute.

    Raises:
        RecipeError: it was calibrated for another one.
    """
    if saved is None or (record := read_record(checkpoint)) is None:
        return None
    check_recipe(record, recipe, checkpoint.name, saved["origin"]["name"])
    return record
