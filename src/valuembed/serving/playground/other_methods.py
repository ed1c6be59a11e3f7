"""The other methods that a loaded model's layers can give, beside the one it was loaded for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from valuembed._utils.text import counted
from valuembed.backbone import Plan, settle_plan
from valuembed.errors import LayerError
from valuembed.models import Calibration, MultiReadout, TokenWeights, ValueEncoder, explain
from valuembed.recipes import METHODS, Recipe, named_layers, resolve_layers
from valuembed.serving.playground.api import SERVED, Choice, Playground, WeighedText, WeighedToken

OFFERED = ("va", "aligned_va", "wva", "aligned_wva", "hidden_mean", "hidden_last")
"""Methods that are looked for in a model's layers."""


class EncoderPlayground(Playground):
    """Reads from the layers that a model was loaded with: values of the layers that it uses, hidden states of the last.

    Each method has its own template of :data:`valuembed.recipes.METHODS`, without an instruction.

    Args:
        encoder: what :func:`valuembed.load` returns.
    """

    def __init__(self, encoder: ValueEncoder) -> None:
        self._encoder = encoder
        own = encoder.reader.plan
        plans = {name: plan for name in OFFERED if (plan := _plan(encoder, name)) is not None}
        changes = _changes(encoder)
        # What is served already is not offered twice, unless it is served changed.
        self._plans = {name: plan for name, plan in plans.items() if changes or not _alike(plan.recipe, own.recipe)}
        self._weighing = own if _weighs(own.recipe) else next(filter(_weighs_plan, plans.values()), own)
        about = own.recipe.describe().vector + changes
        served = Choice(SERVED, f"{own.recipe.method} (as served)", about, own.recipe.signal)
        others = [
            Choice(name, name, plan.recipe.describe().vector, plan.recipe.signal) for name, plan in self._plans.items()
        ]
        self.choices = (served, *others)

    def vectors(self, texts: Sequence[str], name: str, role: str | None) -> tuple[NDArray[np.float32], int]:
        """Vectors ``[b, width]`` float32 of b texts by a choice other than the served one; how many texts were cut.

        Raises:
            InputError, TemplateError, ReadingError: as :meth:`valuembed.models.MultiReadout.encode`.
        """
        readouts = MultiReadout(self._encoder.reader, {name: self._plans[name]})
        found = readouts.encode(texts, role=role)[name]
        assert readouts.report is not None
        return found, readouts.report.truncated

    def weights(self, text: str) -> WeighedText:
        """What each token of a text counts for, by the model's own method or else by one that weighs tokens.

        Raises:
            InputError, RecipeError, LayerError, ReadingError, UnsupportedModelError: as
                :func:`valuembed.models.explain`.
        """
        plan, own = self._weighing, self._encoder.recipe
        found = explain(self._encoder, text, plan=plan)
        about = f"{found.method}, {named_layers(found.layers)}"
        if plan is not self._encoder.reader.plan:
            about += f"; {own.method}, which is served, has no such weights"
        return WeighedText(
            about,
            full=max(sequence.full() for sequence in found.sequences),
            truncated=any(sequence.truncated for sequence in found.sequences),
            sequences=[_seen(sequence) for sequence in found.sequences],
        )


def _plan(encoder: ValueEncoder, name: str) -> Plan | None:
    """A method on the layers that are loaded; None where they cannot give it."""
    recipe, own = METHODS[name], encoder.reader.plan
    decoder_spec, loaded = own.decoder_spec, encoder.reader.model.config.num_hidden_layers
    layers: tuple[int, ...]
    if recipe.signal == "hidden":
        # After the final norm if that is there, else the deepest of the layers that are.
        layers = () if own.recipe.reads_final_norm else (loaded - 1,)
    elif own.recipe.signal == "value":
        layers = own.layers
    else:
        held = [layer for layer in decoder_spec.value_layers if layer < loaded]
        try:
            layers = resolve_layers(None, held, loaded)
        except LayerError:
            return None
    try:
        return settle_plan(recipe, layers, decoder_spec)
    except LayerError:
        return None


def _weighs(recipe: Recipe) -> bool:
    return (recipe.signal, recipe.weights) == ("value", "last")


def _weighs_plan(plan: Plan) -> bool:
    return _weighs(plan.recipe)


def _alike(one: Recipe, other: Recipe) -> bool:
    return replace(one, method="") == replace(other, method="")


def _changes(encoder: ValueEncoder) -> str:
    """What becomes of the vectors that are read before they are served, other than that they are scaled."""
    calibrated = any(isinstance(module, Calibration) for module in encoder)
    cut = encoder.truncate_dim
    return ("; calibrated" if calibrated else "") + (f"; the first {counted(cut, 'number')}" if cut else "")


def _seen(sequence: TokenWeights) -> list[WeighedToken]:
    """Tokens that spell one character together, as one."""
    mean = sequence.mean()
    return [
        WeighedToken(
            sequence.tokens[group[0]].text,
            float(mean[group].sum()),
            sequence.tokens[group[0]].is_text,
        )
        for group in sequence.visible()
    ]
