"""Choose the layers that a method averages, on one half of some data, and say what the choice is worth on the other."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from valuembed._utils.atomic import replacing
from valuembed._utils.progress import track
from valuembed._utils.torch_settings import default_device_and_precision
from valuembed.analysis.held_out import FINAL, MARGIN, SEARCHED, Candidate, Selection, best_of, choose_layers, known
from valuembed.analysis.objectives import CHOSEN_ON, HELD_OUT, LabelledPairs, LayerObjective, NextSegments, read_dev
from valuembed.analysis.segments import SEGMENTS, Documents, cut
from valuembed.backbone import LoadKwargs, LoadOptions, Plan
from valuembed.backbone.checkpoints import HubOptions, locate, read_record, saved_config
from valuembed.errors import InputError, LayerError, OutputError, ReadingError
from valuembed.models import (
    DEFAULT_METHOD,
    CheckpointView,
    MultiReadout,
    check_model_folder,
    described,
    inspect_checkpoint,
    load,
    save_model,
)
from valuembed.recipes import DEFAULT_LAYERS, Recipe, TemplateSpec, write_recipe

if TYPE_CHECKING:
    from typing_extensions import Unpack

NOTES_FILE = "layer_selection.json"
"""In a saved folder: how its layers were chosen."""


@default_device_and_precision()
def select_layers(
    model: str | os.PathLike[str] = "bundled",
    method: str | Recipe | Mapping[str, Any] = DEFAULT_METHOD,
    *,
    dev: str | Path | None = None,
    split: str | None = None,
    corpus: str | Path | None = None,
    text_column: str | None = None,
    segments: int = SEGMENTS,
    template: TemplateSpec | Mapping[str, TemplateSpec] = "auto",
    cleaning: str | None = None,
    output: str | Path | None = None,
    overwrite: bool = False,
    progress: bool = True,
    **options: Unpack[LoadKwargs],
) -> Selection:
    """Choose the layers that a method averages.

    Compared are all windows of neighbouring layers, greedy sets (the best single layer, then again and again the layer
    that helps most, until none helps), all layers, the second half, the backbone's preset and the default span.
    Windows and greedy sets are searched on one half of the data, so a search may find what holds for that half alone.
    A set holds up if none of the sets that were fixed beforehand is better on the other half by more than
    :data:`MARGIN`. The choice is the best on the first half of those that hold up; among those within :data:`MARGIN`
    of it the one that ends at the lowest layer, which is the cheapest to run, then the one of fewest layers.

    With labels (``dev``) the score is Spearman's correlation of cosines with the gold scores, and pairs that share a
    text are in the same half. Without labels (``corpus``) documents are cut into segments and each segment's next one
    is looked for; the score is the mean reciprocal rank, and a document is in one half. Segment matching is an analysis
    of the source; to choose layers by it is ours.

    Everything comes from one pass over the texts; where the work ends early, it starts over.

    Args:
        model, method, template, cleaning: as in :func:`valuembed.load`; layers that the method has do not count.
        dev: ``"sts:FILE"``, or the path of such a file; never test data.
        split: of that file; None is the first it has of :data:`valuembed.analysis.objectives.DEV_SPLITS`.
        corpus: documents, one a row: .txt, .jsonl, .csv or .parquet.
        text_column: of the corpus; None is ``"text"``.
        segments: how many segments of the corpus are used, from its start.
        output: where to write the choice: a recipe file (``.json``), which ``method=`` takes, or a folder for the
            model, which :func:`valuembed.load` takes.
        overwrite: replace what is there, unless it is a folder that holds no model of this library.
        progress: show bars on stderr if that is a terminal, else a line a minute.
        options: ``dtype``, ``device``, ``max_tokens``, ``revision``, ``token``, ``cache_folder``,
            ``local_files_only``, ``trust_remote_code``, ``model_kwargs``: as in :func:`valuembed.load`.

    Raises:
        InputError: data that cannot be used, or that is meant for testing.
        OutputError: the output exists, or is a folder for a model that was calibrated (known before the work); or it
            cannot be written.
        RecipeError, CheckpointError, UnsupportedModelError, ReadingError: as loading and encoding raise them.

    Warns:
        UserWarning: the output cannot be written; the message holds the choice, which would be lost with the error.

    Memory beside the model: ``12 * b * l**2`` bytes for b pairs, ``4 * n * l * width`` bytes for n segments.
    """
    loaded_with = LoadOptions.of(options, select_layers)
    if (dev is None) == (corpus is None):
        raise InputError("give one of dev (sts:FILE, with labels) and corpus (FILE of documents, without labels)")
    if output is not None:
        check_output(output, overwrite, model, loaded_with)
    pairs = None if dev is None else read_dev(dev, split)
    documents = None if corpus is None else Documents(corpus, text_column)
    whole = inspect_checkpoint(model, method, template=template, cleaning=cleaning, options=loaded_with)
    groups = _groups(whole)
    recipes = {
        str(layer): replace(whole.recipe, layers=None if layer == FINAL else (layer,))
        for group in groups
        for layer in group
    }
    readouts = MultiReadout.load(model, recipes, options=loaded_with)
    evidence: LayerObjective
    if pairs is not None:
        evidence = LabelledPairs(readouts, groups, pairs, progress)
    elif documents is not None:
        found = cut(documents, readouts.reader.texts.tokenizer, limit=segments, progress=progress)
        evidence = NextSegments(readouts, found, documents.path.name, progress)
    sets, left_out = _sets(whole, groups, evidence, progress)
    candidates = [_candidate(name, chosen, evidence) for name, chosen in sets.items()]
    file, metric = evidence.data["file"], evidence.metrics[0]
    candidates, chosen, reason = choose_layers(candidates, list(sets.values()), metric, file)
    result = Selection(
        model=whole.origin.name,
        recipe=replace(whole.recipe, layers=chosen.layers or None),
        chosen=chosen.name,
        reason=reason,
        candidates=tuple(candidates),
        left_out=left_out,
        data=evidence.data,
        details=described(readouts.reader),
    )
    if output is not None:
        try:
            write(result, model, output, loaded_with, overwrite=overwrite)
        except BaseException:
            # Whatever ends the writing, a full disk or an interruption, the work is done and its result is told.
            warnings.warn(f"the choice was made, and could not be written:\n{result.to_markdown()}", stacklevel=2)
            raise
    return result


def _groups(whole: CheckpointView) -> list[list[int]]:
    """The layers that the recipe can read, those of one width together: only these can be averaged."""
    recipe = whole.recipe
    widths: dict[int, list[int]] = {}
    for layer in whole.legal(recipe):
        widths.setdefault(Plan(recipe, (layer,), whole.decoder_spec).width, []).append(layer)
    if not widths:
        # Names what the recipe needs and the decoder lacks.
        whole.resolve(recipe, "all")
    final = [[FINAL]] if recipe.signal == "hidden" and whole.has_final_norm else []
    return [*widths.values(), *final]


def _sets(
    whole: CheckpointView, groups: Sequence[Sequence[int]], evidence: LayerObjective, progress: bool
) -> tuple[dict[str, tuple[int, ...]], dict[str, str]]:
    """The sets of layers to compare by name, the searched ones first; and those that cannot be read, with reasons."""
    windows: dict[tuple[int, ...], float] = {}
    grown: dict[tuple[int, ...], float] = {}
    with track(progress, desc="Sets of layers", unit="set") as bar:
        for group in groups:
            if group == [FINAL]:
                continue
            spans = [tuple(group[i:j]) for i in range(len(group)) for j in range(i + 1, len(group) + 1)]
            windows |= zip(spans, evidence.scores(spans, CHOSEN_ON, bar)[:, 0].tolist(), strict=True)
            grown |= [_greedy(group, evidence, bar)]
    if np.isnan(list(windows.values())).all():
        raise ReadingError(
            f"{whole.recipe.method} on {evidence.data['file']}: {evidence.metrics[0]} is not defined for any set of "
            "layers, for all similarities are equal; give other data or another method"
        )
    searched = dict(zip(SEARCHED, (windows, grown), strict=True))
    sets = {name: list(of)[best_of(list(of), np.array(list(of.values())))] for name, of in searched.items()}
    left_out = {}
    named: dict[str, str | None] = {"all layers": "all", "second half": "half"}
    if whole.recipe.signal == "value":
        # Presets and the default are for values; hidden states have the final norm for a default.
        if preset := whole.origin.preset:
            named[f"preset {preset}"] = preset
        named["last third"] = DEFAULT_LAYERS
    for name, spec in named.items():
        try:
            sets[name] = whole.resolve(whole.recipe, spec)
        except LayerError as error:
            left_out[name] = str(error)
    if [FINAL] in groups:
        sets["final norm"] = (FINAL,)
    return sets, left_out


def _candidate(name: str, layers: tuple[int, ...], evidence: LayerObjective) -> Candidate:
    halves = [evidence.scores([layers], half)[0].tolist() for half in (CHOSEN_ON, HELD_OUT)]
    scores = dict(zip(evidence.metrics, zip(*halves, strict=True), strict=True))
    return Candidate(name, () if layers == (FINAL,) else layers, scores)


def _greedy(group: Sequence[int], evidence: LayerObjective, bar: Any) -> tuple[tuple[int, ...], float]:
    """The best single layer, then again and again the layer that helps most, until none helps by :data:`MARGIN`."""
    chosen: tuple[int, ...] = ()
    best = -np.inf
    while rest := [layer for layer in group if layer not in chosen]:
        trials = [tuple(sorted((*chosen, layer))) for layer in rest]
        scores = known(evidence.scores(trials, CHOSEN_ON, bar)[:, 0])
        at = int(scores.argmax())
        if chosen and scores[at] <= best + MARGIN:
            break
        chosen, best = trials[at], float(scores[at])
    return chosen, best


def check_output(output: str | Path, overwrite: bool, model: str | os.PathLike[str], options: HubOptions) -> None:
    """Raise where a choice cannot be written, before any work is done.

    Args:
        output, overwrite: as in :func:`select_layers`.
        model, options: what would be saved.

    Raises:
        OutputError: there is something already, and it may not be replaced; or the model was calibrated, which holds
            for the layers that it has, so that it cannot be saved with others.
    """
    path = Path(output)
    if path.suffix == ".json":
        if path.is_dir():
            raise OutputError(f"output {path} is a folder; name a recipe file, or a folder without .json in its name")
        if path.exists() and not overwrite:
            raise OutputError(f"output {path} exists; choose another name or overwrite it")
    else:
        check_model_folder(path, overwrite=overwrite)
        checkpoint = locate(model, options=options)
        saved = saved_config(checkpoint)
        if saved is not None and (record := read_record(checkpoint)) is not None:
            raise OutputError(
                f"output {path} is a folder for a model, and model {checkpoint.name!r} was calibrated ({record.kind}) "
                f"for the layers that it has; choose layers on its source, {saved['origin']['name']!r}, and calibrate "
                "the model that is written; or name a recipe file (.json)"
            )


def write(
    selection: Selection,
    model: str | os.PathLike[str],
    output: str | Path,
    options: LoadOptions,
    *,
    overwrite: bool = False,
) -> None:
    """Write a choice where :func:`valuembed.load` finds it.

    Args:
        selection: the choice.
        model: what it was made for.
        output: a recipe file (``.json``), or a folder for the model with the chosen layers.
        options: how the model is loaded.
        overwrite: replace what is there.

    Raises:
        OutputError: it cannot be written there.
    """
    check_output(output, overwrite, model, options)
    path = Path(output)
    notes = {key: value for key, value in selection.to_dict().items() if key != "recipe"}
    if path.suffix == ".json":
        with replacing(path) as new:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_recipe(new, selection.recipe, **notes)
    else:
        text = json.dumps(notes, ensure_ascii=False, indent=2)
        made = load(model, selection.recipe, **options.keywords())
        save_model(made, path, overwrite=overwrite, notes={NOTES_FILE: f"{text}\n"})
