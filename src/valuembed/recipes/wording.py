"""A recipe in words: cards, tables and pages show them, each as much of them as it has room for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from valuembed.recipes.layers import describe, named_layers
from valuembed.recipes.templates import TEMPLATES

if TYPE_CHECKING:
    from valuembed.recipes.recipe import Recipe

FINAL_NORM = "final norm"
LAST_LAYER = "the last layer, after the final norm"
"""What ``final norm`` means, where there is room to say so."""

_SIGNALS = {"value": "attention values", "hidden": "hidden states"}
_WEIGHTS = {"mean": "mean over tokens", "last": "last token"}
_ALIGNMENTS = {
    "none": "",
    "projection": "the output projection",
    "residual": "the output projection and the norm after it",
}
_SPANS = {"text": "the text's tokens", "all": "all tokens"}
_VECTORS = {
    ("value", "mean"): "mean of the values of {tokens}",
    ("value", "last"): "values weighed by the last token's attention",
    ("hidden", "mean"): "mean of the hidden states of {tokens}",
    ("hidden", "last"): "hidden state of the last token",
}


@dataclass(frozen=True)
class RecipeWords:
    """What :meth:`valuembed.Recipe.describe` says of a recipe.

    Attributes:
        signal: what is read, ``"attention values"`` or ``"hidden states"``.
        weights: ``"mean over tokens"`` or ``"last token"``.
        tokens: those that a mean covers, ``"the text's tokens"`` or ``"all tokens"``; empty without a mean.
        alignment: what values go through, such as ``"the output projection"``; empty where they are read as they are.
        layers: what is averaged over, such as ``"20-27"``; else ``"final norm"``, or the recipe's own words.
        templates: the templates of all roles, by name where they have one.
        vector: all of it in one line, templates as their number.
    """

    signal: str
    weights: str
    tokens: str
    alignment: str
    layers: str
    templates: str
    vector: str


def in_words(recipe: Recipe) -> RecipeWords:
    """Put a recipe into words; of a joined one those of its parts, one after the other."""
    parts = [_part_in_words(part) for part in recipe.parts]
    return RecipeWords(
        signal=_joined([part.signal for part in parts]),
        weights=_joined([part.weights for part in parts]),
        tokens=_joined([part.tokens for part in parts if part.tokens]),
        alignment=_joined([part.alignment for part in parts if part.alignment]),
        layers=" + ".join(part.layers for part in parts),
        templates=" + ".join(part.templates for part in parts),
        vector=", joined with: ".join(part.vector for part in parts),
    )


def _joined(words: list[str]) -> str:
    """Words of several parts, what they share once."""
    return " + ".join(dict.fromkeys(words))


def _part_in_words(recipe: Recipe) -> RecipeWords:
    alignment = _ALIGNMENTS[recipe.alignment]
    layers, read_at = _layers(recipe)
    what = _VECTORS[recipe.signal, recipe.weights].format(tokens=_SPANS[recipe.span])
    through = f", through {alignment}" if alignment else ""
    centred = ", centred" if recipe.centring != "none" else ""
    return RecipeWords(
        signal=_SIGNALS[recipe.signal],
        weights=_WEIGHTS[recipe.weights],
        tokens=_SPANS[recipe.span] if recipe.weights == "mean" else "",
        alignment=alignment,
        layers=layers,
        templates=_templates(recipe),
        vector=f"{what[0].upper()}{what[1:]}{through}{centred}; {read_at}{_count_templates(recipe)}",
    )


def _layers(recipe: Recipe) -> tuple[str, str]:
    if isinstance(recipe.layers, tuple) and all(type(layer) is int for layer in recipe.layers):
        return describe(recipe.layers), named_layers(recipe.layers)
    if recipe.reads_final_norm:
        return FINAL_NORM, FINAL_NORM
    asked = "default" if recipe.layers is None else str(recipe.layers)
    return asked, f"layers {asked}"


def _templates(recipe: Recipe) -> str:
    names = {(text,) if isinstance(text, str) else text: name for name, text in TEMPLATES.items()}
    roles = {"": recipe.template, "query: ": recipe.query_template, "document: ": recipe.document_template}
    return "; ".join(
        role + names.get(template, " + ".join(f"`{part}`" for part in template))
        for role, template in roles.items()
        if template is not None
    )


def _count_templates(recipe: Recipe) -> str:
    strings = [*recipe.template, *(recipe.query_template or ()), *(recipe.document_template or ())]
    if strings == ["{text}"]:
        return ""
    return "; in a template" if len(strings) == 1 else f"; in {len(strings)} templates"
