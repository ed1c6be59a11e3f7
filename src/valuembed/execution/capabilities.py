"""How a decoder's texts can be read: packed or padded, behind a shared prefix or whole. What is fast has to agree."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer, LinearAttentionCacheLayerMixin

from valuembed.backbone import Plan, rope_groups
from valuembed.readout import ATTENTION_PREFIX, Readout, lay_out, read_prefix, varlen
from valuembed.recipes import Recipe

logger = logging.getLogger(__name__)

LayoutName = Literal["auto", "padded", "packed"]

LENGTHS = (23, 23, 23, 8)
"""Tokens of the texts of a parity check. They are unlike any number of heads, and the last one's place in a packed row
is far from its beginning."""

SHARED_TOKENS = 4
"""Tokens that all of them begin with."""

SHAREABLE_KERNELS = ("eager", "sdpa")
"""Kernels that have been tried with queries that are fewer than keys."""

RELATIVE_ERRORS = {torch.float32: 1e-3, torch.float16: 0.01, torch.bfloat16: 0.05}
"""Relative error up to which two ways are the same, whatever the decoder: rounding stays below in most, a look at the
neighbour does not."""

ROUNDINGS = 2.0
"""Beyond that, two ways are the same up to so many times what one more rounding in each layer does to the decoder. In
random decoders of 4 to 36 layers and weights of three scales, that is 0.5 to 2.7 times what bfloat16 itself does."""

MOST_ERROR = 0.25
"""No more than this, whatever the decoder: a look at the neighbour is off by about 1."""


@torch.inference_mode()
def read_probe(
    model: PreTrainedModel, plan: Plan, *, packed: bool = False, share: bool = False, copies: int = 1
) -> Tensor:
    """Read a few short texts, after all layers that are loaded.

    Args:
        model: the decoder.
        plan: any of its plans.
        packed: in one row without padding.
        share: with the tokens that all texts begin with computed once for all of them.
        copies: how often each of the texts is among them.

    Returns:
        ``[b, width]``.
    """
    config = model.config.get_text_config()
    last = int(config.num_hidden_layers) - 1
    whole = Plan(Recipe(signal="hidden", weights="last", layers=[last]), (last,), plan.decoder_spec)
    longest = min(max(LENGTHS), varlen.longest_text(model) or max(LENGTHS))
    rows = [
        [(row * longest + place) * 7919 % int(config.vocab_size) for place in range(min(length, longest))]
        for row, length in enumerate(LENGTHS)
    ]
    rows = [rows[0][:SHARED_TOKENS] + row[SHARED_TOKENS:] for row in rows] * copies
    shared = SHARED_TOKENS if share else 0
    prefix = read_prefix(model, plan.decoder_spec, rows[0][:shared]) if share and not packed else None
    spans = [(shared, len(row)) for row in rows]
    layout, inputs = lay_out(rows, spans, prefix, packed=packed, device=model.device, dtype=model.dtype, shared=shared)
    return Readout(model, [whole], layout).run(**inputs)[0]


def relative_error(one: Tensor, other: Tensor) -> float:
    """How far the worst row of a result ``[b, width]`` is from another, relative to its length."""
    return float(((one - other).norm(dim=1) / one.norm(dim=1)).max())


@torch.inference_mode()
def rounding_error(model: PreTrainedModel, plan: Plan, plain: Tensor) -> float:
    """How far a decoder's probe moves when each layer rounds once more: by chance, by one unit of its precision.

    How much of a rounding is left at the end is a matter of the depth and of the weights: no single number suits all.

    Args:
        model: the decoder.
        plan: any of its plans.
        plain: its probe.
    """
    draw = torch.Generator().manual_seed(0)

    def round_once_more(module: nn.Module, args: Any, output: Any) -> Any:
        states = output[0] if isinstance(output, tuple) else output
        noise = torch.rand(states.shape, generator=draw, dtype=torch.float32, device="cpu").to(states.device)
        factor = 1 + torch.finfo(states.dtype).eps * (2 * noise - 1)
        rounded = (states.float() * factor).to(states.dtype)
        return (rounded, *output[1:]) if isinstance(output, tuple) else rounded

    *layers, _ = model.get_submodule(plan.decoder_spec.layers_path).children()
    hooks = [layer.register_forward_hook(round_once_more) for layer in layers]
    try:
        # Layers that are compiled already run as they were, or they would be compiled anew with the hook.
        with torch.compiler.set_stance("force_eager"):
            return relative_error(plain, read_probe(model, plan))
    finally:
        for hook in hooks:
            hook.remove()


def beyond_rounding(model: PreTrainedModel, plan: Plan, plain: Tensor, other: Tensor) -> str | None:
    """How far a probe is from what another way gives, in words; None where that is rounding.

    Args:
        model: the decoder.
        plan: any of its plans.
        plain: the probe ``[b, width]``.
        other: the same by another way.
    """
    error = relative_error(plain, other)
    bound = RELATIVE_ERRORS.get(model.dtype, 1e-3)
    if bound <= error < MOST_ERROR:
        bound = min(MOST_ERROR, max(bound, ROUNDINGS * rounding_error(model, plan, plain)))
    return None if error < bound else f"off by {error:.2g}"


def packed_up_to(model: PreTrainedModel, plan: Plan, layout: LayoutName = "auto") -> int:
    """Tokens up to which a sequence is packed; 0 where none is.

    Args:
        model: the decoder.
        plan: any of its plans.
        layout: ``"auto"`` packs on CUDA and CPUs, there with torch's own kernel alone; ``"packed"`` on any device.
    """
    chosen, device = layout == "auto", model.device.type
    if layout == "padded" or (chosen and device not in ("cpu", "cuda")):
        return 0
    if chosen and device == "cpu" and model.config._attn_implementation != ATTENTION_PREFIX + "sdpa":
        return 0
    reason = (
        varlen.unsupported_reason(model, plan.decoder_spec)
        or _no_kernel(model, layout)
        or _disagreement(model, plan, "the packed layout", (True,))
    )
    if reason:
        # On a CPU that costs some padding, which is nothing to worry about.
        level = logging.DEBUG if chosen and device == "cpu" else logging.WARNING
        logger.log(level, "texts are padded, for in %s %s", type(model).__name__, reason)
        return 0
    return varlen.longest_text(model) or sys.maxsize


def prefix_unsupported_reason(model: PreTrainedModel, plan: Plan, *, packed: bool = False) -> str | None:
    """Why what many texts begin with cannot be computed once for all of them; None where it can.

    It can where a layer looks at keys and values and nothing else: not in layers with a recurrent state, nor where
    windows hide tokens or rotary frequencies follow the longest text.

    Args:
        model: the decoder.
        plan: any of its plans.
        packed: whether some texts lie packed in one row.
    """
    layouts = (False, True) if packed else (False,)
    return _looks_further(model) or _disagreement(model, plan, "it", layouts, share=True)


def _looks_further(model: PreTrainedModel) -> str | None:
    """Why keys and values of a prefix are not all that a layer looks at; None where they are."""
    # What transformers itself would keep for a layer tells what the layer is.
    kept = {type(layer) for layer in DynamicCache(config=model.config).layers}
    if any(issubclass(kind, LinearAttentionCacheLayerMixin) for kind in kept):
        return "it has layers that keep a state instead of keys and values"
    if kept - {DynamicLayer}:
        return "its attention has windows"
    # A decoder whose frequencies depend on the length tells lengths apart.
    if rope_groups(model)(1) != ():
        return "its rotary frequencies depend on the longest text"
    kernel = str(model.config._attn_implementation).removeprefix(ATTENTION_PREFIX)
    if kernel not in SHAREABLE_KERNELS:
        return f"the kernel {kernel} has not been tried for it"
    return None


def _no_kernel(model: PreTrainedModel, layout: LayoutName) -> str | None:
    if layout == "packed" or model.device.type == "cpu" or varlen.fast_kernel(model.device.type, model.dtype):
        return None
    return f"no kernel packs {str(model.dtype).removeprefix('torch.')} on this device"


def _disagreement(
    model: PreTrainedModel, plan: Plan, what: str, layouts: Sequence[bool], *, share: bool = False
) -> str | None:
    """What short texts show that no configuration tells; None where all these ways give the same as the plain one."""
    try:
        plain = read_probe(model, plan)
        others = [read_probe(model, plan, packed=packed, share=share) for packed in layouts]
    except Exception as error:
        # Whatever a family does not take in one way, it takes in the other.
        return f"a trial of {what} failed: {type(error).__name__}"
    reasons = (beyond_rounding(model, plan, plain, other) for other in others)
    return next((f"a trial of {what} was {reason}" for reason in reasons if reason), None)
