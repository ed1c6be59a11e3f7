"""Compile a decoder's layers, one by one and for every size of a step."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedModel

from valuembed.backbone import Plan
from valuembed.errors import RecipeError
from valuembed.execution.capabilities import beyond_rounding, read_probe

MESSAGE_LINES = 2
"""Of what a compiler complains: where it happened, then what."""


def check_compile(compile: bool) -> bool:
    """Whether layers are to be compiled.

    Raises:
        RecipeError: it is neither True nor False.
    """
    if not isinstance(compile, bool):
        raise RecipeError(f"compile={compile!r} is unknown; legal: True, False")
    return compile


def compile_layers(model: PreTrainedModel, plan: Plan, layouts: Sequence[bool] = (False,)) -> str | None:
    """Compile each layer of a decoder, and hold it to what it gave before.

    Layers are alike, so all of them share what is compiled once. Attention and reading stay as they are.

    Args:
        model: the decoder.
        plan: any of its plans.
        layouts: whether texts lie packed in one row: both where some do and some do not. A compiler makes layers for
            one row apart from those for any number.

    Returns:
        Why the layers are as they were; None where they are compiled.
    """
    layers = list(model.get_submodule(plan.decoder_spec.layers_path).children())
    before = [read_probe(model, plan, packed=packed) for packed in layouts]
    for layer in layers:
        layer.compile(dynamic=True)
    try:
        after = (read_probe(model, plan, packed=packed) for packed in layouts)
        reasons = (beyond_rounding(model, plan, *pair) for pair in zip(before, after, strict=True))
        reason = next((reason for reason in reasons if reason), None)
    except Exception as error:
        # A compiler that is missing or fails must not stop anyone: what it would have made faster runs without it.
        said = " ".join(line.strip() for line in str(error).strip().splitlines()[:MESSAGE_LINES])
        reason = f"{type(error).__name__}: {said}"
    if reason:
        for layer in layers:
            layer._compiled_call_impl = None
    return reason
