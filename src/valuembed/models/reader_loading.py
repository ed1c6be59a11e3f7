"""Load a reader of a decoder: what every way of loading a model does, before anything is put around the reader."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Generic

from valuembed._utils.devices import check_device
from valuembed._utils.text_warnings import callers_level
from valuembed.backbone import LoadOptions, computes_in_int8, prepare, split_dtype
from valuembed.backbone.checkpoints import Checkpoint, SavedSettings, locate, saved_config, saved_settings
from valuembed.errors import RecipeError, UnusedModulesWarning
from valuembed.execution import CompileChoice, check_compile
from valuembed.models.recipe_choice import DEFAULT_METHOD, calibration_of, resolve_for
from valuembed.models.value_reader import Reader, build
from valuembed.recipes import LayerSpec, Recipe, TemplateSpec


@dataclass(frozen=True)
class LoadedReader(Generic[Reader]):
    """A reader, and what is known of where it came from.

    Attributes:
        reader: of the decoder.
        checkpoint: the place.
        saved: what :func:`valuembed.backbone.checkpoints.saved_config` says of it.
        settings: what plain sentence-transformers saved beside it.
        device: where a finished model goes; a device map has already placed the decoder.
    """

    reader: Reader
    checkpoint: Checkpoint
    saved: dict[str, Any] | None
    settings: SavedSettings
    device: str | None


def check_prompts(prompts: Mapping[str, Any] | None) -> None:
    """Raise where an instruction is no text.

    Raises:
        RecipeError: it names them.
    """
    if wrong := [name for name, prompt in (prompts or {}).items() if not isinstance(prompt, str)]:
        raise RecipeError(f"prompts: {', '.join(map(repr, wrong))} is not a string; give a text for each name")


def load_reader(
    kind: type[Reader],
    model: str | os.PathLike[str],
    method: str | Recipe | Mapping[str, Any] = DEFAULT_METHOD,
    layers: LayerSpec = None,
    template: TemplateSpec | Mapping[str, TemplateSpec] = "auto",
    cleaning: str | None = None,
    *,
    options: LoadOptions,
    compile: CompileChoice = False,
) -> LoadedReader[Reader]:
    """Load a decoder cut for a recipe, with the module around it that reads it.

    Args:
        kind: of that module.
        model, method, layers, template, cleaning, options, compile: as in :func:`valuembed.load`.

    Raises:
        RecipeError, DeviceError, CheckpointError, UnsupportedModelError: as :func:`valuembed.load`.
    """
    device, compile = check_device(options.device), check_compile(compile)
    checkpoint = locate(model, options=options)
    torch_dtype, model_kwargs = split_dtype(options.dtype, options.model_kwargs, device)
    saved = saved_config(checkpoint)
    recipe = resolve_for(checkpoint, saved, method, layers, template, cleaning)
    if saved is not None:
        # What a folder records is in absolute layers already.
        is_recorded = recipe == Recipe.from_dict(saved["recipe"])
        calibration_of(checkpoint, saved, recipe if is_recorded else prepare(checkpoint, recipe, saved).plan.recipe)
    settings = saved_settings(checkpoint) if saved is None else SavedSettings()
    device_map = model_kwargs.get("device_map")
    reader = build(
        kind,
        checkpoint,
        recipe,
        saved=saved,
        max_tokens=options.max_tokens,
        dtype=torch_dtype,
        device=device if device_map is None else None,
        model_kwargs=model_kwargs,
        int8_products=computes_in_int8(options.dtype, model_kwargs, device),
    )
    reader.executor.compile = compile
    if unused := settings.not_used():
        warnings.warn(f"model {checkpoint.name!r} was {unused}", UnusedModulesWarning, stacklevel=callers_level())
    if options.max_tokens is None and settings.max_tokens is not None:
        reader.max_tokens = min(settings.max_tokens, reader.max_tokens or settings.max_tokens)
    placed = device if device_map is None else str(reader.model.device)
    return LoadedReader(reader, checkpoint, saved, settings, placed)
