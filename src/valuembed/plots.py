"""Figures from results. They are returned, never shown; matplotlib comes with the extra ``plot``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from valuembed.extras import require
from valuembed.outputs import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Told apart by colour-blind readers and in grey: Okabe and Ito's palette without yellow, and a dash for each round.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
_DASHES = ("-", "--", ":", "-.")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")

PLAIN: dict[str, Any] = {"parse_math": False}
"""For every text of a figure: names, files and templates may hold two ``$``, which are no formula."""


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
    axes.set_xticks(range(len(scores)), list(scores), **PLAIN)
    if len(scores) > 6:
        for label in axes.get_xticklabels():
            label.set(rotation=30, ha="right", rotation_mode="anchor")
    axes.set_ylabel(ylabel, **PLAIN)
    axes.margins(y=0.14)
    axes.grid(axis="y", alpha=0.3)
    axes.set_axisbelow(True)
    if len(series) > 1:
        _legend(axes)
    return figure


def curves(lines: Mapping[str, Sequence[tuple[float, float]]], *, title: str, xlabel: str, ylabel: str) -> Figure:
    """Values over a quantity, such as scores over layers, one line a series.

    Args:
        lines: ``{series: [(x, y), ...]}``.
        title: above the figure.
        xlabel: what x is.
        ylabel: what y is, with its unit.
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
    axes.xaxis.get_major_locator().set_params(integer=whole)  # type: ignore[call-arg]
    axes.set_xlabel(xlabel, **PLAIN)
    axes.set_ylabel(ylabel, **PLAIN)
    axes.grid(alpha=0.3)
    _legend(axes)
    return figure


def save(figure: Figure, path: str | Path) -> None:
    """Write a figure as PNG, under its name only when it is complete.

    Raises:
        OutputError: it cannot be written there.
    """
    with replacing(path) as new:
        figure.savefig(new, dpi=150, format="png")


def _new(title: str, *, width: float, height: float) -> tuple[Figure, Axes]:
    # A Figure of its own, not pyplot's: nothing is registered anywhere, and no window system is asked for.
    require("matplotlib", "plot")
    from matplotlib.figure import Figure

    made = Figure(figsize=(width, height), layout="constrained")
    axes: Axes = made.subplots()
    axes.set_title(title, **PLAIN)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    return made, axes


def _colour(number: int) -> str:
    return _COLOURS[number % len(_COLOURS)]


def _legend(axes: Axes) -> None:
    """Beside the axes: on top of data it hides what it explains."""
    legend = axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize=8, frameon=False)
    for text in legend.get_texts():
        text.set(**PLAIN)
