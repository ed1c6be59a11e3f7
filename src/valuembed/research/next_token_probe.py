"""Next-token probing: how much a signal at a position says of the token that follows, layer by layer."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice
from math import sqrt
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from valuembed._utils.autosave import autosave, incomplete
from valuembed._utils.progress import track
from valuembed._utils.text import counted
from valuembed._utils.torch_settings import default_device_and_precision
from valuembed._utils.version import versions
from valuembed.analysis import AT_TOKEN, OF_PREFIX, Documents, TokenSignal, read_tokens
from valuembed.backbone import LoadKwargs, LoadOptions
from valuembed.errors import InputError
from valuembed.models import SIGNALS, MultiReadout, ValueReader, described, inspect_checkpoint, not_finite
from valuembed.recipes import LayerSpec
from valuembed.reporting import results_folder
from valuembed.research.linear_probe import (
    EPOCHS,
    FEWEST_STEPS,
    LEARNING_RATE,
    ROWS_PER_STEP,
    as_classes,
    most_frequent,
    scales,
    train_softmax,
)
from valuembed.research.segment_probe import FINAL, PLAIN, Figures, LayerProbe, layers_of
from valuembed.tokenization import TokenSequence

if TYPE_CHECKING:
    from typing_extensions import Unpack

TOKEN_SIGNALS = {
    ("value", AT_TOKEN): "value at the token",
    ("value", OF_PREFIX): "values of the prefix",
    ("hidden", AT_TOKEN): "hidden state at the token",
    ("hidden", OF_PREFIX): "hidden states of the prefix",
}

NAME = "next-token"
"""Of the files."""

POSITIONS = 20_000
"""Positions in all, those held out included."""

FEWEST_POSITIONS = 1000
"""Positions below which a probe says nothing."""

PER_DOCUMENT = 20
"""Positions drawn from one document."""

CONTEXT = 128
"""Tokens that are fed of each document, from its start."""

WIDTH = 256
"""The most inputs that a probe has."""

HELD_OUT = 5
"""One document in so many is held out."""

_DOCUMENTS_AT_A_TIME = 64


@dataclass(frozen=True)
class SampledPositions:
    """Positions of documents, and the token that follows each.

    Attributes:
        rows: the documents, tokenized and cut.
        positions: of each document, increasing; no last token of what is fed is among them.
    """

    rows: list[TokenSequence]
    positions: list[list[int]]

    def __len__(self) -> int:
        return sum(map(len, self.positions))

    def next_tokens(self, rows: Sequence[int]) -> list[int]:
        """The ids that follow the positions of some documents, in their order."""
        return [self.rows[row].ids[position + 1] for row in rows for position in self.positions[row]]

    def split(self) -> tuple[SampledPositions, SampledPositions]:
        """The documents to train on, and the held out ones: every :data:`HELD_OUT`-th."""
        kept = [row for row in range(len(self.rows)) if (row + 1) % HELD_OUT]
        out = range(HELD_OUT - 1, len(self.rows), HELD_OUT)
        train, held_out = (
            SampledPositions([self.rows[row] for row in part], [self.positions[row] for row in part])
            for part in (kept, out)
        )
        return train, held_out


@default_device_and_precision()
def probe_next_token(
    model: str | os.PathLike[str],
    corpus: str | Path,
    *,
    positions: int = POSITIONS,
    width: int = WIDTH,
    layers: LayerSpec = None,
    text_column: str | None = None,
    seed: int = 0,
    output: str | Path | None = None,
    progress: bool = True,
    **options: Unpack[LoadKwargs],
) -> LayerProbe:
    """Next-token probing by layer: a linear softmax from a signal at a position to the token that follows.

    Four signals at each layer: the values and the hidden state at the token, and the mean of either over the text's
    tokens up to it (of values, that mean is the VA of the prefix). Documents are fed from their start, up to
    :data:`CONTEXT` tokens; :data:`PER_DOCUMENT` positions of each are drawn, and every :data:`HELD_OUT`-th document is
    held out. Every signal is brought to the same number of inputs by one fixed random projection of orthonormal
    columns, its features scaled to unit deviation before (no single large one may drown the others) and after. The
    classes are the next tokens that the training part has. Optimizer, steps and order are the same for all.

    Where probing ends early, ``output`` takes the probes that are finished, marked as incomplete. A later run into the
    same folder reads the documents again and takes over every probe whose inputs, targets and settings are the same to
    the bit; it trains the others.

    Memory beside the model: ``4 * positions * width`` bytes for each signal and layer.

    Args:
        model: as in :func:`valuembed.load`.
        corpus: documents, a file as for :func:`valuembed.data.read_rows`.
        positions: in all; fewer are used, and it is said, where the corpus has fewer.
        width: inputs of the probes, at most; no signal may be narrower, or all take its width.
        layers: which are probed, as in :func:`valuembed.load`; None is all.
        text_column: column, or JSON key, of the corpus's text.
        seed: of positions, projection and order.
        output: a folder for table, chart and JSON.
        progress: show bars on stderr if that is a terminal, else a line a minute.
        options: ``dtype``, ``device``, ``max_tokens``, ``revision``, ``token``, ``cache_folder``,
            ``local_files_only``, ``trust_remote_code``, ``model_kwargs``: as in :func:`valuembed.load`.

    Returns:
        Accuracy of the first guess and of the first five in percent, and the loss in nats, on the held out part.

    Raises:
        InputError: the corpus cannot be read, or has fewer than :data:`FEWEST_POSITIONS` positions.
        LayerError: layers that do not exist.
        ReadingError: a signal is not finite.
        OutputError, MissingExtraError: results cannot be written, or the chart not drawn; known before the work.

    Source: Zhang et al., arXiv 2602.01572; the details above are ours.
    """
    loaded_with = LoadOptions.of(options, probe_next_token)
    for name, number, least in (("positions", positions, FEWEST_POSITIONS), ("width", width, 1)):
        if number < least:
            raise InputError(f"{name}={number} has to be at least {least}")
    documents = Documents(corpus, text_column)
    if output is not None:
        results_folder(output)
    whole = inspect_checkpoint(model, options=loaded_with)
    decoder_spec, held = whole.decoder_spec, whole.has_final_norm
    chosen = layers_of(whole, layers)
    deepest = replace(SIGNALS["hidden mean"], layers=None if held else [max(chosen)])
    reader = MultiReadout.load(model, {"deepest": deepest}, options=loaded_with).reader.eval()
    began = time.perf_counter()
    drawn = draw(documents, reader, positions, seed, progress=progress)
    train, held_out = drawn.split()
    narrowest = [block.value_heads * block.head_width for block in decoder_spec.blocks if block.layer in chosen]
    project = RandomProjection(min(width, decoder_spec.model_width, *narrowest), seed)
    read = [*chosen, *([None] if held else [])]
    # The training part goes first: it is what the projection takes its scales from.
    parts = [_read(reader, read, part, project, progress) for part in (train, held_out)]
    (inputs, targets), (held_inputs, wanted) = parts
    classes, targets = torch.unique(targets, return_inverse=True)
    wanted = as_classes(wanted, classes)
    scores: dict[str, dict[int, Figures]] = {name: {} for name in TOKEN_SIGNALS.values()}
    final: dict[str, Figures] = {}
    device = reader.model.device
    training = (EPOCHS, FEWEST_STEPS, ROWS_PER_STEP, LEARNING_RATE)
    settings = (seed, len(classes), *training, device.type, *versions("torch").items())
    known = {} if output is None else _finished_before(Path(output) / f"{NAME}.json")
    probes: dict[str, str] = {}
    total = len(inputs)
    unseen = float((wanted < 0).float().mean())
    if unseen == 1.0:
        raise InputError(
            f"{documents.path}: none of {counted(len(wanted), 'next token')} held out stands in the other documents, "
            "and nothing can be measured; give more documents"
        )
    details = {
        **described(reader),
        "positions": len(drawn),
        "positions_asked": positions,
        "positions_trained": len(targets),
        "positions_held_out": len(wanted),
        "documents": len(drawn.rows),
        "documents_held_out": len(held_out.rows),
        "rows_rejected": documents.rejected,
        "context": CONTEXT,
        "width": project.width,
        "classes": len(classes),
        "held_out_without_class": unseen,
        "seed": seed,
        "optimizer": {"name": "AdamW", "epochs": EPOCHS, "rows": ROWS_PER_STEP, "learning_rate": LEARNING_RATE},
    }
    fewer = "" if len(drawn) == positions else f" ({positions:,} were asked for: the corpus has no more)"

    def made(unfinished: str = "") -> LayerProbe:
        return LayerProbe(
            name=NAME,
            heading="Next-token probing",
            model=whole.origin.name,
            corpus=documents.path.name,
            num_layers=decoder_spec.num_layers,
            metrics=("top-1 (%)", "top-5 (%)", "loss (nats)"),
            scores={name: of_name for name, of_name in scores.items() if of_name or name in final},
            final=final,
            baselines={"most frequent": most_frequent(targets, wanted, len(classes)).figures},
            notes=(
                f"linear softmax on {counted(len(targets), 'position')}, scored on {len(wanted):,} of other "
                f"documents{fewer}; {counted(len(drawn.rows), 'document')}, {CONTEXT} tokens of each at most, no "
                "template",
                f"every signal projected to {counted(project.width, 'input')}; "
                f"{counted(len(classes), 'class', 'classes')}, and {unseen:.1%} of the held out next tokens are none "
                "of them: missed in top-1 and top-5, left out of the loss",
                "the values of layer l are computed from the hidden states after layer l - 1; one standard error of "
                f"top-1 is at most {50 / sqrt(len(wanted)):.1f} points",
            ),
            details={**details, "probes": probes, "seconds": round(time.perf_counter() - began, 2)},
            unfinished=unfinished,
        )

    def keep() -> None:
        if output is not None and probes:
            made(incomplete(len(probes), total, "probe")).write(output)

    with autosave(keep) as finished:
        for signal in track(progress, list(inputs), desc="Probes", unit="probe"):
            vectors, held_vectors = inputs.pop(signal), held_inputs.pop(signal)
            name = TOKEN_SIGNALS[signal.signal, signal.extent]
            where = FINAL if signal.layer is None else str(signal.layer)
            if not (vectors.isfinite().all() and held_vectors.isfinite().all()):
                raise not_finite(f"{name}, layer {'L' if signal.layer is None else signal.layer}", reader)
            digest = _digest(settings, vectors, targets, held_vectors, wanted)
            if (figures := known.get(digest)) is None:
                figures = train_softmax(
                    vectors.to(device), targets, held_vectors.to(device), wanted, len(classes), seed
                ).figures
            if signal.layer is None:
                final[name] = figures
            else:
                scores[name][signal.layer] = figures
            probes[f"{name}@{where}"] = digest
            finished()
    result = made()
    if output is not None:
        result.write(output)
    return result


def _digest(settings: Sequence[Any], *tensors: Tensor) -> str:
    """All that a probe is made from, as 32 hex digits."""
    whole = hashlib.sha256(repr(settings).encode())
    for tensor in tensors:
        whole.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
        whole.update(tensor.contiguous().numpy().data)
    return whole.hexdigest()[:32]


def _finished_before(path: Path) -> dict[str, Figures]:
    """The figures of the probes that an earlier run finished, by what they were made from; none if there is no such."""
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        found = {}
        for probe, digest in kept["details"]["probes"].items():
            name, _, layer = probe.rpartition("@")
            figures = kept["final"][name] if layer == FINAL else kept["scores"][name][layer]
            found[digest] = tuple(map(float, figures))
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return {}
    return found


def draw(
    documents: Documents, reader: ValueReader, positions: int, seed: int = 0, *, progress: bool = False
) -> SampledPositions:
    """Draw positions that have a next token, :data:`PER_DOCUMENT` of each document, until there are enough.

    Args:
        documents: read in order, no further than needed.
        reader: its tokenizer and token limit.
        positions: how many.
        seed: with a document's number it decides which of its positions are drawn.
        progress: show a bar.

    Raises:
        InputError: there are fewer than :data:`FEWEST_POSITIONS`.
    """
    limit = min(CONTEXT, reader.max_tokens or CONTEXT)
    rows: list[TokenSequence] = []
    chosen: list[list[int]] = []
    number, missing, texts = 0, positions, iter(documents)
    with track(progress, total=positions, desc="Drawing positions", unit="position") as bar:
        while missing and (batch := list(islice(texts, _DOCUMENTS_AT_A_TIME))):
            fed = reader.texts.rows(batch, PLAIN, max_tokens=limit)
            reader.texts.check(fed, PLAIN)
            for row in fed:
                number += 1
                start, end = row.span
                count = min(PER_DOCUMENT, end - 1 - start, missing)
                if count > 0:
                    places = np.random.default_rng([seed, number]).choice(end - 1 - start, count, replace=False)
                    rows.append(row)
                    chosen.append(sorted((places + start).tolist()))
                    missing -= count
                    bar.update(count)
    if positions - missing < FEWEST_POSITIONS:
        raise InputError(
            f"{documents.path} has {counted(positions - missing, 'position')} with a next token, {PER_DOCUMENT} of "
            f"each of {counted(len(rows), 'document')} at most; a probe needs {FEWEST_POSITIONS:,}: give more documents"
        )
    return SampledPositions(rows, chosen)


class RandomProjection:
    """A fixed random projection of each signal to one width, its features scaled to unit deviation before.

    A few features of hidden states can be a hundred times as large as the rest; a projection without scales would see
    nothing else. The scales are those of the first positions that come.

    Args:
        width: of the result; no more than that of any signal.
        seed: of the directions.
    """

    def __init__(self, width: int, seed: int = 0) -> None:
        self.width = width
        self._seed = seed
        self._directions: dict[int, Tensor] = {}
        self._scales: dict[TokenSignal, tuple[Tensor, Tensor]] = {}

    def __call__(self, signal: TokenSignal, vectors: Tensor) -> Tensor:
        """Project ``[p, width]`` float32 to ``[p, self.width]`` on the CPU."""
        if signal not in self._scales:
            self._scales[signal] = scales(vectors)
        centre, spread = self._scales[signal]
        wide = vectors.shape[1]
        if wide not in self._directions:
            generator = torch.Generator().manual_seed(self._seed)
            drawn = torch.randn(wide, self.width, generator=generator, dtype=torch.float32)
            self._directions[wide] = torch.linalg.qr(drawn)[0]
        scaled = (vectors - centre.to(vectors.device)) / spread.to(vectors.device)
        return (scaled @ self._directions[wide].to(vectors.device)).cpu()


def _read(
    reader: ValueReader,
    layers: Sequence[int | None],
    drawn: SampledPositions,
    project: RandomProjection,
    progress: bool,
) -> tuple[dict[TokenSignal, Tensor], Tensor]:
    """Each signal ``[p, width]`` of the drawn positions, projected, and the ids that follow them ``[p]``."""
    pieces: dict[TokenSignal, list[Tensor]] = {}
    following: list[int] = []
    with track(progress, total=len(drawn.rows), desc="Reading documents", unit="document") as bar:
        for rows, signals in read_tokens(
            reader.model,
            reader.plan.decoder_spec,
            layers,
            drawn.rows,
            drawn.positions,
            project,
            reader.executor.tokens_per_step,
        ):
            for signal, vectors in signals.items():
                pieces.setdefault(signal, []).append(vectors)
            following += drawn.next_tokens(rows)
            bar.update(len(rows))
    return {signal: torch.cat(pieces.pop(signal)) for signal in list(pieces)}, torch.tensor(following)
