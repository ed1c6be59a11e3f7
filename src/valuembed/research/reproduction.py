"""Rerun the experiments of the paper on a backbone: every row of its tables, on every task that has data."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING

from valuembed._utils.progress import track
from valuembed.backbone import LoadKwargs, LoadOptions
from valuembed.errors import InputError
from valuembed.evaluation import evaluate, parse_task
from valuembed.recipes import describe
from valuembed.reporting import results_folder
from valuembed.research.experiments import BUNDLED, KINDS, STS, Backbone, PublishedRow, map_layers, read_backbone
from valuembed.research.report import Column, Reproduction
from valuembed.research.workload import Workload, estimate, found_decoder, texts_of, written_decoder

if TYPE_CHECKING:
    from typing_extensions import Unpack

GPU_TFLOPS = 100.0
"""Speed that a GPU of a data centre sustains in half precision, roughly, in 10^12 operations a second."""

CPU_TFLOPS = 0.08
"""The same for a small decoder on two CPU cores."""

_STS_FILES = {"STSBenchmark": "STSBenchmark.en.test.jsonl"}
"""Local files of STS tasks that are not called NAME.jsonl."""

_LOCAL: dict[str, tuple[str, tuple[str, ...]]] = {
    "BBC-news": ("clustering", ("BBC-news.jsonl",)),
    "Cranfield": ("retrieval", ("Cranfield.docs.jsonl", "Cranfield.queries.jsonl", "Cranfield.qrels.jsonl")),
    "banking77": ("classification", ("banking77.train.jsonl", "banking77.test.jsonl")),
    "TREC-QC": ("classification", ("TREC-QC.train.jsonl", "TREC-QC.test.jsonl")),
    "TREC-QA": ("reranking", ("TREC-QA.test.jsonl",)),
}
"""Local sets that stand in for mteb's tasks of the kinds other than STS: kind, and files."""


def reproduce(
    backbone: str = BUNDLED,
    *,
    model: str | os.PathLike[str] | None = None,
    local: str | os.PathLike[str] | None = None,
    output: str | os.PathLike[str] | None = None,
    rows: Sequence[str] = (),
    skip: Sequence[str] = (),
    tasks: Sequence[str] = (),
    progress: bool = True,
    **options: Unpack[LoadKwargs],
) -> Reproduction:
    """Run the rows of the paper's tables; those that feed the same tokens share one pass.

    Args:
        backbone: as in :func:`valuembed.research.experiments.read_backbone`.
        model: what to run instead of the backbone's own checkpoint. In a model of another depth, layers are mapped by
            relative depth.
        local: a folder of data files: nothing is fetched then, and local sets stand in for the kinds other than STS.
        output: a folder for the report and the scores; those that are there already are not computed again.
        rows, skip, tasks: only these rows (by id), not these, only these tasks; ``*`` stands for anything.
        progress: show bars on stderr if that is a terminal, else a line a minute.
        options: ``dtype``, ``device``, ``max_tokens``, ``revision``, ``token``, ``cache_folder``,
            ``local_files_only``, ``trust_remote_code``, ``model_kwargs``: as in :func:`valuembed.load`.

    Raises:
        InputError: the backbone, a row or a task is unknown, or a local file is not as expected.
        RecipeError, CheckpointError, UnsupportedModelError: as :func:`valuembed.load`.
        OutputError: results cannot be written.
        MissingExtraError: mteb is not installed, or, with ``output``, matplotlib.
    """
    loaded_with = LoadOptions.of(options, reproduce)
    chosen = _Chosen.of(backbone, model, local, rows, skip, tasks)
    folder = results_folder(output) if output is not None else None
    # Looked at before any data is fetched, which would be in vain without it.
    decoder = found_decoder(chosen.model, loaded_with)
    columns = tuple(
        _with_data(column) for column in track(progress, chosen.columns, desc="Data", unit="task", leave=False)
    )
    recipes = {row.label: chosen.backbone.recipe(row, decoder.num_layers) for row in chosen.rows}
    there = [column.task for column in columns if column.task]
    evaluation = None
    if there:
        results = folder / "scores" if folder else None
        evaluation = evaluate(chosen.model, recipes, there, output=results, progress=progress, **loaded_with.keywords())
    made = Reproduction(
        backbone=chosen.backbone,
        model=decoder.name,
        command=chosen.command(loaded_with),
        rows=chosen.rows,
        columns=columns,
        evaluation=evaluation,
        mapped=chosen.mapped(decoder.num_layers),
    )
    if folder:
        made.save(folder)
    return made


def plan(
    backbone: str = BUNDLED,
    *,
    model: str | os.PathLike[str] | None = None,
    local: str | os.PathLike[str] | None = None,
    rows: Sequence[str] = (),
    skip: Sequence[str] = (),
    tasks: Sequence[str] = (),
    tflops: float | None = None,
    **options: Unpack[LoadKwargs],
) -> Workload:
    """What :func:`reproduce` would do, and about how long it would take. No weights are read and nothing is fetched.

    Args:
        backbone, model, local, rows, skip, tasks, options: as in :func:`reproduce`.
        tflops: assumed sustained speed, in 10^12 floating-point operations a second; None is :data:`GPU_TFLOPS`, for
            the bundled model :data:`CPU_TFLOPS`.

    Raises:
        InputError, RecipeError, CheckpointError, UnsupportedModelError: as :func:`reproduce`.
    """
    loaded_with = replace(LoadOptions.of(options, plan), local_files_only=True)
    chosen = _Chosen.of(backbone, model, local, rows, skip, tasks)
    if tflops is None:
        tflops = CPU_TFLOPS if chosen.model == BUNDLED else GPU_TFLOPS
    if not tflops > 0:
        raise InputError(f"tflops={tflops} has to be above 0")
    own = chosen.model == chosen.backbone.model
    decoder = written_decoder(chosen.backbone, loaded_with) if own else found_decoder(chosen.model, loaded_with)
    recipes = {row.label: chosen.backbone.recipe(row, decoder.num_layers) for row in chosen.rows}
    sizes = {task.name: task for task in chosen.backbone.tasks}
    data: dict[str, tuple[int, float | Sequence[float]] | str] = {}
    for column in chosen.columns:
        if local is None:
            data[column.name] = (sizes[column.name].texts, sizes[column.name].tokens_per_text)
        else:
            read = _with_data(column)
            data[column.name] = decoder.measure(texts_of(read.task.dataset)) if read.task else read.reason
    notes = [chosen.mapped(decoder.num_layers), chosen.backbone.sizes if local is None else ""]
    return estimate(decoder, recipes, data, tflops, [note for note in notes if note])


@dataclass(frozen=True)
class _Chosen:
    """What a user asked for."""

    name: str
    backbone: Backbone
    model: str
    folder: Path | None
    rows: tuple[PublishedRow, ...]
    columns: tuple[Column, ...]
    filters: Mapping[str, Sequence[str]]

    @classmethod
    def of(
        cls,
        name: str,
        model: str | os.PathLike[str] | None,
        local: str | os.PathLike[str] | None,
        rows: Sequence[str],
        skip: Sequence[str],
        tasks: Sequence[str],
    ) -> _Chosen:
        backbone = read_backbone(name)
        folder = Path(local).expanduser() if local is not None else None
        columns = _local_columns(backbone, folder) if folder else _published_columns(backbone)
        ids = [row.id for row in backbone.rows]
        kept = set(_matching("row", rows, ids)) - (set(_matching("row", skip, ids)) if skip else set())
        if not kept:
            raise InputError(f"no row is left of {', '.join(ids)}")
        wanted = set(_matching("task", tasks, [column.name for column in columns]))
        return cls(
            name=name,
            backbone=backbone,
            model=os.fspath(model) if model is not None else BUNDLED if name == BUNDLED else backbone.model,
            folder=folder,
            rows=tuple(row for row in backbone.rows if row.id in kept),
            columns=tuple(column for column in columns if column.name in wanted),
            filters={"rows": rows, "skip": skip, "tasks": tasks},
        )

    def mapped(self, num_layers: int) -> str:
        """How layers were mapped, in a sentence."""
        depth = self.backbone.num_layers
        given = dict.fromkeys(layers for row in self.rows if (layers := self.backbone.indices(row)))
        if num_layers == depth or not given:
            return ""
        pairs = [
            f"{describe(layers)} of {depth} became {describe(map_layers(layers, depth, num_layers))} of {num_layers}"
            for layers in given
        ]
        return f"Layers chosen for {self.backbone.title} are brought over by relative depth: {'; '.join(pairs)}."

    def command(self, loaded_with: LoadOptions) -> str:
        """The command line of it, folders by their names alone, with the options of loading that decide scores."""
        words = ["valuembed reproduce --backbone", Path(self.name).name]
        if self.model not in (BUNDLED, self.backbone.model) or (self.model == BUNDLED) != (self.name == BUNDLED):
            words += ["--model", Path(self.model).name if os.path.isdir(self.model) else self.model]
        words += ["--local", self.folder.resolve().name] if self.folder else []
        for option, patterns in self.filters.items():
            words += [f"--{option}", f"'{','.join(patterns)}'"] if patterns else []
        if loaded_with.dtype is not None:
            words += ["--dtype", str(loaded_with.dtype).removeprefix("torch.")]
        words += ["--max-tokens", str(loaded_with.max_tokens)] if loaded_with.max_tokens is not None else []
        return " ".join(words)


def _published_columns(backbone: Backbone) -> list[Column]:
    return [Column(task.name, task.kind, task.name) for task in backbone.tasks]


def _local_columns(backbone: Backbone, folder: Path) -> list[Column]:
    """A backbone's STS tasks and the local sets of the other kinds, as far as a folder has their files."""
    if not folder.is_dir():
        raise InputError(f"local folder {folder} does not exist; expected files such as {_file_of('STS12')}")
    wanted = {task.name: (STS, (_file_of(task.name),)) for task in backbone.tasks if task.kind == STS}
    columns = []
    for name, (kind, files) in {**wanted, **_LOCAL}.items():
        spec = f"{kind}:{','.join(str(folder / file) for file in files)}"
        missing = [file for file in files if not (folder / file).is_file()]
        columns.append(Column(name, kind, spec, reason=f"no file {missing[0]}" if missing else ""))
    columns.sort(key=lambda column: KINDS.index(column.kind) if column.kind != STS else -1)
    if all(column.reason for column in columns):
        files_of = [file for _, files in (*wanted.values(), *_LOCAL.values()) for file in files]
        raise InputError(f"local folder {folder} holds none of the files {', '.join(files_of)}")
    return columns


def _file_of(name: str) -> str:
    return _STS_FILES.get(name, f"{name}.jsonl")


def _with_data(column: Column) -> Column:
    """A column with its task and data, or with the reason why there is none.

    Raises:
        InputError: a task that mteb does not know, or a local file that is not as expected.
    """
    if column.reason:
        return column
    task = parse_task(column.spec)
    try:
        task.load_data()
    except (
        Exception
    ) as error:  # whatever a download can raise, one data set that cannot be had must not stop the others
        return replace(column, reason=" ".join(f"{type(error).__name__}: {error}".split())[:300])
    return replace(column, task=task)


def _matching(what: str, patterns: Sequence[str], names: Sequence[str]) -> list[str]:
    """The names that any of the patterns names; all without patterns.

    Raises:
        InputError: a pattern that names nothing.
    """
    if not patterns:
        return list(names)
    for pattern in patterns:
        if not any(fnmatchcase(name.lower(), pattern.lower()) for name in names):
            raise InputError(f"no {what} is named {pattern!r}; legal, with * for anything: {', '.join(names)}")
    return [name for name in names if any(fnmatchcase(name.lower(), pattern.lower()) for pattern in patterns)]
