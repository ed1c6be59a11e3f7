"""Finetune-VA: contrastive training of adapters on the maps that a recipe's vectors depend on.

The trainer is sentence-transformers', the adapters are peft's. The source trains value aggregation with a contrastive
loss and adapts attention only; rank, learning rate, temperature and batch size are ours.
"""

from __future__ import annotations

import json
import os
import shutil
import time
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import torch
from transformers.pytorch_utils import Conv1D

from valuembed._utils.atomic import replace_text
from valuembed._utils.optional import require
from valuembed._utils.options import did_you_mean, parameters_of
from valuembed._utils.process_state import random_state
from valuembed._utils.text import counted
from valuembed._utils.torch_settings import building, gradients
from valuembed._utils.version import versions
from valuembed.backbone import LoadOptions, adapters, computes_in_int8, content_digest
from valuembed.backbone.checkpoints import locate, saved_config
from valuembed.data import TrainingPairs, check_batch, overlap, read_scored, read_training_pairs
from valuembed.errors import InputError, MissingExtraError, OptionError, OutputError, RecipeError
from valuembed.models import DEFAULT_METHOD, Calibration, ValueEncoder, check_model_folder, load, save_model
from valuembed.recipes import LayerSpec, Recipe, TemplateSpec
from valuembed.reporting import plots
from valuembed.training.settings import TrainKwargs, TrainSettings, count_processes, is_first_process
from valuembed.training.target_modules import counts, target_modules

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from typing_extensions import Unpack

RECORD = "training.json"
"""In the trained model's folder: how it was made."""

STATE = ".training"
"""Ending of the folder beside the output that holds the run's checkpoints until it is done."""

SETTINGS = "run.json"

POINTS = 50
"""Of a loss curve, about."""


@dataclass(frozen=True)
class Training:
    """A finished run.

    Attributes:
        model: the trained model.
        output: where it was saved.
        record: plain data: model, recipe, data, settings, trained maps, parameters, losses, evaluations, versions.
    """

    model: ValueEncoder
    output: Path
    record: Mapping[str, Any] = field(repr=False)

    def figure(self) -> Figure:
        """Loss by step, and where there was an evaluation its score.

        Raises:
            MissingExtraError: matplotlib is not installed.
        """
        return loss_figure(self.record)

    def rows(self) -> list[tuple[str, str]]:
        """What was done, as names and values a person reads."""
        record = self.record
        parameters = record["parameters"]
        rows = [
            ("model", f"{record['model']}, {record['recipe']['method'] or 'own recipe'}"),
            ("pairs", f"{record['data']['pairs']:,} from {record['data']['file']}"),
            (
                "trained",
                f"{parameters['trained']:,} parameters, {parameters['trained'] / parameters['all']:.2%} of all",
            ),
            ("adapters on", f"{counted(len(record['maps']), 'linear map')}, scope {record['settings']['scope']}"),
            ("steps", f"{record['steps']:,} in {record['seconds']:,.0f} s"),
            ("loss", f"{record['losses'][0][1]:.4f} -> {record['losses'][-1][1]:.4f}"),
        ]
        if record["evaluations"]:
            first, last = record["evaluations"][0][1], record["evaluations"][-1][1]
            rows.append((record["data"]["evaluation"], f"Spearman {first:.2f} -> {last:.2f}"))
        return rows


def loss_figure(record: Mapping[str, Any]) -> Figure:
    """The curve of a run's loss, from its record."""
    # One batch is easier than the next: of many steps, means are drawn.
    width = max(1, len(record["losses"]) // POINTS)
    blocks = [record["losses"][start : start + width] for start in range(0, len(record["losses"]), width)]
    name = "loss" if width == 1 else f"loss, mean of {width} steps"
    lines = {name: [(block[-1][0], fmean(loss for _, loss in block)) for block in blocks]}
    title = f"Training {record['recipe']['method'] or 'a recipe'} on {record['data']['file']}"
    return plots.curves(lines, title=title, xlabel="step", ylabel="contrastive loss (nats)")


@random_state()
@gradients()
def train(
    model: str | os.PathLike[str] = "bundled",
    pairs: str | os.PathLike[str] | TrainingPairs = "",
    method: str | Recipe | Mapping[str, Any] | None = None,
    *,
    output: str | os.PathLike[str],
    columns: Sequence[str] | None = None,
    evaluation: str | os.PathLike[str] | None = None,
    layers: LayerSpec = None,
    template: TemplateSpec | Mapping[str, TemplateSpec] = "auto",
    cleaning: str | None = None,
    prompts: Mapping[str, str] | None = None,
    merged: bool = False,
    overwrite: bool = False,
    progress: bool = True,
    **options: Unpack[TrainKwargs],
) -> Training:
    """Fine-tune a model's vectors on pairs of texts that belong together (Finetune-VA, for any method).

    The decoder's own weights stay as they are: low-rank adapters are trained, on the linear maps that the vectors
    depend on and no others. A run that is stopped goes on from its last checkpoint when it is started again with the
    same settings, and then gives the same weights as one that was not stopped. Under ``accelerate launch`` every
    process takes its part of each batch, the batches of all are each other's negatives, and the first one writes.

    Args:
        model, method, layers, template, cleaning: as in :func:`valuembed.load`. With role templates, anchors go into
            the query's and all others into the document's. A method of None is ``"va"``, or what a folder saved by this
            library was saved with.
        pairs: .jsonl, .csv or .parquet, see :func:`valuembed.data.read_training_pairs`; or what that returned.
        output: folder for the trained model, ``training.json`` and, with matplotlib there, ``loss.png``.
        columns: of the file: anchor, positive, then hard negatives.
        evaluation: ``"sts:FILE"``, scored before, during and after; never trained on.
        prompts: instructions by role, ``"query"`` for anchors and ``"document"`` for all others.
        merged: add the adapters to the weights and save a whole model, instead of the adapters alone.
        overwrite: replace a model of this library at ``output``.
        progress: show a bar on stderr if that is a terminal, else a line a minute.
        options: fields of :class:`TrainSettings`; and ``dtype``, ``device``, ``max_tokens``, ``revision``, ``token``,
            ``cache_folder``, ``local_files_only``, ``trust_remote_code``, ``model_kwargs``: as in
            :func:`valuembed.load`. ``dtype`` is that of the frozen decoder, by default float32; adapters are always
            float32.

    Raises:
        InputError: pairs or evaluation data that cannot be used.
        RecipeError: an unknown setting, or nothing to train.
        OutputError: the output exists, or a run with other settings was stopped there.
        ReadingError: the loss is no number; the last good checkpoint stays.
        MissingExtraError: peft, accelerate or datasets is not installed.
    """
    chosen, loaded_with = _split(options)
    for package in ("peft", "accelerate", "datasets"):
        require(package, "train")
    from valuembed.training.trainer import run

    path = check_model_folder(output, overwrite=overwrite)
    read = pairs if isinstance(pairs, TrainingPairs) else read_training_pairs(pairs, columns)
    check_batch(read, chosen.batch_size * count_processes())
    dev = None if evaluation is None else read_scored(str(evaluation).removeprefix("sts:"))
    if dev and (shared := overlap(read, [*dev.sentences1, *dev.sentences2])):
        warnings.warn(
            f"texts of {dev.paths[0].name} that are also in {read.path.name}, which is trained on: {len(shared)}, the "
            f"first {shared[0]!r}; the scores will be too good",
            stacklevel=2,
        )
    if method is None:
        method = "va" if saved_config(locate(model, options=loaded_with)) is None else DEFAULT_METHOD
    # Adapters start from random numbers, and a stopped run must start from the same.
    torch.manual_seed(chosen.seed)
    encoder = load(model, method, layers, template, cleaning, **loaded_with.keywords())
    maps = _adapt(encoder, chosen)
    record: dict[str, Any] = {
        "model": encoder.reader.origin.name,
        "recipe": encoder.recipe.to_dict(),
        "data": {
            "file": read.path.name,
            "digest": read.digest,
            "pairs": len(read),
            "columns": list(read.texts),
            "dropped": dict(read.dropped),
            "evaluation": dev.paths[0].name if dev else None,
        },
        "settings": asdict(chosen),
        "prompts": dict(prompts or {}),
        "dtype": str(encoder.reader.model.dtype).removeprefix("torch."),
        "maps": maps,
        "parameters": {
            "trained": counts(encoder, lambda weight: weight.requires_grad),
            "all": counts(encoder),
        },
        "versions": versions("torch", "transformers", "sentence-transformers", "peft", "accelerate"),
    }
    state = path.with_name(path.name + STATE)
    same = {
        **record,
        "content": content_digest(locate(model, options=loaded_with)),
        "max_tokens": encoder.reader.max_tokens,
        "processes": count_processes(),
    }
    resumed = _open_state(state, same)
    started = time.monotonic()
    done = run(
        encoder,
        read,
        dev,
        chosen,
        state,
        prompts=prompts or {},
        resumed=resumed,
        progress=progress and is_first_process(),
    )
    record.update(done, seconds=round(time.monotonic() - started, 1), resumed=resumed is not None)
    finished = Training(encoder, path, record)
    if is_first_process():
        if merged:
            adapters.merge(encoder.reader.model)
        _save(finished, overwrite)
        shutil.rmtree(state)
    return finished


def _split(given: Mapping[str, Any]) -> tuple[TrainSettings, LoadOptions]:
    """How to train, and how to load what is trained."""
    legal, of_load = TrainSettings.names(), LoadOptions.names()
    if unknown := [name for name in given if name not in (*legal, *of_load)]:
        meant = did_you_mean(unknown[0], [*parameters_of(train), *legal, *of_load])
        raise OptionError(
            f"{unknown[0]}={given[unknown[0]]!r} is no setting of training; {meant}legal: {', '.join(legal)}"
        )
    settings = TrainSettings(**{name: value for name, value in given.items() if name in legal})
    options = {name: value for name, value in given.items() if name in of_load}
    if computes_in_int8(options.get("dtype"), options.get("model_kwargs"), options.get("device")):
        raise RecipeError("dtype='int8' rounds what is computed, which has no gradient; train in float32 or bfloat16")
    return settings, LoadOptions.of(options, train, LoadOptions(dtype="float32"))


@building()
def _adapt(encoder: ValueEncoder, settings: TrainSettings) -> list[str]:
    """Put adapters on what the vectors depend on, freeze all else, and name the maps that have one.

    Raises:
        RecipeError: the model has an adapter or a calibration already, or its recipe centres.
        InputError: a width to train is wider than its vectors.
    """
    from peft import LoraConfig
    from peft.tuners.tuners_utils import cast_adapter_dtype

    reader = encoder.reader
    width = reader.get_embedding_dimension()
    if wide := [size for size in settings.matryoshka if not 0 < size < width]:
        raise InputError(f"matryoshka={wide[0]}: widths have to be above 0 and below that of the vectors, {width}")
    if getattr(reader.model, "peft_config", None):
        raise RecipeError(
            f"{reader.origin.name} has an adapter already; train on a model that it was merged into (merged=True)"
        )
    if any(isinstance(module, Calibration) for module in encoder):
        raise RecipeError(
            f"{reader.origin.name} is calibrated, for vectors that training would change; train its source"
        )
    if any(part.centring != "none" for part in reader.recipe.parts):
        raise RecipeError(
            f"method {reader.recipe.method!r} takes away a mean of the decoder's vectors, which training would change; "
            "train another method, such as va, and join or centre the trained model"
        )
    maps = target_modules(reader, settings.scope)
    encoder.requires_grad_(False)
    # Linear maps that store their weights the other way round (GPT-2's) have to be announced.
    turned = any(isinstance(reader.model.get_submodule(name), Conv1D) for name in maps)
    encoder.add_adapter(
        LoraConfig(
            r=settings.rank,
            lora_alpha=2 * settings.rank,
            lora_dropout=settings.dropout,
            target_modules=maps,
            fan_in_fan_out=turned,
        )
    )
    # In half precision small steps would be lost in rounding.
    cast_adapter_dtype(reader.model, "default")
    encoder.model_card_data.add_tags("generated_from_trainer")
    return maps


def _open_state(state: Path, settings: Mapping[str, Any]) -> str | None:
    """The last checkpoint of a run that was stopped; None starts one.

    Raises:
        OutputError: the run that was stopped had other settings.
    """
    file = state / SETTINGS
    told = _leaves(json.loads(json.dumps(settings)))
    if file.is_file():
        kept = json.loads(file.read_text(encoding="utf-8"))
        # A run of before may lack fields that recipes have gained.
        before = _leaves({**kept, "recipe": Recipe.from_dict(kept["recipe"]).to_dict()})
        if differing := [name for name in {**told, **before} if told.get(name) != before.get(name)]:
            name = differing[0]
            raise OutputError(
                f"{state} holds a run that was stopped, with {name}={_short(before.get(name))}; asked for is "
                f"{_short(told.get(name))}: start it with the same settings, or remove that folder"
            )
        return _last_checkpoint(state, count_processes())
    state.mkdir(parents=True, exist_ok=True)
    replace_text(file, json.dumps(settings, indent=1))
    return None


def _last_checkpoint(state: Path, processes: int) -> str | None:
    """The last checkpoint that was written to its end: a run may be stopped while it writes one."""
    folders = [folder for folder in state.glob("checkpoint-*") if folder.name.removeprefix("checkpoint-").isdigit()]
    for folder in sorted(folders, key=lambda folder: int(folder.name.removeprefix("checkpoint-")), reverse=True):
        try:
            # It is written last, by the first process.
            json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if len(list(folder.glob("rng_state*.pth"))) == processes:
            return str(folder)
    return None


def _leaves(settings: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """Nested settings as plain ones: ``{"data": {"pairs": 9}}`` is ``{"data.pairs": 9}``."""
    found: dict[str, Any] = {}
    for name, value in settings.items():
        found |= _leaves(value, f"{above}{name}.") if isinstance(value, dict) else {f"{above}{name}": value}
    return found


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 200 else f"{text[:199]}\N{HORIZONTAL ELLIPSIS}"


def _save(finished: Training, overwrite: bool) -> None:
    notes = {RECORD: json.dumps(finished.record, indent=1) + "\n"}
    save_model(finished.model, finished.output, overwrite=overwrite, notes=notes)
    with suppress(MissingExtraError):
        plots.save(finished.figure(), finished.output / "loss.png")
