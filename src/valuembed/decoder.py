"""Loading a decoder cut to what a recipe needs, in the right precision, with its attention behind the reader's door."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.utils import logging as transformers_logging

from valuembed.anatomy import Anatomy
from valuembed.checkpoint import Checkpoint
from valuembed.decoder_config import cut_config
from valuembed.errors import CheckpointError, RecipeError
from valuembed.extras import require
from valuembed.printable import counted, inflected
from valuembed.reader import open_door
from valuembed.weight_files import TEXT_DECODER_KEYS, is_needed, weights_folder

logger = logging.getLogger(__name__)

WORTH_A_BAR = 200_000_000
"""Models of fewer parameters load within a second or two."""

DTYPES = {
    "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64
}  # fmt: skip
"""Precisions that are computed in, by name."""

QUANTIZED = {"int8": "Int8WeightOnlyConfig", "fp8": "Float8WeightOnlyConfig"}
"""Precisions of weights alone, and what torchao calls them. The matrices of the layers are kept so, and multiplied in
the checkpoint's own precision; embeddings and norms stay as they are."""

RESERVED = frozenset(
    {"cache_dir", "config", "force_download", "ignore_mismatched_sizes", "key_mapping", "local_files_only"}
    | {"output_loading_info", "revision", "state_dict", "subfolder", "token", "trust_remote_code", "variant"}
)
"""Arguments of ``from_pretrained`` that a caller cannot give: some would be overruled, others ignored in silence."""


def load_decoder(
    checkpoint: Checkpoint,
    config: PretrainedConfig,
    anatomy: Anatomy,
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
        anatomy: its survey.
        keep_layers: layers ``0 .. keep_layers - 1`` are loaded.
        keep_tail: load what runs after the last layer too; only with all layers.
        dtype: None is the checkpoint's own, raised to float32 where the device has no fast arithmetic for it.
        device: where the model will run, to judge the dtype; placing it there is the caller's.
        model_kwargs: passed to ``from_pretrained`` (``attn_implementation``, ``device_map``, quantization, ...).

    Raises:
        CheckpointError: files are missing or damaged, or a needed weight is not in them.
        UnsupportedModelError: the attention cannot be led through the reader.
    """
    model_kwargs = dict(model_kwargs or {})
    if "gguf_file" in model_kwargs or not model_kwargs.pop("use_safetensors", True):
        raise CheckpointError("only safetensors weights are read; drop gguf_file and use_safetensors=False")
    if reserved := sorted(RESERVED.intersection(model_kwargs)):
        raise CheckpointError(
            f"model_kwargs cannot hold {', '.join(reserved)}: what is read, and from where, is for load() to decide "
            "(it takes revision, token, cache_folder, local_files_only and trust_remote_code itself)"
        )
    cut = cut_config(config, keep_layers)
    dtype = dtype or usable_dtype(checkpoint_dtype(config), device)
    removed = () if keep_tail else anatomy.tail
    if (places := model_kwargs.get("device_map")) is not None:
        require("accelerate", "train")
        if isinstance(places, dict):
            needed = partial(is_needed, keep_layers=keep_layers, tail=removed)
            model_kwargs["device_map"] = _own_places(places, needed, anatomy.model_class.base_model_prefix)
    model_class = _lean_class(anatomy.model_class, removed)
    with weights_folder(checkpoint, keep_layers, removed) as folder, _quiet(sum(anatomy.sizes[0][:keep_layers])):
        try:
            loaded: Any = model_class.from_pretrained(
                folder,
                config=cut,
                dtype=dtype if dtype is not None else "auto",
                use_safetensors=True,
                key_mapping=TEXT_DECODER_KEYS,
                output_loading_info=True,
                # Looked at below, where the weights can be named.
                ignore_mismatched_sizes=True,
                **model_kwargs,
            )
        except (OSError, RuntimeError, ValueError, KeyError, SafetensorError) as error:
            reason = str(error).strip().splitlines() or [type(error).__name__]
            raise CheckpointError(
                f"model {checkpoint.name!r}: its weights cannot be loaded: {' '.join(reason[:3])}"
            ) from error
    model: PreTrainedModel = loaded[0]
    model.__class__ = anatomy.model_class
    _check_report(checkpoint, loaded[1], removed)
    model.config.name_or_path = checkpoint.public_name
    # Saving would undo every renaming of this load, and give a text decoder the names of the image-text model it came
    # from; without the note transformers saves under the names of the class.
    if hasattr(model, "_weight_conversions"):
        del model._weight_conversions
    if dtype is None and (usable := usable_dtype(model.dtype, device)) != model.dtype:
        nn.Module.to(model, usable)
    open_door(model, anatomy)
    model.train(False)
    return model


def _own_places(places: dict[str, Any], needed: Callable[[str], bool], prefix: str) -> dict[str, Any]:
    """A device map drawn up for a whole model, in the names of its decoder and without what is not loaded."""
    wrapped = re.compile(rf"^(?:{re.escape(prefix)}\.)?(?:(?:language_model|text_model)\.)?(?:model\.)?")
    return {wrapped.sub("", f"{path}.").rstrip("."): place for path, place in places.items() if needed(f"{path}.")}


def _check_report(checkpoint: Checkpoint, report: dict[str, Any], removed: tuple[str, ...]) -> None:
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
        raise CheckpointError(
            f"model {checkpoint.name!r}: {counted(len(missing), 'needed weight is', 'needed weights are')} not in the "
            f"checkpoint: {listed}; {inflected(len(missing), 'it', 'they')} would be random"
        )


def parse_dtype(dtype: str | torch.dtype | None) -> torch.dtype | None:
    """A precision by name or as torch's own; None and ``"auto"`` leave it to the checkpoint.

    Raises:
        RecipeError: an unknown name, or a type that weights are not held in.
    """
    if dtype is None or dtype == "auto":
        return None
    named = DTYPES.get(dtype.removeprefix("torch.")) if isinstance(dtype, str) else dtype
    if named not in DTYPES.values():
        raise RecipeError(f"dtype={dtype!r} is unknown; legal: auto, {', '.join([*DTYPES, *QUANTIZED])}")
    return named


def checkpoint_dtype(config: PretrainedConfig) -> torch.dtype | None:
    """The precision that the configuration names, or None where only the weights know."""
    named = getattr(config, "dtype", None)
    return getattr(torch, named) if isinstance(named, str) else named


def usable_dtype(dtype: torch.dtype | None, device: str | None) -> torch.dtype | None:
    """The checkpoint's precision, or float32 (with one log line) where the device computes it slowly or not at all."""
    if dtype not in (torch.float16, torch.bfloat16) or has_fast(dtype, device):
        return dtype
    logger.warning(
        "the checkpoint is in %s, for which %s has no fast arithmetic: computing in float32 (dtype= decides otherwise)",
        str(dtype).removeprefix("torch."),
        device or "this CPU",
    )
    return torch.float32


def has_fast(dtype: torch.dtype, device: str | None) -> bool:
    """Whether a device computes a half precision natively."""
    kind = torch.device(device).type if device else ("cuda" if torch.cuda.is_available() else "cpu")
    if kind == "cuda":
        return dtype == torch.float16 or torch.cuda.is_bf16_supported(including_emulation=False)
    if kind == "cpu":
        if dtype == torch.bfloat16:
            return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported()) and bool(
                torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
            )
        return bool(torch.cpu._is_amx_fp16_supported())
    return True


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
    if parameters < WORTH_A_BAR:
        transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()  # type: ignore[no-untyped-call]
