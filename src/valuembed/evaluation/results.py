"""Figures of an evaluation: as a table, as a chart, and as files that a later run can trust.

On disk, mteb's own cache keeps mteb's own JSON, one file a model, recipe and task. mteb ignores keys that it does not
know, so each file also says which model and recipe gave it and under which versions. Its folder's name is a fingerprint
of model and recipe, and the name of a local task holds a hash of its data: a file is found only by what made it, and
counts only under the versions that made it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from valuembed._utils.atomic import replace_text
from valuembed._utils.optional import require
from valuembed._utils.text import counted, inflected
from valuembed._utils.version import versions
from valuembed.errors import OutputError, ReadingError
from valuembed.recipes import Recipe
from valuembed.reporting import markdown

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from mteb import AbsTask, TaskResult
    from mteb.models import ModelMeta

NOTES = "valuembed"
"""Key of mteb's JSON under which model, recipe and versions stand."""

MAX_COLOURS = 7
"""Series of bars that can still be told apart."""

MAX_GROUPS = 8
"""Groups of bars that fit side by side."""

MAX_PANELS = 12
"""Panels that fit on one page."""


@dataclass(frozen=True)
class Score:
    """One method on one task.

    Attributes:
        method: its label in the evaluation.
        task: the task's title.
        name: the task's name in mteb; of a local task, it holds a hash of the data.
        kind: such as ``"sts"`` or ``"classification"``.
        metric: mteb's name of the task's main score.
        score: that score in percent.
        width: of the vectors.
        layers: what was averaged over, as a person writes it.
        texts: different texts that were embedded.
        tokens: tokens that were fed for them. Methods that share passes show the same tokens, fed once for all of them.
        truncated: texts that lost tokens of their end.
        seconds: time of the passes, shared in the same way.
        reused: whether an earlier run computed it.
    """

    method: str
    task: str
    name: str
    kind: str
    metric: str
    score: float
    width: int
    layers: str
    texts: int
    tokens: int
    truncated: int
    seconds: float
    reused: bool


@dataclass(frozen=True)
class Failure:
    """One method on one task that gave no score, and why."""

    method: str
    task: str
    reason: str


@dataclass(frozen=True)
class Evaluation:
    """Scores of methods on tasks.

    Attributes:
        model: its name.
        recipes: by the methods' labels, layers absolute.
        tasks: title and kind of each task.
        scores: what was computed or found.
        failures: what gave no score.
        max_tokens: longest sequence that was fed, where one was asked for.
    """

    model: str
    recipes: Mapping[str, Recipe]
    tasks: Mapping[str, str]
    scores: tuple[Score, ...]
    failures: tuple[Failure, ...] = ()
    max_tokens: int | None = None

    def table(self) -> dict[str, dict[str, float]]:
        """``{method: {task: percent}}``, in the order given; without what failed."""
        found: dict[str, dict[str, float]] = {method: {} for method in self.recipes}
        for score in self.scores:
            found[score.method][score.task] = score.score
        return {method: {task: row[task] for task in self.tasks if task in row} for method, row in found.items()}

    def means(self) -> dict[str, dict[str, float]]:
        """``{method: {mean: percent}}``: over each kind that has several tasks, over all tasks, over the kinds' means.

        A method that failed on a task has no mean that would cover it: means over different tasks do not compare.
        """
        kinds: dict[str, list[str]] = {}
        for task, kind in self.tasks.items():
            kinds.setdefault(kind, []).append(task)
        several = [kind for kind, tasks in kinds.items() if len(tasks) > 1]
        found: dict[str, dict[str, float]] = {}
        for method, row in self.table().items():
            made = found[method] = {}
            of_kind = {kind: fmean(row[task] for task in tasks) for kind, tasks in kinds.items() if {*tasks} <= {*row}}
            if len(kinds) > 1:
                made.update({f"mean {kind}": of_kind[kind] for kind in several if kind in of_kind})
            if len(self.tasks) > 1 and len(row) == len(self.tasks):
                made["mean of tasks" if several and len(kinds) > 1 else "mean"] = fmean(row.values())
                if several and len(kinds) > 1:
                    made["mean of kinds"] = fmean(of_kind.values())
        return found

    def columns(self) -> dict[str, dict[str, float]]:
        """``{task or mean: {method: percent}}``: the columns of the table, tasks first."""
        table, means = self.table(), self.means()
        names = dict.fromkeys(name for row in means.values() for name in row)
        return {
            column: {method: rows[method][column] for method in self.recipes if column in rows[method]}
            for rows, columns in ((table, self.tasks), (means, names))
            for column in columns
        }

    def about(self, method: str) -> tuple[str, str]:
        """Layers and width of a method, as a person writes them; the width is known with the first score."""
        width = next((str(score.width) for score in self.scores if score.method == method), "")
        return self.recipes[method].describe().layers, width

    def cut(self) -> list[str]:
        """A line for each task of which methods had texts cut."""
        limit = "the model's limit" if self.max_tokens is None else counted(self.max_tokens, "token")
        found: dict[str, list[str]] = {}
        for score in self.scores:
            if score.truncated:
                line = (
                    f"{score.task}: {score.truncated:,} of {counted(score.texts, 'text')} "
                    f"{inflected(score.truncated, 'was', 'were')} cut to {limit} for"
                )
                found.setdefault(line, []).append(score.method)
        return [f"{line} {', '.join(methods)}" for line, methods in found.items()]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "model": self.model,
            "recipes": {method: recipe.to_dict() for method, recipe in self.recipes.items()},
            "tasks": dict(self.tasks),
            "table": self.table(),
            "means": self.means(),
            "scores": [asdict(score) for score in self.scores],
            "failures": [asdict(failure) for failure in self.failures],
            "versions": scoring_versions(),
        }

    def to_markdown(self) -> str:
        """The table, with the recipes, what failed and what was cut."""
        columns = self.columns()
        metrics = {score.task: score.metric for score in self.scores}
        heads = [f"{name} ({metrics[name]})" if name in metrics else name for name in columns]
        best = {name: best_of(column) for name, column in columns.items()}
        lines = [f"# Evaluation of {markdown.cell(self.model)}", "", "In percent; the best of each column is bold.", ""]
        rows = []
        for method in self.recipes:
            cells = [percent(column.get(method)) for column in columns.values()]
            cells = [f"**{cell}**" if cell in best[name] else cell for name, cell in zip(columns, cells, strict=True)]
            rows.append([method, *self.about(method), *cells])
        lines += markdown.table(["method", "layers", "width", *heads], rows, "llr")
        if self.failures:
            lines += ["", "## Failed", ""]
            lines += [f"- {markdown.cell(f'{lost.task}, {lost.method}: {lost.reason}')}" for lost in self.failures]
        if cut := self.cut():
            lines += ["", "## Cut texts", "", *(f"- {markdown.cell(line)}" for line in cut)]
        lines += ["", "## Recipes", ""]
        rows = []
        for method, recipe in self.recipes.items():
            for at, part in enumerate(recipe.parts):
                choices = [part.signal, part.weights, part.alignment, part.span]
                rest = [part.describe().templates, part.cleaning, part.centring]
                rows.append([f"{method}, part {at + 1}" if recipe.joined else method, *choices, *rest])
        head = ["method", "signal", "weights", "alignment", "span", "template", "cleaning", "centring"]
        lines += markdown.table(head, rows, "l")
        made = ", ".join(f"{package} {number}" for package, number in scoring_versions().items())
        return "\n".join([*lines, "", f"Written with {made}.", ""])

    def figure(self) -> Figure:
        """The table as bars; of many methods as a panel a column, and of too many tasks only the means.

        Where there is no mean yet, as after an interruption, the first tasks that have scores.

        Raises:
            MissingExtraError: matplotlib is not installed.
        """
        from valuembed.reporting import plots

        title, columns = f"Evaluation of {self.model}", self.columns()
        if len(self.recipes) <= MAX_COLOURS and len(self.tasks) <= MAX_GROUPS:
            return plots.bars({task: columns[task] for task in self.tasks}, title=title, ylabel="score (%)")
        if len(columns) > MAX_PANELS:
            means = {name: column for name, column in columns.items() if name not in self.tasks}
            columns = means or dict(islice(((name, column) for name, column in columns.items() if column), MAX_PANELS))
            title += "" if means else f", {len(columns)} of {counted(len(self.tasks), 'task')}"
        return plots.panels(columns, list(self.recipes), title=f"{title}, in percent", written=percent, best=best_of)


def best_of(column: Mapping[str, float]) -> set[str]:
    """The best of a column, as printed; nothing where there is no choice."""
    return {percent(max(column.values()))} if len(column) > 1 else set()


def percent(value: float | None) -> str:
    """A score with two decimals; a dash where there is none."""
    return "-" if value is None else f"{value:.2f}"


def scoring_versions() -> dict[str, str]:
    """Versions of what decides a score."""
    return versions("torch", "transformers", "sentence-transformers", "mteb")


def write(evaluation: Evaluation, folder: Path) -> None:
    """Write ``results.md`` and ``results.png`` into a folder.

    Raises:
        OutputError: they cannot be written.
        MissingExtraError: matplotlib is not installed.
    """
    from valuembed.reporting import plots

    replace_text(folder / "results.md", evaluation.to_markdown())
    plots.save(evaluation.figure(), folder / "results.png")


def check_finite(result: TaskResult, task: AbsTask, method: str) -> None:
    """Raise where a main score is no number.

    Raises:
        ReadingError: with task, method and split.
    """
    for split, entries in result.scores.items():
        for entry in entries:
            value = entry["main_score"]
            if not isinstance(value, (int, float)) or not math.isfinite(value):
                raise ReadingError(
                    f"task {task.metadata.name}, split {split}, method {method}: {task.metadata.main_score} is {value} "
                    "and no score; its vectors or its data are degenerate, such as vectors or labels that are all alike"
                )


class Kept:
    """The results of one method in a folder, as mteb's ``evaluate`` wants its cache.

    mteb asks it what is there and hands it what is new, after each subset of a task.

    Args:
        folder: where all results are.
        meta: name and revision of the method, which decide its own folder.
        method: its label.
        notes: what to record beside scores and versions, asked anew for each task.
    """

    def __init__(self, folder: Path, meta: ModelMeta, method: str, notes: Callable[[], dict[str, Any]]) -> None:
        self._cache = require("mteb", "eval").ResultCache(folder)
        self._meta = meta
        self._method = method
        self._notes = notes
        self._tasks: dict[str, AbsTask] = {}

    def find(self, task: AbsTask) -> tuple[TaskResult, dict[str, Any]] | None:
        """A result of this task that is complete, with its notes."""
        self._tasks.update({part.metadata.name: part for part in _parts(task)})
        found = self._read(task.metadata.name)
        return found if found and not found[0].get_missing_evaluations(task) else None

    def load_task_result(self, task_name: str, model_name: Any, **more: Any) -> TaskResult | None:
        """What is there of a task; called by mteb."""
        found = self._read(task_name)
        return found[0] if found else None

    def save_to_cache(self, task_result: TaskResult, model_name: Any, **more: Any) -> None:
        """Keep a result, or what there is of it so far; called by mteb.

        Raises:
            ReadingError: a score is no number.
            OutputError: it cannot be written.
        """
        check_finite(task_result, self._tasks[task_result.task_name], self._method)
        path = self._path(task_result.task_name)
        try:
            self._cache.save_to_cache(task_result, self._meta, **more)
            data = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise OutputError(f"cannot write {path}: {error.strerror or error}") from error
        notes = {**self._notes(), "versions": scoring_versions()}
        replace_text(path, json.dumps({**data, NOTES: notes}, ensure_ascii=False, indent=2))

    def _read(self, task_name: str) -> tuple[TaskResult, dict[str, Any]] | None:
        """A result with its notes; None for none, or for one that other data or other versions gave."""
        try:
            notes = json.loads(self._path(task_name).read_text(encoding="utf-8"))[NOTES]
            result: TaskResult | None = self._cache.load_task_result(task_name, self._meta)
            made_by = notes["versions"]
        # One that an interruption left half-written is computed again.
        except (OSError, ValueError, KeyError, TypeError):
            return None
        # Metrics and kernels change with their releases, and scores that stand side by side must compare.
        if result is None or made_by != scoring_versions():
            return None
        return (result, notes) if result.dataset_revision == self._tasks[task_name].metadata.revision else None

    def _path(self, task_name: str) -> Path:
        return Path(self._cache.get_task_result_path(task_name, self._meta))


def _parts(task: AbsTask) -> list[AbsTask]:
    """A task, and those that it sums up."""
    return [task, *(getattr(task.metadata, "tasks", None) or [])]
