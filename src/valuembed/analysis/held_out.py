"""Which of several sets of layers is chosen, by scores on one half of some data and on the half held out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from valuembed.errors import ReadingError
from valuembed.recipes import Recipe, describe, named_layers
from valuembed.reporting import markdown

MARGIN = 0.01
"""Sets of layers whose scores differ by no more than this, on the scale of 100, count as equally good (ours)."""

SEARCHED = ("best window", "greedy set")
"""The sets that are found on the half to choose on; all others are fixed beforehand."""

FINAL = -1
"""Stands for the hidden states after the final norm, among the numbers of layers."""


@dataclass(frozen=True)
class Candidate:
    """A set of layers with its scores.

    Attributes:
        name: how it was found.
        layers: 0-based; empty for hidden states after the final norm.
        scores: by metric, times 100: on the half that was chosen on, and on the half held out.
        holds_up: whether no set that was fixed beforehand is better on the half held out.
    """

    name: str
    layers: tuple[int, ...]
    scores: Mapping[str, tuple[float, float]]
    holds_up: bool = True

    @property
    def described(self) -> str:
        """The layers as a person writes them."""
        return describe(self.layers) or "after the final norm"


@dataclass(frozen=True)
class Selection:
    """Which layers a method should average, and how that was found out.

    Attributes:
        model: its name.
        recipe: the method with the chosen layers.
        chosen: name of the candidate that was chosen.
        reason: why, in words, with what it was compared with.
        candidates: everything that was compared.
        left_out: sets that cannot be read from this checkpoint, by name, each with the reason.
        data: what was read, plain data: file, split, counts, halves.
        details: what it was read with: origin with its commit, precision, token limit, versions.
    """

    model: str
    recipe: Recipe
    chosen: str
    reason: str
    candidates: tuple[Candidate, ...]
    left_out: Mapping[str, str]
    data: Mapping[str, Any]
    details: Mapping[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {**asdict(self), "recipe": self.recipe.to_dict()}

    def rows(self) -> list[list[str]]:
        """The table, its head first: for each candidate its name, its layers, and its scores on both halves."""
        metrics = list(self.candidates[0].scores)
        head = [f"{metric} {half}" for metric in metrics for half in ("chosen on", "held out")]
        body = [
            [one.name, one.described, *(_told(score) for metric in metrics for score in one.scores[metric])]
            for one in self.candidates
        ]
        return [["", "layers", *head], *body]

    def notes(self) -> list[str]:
        """What stands below the table: the data, how it was halved, what was left out."""
        data = self.data
        split = f", split {data['split']}" if data["split"] else ""
        counts = f"{data['chosen_on']:,} {data['unit']} to choose on, {data['held_out']:,} held out"
        used = f"{data['file']}{split}: {counts}"
        undefined = any(np.isnan(score) for one in self.candidates for both in one.scores.values() for score in both)
        return [
            f"{used} ({data['halves']})",
            *(["-: not defined, for all similarities are equal"] if undefined else []),
            *(f"{name}: left out, {why}" for name, why in self.left_out.items()),
        ]

    @property
    def title(self) -> str:
        """What stands above the table."""
        return f"Layers for {self.recipe.method} on {self.model} (scores x100)"

    @property
    def verdict(self) -> str:
        """The choice in a sentence."""
        best = next(one for one in self.candidates if one.name == self.chosen)
        metric, (_, held_out) = next(iter(best.scores.items()))
        layers = named_layers(best.layers) if best.layers else best.described
        return f"chosen: {self.chosen}, {layers}; {metric} {_told(held_out)} held out. {self.reason}"

    def to_markdown(self) -> str:
        """The table, the choice in bold."""
        head, *body = self.rows()
        rows = [[f"**{cell}**" for cell in row] if row[0] == self.chosen else row for row in body]
        lines = [self.title, "", *markdown.table(head, rows, "--r")]
        return "\n".join([*lines, "", self.verdict, *self.notes()]) + "\n"


def choose_layers(
    candidates: Sequence[Candidate], sets: Sequence[tuple[int, ...]], metric: str, file: str
) -> tuple[list[Candidate], Candidate, str]:
    """Choose among sets of layers that were scored on both halves; see :func:`valuembed.analysis.select_layers`.

    Args:
        candidates: the sets with their scores.
        sets: their layers, in which :data:`FINAL` stands for the final norm.
        metric: what decides.
        file: what the scores are from.

    Returns:
        The candidates, each with whether it holds up; the best of those that do; and the reason for it.

    Raises:
        ReadingError: nothing is defined on the half held out.
    """
    chosen_on, held_out = (known(np.array([one.scores[metric][half] for one in candidates])) for half in (0, 1))
    fixed = [at for at, one in enumerate(candidates) if one.name not in SEARCHED]
    most = max(fixed or range(len(candidates)), key=lambda at: float(held_out[at]))
    if np.isneginf(held_out).all():
        raise ReadingError(
            f"{file}: {metric} is not defined for any set of layers on the half held out, for all "
            "similarities are equal; give other data or another method"
        )
    judged = [
        replace(one, holds_up=not fixed or bool(held_out[at] >= held_out[most] - MARGIN))
        for at, one in enumerate(candidates)
    ]
    good = [at for at, one in enumerate(judged) if one.holds_up]
    first = best_of(sets, chosen_on)
    at = good[best_of([sets[i] for i in good], chosen_on[good])]
    compared = f"Compared: {', '.join(one.name for one in judged)}."
    if judged[first].holds_up:
        reason = (
            "It is the best on the half that was chosen on, and no set that was fixed beforehand is better held out"
        )
        if not fixed:
            reason = "It is the best on the half that was chosen on; no set that was fixed beforehand can be read here"
        return judged, judged[at], f"{reason}. {compared}"
    lost = judged[first].scores[metric]
    searched = not any(judged[i].holds_up for i, one in enumerate(judged) if one.name in SEARCHED)
    return (
        judged,
        judged[at],
        (
            f"The best on the half that was chosen on, {judged[first].name} ({judged[first].described}, "
            f"{_told(lost[0])}), does not hold up: {_told(lost[1])} held out, against "
            f"{_told(judged[most].scores[metric][1])} of {judged[most].name}. "
            f"{'No set that was searched for holds up. ' if searched else ''}{compared}"
        ),
    )


def _told(score: float) -> str:
    return "-" if np.isnan(score) else f"{score:.2f}"


def best_of(sets: Sequence[tuple[int, ...]], scores: NDArray[np.float64]) -> int:
    """Which set is best; of equally good ones the one that ends lowest, then the one of fewest layers."""
    values = known(scores)
    good = np.flatnonzero(values >= values.max() - MARGIN).tolist()
    return min(good, key=lambda at: (sets[at] == (FINAL,), sets[at][-1], len(sets[at])))


def known(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Scores, with the worst in place of one that is not defined."""
    return np.where(np.isnan(scores), -np.inf, scores)
