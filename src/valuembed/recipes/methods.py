"""The methods and the purposes by name: this table is the one place that knows them; and how a user names one."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from valuembed.errors import RecipeError, TemplateError
from valuembed.recipes.layers import LayerSpec
from valuembed.recipes.recipe import Alignment, Recipe, Signal, Weights
from valuembed.recipes.templates import TemplateSpec, check_roles, resolve_templates


def _row(method: str, signal: Signal, weights: Weights, template: str, *, alignment: Alignment = "none") -> Recipe:
    templates = resolve_templates(template)
    return Recipe(method=method, signal=signal, weights=weights, alignment=alignment, template=templates)


METHODS: dict[str, Recipe] = {
    recipe.method: recipe
    for recipe in (
        _row("va", "value", "mean", "none"),
        _row("aligned_va", "value", "mean", "none", alignment="projection"),
        _row("wva", "value", "last", "prompt_eol"),
        _row("aligned_wva", "value", "last", "prompt_eol", alignment="residual"),
        _row("hidden_mean", "hidden", "mean", "none"),
        _row("hidden_last", "hidden", "last", "none"),
        _row("prompt_eol", "hidden", "last", "prompt_eol"),
        _row("meta_eol", "hidden", "last", "meta_eol"),
        _row("echo", "hidden", "mean", "echo"),
        replace(
            _row("joined", "value", "last", "prompt_eol", alignment="residual"),
            joined=tuple(
                replace(_row("custom", "value", "mean", "echo"), layers=layers, weight=0.5)
                for layers in ("last", "last-2")
            ),
        ),
    )
}
"""The methods of the paper (value rows), the baselines it compares with (hidden rows), and ours, which joins some."""


PURPOSES: dict[str, Recipe] = {
    "similarity": replace(METHODS["joined"], method="similarity"),
    "search": replace(METHODS["joined"], method="search"),
    "clustering": replace(METHODS["aligned_va"], method="clustering"),
}
"""What embeddings are for, and the recipe that does best there of those we know, by measuring
(``benchmarks/beyond.md``, for clustering ``benchmarks/real.md``). Each is taken wherever a method is, by its name.
"""


def check_purpose(purpose: str) -> str:
    """A purpose, as the name of a method.

    Raises:
        RecipeError: nothing is known of it.
    """
    if purpose not in PURPOSES:
        raise RecipeError(f"purpose {purpose!r} is unknown; give one of {', '.join(PURPOSES)}")
    return purpose


def read_recipe(path: str | os.PathLike[str]) -> Recipe:
    """The recipe in a recipe file.

    Raises:
        RecipeError: there is no such file, or it holds no recipe.
    """
    try:
        with open(path, encoding="utf-8") as file:
            data = json.load(file)
    except (OSError, ValueError) as error:
        raise RecipeError(f"recipe file {os.fspath(path)!r} cannot be read: {error}") from error
    if not isinstance(data, dict) or not isinstance(data.get("recipe"), dict):
        raise RecipeError(f"recipe file {os.fspath(path)!r} has to hold an object with the key 'recipe'")
    return Recipe.from_dict(data["recipe"])


def write_recipe(path: str | os.PathLike[str], recipe: Recipe, **notes: Any) -> None:
    """Write a recipe file, which ``method=`` takes.

    Args:
        path: the file, ``.json``; it is replaced where it exists.
        recipe: what to write.
        notes: plain data for people to read, such as how its layers were chosen.
    """
    with open(path, "w", encoding="utf-8") as file:
        json.dump({"recipe": recipe.to_dict(), **notes}, file, ensure_ascii=False, indent=2)
        file.write("\n")


def resolve_recipe(
    method: str | Recipe | Mapping[str, Any],
    layers: LayerSpec = None,
    template: TemplateSpec | Mapping[str, TemplateSpec] = "auto",
    cleaning: str | None = None,
) -> Recipe:
    """A method's recipe with the user's layers and templates in place.

    Args:
        method: a name of :data:`METHODS` or :data:`PURPOSES`, a recipe, a recipe as plain data, or the path of a recipe
            file (``.json``).
        layers: replaces the recipe's layers unless None; of a joined recipe those of its first part, as the template.
        template: ``"auto"`` keeps the recipe's own; None or ``"none"`` is the text alone; a name, a string, a list;
            or a mapping with ``"query"``, ``"document"`` and ``"default"`` (a role left out keeps the recipe's own).
        cleaning: replaces the recipe's cleaning unless None.

    Raises:
        RecipeError: an unknown method, or choices that do not fit together (its subclasses name layer and template).
    """
    if isinstance(method, Recipe):
        recipe = method
    elif isinstance(method, Mapping):
        recipe = Recipe.from_dict(method)
    elif isinstance(method, str) and (named := METHODS.get(method) or PURPOSES.get(method)):
        recipe = named
    elif isinstance(method, str) and method.endswith(".json"):
        recipe = read_recipe(method)
    else:
        raise RecipeError(
            f"method {method!r} is unknown; give one of {', '.join(METHODS)}, a recipe file (.json), or a Recipe of "
            "your own"
        )
    if layers is not None:
        recipe = replace(recipe, layers=layers)
    if cleaning is not None:
        parts = tuple(replace(part, cleaning=cleaning) for part in recipe.joined)
        recipe = replace(recipe, cleaning=cleaning, joined=parts)
    if isinstance(template, str) and template == "auto":
        return recipe
    if isinstance(template, Mapping):
        check_roles(template)
        chosen = {
            field: resolve_templates(template[role])
            for role, field in (("default", "template"), ("query", "query_template"), ("document", "document_template"))
            if role in template and template[role] != "auto"
        }
        if not template:
            raise TemplateError("template={} names no role; give query, document or default")
        return replace(recipe, **chosen)  # type: ignore[arg-type]
    return replace(recipe, template=resolve_templates(template), query_template=None, document_template=None)
