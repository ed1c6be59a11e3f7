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

EVEN = 0.9
"""A step that has a quarter of its budget takes no row shorter than this share of its longest: short texts would
otherwise be padded by a fifth."""


def plan_steps(
    lengths: Sequence[int],
    budget: int = TOKENS_PER_STEP,
    group: Callable[[int], Hashable] = lambda length: None,
) -> Iterator[list[int]]:
    """Sort rows by exact length, longest first, and cut them into steps.

    Args:
        lengths: tokens of each row.
        budget: rows x longest row of a step stays within this, except where a single row is longer.
        group: rows share a step only if this gives the same for their lengths.

    Yields:
        Indices of the rows of one step; each row is in exactly one.
    """
    step: list[int] = []
    for row in sorted(range(len(lengths)), key=lambda row: -lengths[row]):
        if step:
            longest = lengths[step[0]]
            full = (len(step) + 1) * longest > budget
            # A step of some size is not filled up with rows that are much shorter than its longest.
            uneven = lengths[row] < EVEN * longest and 4 * len(step) * longest >= budget
            if full or uneven or group(longest) != group(lengths[row]):
                yield step
                step = []
        step.append(row)
    if step:
        yield step


def cheapest_steps(lengths: Sequence[int], overhead: int) -> list[list[int]]:
    """Rows in steps so that padding and the steps themselves cost least: the best of all cuts of the sorted rows.

    Args:
        lengths: tokens of each row.
        overhead: what a step costs beside rows x longest row, in tokens.

    Returns:
        Indices of the rows of each step, longest first; each row is in exactly one.
    """
    if not lengths:
        return []
    order = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    # A best cut never parts rows of one length.
    starts = [at for at, row in enumerate(order) if not at or lengths[row] != lengths[order[at - 1]]]
    first, longest = np.array(starts, float), np.array([lengths[order[at]] for at in starts], float)
    ends = [*starts[1:], len(order)]
    cost, begin = np.zeros(len(starts) + 1), [0] * (len(starts) + 1)
    for j, end in enumerate(ends, start=1):
        ways = cost[:j] + overhead + (end - first[:j]) * longest[:j]
        begin[j] = int(ways.argmin())
        cost[j] = ways[begin[j]]
    steps: list[list[int]] = []
    j = len(starts)
    while j:
        steps.insert(0, order[starts[begin[j]] : ends[j - 1]])
        j = begin[j]
    return steps


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
