"""What may stand in ``model_kwargs``, which go on to ``from_pretrained``: checked before any weight is read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from valuembed._utils.devices import check_device
from valuembed._utils.options import did_you_mean
from valuembed.backbone.checkpoints import check_quantization
from valuembed.errors import CheckpointError, DeviceError, RecipeError

LEGAL = (
    "allow_all_kernels", "attn_implementation", "device_map", "device_mesh", "distributed_config", "dtype",
    "experts_implementation", "kernel_config", "low_cpu_mem_usage", "max_memory", "offload_buffers", "offload_folder",
    "quantization_config", "torch_dtype", "tp_plan", "tp_size", "use_kernels", "use_safetensors", "weights_only",
)  # fmt: skip
"""Arguments of ``from_pretrained`` that a caller can give."""

RESERVED = frozenset(
    {"cache_dir", "config", "force_download", "ignore_mismatched_sizes", "key_mapping", "local_files_only"}
    | {"output_loading_info", "revision", "state_dict", "subfolder", "token", "trust_remote_code", "variant"}
)
"""Arguments of ``from_pretrained`` that a caller cannot give: some would be overruled, others ignored in silence."""

PLACEMENTS = ("auto", "balanced", "balanced_low_0", "sequential")
"""Device maps that accelerate draws up."""

_BITS = ("load_in_4bit", "load_in_8bit")


def check_model_kwargs(model_kwargs: Any) -> dict[str, Any]:
    """Check arguments for ``from_pretrained``.

    Args:
        model_kwargs: as a user gives them.

    Returns:
        A copy, which says nothing about the format of the weights: that is decided.

    Raises:
        RecipeError: an unknown argument, or a value that means nothing.
        CheckpointError: an argument that is not the user's to give.
        DeviceError: a device map that names devices this machine does not have.
        MissingExtraError, UnsupportedModelError: a quantization that cannot be used here.
    """
    if not isinstance(model_kwargs or {}, Mapping):
        raise RecipeError(f"model_kwargs={model_kwargs!r:.80} has to be a dict of arguments for from_pretrained")
    checked = dict(model_kwargs or {})
    if "gguf_file" in checked:
        raise CheckpointError(
            "model_kwargs: gguf_file names a file beside a model; give the file itself as the model, or a hub id with "
            "it, such as Qwen/Qwen3-0.6B-GGUF:Qwen3-0.6B-Q8_0.gguf"
        )
    if not checked.pop("use_safetensors", True):
        raise CheckpointError("only safetensors weights are read of a folder or repository; drop use_safetensors=False")
    if reserved := sorted(RESERVED.intersection(checked)):
        raise CheckpointError(
            f"model_kwargs cannot hold {', '.join(reserved)}: what is read, and from where, is for load() to decide "
            "(it takes revision, token, cache_folder, local_files_only and trust_remote_code itself)"
        )
    if backend := checked.get("backend"):
        raise RecipeError(
            f"model_kwargs: backend={backend!r} is not possible, values are read while torch computes them"
        )
    for key in checked:
        if key in _BITS:
            raise RecipeError(
                f"model_kwargs: {key} is no argument of its own; give transformers' "
                f"quantization_config=BitsAndBytesConfig({key}=True), which needs the package bitsandbytes"
            )
        if key not in LEGAL:
            raise RecipeError(f"model_kwargs: {key!r} is unknown; {did_you_mean(key, LEGAL)}legal: {', '.join(LEGAL)}")
    _check_placement(checked)
    if (settings := checked.get("quantization_config")) is not None:
        if not isinstance(settings, Mapping) and not hasattr(settings, "quant_method"):
            raise RecipeError(
                f"model_kwargs: quantization_config={settings!r:.80} has to be one of transformers' configurations, "
                "such as BitsAndBytesConfig(load_in_8bit=True)"
            )
        check_quantization(settings, "model_kwargs")
    return checked


def _check_placement(checked: Mapping[str, Any]) -> None:
    places, memory = checked.get("device_map"), checked.get("max_memory")
    if isinstance(places, Mapping):
        for module, place in places.items():
            if place != "disk":
                _check_place(place, f"device_map[{module!r}]")
    elif isinstance(places, str) and places not in PLACEMENTS:
        try:
            check_device(places)
        except DeviceError as error:
            legal = f"{did_you_mean(places, PLACEMENTS)}legal: {', '.join(PLACEMENTS)}, a device, or a dict"
            raise DeviceError(f"model_kwargs: device_map: {error}; {legal}") from error
    elif places is not None and not isinstance(places, str):
        _check_place(places, "device_map")
    if memory is None:
        return
    if places is None:
        raise RecipeError("model_kwargs: max_memory says how a device map is drawn up; give device_map='auto' with it")
    if not isinstance(memory, Mapping):
        raise RecipeError(
            f"model_kwargs: max_memory={memory!r:.80} has to be a dict, such as {{0: '20GiB', 'cpu': '60GiB'}}"
        )
    for place in memory:
        if place != "disk":
            _check_place(place, "max_memory")


def _check_place(place: Any, where: str) -> None:
    try:
        check_device(place)
    except DeviceError as error:
        raise DeviceError(f"model_kwargs: {where}: {error}") from error
