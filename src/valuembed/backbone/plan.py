"""What is read from a decoder: a recipe whose layers are resolved."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from valuembed._utils.text import inflected
from valuembed.backbone.architecture import DecoderSpec
from valuembed.errors import CheckpointError, LayerError
from valuembed.recipes import Recipe, named_layers, resolve_layers

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Plan:
    """What to read, with the recipe's layers resolved: one per loaded model.

    Attributes:
        recipe: its choices.
        layers: absolute 0-based indices; empty for hidden states after the final norm. Of a joined recipe, those of its
            first part.
        decoder_spec: of the decoder as loaded.
        joined: plans of the further parts of a joined recipe.
        mean: ``[width]`` float32, taken from the vector of length 1; None where the recipe does not centre, or the
            decoder has not been read for it. Of a joined recipe, that of its first part.
    """

    recipe: Recipe
    layers: tuple[int, ...]
    decoder_spec: DecoderSpec
    joined: tuple[Plan, ...] = ()
    mean: Tensor | None = field(default=None, compare=False)

    @property
    def parts(self) -> tuple[Plan, ...]:
        """The plans of all parts, each by itself; the plan alone where there is nothing to join."""
        return (replace(self, recipe=self.recipe.parts[0], joined=()), *self.joined) if self.joined else (self,)

    @property
    def kept_layers(self) -> int:
        """How many of the decoder's first layers it takes to read it."""
        ends = (part.layers[-1] + 1 if part.layers else part.decoder_spec.num_layers for part in self.parts)
        return max(ends)

    @property
    def width(self) -> int:
        """Width of the vector: ``g*d``, ``h*d`` or ``m``, summed over the parts."""
        return sum(part._own_width for part in self.parts)

    @property
    def _own_width(self) -> int:
        if self.recipe.signal == "hidden" or self.recipe.aligned:
            return self.decoder_spec.model_width
        return self._width_of(self.layers[0])

    def check_layers(self) -> None:
        """Check that the signal can be read at every layer, and averaged over them.

        Raises:
            LayerError: the layers differ in width, or one has no W_O to align with.
        """
        recipe, spec = self.recipe, self.decoder_spec
        if recipe.signal == "hidden":
            return
        if recipe.aligned:
            # The last token's is the attention block's own output, which takes no projection by name.
            lacking = [layer for layer in self.layers if not spec.block(layer).projection]
            if lacking and recipe.weights == "mean":
                raise LayerError(
                    f"aligned values need the output projection, and {spec.architecture} has no linear map "
                    f"from its heads to the model width in {named_layers(lacking)}; use alignment='none' (methods va, "
                    "wva)"
                )
            return
        widths: dict[int, list[int]] = {}
        for layer in self.layers:
            widths.setdefault(self._width_of(layer), []).append(layer)
        if len(widths) > 1:
            groups = "; ".join(f"{width} wide: {named_layers(group)}" for width, group in sorted(widths.items()))
            raise LayerError(f"layers of unequal width cannot be averaged ({groups}); choose layers of one group")

    def _width_of(self, layer: int) -> int:
        """Width of the values of all heads in a layer."""
        block = self.decoder_spec.block(layer)
        return (block.value_heads if self.recipe.weights == "mean" else block.query_heads) * block.head_width


def resolve_plan(
    recipe: Recipe, preset: str | None, decoder_spec: DecoderSpec, saved: dict[str, Any] | None = None
) -> Plan:
    """Turn a recipe's layers into absolute indices of one decoder.

    Layers are those of the whole decoder, also where a saved folder holds only its first ones: "half" means the same
    layers in a folder as in its source, or is an error.

    Args:
        recipe: layers in any form.
        preset: name of the preset made for this backbone, or None.
        decoder_spec: what it is made of.
        saved: what a folder saved by this library records, where the decoder's weights are that folder's.

    Raises:
        LayerError: layers that do not exist, hold no values or differ in width.
        CheckpointError: layers that a saved folder no longer holds, naming where they are.
    """
    if recipe.joined:
        first, *others = (resolve_plan(part, preset, decoder_spec, saved) for part in recipe.parts)
        return join_plans(first, others)
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
    return settle_plan(recipe, layers, decoder_spec)


def settle_plan(recipe: Recipe, layers: tuple[int, ...], decoder_spec: DecoderSpec) -> Plan:
    """Settle a recipe on layers of one decoder.

    Args:
        recipe: whatever its layers; ``alignment="residual"`` becomes ``"projection"`` where no chosen layer has a norm
            after its attention block, so that records of the same vectors are the same.
        layers: absolute 0-based indices, empty for hidden states after the final norm.
        decoder_spec: of the decoder.

    Raises:
        LayerError: as :meth:`Plan.check_layers`.
    """
    recipe = replace(recipe, layers=layers or None)
    if recipe.alignment == "residual" and not any(decoder_spec.block(layer).norm for layer in layers):
        recipe = replace(recipe, alignment="projection")
    plan = Plan(recipe, layers, decoder_spec)
    plan.check_layers()
    return plan


def join_plans(first: Plan, others: Sequence[Plan]) -> Plan:
    """The plan of a joined recipe from those of its parts, all of one decoder."""
    recipe = replace(first.recipe, joined=tuple(plan.recipe for plan in others))
    return replace(first, recipe=recipe, joined=tuple(others))
