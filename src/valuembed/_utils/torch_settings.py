"""Settings of torch that a program around this library may have made, set aside where they would change results."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch

_AUTOCAST_DEVICES = ("cpu", "cuda", "mps", "xpu")

_building = threading.RLock()


@contextmanager
def default_device_and_precision() -> Iterator[None]:
    """Make tensors on the CPU unless they are told where, and compute in the dtype of the weights.

    Around this, ``torch.set_default_device``, ``with torch.device(...)`` and ``torch.autocast`` may say otherwise.
    Where gradients are recorded autocast stays: a trainer asks for it. All of this belongs to the thread.
    """
    with ExitStack() as stack:
        _use_cpu(stack)
        if not torch.is_grad_enabled():
            _end_autocast(stack)
        yield


@contextmanager
def gradients() -> Iterator[None]:
    """As :func:`default_device_and_precision`, and with gradients, whatever mode torch is in around this."""
    with ExitStack() as stack:
        # What is made in inference mode could never be trained.
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        _use_cpu(stack)
        _end_autocast(stack)
        yield


@contextmanager
def building() -> Iterator[None]:
    """Build modules as a plain process would: float32 unless told otherwise, on the CPU, and fit to be trained.

    The default dtype belongs to the whole process, and transformers changes it while it builds a model, so one thread
    builds at a time.
    """
    with _building, gradients():
        default = torch.get_default_dtype()
        if default == torch.float32:
            yield
            return
        torch.set_default_dtype(torch.float32)
        try:
            yield
        finally:
            torch.set_default_dtype(default)


def _use_cpu(stack: ExitStack) -> None:
    if torch.get_default_device().type != "cpu":
        stack.enter_context(torch.device("cpu"))


def _end_autocast(stack: ExitStack) -> None:
    for device in _AUTOCAST_DEVICES:
        if torch.is_autocast_enabled(device):
            stack.enter_context(torch.autocast(device, enabled=False))
