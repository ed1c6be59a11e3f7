"""Compile a decoder's layers, one by one and for every size of a step."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from typing import Literal

import torch
from transformers import PreTrainedModel

from valuembed.backbone import Plan
from valuembed.errors import RecipeError
from valuembed.execution.capabilities import beyond_rounding, read_probe

CompileChoice = bool | Literal["auto"]
"""Whether layers are compiled; "auto" where that turns out to be faster, once there has been work enough for it."""

MESSAGE_LINES = 2
"""Of what a compiler complains: where it happened, then what."""

TRIAL_AFTER_SECONDS = 30.0
"""Of passes, after which "auto" compiles: about as long as that takes. Whoever has more to do wins at most half of it,
and whoever stops here has lost nothing."""

LEAST_GAIN = 1.05
"""Times as fast as they were compiled layers have to be, else "auto" takes them back."""

TIMED_COPIES, TIMED_PASSES = 16, 5
"""Of the texts of a trial, which make up a step of 1,232 tokens; the median of so many passes counts."""


def check_compile(compile: CompileChoice) -> CompileChoice:
    """Whether layers are to be compiled.

    Raises:
        RecipeError: it is neither True nor False nor "auto".
    """
    if not isinstance(compile, bool) and compile != "auto":
        raise RecipeError(f"compile={compile!r} is unknown; legal: True, False, 'auto'")
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
        uncompile_layers(model, plan)
    return reason


def uncompile_layers(model: PreTrainedModel, plan: Plan) -> None:
    """Let the layers of a decoder run as they are."""
    for layer in model.get_submodule(plan.decoder_spec.layers_path).children():
        layer._compiled_call_impl = None


def seconds_of_pass(model: PreTrainedModel, plan: Plan, *, packed: bool) -> float:
    """How long a decoder takes for a step of short texts, in seconds.

    Args:
        model: the decoder.
        plan: any of its plans.
        packed: whether they lie packed in one row.
    """
    taken = []
    # The first one pays for what is made once.
    for _ in range(1 + TIMED_PASSES):
        start = time.perf_counter()
        read_probe(model, plan, packed=packed, copies=TIMED_COPIES)
        if model.device.type == "cuda":
            torch.cuda.synchronize(model.device)
        taken.append(time.perf_counter() - start)
    return statistics.median(taken[1:])
