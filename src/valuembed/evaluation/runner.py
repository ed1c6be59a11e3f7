"""Evaluate methods on tasks: each method an encoder as mteb wants it, those that feed the same tokens in one pass.

Vectors have unit length, as those that ``load(...).encode`` returns: scores by cosine do not depend on it, classifiers
do. Queries and documents of a search are put into their roles' templates; mteb's instructions are not used.
"""

from __future__ import annotations

import logging
import os
import random
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from valuembed._utils.devices import check_device
from valuembed._utils.optional import require
from valuembed._utils.process_state import ignored_warnings, log_level, random_state
from valuembed._utils.progress import track
from valuembed._utils.torch_settings import default_device_and_precision
from valuembed.backbone import (
    LoadKwargs,
    LoadOptions,
    Plan,
    compute_dtype_asked,
    content_digest,
    fingerprint,
    prepare,
    resolve_plan,
    split_dtype,
    tensors_digest,
)
from valuembed.backbone.checkpoints import BUNDLED, Checkpoint, locate, saved_config
from valuembed.errors import InputError, OutputError, RecipeError, ValuembedError
from valuembed.evaluation.local_tasks import FORMS, kind, parse_task, title
from valuembed.evaluation.mteb_adapter import AsLoaded, MethodEncoder, SharedVectors, Spent, VectorSource, model_meta
from valuembed.evaluation.results import Evaluation, Failure, Kept, Score, check_finite, write
from valuembed.models import DEFAULT_METHOD, Calibration, MultiReadout, choose_recipes, load
from valuembed.recipes import LayerSpec, MethodSpec, Recipe, TemplateSpec, parse_methods, preset_for
from valuembed.reporting import results_folder

if TYPE_CHECKING:
    from mteb import AbsTask, TaskResult
    from mteb.models import ModelMeta
    from typing_extensions import Unpack


@random_state()
@default_device_and_precision()
def evaluate(
    model: str | os.PathLike[str] = BUNDLED,
    methods: str | Sequence[str] | Mapping[str, MethodSpec] | None = None,
    tasks: str | Sequence[str | AbsTask] = (),
    *,
    output: str | os.PathLike[str] | None = None,
    layers: LayerSpec = None,
    template: TemplateSpec | Mapping[str, TemplateSpec] = "auto",
    cleaning: str | None = None,
    calibrations: Mapping[str, Calibration] | None = None,
    progress: bool = True,
    **options: Unpack[LoadKwargs],
) -> Evaluation:
    """Score methods on tasks, with mteb's metrics; those that feed the same tokens share one forward pass.

    A task that fails for a method costs no other score: it is listed in the result's ``failures``, with a warning.

    Args:
        model: as in :func:`valuembed.load`.
        methods: see :func:`valuembed.recipes.parse_methods`. None is what ``load(model)`` gives, the later modules
            of a saved folder included; methods that are named are read from the decoder alone.
        tasks: see :func:`valuembed.evaluation.parse_task`; or mteb's tasks.
        output: a folder for results: mteb's JSON, ``results.md`` and ``results.png``. What is there already, of the
            same model, recipe, settings and data, is not computed again. None writes nothing.
        layers: for the value methods that name none themselves; hidden states keep their own.
        template, cleaning: for all methods that name none themselves.
        calibrations: by a method's label, what its vectors go through; see
            :func:`valuembed.analysis.calibration_fit.fit_calibrations`.
        progress: show bars on stderr if that is a terminal, else a line a minute.
        options: ``dtype``, ``device``, ``max_tokens``, ``revision``, ``token``, ``cache_folder``,
            ``local_files_only``, ``trust_remote_code``, ``model_kwargs``: as in :func:`valuembed.load`.

    Raises:
        InputError: a task is unknown, or its data is not as expected.
        RecipeError, CheckpointError, UnsupportedModelError: as :func:`valuembed.load`.
        OutputError: results cannot be written.
        MissingExtraError: mteb is not installed, or, with ``output``, matplotlib.
    """
    loaded_with = LoadOptions.of(options, evaluate)
    require("mteb", "eval")
    device = check_device(loaded_with.device)
    given = [tasks] if isinstance(tasks, str) else list(tasks)
    if not given:
        raise InputError(f"no task to evaluate on; legal: {', '.join(FORMS)}, or the name of an mteb task")
    asked = parse_methods(methods)
    checkpoint = locate(model, options=loaded_with)
    chosen = choose_recipes(checkpoint, asked, layers, template, cleaning)
    if stray := [label for label in calibrations or {} if asked is None or label not in asked]:
        raise RecipeError(f"calibrations: no method is named {stray[0]!r}; there are {', '.join(asked or ['none'])}")
    parsed = [parse_task(task) if isinstance(task, str) else task for task in given]
    folder = results_folder(output) if output is not None else None
    # A folder's later modules are part of what it gives, and of nothing that is read by name.
    as_saved = asked is None and saved_config(checkpoint) is not None
    settings = {name: getattr(loaded_with, name) for name in ("dtype", "max_tokens", "model_kwargs")}
    known = _methods(
        checkpoint, chosen, calibrations or {}, {**settings, "as_saved": as_saved}, device, identify=folder is not None
    )
    bench = _Bench(list({task.metadata.name: task for task in parsed}.values()), known, folder)
    missing = bench.look_up()
    wanted = {label: recipe for label, recipe in chosen.items() if any(label in labels for labels in missing.values())}
    try:
        if wanted:
            source: VectorSource
            if as_saved:
                own = load(model, DEFAULT_METHOD, layers, template, cleaning, **loaded_with.keywords())
                source = AsLoaded(own, next(iter(wanted)))
            else:
                behind = {label: module for label, module in (calibrations or {}).items() if label in wanted}
                source = MultiReadout.load(model, wanted, calibrations=behind, options=loaded_with)
            with SharedVectors(source, unit=not as_saved, progress=progress) as vectors, _quiet():
                bench.run(missing, vectors, progress)
    except BaseException:
        # What there is shall be readable, and what goes wrong with that must not hide why the run ends here.
        try:
            _write(bench.evaluation(checkpoint.public_name, loaded_with.max_tokens), folder)
        except Exception as error:
            with suppress(Warning):  # raised where warnings are errors
                warnings.warn(f"no table and chart of what there is: {error}", stacklevel=2)
        raise
    made = bench.evaluation(checkpoint.public_name, loaded_with.max_tokens)
    _write(made, folder)
    for lost in made.failures:
        warnings.warn(f"{lost.task}, {lost.method}: {lost.reason}", stacklevel=2)
    return made


@dataclass(frozen=True)
class _Method:
    """One method: what it reads, and what its results are filed under."""

    label: str
    plan: Plan
    meta: ModelMeta
    notes: dict[str, Any]


def _methods(
    checkpoint: Checkpoint,
    chosen: dict[str, Recipe],
    calibrations: Mapping[str, Calibration],
    settings: dict[str, Any],
    device: str | None,
    *,
    identify: bool,
) -> dict[str, _Method]:
    """The methods with absolute layers, found out without reading weights.

    Args:
        checkpoint: where the model is.
        chosen: recipes by label.
        calibrations: what the vectors of some of them go through.
        settings: what decides vectors beside model and recipe, as it was asked for.
        device: where the model will run; the precision depends on it.
        identify: whether results are kept, for which the checkpoint's files are read to tell it from others.
    """
    saved = saved_config(checkpoint)
    asked = settings["dtype"]
    found = prepare(checkpoint, next(iter(chosen.values())), saved, split_dtype(asked, None, device)[0], device)
    settings = {**settings, "dtype": compute_dtype_asked(found.dtype, asked, device)}
    settings["model_kwargs"] = {name: repr(value) for name, value in (settings["model_kwargs"] or {}).items()}
    content = content_digest(checkpoint) if identify else "not identified"
    methods = {}
    for label, recipe in chosen.items():
        plan = resolve_plan(recipe, preset_for(found.config), found.decoder_spec, None if found.is_adapter else saved)
        made = settings
        if (behind := calibrations.get(label)) is not None:
            # Its record does not say all that its numbers come from, such as the model that it was fitted on.
            record = {**behind.record.to_dict(), "recipe": behind.record.recipe.choices()}
            made = {**settings, "calibration": {**record, "tensors": tensors_digest(behind)}}
        revision = fingerprint(content, plan.recipe, **made)
        notes = {
            "model": checkpoint.public_name,
            "revision": checkpoint.commit,
            "content": content,
            "fingerprint": revision,
            "recipe": plan.recipe.to_dict(),
            "settings": made,
        }
        methods[label] = _Method(label, plan, model_meta(checkpoint.public_name, revision), notes)
    return methods


class _Bench:
    """All methods on all tasks: what is there, what is missing, and the way from the one to the other."""

    def __init__(self, tasks: list[AbsTask], methods: dict[str, _Method], folder: Path | None) -> None:
        self.tasks = dict(zip(_titles(tasks), tasks, strict=True))
        self.methods = methods
        self.scores: dict[tuple[str, str], Score] = {}
        self.failures: list[Failure] = []
        self._spent = Spent()
        self._width = 0
        self._kept = {
            label: Kept(folder, method.meta, label, partial(self._notes, method)) if folder else None
            for label, method in methods.items()
        }

    def look_up(self) -> dict[str, list[str]]:
        """Take what is there; what is missing, as methods by task."""
        missing: dict[str, list[str]] = {}
        for name, task in self.tasks.items():
            for label, kept in self._kept.items():
                found = kept.find(task) if kept else None
                if found is None:
                    missing.setdefault(name, []).append(label)
                else:
                    self._take(name, label, *found, reused=True)
        return missing

    def run(self, missing: dict[str, list[str]], vectors: SharedVectors, progress: bool) -> None:
        """Compute what is missing, task by task; methods that share a pass one after the other."""
        widths = vectors.source.widths()
        order = [label for group in vectors.source.groups() for label in group]
        total = sum(map(len, missing.values()))
        with track(progress, total=total, desc="scores", unit=" scores") as bar:
            for name, labels in missing.items():
                with self._loaded(name, labels) as there:
                    vectors.start(labels)
                    for label in sorted(labels, key=order.index):
                        bar.set_postfix_str(f"{name}: {label}")
                        if there:
                            self._spent, self._width = vectors.spent[label], widths[label]
                            self._score(name, label, vectors)
                            vectors.done(label)
                        bar.update()

    @contextmanager
    def _loaded(self, name: str, labels: list[str]) -> Iterator[bool]:
        """Whether a task has its data, which is loaded once for all methods."""
        task = self.tasks[name]
        # One that sums up others loads those itself.
        ours = not task.is_aggregate and not task.data_loaded
        try:
            if ours:
                task.load_data()
        except Exception as error:  # a data set that cannot be had must not lose the others
            self._lose(name, labels, error)
            yield False
            return
        yield True
        if ours:
            task.unload_data()

    def _score(self, name: str, label: str, vectors: SharedVectors) -> None:
        """One method on one task, through mteb."""
        task, method = self.tasks[name], self.methods[label]
        # A task draws samples from generators of its own, which the method before has moved on.
        task.rng_state, task.np_rng = random.Random(task.seed), np.random.default_rng(task.seed)
        try:
            made = require("mteb", "eval").evaluate(
                MethodEncoder(vectors, label, method.meta),
                task,
                cache=self._kept[label],
                co2_tracker=False,
                show_progress_bar=False,
            )
            result = made.task_results[0]
            check_finite(result, task, label)
        except OutputError:
            raise
        except Exception as error:  # what goes wrong in one task must not lose the others
            self._lose(name, [label], error)
        else:
            self._take(name, label, result, self._notes(method), reused=False)

    def _lose(self, name: str, labels: list[str], error: Exception) -> None:
        reason = str(error) if isinstance(error, ValuembedError) else f"{type(error).__name__}: {error}"
        self.failures += [Failure(label, name, " ".join(reason.split())) for label in labels]

    def _notes(self, method: _Method) -> dict[str, Any]:
        """What stands beside the scores of the task that is being computed."""
        return {**method.notes, "width": self._width, "spent": asdict(self._spent)}

    def _take(self, name: str, label: str, result: TaskResult, notes: dict[str, Any], *, reused: bool) -> None:
        task = self.tasks[name]
        self.scores[name, label] = Score(
            method=label,
            task=name,
            name=task.metadata.name,
            kind=kind(task),
            metric=task.metadata.main_score,
            score=100 * float(result.get_score(splits=list(task.eval_splits))),
            width=notes["width"],
            layers=self.methods[label].plan.recipe.describe().layers,
            reused=reused,
            **notes["spent"],
        )

    def evaluation(self, model: str, max_tokens: int | None) -> Evaluation:
        """What there is so far, in the order in which methods and tasks were given."""
        return Evaluation(
            model=model,
            recipes={label: method.plan.recipe for label, method in self.methods.items()},
            tasks={name: kind(task) for name, task in self.tasks.items()},
            scores=tuple(
                self.scores[name, label]
                for label in self.methods
                for name in self.tasks
                if (name, label) in self.scores
            ),
            failures=tuple(self.failures),
            max_tokens=max_tokens,
        )


def _write(made: Evaluation, folder: Path | None) -> None:
    if folder and made.scores:
        write(made, folder)


def _titles(tasks: Sequence[AbsTask]) -> list[str]:
    """Titles that tell the tasks apart."""
    titles = [title(task) for task in tasks]
    longer = [f"{name} ({kind(task)})" for name, task in zip(titles, tasks, strict=True)]
    return [
        name if titles.count(name) == 1 else more if longer.count(more) == 1 else task.metadata.name
        for name, more, task in zip(titles, longer, tasks, strict=True)
    ]


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep off the screen what mteb and its libraries say on the side: bars, log, doubts about other metrics."""
    datasets = require("datasets", "eval")
    hidden = datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        with (
            log_level("mteb", logging.CRITICAL),
            # Precision and the like of classes that are never predicted; no main score is among them.
            ignored_warnings(".* is ill-defined and being set to 0.0"),
            # A correlation that is not defined becomes an error, which names task and method.
            ignored_warnings("An input array is constant"),
        ):
            yield
    finally:
        if not hidden:
            datasets.enable_progress_bars()
