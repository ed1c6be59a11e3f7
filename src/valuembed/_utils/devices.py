"""Which devices this machine has, found out without importing torch where torch itself was built without others."""

from __future__ import annotations

import platform
import re
import sys
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from valuembed.errors import DeviceError

if TYPE_CHECKING:
    import torch

CPU = "cpu"
VENDORS = {"npu": "torch_npu", "hpu": "habana_frameworks"}
"""Kinds of devices that torch computes on with a package of the vendor's."""

KINDS = (CPU, "cuda", "mps", "xpu", *VENDORS)
"""Kinds of devices that torch computes on."""

_BUILT_FOR = re.compile(r"^(cuda|hip|xpu)\b[^=]*=\s*(.+?)\s*$", re.MULTILINE)


def check_device(device: str | int | torch.device | None) -> str | None:
    """Check that this machine has a device.

    A typo, and a GPU that torch was not built for, are told without importing torch.

    Args:
        device: a name such as ``"cpu"`` or ``"cuda:1"``, torch's own object, or the number of a GPU; None leaves the
            choice to the machine.

    Returns:
        The device's name; None for None.

    Raises:
        DeviceError: no device is called so, this machine has none of its kind, or not so many.
    """
    if device is None:
        return None
    if isinstance(device, int) and not isinstance(device, bool):
        gpus = [name for name in machine_devices() if not name.startswith(CPU)]
        if 0 <= device < len(gpus):
            return gpus[device]
        raise _absent(device)
    name = str(device)
    kind, separator, number = name.partition(":")
    if kind == "meta":
        raise _absent(device, ": nothing can be computed on it, for it holds no numbers")
    if isinstance(device, bool) or kind not in KINDS or (separator and not re.fullmatch(r"\d+", number)):
        near = get_close_matches(kind.lower(), KINDS, 1)
        meant = f"did you mean {near[0]!r}? " if near else ""
        raise DeviceError(f"device {device!r} is unknown; {meant}{_what_is_here()}")
    if kind == CPU:
        if separator and int(number):
            raise _absent(device)
        return name
    if why := _not_built_for(kind):
        raise _absent(device, f" ({why})")
    here = [found for found in machine_devices() if found.partition(":")[0] == kind]
    if not here:
        raise _absent(device, " (torch finds no such device, or no driver for it)")
    if separator and int(number) >= len(here):
        raise _absent(device)
    return name


def default_device() -> str:
    """The device that a model is put on where none is named: the first that is not a CPU, if there is one."""
    return next((device for device in machine_devices() if device != CPU), CPU)


def machine_devices() -> list[str]:
    """The devices of this machine that this torch computes on, such as ``["cpu", "cuda:0"]``."""
    if all(map(_not_built_for, KINDS[1:])):
        return [CPU]
    import torch

    found = [f"cuda:{number}" for number in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    if torch.backends.mps.is_available():
        found.append("mps")
    # What a vendor's package adds, torch knows as the accelerator of the machine.
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if accelerator is not None and accelerator.type not in ("cuda", "mps"):
        found += [f"{accelerator.type}:{number}" for number in range(torch.accelerator.device_count())]
    return [CPU, *found]


def _not_built_for(kind: str) -> str | None:
    """Why this torch cannot know a kind of device; None where only the machine can tell."""
    if kind == "mps":
        return None if sys.platform == "darwin" and platform.machine() == "arm64" else "mps is Apple's"
    if package := VENDORS.get(kind):
        return None if find_spec(package) else f"{package} is not installed"
    version = _torch_version()
    if version is None:
        return None
    built_for = dict(_BUILT_FOR.findall(version))
    backends = ("cuda", "hip") if kind == "cuda" else (kind,)
    if any(built_for.get(backend, "None") != "None" for backend in backends):
        return None
    number = re.search(r"^__version__ = '(.+)'", version, re.MULTILINE)
    return f"torch {number[1] if number else ''} is built without {'CUDA' if kind == 'cuda' else kind}"


def _torch_version() -> str | None:
    """The text of the file in which torch says what it was built for; None where there is none."""
    spec = find_spec("torch")
    path = Path(spec.origin).with_name("version.py") if spec and spec.origin else None
    return path.read_text(encoding="utf-8") if path and path.is_file() else None


def _absent(device: object, why: str = "") -> DeviceError:
    return DeviceError(f"device {device!r} is not there{why}; {_what_is_here()}")


def _what_is_here() -> str:
    return f"this machine has: {', '.join(machine_devices())}"
