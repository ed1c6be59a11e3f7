"""One batch of sequences through a decoder: cut into steps, each read in one pass, put back into order."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from valuembed._utils.text import counted
from valuembed.backbone import Plan
from valuembed.errors import InputError, ReadingError
from valuembed.execution.prefix_cache import PrefixCache
from valuembed.execution.scheduler import plan_steps, reset_dynamic_rope, rope_groups, usual_step
from valuembed.readout import BatchLayout, PackedLayout, PaddedLayout, PrefixKV, Readout, span_mask

logger = logging.getLogger(__name__)


def read_within_memory(
    model: PreTrainedModel, plans: Sequence[Plan], features: Mapping[str, Any], budget: int, packed_up_to: int = 0
) -> tuple[list[Tensor], int]:
    """As :func:`read`; where a step does not fit into memory, with half the budget, and so on.

    Returns:
        The vectors, and the budget that did.

    Raises:
        ReadingError: a single text does not fit into memory.
    """
    while True:
        try:
            return read(model, plans, features, budget, packed_up_to), budget
        except RuntimeError as error:
            full = isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
            # In training the trainer decides what a batch is.
            if not full or torch.is_grad_enabled():
                raise
            longest = int(features["attention_mask"].sum(dim=1).max())
            if budget <= longest:
                raise ReadingError(
                    f"a text of {counted(longest, 'token')}, template included, does not fit into the memory of "
                    f"{model.device}; cut texts with max_tokens, or use a smaller dtype"
                ) from error
        # Only here the tensors of the step that failed are gone.
        budget = max(1, budget // 2)
        logger.warning("out of memory: going on with steps of %d tokens", budget)
        if model.device.type == "cuda":
            torch.cuda.empty_cache()


def read(
    model: PreTrainedModel, plans: Sequence[Plan], features: Mapping[str, Any], budget: int, packed_up_to: int = 0
) -> list[Tensor]:
    """Read one or several plans in the same forward passes.

    Args:
        model: the decoder.
        plans: of this decoder, with the same span; a pass ends after what the deepest of them reads.
        features: ``input_ids`` and ``attention_mask`` ``[b, t]``, padded on the right; where there are several
            sequences a text, ``sequence_ends`` ``[b, k]``; ``text_span`` ``[b, k, 2]``, without which a mean covers
            every token; and with ``prefixes``, ``cached`` ``[b, k]``: how many tokens of each are kept there.
        budget: padded tokens of a step.
        packed_up_to: sequences of at most so many tokens take the packed lane.

    Returns:
        For each plan ``[b, width]``, float32.

    Raises:
        InputError: rows are padded on the left.
        ReadingError: see :class:`valuembed.readout.Readout`.
    """
    sequences = _Sequences.of(features, whole=plans[0].recipe.span == "all")
    vectors = []
    steps = _steps(model, sequences, budget, packed_up_to)
    for step in steps:
        reset_dynamic_rope(model)
        packed = sequences.lengths[step[0]] <= packed_up_to
        layout, given = (_packed if packed else _padded)(model, sequences, step)
        vectors.append(Readout(model, plans, layout).run(**given))
    order = torch.tensor([row for step in steps for row in step]).argsort()
    rows = [torch.cat(of_plan)[order.to(of_plan[0].device)] for of_plan in zip(*vectors, strict=True)]
    return [of_plan.view(-1, sequences.k, of_plan.shape[1]).mean(dim=1) for of_plan in rows]


@dataclass(frozen=True)
class _Sequences:
    """What a batch feeds, on the CPU, where steps are planned without waiting for a device.

    Attributes:
        ids: ``[b*k, longest]``, arbitrary to the right of each sequence.
        lengths: of each.
        spans: the tokens of a mean in each.
        cached: how many tokens at the beginning of each stand in ``prefixes``.
        k: sequences of a text.
        prefixes: constant beginnings.
    """

    ids: Tensor
    lengths: list[int]
    spans: list[tuple[int, int]]
    cached: list[int]
    k: int
    prefixes: PrefixCache | None

    @classmethod
    def of(cls, features: Mapping[str, Any], *, whole: bool) -> _Sequences:
        mask = features["attention_mask"].cpu()
        if bool((mask[:, 0] == 0).any()):
            raise InputError(
                "attention_mask pads on the left; this module wants rows padded on the right, as preprocess() does"
            )
        ends = features.get("sequence_ends", mask.sum(dim=1, keepdim=True)).cpu()
        ids, sizes = _apart(features["input_ids"].cpu(), ends)
        lengths = sizes.tolist()
        span = features.get("text_span")
        spans = [(0, length) for length in lengths] if span is None or whole else span.reshape(-1, 2).tolist()
        prefixes = features.get("prefixes")
        cached = features["cached"].flatten().tolist() if prefixes else [0] * len(lengths)
        return cls(ids, lengths, spans, cached, ends.shape[1], prefixes)


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
    places = starts[:, :, None] + torch.arange(int(lengths.max()))
    places = places.clamp(max=ids.shape[1] - 1)
    return ids.gather(1, places.flatten(1)).view(len(lengths), -1), lengths


def _steps(model: PreTrainedModel, sequences: _Sequences, budget: int, packed_up_to: int) -> list[list[int]]:
    """Rows for each step: those that are fed whole, and by template those that are not; each on one lane."""
    alike: dict[tuple[int, int, bool], list[int]] = {}
    for row, (length, p) in enumerate(zip(sequences.lengths, sequences.cached, strict=True)):
        template = row % sequences.k if p else 0
        alike.setdefault((template, p, length <= packed_up_to), []).append(row)
    cost, group = usual_step(model.device)[1], rope_groups(model)
    return [
        [members[i] for i in step]
        for (_, p, packed), members in alike.items()
        for step in plan_steps([sequences.lengths[i] - p for i in members], budget, cost, group, packed=packed)
    ]


# Under causal attention a token never sees what stands to its right, so padding on the right changes nothing, and
# kernels are at their fastest without a mask. Positions are passed, as some families number them wrongly by themselves.


def _padded(model: PreTrainedModel, sequences: _Sequences, step: list[int]) -> tuple[BatchLayout, dict[str, Any]]:
    """A step with a row for each sequence: lane, and what the decoder is given."""
    device, prefix = model.device, _beginning(sequences, step)
    p = prefix.tokens if prefix else 0
    lengths = torch.tensor([sequences.lengths[row] for row in step])
    t = int(lengths.max())
    span = torch.tensor([sequences.spans[row] for row in step])
    layout = PaddedLayout(_to(lengths - 1, device), span_mask(_to(span, device), t), prefix)
    given: dict[str, Any] = {
        "input_ids": _to(sequences.ids[step, p:t], device),
        # With a row of its own for each text, as compiled layers tell tensors apart by how they lie in memory.
        "position_ids": torch.arange(p, t, device=device).repeat(len(step), 1),
    }
    if prefix:
        seen = torch.ones(t - p, t, dtype=torch.bool, device=device).tril(diagonal=p)
        hidden = torch.zeros(t - p, t, dtype=model.dtype, device=device)
        # A mask in its final form is passed on as it is: each token sees the beginning, and its own text up to itself.
        given["attention_mask"] = hidden.masked_fill_(~seen, torch.finfo(model.dtype).min)[None, None]
    return layout, given


def _packed(model: PreTrainedModel, sequences: _Sequences, step: list[int]) -> tuple[BatchLayout, dict[str, Any]]:
    """A step with all sequences in one row: lane, and what the decoder is given."""
    device, prefix = model.device, _beginning(sequences, step)
    p = prefix.tokens if prefix else 0
    lengths = [sequences.lengths[row] for row in step]
    spans = [sequences.spans[row] for row in step]
    layout = PackedLayout([length - p for length in lengths], spans, prefix, device)
    ids = torch.cat([sequences.ids[row, p:length] for row, length in zip(step, lengths, strict=True)])
    given: dict[str, Any] = {
        "input_ids": _to(ids[None], device),
        "position_ids": layout.positions,
        # The lane's attention needs no mask, and nobody makes one where there is one in its final form.
        "attention_mask": torch.zeros(1, 1, 1, 1, dtype=model.dtype, device=device),
    }
    return layout, given


def _beginning(sequences: _Sequences, step: list[int]) -> PrefixKV | None:
    """What a step's sequences stand behind; None where they are fed whole."""
    p = sequences.cached[step[0]]
    if not p or sequences.prefixes is None:
        return None
    return sequences.prefixes.behind(sequences.ids[step[0], :p].tolist())


def _to(tensor: Tensor, device: torch.device) -> Tensor:
    """To a device, without waiting for what it is busy with."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)
