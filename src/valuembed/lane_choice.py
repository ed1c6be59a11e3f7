"""Which lane a decoder's texts take: packed where that is fast and right, padded otherwise."""

from __future__ import annotations

import logging
import sys
from typing import Literal

import torch
from transformers import PreTrainedModel

from valuembed import packing
from valuembed.passes import read
from valuembed.reader import Plan
from valuembed.recipes import Recipe

logger = logging.getLogger(__name__)

LaneName = Literal["auto", "padded", "packed"]
TRIAL_LENGTHS = (48, 8)
"""Tokens of the two texts that are tried; the second one's positions would be far off if they were counted on."""
BOTH = 8192
"""A budget of tokens so large that both are in one step."""
TRIAL_ERRORS = {torch.float32: 1e-3, torch.float16: 0.01, torch.bfloat16: 0.05}
"""Relative error up to which the lanes are the same, by precision: rounding stays below, a look at the neighbour does
not."""


def packed_up_to(model: PreTrainedModel, plan: Plan, lane: LaneName = "auto") -> int:
    """Tokens up to which a sequence takes the packed lane; 0 where none does.

    Args:
        model: the decoder.
        plan: any of its plans.
        lane: ``"auto"`` packs on CUDA; ``"packed"`` on any device, on the CPU by the slow plain kernel.
    """
    if lane == "padded" or (lane == "auto" and model.device.type != "cuda"):
        return 0
    reason = packing.why_not(model, plan.anatomy) or _no_kernel(model, lane) or _disagreement(model, plan)
    if reason:
        logger.warning("texts are padded, for in %s %s", type(model).__name__, reason)
        return 0
    return packing.longest_text(model) or sys.maxsize


def _no_kernel(model: PreTrainedModel, lane: LaneName) -> str | None:
    if lane == "packed" or packing.fast_kernel(model.device.type, model.dtype):
        return None
    return f"no kernel packs {str(model.dtype).removeprefix('torch.')} on this device"


@torch.inference_mode()
def _disagreement(model: PreTrainedModel, plan: Plan) -> str | None:
    """What two short texts show that no configuration tells; None where both lanes give the same."""
    # All layers that are loaded run, and every position matters.
    held = int(model.config.get_text_config().num_hidden_layers)
    trial = Plan(Recipe(signal="hidden", weights="mean", layers=[held - 1]), (held - 1,), plan.anatomy)
    longest = max(TRIAL_LENGTHS)
    limit = min(longest, packing.longest_text(model) or longest)
    vocabulary = int(model.config.get_text_config().vocab_size)
    ids = torch.arange(2 * longest).view(2, longest) * 7919 % vocabulary
    lengths = torch.tensor([min(length, limit) for length in TRIAL_LENGTHS])
    features = {"input_ids": ids[:, :limit], "attention_mask": (torch.arange(limit) < lengths[:, None]).long()}
    try:
        padded, packed = (read(model, [trial], features, BOTH, up_to)[0] for up_to in (0, longest))
    except Exception as error:
        # Whatever a family does not take in this lane, it takes in the other.
        return f"a trial of the packed lane failed: {type(error).__name__}"
    error = float(((padded - packed).norm(dim=1) / padded.norm(dim=1)).max())
    return None if error < TRIAL_ERRORS.get(model.dtype, 1e-3) else f"a trial of the packed lane was off by {error:.2g}"
