"""The experiments of the paper, one checked file for each backbone: rows, tasks, and figures that others published."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from valuembed.errors import InputError, RecipeError
from valuembed.recipes import PRESETS, Recipe, resolve_recipe

FOLDER = Path(__file__).parent / "backbones"
BUNDLED = "bundled"
BUNDLED_LIKE = "qwen-3-8b"
"""Whose rows the bundled model stands in for: it is of the same family, and much smaller."""

STS = "sts"
KINDS = ("clustering", "retrieval", STS, "classification", "reranking")
"""The kinds of tasks that the paper names, in its order."""


@dataclass(frozen=True)
class PublishedRow:
    """A row of the tables.

    Attributes:
        id: short name, for filters.
        label: what stands in the tables.
        recipe: its layers as the backbone's file gives them.
    """

    id: str
    label: str
    recipe: Recipe


@dataclass(frozen=True)
class TaskSize:
    """A task of mteb, and about how much there is to embed.

    Attributes:
        name: mteb's.
        kind: one of :data:`KINDS`.
        texts: how many are embedded.
        tokens_per_text: an estimate of their mean length, without template.
    """

    name: str
    kind: str
    texts: int
    tokens_per_text: float


@dataclass(frozen=True)
class PublishedScores:
    """Figures of others on the STS tasks: Spearman x100.

    Attributes:
        label: the method.
        source: who published them.
        scores: by task; empty where only the mean is known.
        mean: over all STS tasks.
    """

    label: str
    source: str
    scores: Mapping[str, float]
    mean: float


@dataclass(frozen=True)
class PaperRow:
    """A row of the paper's table, whose column heads do not line up with its values: its figures belong to no task."""

    label: str
    width: int
    figures: tuple[float, ...]


@dataclass(frozen=True)
class Backbone:
    """The experiments on one backbone.

    Attributes:
        id: the file's name without ending.
        title: as a person would say it.
        model: hub id.
        decoder: ``model_type`` and the settings of its configuration that decide sizes.
        rows, tasks: what is run on what.
        sizes: where the sizes of the tasks come from.
        theirs, printed: what others published, for the same tables.
        notes: what a reader of the tables has to know.
    """

    id: str
    title: str
    model: str
    decoder: Mapping[str, Any]
    rows: tuple[PublishedRow, ...]
    tasks: tuple[TaskSize, ...]
    sizes: str
    theirs: tuple[PublishedScores, ...]
    printed: tuple[PaperRow, ...]
    notes: tuple[str, ...]

    @property
    def num_layers(self) -> int:
        """L of the backbone."""
        return int(self.decoder["num_hidden_layers"])

    def indices(self, row: PublishedRow) -> tuple[int, ...] | None:
        """The backbone's layers that a row gives as numbers or by a preset; None where it names them otherwise."""
        layers = row.recipe.layers
        if isinstance(layers, str) and layers in PRESETS:
            layers = PRESETS[layers].layers
        return tuple(map(int, layers)) if isinstance(layers, tuple) else None

    def recipe(self, row: PublishedRow, num_layers: int) -> Recipe:
        """A row's recipe for a decoder of any depth.

        Layers given as indices are those of the backbone. In a decoder of another depth the layers at the same relative
        depth stand in for them; names such as "half" need no such mapping.
        """
        layers = self.indices(row)
        if layers is None or num_layers == self.num_layers:
            return row.recipe
        return replace(row.recipe, layers=map_layers(layers, self.num_layers, num_layers))


def map_layers(layers: tuple[int, ...], depth: int, new_depth: int) -> tuple[int, ...]:
    """The layers of a decoder at the relative depth of another's: ``l * L' / L``, rounded down, each once.

    Args:
        layers: 0-based indices in a decoder of ``depth`` layers.
        depth: its L.
        new_depth: L' of the other decoder.

    Raises:
        RecipeError: a layer that is no index of the first decoder.
    """
    if wrong := [layer for layer in layers if not 0 <= layer < depth]:
        raise RecipeError(f"layer {wrong[0]} cannot be mapped by depth; expected 0 to {depth - 1}")
    return tuple(sorted({layer * new_depth // depth for layer in layers}))


def backbones() -> list[str]:
    """The backbones that come with the package."""
    return sorted(path.stem for path in FOLDER.glob("*.json"))


def read_backbone(name: str) -> Backbone:
    """Read and check the experiments on a backbone.

    Args:
        name: one of :func:`backbones`; ``"bundled"`` for :data:`BUNDLED_LIKE`; or the path of a file of your own in the
            same form.

    Raises:
        InputError: no such backbone or file, or the file is not as expected.
    """
    path = Path(name) if name.endswith(".json") else FOLDER / f"{BUNDLED_LIKE if name == BUNDLED else name}.json"
    if path.parent == FOLDER and path.stem not in backbones():
        raise InputError(f"backbone {name!r} is unknown; legal: {', '.join([*backbones(), BUNDLED])}, or a .json file")
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"backbone file {path.name!r} cannot be read: {error}") from error
    return _Reader(path.name).backbone(data)


class _Reader:
    """Plain data to a :class:`Backbone`, with errors that name the file and the place in it."""

    def __init__(self, file: str) -> None:
        self.file = file

    def backbone(self, data: Any) -> Backbone:
        names = {"id": str, "title": str, "model": str, "decoder": dict, "rows": list, "tasks": list}
        top = self.object("the file", data, names, {"sizes": str, "theirs": list, "printed": list, "notes": list})
        depth = top["decoder"].get("num_hidden_layers")
        if not isinstance(depth, int) or depth < 1 or not isinstance(top["decoder"].get("model_type"), str):
            raise self.error("decoder", "needs 'model_type' and 'num_hidden_layers'")
        for name in ("rows", "tasks"):
            if not top[name]:
                raise self.error(name, "is empty")
        rows = tuple(self.row(f"rows[{number}]", entry) for number, entry in enumerate(top["rows"]))
        tasks = tuple(self.task(f"tasks[{number}]", entry) for number, entry in enumerate(top["tasks"]))
        for what, values in (
            ("rows: the id", [row.id for row in rows]),
            ("rows: the label", [row.label for row in rows]),
            ("tasks: the name", [task.name for task in tasks]),
        ):
            if twice := [value for value in values if values.count(value) > 1]:
                raise self.error(what, f"{twice[0]!r} stands twice")
        sts = [task.name for task in tasks if task.kind == STS]
        theirs = enumerate(top.get("theirs", []))
        printed = enumerate(top.get("printed", []))
        return Backbone(
            id=top["id"],
            title=top["title"],
            model=top["model"],
            decoder=top["decoder"],
            rows=rows,
            tasks=tasks,
            sizes=top.get("sizes", ""),
            theirs=tuple(self.theirs(f"theirs[{number}]", entry, sts) for number, entry in theirs),
            printed=tuple(self.printed(f"printed[{number}]", entry) for number, entry in printed),
            notes=tuple(map(str, top.get("notes", []))),
        )

    def row(self, where: str, data: Any) -> PublishedRow:
        if isinstance(data, dict) and "recipe" in data:
            entry = self.object(where, data, {"id": str, "label": str, "recipe": dict}, {})
            asked: tuple[Any, ...] = (entry["recipe"],)
        else:
            choices = {"layers": (str, list), "template": (str, list), "cleaning": str}
            entry = self.object(where, data, {"id": str, "label": str, "method": str}, choices)
            asked = entry["method"], entry.get("layers"), entry.get("template", "auto"), entry.get("cleaning")
        try:
            return PublishedRow(entry["id"], entry["label"], resolve_recipe(*asked))
        except RecipeError as error:
            raise self.error(where, str(error)) from error

    def task(self, where: str, data: Any) -> TaskSize:
        names = {"name": str, "kind": str, "texts": int, "tokens_per_text": (int, float)}
        entry = self.object(where, data, names, {})
        if entry["kind"] not in KINDS:
            raise self.error(where, f"kind {entry['kind']!r} is unknown; legal: {', '.join(KINDS)}")
        if entry["texts"] < 1 or entry["tokens_per_text"] <= 0:
            raise self.error(where, "'texts' and 'tokens_per_text' have to be above 0")
        return TaskSize(**entry)

    def theirs(self, where: str, data: Any, tasks: list[str]) -> PublishedScores:
        entry = self.object(where, data, {"label": str, "source": str}, {"scores": dict, "mean": (int, float)})
        scores = entry.get("scores", {})
        if bool(scores) == ("mean" in entry):
            raise self.error(where, "needs either 'scores' by task or 'mean'")
        if scores and sorted(scores) != sorted(tasks):
            raise self.error(where, f"scores of {', '.join(scores)}; expected those of {', '.join(tasks)}")
        mean = entry["mean"] if not scores else sum(scores.values()) / len(scores)
        return PublishedScores(entry["label"], entry["source"], scores, mean)

    def printed(self, where: str, data: Any) -> PaperRow:
        entry = self.object(where, data, {"label": str, "width": int, "figures": list}, {})
        return PaperRow(entry["label"], entry["width"], tuple(map(float, entry["figures"])))

    def object(self, where: str, data: Any, needed: dict[str, Any], optional: dict[str, Any]) -> dict[str, Any]:
        """An object with these keys and no others, each of its type."""
        if not isinstance(data, dict):
            raise self.error(where, f"is {type(data).__name__}, not an object")
        legal = {**needed, **optional}
        if unknown := [key for key in data if key not in legal]:
            raise self.error(where, f"unknown key {unknown[0]!r}; legal: {', '.join(legal)}")
        if missing := [key for key in needed if key not in data]:
            raise self.error(where, f"lacks the key {missing[0]!r}; needed: {', '.join(needed)}")
        for key, value in data.items():
            if not isinstance(value, legal[key]) or isinstance(value, bool):
                types = legal[key] if isinstance(legal[key], tuple) else (legal[key],)
                wanted = " or ".join(_TYPES[kind] for kind in types)
                raise self.error(where, f"{key!r} is {value!r}; expected {wanted}")
        return data

    def error(self, where: str, what: str) -> InputError:
        return InputError(f"backbone file {self.file!r}: {where}: {what}")


_TYPES = {str: "a string", int: "a whole number", float: "a number", list: "a list", dict: "an object"}
