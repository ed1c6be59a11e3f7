"""Wrap a model that is in memory already: sentence vectors from the decoder that a person is running."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Normalize
from torch import nn
from transformers import Pipeline, PreTrainedModel, PreTrainedTokenizerBase

from valuembed._utils.text import counted
from valuembed._utils.text_warnings import callers_level
from valuembed._utils.torch_settings import default_device_and_precision
from valuembed.backbone import (
    Plan,
    SharedDecoder,
    bare_model,
    embedding_rows,
    find_decoder,
    resolve_plan,
    trace_architecture,
)
from valuembed.backbone.checkpoints import Origin
from valuembed.errors import (
    DeviceError,
    InputError,
    ReadingError,
    UnsupportedModelError,
    VocabularyWarning,
)
from valuembed.models import (
    DEFAULT_METHOD,
    ValueEncoder,
    ValueTransformer,
    centre_reader,
    check_prompts,
    method_for,
)
from valuembed.models.in_memory.generation_watch import GenerationWatch, watching
from valuembed.models.in_memory.image_reading import ImageReader
from valuembed.readout import Readout, install_attention_hooks, lay_out
from valuembed.recipes import LayerSpec, Recipe, TemplateSpec, preset_for, resolve_recipe
from valuembed.tokenization import copy_tokenizer, expand_chat, lacking, token_limit

_OF_THIS_PROCESS = (
    "a wrapped model is in the memory of this process, and others would need a copy of it; load the model with "
    "valuembed.load to embed in several processes, or save the encoder"
)

_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


class WrappedEncoder(ValueEncoder):
    """A :class:`ValueEncoder` that shares the weights of a model in memory, until it is closed.

    It is its own context manager. Where the weights are, and in what precision, is the model's affair: the encoder
    follows, and refuses to move them.
    """

    shared: SharedDecoder | None = None
    _source: tuple[Any, Any] = (None, None)
    _images: ImageReader | None = None

    def close(self) -> None:
        """Let go of the model. What was read stays; encoding again is an error."""
        if self.shared is not None:
            self.shared = self._images = None
            self._source = (None, None)
            closed: Any = _Closed(self.reader.origin.name)
            self.reader.model = closed
            # Which asks the decoder how many ids it knows.
            self.reader.texts.known = None

    @default_device_and_precision()
    def encode_images(self, images: Any, template: str | None = None, *, convert_to_tensor: bool = False) -> Any:
        """Encode images with the image-text model that was wrapped, by its recipe. Experimental.

        A mean covers the image's own tokens; a recipe of the last token reads it after a prompt.

        Args:
            images: a picture or n of them as the model's processor takes them, or what it made of each, as mappings.
            template: one ``{image}`` with text around it. None is the image alone for a mean, and
                a line under it, ours, for the last token: ``This image means in one word:"``.
            convert_to_tensor: give a tensor in place of an array.

        Returns:
            ``[n, width]`` float32, ``[width]`` of one picture.

        Raises:
            UnsupportedModelError: the model reads text alone.
            InputError: an image that cannot be read, or no processor to read it.
            RecipeError: a recipe that images cannot be read by.
        """
        source = self._open().source
        if self._images is None:
            model, processor = self._source
            plan = self.reader.plan
            shared = SharedDecoder(model, source, plan, whole=True)
            install_attention_hooks(shared.model, plan.decoder_spec)
            self._images = ImageReader(shared, plan, processor)
        several = isinstance(images, (list, tuple))
        vectors = self.through_later_modules(self._images.read(images if several else [images], template))
        found = vectors if several else vectors[0]
        return found if convert_to_tensor else found.numpy()

    def watching(self, model: Any = None, *, normalize: bool = True) -> GenerationWatch:
        """Watch the wrapped model's generation: the vectors of prompts and answers by this encoder's recipe.

        Args:
            model: what ``generate`` is called on, where that is not what was wrapped.
            normalize: as in :func:`valuembed.watching`, which this is with the recipe filled in.

        Raises:
            RecipeError: the recipe needs more than a cache keeps.
            ReadingError: the encoder is closed.
        """
        self._open()
        return watching(self._source[0] if model is None else model, self.recipe, normalize=normalize)

    def _open(self) -> SharedDecoder:
        if self.shared is None:
            raise ReadingError(f"the encoder around {self.reader.origin.name!r} is closed; wrap the model again")
        return self.shared

    def __repr__(self) -> str:
        if self.shared is None:
            return f"{type(self).__name__}({self.reader.origin.name!r}, closed)"
        return str(super().__repr__())

    def __enter__(self) -> WrappedEncoder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def save(self, path: str, *args: Any, **kwargs: Any) -> None:
        """As ``SentenceTransformer.save``: the layers that are read, with the adapter on them, as they are now."""
        if self.shared is not None:
            self.shared.take_over()
        super().save(path, *args, **kwargs)

    def start_multi_process_pool(self, target_devices: list[str] | None = None) -> NoReturn:
        """Refuse: other processes do not have the model.

        Raises:
            DeviceError: always.
        """
        raise DeviceError(_OF_THIS_PROCESS)

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        """Refuse to be copied or pickled, as :meth:`start_multi_process_pool` does."""
        raise DeviceError(_OF_THIS_PROCESS)

    def _apply(self, fn: Any, recurse: bool = True) -> WrappedEncoder:
        """Move or convert what comes after the reader; the decoder is another's, and stays as it is.

        Raises:
            DeviceError: the decoder would be moved or converted.
        """
        if self.shared is not None:
            model = self.reader.model
            probe = torch.empty(0, device=model.device, dtype=model.dtype)
            wanted = fn(probe)
            if (wanted.device, wanted.dtype) != (probe.device, probe.dtype):
                raise DeviceError(
                    f"the decoder ({probe.dtype} on {probe.device}) is shared with a model that runs elsewhere in this "
                    f"process, and is not changed to {wanted.dtype} on {wanted.device}; change that model, and the "
                    "encoder follows"
                )
        for module in list(self)[1:]:
            module._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self


class _Closed(nn.Module):
    """Stands where the decoder was."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def __getattr__(self, attribute: str) -> Any:
        raise ReadingError(f"the encoder around {self.name!r} is closed; wrap the model again")


@default_device_and_precision()
def wrap(
    model: Any,
    tokenizer: Any = None,
    method: str | Recipe | Mapping[str, Any] = DEFAULT_METHOD,
    layers: LayerSpec = None,
    template: TemplateSpec | Mapping[str, TemplateSpec] = "auto",
    cleaning: str | None = None,
    prompts: dict[str, str] | None = None,
    normalize: bool = True,
    *,
    purpose: str | None = None,
    max_tokens: int | None = None,
) -> WrappedEncoder:
    """Wrap a model that is in memory, and read sentence vectors from its decoder without a second copy of its weights.

    The model stays as it is and goes on generating, also in other threads while texts are embedded: the encoder has
    modules of its own around the same parameters. Adapters that are put on, switched or taken off later count. Forward
    hooks on the model do not run.

    Args:
        model: a ``PreTrainedModel`` (causal LM, image-text model, or decoder alone), also with peft's adapters,
            quantized, spread by a device map, or compiled; or a ``pipeline`` around one.
        tokenizer: the model's, or a processor that has it; a pipeline brings its own.
        method, layers, template, cleaning, prompts, normalize, purpose, max_tokens: as in :func:`valuembed.load`.

    Returns:
        A ``SentenceTransformer`` whose ``encode`` gives ``[b, width]`` float32, and that lets go of the model when it
        is closed.

    Raises:
        RecipeError: method, layers or template are unknown or do not fit together.
        InputError: there is no tokenizer, or it is another model's.
        UnsupportedModelError: the model's attention values cannot be read.

    Source: Zhang et al., arXiv 2602.01572 (VA, AlignedVA, WVA, AlignedWVA).
    """
    check_prompts(prompts)
    method = method_for(purpose, method)
    if isinstance(model, Pipeline):
        tokenizer = tokenizer or getattr(model, "processor", None) or model.tokenizer
        model = model.model
    if isinstance(model, SentenceTransformer):
        raise InputError(
            f"{type(model).__name__} is an embedding model already; wrap takes the model of transformers under it"
        )
    decoder = find_decoder(bare_model(model))
    words = copy_tokenizer(_fast_tokenizer(tokenizer))
    spec = trace_architecture(decoder.config, model_class=type(decoder))
    preset = preset_for(decoder.config)
    plan = resolve_plan(resolve_recipe(method, layers, expand_chat(template, words), cleaning), preset, spec)
    shared = SharedDecoder(model, decoder, plan)
    install_attention_hooks(shared.model, spec)
    _check_tokenizer(words, decoder)
    _try(shared.model, plan, type(decoder).__name__)
    commit = getattr(decoder.config, "_commit_hash", None)
    # Whoever has the model may have changed its weights, so that its name is not enough to find them again.
    origin = Origin(_public_name(model, decoder), commit, spec.num_layers, spec.value_layers, preset, fetchable=False)
    limit = token_limit(max_tokens, words, decoder.config)
    reader = ValueTransformer(shared.model, words, plan, origin, limit)
    reader.check_templates(plan.recipe)
    encoder = WrappedEncoder(
        modules=[reader, *([Normalize()] if normalize else [])],
        device=str(shared.model.device),
        prompts=prompts,
    )
    encoder.shared = shared
    encoder._source = (model, tokenizer if hasattr(tokenizer, "image_processor") else None)
    centre_reader(reader)
    return encoder


def _fast_tokenizer(given: Any) -> PreTrainedTokenizerBase:
    """The tokenizer that is given, alone or in a processor."""
    tokenizer = getattr(given, "tokenizer", given)
    if isinstance(tokenizer, PreTrainedTokenizerBase):
        return tokenizer
    what = "no tokenizer is given" if given is None else f"{type(given).__name__} is no tokenizer"
    raise InputError(f"{what}: give the model's own, such as AutoTokenizer.from_pretrained(model.name_or_path)")


def _check_tokenizer(tokenizer: PreTrainedTokenizerBase, decoder: PreTrainedModel) -> None:
    """Warn of tokens that were added beyond the matrix; raise where the vocabulary itself goes beyond it."""
    rows = embedding_rows(decoder)
    beyond = tokenizer.vocab_size - rows
    if beyond > 0:
        raise InputError(
            f"the tokenizer has {counted(tokenizer.vocab_size, 'token')} and {type(decoder).__name__} embeddings for "
            f"{rows:,}: it is another model's; give this model's own"
        )
    if told := lacking(tokenizer, rows):
        warnings.warn(told, VocabularyWarning, stacklevel=callers_level())


@torch.inference_mode()
def _try(model: PreTrainedModel, plan: Plan, name: str) -> None:
    """Read the values of a text of one token in every layer, so that what cannot be read is told now."""
    spec = plan.decoder_spec
    values = Recipe(signal="value", weights="mean")
    plans = [Plan(values, (layer,), spec) for layer in spec.value_layers if layer < plan.kept_layers]
    layout, inputs = lay_out([[0]], [(0, 1)], packed=False, device=model.device, dtype=model.dtype)
    try:
        Readout(model, plans or plan.parts, layout).run(**inputs)
    except ReadingError as error:
        raise UnsupportedModelError(
            f"{name}: its attention was replaced after it was built, and does not go through transformers' registry; "
            f"load it again ({error})"
        ) from error


def _public_name(model: Any, decoder: PreTrainedModel) -> str:
    """The hub id or folder's own name that a model came from, or its class: never a path."""
    for held in (model, decoder):
        if name := getattr(held, "name_or_path", None):
            on_hub = _HUB_ID.fullmatch(name) and not os.path.isdir(name)
            return str(name) if on_hub else Path(os.path.abspath(name)).name
    return type(decoder).__name__
