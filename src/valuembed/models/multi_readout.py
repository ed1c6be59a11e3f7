"""Several recipes on one decoder: those that feed the same tokens share one forward pass."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from valuembed._utils.devices import check_device, default_device
from valuembed._utils.progress import track
from valuembed._utils.torch_settings import default_device_and_precision
from valuembed.backbone import (
    DecoderSpec,
    LoadKwargs,
    LoadOptions,
    Plan,
    computes_in_int8,
    prepare,
    resolve_plan,
    split_dtype,
)
from valuembed.backbone.checkpoints import check_recipe, locate, saved_config
from valuembed.data import as_texts, check_texts
from valuembed.errors import RecipeError
from valuembed.execution import BatchResult, EncodeReport, check_vectors, collect, read_texts
from valuembed.models.calibration import Calibration
from valuembed.models.centring import centre_plans
from valuembed.models.recipe_choice import resolve_for
from valuembed.models.value_reader import ValueReader, build
from valuembed.recipes import Recipe, group_by_tokens, preset_for

if TYPE_CHECKING:
    from typing_extensions import Unpack

SIGNALS: dict[str, Recipe] = {
    "values raw": Recipe(signal="value", weights="mean"),
    "values aligned": Recipe(signal="value", weights="mean", alignment="projection"),
    "weighted raw": Recipe(signal="value", weights="last"),
    "weighted aligned": Recipe(signal="value", weights="last", alignment="residual"),
    "hidden mean": Recipe(signal="hidden", weights="mean"),
    "hidden last": Recipe(signal="hidden", weights="last"),
}
"""Everything that can be read from a layer as one vector."""


class MultiReadout:
    """Several recipes on one decoder. Those that feed the same tokens share one forward pass.

    Args:
        reader: the decoder, loaded as deep as the deepest recipe needs, on its device.
        plans: what to read, by names of the caller's choice.
        calibrations: what the raw vectors of some of them go through.
    """

    def __init__(
        self, reader: ValueReader, plans: Mapping[str, Plan], calibrations: Mapping[str, Calibration] | None = None
    ) -> None:
        if not plans:
            raise RecipeError("at least one recipe is needed to read")
        self.reader = reader
        self.plans = dict(plans)
        for plan in self.plans.values():
            reader.check_templates(plan.recipe)
        self.calibrations = {name: module.to(reader.model.device) for name, module in (calibrations or {}).items()}
        for name, calibration in self.calibrations.items():
            if name not in self.plans:
                raise RecipeError(
                    f"no recipe is named {name!r}, as a calibration is; there are {', '.join(self.plans)}"
                )
            check_recipe(calibration.record, self.plans[name].recipe, name, reader.origin.name)
        self.report: EncodeReport | None = None

    @classmethod
    @default_device_and_precision()
    def load(
        cls,
        model: str | os.PathLike[str],
        recipes: Mapping[str, str | Recipe | Mapping[str, Any]],
        *,
        calibrations: Mapping[str, Calibration] | None = None,
        options: LoadOptions | None = None,
        **given: Unpack[LoadKwargs],
    ) -> MultiReadout:
        """Load a decoder once, as deep as the deepest of the recipes needs.

        Args:
            model: as in :func:`valuembed.load`.
            recipes: methods by names of the caller's choice; each as in :func:`valuembed.load`.
            calibrations: what the raw vectors of some of them go through.
            options: how to load it, where that is at hand.
            given: fields of :class:`valuembed.backbone.LoadOptions`, each as in :func:`valuembed.load`.

        Raises:
            RecipeError, DeviceError, CheckpointError, UnsupportedModelError: as :func:`valuembed.load`.
        """
        chosen = LoadOptions.of(given, cls.load, options)
        device = check_device(chosen.device)
        checkpoint = locate(model, options=chosen)
        saved = saved_config(checkpoint)
        asked = {name: resolve_for(checkpoint, saved, recipe) for name, recipe in recipes.items()}
        if not asked:
            raise RecipeError("at least one recipe is needed to read")
        torch_dtype, model_kwargs = split_dtype(chosen.dtype, chosen.model_kwargs, device)
        found = prepare(checkpoint, next(iter(asked.values())), saved, torch_dtype, device)
        held = None if found.is_adapter else saved
        preset = preset_for(found.config)
        plans = {name: resolve_plan(recipe, preset, found.decoder_spec, held) for name, recipe in asked.items()}
        # What reads the final norm needs more than all layers; else the highest layer decides.
        deepest = max(plans.values(), key=lambda plan: (plan.recipe.reads_final_norm, plan.kept_layers))
        placed = "device_map" in model_kwargs
        reader = build(
            ValueReader,
            checkpoint,
            deepest.recipe,
            saved=saved,
            max_tokens=chosen.max_tokens,
            dtype=torch_dtype,
            device=None if placed else device,
            model_kwargs=model_kwargs,
            int8_products=computes_in_int8(chosen.dtype, model_kwargs, device),
        )
        reader = reader if placed else reader.to(device or default_device())
        return cls(reader, centre_plans(reader, plans, checkpoint), calibrations)

    @property
    def recipes(self) -> dict[str, Recipe]:
        """The recipes, their layers absolute."""
        return {name: plan.recipe for name, plan in self.plans.items()}

    @property
    def by_role(self) -> bool:
        """Whether the same text may have another vector as a query than as a document."""
        return any(recipe.query_template or recipe.document_template for recipe in self.recipes.values())

    def widths(self) -> dict[str, int]:
        """Width of each recipe's vectors, after its calibration where it has one."""
        widths = {name: plan.width for name, plan in self.plans.items()}
        return {**widths, **{name: found.record.size for name, found in self.calibrations.items()}}

    def groups(self, role: str | None = None) -> list[list[str]]:
        """Names of the recipes that share a forward pass for texts of a role, in the order given."""
        return group_by_tokens(self.recipes, role)

    @torch.inference_mode()
    @default_device_and_precision()
    def encode(
        self,
        texts: Sequence[str],
        *,
        names: Sequence[str] | None = None,
        role: str | None = None,
        prompt: str | None = None,
        progress: bool = False,
    ) -> dict[str, NDArray[np.float32]]:
        """The vectors of every recipe.

        Args:
            texts: b texts, in anything that holds them in an order.
            names: which of the recipes; None is all.
            role: ``"query"``, ``"document"`` or None: whose templates.
            prompt: an instruction for all of them.
            progress: show a bar.

        Returns:
            By name, vectors ``[b, width]`` float32: calibrated where there is a calibration, and not normalised.
            :attr:`report` counts what was done, tokens over all passes.

        Raises:
            InputError: something that is not a text, with its row.
            RecipeError: a name that no recipe has.
            ReadingError: a vector is not finite, with its row.
        """
        texts = as_texts(texts)
        check_texts(texts)
        widths = self.widths()
        wanted = list(self.plans if names is None else names)
        if unknown := [name for name in wanted if name not in self.plans]:
            raise RecipeError(f"no recipe is named {unknown[0]!r}; there are {', '.join(self.plans)}")
        groups = [[name for name in group if name in wanted] for group in self.groups(role)]
        groups = [group for group in groups if group]
        result: dict[str, NDArray[np.float32]] = {}
        with track(progress, total=len(texts) * len(groups), desc="Texts", unit="text") as bar:
            found, self.report = self.tensors(
                texts, groups, role=role, prompt=prompt, device="cpu", finished=True, bar=bar
            )
        for name, vectors in found.items():
            check_vectors(vectors, self.reader.model.dtype)
            result[name] = vectors.reshape(len(texts), widths[name]).numpy()
        return {name: result[name] for name in wanted}

    @torch.inference_mode()
    @default_device_and_precision()
    def tensors(
        self,
        texts: Sequence[str],
        groups: Sequence[Sequence[str]] | None = None,
        *,
        role: str | None = None,
        prompt: str | None = None,
        device: torch.device | str | None = None,
        finished: bool = False,
        bar: Any = None,
    ) -> tuple[dict[str, Tensor], EncodeReport]:
        """The vectors of the recipes as tensors, a pass for each group.

        Args:
            texts: b texts, known to be texts.
            groups: names of the recipes that share a pass; None is :meth:`groups`.
            role, prompt: as in :meth:`encode`.
            device: where the vectors are wanted; None is where the model runs.
            finished: with the calibrations of those that have one; else raw.
            bar: a progress bar, which moves on by a text for each group.

        Returns:
            By name ``[b, width]`` float32, and what was done, tokens over all passes.
        """
        reader = self.reader.eval()
        found: dict[str, Tensor] = {}
        truncated: set[int] = set()
        tokens = reused = 0

        def noted(results: Iterator[BatchResult]) -> Iterator[BatchResult]:
            for result in results:
                truncated.update(result.truncated)
                yield result

        for group in self.groups(role) if groups is None else groups:
            plans = [self.plans[name] for name in group]
            results = read_texts(
                reader.executor, reader.texts, texts, plans, role=role, prompt=prompt, max_tokens=reader.max_tokens
            )
            finish = partial(self._calibrated, group) if finished else list
            read, report = collect(noted(results), texts, device or reader.model.device, finish, bar)
            found |= dict(zip(group, read or [torch.empty(0, 0)] * len(group), strict=True))
            tokens, reused = tokens + report.tokens, reused + report.reused
        blank = sum(not text.strip() for text in texts)
        return found, EncodeReport(len(texts), tokens, len(truncated), blank, reused)

    def _calibrated(self, names: Sequence[str], vectors: list[Tensor]) -> list[Tensor]:
        return [
            read if (module := self.calibrations.get(name)) is None
            else module({"sentence_embedding": read})["sentence_embedding"]
            for name, read in zip(names, vectors, strict=True)
        ]  # fmt: skip


def every_layer(
    decoder_spec: DecoderSpec, template: tuple[str, ...], signals: Sequence[str] = tuple(SIGNALS)
) -> dict[str, Recipe]:
    """A recipe for every layer and every signal, all with one template, so that one pass serves them all.

    Args:
        decoder_spec: of the decoder.
        template: template strings.
        signals: names of :data:`SIGNALS`.

    Returns:
        By ``"signal@layer"``; values only where a layer has them, aligned ones only where it has an output projection.
    """
    found = {}
    for signal in signals:
        recipe = SIGNALS[signal]
        for layer in decoder_spec.value_layers if recipe.signal == "value" else range(decoder_spec.num_layers):
            if recipe.aligned and recipe.weights == "mean" and decoder_spec.block(layer).projection is None:
                continue
            found[f"{signal}@{layer}"] = replace(recipe, layers=[layer], template=template, method=signal)
    return found
