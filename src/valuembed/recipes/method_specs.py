"""How a user names several methods at once, each with a template and layers of its own if need be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from valuembed.errors import RecipeError
from valuembed.recipes.methods import METHODS, PURPOSES
from valuembed.recipes.recipe import Recipe

MethodSpec = str | Recipe | Mapping[str, Any]
"""What ``load(method=...)`` takes."""


@dataclass(frozen=True)
class MethodRequest:
    """A method with the template and the layers that were written beside its name."""

    method: MethodSpec
    template: str | None = None
    layers: str | None = None


def parse_methods(methods: str | Sequence[str] | Mapping[str, MethodSpec] | None) -> dict[str, MethodRequest] | None:
    """The methods that a user named, by their labels.

    Args:
        methods: ``"all"``, every row of :data:`METHODS`; or names, each with a template and layers of its own if need
            be: ``"va"``, ``"wva:future_eol"``, ``"va@all"``, ``"aligned_wva:future_eol@20:28"``; or recipe files
            (``.json``); or anything that ``load(method=...)`` takes, by label. None is left as it is.

    Raises:
        RecipeError: something that is no method, or two with one label.
    """
    if methods is None:
        return None
    if isinstance(methods, Mapping):
        return {str(label): MethodRequest(method) for label, method in methods.items()}
    found: dict[str, MethodRequest] = {}
    for spec in [methods] if isinstance(methods, str) else methods:
        for label, asked in (
            {name: MethodRequest(name) for name in METHODS} if spec == "all" else _parse(spec)
        ).items():
            if found.setdefault(label, asked) != asked:
                raise RecipeError(
                    f"method {spec!r}: two recipe files are named {label!r}; rename one, or in Python give them labels"
                )
    if not found:
        raise RecipeError(f"no method to evaluate; give some of {', '.join(METHODS)}, a recipe file (.json), or all")
    return found


def _parse(spec: str) -> dict[str, MethodRequest]:
    """``name[:template][@layers]``, or the path of a recipe file."""
    if not isinstance(spec, str):
        raise RecipeError(f"a method is named by a string, got {type(spec).__name__}: {spec!r}; recipes need labels")
    rest, at, layers = spec.rpartition("@")
    # An @ may also stand in a template, or in a path.
    if not at or "{" in layers or spec.endswith(".json"):
        rest, at, layers = spec, "", ""
    if rest.endswith(".json"):
        return {Path(rest).stem + at + layers: MethodRequest(rest, None, layers or None)}
    name, colon, template = rest.partition(":")
    if name not in METHODS and name not in PURPOSES:
        raise RecipeError(
            f"method {spec!r} is unknown; give one of {', '.join(METHODS)} (if need be with a template or layers, as "
            "in wva:future_eol or va@20:28), a recipe file (.json), or all"
        )
    if bool(colon) != bool(template) or bool(at) != bool(layers):
        where = "a template has to follow ':'" if colon and not template else "layers have to follow '@'"
        raise RecipeError(f"method {spec!r}: {where}, as in wva:future_eol@half")
    return {spec: MethodRequest(name, template or None, layers or None)}
