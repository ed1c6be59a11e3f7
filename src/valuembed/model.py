"""What users import: ``load`` a model, look at one with ``info``."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from sentence_transformers.base.modules import Normalize

from valuembed.adapters import base_of, find
from valuembed.calibration import CalibrationRecord, check_recipe, read_record
from valuembed.checkpoint import Checkpoint, locate
from valuembed.compiling import Compiling, Wish
from valuembed.encoder import ValueEncoder
from valuembed.errors import RecipeError
from valuembed.layers import LayerSpec, named_layers
from valuembed.module import ValueTransformer, build
from valuembed.quantizing import split_dtype
from valuembed.recipes import Recipe, resolve_recipe
from valuembed.resolution import load_tokenizer, prepare, saved_config
from valuembed.templates import TemplateSpec
from valuembed.tokenizing import expand_chat, names_chat


class _Default(str):
    """A default that can be told from the same word written by a user.

    A folder saved by this library carries its recipe; only a method that was really asked for replaces it.
    """


DEFAULT_METHOD = _Default("aligned_wva")


def load(
    model: str | os.PathLike[str] = "bundled",
    method: str | Recipe | Mapping[str, Any] = DEFAULT_METHOD,
    layers: LayerSpec = None,
    template: TemplateSpec | Mapping[str, TemplateSpec] = "auto",
    cleaning: str | None = None,
    prompts: dict[str, str] | None = None,
    normalize: bool = True,
    dtype: str | torch.dtype | None = None,
    device: str | None = None,
    max_tokens: int | None = None,
    compile: Wish = False,
    revision: str | None = None,
    token: bool | str | None = None,
    cache_folder: str | None = None,
    local_files_only: bool = False,
    trust_remote_code: bool = False,
    model_kwargs: dict[str, Any] | None = None,
) -> ValueEncoder:
    """Turn a decoder into a sentence-embedding model, without training.

    Args:
        model: a hub id, a local checkpoint folder, a folder saved by this library, or ``"bundled"``. A saved folder
            keeps its own recipe unless another method is asked for.
        method: a name of :data:`valuembed.recipes.METHODS`, a :class:`Recipe`, a recipe as plain data, or a recipe
            file (``.json``).
        layers: what to average over; see :func:`valuembed.layers.resolve_layers`. None is the backbone's preset,
            else the layers at 0.65 to 0.90 of the depth (ours); for hidden states, the last layer after the final norm.
        template: ``"auto"`` is the method's own; None or ``"none"`` the text alone; a name; a string with one
            ``{text}``; a list of these (raw vectors averaged); or a mapping from ``"query"``, ``"document"`` and
            ``"default"`` to any of them.
        cleaning: what is done to a text before its template: ``"none"`` or ``"sentence"``, see
            :data:`valuembed.cleaning.CLEANINGS`. None is the recipe's own, for every method nothing.
        prompts: instructions by name, for ``encode(prompt_name=...)``, ``encode_query`` and ``encode_document``.
        normalize: scale the vectors to unit length. A saved folder does as it was saved; False takes that away.
        dtype: of the weights, such as ``"bfloat16"``; None is the checkpoint's own. ``"int8"`` and ``"fp8"`` keep the
            layers' matrices in 8 bits (needs the extra ``quantize``) and compute in the checkpoint's own. Sums and
            vectors are always float32.
        device: None picks a GPU where there is one.
        max_tokens: longest sequence fed, template included; None is the model's own limit.
        compile: True compiles the layers with torch before the first pass, which takes from seconds to a minute and
            makes every later pass faster; ``"auto"`` does so once a call's work is worth it. Where compiling fails, the
            layers run as they are, and a warning says why.
        revision, token, cache_folder, local_files_only: as on the hub.
        trust_remote_code: run code that comes with the checkpoint. Never needed for this library's own folders.
        model_kwargs: for transformers' ``from_pretrained``: ``attn_implementation``, ``device_map``, quantization, ...

    Returns:
        A ``SentenceTransformer`` whose ``encode`` gives ``[b, width]`` float32.

    Raises:
        RecipeError: method, layers or template are unknown or do not fit together.
        CheckpointError: the model is missing, damaged, or refused for safety.
        UnsupportedModelError: its attention values cannot be read.

    Source: Zhang et al., arXiv 2602.01572 (VA, AlignedVA, WVA, AlignedWVA).
    """
    if wrong := [name for name, prompt in (prompts or {}).items() if not isinstance(prompt, str)]:
        raise RecipeError(f"prompts: {', '.join(map(repr, wrong))} is not a string; give a text for each name")
    if backend := (model_kwargs or {}).get("backend"):
        raise RecipeError(
            f"model_kwargs: backend={backend!r} is not possible, values are read while torch computes them"
        )
    compiling = Compiling(compile)
    checkpoint = locate(
        model,
        revision=revision,
        token=token,
        cache_folder=cache_folder,
        local_files_only=local_files_only,
        trust_remote_code=trust_remote_code,
    )
    torch_dtype, model_kwargs = split_dtype(dtype, model_kwargs)
    saved = saved_config(checkpoint)
    recipe = resolve_for(checkpoint, saved, method, layers, template, cleaning)
    _calibrated(checkpoint, saved, recipe)
    device_map = model_kwargs.get("device_map")
    reader = build(
        checkpoint,
        recipe,
        saved=saved,
        max_tokens=max_tokens,
        dtype=torch_dtype,
        device=device if device_map is None else None,
        model_kwargs=model_kwargs,
    )
    reader.compiling = compiling
    if saved is None:
        modules: list[torch.nn.Module] = [reader, *([Normalize()] if normalize else [])]
        return ValueEncoder(modules=modules, device=_placement(device, device_map, reader), prompts=prompts)
    encoder = _restore(reader, checkpoint, _placement(device, device_map, reader), prompts)
    if not normalize:
        for name, module in list(encoder.named_children()):
            if isinstance(module, Normalize):
                del encoder._modules[name]
    return encoder


def resolve_for(
    checkpoint: Checkpoint,
    saved: dict[str, Any] | None,
    method: str | Recipe | Mapping[str, Any] = DEFAULT_METHOD,
    layers: LayerSpec = None,
    template: TemplateSpec | Mapping[str, TemplateSpec] = "auto",
    cleaning: str | None = None,
) -> Recipe:
    """The recipe that is asked for: a saved folder's own unless a method is named, chat templates spelt out.

    Args:
        checkpoint: where the model is.
        saved: what :func:`valuembed.resolution.saved_config` says of it.
        method, layers, template, cleaning: as in :func:`load`.
    """
    if saved is not None and isinstance(method, _Default):
        method = Recipe.from_dict(saved["recipe"])
    if names_chat(template):
        has_tokenizer = checkpoint.file("tokenizer_config.json") or not find(checkpoint)
        template = expand_chat(template, load_tokenizer(checkpoint if has_tokenizer else base_of(checkpoint, saved)))
    return resolve_recipe(method, layers, template, cleaning)


def _calibrated(checkpoint: Checkpoint, saved: dict[str, Any] | None, recipe: Recipe) -> CalibrationRecord | None:
    """How a saved folder was calibrated; that the recipe is the one it was calibrated for, before weights are read."""
    if saved is None or (record := read_record(checkpoint)) is None:
        return None
    # What a folder records is in absolute layers already.
    same = recipe == Recipe.from_dict(saved["recipe"])
    absolute = recipe if same else prepare(checkpoint, recipe, saved).plan.recipe
    check_recipe(record, absolute, checkpoint.name, saved["origin"]["name"])
    return record


def _restore(
    reader: ValueTransformer, checkpoint: Checkpoint, device: str | None, prompts: dict[str, str] | None
) -> ValueEncoder:
    """A saved ``SentenceTransformer`` (prompts, later modules) around a reader that is already built."""

    class Built(ValueTransformer):
        @classmethod
        def load(cls, *args: Any, **kwargs: Any) -> ValueTransformer:  # type: ignore[override]
            return reader

    encoder = ValueEncoder._load_with_module_classes(
        checkpoint.location,
        {**ValueEncoder._module_classes, "valuembed.module.ValueTransformer": Built},
        device=device,
        prompts=prompts,
        revision=checkpoint.hub.get("revision"),
        token=checkpoint.hub.get("token"),
        cache_folder=checkpoint.hub.get("cache_dir"),
        local_files_only=bool(checkpoint.hub.get("local_files_only")),
        trust_remote_code=checkpoint.trust_remote_code,
    )
    # Only this load needed the class above, and worker processes could not be given it.
    del encoder.__dict__["_module_classes"]
    return encoder


def _placement(device: str | None, device_map: Any, reader: ValueTransformer) -> str | None:
    """Where to put a finished module list; a device map has already placed the decoder."""
    return device if device_map is None else str(reader.model.device)


@dataclass(frozen=True)
class ModelInfo:
    """What :func:`info` finds out about a model and a recipe without reading any weights.

    Attributes:
        name: the model as given.
        source: where its layers come from, for a folder saved by this library; else its name.
        architecture: class of the decoder.
        num_layers: L of the decoder as the checkpoint holds it.
        value_layers: 0-based layers whose values can be read.
        query_heads, value_heads, head_width, model_width: h, g, d (of the first chosen layer) and m.
        recipe: with absolute layers.
        chosen_layers: what the recipe averages over; empty for hidden states after the final norm.
        width: of the vectors.
        calibration: how a saved folder was calibrated, in plain words; None where it was not.
        kept_layers: layers that are loaded.
        not_loaded: what is left on disk, in plain words.
        dtype: of the weights on this device.
        weight_bytes, full_weight_bytes: memory for the weights as loaded, and of the whole decoder.
    """

    name: str
    source: str
    architecture: str
    num_layers: int
    value_layers: tuple[int, ...]
    query_heads: int
    value_heads: int
    head_width: int
    model_width: int
    recipe: Recipe
    chosen_layers: tuple[int, ...]
    width: int
    calibration: str | None
    kept_layers: int
    not_loaded: tuple[str, ...]
    dtype: str
    weight_bytes: int
    full_weight_bytes: int

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {**asdict(self), "recipe": self.recipe.to_dict()}


def info(
    model: str | os.PathLike[str] = "bundled",
    method: str | Recipe | Mapping[str, Any] = DEFAULT_METHOD,
    layers: LayerSpec = None,
    template: TemplateSpec | Mapping[str, TemplateSpec] = "auto",
    cleaning: str | None = None,
    dtype: str | torch.dtype | None = None,
    device: str | None = None,
    revision: str | None = None,
    token: bool | str | None = None,
    cache_folder: str | None = None,
    local_files_only: bool = False,
    trust_remote_code: bool = False,
) -> ModelInfo:
    """What a recipe would read from a model, and what it would cost; arguments as in :func:`load`.

    Only the configuration is read (and the tokenizer, for a chat template).
    """
    checkpoint = locate(
        model,
        revision=revision,
        token=token,
        cache_folder=cache_folder,
        local_files_only=local_files_only,
        trust_remote_code=trust_remote_code,
    )
    saved = saved_config(checkpoint)
    recipe = resolve_for(checkpoint, saved, method, layers, template, cleaning)
    record = _calibrated(checkpoint, saved, recipe)
    found = prepare(checkpoint, recipe, saved, split_dtype(dtype, None)[0], device)
    anatomy, plan, recipe = found.anatomy, found.plan, found.plan.recipe
    kept = plan.layers[-1] + 1 if plan.layers else anatomy.num_layers
    layer_sizes, tail_size, rest_size = anatomy.sizes
    kept_size = sum(layer_sizes[:kept]) + rest_size + (tail_size if not plan.layers else 0)
    loaded_as = found.dtype or torch.float32
    block = anatomy.block(
        next((layer for layer in plan.layers if layer in anatomy.value_layers), anatomy.value_layers[0])
    )
    above = tuple(range(kept, anatomy.num_layers))
    width = anatomy.width(plan.layers, signal=recipe.signal, weights=recipe.weights, aligned=recipe.aligned)
    return ModelInfo(
        name=checkpoint.name,
        source=saved["origin"]["name"] if saved else checkpoint.name,
        architecture=anatomy.model_class.__name__,
        num_layers=anatomy.num_layers,
        value_layers=anatomy.value_layers,
        query_heads=block.query_heads,
        value_heads=block.value_heads,
        head_width=block.head_width,
        model_width=anatomy.model_width,
        recipe=recipe,
        chosen_layers=plan.layers,
        width=record.size if record else width,
        calibration=str(record) if record else None,
        kept_layers=kept,
        not_loaded=(
            *((named_layers(above),) if above else ()),
            *(("the final norm",) if plan.layers else ()),
            "the language model head",
        ),
        dtype=str(loaded_as).removeprefix("torch."),
        weight_bytes=kept_size * loaded_as.itemsize,
        full_weight_bytes=(sum(layer_sizes) + tail_size + rest_size) * loaded_as.itemsize,
    )
