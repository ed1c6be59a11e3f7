"""Rotary frequencies that follow the longest text of a batch."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from typing import Any
from weakref import WeakKeyDictionary

from torch import Tensor, nn
from transformers import PreTrainedModel

_CHANGING: WeakKeyDictionary[nn.Module, list[tuple[Any, str | None, str]]] = WeakKeyDictionary()
"""By model, so that the modules of a decoder are searched once and not for each step."""


def rope_groups(model: PreTrainedModel) -> Callable[[int], Hashable]:
    """Which lengths may share a step in a model whose rotary frequencies follow the longest text of a batch.

    Longrope has two sets of frequencies, so texts on the two sides of the switch are kept apart; dynamic scaling has
    another set for each length beyond the switch. In every other model all lengths are alike.
    """
    switches: set[tuple[str, int]] = set()
    for module, layer_type, rope_type in _changing_ropes(model):
        if rope_type == "longrope":
            parameters = module.config.rope_parameters
            parameters = parameters if layer_type is None else parameters[layer_type]
            switches.add((rope_type, parameters["original_max_position_embeddings"]))
        else:
            switches.add((rope_type, module.original_max_seq_len))
    ordered = sorted(switches)
    return lambda length: tuple(
        (length > switch) if rope_type == "longrope" else max(length - switch, 0) for rope_type, switch in ordered
    )


def reset_dynamic_rope(model: PreTrainedModel) -> None:
    """Forget the frequencies of earlier, longer texts, which dynamic scaling would go on using."""
    for module, layer_type, rope_type in _changing_ropes(model):
        if rope_type == "longrope":
            continue
        prefix = "" if layer_type is None else f"{layer_type}_"
        setattr(module, f"{prefix}max_seq_len_cached", module.original_max_seq_len)
        current: Tensor = getattr(module, f"{prefix}inv_freq")
        original: Tensor = getattr(module, f"{prefix}original_inv_freq")
        module.register_buffer(f"{prefix}inv_freq", original.to(current.device, copy=True), persistent=False)


def _changing_ropes(model: nn.Module) -> list[tuple[Any, str | None, str]]:
    """Modules whose frequencies follow the longest text, each with the kind of layer they are for, and how."""
    if model not in _CHANGING:
        _CHANGING[model] = list(_find_changing_ropes(model))
    return _CHANGING[model]


def _find_changing_ropes(model: nn.Module) -> Iterator[tuple[Any, str | None, str]]:
    for module in model.modules():
        yield from ((module, layer_type, rope_type) for layer_type, rope_type in _changing_types(module))


def changes_with_length(module: nn.Module) -> bool:
    """Whether a module has rotary frequencies that follow the longest text of a batch."""
    return bool(_changing_types(module))


def _changing_types(module: nn.Module) -> list[tuple[str | None, str]]:
    """For each kind of layer how a module's frequencies follow the longest text; empty for one whose do not."""
    types = getattr(module, "rope_type", None)
    named = types.items() if isinstance(types, dict) else [(None, types)]
    return [
        (layer_type, rope_type)
        for layer_type, rope_type in named
        if isinstance(rope_type, str) and (rope_type == "longrope" or "dynamic" in rope_type)
    ]
