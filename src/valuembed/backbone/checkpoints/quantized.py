"""Checkpoints whose weights are quantized: which packages and machines read them, told before any weight is read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from valuembed._utils.devices import default_device, machine_devices
from valuembed.errors import MissingExtraError, UnsupportedModelError


@dataclass(frozen=True)
class Needs:
    """What transformers needs to read weights of one quantization.

    Attributes:
        packages: names for pip, by the modules that are imported.
        gpu: whether it runs on GPUs alone.
    """

    packages: Mapping[str, str]
    gpu: bool = False


BLOCKWISE_FP8 = "fp8"
"""What transformers calls weights of 8 bits with a scale for each block, as DeepSeek and Qwen publish them."""

_ACCELERATE = {"accelerate": "accelerate"}

NEEDS: Mapping[str, Needs] = {
    "aqlm": Needs({"aqlm": "aqlm[gpu,cpu]", **_ACCELERATE}),
    "auto-round": Needs({"auto_round": "auto-round"}),
    "awq": Needs({"gptqmodel": "gptqmodel", **_ACCELERATE}),
    "bitnet": Needs(_ACCELERATE),
    "bitsandbytes": Needs({"bitsandbytes": "bitsandbytes", **_ACCELERATE}),
    "compressed-tensors": Needs({"compressed_tensors": "compressed-tensors"}),
    "eetq": Needs({"kernels": "kernels", **_ACCELERATE}, gpu=True),
    "fbgemm_fp8": Needs({"fbgemm_gpu": "fbgemm-gpu", **_ACCELERATE}, gpu=True),
    "fouroversix": Needs({"fouroversix": "fouroversix"}),
    "fp8": Needs(_ACCELERATE),
    "fp_quant": Needs({"fp_quant": "fp_quant"}, gpu=True),
    "gemma": Needs({}),
    "gptq": Needs({"optimum": "optimum", "gptqmodel": "gptqmodel"}),
    "higgs": Needs(
        {"flute": "flute-kernel", "fast_hadamard_transform": "fast_hadamard_transform", **_ACCELERATE}, gpu=True
    ),
    "hqq": Needs({"hqq": "hqq"}),
    "metal": Needs({}),
    "mxfp4": Needs(_ACCELERATE),
    "mxfp8": Needs(_ACCELERATE),
    "nvfp4": Needs({"kernels": "kernels"}, gpu=True),
    "quanto": Needs({"optimum.quanto": "optimum-quanto", **_ACCELERATE}),
    "quark": Needs({"quark": "amd-quark"}),
    "sinq": Needs({"sinq": "sinq"}),
    "spqr": Needs({"spqr_quant": "spqr_quant[gpu]", **_ACCELERATE}, gpu=True),
    "torchao": Needs({"torchao": "torchao"}),
    "vptq": Needs({"vptq": "vptq", **_ACCELERATE}, gpu=True),
}
"""By transformers' name of the quantization."""

_BITS = ("bits", "w_bit", "nbits", "num_bits")


def quantization_method(settings: Any) -> str | None:
    """Name a quantization as transformers does; None for weights that are not quantized, or in no way that is named.

    Args:
        settings: ``quantization_config`` of a checkpoint's configuration.
    """
    if not settings:
        return None
    if _get(settings, "load_in_4bit") or _get(settings, "load_in_8bit"):
        return "bitsandbytes"
    method = _get(settings, "quant_method")
    return str(getattr(method, "value", method)) if method else None


def is_dequantized(settings: Any, device: str | None) -> bool:
    """Whether weights are turned back into plain ones at load: blockwise fp8 where no device multiplies it.

    Args:
        settings: ``quantization_config`` of a checkpoint's configuration.
        device: where the model will run; None is the device that a model is put on by itself.
    """
    if quantization_method(settings) != BLOCKWISE_FP8:
        return False
    device = device or default_device()
    if device.partition(":")[0] == "cuda":
        import torch

        return torch.cuda.get_device_capability(device) < (8, 9)
    return not device.startswith("xpu")


def describe_quantization(settings: Any) -> str | None:
    """A quantization in a few words, and whether what reads it is here; None for weights that are not quantized.

    Args:
        settings: ``quantization_config`` of a checkpoint's configuration.
    """
    if not settings:
        return None
    name = _name(settings)
    needs = NEEDS.get(quantization_method(settings) or "")
    if needs is None:
        return f"{name}, which transformers has no reader for"
    missing = _missing(needs)
    told = [name]
    if needs.packages:
        told.append(f"needs {_listed(list(needs.packages.values()))}")
        told[-1] += f" ({_listed(missing)} not installed)" if missing else " (installed)"
    if needs.gpu:
        told.append(f"needs a GPU{'' if _has_gpu() else ' (this machine has none)'}")
    return ", ".join(told)


def check_quantization(settings: Any, where: str) -> None:
    """Raise where quantized weights cannot be read here.

    Args:
        settings: ``quantization_config`` of a checkpoint's configuration, or as a user gives it.
        where: what asks for it, as the beginning of a message.

    Raises:
        UnsupportedModelError: nobody knows the quantization, or it needs a GPU and there is none.
        MissingExtraError: a package that reads it is not installed; the message says how to install it.
    """
    if not settings:
        return
    needs = NEEDS.get(quantization_method(settings) or "")
    name, other = _name(settings), "or take a checkpoint that is not quantized"
    if needs is None:
        raise UnsupportedModelError(
            f"{where}: the quantization {name} is none that can be read; legal: {', '.join(NEEDS)}; {other}"
        )
    missing = _missing(needs)
    if needs.gpu and not _has_gpu():
        too = f", and {_listed(missing)}, not installed either" if missing else ""
        raise UnsupportedModelError(
            f"{where}: the quantization {name} needs a GPU, of which this machine has none{too}; use a machine with "
            f"one, {other}"
        )
    if missing:
        be, quoted = "is" if len(missing) == 1 else "are", [f'"{name}"' if "[" in name else name for name in missing]
        raise MissingExtraError(
            f"{where}: the quantization {name} needs {_listed(missing)}, which {be} not installed; run: "
            f"pip install {' '.join(quoted)}"
        )


def _get(settings: Any, key: str) -> Any:
    return settings.get(key) if isinstance(settings, Mapping) else getattr(settings, key, None)


def _name(settings: Any) -> str:
    """Name and bits, such as ``gptq 4-bit``."""
    method = quantization_method(settings) or "without a quant_method"
    bits = next((found for key in _BITS if isinstance(found := _get(settings, key), int)), None)
    for key, number in (("load_in_4bit", 4), ("load_in_8bit", 8)):
        bits = number if _get(settings, key) else bits
    return f"{method} {bits}-bit" if bits else method


def _missing(needs: Needs) -> list[str]:
    return [package for module, package in needs.packages.items() if not _is_installed(module)]


def _is_installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except (ModuleNotFoundError, ValueError):  # its parent is missing, or somebody took it out of the way
        return False


def _has_gpu() -> bool:
    return len(machine_devices()) > 1


def _listed(names: list[str]) -> str:
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))
