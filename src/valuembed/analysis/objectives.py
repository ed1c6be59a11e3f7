"""What sets of layers are judged by: pairs with gold scores, or segments whose next one has to be found.

Data is halved once, without any chance: on one half layers are chosen, on the other the choice is scored.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from valuembed._utils.optional import require
from valuembed._utils.text import counted
from valuembed.analysis.segments import Segments, match
from valuembed.data import StsFile, read_sts, splits_of
from valuembed.errors import InputError
from valuembed.evaluation import spearman
from valuembed.execution import EncodeReport
from valuembed.models import MultiReadout, not_finite, read_pair_windows, warn_truncated

LEAST_PAIRS = 20
"""Pairs below which halves say nothing."""

DEV_SPLITS = ("dev", "validation", "val", "train")
"""Splits to choose on, the first that a file has."""

WINDOW_BYTES = 1 << 26
"""Vectors of pairs that are held at a time."""

CHOSEN_ON, HELD_OUT = 0, 1
"""The two halves."""

_TEST = re.compile(r"(?<![a-z])test(?![a-z])", re.IGNORECASE)
_BLOCK = 1 << 27


class LayerObjective(Protocol):
    """Data that can say how good a set of layers is.

    Attributes:
        metrics: what is measured; the first decides.
        data: what was read and how it was halved, plain data.
    """

    metrics: tuple[str, ...]
    data: dict[str, Any]

    def scores(self, sets: Sequence[tuple[int, ...]], half: int, bar: Any = None) -> NDArray[np.float64]:
        """Score sets of layers of one width, ``[c, metrics]``, times 100, higher is better.

        Args:
            sets: c sets of layers that the readouts read.
            half: :data:`CHOSEN_ON` or :data:`HELD_OUT`.
            bar: a progress bar, which moves on by a set.
        """


class LabelledPairs:
    """Pairs of texts with gold scores: Spearman's correlation of the cosines of means over layers.

    The cosine of two means over any layers follows from the products of their vectors layer by layer. So these are
    kept, ``3 * l**2`` numbers a pair, and the vectors are not.

    Args:
        readouts: a recipe for each layer, named by it.
        groups: layers of equal width.
        file: the pairs.
        progress: show a bar.
    """

    metrics: tuple[str, ...] = ("Spearman",)

    def __init__(self, readouts: MultiReadout, groups: Sequence[Sequence[int]], file: StsFile, progress: bool) -> None:
        self._groups = groups
        self._halves = halves_of_pairs(file)
        self._gold = np.array(file.scores)
        pairs = len(file.scores)
        self._products = [np.empty((3, pairs, len(group) ** 2), np.float32) for group in groups]
        reports = []
        for window, vectors, report in read_pair_windows(
            readouts, file.sentences1, file.sentences2, WINDOW_BYTES, progress=progress
        ):
            for group, products in zip(groups, self._products, strict=True):
                layers = torch.stack([vectors[str(layer)] for layer in group], dim=1).cpu().double()
                if (bad := ~layers.isfinite().all(dim=2).all(dim=0)).any():
                    raise not_finite(f"layer {group[int(bad.int().argmax())]}", readouts.reader)
                first, second = layers[window.first], layers[window.second]
                for kind, (one, other) in enumerate(((first, second), (first, first), (second, second))):
                    products[kind, window.rows] = torch.bmm(one, other.transpose(1, 2)).flatten(1).numpy()
            reports.append(report)
        warn_truncated(EncodeReport.total(reports), readouts.reader)
        self.data = {
            "file": file.paths[0].name,
            "digest": file.digest,
            "split": file.split,
            "unit": "pairs",
            "chosen_on": len(self._halves[CHOSEN_ON]),
            "held_out": len(self._halves[HELD_OUT]),
            "halves": "pairs that share a text are in the same half",
        }

    def scores(self, sets: Sequence[tuple[int, ...]], half: int, bar: Any = None) -> NDArray[np.float64]:
        """As :meth:`LayerObjective.scores`."""
        number = next(i for i, group in enumerate(self._groups) if set(group) >= set(sets[0]))
        rows = self._halves[half]
        products = self._products[number][:, rows]
        members = np.array([[layer in chosen for layer in self._groups[number]] for chosen in sets])
        # Which products a set sums up, [c, l*l].
        taken = (members[:, :, None] & members[:, None, :]).reshape(len(sets), -1).astype(np.float64)
        found = []
        step = max(1, _BLOCK // (8 * max(len(rows), taken.shape[1])))
        for start in range(0, len(sets), step):
            both, first, second = (taken[start : start + step] @ kind.T for kind in products)
            # Equal texts have equal products, and float32 lets their cosines be equal too.
            with np.errstate(invalid="ignore"):
                cosines = np.nan_to_num(both / np.sqrt(first * second)).astype(np.float32)
            found.append(100 * spearman(cosines, self._gold[rows]))
        if bar is not None:
            bar.update(len(sets))
        return np.concatenate(found)[:, None]


class NextSegments:
    """Segments of documents: how well the next one is found by the mean over layers.

    Args:
        readouts: a recipe for each layer, named by it.
        segments: as :func:`valuembed.analysis.cut` gives them.
        name: of the file they are from.
        progress: show a bar.
    """

    metrics: tuple[str, ...] = ("MRR", "accuracy@1")

    def __init__(self, readouts: MultiReadout, segments: Segments, name: str, progress: bool) -> None:
        self._documents = segments.documents
        self._halves = segments.halves()
        self._vectors = readouts.encode(segments.texts, progress=progress)
        if readouts.report is not None:
            warn_truncated(readouts.report, readouts.reader)
        self.data = {
            "file": name,
            "digest": hashlib.sha256("\0".join(segments.texts).encode()).hexdigest(),
            "split": None,
            "unit": "segments",
            "tokens_a_segment": segments.tokens,
            "documents": segments.kept,
            "documents_too_short": segments.too_short,
            "chosen_on": len(self._halves[CHOSEN_ON]),
            "held_out": len(self._halves[HELD_OUT]),
            "halves": "every other document",
        }

    def scores(self, sets: Sequence[tuple[int, ...]], half: int, bar: Any = None) -> NDArray[np.float64]:
        """As :meth:`LayerObjective.scores`."""
        rows = self._halves[half]
        found = []
        for chosen in sets:
            # Cosines do not see the length, so the sum does as well as the mean.
            total = self._vectors[str(chosen[0])][rows]
            for layer in chosen[1:]:
                total += self._vectors[str(layer)][rows]
            score = match(total, self._documents[rows])
            found.append((100 * score.mrr, 100 * score.accuracy))
            if bar is not None:
                bar.update()
        return np.array(found)


def read_dev(spec: str | Path, split: str | None = None) -> StsFile:
    """Read pairs to choose on.

    Args:
        spec: ``"sts:FILE"``, or the path of such a file.
        split: None is the first that the file has of :data:`DEV_SPLITS`, or its only one.

    Raises:
        InputError: the file or the split is meant for testing, or cannot be used.
    """
    path = Path(spec.partition(":")[2].strip() if isinstance(spec, str) and spec.startswith("sts:") else spec)
    splits = splits_of(path)
    usable = [name for name in splits if not _TEST.search(name)]
    refused = "layers are never chosen on test data; give a file for development"
    if _TEST.search(path.name) or (split is not None and _TEST.search(split)):
        raise InputError(f"dev {str(spec)!r}{'' if split is None else f', split {split!r}'}: {refused}")
    if splits and not usable:
        raise InputError(f"{path} has rows of the split {', '.join(map(repr, splits))} alone: {refused}")
    if split is None and usable:
        split = next((name for name in DEV_SPLITS if name in usable), usable[0] if len(usable) == 1 else None)
        if split is None:
            raise InputError(f"{path} has the splits {', '.join(map(repr, usable))}; name one with split")
    file = read_sts(path, split)
    if len(file.scores) < LEAST_PAIRS:
        raise InputError(
            f"{path}: {counted(len(file.scores), 'pair is', 'pairs are')} too few to choose on; at least {LEAST_PAIRS} "
            "are needed"
        )
    return file


def halves_of_pairs(file: StsFile) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Indices of two halves of the pairs, of which no text is in both; the order of the rows decides nothing.

    Raises:
        InputError: shared texts tie too many pairs together, or a half has equal scores only.
    """
    sparse, csgraph = (require(f"scipy.sparse{part}", "eval") for part in ("", ".csgraph"))
    places = {text: place for place, text in enumerate(sorted({*file.sentences1, *file.sentences2}))}
    first, second = ([places[text] for text in side] for side in (file.sentences1, file.sentences2))
    ties = sparse.coo_array((np.ones(len(first)), (first, second)), shape=(len(places), len(places)))
    part_of = csgraph.connected_components(ties, directed=False)[1]
    parts = part_of[first].tolist()
    # A part is known by its first text in the order of the alphabet, which is drawn from by its digest.
    leader: dict[int, str] = {}
    for text, part in zip(places, part_of.tolist(), strict=True):
        leader.setdefault(part, hashlib.sha256(text.encode()).hexdigest())
    sizes = Counter(parts)
    half_of: dict[int, int] = {}
    filled = [0, 0]
    for part in sorted(sizes, key=lambda part: (-sizes[part], leader[part])):
        half_of[part] = int(filled[1] < filled[0])
        filled[half_of[part]] += sizes[part]
    if min(filled) < LEAST_PAIRS // 2:
        raise InputError(
            f"{file.paths[0]}: shared texts tie {max(sizes.values())} of {counted(len(parts), 'pair')} together, which "
            f"leaves {min(filled)} to hold out; at least {LEAST_PAIRS // 2} are needed"
        )
    sides = np.array([half_of[part] for part in parts])
    halves = np.flatnonzero(sides == CHOSEN_ON), np.flatnonzero(sides == HELD_OUT)
    for rows in halves:
        if len({file.scores[row] for row in rows}) < 2:
            raise InputError(
                f"{file.paths[0]}: the {len(rows)} pairs of one half all have the score {file.scores[rows[0]]:g}; a "
                "correlation needs at least two different scores"
            )
    return halves
