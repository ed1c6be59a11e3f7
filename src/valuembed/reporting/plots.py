"""Figures from results. They are returned, never shown; matplotlib comes with the extra ``plot``."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from valuembed._utils.atomic import replacing
from valuembed._utils.optional import require
from valuembed._utils.text import decimals, shortened
from valuembed.reporting.chart_texts import (
    LEGEND,
    PLAIN,
    broken,
    legend_width,
    name_groups,
    note_below,
    title_above,
    wrapped,
)
from valuembed.reporting.fonts import Lettering, lettering

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

# Told apart by colour-blind readers and in grey: Okabe and Ito's palette without yellow, and a dash for each round.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
_DASHES = ("-", "--", ":", "-.")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")

# Light to dark, so that it means the same in grey.
_SHADES = "YlGnBu"
_NUMBERED = 12
_NAMED = 60
_COLUMNS = 56
_VISIBLE = 1500
_NO_DIFFERENCE = 1e-5

LABELLED = 8 * _COLUMNS
"""Tokens of a sequence from which on they are only numbered."""


def bars(scores: Mapping[str, Mapping[str, float]], *, title: str, ylabel: str) -> Figure:
    """Scores as groups of bars, one colour a series, the value on each bar where there is room.

    Args:
        scores: ``{group: {series: value}}``; a series that a group lacks leaves a gap. NaN is not drawn.
        title: above the figure.
        ylabel: what the values are, with their unit.
    """
    series = list(dict.fromkeys(name for of_group in scores.values() for name in of_group))
    count = len(scores) * len(series)
    width = min(24.0, max(7.0, 2.0 + 0.32 * count))
    figure, axes = _new(title, width=width, height=max(4.8, width / 3))
    thickness = 0.84 / max(len(series), 1)
    for number, name in enumerate(series):
        places = [group + (number - (len(series) - 1) / 2) * thickness for group in range(len(scores))]
        values = [of_group.get(name, float("nan")) for of_group in scores.values()]
        hatch = "" if number < len(_COLOURS) else "//"
        drawn = axes.bar(places, values, thickness, label=name, color=_colour(number), hatch=hatch, edgecolor="white")
        if count <= 60:
            labels = ["" if value != value else f"{value:.1f}" for value in values]
            axes.bar_label(drawn, labels, rotation=90, fontsize=7, padding=2)
    name_groups(axes, list(scores), (width - 1.0 - legend_width(series)) / len(scores))
    axes.set_ylabel(ylabel, **PLAIN)
    axes.margins(y=0.14)
    axes.grid(axis="y", alpha=0.3)
    axes.set_axisbelow(True)
    if len(series) > 1:
        _legend(axes)
    return figure


def curves(
    lines: Mapping[str, Sequence[tuple[float, float]]],
    *,
    title: str,
    xlabel: str,
    ylabel: str,
    span: tuple[str, Sequence[int]] | None = None,
    peaks: str | None = None,
) -> Figure:
    """Values over a quantity, such as scores over layers, one line a series.

    Args:
        lines: ``{series: [(x, y), ...]}``.
        title: above the figure.
        xlabel: what x is.
        ylabel: what y is, with its unit.
        span: whole numbers on the x axis to shade, behind what they are called.
        peaks: what the highest point of a line is called; each is ringed, and the highest of all has its number.
    """
    figure, axes = _new(title, width=9.0, height=4.8)
    # Layers are whole numbers, and an axis must not invent others between them.
    whole = all(x == int(x) for points in lines.values() for x, _ in points)
    for number, (name, points) in enumerate(lines.items()):
        axes.plot(
            [x for x, _ in points],
            [y for _, y in points],
            label=name,
            color=_colour(number),
            linestyle=_DASHES[number // len(_COLOURS) % len(_DASHES)],
            marker=_MARKERS[number % len(_MARKERS)],
            markersize=4,
        )
    if span is not None:
        for number, (first, last) in enumerate(_neighbours(span[1])):
            axes.axvspan(first - 0.5, last + 0.5, color="0.85", zorder=0, label="" if number else span[0])
    if peaks is not None:
        _ring(axes, lines, peaks, xlabel)
    axes.xaxis.get_major_locator().set_params(integer=whole)  # type: ignore[call-arg]
    axes.set_xlabel(xlabel, **PLAIN)
    axes.set_ylabel(ylabel, **PLAIN)
    axes.grid(alpha=0.3)
    _legend(axes)
    return figure


def panels(
    columns: Mapping[str, Mapping[str, float]],
    rows: Sequence[str],
    *,
    title: str,
    written: Callable[[float | None], str],
    best: Callable[[Mapping[str, float]], Container[str]],
) -> Figure:
    """A panel for each column of a table, with a bar for each row and its value beside it.

    Args:
        columns: ``{column: {row: value}}``.
        rows: which rows, from the top.
        title: above the figure.
        written: a value as it is written; None stands for one that a column lacks.
        best: those of a column's values, as they are written, that have another colour.
    """
    wide = max(1, min(4, len(columns)))
    high = max(1, -(-len(columns) // wide))
    figure = _figure(2.0 + 2.6 * wide, 0.8 + high * (0.7 + 0.2 * len(rows)))
    title_above(figure, title)
    every = figure.subplots(high, wide, sharey=True, squeeze=False).flatten()
    for panel, (name, column) in zip(every, columns.items(), strict=False):
        texts = [written(column.get(row)) for row in rows]
        colours = [_COLOURS[1] if text in best(column) else _COLOURS[0] for text in texts]
        drawn = panel.barh(range(len(rows)), [column.get(row, 0.0) for row in rows], color=colours)
        panel.bar_label(drawn, texts, fontsize=7, padding=2)
        panel.set_title("\n".join(broken(name, 24)), fontsize=9, **PLAIN)
        panel.set_yticks(range(len(rows)), rows, fontsize=8, **PLAIN)
        panel.tick_params(axis="x", labelsize=7)
        panel.margins(x=0.2, y=0.02)
        panel.spines[["top", "right"]].set_visible(False)
    every[0].invert_yaxis()  # shared by all: the first row stands at the top
    for panel in every[len(columns) :]:
        panel.set_visible(False)
    return figure


def matrix(values: NDArray[Any], texts: Sequence[str], *, title: str, label: str) -> Figure:
    """How similar each of n texts is to each, as colours; for a few texts as numbers too.

    The colours span what lies beside the diagonal, where every text meets itself. Texts stand beside their rows while
    there is room, cut where they are long.

    Args:
        values: ``[n, n]``.
        texts: n texts.
        title: above the figure.
        label: what the values are.
    """
    import numpy as np

    n = len(texts)
    letters = lettering(texts)
    numbered, named = n <= _NUMBERED, n <= _NAMED
    cell = 0.6 if numbered else 0.24 if named else 7.0 / n
    beside = [wrapped(text, letters, 3 if numbered else 1) for text in texts] if named else []
    longest = max((size for _, size in beside), default=0)
    figure = _figure(max(4.0, n * cell + 0.07 * longest + 1.8), n * cell + 0.9)
    axes: Axes = figure.subplots()
    title_above(figure, title)
    others = np.where(np.eye(n, dtype=bool), np.nan, values)
    low, high = (np.nanmin(others), np.nanmax(others)) if n > 1 else (0.0, 0.0)
    # What does not differ gets no colours that do.
    middle, half = (low + high) / 2, (high - low if high - low > _NO_DIFFERENCE else 0.05) / 2
    digits = decimals(low, high)
    # The first of all is number 1.
    image = axes.imshow(
        others, cmap=_SHADES, vmin=middle - half, vmax=middle + half, extent=(0.5, n + 0.5, n + 0.5, 0.5)
    )
    axes.set_facecolor("0.88")
    for i, j in np.ndindex(n, n) if numbered else ():
        dark = i != j and values[i, j] > middle + 0.2 * half
        ink = "white" if dark else "black"
        axes.text(j + 1, i + 1, f"{values[i, j]:.{digits}f}", ha="center", va="center", fontsize=8, color=ink)
    if named:
        axes.set_xticks(range(1, n + 1))
        axes.set_yticks(range(1, n + 1))
    for number, (text, _) in enumerate(beside, start=1):
        axes.annotate(
            text,
            (0, number),
            (-24, 0),
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
            ha="right",
            va="center",
            fontsize=8,
            fontfamily=letters.families,
            **PLAIN,
        )
    axes.tick_params(length=0 if named else 3, labelsize=8)
    axes.spines[:].set_visible(False)
    _scale(figure, image, [axes], label)
    note_below(figure, letters.note)
    return figure


def token_weights(
    sequences: Sequence[tuple[Sequence[str], Sequence[bool], NDArray[Any]]],
    *,
    rows: Sequence[str],
    full: float,
    title: str,
) -> Figure:
    """Weights of tokens as colours, layers by tokens, cut into strips as a text is cut into lines.

    Args:
        sequences: for each sequence its t tokens; whether each is the text's own; and ``[l, t]``, the layers' weights.
            Tokens of more than :data:`LABELLED` are only numbered, from 1.
        rows: what the l layers are called.
        full: the weight of the darkest colour; larger ones have the same.
        title: above the figure.
    """
    require("matplotlib", "plot")
    from matplotlib.colors import PowerNorm

    letters = lettering(token for tokens, _, _ in sequences for token in tokens)
    labelled = all(len(tokens) <= LABELLED for tokens, _, _ in sequences)
    strips = [
        (index, start, stop)
        for index, (tokens, _, _) in enumerate(sequences)
        for start, stop in _strips(len(tokens), labelled)
    ]
    columns = max(stop - start for _, start, stop in strips)
    row = min(0.24, max(0.1, 5.0 / len(rows)))
    high = (len(rows) + 1.5) * row + (1.1 if labelled else 0.4)
    figure = _figure(max(7.0, 2.0 + (0.24 * columns if labelled else 12.0)), 0.8 + high * len(strips))
    title_above(figure, title)
    every = list(figure.subplots(len(strips), 1, squeeze=False)[:, 0])
    # On an even scale all but a few tokens would be pale.
    norm = PowerNorm(0.5, 0.0, max(full, 1e-9))
    for axes, (index, start, stop) in zip(every, strips, strict=True):
        tokens, own, weights = sequences[index]
        part = weights[:, start:stop]
        edges = (start + 0.5, stop + 0.5)
        drawing: dict[str, Any] = {"cmap": _SHADES, "norm": norm, "aspect": "auto", "interpolation": "nearest"}
        image = axes.imshow(_thinned(part), extent=(*edges, len(rows), 0), **drawing)
        # The mean stands on top, a little apart.
        axes.imshow(_thinned(part.mean(axis=0, keepdims=True)), extent=(*edges, -0.5, -1.5), **drawing)
        axes.set(xlim=(start + 0.5, start + columns + 0.5), ylim=(len(rows), -1.5))
        named = range(0, len(rows), -(-len(rows) // max(1, int(len(rows) * row / 0.13))))
        axes.set_yticks([-1, *(number + 0.5 for number in named)], ["mean", *(rows[number] for number in named)])
        which = f"template {index + 1}, " if len(sequences) > 1 else ""
        axes.set_ylabel(f"{which}layer", fontsize=8)
        axes.spines[:].set_visible(False)
        for first, last in _runs(own[start:stop]):
            axes.plot([edges[0] + first, edges[0] + last], [-1.5, -1.5], color="black", linewidth=3, clip_on=False)
        if labelled:
            _label(axes, start, [letters.drawn(token) for token in tokens[start:stop]], own[start:stop], letters)
        else:
            axes.set_xlabel("token", fontsize=8)
        axes.tick_params(length=0 if labelled else 3, labelsize=8)
    beyond = any(float(weights.max()) > full for _, _, weights in sequences)
    bar = _scale(figure, image, every, "weight", extend="max" if beyond else "neither")
    bar.set_ticks(ticks := _round_shares(full), labels=[f"{100 * tick:g}%" for tick in ticks])
    bar.minorticks_off()
    note_below(figure, "; ".join(filter(None, ("black: the text's own tokens", letters.note))))
    return figure


def save(figure: Figure, path: str | Path) -> None:
    """Write a figure as PNG, under its name only when it is complete.

    Raises:
        OutputError: it cannot be written there.
    """
    with replacing(path) as new:
        figure.savefig(new, dpi=150, format="png")


def _figure(width: float, height: float) -> Figure:
    # A Figure of its own, not pyplot's: nothing is registered anywhere, and no window system is asked for.
    require("matplotlib", "plot")
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _new(title: str, *, width: float, height: float) -> tuple[Figure, Axes]:
    made = _figure(width, height)
    axes: Axes = made.subplots()
    title_above(made, title)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    return made, axes


def _ring(axes: Axes, lines: Mapping[str, Sequence[tuple[float, float]]], label: str, quantity: str) -> None:
    """Ring the highest point of each line, and write at the highest of all what it is."""
    known = {name: [(x, y) for x, y in points if y == y] for name, points in lines.items()}
    tops = {name: max(points, key=lambda point: point[1]) for name, points in known.items() if points}
    if not tops:
        return
    places = list(tops.values())
    ring: dict[str, Any] = {"facecolors": "none", "edgecolors": "black", "linewidths": 1.4, "zorder": 5}
    axes.scatter([x for x, _ in places], [y for _, y in places], s=80, label=label, **ring)
    x, y = max(places, key=lambda point: point[1])
    told = f"{quantity} {x:g}: {y:.2f}"
    axes.annotate(told, (x, y), (0, 7), textcoords="offset points", ha="center", fontsize=8, **PLAIN)
    axes.margins(y=0.1)


def _neighbours(numbers: Sequence[int]) -> list[tuple[int, int]]:
    """Runs of neighbouring whole numbers, each as its first and last."""
    edges = [place for place in numbers if place - 1 not in numbers], [at for at in numbers if at + 1 not in numbers]
    return list(zip(*edges, strict=True))


def _colour(number: int) -> str:
    return _COLOURS[number % len(_COLOURS)]


def _legend(axes: Axes) -> None:
    """Beside the axes: on top of data it hides what it explains."""
    legend = axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize=8, frameon=False)
    for text in legend.get_texts():
        text.set(text="\n".join(broken(text.get_text(), LEGEND)), **PLAIN)


def _strips(count: int, labelled: bool) -> list[tuple[int, int]]:
    """Where tokens are cut into strips, about equally long."""
    number = -(-count // _COLUMNS) if labelled else 1
    size = -(-count // number)
    return [(start, min(start + size, count)) for start in range(0, count, size)]


def _runs(flags: Sequence[bool]) -> list[tuple[int, int]]:
    """Ranges ``[start, stop)`` where the flags are set."""
    edges = [place for place, (a, b) in enumerate(pairwise([False, *flags, False])) if a != b]
    return list(zip(edges[::2], edges[1::2], strict=True))


def _thinned(values: NDArray[Any]) -> NDArray[Any]:
    """``[l, t]`` with no more columns than can be seen: of neighbours the largest, so that no peak gets lost."""
    import numpy as np

    step = -(-values.shape[1] // _VISIBLE)
    return np.maximum.reduceat(values, range(0, values.shape[1], step), axis=1)


def _label(axes: Axes, start: int, tokens: Sequence[str], own: Sequence[bool], letters: Lettering) -> None:
    """Write tokens below their columns, and part the text's own from others."""
    places = range(start + 1, start + 1 + len(tokens))
    # A blank is only seen where there is nothing else.
    shown = [shortened(token.strip() or "\N{OPEN BOX}" * bool(token), 30) for token in tokens]
    axes.set_xticks(places, shown, rotation=90, fontfamily=letters.families, **PLAIN)
    for label, mine in zip(axes.get_xticklabels(), own, strict=True):
        label.set(**({"color": "black"} if mine else {"color": "0.5", "style": "italic"}))
    for place, (before, after) in zip(places, pairwise(own), strict=False):
        if before != after:
            axes.axvline(place + 0.5, color="white", linewidth=3)


def _round_shares(full: float) -> list[float]:
    """0 and round numbers up to ``full``, none so small that they would stand on each other."""
    rounds = [digit * 10.0**power for power in range(-6, 1) for digit in (1, 2, 5)]
    return [0.0, *(number for number in rounds if full / 40 <= number <= full)]


def _scale(figure: Figure, image: Any, every: list[Axes], label: str, *, extend: str = "neither") -> Any:
    """What the colours mean, on the right."""
    share = min(0.9, 4.0 / figure.get_figheight())
    bar = figure.colorbar(image, ax=every, shrink=share, anchor=(0.0, 1.0), aspect=20, pad=0.02, extend=extend)
    bar.set_label(label, fontsize=8)
    bar.ax.tick_params(labelsize=8)
    bar.outline.set_visible(False)
    return bar
