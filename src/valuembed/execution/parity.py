"""Two short texts, run one way and another: what a fast way has to agree with before it is taken."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from valuembed.backbone import Plan
from valuembed.execution.executor import read
from valuembed.execution.prefix_cache import PrefixCache
from valuembed.readout import longest_text
from valuembed.recipes import Recipe

LENGTHS = (47, 47, 47, 8)
"""Tokens of the texts. They are unlike any number of heads, and the last one's place in a packed row is far from its
beginning."""
ALIKE = 4
"""Tokens that all of them begin with."""
BOTH = 8192
"""A budget of tokens so large that all are in one step."""
ERRORS = {torch.float32: 1e-3, torch.float16: 0.01, torch.bfloat16: 0.05}
"""Relative error up to which two ways are the same, by precision: rounding stays below, a look at the neighbour does
not."""


@torch.inference_mode()
def run(model: PreTrainedModel, plan: Plan, packed_up_to: int = 0, *, shared: bool = False) -> Tensor:
    """Vectors of the texts after all layers that are loaded.

    Args:
        model: the decoder.
        plan: any of its plans.
        packed_up_to: as in :func:`valuembed.execution.executor.read`.
        shared: compute the tokens that all texts begin with once for all of them.
    """
    config = model.config.get_text_config()
    last = int(config.num_hidden_layers) - 1
    whole = Plan(Recipe(signal="hidden", weights="last", layers=[last]), (last,), plan.decoder_spec)
    longest = min(max(LENGTHS), longest_text(model) or max(LENGTHS))
    lengths = torch.tensor([min(length, longest) for length in LENGTHS])
    ids = torch.arange(len(LENGTHS) * longest).view(len(LENGTHS), longest) * 7919 % int(config.vocab_size)
    mask = (torch.arange(longest) < lengths[:, None]).long()
    ids[:, :ALIKE] = ids[0, :ALIKE]
    features: dict[str, Any] = {"input_ids": ids, "attention_mask": mask}
    if shared:
        features["prefixes"] = PrefixCache(model, plan.decoder_spec)
        features["cached"] = torch.full((len(LENGTHS), 1), ALIKE)
    return read(model, [whole], features, BOTH, packed_up_to)[0]


def difference(one: Tensor, other: Tensor, dtype: torch.dtype) -> str | None:
    """How far two results ``[b, width]`` are apart, in words; None where that is rounding."""
    error = float(((one - other).norm(dim=1) / one.norm(dim=1)).max())
    return None if error < ERRORS.get(dtype, 1e-3) else f"off by {error:.2g}"
