"""Look at a model without reading its weights."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from valuembed._utils.devices import check_device
from valuembed.backbone import (
    COMPUTED,
    QUANTIZED,
    check_held,
    decoder_facts,
    dtype_name,
    kept_facts,
    resolve_plan,
    rows_with,
    usable_name,
)
from valuembed.backbone.checkpoints import (
    ADAPTER_CONFIG,
    ADAPTER_FILE,
    HubKwargs,
    HubOptions,
    base_of,
    check_held_layers,
    describe_gguf,
    describe_quantization,
    holds_adapter,
    is_dequantized,
    locate,
    quantization_method,
    saved_config,
    saved_settings,
)
from valuembed.models.recipe_choice import DEFAULT_METHOD, calibration_of, resolve_for
from valuembed.recipes import LayerSpec, Recipe, TemplateSpec, named_layers, parse_template, resolve_recipe
from valuembed.tokenization import lacking_in_file, names_chat

if TYPE_CHECKING:
    import torch
    from typing_extensions import Unpack


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
        sequences, copies, template_characters: what is fed for a text: how many sequences, how often the text stands in
            them, and the characters that their templates add.
        kept_layers: layers that are loaded.
        not_loaded: what is left on disk, in plain words.
        dtype: of the weights on this device.
        weight_bytes, full_weight_bytes: memory for the weights as loaded, and of the whole decoder.
        prompts: instructions that the model was saved with, by name.
        default_prompt_name: the one of them that is used where none is asked for.
        not_used: modules that the model was saved with and that a recipe takes no notice of, such as a pooling.
        quantization: of the weights, with what it needs and whether that is here; None where they are not quantized.
        tokens_without_embedding: which ids of the tokenizer have no embedding, and what that means; None where all do.
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
    sequences: int
    copies: int
    template_characters: int
    kept_layers: int
    not_loaded: tuple[str, ...]
    dtype: str
    weight_bytes: int
    full_weight_bytes: int
    prompts: Mapping[str, str]
    default_prompt_name: str | None
    not_used: tuple[str, ...]
    quantization: str | None
    tokens_without_embedding: str | None

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
    device: str | torch.device | None = None,
    **hub: Unpack[HubKwargs],
) -> ModelInfo:
    """What a recipe would read from a model, and what it would cost; arguments as in :func:`load`.

    Only the configuration and the tokenizer are read, of a GGUF file what stands before its tensors.
    """
    options = HubOptions.of(hub, info)
    device = check_device(device)
    checkpoint = locate(model, options=options)
    saved = saved_config(checkpoint)
    base = base_of(checkpoint, saved) if holds_adapter(checkpoint) else checkpoint
    facts = decoder_facts(base)
    if saved and base is checkpoint:
        check_held_layers(checkpoint, saved, facts.decoder_spec.num_layers)
    asked = resolve_for(checkpoint, saved, method, layers, template, cleaning)
    plan = resolve_plan(asked, facts.preset, facts.decoder_spec, saved if base is checkpoint else None)
    decoder_spec, recipe = plan.decoder_spec, plan.recipe
    record = calibration_of(checkpoint, saved, recipe)
    kept, whole = plan.kept_layers, recipe.reads_final_norm
    layer_sizes, tail_size, rest_size = decoder_spec.sizes
    kept_size = sum(layer_sizes[:kept]) + rest_size + (tail_size if whole else 0)
    loaded_as = _computed_in(dtype, saved["dtype"] if saved else facts.dtype, facts.quantization, device, base.name)
    block = decoder_spec.block(
        next((layer for layer in plan.layers if layer in decoder_spec.value_layers), decoder_spec.value_layers[0])
    )
    templates = [parse_template(source) for source in recipe.templates_for(None)]
    settings = saved_settings(checkpoint)
    rows = rows_with(checkpoint, ADAPTER_FILE, ADAPTER_CONFIG) if holds_adapter(checkpoint) else None
    words = checkpoint if checkpoint.file("tokenizer_config.json") else base
    above = tuple(range(kept, decoder_spec.num_layers))
    return ModelInfo(
        name=checkpoint.name,
        source=saved["origin"]["name"] if saved else checkpoint.name,
        architecture=decoder_spec.architecture,
        num_layers=decoder_spec.num_layers,
        value_layers=decoder_spec.value_layers,
        query_heads=block.query_heads,
        value_heads=block.value_heads,
        head_width=block.head_width,
        model_width=decoder_spec.model_width,
        recipe=recipe,
        chosen_layers=plan.layers,
        width=record.size if record else plan.width,
        calibration=str(record) if record else None,
        sequences=len(templates),
        copies=sum(template.copies for template in templates),
        template_characters=sum(len("".join(template.literals)) for template in templates),
        kept_layers=kept,
        not_loaded=(
            *((named_layers(above),) if above else ()),
            *(() if whole else ("the final norm",)),
            "the language model head",
        ),
        dtype=loaded_as,
        weight_bytes=kept_size * COMPUTED[loaded_as],
        full_weight_bytes=(sum(layer_sizes) + tail_size + rest_size) * COMPUTED[loaded_as],
        prompts={name: prompt for name, prompt in settings.prompts.items() if prompt},
        default_prompt_name=settings.default_prompt_name,
        not_used=settings.modules,
        quantization=describe_quantization(facts.quantization) if base.gguf is None else describe_gguf(base),
        tokens_without_embedding=lacking_in_file(words, rows or facts.vocabulary),
    )


def check_load(
    model: str | os.PathLike[str] | None = None,
    method: str | Recipe | Mapping[str, Any] = DEFAULT_METHOD,
    layers: LayerSpec = None,
    template: TemplateSpec | Mapping[str, TemplateSpec] = "auto",
    cleaning: str | None = None,
    dtype: str | torch.dtype | None = None,
    device: str | torch.device | None = None,
    **hub: Unpack[HubKwargs],
) -> None:
    """Raise what :func:`valuembed.load` would raise for a wrong name, as far as that is known without torch.

    That is: devices, precisions, methods, templates, folders; and layers, where the decoder was surveyed before.

    Args:
        model: as in :func:`valuembed.load`; None where it is not known yet.
        method, layers, template, cleaning, dtype, device: as in :func:`valuembed.load`.
        hub: fields of :class:`valuembed.backbone.checkpoints.HubOptions`.

    Raises:
        DeviceError, RecipeError, CheckpointError: as :func:`valuembed.load`.
    """
    options = HubOptions.of(hub, check_load)
    check_device(device)
    dtype_name(None if dtype in QUANTIZED else dtype)
    # A chat template is spelt out by the tokenizer, which takes transformers to load.
    known_template = "auto" if names_chat(template) else template
    checkpoint = locate(model, options=options) if model is not None else None
    if checkpoint is None or not checkpoint.is_local:
        resolve_recipe(method, layers, known_template, cleaning)
        return
    saved = saved_config(checkpoint)
    asked = resolve_for(checkpoint, saved, method, layers, known_template, cleaning)
    base = base_of(checkpoint, saved) if holds_adapter(checkpoint) else checkpoint
    if base.is_local and (facts := kept_facts(base)) is not None:
        plan = resolve_plan(asked, facts.preset, facts.decoder_spec, saved if base is checkpoint else None)
        if known_template is template:
            calibration_of(checkpoint, saved, plan.recipe)


def _computed_in(
    asked: str | torch.dtype | None, held: str | None, quantization: Any, device: str | None, model: str
) -> str:
    """The precision that is computed in; where only the weights know theirs, what most are kept in without a word."""
    name = dtype_name(None if asked in QUANTIZED else asked)
    if name is not None:
        return name
    held = held or "float32"
    check_held(held, model)
    if quantization_method(quantization) is not None and not is_dequantized(quantization, device):
        return held
    return usable_name(held, device)
