"""What is read from a decoder: a recipe whose layers are resolved."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from valuembed._utils.text import inflected
from valuembed.backbone.architecture import DecoderSpec
from valuembed.errors import CheckpointError
from valuembed.recipes import Recipe, named_layers, resolve_layers


@dataclass(frozen=True)
class Plan:
    """What to read, with the recipe's layers resolved: one per loaded model.

    Attributes:
        recipe: the five choices.
        layers: absolute 0-based indices; empty for hidden states after the final norm.
        decoder_spec: of the decoder as loaded.
    """

    recipe: Recipe
    layers: tuple[int, ...]
    decoder_spec: DecoderSpec


def resolve_plan(
    recipe: Recipe, preset: str | None, decoder_spec: DecoderSpec, saved: dict[str, Any] | None = None
) -> Plan:
    """Turn a recipe's layers into absolute indices of one decoder.

    Layers are those of the whole decoder, also where a saved folder holds only its first ones: "half" means the same
    layers in a folder as in its source, or is an error.

    Args:
        recipe: layers in any form.
        preset: name of the preset made for this backbone, or None.
        decoder_spec: its survey.
        saved: what a folder saved by this library records, where the decoder's weights are that folder's.

    Raises:
        LayerError: layers that do not exist, hold no values or differ in width.
        CheckpointError: layers that a saved folder no longer holds, naming where they are.
    """
    whole = saved["origin"] if saved else None
    num_layers = whole["num_layers"] if whole else decoder_spec.num_layers
    gone = f"this folder was saved with layers 0-{decoder_spec.num_layers - 1} of {num_layers}"
    if recipe.reads_final_norm:
        if saved and not Recipe.from_dict(saved["recipe"]).reads_final_norm:
            raise CheckpointError(
                f"{gone} and without the final norm, which {recipe.method} reads; load {saved['origin']['name']!r}"
            )
        return Plan(recipe, (), decoder_spec)
    values = tuple(whole["value_layers"]) if whole else decoder_spec.value_layers
    preset = whole["preset"] if whole else preset
    legal = values if recipe.signal == "value" else tuple(range(num_layers))
    asked = recipe.layers
    layers = resolve_layers(asked, legal, num_layers, preset=preset)
    if whole and (missing := [layer for layer in layers if layer >= decoder_spec.num_layers]):
        given = list(asked) if isinstance(asked, tuple) else asked
        raise CheckpointError(
            f"layers={given!r} means {named_layers(layers)}, and {named_layers(missing)} "
            f"{inflected(len(missing), 'is', 'are')} not here: {gone}; load {whole['name']!r} instead"
        )
    decoder_spec.width(layers, signal=recipe.signal, weights=recipe.weights, aligned=recipe.aligned)
    return Plan(replace(recipe, layers=layers), layers, decoder_spec)
