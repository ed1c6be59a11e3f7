"""The recipes that a user means by several methods, for one checkpoint."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import replace

from valuembed.backbone.checkpoints import Checkpoint, saved_config
from valuembed.errors import RecipeError
from valuembed.models.recipe_choice import DEFAULT_METHOD, resolve_for
from valuembed.recipes import LayerSpec, MethodRequest, Recipe, TemplateSpec


def choose_recipes(
    checkpoint: Checkpoint,
    asked: dict[str, MethodRequest] | None,
    layers: LayerSpec,
    template: TemplateSpec | Mapping[str, TemplateSpec],
    cleaning: str | None,
) -> dict[str, Recipe]:
    """The recipes by label, with what is asked for all of them in place.

    Args:
        checkpoint: where the model is.
        asked: what :func:`parse_methods` gives; None is the model's own method, for a saved folder its own recipe.
        layers: for the value methods that name none themselves. Layers that suit values would cripple a baseline, so
            one that reads hidden states takes only those written beside its name; a warning says so.
        template, cleaning: for every method that names none itself.

    Raises:
        RecipeError: as :func:`valuembed.load`; or ``layers`` would apply to no method.
    """
    saved = saved_config(checkpoint)
    if asked is None:
        recipe = resolve_for(checkpoint, saved, DEFAULT_METHOD, layers, template, cleaning)
        return {f"{recipe.method} (as saved)" if saved else recipe.method: recipe}
    chosen = {
        label: resolve_for(checkpoint, saved, one.method, one.layers, one.template or template, cleaning)
        for label, one in asked.items()
    }
    if layers is not None:
        # Hidden states without layers of their own are read after the final norm.
        open_to_it = {label for label, recipe in chosen.items() if recipe.signal == "value" and recipe.layers is None}
        norm = [label for label, recipe in chosen.items() if recipe.reads_final_norm]
        if not open_to_it:
            raise RecipeError(
                f"layers={layers!r} is for value methods that name no layers themselves, and there is none; write "
                f"layers beside a method's name, as in {next(iter(chosen)).partition('@')[0]}@half"
            )
        if norm:
            warnings.warn(f"layers={layers!r} is for value methods; not applied to {', '.join(norm)}", stacklevel=3)
        chosen = {
            label: replace(recipe, layers=layers) if label in open_to_it else recipe for label, recipe in chosen.items()
        }
    return chosen
