"""What a record of stored vectors says about loading their model again: the default of whatever reads them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from valuembed._utils.text import counted
from valuembed.backbone.checkpoints import ADAPTER_CONFIG, BUNDLED, LoadedFrom
from valuembed.errors import InputError, LayerError, RecipeError
from valuembed.recipes import METHODS, PURPOSES, Recipe, resolve_recipe
from valuembed.vectors.provenance import VectorSpec
from valuembed.vectors.reader import is_remote

CHOICES = ("signal", "weights", "alignment", "span", "centring")
"""Of each part of a recipe, what a method stands for beside its template."""

_HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*(:\w[\w./-]*\.gguf)?)?", re.ASCII)
_WEIGHTS_AS = re.compile(r".*, weights as (int8|fp8)")


def recorded_options(vector_spec: VectorSpec, address: str | Path, given: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of :func:`valuembed.load` for the model that made vectors; what is named goes before the record.

    Args:
        vector_spec: the record.
        address: where it was found. A model that was a folder is looked for beside it, and in the working folder.
        given: arguments of :func:`valuembed.load`, or an empty mapping; None is what is not named.

    Returns:
        They, with ``model``, ``method`` and perhaps ``revision`` from the record where they are not named. Whether the
        weights are the same is for :func:`valuembed.search.results.check_make` to find out.

    Raises:
        InputError: the model's folder is not found, the method that is named is another one than that of the record, or
            the record is damaged.
        RecipeError: the method that is named is unknown.
    """
    options = {name: value for name, value in given.items() if value is not None}
    try:
        recorded = Recipe.from_dict(vector_spec.recipe)
    except (RecipeError, TypeError) as error:
        raise InputError(f"{address} holds a damaged record of the recipe that made its vectors: {error}") from error
    options["method"] = _recipe(recorded, options.get("method"), f"{address} was made by {vector_spec}")
    if "model" not in options:
        options["model"] = find_model(vector_spec, address)
        if vector_spec.loaded_from and vector_spec.loaded_from.revision:
            options.setdefault("revision", vector_spec.loaded_from.revision)
    return options


def _recipe(recorded: Recipe, method: Any, made: str) -> Recipe:
    if method is None:
        return recorded
    named = resolve_recipe(method)
    if found := _other_choices(recorded, named):
        raise InputError(
            f"{made}, not by method {named.method!r}; their vectors cannot be compared: {'; '.join(found)}"
        )
    # The name of a method says nothing about layers; a recipe of the user's own says everything.
    if not isinstance(method, str) or method not in (*METHODS, *PURPOSES):
        return named
    return recorded if method == recorded.method else replace(named, layers=recorded.layers, joined=recorded.joined)


def _other_choices(recorded: Recipe, named: Recipe) -> list[str]:
    """What two recipes do differently, beside layers and templates."""
    if len(recorded.parts) != len(named.parts):
        return [f"{counted(len(recorded.parts), 'part')} against {len(named.parts)}"]
    return [
        f"{name} {getattr(one, name)!r} against {getattr(other, name)!r}"
        for one, other in zip(recorded.parts, named.parts, strict=True)
        for name in CHOICES
        if getattr(one, name) != getattr(other, name)
        # Whether "residual" is another thing than "projection" is up to the decoder, and found out once it is loaded.
        and not (name == "alignment" and one.aligned and other.aligned)
    ]


def find_model(vector_spec: VectorSpec, address: str | Path) -> str:
    """What to give :func:`valuembed.load` for the model that a record names.

    Raises:
        InputError: it was a folder, which is not found; or the record's name is none of a model.
    """
    loaded = vector_spec.loaded_from
    if loaded is None:
        loaded = LoadedFrom(vector_spec.model, is_folder="/" not in vector_spec.model and vector_spec.model != BUNDLED)
    name = str(loaded.name)
    if loaded.is_folder:
        # Only ever a folder's own name: a record must not be able to point elsewhere.
        if name in ("", ".", "..") or Path(name).name != name:
            raise InputError(f"{address} holds a damaged record: the model's folder is called {name!r}")
        places = [Path.cwd()] if is_remote(address) else [Path.cwd(), Path(address).resolve().parent]
        for place in places:
            held = place / name
            # A GGUF file is a model by itself, and a folder with nothing else is one too.
            usual = any((held / file).is_file() for file in ("config.json", ADAPTER_CONFIG))
            if usual or held.is_file() or any(held.glob("*.gguf")):
                return str(place / name)
        beside = "" if is_remote(address) else f" nor beside {address}"
        raise InputError(
            f"{address} was made by the model in a folder {name!r}, which is {'not' if not beside else 'neither'} in "
            f"the working folder{beside}; name the folder with --model (model=)"
        )
    if not _HUB_ID.fullmatch(name):
        raise InputError(f"{address} holds a damaged record: the model is called {name!r}")
    return name


@contextmanager
def telling_what_made(vector_spec: VectorSpec, address: str | Path) -> Iterator[None]:
    """Say of a model that cannot be read as a record says that it is not the one that made the vectors.

    Raises:
        InputError: its layers do not suit the recorded recipe.
    """
    try:
        yield
    except LayerError as error:
        raise InputError(
            f"{address} was made by {vector_spec}, and the model that is named cannot be read in that way: {error}"
        ) from error


def recorded_job(record: Mapping[str, Any], folder: str | Path, options: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of :func:`valuembed.load` for going on with a job, from its manifest.

    Args:
        record: what :func:`valuembed.corpus.read_manifest` returns.
        folder: the job's.
        options: as ``given`` of :func:`recorded_options`.

    Raises:
        InputError, RecipeError: see :func:`recorded_options`.
    """
    settings = record["settings"]
    weights = _WEIGHTS_AS.fullmatch(settings["dtype"])
    recorded = {"dtype": weights.group(1) if weights else settings["dtype"], "max_tokens": settings["max_tokens"]}
    named = {name: value for name, value in options.items() if value is not None}
    return recorded_options(VectorSpec.from_record(record["make"]), folder, {**recorded, **named})


def recorded_choices(record: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """What a job was asked for beside its model, from its manifest; what is named goes before the record.

    Args:
        record: what :func:`valuembed.corpus.read_manifest` returns.
        given: any of text_column, id_column, precision, dim, chunk, overlap, late, rows_per_shard; None is not named.
    """
    # Folders that were begun before there was a choice have texts in chunks run one by one.
    known = {
        "late": False,
        **record["settings"],
        "precision": record["make"]["precision"],
        "dim": record["make"]["dim"],
    }
    return {name: known[name] if value is None else value for name, value in given.items()}
