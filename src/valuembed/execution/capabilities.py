"""Which way a decoder's texts take: packed or padded; behind what they all begin with, or whole."""

from __future__ import annotations

import logging
import sys
from typing import Literal

from transformers import PreTrainedModel

from valuembed.backbone import Plan
from valuembed.execution import parity, prefix_cache
from valuembed.readout import varlen

logger = logging.getLogger(__name__)

LayoutName = Literal["auto", "padded", "packed"]


def packed_up_to(model: PreTrainedModel, plan: Plan, layout: LayoutName = "auto") -> int:
    """Tokens up to which a sequence takes the packed lane; 0 where none does.

    Args:
        model: the decoder.
        plan: any of its plans.
        layout: ``"auto"`` packs on CUDA; ``"packed"`` on any device, on the CPU by the slow plain kernel.
    """
    if layout == "padded" or (layout == "auto" and model.device.type != "cuda"):
        return 0
    reason = varlen.why_not(model, plan.decoder_spec) or _no_kernel(model, layout) or _disagreement(model, plan)
    if reason:
        logger.warning("texts are padded, for in %s %s", type(model).__name__, reason)
        return 0
    return varlen.longest_text(model) or sys.maxsize


def prefix_unsupported_reason(model: PreTrainedModel, plan: Plan) -> str | None:
    """Why what many texts begin with cannot be computed once for all of them; None where it can.

    Args:
        model: the decoder.
        plan: any of its plans.
    """
    if reason := prefix_cache.why_not(model):
        return reason
    try:
        whole, shared = (parity.run(model, plan, shared=shared) for shared in (False, True))
        reason = parity.difference(whole, shared, model.dtype)
    except Exception as error:
        # Whatever a family does not take this way, it takes whole.
        return f"a trial of it failed: {type(error).__name__}"
    return reason and f"a trial of it was {reason}"


def _no_kernel(model: PreTrainedModel, layout: LayoutName) -> str | None:
    if layout == "packed" or varlen.fast_kernel(model.device.type, model.dtype):
        return None
    return f"no kernel packs {str(model.dtype).removeprefix('torch.')} on this device"


def _disagreement(model: PreTrainedModel, plan: Plan) -> str | None:
    """What short texts show that no configuration tells; None where both lanes give the same."""
    try:
        padded, packed = (parity.run(model, plan, up_to) for up_to in (0, max(parity.LENGTHS)))
    except Exception as error:
        # Whatever a family does not take in this lane, it takes in the other.
        return f"a trial of the packed lane failed: {type(error).__name__}"
    reason = parity.difference(padded, packed, model.dtype)
    return reason and f"a trial of the packed lane was {reason}"
