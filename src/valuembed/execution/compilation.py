"""Compile a decoder's layers, one by one and for every shape, when that is asked for or pays."""

from __future__ import annotations

import logging
from typing import Literal

from transformers import PreTrainedModel

from valuembed.backbone import Plan
from valuembed.errors import RecipeError
from valuembed.execution import parity
from valuembed.readout import is_compiled

logger = logging.getLogger(__name__)

CompilePolicy = bool | Literal["auto"]
COST = 30.0
"""Seconds that compiling takes, about; it depends on the machine and little on the model."""
SAVED = {"cpu": 0.35, "cuda": 0.15}
"""Share of the time that compiled layers save, about."""


MESSAGE_LINES = 2
"""Of what a compiler complains: where it happened, then what."""


class Compiling:
    """When a decoder's layers are compiled.

    Args:
        wish: True compiles before the first pass; ``"auto"`` when the work that is left at the pace seen, or the work
            done so far, would have saved more time than compiling costs; False never.

    Raises:
        RecipeError: another wish.
    """

    def __init__(self, wish: CompilePolicy = False) -> None:
        if wish not in (True, False, "auto"):
            raise RecipeError(f"compile={wish!r} is unknown; legal: True, False, 'auto'")
        self.wish = wish
        self._spent = 0.0

    def at_start(self, model: PreTrainedModel, plan: Plan, packed_up_to: int) -> None:
        """Compile where that was asked for; arguments as for :func:`compile_layers`."""
        if self.wish is True:
            self._compile(model, plan, packed_up_to)

    def after(self, model: PreTrainedModel, plan: Plan, packed_up_to: int, seconds: float, left: float) -> None:
        """Compile where it has come to pay.

        Args:
            model, plan, packed_up_to: as for :func:`compile_layers`.
            seconds: that a part of the work took.
            left: seconds that the rest of it will take, as far as is known.
        """
        if self.wish != "auto" or is_compiled(model):
            return
        self._spent += seconds
        if max(self._spent, left) * SAVED.get(model.device.type, 0.0) > COST:
            self._compile(model, plan, packed_up_to)

    def _compile(self, model: PreTrainedModel, plan: Plan, packed_up_to: int) -> None:
        if not is_compiled(model) and (reason := compile_layers(model, plan, packed_up_to)):
            logger.warning("layers are not compiled: %s", reason)
            self.wish = False


def compile_layers(model: PreTrainedModel, plan: Plan, packed_up_to: int = 0) -> str | None:
    """Compile each layer of a decoder, and hold it to what it gave before.

    Layers are alike, so all of them share what is compiled once. Attention and reading stay as they are.

    Args:
        model: the decoder.
        plan: any of its plans.
        packed_up_to: as in :func:`valuembed.execution.executor.read`: which lane its texts take.

    Returns:
        Why the layers are as they were; None where they are compiled.
    """
    layers = list(model.get_submodule(plan.decoder_spec.layers_path).children())
    before = parity.run(model, plan, packed_up_to)
    for layer in layers:
        layer.compile(dynamic=True)
    try:
        reason = parity.difference(before, parity.run(model, plan, packed_up_to), model.dtype)
    except Exception as error:
        # A compiler that is missing or fails must not stop anyone: what it would have made faster runs without it.
        said = " ".join(line.strip() for line in str(error).strip().splitlines()[:MESSAGE_LINES])
        reason = f"{type(error).__name__}: {said}"
    if reason:
        for layer in layers:
            layer._compiled_call_impl = None
    return reason
