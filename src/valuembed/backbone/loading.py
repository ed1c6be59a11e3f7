"""Loading a decoder cut to what a recipe needs, in the right precision."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.utils import logging as transformers_logging

from valuembed._utils.optional import require
from valuembed._utils.streams import stderr_is_open
from valuembed._utils.text import counted, inflected
from valuembed._utils.torch_settings import building
from valuembed.backbone.architecture import DecoderSpec
from valuembed.backbone.checkpoints import (
    TEXT_DECODER_KEYS,
    Checkpoint,
    check_quantization,
    cut_config,
    find_weights,
    index_folder,
    is_dequantized,
    is_needed,
    quantization_method,
    read_weights,
)
from valuembed.backbone.dtypes import dtype_name, usable_name
from valuembed.backbone.gguf_weights import find_gguf_weights, read_gguf_weights
from valuembed.backbone.kernels import choose_kernel
from valuembed.backbone.model_kwargs import check_model_kwargs
from valuembed.backbone.prequantized import ask_to_dequantize, give_one_dtype, holds_quantized
from valuembed.errors import CheckpointError, UnsupportedModelError

WORTH_A_BAR = 200_000_000
"""Models of fewer parameters load within a second or two."""


def load_decoder(
    checkpoint: Checkpoint,
    config: PretrainedConfig,
    decoder_spec: DecoderSpec,
    *,
    keep_layers: int,
    keep_tail: bool,
    dtype: torch.dtype | None = None,
    device: str | None = None,
    model_kwargs: dict[str, Any] | None = None,
) -> PreTrainedModel:
    """Load the first layers of a decoder, without LM head and, unless asked, without the final norm.

    Args:
        checkpoint: where the weights are.
        config: of the whole text decoder.
        decoder_spec: what it is made of.
        keep_layers: layers ``0 .. keep_layers - 1`` are loaded.
        keep_tail: load what runs after the last layer too; only with all layers.
        dtype: None is the checkpoint's own, raised to float32 where the device has no fast arithmetic for it; what
            quantized weights are computed in stays theirs, unless they are turned back into plain ones.
        device: where the model will run, to judge the dtype; placing it there is the caller's.
        model_kwargs: passed to ``from_pretrained`` (``attn_implementation``, ``device_map``, quantization, ...).

    Raises:
        RecipeError, DeviceError: ``model_kwargs`` that mean nothing or cannot be used here.
        MissingExtraError: the weights are quantized, and what reads them is not installed.
        CheckpointError: files are missing or damaged, or a needed weight is not in them.
        UnsupportedModelError: the attention cannot be led through the reader.
    """
    model_kwargs = check_model_kwargs(model_kwargs)
    check_quantization(getattr(config, "quantization_config", None), f"model {checkpoint.name!r}")
    base_class = decoder_spec.model_class
    assert base_class is not None, "a decoder is loaded from a trace, not from a record of one"
    cut = cut_config(config, keep_layers)
    model_kwargs["attn_implementation"] = choose_kernel(cut, model_kwargs.get("attn_implementation"), device)
    settings = getattr(config, "quantization_config", None)
    quantized = quantization_method(settings) is not None
    if dtype is None and not quantized:
        dtype = usable_dtype(checkpoint_dtype(config), device)
    if is_dequantized(settings, device):
        ask_to_dequantize(cut)
    removed = () if keep_tail else decoder_spec.tail
    if (places := model_kwargs.get("device_map")) is not None:
        require("accelerate", "train")
        if isinstance(places, dict):
            needed = partial(is_needed, keep_layers=keep_layers, tail=removed)
            model_kwargs["device_map"] = _own_places(places, needed, base_class.base_model_prefix)
    model_class = _lean_class(base_class, removed)
    packed = None
    if checkpoint.gguf is None:
        files = find_weights(checkpoint, config, keep_layers, removed)
    else:
        _check_gguf_placing(checkpoint, places)
        packed = find_gguf_weights(checkpoint.gguf_header(), keep_layers, removed)
        files = {name: theirs for name, (theirs, _) in packed.items()}
    with ExitStack() as stack:
        stack.enter_context(building())
        if packed is not None:
            assert dtype is not None, "the configuration of a GGUF file names a precision"
            given: dict[str, Any] = {
                "pretrained_model_name_or_path": None,
                "state_dict": read_gguf_weights(checkpoint, cut, packed, dtype),
            }
        elif places is not None or quantized:
            # Transformers looks into the files themselves: at notes on quantization, and for what stays on the disk.
            given = {"pretrained_model_name_or_path": stack.enter_context(index_folder(files))}
        else:
            given = {"pretrained_model_name_or_path": None, "state_dict": read_weights(checkpoint, files)}
        stack.enter_context(_quiet(sum(decoder_spec.sizes[0][:keep_layers])))
        try:
            loaded: Any = model_class.from_pretrained(
                **given,
                config=cut,
                dtype=dtype if dtype is not None else "auto",
                use_safetensors=True,
                key_mapping=TEXT_DECODER_KEYS,
                output_loading_info=True,
                # Looked at below, where the weights can be named.
                ignore_mismatched_sizes=True,
                **model_kwargs,
            )
        except Exception as error:  # every reader of quantized weights fails in its own way
            reason = str(error).strip().splitlines() or [type(error).__name__]
            raise CheckpointError(
                f"model {checkpoint.name!r}: its weights cannot be loaded: {' '.join(reason[:3])}"
            ) from error
    model: PreTrainedModel = loaded[0]
    if model.device.type == "meta":
        raise CheckpointError(
            f"model {checkpoint.name!r}: the device map leaves its embedding matrix on disk, where nothing can be "
            "fed to it; put embed_tokens on a device, or give max_memory more room"
        )
    model.__class__ = base_class
    _check_report(checkpoint, loaded[1], removed, files)
    model.config.name_or_path = checkpoint.public_name
    # Saving would undo every renaming of this load, and give a text decoder the names of the image-text model it came
    # from; without the note transformers saves under the names of the class.
    if hasattr(model, "_weight_conversions"):
        del model._weight_conversions
    if quantized and dtype is not None:
        give_one_dtype(model, dtype)
    if dtype is None and not holds_quantized(model) and (usable := usable_dtype(model.dtype, device)) != model.dtype:
        nn.Module.to(model, usable)
    model.train(False)
    return model


def _check_gguf_placing(checkpoint: Checkpoint, places: Any) -> None:
    if places is not None:
        raise UnsupportedModelError(
            f"model {checkpoint.name!r}: a device_map spreads weights of safetensors files, not of GGUF files; load it "
            "without, save it to a folder, and load that with the device_map"
        )


def _own_places(places: dict[str, Any], needed: Callable[[str], bool], prefix: str) -> dict[str, Any]:
    """A device map drawn up for a whole model, in the names of its decoder and without what is not loaded."""
    wrapped = re.compile(rf"^(?:{re.escape(prefix)}\.)?(?:(?:language_model|text_model)\.)?(?:model\.)?")
    return {wrapped.sub("", f"{path}.").rstrip("."): place for path, place in places.items() if needed(f"{path}.")}


def _check_report(
    checkpoint: Checkpoint, report: dict[str, Any], removed: tuple[str, ...], held: Iterable[str]
) -> None:
    """Raise where a weight would be random: it is not in the checkpoint, or has another shape there."""
    for name, held, expected in sorted(report["mismatched_keys"]):
        raise CheckpointError(
            f"model {checkpoint.name!r}: weight {name} has the shape {tuple(held)} in the checkpoint, but its "
            f"configuration asks for {tuple(expected)}"
        )
    missing = sorted(
        name for name in report["missing_keys"] if not name.startswith(tuple(f"{path}." for path in removed))
    )
    if missing:
        listed = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
        # A few names show whether all are called otherwise.
        named = f" (it holds {', '.join(sorted(held)[:2])}, ...)" if report["unexpected_keys"] else ""
        raise CheckpointError(
            f"model {checkpoint.name!r}: {counted(len(missing), 'needed weight is', 'needed weights are')} not in the "
            f"checkpoint: {listed}; {inflected(len(missing), 'it', 'they')} would be random{named}"
        )


def parse_dtype(dtype: str | torch.dtype | None) -> torch.dtype | None:
    """A precision by name or as torch's own; None and ``"auto"`` leave it to the checkpoint.

    Raises:
        RecipeError: an unknown name, or a type that weights are not held in.
    """
    name = dtype_name(dtype)
    return None if name is None else getattr(torch, name)


def checkpoint_dtype(config: PretrainedConfig) -> torch.dtype | None:
    """The precision that the configuration names, or None where only the weights know."""
    named = getattr(config, "dtype", None)
    if isinstance(named, dict):  # a type for each part of a model, of which some have none
        return None
    return getattr(torch, named) if isinstance(named, str) else named


def usable_dtype(dtype: torch.dtype | None, device: str | None) -> torch.dtype | None:
    """The checkpoint's precision, or float32 (with one log line) where the device computes it slowly or not at all."""
    return None if dtype is None else getattr(torch, usable_name(str(dtype).removeprefix("torch."), device))


def _lean_class(model_class: type[PreTrainedModel], removed: tuple[str, ...]) -> type[PreTrainedModel]:
    """A subclass that is built without some modules, so that their weights are never read.

    The loaded model is given its own class back; only construction differs.
    """
    if not removed:
        return model_class

    class Lean(model_class):  # type: ignore[misc, valid-type]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            for path in removed:
                self.set_submodule(path, nn.Identity())

    # transformers finds weight conversions and flags by the class's name and file.
    for name in ("__name__", "__qualname__", "__module__"):
        setattr(Lean, name, getattr(model_class, name))
    return Lean


@contextmanager
def _quiet(parameters: int) -> Iterator[None]:
    """Silence transformers' report of tensors it did not use, which is the point here, and bars over in no time."""
    verbosity, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity(logging.ERROR)
    if parameters < WORTH_A_BAR or not stderr_is_open():
        transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()  # type: ignore[no-untyped-call]
