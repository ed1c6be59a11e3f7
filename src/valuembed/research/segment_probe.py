"""What a signal serves, layer by layer: the paper's two analyses as tables and charts.

Segment matching asks for the whole continuation, next-token probing (``next_token.py``) for the next token alone.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from math import sqrt
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from valuembed._utils.atomic import replace_text
from valuembed._utils.autosave import autosave, incomplete
from valuembed._utils.progress import track
from valuembed._utils.text import counted, inflected
from valuembed._utils.torch_settings import default_device_and_precision
from valuembed.analysis import SEGMENTS, TOKENS, Documents, cut, match
from valuembed.backbone import LoadKwargs, LoadOptions
from valuembed.errors import RecipeError
from valuembed.execution import EncodeReport
from valuembed.models import (
    SIGNALS,
    CheckpointView,
    MultiReadout,
    described,
    every_layer,
    inspect_checkpoint,
    warn_truncated,
)
from valuembed.recipes import LayerSpec, Recipe
from valuembed.reporting import markdown, plots, results_folder

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from typing_extensions import Unpack

SEGMENT_SIGNALS = ("values raw", "values aligned", "hidden mean")

FINAL = "final norm"
PLAIN = "{text}"
_CHUNK, _CHUNK_BYTES = 256, 1 << 28

Figures = tuple[float, ...]
"""One number for each metric."""


@dataclass(frozen=True)
class LayerProbe:
    """Figures by signal and layer.

    Attributes:
        name: of the analysis' files.
        heading: of the analysis, for people.
        model: its name.
        corpus: name of the file.
        num_layers: L of the decoder.
        metrics: what each figure is, the one that is drawn first.
        scores: by signal and 0-based layer.
        final: by signal, of the last layer after the final norm.
        baselines: what it takes no model to reach.
        notes: what was read and what a figure means, for people.
        details: the same and more, plain data.
        unfinished: how much of the work these figures are, where it ended early; else empty.
    """

    name: str
    heading: str
    model: str
    corpus: str
    num_layers: int
    metrics: tuple[str, ...]
    scores: Mapping[str, Mapping[int, Figures]]
    final: Mapping[str, Figures]
    baselines: Mapping[str, Figures]
    notes: tuple[str, ...]
    details: Mapping[str, Any]
    unfinished: str = ""

    @property
    def title(self) -> str:
        """What stands above the table."""
        title = f"{self.heading}, {' / '.join(self.metrics)}: {self.model} on {self.corpus}"
        return f"{title}. {self.unfinished}" if self.unfinished else title

    def best(self, signal: str) -> str:
        """The row in which a signal's first figure is highest: a layer, or :data:`FINAL`."""
        rows = {str(layer): figures for layer, figures in self.scores[signal].items()}
        if signal in self.final:
            rows[FINAL] = self.final[signal]
        return max(rows, key=lambda row: rows[row][0])

    def rows(self) -> list[list[str]]:
        """The table: its head, a row for each layer, one for the final norm, one for each baseline."""
        layers = sorted({layer for of_signal in self.scores.values() for layer in of_signal})
        rows = [["layer", *self.scores]]
        rows += [[str(layer), *(_cell(of.get(layer)) for of in self.scores.values())] for layer in layers]
        if self.final:
            rows.append([FINAL, *(_cell(self.final.get(signal)) for signal in self.scores)])
        return rows + [[name, *(_cell(figures) for _ in self.scores)] for name, figures in self.baselines.items()]

    def to_markdown(self) -> str:
        """The table with the best of each column in bold, and the notes."""
        head, *rows = self.rows()
        best = [self.best(signal) for signal in self.scores]
        marked = [
            [label, *(f"**{cell}**" if label == row else cell for cell, row in zip(cells, best, strict=True))]
            for label, *cells in rows
        ]
        lines = [self.title, "", *markdown.table(head, marked, "r")]
        return "\n".join([*lines, "", *(f"- {note}" for note in self.footnotes())]) + "\n"

    def footnotes(self) -> list[str]:
        """What stands below the table: the notes, and what a dash means where there is one."""
        dashes = any(cell == "-" for row in self.rows() for cell in row)
        return [*self.notes, *(["-: the layer does not have this signal, or was not reached"] if dashes else [])]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)

    def figure(self) -> Figure:
        """The first figure over the layers, one line a signal; the final norm stands where layer L would."""
        places = {signal: dict(of_signal) for signal, of_signal in self.scores.items()}
        for signal, figures in self.final.items():
            places[signal][self.num_layers] = figures
        every = sorted({layer for of_signal in places.values() for layer in of_signal})
        for name, figures in self.baselines.items():
            places[name] = {every[0]: figures, every[-1]: figures}
        lines = {
            name: sorted((float(layer), figures[0]) for layer, figures in of.items()) for name, of in places.items()
        }
        xlabel = f"layer ({self.num_layers}: the last one after the final norm)" if self.final else "layer"
        title = "\n".join(filter(None, (f"{self.heading}: {self.model} on {self.corpus}", self.unfinished)))
        return plots.curves(lines, title=title, xlabel=xlabel, ylabel=self.metrics[0])

    def write(self, folder: str | Path) -> list[Path]:
        """Write ``NAME.json``, ``NAME.md`` and ``NAME.png`` into a folder, replacing those of an earlier run.

        Raises:
            OutputError, MissingExtraError: as :func:`valuembed.reporting.results_folder`.
        """
        folder = results_folder(folder)
        paths = [folder / f"{self.name}.{suffix}" for suffix in ("json", "md", "png")]
        replace_text(paths[0], json.dumps(self.to_dict(), ensure_ascii=False, indent=2) + "\n")
        replace_text(paths[1], self.to_markdown())
        plots.save(self.figure(), paths[2])
        return paths


def _cell(figures: Figures | None) -> str:
    return "-" if figures is None else " / ".join(f"{figure:.2f}" for figure in figures)


@default_device_and_precision()
def probe_segments(
    model: str | os.PathLike[str],
    corpus: str | Path,
    *,
    tokens: int = TOKENS,
    segments: int = SEGMENTS,
    layers: LayerSpec = None,
    signals: Sequence[str] = SEGMENT_SIGNALS,
    text_column: str | None = None,
    output: str | Path | None = None,
    progress: bool = True,
    **options: Unpack[LoadKwargs],
) -> LayerProbe:
    """Segment matching by layer: from a segment's vector, find the segment of the same document that follows.

    Long documents are cut into consecutive segments (:func:`valuembed.analysis.cut`), every signal of every layer is
    read from one pass over them without a template, and each segment's next one is looked for among all others by
    cosine (:func:`valuembed.analysis.match`). The vectors wait in a temporary folder: ``4 * n * width`` bytes for each
    signal and layer. Where matching ends early, ``output`` takes what is finished, marked as incomplete; the pass
    before it starts over.

    Args:
        model: as in :func:`valuembed.load`.
        corpus: documents, a file as for :func:`valuembed.data.read_rows`.
        tokens: of a segment.
        segments: at most so many, from the corpus's start.
        layers: which are probed, as in :func:`valuembed.load`; None is all.
        signals: names of :data:`valuembed.models.SIGNALS`.
        text_column: column, or JSON key, of the corpus's text.
        output: a folder for table, chart and JSON.
        progress: show bars on stderr if that is a terminal, else a line a minute.
        options: ``dtype``, ``device``, ``max_tokens``, ``revision``, ``token``, ``cache_folder``,
            ``local_files_only``, ``trust_remote_code``, ``model_kwargs``: as in :func:`valuembed.load`.

    Returns:
        accuracy@1 and mean reciprocal rank, times 100.

    Raises:
        InputError: the corpus cannot be read, or has no document of two segments.
        RecipeError: an unknown signal, or layers that do not exist.
        OutputError, MissingExtraError: results cannot be written, or the chart not drawn; known before the work.

    Source: Zhang et al., arXiv 2602.01572, who match segments of LongBench v2.
    """
    loaded_with = LoadOptions.of(options, probe_segments)
    signals = list(dict.fromkeys(signals))
    if unknown := [name for name in signals if name not in SIGNALS]:
        raise RecipeError(f"no signal is named {unknown[0]!r}; legal: {', '.join(SIGNALS)}")
    documents = Documents(corpus, text_column)
    if output is not None:
        results_folder(output)
    whole = inspect_checkpoint(model, options=loaded_with)
    chosen = layers_of(whole, layers)
    recipes = {
        name: recipe
        for name, recipe in every_layer(whole.decoder_spec, (PLAIN,), signals).items()
        if recipe.layers in [(layer,) for layer in chosen]
    }
    for signal in signals:
        if SIGNALS[signal].signal == "hidden" and whole.has_final_norm:
            recipes[f"{signal}@{FINAL}"] = replace(SIGNALS[signal], template=(PLAIN,), method=signal)
    readouts = MultiReadout.load(model, recipes, options=loaded_with)
    began = time.perf_counter()
    found = cut(documents, readouts.reader.texts.tokenizer, tokens, limit=segments, progress=progress)
    scores: dict[str, dict[int, Figures]] = {signal: {} for signal in signals}
    final: dict[str, Figures] = {}

    def made(unfinished: str = "") -> LayerProbe:
        chance = (100 / score.candidates, 100 * sum(1 / rank for rank in range(1, len(found))) / score.candidates)
        deviation = 50 / sqrt(score.queries)
        return LayerProbe(
            name="segments",
            heading="Segment matching",
            model=whole.origin.name,
            corpus=documents.path.name,
            num_layers=whole.decoder_spec.num_layers,
            metrics=("accuracy@1 (%)", "MRR x100"),
            scores={signal: of_signal for signal, of_signal in scores.items() if of_signal or signal in final},
            final=final,
            baselines={"chance": chance},
            notes=(
                f"{counted(len(found), 'segment')} of {counted(tokens, 'token')} from "
                f"{counted(found.kept, 'document')}; {found.too_short:,} of {counted(found.read, 'document')} read "
                f"{inflected(found.too_short, 'is', 'are')} shorter than two segments, "
                f"{counted(documents.rejected, 'row holds', 'rows hold')} no text",
                f"{counted(score.queries, 'query', 'queries')}, each with {counted(score.candidates, 'candidate')}, "
                f"no template; one standard error of accuracy@1 is at most {deviation:.1f} points",
            ),
            details={
                **described(readouts.reader),
                "tokens_a_segment": tokens,
                "segments": len(found),
                "documents": found.kept,
                "documents_read": found.read,
                "documents_too_short": found.too_short,
                "rows_rejected": documents.rejected,
                "queries": score.queries,
                "candidates": score.candidates,
                "tokens": report.tokens,
                "truncated": report.truncated,
                "seconds": round(time.perf_counter() - began, 2),
            },
            unfinished=unfinished,
        )

    done = 0

    def keep() -> None:
        if output is not None and done:
            made(incomplete(done, len(recipes), "signal and layer", "signals and layers")).write(output)

    with tempfile.TemporaryDirectory(prefix="valuembed-", ignore_cleanup_errors=True) as folder:
        vectors, report = _encode(readouts, found.texts, Path(folder), progress)
        with autosave(keep) as finished:
            for name, of_name in track(progress, vectors.items(), desc="Matching", unit="layer"):
                score = match(of_name, found.documents)
                signal, _, layer = name.rpartition("@")
                figures = (100 * score.accuracy, 100 * score.mrr)
                if layer == FINAL:
                    final[signal] = figures
                else:
                    scores[signal][int(layer)] = figures
                done += 1
                finished()
        del vectors, of_name
    warn_truncated(report, readouts.reader)
    result = made()
    if output is not None:
        result.write(output)
    return result


def layers_of(whole: CheckpointView, layers: LayerSpec) -> list[int]:
    """The layers to probe, of those that are held; not all of them need have values."""
    if layers is None:
        return list(range(whole.decoder_spec.num_layers))
    return list(whole.resolve(Recipe(signal="hidden", weights="mean"), layers, whole.origin.preset))


def _encode(
    readouts: MultiReadout, texts: Sequence[str], folder: Path, progress: bool
) -> tuple[dict[str, NDArray[np.float32]], EncodeReport]:
    """The vectors of every recipe ``[n, width]``, each in a file of its own, so that memory holds a chunk of them."""
    widths = readouts.widths()
    vectors: dict[str, NDArray[np.float32]] = {
        name: np.memmap(folder / f"{number}.f32", np.float32, "w+", shape=(len(texts), width))
        for number, (name, width) in enumerate(widths.items())
    }
    size = max(1, min(_CHUNK, _CHUNK_BYTES // (4 * sum(widths.values()))))
    reports = []
    with track(progress, total=len(texts), desc="Segments", unit="segment") as bar:
        for start in range(0, len(texts), size):
            part = texts[start : start + size]
            for name, of_part in readouts.encode(part).items():
                vectors[name][start : start + len(part)] = of_part
            reports.append(readouts.report or EncodeReport(0, 0, 0, 0))
            bar.update(len(part))
    return vectors, EncodeReport.total(reports)
