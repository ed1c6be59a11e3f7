"""Make a model better without training: fit a calibration on unlabelled texts, and put it into the model."""

from __future__ import annotations

import copy
import hashlib
import heapq
import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sentence_transformers.base.modules import Normalize
from torch import Tensor, nn

from valuembed._utils.torch_settings import default_device_and_precision
from valuembed.backbone.checkpoints import (
    CalibrationRecord,
    HubKwargs,
    HubOptions,
    base_of,
    holds_adapter,
    locate,
    read_config,
    read_head,
    saved_config,
)
from valuembed.data import check_text, iter_texts
from valuembed.errors import CheckpointError, InputError, RecipeError
from valuembed.models import (
    DEFAULT_SHRINKAGE,
    FILTER,
    Calibration,
    MultiReadout,
    Projection,
    ValueEncoder,
    check_choices,
    fit,
    fit_filter,
    warn_truncated,
)

if TYPE_CHECKING:
    from typing_extensions import Unpack

MAX_TEXTS = 10_000
"""Texts to fit on (ours): on the bundled model four times as many as the vectors are wide gave what more gave."""


@dataclass(frozen=True)
class Sample:
    """Texts to fit on.

    Attributes:
        texts: different ones, none blank; the same whatever order they came in.
        digest: of the texts, 16 hex digits.
    """

    texts: list[str]
    digest: str


def sample_texts(texts: Iterable[str], max_texts: int = MAX_TEXTS) -> Sample:
    """Draw different texts from a stream of any length, holding no more than are drawn.

    Taken are those whose hashes are smallest: every different text has the same chance, in whatever order and however
    often it comes, and the same corpus always gives the same sample.

    Args:
        texts: in any number; blank ones are passed over.
        max_texts: how many to draw at most.

    Raises:
        InputError: something that is not a text, with its position, or fewer than 2 different texts.
        RecipeError: max_texts below 2.
    """
    if isinstance(texts, str):
        raise InputError("a corpus is a list of texts, not one text")
    if isinstance(max_texts, bool) or not isinstance(max_texts, int) or max_texts < 2:
        raise RecipeError(f"max_texts={max_texts!r} has to be a whole number of at least 2")
    heap: list[tuple[int, str]] = []  # negative hashes: the largest of those held is on top
    held: set[str] = set()
    for row, text in enumerate(iter_texts(texts, ordered=False)):
        if reason := check_text(text):
            raise InputError(f"row {row} of the corpus cannot be embedded: it is {reason}")
        if not text.strip() or text in held:
            continue
        item = (-int.from_bytes(hashlib.blake2b(text.encode(), digest_size=16).digest(), "big"), text)
        if len(heap) < max_texts:
            heapq.heappush(heap, item)
        elif item > heap[0]:
            held.discard(heapq.heapreplace(heap, item)[1])
        else:
            continue
        held.add(text)
    if len(heap) < 2:
        raise InputError(f"a calibration is fitted on 2 different texts or more; the corpus holds {len(heap)}")
    chosen = [text for _, text in sorted(heap, reverse=True)]
    joined = "".join(hashlib.sha256(text.encode()).hexdigest() for text in chosen)
    return Sample(chosen, hashlib.sha256(joined.encode()).hexdigest()[:16])


def load_head(
    model: str | os.PathLike[str], *, options: HubOptions | None = None, **given: Unpack[HubKwargs]
) -> Tensor:
    """Read the language model head of a model, and nothing else of it.

    A folder saved by this library has no head unless it is tied to the input embeddings; it is then read from where
    the folder's layers came from, if that is a hub id or the bundled model.

    Args:
        model: a hub id, a folder, or ``"bundled"``.
        options: of the hub, where they are at hand.
        given: ``revision``, ``token``, ``cache_folder``, ``local_files_only`` and ``trust_remote_code``, as in
            :func:`valuembed.load`.

    Returns:
        ``[vocabulary, m]``.

    Raises:
        CheckpointError: there is none, or it cannot be read.
    """
    chosen = HubOptions.of(given, load_head, options)
    checkpoint = locate(model, options=chosen)
    saved = saved_config(checkpoint)
    try:
        held = base_of(checkpoint, saved) if holds_adapter(checkpoint) else checkpoint
        return read_head(held, read_config(held))
    except CheckpointError as error:
        if saved is None:
            raise
        name = saved["origin"]["name"]
        if not saved["origin"]["fetchable"]:
            raise CheckpointError(f"{error}: the folder {name!r}, which this one was made from") from error
        source = locate(name, options=chosen, revision=saved["origin"]["revision"])
        return read_head(source, read_config(source))


@default_device_and_precision()
def calibrate(
    model: ValueEncoder,
    texts: Iterable[str] = (),
    *,
    kind: str = "whiten",
    size: int | None = None,
    shrinkage: float = DEFAULT_SHRINKAGE,
    max_texts: int = MAX_TEXTS,
    head: Tensor | None = None,
    progress: bool = True,
) -> ValueEncoder:
    """Put a calibration into a model, in place of the one that it may have.

    Texts are embedded as ``encode`` embeds them: in the recipe's own template, with the model's default instruction.

    Args:
        model: from :func:`valuembed.load`; it stays as it is.
        texts: unlabelled, and like those that will be embedded; read as a stream. The filter needs none.
        kind: one of :data:`valuembed.models.KINDS`: ``"centre"``, ``"whiten"``, ``"pca"`` or ``"filter"``.
        size: width of the vectors that come out; None is that of the recipe.
        shrinkage: of whitening, see :func:`valuembed.models.calibration.fit_whitening`.
        max_texts: how many different texts are drawn, see :func:`sample_texts`.
        head: for the filter, from :func:`load_head`; None reads it from where the model's layers came from.
        progress: show a bar on stderr if that is a terminal, else a line a minute.

    Returns:
        A new model around the same decoder, to be saved like any other.

    Raises:
        RecipeError: an unknown kind, a size or shrinkage out of range, the filter for raw values, or a model with
            further modules, which were made for other vectors.
        InputError: texts that are too few or cannot be embedded, or a head of another width.
        CheckpointError: the head cannot be read.
    """
    reader = model.reader
    later = [module for module in list(model)[1:] if not isinstance(module, Calibration)]
    if other := [type(module).__name__ for module in later if not isinstance(module, Normalize)]:
        raise RecipeError(f"{', '.join(other)} after the reader takes its vectors as they are; calibrate without")
    calibration = fit_calibrations(
        MultiReadout(reader, {"": reader.plan}),
        texts,
        kind=kind,
        size=size,
        shrinkage=shrinkage,
        max_texts=max_texts,
        head=head,
        prompt=model.prompts.get(model.default_prompt_name or ""),
        progress=progress,
    )[""]
    modules: list[nn.Module] = [reader, calibration, *later]
    made = ValueEncoder(
        modules=modules,
        device=str(reader.model.device),
        prompts={name: prompt for name, prompt in model.prompts.items() if prompt is not None},
        default_prompt_name=model.default_prompt_name,
        similarity_fn_name=model.similarity_fn_name,
        truncate_dim=model.truncate_dim,
        model_card_data=copy.copy(model.model_card_data),
    )
    made._model_card_text = model._model_card_text
    return made


def fit_calibrations(
    readouts: MultiReadout,
    texts: Iterable[str] = (),
    *,
    kind: str = "whiten",
    size: int | None = None,
    shrinkage: float = DEFAULT_SHRINKAGE,
    max_texts: int = MAX_TEXTS,
    head: Tensor | None = None,
    prompt: str | None = None,
    progress: bool = True,
) -> dict[str, Calibration]:
    """Fit a calibration for each of several recipes on one decoder, in as many passes as they need together.

    Args:
        readouts: the recipes; what calibrations it has plays no part.
        texts, kind, size, shrinkage, max_texts, head, progress: as in :func:`calibrate`.
        prompt: an instruction for all texts.

    Returns:
        By the names of the readouts.

    Raises:
        RecipeError, InputError, CheckpointError: as :func:`calibrate`.
    """
    plain = MultiReadout(readouts.reader, readouts.plans)
    widths, recipes = plain.widths(), plain.recipes
    for name, recipe in recipes.items():
        check_choices(kind, recipe, widths[name], size, shrinkage)

    def made(name: str, projection: Projection, **fitted_on: Any) -> Calibration:
        width, kept = projection.matrix.shape
        record = CalibrationRecord(kind=kind, recipe=recipes[name], width=width, size=kept, **fitted_on)
        return Calibration(projection, record)

    if kind == FILTER:
        m = plain.reader.plan.decoder_spec.model_width
        projection = fit_filter(checked_head(_own_head(plain) if head is None else head, m), size)
        return {name: made(name, projection) for name in recipes}
    sample = sample_texts(texts, max_texts)
    about: dict[str, Any] = {"texts": len(sample.texts), "corpus": sample.digest}
    if kind == "whiten":
        about["shrinkage"] = float(shrinkage)
    vectors = plain.encode(sample.texts, prompt=prompt, progress=progress)
    assert plain.report is not None
    warn_truncated(plain.report, plain.reader)
    return {name: made(name, fit(kind, vectors[name], size=size, shrinkage=shrinkage), **about) for name in recipes}


def _own_head(readouts: MultiReadout) -> Tensor:
    origin = readouts.reader.origin
    if not origin.fetchable:
        raise RecipeError(
            f"kind={FILTER!r} reads the language model head, and it is not kept where the folder {origin.name!r} was, "
            "from which this model came; give head=load_head(FOLDER)"
        )
    return load_head(origin.name, revision=origin.revision)


def checked_head(head: Tensor, width: int) -> Tensor:
    """A language model head that fits vectors of the residual stream.

    Raises:
        InputError: it has another width.
    """
    if head.dim() != 2 or head.shape[1] != width:
        raise InputError(
            f"the language model head has the shape {tuple(head.shape)}, and vectors {width} wide need [vocabulary, "
            f"{width}]; take the head of the same model, or kind='whiten'"
        )
    return head
