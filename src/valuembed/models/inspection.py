"""What can be read from a checkpoint, and the vectors of several recipes as tensors."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from valuembed._utils.text import counted, inflected
from valuembed.backbone import DecoderSpec, Plan, prepare
from valuembed.backbone.checkpoints import HubOptions, Origin, find_origin, locate, saved_config
from valuembed.errors import LayerError, RecipeError
from valuembed.models.recipe_choice import DEFAULT_METHOD, resolve_for
from valuembed.recipes import LayerSpec, Recipe, TemplateSpec, named_layers, preset_for, resolve_layers


@dataclass(frozen=True)
class CheckpointView:
    """What can be read from a checkpoint, known before any weights are read.

    Attributes:
        decoder_spec: of the decoder as the checkpoint holds it.
        origin: of the decoder as it was made; a folder that was saved cut holds only its first layers.
        has_final_norm: whether the hidden states after the final norm can be read.
        recipe: what was asked for; its layers are as they were given.
    """

    decoder_spec: DecoderSpec
    origin: Origin
    has_final_norm: bool
    recipe: Recipe

    def legal(self, recipe: Recipe) -> list[int]:
        """The layers that a recipe can read by themselves."""
        if recipe.signal == "hidden":
            return list(range(self.decoder_spec.num_layers))
        through = recipe.aligned and recipe.weights == "mean"
        return [block.layer for block in self.decoder_spec.blocks if block.projection or not through]

    def resolve(self, recipe: Recipe, layers: LayerSpec, preset: str | None = None) -> tuple[int, ...]:
        """Absolute layers of the decoder as it was made, by any of their names, for averaging.

        Raises:
            LayerError: the checkpoint does not hold all of them, or they cannot be averaged.
        """
        origin = self.origin
        among = origin.value_layers if recipe.signal == "value" else range(origin.num_layers)
        found = resolve_layers(layers, among, origin.num_layers, preset=preset)
        if gone := [layer for layer in found if layer >= self.decoder_spec.num_layers]:
            raise LayerError(
                f"{named_layers(gone)} {inflected(len(gone), 'is', 'are')} not in this folder, which was saved without "
                "them"
            )
        Plan(recipe, found, self.decoder_spec).check_layers()
        return found


def inspect_checkpoint(
    model: str | os.PathLike[str],
    method: str | Recipe | Mapping[str, Any] = DEFAULT_METHOD,
    *,
    template: TemplateSpec | Mapping[str, TemplateSpec] = "auto",
    cleaning: str | None = None,
    options: HubOptions | None = None,
) -> CheckpointView:
    """Find out what can be read from a checkpoint.

    Args:
        model, method, template, cleaning: as in :func:`valuembed.load`.
        options: of the hub.

    Raises:
        RecipeError: the method joins several signals.
    """
    checkpoint = locate(model, options=options)
    saved = saved_config(checkpoint)
    recipe = resolve_for(checkpoint, saved, method, None, template, cleaning)
    if recipe.joined:
        raise RecipeError(
            f"method {recipe.method!r} joins {counted(len(recipe.parts), 'part')}, each with layers of its own;"
            " look at one by itself: name its method, or a recipe file without 'joined'"
        )
    # The layers do not matter here, and those of a recipe might not exist in this decoder.
    found = prepare(checkpoint, Recipe(signal="hidden", weights="mean", layers=[0]), saved)
    cut = saved is not None and not found.is_adapter and not Recipe.from_dict(saved["recipe"]).reads_final_norm
    return CheckpointView(
        found.decoder_spec,
        find_origin(found.base, preset_for(found.config), found.decoder_spec, saved),
        not cut,
        recipe,
    )
