"""Small training runs: our own pairs of sentences, and what is compared between two runs."""

from __future__ import annotations

import gc
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from valuembed.training.finetune import Training, train

GRADED = Path(__file__).resolve().parents[2] / "examples" / "sts.jsonl"

_ROWS = [json.loads(line) for line in GRADED.read_text(encoding="utf-8").splitlines()]
PAIRS = [(row["sentence1"], row["sentence2"]) for row in _ROWS if row["score"] >= 4]
"""Twenty pairs of sentences that mean the same."""


def pairs_file(path: Path, count: int = len(PAIRS), *, negatives: bool = False) -> Path:
    """Write the first pairs; with negatives, each with the positive of the next pair as its hard negative."""
    rows = [{"anchor": anchor, "positive": positive} for anchor, positive in PAIRS[:count]]
    if negatives:
        for row, other in zip(rows, [*rows[1:], rows[0]], strict=True):
            row["negative"] = other["positive"]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


TEXTS = ["The sun rose.", "Over a quiet town, while nobody watched, it rained.", "rain"]

# The trainer collects garbage when it starts, and would look through all that was imported so far each time.
gc.freeze()


def trained(
    model: Any, pairs: Any, output: Path, method: Any = "va", *, chart: bool = False, **options: Any
) -> Training:
    """A run of a few steps; without its chart, which takes as long as the rest."""
    with pytest.MonkeyPatch.context() as patch:
        if not chart:
            patch.setattr("valuembed.reporting.plots.save", lambda figure, path: None)
            patch.setattr(Training, "figure", lambda made: None)
        return train(model, pairs, method, output=output, **{"steps": 4, "batch_size": 8, "device": "cpu", **options})


def other_texts(path: Path) -> Path:
    """Graded pairs with no text that is trained on."""
    trained_on = {text for pair in PAIRS for text in pair}
    rows = [json.loads(line) for line in GRADED.read_text(encoding="utf-8").splitlines()]
    rows = [row for row in rows if not trained_on & {row["sentence1"], row["sentence2"]}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def difference(one: Any, other: Any) -> float:
    """The largest difference between two models' vectors."""
    return float(np.abs(one.encode(TEXTS) - other.encode(TEXTS)).max())


def adapters_of(made: Training) -> dict[str, Tensor]:
    """The weights of a run's adapters, by name."""
    return {name: weight.detach() for name, weight in made.model.named_parameters() if ".lora_" in name}


def assert_same_adapters(one: Training, other: Training) -> None:
    """Hold two runs against each other, each on a load of its own.

    Adam takes gradients by their size relative to each other, so that what rounding does to them stays a rounding.
    """
    furthest_apart = furthest(one, other)
    assert furthest_apart < 1e-6, f"adapters differ by {furthest_apart:.1e}"


def furthest(one: Training, other: Training) -> float:
    """The largest difference between two runs' adapters."""
    weights, others = adapters_of(one), adapters_of(other)
    assert weights
    assert weights.keys() == others.keys()
    return max(float((weights[name] - others[name]).abs().max()) for name in weights)


def losses(made: Training) -> list[float]:
    """Of each step, after making sure that no step is missing or there twice."""
    steps = [step for step, _ in made.record["losses"]]
    assert steps == list(range(1, made.record["steps"] + 1))
    return [loss for _, loss in made.record["losses"]]


def separation(model: Any) -> float:
    """How much more alike a pair's vectors are than those of two pairs: mean cosines, the first less the second."""
    anchors, positives = (torch.from_numpy(model.encode([pair[side] for pair in PAIRS])) for side in (0, 1))
    cosines = anchors @ positives.T
    same = torch.eye(len(PAIRS), dtype=torch.bool)
    return float(cosines[same].mean() - cosines[~same].mean())
