"""Load a model."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from sentence_transformers.base.modules import Normalize

from valuembed._utils.torch_settings import building, default_device_and_precision
from valuembed.backbone import LoadKwargs, LoadOptions
from valuembed.backbone.checkpoints import EARLY_TRANSFORMER_TYPE, TRANSFORMER_TYPE, Checkpoint
from valuembed.execution import CompileChoice
from valuembed.models.centring import centre_reader
from valuembed.models.encoder import ValueEncoder
from valuembed.models.reader_loading import check_prompts, load_reader
from valuembed.models.recipe_choice import DEFAULT_METHOD, method_for
from valuembed.models.value_transformer import ValueTransformer
from valuembed.recipes import LayerSpec, Recipe, TemplateSpec

if TYPE_CHECKING:
    from typing_extensions import Unpack


@default_device_and_precision()
def load(
    model: str | os.PathLike[str] = "bundled",
    method: str | Recipe | Mapping[str, Any] = DEFAULT_METHOD,
    layers: LayerSpec = None,
    template: TemplateSpec | Mapping[str, TemplateSpec] = "auto",
    cleaning: str | None = None,
    prompts: dict[str, str] | None = None,
    normalize: bool = True,
    *,
    purpose: str | None = None,
    compile: CompileChoice = False,
    **options: Unpack[LoadKwargs],
) -> ValueEncoder:
    """Turn a decoder into a sentence-embedding model, without training.

    Args:
        model: a hub id, a local checkpoint folder, a folder saved by this library, a GGUF file (of the hub as
            ``ORG/NAME:FILE.gguf``), or ``"bundled"``. A saved folder keeps its own recipe unless another method is
            asked for.
        method: a name of :data:`valuembed.recipes.METHODS`, a :class:`Recipe`, a recipe as plain data, or a recipe
            file (``.json``).
        layers: what to average over; see :func:`valuembed.recipes.resolve_layers`. None is the backbone's preset,
            else the last third of the layers (ours); for hidden states, the last layer after the final norm.
        template: ``"auto"`` is the method's own; None or ``"none"`` the text alone; a name; a string with one
            ``{text}``; a list of these (raw vectors averaged); or a mapping from ``"query"``, ``"document"`` and
            ``"default"`` to any of them.
        cleaning: what is done to a text before its template: ``"none"`` or ``"sentence"``, see
            :data:`valuembed.recipes.CLEANINGS`. None is the recipe's own, for every method nothing.
        prompts: instructions by name, for ``encode(prompt_name=...)``, ``encode_query`` and ``encode_document``. Those
            that a folder was saved with are taken over, also from plain sentence-transformers; one of the same name
            that is given here counts.
        normalize: scale the vectors to unit length. A saved folder does as it was saved; False takes that away.
        purpose: what the vectors are for, in place of a method: a name of :data:`valuembed.recipes.PURPOSES`, which
            stands for the recipe that is known to be best for it.
        dtype: of the weights, such as ``"bfloat16"``; None is the checkpoint's own. ``"int8"`` computes
            the layers' products in 8 bits on a CPU that is made for it; elsewhere it keeps their matrices in 8 bits, as
            ``"fp8"`` does everywhere (needs the extra ``quantize``), and computes in the checkpoint's own. Sums and
            vectors are always float32.
        device: None picks a GPU where there is one.
        max_tokens: longest sequence fed, template included; None is the model's own limit.
        compile: True compiles the layers with torch before the first pass, which takes from seconds to a minute and
            makes every later pass faster. Where compiling fails, the layers run as they are, and a warning says why.
            ``"auto"`` does so once passes have taken half a minute, and takes it back where they are no faster then.
        revision, token, cache_folder, local_files_only: as on the hub.
        trust_remote_code: run code that comes with the checkpoint. Never needed for this library's own folders.
        model_kwargs: for transformers' ``from_pretrained``: ``attn_implementation``, ``device_map``, quantization, ...

    Returns:
        A ``SentenceTransformer`` whose ``encode`` gives ``[b, width]`` float32.

    Raises:
        RecipeError: method, layers or template are unknown or do not fit together.
        DeviceError: this machine does not have the device.
        CheckpointError: the model is missing, damaged, or refused for safety.
        UnsupportedModelError: its attention values cannot be read.

    Source: Zhang et al., arXiv 2602.01572 (VA, AlignedVA, WVA, AlignedWVA).
    """
    chosen = LoadOptions.of(options, load)
    check_prompts(prompts)
    method = method_for(purpose, method)
    loaded = load_reader(
        ValueTransformer,
        model,
        method,
        layers,
        template,
        cleaning,
        options=chosen,
        compile=compile,
    )
    if loaded.saved is None:
        settings = loaded.settings
        modules: list[torch.nn.Module] = [loaded.reader, *([Normalize()] if normalize else [])]
        encoder = ValueEncoder(
            modules=modules,
            device=loaded.device,
            prompts={**settings.prompts, **(prompts or {})},
            default_prompt_name=settings.default_prompt_name,
            similarity_fn_name=settings.similarity_fn_name,
        )
        centre_reader(loaded.reader, loaded.checkpoint)
        return encoder
    encoder = _restore(loaded.reader, loaded.checkpoint, loaded.device, prompts)
    centre_reader(loaded.reader, loaded.checkpoint)
    if not normalize:
        for name, module in list(encoder.named_children()):
            if isinstance(module, Normalize):
                del encoder._modules[name]
    return encoder


@building()
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
        {**ValueEncoder._module_classes, TRANSFORMER_TYPE: Built, EARLY_TRANSFORMER_TYPE: Built},
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
