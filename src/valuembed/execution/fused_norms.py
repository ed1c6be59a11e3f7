"""RMS norms as one operation of torch, in place of the eight that transformers spells them out in.

On CUDA torch has a kernel for it; where a decoder is small, starting kernels is what takes the time.
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from valuembed.backbone import Plan
from valuembed.execution.capabilities import beyond_rounding, read_probe

EPSILONS = ("variance_epsilon", "eps")
"""What families call the number that keeps a norm from dividing by zero."""


def fuse_norms(model: PreTrainedModel, plan: Plan) -> str | None:
    """Let RMS norms run as one operation, and hold the decoder to what it gave before.

    Norms of another formula, such as Gemma's, stay as they are.

    Args:
        model: the decoder.
        plan: any of its plans.

    Returns:
        Why the norms are as they were; None where those that can be are fused.
    """
    before = read_probe(model, plan)
    for module in model.modules():
        epsilon = next((value for name in EPSILONS if isinstance(value := getattr(module, name, None), float)), None)
        if epsilon is not None and _is_rms_norm(module, epsilon):
            module.forward = partial(_rms_norm, module, epsilon)
    try:
        reason = beyond_rounding(model, plan, before, read_probe(model, plan))
    except Exception as error:
        # What would have been faster is no reason to stop anyone.
        reason = f"{type(error).__name__}: {error}"
    if reason:
        unfuse_norms(model)
    return reason


def unfuse_norms(model: PreTrainedModel) -> None:
    """Let all norms run as transformers has them."""
    for module in model.modules():
        if (forward := vars(module).get("forward")) is not None and getattr(forward, "func", None) is _rms_norm:
            del module.forward


def _rms_norm(module: nn.Module, epsilon: float, states: Tensor) -> Tensor:
    weight = module.weight
    # Training runs what transformers has; and torch has one kernel for operands of one precision alone.
    if torch.is_grad_enabled() or states.dtype != weight.dtype:
        return type(module).forward(module, states)  # type: ignore[no-any-return]
    return F.rms_norm(states, (states.shape[-1],), weight, epsilon)  # type: ignore[arg-type]


@torch.inference_mode()
def _is_rms_norm(module: nn.Module, epsilon: float) -> bool:
    """Whether a module computes ``weight * x / sqrt(mean(x ** 2) + epsilon)``, by what it gives."""
    weights = dict(module.named_parameters())
    if "forward" in vars(module) or list(weights) != ["weight"] or weights["weight"].dim() != 1:
        return False
    weight = weights["weight"]
    draw = torch.Generator().manual_seed(0)
    # Rows of usual length, and so short that epsilon counts.
    states = torch.randn(4, len(weight), generator=draw, dtype=torch.float32, device="cpu")
    states = (states * torch.tensor([[1.0], [10.0], [1e-3], [1e-5]], device="cpu")).to(weight.device)
    try:
        given = module(states)
    except (RuntimeError, TypeError, ValueError):
        return False
    expected = F.rms_norm(states, (len(weight),), weight.float(), epsilon)
    return given.shape == expected.shape and torch.allclose(given.float(), expected, rtol=1e-4, atol=1e-6)
