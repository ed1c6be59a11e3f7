"""The means that centred recipes take away: read from general sentences once for each decoder, and kept on disk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from valuembed._utils.atomic import replacing
from valuembed._utils.cache_folder import cache_folder
from valuembed._utils.torch_settings import default_device_and_precision
from valuembed.backbone import Plan, compute_dtype_of, content_digest, fingerprint
from valuembed.backbone.checkpoints import Checkpoint
from valuembed.errors import CheckpointError, OutputError
from valuembed.execution import collect, read_texts
from valuembed.readout import unit
from valuembed.recipes import Recipe, group_by_tokens

if TYPE_CHECKING:
    from valuembed.models.value_reader import ValueReader

MEANS_FILE = "centring.safetensors"
"""Where a saved folder holds the means of its recipe's parts."""

_GENERAL = Path(__file__).with_name("general_sentences.txt")
_KEY = "mean"


@cache
def general_sentences() -> tuple[str, ...]:
    """The general sentences that come with this library: English, of many kinds."""
    return tuple(_GENERAL.read_text(encoding="utf-8").splitlines())


def centre_reader(reader: ValueReader, checkpoint: Checkpoint | None = None) -> None:
    """Give a reader's plan the means that its recipe takes away, where it lacks them.

    Args:
        reader: where it will run, in its precision.
        checkpoint: that it was loaded from; None where no file holds its weights, and no mean is kept on disk.
    """
    reader.plan = centre_plans(reader, {"": reader.plan}, checkpoint)[""]


def centre_plans(reader: ValueReader, plans: Mapping[str, Plan], checkpoint: Checkpoint | None) -> dict[str, Plan]:
    """Give plans the means that their recipes take away, from disk where they were read before.

    Args:
        reader: of the decoder, where it will run, in its precision.
        plans: by name.
        checkpoint: that the decoder was loaded from; None as for :func:`centre_reader`.

    Returns:
        By name the plans, with the mean of each centred part.
    """
    lacking = {part.recipe: part for plan in plans.values() for part in plan.parts if lacks_mean(part)}
    found: dict[Recipe, Tensor] = {}
    places = _places(reader, list(lacking), checkpoint) if lacking else {}
    for recipe, place in places.items():
        if (mean := _read(place, lacking[recipe].width)) is not None:
            found[recipe] = mean
    read = read_means(reader, [part for recipe, part in lacking.items() if recipe not in found])
    for recipe, mean in read.items():
        if recipe in places:
            _write(places[recipe], mean)
    found |= read
    return {
        name: with_means(plan, [found.get(part.recipe, part.mean) for part in plan.parts])
        for name, plan in plans.items()
    }


def lacks_mean(part: Plan) -> bool:
    """Whether a part's recipe takes a mean away that is not known."""
    return part.recipe.centring != "none" and part.mean is None


def with_means(plan: Plan, means: Sequence[Tensor | None]) -> Plan:
    """A plan with the mean ``[width]`` of each of its parts, None for those that take none away."""
    first, *others = means
    joined = tuple(replace(part, mean=mean) for part, mean in zip(plan.joined, others, strict=True))
    return replace(plan, mean=first, joined=joined)


@torch.inference_mode()
@default_device_and_precision()
def read_means(reader: ValueReader, parts: Sequence[Plan]) -> dict[Recipe, Tensor]:
    """Read the means of the general sentences' vectors.

    Args:
        reader: of the decoder.
        parts: plans without further parts.

    Returns:
        By recipe ``[width]`` float32, on the CPU: the mean of vectors of length 1.
    """
    plain = {part.recipe: replace(part, recipe=replace(part.recipe, centring="none")) for part in parts}
    texts = general_sentences()
    found: dict[Recipe, Tensor] = {}
    for recipes in group_by_tokens({recipe: recipe for recipe in plain}):
        plans = [plain[recipe] for recipe in recipes]
        results = read_texts(reader.executor, reader.texts, texts, plans, max_tokens=reader.max_tokens)
        vectors, _ = collect(results, texts, "cpu")
        found |= {recipe: unit(of_plan).mean(dim=0) for recipe, of_plan in zip(recipes, vectors, strict=True)}
    return found


def _places(reader: ValueReader, recipes: Sequence[Recipe], checkpoint: Checkpoint | None) -> dict[Recipe, Path]:
    """The files of means by recipe; none where they are not to be kept."""
    folder = cache_folder()
    if folder is None or checkpoint is None or checkpoint.trust_remote_code:
        return {}
    try:
        content = content_digest(checkpoint)
    except CheckpointError:
        # Nothing says which weights these are.
        return {}
    made = {
        "sentences": sha256(_GENERAL.read_bytes()).hexdigest(),
        "dtype": compute_dtype_of(reader.model),
        "max_tokens": reader.max_tokens,
    }
    digests = {recipe: fingerprint(content, recipe, **made) for recipe in recipes}
    return {recipe: folder / "means" / f"{digest}.safetensors" for recipe, digest in digests.items()}


def _read(place: Path, width: int) -> Tensor | None:
    try:
        mean = load_file(place)[_KEY]
    except (OSError, ValueError, KeyError, SafetensorError):
        return None
    return mean if mean.shape == (width,) else None


def _write(place: Path, mean: Tensor) -> None:
    """Keep a mean, where the disk allows it: nothing depends on it but the time that the next load takes."""
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with replacing(place) as new:
            save_file({_KEY: mean}, new)
    except (OSError, OutputError):
        return


def save_means(plan: Plan, folder: Path) -> None:
    """Write the means of a plan's parts beside its saved recipe; nothing where it takes none away."""
    held = {str(at): part.mean.contiguous().cpu() for at, part in enumerate(plan.parts) if part.mean is not None}
    if held:
        save_file(held, folder / MEANS_FILE)


def saved_means(plan: Plan, checkpoint: Checkpoint) -> Plan:
    """A plan with the means that a saved folder holds for it.

    Args:
        plan: of the recipe that the folder records.
        checkpoint: the folder.

    Raises:
        CheckpointError: they are missing or damaged.
    """
    if not any(map(lacks_mean, plan.parts)):
        return plan
    path = checkpoint.file(MEANS_FILE)
    if path is None:
        raise CheckpointError(
            f"model {checkpoint.name!r} has no {MEANS_FILE}, with the mean that its recipe takes away; save it again"
        )
    try:
        held = load_file(path)
    except (OSError, ValueError, SafetensorError) as error:
        raise CheckpointError(f"model {checkpoint.name!r}: {MEANS_FILE} is damaged: {error}") from error
    means = [held.get(str(at)) for at in range(len(plan.parts))]
    for part, mean in zip(plan.parts, means, strict=True):
        if lacks_mean(part) and (mean is None or tuple(mean.shape) != (part.width,)):
            shape = "none" if mean is None else list(mean.shape)
            raise CheckpointError(
                f"model {checkpoint.name!r}: {MEANS_FILE} is damaged: a mean of shape [{part.width}] is needed, and "
                f"it holds {shape}"
            )
    return with_means(plan, means)
