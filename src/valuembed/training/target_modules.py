"""Which of a decoder's linear maps a recipe's vectors depend on: the ones that an adapter may sit on."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from valuembed._utils.torch_settings import gradients
from valuembed.errors import RecipeError
from valuembed.models import ValueTransformer

Scope = Literal["attention", "all"]
"""``"attention"``: maps inside attention blocks. ``"all"``: all others too, but for the experts of a mixture, whose
weights transformers keeps in one tensor: they stay as they are."""

SCOPES: tuple[str, ...] = get_args(Scope)

_TEXT = "Some words to run through."


@gradients()
def target_modules(reader: ValueTransformer, scope: Scope = "attention") -> list[str]:
    """Names of the linear maps that have a say in a reader's vectors.

    Found out by asking for gradients, so no family needs to be known: what lies above the last chosen layer, and in it
    whatever the readout does not use (for VA queries, keys, the output projection and the feed-forward part), gets
    none. Where a family computes queries, keys and values in one map, that map is reached.

    Args:
        reader: with its decoder; its weights may be quantized, and are not touched.
        scope: where to look.

    Raises:
        RecipeError: the scope is unknown, or no map is reached: hidden states of a decoder without linear maps there.
    """
    if scope not in SCOPES:
        raise RecipeError(f"scope={scope!r} is unknown; legal: {', '.join(SCOPES)}")
    attention = tuple(f"{block.path}." for block in reader.plan.decoder_spec.blocks)
    candidates = {
        name: module
        for name, module in reader.model.named_modules()
        if isinstance(module, (nn.Linear, Conv1D)) and (scope == "all" or name.startswith(attention))
    }
    probes: dict[str, Tensor] = {}
    training = reader.model.training
    hooks = [module.register_forward_hook(partial(_probed, probes, name)) for name, module in candidates.items()]
    try:
        reader.model.train(False)
        features = {name: tensor.to(reader.model.device) for name, tensor in reader.preprocess([_TEXT]).items()}
        total = reader.read(features, [reader.plan])[0].sum()
        names = list(probes)
        depends = torch.autograd.grad(total, [probes[name] for name in names], allow_unused=True) if names else ()
    finally:
        for hook in hooks:
            hook.remove()
        reader.model.train(training)
    found = [name for name, gradient in zip(names, depends, strict=True) if gradient is not None]
    if not found:
        raise RecipeError(
            f"method {reader.recipe.method!r} reaches no linear map within scope={scope!r} of "
            f"{reader.plan.decoder_spec.architecture}, so there is nothing to train"
        )
    return found


def _probed(probes: dict[str, Tensor], name: str, module: nn.Module, args: object, output: Tensor) -> Tensor:
    """A map's output, with a zero added that takes a gradient when the output has a say."""
    probe = probes.setdefault(name, torch.zeros((), dtype=output.dtype, device=output.device, requires_grad=True))
    return output + probe


def counts(model: nn.Module, which: Callable[[nn.Parameter], bool] = lambda weight: True) -> int:
    """How many parameters a model has, or how many of a kind."""
    return sum(weight.numel() for weight in model.parameters() if which(weight))
