"""The STS part of real.py: vectors of every row, range of layers and layer from one pass for each template.

Cosines are kept, a file for each decoder, set and template, with what made them; scores are drawn from those.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.functional import normalize

from valuembed.backbone import resolve_plan
from valuembed.backbone.checkpoints import CalibrationRecord
from valuembed.data import StsFile, digest_of
from valuembed.evaluation import spearman
from valuembed.models import SIGNALS, Calibration, MultiReadout, Projection, fit, project, read_pair_windows
from valuembed.recipes import METHODS, Recipe, resolve_layers, resolve_recipe

WINDOW_BYTES = 1 << 29
SHRINKAGE = 0.1
WAYS = {"raw": None, "centred": "centre", "whitened": "whiten"}
"""What is done to vectors before they are compared, by the calibration's kind."""

ROWS: dict[str, dict[str, Any]] = {
    "bag of embeddings (layer 0, mean)": {"method": "hidden_mean", "layers": [0]},
    "hidden_mean": {"method": "hidden_mean"},
    "hidden_last": {"method": "hidden_last"},
    "echo": {"method": "echo"},
    "prompt_eol": {"method": "prompt_eol"},
    "meta_eol (8 passes)": {"method": "meta_eol"},
    "va": {"method": "va", "layers": "third"},
    "va, layers 0.65:0.9": {"method": "va", "layers": "0.65:0.9"},
    "aligned_va": {"method": "aligned_va", "layers": "third"},
    "wva, no prompt (LT)": {"method": "wva", "layers": "third", "template": "none"},
    "wva": {"method": "wva", "layers": "third"},
    "wva, FutureEOL": {"method": "wva", "layers": "third", "template": "future_eol"},
    "aligned_wva": {"method": "aligned_wva", "layers": "third"},
    "aligned_wva, layers 0.65:0.9": {"method": "aligned_wva", "layers": "0.65:0.9"},
    "aligned_wva, FutureEOL": {"method": "aligned_wva", "layers": "third", "template": "future_eol"},
    "aligned_wva, before the norm": {"method": "aligned_wva", "layers": "third", "alignment": "projection"},
}
"""Keywords of loading by the row's label; ``alignment`` replaces the recipe's. Layers are named, so that no preset
changes them.
"""

HEADLINE_ROWS = (
    "bag of embeddings (layer 0, mean)",
    "hidden_mean",
    "prompt_eol",
    "va",
    "aligned_va",
    "wva",
    "aligned_wva",
    "aligned_wva, before the norm",
)
"""Rows that are scored on whole sets: those that two passes serve."""

WITH_NORM = ("gemma3",)
"""Decoders with a norm behind the attention block, where both ends of it are shown."""

CURVES = {
    "va": ("values raw", "none"),
    "aligned_va": ("values aligned", "none"),
    "wva": ("weighted raw", "prompt_eol"),
    "aligned_wva": ("weighted aligned", "prompt_eol"),
    "hidden_mean": ("hidden mean", "none"),
    "prompt_eol": ("hidden last", "prompt_eol"),
}
"""By method, the signal that is read of every layer, and the template."""

RANGES = {
    "last third": "third",
    "last third without the last layer": "third -1",
    "0.65-0.90": "0.65:0.9",
    "last quarter": "0.75:1.0",
    "half": "half",
    "half without the last layer": "half -1",
    "0.5-0.9": "0.5:0.9",
    "all": "all",
}
"""Candidates for default layers."""


def range_layers(name: str, legal: tuple[int, ...], num_layers: int) -> tuple[int, ...]:
    """The layers of a range."""
    spec, _, shorter = RANGES[name].partition(" ")
    layers = resolve_layers(spec, legal, num_layers)
    return layers[:-1] if shorter and len(layers) > 1 else layers


def row_recipes(decoder: str) -> dict[str, Recipe]:
    """The recipe of every row that a decoder has."""
    made = {}
    for label, given in ROWS.items():
        recipe = resolve_recipe(given["method"], given.get("layers"), given.get("template", "auto"))
        if "alignment" in given:
            if decoder not in WITH_NORM or recipe.alignment == given["alignment"]:
                continue
            recipe = replace(recipe, alignment=given["alignment"])
        made[label] = recipe
    return made


@dataclass
class Decoder:
    """A decoder with everything that is read from it.

    Attributes:
        name: its folder's.
        readouts: rows, under their labels; ranges, as ``method@range``; and layers, as ``method@index``.
        num_layers: L.
    """

    name: str
    readouts: MultiReadout
    num_layers: int

    @classmethod
    def load(cls, folder: Path, **options: Any) -> Decoder:
        """Load it whole, and resolve all recipes."""
        rows = row_recipes(folder.name)
        readouts = MultiReadout.load(folder, rows, **options)
        decoder_spec = readouts.reader.plan.decoder_spec
        count, legal = decoder_spec.num_layers, decoder_spec.value_layers
        for method, (signal, template) in CURVES.items():
            recipe = resolve_recipe(replace(SIGNALS[signal], method=method), None, template)
            wanted: dict[str, Any] = {f"{method}@{layer}": [layer] for layer in range(count)}
            if recipe.signal == "value":
                wanted |= {f"{method}@{name}": range_layers(name, legal, count) for name in RANGES}
            for label, layers in wanted.items():
                plan = resolve_plan(replace(recipe, layers=layers), None, decoder_spec, None)
                readouts.plans[label] = plan
        return cls(folder.name, MultiReadout(readouts.reader, readouts.plans), count)

    def labels(self, *, layers: bool) -> list[str]:
        """All labels; without those of single layers if they are not wanted."""
        return [label for label in self.readouts.plans if layers or not label.rpartition("@")[2].isdigit()]

    def groups(self, *, layers: bool) -> dict[str, list[str]]:
        """Labels that share a pass, by a short name of its template."""
        kept = self.labels(layers=layers)
        return {
            template_name(self.readouts.recipes[group[0]]): [label for label in group if label in kept]
            for group in self.readouts.groups()
        }


def template_name(recipe: Recipe) -> str:
    """The name of a recipe's template."""
    named = {METHODS[method].template: method for method in ("echo", "meta_eol", "prompt_eol")}
    return {("{text}",): "none", **named}.get(recipe.template, "future_eol")


@dataclass(frozen=True)
class Read:
    """What one pass over one set has given.

    Attributes:
        cosines: by way and label, ``[pairs]``.
        texts, tokens, seconds: what the pass took.
    """

    cosines: Mapping[str, Mapping[str, np.ndarray]]
    texts: int
    tokens: int
    seconds: float


def read_set(
    decoder: Decoder,
    group: str,
    labels: list[str],
    data: StsFile,
    fits: Mapping[str, Mapping[str, Projection]],
    kept: Path,
    made_with: Mapping[str, Any],
    keep_vectors: dict[str, list[torch.Tensor]] | None = None,
) -> Read:
    """Cosines of all pairs of a set for the labels of one pass, from the file where they lie or computed.

    Args:
        decoder: what is read.
        group: the template's name.
        labels: of that pass.
        data: the pairs.
        fits: by way and label, what the vectors of rows go through.
        kept: the file.
        made_with: what decides the numbers beside recipes and data.
        keep_vectors: takes the rows' vectors of every distinct text, where they are wanted; the file is then not read.
    """
    recipes = {label: decoder.readouts.recipes[label].choices() for label in labels}
    about = json.dumps({"data": data.digest, "recipes": recipes, "fits": sorted(fits), **made_with}, sort_keys=True)
    if keep_vectors is None and kept.exists():
        found = np.load(kept)
        if str(found["about"]) == about:
            ways: dict[str, dict[str, np.ndarray]] = {}
            for key in found.files:
                way, sign, label = key.partition("/")
                if sign:
                    ways.setdefault(way, {})[label] = found[key]
            return Read(ways, int(found["texts"]), int(found["tokens"]), float(found["seconds"]))
    part = MultiReadout(decoder.readouts.reader, {label: decoder.readouts.plans[label] for label in labels})
    cosines: dict[str, dict[str, np.ndarray]] = {way: {} for way in WAYS}
    texts = tokens = 0
    seconds, began = 0.0, time.perf_counter()
    for window, vectors, report in read_pair_windows(
        part, data.sentences1, data.sentences2, WINDOW_BYTES, progress=False
    ):
        seconds += time.perf_counter() - began
        texts, tokens = texts + report.texts, tokens + report.tokens
        first, second = torch.tensor(window.first), torch.tensor(window.second)
        for label in labels:
            read = vectors[label].float().cpu()
            if keep_vectors is not None and "@" not in label:
                keep_vectors.setdefault(label, []).append(read)
            for way in WAYS:
                projection = fits.get(way, {}).get(label)
                if way != "raw" and projection is None:
                    continue
                changed = read if projection is None else projected(read, projection)
                unit = normalize(changed.double(), dim=1)
                into = cosines[way].setdefault(label, np.empty(len(data.scores)))
                into[window.rows] = (unit[first] * unit[second]).sum(dim=1).numpy()
        began = time.perf_counter()
    made = Read(cosines, texts, tokens, seconds)
    write_read(kept, made, about)
    return made


def write_read(kept: Path, made: Read, about: str) -> None:
    """Write cosines so that the file is there whole or not at all."""
    kept.parent.mkdir(parents=True, exist_ok=True)
    half = kept.with_suffix(".half.npz")
    arrays = {f"{way}/{label}": found for way, of_way in made.cosines.items() for label, found in of_way.items()}
    np.savez(half, about=about, texts=made.texts, tokens=made.tokens, seconds=made.seconds, **arrays)  # type: ignore[arg-type]
    half.replace(kept)


def projected(vectors: torch.Tensor, projection: Projection) -> torch.Tensor:
    """Vectors as a calibration leaves them."""
    return project(vectors, projection.mean.float(), projection.matrix.float())


def fitted(vectors: Mapping[str, list[torch.Tensor]]) -> dict[str, dict[str, Projection]]:
    """By way and label, the projections that these vectors give; no label of a pair is looked at."""
    return {
        way: {label: fit(kind, torch.cat(parts), shrinkage=SHRINKAGE) for label, parts in vectors.items()}
        for way, kind in WAYS.items()
        if kind
    }


def calibrations(
    decoder: Decoder, fits: Mapping[str, Projection], way: str, texts: list[str]
) -> dict[str, Calibration]:
    """Projections as ``evaluate`` takes them."""
    digest, kind = digest_of(*texts)[:16], WAYS[way]
    assert kind is not None
    made = {}
    for label, projection in fits.items():
        width, size = projection.matrix.shape
        record = CalibrationRecord(
            kind=kind,
            recipe=decoder.readouts.recipes[label],
            width=width,
            size=size,
            shrinkage=SHRINKAGE if kind == "whiten" else None,
            texts=len(texts),
            corpus=digest,
        )
        made[label] = Calibration(projection, record)
    return made


def correlations(read: Read, scores: list[float], count: int | None = None) -> Iterator[tuple[str, str, float]]:
    """Way, label and Spearman correlation times 100, over the first pairs if a count is given."""
    for way, of_way in read.cosines.items():
        if of_way:
            found = spearman(np.stack([cosine[:count] for cosine in of_way.values()]), np.array(scores[:count]))
            yield from ((way, label, 100 * float(score)) for label, score in zip(of_way, found, strict=True))
