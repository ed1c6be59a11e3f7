"""Cutting many rows into steps by a budget of tokens, so that padding stays small and memory stays bounded."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

TOKENS_PER_STEP = 8192
"""Padded tokens computed in one step. Larger steps gain little on any device; memory grows with them."""

TOKENS_PER_STEP_ON_CPU = 2048
"""The same on a CPU, whose caches hold what so many tokens leave behind in a layer; and smaller steps pad less."""

STEP_COST, STEP_COST_ON_CPU = 256, 128
"""What a step costs beside its tokens, in tokens: a GPU is slow to start and then fast, on a CPU tokens cost most."""


def usual_step(device: torch.device) -> tuple[int, int]:
    """Budget and cost of a step that suit a device, in tokens."""
    return (TOKENS_PER_STEP_ON_CPU, STEP_COST_ON_CPU) if device.type == "cpu" else (TOKENS_PER_STEP, STEP_COST)


def plan_steps(
    lengths: Sequence[int],
    budget: int = TOKENS_PER_STEP,
    cost: int = STEP_COST,
    group: Callable[[int], Hashable] = lambda length: None,
    *,
    packed: bool = False,
) -> list[list[int]]:
    """Sort rows by exact length, longest first, and cut them where that costs least: the best of all cuts.

    Args:
        lengths: tokens of each row.
        budget: a step computes at most so many tokens, except where a single row is longer.
        cost: what a step costs beside the tokens that it computes, in tokens.
        group: rows share a step only if this gives the same for their lengths.
        packed: a step computes the tokens of its rows; False for rows x longest row, padding among them.

    Returns:
        Indices of the rows of each step; each row is in exactly one.
    """
    order = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    ordered = np.array([lengths[row] for row in order], dtype=np.int64)
    before = np.concatenate(([0], ordered.cumsum()))
    counts = np.arange(1, len(order) + 1)
    # least[j]: of the first j rows, cut at their best; begin[j]: where the last step of that cut begins.
    least = np.concatenate(([0], np.full(len(order), np.iinfo(np.int64).max)))
    begin = np.zeros(len(order) + 1, dtype=np.int64)
    for first, end in _ends_of_groups(ordered.tolist(), group):
        if packed:
            most = int(before.searchsorted(before[first] + budget, side="right")) - 1
            last = min(end, max(most, first + 1))
            computed = before[first + 1 : last + 1] - before[first]
        else:
            last = min(end, first + max(1, budget // int(ordered[first])))
            computed = counts[: last - first] * ordered[first]
        total = least[first] + cost + computed
        better = total < least[first + 1 : last + 1]
        least[first + 1 : last + 1][better] = total[better]
        begin[first + 1 : last + 1][better] = first
    steps: list[list[int]] = []
    end = len(order)
    while end:
        steps.append(order[begin[end] : end])
        end = int(begin[end])
    return steps[::-1]


def _ends_of_groups(lengths: Sequence[int], group: Callable[[int], Hashable]) -> Iterator[tuple[int, int]]:
    """For each row where its group ends."""
    groups = [group(length) for length in lengths]
    end = 0
    for first in range(len(lengths)):
        while end < len(lengths) and (end <= first or groups[end] == groups[first]):
            end += 1
        yield first, end


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


def _changing_ropes(model: nn.Module) -> Iterator[tuple[Any, str | None, str]]:
    for module in model.modules():
        types = getattr(module, "rope_type", None)
        named = types.items() if isinstance(types, dict) else [(None, types)]
        for layer_type, rope_type in named:
            if isinstance(rope_type, str) and (rope_type == "longrope" or "dynamic" in rope_type):
                yield module, layer_type, rope_type


def pad_right(rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Rows of ids as one tensor, shorter ones filled on the right with their own last id.

    Nothing ever attends to the filling, so no padding token is needed, and no model wonders about one.

    Args:
        rows: b rows of at least one and at most t ids.

    Returns:
        ids ``[b, t]`` and mask ``[b, t]``, 1 where there is a token.
    """
    longest = max(map(len, rows))
    ids = torch.tensor([[*row, *[row[-1]] * (longest - len(row))] for row in rows], dtype=torch.long)
    lengths = torch.tensor([len(row) for row in rows])
    return ids, (torch.arange(longest) < lengths[:, None]).long()
