"""Every layer and every signal of a decoder, scored in one pass over the texts."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from valuembed._utils.atomic import replace_text
from valuembed._utils.text import counted, shortened
from valuembed._utils.torch_settings import default_device_and_precision
from valuembed._utils.version import versions
from valuembed.backbone import LoadKwargs, LoadOptions
from valuembed.data import StsFile, read_scored
from valuembed.errors import LayerError, ReadingError, RecipeError
from valuembed.evaluation import spearman
from valuembed.execution import EncodeReport
from valuembed.models import (
    SIGNALS,
    CheckpointView,
    MultiReadout,
    described,
    every_layer,
    inspect_checkpoint,
    not_finite,
    read_pair_windows,
    warn_truncated,
)
from valuembed.recipes import Recipe, TemplateSpec, named_layers
from valuembed.reporting import markdown, plots, results_folder

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from mteb import AbsTask
    from typing_extensions import Unpack

WINDOW_BYTES = 1 << 29
"""Vectors that are held at a time, on the model's device: those of many layers take megabytes a text."""

DEFAULT = "default"


@dataclass(frozen=True)
class Sweep:
    """Scores of every layer and signal on one task.

    Attributes:
        model: its name.
        task: the task's name, or the file's.
        metric: what the scores are.
        scores: by signal and 0-based layer, times 100; NaN where the metric is not defined (all similarities equal).
            A layer is missing where it has no such signal.
        default: by signal, the score of what :func:`valuembed.load` would read of it: the mean over the preset's or
            the default layers for values, the last layer after the final norm for hidden states. A signal is missing
            where that cannot be read.
        default_layers: the layers that the mean of values covers.
        template: the template strings that the texts stood in.
        details: how it was made: data, counts, seconds, versions; plain data.
    """

    model: str
    task: str
    metric: str
    scores: Mapping[str, Mapping[int, float]]
    default: Mapping[str, float]
    default_layers: tuple[int, ...]
    template: tuple[str, ...]
    details: Mapping[str, Any]

    @property
    def layers(self) -> list[int]:
        """All layers that were scored."""
        return sorted({layer for of_signal in self.scores.values() for layer in of_signal})

    @property
    def best(self) -> dict[str, int]:
        """The best layer of each signal, the first of equals; a signal without any score is missing."""
        known = {
            signal: {layer: score for layer, score in scores.items() if not math.isnan(score)}
            for signal, scores in self.scores.items()
        }
        return {signal: max(scores, key=lambda layer: scores[layer]) for signal, scores in known.items() if scores}

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; a score that is not defined is None."""

        def known(scores: Mapping[Any, float]) -> dict[Any, float | None]:
            return {key: None if math.isnan(score) else score for key, score in scores.items()}

        scores = {signal: known(of_signal) for signal, of_signal in self.scores.items()}
        return {**asdict(self), "scores": scores, "default": known(self.default), "best": self.best}

    def to_markdown(self) -> str:
        """A table with a row for each layer and a column for each signal, the best of each column in bold."""
        best = self.best
        rows = []
        for layer in self.layers:
            cells = [
                f"**{cell}**" if best.get(signal) == layer else cell
                for signal, cell in zip(self.scores, self.row(layer), strict=True)
            ]
            rows.append([str(layer), *cells])
        if self.default:
            rows.append([DEFAULT, *self.row(None)])
        lines = [self.title, "", *markdown.table(["layer", *self.scores], rows, "r")]
        return "\n".join([*lines, "", *self.notes()]).rstrip() + "\n"

    def row(self, layer: int | None) -> list[str]:
        """One row of the table, a cell for each signal; None is the row of what is read by default."""
        found = [self.default.get(name) if layer is None else at.get(layer) for name, at in self.scores.items()]
        return ["-" if score is None or math.isnan(score) else f"{score:.2f}" for score in found]

    @property
    def title(self) -> str:
        """What stands above the table."""
        return f"{self.metric}: {self.model}, {self.task}, {self._fed}"

    def notes(self) -> list[str]:
        """What stands below the table: what the row of the defaults means."""
        read = {
            "value": f"of values, the mean over {named_layers(self.default_layers)}",
            "hidden": "of hidden states, the last layer after the final norm",
        }
        kinds = dict.fromkeys(SIGNALS[signal].signal for signal in self.default)
        notes = [f"{DEFAULT}: {'; '.join(read[kind] for kind in kinds)}"] if kinds else []
        shown = [*self.layers, *([None] if self.default else [])]
        if any("-" in self.row(layer) for layer in shown):
            scores: list[float] = [score for of in self.scores.values() for score in of.values()]
            undefined = any(map(math.isnan, (*scores, *self.default.values())))
            equal = "all similarities are equal" if undefined else "it could not be read or scored"
            notes.append(f"-: no score, for {equal} there")
        return notes

    @property
    def _fed(self) -> str:
        if self.template == ("{text}",):
            return "no template"
        more = f" and {len(self.template) - 1} more" if len(self.template) > 1 else ""
        return f"template {self.template[0]}{more}"

    def figure(self) -> Figure:
        """The scores over the layers, one line a signal."""
        lines = {signal: sorted(scores.items()) for signal, scores in self.scores.items()}
        values = [signal for signal in self.default if SIGNALS[signal].signal == "value"]
        default = (f"default of values: {named_layers(self.default_layers)}", self.default_layers) if values else None
        return plots.curves(
            lines,
            title=f"{self.model}: {self.task}\n{shortened(self._fed, 300)}",
            xlabel="layer",
            ylabel=self.metric,
            span=default,
            peaks="best layer of each signal",
        )

    def write(self, folder: str | os.PathLike[str]) -> list[Path]:
        """Write ``sweep.json``, ``sweep.md`` and ``sweep.png`` into a folder, replacing those of an earlier sweep.

        Raises:
            OutputError, MissingExtraError: as :func:`valuembed.reporting.results_folder`.
        """
        folder = results_folder(folder)
        paths = [folder / f"sweep.{suffix}" for suffix in ("json", "md", "png")]
        replace_text(paths[0], json.dumps(self.to_dict(), ensure_ascii=False, indent=2) + "\n")
        replace_text(paths[1], self.to_markdown())
        plots.save(self.figure(), paths[2])
        return paths


@default_device_and_precision()
def sweep(
    model: str | os.PathLike[str],
    task: str | AbsTask,
    *,
    template: TemplateSpec = "none",
    cleaning: str = "none",
    signals: Sequence[str] = tuple(SIGNALS),
    output: str | os.PathLike[str] | None = None,
    progress: bool = True,
    **options: Unpack[LoadKwargs],
) -> Sweep:
    """Score every layer and every signal of a model on a task.

    All of them come from one forward pass over the texts. For ``sts:FILE`` nothing but similarities is kept: vectors
    are held for a window of pairs, :data:`WINDOW_BYTES` at a time, and a pass that ends early starts over. Other tasks
    need all vectors of all texts at once.

    Args:
        model: as in :func:`valuembed.load`.
        task: ``"sts:FILE"``, or whatever :func:`valuembed.evaluation.evaluate` takes.
        template: what every text stands in, for all signals alike; as in :func:`valuembed.load`.
        cleaning: what is done to a text before its template.
        signals: names of :data:`valuembed.models.SIGNALS`.
        output: a folder for table, chart and JSON; and for a task other than ``sts:FILE`` the scores that
            :func:`valuembed.evaluation.evaluate` keeps, so that a later run computes only what is missing.
        progress: show a bar on stderr if that is a terminal, else a line a minute.
        options: ``dtype``, ``device``, ``max_tokens``, ``revision``, ``token``, ``cache_folder``,
            ``local_files_only``, ``trust_remote_code``, ``model_kwargs``: as in :func:`valuembed.load`.

    Raises:
        RecipeError: an unknown signal, or a template that means nothing.
        InputError: the task or its data cannot be used.
        ReadingError: a vector is not finite, with its signal and layer; or no score is defined.
        OutputError: results cannot be written; known before the work.
        MissingExtraError: what computes the score, or draws the chart, is not installed.
    """
    loaded_with = LoadOptions.of(options, sweep)
    if unknown := [name for name in signals if name not in SIGNALS]:
        raise RecipeError(f"no signal is named {unknown[0]!r}; legal: {', '.join(SIGNALS)}")
    if not signals:
        raise RecipeError(f"signals=[] leaves nothing to read; legal: {', '.join(SIGNALS)}")
    data = read_scored(task.partition(":")[2].strip()) if isinstance(task, str) and task.startswith("sts:") else None
    if output is not None:
        results_folder(output)
    whole = inspect_checkpoint(model, SIGNALS[signals[0]], template=template, cleaning=cleaning, options=loaded_with)
    recipes, default_layers = _recipes(whole, list(dict.fromkeys(signals)))
    if data is None:
        title, metric, scores, details = _evaluated(model, task, recipes, output, loaded_with, progress)
    else:
        title, metric, scores, details = _scored(MultiReadout.load(model, recipes, options=loaded_with), data, progress)
    if all(map(math.isnan, scores.values())):
        raise ReadingError(
            f"{title}: nothing can be measured, for in every layer all similarities are equal, and {metric} is not "
            "defined; give texts that differ, or another template"
        )
    by_layer: dict[str, dict[int, float]] = {signal: {} for signal in signals}
    default: dict[str, float] = {}
    for name, score in scores.items():
        signal, _, layer = name.rpartition("@")
        if layer == DEFAULT:
            default[signal] = score
        else:
            by_layer[signal][int(layer)] = score
    result = Sweep(
        model=whole.origin.name,
        task=title,
        metric=metric,
        scores=by_layer,
        default=default,
        default_layers=default_layers,
        template=whole.recipe.template,
        details={
            "cleaning": whole.recipe.cleaning,
            "origin": asdict(whole.origin),
            "versions": versions("torch"),
            **details,
        },
    )
    if output is not None:
        result.write(output)
    return result


def _recipes(whole: CheckpointView, signals: Sequence[str]) -> tuple[dict[str, Recipe], tuple[int, ...]]:
    """What to read: each signal at each layer and by default; and the default layers of values, where they are held."""
    shared: dict[str, Any] = {"cleaning": whole.recipe.cleaning}
    recipes = every_layer(whole.decoder_spec, whole.recipe.template, signals)
    recipes = {name: replace(recipe, **shared) for name, recipe in recipes.items()}
    default: tuple[int, ...] = ()
    for signal in signals:
        recipe = replace(SIGNALS[signal], template=whole.recipe.template, method=signal, **shared)
        if recipe.signal == "hidden":
            if whole.has_final_norm:
                recipes[f"{signal}@{DEFAULT}"] = recipe
            continue
        with suppress(LayerError):  # they differ in width, cannot be aligned, or are not held
            default = whole.resolve(recipe, None, whole.origin.preset)
            recipes[f"{signal}@{DEFAULT}"] = replace(recipe, layers=default)
    return recipes, default


Scores = tuple[str, str, dict[str, float], dict[str, Any]]


def _evaluated(
    model: str | os.PathLike[str],
    task: str | AbsTask,
    recipes: Mapping[str, Recipe],
    output: str | os.PathLike[str] | None,
    options: LoadOptions,
    progress: bool,
) -> Scores:
    from valuembed.evaluation import evaluate

    kept = None if output is None else Path(output) / "scores"
    found = evaluate(model, recipes, [task], output=kept, progress=progress, **options.keywords())
    if not found.scores:
        raise ReadingError(f"{found.failures[0].task}: no layer could be scored; {found.failures[0].reason}")
    first = found.scores[0]
    scores = {score.method: score.score for score in found.scores}
    details = {"texts": first.texts, "tokens": first.tokens, "truncated": first.truncated}
    return first.task, f"{first.metric} x100", scores, details


def _scored(readouts: MultiReadout, data: StsFile, progress: bool) -> Scores:
    """Spearman's correlation of every recipe's cosines with the scores, times 100."""
    began = time.perf_counter()
    names = list(readouts.plans)
    cosines = np.empty((len(names), len(data.scores)), np.float32)
    reports = []
    for window, vectors, report in read_pair_windows(
        readouts, data.sentences1, data.sentences2, WINDOW_BYTES, progress=progress
    ):
        first, second = torch.tensor(window.first), torch.tensor(window.second)
        for row, name in enumerate(names):
            cosines[row, window.rows] = _cosines(vectors[name], first, second).cpu().numpy()
        reports.append(report)
    if bad := [name for name, of_name in zip(names, cosines, strict=True) if not np.isfinite(of_name).all()]:
        raise not_finite(bad[0], readouts.reader)
    scores = dict(zip(names, (100 * spearman(cosines, np.array(data.scores))).tolist(), strict=True))
    total = EncodeReport.total(reports)
    warn_truncated(total, readouts.reader)
    details = {
        **described(readouts.reader),
        "file": data.paths[0].name,
        "digest": data.digest,
        "split": data.split,
        "pairs": len(data.scores),
        "texts": total.texts,
        "tokens": total.tokens,
        "truncated": total.truncated,
        "seconds": round(time.perf_counter() - began, 2),
    }
    return f"{data.paths[0].name} ({counted(len(data.scores), 'pair')})", "Spearman of cosine x100", scores, details


def _cosines(vectors: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """Cosines of pairs, as mteb computes them: by the distance of unit vectors, which is exact for near ones.

    Args:
        vectors: ``[b, width]``.
        first, second: ``[n]`` positions of each pair's vectors.

    Returns:
        ``[n]`` float32.
    """
    unit = torch.nn.functional.normalize(vectors, dim=1)
    first, second = first.to(unit.device), second.to(unit.device)
    return 1 - (unit[first] - unit[second]).square().sum(dim=1) / 2
