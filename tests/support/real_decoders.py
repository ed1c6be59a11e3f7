"""Real decoders for tests, from the folder that the environment variable VALUEMBED_REAL names.

It holds a folder for each of :data:`DECODERS`, with its configuration, tokenizer and weights. What tests hold them to
is made anew by ``python tests/support/real_decoders.py DIR [DECODER ...]``.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import spearmanr

from valuembed.data import read_sts
from valuembed.models import MultiReadout
from valuembed.recipes import METHODS

VARIABLE = "VALUEMBED_REAL"
DECODERS = ("smollm2", "gemma3", "qwen2.5")
TEXTS = ("The bridge was closed because of strong wind.", "Die Katze schläft, 4 Uhr früh.")
NUMBERS = 8
"""Of each vector, how many are kept."""
SCORED = ("va", "aligned_va", "wva", "aligned_wva", "hidden_mean", "prompt_eol")

ROOT = Path(__file__).resolve().parents[2]
GRADED = ROOT / "examples" / "graded.jsonl"
GOLDEN = ROOT / "tests" / "real" / "golden.json"


def real_decoder(name: str) -> Path:
    """The folder of a real decoder; the test is skipped where there is none."""
    named = os.environ.get(VARIABLE)
    if not named:
        pytest.skip(f"no real decoders; {VARIABLE} names the folder that holds them")
    folder = Path(named) / name
    if not (folder / "config.json").is_file():
        pytest.skip(f"no real decoder {name} in the folder that {VARIABLE} names")
    return folder


def readouts(folder: Path) -> MultiReadout:
    """Every method on a decoder, in float32."""
    return MultiReadout.load(folder, {name: name for name in METHODS}, dtype="float32", device="cpu")


def unit(vectors: NDArray[Any]) -> NDArray[Any]:
    """Vectors at length 1, float64."""
    vectors = vectors.astype(np.float64)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def first_numbers(reads: MultiReadout) -> dict[str, NDArray[Any]]:
    """By method, the first numbers of the unit vector of each of the texts, ``[texts, NUMBERS]``."""
    return {name: unit(vectors)[:, :NUMBERS] for name, vectors in reads.encode(TEXTS).items()}


def graded_scores(reads: MultiReadout) -> dict[str, float]:
    """By method, Spearman's correlation of cosines with the grades of our own pairs."""
    pairs = read_sts(GRADED)
    first, second = (reads.encode(side, names=SCORED) for side in (pairs.sentences1, pairs.sentences2))
    return {
        name: float(spearmanr((unit(first[name]) * unit(second[name])).sum(1), pairs.scores).statistic)
        for name in SCORED
    }


def main() -> None:
    """Write what the decoders in a folder give; what is known of others stays."""
    folder, names = Path(sys.argv[1]), sys.argv[2:] or DECODERS
    golden = json.loads(GOLDEN.read_text(encoding="utf-8")) if GOLDEN.exists() else {}
    for name in names:
        reads = readouts(folder / name)
        numbers = {method: np.round(found, 5).tolist() for method, found in first_numbers(reads).items()}
        scores = {method: round(score, 4) for method, score in graded_scores(reads).items()}
        layers = {method: list(plan.layers) for method, plan in reads.plans.items()}
        golden[name] = {"graded pairs": scores, "layers": layers, "first numbers": numbers}
    ordered = {name: golden[name] for name in DECODERS if name in golden}
    GOLDEN.write_text(json.dumps(ordered, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
