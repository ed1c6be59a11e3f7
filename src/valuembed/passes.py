"""One batch of sequences through a decoder: cut into steps, each read in one pass, put back into order."""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from valuembed.batching import plan_steps, reset_dynamic_rope, rope_groups
from valuembed.errors import InputError, ReadingError
from valuembed.pooling import span_mask
from valuembed.prefix import SharedPrefixes
from valuembed.reader import Plan, Reading

logger = logging.getLogger(__name__)


def read_within_memory(
    model: PreTrainedModel, plans: Sequence[Plan], features: Mapping[str, Any], budget: int
) -> tuple[list[Tensor], int]:
    """As :func:`read`; where a step does not fit into memory, with half the budget, and so on.

    Returns:
        The vectors, and the budget that did.

    Raises:
        ReadingError: a single text does not fit into memory.
    """
    while True:
        try:
            return read(model, plans, features, budget), budget
        except RuntimeError as error:
            full = isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
            # In training the trainer decides what a batch is.
            if not full or torch.is_grad_enabled():
                raise
            longest = int(features["attention_mask"].sum(dim=1).max())
            if budget <= longest:
                raise ReadingError(
                    f"a text of {longest} tokens, template included, does not fit into the memory of {model.device}; "
                    "cut texts with max_tokens, or use a smaller dtype"
                ) from error
        # Only here the tensors of the step that failed are gone.
        budget = max(1, budget // 2)
        logger.warning("out of memory: going on with steps of %d tokens", budget)
        if model.device.type == "cuda":
            torch.cuda.empty_cache()


def read(model: PreTrainedModel, plans: Sequence[Plan], features: Mapping[str, Any], budget: int) -> list[Tensor]:
    """Read one or several plans in the same forward passes.

    Args:
        model: the decoder.
        plans: of this decoder, with the same span; a pass ends after what the deepest of them reads.
        features: ``input_ids`` and ``attention_mask`` ``[b, t]``, padded on the right; where there are several
            sequences a text, ``sequence_ends`` ``[b, k]``; ``text_span`` ``[b, k, 2]``, without which a mean covers
            every token; and with ``prefixes``, ``cached`` ``[b, k]``: how many tokens of each are kept there.
        budget: padded tokens of a step.

    Returns:
        For each plan ``[b, width]``, float32.

    Raises:
        InputError: rows are padded on the left.
        ReadingError: see :class:`valuembed.reader.Reading`.
    """
    mask = features["attention_mask"]
    if bool((mask[:, 0] == 0).any()):
        raise InputError(
            "attention_mask pads on the left; this module wants rows padded on the right, as preprocess() does"
        )
    ends = features.get("sequence_ends", mask.sum(dim=1, keepdim=True))
    batch, k = ends.shape
    ids, lengths = _apart(features["input_ids"], ends)
    span = features.get("text_span")
    if span is None or plans[0].recipe.span == "all":
        span = torch.stack((torch.zeros_like(lengths), lengths), dim=1)
    span = span.reshape(-1, 2)
    prefixes: SharedPrefixes | None = features.get("prefixes")
    cached = features["cached"].flatten().tolist() if prefixes else [0] * len(lengths)
    sizes = lengths.tolist()
    steps = _steps(sizes, cached, k, budget, rope_groups(model))
    vectors = []
    for step in steps:
        t = max(sizes[row] for row in step)
        vectors.append(_read_step(model, plans, ids[step, :t], lengths[step], span[step], cached[step[0]], prefixes))
    order = torch.tensor([row for step in steps for row in step]).argsort()
    rows = [torch.cat(of_plan)[order.to(of_plan[0].device)] for of_plan in zip(*vectors, strict=True)]
    return [of_plan.view(batch, k, -1).mean(dim=1) for of_plan in rows]


def _steps(
    lengths: list[int], cached: list[int], k: int, budget: int, group: Callable[[int], Hashable]
) -> list[list[int]]:
    """Rows of ``[b*k]`` sequences for each step: those that are fed whole, and by template those that are not."""
    behind: dict[tuple[int, int], list[int]] = {}
    for row, p in enumerate(cached):
        behind.setdefault((row % k, p) if p else (0, 0), []).append(row)
    return [
        [members[i] for i in step]
        for (_, p), members in behind.items()
        for step in plan_steps([lengths[i] - p for i in members], budget, group)
    ]


def _read_step(
    model: PreTrainedModel,
    plans: Sequence[Plan],
    ids: Tensor,
    lengths: Tensor,
    span: Tensor,
    p: int,
    prefixes: SharedPrefixes | None,
) -> list[Tensor]:
    """One step: ids ``[b, t]`` padded on the right; the first p tokens of all are the same, and kept in ``prefixes``.

    No attention mask is passed. Under causal attention a token never sees what stands to its right, so padding changes
    nothing, and kernels are at their fastest without a mask. Positions are passed, as some families number them wrongly
    by themselves.
    """
    reset_dynamic_rope(model)
    t = ids.shape[1]
    positions = torch.arange(p, t, device=ids.device).expand(len(ids), t - p)
    given: dict[str, Any] = {"input_ids": ids[:, p:], "position_ids": positions}
    if p:
        assert prefixes is not None
        given["past_key_values"] = prefixes.behind(ids[0, :p].tolist())
    return Reading(model, plans, last=lengths - 1, mask=span_mask(span, t), cached=p).run(**given)


def _apart(ids: Tensor, ends: Tensor) -> tuple[Tensor, Tensor]:
    """Sequences that stand one after the other in a row, as rows of their own.

    Args:
        ids: ``[b, t]``.
        ends: ``[b, k]`` where each sequence ends.

    Returns:
        ids ``[b*k, longest]``, arbitrary to the right of each sequence, and lengths ``[b*k]``.
    """
    starts = torch.cat((torch.zeros_like(ends[:, :1]), ends[:, :-1]), dim=1)
    lengths = (ends - starts).flatten()
    places = starts[:, :, None] + torch.arange(int(lengths.max()), device=ids.device)
    places = places.clamp(max=ids.shape[1] - 1)
    return ids.gather(1, places.flatten(1)).view(len(lengths), -1), lengths
