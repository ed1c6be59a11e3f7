"""What calibrations do to methods: scores and ranks of each without and with them, at four sizes.

Fitting sees texts only, never a label. Where the report decides which kind, size or method to take, a figure to publish
comes from another file.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from valuembed._utils.atomic import replace_text
from valuembed._utils.autosave import autosave, incomplete
from valuembed._utils.optional import require
from valuembed._utils.text import counted, inflected
from valuembed._utils.torch_settings import default_device_and_precision
from valuembed.analysis.calibration_fit import MAX_TEXTS, checked_head, load_head, sample_texts
from valuembed.backbone import LoadKwargs, LoadOptions
from valuembed.backbone.checkpoints import locate
from valuembed.data import StsFile, iter_texts, read_scored
from valuembed.errors import CheckpointError, InputError, ReadingError
from valuembed.evaluation import spearman
from valuembed.models import (
    CALIBRATIONS,
    DEFAULT_SHRINKAGE,
    FILTER,
    MultiReadout,
    check_choices,
    choose_recipes,
    described,
    fit,
    fit_filter,
    is_of_the_stream,
    project,
    warn_truncated,
)
from valuembed.recipes import LayerSpec, MethodSpec, Recipe, TemplateSpec, parse_methods
from valuembed.reporting import markdown, plots, results_folder

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from typing_extensions import Unpack

NONE = "none"
"""Vectors as they are; at a smaller size, their first coordinates."""

PARTS: dict[str, int] = {"1": 1, "1/2": 2, "1/4": 4, "1/8": 8}
"""Sizes, as parts of a method's width."""


class LeakWarning(UserWarning):
    """Texts that are scored stand in the corpus that calibrations are fitted on."""


@dataclass(frozen=True)
class CalibrationReport:
    """What calibrations do to methods.

    Attributes:
        model: name of the decoder.
        file, pairs: name of the scored file, and how many it has.
        texts, corpus: how many texts the calibrations were fitted on, and their digest.
        shared: how many texts of the file stand in the corpus.
        shrinkage: of whitening.
        widths: of each method's vectors.
        scores: by method, kind (:data:`NONE` is without) and part of the width (:data:`PARTS`), Spearman's correlation
            of cosine and score times 100. The filter is missing for raw values.
        details: origin with its commit, precision, token limit, versions.
        unfinished: how much of the work this is, where it ended early; else empty.
    """

    model: str
    file: str
    pairs: int
    texts: int
    corpus: str
    shared: int
    shrinkage: float
    widths: dict[str, int]
    scores: dict[str, dict[str, dict[str, float]]]
    details: dict[str, Any] = field(default_factory=dict)
    unfinished: str = ""

    @property
    def kinds(self) -> list[str]:
        """The kinds that any method has, in the order computed."""
        return list(dict.fromkeys(kind for of_method in self.scores.values() for kind in of_method))

    def ranking(self, kind: str, part: str = "1") -> list[str]:
        """The methods under a kind, best first; those that have no score are missing."""
        scored = {method: kinds[kind][part] for method, kinds in self.scores.items() if kind in kinds}
        return sorted(scored, key=lambda method: -scored[method])

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)

    def best(self, method: str, part: str) -> str:
        """The kind under which a method scores best."""
        return max(self.scores[method], key=lambda kind: self.scores[method][kind][part])

    def rows(self, part: str) -> list[list[str]]:
        """A table as cells, its head first; behind a score at full width, the method's rank under that kind."""
        ranks = {kind: self.ranking(kind) for kind in self.kinds}

        def cell(method: str, kind: str) -> str:
            if kind not in self.scores[method]:
                return "-"
            rank = f" ({ranks[kind].index(method) + 1})" if part == "1" else ""
            return f"{self.scores[method][kind][part]:.2f}{rank}"

        return [
            ["method", "size", *self.kinds],
            *(
                [method, str(_size(width, part)), *(cell(method, kind) for kind in self.kinds)]
                for method, width in self.widths.items()
            ),
        ]

    @staticmethod
    def title(part: str) -> str:
        """Over the table of a size."""
        return "Full width (in brackets the rank)" if part == "1" else f"{part} of the width"

    def notes(self) -> list[str]:
        """What the figures are, in a few sentences."""
        return [
            *([f"{self.unfinished}."] if self.unfinished else []),
            f"Spearman x100 of cosine similarity on {self.file} ({counted(self.pairs, 'pair')}). Fitted on "
            f"{counted(self.texts, 'unlabelled text')} (digest {self.corpus}), of which the file shares "
            f"{self.shared:,}.",
            "none: vectors as they are, cut to their first coordinates. centre: less the mean, then cut likewise. "
            f"whiten: principal directions scaled to variance 1, shrinkage {self.shrinkage:g}, leading ones kept. pca: "
            "leading principal directions, not scaled; at full width the same as centre. filter: the middle of the "
            "language model head's singular directions, for vectors of the residual stream; at full width as none.",
            *(
                ["-: the method does not read the residual stream."]
                if len(set(map(len, self.scores.values()))) > 1
                else []
            ),
        ]

    def to_markdown(self) -> str:
        """A table for each size, the best kind of each method in bold."""
        lines = [f"# Calibration of {self.model}", *(f"\n{note}" for note in self.notes())]
        for part in PARTS:
            head, *rows = self.rows(part)
            marked = []
            for row in rows:
                at = head.index(self.best(row[0], part))
                marked.append([f"**{cell}**" if place == at else cell for place, cell in enumerate(row)])
            lines += ["", f"## {self.title(part)}", "", *markdown.table(head, marked, "lr")]
        return "\n".join(lines) + "\n"

    def figure(self, part: str = "1") -> Figure:
        """A chart of the scores at a size, a group of bars for each method."""
        groups = {
            method: {kind: of_kind[part] for kind, of_kind in kinds.items()} for method, kinds in self.scores.items()
        }
        size = "full width" if part == "1" else self.title(part)
        title = "\n".join(filter(None, (f"Calibrations of {self.model} on {self.file}, {size}", self.unfinished)))
        return plots.bars(groups, title=title, ylabel="Spearman x100")

    def write(self, folder: str | os.PathLike[str]) -> list[Path]:
        """Write ``calibration.md``, ``calibration.json``, and a chart of the full and one of the smallest width.

        Raises:
            OutputError, MissingExtraError: as :func:`valuembed.reporting.results_folder`.
        """
        folder = results_folder(folder)
        names = ("calibration.json", "calibration.md", "calibration.png", "calibration-small.png")
        paths = [folder / name for name in names]
        replace_text(paths[0], json.dumps(self.to_dict(), ensure_ascii=False, indent=2) + "\n")
        replace_text(paths[1], self.to_markdown())
        plots.save(self.figure(), paths[2])
        plots.save(self.figure(list(PARTS)[-1]), paths[3])
        return paths


@default_device_and_precision()
def report_calibration(
    model: str | os.PathLike[str],
    texts: Iterable[str],
    task: str,
    methods: str | Sequence[str] | Mapping[str, MethodSpec] | None = "all",
    *,
    kinds: Sequence[str] = CALIBRATIONS,
    shrinkage: float = DEFAULT_SHRINKAGE,
    max_texts: int = MAX_TEXTS,
    layers: LayerSpec = None,
    template: TemplateSpec | Mapping[str, TemplateSpec] = "auto",
    cleaning: str | None = None,
    output: str | os.PathLike[str] | None = None,
    progress: bool = True,
    **options: Unpack[LoadKwargs],
) -> CalibrationReport:
    """Score methods on pairs of sentences without and with each calibration, at full, 1/2, 1/4 and 1/8 width.

    Args:
        model: as in :func:`valuembed.load`. What a saved folder holds after its decoder plays no part.
        texts: unlabelled, to fit on; read as a stream.
        task: ``"sts:FILE"``.
        methods: see :func:`valuembed.recipes.parse_methods`.
        kinds: which calibrations.
        shrinkage, max_texts: as in :func:`valuembed.analysis.calibrate`.
        layers, template, cleaning: as in :func:`valuembed.recipes.choose_recipes`.
        output: a folder for tables, charts and JSON. Where the work ends early, it takes the methods that are finished,
            marked as incomplete.
        progress: show bars on stderr if that is a terminal, else a line a minute.
        options: ``dtype``, ``device``, ``max_tokens``, ``revision``, ``token``, ``cache_folder``,
            ``local_files_only``, ``trust_remote_code``, ``model_kwargs``: as in :func:`valuembed.load`.

    Raises:
        RecipeError, InputError: as :func:`valuembed.analysis.calibrate`; a task that is not ``"sts:FILE"``.
        ReadingError: a method has no score, because a vector is zero or all pairs are equally similar.
        CheckpointError, UnsupportedModelError: as :func:`valuembed.load`.
        OutputError: the report cannot be written; known before the work.
        MissingExtraError: scipy is not installed, which the extra ``eval`` brings; or, with ``output``, matplotlib.

    Warns:
        LeakWarning: the corpus holds texts of the task.
        TruncationWarning: texts were cut, of the corpus or of the task.
        UserWarning: there is no language model head to take the filter from.
    """
    loaded_with = LoadOptions.of(options, report_calibration)
    if not task.startswith("sts:"):
        raise InputError(
            f"task {task!r} cannot be reported on; give sts:FILE, or save a calibrated model and evaluate that"
        )
    if output is not None:
        results_folder(output)
    recipes = choose_recipes(locate(model, options=loaded_with), parse_methods(methods), layers, template, cleaning)
    pairs = read_scored(task.partition(":")[2].strip())
    head = None
    if FILTER in kinds and any(map(is_of_the_stream, recipes.values())):
        try:
            head = load_head(model, options=loaded_with)
        except CheckpointError as error:
            warnings.warn(f"the filter is left out: {error}", stacklevel=2)
    readouts = MultiReadout.load(model, recipes, options=loaded_with)
    return score_calibrations(
        readouts,
        texts,
        pairs,
        kinds=kinds,
        shrinkage=shrinkage,
        max_texts=max_texts,
        head=head,
        output=output,
        progress=progress,
    )


def score_calibrations(
    readouts: MultiReadout,
    texts: Iterable[str],
    pairs: StsFile,
    *,
    kinds: Sequence[str] = CALIBRATIONS,
    shrinkage: float = DEFAULT_SHRINKAGE,
    max_texts: int = MAX_TEXTS,
    head: Tensor | None = None,
    output: str | os.PathLike[str] | None = None,
    progress: bool = False,
) -> CalibrationReport:
    """What :func:`report_calibration` does, for methods that are loaded.

    Args:
        readouts: the methods; those that feed the same tokens share a pass. Calibrations that it has play no part.
        texts, kinds, shrinkage, max_texts, output: as there.
        pairs: scored pairs.
        head: for the filter, from :func:`valuembed.analysis.calibration_fit.load_head`; without it there is no filter.
        progress: show bars.
    """
    require("scipy.stats", "eval")  # before any work
    readouts = MultiReadout(readouts.reader, readouts.plans)
    for kind in kinds:
        check_choices(kind, Recipe(signal="hidden", weights="mean"), 1, None, shrinkage)
    scored = list(dict.fromkeys([*pairs.sentences1, *pairs.sentences2]))
    leaked: set[str] = set()
    sample = sample_texts(_watched(texts, set(scored), leaked), max_texts)
    if leaked:
        warnings.warn(
            f"{len(leaked):,} of the {counted(len(scored), 'text')} of {pairs.paths[0].name} "
            f"{inflected(len(leaked), 'stands', 'stand')} in the corpus too; take them out for a figure to report",
            LeakWarning,
            stacklevel=3,
        )
    place = {text: row for row, text in enumerate(scored)}
    first, second = ([place[text] for text in side] for side in (pairs.sentences1, pairs.sentences2))
    gold = np.array(pairs.scores)

    def score(vectors: NDArray[np.float32], name: str, kind: str) -> float:
        where = f"{name}, {kind} at {counted(vectors.shape[1], 'number')}, on {pairs.paths[0].name}"
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        if not lengths.all():
            raise ReadingError(
                f"{where}: the vector of {scored[int(lengths.argmin())][:60]!r} is zero, with no direction"
            )
        unit = vectors / lengths
        cosines = (unit[first] * unit[second]).sum(axis=1)
        if np.isnan(found := 100 * spearman(cosines[None], gold)[0]):
            raise ReadingError(
                f"{where}: all {counted(len(gold), 'pair')} have the same similarity, of which there is no correlation "
                "with the scores; leave the method or this kind out"
            )
        return float(found)

    m = readouts.reader.plan.decoder_spec.model_width
    directions = None if head is None or FILTER not in kinds else fit_filter(checked_head(head, m))
    scores: dict[str, dict[str, dict[str, float]]] = {}
    widths = readouts.widths()

    def made(unfinished: str = "") -> CalibrationReport:
        there = [name for name in readouts.recipes if name in scores]
        return CalibrationReport(
            model=readouts.reader.origin.name,
            file=pairs.paths[0].name,
            pairs=len(pairs.scores),
            texts=len(sample.texts),
            corpus=sample.digest,
            shared=len(leaked),
            shrinkage=float(shrinkage),
            widths={name: widths[name] for name in there},
            scores={name: scores[name] for name in there},
            details=described(readouts.reader),
            unfinished=unfinished,
        )

    def keep() -> None:
        if output is not None and scores:
            made(incomplete(len(scores), len(widths), "method")).write(output)

    with autosave(keep) as finished:
        for group in readouts.groups():  # one at a time, for all methods' vectors at once take gigabytes
            fitted, found = (_read(readouts, part, group, progress) for part in (sample.texts, scored))
            for name in group:
                vectors, recipe = found[name], readouts.recipes[name]
                sizes = {part: _size(vectors.shape[1], part) for part in PARTS}
                of_kinds = {NONE: {part: score(vectors[:, :size], name, NONE) for part, size in sizes.items()}}
                for kind in kinds:
                    if kind != FILTER:
                        whole = fit(kind, fitted[name], shrinkage=shrinkage)
                    elif directions is not None and is_of_the_stream(recipe):
                        whole = directions
                    else:
                        continue
                    of_kinds[kind] = {}
                    for part, size in sizes.items():
                        mean, matrix = (of_cut.float() for of_cut in whole.cut(size, middle=kind == FILTER))
                        calibrated = project(torch.from_numpy(vectors), mean, matrix).numpy()
                        of_kinds[kind][part] = score(calibrated, name, kind)
                scores[name] = of_kinds
                finished()
    report = made()
    if output is not None:
        report.write(output)
    return report


def _read(
    readouts: MultiReadout, texts: list[str], names: Sequence[str], progress: bool
) -> dict[str, NDArray[np.float32]]:
    """The vectors of some methods, with a warning where texts were cut."""
    vectors = readouts.encode(texts, names=names, progress=progress)
    assert readouts.report is not None
    warn_truncated(readouts.report, readouts.reader)
    return vectors


def _watched(texts: Iterable[str], wanted: set[str], met: set[str]) -> Iterator[str]:
    """The texts as they come; those that are wanted are noted."""
    for text in iter_texts(texts, ordered=False):
        if isinstance(text, str) and text in wanted:
            met.add(text)
        yield text


def _size(width: int, part: str) -> int:
    return max(1, width // PARTS[part])
