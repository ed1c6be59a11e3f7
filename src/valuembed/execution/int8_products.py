"""Products in int8 on a CPU: weights kept in 8 bits, activations rounded to 8 bits token by token, sums exact in int32.

What is rounded is first smoothed: channels that are large in the activations are made smaller there and larger in the
weights, which changes no product, so that few large channels do not take the precision of all others (Xiao et al.,
SmoothQuant, arXiv 2211.10438; here with the root mean square over the channels of a few texts in place of the largest).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from functools import partial
from typing import Any
from weakref import ref

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from valuembed.execution import cpu_memory

SMOOTHING = 0.6
"""How much of the difference between channels goes from the activations to the weights; 0.5 and 0.7 are as good."""

LEAST_WIDTH = 16
"""Narrower matrices stay as they are, such as those that choose a token's experts."""

LARGEST = 127
"""Of what is rounded; -128 is left out, so that signs are alike."""

SMALLEST = 1e-30
"""Keeps a row of zeros from being divided by zero."""

# What the first of several maps in a row made of their states, and of which states. A thread has its own.
_rounded: ContextVar[tuple[ref[Tensor], tuple[Tensor, Tensor]] | None] = ContextVar("valuembed_rounded", default=None)


def round_rows(states: Tensor) -> tuple[Tensor, Tensor]:
    """Round each row to 127 steps of its largest number.

    Args:
        states: ``[t, width]``.

    Returns:
        ``[t, width]`` int8, and the steps ``[t, 1]`` float32 that they are to be multiplied with.
    """
    states = states.float()
    largest = states.abs().amax(dim=1, keepdim=True).clamp_min(SMALLEST)
    return (states * (LARGEST / largest)).round_().to(torch.int8), largest / LARGEST


class Int8Linear(nn.Module):
    """Computes what a linear map does, in int8.

    Where gradients are recorded, and on other devices than a CPU, it computes in the precision of its input by the
    rounded weights.

    Args:
        linear: the map, ``[width_in] -> [width_out]``.
        smoothing: ``[width_in]`` that activations are multiplied with, and weights divided by; None for neither.
        place: of this map among those that are multiplied with the same states one after the other.
        members: how many of these there are.
    """

    weight: Tensor
    steps: Tensor
    bias: Tensor | None
    smoothing: Tensor | None

    def __init__(self, linear: nn.Linear, smoothing: Tensor | None = None, place: int = 0, members: int = 1) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        weight = linear.weight.detach().float()
        rounded, steps = round_rows(weight if smoothing is None else weight / smoothing)
        self.register_buffer("weight", rounded)
        self.register_buffer("steps", steps[:, 0])
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach())
        self.register_buffer("smoothing", smoothing)
        self._first, self._last = place == 0, place == members - 1

    def forward(self, states: Tensor) -> Tensor:
        """Map ``[..., width_in]`` to ``[..., width_out]`` of the same dtype."""
        if states.device.type != "cpu" or (torch.is_grad_enabled() and states.requires_grad):
            return F.linear(states, self._whole_weight().to(states.dtype), self.bias)
        rows, steps = self._round(states)
        products = torch._int_mm(rows, self.weight.t()).float().mul_(steps).mul_(self.steps)
        if self.bias is not None:
            products += self.bias
        return products.to(states.dtype).view(*states.shape[:-1], self.out_features)

    def _round(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """Round the states, or take what the first of those that share them made of them."""
        # A compiler finds by itself what several maps compute alike.
        alone = (self._first and self._last) or torch.compiler.is_compiling()
        before = None if alone else _rounded.get()
        if before is not None and before[0]() is states and not self._first:
            made = before[1]
        else:
            rows = states.reshape(-1, self.in_features)
            made = round_rows(rows if self.smoothing is None else rows * self.smoothing)
        if not alone:
            _rounded.set(None if self._last else (ref(states), made))
        return made

    def _whole_weight(self) -> Tensor:
        """``[width_out, width_in]`` float32."""
        weight = self.weight.float() * self.steps[:, None]
        return weight if self.smoothing is None else weight * self.smoothing

    def extra_repr(self) -> str:
        """Show the sizes, as :class:`torch.nn.Linear` does."""
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"


def use_int8_products(layers: nn.Module, run: Callable[[], object]) -> int:
    """Put :class:`Int8Linear` in the place of every linear map of a decoder's layers.

    Args:
        layers: the decoder's, on a CPU.
        run: runs a few texts through all of them, from which smoothing is found.

    Returns:
        How many maps there are.
    """
    # Adapters stay as they are, for they are narrow, and may be taken off.
    channels = _Channels(
        {
            path: module
            for path, module in layers.named_modules()
            if type(module) is nn.Linear
            and min(module.in_features, module.out_features) >= LEAST_WIDTH
            and not any(name.startswith("lora_") for name in path.split("."))
        }
    )
    with torch.no_grad():
        run()
    channels.remove()
    for group in channels.all_groups():
        maps: list[Any] = [layers.get_submodule(path) for path in group]
        smoothing = _smoothing(maps, channels.power[group[0]]) if group[0] in channels.power else None
        for place, (path, linear) in enumerate(zip(group, maps, strict=True)):
            layers.set_submodule(path, Int8Linear(linear, smoothing, place, len(group)))
    # The weights in their own precision, of which nothing is needed any more.
    cpu_memory.release_freed_memory()
    return len(channels.paths)


class _Channels:
    """How large the channels of what goes into linear maps are, and which of them take the same states in a row.

    Maps are known by their paths, so that each can be let go when its successor is made.
    """

    def __init__(self, maps: Mapping[str, nn.Linear]) -> None:
        self.paths = list(maps)
        self.groups: list[list[str]] = []
        self.power: dict[str, Tensor] = {}
        self._before: Tensor | None = None
        self._hooks = [module.register_forward_pre_hook(partial(self._look, path)) for path, module in maps.items()]

    def _look(self, path: str, module: nn.Linear, args: tuple[Tensor, ...]) -> None:
        (states,) = args
        rows = states.reshape(-1, module.in_features).float()
        power = rows.div(rows.norm(dim=1, keepdim=True).clamp_min(SMALLEST)).square().sum(dim=0)
        if path in self.power:
            power += self.power[path]
        elif states is self._before:
            self.groups[-1].append(path)
        else:
            self.groups.append([path])
        self.power[path], self._before = power, states

    def remove(self) -> None:
        """Take the hooks off."""
        for hook in self._hooks:
            hook.remove()
        self._hooks, self._before = [], None

    def all_groups(self) -> list[list[str]]:
        """Those found, and each map that no text reached by itself."""
        return [*self.groups, *([path] for path in self.paths if path not in self.power)]


def _smoothing(group: Sequence[nn.Linear], power: Tensor) -> Tensor:
    """``[width_in]`` that the activations of some maps are multiplied with, of geometric mean 1."""
    activations = power.sqrt()
    weights = torch.stack([module.weight.detach().abs().amax(dim=0).float() for module in group]).amax(dim=0)
    # A channel that was silent in the texts may speak in others.
    activations = activations.clamp_min(1e-5 * float(activations.max())).clamp_min(SMALLEST)
    logarithms = SMOOTHING * activations.log() - (1 - SMOOTHING) * weights.clamp_min(1e-6).log()
    return (logarithms.mean() - logarithms).exp()
