"""What a rerun of the paper's experiments found: its tables beside the figures of others, and charts."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from valuembed._utils.atomic import replace_text
from valuembed.evaluation import Evaluation, percent, scoring_versions
from valuembed.reporting import markdown, plots
from valuembed.research.experiments import BUNDLED, KINDS, STS, Backbone, PublishedRow

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from mteb import AbsTask

NO_DATA = "no data"
FAILED = "failed"

BUNDLED_NOTE = (
    "The bundled model was taught the templates of PromptEOL and FutureEOL: its rows with a template profit from that "
    "and are no evidence for a training-free method."
)


@dataclass(frozen=True)
class Column:
    """A task of the tables.

    Attributes:
        name: what stands in the tables.
        kind: one of :data:`valuembed.research.experiments.KINDS`.
        spec: what :func:`valuembed.evaluation.parse_task` takes.
        task: with its data; None where there is none, or where it was not looked for.
        reason: why there is no data.
    """

    name: str
    kind: str
    spec: str
    task: AbsTask | None = None
    reason: str = ""

    @property
    def metric(self) -> str:
        """The name of its main score in mteb, where there is data."""
        return str(self.task.metadata.main_score) if self.task else ""

    @property
    def size(self) -> str:
        """How much a local file holds, which may be a part of the set that it is called after; else empty."""
        return str(self.task.metadata.description) if self.task and ":" in self.spec else ""


@dataclass(frozen=True)
class Reproduction:
    """The tables of the paper for one model.

    Attributes:
        backbone: whose rows, tasks and published figures they are.
        model: what was run, by its public name.
        command: what made them.
        rows, columns: what was run on what.
        evaluation: the scores; None where no task has data.
        mapped: how the backbone's layers became the model's; empty where they are the same.
    """

    backbone: Backbone
    model: str
    command: str
    rows: tuple[PublishedRow, ...]
    columns: tuple[Column, ...]
    evaluation: Evaluation | None
    mapped: str

    def table(self) -> dict[str, dict[str, float | None]]:
        """``{row: {task: percent}}``; None where there is no score."""
        found: dict[tuple[str, str], float] = {}
        if self.evaluation:
            found = {(score.method, score.name): score.score for score in self.evaluation.scores}
        names = {column.name: column.task.metadata.name for column in self.columns if column.task}
        return {
            row.label: {
                column.name: found.get((row.label, names[column.name])) if column.name in names else None
                for column in self.columns
            }
            for row in self.rows
        }

    def kinds(self) -> dict[str, dict[str, float | None]]:
        """``{row: {kind: mean over its tasks that have data, ..., "average": over the kinds}}``; None for no score."""
        members = {
            kind: [column.name for column in self.columns if column.kind == kind and column.task]
            for kind in KINDS
            if any(column.kind == kind for column in self.columns)
        }
        found = {}
        for label, scores in self.table().items():
            means = {kind: _mean([scores[name] for name in names]) for kind, names in members.items()}
            found[label] = {**means, "average": _mean(list(means.values()))}
        return found

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "backbone": self.backbone.id,
            "model": self.model,
            "command": self.command,
            "layers_mapped": self.mapped,
            "rows": {row.label: row.id for row in self.rows},
            "tasks": {column.name: {"kind": column.kind, "no_data": column.reason} for column in self.columns},
            "table": self.table(),
            "kinds": self.kinds(),
            "theirs": [{**asdict(entry), "backbone": self.backbone.title} for entry in self.backbone.theirs],
            "printed_in_the_paper": [asdict(entry) for entry in self.backbone.printed],
            "evaluation": self.evaluation.to_dict() if self.evaluation else None,
            "versions": scoring_versions(),
        }

    def to_markdown(self) -> str:
        """The report: tables, figures of others, what has no data and why."""
        made = ", ".join(f"{name} {number}" for name, number in scoring_versions().items())
        about = ["Scores are mteb's, in percent.", self.mapped]
        if self.model != self.backbone.model:
            about.append(f"What others published is of {self.backbone.title}, not of this model.")
        lines = [
            f"# The paper's rows for {self.backbone.title}, run on {self.model}",
            "",
            f"Made by `{self.command}` with {made}.",
            "",
            " ".join(filter(None, about)),
            "",
        ]
        sts = [column for column in self.columns if column.kind == STS]
        others = [column for column in self.columns if column.kind != STS]
        scores, kinds = self.table(), self.kinds()
        if sts:
            lines += ["## STS (Spearman correlation of the cosines, x100)", "", *self._sts_table(sts), ""]
        if others:
            heads = [", ".join(filter(None, (column.name, column.kind, column.metric))) for column in others]
            cells = {
                label: [_cell(row[column.name], column.task is not None) for column in others]
                for label, row in scores.items()
            }
            lines += ["## The other kinds of tasks", "", *_table(["row", *heads], cells), ""]
        if sts and others:
            there = {column.kind for column in self.columns if column.task}
            heads = list(next(iter(kinds.values())))
            complete = {"average"} if there >= {*heads} - {"average"} else set()
            cells = {
                label: [_cell(value, kind in there | complete) for kind, value in row.items()]
                for label, row in kinds.items()
            }
            lines += ["## By kind", "", "Means over the tasks that have data; the average is over the kinds.", ""]
            lines += [*_table(["row", *heads], cells), ""]
        lines += self._printed()
        evaluation = self.evaluation
        for title, entries in (
            (
                "Failed",
                [f"{lost.task}, {lost.method}: {lost.reason}" for lost in (evaluation.failures if evaluation else ())],
            ),
            ("Data", [f"{column.name}: {column.size}" for column in self.columns if column.size]),
            ("No data", [f"{column.name}: {column.reason}" for column in self.columns if not column.task]),
            ("Cut texts", evaluation.cut() if evaluation else []),
            ("Notes", [*self.backbone.notes, *([BUNDLED_NOTE] if self.model == BUNDLED else [])]),
        ):
            lines += [f"## {title}", "", *(f"- {entry}" for entry in entries), ""] if entries else []
        return "\n".join(lines)

    def figures(self) -> dict[str, Figure]:
        """Charts by name: ``sts``, each row's mean over the STS tasks with data; ``kinds``, every kind.

        Raises:
            MissingExtraError: matplotlib is not installed.
        """
        found = {}
        here = [column.name for column in self.columns if column.kind == STS and column.task]
        means = {label: _mean([scores[name] for name in here]) for label, scores in self.table().items()}
        ours = {label: mean for label, mean in means.items() if mean is not None}
        if ours:
            theirs = {
                f"{entry.label} ({self.backbone.title}, published)": value
                for entry in self.backbone.theirs
                if (value := _over(entry.scores, entry.mean, here, self._all_sts())) is not None
            }
            groups = {label: {"mean": value} for label, value in {**ours, **theirs}.items()}
            title = f"{self.model}: mean over {', '.join(here)}"
            found["sts"] = plots.bars(groups, title=title, ylabel="Spearman correlation x100")
            for bar in found["sts"].axes[0].patches[len(ours) :]:
                bar.set_facecolor("0.6")
        kinds = {
            label: {kind: value for kind, value in row.items() if value is not None and kind != "average"}
            for label, row in self.kinds().items()
        }
        if len({kind for row in kinds.values() for kind in row}) > 1:
            found["kinds"] = plots.bars(kinds, title=f"By kind of task, {self.model}", ylabel="mteb's main score, %")
        return found

    def save(self, folder: Path) -> None:
        """Write ``report.md``, ``report.json`` and the charts.

        Raises:
            OutputError: they cannot be written.
            MissingExtraError: matplotlib is not installed.
        """
        replace_text(folder / "report.md", self.to_markdown())
        replace_text(folder / "report.json", json.dumps(self.to_dict(), ensure_ascii=False, indent=2) + "\n")
        for name, figure in self.figures().items():
            plots.save(figure, folder / f"{name}.png")

    def _all_sts(self) -> list[str]:
        return [task.name for task in self.backbone.tasks if task.kind == STS]

    def _sts_table(self, columns: list[Column]) -> list[str]:
        whole, here = self._all_sts(), [column.name for column in columns if column.task]
        asked = {column.name for column in columns} == set(whole)
        # A mean over some of the sets stands beside that of the same sets, never beside that of all.
        spans = {f"mean of {len(whole)}": whole} if asked else {}
        if 1 < len(here) < len(whole):
            spans[f"mean of the {len(here)} {'with data' if asked else 'chosen'}"] = here
        scores, cells = self.table(), {}
        for row in self.rows:
            of_row = scores[row.label]
            cells[row.label] = [
                *(self.evaluation.about(row.label) if self.evaluation else ("", "")),
                *(_cell(of_row[column.name], column.task is not None) for column in columns),
                *(_cell(_mean([of_row[name] for name in names]), {*names} <= {*here}) for names in spans.values()),
            ]
        for entry in self.backbone.theirs:
            figures = [
                *(entry.scores.get(column.name) for column in columns),
                *(_over(entry.scores, entry.mean, names, whole) for names in spans.values()),
            ]
            if any(figure is not None for figure in figures):
                cells[f"*{entry.source}: {entry.label}, {self.backbone.title}*"] = ["", "", *map(percent, figures)]
        return _table(["row", "layers", "width", *(column.name for column in columns), *spans], cells)

    def _printed(self) -> list[str]:
        if not self.backbone.printed:
            return []
        lines = ["## As printed in the paper (MTEB, %)", ""]
        lines += [
            "Six figures a row. The heads of their columns and their values do not line up in the source, so none of "
            "them can be said to belong to a task.",
            "",
        ]
        cells = {
            f"{entry.label}, {self.backbone.title}": [str(entry.width), "  ".join(f"{v:.2f}" for v in entry.figures)]
            for entry in self.backbone.printed
        }
        return [*lines, *_table(["row", "width", "the six figures"], cells), ""]


def _cell(value: float | None, has_data: bool) -> str:
    if value is not None:
        return percent(value)
    return FAILED if has_data else NO_DATA


def _mean(values: Sequence[float | None]) -> float | None:
    """The mean, or None where a value is missing: means over different tasks do not compare."""
    known = [value for value in values if value is not None]
    return fmean(known) if known and len(known) == len(values) else None


def _over(scores: Mapping[str, float], mean: float, names: Sequence[str], whole: Sequence[str]) -> float | None:
    """Published figures as a mean over some of the tasks: their own mean where those are all, else from each."""
    if set(names) == set(whole):
        return mean
    return _mean([scores.get(name) for name in names])


def _table(head: Sequence[str], rows: Mapping[str, Sequence[str]]) -> list[str]:
    """A Markdown table; the first column takes the keys."""
    return markdown.table(head, [[label, *cells] for label, cells in rows.items()], "lr")
