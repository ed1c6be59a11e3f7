"""Small training runs: our own pairs of sentences, and what is compared between two runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from valuembed.train import Training, train

GRADED = Path(__file__).resolve().parents[1] / "examples" / "sts.jsonl"

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


def trained(model: Any, pairs: Path, output: Path, method: Any = "va", **options: Any) -> Training:
    """A run of a few steps."""
    return train(model, pairs, method, output=output, **{"steps": 4, "batch_size": 8, "device": "cpu", **options})


def adapters_of(made: Training) -> dict[str, Tensor]:
    """The weights of a run's adapters, by name."""
    return {name: weight.detach() for name, weight in made.model.named_parameters() if ".lora_" in name}


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
