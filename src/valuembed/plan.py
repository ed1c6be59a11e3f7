"""What is read from a decoder: a recipe whose layers are resolved."""

from __future__ import annotations

from dataclasses import dataclass

from valuembed.anatomy import Anatomy
from valuembed.recipes import Recipe


@dataclass(frozen=True)
class Plan:
    """What to read, with the recipe's layers resolved: one per loaded model.

    Attributes:
        recipe: the five choices.
        layers: absolute 0-based indices; empty for hidden states after the final norm.
        anatomy: of the decoder as loaded.
    """

    recipe: Recipe
    layers: tuple[int, ...]
    anatomy: Anatomy
